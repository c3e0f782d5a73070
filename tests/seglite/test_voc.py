"""The VOC reader on a tiny tree in the real layout, on every way such a tree can be wrong, and on real photographs."""
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from seglite.data import voc
from tests.strategies import label_maps

IDS = {"train": ["2007_000001", "2007_000002", "2007_000003"], "val": ["2008_000001"]}


def save_mask(path, labels):
    picture = Image.fromarray(labels)
    picture.putpalette(voc.palette(256).tobytes())
    picture.save(path)


def labels_of(name):
    """A mask with a border, two classes that depend on the name, and 255."""
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:12] = 1 + int(name[-1])
    labels[10:15, 5:9] = 15
    labels[0, :] = 255
    return labels


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, ids in IDS.items():
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
            save_mask(root / "SegmentationClass" / f"{name}.png", labels_of(name))
    return root


def opened(root, split="train", **settings):
    return voc.open(SimpleNamespace(root=str(root), voc=voc.VocSettings(**settings)), split)


def test_reads_what_was_written(tree):
    data = opened(tree)
    assert (len(data), data.provides, data.name(1)) == (3, ("image", "mask", "tags"), "2007_000002")
    sample = data.read(1, ("image", "mask", "tags"))
    assert sample["image"].shape == (20, 30, 3) and sample["image"].dtype == np.uint8
    assert (sample["mask"] == labels_of("2007_000002")).all() and sample["mask"].dtype == np.uint8
    assert np.flatnonzero(sample["tags"]).tolist() == [2, 14] and sample["tags"].dtype == np.float32  # class c is tag c - 1
    assert (sample["name"], sample["index"]) == ("2007_000002", 1)
    assert set(data.read(0, ("tags",))) == {"tags", "name", "index"}


def test_every_tag_equals_the_mask_and_belongs_to_the_caller(tree):
    data = opened(tree)
    tags = data.read(0, ("tags",))["tags"]
    tags[:] = 9
    assert data.read(0, ("tags",))["tags"].sum() == 2


def test_root_may_lie_above(tree, tmp_path):
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "VOCdevkit").mkdir()
    tree.rename(tmp_path / "above" / "VOCdevkit" / "VOC2012")
    assert len(opened(tmp_path / "above")) == len(opened(tmp_path / "above" / "VOCdevkit")) == 3


def test_palette_is_vocs():
    colours = voc.palette(256)
    assert [tuple(c) for c in colours[[0, 1, 2, 15, 20, 255]]] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)]
    assert (voc.Voc.palette == colours[:21]).all() and len(voc.CLASSES) == 21


def test_lists_by_path_and_in_other_peoples_format(tree, tmp_path):
    part = tmp_path / "92.txt"
    part.write_text("/JPEGImages/2007_000003.jpg /SegmentationClassAug/2007_000003.png\n\n2007_000001 1\n")
    assert opened(tree, train=str(part)).ids == ["2007_000003", "2007_000001"]


def test_tags_from_a_list_need_no_masks(tree, tmp_path):
    table = tmp_path / "cls.txt"
    table.write_text("\n".join(f"{name} 4 19" for name in IDS["train"]))
    for path in (tree / "SegmentationClass").iterdir():
        path.unlink()
    (tree / "SegmentationClass").rmdir()
    data = opened(tree, tags=str(table))
    assert data.provides == ("image", "tags")
    assert np.flatnonzero(data.read(0, ("tags",))["tags"]).tolist() == [4, 19]
    with pytest.raises(ValueError, match="cannot give mask; it gives image, tags; .*SegmentationClass does not exist"):
        data.read(0, ("mask",))


def test_photographs_are_rgb_and_upright(tree):
    path = tree / "JPEGImages" / "2007_000001.jpg"
    photo = np.zeros((30, 20, 3), np.uint8)
    photo[:15] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; shown rotated by 90 degrees it is 30 wide and 20 high
    Image.fromarray(photo).save(path, exif=exif)
    image = opened(tree).read(0, ("image", "mask"))["image"]
    assert image.shape == (20, 30, 3)
    assert image[:, 18:].mean() > 200 and image[:, :12].mean() < 50  # turned clockwise: what was on top is now on the right
    Image.fromarray(photo[:20, :, 0].repeat(2, 1)[:, :30]).save(path)  # grey
    assert opened(tree).read(0, ("image",))["image"].shape == (20, 30, 3)


def says(kind, *parts):
    return pytest.raises(kind, match=".*".join(re.escape(p) for p in parts))


def test_missing_and_empty_things_are_one_clear_sentence(tree, tmp_path):
    with says(FileNotFoundError, "root=", "nowhere is not a folder; expected a PASCAL VOC tree", "data_scripts/voc2012.py"):
        opened(tmp_path / "nowhere")
    with says(FileNotFoundError, "has no folder JPEGImages"):
        opened(tree / "ImageSets")
    with says(ValueError, "data=voc needs root="):
        opened("")
    with says(FileNotFoundError, "list ", "trian.txt does not exist; voc.train=trian must be one of train, val"):
        opened(tree, train="trian")
    with says(ValueError, "split 'test' does not exist in voc"):
        opened(tree, "test")
    (tree / "ImageSets/Segmentation/empty.txt").write_text("\n\n")
    with says(ValueError, "empty.txt is empty"):
        opened(tree, train="empty")
    (tree / "ImageSets/Segmentation/twice.txt").write_text("2007_000001\n2007_000001\n")
    with says(ValueError, "twice.txt names 2007_000001 more than once"):
        opened(tree, train="twice")
    with says(IndexError, "no image 3: it holds 0 ... 2"):
        opened(tree).read(3)


