"""The plain vision transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929), with the state-dict names of DINO (arXiv 2104.14294).

    image [B, 3, H, W] - patch_embed: one token per patch -> [B, N, D], class token in front, positions added -> [B, 1+N, D]
                       - depth x ( x + attention(norm1(x));  x + mlp(norm2(x)) ) - norm -> patch tokens as a map [B, D, h, w]

Any image whose sides are multiples of the patch works: position embeddings are interpolated to the map's size.
"""
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2); queries, keys and values come from one matrix."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.heads, D // self.heads)  # [B, N, 3, G, D/G]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, G, N, D/G], [B, G, N, D/G], [B, G, N, D/G]
        y = F.scaled_dot_product_attention(q, k, v)  # [B, G, N, D/G]
        return self.proj(y.transpose(1, 2).reshape(B, N, D))  # [B, N, D]


class Mlp(nn.Module):
    """Two linear layers with GELU between them, applied to every token by itself."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then MLP, each normalised before and added to what came in (pre-norm; section 3.1, equations 2 and 3)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))  # [B, N, D]
        return x + self.mlp(self.norm2(x))  # [B, N, D]


class PatchEmbed(nn.Module):
    """One linear map per patch, written as a convolution whose stride is its kernel."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, D, H/patch, W/patch]."""
        return self.proj(image)


class ViT(nn.Module):
    """A vision transformer that returns its patch tokens as a map.

    Args:
        patch: side of a patch in pixels.
        width: D, the embedding.
        depth, heads: blocks and attention heads; `heads` divides `width`.
        mlp_ratio: hidden width of the MLP over `width`.
        image_size: side in pixels for which `pos_embed` is stored; other sizes are interpolated.

    Raises:
        ValueError: `width` not divisible by `heads`, or an image whose sides are not multiples of `patch`.
    """

    def __init__(self, *, patch: int = 16, width: int = 384, depth: int = 12, heads: int = 6, mlp_ratio: float = 4.0, image_size: int = 224):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}; each head takes an equal share of the embedding.")
        if image_size % patch:
            raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}.")
        self.patch = patch
        self.grid = image_size // patch
        self.channels, self.strides = (width,), (patch,)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.patch_embed = PatchEmbed(patch, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, h: int, w: int) -> torch.Tensor:
        """Position embeddings for a map of h x w patches: [1, 1+h*w, D].

        Bicubic, to exactly h x w. DINO's code instead asks for a scale that is 0.1 patch too large, which moves the sampling points by up to
        0.1 * grid / h of a stored patch; at the stored size both are the stored numbers.
        """
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        stored = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [1, D, i, i]
        patches = F.interpolate(stored, (h, w), mode="bicubic", align_corners=False)  # [1, D, h, w]
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], 1)  # [1, 1+h*w, D]

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """All tokens after the last block and the final norm, class token first.

        image: [B, 3, H, W] -> [B, 1+N, D]
        """
        H, W = image.shape[-2:]
        if H % self.patch or W % self.patch:
            raise ValueError(f"image of {H} x {W} pixels: both sides must be multiples of the patch, {self.patch}; pad or resize first.")
        patches = self.patch_embed(image)  # [B, D, h, w]
        x = torch.cat([self.cls_token.expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], 1)  # [B, 1+N, D]
        x = x + self.positions(*patches.shape[-2:])  # [B, 1+N, D]
        for block in self.blocks:
            x = block(x)  # [B, 1+N, D]
        return self.norm(x)  # [B, 1+N, D]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> patch tokens of the last layer [B, D, H/patch, W/patch]."""
        x = self.tokens(image)[:, 1:]  # [B, N, D]
        return x.transpose(1, 2).unflatten(2, (image.shape[-2] // self.patch, -1))  # [B, D, h, w]

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The backbone interface: a list of one map, [B, D, H/patch, W/patch]."""
        return [self(image)]


def vit_tiny(patch: int = 16, **options) -> ViT:
    """D = 192, 3 heads; 5,524,416 parameters at patch 16."""
    return ViT(patch=patch, **{"width": 192, "heads": 3, **options})


def vit_small(patch: int = 16, **options) -> ViT:
    """D = 384, 6 heads; 21,665,664 parameters at patch 16."""
    return ViT(patch=patch, **{"width": 384, "heads": 6, **options})


def vit_base(patch: int = 16, **options) -> ViT:
    """D = 768, 12 heads; 85,807,872 parameters at patch 8."""
    return ViT(patch=patch, **{"width": 768, "heads": 12, **options})
