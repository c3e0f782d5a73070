"""GroupViT: a vision transformer that sorts its patches into segments (Xu et al., CVPR 2022, arXiv 2202.11094), with the names of its checkpoints.

Learned *group tokens* travel along with the patches. At the end of a stage every patch is handed to exactly one group token, and the groups
replace the patches. After two such steps 196 patches have become 8 segment tokens, and which patch went where is a segmentation.

    image [B, 3, H, W] - patch_embed, norm, + positions -> [B, N, D]
      stage 0   + 64 group tokens, 6 blocks on both   - grouping block -> [B, 64, D], assignment A1 [B, 64, N]
      stage 1   +  8 group tokens, 3 blocks           - grouping block -> [B,  8, D], assignment A2 [B, 8, 64]
      stage 2   3 blocks - norm -> segments [B, 8, D];     patch n belongs to segment s:  (A2 A1)[s, n]

MixReorg uses it whole; ZeroSeg builds its segmentation head from the same stages. Every detail that the paper's text leaves open follows
the official code (NVlabs/GroupViT, models/group_vit.py).

`CaptionedGroupViT` adds the text tower and the projectors into a shared space: a whole checkpoint.

B batch, C channels, H W image, h w map, N = h*w patches, D embedding, G group tokens, S segments or outputs of a grouping block, T text
tokens, E shared space.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets.clip import LARGEST_SCALE, Transformer
from seglite.nets.vit import Attention, Mlp

EPS = 1.0  # added to a group's size before averaging; see `Assign`


class Assignment(NamedTuple):
    """Which token goes to which group, [B, S, N]; over the groups of a token both sum to 1."""

    soft: torch.Tensor
    """softmax of the logits over the groups, without noise: for test-time maps and for losses on the map"""
    hard: torch.Tensor
    """one-hot in value; its gradient is that of the (noisy, when training) softmax"""


class Grouped(NamedTuple):
    """What a GroupViT returns."""

    segments: torch.Tensor
    """[B, S, D], after the last norm"""
    assignments: tuple[Assignment, ...]
    """one per grouping block"""


def assign(logits: torch.Tensor, noisy: bool, tau: float = 1.0) -> Assignment:
    """Softmax over the *groups*, and its one-hot with the softmax's gradient (straight through; paper eq. 2 and 3).

    logits: [B, S, N]. noisy: add Gumbel noise before the softmax that the one-hot comes from, so that groups which are not yet the best
    are sometimes chosen and learn. The soft map never has noise.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        soft = logits.softmax(1)  # [B, S, N]
        chosen = soft
        if noisy:
            chosen = ((logits + gumbel(logits)) / tau).softmax(1)  # [B, S, N]
        one_hot = torch.zeros_like(chosen).scatter_(1, chosen.argmax(1, keepdim=True), 1.0)  # [B, S, N]
        return Assignment(soft, one_hot - chosen.detach() + chosen)


def gumbel(like: torch.Tensor) -> torch.Tensor:
    """Gumbel(0, 1) noise in the shape of `like`: -log of an exponential variable, kept from zero by the clamp."""
    return -torch.empty_like(like).exponential_().clamp_min(1e-30).log()


def patch_to_segment(assignments: Sequence[Assignment], hard: bool = False) -> torch.Tensor:
    """The product of all assignments: how much of every patch ends up in every segment, [B, S, N]."""
    product = None
    for assignment in assignments:
        A = assignment.hard if hard else assignment.soft
        product = A if product is None else A @ product
    return product


class DropPath(nn.Module):
    """Leave out a residual branch for a random share of the images, and scale the rest up (arXiv 1603.09382). Off in evaluation mode."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.rate  # [B, 1, 1]
        return x * keep / (1 - self.rate)  # [B, N, D]


class Block(nn.Module):
    """The blocks of nets/vit.py with dropped paths and PyTorch's own epsilon of 1e-5, as GroupViT has them."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))  # [B, N, D]
        return x + self.drop_path(self.mlp(self.norm2(x)))  # [B, N, D]


class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from one set of tokens and whose keys and values come from another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """query: [B, S, D], x: [B, N, D] -> [B, S, D]."""
        split = lambda t: t.unflatten(2, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q_proj(query)), split(self.k_proj(x)), split(self.v_proj(x)))  # [B, heads, S, D/heads]
        return self.proj(y.transpose(1, 2).flatten(2))  # [B, S, D]


