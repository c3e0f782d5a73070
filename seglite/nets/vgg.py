"""VGG-16 (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556) as a backbone for segmentation, with torchvision's state-dict names.

Nothing but 3x3 convolutions, ReLU and pooling; each of the five groups ends in a pool that halves the map:

    image [B, 3, H, W] - 2x conv, pool -> H/2 - 2x conv, pool -> 128 at H/4 - 3x -> 256 at H/8 - 3x -> 512 at H/16 - 3x -> 512 at H/32

`pool="3x3"` is DeepLab's variant (released prototxt): pools of 3 pixels with padding 1, centred on a pixel, so that sizes 8k + 1 stay aligned and a
pool may lose its stride without moving its window. A 2x2 pool has no centre: without its stride it looks half a pixel aside.
"""
import torch
from torch import nn

from .layers import init_convolutions
from .mobilenet import Stages

GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # configuration D of the paper: channels, convolutions


class Vgg(nn.Module):
    """A VGG network.

    Args:
        groups: (channels, convolutions) of each group; every group ends in a pool of stride 2.
        classes: outputs of the classifier (three linear layers on a 7x7 map); 0 leaves it out (backbone only).
        output_stride: the coarsest stride; pools beyond it lose their stride, and the 3x3 convolutions after them are dilated.
        pool: "2x2" (torchvision) or "3x3" (DeepLab; the same weights fit). Fewer strides than pools need "3x3".
        dropout: of the classifier.

    `channels` and `strides` describe the maps that `features` returns: those after every pool from the second on, four of VGG-16.
    DeepLab leaves pool5 undilated though the stride before it is gone (prototxt: kernel 3, stride 1, pad 1), and so do we.
    """

    def __init__(self, groups: tuple[tuple[int, int], ...] = GROUPS, *, classes: int = 1000, output_stride: int = 32, pool: str = "2x2",
                 dropout: float = 0.5):
        super().__init__()
        reachable = [2**i for i in range(1, len(groups) + 1)]
        if output_stride not in reachable:
            raise ValueError(f"output_stride={output_stride}: a VGG of {len(groups)} groups can stop at stride {reachable}.")
        if pool not in ("2x2", "3x3"):
            raise ValueError(f"pool={pool!r}: choose '2x2' (torchvision) or '3x3' (DeepLab).")
        if pool == "2x2" and output_stride != reachable[-1]:
            raise ValueError(f"output_stride={output_stride} takes strides away, and a 2x2 pool without stride would move the map by half a pixel; use pool='3x3'.")
        if classes and (len(groups) < 5 or output_stride != 32):
            raise ValueError(f"classes={classes}: the classifier stands on a 7x7 map at stride 32; use classes=0 for a backbone.")
        layers, ends, strides, inputs, reached, rate = [], [], [], 3, 1, 1
        for channels, convolutions in groups:
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, channels, 3, padding=rate, dilation=rate), nn.ReLU(inplace=True)]
                inputs = channels
            stride = 2 if reached < output_stride else 1
            layers.append(nn.MaxPool2d(2, 2) if pool == "2x2" else nn.MaxPool2d(3, stride, padding=1))
            reached, rate = reached * stride, rate * 2 // stride
            ends.append(len(layers) - 1)
            strides.append(reached)
        self.features = Stages(layers, tuple(ends[1:]))
        self.channels, self.strides = tuple(channels for channels, _ in groups[1:]), tuple(strides[1:])
        self.classifier = None
        if classes:
            self.classifier = nn.Sequential(
                nn.Linear(inputs * 49, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(4096, classes),
            )
        init_convolutions(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> class logits [B, K]; without classifier the pooled features [B, D]."""
        last = self.features(image)[-1]  # [B, D, h, w]
        if self.classifier is None:
            return last.mean((2, 3))
        cells = nn.functional.adaptive_avg_pool2d(last, 7)  # [B, D, 7, 7]
        return self.classifier(cells.flatten(1))


def vgg16(**options) -> Vgg:
    """138,357,544 parameters with the classifier; options as in `Vgg`."""
    return Vgg(GROUPS, **options)
