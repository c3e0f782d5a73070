"""What `python -m seglite.evaluate` prints and writes: tables on the terminal, and a folder of files.

    evaluation.json   every number by row, the command's settings
    classes.csv       IoU per class, one column per row
    trimap.png        mIoU against the width of the band around true boundaries
    samples.png       photograph, truth, every row's labels, errors of the last row
    confusion.png     where the pixels of every class went, last row
"""
from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from seglite import files
from seglite.charts import INK, MUTED, PAPER, SMALL, Canvas, line_chart, shorten, text_width
from seglite.metrics import Confusion, Trimap
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
    """One row per shown image; every evaluation adds a column under its name, the last one with its errors and borders."""
    names = list(results)
    rows = []
    for per_image in zip(*(results[n].samples for n in names)):
        rows.append({**per_image[-1], "extra": {n: s["prediction"] for n, s in zip(names[:-1], per_image)}, "called": names[-1]})
    return stack([panels(rows, data.palette), legend(data.classes, data.palette)])


def curve(results: dict):
    """mIoU over band width, one line per evaluation."""
    lines = {name: (list(r.trimap.bands), [100 * v for v in r.trimap.miou().values()]) for name, r in results.items()}
    return line_chart(lines, title="near the true boundaries", x="width of the band, pixels", y="mIoU, %", log_x=True, markers=True)


def confusion_picture(confusion: Confusion, title: str = ""):
    """Row: true class, column: predicted class, cell: share of the row's pixels, in percent. Hits are green, confusions red.

    Classes in neither truth nor prediction are left out. With more than 40 classes the cells are too small for numbers and names.
    """
    kept = np.flatnonzero(confusion.union > 0)
    counts = confusion.counts.numpy()[np.ix_(kept, kept)].astype(np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [confusion.names[k] for k in kept]
    n, written = len(kept), len(kept) <= 40
    cell = max(6, min(44, 960 // max(n, 1)))
    longest = min(160, max((text_width(name, SMALL) for name in names), default=0)) + 16 if written else 16
    top = longest + 40
    canvas = Canvas(longest + n * cell + 16, top + n * cell + 40)
    canvas.text(16, 14, shorten(title or "true class (row), predicted class (column), % of the row's pixels", SMALL, canvas.width - 32), SMALL, MUTED)
    for i in range(n):
        for j in range(n):
            share = shares[i, j]
            tint = np.array((34, 139, 84) if i == j else (201, 60, 48)) * share**0.5 + np.array((255, 255, 255)) * (1 - share**0.5)
            canvas.box(longest + j * cell, top + i * cell, cell - 1, cell - 1, "#%02x%02x%02x" % tuple(int(v) for v in tint))
            if written and cell >= 22 and share >= 0.005:
                canvas.text(longest + (j + 0.5) * cell, top + (i + 0.5) * cell, f"{100 * share:.0f}", 12, PAPER if share > 0.5 else INK, "mm")
        if written:
            canvas.text(longest - 8, top + (i + 0.5) * cell, shorten(names[i], SMALL, longest - 16), SMALL, INK, "rm")
    if written:
        sheet = canvas.done().rotate(-90, expand=True)  # column names are written along the columns: on the turned sheet, from left to right
        turned = Canvas(sheet.width, sheet.height)
        turned.paste(sheet, 0, 0)
        for j, name in enumerate(names):
            turned.text(sheet.width - top + 8, longest + (j + 0.5) * cell, shorten(name, SMALL, longest - 16), SMALL, INK, "lm")
        return turned.done().rotate(90, expand=True)
    return canvas.done()


def write(folder: Path, results: dict, data, settings, whole: dict | None = None) -> None:
    """All files of the header, each written whole or not at all. whole: rows on more images, for evaluation.json alone."""
    files.write_json(folder / "evaluation.json", {"settings": asdict(settings), "rows": rows_of(results), **({"all_images": rows_of(whole)} if whole else {})})
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(["class", *results])
    for k, name in enumerate(data.classes):
        table.writerow([name, *("" if np.isnan(v) else f"{v:.6f}" for v in (r.confusion.iou()[k] for r in results.values()))])
    files.write_text(folder / "classes.csv", buffer.getvalue())
    first, last = next(iter(results.values())), list(results)[-1]
    files.write_bytes(folder / "confusion.png", png_bytes(confusion_picture(results[last].confusion, f"{last}: true class (row), predicted class (column), % of the row's pixels")))
    if first.trimap:
        files.write_bytes(folder / "trimap.png", png_bytes(curve(results)))
    if first.samples:
        files.write_bytes(folder / "samples.png", png_bytes(samples_picture(results, data)))
