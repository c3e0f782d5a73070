"""Photographs in, masks and overlays of their own size out."""
import numpy as np
import pytest
import torch
from PIL import Image

from seglite import predict as P
from seglite import train
from tests.seglite.tiny import METHODS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main([f"out={folder}", "method=tiny", "threads=1"], METHODS) == 0
    return folder


def photograph(path, height, width, turned=False):
    rng = np.random.default_rng(height)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # 6: shown turned by 90 degrees
    picture.save(path, exif=exif)
    return str(path)


def test_masks_have_the_photographs_size_and_the_networks_labels(finished, tmp_path):
    (tmp_path / "more").mkdir()
    photos = [photograph(tmp_path / "a.png", 31, 45), photograph(tmp_path / "more/a.png", 24, 24), photograph(tmp_path / "b.jpg", 20, 30, turned=True)]
    lines = []
    out = tmp_path / "out"
    maps = P.predict_files(photos, P.Settings(run=str(finished), out=str(out)), METHODS, lines.append)
    assert [m.shape for m in maps] == [(31, 45), (24, 24), (30, 20)], "the EXIF note turns the third upright"
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "a_2.png", "a_2_overlay.jpg", "a_overlay.jpg", "b.png", "b_overlay.jpg", "legend.png"]
    with Image.open(out / "a.png") as mask, Image.open(out / "b_overlay.jpg") as shown:
        assert mask.mode == "P" and (np.array(mask) == maps[0]).all()
        assert shown.size == (20, 30)
    assert len(lines) == 3 and "%" in lines[0]


def test_shrinking_is_for_the_network_only():
    sizes = []
    data = type("Data", (), {"mean": (0, 0, 0), "std": (1, 1, 1)})

    def predict(x):
        sizes.append(tuple(x.shape[-2:]))
        return torch.cat([x[:, :1], 1 - x[:, :1]], 1)

    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    labels = P.label_photograph(predict, image, data, longest=20)
    assert sizes == [(10, 20)] and labels.shape == (40, 80) and (labels == (np.arange(80) < 40)).all()
    P.label_photograph(predict, image, data, longest=100)
    assert sizes[-1] == (40, 80), "a smaller photograph is not enlarged"


def test_a_crf_may_follow():
    rng = np.random.default_rng(0)
    data = type("Data", (), {"mean": (0.5,) * 3, "std": (0.25,) * 3})
    truth = np.arange(40)[None].repeat(30, 0) >= 20
    image = (60 + 120 * truth[..., None] + rng.normal(0, 5, (30, 40, 3))).clip(0, 255).astype(np.uint8)

    def shifted(x):  # sure, but three pixels off
        p = torch.where(torch.arange(40) >= 23, 0.8, 0.2).expand(1, 1, 30, 40)
        return torch.cat([1 - p, p], 1)

    before, after = (P.label_photograph(shifted, image, data, crf=crf) for crf in ("", "1/1/20/10/6"))
    assert (before != truth).mean() == 3 / 40 and (after != truth).mean() < 0.005


def test_shares_are_listed_objects_first():
    labels = np.repeat([0, 2, 1, 2], [50, 20, 10, 20])[None]
    assert P.shares(labels, ("background", "cat", "dog")) == "dog 40 %, cat 10 %, background 50 %"


def test_what_the_command_refuses(finished, tmp_path, capsys):
    assert P.main([f"run={finished}"]) == 2 and "at least 1 files" in capsys.readouterr().err
    assert P.main([f"run={finished}", str(tmp_path / "none.jpg")]) == 1 and "does not exist" in capsys.readouterr().err
    assert P.main(["--run", "x"]) == 2 and "no dashes" in capsys.readouterr().err
