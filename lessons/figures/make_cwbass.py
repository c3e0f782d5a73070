"""The pictures of lesson 08: python -m lessons.figures.make_cwbass [folder] writes lessons/figures/cwbass_*.png.

Draws from one seed of the claim, default runs/claims/cwbass/seed0: the two students with the figure's and the code's constants are loaded from
there, or trained (about a minute).
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite import config
from seglite.charts import INK, MUTED, SMALL, Canvas, line_chart
from seglite.data import generator, normalise, partitions, views
from seglite.papers import cwbass as cw
from seglite.pictures import colourise, error_map, scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE = 144
FIGURE_ROW, CODE_ROW = "CW-BASS, figure", "CW-BASS, code"


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (TILE, TILE), smooth=False)), x, y)


def grey(values: torch.Tensor) -> np.ndarray:
    """[H, W] in 0 ... 1 -> uint8 [H, W, 3]."""
    return np.repeat((255 * values.clamp(0, 1)).byte().numpy()[..., None], 3, 2)


@torch.no_grad()
def answers(network, image: np.ndarray, data) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence and label of one image, [H, W] each."""
    p, label = network(normalise(image[None], data)).softmax(1).max(1)
    return p[0], label[0]


def problem(first, truth, indices) -> Image.Image:
    """What a network trained on few labels says about images without: where it errs, and where it doubts."""
    canvas = Canvas(5 * (TILE + 12), 26 + 2 * (TILE + 12))
    for x, title in enumerate(("unlabelled image", "pseudo label", "truth", "wrong: red", "confidence: black = 1/3")):
        canvas.text(x * (TILE + 12), 2, title, SMALL, MUTED)
    for row, index in enumerate(indices):
        sample = truth.read(int(index), ("image", "mask"))
        p, label = answers(first, sample["image"], truth)
        pictures = (sample["image"], colourise(label.numpy(), truth.palette), colourise(sample["mask"], truth.palette),
                    error_map(sample["image"], sample["mask"], label.numpy()), grey((p - 1 / 3) * 1.5))
        for x, picture in enumerate(pictures):
            tile(canvas, picture, x * (TILE + 12), 26 + row * (TILE + 12))
    return canvas.done()


def idea(teacher, truth, settings, index) -> Image.Image:
    """One step on one image: two views, the teacher's answer, and the weight of every pixel in both losses."""
    image = truth.read(int(index), ("image",))["image"]
    strong, cut = views.strong_view(image, generator(4), config.override(settings, strong__cut=1.0).strong)
    p, label = answers(teacher, image, truth)
    T = cw.dynamic_threshold(p.mean(), cw.FIGURE["t0"], cw.FIGURE["beta"])
    kept = p > T
    edge = cw.sobel_boundary(label[None], len(truth.classes))[0] & kept
    allowed = torch.from_numpy(~cut)
    canvas = Canvas(6 * (TILE + 14), TILE + 66)
    shown = (("teacher sees", image), ("its label", colourise(label.numpy(), truth.palette)),
             ("confidence p", grey((p - 1 / 3) * 1.5)), ("student sees", strong),
             ("weight in L_w", grey(p * (kept & allowed))), ("counted in L_b", grey((edge & allowed).float())))
    for x, (title, picture) in enumerate(shown):
        canvas.text(x * (TILE + 14), 2, title, SMALL, INK, bold=True)
        tile(canvas, picture, x * (TILE + 14), 24)
    shares = (f"{float((part & allowed).float().mean()):.0%} of the pixels" for part in (kept, edge))
    notes = ("weak view", "argmax", f"mean {float(p.mean()):.2f}, T {float(T):.2f}", "strong view, one cut", *shares)
    for x, note in enumerate(notes):
        canvas.text(x * (TILE + 14), TILE + 32, note, SMALL, MUTED)
    return canvas.done()


def logged(run, row: str, key: str) -> tuple[list, list]:
    stage, points = f"student_{list(cw.ROWS).index(row)}", []
    for text in (run.folder / "log.jsonl").read_text().splitlines():
        record = json.loads(text)
        if record.get("stage") == stage and key in record:
            points.append((record["step"], record[key]))
    return tuple(map(list, zip(*points)))


def threshold(run) -> Image.Image:
    """What the threshold actually does: T against the mean confidence, and what it kept while two students were trained."""
    mean = torch.linspace(0, 1, 101)
    constants = {"figure: T0 = 1, beta = 5": (1.0, 5.0), "T0 = 0.6, beta = 5": (0.6, 5.0),
                 "code: T0 = 0.6, beta = 0.5, clamped": (0.6, 0.5, 0.3, 0.8)}
    curves = {name: (mean.tolist(), cw.dynamic_threshold(mean, *values).tolist()) for name, values in constants.items()}
    left = line_chart(curves, title="T by formula 1", x="mean confidence of the batch", y="T", size=(560, 360), y_range=(0, 1))
    lines = {f"{key}, {name}": logged(run, row, key) for key in ("kept", "T") for name, row in (("figure", FIGURE_ROW), ("code", CODE_ROW))}
    right = line_chart(lines, title="In training: T and the share of pixels kept", x="step", size=(560, 360), y_range=(0, 1.02))
    sheet = Image.new("RGB", (left.width + right.width + 20, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 20, 0))
    return sheet


def main(folder: str = "runs/claims/cwbass/seed0") -> None:
    settings, _ = config.parse(["method=cwbass", "seed=0", f"out={folder}", "threads=1"], {"cwbass": cw})
    run = Run(settings, supervision=cw.supervision(settings))
    labelled, unlabelled = partitions.split(settings, run.data("train"))
    first, truth = cw.burn_in(run, labelled), run.truth("train")
    for row in (FIGURE_ROW, CODE_ROW):
        cw.fit_row(run, row, first, labelled, unlabelled)
    crowded = sorted(unlabelled[:80], key=lambda i: -len(np.unique(truth.read(int(i), ("mask",))["mask"])))
    for name, picture in (("problem", problem(first, truth, crowded[:2])), ("idea", idea(first, truth, settings, crowded[0])),
                          ("threshold", threshold(run))):
        picture.quantize(96).save(HERE / f"cwbass_{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
