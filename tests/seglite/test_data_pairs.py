"""Cityscapes, ADE20K, COCO and anyone's own folder, each on a tiny tree in the real layout: numbers, splits, and every wrong tree as a sentence."""
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seglite.data import ade20k, cityscapes, coco, folder, pairs


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def photo(path, seed=0, size=(6, 8)):
    return png(path, np.random.default_rng(seed).integers(0, 256, (*size, 3)))


def stripes(*values, width=8):
    """One row per value."""
    return np.repeat(np.array(values, np.int64)[:, None], width, 1)


def opened(module, root, split="train", settings=None, **keys):
    name = module.__name__.rpartition(".")[2]
    return module.open(SimpleNamespace(root=str(root), **{name: settings(**keys) if settings else None}), split)


def keeps_the_contract(data, names):
    """What every data set promises (seglite/data/__init__.py)."""
    assert [data.name(i) for i in range(len(data))] == names
    assert data.palette.shape == (len(data.classes), 3) and data.palette.dtype == np.uint8 and len(data.mean) == len(data.std) == 3
    sample = data.read(0, data.provides)
    assert sample["image"].dtype == sample["mask"].dtype == np.uint8 and sample["image"].shape[:2] == sample["mask"].shape
    assert (sample["index"], sample["name"]) == (0, names[0])
    assert set(np.unique(sample["mask"])) <= {*range(len(data.classes)), 255}
    if "tags" in data.provides:
        assert sample["tags"].shape == (len(data.classes) - 1,) and sample["tags"].dtype == np.float32
    assert set(data.read(0, ("mask",))) == {"index", "name", "mask"}
    with pytest.raises(IndexError, match="holds 0 ... "):
        data.read(len(data))
    with pytest.raises(ValueError, match="cannot give depth; it gives image"):
        data.read(0, ("image", "depth"))


# ---- Cityscapes -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path):
    for part, frames in {"train": ("jena_000078_000019", "aachen_000000_000019"), "val": ("frankfurt_000000_000294",)}.items():
        for i, name in enumerate(frames):
            town = name.split("_")[0]
            photo(tmp_path / f"leftImg8bit/{part}/{town}/{name}_leftImg8bit.png", i)
            png(tmp_path / f"gtFine/{part}/{town}/{name}_gtFine_labelIds.png", stripes(7, 0, 33, 6, 26, 29))
    return tmp_path


def city_data(root, split="train", **keys):
    return opened(cityscapes, root, split, cityscapes.CityscapesSettings, **keys)


def test_cityscapes_raw_ids_become_training_ids(city):
    data = city_data(city)
    keeps_the_contract(data, ["aachen_000000_000019", "jena_000078_000019"])
    # road 0 · unlabeled · bicycle 18 · ground, not judged · car 13 · caravan, not judged: the data set's own table
    assert data.read(0)["mask"][:, 0].tolist() == [0, 255, 18, 255, 13, 255]
    assert len(city_data(city, "val")) == 1 and data.provides == ("image", "mask")


def test_cityscapes_training_ids_are_preferred_and_taken_as_they_are(city):
    for part, name in (("train", "aachen_000000_000019"), ("train", "jena_000078_000019")):
        png(city / f"gtFine/{part}/{name.split('_')[0]}/{name}_gtFine_labelTrainIds.png", stripes(0, 18, 255, 5, 7, 11))
    assert city_data(city).read(0)["mask"][:, 0].tolist() == [0, 18, 255, 5, 7, 11]
    assert city_data(city, labels="ids").read(0)["mask"][:, 0].tolist() == [0, 255, 18, 255, 13, 255]


def test_cityscapes_table_is_the_published_one():
    table = cityscapes.raw_table()
    assert [int(table[i]) for i in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)] == list(range(19))
    assert all(table[i] == 255 for i in (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)) and table[34] == -1
    assert (cityscapes.raw_table()[cityscapes.RAW_IDS] == np.arange(19)).all() and len(set(map(tuple, cityscapes.PALETTE.tolist()))) == 19


