"""Scoring finished runs: windows, scales, CRF rows, trimap, the search, reopening a run, and the command."""
import csv
import json
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seglite import evaluate as E
from seglite import reopen, train
from seglite.config import UsageError
from seglite.crf import Preset, preset_of
from seglite.evaluate_report import show
from seglite.metrics import Trimap
from seglite.run import RunProblem
from tests.seglite.test_evaluate import Pictures, oracle
from tests.seglite.tiny import METHODS, TINY


def local(x):
    """Scores that depend on each pixel alone: any cutting of the image must give the same."""
    return torch.cat([x[:, :1], x[:, 1:2] * 2, x[:, 2:] - 1], 1)


# ---- wrappers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length, side, overlap", [(100, 40, 1 / 3), (100, 40, 0.0), (41, 40, 0.5), (40, 40, 0.9), (7, 40, 0.5), (1000, 513, 0.25)])
def test_windows_cover_everything_and_share_enough(length, side, overlap):
    starts = E.window_starts(length, side, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        covered[start : start + side] += 1
    assert covered.min() >= 1 and starts[0] == 0 and starts[-1] + side >= length
    assert starts[-1] == max(0, length - side), "the last window ends with the image"
    assert all(b - a <= max(1, side * (1 - overlap)) + 0.5 for a, b in zip(starts, starts[1:]))


def test_windows_change_nothing_for_a_pointwise_predictor():
    x = torch.randn(2, 3, 37, 53)
    sides = []

    def noting(view):
        sides.append(tuple(view.shape[-2:]))
        return local(view)

    whole = local(x).softmax(1)
    torch.testing.assert_close(E.sliding_window(noting, 16, 0.3)(x), whole)
    assert set(sides) == {(16, 16)} and len(sides) == 3 * 5
    torch.testing.assert_close(E.sliding_window(local, 60)(x), whole)
    with pytest.raises(ValueError, match="overlap"):
        E.sliding_window(local, 16, 1.0)


def test_overlapping_windows_are_averaged():
    x = torch.zeros(1, 3, 4, 6)
    calls = iter([0.2, 0.6])

    def constant(view):
        p = next(calls)
        return torch.stack([torch.full(view.shape[-2:], p), torch.full(view.shape[-2:], 1 - p)])[None]

    found = E.sliding_window(constant, 4, 0.0)(x)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.2, 0.2, 0.4, 0.4, 0.6, 0.6]))


def test_scales_and_mirror_images_average_probabilities():
    x = torch.randn(1, 3, 12, 16)
    torch.testing.assert_close(E.multi_scale(local, (1.0,), flip=True)(x), local(x).softmax(1))
    column = torch.linspace(-2, 2, 16).expand(1, 1, 12, 16)

    def sided(view):  # looks at the column, not at the picture: a mirror image must be turned back
        c = torch.nn.functional.interpolate(column, view.shape[-2:], mode="bilinear")
        return torch.cat([c, -c], 1)

    torch.testing.assert_close(E.multi_scale(sided, (1.0,), flip=True)(x)[:, 0], torch.full((1, 12, 16), 0.5))
    both = E.multi_scale(local, (1.0, 2.0))(x)
    double = local(torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))
    expected = (local(x).softmax(1) + torch.nn.functional.interpolate(double, (12, 16), mode="bilinear").softmax(1)) / 2
    torch.testing.assert_close(both, expected)
    with pytest.raises(ValueError, match="scales"):
        E.multi_scale(local, (0.0,))


def test_probabilities_are_not_normalised_twice():
    image, p = torch.zeros(1, 3, 4, 4), torch.rand(1, 5, 4, 4).softmax(1)
    torch.testing.assert_close(E.probabilities(p, image), p)
    torch.testing.assert_close(E.probabilities(p.log() + 3, image), p)
    assert E.probabilities(p[..., :2, :2], image).shape == (1, 5, 4, 4)


def test_once_computes_once_for_an_image():
    calls = []
    once = E.Once(lambda x: calls.append(1) or local(x))
    x = torch.randn(1, 3, 4, 4)
    assert once(x) is once(x) and len(calls) == 1
    once(x.clone())
    assert len(calls) == 2


def test_photographs_are_the_bytes_that_were_normalised():
    data = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    back = E.photographs(E.normalise(image[None], data), data)
    np.testing.assert_array_equal(back[0].permute(1, 2, 0).numpy(), image)
    assert back.dtype == torch.uint8


@pytest.mark.parametrize("low", [0, 128])
def test_a_crf_takes_photographs_of_two_neighbouring_levels(low):
    """A night or a wall: an evaluation of thousands of images must not end there."""
    data = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = low + np.random.default_rng(0).integers(0, 2, (8, 8, 3), np.uint8)
    refined = E.with_crf(lambda x: x[:, :2], data)(E.normalise(image[None].astype(np.uint8), data))
    assert refined.shape == (1, 2, 8, 8) and torch.isfinite(refined).all()


