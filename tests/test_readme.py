"""README quotes the recorded claims, letter by letter, names every paper that exists, and hides nothing that does not hold."""
import json
import re
import shutil
from pathlib import Path

import pytest

from lessons import readme, times
from seglite import files
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


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A folder with finished claims, equal to the recorded ones, and copies of everything that recording writes to."""
    for path in RECORDED:
        claim(tmp_path, path.stem, lambda summary: None)
    shutil.copytree(ROOT / "lessons", tmp_path / "copy/lessons", ignore=shutil.ignore_patterns("figures", "exercises", "__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path / "copy")
    monkeypatch.setattr(readme, "ROOT", tmp_path / "copy")
    monkeypatch.setattr(readme, "RECORDED", {path.stem: tmp_path / "copy/lessons/claims" / path.name for path in RECORDED})
    monkeypatch.setattr(times, "HERE", tmp_path / "copy/lessons")
    return tmp_path


def claim(folder: Path, method: str, change, name: str = "") -> Path:
    """The recorded claim of a method, changed, as a finished one in `folder`."""
    summary, path = json.loads((ROOT / f"lessons/claims/{method}.json").read_text()), folder / "new" / (name or method) / "claim.json"
    change(summary)
    files.write_json(path, summary)
    return path


def say(capsys, pages, *arguments) -> tuple[int, str, str]:
    code = readme.main([*arguments] or [f"record={pages / 'new'}"])
    return code, *capsys.readouterr()


def without_ablations(summary, difference=0.0):
    """What `claims method=barm seeds=0,1` would give."""
    summary["tables"].pop("Ablations of BARM, percent")
    summary["seeds"].pop()
    for rows in summary["tables"].values():
        for entry in (entry for row in rows.values() for entry in row.values()):
            entry["values"] = [v + difference if isinstance(v, float) else v for v in entry["values"][:2]]


def test_recording_rewrites_every_page(pages, capsys):
    """A claim of MGD with other numbers and minutes ends in the record, both tables and lesson 00; the rest stays as it is."""
    def better(summary):
        summary["tables"]["A. Students of equal budget"]["MGD"]["mIoU"]["mean"] = 12.34
        summary["minutes_per_seed"] = [33.0] * 3

    new = claim(pages, "mgd", better)
    code, said, complaint = say(capsys, pages)
    assert (code, complaint) == (0, "") and said.count(": recorded ") == len(RECORDED)
    assert "README rewritten" in said and "lesson 00 rewritten" in said
    assert (pages / "copy/lessons/claims/mgd.json").read_bytes() == new.read_bytes()
    page, start = ((pages / "copy" / name).read_text() for name in ("README.md", "lessons/00_start_here.md"))
    assert page.count("12.3") == README.count("12.3") + 2 and "; 33 min each;" in page and "claim 33 per seed" in start
    assert all(path.read_bytes() == (pages / "copy/lessons/claims" / path.name).read_bytes() for path in RECORDED if path.stem != "mgd")


def test_a_poorer_claim_does_not_replace_the_recorded_one(pages, capsys):
    new, kept = claim(pages, "barm", without_ablations), pages / "copy/lessons/claims/barm.json"
    before = kept.read_bytes()
    code, said, complaint = say(capsys, pages)
    line, = (line for line in said.splitlines() if line.startswith("barm: "))
    assert (code, complaint) == (0, "") and line.startswith("barm: recorded seed 2, ") and " of 'Ablations of BARM, percent'" in line
    assert line.endswith(f" more missing in {new}: kept the recorded file") and kept.read_bytes() == before
    claim(pages, "barm", lambda summary: without_ablations(summary, 0.5))
    code, said, complaint = say(capsys, pages)
    line, = (line for line in said.splitlines() if line.startswith("barm: "))
    assert code == 1 and "not equal either" in line and line.endswith(json.loads(before)["command"]) and kept.read_bytes() == before
    assert complaint.startswith("seglite: the new claim of barm was refused") and complaint.count("\n") == 1
    full = claim(pages, "barm", lambda summary: summary.update(date="2030-01-01"), "barm-ablations=true")
    assert say(capsys, pages)[0] == 0 and kept.read_bytes() == full.read_bytes(), "the folder of the recorded command comes first"


def test_an_older_claim_does_not_replace_the_recorded_one(pages, capsys):
    claim(pages, "mgd", lambda summary: summary.update(date="2020-01-01"))
    assert "is of 2020-01-01, the record of " in say(capsys, pages)[1]
    assert (pages / "copy/lessons/claims/mgd.json").read_bytes() == (ROOT / "lessons/claims/mgd.json").read_bytes()


def test_nothing_to_record_and_other_words_are_sentences(pages, capsys):
    (pages / "new/mgd/claim.json").unlink()
    assert "mgd: no finished claim in " in say(capsys, pages)[1]
    code, _, complaint = say(capsys, pages, f"record={pages / 'nowhere'}")
    assert code == 1 and complaint.startswith(f"seglite: {pages / 'nowhere'} holds no finished claim of a recorded method; ")
    for words in (["record="], ["records=x"], ["record=x", "y"]):
        code, _, complaint = say(capsys, pages, *words)
        assert code == 2 and "takes nothing, or record=FOLDER with" in complaint and complaint.endswith(f"; got {' '.join(words)}\n")


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


SINGLE = {  # record of a single run -> what README's table of photographs prints of it
    "camvid-deeplab": ("miou",), "camvid-p2at": ("miou", "pixel_accuracy"), "camvid-mgd": ("miou",), "camvid-few-labels": ("miou",),
    "camvid-long-p2at-s": ("miou",), "camvid-short-p2at-s": ("miou",), "camvid-short-deeplabv3": ("miou",), "camvid-cwbass": ("miou",), "camvid-barm": ("old", "new"), "voc-marsstyle": ("miou",),
    "flickr-mixreorg": ("patches sorted", "image to text R@10", "text to image R@10"),
    "flickr-zeroseg": ("image to text R@10", "text to image R@10"),
    "voc-bas": tuple(("seeds", row, "mIoU") for row in ("CAM", "BAS masks", "CAM + BAS", "CAM + CRF", "BAS masks + CRF", "CAM + BAS + CRF")),
    "voc-presets": (("scores", "miou"), ("deeplab-layer", "miou")),
    "voc-crf": tuple(("all", row, *key) for row in ("scores", "deeplab-voc") for key in (("miou",), ("trimap_miou", "1")))}


def test_readme_prints_what_single_runs_recorded():
    assert set(SINGLE) == {path.stem for path in (ROOT / "lessons/records").glob("*.json")}
    for name, places in SINGLE.items():
        record = json.loads((ROOT / f"lessons/records/{name}.json").read_text())
        assert record["command"].startswith("python -m seglite.") and not re.search("[= ]/", record["command"]), "a command that runs anywhere"
        row, = (line for line in README.splitlines() if f"(lessons/records/{name}.json)" in line)
        for place in places:
            value = record.get("result", record)
            for key in (place,) if isinstance(place, str) else place:
                value = value[key]
            assert re.search(rf"(?<![\d.]){100 * value:.1f}(?!\d)", row), (name, place, value)