def test_cityscapes_partitions_are_lists_of_frames(city, tmp_path):
    (tmp_path / "1_30.txt").write_text("jena_000078_000019\n")
    assert city_data(city, train=str(tmp_path / "1_30.txt")).name(0) == "jena_000078_000019"
    (tmp_path / "1_30.txt").write_text("jena_000078_000019\nulm_000000_000019\n")
    with pytest.raises(FileNotFoundError, match="frame ulm_000000_000019 .*1 of 2 are missing"):
        city_data(city, train=str(tmp_path / "1_30.txt"))
    (tmp_path / "1_30.txt").write_text("jena_000078_000019\njena_000078_000019\n")
    with pytest.raises(ValueError, match="more than once"):
        city_data(city, train=str(tmp_path / "1_30.txt"))


def test_cityscapes_wrong_trees_are_sentences(city):
    with pytest.raises(ValueError, match="needs root=FOLDER"):
        city_data("")
    with pytest.raises(FileNotFoundError, match="has no folders leftImg8bit and gtFine"):
        city_data(city / "gtFine")
    with pytest.raises(ValueError, match="cityscapes.val=test is no split; choose train, val .test has no public labels"):
        city_data(city, "val", val="test")
    path = city / "gtFine/train/jena/jena_000078_000019_gtFine_labelIds.png"
    Image.fromarray(stripes(26001, 7, 7, 7, 7, 7).astype(np.uint16)).save(path)
    with pytest.raises(ValueError, match="holds 26001; allowed are 0 ... 33 and 255. This is an instanceIds file"):
        city_data(city).read(1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="jena.* does not exist .1 of 2 are missing.*gtFine_trainvaltest.zip"):
        city_data(city)
    png(city / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png", stripes(0, 33, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="holds 33; allowed are 0 ... 18 and 255. 33 is a raw id: set cityscapes.labels=ids"):
        city_data(city, "val").read(0)


# ---- ADE20K -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ade(tmp_path):
    for part, name in (("training", "ADE_train_00000001"), ("training", "ADE_train_00000002"), ("validation", "ADE_val_00000001")):
        photo(tmp_path / f"ADEChallengeData2016/images/{part}/{name}.jpg")
        png(tmp_path / f"ADEChallengeData2016/annotations/{part}/{name}.png", stripes(0, 1, 2, 150, 13, 3))
    return tmp_path


def test_ade20k_numbers_begin_at_one_and_zero_is_not_judged(ade):
    data = opened(ade20k, ade)
    keeps_the_contract(data, ["ADE_train_00000001", "ADE_train_00000002"])
    assert data.read(0)["mask"][:, 0].tolist() == [255, 0, 1, 149, 12, 2]
    assert (len(data.classes), data.classes[0], data.classes[12], data.classes[149]) == (150, "wall", "person", "flag")
    assert len(set(data.classes)) == 150 and opened(ade20k, ade, "val").name(0) == "ADE_val_00000001" and data.provides == ("image", "mask")


def test_ade20k_wrong_trees_are_sentences(ade):
    with pytest.raises(FileNotFoundError, match="has no folders images and annotations"):
        opened(ade20k, ade / "ADEChallengeData2016/images")
    with pytest.raises(ValueError, match="a run has train and val"):
        opened(ade20k, ade, "test")
    folder_ = ade / "ADEChallengeData2016/annotations/training"
    png(folder_ / "ADE_train_00000001.png", stripes(151, 1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="holds 151; allowed are 0 ... 150 and 255"):
        opened(ade20k, ade).read(0)
    (folder_ / "ADE_train_00000002.png").unlink()
    with pytest.raises(FileNotFoundError, match="ADE_train_00000002.jpg has no label file .1 of 2 lack one"):
        opened(ade20k, ade)


# ---- COCO -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cocos(tmp_path):
    for part in ("train", "val"):
        names = [f"COCO_{part}2014_{i:012d}" for i in (9, 25)]
        for i, name in enumerate(names):
            photo(tmp_path / f"{part}2014/{name}.jpg", i)
            png(tmp_path / f"masks/{part}2014/{name}.png", stripes(0, 80, 255, 1, 1, i))
        (tmp_path / f"{part}.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def coco_data(root, split="train", **keys):
    return opened(coco, root, split, coco.CocoSettings, **keys)


def test_coco_masks_and_tags(cocos):
    data = coco_data(cocos)
    keeps_the_contract(data, ["COCO_train2014_000000000009", "COCO_train2014_000000000025"])
    assert data.read(0)["mask"][:, 0].tolist() == [0, 80, 255, 1, 1, 0]
    assert np.flatnonzero(data.read(0, ("tags",))["tags"]).tolist() == [0, 79] and len(data.classes) == 81
    assert (data.classes[1], data.classes[80]) == ("person", "toothbrush") and data.provides == ("image", "mask", "tags")
    (cocos / "train_tags.txt").write_text("COCO_train2014_000000000009 3\nCOCO_train2014_000000000025\n")
    assert np.flatnonzero(coco_data(cocos).read(0, ("tags",))["tags"]).tolist() == [3]
    assert np.flatnonzero(coco_data(cocos, tags="masks").read(0, ("tags",))["tags"]).tolist() == [0, 79]


def test_coco_wrong_trees_are_sentences(cocos):
    with pytest.raises(FileNotFoundError, match="neither train2014 nor val2014"):
        coco_data(cocos / "masks" / "train2014")
    with pytest.raises(FileNotFoundError, match="list .*trainval.txt does not exist"):
        coco_data(cocos, train="trainval")
    with pytest.raises(FileNotFoundError, match="coco.tags=list needs .*train_tags.txt, which does not exist"):
        coco_data(cocos, tags="list")
    (cocos / "train_tags.txt").write_text("COCO_train2014_000000000009 80\n")
    with pytest.raises(ValueError, match=r"classes 0 ... 79 \(0 = person\)"):
        coco_data(cocos)
    (cocos / "train_tags.txt").write_text("COCO_train2014_000000000009 3\n")
    with pytest.raises(ValueError, match="has no line for COCO_train2014_000000000025 .and 0 more of 2"):
        coco_data(cocos)
    png(cocos / "masks/val2014/COCO_val2014_000000000009.png", stripes(90, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="holds 90; allowed are 0 ... 80 and 255. Values up to 90 are COCO's category ids"):
        coco_data(cocos, "val").read(0)
    (cocos / "masks/val2014/COCO_val2014_000000000009.png").unlink()
    with pytest.raises(FileNotFoundError, match="mask .*000009.png does not exist .1 of 2"):
        coco_data(cocos, "val")
    (cocos / "val2014/COCO_val2014_000000000025.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="COCO_val2014_000000000025.jpg of list .*1 of 2 are missing"):
        coco_data(cocos, "val")


def test_coco_without_masks_still_gives_images_and_listed_tags(cocos):
    import shutil

    shutil.rmtree(cocos / "masks")
    (cocos / "train_tags.txt").write_text("COCO_train2014_000000000009 3\nCOCO_train2014_000000000025 1 2\n")
    data = coco_data(cocos)
    assert data.provides == ("image", "tags") and data.read(1, ("tags",))["tags"].sum() == 2


# ---- anyone's own folder ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    for i, name in enumerate("abcdefghij"):
        photo(tmp_path / f"images/{name}.jpg", i)
        png(tmp_path / f"masks/{name}.png", stripes(0, 1, 2, 255, 1, i % 3))
    (tmp_path / "classes.txt").write_text("background\nroad\nparked car\n")
    return tmp_path


def own_data(root, split="train", **keys):
    return opened(folder, root, split, folder.FolderSettings, **keys)


def test_folder_keeps_the_contract_and_splits_by_name(own):
    train, val = own_data(own), own_data(own, "val")
    names = [d.name(i) for d in (train, val) for i in range(len(d))]
    assert sorted(names) == list("abcdefghij") and 0 < len(val) < 10
    keeps_the_contract(train, [train.name(i) for i in range(len(train))])
    assert train.classes == ("background", "road", "parked car") and train.provides == ("image", "mask", "tags")
    assert np.flatnonzero(train.read(0, ("tags",))["tags"]).tolist() == [0, 1]
    photo(own / "images/k.jpg")
    png(own / "masks/k.png", stripes(0, 0, 0, 0, 0, 0))
    grown = own_data(own, "val")
    assert set(val.name(i) for i in range(len(val))) == set(grown.name(i) for i in range(len(grown))) - {"k"}


def test_folder_lists_and_subfolders(own):
    (own / "train.txt").write_text("a\nb.jpg\n")
    with pytest.raises(FileNotFoundError, match="val.txt does not exist though"):
        own_data(own, "val")
    (own / "val.txt").write_text("c\n")
    assert [own_data(own).name(i) for i in range(2)] == ["a", "b"] and len(own_data(own, "val")) == 1
    (own / "val.txt").write_text("c\nzz\n")
    with pytest.raises(FileNotFoundError, match="names zz, which is not among the images .1 of 2"):
        own_data(own, "val")
    (own / "val.txt").write_text("c.2\n")
    with pytest.raises(FileNotFoundError, match="names c.2, which is not among the images"):  # a number is no suffix
        own_data(own, "val")
    (own / "val.txt").write_text("c\nc\n")
    with pytest.raises(ValueError, match="names c more than once"):
        own_data(own, "val")
    nested = own / "nested"
    for part in ("train", "val"):
        photo(nested / f"images/{part}/x.one.png")
        png(nested / f"masks/{part}/x.one.png", stripes(0, 0, 0, 0, 0, 1))
    data = own_data(nested, "val", classes="2")
    assert (data.name(0), len(data), data.classes) == ("val__x.one", 1, ("class 0", "class 1")) and data.provides == ("image", "mask")


def test_folder_numbers_from_one_endings_and_ignore(own):
    for path in list((own / "masks").iterdir()):
        png(own / "labels" / f"{path.stem}_mask.png", stripes(0, 1, 2, 3, 99, 255))
    data = own_data(own, masks="labels", ending="_mask", first=1, ignore=99)
    assert data.read(0)["mask"][:, 0].tolist() == [255, 0, 1, 2, 255, 255]
    with pytest.raises(ValueError, match="holds 99; allowed are 0 ... 3 and 255"):
        own_data(own, masks="labels", ending="_mask", first=1).read(0)
    with pytest.raises(FileNotFoundError, match="has no label file .* there is a_mask.png without an image: .*folder.ending="):
        own_data(own, masks="labels")


def test_folder_colours(own):
    (own / "classes.txt").write_text("background 10 10 10\nroad 128 64 128\nparked car 0 0 142\n")
    data = own_data(own)
    assert data.palette.tolist() == [[10, 10, 10], [128, 64, 128], [0, 0, 142]]
    assert data.read(0)["mask"][1, 0] == 1  # numbers still read as numbers
    path = own / "masks" / f"{data.name(0)}.png"
    picture = np.array([[10, 10, 10], [128, 64, 128], [0, 0, 142], [255, 255, 255], [0, 0, 0], [0, 0, 142]], np.uint8)[:, None].repeat(8, 1)
    Image.fromarray(picture).save(path)
    assert data.read(0)["mask"][:, 3].tolist() == [0, 1, 2, 255, 255, 2]
    picture[2, 5] = (1, 2, 3)
    Image.fromarray(picture).save(path)
    with pytest.raises(ValueError, match=r"has the colour \(1, 2, 3\) at row 2, column 5, which classes.txt does not list"):
        data.read(0)
    (own / "classes.txt").write_text("background 10 10 10\nroad\n")
    with pytest.raises(ValueError, match="colours for 1 of 2 classes"):
        own_data(own)
    (own / "classes.txt").write_text("background 10 10 10\nroad 10 10 10\n")
    with pytest.raises(ValueError, match="one colour to two classes"):
        own_data(own)


def test_folder_wrong_trees_are_sentences(own):
    with pytest.raises(ValueError, match="needs root=FOLDER"):
        own_data("")
    with pytest.raises(FileNotFoundError, match="has no folder photos; name it with folder.images="):
        own_data(own, images="photos")
    with pytest.raises(ValueError, match="0 classes from folder.first=0 on"):
        own_data(own, classes=",")
    with pytest.raises(ValueError, match="3 classes from folder.first=253 on, folder.ignore=255: a label file has room"):
        own_data(own, first=253)
    with pytest.raises(ValueError, match="folder.val=1.5 must lie between 0 and 1"):
        own_data(own, val=1.5)
    with pytest.raises(ValueError, match="holds 2; allowed are 0 ... 1 and 255. Labels seem to run from 1: set folder.first=1"):
        own_data(own, classes="background,road").read(0)
    (own / "classes.txt").unlink()
    with pytest.raises(ValueError, match="classes.txt does not exist: .*doctor"):
        own_data(own)
    photo(own / "images/a.png")
    with pytest.raises(ValueError, match="a.jpg and .*a.png have the same name"):
        own_data(own, classes="3")


def test_unreadable_and_misfitting_files_are_named(own):
    data = own_data(own)
    path = own / "masks" / f"{data.name(0)}.png"
    png(path, stripes(0, 1, 2))
    with pytest.raises(ValueError, match="is 8 x 3 but its image .* is 8 x 6; one of the two was resized or rotated"):
        data.read(0)
    Image.new("RGB", (8, 6)).save(path)
    with pytest.raises(ValueError, match="is a RGB picture; expected one class number per pixel"):
        data.read(0)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match="cannot be read"):
        data.read(0)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist though its image does"):
        data.read(0)


def test_palette_pictures_are_read_by_index(own):
    data = own_data(own)
    picture = Image.fromarray(stripes(0, 1, 2, 255, 1, 1).astype(np.uint8), "P")
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(own / "masks" / f"{data.name(0)}.png")
    assert data.read(0)["mask"][:, 0].tolist() == [0, 1, 2, 255, 1, 1]


def test_a_two_colour_picture_is_two_classes(tmp_path):
    Image.new("1", (4, 3), 1).save(tmp_path / "m.png")
    assert pairs.read_labels(tmp_path / "m.png", pairs.identity_table(2), lambda f: "").tolist() == [[1] * 4] * 3


# ---- the quick look before training -----------------------------------------------------------------------------------------------------


def test_the_look_before_training_names_a_bad_file_and_remarks_on_odd_masks(own):
    from seglite.data import look_over

    assert look_over(own_data(own), ("image", "mask")) == ""
    for path in (own / "masks").iterdir():
        png(path, stripes(0, 0, 0, 0, 0, 255))
    assert look_over(own_data(own), ("image", "mask")).startswith("the 8 masks looked at hold nothing but class 0 (background)")
    assert look_over(own_data(own), ("image",)) == ""
    for path in (own / "masks").iterdir():
        png(path, stripes(255, 255, 255, 255, 255, 255))
    assert "nothing but 255, which is not judged" in look_over(own_data(own), ("image", "mask"))
    data = own_data(own)
    png(own / "masks" / f"{data.name(len(data) - 1)}.png", stripes(0, 1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="holds 3, 4, 5"):
        look_over(data, ("image", "mask"))


def test_training_begins_with_that_look(own, capsys):
    from seglite import train
    from tests.seglite import tiny

    for path in (own / "masks").iterdir():
        png(path, stripes(0, 1, 2, 3, 4, 5))
    assert train.main([f"method=tiny", "data=folder", f"root={own}", f"out={own}/run"], {"tiny": tiny}) == 1
    assert "holds 3, 4, 5; allowed are 0 ... 2 and 255" in capsys.readouterr().err
