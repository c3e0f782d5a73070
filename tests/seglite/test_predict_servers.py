"""Folders of photographs, and the layouts that test servers want."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seglite import predict as P
from seglite.config import UsageError
from seglite.data import cityscapes, voc


def photograph(path, seed=0, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def knows(monkeypatch, classes, palette):
    """A predictor whose label is the row of the pixel, for these classes."""
    data = SimpleNamespace(classes=tuple(classes), palette=palette, mean=(0.5,) * 3, std=(0.25,) * 3)

    def by_row(x):
        rows = torch.arange(x.shape[-2]) % len(classes)
        return torch.nn.functional.one_hot(rows, len(classes)).T[None, :, :, None].float().expand(len(x), -1, -1, x.shape[-1])

    monkeypatch.setattr(P, "open_predictor", lambda *_: (by_row, data, "cpu", lambda: None))


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_stands_for_its_photographs(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.png", "more/c.webp"):
        photograph(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no photograph")
    (tmp_path / "empty").mkdir()
    single = photograph(tmp_path / "d.png")
    assert P.with_folders([str(tmp_path / "in"), str(single)]) == [str(tmp_path / "in" / n) for n in ("a.png", "b.jpg", "more/c.webp")] + [str(single)]
    with pytest.raises(FileNotFoundError, match="folder .*empty holds no photographs"):
        P.with_folders([str(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError, match="photograph .*x.png does not exist"):
        P.with_folders([str(tmp_path / "x.png")])
    knows(monkeypatch, voc.CLASSES, voc.Voc.palette)
    P.predict_files([str(tmp_path / "in")], P.Settings(run="r", out=str(tmp_path / "out"), overlays=False), say=lambda _: None)
    assert written(tmp_path / "out") == ["a.png", "b.png", "c.png", "legend.png"]


def test_cityscapes_server_gets_raw_ids_at_full_size(tmp_path, monkeypatch):
    knows(monkeypatch, cityscapes.CLASSES, cityscapes.PALETTE)
    path = photograph(tmp_path / "berlin_000000_000019_leftImg8bit.png", size=(20, 16))
    P.predict_files([str(path)], P.Settings(run="r", out=str(tmp_path / "out"), server="cityscapes", overlays=False), say=lambda _: None)
    with Image.open(tmp_path / "out/berlin_000000_000019.png") as mask:
        labels = np.array(mask)
    assert labels.shape == (20, 16) and labels[:, 0].tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 7]


def test_voc_server_layout(tmp_path, monkeypatch):
    knows(monkeypatch, voc.CLASSES, voc.Voc.palette)
    path = photograph(tmp_path / "2008_000006.jpg", size=(21, 16))
    P.predict_files([str(path)], P.Settings(run="r", out=str(tmp_path / "out"), server="voc-comp6"), say=lambda _: None)
    assert "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png" in written(tmp_path / "out")
    with Image.open(tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png") as mask:
        assert mask.mode == "P" and np.array(mask)[:, 0].tolist() == list(range(21))


@pytest.mark.parametrize("server,sentence", [("cityscapes", "needs a run on Cityscapes' 19 classes, this one has 2"), ("voc-comp5", "VOC's 21 classes, this one has 2")])
def test_a_server_for_other_classes_is_refused(tmp_path, monkeypatch, server, sentence):
    knows(monkeypatch, ("background", "cat"), voc.palette(2))
    with pytest.raises(UsageError, match=sentence):
        P.predict_files([str(photograph(tmp_path / "a.png"))], P.Settings(run="r", out=str(tmp_path / "out"), server=server), say=lambda _: None)
    assert not (tmp_path / "out").exists()
