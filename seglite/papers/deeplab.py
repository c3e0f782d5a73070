"""DeepLab v2: dense scores from a classifier without shrinking, several fields of view at once, and edges from a fully connected CRF.

A classifier shrinks its input 32 times. Taking its last strides out and pulling every later filter apart ("atrous", with holes) keeps the weights
and the pixels that each filter was trained to touch, and gives scores at stride 8. Parallel filters of several rates (ASPP) see small and large
objects alike, and a dense CRF moves the borders to the edges of the image.

Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", TPAMI 2018, arXiv 1606.00915. "prototxt" below: the settings released with the authors' Caffe code.

    image [B, 3, H, W], H = 8k + 1 --> body, strides 2 2 2 1 1 --> [B, C, h, w] --> R branches, rates r_n --> sum --> scores [B, K, h, w]
      the same at 0.75 and 0.5 (MSC) --> resized, largest score wins                                         h = k + 1
    training: cross-entropy at stride 8 against every 8th label        test: x8 bilinear, corners aligned --> (CRF) --> [B, K, H, W]

    python -m seglite.train method=deeplab                                   scenes, about a minute of CPU time
    python -m seglite.train method=deeplab data=camvid root=$SEGLITE_DATA/camvid weights=...    street scenes at half size
    python -m seglite.claims method=deeplab seeds=0,1,2
    python -m seglite.train method=deeplab size=paper data=voc root=VOC2012 weights=weights/resnet101-63fe2227.pth stride_on=3x3
    python -m seglite.train method=deeplab size=paper data=voc root=VOC2012 weights=weights/vgg16-397923af.pth net=vgg16 head=hidden msc=1 \\
        scales=1 train.lr=1e-3 train.micro_batch=10 crf_smooth=2,2 crf_appearance=65,3,4           ASPP-L from VGG-16; both want a GPU, not run here

B batch, K classes, C channels, D hidden channels of a branch, H W image, h w score map, R branches.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kernels.atrous_conv import atrous_conv
from kernels.dense_crf import Bilateral, Gaussian, mean_field
from seglite.config import Config, override
from seglite.data import Batches, open_data
from seglite.data.transforms import flip, resize, resized_crop
from seglite.evaluate import Once, evaluate_many, label_maps, photographs
from seglite.losses import cross_entropy
from seglite.measure import multiply_adds
from seglite.metrics import Confusion, Trimap
from seglite.nets.layers import count_parameters, freeze_batch_norm
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.resnet import Bottleneck, ResNet, resnet18, resnet101
from seglite.nets.segmenters import DeepLabV2
from seglite.nets.vgg import Vgg, vgg16
from seglite.nets.weights import load_weights, matter, read_tensors


@dataclass
class Settings(Config):
    net: Literal["tiny", "mini", "resnet18", "mobilenet_v2", "vgg16", "resnet101"] = "tiny"
    """body: tiny, mini (VGGs of two and three convolutions, for miniatures); resnet18 (three stages), mobilenet_v2; vgg16, resnet101 (the paper's)"""
    output_stride: int = 8
    """pixels per score. Paper: 8. VGGs and ResNets lose strides beyond it and are dilated instead (3.1)"""
    head: Literal["single", "hidden"] = "single"
    """a branch: single 3x3 to the classes (ResNet form) or hidden fc6-fc7-fc8 (VGG form, 4.1.2)"""
    rates: tuple[int, ...] = (6, 12, 18, 24)
    """rates of the branches: 6,12,18,24 is ASPP-L; 2,4,8,12 ASPP-S; 12 LargeFOV"""
    kernel: int = 3
    """kernel of fc6 (head=hidden). Paper: 3; 7 with rate 4 is the converted classifier, 4 with rates 4 and 8 the first reductions (table 1)"""
    hidden: int = 1024
    """channels of fc6 and fc7 (head=hidden). Paper: 1024, 4096 in the original"""
    dropout: float = 0.5
    """after fc6 and fc7 (head=hidden)"""
    msc: tuple[float, ...] = (1.0,)
    """multi-scale inputs, the largest first; ResNet-101: 1,0.75,0.5 (4.1.2)"""
    frozen_bn: bool = True
    """batch norm keeps the statistics, scale and shift that came with weights=; without weights it is trained"""
    stride_on: Literal["1x1", "3x3"] = "1x1"
    """where a bottleneck's stride sits: 1x1 (Caffe's ResNet, the paper) or 3x3 (torchvision's weights)"""
    first_rate: Literal["deeplab", "torchvision"] = "deeplab"
    """the first block of a dilated ResNet stage is dilated too (deeplab) or keeps the rate before it (exact, see nets/layers.py)"""
    head_lr_scale: float = 10.0
    """learning rate of new layers over that of the body (prototxt: 10)"""
    bias_lr_scale: float = 2.0
    """learning rate of biases over that of their weights; biases have no decay (prototxt: 2)"""
    scales: tuple[float, ...] = (1.0,)
    """training scales, drawn with equal chance; ResNet-101: 0.5,0.75,1,1.25,1.5. Then a random crop of augment.crop and a mirror image"""
    test_scale: float = 1.0
    """the network sees test images at this scale; scores are enlarged to the full size before they are judged"""
    crf: bool = False
    """refine test scores by a dense CRF (3.3)"""
    crf_smooth: tuple[float, ...] = (1.0, 3.0)
    """smoothness kernel: standard deviation in pixels, weight. ResNet-101 on VOC: 1, 3; VGG-16: 2, 2 (densecrf presets)"""
    crf_appearance: tuple[float, ...] = (67.0, 3.0, 4.0)
    """appearance kernel: standard deviation in pixels, in grey levels, weight. ResNet-101 on VOC: 67, 3, 4; VGG-16: 65, 3, 4"""
    crf_iterations: int = 10
    """mean-field iterations. Paper: 10 (4.1)"""
    crf_normalization: Literal["after", "symmetric"] = "after"
    """after: per receiving pixel, as the authors' C++; symmetric: as pydensecrf"""


def supervision(config: Settings) -> tuple[str, ...]:
    """Every pixel is labelled."""
    return ("image", "mask")


# ---- body: a classifier that shrinks less ---------------------------------------------------------------------------------------------

STRIDE_ON_3X3 = ("resnet101-63fe2227.pth", "resnet101-cd907fc2.pth", "resnet101-5d3b4d8f.pth")  # torchvision's; the digits are the content's
TINY, MINI = ((24, 1), (48, 1)), ((16, 1), (32, 1), (48, 1))  # (channels, convolutions) of each group


def stride_on_1x1(body: ResNet) -> ResNet:
    """Move every bottleneck's stride from its 3x3 to its first 1x1 convolution, as in Caffe's ResNet; in place."""
    for block in body.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return body


def build_body(config: Settings, say: Callable = print) -> nn.Module:
    """The body at `output_stride`, with the weights of `weights=` and batch norm frozen if asked."""
    s, convention = config.output_stride, config.first_rate
    if config.net in ("tiny", "mini"):
        body, spare = Vgg(TINY if config.net == "tiny" else MINI, classes=0, output_stride=s, pool="3x3"), ()
    elif config.net == "vgg16":
        body, spare = vgg16(classes=0, output_stride=s, pool="3x3"), ("classifier.",)
    elif config.net == "mobilenet_v2":
        body, spare = mobilenet_v2(classes=0, output_stride=s, convention=convention), ("classifier.", "features.18.")
    elif config.net == "resnet18":
        body, spare = resnet18(classes=0, stages=3, output_stride=s, convention=convention), ("fc.", "layer4.")
    else:
        body, spare = resnet101(classes=0, output_stride=s, convention=convention), ("fc.",)
        body = stride_on_1x1(body) if config.stride_on == "1x1" else body
    if config.weights:
        load_weights(body, config.weights, partial=spare, say=say)
        if config.net == "resnet101" and config.stride_on == "1x1" and Path(config.weights).name in STRIDE_ON_3X3:
            say(f"stride_on=1x1: {Path(config.weights).name} was trained with strides on the 3x3 convolutions; stride_on=3x3 fits it")
        body = freeze_batch_norm(body) if config.frozen_bn else body
    return body


# ---- head: fields of view -------------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """One complete classifier head, the former fully connected layers: fc6 k x k at `rate`, fc7 1x1, fc8 1x1 to the classes (prototxt)."""

    def __init__(self, inputs: int, hidden: int, classes: int, kernel: int, rate: int, dropout: float):
        super().__init__()
        self.rate, self.dropout = rate, nn.Dropout(dropout)
        self.fc6, self.fc7, self.fc8 = nn.Conv2d(inputs, hidden, kernel), nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, classes, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.fc8.weight, std=0.01)  # prototxt: gaussian filler
        nn.init.zeros_(self.fc8.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, K, h, w]."""
        y = self.dropout(atrous_conv(x, self.fc6.weight, self.fc6.bias, padding="same", rate=self.rate, relu=True))  # [B, D, h, w]
        y = self.dropout(F.relu(self.fc7(y)))  # [B, D, h, w]
        return self.fc8(y)  # [B, K, h, w]


class HiddenASPP(nn.ModuleList):
    """ASPP in VGG form: branches with hidden layers of their own, whose class scores are added (figure 7b). One branch of rate 12 is LargeFOV."""

    def __init__(self, inputs: int, hidden: int, classes: int, kernel: int, rates: Sequence[int], dropout: float):
        super().__init__(Branch(inputs, hidden, classes, kernel, rate, dropout) for rate in rates)
        self.converted = False  # whether fc6 and fc7 hold a classifier's weights, see `load_hidden`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, K, h, w]."""
        return torch.stack([branch(x) for branch in self]).sum(0)  # [B, K, h, w]


