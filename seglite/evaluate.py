"""Score a predictor on a data set: IoU under the four conventions, boundary measures, speed, and images to look at.

A predictor is any function image float [B, 3, H, W] normalised -> scores [B, K, h, w], logits or probabilities. Three wrappers turn one
into a better and slower one; all of them return probabilities [B, K, H, W]:

    multi_scale(predict, (0.75, 1, 1.25), flip=True)    mean of the softmax over scales and mirror images
    sliding_window(predict, 513)                        large images in overlapping windows, softmax averaged where they overlap
    with_crf(predict, data, "deeplab-voc")              borders moved to the edges of the photograph (seglite/crf.py)

    python -m seglite.evaluate run=runs/marsstyle-scenes                                   a finished run on its validation images
    python -m seglite.evaluate run=runs/... data=voc root=VOC scales=0.5,1,1.5 flip=true   elsewhere, with test-time augmentation
    python -m seglite.evaluate model=deeplabv3_mobilenetv2 weights=... root=VOC crf=deeplab-voc        published weights, before and after a CRF
"""
from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from seglite.config import Config, UsageError
from seglite.data import normalise, open_data
from seglite.metrics import BoundaryIoU, Confusion, Trimap, best_class

TOGETHER = 1 << 18  # pixels that go through the network at once when images are small


@dataclass
class Evaluation:
    confusion: Confusion
    boundary: BoundaryIoU
    samples: list[dict] = field(default_factory=list)
    """a few images: name, image uint8 [H, W, 3], truth and prediction uint8 [H, W]"""
    images_per_second: float = 0.0
    """network and argmax only, reading left out; a network that several rows share counts in each of them"""
    trimap: Trimap | None = None
    """mIoU in bands around the true boundaries, when widths were asked for"""

    def merge(self, other: "Evaluation") -> "Evaluation":
        """Both as one data set; the samples and the speed are those of `self`."""
        bands = [copy.deepcopy(self.trimap).merge(other.trimap)] if self.trimap and other.trimap else [None]
        return Evaluation(copy.deepcopy(self.confusion).merge(other.confusion), copy.deepcopy(self.boundary).merge(other.boundary), self.samples,
                          self.images_per_second, *bands)

    def headline(self) -> dict[str, float]:
        """The numbers by name, as result.json keeps them."""
        return {**self.confusion.summary(), "boundary_miou": self.boundary.miou(), "images_per_second": self.images_per_second}


def labels_of(predict: Callable, x: torch.Tensor) -> np.ndarray:
    """Normalised images [B, 3, H, W] -> uint8 label maps [B, H, W]: scores are enlarged to the image before the argmax."""
    return best_class(enlarge(predict(x), x)).to(torch.uint8).cpu().numpy()


def enlarge(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """scores [B, K, h, w] -> float [B, K, H, W] of the image, bilinear with pixel centres aligned."""
    size = image.shape[-2:]
    return scores if scores.shape[-2:] == size else F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)  # [B, K, H, W]


@torch.no_grad()
def label_maps(predict: Callable, images: list[np.ndarray], data, device) -> np.ndarray:
    """uint8 images of one size -> uint8 label maps [B, H, W]."""
    return labels_of(predict, normalise(np.stack(images), data).to(device))


def evaluate(predict: Callable, data, device="cpu", keep: int = 6, widths: Sequence[int] = (), indices: Sequence[int] | None = None) -> Evaluation:
    """Run `predict` over `data`, which must give images and masks.

    predict: image float [B, 3, H, W] normalised -> scores [B, K, h, w] (logits or probabilities, any h, w).
    keep: how many images to return for pictures, spread evenly over the data set.
    widths: widths in pixels of the bands for the trimap curve; none: no curve. indices: these images only.
    """
    return evaluate_many({"": predict}, data, device, keep, widths, indices)[""]


def confusion_of(predict: Callable, data, device="cpu") -> Confusion:
    """Which pixels are right, nothing else: judging borders takes longer than a small network takes to answer, and is left to `evaluate`."""
    found = Confusion(data.classes)
    for sample in (data.read(i, ("image", "mask")) for i in range(len(data))):
        found.add(sample["mask"], label_maps(predict, [sample["image"]], data, device)[0])
    return found