class CrossBlock(nn.Module):
    """Groups look at patches before they compete for them. Post-norm: nothing is normalised before the attention, everything after the MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """query: [B, S, D], x: [B, N, D] -> [B, S, D]."""
        query = query + self.attn(query, x)  # [B, S, D]
        return self.norm_post(query + self.mlp(self.norm2(query)))  # [B, S, D]


class TokenMlp(nn.Module):
    """An MLP along the token axis: G tokens become S, each feature by itself."""

    def __init__(self, tokens: int, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(tokens, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, g: torch.Tensor) -> torch.Tensor:
        """g: [B, G, D] -> [B, S, D]."""
        return self.fc2(F.gelu(self.fc1(g.transpose(1, 2)))).transpose(1, 2)  # [B, S, D]


class Assign(nn.Module):
    """Every token goes to one group; a group becomes the mean of its tokens (single head; paper eq. 2 to 5).

    The mean divides by the group's size + 1, not + 1e-8: the forward pass is one-hot, but its gradient is the softmax's, and over the size of an
    almost empty group that gradient explodes (official code, and issue 17 there).
    """

    def __init__(self, width: int, noisy: bool = True):
        super().__init__()
        self.noisy = noisy
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, p: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, Assignment]:
        """Groups p: [B, S, D], tokens x: [B, N, D] -> means [B, S, D] and the assignment [B, S, N]."""
        logits = self.q_proj(p) @ self.k_proj(x).transpose(1, 2) / p.shape[-1] ** 0.5  # [B, S, N]
        assignment = assign(logits, self.noisy and self.training)
        share = assignment.hard / (assignment.hard.sum(2, keepdim=True) + EPS)  # [B, S, N]
        v = self.v_proj(x)  # [B, N, D]
        return self.proj(share.to(v) @ v), assignment


class GroupingBlock(nn.Module):
    """Merge N tokens into S groups, led by G group tokens (paper, figure 2).

    Args:
        width: D. heads: of the cross attention; the assignment itself has one.
        tokens: G. outputs: S, the same number in the published models.
        noisy: Gumbel noise while training.
    """

    def __init__(self, width: int, heads: int, tokens: int, outputs: int | None = None, noisy: bool = True):
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.mlp_inter = TokenMlp(tokens, width // 2, outputs or tokens)
        self.norm_post_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.pre_assign_attn = CrossBlock(width, heads)
        self.assign = Assign(width, noisy)
        self.norm_new_x = nn.LayerNorm(width)
        self.mlp_channels = Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, Assignment]:
        """Tokens x: [B, N, D], group tokens g: [B, G, D] -> merged tokens [B, S, D] and the assignment [B, S, N]."""
        g, x = self.norm_tokens(g), self.norm_x(x)
        p = self.norm_post_tokens(self.mlp_inter(g))  # [B, S, D]
        p = self.pre_assign_attn(p, x)  # [B, S, D]
        merged, assignment = self.assign(p, x)
        merged = merged + p  # [B, S, D]
        return merged + self.mlp_channels(self.norm_new_x(merged)), assignment


class Stage(nn.Module):
    """Blocks on tokens and group tokens together, then, if there are group tokens, a grouping block.

    Args:
        width, heads, depth: of the blocks.
        tokens: G, learned group tokens of this stage; 0: none, and nothing is grouped.
        before: group tokens of the stage before. They are projected (norm, token MLP) and added to this stage's table, which then starts at
            zero; 0: no projection, the table starts at random.
        drop_path: one rate per block.
        noisy: Gumbel noise while training.
    """

    def __init__(self, width: int, heads: int, depth: int, tokens: int = 0, before: int = 0, drop_path: Sequence[float] | None = None,
                 mlp_ratio: float = 4.0, noisy: bool = True):
        super().__init__()
        rates = [0.0] * depth if drop_path is None else drop_path
        self.group_token = nn.Parameter(torch.zeros(1, tokens, width)) if tokens else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate) for rate in rates)
        self.downsample = GroupingBlock(width, heads, tokens, noisy=noisy) if tokens else None
        self.group_projector = nn.Sequential(nn.LayerNorm(width), TokenMlp(before, width // 2, tokens)) if tokens and before else None
        if tokens and not before:
            nn.init.trunc_normal_(self.group_token, std=0.02)

    def start(self, batch: int, before: torch.Tensor | None = None) -> torch.Tensor | None:
        """This stage's group tokens before its first block, [B, G, D]; `before` are the last stage's after its last block."""
        if self.group_token is None:
            return None
        g = self.group_token.expand(batch, -1, -1)  # [B, G, D]
        return g if self.group_projector is None else g + self.group_projector(before)

    def mingle(self, x: torch.Tensor, g: torch.Tensor | None, first: int = 0, last: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Blocks first ... last-1 on x: [B, N, D] and g: [B, G, D] (or None) together; both come back."""
        N = x.shape[1]
        if g is not None:
            x = torch.cat([x, g], 1)
        for block in self.blocks[first:last]:
            x = block(x)
        return (x, None) if g is None else (x[:, :N], x[:, N:])

    def group(self, x: torch.Tensor, g: torch.Tensor | None) -> tuple[torch.Tensor, Assignment | None]:
        """The grouping block, or x as it is in a stage without group tokens."""
        return (x, None) if self.downsample is None else self.downsample(x, g)

    def forward(self, x: torch.Tensor, before: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None, Assignment | None]:
        """x: [B, N, D] -> tokens [B, S, D] (or [B, N, D]), this stage's group tokens [B, G, D] for the next stage, and the assignment."""
        x, g = self.mingle(x, self.start(len(x), before))
        x, assignment = self.group(x, g)
        return x, g, assignment


