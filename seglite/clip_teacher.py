"""CLIP as a teacher: load the released one or train a tiny one on captions, and keep what it sees in the cells of every image.

    teacher = open_teacher(run)            stage "clip" (skipped with clip=FILE); a model, its tokenizer, its normalisation
    views = Views(run, teacher, data, grids, side)     image --> grids of cells --> vectors [V, E], computed once, one file per 1,024 images
    views.rows(index, grids)               float32 [B, V, E] for a batch

The student's crop never moves, so a teacher that would cost V forward passes per step costs V per image, once.

B batch, V views, E joint space, M texts, K words.
"""
from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from seglite import files, parallel
from seglite.config import UsageError
from seglite.data import Batches, generator, normalise
from seglite.data.captions import Images, one_caption
from seglite.data.squares import RandomSquare, cells, centre_square, grid_views
from seglite.losses import contrastive
from seglite.metrics import Confusion
from seglite.nets.clip import MEAN, STD, Clip, LockedTower, clip_tiny, load_clip
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.weights import load_weights
from seglite.openvocab import class_embeddings, retrieval, retrieval_by_chance, templates
from seglite.tokenizer import BytePairs, Tokenizer, Words

CHUNK = 1024     # images per file of cached views: what a kill can cost
TOGETHER = 512   # squares that pass through the teacher at once
SQUARES = 4      # random squares of an image that a frozen image side is shown, once


