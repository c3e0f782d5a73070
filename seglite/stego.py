"""Features that know materials but no classes: a small self-supervised backbone, and STEGO's head on top of any frozen backbone.

Unsupervised semantic segmentation (USS) as MARS needs it: cosine ~1 between pixels of one kind of thing, <= 0 between different kinds,
learned from the same images without a single label. Two steps, both contrastive in spirit, neither ever sees a tag or a mask:

    image [B, 3, H, W] -> backbone, frozen afterwards -> [B, C, h, w] -> head -> codes [B, D, h, w]
                          DINO ViT (the papers), or                      Hamilton et al., ICLR 2022, arXiv 2203.08414
                          TextureNet, trained here in seconds by redundancy reduction (Zbontar et al., ICML 2021, arXiv 2103.03230)

B batch, C backbone channels, D code dimension, H W image, h w feature map, S sampled positions.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from seglite.data import Batch, Batches, collate, generator
from seglite.nets.segmenters import resize
from seglite.nets.vit import vit_base, vit_small
from seglite.nets.weights import load_weights, read_tensors


@dataclass
class StegoSettings:
    """The correspondence loss of STEGO. Defaults: the official configuration for the "IAROA" set with ViT-S, the one its paper ships first."""

    dim: int = 70
    """code dimension D"""
    positions: int = 121
    """positions sampled per image (11 x 11)"""
    neighbours: int = 7
    """an image's partner is drawn among this many nearest neighbours by pooled backbone features"""
    negatives: int = 5
    """how often the batch is shifted by a random number of places to put an unrelated image beside each"""
    dropout: float = 0.1
    """channel dropout on the backbone's features"""
    weight_self: float = 0.67
    """weight of an image with itself"""
    weight_knn: float = 0.25
    """weight of an image with its neighbour"""
    weight_random: float = 0.63
    """weight of an image with an unrelated one"""
    shift_self: float = 0.18
    """b_self: backbone similarities below it push codes apart"""
    shift_knn: float = 0.12
    """b_knn"""
    shift_random: float = 0.46
    """b_random; raising a shift separates more"""


@dataclass
class ViewSettings:
    """What the self-supervised backbone calls the same."""

    strength: float = 0.15
    """photometric change between two views, relative"""
    reach: int = 2
    """cells between places that should agree"""
    crop: int = field(default=0, metadata={"least": 0})
    """crop for its training, pixels: it only looks at materials. 0: as augment.crop"""


# ---- a small backbone trained without labels -----------------------------------------------------------------------------------------


class TextureNet(nn.Module):
    """Three convolutions that see 9 x 9 pixels: the material at a place, not the object or the scene.

    A fine grid and a small window matter more than depth here: with stride 4 and 17 pixels most cells of a small object see its outside as
    well, and half of them are deleted later. The output is standardised per channel without scale or shift, so features are centred and
    their cosines use the whole range -1..1.
    """

    def __init__(self, width: int = 24, dim: int = 32):
        super().__init__()
        def layer(inputs, outputs, kernel, stride):
            return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layer(3, width, 5, 2), *layer(width, 2 * width, 3, 1), *layer(2 * width, 2 * width, 1, 1))
        self.project = nn.Conv2d(2 * width, dim, 1)
        self.centre = nn.BatchNorm2d(dim, affine=False)
        self.dim, self.stride = dim, 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, D, H/2, W/2], sizes rounded up."""
        return self.centre(self.project(self.layers(image)))


def photometric_view(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Another photograph of the same surface: brightness, contrast, tint and noise change, the place of every pixel does not.

    image float [B, 3, H, W] normalised -> the same shape. `strength` is the relative range of brightness and contrast, and the tint's
    range in standard deviations. Random numbers come from torch's global generator, which the training loop seeds per step.
    """
    B = len(image)
    def uniform(*shape):
        return strength * (2 * torch.rand(*shape, device=image.device) - 1)
    mean = image.mean((2, 3), keepdim=True)  # [B, 3, 1, 1]
    view = (image - mean) * (1 + uniform(B, 1, 1, 1)) + mean + uniform(B, 1, 1, 1) + uniform(B, 3, 1, 1)  # [B, 3, H, W]
    return view + strength / 2 * torch.randn_like(view)