def decimate(weight: torch.Tensor, kernel: int, hidden: int) -> torch.Tensor:
    """Every n-th tap and every m-th output of ImageNet's fc6, so that the smaller layer starts from trained weights (v1, section 3.2).

    weight [4096, 512 * 49] of torchvision's classifier.0 -> [hidden, 512, kernel, kernel], taps spread evenly over the 7 x 7.
    """
    whole = weight.reshape(weight.shape[0], -1, 7, 7)
    taps = torch.linspace(0, 6, kernel).round().long()  # 7: all; 4: 0 2 4 6; 3: 0 3 6
    rows = torch.arange(hidden) * whole.shape[0] // hidden
    return whole[rows][:, :, taps][:, :, :, taps]


def load_hidden(head: HiddenASPP, path: str) -> bool:
    """Start fc6 and fc7 of every branch from the classifier in an ImageNet VGG file; False if it has none."""
    tensors, _ = read_tensors(path)
    if "classifier.0.weight" not in tensors:
        return False
    for branch in head:
        hidden, kernel = branch.fc6.weight.shape[0], branch.fc6.weight.shape[-1]
        rows = torch.arange(hidden) * tensors["classifier.0.weight"].shape[0] // hidden
        with torch.no_grad():
            branch.fc6.weight.copy_(decimate(tensors["classifier.0.weight"], kernel, hidden))
            branch.fc6.bias.copy_(tensors["classifier.0.bias"][rows])
            branch.fc7.weight.copy_(tensors["classifier.3.weight"][rows][:, rows, None, None])
            branch.fc7.bias.copy_(tensors["classifier.3.bias"][rows])
    head.converted = True
    return True