# ---- many rows, bands, some images ------------------------------------------------------------------------------------------------------


def test_rows_share_one_pass_and_count_the_same_as_alone():
    data = Pictures([(8, 8), (8, 8), (12, 8), (16, 20)])
    calls = []
    base = E.Once(lambda x: calls.append(len(x)) or oracle(x))
    rows = {"right": base, "wrong": lambda x: base(x)[:, [1, 0, 2]]}
    told = []
    results = E.evaluate_many(rows, data, widths=(1, 3), indices=[0, 2, 3],
                              progress=lambda done, total, so_far: told.append((done, total, int(so_far["right"].confusion.counts.sum()))))
    assert told == [(1, 3, 0), (2, 3, 8 * 8), (3, 3, 8 * 8 + 12 * 8)], "what is waiting for more of its size is not counted yet"
    assert sum(calls) == 3, "the network saw each image once"
    alone = E.evaluate(lambda x: oracle(x)[:, [1, 0, 2]], data, indices=[0, 2, 3])
    assert torch.equal(results["wrong"].confusion.counts, alone.confusion.counts) and alone.trimap is None
    assert results["right"].trimap.miou() == {1: 1.0, 3: 1.0}
    direct = Trimap(3, (1, 3))
    for i in (0, 2, 3):
        direct.add(data.masks[i], np.array([1, 0, 2])[data.masks[i]])
    assert results["wrong"].trimap.miou() == direct.miou()
    assert [s["name"] for s in results["wrong"].samples] == ["image0", "image2", "image3"]
    with pytest.raises(ValueError, match="no image"):
        E.evaluate(oracle, data, indices=[])


def test_a_shared_network_counts_in_the_speed_of_every_row(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(E.time, "perf_counter", lambda: now[0])

    def takes(seconds, predict):
        def timed(x):
            now[0] += seconds
            return predict(x)
        return timed

    base = E.Once(takes(2, oracle))
    rows = {"scores": base, "refined": takes(1, base), "two passes": takes(4, lambda x: base(x) + base(x))}
    results = E.evaluate_many(rows, Pictures([(8, 8), (12, 8)]))
    assert [1 / r.images_per_second for r in results.values()] == pytest.approx([2, 3, 8])  # seconds an image; the last row would run the network twice
    nested = E.Once(takes(1, base))
    twice = E.evaluate_many({"scores": base, "nested": nested, "again": lambda x: nested(x)}, Pictures([(8, 8)]))
    assert [1 / r.images_per_second for r in twice.values()] == pytest.approx([2, 3, 3])


class Squares:
    """Bright squares on a dark ground with pixel noise, and a predictor that sees them through fog."""

    classes, palette = ("ground", "square"), np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __len__(self):
        return 6

    def name(self, index):
        return f"s{index}"

    def read(self, index, wants=()):
        rng = np.random.default_rng(index)
        mask = np.zeros((20, 28), np.uint8)
        top, left = rng.integers(2, 8, 2)
        mask[top : top + 9, left : left + 12] = 1
        image = (60 + 120 * mask[..., None] + rng.normal(0, 8, (20, 28, 3))).clip(0, 255).astype(np.uint8)
        return {"image": image, "mask": mask}


def foggy(x):
    bright = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x.mean(1, keepdim=True), (3,) * 4, mode="reflect"), 7, 1)
    return torch.cat([torch.zeros_like(bright), 2 * (bright + 0.35)], 1)


def test_a_crf_row_sharpens_what_the_network_blurred():
    data = Squares()
    rows = {"scores": foggy, "crf": E.with_crf(foggy, data, "1/1/10/10/4")}
    results = E.evaluate_many(rows, data, widths=(1,))
    before, after = (results[k].confusion.miou() for k in rows)
    assert before < 0.9 and after > 0.97, (before, after)
    assert results["crf"].trimap.miou()[1] > results["scores"].trimap.miou()[1] + 0.1


def test_the_search_keeps_the_best_of_each_coordinate():
    data, said = Squares(), []
    start = Preset(1, 1, 10, 10, 0.0)
    grid = {"bilateral_weight": (0.0, 4.0), "bilateral_srgb": (1.0, 10.0), "normalization": ("after",)}
    best = E.search_crf(foggy, data, "cpu", [0, 1, 2], start, say=said.append, grid=grid)
    assert best == Preset(1, 1, 10, 10, 4.0)
    assert len(said) == 3, "nothing is tried twice"
    assert preset_of(E.spell(best)) == best


def test_the_tables_print_every_row_and_rule():
    data, lines = Squares(), []
    show(E.evaluate_many({"scores": foggy, "same": foggy}, data, widths=(1, 2)), lines.append)
    text = "\n".join(lines)
    assert "2 px" in text and text.count("an absent one counts") == 2 and "square" in text and "\nsame" in text


# ---- finished runs ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main([f"out={folder}", "method=tiny", "threads=1"], METHODS) == 0
    return folder


