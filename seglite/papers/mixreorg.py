"""MixReorg: cut captioned images into patches, mix them, and learn to say which patch belongs to which caption.

A GroupViT learns masks from captions alone, but only one vector per image ever meets a caption, so nothing tells which *patch* the words are
about. Mix the patches of several images and that is known for free: every patch comes from one image, hence from one caption. The network
must sort mixed patches by caption (a segmentation loss without any mask), and, put back in their own images, the patches must still match
their captions. Mixing happens after a first transformer block, so that colour or noise alone do not give a patch's image away.

Cai, Ren, Zhu, Xu, Liu, Li, Wang, Liang, "MixReorg: Cross-Modal Mixed Patch Reorganization is a Good Mask Learner for Open-World Semantic
Segmentation", ICCV 2023, arXiv 2308.04829. There is no public code, and of the paper's text we had the abstract, the introduction and the
framework figure. **Stages, losses and test path are the paper's; every inner detail is our reconstruction**, a key below that says so.

    captions -> text tower -> t [B, E]                                 images [B, 3, H, W] -> patches + positions -> X [B, N, D]
    contextual mixing      C = Block_1(X)                              M = mix(C, r), r a permutation of K images at every position
    progressive mixing     C = Block_l(C)                              M = Block_l(M), then a little of mix(C, r) into it       l = 2 ... 6
    restoration            R = unmix(M, r): every patch back in its own image
    the shared rest of GroupViT on C, M and R  ->  segments [B, S, D] and who-belongs-where [B, S, N] of each
    loss = contrastive(C, t) + contrastive(R, t) + cross-entropy(patches of M against the captions of their K images, r)
    test: the line of C, which is a plain GroupViT

    python -m seglite.train method=mixreorg                              captioned scenes, one CPU core, minutes
    python -m seglite.train method=mixreorg data=captions root=FOLDER    photographs with captions (Flickr8k's layout)
    python -m seglite.claims method=mixreorg seeds=0,1,2

B batch, K images per mix, N = h*w patches, D width, E shared space, G group tokens, S segments, T text tokens, H W image, h w patches.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kernels.patch_mix import mix_labels, patch_mix, patch_unmix, random_mix_index
from seglite import losses
from seglite.config import Config, override
from seglite.data import Batches, normalise
from seglite.data.captions import one_caption
from seglite.data.transforms import make_transform
from seglite.evaluate import evaluate
from seglite.nets.clip import LARGEST_SCALE
from seglite.nets.groupvit import CaptionedGroupViT, GroupViT, TextTower, patch_to_segment
from seglite.nets.weights import load_weights
from seglite.openvocab import Segmented, WordPredictor, class_embeddings, resized, retrieval, templates, things_and_grounds
from seglite.pictures import colourise, voc_palette
from seglite.tokenizer import BytePairs, Words


@dataclass
class Settings(Config):
    net: Literal["tiny", "small", "groupvit"] = "groupvit"
    """scenes: width 64, 3 + 1 + 1 blocks, 8 and 6 groups; photographs on a CPU: width 128; the published GroupViT (paper)"""
    image_size: int = 224
    """side in pixels for which positions are stored; training crops have this size"""
    patch: int = 16
    """side of a patch in pixels; the unit of mixing"""
    vocabulary: str = ""
    """CLIP's bpe_simple_vocab_16e6.txt.gz (paper); empty: a list of the words of the training captions"""
    context: int = 24
    """text tokens; 77 with CLIP's vocabulary"""
    rare: int = 1
    """without a vocabulary file: words that occur less often in the captions are unknown"""
    mixing: bool = True
    """false: the GroupViT-style baseline, the contrastive loss of the original images alone"""
    images: int = 2
    """K, images per mix (the figure draws two; the number is not known)"""
    tile: int = 1
    """neighbouring patches that are mixed as one, along each side (ours; an ablation)"""
    context_blocks: int = 1
    """blocks of stage 1 before the mix: contextual mixing (a layer is told, which one is not). 0: mix raw patches"""
    progressive: Literal["average", "add", "attend", "off"] = "average"
    """how clean features strengthen mixed ones: (1 - a) M + a mix(C); M + a mix(C); as further keys and values of the attention; not at all.
    That they do is told, the operator is not"""
    progressive_share: float = 0.5
    """a of the progressive operator (ours)"""
    progressive_at: Literal["every", "last"] = "every"
    """after every block that follows the mix, or only after the last (ours)"""
    stop_clean: bool = False
    """no gradient from the mixed branch into the clean features it receives (ours)"""
    restored_groups: Literal["clean", "mixed"] = "clean"
    """whose group tokens gather the restored patches (ours)"""
    mask_loss: Literal["logits", "probabilities"] = "logits"
    """a patch's score for a caption is the mean of its segments' logits, or of their probabilities (that there is a segmentation loss is told,
    its form is not)"""
    mask_captions: Literal["group", "batch"] = "group"
    """a mixed patch chooses among the K captions of its mix, or among all of the batch (not known)"""
    hard_masks: bool = False
    """the mask loss sees one-hot assignments with straight-through gradient instead of soft ones (ours: soft)"""
    original_weight: float = 1.0
    """weight of the contrastive loss of the original images (weights are not known)"""
    restored_weight: float = 1.0
    """weight of the contrastive loss of the restored images; 0: the branch is not computed"""
    mask_weight: float = 1.0
    """weight of the segmentation loss of the mixed images; 0: the branch ends before the grouping"""
    crop_area: float = 0.0
    """photographs: train on a random rectangle of at least this share of the image, resized to image_size (GroupViT: 0.08). 0: augment's own crop"""
    erase: float = 0.0
    """photographs: probability that a rectangle is replaced by noise (GroupViT: 0.25)"""
    prompts: str = "simple"
    """prompt set of the class names: simple ("a photo of a {}."), seven, scenes, or a file of templates"""
    top: int = 5
    """classes an image may show, by its pooled vector (GroupViT)"""
    threshold: float | None = None
    """background where no class is surer than this: GroupViT's 0.95 on VOC and COCO, 0.35 on Context. none: no background"""
    short_side: int = 0
    """shorter side at test time, pixels; 448 in GroupViT; 0: as the image is"""
    window: int = 0
    """side of the sliding window at test time; 448 in GroupViT; 0: whole image"""
    stride: int = 0
    """step of the sliding window; 224 in GroupViT"""
    ablations: bool = False
    """the claim also trains the rows that switch one part on or off; three times the time"""