# ---- the network ----------------------------------------------------------------------------------------------------------------------


def aligned(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with the corners aligned, Caffe's Interp: [B, C, h, w] -> [B, C, *size]."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=True)


def scaled(n: int, factor: float) -> int:
    """Pixels of a side of n after Caffe's Interp: the n - 1 gaps shrink, 321 -> 241 -> 161."""
    return round((n - 1) * factor) + 1


class DeepLab(nn.Module):
    """One network applied to the image at several scales (MSC); returns the score map of each, [B, K, h_s, w_s], the largest first."""

    def __init__(self, segmenter: nn.Module, scales: tuple[float, ...] = (1.0,)):
        super().__init__()
        if scales[0] != max(scales):
            raise ValueError(f"msc={','.join(map(str, scales))}: the largest scale comes first, all score maps are resized to it.")
        self.segmenter, self.scales = segmenter, scales

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image: [B, 3, H, W] -> one [B, K, h, w] per scale, each of its own size."""
        H, W = image.shape[-2:]
        return [self.segmenter(aligned(image, (scaled(H, s), scaled(W, s)))) for s in self.scales]


def fuse(maps: list[torch.Tensor]) -> torch.Tensor:
    """The largest score at every place over the scales: list of [B, K, ., .] -> [B, K, h, w] (section 4.1.2, element-wise maximum)."""
    return torch.stack([aligned(m, maps[0].shape[-2:]) for m in maps]).amax(0)  # [B, K, h, w]


def build(config: Settings, classes: int, say: Callable = print) -> DeepLab:
    body = build_body(config, say)
    head = None
    if config.head == "hidden":
        head = HiddenASPP(body.channels[-1], config.hidden, classes, config.kernel, config.rates, config.dropout)
        if matter(config.weights) and config.net == "vgg16" and load_hidden(head, config.weights):
            say(f"weights: fc6 and fc7 of {len(head)} branches decimated from the ImageNet classifier")
    elif config.kernel != 3:
        raise ValueError(f"kernel={config.kernel}: branches of head=single are 3x3; other kernels need head=hidden")
    return DeepLab(DeepLabV2(body, classes, config.rates, upsample=False, head=head), config.msc)


def parameter_groups(model: DeepLab, config: Settings) -> list[dict]:
    """Body x1, its biases x2, new layers x10, their biases x20, no decay on biases (prototxt). Of converted branches only fc8 is new."""
    old, new = ([], []), ([], [])
    converted = getattr(model.segmenter.aspp, "converted", False)
    for name, p in model.named_parameters():
        fresh = ".aspp." in name and (".fc8." in name or not converted)
        (new if fresh else old)[name.endswith(".bias")].append(p)
    groups = []
    for (weights, biases), scale in ((old, 1.0), (new, config.head_lr_scale)):
        groups += [{"params": weights, "lr_scale": scale}, {"params": biases, "lr_scale": scale * config.bias_lr_scale, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


# ---- loss -----------------------------------------------------------------------------------------------------------------------------


def step_losses(maps: list[torch.Tensor], mask: torch.Tensor, stride: int, scales: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Cross-entropy of the fused map and of each scale, each of weight 1 (prototxt: four losses for three scales).

    Labels are sub-sampled, not averaged: every 8th pixel, corners aligned. A map of scale s stands at stride 8/s of the labels: scale 0.5 is judged
    as it is against every 16th label; 0.75 would need every 10.67th, so that map is resized to the full one's size instead (prototxt).
    mask int64 [B, H, W], 255 ignored.
    """
    found = {}
    for s, scores in zip(scales, maps):
        step = stride / s
        whole = step == int(step)
        target = mask[:, ::int(step), ::int(step)] if whole else mask[:, ::stride, ::stride]
        found[f"x{s:g}"] = cross_entropy(scores if whole else aligned(scores, maps[0].shape[-2:]), target)
    if len(maps) > 1:
        found["fused"] = cross_entropy(fuse(maps), mask[:, ::stride, ::stride])
    return found


class ScaleCropFlip:
    """The paper's augmentation: one of a few scales, a random crop padded at right and bottom with the mean colour (labels 255), a mirror image."""

    def __init__(self, config: Settings, mean: tuple[float, float, float]):
        self.config, self.fill = config, np.round(np.asarray(mean) * 255).astype(np.uint8)

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        config, (scale_at, y_at, x_at, flip_at) = self.config, rng.random(4)
        factor, side = config.scales[int(scale_at * len(config.scales))], config.augment.crop
        height, width = (max(1, round(n * factor)) for n in sample["image"].shape[:2])
        # The corner lies inside the image; a smaller image lies at the top left.
        top, left = (int(at * (max(n - side, 0) + 1)) for at, n in ((y_at, height), (x_at, width)))
        sample = resized_crop(sample, height, width, top, left, side, self.fill) if side else resize(sample, height, width)
        return flip(sample) if flip_at < config.augment.flip else sample


# ---- prediction -----------------------------------------------------------------------------------------------------------------------


def period(stride: int, scales: Sequence[float]) -> int:
    """n: in images with sides n * k + 1 the score maps of all scales have their corners in line. 8 for one scale, 32 for 1, 0.75, 0.5."""
    return stride * math.lcm(*(Fraction(s).limit_denominator(100).denominator for s in scales))


def pad(image: torch.Tensor, n: int) -> torch.Tensor:
    """Grow right and bottom to n * k + 1 with zeros, which is the mean colour after normalisation. [B, 3, H, W] -> [B, 3, H', W']."""
    H, W = image.shape[-2:]
    return F.pad(image, (0, -(W - 1) % n, 0, -(H - 1) % n))


def refine(logits: torch.Tensor, image: torch.Tensor, config: Settings) -> torch.Tensor:
    """Equation 3 by mean field: unary -log softmax of the scores, two Gaussian kernels. logits [B, K, H, W], image 0..255 -> probabilities."""
    kernels = (Gaussian(*config.crf_smooth), Bilateral(*config.crf_appearance))
    return mean_field(-logits.float().log_softmax(1), image, kernels, iterations=config.crf_iterations, normalization=config.crf_normalization)


@torch.no_grad()
def scores_of(model: DeepLab, image: torch.Tensor, config: Settings) -> torch.Tensor:
    """Pad, score, enlarge by the stride with corners aligned, cut the padding off. image [B, 3, H, W] -> logits [B, K, H, W]."""
    H, W = image.shape[-2:]
    seen = aligned(image, (scaled(H, config.test_scale), scaled(W, config.test_scale)))
    padded = pad(seen, period(config.output_stride, config.msc))
    fused = fuse(model(padded))  # [B, K, h, w]
    logits = aligned(fused, padded.shape[-2:])[:, :, :seen.shape[-2], :seen.shape[-1]]
    return aligned(logits, (H, W))  # [B, K, H, W]


def predictor(model: DeepLab, config: Settings, data) -> Callable:
    """image [B, 3, H, W] normalised -> scores [B, K, H, W]: logits, or the CRF's probabilities."""
    return list(predictors(model, config, data).values())[-1]


def predictors(model: DeepLab, config: Settings, data) -> dict[str, Callable]:
    """The network's logits, and with crf=true the CRF's probabilities after them; both share one pass of the network over an image."""
    logits = Once(lambda image: scores_of(model, image, config)) if config.crf else lambda image: scores_of(model, image, config)
    refined = {"after the CRF": lambda image: refine(logits(image), photographs(image, data), config)} if config.crf else {}
    return {"scores": logits, **refined}


# ---- the pipeline ---------------------------------------------------------------------------------------------------------------------


def fit(run, name: str, config: Settings, data) -> DeepLab:
    """Train one network of `config` on `data`."""
    torch.manual_seed(config.seed)  # every row of a claim starts from the same numbers
    model = run.build(name, lambda: build(config, len(data.classes), run.say))
    batches = Batches(data, config.train.batch, config.seed, ScaleCropFlip(config, data.mean), ("image", "mask"))
    return run.fit(name, model, lambda network, batch, t: step_losses(network(batch["image"]), batch["mask"], config.output_stride, config.msc),
                   batches, config.train, groups=parameter_groups(model, config))


def train(run) -> None:
    config, data = run.config, run.data("train")
    model = fit(run, "segmenter", config, data)
    predicts = predictors(model, config, data)
    results = evaluate_many(predicts, run.truth("val"), run.device, widths=BANDS) if run.rank == 0 else {}
    rows = [[label, *(round(100 * v, 2) for v in (r.confusion.miou(), *r.trimap.miou().values()))] for label, r in results.items()]
    table = {"title": "mIoU near the true boundaries", "columns": ["", "whole image", *(f"within {w} px" for w in BANDS)], "rows": rows,
             "note": "bands around pixels with a neighbour of another class (void in VOC)"}
    last = list(predicts)[-1]
    run.report(predicts[last], model=model, tables=[table], result=results.get(last),
               notes=[f"{count_parameters(model):,} trainable parameters", *(f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1))])


