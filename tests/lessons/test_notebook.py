"""Notebooks hold the whole lesson, in order, and run from top to bottom."""
import contextlib
import io
import json
import re

import pytest

from lessons import notebook
from tests.lessons.test_lessons import FENCE, LESSONS


@pytest.mark.parametrize("page", LESSONS, ids=lambda p: p.stem)
def test_a_notebook_holds_the_whole_lesson(page):
    made = json.loads(json.dumps(notebook.notebook(page)))
    assert made["nbformat"] == 4 and made["nbformat_minor"] == 5
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    text, code = page.read_text(), [c for c in made["cells"] if c["cell_type"] == "code"][1:]  # the first goes to the project's folder
    runs = [m[2].strip("\n") for m in FENCE.finditer(text) if m[1] == "python" and not m[2].startswith("# from ")]
    assert [c["source"] for c in code] == runs
    words = "\n".join(c["source"] if c["cell_type"] == "markdown" else
                      f"```python\n{c['source']}\n```\n" + "".join(f"```text\n{o['text']}```" for o in c["outputs"]) for c in made["cells"])
    for line in text.splitlines():
        if line.strip() and not re.search(r"\]\(", line):
            assert line in words, f"{page.name}: the notebook lost the line {line!r}"
    pictures = {name for c in made["cells"] for name in c.get("attachments", {})}
    assert pictures == {m[2].split("/")[-1] for m in notebook.IMAGE.finditer(text)}
    assert not re.search(r"!\[[^\]]*\]\((?!attachment:)", words)


@pytest.mark.parametrize("number", ["00", "01", "10"])
def test_a_notebook_runs_from_top_to_bottom_and_prints_what_it_stores(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert notebook.main([number, "made"]) == 0
    path = tmp_path / capsys.readouterr().out.strip()
    assert notebook.main([number, "made"]) == 1 and "not overwritten" in capsys.readouterr().err
    space: dict = {"__name__": "__main__"}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(cell["source"], space)
            if cell["outputs"]:
                assert out.getvalue().split() == cell["outputs"][0]["text"].split()


def test_an_unknown_lesson_is_one_sentence():
    with pytest.raises(SystemExit, match="lesson '77' has 0 pages in .*; lessons: 00, 01"):
        notebook.main(["77"])
