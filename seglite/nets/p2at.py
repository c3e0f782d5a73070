"""The network of P2AT (Elhassan, Zhou, Benabid, Adam, arXiv 2310.15025; Expert Systems with Applications 255, 2024), block by block.

    image [B, 3, H, W] -- ResNet --> x1 [B, ., H/4, W/4]   x2 [B, ., H/8, W/8]   x3 [B, ., H/16, W/16]   x4 [B, ., H/32, W/32]

    x4 -> 64 channels -> context: 2 x (P2A2, MLP) --> Dec 3x3 = p1           at 1/32
    BiF(x2, x3, p1) = b4 -> GCE -> Dec 5x5 = p2                              at 1/8      b4 -> auxiliary head 1
    BiF(x1, x2, p2) = b3 -> GCE -> Dec 7x7 = p3                              at 1/4      b3 -> auxiliary head 2
    FDR(p3) -> with p2 -> FDR -> with p1 -> FDR -> head -> x4 bilinear       logits [B, K, H, W]

P2A2, "pyramid pooling axial attention": queries, keys and values come from a pyramid-pooled map; attention is squeezed to the two axes
(kernels/squeeze_axial.py); what comes back is multiplied by a local map. BiF mixes detail, middle and semantic maps, GCE adds the mean of the
whole map, Dec is a ConvNeXt-like block that starts as the identity.

Only the abstract and the released model code could be read; the blocks follow that code. Where it looks accidental, `pooling`, `branches` and
`dead_taps` choose between what it does and what it seems to mean (papers/p2at.py, DEVIATIONS). `attention`, `context`, `fusion` and `gce` take
parts out or put others in their place, for ablations.

B batch, K classes, C channels, H W image, h w feature map, G heads with D key and E value channels each, Q = G*D, V = G*E.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kernels.axial_attention import axial_attention
from kernels.squeeze_axial import PositionTables, squeeze_axial_attention, stretch

from .pspnet import BinPooling
from .segmenters import resize

SLOTS = 16  # of a position table; stretched to any number of rows or columns
ATTENTIONS = ("squeeze", "axial", "full")
CONTEXTS = ("p2a2", "bins", "none")
POOLINGS = ("interleaved", "as_released", "none")


class PReLU(nn.PReLU):
    """One learned negative slope per channel, in the type of the map: autocast on a CPU leaves the slopes float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(x, self.weight.to(x.dtype))


class CBP(nn.Sequential):
    """Convolution without bias, batch norm, PReLU: the network's brick."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1):
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), PReLU(outputs))


def conv(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    """1x1, nothing after it."""
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def conv_bn(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs))


# ---- context: pyramid pooling axial attention -------------------------------------------------------------------------------------------


class PyramidPooling(nn.Module):
    """Averages of 3x3, of 5x5 over those, of 7x7 over those, mixed per channel and multiplied by the map they were taken from.

    order: "interleaved" gives the grouped convolution of channel c the three scales of channel c. "as_released" concatenates the first scale
    twice and the third once, scale after scale, so that group g reads channels 3g to 3g+2 of that list: neighbours at (mostly) one scale.
    """

    def __init__(self, channels: int, order: str = "interleaved"):
        super().__init__()
        self.order = order
        self.enter = CBP(channels, channels)
        self.mix = CBP(3 * channels, channels, 3, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, C, h, w]."""
        z = self.enter(x)  # [B, C, h, w]
        p1 = F.avg_pool2d(z, 3, 1, 1)  # [B, C, h, w]
        p2 = F.avg_pool2d(p1, 5, 1, 2)  # [B, C, h, w]
        p3 = F.avg_pool2d(p2, 7, 1, 3)  # [B, C, h, w]
        released = self.order == "as_released"
        scales = torch.cat([p1, p1, p3], 1) if released else torch.stack([p1, p2, p3], 2).flatten(1, 2)  # [B, 3*C, h, w]
        return self.mix(scales) * z  # [B, C, h, w]