def supervision(config: Settings) -> tuple[str, ...]:
    """Images and captions, never a mask."""
    return ("image", "texts") if config.data == "captions" else ("image", "text")


# ---- the network -----------------------------------------------------------------------------------------------------------------------

SIZES = {  # net: (image encoder, text tower, shared space and hidden width of the projectors)
    "tiny": (dict(width=64, heads=4, depths=(3, 1, 1), groups=(8, 6), drop_path=0.0, published_init=False), dict(width=64, layers=1, heads=4), (64, 128)),
    "small": (dict(width=128, heads=4, depths=(4, 2, 2), groups=(32, 8), drop_path=0.0, published_init=False), dict(width=128, layers=3, heads=4), (128, 512)),
    "groupvit": ({}, {}, (256, 4096)),
}


class Mix(NamedTuple):
    """How the branches run: the part of the settings that the network needs."""

    images: int
    tile: int
    context_blocks: int
    progressive: str
    share: float
    every: bool
    stop_clean: bool
    clean_groups: bool
    restore: bool
    masks: bool


class Outputs(NamedTuple):
    """What a training step needs. Vectors have unit length."""

    text: torch.Tensor
    """[B, E]"""
    original: torch.Tensor
    """[B, E], pooled clean images"""
    scale: torch.Tensor
    """[], what cosines are multiplied by in the contrastive losses"""
    mask_scale: torch.Tensor | None = None
    """[], the same in the mask loss"""
    restored: torch.Tensor | None = None
    """[B, E], pooled restored images"""
    segments: torch.Tensor | None = None
    """[B, S, E], segments of the mixed images"""
    soft: torch.Tensor | None = None
    """[B, S, N], which patch of a mixed image belongs to which of its segments"""
    hard: torch.Tensor | None = None
    """[B, S, N], the same one-hot, with straight-through gradient"""
    index: torch.Tensor | None = None
    """int64 [B, N], which image of the batch every patch of the mixed images came from"""


