"""The pictures of lesson 10: python -m lessons.figures.make_mars [folder] writes lessons/figures/mars_*.png.

Trains the label stages of `method=marsstyle` (about a minute) in the folder, default runs/lesson-mars, or loads them from there.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite import cam, config, pseudo
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.kmeans import cluster_regions
from seglite.papers import marsstyle as mars
from seglite.pictures import colourise, overlay, scaled
from seglite.run import Run

HERE = Path(__file__).parent
TILE = 150
BLUE, ORANGE = "#0072b2", "#d55e00"


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (TILE, TILE), smooth=False)), x, y)


def heat(image: np.ndarray, map_: torch.Tensor) -> np.ndarray:
    """A grey photograph with the map in red on top, uint8 [H, W, 3]."""
    m = torch.nn.functional.interpolate(map_[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0, 0].clamp(0, 1).numpy()[..., None]
    grey = image.mean(2, keepdims=True) * 0.8
    return (grey * (1 - m) + np.array([230, 60, 40]) * m).astype(np.uint8)


def problem(run, parts, classifier, truth) -> Image.Image:
    """Four images: what the classifier answers when asked where the class is."""
    canvas = Canvas(4 * (TILE + 12) + 130, 2 * (TILE + 12) + 30)
    for row, c in enumerate((1, 2)):
        index = next(i for i in range(40, len(truth)) if truth.read(i, ("tags",))["tags"].tolist() == [float(k == c) for k in range(1, 5)])
        sample = truth.read(index, ("image", "mask"))
        part = next(p for p in parts if index in p.index)
        j = part.index.index(index)
        maps = cam.normalise(cam.activation_maps(classifier.class_maps, part.image[j : j + 1], flip=True), part.tags[j : j + 1])
        y = 28 + row * (TILE + 12)
        canvas.text(0, y + TILE / 2, truth.classes[c], BODY, INK, "lm", bold=True)
        for x, picture in enumerate((sample["image"], heat(sample["image"], maps[0, c - 1]), colourise(part.labels[j].numpy(), truth.palette),
                                     colourise(sample["mask"], truth.palette))):
            tile(canvas, picture, 70 + x * (TILE + 12), y)
    for x, title in enumerate(("image", "activation map", "biased label Y^b", "truth")):
        canvas.text(70 + x * (TILE + 12), 2, title, SMALL, MUTED)
    return canvas.done()


def histogram(canvas: Canvas, x: int, y: int, width: int, height: int, groups: dict[str, tuple[np.ndarray, str]], title: str) -> None:
    """Two overlaid histograms with a shared axis."""
    low, high = np.percentile(np.concatenate([v for v, _ in groups.values()]), (0.5, 99.5))
    bins = np.linspace(low, high, 29)
    counts = {name: np.histogram(v, bins)[0] for name, (v, _) in groups.items()}
    top = max(c.max() for c in counts.values())
    canvas.text(x, y - 24, title, BODY, INK, bold=True)
    step = width / 28
    for i, (name, (_, colour)) in enumerate(groups.items()):
        for b, count in enumerate(counts[name]):
            h = max(height * count / top, 2)
            if count:
                canvas.box(x + b * step + i * step / 2, y + height - h, step / 2, h, fill=colour)
        canvas.text(x + 170 * i, y + height + 24, name, SMALL, colour)
    for share in (0, 0.5, 1):
        canvas.text(x + share * width, y + height + 4, f"{low + share * (high - low):.2f}", SMALL, MUTED, "mt" if share == 0.5 else ("lt" if share == 0 else "rt"))


def idea(parts, centres, truth, how) -> Image.Image:
    """The two clusters inside Y^b, and how far target and biased centres lie from the background of all images."""
    canvas = Canvas(900, 2 * (TILE + 14) + 50)
    distance = mars.background_distance(centres["foreground"], centres["background"], how).numpy()
    target, biased = [], []
    for part in parts:
        masks = torch.from_numpy(np.stack([truth.read(i, ("mask",))["mask"] for i in part.index]))
        regions = cluster_regions(part.codes, part.labels, range(1, 5), 2)
        flags = pseudo.target_flags(part.codes.shape[-2:], regions, masks)
        target.append(flags[0].flatten())
        biased.append(flags[1].flatten())
    target, biased, label = torch.cat(target).numpy(), torch.cat(biased).numpy(), centres["label"].numpy()
    part = parts[0]
    masks = torch.from_numpy(np.stack([truth.read(i, ("mask",))["mask"] for i in part.index]))
    regions = cluster_regions(part.codes, part.labels, range(1, 5), 2)
    is_target, is_biased = pseudo.target_flags(part.codes.shape[-2:], regions, masks)
    for row, c in enumerate((1, 2)):
        even = (((regions.cluster == 1) & regions.inside).sum(1) / regions.inside.sum(1) - 0.5).abs() < 0.2  # two halves that one can see
        g = (even & (regions.label == c) & (is_target.sum(1) == 1) & (is_biased.sum(1) == 1)).nonzero()[0, 0].item()
        j, h, w = int(regions.image[g]), *part.codes.shape[-2:]
        image = truth.read(part.index[j], ("image",))["image"]
        map_ = torch.where(regions.inside[g], 2 - is_target[g][regions.cluster[g]].long(), 0).view(h, w).numpy().astype(np.uint8)
        map_ = np.kron(map_, np.ones((image.shape[0] // h, image.shape[1] // w), np.uint8))
        y = 26 + row * (TILE + 14)
        tile(canvas, image, 0, y)
        tile(canvas, overlay(image, map_, np.array([[0, 0, 0], [0, 114, 178], [213, 94, 0]], np.uint8), 0.75, (0,)), TILE + 12, y)
        mine = label == c
        histogram(canvas, 2 * TILE + 70, y + 4, 480, TILE - 60,
                  {"targets (object)": (distance[mine & target], BLUE), "biased (context)": (distance[mine & biased], ORANGE)},
                  f"{truth.classes[c]}: distance of its centres to all background")
    canvas.text(0, 2, "image", SMALL, MUTED)
    canvas.text(TILE + 12, 2, "two clusters inside Y^b", SMALL, MUTED)
    return canvas.done()


def labels(truth, biased, debiased) -> Image.Image:
    """Before and after, on one image of every class."""
    canvas = Canvas(4 * (TILE + 12) + 110, 4 * (TILE + 12) + 28)
    for x, c in enumerate(range(1, 5)):
        index = next(i for i in range(100, len(truth)) if truth.read(i, ("tags",))["tags"].tolist() == [float(k == c) for k in range(1, 5)])
        sample = truth.read(index, ("image", "mask"))
        rows = sample["image"], *(colourise(m, truth.palette) for m in (biased[index], debiased[index], sample["mask"]))
        canvas.text(100 + x * (TILE + 12), 2, truth.classes[c], SMALL, MUTED)
        for y, picture in enumerate(rows):
            tile(canvas, picture, 100 + x * (TILE + 12), 26 + y * (TILE + 12))
    for y, title in enumerate(("image", "Y^b", "Y^db", "truth")):
        canvas.text(0, 26 + y * (TILE + 12) + TILE / 2, title, BODY, INK, "lm", bold=True)
    canvas.text(0, 26 + 2 * (TILE + 12) + TILE / 2 + 20, "pink: deleted", SMALL, MUTED, "lm")
    return canvas.done()


def main(folder: str = "runs/lesson-mars") -> None:
    settings, _ = config.parse([f"out={folder}"], {"marsstyle": mars})
    run = Run(settings, supervision=mars.supervision(settings))
    classifier = mars.fit_classifier(run)
    biased = mars.biased_labels(run, classifier)
    parts = list(mars.walk(run, biased, mars.fit_features(run, classifier)))
    truth = run.truth("train")
    centres = mars.region_centres(parts, 5, settings)
    debiased = list(mars.debias(parts, centres, settings, run.data("train", ("image", "tags"))))
    for name, picture in (("problem", problem(run, parts, classifier, truth)), ("idea", idea(parts, centres, truth, settings.distance)), ("labels", labels(truth, biased, debiased))):
        picture.quantize(128).save(HERE / f"mars_{name}.png", optimize=True)
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
