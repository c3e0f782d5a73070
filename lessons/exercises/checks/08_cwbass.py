"""What can go wrong in the exercises of lesson 08, by name. Expected values are worked out here with plain loops."""
import math

import torch

from lessons.check import attempt


def _values(x) -> list[float]:
    return [round(float(v), 4) for v in x.detach().flatten()]


def check_threshold(function) -> list[str]:
    mean = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0])
    answer, problem = attempt(function, mean, 1.0, 5.0, 0.0, 1.0, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    curve = lambda m, t0=1.0, beta=5.0, shift=0.5: t0 / (1 + math.exp(-beta * (m - shift)))
    got = _values(answer)
    if got != [round(curve(float(m)), 4) for m in mean]:
        if got == [round(1 - curve(float(m)), 4) for m in mean]:
            return ["threshold falls as the teacher grows sure: formula 1 rises with the mean (mind the sign of beta)"]
        if got == [round(curve(float(m), shift=0.0), 4) for m in mean]:
            return ["threshold left the 1/2 out: the sigmoid is centred where the mean confidence is one half"]
        return [f"threshold(T0 = 1, beta = 5) gave {got} at means 0, 0.3, 0.5, 0.7, 1"]
    answer, problem = attempt(function, mean, 0.6, 0.5, 0.3, 0.8, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    got = _values(answer)
    if got == [round(curve(float(m), 0.6, 0.5), 4) for m in mean]:
        return ["threshold is not clamped: with the code's constants it must not fall below 0.3"]
    if got != [round(min(max(curve(float(m), 0.6, 0.5), 0.3), 0.8), 4) for m in mean]:
        return [f"threshold(T0 = 0.6, beta = 0.5, clamped to 0.3 ... 0.8) gave {got} at means 0, 0.3, 0.5, 0.7, 1; is T0 a factor?"]
    return []


def check_targets(function) -> list[str]:
    p, label = torch.tensor([[0.9, 0.75, 0.6, 0.8]]), torch.tensor([[2, 1, 3, 0]])
    answer, problem = attempt(function, p, label.clone(), 0.75, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    got = answer.flatten().tolist()
    if got == [2, 255, 255, 0]:
        return []
    if got[1:3] == [0, 0]:
        return ["targets made class 0 of doubtful pixels (a label times a mask does that): they teach nothing, 255"]
    if got == [2, 1, 255, 0]:
        return ["targets kept a pixel exactly at T: the filter is strict, p > T"]
    if got == [255, 1, 3, 255] or got == [255, 255, 3, 255]:
        return ["targets kept the doubtful pixels and dropped the sure ones"]
    return [f"targets gave {got}, expected [2, 255, 255, 0]"]


def check_weighted(function) -> list[str]:
    ce, target = torch.tensor([[2.0, 1.0, 4.0, 8.0]]), torch.tensor([[1, 255, 0, 255]])
    p = torch.tensor([[0.5, 0.9, 0.8, 0.1]], requires_grad=True)
    answer, problem = attempt(function, ce, p, target, 2.0, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    w, n = [0.25, 0.64], 0.25 * 2 + 0.64 * 4
    got = round(float(answer.detach()), 4)
    if got == round(n / sum(w), 4):
        return ["weighted_loss divides by the sum of weights: then a batch of low confidence makes as large a step as a sure one"]
    if got == round(n / 4, 4):
        return ["weighted_loss averages over all pixels: the loss would shrink with every pixel that was filtered"]
    if got == round((0.5 * 2 + 0.8 * 4) / 2, 4):
        return ["weighted_loss forgot gamma"]
    if got == round((n + 0.81 * 1 + 0.01 * 8) / 4, 4):
        return ["weighted_loss counted pixels whose target is 255"]
    if got != round(n / 2, 4):
        return [f"weighted_loss gave {got}, expected {round(n / 2, 4)} = (0.5^2 * 2 + 0.8^2 * 4) / 2"]
    if answer.requires_grad:
        return ["weighted_loss lets gradient into p: a network that sets its own weights lowers the loss by doubting"]
    answer, problem = attempt(function, ce, p, torch.full_like(target, 255), 2.0, kind=torch.Tensor, called="a tensor")
    if problem or not float(answer.detach()) == 0:
        return [problem or f"weighted_loss gave {float(answer.detach())} for a batch in which everything was filtered, expected 0"]
    return []


def check_border(function) -> list[str]:
    labels = torch.zeros(5, 6, dtype=torch.int64)
    labels[:, 3:] = 7
    labels[4, 0] = 2
    wanted = torch.zeros(5, 6, dtype=torch.bool)
    for y in range(5):
        for x in range(6):
            wanted[y, x] = any(labels[y, x] != labels[v, u] for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)) if 0 <= v < 5 and 0 <= u < 6)
    answer, problem = attempt(function, labels.clone(), kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    if answer.shape != wanted.shape:
        return [f"border returned shape {list(answer.shape)}, expected {list(wanted.shape)}: one answer per pixel"]
    answer = answer.bool()
    if torch.equal(answer, wanted):
        return []
    if answer[0].all() and answer[:, 5].all():
        return ["border marks the frame of the image: nothing changes there, it is only where a filter runs out of pixels (pad by repeating, not with zeros)"]
    if bool((wanted & ~answer).any()) and not bool((answer & ~wanted).any()):
        if answer[:, 2].all() != answer[:, 3].all():
            return ["border marks one side of a change only; both pixels have a neighbour of another class"]
        return ["border misses changes in one direction: look up and down as well as left and right"]
    return [f"border differs from the plain loop at {int((answer != wanted).sum())} of 30 pixels"]


def check_remember(function) -> list[str]:
    visits, p = torch.tensor([[0, 3, 2, 1]]), torch.tensor([[0.5, 0.4, 0.9, 0.75]])
    kept = visits.clone()
    answer, problem = attempt(function, visits, p, 0.75, 0.5, 2.0, kind=(tuple, list), called="two tensors")
    if problem:
        return [problem]
    if len(answer) != 2 or not all(isinstance(a, torch.Tensor) for a in answer):
        return [f"remember returned {len(answer)} things ({', '.join(type(a).__name__ for a in answer)}), expected two tensors: the visits and the weights"]
    if not torch.equal(visits, kept):
        return ["remember changed its input"]
    now, weight = answer[0].flatten().tolist(), _values(answer[1])
    if now == [1, 4, 2, 2]:
        return ["remember lets a pixel above T keep its old count: it starts over"]
    if now == [1, 4, 0, 0]:
        return ["remember took a pixel exactly at T for a sure one: above means p > T"]
    if now == [0, 0, 3, 0] or now == [0, 0, 3, 2]:
        return ["remember counts the visits above T; the doubtful ones fade"]
    if now != [1, 4, 0, 2]:
        return [f"remember gave visits {now}, expected [1, 4, 0, 2]"]
    if weight == [round(v, 4) for v in ((0.5) ** 2, (0.125 * 0.4) ** 2, (0.25 * 0.9) ** 2, (0.5 * 0.75) ** 2)]:
        return ["remember weighs by the visits before this one; this visit counts already"]
    if weight == [round(v, 4) for v in ((0.5 * 0.5) ** 2, (0.5 * 0.4) ** 2, 0.9 ** 2, (0.5 * 0.75) ** 2)]:
        return ["remember multiplies by alpha once: k visits below T make alpha to the k"]
    if weight == [round(v, 4) for v in (0.5 * 0.25, 0.0625 * 0.16, 0.81, 0.25 * 0.5625)]:
        return ["remember raises only p to gamma; what decays is the confidence, so alpha^visits goes under the power too"]
    if weight != [round(v, 4) for v in ((0.5 * 0.5) ** 2, (0.0625 * 0.4) ** 2, 0.9 ** 2, (0.25 * 0.75) ** 2)]:
        return [f"remember gave weights {weight}, expected (alpha^visits p)^gamma"]
    return []


def check(module) -> list[str]:
    return [problem for part, name in ((check_threshold, "threshold"), (check_targets, "targets"), (check_weighted, "weighted_loss"), (check_border, "border"),
                                       (check_remember, "remember")) for problem in part(getattr(module, name))]
