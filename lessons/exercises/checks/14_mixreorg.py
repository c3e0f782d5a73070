"""What can go wrong in the exercises of lesson 14, by name. Expected values are worked out here with plain loops."""
import math

import torch

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _unit(*shape, seed=0):
    x = _random(*shape, seed=seed)
    return x / x.norm(dim=-1, keepdim=True)


def _try(function, *arguments):
    return attempt(function, *arguments, kind=torch.Tensor, called="a tensor")


def _same(a, b) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), atol=1e-5))


def check_assign(function) -> list[str]:
    logits, upstream = (3 * _random(4, 7)).requires_grad_(), _random(4, 7, seed=1)
    answer, problem = _try(function, logits)
    if problem:
        return [problem]
    one_hot, other = torch.zeros(4, 7), torch.zeros(4, 7)
    for n in range(7):
        one_hot[int(logits[:, n].argmax()), n] = 1
    for s in range(4):
        other[s, int(logits[s].argmax())] = 1
    if _same(answer, other):
        return ["assign gives every group its best token; tokens choose: the softmax and the arg-max run over the groups, dimension 0"]
    if _same(answer, logits.softmax(0)):
        return ["assign stays soft: the value must be one-hot, only the gradient is the softmax's"]
    if not _same(answer, one_hot):
        return ["assign: not one-hot at each token's best group"]
    if not answer.requires_grad:
        return ["assign has no gradient: one-hot of an arg-max has none of its own; add softmax minus its detached self"]
    (got,) = torch.autograd.grad((answer * upstream).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(0) * upstream).sum(), logits)
    if not _same(got, expected):
        (wrong_axis,) = torch.autograd.grad((logits.softmax(1) * upstream).sum(), logits)
        if _same(got, wrong_axis):
            return ["assign: right values, but the gradient is that of a softmax over tokens; it must compete over the groups"]
        return ["assign: right values, but the gradient is not the softmax's"]
    return []


def check_group_means(function) -> list[str]:
    values = _random(6, 3)
    assignment = torch.tensor([[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).float()
    answer, problem = _try(function, assignment, values)
    if problem:
        return [problem]
    size = assignment.sum(1, keepdim=True)
    total = assignment @ values
    if _same(answer, total / (size + 1)):
        return []
    if _same(answer, total):
        return ["group_means gives sums; divide by the size of the group plus 1"]
    if not torch.isfinite(answer).all():
        return ["group_means divides by zero for a group without tokens; the 1 in the denominator is there for that, and for the gradient of almost empty groups"]
    if _same(answer, total / size.clamp_min(1)) or _same(answer, total / (size + 1e-8)):
        return ["group_means divides by the size alone; with a soft gradient behind a hard value that explodes for almost empty groups, hence the 1"]
    if _same(answer, assignment / (assignment.sum(0, keepdim=True) + 1) @ values):
        return ["group_means counts the groups of a token instead of the tokens of a group: sum over dimension 1"]
    return ["group_means: wrong values; sum of the group's tokens / (their number + 1)"]


def check_mask_loss(function) -> list[str]:
    cosines, shares, r, scale = _random(3, 4).clamp(-1, 1), (2 * _random(3, 9, seed=1)).softmax(0), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0]), 9.0
    answer, problem = _try(function, cosines, shares, r, scale)
    if problem:
        return [problem]

    def loss(logit, reduce=True):
        each = []
        for n in range(9):
            scores = [math.exp(float(logit(n, k))) for k in range(4)]
            each.append(-math.log(scores[int(r[n])] / sum(scores)))
        return torch.tensor(sum(each) / (9 if reduce else 1))

    mean = lambda n, k: sum(shares[s, n] * cosines[s, k] for s in range(3))
    if answer.ndim:
        return [f"mask_loss must return one number, the mean over the patches; yours has shape {list(answer.shape)}"]
    if _same(answer, loss(lambda n, k: scale * mean(n, k))):
        return []
    if _same(answer, loss(mean)):
        return ["mask_loss forgets the scale: cosines lie in -1 ... 1, a softmax of them is almost flat"]
    if _same(answer, loss(lambda n, k: scale * mean(n, k), reduce=False)):
        return ["mask_loss sums over the patches; take the mean, or the loss grows with the resolution"]
    if _same(answer, loss(lambda n, k: scale * cosines[int(shares[:, n].argmax()), k])):
        return ["mask_loss uses the strongest segment only; then the shares get no gradient, and they are what should learn"]
    mixture = torch.tensor([-math.log(float(sum(shares[s, n] * (scale * cosines[s]).softmax(0)[r[n]] for s in range(3)))) for n in range(9)]).mean()
    if _same(answer, mixture):
        return ["mask_loss mixes probabilities; here a patch's logits are the mean of its segments' logits (the other form is mask_loss=probabilities of the project)"]
    return [f"mask_loss gave {float(answer):.4f}, expected {float(loss(lambda n, k: scale * mean(n, k))):.4f}: cross-entropy of scale * shares^T cosines against r"]


def check_name_segments(function) -> list[str]:
    tokens, pooled, classes, scale, top = _unit(4, 6), _unit(6, seed=1), _unit(7, 6, seed=2), 5.0, 3
    answer, problem = _try(function, tokens, pooled, classes, scale, top)
    if problem:
        return [problem]
    kept = sorted(range(7), key=lambda k: -float(classes[k] @ pooled))[:top]

    def scores(keep_of, both=True, temperature=scale):
        rows = []
        for s in range(4):
            e = [math.exp(temperature * float(tokens[s] @ classes[k])) for k in range(7)]
            keep = keep_of(s)
            inside = sum(e[k] for k in keep)
            rows.append([(e[k] / inside if k in keep else 0.0) * (e[k] / sum(e) if both else 1.0) for k in range(7)])
        return torch.tensor(rows)

    if _same(answer, scores(lambda s: kept)):
        return []
    if _same(answer, scores(lambda s: kept, both=False)):
        return ["name_segments leaves out the unfiltered softmax: a segment of something outside the list would look sure of the least bad class"]
    if _same(answer, scores(lambda s: range(7)).sqrt()):
        return ["name_segments ignores the filter; the pooled vector decides which classes the image may show"]
    own = lambda s: sorted(range(7), key=lambda k: -float(classes[k] @ tokens[s]))[:top]
    if _same(answer, scores(own)):
        return ["name_segments filters each segment by its own best classes; the pooled vector of the image decides, once for all segments"]
    if _same(answer, scores(lambda s: kept, temperature=1.0)):
        return ["name_segments forgets the scale before the softmax"]
    return ["name_segments: wrong values; softmax over all classes times softmax over the kept ones"]


def check(module) -> list[str]:
    return [*check_assign(module.assign), *check_group_means(module.group_means), *check_mask_loss(module.mask_loss), *check_name_segments(module.name_segments)]
