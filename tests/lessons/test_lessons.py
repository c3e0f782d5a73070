"""Lessons that cannot rot: excerpts are compared with the source, code blocks are executed, printed results are checked, links must lead somewhere.

In a lesson a ```python block is either an excerpt (first line `# from kernels/patch_mix.py`: the rest must stand in that file, line by line)
or code that runs: all of a lesson's blocks share one namespace, top to bottom. A ```text block after it is what it prints. ```bash blocks
are commands of this project; their keys and module names must exist.
"""
import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest

from seglite import config as settings
from seglite.train import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "lessons").glob("*.md")) + [ROOT / "README.md"]
LESSONS = [p for p in PAGES if re.match(r"\d\d_", p.name)]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in FENCE.finditer(page.read_text())]


def dedented(text: str) -> str:
    """Without the common indentation, so that a method's lines can be quoted."""
    lines = text.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:].rstrip() for line in lines).strip("\n")


def stands_in(excerpt: str, source: str) -> bool:
    wanted, lines = dedented(excerpt).splitlines(), source.splitlines()
    n = len(wanted)
    return any(dedented("\n".join(lines[i : i + n])).splitlines() == wanted for i in range(len(lines) - n + 1) if lines[i].strip() == wanted[0].strip())


@pytest.mark.parametrize("page", LESSONS, ids=lambda p: p.stem)
def test_excerpts_are_current(page):
    for language, text in blocks(page):
        first, _, rest = text.partition("\n")
        match = re.match(r"# from ([\w/]+\.py)", first)
        if language == "python" and match:
            source = (ROOT / match[1]).read_text()
            assert stands_in(rest, source), f"{page.name}: this excerpt is no longer in {match[1]}:\n{rest}"


@pytest.mark.parametrize("page", LESSONS, ids=lambda p: p.stem)
def test_code_runs_and_prints_what_the_lesson_says(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    space: dict = {"__name__": "lesson"}
    pieces = blocks(page)
    for i, (language, text) in enumerate(pieces):
        if language != "python" or text.startswith("# from "):
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, f"{page.name}, block {i}", "exec"), space)
        if i + 1 < len(pieces) and pieces[i + 1][0] == "text":
            said, promised = out.getvalue().strip().splitlines(), pieces[i + 1][1].strip().splitlines()
            assert [s.rstrip() for s in said] == [p.rstrip() for p in promised], f"{page.name}, block {i} prints\n" + "\n".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not re.match(r"https?:|mailto:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}, which does not exist"
    for name in re.findall(r"`((?:seglite|kernels|lessons|tests|data_scripts)/[\w/]+\.(?:py|md|png))`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which does not exist"


def commands(page: Path) -> list[str]:
    lines = "\n".join(text for language, text in blocks(page) if language in ("bash", "sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if "python -m " in line or "pytest" in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_exist(page):
    for line in commands(page):
        for command in line.split("&&"):
            words = shlex.split(command)
            modules = [words[i + 1] for i, w in enumerate(words) if w == "-m"]
            for module in modules:
                assert module == "torch.distributed.run" or importlib.util.find_spec(module), f"{page.name}: no module {module} in: {command}"
            if "seglite.train" in words or "seglite.speed" in words:
                name = words.index("seglite.train" if "seglite.train" in words else "seglite.speed")
                arguments = [w.replace("$SEGLITE_DATA", "data") for w in words[name + 1 :]]
                if arguments[:1] in (["overhead"], ["profile"]):
                    arguments = arguments[1:]
                if "help" not in arguments:
                    settings.parse(arguments, METHODS)


def test_the_course_is_complete():
    """Lesson 00 lists every lesson under its title; numbers have no gaps; each lesson from 01 on has exercises, a check and solutions."""
    start = (ROOT / "lessons/00_start_here.md").read_text()
    assert [p.name[:2] for p in LESSONS] == [f"{i:02d}" for i in range(len(LESSONS))]
    for page in LESSONS[1:]:
        number, title = re.match(r"# (\d\d) · (.+)", page.read_text()).groups()
        assert number == page.name[:2] and f"[{number}]({page.name}) | {title} |" in start, f"lesson 00 does not list {page.name}"
        for folder in ("exercises", "exercises/checks", "exercises/solutions"):
            assert len(list((ROOT / "lessons" / folder).glob(f"{number}_*.py"))) == 1, f"lesson {number} has no file in {folder}"


def test_an_excerpt_that_drifted_is_noticed():
    source = "def f(x):\n    y = x + 1\n    return y\n"
    assert stands_in("    y = x + 1\n    return y\n", source) and stands_in("y = x + 1\nreturn y", source)
    assert not stands_in("y = x + 2\nreturn y", source) and not stands_in("return y\ny = x + 1", source)


def test_tests_that_a_page_names_exist():
    """`tests/....py::test_...` as in lesson 16's tables of faults."""
    named = [(page.name, *match) for page in PAGES for match in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())]
    assert len(named) > 30, "lesson 16 names a test for each fault"
    missing = [entry for entry in named if not re.search(rf"^def {entry[2]}\(", (ROOT / entry[1]).read_text(), re.M)]
    assert not missing, f"no such tests: {missing}"


def test_the_times_in_lesson_00_are_current():
    """`python -m lessons.times` would change nothing: reading minutes follow the pages, computing minutes the recorded claims."""
    from lessons import times

    start = (ROOT / "lessons/00_start_here.md").read_text()
    assert len(times.ROW.findall(start)) == len(LESSONS)
    assert times.retimed(start).splitlines() == start.splitlines(), "run python -m lessons.times"
    assert times.retimed(start.replace("| 30 |", "| 31 |")) == start and times.reading(ROOT / "lessons/01_pixels_labels_and_iou.md") == 30