def reopen(run) -> Callable:
    """The predictor of a finished run, without judging it again."""
    data = run.data("train")
    return predictor(fit(run, "segmenter", run.config, data), run.config, data)


# ---- the claims -----------------------------------------------------------------------------------------------------------------------

BANDS = (1, 2, 5)  # pixels from the true boundary
SIZES = (8.0, 15.0)  # pixels: radius of a small, medium, large object


def label_map_of_each(predict: Callable, data, device: str, together: int = 32):
    """(truth, prediction) of every image, uint8 [H, W] each; images of one size go through the network together."""
    waiting: list[dict] = []

    def flush():
        maps = label_maps(predict, [s["image"] for s in waiting], data, device)
        yield from ((s["mask"], m) for s, m in zip(waiting, maps))
        waiting.clear()

    for index in range(len(data)):
        sample = data.read(index, ("image", "mask"))
        if waiting and (len(waiting) == together or sample["image"].shape != waiting[0]["image"].shape):
            yield from flush()
        waiting.append(sample)
    yield from flush()


def judge(predict: Callable, data, device: str, radius: np.ndarray | None = None) -> dict[str, float]:
    """In percent: mIoU; without `radius` mIoU within a few pixels of a boundary; with it the recall of objects of three sizes.

    radius [N, H, W]: of the object that each pixel belongs to, see `radius_of_objects`.
    """
    whole, bands = Confusion(data.classes), Trimap(data.classes, BANDS)
    right, seen = np.zeros(3), np.zeros(3)
    for i, (truth, labels) in enumerate(label_map_of_each(predict, data, device)):
        whole.add(truth, labels)
        if radius is None:
            bands.add(truth, labels)
        else:
            size = np.digitize(radius[i], SIZES)[truth > 0]
            seen += np.bincount(size, minlength=3)
            right += np.bincount(size, (labels == truth)[truth > 0], minlength=3)
    near = {f"{w} px": 100 * m for w, m in bands.miou().items()} if radius is None else {}
    recall = dict(zip(("small", "medium", "large"), (100 * right / seen.clip(1)).tolist())) if radius is not None else {}
    return {"mIoU": 100 * whole.miou(), **near, **recall}


