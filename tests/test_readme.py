"""README quotes the recorded claims, letter by letter, and names every paper that exists."""
import json
from pathlib import Path

import pytest

from seglite.claims import headline
from seglite.train import METHODS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = sorted((ROOT / "lessons/claims").glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_the_table_quotes_the_recorded_claim(path):
    summary = json.loads(path.read_text())
    assert summary["method"] == path.stem and len(summary["seeds"]) >= 3
    said = headline(METHODS[path.stem], summary)
    row = next(line for line in README.splitlines() if f"`seglite/papers/{path.stem}.py`" in line and line.startswith("|"))
    assert said in row, f"README's row of {path.stem} must say: {said}"


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_recorded_means_and_verdicts_follow_from_the_recorded_values(path):
    """The file cannot be edited into a better result: its means come from its per-seed values, its statements are tested on them again."""
    summary, paper = json.loads(path.read_text()), METHODS[path.stem]
    for table in summary["tables"].values():
        for metrics in table.values():
            for entry in metrics.values():
                if "mean" in entry:
                    assert entry["mean"] == pytest.approx(sum(entry["values"]) / len(entry["values"]), abs=1e-12)
                    assert len(entry["values"]) == len(summary["seeds"])
    for said in summary["statements"]:
        if said["claim"] in paper.CLAIM["statements"]:
            holds = paper.CLAIM["statements"][said["claim"]]
            verdicts = [bool(holds({t: {r: {m: e["values"][i] for m, e in ms.items()} for r, ms in rows.items()} for t, rows in summary["tables"].items()}))
                        for i in range(len(summary["seeds"]))]
            assert (sum(verdicts), said["of"], said["holds"]) == (said["seeds"], len(verdicts), all(verdicts)), said["claim"]
    assert {s["claim"] for s in summary["statements"]} == set(paper.CLAIM["statements"]), "the claim was recorded with other statements: run it again"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_paper_has_its_row(name):
    assert any(f"`seglite/papers/{name}.py`" in line for line in README.splitlines() if line.startswith("|"))
