"""Background activation suppression: make the mask so large that nothing of the class survives outside it.

A classifier is cut in two. Its first half f1 gives features F, from which a single convolution, the generator, predicts one mask per class;
its second half f2 turns features into class evidence. Erase the mask from F, let f2 look at the rest, and ask how much of the class it still
finds: that ratio is the loss, and only a mask over the *whole* object makes it vanish. The mask's own area is what keeps it small.

    image [B, 3, H, W] -> f1 -> F [B, C, h, w] -> f2 -> A [B, K-1, a, b] -> mean -> scores s1            L_cls, and S = ReLU(s1[y])
                                |                  \\__ * M_f, mean -> s2                                 L_frg
                                |-> generator -> M [B, K-1, h, w] in 0..1, M_f = M[y]                    L_ac = mean(M_f)
                                \\-> stopgrad(F) * (1 - M_f) -> copy of f2 -> mean -> S_b                 L_bas = S_b / stopgrad(S)

Wu, Zhai, Cao, CVPR 2022 (arXiv 2112.00580); Zhai et al., IJCV 2023 (arXiv 2309.12943). "Code" below is the authors' BAS-Extension. Used by
papers/bas.py, and by papers/marsstyle.py where its activation maps come from BAS (wsss=bas).

B batch, K classes with background 0 (so K-1 tags), C channels, H W image, h w feature map, a b class map.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from seglite import charts
from seglite.nets.mobilenet import mobilenet_v1, mobilenet_v2
from seglite.nets.resnet import resnet50
from seglite.nets.segmenters import conv_bn_relu
from seglite.nets.vgg import vgg16
from seglite.nets.weights import load_weights

NETS = ("small", "vgg16", "mobilenet_v1", "mobilenet_v2", "resnet50")
EPSILON = 1e-8  # under S, as in the code; the clause for S_b > S is what really guards the first steps


@dataclass
class SuppressionSettings:
    """Weights and switches of the four losses. The switches other than `guide` are ablations: the defaults are the method."""

    classify: float = 1.0
    """of L_cls; 0 is an ablation (localisation): the classes are then learned from what the mask leaves of them"""
    weight: float = 1.0
    """of L_bas; 0: the mask is judged by cross-entropy alone"""
    alpha: float = 0.5
    """weight of the guidance L_frg (CUB, ResNet-50: 0.5; segmentation: 0.2)"""
    beta: float = 1.5
    """weight of the area L_ac (CUB, ResNet-50: 1.5; segmentation: 1.2)"""
    above_one: Literal["one", "zero", "keep"] = "one"
    """L_bas of an image with S_b > S: a constant without gradient (journal: one; VGG and the conference: zero), or kept (unsafe)"""
    guide: Literal["all", "mask"] = "all"
    """L_frg trains evidence and mask (localisation), or the mask alone (segmentation: A is detached)"""
    branch: Literal["copy", "shared"] = "copy"
    """f2 of the background branch: a copy whose gradients are dropped, or f2 itself (which then learns to ignore the class)"""
    detach_whole: bool = True
    """stop the gradient of the denominator S; without it the ratio also falls by inflating S"""
    detach_features: bool = True
    """stop the gradient of F in F * (1 - M_f); without it f1 learns to hide the evidence"""
    warmup: int = field(default=0, metadata={"least": 0})
    """first steps with L_cls only; for training from scratch (ours)"""


class Branches(NamedTuple):
    """What one forward pass of a training step gives; all for one chosen class y per image."""

    scores: torch.Tensor  # [B, K-1] s1
    whole: torch.Tensor  # [B] S
    rest: torch.Tensor  # [B] S_b
    guided: torch.Tensor  # [B, K-1] s2
    mask: torch.Tensor  # [B, 1, h, w] M_f


def on_a_copy(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """module(x) as a deep copy made this moment would answer whose gradients nobody reads: x gets its gradient, the weights get none, and what batch
    norm sees of x never enters the module's running statistics. The weights themselves are not copied, only the small buffers are."""
    constants = {name: value.detach() for name, value in module.named_parameters()}
    return torch.func.functional_call(module, constants | {name: value.clone() for name, value in module.named_buffers()}, (x,))


