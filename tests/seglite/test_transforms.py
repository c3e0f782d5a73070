"""Augmentation moves images and labels together, never invents a label, and is a pure function of (sample, rng)."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seglite.data import transforms as T
from tests.strategies import coordinates, images, label_maps, samples, seeds, sizes

MEAN = (0.4, 0.5, 0.6)
FILL = np.array([102, 128, 153], np.uint8)
EVERYTHING = dict(scale_min=0.5, scale_max=2.0, crop=24, flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, max_share=0.75)


def run(sample, seed=0, **settings):
    return T.make_transform(T.AugmentSettings(**settings), MEAN)(sample, np.random.default_rng(seed))


@given(samples(), seeds)
def test_labels_are_never_invented_and_the_crop_is_exact(sample, seed):
    before = {k: np.array(v) for k, v in sample.items() if isinstance(v, np.ndarray)}
    out = run(sample, seed, **EVERYTHING)
    assert set(np.unique(out["mask"])) <= set(np.unique(sample["mask"])) | {255}
    assert out["mask"].shape == (24, 24) and out["image"].shape == (24, 24, 3)
    assert out["mask"].dtype == out["image"].dtype == np.uint8
    assert out["name"] == "drawn"
    for key, value in before.items():
        assert (sample[key] == value).all(), f"the transform changed its input {key}"


@given(samples(), seeds)
def test_same_rng_same_sample(sample, seed):
    one, two = run(sample, seed, **EVERYTHING), run(sample, seed, **EVERYTHING)
    assert (one["image"] == two["image"]).all() and (one["mask"] == two["mask"]).all()


@given(samples(), seeds)
def test_colour_knobs_do_not_move_the_crop(sample, seed):
    plain = dict(EVERYTHING, brightness=0, contrast=0, saturation=0, hue=0)
    assert (run(sample, seed, **EVERYTHING)["mask"] == run(sample, seed, **plain)["mask"]).all()


@given(st.tuples(st.integers(20, 90), st.integers(20, 90)), seeds)
def test_crop_and_flip_keep_image_and_label_aligned_exactly(size, seed):
    image, label = coordinates(*size)
    out = run({"image": image, "mask": label, "label": label}, seed, crop=32)
    real = out["mask"] != 255
    x, y = out["image"][..., 0].astype(int), out["image"][..., 1].astype(int)
    assert real.sum() == min(size[0], 32) * min(size[1], 32)  # nothing but the padding is lost
    assert (out["mask"][real] == (1 + (x + y) % 200)[real]).all()
    assert (out["label"] == out["mask"]).all()
    assert (out["image"][~real] == FILL).all()


@given(st.tuples(st.integers(40, 90), st.integers(40, 90)), seeds)
def test_scaling_keeps_image_and_label_aligned_to_half_a_source_pixel(size, seed):
    image, label = coordinates(*size)
    out = run({"image": image, "mask": label}, seed, scale_min=1.0, scale_max=2.0, flip=0.5)
    x, y = out["image"][2:-2, 2:-2, 0].astype(float), out["image"][2:-2, 2:-2, 1].astype(float)
    here = out["mask"][2:-2, 2:-2].astype(float)
    # Half a pixel in x and in y between nearest and bilinear, and one grey level of rounding in each.
    assert np.abs(1 + x + y - here).max() <= 2.0


@given(samples())
def test_flip_is_an_involution(sample):
    twice = T.flip(T.flip(sample))
    assert (twice["image"] == sample["image"]).all() and (twice["mask"] == sample["mask"]).all()


def test_flip_mirrors_columns_at_the_stated_rate():
    image, label = coordinates(4, 7)
    flipped = T.flip({"image": image, "mask": label})
    assert (flipped["image"][0, :, 0] == np.arange(6, -1, -1)).all()
    rate = np.mean([run({"image": image, "mask": label}, seed, flip=0.25)["image"][0, 0, 0] == 6 for seed in range(800)])
    assert abs(rate - 0.25) < 0.05  # three standard deviations of 800 draws


@given(sizes(), st.integers(1, 60))
def test_long_side(size, side):
    image, label = coordinates(*size)
    out = T.resize_long({"image": image, "mask": label}, side)
    assert max(out["mask"].shape) == side and out["image"].shape[:2] == out["mask"].shape
    assert abs(min(out["mask"].shape) - min(size) * side / max(size)) <= 1


def test_scales_fill_their_range():
    image, label = coordinates(40, 40)
    heights = [run({"image": image, "mask": label}, seed, scale_min=0.5, scale_max=2.0)["mask"].shape[0] for seed in range(300)]
    assert 20 <= min(heights) < 23 and 77 < max(heights) <= 80
    assert abs(np.mean(heights) - 50) < 4  # four standard deviations of the mean of 300 draws


def test_random_places_reach_every_corner():
    image, label = coordinates(10, 12)
    corners = {tuple(run({"image": image, "mask": label}, seed, crop=8, flip=0)["image"][0, 0, :2]) for seed in range(400)}
    assert corners == {(x, y) for x in range(5) for y in range(3)}
    pads = {int((run({"image": image, "mask": label}, seed, crop=14, flip=0)["mask"][:, 7] != 255).argmax()) for seed in range(200)}
    assert pads == {0, 1, 2, 3, 4}  # an image of 10 rows lies anywhere in a window of 14


@given(st.tuples(st.integers(3, 60), st.integers(3, 60)), st.tuples(st.integers(2, 90), st.integers(2, 90)), st.tuples(st.floats(0, 1), st.floats(0, 1)),
       st.integers(1, 50), seeds)
def test_a_window_is_resized_as_the_whole_image_would_be(size, scaled, at, side, seed):
    rng = np.random.default_rng(seed)
    sample = {"image": rng.integers(0, 256, (*size, 3), np.uint8), "mask": rng.integers(0, 200, size, np.uint8), "place": np.array([0, 1, 0, 1], np.float32)}
    corner = [T._between(side - n, a) for n, a in zip(scaled, at)]
    quick, slow = T.resized_crop(sample, *scaled, *corner, side, FILL), T.crop(T.resize(sample, *scaled), *corner, side, side, FILL)
    assert np.abs(quick["image"].astype(int) - slow["image"]).max() <= 1
    assert np.allclose(quick["place"], slow["place"], rtol=1e-5, atol=1e-4)
    # Labels are those of the pixel under the centre; where the centre lies on a border, either side will do.
    centres = [(np.arange(c, c + side) + 0.5) * n / m for c, n, m in zip(corner, size, scaled)]
    clear = [np.abs(c - np.round(c)) > 1e-3 for c in centres]
    assert (quick["mask"] == slow["mask"])[clear[0]][:, clear[1]].all() and ((quick["mask"] == 255) == (slow["mask"] == 255)).all()


def test_dominant_crops_are_avoided():
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 30:] = 1  # three quarters of all windows would show class 0 only
    sample = {"image": np.zeros((40, 40, 3), np.uint8), "mask": mask}
    share = [np.mean([T.dominant_share(run(sample, s, crop=10, max_share=m)["mask"]) > 0.75 for s in range(200)]) for m in (1.0, 0.75)]
    assert share[0] > 0.7 and share[1] < 0.25
    assert T.dominant_share(np.full((3, 3), 255, np.uint8)) == 1.0
    assert T.dominant_share(np.array([[0, 0, 1, 255]], np.uint8)) == pytest.approx(2 / 3)


@given(images())
def test_jitter_without_change_is_the_identity(image):
    assert np.abs(T.jitter(image, 1, 1, 1, 0).astype(int) - image).max() <= 1  # float32 rounding may cross a half


def test_jitter_does_what_its_names_say():
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (8, 9, 3), np.uint8)
    grey = lambda a: a.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(grey(T.jitter(image, 1.2, 1, 1, 0)) - 1.2 * grey(image)).max() < 1
    contrast = T.jitter(image, 1, 0.5, 1, 0)
    assert grey(contrast).std() == pytest.approx(0.5 * grey(image).std(), rel=0.03)
    assert grey(contrast).mean() == pytest.approx(grey(image).mean(), abs=1)
    none = T.jitter(image, 1, 1, 0, 0).astype(int)
    assert np.ptp(none, -1).max() <= 1  # no saturation: all three channels equal
    turned = T.jitter(image, 1, 1, 1, 0.25)
    assert np.abs(grey(turned) - grey(image)).max() < 1.5  # hue leaves luma alone
    assert np.abs(turned.astype(int) - image).max() > 20
    full = T.jitter(image, 1, 1, 1, 1.0)
    assert np.abs(full.astype(int) - image).max() <= 1  # a full turn


@given(label_maps(), seeds)
def test_works_on_labels_alone(labels, seed):
    out = run({"label": labels}, seed, crop=16, scale_min=0.5, scale_max=1.5)
    assert out["label"].shape == (16, 16) and set(np.unique(out["label"])) <= set(np.unique(labels)) | {255}


def test_parts_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"image 5 x 4, mask 4 x 4"):
        run({"image": np.zeros((4, 5, 3), np.uint8), "mask": np.zeros((4, 4), np.uint8)})


@pytest.mark.parametrize("change, key", [
    (dict(scale_min=0.0), "scale_min"), (dict(scale_min=2.0), "scale_max"), (dict(flip=1.5), "flip"), (dict(hue=0.6), "hue"),
    (dict(brightness=-0.1), "brightness"), (dict(max_share=0.0), "max_share"), (dict(crop=-1), "crop"), (dict(long_side=-3), "long_side")])
def test_bad_settings_are_named(change, key):
    with pytest.raises(ValueError, match=f"augment.{key}="):
        T.make_transform(dataclasses.replace(T.AugmentSettings(), **change), MEAN)
