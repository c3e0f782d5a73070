"""Label maps of any program before and after a CRF, and how far the lattice is from the exact sum on the same photographs.

A label map holds no probabilities, so it is taken at its word only so far: the label it gives has probability `gt_prob`, the other labels of the
picture share the rest. A network's own scores say more; for those there is `python -m seglite.evaluate crf=...`.

    python -m seglite.evaluate_maps photos=image labels=single truths=gt crf=deeplab-voc,deeplab-v1
    python -m seglite.evaluate_maps photos=image labels=single truths=gt refined=single_crf exact=64      another program's result as a row

Files belong together by name: NAME.png in labels= and truths= (class numbers, 255 = not judged), NAME.jpg or .png in photos=.
Shapes: H W image, K labels of the picture.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kernels.dense_crf import mean_field
from seglite.config import UsageError
from seglite.crf import Preset, label_unary, preset_of
from seglite.data.transforms import resize_long
from seglite.data.voc import CLASSES, read_image, read_mask
from seglite.evaluate import Evaluation
from seglite.metrics import BoundaryIoU, Confusion, Trimap
from seglite.pictures import voc_palette


@dataclass
class Settings:
    """Score label maps before and after a CRF."""

    photos: str = ""
    """folder of photographs"""
    labels: str = ""
    """folder of label maps, PNG of class numbers"""
    truths: str = ""
    """folder of true label maps"""
    refined: str = ""
    """folder of the same maps as another program refined them: one more row; maps it lacks make it an error"""
    crf: tuple[str, ...] = ("deeplab-voc",)
    """presets of seglite.crf, or values like 1/3/67/3/4/10/after"""
    gt_prob: float = 0.7
    """how far a label map is trusted, between 0 and 1"""
    exact: int = 0
    """also compare the lattice with the exact float64 sum, on photographs shrunk to this longer side; 0: no. 64 takes a second per picture"""
    classes: tuple[str, ...] = CLASSES
    """class names; their number is K of the label maps"""
    widths: tuple[int, ...] = (1, 2, 5, 10, 20, 40)
    """bands of the trimap curve, pixels"""
    out: str = ""
    """folder for evaluation.json, classes.csv, confusion.png, trimap.png and samples.png; empty: only print"""
    keep: int = 6
    """images in samples.png"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    debug: bool = False
    """show tracebacks"""


