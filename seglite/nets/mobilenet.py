"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv 1801.04381) as a backbone for segmentation, with torchvision's state-dict names; MobileNetV1 below.

An inverted residual widens a thin map with a 1x1 convolution, filters every channel by itself with a 3x3 convolution, and projects back
without activation; the shortcut joins the thin ends. 3.5 million parameters, 0.3 billion multiply-adds at 224 x 224 (ResNet-101: 7.8):

    image [B, 3, H, W] - features.0 /2 - .1 - .2-3 -> 24 at H/4 - .4-6 -> 32 at H/8 - .7-13 -> 96 at H/16 - .14-17 -> 320 at H/32
                                                                                       (classifier: features.18 1x1 -> 1280, mean, linear)

MobileNetV1 (Howard et al., arXiv 1704.04861) has the filter per channel and the 1x1 convolution, but no widening and no shortcut.
"""
import torch
from torch import nn

from .layers import dilation_plan, freeze_batch_norm, init_convolutions

# Table 2 of the paper: expansion, channels, blocks, stride of the first block
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MAPS_AFTER = (1, 2, 4, 6)  # groups that end at strides 4, 8, 16 and 32


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of `by`, but never less than nine tenths of `channels` (the rounding of the authors' TensorFlow code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def conv_bn_relu6(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, rate: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 * rate, dilation=rate, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen, filter per channel, project without activation (section 3.3)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, rate: int, shortcut: bool):
        super().__init__()
        inner = inputs * expansion
        widen = [conv_bn_relu6(inputs, inner)] if expansion != 1 else []
        filter3x3 = conv_bn_relu6(inner, inner, 3, stride, rate, groups=inner)
        self.conv = nn.Sequential(*widen, filter3x3, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W] -> [B, D, h, w]."""
        y = self.conv(x)  # [B, D, h, w]
        return x + y if self.shortcut else y


class Stages(nn.Sequential):
    """The layers that torchvision keeps in `features`; called, they return the four stage maps instead of the last map alone."""

    def __init__(self, layers: list[nn.Module], ends: tuple[int, ...]):
        super().__init__(*layers)
        self.ends = ends

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image: [B, 3, H, W] -> four maps [B, channels[i], H/strides[i], W/strides[i]], sizes rounded up."""
        maps, x = [], image
        for i in range(self.ends[-1] + 1):
            x = self[i](x)  # [B, C, h, w] each
            if i in self.ends:
                maps.append(x)
        return maps


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        classes: outputs of the linear classifier; 0 leaves out `features.18` and the classifier (backbone only, as DeepLab uses it).
        width: multiplier on all channel numbers, rounded to multiples of 8.
        output_stride: 32, 16 or 8.
        convention: where dilation begins, see `layers.dilation_plan`.
        dropout: before the classifier.
        frozen_bn: batch norm keeps its stored statistics, scale and shift for ever.

    `features(image)` returns the maps described by `channels` and `strides`.
    """

    def __init__(
        self, *, classes: int = 1000, width: float = 1.0, output_stride: int = 32, convention: str = "torchvision", dropout: float = 0.2,
        frozen_bn: bool = False,
    ):
        super().__init__()
        plans = dilation_plan(tuple(stride for *_, stride in GROUPS), 2, output_stride, convention)
        inputs = divisible(32 * width)
        layers, ends = [conv_bn_relu6(3, inputs, 3, stride=2)], []
        for (expansion, channels, blocks, nominal_stride), plan in zip(GROUPS, plans):
            outputs = divisible(channels * width)
            for j in range(blocks):
                # Decided by the nominal stride: a stride replaced by dilation must not grow a shortcut that the trained weights never had.
                shortcut = inputs == outputs and (j > 0 or nominal_stride == 1)
                stride, rate = (plan.stride, plan.first_rate) if j == 0 else (1, plan.rate)
                layers.append(InvertedResidual(inputs, outputs, expansion, stride, rate, shortcut))
                inputs = outputs
            ends.append(len(layers) - 1)
        last = divisible(1280 * max(1.0, width))
        if classes:
            layers.append(conv_bn_relu6(inputs, last))
        self.features = Stages(layers, tuple(ends[i] for i in MAPS_AFTER))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes)) if classes else None
        self.channels = tuple(divisible(GROUPS[i][1] * width) for i in MAPS_AFTER)
        self.strides = tuple(min(s, output_stride) for s in (4, 8, 16, 32))
        init_convolutions(self)
        if frozen_bn:
            freeze_batch_norm(self)

    @property
    def widening(self) -> nn.Module | None:
        """The 1x1 convolution between the last map and the classifier (features.18); None in a network built with classes=0."""
        return self.features[-1] if len(self.features) > self.features.ends[-1] + 1 else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> class logits [B, K]; without classifier the pooled features [B, D]."""
        last = self.features(image)[-1]  # [B, D, h, w]
        if self.classifier is None:
            return last.mean((2, 3))
        pooled = self.widening(last).mean((2, 3))  # [B, E]
        return self.classifier(pooled)


def mobilenet_v2(**options) -> MobileNetV2:
    """3,504,872 parameters with the classifier; options as in `MobileNetV2`."""
    return MobileNetV2(**options)


# ---- version 1 ---------------------------------------------------------------------------------------------------------------------------

GROUPS_V1 = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # table 1: channels, blocks, stride of the first block


def separable(inputs: int, outputs: int, stride: int, rate: int) -> nn.Sequential:
    """A 3x3 filter per channel, then a 1x1 convolution, each with norm and ReLU (section 3.1)."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=rate, dilation=rate, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU(inplace=True))


