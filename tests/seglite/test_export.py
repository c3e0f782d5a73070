"""Exported archives: reloaded in this process and in one that cannot import seglite, they give the predictor's numbers."""
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from seglite import export as X
from seglite import train
from seglite.data import normalise
from seglite.data.voc import Voc, read_image, read_mask
from seglite.evaluate import multi_scale, open_predictor
from seglite.reopen import open_run
from tests.seglite.tiny import METHODS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main([f"out={folder}", "method=tiny", "threads=1"], METHODS) == 0
    return folder


def photograph(height, width):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, height, width), np.uint8))


def test_an_archive_gives_the_runs_numbers_without_seglite(finished, tmp_path):
    lines = []
    path = X.export(X.Settings(run=str(finished), out=str(tmp_path / "m.pt2"), sizes="any"), METHODS, lines.append)
    assert "reloaded, largest difference" in lines[-1]
    predict, data, run = open_run(finished, METHODS)
    run.close()
    image = photograph(24, 24)
    x = (image.float() / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    with torch.no_grad():
        expected = predict(x)
    code = ("import sys, torch\nsys.modules['seglite'] = None\n"
            f"image, expected = torch.load({str(tmp_path / 'io.pt')!r})\nextra = {{'seglite.json': ''}}\n"
            f"program = torch.export.load({str(path)!r}, extra_files=extra).module()\n"
            "print(float((program(image) - expected).abs().max()), program(torch.zeros(1, 3, 40, 56, dtype=torch.uint8)).shape[-2:] == (40, 56), len(extra['seglite.json']) > 50)")
    torch.save((image, expected), tmp_path / "io.pt")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    worst, other_size, told = done.stdout.split()
    assert float(worst) < 1e-5 and other_size == told == "True", done.stderr
    about = json.loads((tmp_path / "m.json").read_text())
    assert about["classes"] == list(data.classes) and about["sizes"] == "any"


def test_labels_and_a_size_of_ones_own(finished, tmp_path):
    path = X.export(X.Settings(run=str(finished), out=str(tmp_path / "m.pt2"), gives="labels", height=30, width=20), METHODS, lambda _: None)
    labels = torch.export.load(path).module()(photograph(30, 20))
    assert labels.shape == (1, 30, 20) and labels.dtype == torch.uint8
    with pytest.raises(Exception):
        torch.export.load(path).module()(photograph(31, 20))  # fixed sizes are fixed


def test_test_time_views_fall_back_to_the_network(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3, padding=1).eval()
    data = type("Data", (), {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": tuple("abcd"), "palette": np.zeros((4, 3), np.uint8),
                             "read": staticmethod(lambda i, wants: {"image": np.zeros((16, 16, 3), np.uint8)})})
    viewed = multi_scale(net, (1.0, 2.0), flip=True)
    monkeypatch.setattr(X, "open_predictor", lambda *_: (viewed, data, "cpu", lambda: None))
    lines = []
    path = X.export(X.Settings(run="r", out=str(tmp_path / "m.pt2")), say=lines.append)
    assert "exporting its network Conv2d alone" in lines[0]
    image = photograph(16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(path).module()(image), net((image.float() / 255 - 0.5) / 0.25), atol=1e-5)
    with pytest.raises(ValueError, match="cannot trace this predictor .*part=network exports the network alone"):
        X.export(X.Settings(run="r", out=str(tmp_path / "n.pt2"), part="predictor"), say=lines.append)
    assert not (tmp_path / "n.pt2").exists()


def test_an_archive_that_differs_is_not_written(finished, tmp_path, monkeypatch):
    load = torch.export.load

    class Off:
        def __init__(self, program):
            self.program = program

        def module(self):
            inner = self.program.module()
            return lambda image: inner(image) + 1

    monkeypatch.setattr(torch.export, "load", lambda f: Off(load(f)))
    with pytest.raises(ValueError, match="differs from the predictor by 1"):
        X.export(X.Settings(run=str(finished), out=str(tmp_path / "m.pt2")), METHODS, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_networks_are_found_wherever_a_predictor_keeps_them():
    a, b = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))

    class Holder:
        def __init__(self):
            self.net = b

        def __call__(self, x):
            return self.net(x)

    Holder.__module__ = "seglite.somewhere"
    assert X.modules_of(a) == [a] and X.modules_of(b.forward) == [b]
    assert X.modules_of(lambda x: a(b(x))) == [a, b]
    assert X.modules_of(functools.partial(lambda net, x: net(x), a)) == [a]
    assert X.modules_of(torch.no_grad()(lambda x: a(x))) == [a]
    assert X.modules_of(Holder()) == [b]
    assert X.modules_of([b, b[0]]) == [b]  # what is inside another is not listed again


@pytest.mark.slow
@pytest.mark.realdata
def test_the_published_deeplab_gives_its_numbers_from_an_archive(tmp_path, data_root):
    """Real weights: scores of a photograph from the reloaded file and from the predictor, and the labels that the weights are known for."""
    weights, photo = data_root / "weights/deeplabv3_mobilenetv2_voc.pth", data_root / "densecrf/deeplab_voc/image/2007_000129.jpg"
    image = read_image(photo)
    settings = X.Settings(model="deeplabv3_mobilenetv2", weights=str(weights), out=str(tmp_path / "d.pt2"), height=image.shape[0], width=image.shape[1])
    X.export(settings, say=lambda _: None)
    predict, _, device, close = open_predictor(settings)
    got = torch.export.load(tmp_path / "d.pt2").module()(torch.from_numpy(image).movedim(-1, 0)[None].contiguous())
    expected = predict(normalise(image[None], Voc))
    close()
    assert (got - expected).abs().max() <= X.ALIKE * expected.abs().max() and got.shape == (1, 21, *image.shape[:2])
    truth = read_mask(data_root / "densecrf/deeplab_voc/gt/2007_000129.png", 21)
    assert (got.argmax(1)[0].numpy() == truth)[truth != 255].mean() > 0.85


def test_the_command(finished, tmp_path, capsys):
    assert X.main(["help"]) == 0 and "part=auto" in capsys.readouterr().out
    assert X.main([f"run={tmp_path}"]) == 2 and "holds no run" in capsys.readouterr().err
