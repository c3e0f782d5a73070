"""The doctor on healthy trees, and on trees each broken in one way: the sentence names file, fault and fix."""
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_scripts import doctor
from seglite.data import camvid as camvid_data
from seglite.data import folder, voc
from seglite.data.cityscapes import PALETTE as CITY


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def photo(path, seed, size=(6, 8)):
    save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3)))


def stripes(*values):
    return np.repeat(np.array(values)[:, None], 8, 1)


@pytest.fixture
def own(tmp_path):
    for i, name in enumerate("abcdef"):
        photo(tmp_path / f"images/{name}.png", i)
        save(tmp_path / f"masks/{name}.png", stripes(0, 1, 2, 255, 1, 0))
    return tmp_path


@pytest.fixture
def voc_tree(tmp_path):
    for i, name in enumerate("abc"):
        photo(tmp_path / f"JPEGImages/{name}.jpg", i)
        save(tmp_path / f"SegmentationClass/{name}.png", stripes(0, 20, 15, 255, 1, 0))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("c\n")
    return tmp_path


def visit(root, **options):
    found = doctor.examine(doctor.recognise(Path(root), **options), say=lambda _: None)
    lines = []
    doctor.tell(found, lines.append)
    return found, "\n".join(lines)


# ---- healthy ----------------------------------------------------------------------------------------------------------------------------


def test_a_healthy_folder_gets_settings_that_open_it(own):
    found, text = visit(own)
    assert not found.problems and "nothing is wrong" in text and "6 pairs looked at" in text
    assert found.layout.setting == f"data=folder root={own} folder.classes=3"
    data = folder.open(SimpleNamespace(root=str(own), folder=folder.FolderSettings(classes="3")), "train")
    assert len(data) and data.read(0)["mask"].max() == 255
    assert f"{1:6}  {2 / 6:7.3%}  {6:6,}" in text  # number, share of the pixels, masks that hold it


def test_endings_and_other_folder_names_are_found_out(own):
    (own / "masks").rename(own / "labels")
    (own / "images").rename(own / "photos")
    for path in list((own / "labels").iterdir()):
        path.rename(path.with_name(f"{path.stem}_gt.png"))
    found, _ = visit(own, images="photos", masks="labels")
    assert not found.problems
    assert found.layout.setting == f"data=folder root={own} folder.images=photos folder.masks=labels folder.ending=_gt folder.classes=3"


def test_healthy_voc_and_camvid(voc_tree, tmp_path_factory):
    found, text = visit(voc_tree)
    assert not found.problems and found.layout.setting == f"data=voc root={voc_tree}" and "train 2, val 1" in text
    root = tmp_path_factory.mktemp("camvid")
    for i, part in enumerate(("train", "val", "test")):
        photo(root / part / f"{part}.png", i)
        save(root / f"{part}annot/{part}.png", stripes(0, 1, 5, 8, 10, 11))
    found, text = visit(root)
    assert not found.problems and found.layout.kind == "camvid" and "    11" in text and "not judged" in text


# ---- broken, one fault each -------------------------------------------------------------------------------------------------------------


def raw_city_ids(root):
    for name in "ab":
        photo(root / f"leftImg8bit/train/jena/jena_{name}_leftImg8bit.png", ord(name))
        save(root / f"gtFine/train/jena/jena_{name}_gtFine_labelTrainIds.png", stripes(7, 11, 21, 26, 33, 0))


def black_and_white(root):
    for name in "abcdef":
        save(root / f"masks/{name}.png", stripes(0, 255, 255, 0, 0, 0))


def colours_of_cityscapes(root):
    for name in "abcdef":
        save(root / f"masks/{name}.png", CITY[stripes(0, 1, 2, 10, 13, 0)])


def jpeg_masks(root):
    for name in "abcdef":
        (root / f"masks/{name}.png").unlink()
        save(root / f"masks/{name}.jpg", stripes(0, 40, 80, 120, 160, 200))


def from_one(root):
    (root / "classes.txt").write_text("road\ncar\n")
    for name in "abcdef":
        save(root / f"masks/{name}.png", stripes(1, 2, 1, 255, 1, 2))


def resized_smoothly(root):
    for i, name in enumerate("abcdef"):
        save(root / f"masks/{name}.png", np.random.default_rng(i).integers(0, 200, (6, 8)))


def mask_missing(root):
    (root / "masks/c.png").unlink()


def image_missing(root):
    (root / "images/c.png").unlink()


def wrong_size(root):
    save(root / "masks/c.png", stripes(0, 1, 2, 255, 1, 0).T)


def cut_image(root):
    path = root / "images/b.png"
    path.write_bytes(path.read_bytes()[:60])


def cut_mask(root):
    path = root / "masks/b.png"
    path.write_bytes(path.read_bytes()[:50])


def same_picture_twice(root):
    (root / "train.txt").write_text("a\nb\nc\n")
    (root / "val.txt").write_text("d\ne\nf\n")
    (root / "images/e.png").write_bytes((root / "images/b.png").read_bytes())


def instances(root):
    Image.fromarray(stripes(0, 26001, 26002, 0, 0, 0).astype(np.uint16)).save(root / "masks/a.png")


