"""The pictures of lesson 09: python -m lessons.figures.make_bas [folder] writes lessons/figures/bas_*.png.

Trains three networks of `method=bas` (about two minutes: the plain classifier, masks judged by cross-entropy, BAS) in the folder, default
runs/lesson-bas, or loads them from there.

    python -m lessons.figures.make_bas voc runs/bas-voc ROOT

draws bas_voc.png from the labels of a finished `until=labels` run on VOC. The photographs are not ours to copy: only our labels are shown.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite import config, suppression
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.data import DELETED, IGNORE, normalise, open_data
from seglite.localisation import box_of, component_boxes, largest_box
from seglite.metrics import Confusion
from seglite.papers import bas
from seglite.pictures import scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE = 116
ROWS = ("plain classifier", "mask by cross-entropy", "BAS")


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (TILE, TILE), smooth=False)), x, y)


def heat(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """A grey photograph with the map in red on top."""
    grey = image.mean(2, keepdims=True) * 0.8
    return (grey * (1 - map_[..., None]) + np.array([230, 60, 40]) * map_[..., None]).astype(np.uint8)


def outline(canvas: Canvas, box: np.ndarray, x: float, y: float, side: int, colour: str) -> None:
    left, top, right, bottom = (float(v) * TILE / side for v in box)
    canvas.box(x + left, y + top, right - left, bottom - top, outline=colour)


def networks(run) -> dict[str, suppression.Suppressor]:
    change = {"plain classifier": bas.PLAIN, "mask by cross-entropy": {"bas__weight": 0.0}, "BAS": {}}
    return {name: bas.fit_localiser(run, name.replace(" ", "_"), config.override(run.config, **change[name])) for name in ROWS}


def samples(run, count: int) -> list[dict]:
    """Images of different classes with a whole object in view."""
    data, found, seen = run.truth("val"), [], set()
    for i in range(len(data)):
        sample = data.read(i, ("image", "mask", "tags"))
        c = int(sample["tags"].argmax())
        left, top, right, bottom = box_of(sample["mask"] > 0)
        if c not in seen and min(left, top, 64 - right, 64 - bottom) > 2 and abs((right - left) - (bottom - top)) > 6:
            found.append(dict(sample, label=c, x=normalise(sample["image"][None], data)))
            seen.add(c)
        if len(found) == count:
            return found
    return found


def problem(run, models, thresholds: dict[str, float]) -> Image.Image:
    """What three trainings answer when asked where the bird is."""
    chosen = samples(run, 3)
    canvas = Canvas(150 + len(chosen) * (TILE + 10), 4 * (TILE + 10) + 24)
    for i, sample in enumerate(chosen):
        x = 150 + i * (TILE + 10)
        canvas.text(x, 2, run.truth("val").classes[sample["label"] + 1], SMALL, MUTED)
        tile(canvas, sample["image"], x, 24)
        outline(canvas, box_of(sample["mask"] > 0), x, 24, 64, "#3cc85a")
        for row, name in enumerate(ROWS, 1):
            y = 24 + row * (TILE + 10)
            map_ = bas.localisation_maps(models[name], sample["x"], torch.tensor([sample["label"]]), kind="cam" if row == 1 else "bas")[0].numpy()
            tile(canvas, heat(sample["image"], map_), x, y)
            outline(canvas, largest_box(component_boxes(map_, [thresholds[name]])[0], map_.shape), x, y, 64, "#f0dc28")
    for row, title in enumerate(("image, true box", "activation map", "mask, judged by", "mask, judged by")):
        y = 24 + row * (TILE + 10) + TILE / 2
        canvas.text(0, y, title, BODY, INK, "lm", bold=True)
        canvas.text(0, y + 20, ("", "of a classifier", "cross-entropy", "what it leaves (BAS)")[row], SMALL, MUTED, "lm")
    return canvas.done()


def idea(run, model) -> Image.Image:
    """One image through growing masks, with the three numbers under each."""
    sample, radii = samples(run, 3)[2], (-6, -4, -2, 0, 3, 8)
    mask = torch.from_numpy(sample["mask"][None] > 0)
    rows = suppression.observation(model, sample["x"], mask, torch.tensor([sample["label"]]), radii)[1:-1]
    canvas = Canvas(190 + len(radii) * (TILE + 10), TILE + 130)
    canvas.text(0, TILE / 2, "seen through a mask", BODY, INK, "lm", bold=True)
    for j, (title, colour) in enumerate((("area / object", MUTED), ("cross-entropy", "#0072b2"), ("activation inside", "#d55e00"), ("activation outside", "#009e73"))):
        canvas.text(0, TILE + 20 + 27 * j, title, BODY, colour)
    for i, (radius, row) in enumerate(zip(radii, rows)):
        x, shape = 190 + i * (TILE + 10), suppression.grown(mask.float(), radius)[0].numpy()[..., None]
        tile(canvas, (sample["image"] * shape + 40 * (1 - shape)).astype(np.uint8), x, 0)
        for j, (key, colour) in enumerate((("area", MUTED), ("cross-entropy", "#0072b2"), ("activation", "#d55e00"), ("background activation", "#009e73"))):
            canvas.text(x + TILE / 2, TILE + 20 + 27 * j, f"{row[key]:.2f}", BODY, colour, "ma", bold=True)
    return canvas.done()


def observed(run, model) -> Image.Image:
    """Both plots of the observation, means over 90 validation images."""
    both = suppression.observation_charts(bas.observe(run, model))
    sheet = Image.new("RGB", (sum(c.width for c in both), both[0].height), "white")
    sheet.paste(both[0], (0, 0))
    sheet.paste(both[1], (both[0].width, 0))
    return sheet


def seeds_of_photographs(folder: Path, root: str, count: int = 5) -> Image.Image:
    """Every kind of label of some training images, with its mean IoU over background and the image's classes."""
    kinds = {f"{name}{' + CRF' if refine == 'crf' else ''}": folder / f"labels_{kind}_{refine}" for refine in ("none", "crf") for kind, name in bas.KINDS.items()}
    kinds = {name: place for name, place in kinds.items() if place.exists()}
    data = open_data(config.parse(["method=bas", "data=voc", f"root={root}"], {"bas": bas})[0], "train")
    canvas = Canvas(120 + len(kinds) * (TILE + 10), 24 + count * (TILE + 26))
    for column, name in enumerate(kinds):
        canvas.text(120 + column * (TILE + 10), 2, name, SMALL, MUTED)
    for row, index in enumerate(range(0, len(data), len(data) // count)[:count]):
        truth, y = data.read(index, ("mask",))["mask"], 24 + row * (TILE + 26)
        present = np.unique(truth[truth != IGNORE])
        canvas.text(0, y + TILE / 2, ", ".join(data.classes[c] for c in present if c)[:18], SMALL, MUTED, "lm")
        for column, place in enumerate(kinds.values()):
            labels, x = np.array(Image.open(place / f"{data.name(index)}.png")), 120 + column * (TILE + 10)
            tile(canvas, data.palette[labels], x, y)
            iou = Confusion(data.classes).add(truth, np.where(labels >= DELETED, 0, labels)).iou()[present]
            canvas.text(x + TILE / 2, y + TILE + 3, f"{100 * np.nanmean(iou):.0f}", SMALL, INK, "ma")
    return canvas.done()


def main(folder: str = "runs/lesson-bas", *voc: str) -> None:
    if folder == "voc":
        seeds_of_photographs(Path(voc[0]), voc[1]).quantize(64).save(HERE / "bas_voc.png", optimize=True)
        return
    settings, _ = config.parse([f"out={folder}", "method=bas", "scenes.val_images=90"], {"bas": bas})
    run = Run(settings, supervision=bas.supervision(settings))
    models = networks(run)
    rows = {name: (model, {"kind": "cam"} if name == ROWS[0] else {}) for name, model in models.items()}
    thresholds = {name: found.best_threshold() for name, found in bas.localise(run, rows, settings).items()}
    for name, picture in (("problem", problem(run, models, thresholds)), ("idea", idea(run, models[ROWS[0]])), ("observation", observed(run, models[ROWS[0]]))):
        picture.quantize(192).save(HERE / f"bas_{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
