"""Exercises of lesson 11. Replace each `return None`, then run:   python -m lessons.check 11"""
from torch import Tensor


def contrastive(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """Exercise 1. image, text [B, E] of any length, row i belonging to row i -> the symmetric InfoNCE loss, a scalar.

    Cosines times scale; cross-entropy over the texts of the batch for every image, over the images for every text; the mean of both.
    """
    return None  # your code here


def merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Exercise 2. One word as byte symbols, ["d", "o", "g</w>"], and the learned merges with their rank (0 was learned first) -> its tokens.

    Again and again: of all neighbouring pairs take the one of lowest rank, and join it wherever it stands, from left to right.
    """
    return None  # your code here


def class_embedding(encode, templates: list[str], name: str) -> Tensor:
    """Exercise 3. encode: list of M texts -> [M, E] of any length -> [E] of unit length, GroupViT's way: the mean of the texts' vectors, then
    normalised. Each template holds one {} for the name.
    """
    return None  # your code here


def recall_at(cosine: Tensor, owner: Tensor, rank: int) -> float:
    """Exercise 4. cosine [I, M] of I images and M captions, owner int64 [M]: the image of each caption, several per image.

    The share of *images* that have at least one of their own captions among their `rank` nearest.
    """
    return None  # your code here