def test_a_finished_run_scores_what_its_report_said(finished, tmp_path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    lines = []
    settings = E.Settings(run=str(finished), out=str(tmp_path / "scored"), crf=("camvid", "1/0/67/3/0"), keep=2)
    results = E.score(settings, METHODS, lines.append)
    report = json.loads((finished / "result.json").read_text())
    assert results["scores"].confusion.miou() == report["miou"]
    assert results["1/0/67/3/0"].confusion.miou() == pytest.approx(report["miou"], abs=1e-3), "no weights: the CRF changes nothing"
    written = json.loads((tmp_path / "scored/evaluation.json").read_text())
    assert written["rows"]["scores"]["miou"] == report["miou"] and set(written["rows"]["camvid"]["trimap_miou"]) == {"1", "2", "5", "10", "20", "40"}
    table = list(csv.reader((tmp_path / "scored/classes.csv").open()))
    assert table[0] == ["class", "scores", "camvid", "1/0/67/3/0"] and len(table) == 1 + len(report["classes"])
    assert (tmp_path / "scored/trimap.png").stat().st_size > 2000 and (tmp_path / "scored/samples.png").stat().st_size > 2000
    assert {p: p.read_bytes() for p in before} == before, "reading a run leaves it as it was"


def test_a_search_reports_on_the_other_half_and_the_named_crf_on_both(finished, tmp_path):
    every = E.score(E.Settings(run=str(finished), crf=("1/1/9/20/1",)), METHODS, lambda _: None)
    half = E.score(E.Settings(run=str(finished), crf=("1/1/9/20/1",), search=2, out=str(tmp_path)), METHODS, lambda _: None)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(written["all_images"]) == {"scores", "1/1/9/20/1"} and len(written["rows"]) == 3
    for name, row in written["all_images"].items():
        assert row["miou"] == every[name].confusion.miou() and row["boundary_miou"] == every[name].boundary.miou()
        assert row["trimap_miou"]["2"] == every[name].trimap.miou()[2]
        assert half[name].confusion.counts.sum() * 2 == every[name].confusion.counts.sum(), "the merge leaves the half as it was"


def test_augmentation_samples_and_search_through_the_settings(finished):
    lines = []
    results = E.score(E.Settings(run=str(finished), images=4, search=2, crf=("1/1/9/20/1",), scales=(1.0, 1.5), flip=True, window=16), METHODS, lines.append)
    assert any("2 of 6 images" in line for line in lines), "the half that the search did not see"
    assert any(name.startswith("searched ") for name in results)
    with pytest.raises(UsageError, match="at most 3"):
        E.score(E.Settings(run=str(finished), search=4, crf=("camvid",)), METHODS)
    with pytest.raises(UsageError, match="name the one"):
        E.score(E.Settings(run=str(finished), search=1), METHODS)


def test_an_unfinished_run_is_refused_with_the_way_out(finished, tmp_path):
    import shutil

    for part, message in (("main/final.pt", "stage 'main' has no final.pt; continue it first: python -m seglite.train"), ("scale.pt", "artifact 'scale'")):
        copy = tmp_path / part.replace("/", "_")
        shutil.copytree(finished, copy)
        (copy / part).unlink()
        with pytest.raises(RunProblem, match=message):
            reopen.open_run(copy, METHODS)
    with pytest.raises(UsageError, match="holds no run"):
        reopen.open_run(tmp_path, METHODS)
    with pytest.raises(UsageError, match="method 'tiny'; this version has other"):
        reopen.open_run(finished, {"other": TINY})
    changed = tmp_path / "scale.pt" / "config.json"
    config = json.loads(changed.read_text())
    config["settings"]["colour"] = 3
    changed.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="sets colour"):
        reopen.open_run(changed.parent, METHODS)


def test_a_paper_may_reopen_itself(finished):
    paper = types.SimpleNamespace(Settings=TINY.Settings, supervision=TINY.supervision, reopen=lambda run: local)
    predict, data, run = reopen.open_run(finished, {"tiny": paper})
    assert predict is local and len(data) == 6
    run.close()


def test_what_the_command_refuses(finished, capsys):
    assert E.main(["run=x", "model=deeplabv3_mobilenetv2"]) == 2 and "either run=" in capsys.readouterr().err
    assert E.main(["model=deeplabv3_mobilenetv2"]) == 2 and "needs weights=" in capsys.readouterr().err
    assert E.main(["run=x", "crf=deeplabvoc"]) == 1 and "there is no preset" in capsys.readouterr().err
    assert E.main(["run=/nowhere"]) == 2 and "holds no run" in capsys.readouterr().err
    assert E.main(["photo.jpg"]) == 2 and "expected 0 files" in capsys.readouterr().err
    with pytest.raises(UsageError, match="different class lists"):
        open_other(finished)


def open_other(finished):
    predict, own, run = reopen.open_run(finished, METHODS)
    try:
        own.classes = ("background", "other")
        E.open_images(E.Settings(run="x", data="scenes"), own)
    finally:
        run.close()