def activation(evidence: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """ReLU of the pooled, un-normalised score of the class: how much of it is there. evidence [B, K-1, a, b], label int64 [B] -> [B]."""
    return evidence.float().mean((2, 3)).gather(1, label[:, None])[:, 0].relu()  # [B]


class Suppressor(nn.Module):
    """Extractor f1, generator and classifier f2.

    Called with images alone it is a plain classifier; with a class per image it computes the three branches. `class_maps` are the predicted
    masks M, `evidence` the class activation maps A of the same network.
    """

    def __init__(self, f1: nn.Module, f2: nn.Module, generator: nn.Conv2d, settings: SuppressionSettings):
        super().__init__()
        self.f1, self.f2, self.generator, self.settings = f1, f2, generator, settings

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> F [B, C, h, w]."""
        return self.f1(image)

    def masks(self, features: torch.Tensor) -> torch.Tensor:
        """features: [B, C, h, w] -> M [B, K-1, h, w] in 0..1, one foreground prediction map per class."""
        return self.generator(features).sigmoid()

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> M [B, K-1, h, w] in 0..1."""
        return self.masks(self.f1(image))

    def evidence(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> A [B, K-1, a, b], of any sign: the class activation maps."""
        return self.f2(self.f1(image))

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor | Branches:
        """image: [B, 3, H, W], label int64 [B] or None -> scores [B, K-1], or with labels the `Branches`."""
        s = self.settings
        features = self.f1(image)  # [B, C, h, w]
        A = self.f2(features)  # [B, K-1, a, b]
        scores = A.mean((2, 3))  # [B, K-1]
        if label is None:
            return scores
        mask = self.masks(features).gather(1, label[:, None, None, None].expand(-1, 1, *features.shape[-2:]))  # [B, 1, h, w]
        erased = (features.detach() if s.detach_features else features) * (1 - mask)  # [B, C, h, w]
        rest = activation(on_a_copy(self.f2, erased) if s.branch == "copy" else self.f2(erased), label)  # [B]
        whole = activation(A, label)  # [B]
        seen = (A if s.guide == "all" else A.detach()) * F.adaptive_avg_pool2d(mask, A.shape[-2:])  # [B, K-1, a, b]
        return Branches(scores, whole.detach() if s.detach_whole else whole, rest, seen.mean((2, 3)), mask)


# ---- losses --------------------------------------------------------------------------------------------------------------------------------


def suppression(rest: torch.Tensor, whole: torch.Tensor, above_one: str = "one") -> torch.Tensor:
    """Eq. (3): the share of the class's activation that survives in the background, per image. rest, whole [B] >= 0 -> [B].

    Where more survives than was there (early in training, when S is near 0) the quotient says nothing and could be of any size: a constant takes
    its place, which stops the gradient (code; the author calls it a stabiliser).
    """
    ratio = rest.float() / (whole.float() + EPSILON)  # [B]
    if above_one == "keep":
        return ratio
    return torch.where(rest > whole, float(above_one == "one"), ratio)  # [B]


def positives_against_negatives(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Eq. (9), for several classes per image: every class of the image competes by softmax with all classes that are absent, never with one
    another; summed over classes, averaged over images. scores, tags [B, K-1] -> scalar."""
    scores = scores.float()
    absent = scores.masked_fill(tags > 0, -1e9).logsumexp(1, keepdim=True)  # [B, 1]; finite, so that an image with every class has a gradient
    return (F.softplus(absent - scores) * tags).sum() / len(scores)


def losses_of(found: Branches, label: torch.Tensor, settings: SuppressionSettings, t: int, counted: torch.Tensor | None = None) -> dict:
    """L_frg (Eq. 6), L_bas (3) and L_ac (4), weighted, and what to watch: the mean area, and how many images the clause holds still.

    counted [B] 0 or 1: images that take part (all by default). During the warm-up the losses are there with weight 0, so that every process of
    a parallel run has the same gradients to average.
    """
    s, on = settings, float(t >= settings.warmup)
    share = torch.ones_like(found.whole) if counted is None else counted
    mean = lambda values: (values * share).sum() / share.sum().clamp_min(1)
    area = found.mask.mean((1, 2, 3))  # [B]
    return {"frg": on * s.alpha * mean(F.cross_entropy(found.guided.float(), label, reduction="none")),
            "bas": on * s.weight * mean(suppression(found.rest, found.whole, s.above_one)),
            "area": on * s.beta * mean(area),
            "mask": mean(area.detach()), "clause": mean((found.rest > found.whole).float())}


def one_class(tags: torch.Tensor) -> torch.Tensor:
    """The class of images that have exactly one. tags [B, K-1] -> int64 [B]."""
    if not bool((tags.sum(1) == 1).all()):
        worst = tags[(tags.sum(1) != 1).nonzero()[0, 0]]
        raise ValueError(f"task=wsol localises one class per image, but an image here has {int(worst.sum())}; use task=wsss, or a list of images with one")
    return tags.argmax(1)


def wsol_step(network: nn.Module, batch: dict, t: int, settings: SuppressionSettings) -> dict:
    """Localisation: L = L_cls + alpha L_frg + L_bas + beta L_ac for the image's only class."""
    label = one_class(batch["tags"])  # [B]
    found = network(batch["image"], label)
    return {"cls": settings.classify * F.cross_entropy(found.scores.float(), label), **losses_of(found, label, settings, t)}


def wsss_step(network: nn.Module, batch: dict, t: int, settings: SuppressionSettings) -> dict:
    """Segmentation: one of the image's classes, drawn anew at every step, is what L_frg, L_bas and L_ac are about."""
    tags = batch["tags"]
    counted = (tags.sum(1) > 0).float()  # [B]; an image of background alone takes part in nothing
    label = torch.multinomial(tags + (1 - counted)[:, None], 1)[:, 0]  # [B]
    found = network(batch["image"], label)
    return {"cls": positives_against_negatives(found.scores, tags), **losses_of(found, label, settings, t, counted)}


# ---- the observation (first figure of both papers) --------------------------------------------------------------------------------------------


def grown(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """A mask dilated by a square of side 2 radius + 1, or eroded by one of side 2 |radius| + 1. float [B, H, W] -> [B, H, W]."""
    side = 2 * abs(radius) + 1
    grow = lambda m: F.max_pool2d(F.pad(m[:, None], (abs(radius),) * 4), side, 1)[:, 0]
    if radius >= 0:
        return grow(mask)
    return 1 - F.max_pool2d(F.pad(1 - mask[:, None], (-radius,) * 4, value=1.0), side, 1)[:, 0]  # outside the image is outside the object


@torch.no_grad()
def observation(model: Suppressor, image: torch.Tensor, mask: torch.Tensor, label: torch.Tensor, radii: Sequence[int]) -> list[dict[str, float]]:
    """What a trained classifier says when F is seen through a mask that grows from nothing over the object to the whole image.

    image [B, 3, H, W], mask bool [B, H, W], label int64 [B] -> per mask: area of the mask over that of the object, cross-entropy, activation of the
    class inside and outside; means over images. First and last row are the empty mask and the whole image.
    """
    features, mask = model.features(image), mask.float()
    rows = []
    for shape in [torch.zeros_like(mask), *(grown(mask, r) for r in sorted(radii)), torch.ones_like(mask)]:
        cells = F.adaptive_avg_pool2d(shape[:, None], features.shape[-2:])  # [B, 1, h, w]
        inside, outside = model.f2(features * cells), model.f2(features * (1 - cells))  # [B, K-1, a, b]
        rows.append({"area": float(shape.mean() / mask.mean()), "cross-entropy": float(F.cross_entropy(inside.mean((2, 3)), label)),
                     "activation": float(activation(inside, label).mean()),
                     "background activation": float(activation(outside, label).mean())})
    return rows


@torch.no_grad()
def heights(model: Suppressor, image: torch.Tensor, mask: torch.Tensor, label: torch.Tensor, reach: int = 4) -> dict[str, float]:
    """How high the predicted mask of the class stands on the object, within `reach` pixels of it, and further away; arguments as in `observation`."""
    features = model.features(image)  # [B, C, h, w]
    predicted = model.masks(features).gather(1, label[:, None, None, None].expand(-1, 1, *features.shape[-2:]))  # [B, 1, h, w]
    height = F.interpolate(predicted, mask.shape[-2:], mode="bilinear", align_corners=False)[:, 0]  # [B, H, W]
    near = grown(mask.float(), reach) > 0  # [B, H, W]
    return {"object": float(height[mask].mean()), f"up to {reach} pixels outside": float(height[near & ~mask].mean()),
            "further away": float(height[~near].mean()), "picture": float(height.mean())}


def observation_charts(rows: list[dict[str, float]], size: tuple[int, int] = (560, 330), widest: float = 3.0) -> list[Image.Image]:
    """Both plots: cross-entropy and activation inside the mask; activation left outside it. Shares of their largest value."""
    shown = [r for r in rows if r["area"] <= widest]
    area, share = [r["area"] for r in shown], lambda key: [r[key] / max(x[key] for x in rows) for r in shown]
    words = {"x": "area of the mask / area of the object", "y": "share of its largest value", "size": size, "markers": True, "y_range": (0, 1)}
    return [charts.line_chart({"cross-entropy": (area, share("cross-entropy")), "activation": (area, share("activation"))}, title="Inside the mask", **words),
            charts.line_chart({"cross-entropy inside": (area, share("cross-entropy")), "activation outside": (area, share("background activation"))},
                              title="What the mask leaves outside", **words)]


def reached(rows: list[dict[str, float]], area: float) -> dict[str, float]:
    """The three curves at a relative area, interpolated, as shares of their largest value."""
    areas = [r["area"] for r in rows]
    return {key: float(np.interp(area, areas, [r[key] for r in rows]) / max(r[key] for r in rows)) for key in rows[0] if key != "area"}


# ---- where each backbone is cut ------------------------------------------------------------------------------------------------------------


def without_stride(part: nn.Module) -> nn.Module:
    """Take every stride out of `part` without dilating what follows (code): same weights, finer maps, another function."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    return part


def cut(net: str, task: str, weights: str = "", say: Callable = print) -> tuple[nn.Module, list[nn.Module], int, int]:
    """(f1, layers of f2 before its head, channels of F, channels that enter the head).

    Localisation: F at stride 8, class map at stride 16. Segmentation: both at 16 (VGG: 8), published for ResNet-50 only. MobileNetV2 is ours.
    """
    wsol = task == "wsol"
    if net == "small":  # narrow views on purpose: a mask over part of the object must not be seen through
        f1 = nn.Sequential(conv_bn_relu(3, 16, stride=2), conv_bn_relu(16, 16), conv_bn_relu(16, 32, stride=2), conv_bn_relu(32, 32))
        return f1, [nn.MaxPool2d(2), conv_bn_relu(32, 48)] if wsol else [conv_bn_relu(32, 48)], 32, 48
    build = {"vgg16": vgg16, "mobilenet_v1": mobilenet_v1, "mobilenet_v2": mobilenet_v2, "resnet50": resnet50}[net]
    widened = net == "mobilenet_v2" and not wsol  # a bare 1x1 head learns little on the thin linear layer before features.18
    trunk = build(classes=int(widened))
    if widened:
        trunk.classifier = None
    if weights:
        load_weights(trunk, weights, partial=("fc.", "classifier.") if widened else ("fc.", "classifier.", "features.18."), say=say)
    if net == "vgg16":  # up to conv4_3 | pool4, conv5_1 .. conv5_3
        layers = list(trunk.features)
        return nn.Sequential(*layers[:23]), layers[23:30] if wsol else layers[24:30], 512, 512
    if net == "resnet50":
        if wsol:
            without_stride(trunk.layer3)
        f1 = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2, trunk.layer3)
        return f1, [nn.MaxPool2d(2)] * wsol + [without_stride(trunk.layer4)], 1024, 2048
    layers = list(trunk.model if net == "mobilenet_v1" else trunk.features)
    finer, split, channels, width = (6, 12, 512, 1024) if net == "mobilenet_v1" else (7, 14, 96, 1280 if widened else 320)
    without_stride(layers[finer if wsol else split])
    return nn.Sequential(*layers[:split]), layers[split:], channels, width


def head(net: str, task: str, width: int, tags: int) -> list[nn.Module]:
    """The classes: two 3x3 convolutions of 1024 and a 1x1 (localisation), or a bare 1x1 without bias (segmentation). Small: one 3x3 of 48."""
    if task == "wsss":
        return [nn.Conv2d(width, tags, 1, bias=False)]
    inner = [1024, 1024] if net != "small" else [48]
    layers: list[nn.Module] = []
    for before, after in zip([width, *inner], inner):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return [*layers, nn.Conv2d(inner[-1], tags, 1)]


class SecondHalf(nn.Module):
    """f2: what is left of the backbone, then the head."""

    def __init__(self, body: nn.Module, head: nn.Module):
        super().__init__()
        self.body, self.head = body, head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: [B, C, h, w] -> A [B, K-1, a, b]."""
        return self.head(self.body(features))


def build(net: str, task: Literal["wsol", "wsss"], tags: int, settings: SuppressionSettings, *, weights: str = "", terminal_relu: bool = False,
          pool: bool = True, say: Callable = print) -> Suppressor:
    """A network for `tags` = K-1 classes.

    terminal_relu: the conference's head, whose evidence is never negative. pool=False leaves out the pooling before f2, for the comparison of
    activation maps at the resolution of the masks. Fresh layers: Xavier uniform, biases 0; VGG: normal, 0.02 (code).
    """
    if net not in NETS:
        raise ValueError(f"net={net!r} is not built for BAS; choose one of {', '.join(NETS)}")
    f1, body, channels, width = cut(net, task, weights, say)
    fresh = head(net, task, width, tags)
    generator = nn.Conv2d(channels, tags, 3, padding=1, bias=task == "wsol")
    for layer in [*fresh, generator]:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02) if net == "vgg16" else nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if not pool:
        body = [layer for layer in body if not isinstance(layer, nn.MaxPool2d)]
    f2 = SecondHalf(nn.Sequential(*body), nn.Sequential(*fresh, *[nn.ReLU()] * terminal_relu))
    return Suppressor(f1, f2, generator, settings)


def parameter_groups(model: Suppressor, new: float, bias: float, old: float = 1.0, nesterov: bool = False) -> list[dict]:
    """Learning rates as multiples of the recipe's: backbone weights `old`, head and generator `new`, biases of both times `bias`.

    Code: new 10, bias 2 for localisation, with Nesterov's momentum; for segmentation new 10 and plain momentum, and biases are in no group at
    all, which bias=0 says here. nesterov=False leaves the choice to the recipe's optimizer.
    """
    fresh = {id(p) for part in (model.f2.head, model.generator) for p in part.parameters()}
    groups: dict[tuple[bool, bool], list] = {}
    for name, p in model.named_parameters():
        groups.setdefault((id(p) in fresh, name.endswith("bias")), []).append(p)
    scale = lambda is_new, is_bias: (new if is_new else old) * (bias if is_bias else 1.0)
    return [{"params": params, "lr_scale": scale(*kind), **({"nesterov": True} if nesterov else {})} for kind, params in groups.items()]


def segmentation_settings(warmup: int = 0) -> SuppressionSettings:
    """The weights of the segmentation half of the journal paper."""
    return SuppressionSettings(alpha=0.2, beta=1.2, guide="mask", warmup=warmup)


def fit_tag_maps(run, name: str, net: str, batches, recipe, *, settings: SuppressionSettings | None = None, weights: str = "", new: float = 1.0,
                 bias: float = 1.0, old: float = 1.0, nesterov: bool = False) -> Suppressor:
    """Train the multi-label form on images with tags. Its `class_maps` take the place of activation maps.

    Default settings: the paper's, after a sixth of the steps on classification alone where nothing was pretrained.
    """
    settings = settings or segmentation_settings(0 if weights else recipe.steps // 6)
    model = run.build(name, lambda: build(net, "wsss", len(run.data("train").classes) - 1, settings, weights=weights, say=run.say))
    return run.fit(name, model, lambda network, batch, t: wsss_step(network, batch, t, settings), batches, recipe,
                   groups=parameter_groups(model, new, bias, old, nesterov and recipe.optimizer == "sgd"))
