"""Write a lesson as a Jupyter notebook:

    python -m lessons.notebook 05                  05_axial_attention.ipynb in this folder
    python -m lessons.notebook 05 notebooks        ... in the folder notebooks

Text becomes Markdown cells with their figures inside the file, code that runs becomes code cells with the output that the lesson promises,
and excerpts of source files and shell commands stay text. The notebook needs seglite installed (`pip install -e .`) and no network.
"""
import base64
import json
import re
import sys
from pathlib import Path

from seglite import files

HERE = Path(__file__).parent
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\n?", re.M | re.S)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#|attachment:)([^)\s]+)\)")
START = "import os\nfrom pathlib import Path\n\nimport seglite\n\nos.chdir(Path(seglite.__file__).parents[1])  # paths in the lessons start at the project's folder"


def find(number: str) -> Path:
    """The page of a lesson, by its number."""
    found = sorted(HERE.glob(f"{number}_*.md"))
    if len(found) != 1:
        known = ", ".join(sorted(p.name[:2] for p in HERE.glob("[0-9][0-9]_*.md")))
        raise SystemExit(f"lesson {number!r} has {len(found)} pages in {HERE}, expected one; lessons: {known}")
    return found[0]


def markdown_cell(text: str, folder: Path) -> dict:
    """Text with its pictures attached, and links to files of the project as plain names: a notebook may live anywhere."""
    attached = {}

    def attach(match) -> str:
        path = folder / match[2]
        attached[path.name] = {"image/png": base64.b64encode(path.read_bytes()).decode()}
        return f"![{match[1]}](attachment:{path.name})"

    text = LINK.sub(r"\1 (`lessons/\2`)", IMAGE.sub(attach, text)).replace("`lessons/../", "`")
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip("\n"), **({"attachments": attached} if attached else {})}


def code_cell(code: str, promised: str | None) -> dict:
    outputs = [] if promised is None else [{"output_type": "stream", "name": "stdout", "text": promised}]
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "source": code.strip("\n"), "outputs": outputs}


def notebook(page: Path) -> dict:
    """A lesson's page -> the notebook (format 4.5) as nested dicts."""
    text, cells, kept, end = page.read_text(encoding="utf-8"), [], "", 0

    def close():
        nonlocal kept
        if kept.strip():
            cells.append(markdown_cell(kept, page.parent))
        kept = ""

    fences = list(FENCE.finditer(text))
    for i, fence in enumerate(fences):
        if fence.start() < end:
            continue  # the promised output of the cell before
        kept += text[end : fence.start()]
        end = fence.end()
        if fence[1] != "python" or fence[2].startswith("# from "):
            kept += fence[0]
            continue
        close()
        follows = fences[i + 1] if i + 1 < len(fences) and fences[i + 1][1] == "text" else None
        cells.append(code_cell(fence[2], follows[2] if follows else None))
        if follows:
            kept += text[end : follows.start()]
            end = follows.end()
    kept += text[end:]
    close()
    cells.insert(1, code_cell(START, None))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(__doc__.split("\n\nText")[0], file=sys.stderr)
        return 2
    page, folder = find(arguments[0]), Path(arguments[1] if len(arguments) == 2 else ".")
    path = folder / f"{page.stem}.ipynb"
    if path.exists():
        print(f"{path} exists: it may hold your own notes, so it is not overwritten; move it or name another folder", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
