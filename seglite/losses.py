"""The losses that several papers share. What only one paper needs stands in that paper's file.

    cross_entropy            per pixel, ignoring 255, optional weight per pixel     (nearly all papers)
    ohem_cross_entropy       the same, over the hardest pixels only                 (P2AT; MGD on Cityscapes)
    multilabel_soft_margin   per image, against the tags                            (classifiers behind activation maps)

Two habits for all of them. The arithmetic is float32 even under autocast: a log-softmax over bfloat16 logits loses the third digit of
the loss. And a mean over pixels divides by the number of counted pixels *in the whole batch*, over all processes: averaging the means
of unequal shares, which is what DistributedDataParallel would do, weighs a pixel by how many ignored ones happen to sit beside it.

B batch, K classes, H W image size.
"""
from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from seglite import parallel

IGNORE = 255


def _check(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Raise unless logits are float [B, K, H, W] and target int64 [B, H, W] of the same B, H, W with ids below K or 255."""
    if logits.ndim != 4 or target.ndim != 3 or logits.shape[0] != target.shape[0] or logits.shape[2:] != target.shape[1:]:
        raise ValueError(f"logits are {list(logits.shape)} and target is {list(target.shape)}, expected [B, K, H, W] and [B, H, W]; "
                         "enlarge the logits to the target's size before the loss")
    if target.dtype != torch.int64:
        raise TypeError(f"target is {target.dtype}, expected torch.int64 class ids (255 = ignore)")


def counted_everywhere(count: torch.Tensor, across_processes: bool | None = None, needs_grad: bool = True) -> tuple[torch.Tensor, int]:
    """(the sum of `count` over processes, at least 1; the number of processes): what a mean over the whole batch divides by and is multiplied with.

    DistributedDataParallel averages gradients over processes, so sum / count * processes on each comes out as the gradient of the whole batch's mean.
    across_processes None: whenever the loss carries a gradient, `needs_grad`; an evaluation on one process alone must not wait for the others,
    and inside `parallel.alone()` no loss does.
    """
    if across_processes is None:
        across_processes = needs_grad
    world = parallel.world() if across_processes else 1
    if world > 1:
        count = count.detach().clone()
        dist.all_reduce(count)
    return count.clamp_min(1), world


def _share_of_mean(total: torch.Tensor, count: torch.Tensor, across_processes: bool | None, needs_grad: bool) -> torch.Tensor:
    """This process's part of sum(total over processes) / sum(count over processes), times the number of processes.

    Without counted pixels the result is 0 and still carries a gradient (of zeros), so that no process leaves the others waiting.
    """
    count, world = counted_everywhere(count, across_processes, needs_grad)
    return total * (world / count)


def pixel_cross_entropy(logits: torch.Tensor, target: torch.Tensor, ignore: int = IGNORE) -> torch.Tensor:
    """-log softmax of the true class at every pixel, 0 where the target is `ignore`; float32 [B, H, W].

    logits float [B, K, H, W]; target int64 [B, H, W].
    """
    _check(logits, target)
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float(), target, ignore_index=ignore, reduction="none")  # [B, H, W]


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, ignore: int = IGNORE,
                  across_processes: bool | None = None) -> torch.Tensor:
    """Mean cross-entropy over the counted pixels (target not `ignore`), a float32 scalar; 0 with a zero gradient when there is none.

    logits float [B, K, H, W]; target int64 [B, H, W].
    weight: optional float [B, H, W] per pixel (a confidence, say; not differentiated by us, pass it detached if it should not be).
        The sum is divided by the number of counted pixels, not by the sum of weights: a batch of low confidence must give a small step
        (CW-BASS's confidence-weighted loss, MARS Eq. 7). Weight 0 is therefore not the same as ignore.
    across_processes: divide by the count of all processes. None: whenever the logits carry a gradient.
    Raises ValueError on shapes that do not match, TypeError on a target that is not int64.
    """
    loss = pixel_cross_entropy(logits, target, ignore)  # [B, H, W]
    if weight is not None:
        if weight.shape != target.shape:
            raise ValueError(f"weight is {list(weight.shape)}, expected the target's shape {list(target.shape)}")
        # An infinite or NaN weight on an ignored pixel must not leak, also not backwards (0 * NaN is NaN), so it is replaced first.
        loss = loss * torch.where(target != ignore, weight.float(), 0.0)  # [B, H, W]
    return _share_of_mean(loss.sum(), (target != ignore).sum(), across_processes, logits.requires_grad)


def ohem_cross_entropy(logits: torch.Tensor, target: torch.Tensor, threshold: float = 0.7, keep: int = 100_000, ignore: int = IGNORE,
                       across_processes: bool | None = None) -> torch.Tensor:
    """Online hard example mining: mean cross-entropy over the pixels whose true class is not yet likely, a float32 scalar.

    A pixel is hard when softmax gives its true class at most max(threshold, p), p being the `keep`-th smallest such probability in this
    process's batch: all pixels below the threshold, and never fewer than `keep` (all, if there are fewer; ties at p come along).
    P2AT: threshold 0.9, keep 131,072 (PIDNet's); MGD on Cityscapes: 0.7, 50,000 per image. The choice itself is not differentiated.
    logits float [B, K, H, W]; target int64 [B, H, W]; across_processes as in `cross_entropy` (each process picks its own hard pixels).
    """
    if not 0 < threshold <= 1 or keep < 1:
        raise ValueError(f"OHEM needs 0 < threshold <= 1 and keep >= 1, got threshold={threshold}, keep={keep}")
    loss = pixel_cross_entropy(logits, target, ignore)  # [B, H, W]
    counted = target != ignore  # [B, H, W]
    likely = torch.exp(-loss.detach())  # [B, H, W]
    if int(counted.sum()) > keep:
        threshold = max(threshold, float(likely[counted].kthvalue(keep).values))
        counted = counted & (likely <= threshold)  # [B, H, W]
    return _share_of_mean(torch.where(counted, loss, 0.0).sum(), counted.sum(), across_processes, logits.requires_grad)


def multilabel_soft_margin(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of one sigmoid per class against image tags, a float32 scalar.

    logits float [B, C], one score per taggable class (C = K - 1, no background); tags float [B, C], 1 where the class is in the image.
    Every image and class weighs the same, so N processes with equal shares average to one process without help.
    """
    if logits.shape != tags.shape or logits.ndim != 2:
        raise ValueError(f"logits are {list(logits.shape)} and tags {list(tags.shape)}, expected both [B, C] with one column per foreground class")
    with torch.autocast(logits.device.type, enabled=False):
        return F.binary_cross_entropy_with_logits(logits.float(), tags.float())


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient of this process's rows is the sum of everybody's, since everybody compares with them."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor | float, across_processes: bool | None = None) -> torch.Tensor:
    """Symmetric InfoNCE of image-text pairs (CLIP, section 2.3; GroupViT, Eq. 7 and 8), a float32 scalar; log(B) by chance.

    image, text: unit vectors [B, E], row i of one belonging to row i of the other. scale: what cosines are multiplied by (1 / temperature).
    Every text of the batch is a wrong answer for every other image, over all processes: the rows are gathered with their gradients.
    across_processes: compare with the rows of all processes. None: whenever the images carry a gradient.
    Raises ValueError on shapes that do not match.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"images are {list(image.shape)} and texts {list(text.shape)}, expected both [B, E], one text per image")
    if across_processes is None:
        across_processes = image.requires_grad
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        images, texts, first = image, text, 0
        if across_processes and parallel.world() > 1:
            images, texts, first = _Gather.apply(image), _Gather.apply(text), dist.get_rank() * len(image)
        target = torch.arange(first, first + len(image), device=image.device)  # [B]
        return (F.cross_entropy(scale * image @ texts.T, target) + F.cross_entropy(scale * text @ images.T, target)) / 2
