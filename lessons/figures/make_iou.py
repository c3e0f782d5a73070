"""The pictures of lesson 01: python -m lessons.figures.make_iou writes lessons/figures/iou_*.png."""
from pathlib import Path

import numpy as np
from PIL import Image

from seglite.charts import BODY, INK, MUTED, RULE, SMALL, Canvas
from seglite.data import scenes
from seglite.metrics import BoundaryIoU, Confusion, dilate, inner_band
from seglite.pictures import colourise, error_map, scaled

HERE = Path(__file__).parent
COLOURS = np.array([[47, 75, 110], [240, 178, 60], [204, 92, 120], [110, 170, 120]], np.uint8)
HIT, MISSED, EXTRA = "#009e73", "#0072b2", "#d55e00"

# Four classes; 3 occurs nowhere, 2 only in the prediction. The lesson's running example.
TRUTH = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
PREDICTION = np.array([[0, 0, 0, 2], [0, 0, 0, 1], [2, 2, 1, 1], [1, 1, 1, 1]])


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, size: int, lines: list[str]) -> None:
    canvas.paste(Image.fromarray(scaled(picture, (size, size))), x, y)
    for i, line in enumerate(lines):
        canvas.text(x, y + size + 8 + 22 * i, line, BODY if i == 0 else SMALL, INK if i == 0 else MUTED, bold=i == 0)


def problem() -> Image.Image:
    """Pixel accuracy prefers the prediction that found nothing."""
    data = scenes.Scenes(scenes.ScenesSettings(seed=0, val_images=64), "val")
    shares = [np.mean(data.read(i)["mask"] == 0) for i in range(64)]
    sample = data.read(int(np.argmin(np.abs(np.array(shares) - 0.90))))
    truth = sample["mask"]
    nothing = np.zeros_like(truth)
    fat = truth.copy()
    for k in np.unique(truth[truth > 0]):
        fat[dilate(truth == k, 3) & (fat == 0)] = k
    canvas = Canvas(900, 320)
    tile(canvas, sample["image"], 0, 0, 212, ["photograph"])
    tile(canvas, colourise(truth, data.palette), 229, 0, 212, ["truth"])
    for x, prediction, title in ((458, nothing, "A: background everywhere"), (687, fat, "B: all found, 3 pixels too fat")):
        c = Confusion(data.classes).add(truth, prediction)
        tile(canvas, error_map(sample["image"], truth, prediction), x, 0, 212,
             [title, f"{100 * c.pixel_accuracy():.1f} % of pixels right", f"mIoU {100 * c.miou():.1f}   (red: wrong)"])
    return canvas.done()


def grid(canvas: Canvas, labels: np.ndarray, x: int, y: int, cell: int, title: str, other: np.ndarray | None = None) -> None:
    canvas.text(x, y - 26, title, BODY, INK, bold=True)
    for (r, c), k in np.ndenumerate(labels):
        canvas.box(x + c * cell, y + r * cell, cell, cell, fill=tuple(int(v) for v in COLOURS[k]), outline="#ffffff")
        canvas.text(x + (c + 0.5) * cell, y + (r + 0.5) * cell, str(k), BODY, "#ffffff", "mm", bold=True)
        if other is not None and other[r, c] != k:
            canvas.box(x + c * cell + 3, y + r * cell + 3, cell - 6, cell - 6, outline="#ffffff", radius=4)


def idea() -> Image.Image:
    """Two label maps, the table of who was taken for whom, and one class's union cut in three."""
    c = Confusion(4).add(TRUTH, PREDICTION)
    canvas = Canvas(900, 268)
    grid(canvas, TRUTH, 0, 46, 46, "truth")
    grid(canvas, PREDICTION, 216, 46, 46, "prediction", TRUTH)
    x, y, cell = 480, 66, 40
    canvas.text(x, 20, "row: true, column: predicted", SMALL, INK, bold=True)
    for k in range(4):
        canvas.text(x + (k + 0.5) * cell, y - 8, str(k), SMALL, MUTED, "mm")
        canvas.text(x - 12, y + (k + 0.5) * cell, str(k), SMALL, MUTED, "mm")
        for p in range(4):
            fill = "#d9f0e7" if k == p else ("#f7e0d2" if p == 1 or k == 1 else "#ffffff")
            fill = "#cfe3f2" if k == 1 and p != 1 else fill
            canvas.box(x + p * cell, y + k * cell, cell, cell, fill=fill, outline=RULE)
            canvas.text(x + (p + 0.5) * cell, y + (k + 0.5) * cell, str(int(c.counts[k, p])), BODY, INK if c.counts[k, p] else MUTED, "mm")
    x = 690
    canvas.text(x, 20, "class 1", BODY, INK, bold=True)
    for i, (text, colour) in enumerate((("hits: 7 (green cell)", HIT), ("missed: 2 (rest of its row)", MISSED), ("extra: 0 (rest of its column)", EXTRA))):
        canvas.box(x, y + 30 * i, 16, 16, fill=colour, radius=3)
        canvas.text(x + 26, y + 30 * i + 8, text, SMALL, INK, "lm")
    canvas.text(x, y + 104, "IoU = 7 / (7 + 2 + 0) = 77.8 %", BODY, INK, bold=True)
    canvas.text(x, y + 132, "FN = 2/9,  FP = 0/9", SMALL, MUTED)
    return canvas.done()


def disc(radius: float, size: int = 96) -> np.ndarray:
    y, x = np.indices((size, size)) - (size - 1) / 2
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


def boundary() -> Image.Image:
    """The same one-pixel mistake on a small and on a large disc, seen whole and seen through a band."""
    canvas = Canvas(900, 300)
    x = 0
    for radius in (8, 36):
        truth, prediction = disc(radius), disc(radius - 1)
        picture = np.full((*truth.shape, 3), 238, np.uint8)
        picture[truth & prediction == 1] = (150, 205, 185)
        picture[truth > prediction] = (0, 114, 178)
        plain, band = Confusion(2).add(truth, prediction).iou()[1], BoundaryIoU(2).add(truth, prediction).iou()[1]
        tile(canvas, picture, x, 0, 212, [f"radius {radius}, one pixel short", f"IoU {100 * plain:.1f}"])
        a, b = inner_band(truth == 1, 3), inner_band(prediction == 1, 3)
        picture = np.full((*truth.shape, 3), 238, np.uint8)
        picture[a & b] = (150, 205, 185)
        picture[a & ~b] = (0, 114, 178)
        picture[b & ~a] = (213, 94, 0)
        tile(canvas, picture, x + 229, 0, 212, ["bands of 3 pixels", f"boundary IoU {100 * band:.1f}"])
        x += 458
    return canvas.done()


if __name__ == "__main__":
    for draw in (problem, idea, boundary):
        path = HERE / f"iou_{draw.__name__}.png"
        draw().quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path.name, path.stat().st_size, "bytes")
