"""Which part of a data set the command scores."""
import numpy as np
import pytest
from PIL import Image

from seglite import evaluate as E
from seglite.config import UsageError
from seglite.data.camvid import CLASSES


@pytest.fixture
def camvid(tmp_path):
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            for folder, array in ((part, np.zeros((4, 5, 3), np.uint8)), (f"{part}annot", np.zeros((4, 5), np.uint8))):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(array).save(tmp_path / folder / f"{part}{i}.png")
    return str(tmp_path)


def names(own=None, **settings):
    data = E.open_images(E.Settings(**settings), own)
    return [data.name(i) for i in range(len(data))]


def test_list_names_the_part(camvid):
    own = type("Own", (), {"classes": CLASSES})
    assert names(own, data="camvid", root=camvid) == ["test0", "test1"]  # CamVid's published numbers are on test
    assert names(own, data="camvid", root=camvid, list="val") == ["val0"]
    assert names(own, data="camvid", root=camvid, split="train", list="train+val") == ["train0", "train1", "train2", "val0"]


def test_what_has_no_parts_says_so(camvid):
    own = type("Own", (), {"classes": ("a",)})
    with pytest.raises(UsageError, match="list= names a part of voc, camvid, cityscapes or coco; data=scenes has no such parts"):
        names(own, data="scenes", list="val")
    with pytest.raises(UsageError, match="data=folder has no such parts"):
        names(own, data="folder", root=camvid, list="val")
    with pytest.raises(UsageError, match="list= needs data="):
        names(own, list="val")
    assert E.open_images(E.Settings(), own) is own
