"""What can go wrong in the exercises of lesson 07, by name. Expected values are worked out here with plain loops."""
import math

import torch
from torch.nn import functional as F

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _try(function, *arguments, kind=torch.Tensor):
    return attempt(function, *arguments, kind=kind, called=kind.__name__)


def _same(a, b) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), atol=1e-4, rtol=1e-4))


def check_relations(function) -> list[str]:
    feature, v = _random(2, 5, 7, 9) + 0.5, 3
    answer, problem = _try(function, feature, v)
    if problem:
        return [problem]
    edges = lambda n: [(i * n // v, -(-(i + 1) * n // v)) for i in range(v)]
    regions = torch.stack([feature[:, :, a:b, c:d].mean((2, 3)) for a, b in edges(7) for c, d in edges(9)], 2)
    dots, length = regions.mT @ regions, regions.norm(dim=1)
    if _same(answer, dots / (length[:, :, None] * length[:, None])):
        return []
    if _same(answer, dots):
        return ["relations are dot products: divide by both lengths, or a louder teacher looks like a different one"]
    turned = regions.unflatten(2, (v, v)).mT.flatten(2)
    unit = F.normalize(turned, dim=1)
    if _same(answer, unit.mT @ unit):
        return ["relations are numbered column by column; student and teacher would agree, but the docstring says row by row"]
    pixels = F.adaptive_avg_pool2d(F.normalize(feature, dim=1), v).flatten(2)
    if _same(answer, pixels.mT @ pixels) or _same(answer, F.normalize(pixels, dim=1).mT @ F.normalize(pixels, dim=1)):
        return ["relations normalise before pooling; the regions' means are compared, so pool first"]
    if answer.shape == (2, 5, 5):
        return ["relations compare channels with channels, [B, D, D]; regions are compared, [B, v*v, v*v]"]
    if answer.shape != (2, 9, 9):
        return [f"relations have the shape {list(answer.shape)}, expected [2, 9, 9] for v = 3"]
    return ["relations are not the cosines between the means of 3 x 3 regions"]


def check_image(function) -> list[str]:
    student, teacher = _random(2, 4, 3, 5).requires_grad_(), _random(2, 4, 3, 5, seed=1).requires_grad_()
    answer, problem = _try(function, student, teacher)
    if problem:
        return [problem]
    difference = student.mean((2, 3)) - teacher.mean((2, 3))
    if _same(answer, difference.abs().sum()):
        return ["image_loss is a sum, as in the authors' code: its weight then grows with the batch and the number of classes; take the mean"]
    if _same(answer, (student - teacher).abs().mean()):
        return ["image_loss compares pixel with pixel; average over the image first, then compare"]
    if _same(answer, difference.square().mean()):
        return ["image_loss squares the difference; it is the absolute one"]
    if _same(answer, (student.softmax(1).mean((2, 3)) - teacher.softmax(1).mean((2, 3))).abs().mean()):
        return ["image_loss compares probabilities; the softmax hides how sure the teacher is, compare logits"]
    if not _same(answer, difference.abs().mean()):
        return [f"image_loss gave {float(answer.mean()):.4f}, expected {float(difference.abs().mean()):.4f}"]
    if not answer.requires_grad:
        return ["image_loss lost the student's gradient"]
    answer.backward()
    return ["image_loss sends a gradient to the teacher, which is frozen: detach it"] if teacher.grad is not None else []


def check_mixed(function) -> list[str]:
    first, second = _random(2, 4, 5, 6), _random(2, 4, 5, 6, seed=1)
    mix = _random(2, 5, 6, seed=2) > 0
    answer, problem = _try(function, first, second, mix)
    if problem:
        return [problem]
    expected = torch.where(mix, second.argmax(1), first.argmax(1))
    if torch.equal(answer, expected) and answer.dtype == torch.int64:
        return []
    if answer.shape == expected.shape and torch.equal(answer.long(), torch.where(mix, first.argmax(1), second.argmax(1))):
        return ["mixed_labels has the two images the wrong way round: True in mix means the second"]
    if answer.shape == expected.shape and torch.equal(answer.long(), (first + second).argmax(1)):
        return ["mixed_labels averages the two answers; every pixel belongs to exactly one of the images"]
    if answer.shape == first.shape:
        return ["mixed_labels returned scores [B, K, H, W]; hard labels are their argmax over the classes"]
    if answer.shape == expected.shape and torch.equal(answer.long(), expected):
        return [f"mixed_labels are {answer.dtype}; cross_entropy wants int64"]
    return ["mixed_labels are not the second image's labels where mix is True and the first's elsewhere"]


def check_two(function) -> list[str]:
    logits = _random(2, 4, 5, 6)
    deep, wide = (torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    deep[:, :2] = 255
    real, calls = torch.logsumexp, [0]
    true_softmax = {name: getattr(place, name) for place, name in ((F, "cross_entropy"), (F, "log_softmax"))}

    def counting(*arguments, **keywords):
        calls[0] += 1
        return real(*arguments, **keywords)

    spent = {"cross_entropy": 0, "log_softmax": 0}

    def watched(name):
        def call(*arguments, **keywords):
            spent[name] += 1
            return true_softmax[name](*arguments, **keywords)
        return call

    torch.logsumexp = counting
    for name in true_softmax:
        setattr(F, name, watched(name))
    try:
        answer, problem = _try(function, logits, deep, wide)
    finally:
        torch.logsumexp = real
        for name, call in true_softmax.items():
            setattr(F, name, call)
    if problem:
        return [problem]
    each = [float(F.cross_entropy(logits, labels, ignore_index=255)) for labels in (deep, wide)]
    if spent["cross_entropy"] > 1 or spent["log_softmax"] > 1 or calls[0] > 1:
        return ["two_teachers goes over the logits twice: both terms share one log-sum-exp"]
    if math.isclose(float(answer), sum(each), abs_tol=1e-4):
        shifted, problem = _try(function, logits + 1000, deep, wide)
        if problem or not math.isclose(float(shifted), sum(each), abs_tol=1e-2):
            return ["two_teachers overflows for large logits: take torch.logsumexp, not log of the sum of exp"]
        return []
    if math.isclose(float(answer), sum(each) / 2, abs_tol=1e-4):
        return ["two_teachers is the mean of the two; each has weight 1"]
    count = [int((labels != 255).sum()) for labels in (deep, wide)]
    if math.isclose(float(answer), each[0] * count[0] / 60 + each[1], abs_tol=1e-4):
        return ["two_teachers divides by all pixels; each term divides by its own counted ones"]
    if math.isclose(float(answer), 2 * (each[0] * count[0] + each[1] * count[1]) / sum(count), abs_tol=1e-4):
        return ["two_teachers pools the pixels of both; each term is a mean of its own"]
    return [f"two_teachers gave {float(answer):.4f}, expected {sum(each):.4f}: ignored pixels (255) must not count"]


def check_adds(function) -> list[str]:
    answer, problem = _try(function, 64, 128, 3, 1, 32, 24, kind=int)
    if problem:
        return [problem]
    expected = 128 * 32 * 24 * 9 * 64
    if answer == 2 * expected:
        return ["multiply_adds counts two operations per multiply-add; one multiply-add is one"]
    if answer == expected // 3:
        return ["multiply_adds takes a kernel of 3 taps; it has 3 x 3"]
    if answer == expected // (32 * 24):
        return ["multiply_adds counts weights: every output position uses all of them"]
    if answer != expected:
        return [f"multiply_adds(64, 128, 3, 1, 32, 24) gave {answer:,}, expected {expected:,}"]
    answer, problem = _try(function, 96, 96, 3, 96, 16, 16, kind=int)
    if problem:
        return [problem]
    if answer == 96 * 96 * 9 * 256:
        return ["multiply_adds ignores groups: a depthwise filter sees one input channel"]
    return [] if answer == 96 * 9 * 256 else [f"multiply_adds of a depthwise 3x3 on 96 channels, 16 x 16, gave {answer:,}, expected {96 * 9 * 256:,}"]


PARTS = ((check_relations, "relations"), (check_image, "image_loss"), (check_mixed, "mixed_labels"), (check_two, "two_teachers"), (check_adds, "multiply_adds"))


def check(module) -> list[str]:
    return [problem for part, name in PARTS for problem in part(getattr(module, name))]