class P2A2(nn.Module):
    """Pyramid pooling axial attention: (attention over the pooled map) times (a local map).

    Args:
        channels, heads, key, value: C, G, D, E; the paper's 64, 8, 16, 32.
        attention: "squeeze": row means attend to row means, column means to column means (P2AT). "axial": every pixel to its column and, beside
            it, to its row. "full": to all pixels. The parameters are the same in all three.
        pooling: of `PyramidPooling`; "none" leaves it out.
        branches: "as_released": the row answer goes through a CBP, the column answer through a bare convolution; "symmetric": CBP both.
    """

    def __init__(self, channels: int = 64, heads: int = 8, key: int = 16, value: int = 32, attention: str = "squeeze", pooling: str = "interleaved",
                 branches: str = "as_released"):
        super().__init__()
        if attention not in ATTENTIONS or pooling not in POOLINGS:
            raise ValueError(f"attention={attention!r}, pooling={pooling!r}: choose one of {', '.join(ATTENTIONS)} and one of {', '.join(POOLINGS)}.")
        self.heads, self.attention = heads, attention
        self.local, self.local_more = conv_bn(channels, channels), conv_bn(channels, channels, 3)
        self.pool = nn.Identity() if pooling == "none" else PyramidPooling(channels, pooling)
        self.q, self.k, self.v = conv(channels, heads * key), conv(channels, heads * key), conv(channels, heads * value)
        for name in PositionTables._fields:
            setattr(self, name, nn.Parameter(torch.randn(1, heads * key, SLOTS)))
        self.row = CBP(heads * value, heads * value)
        self.column = CBP(heads * value, heads * value) if branches == "symmetric" else conv(heads * value, heads * value)
        self.leave = CBP(heads * value, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, C, h, w]."""
        near = self.local(x)  # [B, C, h, w]
        gate = near + self.local_more(near)  # [B, C, h, w]
        pooled = self.pool(x)  # [B, C, h, w]
        tables = PositionTables(*(getattr(self, name) for name in PositionTables._fields))
        attended = getattr(self, "attend_" + self.attention)(self.q(pooled), self.k(pooled), self.v(pooled), tables)  # [B, V, h, w]
        return self.leave(attended) * gate  # [B, C, h, w]

    def attend_squeeze(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tables: PositionTables) -> torch.Tensor:
        """q: [B, Q, h, w], k: [B, Q, h, w], v: [B, V, h, w] -> [B, V, h, w]."""
        # The row projection's batch norm divides by how much averages differ, which is little: bfloat16 would round it away. H + W tokens stay float32.
        wide = [t.to(self.row[0].weight.dtype) for t in (q, k, v)]
        with torch.autocast(v.device.type, enabled=False):
            y = squeeze_axial_attention(*wide, self.heads, tables, lambda r, c: (self.row(r), self.column(c)))  # [B, V, h, w]
        return y.to(v.dtype)

    def attend_axial(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tables: PositionTables) -> torch.Tensor:
        """The same tables and projections without the averages: along the h pixels of a column, along the w pixels of a row."""
        rows, columns = place(tables.row_query, tables.row_key, q, 2), place(tables.column_query, tables.column_key, q, 3)
        down = axial_attention(self.split(q + rows[0]), self.split(k + rows[1]), self.split(v), "column")  # [B, G, h, w, E]
        along = axial_attention(self.split(q + columns[0]), self.split(k + columns[1]), self.split(v), "row")  # [B, G, h, w, E]
        return v + self.row(self.join(down)) + self.column(self.join(along))  # [B, V, h, w]

    def attend_full(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tables: PositionTables) -> torch.Tensor:
        """Every pixel attends to all; a pixel's position is the sum of its row's and its column's."""
        rows, columns = place(tables.row_query, tables.row_key, q, 2), place(tables.column_query, tables.column_key, q, 3)
        q, k = q + rows[0] + columns[0], k + rows[1] + columns[1]  # [B, Q, h, w], [B, Q, h, w]
        one_line = (self.split(t).flatten(2, 3)[:, :, None] for t in (q, k, v))
        found = self.join(axial_attention(*one_line, "row").unflatten(3, v.shape[-2:])[:, :, 0])  # [B, V, h, w]
        return v + self.row(found) + self.column(found)  # [B, V, h, w]

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, G*D, h, w] -> [B, G, h, w, D], a view."""
        return x.unflatten(1, (self.heads, -1)).movedim(2, 4)

    @staticmethod
    def join(x: torch.Tensor) -> torch.Tensor:
        """[B, G, h, w, E] -> [B, G*E, h, w]."""
        return x.movedim(4, 2).flatten(1, 2)


def place(query: torch.Tensor, key: torch.Tensor, like: torch.Tensor, axis: int) -> list[torch.Tensor]:
    """Both tables stretched along the map's axis (2: rows, 3: columns), in the map's type, ready to be added: [G*D, h, 1] or [G*D, 1, w]."""
    return [stretch(table, like.shape[axis]).to(like.dtype).unsqueeze(4 - axis) for table in (query, key)]


class MLP(nn.Sequential):
    """1x1 up, depthwise 3x3 with bias, ReLU, 1x1 down."""

    def __init__(self, channels: int, ratio: int = 4):
        wide = ratio * channels
        super().__init__(conv(channels, wide), nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.ReLU(), conv(wide, channels))


class Layer(nn.Module):
    """x + P2A2(x), then x + MLP(x); no layer norm (released code)."""

    def __init__(self, channels: int, **options):
        super().__init__()
        self.attention, self.mlp = P2A2(channels, **options), MLP(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, C, h, w]."""
        x = x + self.attention(x)  # [B, C, h, w]
        return x + self.mlp(x)  # [B, C, h, w]