def nothing_but_zero(root):
    for name in "abcdef":
        save(root / f"masks/{name}.png", stripes(0, 0, 0, 0, 0, 0))


BROKEN = {
    raw_city_ids: r"mask holds 21, 26, 33 outside the 19 classes: .*jena_a.* \(and 1 more masks\); these are raw Cityscapes ids: set cityscapes.labels=ids",
    black_and_white: r"only 0 and 255: black-and-white pictures of one class; .*Divide the files by 255",
    colours_of_cityscapes: r"6 masks are colour pictures in the colours of cityscapes",
    jpeg_masks: r"masks are JPEG files: .*a.jpg \(and 5 more masks\); .*export the labels again as PNG",
    from_one: r"mask holds 2 outside the 2 classes: .*; labels run from 1 to 2: set folder.first=1",
    resized_smoothly: r"masks hold \d+ different numbers; .*smoothed by resizing",
    mask_missing: r"image without mask: .*c.png; leave those images out of the lists, or fetch their masks",
    image_missing: r"mask without image: .*c.png; remove them or find their images",
    wrong_size: r"mask and image differ in size: .*c.png is 6 x 8, its image 8 x 6; .*turned by 90 degrees",
    cut_image: r"image cannot be read: .*b.png .*; fetch it again",
    cut_mask: r"mask cannot be read: .*b.png .*; fetch it again",
    same_picture_twice: r"the same picture is in train and val: b and e; scores on such a split are flattered",
    instances: r"mask holds numbers up to 26002: .*a.png; this is an instance or depth map",
    nothing_but_zero: r"every mask holds only 0: there is nothing to learn",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_one_fault_is_one_sentence_with_the_fix(own, tmp_path_factory, broken):
    root = tmp_path_factory.mktemp("city") if broken is raw_city_ids else own
    broken(root)
    found, text = visit(root)
    import re

    assert len(found.problems) == 1 and re.search(BROKEN[broken], found.problems[0]), found.problems
    assert "1 problem" in text.splitlines()[-1]
    assert doctor.main([str(root)]) == 1


def test_a_palette_turned_to_grey_is_recognised(voc_tree):
    greys = np.round(voc.palette(21).astype(float) @ (0.299, 0.587, 0.114)).astype(int)
    for name in "abc":
        save(voc_tree / f"SegmentationClass/{name}.png", greys[stripes(0, 20, 15, 1, 1, 0)])
    found, _ = visit(voc_tree)
    assert len(found.problems) == 1 and "the grey values of VOC's palette" in found.problems[0]


def test_a_listed_image_that_is_not_there(voc_tree):
    (voc_tree / "JPEGImages/b.jpg").unlink()
    found, _ = visit(voc_tree)
    assert len(found.problems) == 2 and "listed and not there: " in found.problems[0] and "mask without image: " in found.problems[1]


def test_unknown_colours_become_lines_for_classes_txt_that_work(own):
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    for name in "abcdef":
        save(own / f"masks/{name}.png", colours[stripes(0, 1, 2, 0, 0, 1)])
    found, _ = visit(own)
    assert "6 masks are colour pictures with 3 colours" in found.problems[0]
    lines = [line.strip() for line in found.remarks[0].splitlines()[1:]]
    assert lines == ["class0 10 20 30", "class1 40 50 60", "class2 70 80 90"]
    (own / "classes.txt").write_text("\n".join(lines))
    assert not visit(own)[0].problems
    data = folder.open(SimpleNamespace(root=str(own), folder=folder.FolderSettings()), "train")
    assert data.read(0)["mask"][:, 0].tolist() == [0, 1, 2, 0, 0, 1]


def test_ade_numbers_in_ones_own_folder_are_recognised(own):
    for i, name in enumerate("abcdef"):
        save(own / f"masks/{name}.png", stripes(*range(25 * i, 25 * i + 6)) if i else stripes(0, 10, 20, 30, 149, 150))
    found, text = visit(own)
    assert not found.problems and "ADE20K's numbers" in text


def test_turned_photographs_are_remarked_on(own):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    (own / "images/a.png").unlink()
    (own / "images/a.jpg").write_bytes(buffer.getvalue())
    found, _ = visit(own)
    assert not found.problems and "carry an EXIF note" in found.remarks[0]


def test_no_data_set_at_all(tmp_path, capsys):
    (tmp_path / "holiday").mkdir()
    assert doctor.main([str(tmp_path)]) == 1 and "holds holiday; expected the layout of voc" in capsys.readouterr().err
    assert doctor.main([str(tmp_path / "nowhere")]) == 1 and "is not a folder" in capsys.readouterr().err


def test_a_limit_looks_at_a_few(voc_tree):
    found = doctor.examine(doctor.recognise(voc_tree), limit=1, say=lambda _: None)
    assert found.read == 2


@pytest.mark.realdata
def test_the_shared_trees_are_healthy(data_root):
    for name, setting in (("camvid", "data=camvid"), ("voc_mini", "data=voc")):
        found = doctor.examine(doctor.recognise(data_root / name), limit=20, say=lambda _: None)
        assert not found.problems and found.layout.setting.startswith(setting) and found.read >= 60
    assert camvid_data.VOID == 11