def test_missing_files_are_found_before_training(tree):
    (tree / "JPEGImages" / "2007_000002.jpg").unlink()
    with says(FileNotFoundError, "image ", "2007_000002.jpg does not exist (1 of 3 are missing)"):
        opened(tree)


def test_missing_masks_are_found_at_the_first_mask(tree):
    (tree / "SegmentationClass" / "2007_000003.png").unlink()
    with says(FileNotFoundError, "mask ", "2007_000003.png does not exist (1 of 3 are missing)"):
        opened(tree).read(0, ("mask",))
    (tree / "SegmentationClassAug").mkdir()
    with says(FileNotFoundError, "2007_000003.png", "voc.masks=SegmentationClassAug"):
        opened(tree).read(0, ("tags",))


def test_damaged_files_are_named(tree):
    photo, mask = tree / "JPEGImages" / "2007_000001.jpg", tree / "SegmentationClass" / "2007_000002.png"
    photo.write_bytes(photo.read_bytes()[:400])
    with says(ValueError, "image ", "2007_000001.jpg cannot be read (", "fetch it again"):
        opened(tree).read(0, ("image",))
    photo.write_text("<html>404 not found</html>")
    with says(ValueError, "image ", "2007_000001.jpg cannot be read ("):
        opened(tree).read(0, ("image",))
    mask.write_bytes(mask.read_bytes()[:60])
    with says(ValueError, "mask ", "2007_000002.png cannot be read ("):
        opened(tree).read(1, ("mask",))


@pytest.mark.parametrize("value, reason", [(33, "Cityscapes' raw ids"), (21, "Cityscapes' raw ids"), (150, "ADE20K"), (200, "another data set's mask"), (254, "instance or depth map")])
def test_foreign_labels_are_named_with_the_likely_reason(tree, value, reason):
    labels = labels_of("2007_000001")
    labels[5, 5] = value
    save_mask(tree / "SegmentationClass" / "2007_000001.png", labels)
    with says(ValueError, "2007_000001.png holds ", str(value), "K=21 allows 0 ... 20 and 255", reason):
        opened(tree).read(0, ("mask",))


def test_masks_of_the_wrong_kind_are_refused(tree):
    path = tree / "SegmentationClass" / "2007_000001.png"
    Image.fromarray(voc.palette(21)[labels_of("2007_000001") % 21]).save(path)
    with says(ValueError, "2007_000001.png is a RGB picture; expected one class number per pixel"):
        opened(tree).read(0, ("mask",))
    Image.fromarray(np.full((20, 30), 700, np.uint16)).save(path)
    with says(ValueError, "2007_000001.png holds 700", "instance or depth map"):
        opened(tree).read(0, ("mask",))
    Image.fromarray(labels_of("2007_000001")[:, :-1].copy()).save(path)
    with says(ValueError, "2007_000001.png is 29 x 20 but its image is 30 x 20"):
        opened(tree).read(0, ("image", "mask"))


def test_bad_tag_lists_are_named(tree, tmp_path):
    table = tmp_path / "cls.txt"
    with says(FileNotFoundError, "voc.tags=", "neither the word masks nor an existing list file"):
        opened(tree, tags=str(table))
    table.write_text("2007_000001 4\n2007_000002 20\n")
    with says(ValueError, "cls.txt line 2: '2007_000002 20'; expected `ID c1 c2 ...` with classes 0 ... 19"):
        opened(tree, tags=str(table))
    table.write_text("2007_000001 4\n")
    with says(ValueError, "has no line for 2007_000002 (and 1 more of 3 images)"):
        opened(tree, tags=str(table))


@given(label_maps())
def test_any_valid_mask_survives_a_round_trip(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("masks") / "mask.png"
    save_mask(path, labels)
    assert (voc.read_mask(path, 21) == labels).all()


@pytest.mark.realdata
def test_real_subset_counts_pixels_and_tags(data_root):
    root = data_root / "voc_mini"
    train, val = opened(root), opened(root, "val")
    assert (len(train), len(val)) == (419, 450)
    assert len(opened(root, train="train_aug", masks="SegmentationClassAug")) == 533
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in range(len(train)):
        counts = np.bincount(train.read(i, ("mask",))["mask"].ravel(), minlength=256)
        pixels, images = pixels + counts, images + (counts > 0)
    # The table in voc_mini/README.md.
    for label, expected in {0: (48_611_116, 416), 2: (0, 0), 3: (698, 2), 8: (6_329_169, 122), 13: (2_283_739, 68), 15: (1_608_417, 82),
                            20: (301_646, 8), 255: (4_685_830, 419)}.items():
        assert (pixels[label], images[label]) == expected, f"class {label}"
    assert pixels[21:255].sum() == 0


@pytest.mark.realdata
def test_real_tags_in_the_masks_equal_the_published_list(data_root):
    root, lists = data_root / "voc_mini", data_root / "lists" / "voc2012"
    from_masks = opened(root, "val")
    from_list = opened(root, "val", tags=str(lists / "val_cls.txt"))
    for i in range(len(from_masks)):
        assert (from_masks.read(i, ("tags",))["tags"] == from_list.read(i, ("tags",))["tags"]).all(), from_masks.name(i)


@pytest.mark.realdata
def test_real_photographs_fit_their_masks(data_root):
    data = opened(data_root / "voc_mini", "val")
    for i in range(0, len(data), 15):
        sample = data.read(i, ("image", "mask"))
        assert sample["image"].shape == (*sample["mask"].shape, 3) and max(sample["mask"].shape) <= 500
