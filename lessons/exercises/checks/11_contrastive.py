"""What can go wrong in the exercises of lesson 11, by name. Expected values are worked out here with plain loops."""
import math

import torch
from torch.nn import functional as F

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(a, b) -> bool:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool(torch.allclose(a, b, atol=1e-5))


def _info_nce(table, rows: bool) -> float:
    """Mean of -log softmax of the diagonal over rows or columns."""
    B, total = len(table), 0.0
    for i in range(B):
        line = [float(table[i, j] if rows else table[j, i]) for j in range(B)]
        total -= line[i] - math.log(sum(math.exp(v) for v in line))
    return total / B


def check_contrastive(function) -> list[str]:
    image, text = _random(4, 3) * torch.tensor([[1.0], [3.0], [0.5], [2.0]]), _random(4, 3, seed=1) * torch.tensor([[2.0], [1.0], [1.0], [0.3]])
    answer, problem = attempt(function, image, text, 5.0)
    if problem:
        return [problem]
    table = torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in text] for a in image]).double()
    both = lambda t: (_info_nce(t, True) + _info_nce(t, False)) / 2  # noqa: E731
    if _close(answer, both(5 * table)):
        return []
    for wrong, why in ((both(5 * (image @ text.T).double()), "uses dot products of raw vectors: make both sides unit vectors first"),
                       (both(table / 5), "divides by the scale: it multiplies the cosines, as 1 / temperature"),
                       (both(table), "does not use the scale"),
                       (_info_nce(5 * table, True), "asks only images for their text: the other direction is missing"),
                       (_info_nce(5 * table, False), "asks only texts for their image: the other direction is missing"),
                       (2 * both(5 * table), "adds the two directions: the loss is their mean, so that chance is log(B)"),
                       (4 * both(5 * table), "sums over the batch where it should average")):
        if _close(answer, wrong):
            return [f"contrastive {why}"]
    return [f"contrastive gave {float(torch.as_tensor(answer).double().mean()):.4f}, expected {both(5 * table):.4f}"]


def check_merge(function) -> list[str]:
    cases = [(["c", "a", "t</w>"], {("a", "t</w>"): 0, ("c", "a"): 1}, ["c", "at</w>"],
              {("ca", "t</w>"): "merge goes from left to right: take the pair of lowest rank first, wherever it stands"}),
             (["b", "a", "b", "a"], {("b", "a"): 0}, ["ba", "ba"], {("ba", "b", "a"): "merge joins a pair once: join it wherever it stands before you look for the next"}),
             (["a", "a", "a"], {("a", "a"): 0}, ["aa", "a"], {}),
             (["x", "y"], {("y", "x"): 0}, ["x", "y"], {("xy",): "merge joins pairs that were never learned"}),
             (["a", "b", "c"], {("a", "b"): 1, ("ab", "c"): 0}, ["abc"], {("ab", "c"): "merge stops after one round: a joined symbol may join again"}),
             (["q"], {("a", "b"): 0}, ["q"], {})]
    for parts, ranks, expected, named in cases:
        answer, problem = attempt(function, list(parts), dict(ranks))
        if problem:
            return [problem]
        if list(answer) != expected:
            return [named.get(tuple(answer), f"merge of {parts} with {ranks} gave {list(answer)}, expected {expected}")]
    return []


def check_class_embedding(function) -> list[str]:
    table = {"a photo of a dog": torch.tensor([3.0, 0.0]), "dog": torch.tensor([0.0, 1.0]), "a photo of a {}": torch.tensor([9.0, -9.0]), "{}": torch.tensor([9.0, -9.0])}
    answer, problem = attempt(function, lambda texts: torch.stack([table[t] for t in texts]), ["a photo of a {}", "{}"], "dog")
    if problem:
        return [problem]
    if _close(answer, F.normalize(torch.tensor([3.0, 1.0]), dim=0)):
        return []
    for wrong, why in ((torch.tensor([1.5, 0.5]), "is not of unit length"), (F.normalize(torch.tensor([1.0, 1.0]), dim=0), "normalises before the mean, as CLIP's notebooks do: "
                       "GroupViT averages first"), (torch.tensor([0.5, 0.5]), "normalises before the mean and not after it"),
                       (torch.tensor([9.0, -9.0]) / 162**0.5, "never puts the name into the templates")):
        if _close(answer, wrong):
            return [f"class_embedding {why}"]
    return [f"class_embedding gave {[round(float(v), 3) for v in torch.as_tensor(answer).flatten()[:4]]}, expected [0.949, 0.316]"]


def check_recall_at(function) -> list[str]:
    cosine = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.8, 0.5, 0.6, 0.1], [0.1, 0.2, 0.3, 0.25]])
    owner = torch.tensor([0, 0, 1, 2])  # image 0: own caption first; image 1: second; image 2: its caption is second
    for rank, expected, named in ((1, 1 / 3, {1 / 4: "counts captions: the share is of images"}),
                                  (2, 1.0, {}), (9, 1.0, {4 / 3: "counts an image twice when two of its captions are near"})):
        answer, problem = attempt(function, cosine, owner, rank)
        if problem:
            return [problem]
        if abs(float(answer) - expected) > 1e-6:
            why = next((w for value, w in named.items() if abs(float(answer) - value) < 1e-6 and w), "")
            return [f"recall_at {why}" if why else f"recall_at(rank={rank}) gave {float(answer):.3f}, expected {expected:.3f}"]
    return []


def check(module) -> list[str]:
    return [problem for part, name in ((check_contrastive, "contrastive"), (check_merge, "merge"), (check_class_embedding, "class_embedding"),
                                       (check_recall_at, "recall_at")) for problem in part(getattr(module, name))]
