"""The measured cells of README's tables, written again:

    python -m lessons.readme                        rewrite them from lessons/claims/*.json, and print the lines that changed
    python -m lessons.readme record=runs/claims     first copy every finished claim to lessons/claims; afterwards lesson 00's minutes too

A claim that is older than the recorded one, or lacks a seed, row or metric of it, is not copied: the recorded file names the command that gives all
of them. Where the loss is meant, copy the file by hand.

Two tables hold numbers of the recorded claims. In the short one, a paper's row has its means, one per line, and how many of its statements hold;
in the long one it has the claim's headline and the numbers of `DETAILS`. Everything else in README is words, left as they stand: read the verdict
again when its numbers have changed.
"""
from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from lessons import times
from lessons.times import rewrite
from seglite import files
from seglite.claims import headline, quoted, understand
from seglite.config import UsageError
from seglite.train import METHODS, guarded

ROOT = Path(__file__).resolve().parents[1]
RECORDED = {path.stem: path for path in sorted((ROOT / "lessons/claims").glob("*.json")) if path.stem in METHODS}  # not the chain of lesson 09

OWN = {
    "deeplab": "trained with that stride taken out", "p2at": "P2AT", "mgd": "MGD", "cwbass": "CW-BASS, figure", "bas": "BAS",
    "marsstyle": "+ complement", "zeroseg": "+ both", "mixreorg": "MixReorg", "barm": "BARM"}
"""method -> the row that is the paper's own, printed bold"""

SHORT = {
    "trained with that stride taken out": "atrous instead", "CW-BASS, figure": "CW-BASS", "mask, cross-entropy (L_bas off)": "masks by cross-entropy",
    "+ complement": "MARS", "+ both": "ZeroSeg", "GroupViT-style, equal compute": "GroupViT-style", "joint, all classes at once": "joint training"}
"""row of a claim -> what the short table calls it"""


def reader(tables: dict, beginning: str, scale: float = 1) -> Callable[[str, str], float]:
    """A function (row, metric) -> mean over the seeds times `scale`, of the table whose title begins so."""
    title, = (t for t in tables if t.startswith(beginning))
    return lambda row, metric="mIoU": scale * tables[title][row][metric]["mean"]


def deeplab(tables: dict) -> str:
    rates, crf = reader(tables, "C."), reader(tables, "D.")
    mix = rates("1 2 4 6") - max(rates(f"{r} {r} {r} {r}") for r in (2, 3, 4, 6))
    return f"four rates of ASPP against the best single one {mix:+.1f}, CRF {crf('scaled to the picture') - crf('before'):+.1f}"


def p2at(tables: dict) -> str:
    alone, full = reader(tables, "A."), reader(tables, "E.")
    lab, psp = (full(row, "ms") / full("P2AT-S", "ms") for row in ("DeepLabV3-50, stride 8", "PSPNet-50, stride 8"))
    return (f"the context block by itself {alone('squeeze-axial x 2 (P2AT)'):.1f}, bins {alone('pooling in bins (PSPNet)'):.1f}; "
            f"at full width P2AT-S is {lab:.1f}× as fast as DeepLabV3-50, {psp:.1f}× as PSPNet-50")


def mgd(tables: dict) -> str:
    whose, losses = reader(tables, "B."), reader(tables, "C.")
    return (f"image and region level on top of the pixel level {losses('L_P + L_I + L_R') - losses('L_P'):+.1f}, "
            f"the wide teacher on top of the deep one {whose('deep + wide, both') - whose('deep, both'):+.1f}")


def cwbass(tables: dict) -> str:
    own, plain = (tables["Student, validation images"][row]["mIoU"]["values"] for row in ("CW-BASS, figure", "plain pseudo labels"))
    return "CW-BASS against plain pseudo labels, seed by seed: " + ", ".join(f"{100 * (a - b):+.1f}" for a, b in zip(own, plain))


def bas(tables: dict) -> str:
    score, masks = reader(tables, "Localisation", 100), "mask, cross-entropy (L_bas off)"
    return (f"GT-known CAM {score('CAM', 'GT-known'):.1f}, cross-entropy {score(masks, 'GT-known'):.1f}, BAS {score('BAS', 'GT-known'):.1f}; "
            f"share of the object covered at half height: cross-entropy {score(masks, 'recall at half'):.0f} %, "
            f"BAS {score('BAS', 'recall at half'):.0f} %")


def marsstyle(tables: dict) -> str:
    closed = reader(tables, "Segmenter", 100)("+ complement", "gap closed")
    return f"closes {closed:.0f} % of the gap between biased labels and full supervision"


def zeroseg(tables: dict) -> str:
    score, base, own = reader(tables, "Losses", 100), "whole image only", "+ matching"
    return (f"the teacher's words painted on 3 x 3 cells, without a student, {reader(tables, 'The teacher', 100)('3 x 3', 'mIoU'):.1f}; what matching does to the grounds {score(base, 'grounds'):.1f} → {score(own, 'grounds'):.1f}, "
            f"to the things {score(base, 'things'):.1f} → {score(own, 'things'):.1f}")


def mixreorg(tables: dict) -> str:
    score, base, own = reader(tables, "Zero-shot", 100), "GroupViT-style, equal compute", "MixReorg"
    return (f"things {score(base, 'things'):.1f} → {score(own, 'things'):.1f}, "
            f"grounds {score(base, 'grounds'):.1f} → {score(own, 'grounds'):.1f}")


