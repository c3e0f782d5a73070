"""What `python -m seglite.evaluate` prints and writes: tables on the terminal, and a folder of files.

    evaluation.json   every number by row, the command's settings
    classes.csv       IoU per class, one column per row
    trimap.png        mIoU against the width of the band around true boundaries
    samples.png       photograph, truth, every row's labels, errors of the last row
"""
from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from seglite import files
from seglite.charts import line_chart
from seglite.metrics import Trimap
from seglite.pictures import legend, panels, png_bytes, stack

CONVENTIONS = {"occurring": "classes in truth or prediction (the mIoU above)", "in_truth": "classes in the truth",
               "absent_is_0": "all classes, an absent one counts 0", "absent_is_1": "all classes, an absent one counts 1"}


def show(results: dict, say: Callable[[str], None] = print) -> None:
    """The tables, in percent."""
    width = max(len(name) for name in results)
    bands = next(iter(results.values())).trimap
    widths = list(bands.bands) if bands else []
    columns = ["mIoU", "pixels", "classes", "boundary", *(f"{w} px" for w in widths), "img/s"]
    say(f"\n{'':<{width}}" + "".join(f"{c:>10}" for c in columns))
    for name, result in results.items():
        values = [100 * v for v in (result.confusion.miou(), result.confusion.pixel_accuracy(), result.confusion.class_accuracy(), result.boundary.miou())]
        values += [100 * v for v in (result.trimap.miou().values() if result.trimap else [])]
        say(f"{name:<{width}}" + "".join(f"{v:>10.2f}" for v in [*values, result.images_per_second]))
    say("pixels, classes: accuracy over pixels, mean over classes · boundary: boundary IoU"
        + (f" · px: mIoU in bands around {seeds(bands)}" if bands else ""))
    say("\nmIoU under the four rules in use:")
    for rule, meaning in CONVENTIONS.items():
        say("  " + "  ".join(f"{100 * r.confusion.conventions()[rule]:6.2f}" for r in results.values()) + f"  {meaning}")
    absent = next(iter(results.values())).confusion.absent()
    if absent:
        say(f"  absent: {', '.join(absent)}")
    names = next(iter(results.values())).confusion.names
    longest = max(len(n) for n in names)
    say(f"\nIoU per class ({', '.join(results)}):")
    for k, name in enumerate(names):
        say(f"  {name:<{longest}}  " + "  ".join("   -  " if np.isnan(r.confusion.iou()[k]) else f"{100 * r.confusion.iou()[k]:6.2f}" for r in results.values()))


def seeds(bands: Trimap) -> str:
    return {"void": "void outlines", "edges": "label changes", "auto": "void outlines where an image has any, else label changes"}[bands.seeds]


def rows_of(results: dict) -> dict:
    """{row name: its numbers}, ready for JSON."""
    out = {}
    for name, result in results.items():
        out[name] = {**result.headline(), "conventions": result.confusion.conventions(), "classes": result.confusion.rows()}
        if result.trimap:
            out[name]["trimap_miou"] = {str(w): v for w, v in result.trimap.miou().items()}
    return out


def samples_picture(results: dict, data):
    """One row per shown image; every evaluation adds a column, the last one with its errors and borders."""
    names = list(results)
    rows = []
    for per_image in zip(*(results[n].samples for n in names)):
        rows.append({**per_image[-1], "extra": {n: s["prediction"] for n, s in zip(names[:-1], per_image)}})
    return stack([panels(rows, data.palette), legend(data.classes, data.palette)])


def curve(results: dict):
    """mIoU over band width, one line per evaluation."""
    lines = {name: (list(r.trimap.bands), [100 * v for v in r.trimap.miou().values()]) for name, r in results.items()}
    return line_chart(lines, title="near the true boundaries", x="width of the band, pixels", y="mIoU, %", log_x=True, markers=True)


def write(folder: Path, results: dict, data, settings) -> None:
    """All files of the header, each written whole or not at all."""
    files.write_json(folder / "evaluation.json", {"settings": asdict(settings), "rows": rows_of(results)})
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(["class", *results])
    for k, name in enumerate(data.classes):
        table.writerow([name, *("" if np.isnan(v) else f"{v:.6f}" for v in (r.confusion.iou()[k] for r in results.values()))])
    files.write_text(folder / "classes.csv", buffer.getvalue())
    first = next(iter(results.values()))
    if first.trimap:
        files.write_bytes(folder / "trimap.png", png_bytes(curve(results)))
    if first.samples:
        files.write_bytes(folder / "samples.png", png_bytes(samples_picture(results, data)))