# ---- the way back up --------------------------------------------------------------------------------------------------------------------


class Dec(nn.Module):
    """x + gamma * MLP(BN(depthwise(x))), one gamma per channel, 1e-6 at first: the block starts as the identity (ConvNeXt's layer scale)."""

    def __init__(self, channels: int, kernel: int, ratio: int = 4):
        super().__init__()
        self.depthwise = nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels), nn.BatchNorm2d(channels))
        self.up, self.down = nn.Linear(channels, ratio * channels), nn.Linear(ratio * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, C, h, w]."""
        y = self.depthwise(x).permute(0, 2, 3, 1)  # [B, h, w, C]
        y = self.gamma * self.down(F.hardswish(self.up(y)))  # [B, h, w, C]
        return x + y.permute(0, 3, 1, 2)  # [B, C, h, w]


class BiF(nn.Module):
    """Bidirectional fusion: detail (fine, shallow), middle and semantic (coarse, deep) maps meet at the size of the detail."""

    def __init__(self, detail: int, middle: int, channels: int):
        super().__init__()
        self.detail, self.detail_mean, self.detail_gate, self.detail_out = CBP(detail, channels), *(conv(channels, channels) for _ in range(3))
        self.semantic, self.semantic_share = CBP(channels, channels), conv(channels, channels, bias=True)
        self.middle, self.mix = conv_bn(middle, channels), conv_bn(3 * channels, channels)

    def forward(self, detail: torch.Tensor, middle: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """detail: [B, I, h, w], middle: [B, J, ., .], semantic: [B, C, ., .], both coarser -> [B, C, h, w]."""
        d = self.detail(detail)  # [B, C, h, w]
        d = self.detail_out(self.detail_mean(d.mean((2, 3), keepdim=True)) + self.detail_gate(d).sigmoid())  # [B, C, h, w]
        u = self.semantic(semantic) * self.semantic_share(semantic).softmax(1)  # a softmax over channels: about 1 / C each
        u, s = resize(u, d.shape[-2:]), resize(self.middle(middle), d.shape[-2:])  # [B, C, h, w]
        return self.mix(torch.cat([d, u, s], 1)) + s * u + (s * d).sigmoid()  # [B, C, h, w]


class Sum(nn.Module):
    """What feature pyramids do instead (ablation): BN(1x1(detail)) + the enlarged semantic map; the middle map is left out."""

    def __init__(self, detail: int, middle: int, channels: int):
        super().__init__()
        self.detail = conv_bn(detail, channels)

    def forward(self, detail: torch.Tensor, middle: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """As `BiF`."""
        return self.detail(detail) + resize(semantic, detail.shape[-2:])


class GCE(nn.Module):
    """Global context enhancer: x plus a transformed mean of x over the whole map.

    The released block uses a padded 3x3 and a padded 7x7 convolution on a 1x1 map. Only their centre taps ever meet data, so this block has
    the 1x1 convolutions that are left. `dead_taps` keeps the others, for the released parameter count; `cut_dead_taps` takes them away.
    """

    def __init__(self, channels: int, dead_taps: bool = False):
        super().__init__()
        near, far = (3, 7) if dead_taps else (1, 1)
        self.conv = nn.Conv2d(channels, channels, near, padding=near // 2, bias=False)
        self.scale, self.shift = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))
        self.out = CBP(channels, channels, far)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, h, w] -> [B, C, h, w]."""
        if len(x) == 1 and isinstance(self.out[1], nn.BatchNorm2d) and self.out[1].training:
            raise ValueError("the global context enhancer leaves one value per image, and batch norm in training mode cannot normalise a batch of one; "
                             "give every process at least 2 images at once (train.batch, train.micro_batch).")
        mean = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        return x + self.out(self.conv(mean) * self.scale + self.shift)  # [B, C, h, w]


