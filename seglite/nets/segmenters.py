"""Networks that return one score per class and pixel, and the small classifier whose maps start weak supervision.

    DeepLabV2      backbone -> four atrous 3x3 branches straight to the classes, summed       (arXiv 1606.00915)
    DeepLabV3Plus  backbone -> ASPP (concatenated) -> joined with the stride-4 map -> classes (arXiv 1706.05587, 1802.02611)
    DeepLabV3Mobile  MobileNetV2 -> 1x1 branch and image pooling, no decoder, no atrous branches  (arXiv 1801.04381, section 6.3)
    SmallUNet      three resolutions with shortcuts, for 64-pixel miniatures: 81,637 parameters at 5 classes
    SmallClassifier  five convolutions, stride 4, sees 19 pixels: local evidence for image tags, 41,040 parameters at 4 tags

A backbone is any module with `channels`, `strides` and `features(image)` (see seglite/nets/__init__.py).
Logits are not normalised; the softmax belongs to the loss.
"""
import torch
from torch import nn
from torch.nn import functional as F

from kernels.atrous_conv import aspp

from .mobilenet import MobileNetV2

# DeepLab v3, section 3.3: doubled at output stride 8; halved at 32 is our choice in the same spirit
RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, pixel centres aligned: x [B, C, h, w] -> [B, C, *size]."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size, mode="bilinear", align_corners=False)


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, rate: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 * rate, dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ImagePooling(nn.Sequential):
    """The mean of the whole map, transformed and spread over every position (DeepLab v3, section 3.3)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, D, h, w]."""
        if len(x) == 1 and isinstance(self[2], nn.BatchNorm2d) and self[2].training:
            raise ValueError(
                "image pooling leaves one value per image, and batch norm in training mode cannot normalise a batch of one; "
                "use a batch of at least 2 per process, frozen batch norm, or image_pooling=False."
            )
        pooled = super().forward(x)  # [B, D, 1, 1]
        return pooled.expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one map seen through 3x3 filters of several rates at once.

    Args:
        inputs: channels of the incoming map.
        outputs: channels of the result (for "sum" usually the classes).
        rates: dilations of the 3x3 branches.
        fuse: "sum": branches with bias, added up (v2, section 3.2, ResNet form: no hidden layer, no norm, weights N(0, 0.01^2)).
            "concat": a 1x1 branch, the 3x3 branches and image pooling, each with norm and ReLU, concatenated and projected by 1x1
            (v3, section 3.3).
        image_pooling: with "concat" only.
        dropout: after the projection; "concat" only.

    "concat" has torchvision's names: `convs.0.0`, ..., `project.0`.
    """

    def __init__(
        self, inputs: int, outputs: int, rates: tuple[int, ...], fuse: str = "concat", image_pooling: bool = True, dropout: float = 0.1,
    ):
        super().__init__()
        if fuse not in ("sum", "concat"):
            raise ValueError(f"fuse={fuse!r}: choose 'sum' (DeepLab v2) or 'concat' (v3, v3+).")
        self.fuse = fuse
        if fuse == "sum":
            self.convs = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate) for rate in rates)
            for conv in self.convs:
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.zeros_(conv.bias)
        else:
            branches = [conv_bn_relu(inputs, outputs, 1)] + [conv_bn_relu(inputs, outputs, rate=rate) for rate in rates]
            self.convs = nn.ModuleList(branches + ([ImagePooling(inputs, outputs)] if image_pooling else []))
            self.project = conv_bn_relu(outputs * len(self.convs), outputs, 1).append(nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, D, h, w]."""
        if self.fuse == "sum":
            rates = [conv.dilation[0] for conv in self.convs]
            return aspp(x, [conv.weight for conv in self.convs], [conv.bias for conv in self.convs], rates)  # [B, D, h, w]
        branches = torch.cat([conv(x) for conv in self.convs], 1)  # [B, E, h, w]
        return self.project(branches)


