"""Few labels: who is labelled, the published lists as they are, streams side by side, views of unlabelled images, CutMix."""
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seglite.config import Config
from seglite.data import Batches, Restricted, generator, open_data, partitions, views
from seglite.data.transforms import AugmentSettings, make_transform
from tests.strategies import coordinates, seeds

LISTS = Path(os.environ.get("SEGLITE_DATA", "/nowhere")) / "lists"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not on this machine (SEGLITE_DATA)")
MEAN = (0.4, 0.5, 0.6)


class Named:
    """A training set of which only the names matter."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


def split(labels, names=40, seed=0):
    data = Named([f"im_{i}" for i in range(names)] if isinstance(names, int) else names)
    return partitions.split(SimpleNamespace(labels=labels, seed=seed), data)


@given(st.integers(1, 400), st.integers(1, 30), seeds)
def test_labelled_and_unlabelled_are_the_training_set_in_two_parts(count, below, seed):
    labelled, unlabelled = split(f"1/{below}", count, seed % 1000)
    assert len(labelled) == max(1, int(count / below + 0.5))
    assert sorted([*labelled, *unlabelled]) == list(range(count))
    assert list(labelled) == sorted(labelled) and labelled.dtype == unlabelled.dtype == np.int64


def test_smaller_fractions_lie_inside_larger_ones_and_seeds_differ():
    chain = [set(split(labels, 367)[0]) for labels in ("1/16", "1/8", "1/4", "200", "1/1")]
    assert [len(c) for c in chain] == [23, 46, 92, 200, 367]
    assert all(a < b for a, b in zip(chain, chain[1:]))
    assert set(split("1/8", 367, seed=1)[0]) != chain[1]
    assert (split("1/8", 367)[0] == split("1/8", 367)[0]).all()


@pytest.mark.parametrize("labels, said", [("eighth", "no fraction"), ("0", "asks for 0"), ("41", "asks for 41 labelled images; this training set has 40"),
                                          ("3/2", "more than all"), ("1/0", "no fraction"), ("-1/8", "no fraction"), ("", "no fraction")])
def test_a_wrong_fraction_is_one_sentence(labels, said):
    with pytest.raises(ValueError, match=said):
        split(labels)


def write(tmp_path, *lines):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("line, name", [
    ("2007_000032", "2007_000032"), ("jena_000078_000019", "jena_000078_000019"), ("jena_000078_000019", "jena_000078_000019_leftImg8bit"),
    ("JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png", "2007_000032"), ("2007_000032 3 14", "2007_000032"),
    ("leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png gtFine/train/jena/jena_000078_000019_gtFine_labelTrainIds.png", "jena_000078_000019")])
def test_every_published_form_of_a_line_is_understood(tmp_path, line, name):
    labelled, unlabelled = split(write(tmp_path, line, ""), ["other_1", name, "other_2"])
    assert list(labelled) == [1] and list(unlabelled) == [0, 2]


def test_wrong_lists_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"2 of its 3 names are not in the training set of 40 images \(the first: b\)"):
        split(write(tmp_path, "im_3", "b", "c"))
    with pytest.raises(ValueError, match="im_3 is listed more than once"):
        split(write(tmp_path, "im_3", "im_4", "im_3"))
    with pytest.raises(ValueError, match="the list is empty"):
        split(write(tmp_path, "", ""))
    with pytest.raises(FileNotFoundError, match="no such list"):
        split("nowhere/1_8.txt")


@pytest.mark.parametrize("line, names, place", [
    ("scan.1", ["scan.1", "scan.2"], 0), ("scan.2", ["scan.1", "scan.2"], 1), ("scan.2.tif", ["scan.1", "scan.2"], 1),  # a number is no suffix
    ("a", ["a.jpg", "a"], 1), ("a.jpg", ["a", "a.jpg"], 1), ("x/a.JPG", ["b", "a"], 1),  # the literal name first
    ("a/b.jpg", ["b", "a__b"], 1), ("images/a/b.jpg", ["a__b", "c__b"], 0), ("a__b", ["b", "a__b"], 1), ("images/b.jpg", ["b", "a__b"], 0),  # data=folder
    ("my scan.jpg", ["my", "my scan"], 1), ("my trip/a b.png", ["my", "my trip__a b"], 1)])  # a space divides two paths only where no name has it
def test_a_line_means_the_image_it_names(tmp_path, line, names, place):
    assert list(split(write(tmp_path, line), names)[0]) == [place]


def test_a_line_that_may_mean_two_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="list.txt: a may be any of a.jpg, a.png; write the name of one of them in full"):
        split(write(tmp_path, "a"), ["a.jpg", "b", "a.png"])
    with pytest.raises(ValueError, match=r"1 of its 2 names are not in the training set of 2 images \(the first: scan.3\)"):
        split(write(tmp_path, "scan.1", "scan.3"), ["scan.1", "scan.2"])
    with pytest.raises(ValueError, match="a__b is listed more than once"):
        split(write(tmp_path, "a/b.jpg", "a__b"), ["a__b", "c"])


@needs_lists
@pytest.mark.parametrize("name, count", [("1_16", 662), ("1_8", 1323), ("1_4", 2646), ("u2pl_1_16", 662), ("u2pl_1_8", 1323), ("u2pl_1_4", 2646),
                                         ("92", 92), ("183", 183), ("366", 366), ("732", 732), ("1464", 1464)])
def test_voc_lists_as_they_are(name, count):
    everything = (LISTS / "voc2012/train_aug.txt").read_text().split()
    labelled, unlabelled = split(str(LISTS / f"voc2012/partitions/{name}.txt"), everything)
    assert (len(labelled), len(unlabelled)) == (count, 10582 - count)
    assert {everything[i] for i in labelled} == set((LISTS / f"voc2012/partitions/{name}.txt").read_text().split())


@needs_lists
def test_cityscapes_lists_as_they_are():
    read = lambda name: (LISTS / f"cityscapes/{name}.txt").read_text().split()
    lists = {name: read(name) for name in ("1_30", "1_16", "1_8", "1_4", "1_2")}
    everything = sorted({f"{frame}_leftImg8bit" for frames in lists.values() for frame in frames})
    for name, count in dict(zip(lists, (100, 186, 372, 744, 1488))).items():
        labelled, unlabelled = split(str(LISTS / f"cityscapes/{name}.txt"), everything)
        assert len(labelled) == count and len(unlabelled) == len(everything) - count
    with pytest.raises(ValueError, match="500 of its 500 names are not"):
        split(str(LISTS / "cityscapes/val.txt"), everything)


# ---- streams -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    config = Config()
    config.scenes.size, config.scenes.train_images = 24, 40
    return open_data(config, "train")


def test_streams_together_hold_no_label_of_an_unlabelled_image(scenes):
    labelled, unlabelled = split("1/8", len(scenes))
    first = Batches(Restricted(scenes, ("image", "mask")), 4, 0, indices=labelled)
    other = Batches(Restricted(scenes, ("image",)), 4, 1, indices=unlabelled)
    both = partitions.Together(first, unlabelled=other)
    assert both.wants == ("image", "mask")
    for t in range(20):
        batch = both[t]
        assert set(batch["index"].tolist()) <= set(labelled) and set(batch["unlabelled.index"].tolist()) <= set(unlabelled)
        assert "unlabelled.mask" not in batch and batch["mask"].shape == (4, 24, 24)
    with pytest.raises(KeyError, match="supervision gives"):
        batch["unlabelled.mask"]
    halves = [both.share(3, 0, 2), both.share(3, 2, 4)]
    assert torch.equal(torch.cat([h["unlabelled.image"] for h in halves]), both[3]["unlabelled.image"])
    assert both[3].to("cpu")["unlabelled.index"].dtype == torch.int64
    with pytest.raises(ValueError, match="'unlabelled' has a batch of 3 beside 4"):
        partitions.Together(first, unlabelled=Batches(scenes, 3, 1))


# ---- views -----------------------------------------------------------------------------------------------------------------------------


def test_the_strong_view_keeps_the_geometry_and_marks_what_it_cut():
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:20, 10:30] = 200
    only_cut = views.StrongSettings(colour=0, grey=0, blur=0, cut=1)
    for seed in range(20):
        view, cut = views.strong_view(image, generator(seed), only_cut)
        assert (view[~cut] == image[~cut]).all() and (view[cut] != image[cut]).mean() > 0.9
        rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        assert cut.sum() == len(rows) * len(columns), "the cut is one rectangle"
        assert 0.015 <= cut.mean() <= 0.41
    assert image.max() == 200 and image[0, 0, 0] == 0
    view, cut = views.strong_view(image, generator(0), views.StrongSettings(colour=0, grey=0, blur=0, cut=0))
    assert (view == image).all() and not cut.any()


def test_the_strong_view_changes_colours_as_often_as_asked():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    seen = [views.strong_view(image, generator(seed), views.StrongSettings(blur=0, cut=0)) for seed in range(400)]
    same = np.mean([(view == image).all() for view, _ in seen])
    grey = np.mean([np.ptp(view.astype(int), axis=2).max() <= 1 for view, _ in seen])
    assert abs(same - 0.2 * 0.8) < 0.05 and abs(grey - 0.2) < 0.05
    blurred = views.strong_view(image, generator(1), views.StrongSettings(colour=0, grey=0, blur=1, blur_min=2, cut=0))[0]
    assert blurred.std() < 0.4 * image.std()
    noisy = views.strong_view(np.full((64, 64, 3), 128, np.uint8), generator(1), views.StrongSettings(colour=0, grey=0, blur=0, cut=0, noise=0.05))[0]
    assert noisy.mean() == pytest.approx(128, abs=0.5) and noisy.std() == pytest.approx(0.05 * 255, rel=0.05)


@given(seeds, st.integers(24, 60), st.integers(24, 60), st.booleans())
def test_place_says_where_every_pixel_of_a_view_comes_from(seed, height, width, scaled):
    image, label = coordinates(height, width)  # image holds x, y
    settings = AugmentSettings(crop=32, flip=0.5, **(dict(scale_min=0.6, scale_max=1.8) if scaled else {}))
    transform = views.Views(make_transform(settings, MEAN), place=True)
    sample = transform({"image": image, "mask": label}, np.random.default_rng(seed))
    assert sample["place"].dtype == np.float32
    place = torch.from_numpy(sample["place"])[None]
    real = views.valid(place, 32, 32)[0].numpy()
    assert (real == (sample["mask"] != 255)).all()
    rows, columns = views.coordinates(place, 32, 32)
    y, x = np.meshgrid(rows[0].numpy() * height - 0.5, columns[0].numpy() * width - 0.5, indexing="ij")
    distance = max(np.abs(sample["image"][..., 1] - y)[real].max(), np.abs(sample["image"][..., 0] - x)[real].max())
    assert distance <= (1.6 if scaled else 1e-3)  # bilinear sizes round to a pixel at the border


def test_views_are_pure_functions_of_the_step_and_reach_the_batch(scenes):
    transform = views.Views(make_transform(AugmentSettings(crop=20), scenes.mean), strong=views.StrongSettings(), boxes=3, place=True)
    stream = Batches(Restricted(scenes, ("image",)), 4, 5, transform)
    one, two = stream[7], Batches(Restricted(scenes, ("image",)), 4, 5, transform)[7]
    assert all(torch.equal(one[k], two[k]) for k in ("image", "strong", "cut", "mix", "place"))
    assert one["strong"].shape == one["image"].shape == (4, 3, 20, 20) and one["strong"].dtype == torch.float32
    assert one["cut"].shape == one["mix"].shape == (4, 20, 20) and one["cut"].dtype == one["mix"].dtype == torch.bool
    assert one["place"].shape == (4, 4) and not torch.equal(one["strong"], one["image"])


# ---- CutMix ----------------------------------------------------------------------------------------------------------------------------


def test_three_boxes_toggle_and_cover_what_the_recipe_says():
    masks = np.stack([views.box_mask(generator(seed), 48, 64) for seed in range(300)])
    # three boxes of (1/3) U(0.25, 0.5) are 0.375 together; where two overlap, which is mostly in the middle, both are lost
    assert masks.dtype == bool and 0.21 < masks.mean() < 0.29
    single = np.stack([views.box_mask(generator(seed), 48, 64, boxes=1) for seed in range(300)])
    assert single.mean() == pytest.approx(0.375, abs=0.02)
    for mask in single[:50]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
    sizes = single.mean((1, 2))
    assert sizes.min() > 0.22 and sizes.max() < 0.53


def test_cutmix_of_two_equal_images_is_the_identity_and_labels_move_with_pixels():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 32, 40, generator=g), torch.randn(2, 3, 32, 40, generator=g)
    mix = torch.from_numpy(np.stack([views.box_mask(generator(s), 32, 40) for s in (1, 2)]))
    assert torch.equal(views.paste(first, first, mix), first)
    mixed = views.paste(first, second, mix)
    assert torch.equal(mixed.movedim(1, -1)[mix], second.movedim(1, -1)[mix]) and torch.equal(mixed.movedim(1, -1)[~mix], first.movedim(1, -1)[~mix])
    assert torch.equal(views.paste(first[:, 0], second[:, 0], mix), mixed[:, 0])
    with pytest.raises(ValueError, match="one shape and a bool mask"):
        views.paste(first, second, mix.long())