def draw_index(batch: int, h: int, w: int, images: int, tile: int = 1, device: torch.device | str = "cpu",
               generator: torch.Generator | None = None) -> torch.Tensor:
    """r: at every position an independent permutation of the K images of each group, the same within a tile. int64 [B, N].

    Permutations, not independent draws: every patch is used exactly once, so that restoring is exact.
    Raises ValueError when `images` does not divide the batch.
    """
    rows, columns = -(-h // tile), -(-w // tile)
    coarse = random_mix_index(batch, rows * columns, images, generator, device).unflatten(1, (rows, columns))  # [B, rows, columns]
    return coarse.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :h, :w].flatten(1)  # [B, h*w]


class MixReorg(CaptionedGroupViT):
    """GroupViT and its text tower, with the branches of mixed and restored images for training."""

    def __init__(self, image: GroupViT, text: TextTower, shared: int, hidden: int, mix: Mix | None):
        super().__init__(image, text, shared, hidden)
        self.mix = mix
        if mix is not None:
            if not 0 <= mix.context_blocks <= len(image.layers[0].blocks):
                raise ValueError(f"context_blocks={mix.context_blocks} must lie in 0 ... {len(image.layers[0].blocks)}, the blocks of the first stage")
            if mix.masks:
                self.mask_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # a temperature of its own, like GroupViT's second loss

    def forward(self, image: torch.Tensor, tokens: torch.Tensor, index: torch.Tensor | None = None) -> Outputs:
        """image: [B, 3, H, W], tokens: int64 [B, T]; index: r for a chosen mix, otherwise drawn."""
        text = F.normalize(self.encode_text(tokens), dim=-1)  # [B, E]
        if self.mix is None:
            return Outputs(text, self.pooled(self.img_encoder(image).segments), self.scale())
        X = self.img_encoder.embed(image)  # [B, N, D]
        B, h = len(X), image.shape[-2] // self.img_encoder.patch
        if index is None:
            index = draw_index(B, h, X.shape[1] // h, self.mix.images, self.mix.tile, image.device)
        (C, clean_g), (M, mixed_g) = self.two_branches(X, index)

        branches = [(C, clean_g)]
        if self.mix.masks:
            branches.append((M, mixed_g))
        if self.mix.restore:
            branches.append((patch_unmix(M, index, check=False), clean_g if self.mix.clean_groups else mixed_g))
        found = self.img_encoder.head(torch.cat([x for x, _ in branches]), torch.cat([g for _, g in branches]))
        parts = found.segments.split(B)
        whole = [parts[0], *([parts[-1]] if self.mix.restore else [])]  # in one call, so that batch norm treats them alike
        vectors = self.pooled(torch.cat(whole)).split(B)
        outputs = Outputs(text, vectors[0], self.scale(), restored=vectors[1] if self.mix.restore else None, index=index)
        if not self.mix.masks:
            return outputs
        soft, hard = (patch_to_segment(found.assignments, kind)[B:2 * B] for kind in (False, True))
        return outputs._replace(mask_scale=self.mask_logit_scale.exp().clamp(max=LARGEST_SCALE),
                                segments=F.normalize(self.img_projector(parts[1]), dim=-1), soft=soft, hard=hard)

    def two_branches(self, X: torch.Tensor, index: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Stage 1 of the clean and of the mixed images, block by block with the same weights: ((C, groups), (M, groups)).

        X: [B, N, D] patches with positions. The mixed branch begins with fresh group tokens: those of a clean image have already
        looked at an image that a mixed one is not.
        """
        stage, mix = self.img_encoder.layers[0], self.mix
        start = stage.start(len(X))  # [B, G, D]
        C, clean_g = stage.mingle(X, start, 0, mix.context_blocks)
        given = lambda C: patch_mix(C.detach() if mix.stop_clean else C, index, check=False)
        M, mixed_g = given(C), start
        for l in range(mix.context_blocks, len(stage.blocks)):
            now = mix.progressive != "off" and (mix.every or l == len(stage.blocks) - 1)
            if now and mix.progressive == "attend":
                seen = torch.cat([M, given(C)], 1)  # [B, 2*N, D]: mixed patches, and the clean ones beside them to look at
                N = X.shape[1]
                after, mixed_g = stage.mingle(seen, mixed_g, l, l + 1)
                M = after[:, :N]  # [B, N, D]
                C, clean_g = stage.mingle(C, clean_g, l, l + 1)
                continue
            both, groups = stage.mingle(torch.cat([C, M]), torch.cat([clean_g, mixed_g]), l, l + 1)
            (C, M), (clean_g, mixed_g) = both.chunk(2), groups.chunk(2)
            if now:
                keep = 1 - mix.share if mix.progressive == "average" else 1.0
                M = keep * M + mix.share * given(C)  # [B, N, D]
        return (C, clean_g), (M, mixed_g)


def build(config: Settings, vocabulary: int, say: Callable = print) -> MixReorg:
    """The network of the settings, from random weights or from a GroupViT checkpoint (weights=)."""
    image, text, (shared, hidden) = SIZES[config.net]
    mix = Mix(config.images, config.tile, config.context_blocks, config.progressive, config.progressive_share, config.progressive_at == "every",
              config.stop_clean, config.restored_groups == "clean", config.restored_weight > 0, config.mask_weight > 0) if config.mixing else None
    model = MixReorg(GroupViT(patch=config.patch, image_size=config.image_size, **image),
                     TextTower(vocabulary=vocabulary, context=config.context, **text), shared, hidden, mix)
    if config.weights:  # GroupViT's second temperature has no place here, ours has none there
        load_weights(model, config.weights, partial=("multi_label_logit_scale", "mask_logit_scale"), say=say)
    return model


# ---- the mask loss -----------------------------------------------------------------------------------------------------------------------


def caption_logits(segments: torch.Tensor, shares: torch.Tensor, captions: torch.Tensor, scale: torch.Tensor, how: str = "logits") -> torch.Tensor:
    """How well every patch of a mixed image fits every caption: log-probabilities up to a constant, float32 [B, N, K].

    segments: [B, S, E] unit, shares: [B, S, N] patch to segment, captions: [B, K, E] unit, the vocabulary of each mixed image.
    how="logits": l[n, k] = scale * sum_s shares[s, n] segments[s] . captions[k]; "probabilities": log of the same mixture of softmaxes.
    """
    with torch.autocast(segments.device.type, enabled=False):
        cosine = segments.float() @ captions.float().transpose(1, 2)  # [B, S, K]
        if how == "logits":
            return scale * shares.float().transpose(1, 2) @ cosine  # [B, N, K]
        return (shares.float().transpose(1, 2) @ (scale * cosine).softmax(-1)).clamp_min(1e-6).log()  # [B, N, K]


def mask_loss(logits: torch.Tensor, target: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """-log softmax over the captions, at the caption each patch came with; mean over patches, a float32 scalar.

    logits: [B, N, K], target: int64 [B, N] in 0 ... K-1, same: bool [B, K, K], which captions of a vocabulary are one and the same text: they count as
    one answer, because choosing between them would be arbitrary. A patch whose captions are all the same teaches nothing.
    """
    answers = same.unsqueeze(1).expand(-1, target.shape[1], -1, -1).gather(2, target[:, :, None, None].expand(-1, -1, 1, same.shape[2])).squeeze(2)  # [B, N, K]
    right = logits.masked_fill(~answers, -torch.inf).logsumexp(2)  # [B, N]
    return (logits.logsumexp(2) - right).mean()  # []


def vocabulary_of(text: torch.Tensor, tokens: torch.Tensor, index: torch.Tensor, images: int, whole_batch: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Captions each mixed image chooses among, the right one of every patch, and which captions are equal texts.

    text: [B, E], tokens: int64 [B, T], index: int64 [B, N] -> captions [B, K, E], target [B, N], same bool [B, K, K]; with whole_batch K is B.
    """
    B = len(text)
    if whole_batch:
        same = (tokens[:, None] == tokens[None]).all(-1)  # [B, B]
        return text.expand(B, -1, -1), index, same.expand(B, -1, -1)
    groups, ids = text.unflatten(0, (-1, images)), tokens.unflatten(0, (-1, images))
    same = (ids[:, :, None] == ids[:, None]).all(-1)  # [B/images, images, images]
    return groups.repeat_interleave(images, 0), mix_labels(index, images), same.repeat_interleave(images, 0)


def sort_patches(out: Outputs, tokens: torch.Tensor, config: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask loss of one step, and the share of patches whose best caption is their own (or an equal text). Both scalars."""
    captions, target, same = vocabulary_of(out.text, tokens, out.index, config.images, config.mask_captions == "batch")
    logits = caption_logits(out.segments, out.hard if config.hard_masks else out.soft, captions, out.mask_scale, config.mask_loss)
    best = logits.detach().argmax(2)  # [B, N]
    right = same.flatten(0, 1)[(torch.arange(len(best), device=best.device)[:, None] * same.shape[1] + best).flatten()]  # [B*N, K]
    return mask_loss(logits, target, same), right.gather(1, target.reshape(-1, 1)).float().mean()


def step_losses(network: nn.Module, image: torch.Tensor, tokens: torch.Tensor, config: Settings) -> dict:
    """The three losses of one step: image [B, 3, H, W], tokens int64 [B, T]. "sorted" is only logged."""
    out = network(image, tokens)
    found = {"original": config.original_weight * losses.contrastive(out.original, out.text, out.scale)}
    if out.restored is not None:
        found["restored"] = config.restored_weight * losses.contrastive(out.restored, out.text, out.scale)
    if out.segments is not None:
        loss, found["sorted"] = sort_patches(out, tokens, config)
        found["mask"] = config.mask_weight * loss
    return found


# ---- prediction --------------------------------------------------------------------------------------------------------------------------


def predictor(model: MixReorg, config: Settings, tokenizer, names: tuple[str, ...], device: str) -> WordPredictor:
    """Zero-shot segmentation by GroupViT's rule; nothing of the mixing is left."""
    prompts = templates(config.prompts)
    embed = lambda words: class_embeddings(model.encode_text, tokenizer, words, prompts, device)
    return WordPredictor(lambda image: Segmented(*model.segment(image)), embed, names, scale=float(model.scale().detach()), top=config.top,
                         threshold=config.threshold, short_side=config.short_side, window=config.window, stride=config.stride, multiple=config.patch)


# ---- photographs -------------------------------------------------------------------------------------------------------------------------


def random_area(image: np.ndarray, rng: np.random.Generator, least: float, side: int) -> np.ndarray:
    """A random rectangle of `least` ... 1 of the image's area and aspect 3/4 ... 4/3, resized (bicubic) to side x side: uint8 [side, side, 3].

    What photographs for image-text training go through (timm's RandomResizedCrop; GroupViT, datasets/builder.py). One draw; a side that
    does not fit is shortened.
    """
    height, width = image.shape[:2]
    area, aspect, at_y, at_x = rng.uniform(least, 1) * height * width, math.exp(rng.uniform(-1, 1) * math.log(4 / 3)), *rng.random(2)
    tall, wide = min(height, max(1, round(math.sqrt(area / aspect)))), min(width, max(1, round(math.sqrt(area * aspect))))
    top, left = int(at_y * (height - tall + 1)), int(at_x * (width - wide + 1))
    return np.asarray(Image.fromarray(image[top:top + tall, left:left + wide]).resize((side, side), Image.BICUBIC))


def erased(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """A random rectangle (2 ... 33 % of the area) of image uint8 [H, W, 3] replaced by noise, with this probability."""
    chance, area, aspect, at_y, at_x = rng.random(5)
    if chance >= probability:
        return image
    height, width = image.shape[:2]
    area, aspect = (0.02 + 0.31 * area) * height * width, 0.3 ** (1 - 2 * aspect)
    tall, wide = min(height, max(1, round(math.sqrt(area * aspect)))), min(width, max(1, round(math.sqrt(area / aspect))))
    top, left = int(at_y * (height - tall + 1)), int(at_x * (width - wide + 1))
    image = image.copy()
    image[top:top + tall, left:left + wide] = rng.integers(0, 256, (tall, wide, 3), np.uint8)
    return image


def training_view(config: Settings, data) -> Callable:
    """(sample, rng) -> sample: one of the image's captions, crop, flip, colours."""
    rest = make_transform(config.augment, data.mean)

    def view(sample: dict, rng: np.random.Generator) -> dict:
        if config.crop_area:
            sample = dict(sample, image=random_area(sample["image"], rng, config.crop_area, config.image_size))
        sample = rest(sample, rng)
        return dict(sample, image=erased(sample["image"], rng, config.erase)) if config.erase else sample

    return one_caption(view)


def plain_view(config: Settings, data) -> Callable:
    """image uint8 -> the middle square at the training size, or the whole image where training sees whole images."""
    if not (config.crop_area or config.augment.crop):
        return lambda image: image

    def view(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return np.asarray(Image.fromarray(image[top:top + side, left:left + side]).resize((config.image_size,) * 2, Image.BICUBIC))

    return view


# ---- what is measured besides masks ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def diagnosis(model: MixReorg, data, tokenizer, config: Settings, device: str, batch: int = 20, most: int = 500) -> dict[str, float]:
    """On held-out images: retrieval in both directions, and "patches sorted", the share of the patches of mixed images that are given back to
    their caption (chance is 1/K). A low mask loss may come from colours learned by heart; this number tells whether sorting carries over."""
    model.eval()
    random, view = torch.Generator().manual_seed(0), plain_view(config, data)
    right, images, texts, owner = [], [], [], []
    batch = max(min(batch, len(data)) // config.images, 1) * config.images
    for first in range(0, min(len(data), most) - batch + 1, batch):
        samples = [data.read(i, tuple(w for w in ("image", "text", "texts") if w in data.provides)) for i in range(first, first + batch)]
        image = normalise(np.stack([view(s["image"]) for s in samples]), data).to(device)
        tokens = tokenizer([s["text"] for s in samples]).to(device)
        if model.mix is not None and model.mix.masks:
            h, w = (side // config.patch for side in image.shape[-2:])
            index = draw_index(batch, h, w, config.images, config.tile, generator=random).to(device)
            right.append(float(sort_patches(model(image, tokens, index), tokens, config)[1]))
        images.append(model.pooled(model.img_encoder(image).segments))
        for i, sample in enumerate(samples):
            texts += sample.get("texts", [sample["text"]])
            owner += [first + i] * (len(texts) - len(owner))
    if not images:
        return {}
    text = torch.cat([F.normalize(model.encode_text(tokenizer(texts[i:i + 200]).to(device)), dim=-1) for i in range(0, len(texts), 200)])
    found = retrieval(torch.cat(images), text, torch.tensor(owner))
    return {**({"patches sorted": sum(right) / len(right)} if right else {}), **found}


def segment_picture(model: MixReorg, image: np.ndarray, config: Settings, data, device: str) -> np.ndarray:
    """image uint8 [H, W, 3] -> which segment every pixel belongs to, as colours, uint8 [H, W, 3]."""
    x = normalise(image[None], data).to(device)
    size = resized(tuple(x.shape[-2:]), config.short_side, 2048, config.patch)
    with torch.no_grad():
        shares = model.segment(F.interpolate(x, size, mode="bilinear", align_corners=False))[2]
    labels = F.interpolate(shares, image.shape[:2], mode="bilinear", align_corners=False).argmax(1)[0].cpu().numpy()
    return colourise(labels + 1, voc_palette(shares.shape[1] + 1))


# ---- the pipeline ------------------------------------------------------------------------------------------------------------------------


def open_tokenizer(run):
    """CLIP's byte pairs from their file, or the words of the training captions and the class names, kept with the run."""
    config = run.config
    if config.vocabulary:
        return BytePairs(config.vocabulary, config.context)

    def words():
        data, texts = run.data("train"), []
        for i in range(len(data)):
            sample = data.read(i, tuple(w for w in ("text", "texts") if w in data.provides))
            texts += sample.get("texts") or [sample["text"]]
        return {"words": sorted({*Words(texts, config.context, config.rare).words, *Words(data.classes[1:], config.context).words})}

    return Words.of(run.make("words", words)["words"], config.context)


def fit(run, name: str, config: Settings) -> MixReorg:
    """Train one network on images and captions; every row of a claim starts from the same weights."""
    tokenizer, data = open_tokenizer(run), run.data("train")
    torch.manual_seed(config.seed)
    model = run.build(name, lambda: build(config, tokenizer.size, run.say))

    def step(network, batch, t):
        return step_losses(network, batch["image"], tokenizer(batch["text"]).to(batch["image"].device), config)

    return run.fit(name, model, step, Batches(data, config.train.batch, config.seed, training_view(config, data), run.supervision), config.train)


def reopen(run) -> WordPredictor:
    """The predictor of a finished run."""
    return predictor(fit(run, "model", run.config), run.config, open_tokenizer(run), run.data("train").classes[1:], run.device)


def train(run) -> None:
    config, data = run.config, run.data("train")
    tokenizer, model = open_tokenizer(run), fit(run, "model", config)
    predict = predictor(model, config, tokenizer, data.classes[1:], run.device)
    measured = run.make("diagnosis", lambda: diagnosis(model, run.truth("val"), tokenizer, config, run.device))
    chance = f"chance is {1 / config.images:.2f}" if config.mixing else "the baseline has no mixed images"
    table = {"title": "Held-out images and captions", "columns": ["", "share"], "rows": [[k, round(v, 3)] for k, v in measured.items()],
             "note": f"patches sorted: of mixed held-out images, given back to their caption ({chance}); R@r: the right one among the first r"}
    run.report(predict, model=model, tables=[table], samples=lambda sample: {"segments": segment_picture(model, sample["image"], config, data, run.device)},
               headline={k: v for k, v in measured.items() if k in ("patches sorted", "text to image R@1") or config.data == "captions"},
               notes=["zero-shot: no mask was seen; the classes are words", *(f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1))])


# ---- the claim ---------------------------------------------------------------------------------------------------------------------------

TABLE = "Zero-shot segmentation of held-out scenes"
BASE, METHOD = "GroupViT-style, equal compute", "MixReorg"
ROWS: dict[str, dict] = {BASE: {"mixing": False}, METHOD: {}}  # row: changed settings
ABLATIONS: dict[str, dict] = {
    "with contextual mixing": {"context_blocks": 1}, "with contextual and progressive mixing": {"context_blocks": 1, "progressive": "average"},
    "without the restored images' loss": {"restored_weight": 0.0}, "without the mask loss": {"mask_weight": 0.0},
    "GroupViT-style, equal steps": {"mixing": False},
}


def scores(run, model: MixReorg, config: Settings) -> dict[str, float]:
    """One row: mIoU over all words, over things and over grounds; with mixing, the share of held-out patches sorted."""
    data, tokenizer = run.truth("val"), open_tokenizer(run)
    found = evaluate(predictor(model, config, tokenizer, data.classes[1:], run.device), data, run.device).confusion
    sorting = {k: v for k, v in diagnosis(model, data, tokenizer, config, run.device).items() if k == "patches sorted"}
    return {"mIoU": found.miou(range(1, found.classes)), **things_and_grounds(found, data), **sorting}


def claim(run) -> dict:
    """One seed: every row trained from the same start. The first has twice the steps, because a step with mixing costs about twice as much."""
    found = {}
    for row, changes in {**ROWS, **(ABLATIONS if run.config.ablations else {})}.items():
        config = override(run.config, **changes, train__steps=run.config.train.steps * (2 if row == BASE else 1))
        name = "_".join(re.findall(r"\w+", row))
        found[row] = run.make(f"score_{name}", lambda: scores(run, fit(run, name, config), config))
    return {TABLE: found}


CLAIM = {
    "title": "MixReorg in miniature: scenes.world=text, 1,500 captioned images, no mask",
    "headline": (TABLE, "mIoU", (BASE, METHOD)),
    "paper": {"VOC 2012": "47.9 against GroupViT's 42.9 on the same data (+5.0)", "Context": "23.9 against 17.7 (+6.2)",
              "COCO, ADE20K": "+2.5, +3.4 (abstract)"},
    "statements": {
        "mixing raises zero-shot mIoU over a GroupViT-style baseline of equal compute": lambda t: t[TABLE][METHOD]["mIoU"] > t[TABLE][BASE]["mIoU"],
    },
}

RECIPES = {
    "toy": {
        "scenes.world": "text", "scenes.classes": "ball,box,star,kite,heart", "scenes.contexts": "grass,sand,water", "scenes.size": 48,
        "scenes.scale_min": 0.2, "scenes.scale_max": 0.32, "scenes.objects_max": 2, "scenes.train_images": 1500, "scenes.val_images": 200,
        "net": "tiny", "image_size": 48, "patch": 8, "context": 16, "prompts": "scenes", "images": 4, "context_blocks": 0, "progressive": "off",
        "train.steps": 200, "train.batch": 32, "train.lr": 3e-3, "train.optimizer": "adamw", "train.weight_decay": 0.05, "train.decay_all": False,
        "train.schedule": "cosine", "train.warmup": 30, "train.clip": 5.0,
    },
    "small": {
        "net": "small", "image_size": 128, "patch": 16, "rare": 3, "crop_area": 0.4, "short_side": 128, "context": 32, "augment.brightness": 0.3,
        "augment.contrast": 0.3, "augment.saturation": 0.3, "train.steps": 600, "train.batch": 32, "train.lr": 1e-3, "train.optimizer": "adamw",
        "train.weight_decay": 0.05, "train.decay_all": False, "train.schedule": "cosine", "train.warmup": 60, "train.clip": 5.0,
    },
    "paper": {  # 30 epochs of CC12M in batches of 4,096 (section 5 of our notes: GroupViT's recipe)
        "net": "groupvit", "image_size": 224, "patch": 16, "context": 77, "crop_area": 0.08, "erase": 0.25, "augment.brightness": 0.4,
        "augment.contrast": 0.4, "augment.saturation": 0.4, "short_side": 448, "window": 448, "stride": 224, "threshold": 0.95,
        "train.steps": 87900, "train.batch": 4096, "train.micro_batch": 256, "train.lr": 1.6e-3, "train.optimizer": "adamw",
        "train.weight_decay": 0.05, "train.decay_all": False, "train.schedule": "cosine", "train.warmup": 5860, "train.clip": 5.0, "train.amp": "bf16",
    },
}

DEVIATIONS = (
    "All: no code and no method section could be read. K, the layer before the mix, a permutation per position, the progressive operator, the groups of "
    "the restored branch, the form of the mask loss, its captions and all weights are reconstructions, one key each. Effects: claims with ablations=true.",
    "toy: patches are mixed raw, contextual and progressive mixing are off. With them the mask loss is solved by what a token remembers of its own image: patches "
    "are sorted twice as well and masks are worse than the baseline's, on two of three seeds far worse (lesson 14).",
    "Mask loss: two images of a mix with equal captions count as one answer; the target would be arbitrary. Rare on the web, frequent in a world of eight words.",
    "GroupViT's second, multi-label loss on prompted nouns is left out of method and baseline (whether MixReorg keeps it is not known). Not measured.",
    "paper: no RandAugment; warm-up starts at lr / warmup and the cosine ends at 0 (GroupViT: 4e-6 and 4e-5); bf16 instead of apex O1. The 4,096 wrong answers of a "
    "step need 16 processes of 256: gathered over processes, not over accumulated parts.",
    "toy, small: encoders of 64 and 128 channels without dropped paths, linear layers start as PyTorch's (0.02 suits 384 channels).",
)