@torch.no_grad()
def evaluate_many(predicts: dict[str, Callable], data, device="cpu", keep: int = 6, widths: Sequence[int] = (),
                  indices: Sequence[int] | None = None, progress: Callable[[int, int, dict], None] | None = None) -> dict[str, Evaluation]:
    """`evaluate` for several predictors in one pass over the images; wrap in `Once` what they share. progress: told (read, all, evaluations so far)."""
    indices = list(range(len(data))) if indices is None else [int(i) for i in indices]
    if not indices:
        raise ValueError("there is no image to evaluate on: the list of indices is empty")
    results = {name: Evaluation(Confusion(data.classes), BoundaryIoU(data.classes), trimap=Trimap(data.classes, widths) if len(widths) else None)
               for name in predicts}
    shown = {indices[round(i)] for i in np.linspace(0, len(indices) - 1, min(keep, len(indices)))}
    seconds = dict.fromkeys(predicts, 0.0)
    waiting: list[tuple[int, dict]] = []

    def flush():
        if not waiting:
            return
        x = normalise(np.stack([s["image"] for _, s in waiting]), data).to(device)
        for name, predict in predicts.items():
            began = Once.clock()
            predictions = labels_of(predict, x)
            seconds[name] += Once.clock() - began
            result = results[name]
            for (index, sample), prediction in zip(waiting, predictions):
                for counter in (result.confusion, result.boundary, *([result.trimap] if result.trimap else [])):
                    counter.add(sample["mask"], prediction)
                if index in shown:
                    result.samples.append({"name": data.name(index), "image": sample["image"], "truth": sample["mask"], "prediction": prediction})
        waiting.clear()

    for done, index in enumerate(indices):
        sample = data.read(index, ("image", "mask"))
        if waiting and (sample["image"].shape != waiting[0][1]["image"].shape or (len(waiting) + 1) * sample["mask"].size > TOGETHER):
            flush()
        waiting.append((index, sample))
        if progress is not None:
            progress(done + 1, len(indices), results)
    flush()
    for name, result in results.items():
        result.images_per_second = len(indices) / max(seconds[name], 1e-9)
    return results


# ---- wrappers ---------------------------------------------------------------------------------------------------------------------------


class Once:
    """A predictor that remembers its last answer, for several wrappers around one network."""

    spared = 0.0  # seconds that answers from memory did not take, of all such predictors

    def __init__(self, predict: Callable):
        self.predict, self.seen, self.scores, self.seconds = predict, None, None, 0.0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if image is self.seen:
            Once.spared += self.seconds
            return self.scores
        began = self.clock()
        self.scores, self.seen = self.predict(image), image
        if self.scores.is_cuda:
            torch.cuda.synchronize(self.scores.device)  # what was only launched so far would be no time at all
        self.seconds = self.clock() - began
        return self.scores

    @staticmethod
    def clock() -> float:
        """Seconds as if nothing were remembered: a wrapper around a shared network is as slow as that network and itself."""
        return time.perf_counter() + Once.spared


def probabilities(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Scores [B, K, h, w] -> probabilities [B, K, H, W] of the image's size. Logits are enlarged first, then normalised.

    What is nowhere negative and sums to 1 at every pixel is taken as probabilities already.
    """
    full = enlarge(scores, image).float()
    if float(full.amin()) >= 0 and float((full.sum(1) - 1).abs().amax()) < 1e-3:
        return full
    return full.softmax(1)  # [B, K, H, W]


def multi_scale(predict: Callable, scales: Sequence[float] = (1.0,), flip: bool = False) -> Callable:
    """Test-time augmentation: the mean of the probabilities over scaled and mirrored images."""
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be one or more positive factors, got {tuple(scales)}")

    def averaged(image: torch.Tensor) -> torch.Tensor:
        total, size = 0, image.shape[-2:]
        for scale in scales:
            new = tuple(max(1, round(n * scale)) for n in size)
            view = image if new == tuple(size) else F.interpolate(image, new, mode="bilinear", align_corners=False, antialias=scale < 1)
            total = total + probabilities(predict(view), image)
            if flip:
                total = total + probabilities(predict(view.flip(-1)).flip(-1), image)
        return total / (len(scales) * (1 + flip))  # [B, K, H, W]

    return averaged


def window_starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: equal steps, at least `overlap` of a window shared, the last one flush with the end."""
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / max(1, int(side * (1 - overlap))))
    return [round(i * (length - side) / steps) for i in range(steps + 1)]


