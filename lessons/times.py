"""The times in lesson 00's table, counted again:

    python -m lessons.times          rewrite the two columns of minutes in lessons/00_start_here.md, and print what changed

Reading: a hundred words of text, ten lines of code or one picture a minute, rounded up to the next five. Computing: the mean minutes of a seed in
lessons/claims/<method>.json, as recorded on the machine that ran the claim. Everything else in the table is left as it stands.
"""
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
ROW = re.compile(r"^\| (?:\[(\d\d)\]\([^)]*\)|(\d\d)) \|[^|]*\|[^|]*\| (\d+) \| ([^|]*) \|$", re.M)


def reading(page: Path) -> int:
    """Minutes to read a lesson's page, exercises left out."""
    text = page.read_text(encoding="utf-8")
    words, lines, pictures = len(re.findall(r"[A-Za-z0-9']+", FENCE.sub("", text))), sum(f.count("\n") + 1 for f in FENCE.findall(text)), text.count("![")
    return 5 * math.ceil((words / 100 + lines / 10 + pictures) / 5)


def claim_minutes(page: Path) -> int | None:
    """Minutes a seed of the claim that the lesson reruns, or None where it has none on record."""
    recorded = HERE / "claims" / f"{dict(mars='marsstyle').get(page.stem[3:], page.stem[3:])}.json"
    return round(statistics.fmean(json.loads(recorded.read_text(encoding="utf-8"))["minutes_per_seed"])) if recorded.exists() else None


def retimed(start: str) -> str:
    """Lesson 00's text with the two columns of minutes counted again."""

    def row(match: re.Match) -> str:
        page, = HERE.glob(f"{match[1] or match[2]}_*.md")
        minutes = claim_minutes(page)
        computing = match[4] if minutes is None else re.sub(r"(; claim .* per seed)?$", f"; claim {minutes} per seed", match[4], count=1)
        return match[0][: match.start(3) - match.start()] + f"{reading(page)} | {computing} |"

    return ROW.sub(row, start)


def rewrite(page: Path, change: Callable[[str], str]) -> bool:
    """Replace a page's text by change(text) and print the lines that differ; says whether any did."""
    before = page.read_text(encoding="utf-8")
    after = change(before)
    for old, new in zip(before.splitlines(), after.splitlines()):
        if old != new:
            print(new)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return after != before


def main() -> int:
    print("lesson 00 rewritten" if rewrite(HERE / "00_start_here.md", retimed) else "lesson 00 is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