def cut_dead_taps(model: nn.Module) -> nn.Module:
    """Reduce every GCE inside `model` to the taps that meet data, in place; the outputs stay what they were."""
    for block in model.modules():
        if isinstance(block, GCE):
            for owner, name in ((block, "conv"), (block.out, "0")):
                old = getattr(owner, name)
                middle = old.kernel_size[0] // 2
                new = nn.Conv2d(old.in_channels, old.out_channels, 1, bias=old.bias is not None).to(old.weight).train(old.training)
                new.weight.data.copy_(old.weight.data[:, :, middle:middle + 1, middle:middle + 1])
                if old.bias is not None:
                    new.bias.data.copy_(old.bias.data)
                setattr(owner, name, new)
    return model


class Head(nn.Sequential):
    """BN, ReLU, 3x3, BN, ReLU, 1x1 with bias to the classes."""

    def __init__(self, channels: int, classes: int):
        middle = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(), middle, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, classes, 1))


# ---- the network ------------------------------------------------------------------------------------------------------------------------


class P2AT(nn.Module):
    """The whole network on a body with four stage maps.

    Args:
        body: `channels` and `features(image)` -> maps at strides 4, 8, 16, 32, as nets/resnet.py.
        classes: K. channels: of everything after the body; 64 in the paper.
        context: "p2a2" (the paper's two layers), "bins" (PSPNet's pooling at 1, 2, 3 and 6 bins) or "none".
        fusion: "bif" or "sum". gce: with the global context enhancers. dead_taps: see `GCE`.
        boundary: the second auxiliary head has one channel, the logit of a boundary (papers/p2at.py).
        options: of `P2A2`.

    In training mode the network returns logits (final [B, K, H, W], auxiliary 1 [B, K, H, W], auxiliary 2 [B, K or 1, H, W]), else final alone.
    """

    def __init__(self, body: nn.Module, classes: int, channels: int = 64, context: str = "p2a2", fusion: str = "bif", gce: bool = True,
                 dead_taps: bool = False, boundary: bool = False, layers: int = 2, **options):
        super().__init__()
        if context not in CONTEXTS:
            raise ValueError(f"context={context!r}: choose one of {', '.join(CONTEXTS)}.")
        x1, x2, x3, x4 = body.channels
        join, enhance = (BiF if fusion == "bif" else Sum), (lambda: GCE(channels, dead_taps) if gce else nn.Identity())
        self.body = body
        self.reduce = CBP(x4, channels)
        if context == "p2a2":
            self.context = nn.Sequential(*(Layer(channels, **options) for _ in range(layers)))
        else:
            self.context = BinPooling(channels, channels) if context == "bins" else nn.Identity()
        self.dec1, self.dec2, self.dec3 = Dec(channels, 3), Dec(channels, 5), Dec(channels, 7)
        self.join4, self.join3 = join(x2, x3, channels), join(x1, x2, channels)
        self.gce4, self.gce3 = enhance(), enhance()
        self.refine3, self.refine2, self.refine1 = (CBP(channels, channels, 3) for _ in range(3))
        self.merge2, self.merge1 = CBP(2 * channels, channels, 3), CBP(2 * channels, channels, 3)
        self.head = Head(channels, classes)
        self.aux1, self.aux2 = Head(channels, classes), Head(channels, 1 if boundary else classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """image: [B, 3, H, W] -> logits [B, K, H, W]; in training mode three of them."""
        x1, x2, x3, x4 = self.body.features(image)
        p1 = self.dec1(self.context(self.reduce(x4)))  # [B, C, h, w], 1/32 of the image with a ResNet below
        b4 = self.join4(x2, x3, p1)  # [B, C, H/8, W/8]
        p2 = self.dec2(self.gce4(b4))  # [B, C, H/8, W/8]
        b3 = self.join3(x1, x2, p2)  # [B, C, H/4, W/4]
        f = self.refine3(self.dec3(self.gce3(b3)))  # [B, C, H/4, W/4]
        f = self.refine2(self.merge2(torch.cat([resize(p2, f.shape[-2:]), f], 1)))  # [B, C, H/4, W/4]
        f = self.refine1(self.merge1(torch.cat([resize(p1, f.shape[-2:]), f], 1)))  # [B, C, H/4, W/4]
        final = enlarge(self.head(f), image)  # [B, K, H, W]
        if not self.training:
            return final
        return final, enlarge(self.aux1(b4), image), enlarge(self.aux2(b3), image)


def enlarge(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """logits [B, K, h, w] -> the image's size, bilinear with the corners aligned (released code)."""
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)  # [B, K, H, W]


def auxiliary(model: nn.Module) -> int:
    """Parameters of the two heads that only training uses."""
    return sum(p.numel() for head in (model.aux1, model.aux2) for p in head.parameters())