def sliding_window(predict: Callable, side: int, overlap: float = 1 / 3) -> Callable:
    """Large images in square windows; their probabilities are averaged where windows overlap. A smaller image is one window as it is."""
    if side < 1 or not 0 <= overlap < 1:
        raise ValueError(f"a window needs side >= 1 and 0 <= overlap < 1, got side={side}, overlap={overlap}")

    def windowed(image: torch.Tensor) -> torch.Tensor:
        H, W = image.shape[-2:]
        total, count = None, image.new_zeros(1, 1, H, W)
        for top in window_starts(H, side, overlap):
            for left in window_starts(W, side, overlap):
                place = (..., slice(top, top + side), slice(left, left + side))
                view = image[place]
                found = probabilities(predict(view), view)  # [B, K, h, w]
                if total is None:
                    total = found.new_zeros(*found.shape[:2], H, W)
                total[place] += found
                count[place] += 1
        return total / count  # [B, K, H, W]

    return windowed


def photographs(image: torch.Tensor, data) -> torch.Tensor:
    """Normalised images [B, 3, H, W] -> their colours, uint8 0..255 as a CRF measures distances in. Bytes cannot be mistaken for an image in 0..1."""
    mean, std = (torch.tensor(v, dtype=image.dtype, device=image.device)[:, None, None] for v in (data.mean, data.std))
    return ((image * std + mean) * 255).round().clamp(0, 255).byte()  # [B, 3, H, W]


def with_crf(predict: Callable, data, preset="deeplab-voc", skip_below: float = 0.0) -> Callable:
    """The predictor's probabilities refined by the fully connected CRF; see seglite.crf.dense_crf."""
    from seglite.crf import dense_crf

    return lambda image: dense_crf(photographs(image, data), probabilities(predict(image), image), preset, skip_below=skip_below)


