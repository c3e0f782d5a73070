"""Class activation maps: where a classifier that only ever saw image tags looks.

A classifier whose last layer is a 1x1 convolution followed by global average pooling has, before the pooling, one score map per class;
the pooled score is its mean, so the map says which places voted for the class (Zhou et al., CVPR 2016, arXiv 1512.04150, section 2).

    image -> score_maps -> ReLU -> mean over scales and mirror images -> / maximum per class -> [B, K-1, h, w] in 0..1
                                                                          background constant -> label map [B, H, W]

B batch, K classes (background included, so K-1 tags), H W image, h w map, scores: any function image [B, 3, H, W] -> [B, K-1, h, w].
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from seglite.data import normalise as normalised_images
from seglite.metrics import best_class
from seglite.nets.mobilenet import MobileNetV2, mobilenet_v2
from seglite.nets.resnet import resnet50, resnet101
from seglite.nets.weights import load_weights

TOGETHER = 1 << 19  # pixels that pass through a frozen network at once


@torch.no_grad()
def activation_maps(scores: Callable, image: torch.Tensor, scales: Sequence[float] = (1.0,), flip: bool = False) -> torch.Tensor:
    """Positive class evidence, averaged over image scales and the mirror image.

    image float [B, 3, H, W] normalised -> float [B, K-1, h, w] >= 0 at the resolution of the first scale. Averaging over scales (Ahn et al.,
    CVPR 2019, arXiv 1904.05044, section 6.1) makes the maps finer than one forward pass: large scales add detail, small ones add extent.
    """
    if not scales:
        raise ValueError("scales is empty; activation maps need at least one image scale, such as (1.0,)")
    H, W = image.shape[-2:]
    found = []
    for scale in scales:
        scaled = image if scale == 1.0 else F.interpolate(image, (round(H * scale), round(W * scale)), mode="bilinear", align_corners=False)
        found.append(F.relu(scores(scaled)))
        if flip:
            found.append(F.relu(scores(scaled.flip(-1))).flip(-1))
    size = found[0].shape[-2:]
    return sum(F.interpolate(f, size, mode="bilinear", align_corners=False) for f in found) / len(found)  # [B, K-1, h, w]


def normalise(maps: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Each map divided by its own maximum; classes that the tags rule out become 0.

    maps [B, K-1, h, w] >= 0, tags [B, K-1] in {0, 1} -> [B, K-1, h, w] in 0..1.
    """
    peak = maps.amax((2, 3), keepdim=True).clamp_min(1e-5)  # a class without any evidence stays 0 instead of 0/0
    return maps / peak * tags[:, :, None, None].to(maps)


def seeds(maps: torch.Tensor, background: float, size: tuple[int, int]) -> torch.Tensor:
    """Label map: the strongest class where it exceeds the constant `background`, else 0.

    maps [B, K-1, h, w] in 0..1 (from `normalise`) -> int64 [B, H, W] with (H, W) = size and labels 0..K-1. A low constant gives generous
    masks, as propagation methods such as IRN do; a high one keeps the most discriminative parts only.
    """
    if not 0 < background < 1:
        raise ValueError(f"background={background}: maps lie in 0..1, so the background's score must lie between")
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    floor = torch.full_like(maps[:, :1], background)
    return best_class(torch.cat([floor, maps], 1))


# ---- the classifier, and a way through a data set -------------------------------------------------------------------------------------


def trunk(name: str, output_stride: int, weights: str, say: Callable = print, to_classify: bool = False) -> nn.Module:
    """An ImageNet backbone without its classifier; random without `weights`.

    `to_classify` keeps MobileNetV2's last 1x1 convolution (features.18): the layer before it is a thin linear bottleneck, on which a new
    classifier learns little in a few hundred steps, while a segmenter's head brings its own convolutions.
    """
    build = {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50, "resnet101": resnet101}[name]
    widened = to_classify and name == "mobilenet_v2"
    net = build(classes=int(widened), output_stride=output_stride)
    if widened:
        net.classifier = None
    if weights:
        load_weights(net, weights, partial=("fc.", "classifier.") if widened else ("fc.", "classifier.", "features.18."), say=say)
    return net


class TagClassifier(nn.Module):
    """Backbone, 1x1 convolution without bias, mean: the same three methods as SmallClassifier."""

    def __init__(self, backbone: nn.Module, tags: int):
        super().__init__()
        self.backbone = backbone
        self.widened = isinstance(backbone, MobileNetV2) and backbone.widening is not None
        channels = backbone.widening[0].out_channels if self.widened else backbone.channels[-1]
        self.classifier = nn.Conv2d(channels, tags, 1, bias=False)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, C, h, w]."""
        found = self.backbone.features(image)[-1]
        return self.backbone.widening(found) if self.widened else found

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> evidence per tag and place [B, K-1, h, w]."""
        return self.classifier(self.features(image))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> one logit per tag [B, K-1]."""
        return self.class_maps(image).mean((2, 3))


def new_layers_first(model: nn.Module, scale: float) -> list[dict]:
    """Two parameter groups: a pretrained backbone learns `scale` times as fast as the rest."""
    old = {id(p) for p in model.backbone.parameters()} if hasattr(model, "backbone") else set()
    groups = [{"params": [p for p in model.parameters() if (id(p) in old) == flag], "lr_scale": s} for flag, s in ((False, 1.0), (True, scale))]
    return [g for g in groups if g["params"]]


def in_order(data, device: str = "cpu") -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """The whole data set in order, as many equal-sized neighbours together as TOGETHER allows.

    Yields indices, images float [B, 3, H, W] (normalised) and tags [B, K-1].
    """
    waiting: list[dict] = []

    def group():
        images = normalised_images(np.stack([s["image"] for s in waiting]), data).to(device)
        return [s["index"] for s in waiting], images, torch.from_numpy(np.stack([s["tags"] for s in waiting])).to(device)

    for index in range(len(data)):
        sample = dict(data.read(index, ("image", "tags")), index=index)
        pixels = sample["image"].shape[0] * sample["image"].shape[1]
        if waiting and (sample["image"].shape != waiting[0]["image"].shape or (len(waiting) + 1) * pixels > TOGETHER):
            yield group()
            waiting.clear()
        waiting.append(sample)
    yield group()


def names_of(data) -> list[str]:
    """The images' names, in order."""
    return [data.name(i) for i in range(len(data))]


def same_start(run, stage: int) -> None:
    """Initial weights that depend on seed and stage only, not on which stages were loaded: a continued run starts its next stage alike."""
    torch.manual_seed(run.config.seed * 10 + stage)
