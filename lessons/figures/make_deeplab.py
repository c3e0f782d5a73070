"""The pictures of lesson 03: python -m lessons.figures.make_deeplab writes lessons/figures/deeplab_*.png.

The numbers are those of `python -m seglite.claims method=deeplab threads=1 seeds=0`: one seed, 300 validation pictures of 65 x 65.
"""
from pathlib import Path

from PIL import Image

from seglite.charts import BODY, INK, LINES, MUTED, RULE, SMALL, Canvas, line_chart

HERE = Path(__file__).parent
RECALL = {  # rates of the four branches: recall of small, medium and large discs, percent
    "2 2 2 2": (86.11, 89.53, 94.61), "3 3 3 3": (82.75, 90.98, 95.08), "4 4 4 4": (82.75, 88.82, 95.30), "6 6 6 6": (87.22, 70.77, 93.75),
    "1 2 4 6": (88.18, 92.37, 96.09),
}
BANDS = (1, 2, 5)
TRIMAP = {  # mIoU within 1, 2 and 5 pixels of a true boundary, percent
    "stride 8, enlarged": (49.61, 61.12, 74.64), "same weights, one stride out": (58.17, 68.12, 79.16), "trained with it out": (65.72, 75.27, 84.23),
    "and the CRF": (75.44, 82.56, 89.07),
}


def rates() -> Image.Image:
    """Recall of discs by size, for one rate at a time and for a mix."""
    canvas, left, high = Canvas(760, 250), 60, 180
    for value in (70, 80, 90, 100):
        y = 10 + high * (100 - value) / 30
        canvas.line([(left, y), (740, y)], RULE, 1)
        canvas.text(left - 8, y, str(value), SMALL, MUTED, "rm")
    for group, (name, shares) in enumerate(RECALL.items()):
        x0 = left + 20 + group * 136
        for i, share in enumerate(shares):
            height = max(high * (share - 70) / 30, 1)
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
