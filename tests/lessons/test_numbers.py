"""Every "mean ± spread" that a lesson prints of a claim, and every other number of a table row that holds one, is in the recorded claim."""
import json
import re
from pathlib import Path

import pytest

from lessons import chain
from lessons.readme import RECORDED
from seglite.claims import summarise

LESSONS = Path(__file__).resolve().parents[2] / "lessons"
RECORDS = {
    "03_deeplab": ["deeplab"], "06_p2at": ["p2at"], "07_mgd": ["mgd"], "08_cwbass": ["cwbass"], "09_bas": ["bas", "chain"], "10_mars": ["marsstyle"],
    "12_zeroseg": ["zeroseg"], "14_mixreorg": ["mixreorg"], "15_barm": ["barm"]}
"""page -> the records that its numbers come from; a table of anything else with spreads would have to be named here"""
NUMBER = r"[+−-]?\d+(?:\.\d+)?"
PAIR = re.compile(rf"({NUMBER}) ± (\d+(?:\.\d+)?)")
ALONE = re.compile(rf"(?<![\w.]){NUMBER}")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def entries(page: str) -> list[dict]:
    """What the page's records hold of every table, row and metric."""
    summaries = [json.loads((LESSONS / f"claims/{name}.json").read_text(encoding="utf-8")) for name in RECORDS[page]]
    return [entry for summary in summaries for rows in summary["tables"].values() for row in rows.values() for entry in row.values()]


def printed(number: str, value: float, scales=(1, 100)) -> bool:
    """Whether `number` is what a page prints for the value, as it is or as percent."""
    number = number.replace("−", "-")
    return any(f"{scale * value:{'+' * (number[0] == '+')}.{len(number.partition('.')[2])}f}" == number for scale in scales)


def recorded_pair(mean: str, spread: str, found: list[dict]) -> bool:
    return any(printed(mean, entry[m], (scale,)) and printed(spread, entry[s], (scale,))
               for entry in found for m, s in (("mean", "std"), ("difference", "difference_std")) if m in entry for scale in (1, 100))


def wrong(text: str, found: list[dict]) -> list[str]:
    """The numbers of a page that are not in the record, each with its line."""
    missing = []
    for line in FENCE.sub("", text).splitlines():
        missing += [f"{mean} ± {spread}: {line}" for mean, spread in PAIR.findall(line) if not recorded_pair(mean, spread, found)]
        if line.startswith("|") and PAIR.search(line):  # k: thousands of parameters
            values = [v for entry in found for v in [*entry["values"], entry.get("mean")] if isinstance(v, (int, float))]
            alone = [n for cell in PAIR.sub("", line).split("|")[2:] for n in ALONE.findall(cell)]
            missing += [f"{number}: {line}" for number in alone if not any(printed(number, v, (1, 100, 1e-3)) for v in values)]
    return missing


@pytest.mark.parametrize("page", RECORDS)
def test_the_numbers_of_a_lesson_are_the_recorded_ones(page):
    assert not (missing := wrong((LESSONS / f"{page}.md").read_text(encoding="utf-8"), entries(page))), "not in the record:\n" + "\n".join(missing)


def test_every_table_with_spreads_belongs_to_a_record():
    pages = {page.stem for page in LESSONS.glob("*.md") if re.search(r"^\|.* ± ", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)}
    assert pages == set(RECORDS)
    assert {name for names in RECORDS.values() for name in names} == {*RECORDED, "chain"} == {path.stem for path in LESSONS.glob("claims/*.json")}


@pytest.mark.parametrize("page", RECORDS)
def test_a_wrong_last_digit_is_seen(page):
    """By chance a wrong number can be another row's right one; nine of ten are not."""
    text, found, tried, seen = (LESSONS / f"{page}.md").read_text(encoding="utf-8"), entries(page), 0, 0
    for mean, spread in PAIR.findall(FENCE.sub("", text)):
        for changed in ((mean[:-1] + str((int(mean[-1]) + 1) % 10), spread), (mean, spread[:-1] + str((int(spread[-1]) + 1) % 10))):
            tried, seen = tried + 1, seen + (not recorded_pair(*changed, found))
    assert tried >= 10 and seen > 0.9 * tried, (seen, tried)


def test_the_chain_is_summarised_from_its_seeds():
    summary = json.loads((LESSONS / "claims/chain.json").read_text(encoding="utf-8"))
    seeds = [{"tables": {title: {row: {metric: entry["values"][i] for metric, entry in metrics.items()} for row, metrics in rows.items()}
                         for title, rows in summary["tables"].items()}} for i in range(len(summary["seeds"]))]
    again = summarise(chain, seeds)
    assert again["statements"] == summary["statements"]
    for title, rows in again["tables"].items():
        for row, metrics in rows.items():
            for metric, entry in metrics.items():
                kept = summary["tables"][title][row][metric]
                assert entry.pop("values") == kept.pop("values") and kept == pytest.approx(entry, abs=1e-12), (title, row, metric)