class DeepLabV2(nn.Module):
    """Backbone and summed ASPP; ASPP-L of the paper with the default rates, LargeFOV with rates=(12,).

    `head` [B, C, h, w] -> [B, K, h, w] replaces the ASPP, for example by the VGG form whose branches have hidden layers (papers/deeplab.py).
    """

    def __init__(
        self, backbone: nn.Module, classes: int, rates: tuple[int, ...] = (6, 12, 18, 24), upsample: bool = True, head: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.aspp = ASPP(backbone.channels[-1], classes, rates, fuse="sum") if head is None else head
        self.upsample = upsample

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W], or [B, K, h, w] at the backbone's stride without `upsample`."""
        logits = self.aspp(self.backbone.features(image)[-1])  # [B, K, h, w]
        return resize(logits, image.shape[-2:]) if self.upsample else logits


class DeepLabV3Plus(nn.Module):
    """Encoder and decoder (arXiv 1802.02611, section 3.1, figure 2).

    Args:
        backbone: its first stage map (stride 4) feeds the decoder, its last one the ASPP.
        classes: K.
        width: channels of ASPP and decoder; 256 in the paper.
        low_width: channels to which the stride-4 map is reduced, so that it does not outweigh the context; 48 in the paper (table 1).
        rates: None takes the paper's for the backbone's stride (`RATES`).
        image_pooling, dropout: of the ASPP.
        upsample: logits at the size of the image; otherwise at stride 4.
    """

    def __init__(
        self, backbone: nn.Module, classes: int, width: int = 256, low_width: int = 48, rates: tuple[int, ...] | None = None,
        image_pooling: bool = True, dropout: float = 0.1, upsample: bool = True,
    ):
        super().__init__()
        stride = backbone.strides[-1]
        if rates is None and stride not in RATES:
            raise ValueError(f"rates=None: the paper gives rates for strides {sorted(RATES)}, this backbone ends at stride {stride}; name them.")
        self.backbone = backbone
        self.aspp = ASPP(backbone.channels[-1], width, rates or RATES[stride], "concat", image_pooling, dropout)
        self.low = conv_bn_relu(backbone.channels[0], low_width, 1)
        self.decoder = nn.Sequential(conv_bn_relu(width + low_width, width), conv_bn_relu(width, width))
        self.classifier = nn.Conv2d(width, classes, 1)
        self.upsample = upsample

    def decode(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """The backbone's first map [B, C, h, w] and last map [B, E, i, j] -> features for the classifier [B, D, h, w]."""
        context = resize(self.aspp(coarse), fine.shape[-2:])  # [B, D, h, w]
        return self.decoder(torch.cat([self.low(fine), context], 1))  # [B, D, h, w]

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> what the classifier sees, [B, D, H/4, W/4], sizes rounded up."""
        maps = self.backbone.features(image)
        return self.decode(maps[0], maps[-1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W], or [B, K, H/4, W/4] (rounded up) without `upsample`."""
        logits = self.classifier(self.features(image))  # [B, K, h, w]
        return resize(logits, image.shape[-2:]) if self.upsample else logits


class DeepLabV3Mobile(nn.Module):
    """DeepLab v3 on MobileNetV2 at output stride 16, as its authors run it on phones: 2.1 million parameters at 21 classes.

    MobileNetV2's paper, section 6.3: without the 3x3 atrous branches it keeps its accuracy at a quarter of the cost. The four head layers
    have biases and no norm (folded, as published), so this class loads trained weights and serves; a network to be trained is `DeepLabV3Plus`.
    Names: `backbone.features.*` as torchvision, `image_pooling`, `aspp0`, `project`, `classifier`.

    Args:
        classes: K.
        side: the square canvas of `predict`. 513 in training; sides of 32k+1 keep pixels and map corners aligned.
    """

    grey = (0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225  # 127.5 of 255, normalised as the photographs are

    def __init__(self, classes: int = 21, side: int = 513):
        super().__init__()
        self.backbone = MobileNetV2(classes=0, output_stride=16)
        inputs, width = self.backbone.channels[-1], 256
        self.image_pooling = nn.Conv2d(inputs, width, 1)
        self.aspp0 = nn.Conv2d(inputs, width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.classifier = nn.Conv2d(width, classes, 1)
        self.side = side

    def coarse(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H/16, W/16], sizes rounded up."""
        x = self.backbone.features(image)[-1]  # [B, C, h, w]
        pooled = F.relu(self.image_pooling(x.mean((2, 3), keepdim=True))).expand(-1, -1, *x.shape[-2:])  # [B, D, h, w]
        joined = torch.cat([pooled, F.relu(self.aspp0(x))], 1)  # [B, 2*D, h, w]
        return self.classifier(F.relu(self.project(joined)))  # [B, K, h, w]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W]; corners are aligned, as in its training."""
        return F.interpolate(self.coarse(image), image.shape[-2:], mode="bilinear", align_corners=True)  # [B, K, H, W]

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] of any size -> logits [B, K, H, W], seen as in training: in the top-left corner of a grey canvas, shrunk to fit.

        The image pooling averages the grey in, so the canvas is part of the function that the weights compute.
        """
        H, W = image.shape[-2:]
        shrink = min(1.0, self.side / max(H, W))
        seen = resize(image, (max(1, round(H * shrink)), max(1, round(W * shrink))))
        canvas = torch.tensor(self.grey).to(image)[None, :, None, None].repeat(len(image), 1, self.side, self.side)
        canvas[..., : seen.shape[-2], : seen.shape[-1]] = seen
        logits = self(canvas)[..., : seen.shape[-2], : seen.shape[-1]]
        return resize(logits, (H, W))  # [B, K, H, W]


class SmallUNet(nn.Module):
    """Strides 2, 4 and 8 with `width`, 2 and 3 times as many channels, and the way back with shortcuts.

    After Ronneberger et al., arXiv 1505.04597.

    Made for miniatures: at width 16 a 64 x 64 image takes 22 million multiply-adds. Any image size of at least 8 x 8 works.
    """

    def __init__(self, classes: int, width: int = 16):
        super().__init__()
        w1, w2, w3 = width, 2 * width, 3 * width
        self.down1 = nn.Sequential(conv_bn_relu(3, w1, stride=2), conv_bn_relu(w1, w1))
        self.down2 = nn.Sequential(conv_bn_relu(w1, w2, stride=2), conv_bn_relu(w2, w2))
        self.down3 = nn.Sequential(conv_bn_relu(w2, w3, stride=2), conv_bn_relu(w3, w3, rate=2))
        self.up2 = conv_bn_relu(w3 + w2, w2)
        self.up1 = conv_bn_relu(w2 + w1, w1)
        self.classifier = nn.Conv2d(w1, classes, 1)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> what the classifier sees, [B, width, H/2, W/2], sizes rounded up."""
        x1 = self.down1(image)  # [B, C, H/2, W/2]
        x2 = self.down2(x1)  # [B, 2*C, H/4, W/4]
        x3 = self.down3(x2)  # [B, 3*C, H/8, W/8]
        y2 = self.up2(torch.cat([resize(x3, x2.shape[-2:]), x2], 1))  # [B, 2*C, H/4, W/4]
        return self.up1(torch.cat([resize(y2, x1.shape[-2:]), x1], 1))  # [B, C, H/2, W/2]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> logits [B, K, H, W]."""
        logits = self.classifier(self.features(image))  # [B, K, H/2, W/2]
        return resize(logits, image.shape[-2:])


class SmallClassifier(nn.Module):
    """Image tags from local evidence: the score of a tag is the mean of its map (Zhou et al., arXiv 1512.04150, section 2).

    Five convolutions reach 19 x 19 pixels, so that a map answers for its own place; the last layer has no bias, because a constant would be
    evidence without a place. `tags` is the number of foreground classes, K-1 of a data set with background.
    """

    stride = 4

    def __init__(self, tags: int, width: int = 24):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(3, width, stride=2), conv_bn_relu(width, width),
            conv_bn_relu(width, 2 * width, stride=2), conv_bn_relu(2 * width, 2 * width),
            nn.Conv2d(2 * width, 3 * width, 1), nn.ReLU(),
        )
        self.classifier = nn.Conv2d(3 * width, tags, 1, bias=False)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> what the classifier sees, [B, 3*width, H/4, W/4], sizes rounded up."""
        return self.body(image)

    def class_maps(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> evidence for every tag and place [B, K-1, H/4, W/4], of any sign."""
        return self.classifier(self.features(image))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> one logit per tag [B, K-1]."""
        return self.class_maps(image).mean((2, 3))
