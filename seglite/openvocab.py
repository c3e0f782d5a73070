"""Segment into words: from segment tokens and class names to a score per pixel, by GroupViT's zero-shot rule.

    names --templates--> texts --text tower--> class embeddings [K, E], unit                                    (class_embeddings)
    image --model--> Segmented: tokens [B, S, E], pooled [B, E], both unit, soft assignment [B, S, h, w]
    cosines x scale -> softmax over classes, kept to the image's top 5, times the unfiltered softmax -> [B, S, K]   (segment_scores)
    assignment enlarged, arg-max over segments, one-hot @ scores -> [B, K, H, W]; background where nothing is sure  (pixel_scores)

Source: NVlabs/GroupViT, segmentation/evaluation/group_vit_seg.py (Xu et al., CVPR 2022, arXiv 2202.11094). The thresholds that papers give
(0.95 for VOC) live on the scale of these softmax products. On raw cosines, which stay near 0.3, they would make everything background.

B batch, S segment tokens, E joint embedding, K words (background is none of them), H W image, h w patches.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from seglite.metrics import Confusion

SCENES = ("a photo of a {}", "a picture of a {}", "a {}", "an image showing a {}", "there is a {} here",
          "a photo of {}", "a picture of {}", "{}", "an image showing {}", "there is {} here")
TEMPLATES = {
    "simple": ("a photo of a {}.",),  # GroupViT's segmentation configuration
    "seven": ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.", "art of the {}.",
              "a photo of the small {}."),  # CLIP's short list
    "scenes": SCENES,  # the captions of the procedural world: things with an article, grounds without
}
VOC_NAMES = {"diningtable": "table", "pottedplant": "potted plant", "tvmonitor": "monitor"}  # read as words


class Segmented(NamedTuple):
    """What a model says about a batch of images, in the space of the text tower."""

    tokens: torch.Tensor
    """segment tokens [B, S, E], unit length"""
    pooled: torch.Tensor
    """the whole image [B, E], unit length"""
    assignment: torch.Tensor
    """soft share of every patch in every segment, [B, S, h, w]; over segments the sum is 1"""


def templates(name: str) -> tuple[str, ...]:
    """A prompt set by name (simple, seven, scenes), or the lines of a text file, each with one {} for the class."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not Path(name).is_file():
        raise ValueError(f"prompts={name} is neither {', '.join(TEMPLATES)} nor a text file with one template per line")
    lines = tuple(line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip())
    bad = [line for line in lines if line.count("{}") != 1]
    if bad or not lines:
        raise ValueError(f"prompts file {name}: {bad[0] if bad else '(empty)'!r} must hold exactly one {{}} for the class name")
    return lines


@torch.no_grad()
def class_embeddings(encode_text: Callable, tokenizer, names: Sequence[str], prompts: Sequence[str] = TEMPLATES["simple"], device="cpu",
                     each_unit: bool = False) -> torch.Tensor:
    """One unit vector per class name, float32 [K, E]: the mean over the templates, then normalised.

    encode_text: int64 [B, T] -> [B, E] in any length. each_unit: normalise before the mean too, as CLIP's own notebooks do; GroupViT does not.
    Raises ValueError when a tokenizer with a word list does not know a word of a name.
    """
    known = getattr(tokenizer, "unknown", lambda name: [])
    foreign = [word for name in names for word in known(name)]
    if foreign:
        raise ValueError(f"this run's text tower never saw the word {foreign[0]!r}; it knows {len(tokenizer.words)} words: "
                         f"{', '.join(tokenizer.words[:40])}{', ...' if len(tokenizer.words) > 40 else ''}")
    rows = []
    for name in names:
        found = encode_text(tokenizer([t.format(name) for t in prompts]).to(device)).float()
        rows.append((F.normalize(found, dim=1) if each_unit else found).mean(0))
    return F.normalize(torch.stack(rows), dim=1)  # [K, E]


