"""The measured cells of README's tables, written again:

    python -m lessons.readme         rewrite them from lessons/claims/*.json, and print the lines that changed

Two tables hold numbers of the recorded claims. In the short one, a paper's row has its means, one per line, and how many of its statements hold;
in the long one it has the claim's headline and the numbers of `DETAILS`. Everything else in README is words, left as they stand: read the verdict
again when its numbers have changed.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from seglite.claims import headline
from seglite.train import METHODS

ROOT = Path(__file__).resolve().parents[1]
RECORDED = {path.stem: path for path in sorted((ROOT / "lessons/claims").glob("*.json"))}

OWN = {
    "deeplab": "trained with that stride taken out", "p2at": "P2AT", "mgd": "MGD", "cwbass": "CW-BASS, figure", "bas": "BAS", "marsstyle": "+ complement",
    "zeroseg": "+ both", "mixreorg": "MixReorg", "barm": "BARM"}
"""method -> the row that is the paper's own, printed bold"""

SHORT = {
    "trained with that stride taken out": "atrous instead", "CW-BASS, figure": "CW-BASS", "mask, cross-entropy (L_bas off)": "masks by cross-entropy",
    "+ both": "ZeroSeg", "GroupViT-style, equal compute": "GroupViT-style", "joint, all classes at once": "joint training"}
"""row of a claim -> what the short table calls it"""


def mean(tables: dict, table: str, row: str, metric: str = "mIoU") -> float:
    """Mean over the seeds. `table` is the beginning of its title."""
    title, = (t for t in tables if t.startswith(table))
    return tables[title][row][metric]["mean"]


def best(tables: dict, table: str, rows: list[str]) -> float:
    return max(mean(tables, table, row) for row in rows)


def cwbass_against_plain(tables: dict) -> str:
    own, plain = (tables["Student, validation images"][row]["mIoU"]["values"] for row in ("CW-BASS, figure", "plain pseudo labels"))
    return "CW-BASS against plain pseudo labels, seed by seed: " + ", ".join(f"{100 * (a - b):+.1f}" for a, b in zip(own, plain))


DETAILS: dict[str, Callable[[dict], str]] = {
    "deeplab": lambda t: f"four rates of ASPP against the best single one {mean(t, 'C.', '1 2 4 6') - best(t, 'C.', [f'{r} {r} {r} {r}' for r in (2, 3, 4, 6)]):+.1f}, "
                         f"CRF {mean(t, 'D.', 'scaled to the picture') - mean(t, 'D.', 'before'):+.1f}",
    "p2at": lambda t: f"the context block by itself {mean(t, 'A.', 'squeeze-axial x 2 (P2AT)'):.1f}, bins {mean(t, 'A.', 'pooling in bins (PSPNet)'):.1f}; at full width "
                      f"P2AT-S is {mean(t, 'E.', 'DeepLabV3-50, stride 8', 'ms') / mean(t, 'E.', 'P2AT-S', 'ms'):.1f}× as fast as DeepLabV3-50, "
                      f"{mean(t, 'E.', 'PSPNet-50, stride 8', 'ms') / mean(t, 'E.', 'P2AT-S', 'ms'):.1f}× as PSPNet-50",
    "mgd": lambda t: f"image and region level on top of the pixel level {mean(t, 'C.', 'L_P + L_I + L_R') - mean(t, 'C.', 'L_P'):+.1f}, the wide teacher on top of "
                     f"the deep one {mean(t, 'B.', 'deep + wide, both') - mean(t, 'B.', 'deep, both'):+.1f}",
    "cwbass": cwbass_against_plain,
    "bas": lambda t: f"GT-known CAM {100 * mean(t, 'Local', 'CAM', 'GT-known'):.1f}, cross-entropy "
                     f"{100 * mean(t, 'Local', 'mask, cross-entropy (L_bas off)', 'GT-known'):.1f}, BAS {100 * mean(t, 'Local', 'BAS', 'GT-known'):.1f}; share of the object "
                     f"covered at half height: cross-entropy {100 * mean(t, 'Local', 'mask, cross-entropy (L_bas off)', 'recall at half'):.0f} %, "
                     f"BAS {100 * mean(t, 'Local', 'BAS', 'recall at half'):.0f} %",
    "marsstyle": lambda t: f"closes {100 * mean(t, 'Segmenter', '+ complement', 'gap closed'):.0f} % of the gap between biased labels and full supervision",
    "zeroseg": lambda t: f"what matching does to the grounds {100 * mean(t, 'Losses', 'whole image only', 'grounds'):.1f} → {100 * mean(t, 'Losses', '+ matching', 'grounds'):.1f}, "
                         f"to the things {100 * mean(t, 'Losses', 'whole image only', 'things'):.1f} → {100 * mean(t, 'Losses', '+ matching', 'things'):.1f}",
    "mixreorg": lambda t: f"things {100 * mean(t, 'Zero', 'GroupViT-style, equal compute', 'things'):.1f} → {100 * mean(t, 'Zero', 'MixReorg', 'things'):.1f}, "
                          f"grounds {100 * mean(t, 'Zero', 'GroupViT-style, equal compute', 'grounds'):.1f} → {100 * mean(t, 'Zero', 'MixReorg', 'grounds'):.1f}",
    "barm": lambda t: f"BARM against MiB: old classes {mean(t, 'Methods', 'BARM', 'old') - mean(t, 'Methods', 'MiB', 'old'):+.1f}, "
                      f"new {mean(t, 'Methods', 'BARM', 'new') - mean(t, 'Methods', 'MiB', 'new'):+.1f}",
}
"""method -> what its row of the long table says besides the headline"""


def means(method: str, summary: dict) -> str:
    """The short table's numbers: "59.6 biased labels<br>**78.6 MARS**" with spaces that do not break, shares in percent, the metric where it is not mIoU."""
    table, metric, rows = METHODS[method].CLAIM["headline"]
    entries = {row: summary["tables"][table][row][metric] for row in rows}
    scale = 100 if all(abs(v) <= 1 for entry in entries.values() for v in entry["values"]) else 1
    lines = []
    for row, entry in entries.items():
        name = "MARS" if method == "marsstyle" and row == OWN[method] else SHORT.get(row, row)
        text = f"{scale * entry['mean']:.1f} {name}".replace(" ", "\u00a0")  # one row, one line
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
        lines[i] = f"| {method} | {headline(METHODS[method], summary)}; {DETAILS[method](summary['tables'])} ([tables](lessons/claims/{method}.json)) |"
    return "\n".join(lines) + "\n"


def main() -> int:
    page = ROOT / "README.md"
    before = page.read_text(encoding="utf-8")
    after = rewritten(before)
    for old, new in zip(before.splitlines(), after.splitlines()):
        if old != new:
            print(new)
    if after != before:
        page.write_text(after, encoding="utf-8")
    print("README is up to date" if after == before else f"{page} rewritten: read the verdicts of these papers again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
