"""data=captions: which images, which captions, and a sentence for every wrong folder."""
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seglite import config as settings
from seglite.data import Batches, captions, open_data
from seglite.data.captions import Captions, CaptionsSettings, one_caption
from seglite.data.transforms import AugmentSettings, make_transform


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["image,caption"]
    for i, stem in enumerate("abcde"):
        Image.fromarray(np.full((8, 10, 3), 20 * i, np.uint8)).save(tmp_path / "images" / f"{stem}.png")
        lines += [f'{stem}.png,"{stem}, first"', f"{stem}.png,{stem}  second"]
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_splits_and_reading(root):
    train, val = (Captions(str(root), CaptionsSettings(val_images=2, words=("dog", "sky")), s) for s in ("train", "val"))
    assert [train.name(i) for i in range(len(train))] == ["a", "b", "c"] and [val.name(i) for i in range(2)] == ["d", "e"]
    sample = val.read(1, ("image", "text", "texts"))
    assert sample["image"].shape == (8, 10, 3) and sample["image"][0, 0, 0] == 80
    assert sample["text"] == "e, first" and sample["texts"] == ["e, first", "e second"]
    assert train.classes == ("background", "dog", "sky") and train.palette.shape == (3, 3)
    with pytest.raises(ValueError, match="cannot give mask.*no masks"):
        val.read(0, ("image", "mask"))


def test_every_caption_is_drawn_and_the_batch_is_a_function_of_the_step(root):
    data = Captions(str(root), CaptionsSettings(val_images=2), "train")
    transform = one_caption(make_transform(AugmentSettings(crop=8), data.mean))
    batches = Batches(data, 3, 0, transform, ("image", "texts"))
    seen = {text for t in range(10) for text in batches[t]["text"]}
    assert seen == {f"{stem}{end}" for stem in "abc" for end in (", first", " second")}
    assert batches[3]["text"] == batches[3]["text"] and "texts" not in batches[3]
    assert one_caption(None)({"text": "x"}, None) == {"text": "x"}


@pytest.mark.parametrize("damage, message", [
    (lambda r: (r / "captions.txt").unlink(), "captions.txt do not exist"),
    (lambda r: (r / "captions.txt").write_text("file,words\na.png,x\n"), "begins with 'file,words'"),
    (lambda r: (r / "captions.txt").write_text("image,caption\na.png,one,two\n"), "line 2: 'a.png,one,two'"),
    (lambda r: (r / "captions.txt").write_text("image,caption\n"), "no line besides the header"),
    (lambda r: (r / "images" / "b.png").unlink(), r"b.png does not exist.*1 of 5"),
])
def test_wrong_folders_are_sentences(root, damage, message):
    damage(root)
    with pytest.raises((ValueError, OSError), match=message):
        Captions(str(root), CaptionsSettings(val_images=2), "train")


def test_wrong_settings_are_sentences(root):
    for changed, message in ((dict(val_images=5), "between 1 and 4"), (dict(words=("a", "a"), val_images=2), "none twice")):
        with pytest.raises(ValueError, match=message):
            Captions(str(root), CaptionsSettings(**changed), "train")
    with pytest.raises(ValueError, match="needs root=FOLDER"):
        captions.open(SimpleNamespace(root="", captions=CaptionsSettings()), "train")


@pytest.mark.realdata
def test_flickr8k_subset(data_root):
    config = settings.Config(data="captions", root=str(data_root / "flickr8k_mini"))
    train, val = open_data(config, "train"), open_data(config, "val")
    assert (len(train), len(val)) == (800, 200)
    assert all(len(train.captions[i]) == 5 for i in range(800))
    first = train.read(0, ("image", "text"))
    assert first["text"] == "A child in a pink dress is climbing up a set of stairs in an entry way ."
    assert max(first["image"].shape) <= 256


def test_a_plain_folder_of_images(root):
    data = captions.Images(str(root))
    assert [data.name(i) for i in range(len(data))] == [f"images/{stem}" for stem in "abcde"]
    assert set(data.read(1)) == {"index", "name", "image"} and data.read(1)["image"][0, 0, 0] == 20
    for name in ("f.tif", "g.webp", "._a.png", ".thumbnails/a.png"):  # hidden files are a file manager's
        (root / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(root / "images" / name)
    assert captions.Images(str(root)).files == [*(f"images/{stem}.png" for stem in "abcde"), "images/f.tif", "images/g.webp"]
    with pytest.raises(ValueError, match="images only, not mask"):
        data.read(0, ("mask",))
    with pytest.raises(ValueError, match="holds no photograph"):
        captions.Images(str(root / "none"))
