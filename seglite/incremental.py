"""Learning classes in steps, the parts that are not BARM's: how it is scored, and two methods to compare with.

    MiB   Cermelli et al., "Modeling the background for incremental learning in semantic segmentation", CVPR 2020, arXiv 2002.00718
    PLOP  Douillard et al., "PLOP: learning without forgetting for continual semantic segmentation", CVPR 2021, arXiv 2011.11390

Both use a softmax over one shared background and all classes. "Code" below: fcdl94/MiB and arthurdouillard/CVPR2021_PLOP.

B batch, K channels (background and all classes so far), C channels of a feature map, H W image, h w feature map, D values of a pooled map.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F

from seglite.data import IGNORE, normalise
from seglite.data.steps import Task
from seglite.losses import counted_everywhere
from seglite.metrics import Confusion, best_class
from seglite.nets.segmenters import resize

# ---- scores ---------------------------------------------------------------------------------------------------------------------------


def step_scores(counts: torch.Tensor, task: Task, t: int) -> dict[str, float]:
    """What one confusion matrix says after step t, in percent; NaN where there is nothing to say. counts: int64 [K, K], rows true.

    old: background and the classes of step 0; new: everything added since; all: every channel; hIoU: their harmonic mean (DKD).
    A data set without a background class leaves background out of the means, but a class pixel called background stays an error.
    """
    confusion = Confusion(task.names[: task.seen(t)])
    confusion.counts = counts
    skip = 0 if task.background else 1
    old, new = range(skip, task.seen(0)), range(task.seen(0), task.seen(t))
    c = counts.double()
    found = {"old": confusion.miou(old), "new": confusion.miou(new) if len(new) else math.nan, "all": confusion.miou(range(skip, task.seen(t)))}
    found["hIoU"] = 2 * found["old"] * found["new"] / (found["old"] + found["new"]) if len(new) and found["old"] + found["new"] else math.nan
    found["new on true background"] = share(c[0, list(new)].sum(), c[0].sum()) if task.background and len(new) else math.nan
    found["new lost to background"] = share(c[list(new), 0].sum(), c[list(new)].sum()) if len(new) else math.nan
    found["old lost to background"] = share(c[1 : task.seen(0), 0].sum(), c[1 : task.seen(0)].sum())
    return {key: 100 * value for key, value in found.items()}


def share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return float(part / whole) if float(whole) else math.nan


def run_scores(counts: list[torch.Tensor], task: Task) -> dict[str, float]:
    """`step_scores` after the last step, and avg: the mean of "all" over every step (PLOP's column)."""
    last = step_scores(counts[-1], task, len(counts) - 1)
    return {**last, "avg": float(np.mean([step_scores(c, task, t)["all"] for t, c in enumerate(counts)]))}


# ---- what the corrections look like ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def residual_table(see: Callable, data, task: Task, device: str, images: int = 200) -> list[list]:
    """One row per later step: mean raw correction on its own class, older classes, later classes and true background; share below 0 there.

    see: image [1, 3, H, W] -> one map [1, K_s, h, w] per step, the correction first. data: the test images after the last step.
    """
    sums = np.zeros((task.steps, 4, 3))  # step, kind of pixel, (sum, count, below zero)
    for i in range(min(images, len(data))):
        sample = data.read(i)
        truth, heads = torch.from_numpy(sample["mask"].astype(np.int64)).to(device), see(normalise(sample["image"][None], data).to(device))
        for t in range(1, task.steps):
            new = task.new(t)
            r = resize(heads[t][:, :1].float(), truth.shape)[0, 0]  # [H, W]
            kinds = (truth >= new[0]) & (truth <= new[-1]), (truth > 0) & (truth < new[0]), (truth > new[-1]) & (truth != IGNORE), truth == 0
            for k, where in enumerate(kinds):
                sums[t, k] += float(r[where].sum()), int(where.sum()), int((r[where] < 0).sum())
    mean = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return [[f"step {t}: {', '.join(task.names[c] for c in task.new(t))}", *(float(m) for m in mean[t]), float(sums[t, 3, 2] / max(sums[t, 3, 1], 1))]
            for t in range(1, task.steps)]


@torch.no_grad()
def residual_pictures(see: Callable, data, task: Task, device: str, indices: list[int]) -> list[dict]:
    """Samples for `pictures.panels`: image, truth, background of step 0, each correction as it is added, their sum, the prediction.

    see: as above.
    """
    samples = []
    for i in indices:
        sample = data.read(i)
        heads = [resize(z.float(), sample["mask"].shape) for z in see(normalise(sample["image"][None], data).to(device))]
        steps = [z[0, 0] if t == 0 else z[0, 0].clamp_max(0) for t, z in enumerate(heads)]
        total = torch.stack(steps).sum(0)  # [H, W]
        maps = {"background": steps[0], **{f"r{t}: {task.names[task.new(t)[0]]}": r for t, r in enumerate(steps) if t}, "their sum": total}
        extra = {name: diverging(m.cpu().numpy()) for name, m in maps.items()}
        unified = torch.cat([total[None], *(z[0, 1:] for z in heads)])  # [K, H, W]
        extra["prediction "] = unified.argmax(0).to(torch.uint8).cpu().numpy()
        samples.append({"name": data.name(i), "image": sample["image"], "truth": sample["mask"], "extra": extra})
    return samples


def diverging(values: np.ndarray, top: float = 8.0) -> np.ndarray:
    """A map of logits as a picture: blue below 0, white at 0, red above, saturated at `top`. [H, W] -> uint8 [H, W, 3]."""
    v = np.clip(values / top, -1, 1)[..., None]  # [H, W, 1]
    end = np.where(v < 0, np.array([0, 114, 178]), np.array([213, 94, 0]))  # [H, W, 3]
    return (255 + (end - 255) * np.abs(v)).astype(np.uint8)  # [H, W, 3]


# ---- MiB ------------------------------------------------------------------------------------------------------------------------------


def mib_cross_entropy(logits: torch.Tensor, target: torch.Tensor, old: int) -> torch.Tensor:
    """Equations 2 and 3: a pixel labelled background may be background or any old class, p(bg) := p(bg) + sum of p(old).

    logits [B, K, H, W], target int64 [B, H, W] with 0, new channels old .. K-1, and 255; old: channels of the previous step.
    """
    total = logits.logsumexp(1, keepdim=True)  # [B, 1, H, W]
    background = logits[:, :old].logsumexp(1, keepdim=True)  # [B, 1, H, W]
    log_p = torch.cat([background, logits[:, old:]], 1) - total
    shifted = torch.where((target > 0) & (target != IGNORE), target - old + 1, target)  # [B, H, W]
    count, processes = counted_everywhere((target != IGNORE).sum(), needs_grad=logits.requires_grad)
    return F.nll_loss(log_p, shifted, ignore_index=IGNORE, reduction="sum") / count * processes


def mib_distillation(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Equations 4 and 5: what the old model called background may be background or any new class, p(bg) := p(bg) + sum of p(new).

    logits [B, K, H, W], teacher [B, C, H, W] with C old channels. Cross-entropy divided by C (code), mean over pixels.
    """
    old = teacher.shape[1]
    total = logits.logsumexp(1, keepdim=True)  # [B, 1, H, W]
    background = torch.cat([logits[:, :1], logits[:, old:]], 1).logsumexp(1, keepdim=True)  # [B, 1, H, W]
    log_p = torch.cat([background, logits[:, 1:old]], 1) - total  # [B, C, H, W]
    return -(teacher.softmax(1) * log_p).mean()


@torch.no_grad()
def mib_start(first: torch.nn.Conv2d, new: torch.nn.Conv2d) -> None:
    """Equation 6, in place: new classes start as equal parts of the old background: its weights, its bias - log(number of parts) for all parts."""
    bias = first.bias[0] - math.log(len(new.bias) + 1)
    new.weight.copy_(first.weight[:1].expand_as(new.weight))
    new.bias.fill_(float(bias))
    first.bias[0] = bias


# ---- PLOP -----------------------------------------------------------------------------------------------------------------------------


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Of the softmax, 0 ... 1: divided by log K. [B, K, H, W] -> [B, H, W]."""
    log_p = logits.log_softmax(1)  # [B, K, H, W]
    return -(log_p.exp() * log_p).sum(1) / math.log(logits.shape[1])  # [B, H, W]


def class_thresholds(parts: Iterable[tuple[torch.Tensor, torch.Tensor]], classes: int, floor: float = 1e-3) -> torch.Tensor:
    """Section 3.2: for each old class the median entropy of the label-0 pixels that the old model gives it. [C], at least `floor` (code).

    parts: pairs of teacher logits [B, C, H, W] and labels [B, H, W].
    """
    values: list[list] = [[] for _ in range(classes)]
    unseen = torch.zeros(())
    for logits, labels in parts:
        found, u, open_ = best_class(logits), entropy(logits), labels == 0
        unseen = u.new_zeros(())  # on the device of the medians that it is stacked with
        for c in found[open_].unique().tolist():
            values[c].append(u[open_ & (found == c)])
    return torch.stack([torch.cat(v).median() if v else unseen for v in values]).clamp_min(floor)


def plop_cross_entropy(logits: torch.Tensor, target: torch.Tensor, teacher: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Equations 6 and 7: label-0 pixels take the old model's class where it is sure enough, else no label; each image counts by the share taken.

    logits [B, K, H, W], target int64 [B, H, W], teacher [B, C, H, W], thresholds [C].
    """
    found = best_class(teacher)  # [B, H, W]
    open_ = target == 0  # [B, H, W]
    sure = open_ & (entropy(teacher) < thresholds.to(teacher)[found])
    filled = torch.where(open_, torch.where(sure, found, IGNORE), target)  # [B, H, W]
    factor = sure.sum((1, 2)) / open_.sum((1, 2)).clamp_min(1)  # [B]
    each = F.cross_entropy(logits, filled, ignore_index=IGNORE, reduction="none")  # [B, H, W]
    return (each * factor[:, None, None]).mean()


def local_pod(x: torch.Tensor, scales: tuple[int, ...] = (1, 2, 4)) -> torch.Tensor:
    """Equation 4: squared activations in 1, 4 and 16 regions, each averaged over its rows and over its columns. [B, C, h, w] -> [B, D]."""
    squared, (h, w), pooled = x.square(), x.shape[-2:], []
    for s in scales:
        rows, columns = ([round(i * n / s) for i in range(s + 1)] for n in (h, w))
        for top, bottom in zip(rows, rows[1:]):
            for left, right in zip(columns, columns[1:]):
                region = squared[:, :, top:bottom, left:right]
                pooled += [region.mean(3).flatten(1), region.mean(2).flatten(1)]
    return torch.cat(pooled, 1)  # [B, D]


def pod_loss(maps: list[torch.Tensor], teacher: list[torch.Tensor], logits: torch.Tensor, old_logits: torch.Tensor, channels: int) -> torch.Tensor:
    """Equation 5 with the code's weights: 0.01 for features, 0.0005 for logits whose new channels are added to background; mean over layers;
    times the square root of (all classes / new classes). Lists of [B, C, h, w]; logits [B, K, h, w], old_logits [B, channels, h, w]."""
    new = logits.shape[1] - channels
    folded = torch.cat([logits[:, :1] + logits[:, channels:].sum(1, keepdim=True), logits[:, 1:channels]], 1)
    distances = [0.01 * (local_pod(a) - local_pod(b)).norm(dim=1).mean() for a, b in zip(maps, teacher)]
    distances.append(0.0005 * (local_pod(folded) - local_pod(old_logits)).norm(dim=1).mean())
    return torch.stack(distances).mean() * math.sqrt((logits.shape[1] - 1) / new)
