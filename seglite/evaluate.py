"""Score a predictor on a data set: confusion matrix, boundary IoU, speed, and a few images to look at."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from seglite.data import normalise
from seglite.metrics import BoundaryIoU, Confusion

TOGETHER = 1 << 18  # pixels that go through the network at once when images are small


@dataclass
class Evaluation:
    confusion: Confusion
    boundary: BoundaryIoU
    samples: list[dict] = field(default_factory=list)
    """a few images: name, image uint8 [H, W, 3], truth and prediction uint8 [H, W]"""
    images_per_second: float = 0.0
    """network and argmax only, reading left out"""

    def headline(self) -> dict[str, float]:
        """The numbers by name, as result.json keeps them."""
        return {**self.confusion.summary(), "boundary_miou": self.boundary.miou(), "images_per_second": self.images_per_second}


@torch.no_grad()
def label_maps(predict: Callable, images: list[np.ndarray], data, device) -> np.ndarray:
    """uint8 images of one size -> uint8 label maps [B, H, W]: scores are enlarged to the image before the argmax."""
    x = normalise(np.stack(images), data).to(device)
    H, W = x.shape[-2:]
    scores = predict(x)
    if scores.shape[-2:] != (H, W):
        scores = F.interpolate(scores.float(), (H, W), mode="bilinear", align_corners=False)
    return scores.argmax(1).to(torch.uint8).cpu().numpy()


def evaluate(predict: Callable, data, device="cpu", keep: int = 6) -> Evaluation:
    """Run `predict` over `data`, which must give images and masks.

    predict: image float [B, 3, H, W] normalised -> scores [B, K, h, w] (logits or probabilities, any h, w).
    keep: how many images to return for pictures, spread evenly over the data set.
    """
    result = Evaluation(Confusion(data.classes), BoundaryIoU(data.classes))
    shown = {round(i) for i in np.linspace(0, len(data) - 1, min(keep, len(data)))}
    seconds = 0.0
    waiting: list[tuple[int, dict]] = []

    def flush():
        nonlocal seconds
        if not waiting:
            return
        began = time.perf_counter()
        predictions = label_maps(predict, [s["image"] for _, s in waiting], data, device)
        seconds += time.perf_counter() - began
        for (index, sample), prediction in zip(waiting, predictions):
            result.confusion.add(sample["mask"], prediction)
            result.boundary.add(sample["mask"], prediction)
            if index in shown:
                result.samples.append({"name": data.name(index), "image": sample["image"], "truth": sample["mask"], "prediction": prediction})
        waiting.clear()

    for index in range(len(data)):
        sample = data.read(index, ("image", "mask"))
        if waiting and (sample["image"].shape != waiting[0][1]["image"].shape or (len(waiting) + 1) * sample["mask"].size > TOGETHER):
            flush()
        waiting.append((index, sample))
    flush()
    result.images_per_second = len(data) / max(seconds, 1e-9)
    return result