@dataclass
class ClipTeacher:
    """A frozen CLIP. mean, std: normalisation of its input."""

    model: Clip
    tokenizer: Tokenizer
    mean: Sequence[float]
    std: Sequence[float]
    device: str = "cpu"

    @property
    def embed(self) -> int:
        """E."""
        return self.model.shape.embed

    @property
    def side(self) -> int:
        """Side of its input in pixels."""
        return self.model.shape.image_size

    @torch.no_grad()
    def images(self, squares: np.ndarray) -> torch.Tensor:
        """uint8 [B, side, side, 3] -> float32 [B, E], not of unit length."""
        parts = np.array_split(squares, -(-len(squares) // TOGETHER))
        found = [self.model.encode_image(normalise(part, self).to(self.device)).float() for part in parts]
        return torch.cat(found)  # [B, E]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> float32 [M, E], not of unit length."""
        parts = (texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER))
        found = [self.model.encode_text(self.tokenizer(part).to(self.device)).float() for part in parts]
        return torch.cat(found)  # [M, E]

    def words(self, names: Sequence[str], prompts: str) -> torch.Tensor:
        """Class embeddings of unit length [K, E] under a prompt set; see `openvocab`."""
        return class_embeddings(self.model.encode_text, self.tokenizer, names, templates(prompts), self.device)  # [K, E]


def training_images(run):
    """What the student is trained on: the folder images=, or the images of the run's data set."""
    return Images(run.config.images) if run.config.images else run.data("train", ("image",))


def open_tokenizer(run) -> Tokenizer:
    """Byte pairs where vocabulary= is given, else the words of the training captions (at least twice on photographs)."""
    config = run.config
    if config.vocabulary:
        return BytePairs(config.vocabulary)
    if config.clip:
        raise ValueError("clip= is a released model, whose texts are byte pairs: give vocabulary=bpe_simple_vocab_16e6.txt.gz too")

    def count():
        key = "texts" if config.data == "captions" else "text"
        data = run.data("train", (key,))
        found = (data.read(i)[key] for i in range(len(data)))
        captions = (caption for texts in found for caption in ([texts] if isinstance(texts, str) else texts))
        return {"words": Words(captions, min_count=2 if key == "texts" else 1).words}

    return Words.of(run.make("words", count)["words"], context=24)


def open_teacher(run) -> ClipTeacher:
    """The teacher of a run. Without clip= it is trained in the stage "clip": contrastive loss on images and captions; with clip_image= the image
    side begins as a published classifier and keeps its features."""
    if run.config.size == "paper" and not run.config.clip:
        raise UsageError("size=paper distils the released ViT-L/14: give clip=ViT-L-14.pt and vocabulary=bpe_simple_vocab_16e6.txt.gz")
    config, tokenizer = run.config, open_tokenizer(run)
    names = run.truth("val").classes[1:]
    # A word that it cannot know, or a missing file of prompts, is said now and not after training.
    class_embeddings(lambda tokens: torch.ones(len(tokens), 1), tokenizer, names, templates(config.prompts))
    if config.clip:
        model = load_clip(config.clip, say=run.say)
        return ClipTeacher(model.to(run.device).requires_grad_(False), tokenizer, MEAN, STD, run.device)
    data = run.data("train")
    torch.manual_seed(config.seed * 10 + 6)
    model = clip_tiny(tokenizer.size, config.clip_size, config.clip_patch, tokenizer.context, embed=config.clip_width, width=config.clip_width,
                      text_width=config.clip_width)
    square, wants, seen = RandomSquare(config.clip_size, config.clip_smallest), run.supervision, None
    if config.clip_image:
        finished = run.finished("clip")
        model.visual = locked_mobilenet(config, "" if finished else config.clip_image, run.say)
        if not finished:
            seen = run.make("squares", lambda: {"features": seen_squares(model.visual, data, square, config.seed * 10 + 1, run.device)})["features"]
        square, wants = None, tuple(w for w in wants if w != "image")  # batches of captions: what the frozen network sees is known

    def step(network, batch, t):
        if seen is None:
            image = batch["image"]
        else:
            index = batch["index"].cpu()
            image = seen[index, (index + t) % SQUARES].float().to(run.device)
        image, text, scale = network(image, tokenizer(batch["text"]).to(run.device))
        return {"contrast": contrastive(image, text, scale), "scale": float(scale.detach())}

    run.fit("clip", model, step, Batches(data, config.clip_train.batch, config.seed * 10 + 1, one_caption(square), wants), config.clip_train)
    return ClipTeacher(model.requires_grad_(False), tokenizer, data.mean, data.std, run.device)


def locked_mobilenet(config, path: str, say) -> LockedTower:
    """MobileNetV2's 1,280 pooled features, frozen, and a projection that learns. path: published weights; empty: a checkpoint follows."""
    network = mobilenet_v2(frozen_bn=True)
    channels = network.classifier[-1].in_features
    if path:
        load_weights(network, path, say=say)
    network.classifier = torch.nn.Identity()
    return LockedTower(network, channels, config.clip_size, config.clip_width)


@torch.no_grad()
def seen_squares(tower: LockedTower, data, square: RandomSquare, seed: int, device: str) -> torch.Tensor:
    """What a frozen network sees in SQUARES random squares of every image, float16 [L, SQUARES, C]: it need not look at every step."""
    tower.to(device).eval()
    found = []
    for i in range(len(data)):
        sample = data.read(i, ("image",))
        squares = np.stack([square(sample, generator(seed, 3, i, j))["image"] for j in range(SQUARES)])
        found.append(tower.features(normalise(squares, data).to(device)).half().cpu())
    return torch.stack(found)


class Views:
    """The teacher's vectors of all cells of all training images, float16 on disk, made once. A killed run goes on with the next file.

    Args:
        data: gives the images, in the order of their index. grids: cells per side, the first one 1. side: of the centre square that the student sees; cells are cut from it.
    """

    def __init__(self, run, teacher: ClipTeacher, data, grids: Sequence[int], side: int):
        if not grids or grids[0] != 1:
            raise ValueError(f"grids={','.join(map(str, grids))}: the first must be 1, the whole image, which z imitates and segments must not")
        self.grids, self.device = tuple(grids), run.device
        self.folder = run.folder / "views"
        count = -(-len(data) // CHUNK)
        missing = [c for c in range(run.rank, count, run.world) if not self.path(c).exists()]
        if missing:
            run.say(f"views: {len(cells(grids))} of each of {len(data)} images")
        for chunk in missing:
            vectors, waiting = [], []
            last = min((chunk + 1) * CHUNK, len(data)) - 1
            for i in range(chunk * CHUNK, last + 1):
                waiting.append(grid_views(centre_square(data.read(i, ("image",))["image"], side), grids, teacher.side))
                if len(waiting) * len(waiting[0]) >= TOGETHER or i == last:
                    squares = np.stack(waiting)  # [n, V, teacher.side, teacher.side, 3]
                    found = teacher.images(squares.reshape(-1, *squares.shape[2:])).unflatten(0, squares.shape[:2])  # [n, V, E]
                    vectors, waiting = [*vectors, found.half().cpu().numpy()], []
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(vectors))
            files.write_bytes(self.path(chunk), buffer.getvalue())
        parallel.barrier()
        self.chunks = [np.load(self.path(c), mmap_mode="r") for c in range(count)]

    def path(self, chunk: int):
        return self.folder / f"{chunk:05d}.npy"

    def rows(self, index: torch.Tensor, grids: Sequence[int] | None = None) -> torch.Tensor:
        """Vectors of some images, as they are (not of unit length): int64 [B] -> float32 [B, V, E]; of some grids only, when given."""
        found = np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in index.tolist()])  # [B, V, E]
        if grids is not None and tuple(grids) != self.grids:
            sizes = [s for s in self.grids for _ in range(s * s)]
            found = found[:, [j for s in grids for j, size in enumerate(sizes) if size == s]]
        return torch.from_numpy(found).to(self.device).float()