class NormedPatchEmbed(nn.Module):
    """One linear map per patch, then a layer norm."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, N, D], patches row by row."""
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))  # [B, N, D]


class GroupViT(nn.Module):
    """The image encoder. Defaults are the published model: 28,837,136 parameters in 239 tensors.

    Args:
        patch, width, heads: as in nets/vit.py; no class token.
        depths: blocks of each stage.
        groups: group tokens of each stage but the last.
        image_size: side in pixels for which `pos_embed` is stored; other sizes are interpolated.
        drop_path: rate of the last block; it grows linearly from 0.
        noisy: Gumbel noise while training.
        published_init: linear weights of deviation 0.02, which suits 384 channels. With 64 the assignment logits then drown in the Gumbel noise;
            false: PyTorch's own start, which grows as the width shrinks.

    Raises:
        ValueError: sizes that do not fit, or an image whose sides are not multiples of `patch`.
    """

    def __init__(self, *, patch: int = 16, width: int = 384, heads: int = 6, depths: Sequence[int] = (6, 3, 3), groups: Sequence[int] = (64, 8),
                 image_size: int = 224, drop_path: float = 0.1, mlp_ratio: float = 4.0, noisy: bool = True, published_init: bool = True):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}; each head takes an equal share of the embedding.")
        if image_size % patch:
            raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}.")
        if len(groups) != len(depths) - 1:
            raise ValueError(f"depths={tuple(depths)} has {len(depths)} stages, groups={tuple(groups)} names {len(groups)} group counts; "
                             "every stage but the last groups, so groups needs one entry less.")
        self.patch, self.width, self.grid = patch, width, image_size // patch
        self.patch_embed = NormedPatchEmbed(patch, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, width))
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        counts = (0, *groups, 0)  # group tokens before the first stage, of every stage, of the last one
        self.layers = nn.ModuleList(Stage(width, heads, depth, counts[i + 1], counts[i], rates[sum(depths[:i]):sum(depths[:i + 1])], mlp_ratio, noisy)
                                    for i, depth in enumerate(depths))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if published_init:
            init_linear(self)

    def positions(self, h: int, w: int) -> torch.Tensor:
        """Position embeddings for a map of h x w patches: [1, h*w, D]; bicubic where the map is not the stored one."""
        if (h, w) == (self.grid, self.grid):
            return self.pos_embed
        stored = self.pos_embed.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [1, D, i, i]
        return F.interpolate(stored, (h, w), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)  # [1, h*w, D]

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> patch tokens with positions [B, N, D]."""
        H, W = image.shape[-2:]
        if H % self.patch or W % self.patch:
            raise ValueError(f"image of {H} x {W} pixels: both sides must be multiples of the patch, {self.patch}; pad or resize first.")
        return self.patch_embed(image) + self.positions(H // self.patch, W // self.patch)  # [B, N, D]

    def head(self, x: torch.Tensor, g: torch.Tensor) -> Grouped:
        """From the end of the first stage's blocks on: patches x: [B, N, D] and group tokens g: [B, G, D] -> segments and assignments."""
        x, assignment = self.layers[0].group(x, g)
        assignments = [assignment]
        for stage in self.layers[1:]:
            x, g, assignment = stage(x, g)
            assignments.append(assignment)
        return Grouped(self.norm(x), tuple(a for a in assignments if a is not None))

    def forward(self, image: torch.Tensor) -> Grouped:
        """image: [B, 3, H, W] -> segments [B, S, D] and one assignment per grouping block."""
        x = self.embed(image)  # [B, N, D]
        return self.head(*self.layers[0].mingle(x, self.layers[0].start(len(x))))


