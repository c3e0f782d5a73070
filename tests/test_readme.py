"""README quotes the recorded claims, letter by letter, names every paper that exists, and hides nothing that does not hold."""
import json
import re
from pathlib import Path

import pytest

from lessons import readme
from seglite.claims import headline
from seglite.train import METHODS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = sorted(readme.RECORDED.values())
COUNTED = "no one two three four five six seven eight nine".split()


def short_row(name: str) -> list[str]:
    """Cells of a paper's row in the short table: paper, idea, miniature, verdict, file and lesson."""
    row, = (line for line in README.splitlines() if line.startswith("| **") and f"(seglite/papers/{name}.py)" in line)
    cells = row.removeprefix("| ").removesuffix(" |").split(" | ")
    assert len(cells) == 5
    return cells


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_the_long_table_quotes_the_recorded_claim(path):
    summary = json.loads(path.read_text())
    assert summary["method"] == path.stem and len(summary["seeds"]) >= 3
    said = headline(METHODS[path.stem], summary)
    row, = (line for line in README.splitlines() if line.startswith(f"| {path.stem} |"))
    assert said in row, f"README's row of {path.stem} must say: {said}"


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_the_short_table_has_the_recorded_means_and_names_what_fails(path):
    """Every number of the row is a mean of the headline's rows or the count of statements; who misses a statement says so in bold."""
    summary = json.loads(path.read_text())
    _, _, miniature, verdict, _ = short_row(path.stem)
    table, metric, rows = METHODS[path.stem].CLAIM["headline"]
    recorded = [summary["tables"][table][row][metric]["mean"] for row in rows]
    scale = 100 if max(map(abs, recorded)) <= 1 else 1
    assert [re.match(r"(?:\*\*)?(-?\d+\.\d)", line)[1] for line in miniature.split("<br>")] == [f"{scale * value:.1f}" for value in recorded]
    held, said = sum(s["holds"] for s in summary["statements"]), len(summary["statements"])
    assert verdict.startswith(f"{held} of {said}: ")
    assert not re.search(r"\d", verdict.split(": ", 1)[1]), "numbers beside the count are not compared with the record"
    assert (held == said) != ("**" in verdict), "a claim that misses a statement says in bold what does not hold, and only such a claim"


def test_every_measured_cell_is_the_records():
    """`python -m lessons.readme` would change nothing; a number typed by hand would be changed back."""
    assert readme.rewritten(README).splitlines() == README.splitlines(), "run python -m lessons.readme"
    lines = README.splitlines()
    for i, line in enumerate(lines):
        if any(f"(lessons/claims/{path.name})" in line or f"(seglite/papers/{path.stem}.py)" in line for path in RECORDED) and line.startswith("|"):
            digits = [m.start() for m in re.finditer(r"\d", line) if line.startswith("| **") is (line[: m.start()].count(" | ") in (2, 3))]
            digits = digits if line.startswith("| **") else [d for d in digits if " | " in line[:d]]
            for at in digits[:: max(1, len(digits) // 4)]:
                wrong = line[:at] + str((int(line[at]) + 1) % 10) + line[at + 1 :]
                assert readme.rewritten("\n".join([*lines[:i], wrong, *lines[i + 1 :]])) == README, f"a wrong digit stays in {wrong[:at + 1]}"


def test_the_number_of_papers_with_something_that_does_not_hold():
    missing = sum(not all(s["holds"] for s in json.loads(path.read_text())["statements"]) for path in RECORDED)
    assert f"that is something in {COUNTED[missing]} papers of {COUNTED[len(RECORDED)]}" in README


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
    assert re.search(r"\[lesson\s(\d\d)\]\(lessons/\1_\w+\.md\)$", short_row(name)[-1])