# ---- what a report says about the teacher -------------------------------------------------------------------------------------------------


@torch.no_grad()
def name_cells(run, teacher: ClipTeacher, size: int, prompts: str, images: int = 200) -> dict:
    """What the crops know by themselves: every one of size x size cells gets its nearest word, and the whole cell is painted with it.

    {"right": share of cells whose word is the class that fills most of them, "counts": confusion of the painted label maps, int64 [K, K]}.
    Needs masks; for reports and claims only.
    """
    data = run.truth("val")
    words, painted, right, total = teacher.words(data.classes[1:], prompts), Confusion(data.classes), 0, 0
    for i in range(min(images, len(data))):
        sample = data.read(i, ("image", "mask"))
        if sample["image"].shape[0] != sample["image"].shape[1]:
            continue
        vectors = F.normalize(teacher.images(grid_views(sample["image"], (size,), teacher.side)), dim=1)
        labels, side = np.empty_like(sample["mask"]), sample["mask"].shape[0]
        for word, box in zip(((vectors @ words.T).argmax(1) + 1).tolist(), cells((size,))):
            left, top, end, bottom = (round(edge * side) for edge in box)
            right += int(np.bincount(sample["mask"][top:bottom, left:end].ravel(), minlength=256)[:255].argmax() == word)
            labels[top:bottom, left:end] = word
            total += 1
        painted.add(sample["mask"], labels)
    return {"right": right / max(total, 1), "counts": painted.counts}


@torch.no_grad()
def caption_retrieval(run, teacher: ClipTeacher) -> dict[str, dict[str, float]]:
    """Recall of captions for held-out images and of images for held-out captions, see `openvocab.retrieval`: {"found": ..., "chance": ...}."""
    data = run.truth("val")
    squares, texts, owner = [], [], []
    for i in range(len(data)):
        sample = data.read(i, ("image", "texts"))
        squares.append(centre_square(sample["image"], teacher.side))
        texts += sample["texts"]
        owner += [i] * len(sample["texts"])
    image, text = teacher.images(np.stack(squares)), teacher.texts(texts)
    whose = torch.tensor(owner)
    return {"found": retrieval(F.normalize(image, dim=1), F.normalize(text, dim=1), whose), "chance": retrieval_by_chance(whose, len(data))}