def radius_of_objects(masks: torch.Tensor) -> torch.Tensor:
    """For every pixel the radius of a disc with as many pixels as its object; objects are connected regions of one label. int64 [N, H, W] -> [N, H, W]."""
    found = torch.arange(1, masks.numel() + 1, dtype=torch.float64).view(masks.shape)  # [N, H, W]
    padded, H, W = F.pad(masks, (1, 1, 1, 1), value=-1), *masks.shape[1:]
    same = {(y, x): padded[:, y:y + H, x:x + W] == masks for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))}
    while True:  # every pixel takes the largest number among its 4-neighbours of the same label until nothing changes
        before = found
        for (y, x), alike in same.items():
            around = F.pad(found, (1, 1, 1, 1))[:, y:y + H, x:x + W]
            found = torch.where(alike, torch.maximum(found, around), found)  # [N, H, W]
        if torch.equal(found, before):
            break
    count = torch.bincount(found.long().flatten())[found.long()]  # [N, H, W]
    return (count / torch.pi).sqrt()  # [N, H, W]


def cost(model: DeepLab, config: Settings) -> dict[str, float]:
    """Millions of multiply-adds for one scene, and parameters. Counted on the plain formula: Triton's kernels are invisible to torch's counter."""
    side = config.scenes.size
    return {"MMAC": multiply_adds(model, (side, side)) / 1e6, "parameters": float(count_parameters(model))}


