"""Claims: arithmetic of the tables, verdicts, resuming, and the files."""
import json
import os
import statistics
import time
import types

import pytest

from seglite import claims
from seglite.config import UsageError
from tests.seglite.tiny import TINY


@pytest.fixture
def methods(monkeypatch, tmp_path):
    """A method whose "training" looks numbers up; counts how often it ran."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def claim(run):
        calls.append(run.config.seed)
        s = run.config.seed
        return {"main": {"baseline": {"miou": 0.50 + 0.01 * s, "fp": 0.3}, "method": {"miou": 0.60 + 0.03 * s, "fp": 0.1}},
                "extra": {"only": {"miou": 0.1, "note": "fine"}}}

    paper = types.ModuleType("tiny")
    paper.__dict__.update(TINY.__dict__)
    paper.claim = claim
    paper.CLAIM = {"title": "Tiny claim", "headline": ("main", "miou", ("baseline", "method")), "statements": {
        "the method beats the baseline": lambda t: t["main"]["method"]["miou"] > t["main"]["baseline"]["miou"],
        "by more than 0.11": lambda t: t["main"]["method"]["miou"] - t["main"]["baseline"]["miou"] > 0.11}}
    return {"tiny": paper}, calls


def test_means_spreads_and_paired_differences(methods):
    methods, _ = methods
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    entry = summary["tables"]["main"]["method"]["miou"]
    assert entry["mean"] == pytest.approx(0.63) and entry["std"] == pytest.approx(statistics.stdev([0.60, 0.63, 0.66]))
    assert entry["difference"] == pytest.approx(0.12) and entry["difference_std"] == pytest.approx(0.02), "seed by seed, not of the means' spreads"
    assert "difference" not in summary["tables"]["main"]["baseline"]["miou"]
    assert claims.cell(entry) == "0.630 ± 0.030 (+0.120 ± 0.020)"
    assert claims.cell(summary["tables"]["extra"]["only"]["note"]) == "fine"


def test_a_claim_must_hold_on_every_seed(methods):
    methods, _ = methods
    first, second = claims.claims(["method=tiny", "seeds=0,1,2"], methods)["statements"]
    assert first["holds"] and (first["seeds"], first["of"]) == (3, 3)
    assert not second["holds"] and (second["seeds"], second["of"]) == (2, 3)


def test_the_headline_quotes_means_spreads_and_verdicts(methods):
    methods, _ = methods
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    summary["minutes_per_seed"] = [2.0, 3.0, 4.0]
    assert claims.headline(methods["tiny"], summary) == (
        "baseline 51.0 ± 1.0, method 63.0 ± 3.0 (+12.0 ± 2.0) miou; seeds 0, 1, 2; 3 min each; 1 of 2 statements hold on every seed")


def test_all_methods_run_one_after_the_other(methods):
    methods, calls = methods
    lines = claims.every_claim(["method=all", "seeds=0,1"], {**methods, "none": types.ModuleType("none")})
    assert calls == [0, 1] and len(lines) == 3 and lines[2].startswith("| tiny | baseline 50.5")


def test_finished_seeds_are_not_rerun(methods, tmp_path):
    methods, calls = methods
    claims.claims(["method=tiny", "seeds=0,1"], methods)
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    assert calls == [0, 1, 2]
    kept = json.loads((tmp_path / "runs/claims/tiny/claim.json").read_text())
    assert kept["seeds"] == [0, 1, 2] and kept["tables"] == json.loads(json.dumps(summary["tables"]))
    assert (tmp_path / "runs/claims/tiny/claim.png").stat().st_size > 1000


def test_seconds_of_killed_starts_count(methods, tmp_path):
    """Half a minute of an interrupted start, and a killed one that began 100 s ago and wrote its last log line 60 s later."""
    out, now = tmp_path / "runs/claims/tiny/seed0", time.time()
    out.mkdir(parents=True)
    (out / "seconds.json").write_text("30")
    (out / "open_since.json").write_text(str(now - 100))
    (out / "log.jsonl").write_text("")
    for path in out.iterdir():
        os.utime(path, (now - 40, now - 40))
    summary = claims.claims(["method=tiny", "seeds=0"], methods[0])
    assert 1.5 <= summary["minutes_per_seed"][0] < 1.6
    assert not (out / "open_since.json").exists() and 90 <= json.loads((out / "seconds.json").read_text()) < 96


def test_other_settings_go_to_another_folder(methods):
    methods, calls = methods
    a = claims.claims(["method=tiny", "seeds=0"], methods)["folder"]
    b = claims.claims(["method=tiny", "seeds=0", "train.lr=0.1"], methods)["folder"]
    assert a != b and calls == [0, 0]


@pytest.mark.parametrize("arguments, words", [(["seeds=a,b"], "comma-separated integers"), (["seed=1"], "use seeds="), (["out=x"], "chooses out=")])
def test_mistakes(methods, arguments, words):
    with pytest.raises(UsageError, match=words):
        claims.claims(["method=tiny", *arguments], methods[0])
