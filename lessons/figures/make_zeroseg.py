"""The pictures of lessons 11 and 12: python -m lessons.figures.make_zeroseg [folder] writes contrastive_*.png and zeroseg_*.png beside this file.

Trains the toy of `method=zeroseg` (some minutes) in the folder, default runs/lesson-zeroseg, or loads it from there; further arguments are keys.
A claim's seed folder works too, with its keys and name=student_3 (the row with both losses).
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from seglite import config
from seglite.charts import BODY, INK, MUTED, RULE, SMALL, Canvas
from seglite.clip_teacher import open_teacher
from seglite.data import normalise
from seglite.data.squares import cells, grid_views
from seglite.papers import zeroseg as Z
from seglite.pictures import colourise, scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE = 132


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, side: int = TILE) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (side, side), smooth=False)), x, y)


def table_of_pairs(truth, teacher, steps: int) -> Image.Image:
    """Two ways to supervise: a fixed list of outputs, or which caption of the batch. steps: how long the tiny CLIP was trained."""
    side, count, left = 74, 5, 330
    chosen, used = [], set()
    for i in range(len(truth)):  # five pictures whose captions share no thing
        things = set(truth.read(i, ("text",))["text"].split()) & set(truth.classes)
        if things and not things & used and len(truth.read(i, ("text",))["text"]) < 44:
            chosen.append(i)
            used |= things
        if len(chosen) == count:
            break
    count = len(chosen)
    samples = [truth.read(i, ("image", "text")) for i in chosen]
    image = F.normalize(teacher.images(np.stack([grid_views(s["image"], (1,), teacher.side)[0] for s in samples])), dim=1)
    text = F.normalize(teacher.texts([s["text"] for s in samples]), dim=1)
    cosine = (image @ text.T).numpy()
    canvas = Canvas(max(left + side * (count + 1) + 20, 800), 118 + side * count + 40)
    canvas.text(0, 0, "a classifier: a fixed list", BODY, INK, bold=True)
    for i, word in enumerate(("aeroplane", "bicycle", "bird", "boat", "...", "tv monitor")):
        canvas.box(130, 60 + 34 * i, 120, 26, outline=RULE, radius=4)
        canvas.text(190, 73 + 34 * i, word, SMALL, MUTED, "mm")
    tile(canvas, samples[0]["image"], 0, 110, 90)
    canvas.line([(94, 155), (126, 155)], MUTED)
    canvas.text(0, 280, "kite? no such output", SMALL, MUTED)
    canvas.text(left, 0, "contrastive: which caption of this batch?", BODY, INK, bold=True)
    for j, sample in enumerate(samples):
        words = sample["text"].split()
        half = (len(words) + 1) // 2
        lines = [" ".join(words[:half]), " ".join(words[half:])]
        y = 118 + side * j
        tile(canvas, sample["image"], left, y, side - 8)
        for n, line in enumerate(lines):
            canvas.text(left + side * (j + 1), 30 + 15 * n + 34 * (j % 2), line, SMALL - 2, INK)
    low, high = cosine.min(), cosine.max()
    for i in range(count):
        for j in range(count):
            share = float((cosine[i, j] - low) / (high - low))
            colour = tuple(int(255 - share * (255 - c)) for c in (0, 114, 178))
            x, y = left + side * (j + 1), 118 + side * i
            canvas.box(x, y, side - 6, side - 6, fill="#%02x%02x%02x" % colour, outline=INK if i == j else None, radius=3)
            canvas.text(x + (side - 6) / 2, y + (side - 6) / 2, f"{cosine[i, j]:.2f}", BODY, "#ffffff" if share > 0.55 else INK, "mm", bold=i == j)
    canvas.text(left, 118 + side * count + 8, f"cosines of a tiny CLIP after {steps} steps; framed: the right pairs", SMALL, MUTED)
    return canvas.done()


def crops(truth, teacher, index: int) -> Image.Image:
    """What CLIP calls the whole image, and what it calls its cells."""
    sample = truth.read(index, ("image", "mask"))
    words = teacher.words(truth.classes[1:], "scenes")
    canvas = Canvas(3 * (TILE * 1.5 + 20), TILE * 1.5 + 30)
    for column, s in enumerate((1, 2, 3)):
        x0, y0, side = column * (TILE * 1.5 + 20), 26, int(TILE * 1.5)
        tile(canvas, sample["image"], x0, y0, side)
        vectors = F.normalize(teacher.images(grid_views(sample["image"], (s,), teacher.side)), dim=1)
        guesses = (vectors @ words.T).argmax(1).tolist()
        for guess, (left, top, right, bottom) in zip(guesses, cells((s,))):
            canvas.box(x0 + left * side, y0 + top * side, (right - left) * side, (bottom - top) * side, outline="#ffffff")
            name = truth.classes[guess + 1]
            canvas.box(x0 + left * side + 3, y0 + top * side + 3, 8 + 7.5 * len(name), 19, fill="#ffffff", radius=3)
            canvas.text(x0 + left * side + 7, y0 + top * side + 5, name, SMALL, INK)
        canvas.text(x0, 2, "the whole image" if s == 1 else f"{s} x {s} cells", BODY, INK, bold=True)
    return canvas.done()


def idea(truth, teacher, index: int) -> Image.Image:
    """What training aims at: each region of an image, the cell that shows most of it, and CLIP's word for that cell."""
    sample = truth.read(index, ("image", "mask"))
    image, mask, side = sample["image"], sample["mask"], sample["mask"].shape[0]
    squares, boxes = grid_views(image, (2, 3), teacher.side), cells((2, 3))
    words = teacher.words(truth.classes[1:], "scenes")
    guesses = (F.normalize(teacher.images(squares), dim=1) @ words.T).argmax(1).tolist()
    counts = np.bincount(mask.ravel(), minlength=len(truth.classes))
    regions = [k for k in counts.argsort()[::-1] if counts[k] > 60][:5]
    canvas = Canvas((TILE + 26) * (len(regions) + 1), 2 * TILE + 92)
    tile(canvas, image, 0, 24)
    canvas.text(0, 4, "image", SMALL, MUTED)
    canvas.text(0, TILE + 64, "cells of 2 x 2 and 3 x 3:", SMALL, MUTED)
    canvas.text(0, TILE + 84, "the one that shows", SMALL, MUTED)
    canvas.text(0, TILE + 104, "most of the region", SMALL, MUTED)
    for column, k in enumerate(regions, 1):
        x = column * (TILE + 26)
        shares = [float((mask[round(t * side) : round(b * side), round(l * side) : round(r * side)] == k).mean()) for l, t, r, b in boxes]
        best = int(np.argmax(shares))
        tile(canvas, np.where((mask == k)[..., None], image, (0.2 * image + 0.8 * 244).astype(np.uint8)), x, 24)
        canvas.line([(x + TILE / 2, 28 + TILE), (x + TILE / 2, 46 + TILE)], MUTED)
        tile(canvas, squares[best], x, 50 + TILE)
        canvas.text(x, 4, "a region", SMALL, MUTED)
        canvas.text(x, 2 * TILE + 62, f"CLIP: {truth.classes[guesses[best] + 1]}", BODY, INK, bold=True)
    return canvas.done()