def displaced(a: torch.Tensor, b: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of places at most `reach` cells apart, as two lists of vectors.

    a, b [B, D, h, w] -> two [M, D] with the same order; one random shift per call. What neighbouring cells share is the material, so
    asking them to agree removes the phase of a pattern and the noise.
    """
    h, w = a.shape[-2:]
    reach = min(reach, h - 1, w - 1)
    dy, dx = torch.randint(-reach, reach + 1, (2,)).tolist()
    a = a[:, :, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]
    b = b[:, :, max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)]
    return a.permute(0, 2, 3, 1).flatten(0, 2), b.permute(0, 2, 3, 1).flatten(0, 2)


def redundancy_loss(a: torch.Tensor, b: torch.Tensor, off_weight: float = 0.01) -> torch.Tensor:
    """Barlow Twins, Eq. (1) and (2): channel i of one view agrees with channel i of the other and with no other channel.

    a, b [M, D] -> scalar. No negatives: two places with the same material are never pushed apart, however far apart they are.
    """
    def standard(v):
        return (v - v.mean(0)) / (v.std(0) + 1e-4)  # [M, D]; the epsilon keeps a dead channel at 0
    cross = standard(a).T @ standard(b) / len(a)  # [D, D]
    diagonal = cross.diagonal()  # [D]
    return (1 - diagonal).square().sum() + off_weight * (cross.square().sum() - diagonal.square().sum())


def backbone_step(model: TextureNet, batch: dict, strength: float, reach: int) -> dict:
    """One step of self-supervision; uses batch["image"] and nothing else."""
    first, second = (model(photometric_view(batch["image"], strength)) for _ in range(2))
    return {"loss": redundancy_loss(*displaced(first, second, reach))}


class LastMap(nn.Module):
    """The last map of a frozen backbone; images are stretched to a multiple of `multiple` pixels, as a ViT's patches demand."""

    def __init__(self, backbone: nn.Module, multiple: int = 1):
        super().__init__()
        self.backbone, self.multiple, self.dim = backbone, multiple, backbone.channels[-1]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, C, h, w]."""
        size = [max(1, round(side / self.multiple)) * self.multiple for side in image.shape[-2:]]
        return self.backbone.features(resize(image, tuple(size)))[-1]


def dino(path: str, say: Callable = print) -> LastMap:
    """DINO's ViT-B/8 or ViT-S/8 (Caron et al., ICCV 2021), told apart by the width stored in the file."""
    if not path:
        raise ValueError("features=dino needs dino_weights=FILE, a state_dict of DINO's ViT-B/8 or ViT-S/8; features=supervised works without")
    width = read_tensors(path)[0].get("cls_token", torch.zeros(1, 1, 768)).shape[-1]
    net = vit_small(patch=8) if width == 384 else vit_base(patch=8)
    load_weights(net, path, partial=("head.",), say=say)
    return LastMap(net, multiple=8)


# ---- STEGO's head and loss -----------------------------------------------------------------------------------------------------------


