"""Two heavy networks to compare fast ones with: PSPNet and DeepLab v3, both on a dilated ResNet.

    PSPNet     body at stride 8 -> means over 1, 2, 3 and 6 bins a side, beside the map -> 3x3 -> classes       (Zhao et al., arXiv 1612.01105)
    DeepLabV3  body at stride 8 or 16 -> ASPP with concatenation -> 3x3 -> classes                              (Chen et al., arXiv 1706.05587)

Their names are torchvision's where torchvision has them. Neither has its auxiliary head: they are here to be timed, and as baselines in miniatures.
Logits are returned at the size of the image.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .segmenters import ASPP, RATES, conv_bn_relu, resize

BINS = (1, 2, 3, 6)  # PSPNet, section 3.2


class BinPooling(nn.Module):
    """PSPNet's pyramid pooling: the map beside its means over a few grids of bins, projected by a 3x3.

    inputs C -> outputs D; every grid gets C / 4 channels.
    """

    def __init__(self, inputs: int, outputs: int, bins: tuple[int, ...] = BINS):
        super().__init__()
        self.bins = bins
        self.branches = nn.ModuleList(conv_bn_relu(inputs, inputs // len(bins), 1) for _ in bins)
        self.project = conv_bn_relu(inputs + inputs // len(bins) * len(bins), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, D, h, w]."""
        if len(x) == 1 and 1 in self.bins and isinstance(self.branches[0][1], nn.BatchNorm2d) and self.branches[0][1].training:
            raise ValueError("pyramid pooling with one bin leaves one value per image, and batch norm in training mode cannot normalise a batch of one; "
                             "use a batch of at least 2 per process.")
        views = [resize(branch(F.adaptive_avg_pool2d(x, n)), x.shape[-2:]) for branch, n in zip(self.branches, self.bins)]  # [B, I, h, w]
        return self.project(torch.cat([x, *views], 1))  # [B, D, h, w]


class PSPNet(nn.Module):
    """Body, pyramid pooling, classifier. body: any with `channels` and `features`; the paper's is a ResNet at output stride 8.

    width: channels after the pooling; 512 in the paper, which is a quarter of ResNet-50's last map.
    """

    def __init__(self, body: nn.Module, classes: int, width: int = 512, dropout: float = 0.1):
        super().__init__()
        self.backbone = body
        self.pooling = BinPooling(body.channels[-1], width)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W]."""
        x = self.pooling(self.backbone.features(image)[-1])  # [B, D, h, w]
        return resize(self.classifier(x), image.shape[-2:])  # [B, K, H, W]


class DeepLabV3(nn.Module):
    """Body, ASPP (1x1, three rates, image pooling), 3x3, classifier; at ResNet-50 and 21 classes torchvision's deeplabv3_resnet50.

    rates: None takes the paper's for the body's stride. They suit maps of 65 x 65; on a map smaller than a rate that filter is a 1x1.
    """

    def __init__(self, body: nn.Module, classes: int, width: int = 256, dropout: float = 0.5, rates: tuple[int, ...] | None = None):
        super().__init__()
        self.backbone = body
        aspp = ASPP(body.channels[-1], width, rates or RATES[body.strides[-1]], "concat", dropout=dropout)
        self.classifier = nn.Sequential(aspp, *conv_bn_relu(width, width), nn.Conv2d(width, classes, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W]."""
        logits = self.classifier(self.backbone.features(image)[-1])  # [B, K, h, w]
        return resize(logits, image.shape[-2:])  # [B, K, H, W]