def init_linear(model: nn.Module) -> None:
    """Linear weights normal with deviation 0.02, biases 0 (official code). Convolutions and norms keep PyTorch's start."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Projector(nn.Module):
    """Linear, batch norm, ReLU, linear: from an encoder's width into the space that images and captions share, token by token.

    The linear layers are stored as 1x1 convolutions, as in the published checkpoints. The statistics of the batch norm are over all
    tokens of the call, so vectors that shall be comparable while training belong in one call.
    """

    def __init__(self, width: int, out: int = 256, hidden: int = 4096):
        super().__init__()
        # A two-dimensional batch norm over [1, C, n, 1]: same names, same numbers, and `parallel.whole_batch_norm` knows it.
        self.linear_hidden = nn.Sequential(nn.Conv1d(width, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True))
        self.linear_out = nn.Conv1d(hidden, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., D] -> [..., E], E the shared dimension."""
        linear, norm, relu = self.linear_hidden
        tokens = x.reshape(-1, x.shape[-1]).T[None]  # [1, D, n]
        hidden = relu(norm(linear(tokens)[..., None]))[..., 0]  # [1, hidden, n]
        return self.linear_out(hidden)[0].T.reshape(*x.shape[:-1], -1)


class TextTower(nn.Module):
    """CLIP's causal text transformer without its last projection: int64 [B, T] -> [B, D] at the end token, which has the largest id.

    Args:
        vocabulary: token ids. width, layers, heads: of the transformer; context: T. The defaults are GroupViT's.
    """

    def __init__(self, vocabulary: int = 49408, width: int = 256, layers: int = 12, heads: int = 4, context: int = 77):
        super().__init__()
        self.width, self.context = width, context
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context, width))
        self.transformer = Transformer(width, layers, heads, causal=True)
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: int64 [B, T] -> [B, D]. Padding comes after the end token, where a causal tower cannot see it."""
        if tokens.shape[1] != self.context:
            raise ValueError(f"this text tower reads {self.context} tokens, got {tokens.shape[1]}; give the tokenizer context={self.context}")
        x = self.token_embedding(tokens) + self.positional_embedding  # [B, T, D]
        x = self.ln_final(self.transformer(x))  # [B, T, D]
        return x[torch.arange(len(x), device=x.device), tokens.argmax(1)]  # [B, D]


class CaptionedGroupViT(nn.Module):
    """Image encoder, text tower, both projectors and the temperature: a whole GroupViT checkpoint, name by name.

    With the default parts it has 55,726,609 parameters. E is the shared dimension.
    """

    def __init__(self, image: GroupViT, text: TextTower, shared: int = 256, hidden: int = 4096):
        super().__init__()
        self.img_encoder, self.text_encoder = image, text
        self.img_projector, self.text_projector = Projector(image.width, shared, hidden), Projector(text.width, shared, hidden)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> torch.Tensor:
        """exp(logit_scale), at most 100: what cosines are multiplied by. []"""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)  # []

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: int64 [B, T] -> [B, E], not of unit length."""
        return self.text_projector(self.text_encoder(tokens))

    def pooled(self, segments: torch.Tensor) -> torch.Tensor:
        """One unit vector per image: the mean of its segments, then projected. segments: [B, S, D] -> [B, E]."""
        return F.normalize(self.img_projector(segments.mean(1)), dim=-1)  # [B, E]

    def segment(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What zero-shot segmentation needs: image [B, 3, H, W] -> unit segment vectors [B, S, E], unit image vector [B, E], soft map [B, S, h, w]."""
        found = self.img_encoder(image)
        tokens = F.normalize(self.img_projector(found.segments), dim=-1)  # [B, S, E]
        shares = patch_to_segment(found.assignments).unflatten(2, (image.shape[-2] // self.img_encoder.patch, -1))  # [B, S, h, w]
        return tokens, self.pooled(found.segments), shares
