"""The pictures of lesson 07: python -m lessons.figures.make_mgd [folder] writes lessons/figures/mgd_*.png.

The folder is that of one seed of the claim, default runs/claims/mgd/seed0: its teachers and students are loaded, or trained there (minutes).
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite import config
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.data import normalise
from seglite.papers import mgd
from seglite.pictures import colourise, scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE = 112
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, side: int = TILE) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (side, side), smooth=False)), x, y)


@torch.no_grad()
def answers(networks: dict, image: np.ndarray, data) -> dict:
    """(label map, decoder feature [1, D, h, w]) by name."""
    x = normalise(image[None], data)
    found = {name: network(x) for name, network in networks.items()}
    return {name: (logits.argmax(1)[0].numpy(), feature) for name, (logits, feature) in found.items()}


def problem(networks: dict, truth) -> Image.Image:
    """A few validation images as a student with labels only, both teachers and the distilled student label them."""
    columns = ("image", "truth", "labels only", "deep", "wide", "L_P + L_I + L_R")
    titles = ("image", "truth", "student, labels only", "deep teacher", "wide teacher", "student, MGD")
    canvas = Canvas(len(columns) * (TILE + 10), 3 * (TILE + 10) + 24)
    for x, title in enumerate(titles):
        canvas.text(x * (TILE + 10), 2, title, 12, MUTED)
    for row, index in enumerate((3, 8, 21)):
        sample = truth.read(index, ("image", "mask"))
        seen = answers(networks, sample["image"], truth)
        for x, name in enumerate(columns):
            if name in ("image", "truth"):
                picture = sample["image"] if name == "image" else colourise(sample["mask"], truth.palette)
            else:
                picture = colourise(seen[name][0], truth.palette)
            tile(canvas, picture, x * (TILE + 10), 22 + row * (TILE + 10))
    return canvas.done()


def arrow(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
    canvas.line([(x0, y0), (x1, y1)], colour, 2)
    dx, dy = x1 - x0, y1 - y0
    n = (dx * dx + dy * dy) ** 0.5
    dx, dy = dx / n, dy / n
    canvas.line([(x1 - 9 * dx - 5 * dy, y1 - 9 * dy + 5 * dx), (x1, y1), (x1 - 9 * dx + 5 * dy, y1 - 9 * dy - 5 * dx)], colour, 2)


def block(canvas: Canvas, x: float, y: float, width: float, height: float, colour: str, title: str, *lines: str) -> None:
    canvas.box(x, y, width, height, fill="#ffffff", outline=colour, radius=6)
    canvas.text(x + width / 2, y + 10, title, BODY, colour, "mt", bold=True)
    for i, line in enumerate(lines):
        canvas.text(x + width / 2, y + 32 + 17 * i, line, SMALL, INK, "mt")


def idea(truth) -> Image.Image:
    """Who teaches what: two teachers, three granularities, two kinds of images."""
    canvas = Canvas(820, 400)
    canvas.text(10, 4, "frozen teachers", SMALL, MUTED)
    canvas.text(300, 4, "what is handed over", SMALL, MUTED)
    canvas.text(630, 4, "trained, and kept", SMALL, MUTED)
    block(canvas, 10, 40, 190, 90, BLUE, "deep and thin", "many layers, few channels", "knows what is there")
    block(canvas, 10, 240, 190, 90, ORANGE, "shallow and wide", "few layers, many channels", "knows how parts relate")
    block(canvas, 300, 24, 230, 84, BLUE, "image level", "mean logits of the image", "on unlabelled, mixed images")
    block(canvas, 300, 148, 230, 94, GREEN, "pixel level", "hard labels of both", "on labelled and on mixed images")
    block(canvas, 300, 282, 230, 102, ORANGE, "region level", "7 x 7 regions: cosine of every", "region with every other,", "on unlabelled, mixed images")
    block(canvas, 630, 140, 170, 110, INK, "student", "small, fast", "also learns the few", "true labels")
    for (x0, y0), (x1, y1), colour in (((200, 75), (298, 62), BLUE), ((200, 105), (298, 180), GREEN), ((200, 265), (298, 212), GREEN),
                                       ((200, 300), (298, 335), ORANGE), ((530, 62), (628, 165), BLUE), ((530, 195), (628, 195), GREEN),
                                       ((530, 335), (628, 225), ORANGE)):
        arrow(canvas, x0, y0, x1, y1, colour)
    return canvas.done()


def matrix(canvas: Canvas, M: torch.Tensor, x: float, y: float, side: int) -> None:
    """49 x 49 cosines from white (0 or less) to dark blue (1)."""
    m = M.clamp(0, 1).numpy()[..., None]
    picture = (np.array([255, 255, 255]) * (1 - m) + np.array([0, 60, 120]) * m).astype(np.uint8)
    canvas.paste(Image.fromarray(picture).resize((side, side), Image.NEAREST), x, y)


def regions(networks: dict, truth, index: int = 8) -> Image.Image:
    """One image in 7 x 7 regions, and the relations of its regions as three networks see them."""
    side = 196
    canvas = Canvas(4 * (side + 14), side + 54)
    sample = truth.read(index, ("image",))
    tile(canvas, sample["image"], 0, 24, side)
    for i in range(8):
        canvas.line([(i * side / 7, 24), (i * side / 7, 24 + side)], "#ffffff", 1)
        canvas.line([(0, 24 + i * side / 7), (side, 24 + i * side / 7)], "#ffffff", 1)
    canvas.text(0, 2, "7 x 7 regions", SMALL, MUTED)
    seen = answers(networks, sample["image"], truth)
    target = mgd.relations(seen["wide"][1])[0]
    for x, (name, title) in enumerate((("wide", "wide teacher"), ("deep + wide, both", "student without L_R"), ("L_P + L_I + L_R", "student with L_R")), 1):
        M = mgd.relations(seen[name][1])[0]
        left = x * (side + 14)
        matrix(canvas, M, left, 24, side)
        canvas.text(left, 2, title, SMALL, MUTED)
        if name != "wide":
            canvas.text(left, 24 + side + 8, f"L_R = {float((M - target).square().mean()):.4f}", SMALL, INK)
    return canvas.done()


def main(folder: str = "runs/claims/mgd/seed0") -> None:
    settings, _ = config.parse(["method=mgd", "threads=1", f"out={folder}"], {"mgd": mgd})
    run = Run(settings, supervision=mgd.supervision(settings))
    teachers = mgd.fit_teachers(run)
    students = mgd.fit_classroom(run, teachers, {row: config.override(settings, **changes) for row, changes in mgd.ROWS.items()})
    networks, truth = {**teachers, **{name: net.eval() for name, net in students.items()}}, run.truth("val")
    for name, picture in (("problem", problem(networks, truth)), ("idea", idea(truth)), ("regions", regions(networks, truth))):
        picture.quantize(128).save(HERE / f"mgd_{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