# ---- python -m seglite.evaluate ---------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """Score a finished run, or published weights, on the images of a data set."""

    run: str = ""
    """folder of a finished run"""
    model: Literal["", "deeplabv3_mobilenetv2"] = ""
    """instead of a run: a network whose published weights are in weights="""
    weights: str = ""
    """file of the published weights"""
    data: str = ""
    """data set; empty: the run's own, voc for published weights"""
    root: str = ""
    """folder of the data set; empty: the run's own"""
    split: Literal["val", "train"] = "val"
    """which images"""
    list: str = ""
    """part of data= that stands for this split: voc: a list's name or file; camvid: train, val, test; cityscapes, coco: a list's file; empty: as usual"""
    images: int = 0
    """a random sample of this many images; 0: all of them"""
    seed: int = 0
    """seed of that sample and of the halves of search="""
    scales: tuple[float, ...] = (1.0,)
    """sizes at which the image is seen; their probabilities are averaged"""
    flip: bool = False
    """also see the mirror image"""
    window: int = 0
    """side in pixels of a sliding window; 0: the whole image at once"""
    overlap: float = 1 / 3
    """least share of a window that its neighbour sees too"""
    crf: tuple[str, ...] = ()
    """also refine by CRFs: presets of seglite.crf, or values like 1/3/67/3/4 or 1/3/67/3/4/10/after"""
    skip_below: float = 0.0
    """labels that stay below this probability everywhere in an image are left out of its CRF, to save time"""
    search: int = 0
    """search the first CRF's parameters on this many images of one half, report on the other half, and the CRF as named on all; 0: no search"""
    widths: tuple[int, ...] = (1, 2, 5, 10, 20, 40)
    """bands of the trimap curve, pixels"""
    out: str = ""
    """folder for evaluation.json, classes.csv, confusion.png, trimap.png and samples.png; empty: only print"""
    keep: int = 6
    """images in samples.png"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    debug: bool = False
    """show tracebacks"""


def open_predictor(settings, root: str = "", methods: dict | None = None) -> tuple[Callable, object, str, Callable]:
    """(predict, run's own data or None, device, close) from run= or model= and weights=. `settings`: this module's or seglite.predict's.

    root: where the run's own data set lies now; empty: where it was.
    """
    from seglite.reopen import open_run
    from seglite.run import choose_device

    if bool(settings.run) == bool(settings.model):
        raise UsageError("give either run=FOLDER of a finished run, or model=deeplabv3_mobilenetv2 with weights=FILE")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.run:
        moved = {"root": root} if root else {}
        predict, data, run = open_run(settings.run, methods, device=settings.device, threads=settings.threads, **moved)
        return predict, data, run.device, run.close
    from seglite.data.voc import Voc
    from seglite.nets.segmenters import DeepLabV3Mobile
    from seglite.nets.weights import load_weights

    if not settings.weights:
        raise UsageError(f"model={settings.model} needs weights=FILE, its published weights")
    device = choose_device(settings.device)[0]
    model = DeepLabV3Mobile(len(Voc.classes))
    load_weights(model, settings.weights)
    model.to(device).eval()
    return torch.no_grad()(model.predict), None, device, lambda: None


def views(predict: Callable, settings) -> Callable:
    """The predictor as the settings want it used: windows inside, scales and mirror images around them."""
    if settings.window:
        predict = sliding_window(predict, settings.window, settings.overlap)
    if tuple(settings.scales) != (1.0,) or settings.flip:
        predict = multi_scale(predict, settings.scales, settings.flip)
    return predict


def open_images(settings, own):
    """The data set to score on: the run's validation split, or the one that data= and root= name. Class lists must agree."""
    if own is not None and not settings.data and settings.split == "val" and not settings.list:
        return own
    if own is not None and not settings.data:
        raise UsageError(f"{'list=' if settings.list else 'split=' + settings.split} needs data= (and root=), since a finished run opens its validation images only")
    config = Config(data=settings.data or "voc", root=settings.root)
    if settings.list:
        lists = getattr(config, config.data, None)
        if not isinstance(getattr(lists, settings.split, None), str):
            raise UsageError(f"list= names a part of voc, camvid, cityscapes or coco; data={config.data} has no such parts")
        setattr(lists, settings.split, settings.list)
    data = open_data(config, settings.split)
    from seglite.data.voc import Voc

    classes = tuple(own.classes) if own is not None else tuple(Voc.classes)
    if tuple(data.classes) != classes:
        raise UsageError(f"the network knows {len(classes)} classes ({', '.join(classes[:4])}, ...), data={settings.data} has {len(data.classes)} "
                         f"({', '.join(data.classes[:4])}, ...); scores between different class lists mean nothing")
    return data


def score(settings: Settings, methods: dict | None = None, say: Callable[[str], None] = print) -> dict[str, Evaluation]:
    """What the command does. Returns the evaluations by row name."""
    from seglite.crf import preset_of
    from seglite.evaluate_report import show, write

    presets = {name: preset_of(name) for name in settings.crf}
    if settings.search and not presets:
        raise UsageError("search= improves the parameters of a CRF: name the one to start from, for example crf=deeplab-voc")
    predict, own, device, close = open_predictor(settings, "" if settings.data else settings.root, methods)
    try:
        data = open_images(settings, own)
        order = np.random.RandomState(settings.seed).permutation(len(data))  # RandomState: the same numbers in every version of numpy
        indices = np.sort(order[: settings.images]) if settings.images else np.arange(len(data))
        base = Once(views(predict, settings))
        rows = {"scores": base}
        if settings.search:
            shuffled = order[np.isin(order, indices)]
            half = len(shuffled) // 2
            if not 0 < settings.search <= half:
                raise UsageError(f"search={settings.search} images must come from one half of the {len(shuffled)} images, at most {half}")
            found = search_crf(base, data, device, shuffled[: settings.search], presets[settings.crf[0]], settings.skip_below, say)
            indices = np.sort(shuffled[half:])
            rows[f"searched {spell(found)}"] = with_crf(base, data, found, settings.skip_below)
        rows |= {name: with_crf(base, data, preset, settings.skip_below) for name, preset in presets.items()}
        say(f"{len(indices)} of {len(data)} images")
        began = time.monotonic()

        def progress(done, total, so_far):
            if done * 10 // total > (done - 1) * 10 // total:
                reached = ", ".join(f"{name} {100 * r.confusion.miou():.2f}" for name, r in so_far.items() if r.confusion.counts.any())
                say(f"  {done}/{total} images, {time.monotonic() - began:.0f} s" + (f", mIoU so far: {reached}" if reached else ""))

        results, whole = evaluate_many(rows, data, device, settings.keep, settings.widths, indices, progress), {}
        show(results, say)
        if settings.search:  # what needed no search may be judged on both halves
            named = ("scores", settings.crf[0])
            first = evaluate_many({name: rows[name] for name in named}, data, device, 0, settings.widths, np.sort(shuffled[:half]))
            whole = {name: results[name].merge(first[name]) for name in named}
            say(f"\nboth halves, {len(shuffled)} images:")
            show(whole, say)
        if settings.out:
            write(Path(settings.out), results, data, settings, whole)
            say(f"written: {settings.out}")
        return results
    finally:
        close()


# Coordinates of the search, in this order: what moves the result most comes first. DeepLab searched the last three (section 4.1 of v2).
GRID = {"bilateral_srgb": (3, 5, 8, 13), "bilateral_sxy": (30, 50, 67, 100), "bilateral_weight": (2, 3, 4, 6), "gaussian_sxy": (1, 3),
        "gaussian_weight": (1, 3), "normalization": ("after", "symmetric")}


@torch.no_grad()
def search_crf(predict: Callable, data, device, indices, start, skip_below: float = 0.0, say: Callable[[str], None] = print, grid: dict = GRID):
    """The `Preset` of highest mIoU on these images, by trying the values of one parameter after the other, the best so far kept.

    Report what it gives on other images: on these the score is flattered.
    """
    from dataclasses import replace

    from seglite.crf import dense_crf

    kept = []  # the network runs once; half precision, since an image has K times its pixels of probabilities
    for i in indices:
        sample = data.read(int(i), ("image", "mask"))
        x = normalise(sample["image"][None], data).to(device)
        kept.append((sample, probabilities(predict(x), x)[0].half()))

    def miou(preset) -> float:
        counts = Confusion(data.classes)
        for sample, p in kept:
            image = torch.from_numpy(sample["image"]).movedim(-1, 0)
            counts.add(sample["mask"], dense_crf(image, p.float(), preset, skip_below=skip_below).argmax(0).cpu())
        return counts.miou()

    best, highest, tried = start, -1.0, set()
    for key, values in grid.items():
        winner = best
        for candidate in [best, *(replace(best, **{key: value}) for value in values)]:
            if candidate in tried:
                continue
            tried.add(candidate)
            reached = miou(candidate)
            say(f"  search: {spell(candidate)}  mIoU {100 * reached:.2f}" + ("  (best)" if reached > highest else ""))
            if reached > highest:
                winner, highest = candidate, reached
        best = winner
    return best


def spell(preset) -> str:
    """A preset as crf= takes it: gaussian sxy and weight, bilateral sxy, srgb and weight, iterations, normalisation."""
    numbers = (preset.gaussian_sxy, preset.gaussian_weight, preset.bilateral_sxy, preset.bilateral_srgb, preset.bilateral_weight, preset.iterations)
    return "/".join([*(f"{n:g}" for n in numbers), preset.normalization])


def main(arguments: list[str]) -> int:
    from seglite import commands

    return commands.serve("seglite.evaluate", "run=FOLDER", Settings, arguments, body=lambda settings, _: score(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
