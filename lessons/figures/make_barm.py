"""The pictures of lesson 15: python -m lessons.figures.make_barm [folder] writes lessons/figures/barm_*.png.

Trains the five steps of `method=barm` (about a minute of CPU time) in the folder, default runs/barm-scenes, or loads them from there.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite import config
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.data.steps import Judged
from seglite.incremental import diverging, residual_pictures
from seglite.papers import barm
from seglite.pictures import colourise, scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE, GAP = 104, 8
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, side: int = TILE) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (side, side), smooth=False)), x, y)


def problem(truth, task, index: int) -> Image.Image:
    """One image, and what is called what at every step."""
    sample = truth.read(index, ("image", "mask"))
    colours = Judged(truth, task, task.steps - 1).palette
    pictures = {"image": sample["image"], **{f"label at step {t}": colourise(task.names_for(t)[sample["mask"]], colours) for t in range(task.steps)},
                "what is there": colourise(task.judged(task.steps - 1)[sample["mask"]], colours)}
    canvas = Canvas(len(pictures) * (TILE + GAP), TILE + 24)
    for x, (name, picture) in enumerate(pictures.items()):
        canvas.text(x * (TILE + GAP), 2, name, SMALL, MUTED)
        tile(canvas, picture, x * (TILE + GAP), 22)
    return canvas.done()


def idea() -> Image.Image:
    """One row of pixels across an old object, a new one and ground: the base logit, two corrections, their cut, the sum."""
    x = np.linspace(0, 1, 241)
    bump = lambda centre, width: np.exp(-(((x - centre) / width) ** 4))
    base = 4 - 9 * bump(0.2, 0.1)
    r1, r2 = 1.5 - 8.5 * bump(0.52, 0.09), 1.2 + 1.5 * bump(0.2, 0.12) - 8 * bump(0.82, 0.09)
    rows = [("background logit of step 0", base, BLUE), ("correction of step 1", r1, ORANGE), ("correction of step 2", r2, GREEN),
            ("background now: the base and what is below 0", base + np.minimum(r1, 0) + np.minimum(r2, 0), BLUE)]
    wide, high, left, top = 640, 92, 240, 26
    canvas = Canvas(left + wide + 10, top + len(rows) * high + 6)
    for start, end, name in ((0.08, 0.32, "an old class"), (0.41, 0.63, "class of step 1"), (0.71, 0.93, "class of step 2")):
        canvas.box(left + start * wide, top, (end - start) * wide, len(rows) * high, fill="#eef1f5")
        canvas.text(left + (start + end) / 2 * wide, 4, name, SMALL, MUTED, "ma")
    for i, (name, values, colour) in enumerate(rows):
        zero = top + i * high + high * 0.45
        place = lambda v: zero - v * 4.6
        canvas.line([(left, zero), (left + wide, zero)], "#c4cad2", 1)
        canvas.text(left - 8, zero, "0", SMALL, MUTED, "rm")
        if name.startswith("correction"):
            canvas.line([(left + a * wide, place(v)) for a, v in zip(x, values)], "#c4cad2", 2)
            values = np.minimum(values, 0)
        canvas.line([(left + a * wide, place(v)) for a, v in zip(x, values)], colour, 3)
        words = name.split(": ")
        canvas.text(left - 26, zero - (9 if len(words) > 1 else 0), words[0], BODY, INK, "rm", bold=True)
        if len(words) > 1:
            canvas.text(left - 26, zero + 11, words[1], SMALL, MUTED, "rm")
        if name.startswith("correction"):
            canvas.text(left - 26, zero + 20, "grey: cut off", SMALL, MUTED, "rm")
    return canvas.done()


def residuals(samples: list[dict], colours: np.ndarray) -> Image.Image:
    """The paper's figure rebuilt: what every step takes out of the background."""
    columns = ["image", "truth", *samples[0]["extra"]]
    canvas = Canvas(len(columns) * (TILE + GAP), len(samples) * (TILE + GAP) + 48)
    for x, name in enumerate(columns):
        canvas.text(x * (TILE + GAP), 2, name.strip(), SMALL, MUTED)
    for y, sample in enumerate(samples):
        shown = {"image": sample["image"], "truth": colourise(sample["truth"], colours), **sample["extra"]}
        for x, name in enumerate(columns):
            picture = shown[name] if shown[name].ndim == 3 else colourise(shown[name], colours)
            canvas.box(x * (TILE + GAP) - 1, 21 + y * (TILE + GAP), TILE + 2, TILE + 2, outline="#c4cad2")
            tile(canvas, picture, x * (TILE + GAP), 22 + y * (TILE + GAP))
    y = 22 + len(samples) * (TILE + GAP) + 8
    ramp = np.linspace(-8, 8, 160)[None].repeat(10, 0)
    canvas.text(0, y - 2, "logit -8", SMALL, MUTED)
    canvas.paste(Image.fromarray(diverging(ramp)), 64, y)
    canvas.text(232, y - 2, "+8", SMALL, MUTED)
    return canvas.done()


def main(folder: str = "runs/barm-scenes") -> None:
    settings, _ = config.parse(["method=barm", f"out={folder}"], {"barm": barm})
    run = Run(settings, supervision=barm.supervision(settings))
    task, present = barm.start(run)
    network, _ = barm.learn(run, settings, task, present)
    test = Judged(run.truth("val"), task, task.steps - 1)
    kinds = [set(np.unique(test.read(i)["mask"])) - {0} for i in range(len(test))]
    chosen = sorted(range(len(test)), key=lambda i: (-len([c for c in kinds[i] if c >= task.seen(0)]), -len(kinds[i]), i))[:3]
    samples = residual_pictures(barm.heads_of(network, settings), test, task, run.device, chosen)
    both = next(i for i in chosen if any(c < task.seen(0) for c in kinds[i]))
    for name, picture in (("problem", problem(run.truth("val"), task, both)), ("idea", idea()), ("residuals", residuals(samples, test.palette))):
        picture.quantize(128).save(HERE / f"barm_{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
