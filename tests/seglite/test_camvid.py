"""The CamVid reader on a tiny tree in the real layout, on every way such a tree can be wrong, and on the real frames where they are."""
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seglite.data import camvid


def labels_of(number):
    """Class `number`, a stripe of class 10, a stripe of void."""
    labels = np.full((12, 16), number, np.uint8)
    labels[:2], labels[-2:] = 10, 11
    return labels


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for folder in (part, part + "annot"):
            (tmp_path / folder).mkdir()
        for i in range(count):
            name = f"{part}_{i:03d}"
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(tmp_path / part / (name + (".jpg" if i else ".png")))
            Image.fromarray(labels_of(i)).save(tmp_path / f"{part}annot" / f"{name}.png")
    return tmp_path


def opened(root, split="train", **settings):
    return camvid.open(SimpleNamespace(root=str(root), camvid=camvid.CamvidSettings(**settings)), split)


def test_reads_what_was_written_and_void_becomes_ignore(tree):
    data = opened(tree)
    assert (len(data), data.name(1), data.provides) == (3, "train_001", ("image", "mask"))
    sample = data.read(1)
    assert sample["image"].shape == (12, 16, 3) and sample["image"].dtype == np.uint8
    expected = np.where(labels_of(1) == 11, 255, labels_of(1))
    assert (sample["mask"] == expected).all() and sample["mask"].dtype == np.uint8 and (sample["mask"] == 255).sum() == 32
    assert set(data.read(0, ("mask",))) == {"mask", "name", "index"}
    assert len(data.classes) == len(data.palette) == 11


def test_published_numbers_are_on_test_and_splits_can_be_joined(tree):
    assert opened(tree, "val").name(0) == "test_000" and len(opened(tree, "val")) == 2
    assert len(opened(tree, "val", val="val")) == 1
    joined = opened(tree, train="train+val")
    assert [joined.name(i) for i in range(len(joined))] == ["train_000", "train_001", "train_002", "val_000"]


def test_wrong_trees_are_sentences(tree):
    with pytest.raises(ValueError, match="needs root=FOLDER"):
        opened("")
    with pytest.raises(FileNotFoundError, match="has no folder train;"):
        opened(tree / "train")
    with pytest.raises(ValueError, match="camvid.train=all: 'all' is no split"):
        opened(tree, train="all")
    with pytest.raises(ValueError, match="has train and val"):
        opened(tree, "test")
    with pytest.raises(IndexError, match="holds 0 ... 2"):
        opened(tree).read(3)
    with pytest.raises(ValueError, match="cannot give tags"):
        opened(tree).read(0, ("image", "tags"))
    (tree / "trainannot" / "train_002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_002.* has no label file .*1 of 3"):
        opened(tree)


def test_wrong_masks_are_sentences(tree):
    path = tree / "trainannot" / "train_000.png"
    Image.fromarray(np.full((12, 16), 31, np.uint8)).save(path)
    with pytest.raises(ValueError, match="holds 31; .*32 classes"):
        opened(tree).read(0)
    Image.new("RGB", (16, 12)).save(path)
    with pytest.raises(ValueError, match="RGB picture.*stores colours"):
        opened(tree).read(0)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)
    with pytest.raises(ValueError, match="is 8 x 6 but its frame is 16 x 12"):
        opened(tree).read(0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be read"):
        opened(tree).read(0)


@pytest.mark.skipif("SEGLITE_DATA" not in os.environ, reason="SEGLITE_DATA names no folder with camvid")
def test_the_real_split():
    """Counts and pixel sums as published with the data (its README)."""
    root = Path(os.environ["SEGLITE_DATA"]) / "camvid"
    train, test = opened(root), opened(root, "val")
    assert (len(train), len(test), len(opened(root, "val", val="val"))) == (367, 233, 101)
    assert not {train.name(i) for i in range(367)} & {test.name(i) for i in range(233)}
    counts = np.zeros(256, np.int64)
    for i in range(len(test)):
        counts += np.bincount(test.read(i, ("mask",))["mask"].ravel(), minlength=256)
    assert counts[[0, 3, 10, 255]].tolist() == [6_870_982, 10_390_661, 76_220, 1_543_383] and not counts[11:255].any()
    assert train.read(0)["image"].shape == (360, 480, 3)