class MobileNetV1(nn.Module):
    """MobileNet, the first: `model.0` is the stem, `model.1` to `model.13` are the separable blocks (the names of the PyTorch ports).

    Args:
        classes: outputs of the linear classifier `fc`; 0 leaves it out.
        width: multiplier on all channel numbers (section 3.3), rounded to multiples of 8.
        output_stride: 32, 16, 8 or 4; convention: see `layers.dilation_plan`.

    `features(image)` returns the maps described by `channels` and `strides`. Table 1 of the paper gives the last block stride 2, which would
    leave 4x4 of its 7x7 pixels: a slip, it is 1 in every implementation.
    """

    def __init__(self, *, classes: int = 1000, width: float = 1.0, output_stride: int = 32, convention: str = "torchvision"):
        super().__init__()
        plans = dilation_plan(tuple(stride for *_, stride in GROUPS_V1), 2, output_stride, convention)
        inputs = divisible(32 * width)
        stem = nn.Sequential(nn.Conv2d(3, inputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        layers, ends, channels = [stem], [], []
        for (nominal, blocks, _), plan in zip(GROUPS_V1, plans):
            outputs = divisible(nominal * width)
            for j in range(blocks):
                layers.append(separable(inputs, outputs, *((plan.stride, plan.first_rate) if j == 0 else (1, plan.rate))))
                inputs = outputs
            ends.append(len(layers) - 1)
            channels.append(outputs)
        self.model = Stages(layers, tuple(ends[1:]))
        self.fc = nn.Linear(inputs, classes) if classes else None
        self.channels, self.strides = tuple(channels[1:]), tuple(min(s, output_stride) for s in (4, 8, 16, 32))
        init_convolutions(self)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image: [B, 3, H, W] -> four maps [B, channels[i], H/strides[i], W/strides[i]], sizes rounded up."""
        return self.model(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> class logits [B, K]; without classifier the pooled features [B, D]."""
        pooled = self.features(image)[-1].mean((2, 3))  # [B, D]
        return pooled if self.fc is None else self.fc(pooled)


def mobilenet_v1(**options) -> MobileNetV1:
    """4,231,976 parameters with the classifier; options as in `MobileNetV1`."""
    return MobileNetV1(**options)
