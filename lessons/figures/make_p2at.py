"""The pictures of lesson 06: python -m lessons.figures.make_p2at writes lessons/figures/p2at_*.png.

Times in `COST` are those of `python -m seglite.networks only=none attention=true threads=1`; the street is table D of the recorded claim.
"""
import json
from pathlib import Path

import numpy as np
from PIL import Image

from seglite.charts import BODY, INK, LINES, MUTED, RULE, SMALL, Canvas, line_chart, scatter
from seglite.data.scenes import Scenes, ScenesSettings
from seglite.pictures import colourise

HERE = Path(__file__).parent
MAPS = ((12, 15), (23, 30), (45, 60), (64, 128), (90, 120))
COST = {  # CPU milliseconds, one thread, 8 heads of 16 and 32 channels; None: not timed
    "full: N x N": (0.91, 9.14, 132.73, None, None),
    "axial: N (h + w)": (1.4, 2.68, 20.12, 81.51, 118.88),
    "squeezed: h x h + w x w": (0.72, 1.17, 3.6, 8.2, 6.33),
}


def best_at(mask: np.ndarray, stride: int, classes: int) -> np.ndarray:
    """What a label map at this stride can say at best: the most frequent label of every cell, enlarged. uint8 [H, W] -> [H, W]."""
    h, w = (n // stride for n in mask.shape)
    cells = mask[:h * stride, :w * stride].reshape(h, stride, w, stride).swapaxes(1, 2).reshape(h, w, -1)
    winner = (cells[..., None] == np.arange(classes)).sum(2).argmax(-1).astype(np.uint8)
    return winner.repeat(stride, 0).repeat(stride, 1)


def shown(array: np.ndarray, zoom: int) -> Image.Image:
    return Image.fromarray(array).resize((array.shape[1] * zoom, array.shape[0] * zoom), Image.Resampling.NEAREST)


def problem() -> Image.Image:
    """A street, its labels, and the best that maps at 1/32 and 1/8 can say."""
    data = Scenes(ScenesSettings(world="road", seed=3, train_images=8), "train")
    sample = data.read(5, ("image", "mask"))
    canvas = Canvas(4 * 192 + 3 * 14, 144 + 30)
    panels = [("image", sample["image"]), ("truth", colourise(sample["mask"], data.palette)),
              *((f"at most this at 1/{s}", colourise(best_at(sample["mask"], s, 8), data.palette)) for s in (32, 8))]
    for i, (title, array) in enumerate(panels):
        picture = Image.fromarray(array).resize((192, 144), Image.Resampling.NEAREST)
        canvas.paste(picture, i * 206, 28)
        canvas.text(i * 206, 4, title, BODY, INK, bold=True)
    return canvas.done()


def worlds() -> Image.Image:
    """The two worlds in which context modules are compared: image and truth of each."""
    canvas = Canvas(4 * 192 + 3 * 14, 192 + 54)
    for i, (world, words) in enumerate((("axial", "class = left mark x top mark"), ("nearer", "class = nearer of two bricks"))):
        data = Scenes(ScenesSettings(world=world, seed=1, train_images=4), "train")
        sample = data.read(1, ("image", "mask"))
        for j, array in enumerate((sample["image"], colourise(sample["mask"], data.palette))):
            canvas.paste(shown(array, 3), (2 * i + j) * 206, 50)
        canvas.text(2 * i * 206, 2, f"world {world}", BODY, INK, bold=True)
        canvas.text(2 * i * 206, 24, words, SMALL, MUTED)
    return canvas.done()


def idea() -> Image.Image:
    """The network as a staircase down and up; boxes have the area of their maps."""
    canvas = Canvas(820, 330)
    left = {4: (30, 250, 120), 8: (30, 168, 84), 16: (30, 108, 58), 32: (30, 56, 38)}
    for stride, (x, y, width) in left.items():
        canvas.box(x, y, width, width * 0.42, LINES[5], INK, 3)
        canvas.text(x + width + 8, y + width * 0.21, f"x{ {4: 1, 8: 2, 16: 3, 32: 4}[stride] }  1/{stride}", SMALL, MUTED, "lm")
    canvas.text(30, 20, "ResNet, fine to coarse (upwards)", BODY, INK, bold=True)

    def box(x, y, width, text, colour, note=""):
        canvas.box(x, y, width, 34, colour, INK, 4)
        canvas.text(x + width / 2, y + 17, text, BODY, "#ffffff", "mm", bold=True)
        canvas.text(x, y + 47, note, SMALL, MUTED, "lm")

    box(240, 48, 130, "P2A2 x 2", LINES[1], "attention between row means, column means")
    box(240, 160, 90, "BiF", LINES[0], "x2, x3 and what comes from above")
    box(350, 160, 70, "GCE", LINES[2])
    box(240, 258, 90, "BiF", LINES[0], "x1, x2 and what comes from above")
    box(350, 258, 70, "GCE", LINES[2])
    box(560, 258, 150, "refine, head", LINES[6], "with p2 and p1 once more")
    for points in ([(150, 65), (240, 65)], [(285, 108), (285, 160)], [(480, 177), (480, 234), (285, 234), (285, 258)], [(420, 275), (560, 275)],
                   [(420, 177), (620, 177), (620, 258)], [(370, 64), (660, 64), (660, 258)]):
        canvas.line(points, MUTED, 1.6)
    canvas.text(560, 52, "p1", SMALL, MUTED, "lm")
    canvas.text(540, 165, "p2", SMALL, MUTED, "lm")
    canvas.line([(720, 275), (790, 275)], MUTED, 1.6)
    canvas.text(722, 262, "logits 1/4", SMALL, INK, "lm")
    canvas.line([(20, 42), (800, 42)], RULE, 1)
    return canvas.done()


def cost() -> Image.Image:
    """Milliseconds of attention alone against the number of positions, both axes logarithmic."""
    positions = [h * w for h, w in MAPS]
    lines = {name: [(n, t) for n, t in zip(positions, times) if t is not None] for name, times in COST.items()}
    return line_chart({name: tuple(zip(*points)) for name, points in lines.items() if points}, x="positions N = h w", y="milliseconds, one thread", size=(720, 380),
                      log_x=True, log_y=True, markers=True)


def street() -> Image.Image:
    """Accuracy against speed of the narrow networks on the drawn street."""
    tables = json.loads((HERE.parent / "claims/p2at.json").read_text())["tables"]
    rows, = (rows for title, rows in tables.items() if title.startswith("D."))
    points = {name: (1000 / row["ms"]["mean"], row["mIoU"]["mean"]) for name, row in rows.items()}
    groups = {"P2AT, parts of it": [p for name, p in points.items() if "stride 8" not in name],
              "heavy rivals": [p for name, p in points.items() if "stride 8" in name]}
    return scatter(groups, x="images of 96 x 128 per second, one thread", y="mIoU, percent", size=(820, 400), log_x=True, names={p: n for n, p in points.items()})


if __name__ == "__main__":
    for draw in (problem, worlds, idea, cost, street):
        path = HERE / f"p2at_{draw.__name__}.png"
        draw().quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path.name, path.stat().st_size, "bytes")