def matches(truth, teacher, student, index: int) -> Image.Image:
    """Segments, and the cell that each of them is nearest to."""
    image = truth.read(index, ("image",))["image"]
    found = student.segment(normalise(image[None], truth))
    shares = F.interpolate(found.assignment, image.shape[:2], mode="bilinear")[0]
    owner = shares.argmax(0)
    squares = grid_views(image, (1, 2, 3), teacher.side)
    views = F.normalize(teacher.images(squares), dim=1)
    nearest = torch.cdist(found.tokens[0], views[1:], p=1.0).argmin(1) + 1
    used = [s for s in range(len(shares)) if (owner == s).float().mean() > 0.04][:5]
    canvas = Canvas((TILE + 12) * (len(used) + 1), 2 * (TILE + 34))
    tile(canvas, image, 0, 24)
    canvas.text(0, 4, "image", SMALL, MUTED)
    for column, s in enumerate(used, 1):
        x, here = column * (TILE + 12), (owner == s).numpy()[..., None]
        tile(canvas, np.where(here, image, (0.25 * image + 0.75 * 244).astype(np.uint8)), x, 24)
        tile(canvas, squares[nearest[s]], x, 24 + TILE + 34)
        canvas.text(x, 4, f"segment {s + 1}", SMALL, MUTED)
        canvas.text(x, 6 + TILE + 34, "nearest cell", SMALL, MUTED)
    return canvas.done()


def masks(truth, predict, indices) -> Image.Image:
    """Image, truth and answer, one column per image, with the words of the answer below."""
    canvas = Canvas(60 + len(indices) * (TILE + 12), 3 * (TILE + 12) + 50)
    for column, index in enumerate(indices):
        sample, x = truth.read(index, ("image", "mask")), 60 + column * (TILE + 12)
        found = predict(normalise(sample["image"][None], truth)).argmax(1)[0].numpy().astype(np.uint8)
        for row, picture in enumerate((sample["image"], colourise(sample["mask"], truth.palette), colourise(found, truth.palette))):
            tile(canvas, picture, x, row * (TILE + 12))
        shares = np.bincount(found.ravel(), minlength=len(truth.classes))
        words = [truth.classes[k] for k in shares.argsort()[::-1] if shares[k]]
        for line in range(0, min(len(words), 6), 3):
            canvas.text(x, 3 * (TILE + 12) + 16 * line // 3, ", ".join(words[line : line + 3]), SMALL - 1, INK)
    for row, name in enumerate(("image", "truth", "found")):
        canvas.text(0, row * (TILE + 12) + TILE / 2, name, SMALL, MUTED, "lm")
    return canvas.done()


def main(folder: str = "runs/lesson-zeroseg", *keys: str) -> None:
    name = next((key[5:] for key in keys if key.startswith("name=")), "student")
    settings, _ = config.parse(["method=zeroseg", f"out={folder}", *(key for key in keys if not key.startswith("name="))], {"zeroseg": Z})
    run = Run(settings, supervision=Z.supervision(settings))
    teacher, truth = open_teacher(run), run.truth("val")
    views, words = Z.open_views(run, teacher), truth.classes[1:]
    student = Z.fit_student(run, name, teacher, settings, views)
    predict = Z.predictor(student, teacher, settings, words)
    two = [i for i in range(len(truth)) if len(np.unique(truth.read(i, ("mask",))["mask"])) >= 4]
    for name, picture in (("contrastive_idea", table_of_pairs(truth, teacher, settings.clip_train.steps)), ("zeroseg_problem", crops(truth, teacher, two[2])),
                          ("zeroseg_idea", idea(truth, teacher, two[2])), ("zeroseg_segments", matches(truth, teacher, student, two[2])),
                          ("zeroseg_masks", masks(truth, predict, two[2:7]))):
        picture.quantize(128).save(HERE / f"{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
