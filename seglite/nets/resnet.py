"""ResNet (He et al., CVPR 2016, arXiv 1512.03385) as a backbone for segmentation, with torchvision's state-dict names.

A residual network adds to its input what its convolutions compute; five times the resolution is halved:

    image [B, 3, H, W] - conv1 7x7 /2 - maxpool /2 - layer1 -> [B, C, H/4, W/4]    layer2 -> [B, 2C, H/8, W/8]
                                                     layer3 -> [B, 4C, H/16, W/16] layer4 -> [B, 8C, H/32, W/32]

Segmentation wants finer maps, so the last strides can be replaced by dilation (`output_stride` 16 or 8) without changing a weight.
The stride of a bottleneck sits on its 3x3 convolution, as in torchvision and in the weights the field shares ("v1.5").
`width=16` makes a network of one sixteenth of the size for miniatures.
"""
import torch
from torch import nn

from .layers import StagePlan, dilation_plan, freeze_batch_norm, init_convolutions


def conv3x3(inputs: int, outputs: int, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=rate, dilation=rate, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (section 4.1, ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, plan: StagePlan, downsample: nn.Module | None, width_per_group: int = 64):
        super().__init__()
        if width_per_group != 64:
            raise ValueError(f"width_per_group={width_per_group}: only bottlenecks (ResNet-50 and deeper) have an inner width to change.")
        self.conv1 = conv3x3(inputs, planes, plan.stride, plan.first_rate)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes, rate=plan.rate)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W] -> [B, D, h, w]."""
        shortcut = x if self.downsample is None else self.downsample(x)  # [B, D, h, w]
        y = self.relu(self.bn1(self.conv1(x)))  # [B, D, h, w]
        y = self.bn2(self.conv2(y))  # [B, D, h, w]
        return self.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up around a shortcut (section 4.1, ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, plan: StagePlan, downsample: nn.Module | None, width_per_group: int = 64):
        super().__init__()
        inner = planes * width_per_group // 64
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, plan.stride, plan.first_rate)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W] -> [B, 4*D, h, w]."""
        shortcut = x if self.downsample is None else self.downsample(x)  # [B, 4*D, h, w]
        y = self.relu(self.bn1(self.conv1(x)))  # [B, P, H, W]
        y = self.relu(self.bn2(self.conv2(y)))  # [B, P, h, w]
        y = self.bn3(self.conv3(y))  # [B, 4*D, h, w]
        return self.relu(y + shortcut)


class ResNet(nn.Module):
    """A residual network.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks per stage, four numbers.
        classes: outputs of the linear classifier `fc`; 0 leaves it out (backbone only).
        width: channels after the stem; 64 in the paper.
        width_per_group: inner width of a bottleneck in 64ths of its planes; 128 gives the wide ResNet-50-2.
        output_stride: 32, 16 or 8: how coarse the last map of the *full* network may be.
        convention: where dilation begins, see `dilation_plan`.
        multi_grid: factors on the rates of layer4's blocks, e.g. (1, 2, 4) (DeepLab v3, section 3.2.1); one per block.
        stages: how many of layer1..layer4 are built; 3 stops before layer4.
        frozen_bn: batch norm keeps its stored statistics, scale and shift for ever.

    `channels` and `strides` describe the stage maps that `features` returns.
    """

    def __init__(
        self, block: type, depths: tuple[int, ...], *, classes: int = 1000, width: int = 64, width_per_group: int = 64, output_stride: int = 32,
        convention: str = "torchvision", multi_grid: tuple[int, ...] | None = None, stages: int = 4, frozen_bn: bool = False,
    ):
        super().__init__()
        if stages not in (1, 2, 3, 4):
            raise ValueError(f"stages={stages}: a ResNet has 1 to 4 stages.")
        if multi_grid is not None and (stages < 4 or len(multi_grid) != depths[3]):
            blocks = depths[3] if stages == 4 else 0
            raise ValueError(f"multi_grid={tuple(multi_grid)}: layer4 here has {blocks} blocks and wants as many factors.")
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        plans = dilation_plan((1, 2, 2, 2), 4, output_stride, convention)
        self.channels = tuple(width * 2**i * block.expansion for i in range(stages))
        self.strides = tuple(min(4 * 2**i, output_stride) for i in range(stages))
        inputs = width
        for i in range(stages):
            grid = multi_grid if i == 3 and multi_grid is not None else (1,) * depths[i]
            blocks = []
            for j, factor in enumerate(grid):
                first_rate = plans[i].first_rate if j == 0 else plans[i].rate
                plan = StagePlan(plans[i].stride if j == 0 else 1, first_rate * factor, plans[i].rate * factor)
                downsample = None
                if inputs != self.channels[i]:
                    downsample = nn.Sequential(nn.Conv2d(inputs, self.channels[i], 1, plan.stride, bias=False), nn.BatchNorm2d(self.channels[i]))
                blocks.append(block(inputs, width * 2**i, plan, downsample, width_per_group))
                inputs = self.channels[i]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = stages
        self.fc = nn.Linear(inputs, classes) if classes else None
        init_convolutions(self)
        if frozen_bn:
            freeze_batch_norm(self)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Stage maps from fine to coarse.

        image: [B, 3, H, W] -> `stages` maps [B, channels[i], H/strides[i], W/strides[i]], sizes rounded up.
        """
        x = self.relu(self.bn1(self.conv1(image)))  # [B, C, H/2, W/2]
        x = self.maxpool(x)  # [B, C, H/4, W/4]
        maps = []
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)  # [B, D, h, w] each
            maps.append(x)
        return maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> class logits [B, K]; without classifier the pooled features [B, D]."""
        pooled = self.features(image)[-1].mean((2, 3))  # [B, D]
        return pooled if self.fc is None else self.fc(pooled)


def resnet18(**options) -> ResNet:
    """11,689,512 parameters with `fc`; options as in `ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options) -> ResNet:
    """21,797,672 parameters with `fc`; options as in `ResNet`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options) -> ResNet:
    """25,557,032 parameters with `fc`; options as in `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def resnet101(**options) -> ResNet:
    """44,549,160 parameters with `fc`; options as in `ResNet`."""
    return ResNet(Bottleneck, (3, 4, 23, 3), **options)


def wide_resnet50_2(**options) -> ResNet:
    """68,883,240 parameters with `fc` (Zagoruyko and Komodakis, arXiv 1605.07146): a ResNet-50 with 3x3 convolutions twice as wide."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **{"width_per_group": 128, **options})
