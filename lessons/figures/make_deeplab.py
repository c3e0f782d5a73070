"""The pictures of lesson 03: python -m lessons.figures.make_deeplab writes lessons/figures/deeplab_*.png.

The numbers are those of lessons/claims/deeplab.json: means over its seeds, 300 validation pictures of 65 x 65.
"""
import json
from pathlib import Path

from PIL import Image

from seglite.charts import BODY, INK, LINES, MUTED, RULE, SMALL, Canvas, line_chart

HERE = Path(__file__).parent
TABLES = json.loads((HERE.parent / "claims/deeplab.json").read_text())["tables"]
BANDS = (1, 2, 5)


def means(table: str, row: str, metrics) -> tuple[float, ...]:
    return tuple(TABLES[table][row][metric]["mean"] for metric in metrics)


SHOWN = "2 2 2 2", "3 3 3 3", "4 4 4 4", "6 6 6 6", "1 2 4 6"
RECALL = {row: means("C. ASPP, rates of four branches", row, ("small", "medium", "large")) for row in SHOWN}
TRIMAP = {label: means(table, row, [f"{b} px" for b in BANDS]) for label, table, row in (
    ("stride 8, enlarged", "A. Density", "stride 8, enlarged"), ("same weights, one stride out", "A. Density", "same weights, one stride taken out"),
    ("trained with it out", "A. Density", "trained with that stride taken out"), ("and the CRF", "D. CRF", "scaled to the picture"))}


def rates() -> Image.Image:
    """Recall of discs by size, for one rate at a time and for a mix."""
    canvas, left, high = Canvas(760, 250), 60, 180
    for value in (60, 70, 80, 90, 100):
        y = 10 + high * (100 - value) / 40
        canvas.line([(left, y), (740, y)], RULE, 1)
        canvas.text(left - 8, y, str(value), SMALL, MUTED, "rm")
    for group, (name, shares) in enumerate(RECALL.items()):
        x0 = left + 20 + group * 136
        for i, share in enumerate(shares):
            height = max(high * (share - 60) / 40, 1)
            canvas.box(x0 + i * 38, 10 + high - height, 34, height, LINES[i])
        canvas.text(x0 + 56, 200, "rates " + name, SMALL, INK, "mm", bold=True)
    for i, name in enumerate(("small discs (below 8 px)", "medium", "large (above 15 px)")):
        canvas.box(left + 20 + i * 230, 222, 14, 14, LINES[i])
        canvas.text(left + 42 + i * 230, 229, name, BODY, INK, "lm")
    return canvas.done()


def trimap() -> Image.Image:
    """mIoU in bands around the true boundary: density, training, CRF."""
    return line_chart({name: (BANDS, values) for name, values in TRIMAP.items()}, x="band around the true boundary, pixels", y="mIoU inside it, percent",
                      size=(720, 360), markers=True)


if __name__ == "__main__":
    for draw in (rates, trimap):
        path = HERE / f"deeplab_{draw.__name__}.png"
        draw().quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path.name, path.stat().st_size, "bytes")
