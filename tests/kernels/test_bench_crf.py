"""What `python -m kernels.bench_crf --exact` calls the truth, and what it counts as wrong."""
import json

import pytest
import torch

from kernels import backend, bench_crf
from kernels.dense_crf import Bilateral, Gaussian, mean_field

KERNELS = (Gaussian(2.0, 3.0), Bilateral(6.0, 20.0, 4.0))


def problem(height=9, width=12, labels=4):
    g = torch.Generator().manual_seed(0)
    unary = -torch.log_softmax(torch.randn(1, labels, height, width, generator=g) * 2, 1)
    return unary, torch.randint(0, 256, (1, 3, height, width), generator=g, dtype=torch.uint8)


def test_the_exact_sum_is_the_plain_formula_in_float64():
    unary, image = problem()
    with backend.use("reference"):
        expected = mean_field(unary.double(), image, KERNELS, iterations=10, method="exact", normalization="symmetric")
    found = bench_crf.exact(unary, image, KERNELS)
    assert found.dtype == torch.float64
    assert float((found - expected).abs().max()) < 1e-12
    assert float((found - torch.softmax(-unary.double(), 1)).abs().max()) > 0.1  # and the messages matter


def test_wrong_labels_are_counted(monkeypatch):
    unary, image = problem()
    truth = bench_crf.exact(unary, image, KERNELS)
    moved = truth.clone()
    moved[0, :, 0, :3] = truth[0, :, 0, :3].roll(1, 0)  # three of 108 pixels get another label
    monkeypatch.setattr(bench_crf, "mean_field", lambda *_, **__: moved)
    monkeypatch.setattr(bench_crf, "INSTALLED", False)
    assert bench_crf.wrong_labels(unary, image, KERNELS) == {"ours": pytest.approx(3 / 108)}


def test_the_command_prints_and_writes_a_row_for_each_photograph(tmp_path, capsys):
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.fromarray(problem(20, 30)[1][0].permute(1, 2, 0).numpy()).save(picture)
    assert bench_crf.main([str(picture), "--exact", "--size", "18x12", "--labels", "3", "--settings", "67/3", "--json", str(tmp_path / "crf.json")]) == 0
    assert "18x12" in capsys.readouterr().out
    record = json.loads((tmp_path / "crf.json").read_text())
    assert [(row["photograph"], row["settings"]) for row in record["rows"]] == [("picture.png", "67/3")]
    assert 0 <= record["rows"][0]["wrong"]["ours"] < 0.1


def test_photographs_are_summed_up_together():
    rows = [{"ours": 0.01, "pydensecrf": 0.02}, {"ours": 0.03, "pydensecrf": 0.02}, {"ours": 0.02, "pydensecrf": 0.05}]
    assert bench_crf.summary(rows) == "mean of 3 photographs: ours 2.00%, pydensecrf 3.00%; ours the closer one on 2"
    assert bench_crf.summary([{"ours": 0.5}]) == "mean of 1 photographs: ours 50.00%"


def test_a_matrix_that_would_not_fit_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench_crf.main([str(tmp_path / "none.png"), "--exact", "--size", "500x375"])
    assert "500x375 would take 562 GB; at most 12000 pixels" in capsys.readouterr().err