def segment_scores(tokens: torch.Tensor, pooled: torch.Tensor, classes: torch.Tensor, scale: float = 100.0, top: int = 5) -> torch.Tensor:
    """How much every segment is of every class: tokens [B, S, E], pooled [B, E], classes [K, E], all unit -> [B, S, K] in 0..1.

    Softmax of scale x cosine over all classes, times the same softmax over the image's `top` classes only. Which those are, the pooled image
    decides. A class outside scores 0. A segment is sure of its class only when both agree.
    """
    logits = scale * tokens @ classes.T  # [B, S, K]
    kept = (pooled @ classes.T).topk(min(top, len(classes)), dim=1).indices
    outside = torch.ones(len(tokens), len(classes), dtype=torch.bool, device=tokens.device).scatter_(1, kept, False)  # [B, K]
    return logits.softmax(-1) * logits.masked_fill(outside[:, None], -torch.inf).softmax(-1)  # [B, S, K]


def pixel_scores(assignment: torch.Tensor, scores: torch.Tensor, size: tuple[int, int], threshold: float | None) -> torch.Tensor:
    """Scores per pixel with background as channel 0: assignment [B, S, h, w], scores [B, S, K] -> [B, 1+K, H, W], (H, W) = size.

    The soft assignment is enlarged, and each pixel takes the scores of its strongest segment. Background scores 1 where the pixel's best class
    is below min(threshold, best of the image), so that at least one segment always survives. threshold None: no background, its channel is -1.
    """
    maps = F.interpolate(assignment.float(), size, mode="bilinear", align_corners=False)  # [B, S, H, W]
    strongest = maps.argmax(1).flatten(1)  # [B, H*W]
    K = scores.shape[2]
    found = scores.gather(1, strongest[..., None].expand(-1, -1, K)).transpose(1, 2).unflatten(2, size)  # [B, K, H, W]
    background = torch.full_like(found[:, :1], -1.0)  # [B, 1, H, W]
    if threshold is not None:
        limit = scores.flatten(1).amax(1).clamp(max=threshold)  # [B]
        background = (found.amax(1, keepdim=True) < limit[:, None, None, None]).float()  # [B, 1, H, W]
    return torch.cat([background, found], 1)  # [B, 1+K, H, W]