class SegmentationHead(nn.Module):
    """STEGO's segmentation head: a linear and a two-layer path, summed; names follow the official code's `cluster1` and `cluster2`."""

    def __init__(self, channels: int, dim: int = 70, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.cluster1 = nn.Sequential(nn.Conv2d(channels, dim, 1))
        self.cluster2 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, dim, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: [B, C, h, w] -> codes [B, D, h, w]."""
        return self.cluster1(self.dropout(features)) + self.cluster2(self.dropout(features))


def sample(maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Vectors at random places, bilinearly. maps [B, D, h, w], places [B, S, 2] as (x, y) in -1..1 -> [B, D, S]."""
    return F.grid_sample(maps, places[:, :, None], padding_mode="border", align_corners=True)[..., 0]


def correspondence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine between every pair of positions. a [B, D, S], b [B, D, S] -> [B, S, S]."""
    return torch.einsum("bds,bdt->bst", F.normalize(a, dim=1), F.normalize(b, dim=1))


def centred(similarity: torch.Tensor) -> torch.Tensor:
    """Spatial centring: each row loses its own mean, the overall mean is kept. [B, S, S] -> [B, S, S].

    Without it a place that resembles everything would win every comparison (STEGO, section 3.3; official code `helper`).
    """
    rows = similarity - similarity.mean(2, keepdim=True)
    return rows - rows.mean() + similarity.mean()


def correspondence_loss(f: torch.Tensor, g: torch.Tensor, s: torch.Tensor, t: torch.Tensor, shift: float) -> torch.Tensor:
    """STEGO, Eq. (3) and (4): codes agree where the frozen features agree by more than `shift`, and disagree elsewhere.

    f, g [B, C, S] features and s, t [B, D, S] codes of two images at the same places -> scalar. The clamp at 0 stops at orthogonal:
    unrelated codes need not be opposite. No gradient passes through the features.
    """
    with torch.no_grad():
        wanted = centred(correspondence(f, g)) - shift  # [B, S, S]
    return -(correspondence(s, t).clamp_min(0) * wanted).mean()


def stego_step(head: SegmentationHead, backbone: Callable, batch: dict, settings: StegoSettings) -> dict:
    """One step of the head: an image with itself, with a neighbour, with unrelated images of the batch."""
    B = len(batch["image"])
    with torch.no_grad():
        both = backbone(torch.cat([batch["image"], batch["partner"]]))
    codes = head(both)
    (f, g), (s, t) = both.split(B), codes.split(B)
    here, there = (2 * torch.rand(B, settings.positions, 2, device=f.device) - 1 for _ in range(2))
    f_here, s_here = sample(f, here), sample(s, here)
    same = correspondence_loss(f_here, f_here, s_here, s_here, settings.shift_self)
    near = correspondence_loss(f_here, sample(g, there), s_here, sample(t, there), settings.shift_knn)
    far = []
    for _ in range(settings.negatives):
        other = (torch.arange(B, device=f.device) + int(torch.randint(1, max(B, 2), ()))) % B  # another image, where the batch has one
        far.append(correspondence_loss(f_here, sample(f[other], there), s_here, sample(s[other], there), settings.shift_random))
    return {"self": settings.weight_self * same, "knn": settings.weight_knn * near, "random": settings.weight_random * sum(far) / len(far)}


def nearest_neighbours(pooled: torch.Tensor, count: int, chunk: int = 1024) -> torch.Tensor:
    """The `count` most similar other images of each image. pooled [N, C] -> int64 [N, count] (fewer when the set is smaller)."""
    unit = F.normalize(pooled, dim=1)
    count = min(count, len(unit) - 1)
    rows = []
    for start in range(0, len(unit), chunk):  # N x N similarities never exist at once
        near = unit[start : start + chunk] @ unit.T
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -2  # an image is not its own neighbour
        rows.append(near.topk(count, dim=1).indices)
    return torch.cat(rows)


class Partners(Batches):
    """Batches whose images come with a random one of their nearest neighbours as batch["partner"]; `table` is [N, neighbours]."""

    def __init__(self, *arguments, table: torch.Tensor, **options):
        super().__init__(*arguments, **options)
        self.table = table.numpy()

    def partner(self, position: int) -> dict:
        row = self.table[self.index_at(position)]
        rng = generator(self.seed, 3, position)
        sample = dict(self.data.read(int(row[rng.integers(len(row))]), ("image",)))
        return sample if self.transform is None else self.transform(sample, rng)

    def share(self, t: int, first: int, last: int) -> Batch:
        batch = super().share(t, first, last)
        batch["partner"] = collate([{"image": self.partner(t * self.batch + j)["image"]} for j in range(first, last)], self.data)["image"]
        return batch


@torch.no_grad()
def encode(network: Callable, image: torch.Tensor, scales: Sequence[float] = (1.0,), flip: bool = True) -> torch.Tensor:
    """Unit codes, averaged over scales and the mirror image. image [B, 3, H, W] -> [B, D, h, w] at the first scale's resolution."""
    H, W = image.shape[-2:]
    found = []
    for scale in scales:
        scaled = image if scale == 1.0 else F.interpolate(image, (round(H * scale), round(W * scale)), mode="bilinear", align_corners=False)
        found.append(network(scaled))
        if flip:
            found.append(network(scaled.flip(-1)).flip(-1))
    size = found[0].shape[-2:]
    return F.normalize(sum(F.interpolate(f, size, mode="bilinear", align_corners=False) for f in found), dim=1)


@torch.no_grad()
def separation(codes: torch.Tensor, kinds: torch.Tensor, pairs: int = 20000, seed: int = 0) -> tuple[float, float]:
    """Mean cosine between random places of equal and of different kinds: the check before codes may be thresholded.

    codes [N, D, h, w], kinds int64 [N, h, w] (-1: mixed, left out) -> (equal, different).
    """
    vectors = F.normalize(codes, dim=1).permute(0, 2, 3, 1).flatten(0, 2)[kinds.flatten() >= 0]  # [M, D]
    kinds = kinds.flatten()[kinds.flatten() >= 0]
    random = torch.Generator().manual_seed(seed)
    i, j = torch.randint(len(vectors), (2, pairs), generator=random)
    cosine, equal = (vectors[i] * vectors[j]).sum(1), kinds[i] == kinds[j]
    return float(cosine[equal].mean()), float(cosine[~equal].mean())
