"""The masked auto-encoder (He et al., CVPR 2022, arXiv 2111.06377) with the state-dict names of its released models.

    image [B, 3, H, W] - patches + fixed positions [B, N, D] - a random share removed - class token, blocks, norm -> [B, 1+n, D]
    removed places filled with one learned token, narrower blocks - linear -> pixels of every patch [B, N, C]

Hiding most patches makes training cheap, since the encoder only sees the rest, and leaves something to learn from the image alone.
Details from the published code (facebookresearch/mae, models_mae.py).

B batch, H W image, h w patches, N = h*w, n visible patches, D width, P side of a patch in pixels, C = 3*P*P numbers of a patch.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets.vit import Block, PatchEmbed


def sine_positions(width: int, h: int, w: int, grid: int, class_token: bool = True) -> torch.Tensor:
    """Fixed 2-D positions, float32 [1, (1+)h*w, D]: sines and cosines of the column in the first half, of the row in the second.

    Places are measured on a stored map of grid x grid patches, pixel centres aligned: a finer map gets places in between, so that a model
    trained at 224 pixels meets no place beyond what it knows at 448. The class token's row is 0.
    """
    if width % 4:
        raise ValueError(f"width={width} must be a multiple of 4: sine and cosine of row and column take a quarter each")
    rate = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # [D/4]
    waves = lambda n: torch.outer((torch.arange(n, dtype=torch.float64) + 0.5) * grid / n - 0.5, rate)  # noqa: E731
    turned = lambda angle: torch.cat([angle.sin(), angle.cos()], 1)  # noqa: E731
    x = turned(waves(w))[None].expand(h, -1, -1)  # [h, w, D/2]
    y = turned(waves(h))[:, None].expand(-1, w, -1)  # [h, w, D/2]
    table = torch.cat([x, y], 2).flatten(0, 1)  # [h*w, D]
    if class_token:
        table = torch.cat([table.new_zeros(1, width), table])
    return table.float()[None]


class Hidden(NamedTuple):
    """Which patches a random mask leaves."""

    keep: torch.Tensor  # [B, n]
    """places of the visible patches, in the order in which the encoder sees them"""
    restore: torch.Tensor  # [B, N]
    """for every place its position in the shuffled order: visible ones first"""
    removed: torch.Tensor  # [B, N]
    """1 where a patch is hidden, else 0"""


def random_hiding(batch: int, patches: int, ratio: float, device=None) -> Hidden:
    """Hide a share of the patches of every image at random: int(N (1 - ratio)) stay (models_mae.py, random_masking).

    Raises ValueError when nothing would stay.
    """
    kept = int(patches * (1 - ratio) + 1e-9)  # 10 * (1 - 0.9) is 0.9999999999999998
    if not 0 < kept <= patches:
        raise ValueError(f"mask ratio {ratio} leaves {kept} of {patches} patches; at least one must stay")
    order = torch.rand(batch, patches, device=device).argsort(1)  # [B, N]
    restore = order.argsort(1)  # [B, N]
    return Hidden(order[:, :kept], restore, (restore >= kept).float())


def patches_of(image: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels of every patch, row by row, colours last: [B, 3, H, W] -> [B, N, C]."""
    B, _, H, W = image.shape
    x = image.view(B, 3, H // patch, patch, W // patch, patch)  # [B, 3, h, patch, w, patch]
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), -1)  # [B, h*w, 3*patch*patch]


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder. Defaults are the published base model: 111,907,840 parameters.

    Args:
        patch, width, depth, heads, image_size: as in nets/vit.py.
        decoder_width, decoder_depth, decoder_heads: of the decoder; depth 0 builds none (an encoder file then fits as it is).
    """

    def __init__(self, *, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12, image_size: int = 224, decoder_width: int = 512,
                 decoder_depth: int = 8, decoder_heads: int = 16):
        super().__init__()
        if width % heads or (decoder_depth and decoder_width % decoder_heads):
            raise ValueError(f"width={width} and decoder_width={decoder_width} must be divisible by heads={heads} and decoder_heads={decoder_heads}")
        if image_size % patch:
            raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}")
        self.patch, self.width, self.grid = patch, width, image_size // patch
        grid = (self.grid,) * 3
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(sine_positions(width, *grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = None
        if decoder_depth:
            self.decoder_embed = nn.Linear(width, decoder_width)
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
            self.decoder_pos_embed = nn.Parameter(sine_positions(decoder_width, *grid), requires_grad=False)
            self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
            self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
            self.decoder_pred = nn.Linear(decoder_width, patch**2 * 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(width, -1))  # as the linear map that it is

    def positions(self, h: int, w: int) -> torch.Tensor:
        """The encoder's fixed positions for a map of h x w patches: [1, 1+h*w, D]."""
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        return sine_positions(self.width, h, w, self.grid).to(self.pos_embed)  # [1, 1+h*w, D]

    def encode(self, image: torch.Tensor, ratio: float = 0.0) -> tuple[torch.Tensor, Hidden | None]:
        """Class token and visible patches after the last norm, and what was hidden (None without masking).

        image: [B, 3, H, W] -> [B, 1+n, D]
        """
        H, W = image.shape[-2:]
        if H % self.patch or W % self.patch:
            raise ValueError(f"image of {H} x {W} pixels: both sides must be multiples of the patch, {self.patch}; pad or resize first")
        positions = self.positions(H // self.patch, W // self.patch)
        x = self.patch_embed(image).flatten(2).transpose(1, 2) + positions[:, 1:]  # [B, N, D]
        hidden = None
        if ratio > 0:
            hidden = random_hiding(len(x), x.shape[1], ratio, x.device)
            x = x.gather(1, hidden.keep[..., None].expand(-1, -1, x.shape[2]))  # [B, n, D]
        x = torch.cat([(self.cls_token + positions[:, :1]).expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), hidden

    def decode(self, x: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Pixels of every patch from the encoder's output: x [B, 1+n, D], restore int64 [B, N] -> [B, N, C]."""
        x = self.decoder_embed(x)  # [B, 1+n, d]
        absent = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)  # [B, N-n, d]
        patches = torch.cat([x[:, 1:], absent.to(x)], 1).gather(1, restore[..., None].expand(-1, -1, x.shape[2]))  # [B, N, d]
        x = torch.cat([x[:, :1], patches], 1) + self.decoder_pos_embed  # [B, 1+N, d]
        for block in self.decoder_blocks:
            x = block(x)  # [B, 1+N, d]
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]  # [B, N, 3*self.patch*self.patch]


def reconstruction_loss(found: torch.Tensor, image: torch.Tensor, removed: torch.Tensor, patch: int, each_patch: bool = False,
                        everywhere: bool = False) -> torch.Tensor:
    """Mean squared error in pixels over the removed patches, a float32 scalar.

    found [B, N, C], image [B, 3, H, W], removed [B, N] in {0, 1}. each_patch: targets normalised to mean 0, variance 1 per patch
    (norm_pix_loss). everywhere: count visible patches too.
    """
    target = patches_of(image, patch).float()  # [B, N, C]
    if each_patch:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()  # [B, N, C]
    error = F.mse_loss(found.float(), target, reduction="none").mean(-1)  # [B, N]
    weight = torch.ones_like(removed) if everywhere else removed
    return (error * weight).sum() / weight.sum().clamp_min(1)