# The first row of a table is the one that the others are compared with.
RATES = {"2 2 2 2": (2,) * 4, "3 3 3 3": (3,) * 4, "4 4 4 4": (4,) * 4, "6 6 6 6": (6,) * 4, "1 2 4 6": (1, 2, 4, 6), "1 1 1 1": (1,) * 4}
FIELDS = {"3x3 rate 1": (3, 1), "7x7 rate 1": (7, 1), "4x4 rate 2": (4, 2), "3x3 rate 3": (3, 3)}  # (kernel, rate); the last three reach 7 cells
CRFS = {"smoothness only": {"crf_appearance": (9.0, 10.0, 0.0)}, "VOC preset": {}, "scaled to the picture": {"crf_appearance": (9.0, 10.0, 4.0)}}


def claim(run) -> dict:
    """One seed of five tables: A density and D the CRF on world=faint; B fields of view, C ASPP and E multi-scale inputs on world=rims."""
    opened: dict = {}

    def data(config: Settings, split: str):
        key = config.scenes.world, split
        if key not in opened:
            opened[key] = open_data(config, split)
        return opened[key]

    def changed(world: str, **keys) -> Settings:
        return override(run.config, scenes__world=world, **keys)

    def radii() -> np.ndarray:
        if "radii" not in opened:
            shown = data(changed("rims"), "val")
            opened["radii"] = radius_of_objects(torch.from_numpy(np.stack([shown.read(i, ("mask",))["mask"] for i in range(len(shown))])).long()).numpy()
        return opened["radii"]

    def measured(name: str, config: Settings, sizes: bool = False, model: DeepLab | None = None) -> tuple[DeepLab, dict]:
        model = fit(run, name, config, data(config, "train")) if model is None else model
        predict = predictor(model, config, data(config, "val"))
        return model, run.make(f"{name}_scores", lambda: judge(predict, data(config, "val"), run.device, radii() if sizes else None))

    # A: two networks of equal shape, and the weights of the first used at the resolution of the second. Both get a warm-up: without it one of
    # three seeds never learned one of the classes.
    coarse, fine = (changed("faint", net="mini", output_stride=s, rates=(8 // s,), train__warmup=30) for s in (8, 4))
    strided, row = measured("strided", coarse)
    density = {"stride 8, enlarged": row | cost(strided, coarse)}
    same = build(fine, len(data(fine, "val").classes), run.say).to(run.device).eval()
    same.load_state_dict(strided.state_dict())
    density["same weights, one stride taken out"] = measured("densified", fine, model=same)[1] | cost(same, fine)
    atrous, before = measured("atrous", fine)
    density["trained with that stride taken out"] = before | cost(atrous, fine)

    # D: the CRF after the last of them
    edges = {"before": before}
    for label, keys in CRFS.items():
        edges[label] = measured(f"crf_{label.replace(' ', '_')}", override(fine, crf=True, **keys), model=atrous)[1]

    fields, pyramid = {}, {}
    for label, (kernel, rate) in FIELDS.items():
        config = changed("rims", kernel=kernel, rates=(rate,))
        model, row = measured(f"field_{kernel}_{rate}", config, sizes=True)
        fields[label] = row | cost(model, config)
    for label, rates in RATES.items():
        pyramid[label] = measured(f"aspp_{label.replace(' ', '_')}", changed("rims", rates=rates), sizes=True)[1]
    inputs = {"one scale": pyramid["1 2 4 6"]}
    inputs["MSC 1, 0.75, 0.5"] = measured("msc", changed("rims", rates=(1, 2, 4, 6), msc=(1.0, 0.75, 0.5)), sizes=True)[1]
    return {"A. Density": density, "B. Field of view, one branch": fields, "C. ASPP, rates of four branches": pyramid, "D. CRF": edges,
            "E. Inputs": inputs}


def best(rows: dict, metric: str, but: str) -> float:
    return max(row[metric] for label, row in rows.items() if label != but)


CLAIM = {
    "title": "DeepLab v2 in miniature: rimmed discs of every size (rims), colours little above the noise (faint)",
    "paper": {"ASPP": "VGG, VOC val, before / after CRF: LargeFOV 65.76 / 69.84, ASPP-S 66.98 / 69.73, ASPP-L 68.96 / 71.57",
              "fields of view": "7x7 rate 4 64.38 / 67.64, 4x4 rate 4 59.80 / 63.74, 4x4 rate 8 63.41 / 67.14, 3x3 rate 12 62.25 / 67.64",
              "CRF": "ResNet-101, VOC val: 76.35 before, 77.69 after", "MSC": "ResNet-101: 68.72 without, 71.27 with"},
    "headline": ("A. Density", "mIoU", ("stride 8, enlarged", "trained with that stride taken out")),
    "statements": {
        "a mix of rates beats the best single rate (mIoU)":
            lambda t: t["C. ASPP, rates of four branches"]["1 2 4 6"]["mIoU"] > best(t["C. ASPP, rates of four branches"], "mIoU", "1 2 4 6"),
        "atrous beats stride and enlarge at equal parameters (mIoU)":
            lambda t: t["A. Density"]["trained with that stride taken out"]["mIoU"] > t["A. Density"]["stride 8, enlarged"]["mIoU"],
        "the CRF raises mIoU within 1, 2 and 5 pixels of a boundary":
            lambda t: all(t["D. CRF"]["scaled to the picture"][f"{w} px"] > t["D. CRF"]["before"][f"{w} px"] for w in BANDS),
        "smoothness alone does not: it gains less than a fifth of what both kernels gain within 1 pixel":
            lambda t: t["D. CRF"]["smoothness only"]["1 px"] - t["D. CRF"]["before"]["1 px"]
            < (t["D. CRF"]["scaled to the picture"]["1 px"] - t["D. CRF"]["before"]["1 px"]) / 5,
        "the field of view, not the kernel, is what counts: 3x3 rate 3 is within 2 points of 7x7 rate 1 and beats 3x3 rate 1":
            lambda t: t["B. Field of view, one branch"]["3x3 rate 3"]["mIoU"] > max(
                t["B. Field of view, one branch"]["7x7 rate 1"]["mIoU"] - 2, t["B. Field of view, one branch"]["3x3 rate 1"]["mIoU"]),
        "multi-scale inputs help (mIoU)":
            lambda t: t["E. Inputs"]["MSC 1, 0.75, 0.5"]["mIoU"] > t["E. Inputs"]["one scale"]["mIoU"],
    },
}

RECIPES = {
    "toy": {
        "net": "tiny", "output_stride": 4, "head": "hidden", "hidden": 48, "dropout": 0.0, "rates": (1, 2, 4, 6), "head_lr_scale": 1.0,
        "bias_lr_scale": 1.0, "scenes.world": "rims", "scenes.size": 65, "train.steps": 300, "train.batch": 16, "train.optimizer": "adam", "train.lr": 5e-3,
        "train.weight_decay": 0.0,
    },
    "small": {
        "net": "resnet18", "head": "single", "rates": (2, 4, 6, 8), "scales": (0.375, 0.5, 0.625), "test_scale": 0.5, "augment.crop": 161,
        "train.steps": 600, "train.batch": 8, "train.lr": 2.5e-3, "train.weight_decay": 5e-4,
    },
    "paper": {
        "net": "resnet101", "head": "single", "rates": (6, 12, 18, 24), "msc": (1.0, 0.75, 0.5), "scales": (0.5, 0.75, 1.0, 1.25, 1.5),
        "augment.crop": 321, "train.steps": 20000, "train.batch": 10, "train.micro_batch": 1, "train.lr": 2.5e-4, "train.weight_decay": 5e-4, "crf": True,
        "voc.train": "train_aug", "voc.masks": "SegmentationClassAug",
    },
}

DEVIATIONS = (
    "Caffe's iter_size 10 with batch 1 sums ten losses, each a mean over its own image; train.micro_batch=1 averages them alike: the same gradient at "
    "our learning rate.",
    "Section 4.1.2 starts from MS-COCO weights; weights= takes any file, and with ImageNet alone several points are lost.",
    "Colours are normalised as torchvision does (x/255, mean and deviation), not by subtracting the BGR mean: published PyTorch weights expect it.",
    "ResNet's pool rounds down, Caffe's up: equal where every scale's side is 4j + 1. Padding to 8k + 1, with three scales to 32k + 1, ensures it when "
    "testing; in training the crop does (321), other crops are not checked.",
    "Miniatures learn by Adam from random numbers and have one learning rate; SGD with the groups x1 x2 x10 x20 is for pretrained bodies.",
)