class WordPredictor:
    """image float [B, 3, H, W] normalised -> scores [B, 1+K, H, W], for any list of words; what `run.report` and `seglite.predict` take.

    Args:
        segment: image -> Segmented. embed: list of names -> class embeddings [K, E].
        names: the words; classes are ("background", *names).
        scale, top, threshold: see `segment_scores`, `pixel_scores`.
        short_side: resize the image so that its shorter side has this many pixels first (448 in the papers); 0: as it is.
        window, stride: see larger images in square windows of this side, their scores averaged (448 and 224 in GroupViT); 0: whole.
        multiple: the model takes sides that are multiples of this (its patch); images are resized to the nearest.
    """

    def __init__(self, segment: Callable, embed: Callable, names: Sequence[str], *, scale: float = 100.0, top: int = 5, threshold: float | None = None,
                 short_side: int = 0, window: int = 0, stride: int = 0, multiple: int = 1, longest: int = 2048):
        self.segment, self.embed, self.names = segment, embed, tuple(names)
        self.options = dict(scale=scale, top=top, threshold=threshold, short_side=short_side, window=window, stride=stride, multiple=multiple, longest=longest)
        self.vectors = embed(self.names)
        self.classes = ("background", *self.names)

    def for_words(self, names: Sequence[str], **changes) -> WordPredictor:
        """The same model, asked for other words or with other options."""
        return WordPredictor(self.segment, self.embed, names, **{**self.options, **changes})

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, 1+K, H, W]."""
        o, size = self.options, tuple(image.shape[-2:])
        seen = image
        wanted = resized(size, o["short_side"], o["longest"], o["multiple"])
        if wanted != size:
            seen = F.interpolate(image, wanted, mode="bilinear", align_corners=False, antialias=True)
        scores = self.windowed(seen) if o["window"] else self.once(seen)
        return scores if wanted == size else F.interpolate(scores, size, mode="bilinear", align_corners=False)  # [B, 1+K, H, W]

    def once(self, image: torch.Tensor) -> torch.Tensor:
        """One pass: image [B, 3, H, W] -> [B, 1+K, H, W]."""
        found = self.segment(image)
        scores = segment_scores(found.tokens.float(), found.pooled.float(), self.vectors.to(image.device), self.options["scale"], self.options["top"])
        return pixel_scores(found.assignment, scores, tuple(image.shape[-2:]), self.options["threshold"])

    def windowed(self, image: torch.Tensor) -> torch.Tensor:
        """Overlapping windows, flush with the far edges as in mmsegmentation; scores averaged: image [B, 3, H, W] -> [B, 1+K, H, W]."""
        (H, W), side, stride = image.shape[-2:], self.options["window"], self.options["stride"] or self.options["window"]
        total, count = None, image.new_zeros(1, 1, H, W)
        for top in range(0, max(H - side, 0) + stride, stride):
            for left in range(0, max(W - side, 0) + stride, stride):
                top_, left_ = max(min(top, H - side), 0), max(min(left, W - side), 0)
                place = (..., slice(top_, top_ + side), slice(left_, left_ + side))
                found = self.once(image[place])
                total = image.new_zeros(*found.shape[:2], H, W) if total is None else total
                total[place] += found
                count[place] += 1
        return total / count  # [B, 1+K, H, W]


def resized(size: tuple[int, int], short_side: int, longest: int, multiple: int) -> tuple[int, int]:
    """The height and width at which an image is seen: short side as asked, long side at most `longest`, both multiples of `multiple`."""
    factor = min(short_side / min(size), longest / max(size)) if short_side else 1.0
    return tuple(max(multiple, round(s * factor / multiple) * multiple) for s in size)


@torch.no_grad()
def retrieval(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at rank r in both directions: image [B, E] and text [M, E] unit vectors, owner int64 [M] the image that a text belongs to.

    {"image to text R@1": share of images one of whose texts is the nearest, ..., "text to image R@1": ...}.
    """
    cosine = image @ text.T  # [B, M]
    found = {}
    for r in ranks:
        near = cosine.topk(min(r, len(text)), dim=1).indices
        own = owner.to(near.device)[near] == torch.arange(len(image), device=near.device)[:, None]
        found[f"image to text R@{r}"] = float(own.any(1).float().mean())
    for r in ranks:
        near = cosine.T.topk(min(r, len(image)), dim=1).indices
        found[f"text to image R@{r}"] = float((near == owner.to(near.device)[:, None]).any(1).float().mean())
    return found


def retrieval_by_chance(owner: torch.Tensor, images: int, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What `retrieval` would find on average if everything were shuffled; owner int64 [M], the same keys."""
    texts, own = len(owner), torch.bincount(owner, minlength=images).tolist()
    missed = lambda n, r: math.comb(texts - n, min(r, texts)) / math.comb(texts, min(r, texts))  # none of an image's n texts among r drawn
    return {**{f"image to text R@{r}": 1 - sum(missed(n, r) for n in own) / images for r in ranks},
            **{f"text to image R@{r}": min(r, images) / images for r in ranks}}


def things_and_grounds(found: Confusion, data) -> dict[str, float]:
    """Mean IoU of the words for things, and of those for grounds (`data.contexts`, the last ones); background is neither. NaN for an empty group."""
    first = found.classes - len(getattr(data, "contexts", ()))  # of the grounds
    mean = lambda words: found.miou(words) if len(words) else math.nan  # noqa: E731
    return {"things": mean(range(1, first)), "grounds": mean(range(first, found.classes))}