def energy(image: np.ndarray, labels: np.ndarray, gt_prob: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(unary float32 [1, K, H, W], photograph [1, 3, H, W], class ids [K]) of uint8 [H, W, 3] and [H, W]; K: the labels that occur, at least 2."""
    ids, index = np.unique(labels, return_inverse=True)
    if len(ids) < 2:
        ids = np.append(ids, 0 if ids[0] else 1)
    unary = label_unary(index.reshape(labels.shape), len(ids), gt_prob, None)
    return torch.from_numpy(unary)[None], torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)[None], ids


def refine_map(image: np.ndarray, labels: np.ndarray, preset: Preset, gt_prob: float = 0.7, method: str = "auto", dtype=torch.float32) -> np.ndarray:
    """The label map after the CRF, uint8 [H, W]."""
    unary, photo, ids = energy(image, labels, gt_prob)
    q = mean_field(unary.to(dtype), photo, preset.kernels(), iterations=preset.iterations, normalization=preset.normalization, method=method)
    return ids[q[0].argmax(0).numpy()].astype(np.uint8)


def lattice_error(image: np.ndarray, labels: np.ndarray, preset: Preset, gt_prob: float, side: int) -> float:
    """Share of pixels that the lattice labels otherwise than the exact float64 sum, after shrinking to a longer side of `side` pixels."""
    small = resize_long({"image": image, "mask": labels}, side)
    lattice = refine_map(small["image"], small["mask"], preset, gt_prob, "lattice")
    return float((lattice != refine_map(small["image"], small["mask"], preset, gt_prob, "exact", torch.float64)).mean())


def find_files(settings: Settings) -> list[dict[str, Path]]:
    """{"name", "photos", "labels", "truths", perhaps "refined"} of every label map. Raises UsageError, FileNotFoundError naming what is missing."""
    folders = {key: Path(getattr(settings, key)) for key in ("photos", "labels", "truths", "refined") if getattr(settings, key)}
    for key in ("photos", "labels", "truths"):
        if key not in folders:
            raise UsageError(f"{key}= is missing: give photos=, labels= and truths=, three folders whose files have equal names")
    for key, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"{key}={folder} is not a folder")
    found = []
    for labels in sorted(folders["labels"].glob("*.png")):
        files = {key: folder / labels.name for key, folder in folders.items()}
        files["photos"] = next((p for p in (folders["photos"] / f"{labels.stem}{end}" for end in (".jpg", ".png", ".jpeg")) if p.is_file()),
                               folders["photos"] / f"{labels.stem}.jpg")
        missing = next((f"{path} ({key}=)" for key, path in files.items() if not path.is_file()), None)
        if missing:
            raise FileNotFoundError(f"label map {labels} has no {missing}; files belong together by name")
        found.append({"name": labels.stem, **files})
    if not found:
        raise FileNotFoundError(f"labels={folders['labels']} holds no PNG file")
    return found


def score(settings: Settings, say: Callable[[str], None] = print) -> tuple[dict[str, Evaluation], dict[str, list[float]]]:
    """What the command does. Returns (evaluations by row, share of differing labels of every picture by preset)."""
    from seglite.evaluate_report import show, write

    if settings.threads:
        torch.set_num_threads(settings.threads)
    presets = {name: preset_of(name) for name in settings.crf}
    files, K = find_files(settings), len(settings.classes)
    rows = ["as given", *(["refined="] if settings.refined else []), *presets]
    results = {row: Evaluation(Confusion(settings.classes), BoundaryIoU(K), trimap=Trimap(K, settings.widths) if settings.widths else None) for row in rows}
    errors: dict[str, list[float]] = {name: [] for name in presets}
    seconds = dict.fromkeys(presets, 0.0)
    shown = {round(i) for i in np.linspace(0, len(files) - 1, min(settings.keep, len(files)))}
    say(f"{len(files)} label maps, {K} classes, each trusted with {settings.gt_prob:g}")
    for index, paths in enumerate(files):
        image, truth = read_image(paths["photos"]), read_mask(paths["truths"], K)
        maps = {row: read_mask(paths[key], K) for row, key in (("as given", "labels"), ("refined=", "refined")) if row in rows}
        for what, shape in (("photograph", image.shape[:2]), ("truth", truth.shape)):
            if shape != maps["as given"].shape:
                raise ValueError(f"label map {paths['labels']} is {list(maps['as given'].shape)} and its {what} {list(shape)} pixels (rows, columns), "
                                 "expected equal sizes")
        for name, preset in presets.items():
            began = time.perf_counter()
            maps[name] = refine_map(image, maps["as given"], preset, settings.gt_prob)
            seconds[name] += time.perf_counter() - began
            if settings.exact:
                errors[name].append(lattice_error(image, maps["as given"], preset, settings.gt_prob, settings.exact))
        for row, result in results.items():
            for counter in (result.confusion, result.boundary, *([result.trimap] if result.trimap else [])):
                counter.add(truth, maps[row])
            if index in shown:
                result.samples.append({"name": paths["name"], "image": image, "truth": truth, "prediction": maps[row]})
    for name in presets:
        results[name].images_per_second = len(files) / max(seconds[name], 1e-9)
    show(results, say)
    if settings.exact:
        say(f"\nlabels that the lattice gives otherwise than the exact float64 sum, {settings.exact} pixels wide or high:")
        for name, shares in errors.items():
            say(f"  {name}: mean {100 * np.mean(shares):.2f} %, from {100 * min(shares):.2f} to {100 * max(shares):.2f} % of a picture")
    if settings.out:
        write(Path(settings.out), results, SimpleNamespace(classes=settings.classes, palette=voc_palette(K)), settings)
        say(f"written: {settings.out}")
    return results, errors


def main(arguments: list[str]) -> int:
    from seglite import commands

    return commands.serve("seglite.evaluate_maps", "photos=FOLDER labels=FOLDER truths=FOLDER", Settings, arguments, body=lambda settings, _: score(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