def barm(tables: dict) -> str:
    score = reader(tables, "Methods")
    return "BARM against MiB: " + ", ".join(f"{which} classes {score('BARM', which) - score('MiB', which):+.1f}" for which in ("old", "new"))


DETAILS: dict[str, Callable[[dict], str]] = {
    "deeplab": deeplab, "p2at": p2at, "mgd": mgd, "cwbass": cwbass, "bas": bas, "marsstyle": marsstyle,
    "zeroseg": zeroseg, "mixreorg": mixreorg, "barm": barm}
"""method -> what its row of the long table says besides the headline"""


def means(method: str, summary: dict) -> str:
    """The short table's numbers: "59.6 biased labels<br>**78.6 MARS**", in percent; the metric is named where it is not mIoU."""
    metric, entries, scale = quoted(METHODS[method], summary)
    lines = []
    for row, entry in entries.items():
        text = f"{scale * entry['mean']:.1f} {SHORT.get(row, row)}".replace(" ", "\u00a0")  # one row, one line
        lines.append(f"**{text}**" if row == OWN[method] else text)
    return "<br>".join(lines) + ("\u00a0(PxAP)" if metric == "PxAP" else "")


def held(summary: dict) -> str:
    """"5 of 6": statements that hold on every seed."""
    return f"{sum(s['holds'] for s in summary['statements'])} of {len(summary['statements'])}"


def rewritten(readme: str) -> str:
    """README with the measured cells of every recorded claim as the records have them."""
    lines = readme.splitlines()
    for method, path in RECORDED.items():
        summary = json.loads(path.read_text(encoding="utf-8"))
        i, = (i for i, line in enumerate(lines) if line.startswith("| **") and f"(seglite/papers/{method}.py)" in line)
        cells = lines[i].split(" | ")  # paper, claim, miniature, "5 of 6: verdict", file and lesson
        cells[2], cells[3] = means(method, summary), f"{held(summary)}: {cells[3].split(': ', 1)[1]}"
        lines[i] = " | ".join(cells)
        i, = (i for i, line in enumerate(lines) if line.startswith(f"| {method} |"))
        said = f"{headline(METHODS[method], summary)}; {DETAILS[method](summary['tables'])}"
        lines[i] = f"| {method} | {said} ([tables](lessons/claims/{method}.json)) |"
    return "\n".join(lines) + "\n"


def finished(method: str, old: dict, folder: Path) -> Path | None:
    """The finished claim of a method: that of the recorded command's settings, else of none."""
    names = [method]
    with contextlib.suppress(UsageError):  # keys may have other names by now
        names.insert(0, understand(shlex.split(old["command"])[3:], METHODS).folder.name)  # after python -m seglite.claims
    return next((path for name in names if (path := folder / name / "claim.json").exists()), None)


def single(summary: dict) -> dict[tuple[str, str, str, int], object]:
    """(table, row, metric, seed) -> value."""
    return {(title, row, metric, seed): value for title, rows in summary["tables"].items() for row, metrics in rows.items()
            for metric, entry in metrics.items() for seed, value in zip(summary["seeds"], entry["values"])}


def places(keys: set, seeds: list[int]) -> str:
    """Which seeds (those not among `seeds`), rows and metrics the keys of `single` belong to, the first three of them."""
    gone = sorted({seed for *_, seed in keys} - {*seeds})
    said = [f"seed {seed}" for seed in gone] + sorted({f"{row} [{metric}] of {title!r}" for title, row, metric, seed in keys if seed in seeds})
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def record(folder: Path) -> list[str]:
    """Copy the finished claims of `folder` over the recorded ones. Returns the methods whose claim lacks something on record and differs in the rest.

    Raises FileProblem when no claim in `folder` is finished.
    """
    refused, found = [], 0
    for method, kept in RECORDED.items():
        old = json.loads(kept.read_text(encoding="utf-8"))
        if (path := finished(method, old, folder)) is None:
            print(f"{method}: no finished claim in {folder}: kept the recorded file")
            continue
        found, new = found + 1, json.loads(path.read_text(encoding="utf-8"))
        if new["date"] < old["date"]:
            print(f"{method}: {path} is of {new['date']}, the record of {old['date']}: kept the recorded file")
            continue
        mine, theirs = single(old), single(new)
        lost, other = mine.keys() - theirs.keys(), {key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
        if not lost:
            files.write_bytes(kept, path.read_bytes())
            print(f"{method}: recorded {path}")
            continue
        said = f"{method}: recorded {places(lost, new['seeds'])} missing in {path}: kept the recorded file"
        if other:
            refused.append(method)
            said += f"; the rest is not equal either ({places(other, new['seeds'])}), so record what this gives: {old['command']}"
        print(said)
    if not found:
        raise files.FileProblem(f"{folder} holds no finished claim of a recorded method; "
                                "`python -m seglite.claims method=all` makes them in runs/claims")
    return refused


def main(arguments: list[str]) -> int:
    def work():
        key, _, folder = (arguments or ["="])[0].partition("=")
        if len(arguments) > 1 or arguments and (key != "record" or not folder):
            raise UsageError(f"lessons.readme takes nothing, or record=FOLDER with the finished claims (runs/claims); got {' '.join(arguments)}")
        refused = record(Path(folder)) if arguments else []
        changed = rewrite(ROOT / "README.md", rewritten)
        print("README rewritten: read the verdicts of these papers again" if changed else "README is up to date")
        if arguments:
            times.main()
        if refused:
            raise RuntimeError(f"the new claim of {', '.join(refused)} was refused: it has less than the recorded one, and other numbers")

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
