"""What can go wrong in the exercises of lesson 15, by name. Expected values are worked out here with plain loops."""
import math

import torch

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _try(function, *arguments, kind=torch.Tensor):
    return attempt(function, *arguments, kind=kind, called="two tensors" if kind is tuple else "a tensor")


def _same(a, b) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.detach().double(), b.detach().double(), atol=1e-5))


def check_labels(function) -> list[str]:
    mask, groups = torch.tensor([[0, 1, 2, 3, 4, 5, 255]]), [[5, 2], [4], [1, 3]]
    expected = {0: [0, 0, 2, 0, 0, 1, 255], 1: [0, 0, 0, 0, 3, 0, 255], 2: [0, 4, 0, 5, 0, 0, 255]}
    for t in (0, 1, 2):
        answer, problem = _try(function, mask.clone(), groups, t)
        if problem:
            return [problem]
        got, want = answer.flatten().tolist(), expected[t]
        if got == want:
            continue
        if len(got) == 7 and got[6] != 255:
            return ["labels_of_step lost 255: the ignored border stays ignored at every step"]
        if got == [v if v in groups[t] or v == 255 else 0 for v in mask.flatten().tolist()]:
            return ["labels_of_step kept the data set's ids: a class is named by its channel, counted in learning order"]
        if t and got == [{c: i for i, c in enumerate(groups[t], 1)}.get(v, v if v == 255 else 0) for v in mask.flatten().tolist()]:
            return ["labels_of_step starts at channel 1 in every step: new classes come after all earlier ones"]
        if t and any(got[c] for g in groups[:t] for c in g):
            return ["labels_of_step still names classes of earlier steps: whoever labels step t draws only its own classes"]
        if any(got[c] for g in groups[t + 1 :] for c in g):
            return ["labels_of_step names classes of later steps: they are background until their step comes"]
        return [f"labels_of_step gave {got} for step {t} of {groups}, expected {want}"]
    return []


def check_aggregate(function) -> list[str]:
    make = lambda: [_random(2, k, 2, 3, seed=k).requires_grad_() for k in (4, 2, 3)]
    for training in (False, True):
        z = make()
        answer, problem = _try(function, z, training)
        if problem:
            return [problem]
        base, r1, r2 = (h[:, 0] for h in z)
        background = base + r1.clamp(max=0) + (r2 if training else r2.clamp(max=0))
        expected = torch.cat([background[:, None], *(h[:, 1:] for h in z)], 1)
        if answer.shape != expected.shape:
            return [f"aggregate returned shape {list(answer.shape)}, expected {list(expected.shape)}: one background, then the classes of all heads"]
        if not _same(answer[:, 1:], expected[:, 1:]):
            return ["aggregate changed or reordered class channels: they are passed on as they are, in the order of the steps"]
        got = answer[:, 0]
        if not _same(got, background):
            if _same(got, base + r1 + r2):
                return ["aggregate does not cut: a correction above zero would put background back over old classes"]
            if _same(got, base.clamp(max=0) + r1.clamp(max=0) + r2.clamp(max=0)) or _same(got, base.clamp(max=0) + r1.clamp(max=0) + r2):
                return ["aggregate cut the base background logit: only corrections are cut"]
            if _same(got, base + r1.clamp(min=0) + r2.clamp(min=0)):
                return ["aggregate cut on the wrong side: what stays is the part below zero"]
            if training and _same(got, base + r1.clamp(max=0) + r2.clamp(max=0)):
                return ["aggregate cut the current correction in training: above zero it would have no gradient, and could never come down"]
            if not training and _same(got, base + r1.clamp(max=0) + r2):
                return ["aggregate left the last correction uncut at test time: all of them are cut once their step is over"]
            if _same(got.sigmoid(), base.sigmoid() + r1.clamp(max=0).sigmoid() + r2.sigmoid()):
                return ["aggregate adds sigmoids: logits are added"]
            return [f"aggregate's background is wrong with training={training}"]
        if training:
            if not answer.requires_grad:
                return ["aggregate stopped every gradient: the last correction has to learn"]
            answer[:, 0].sum().backward()
            if z[0].grad is not None and z[0].grad.any():
                return ["aggregate lets the gradient reach the old background logit: hold it still (detach)"]
            if z[1].grad is not None and z[1].grad.any():
                return ["aggregate lets the gradient reach an earlier correction: hold those still too (detach)"]
            if z[2].grad is None or not (z[2].grad[:, 0] == 1).all():
                return ["aggregate stopped the gradient of the current correction: it alone learns here"]
    return []


def check_pseudo_labels(function) -> list[str]:
    logit = lambda p: math.log(p / (1 - p))
    old = torch.full((1, 3, 1, 6), -6.0)
    for pixel, (channel, p) in enumerate([(1, 0.9), (2, 0.6), (0, 0.9), (1, 0.9), (1, 0.9), (2, 0.9)]):
        old[0, channel, 0, pixel] = logit(p)
    old[0, 0, 0, 5] = logit(0.95)
    target = torch.tensor([[[0, 0, 0, 3, 255, 0]]])
    answer, problem = _try(function, target, old, 0.7)
    if problem:
        return [problem]
    got = answer.flatten().tolist()
    if got == [1, 0, 0, 3, 255, 0]:
        return []
    if len(got) == 6:
        if got[3] != 3:
            return ["pseudo_labels overwrote a true label of a new class: ground truth always wins"]
        if got[4] != 255:
            return ["pseudo_labels labelled an ignored pixel: only label-0 pixels change"]
        if got[5] == 2:
            return ["pseudo_labels left background out of the vote: here background is surer than the class, so the pixel stays background"]
        if got[1] == 2:
            return ["pseudo_labels took an unsure vote: the sigmoid must reach tau (a softmax or a plain argmax is another rule)"]
        if got[1] == 255:
            return ["pseudo_labels ignores unsure pixels: that is PLOP's rule, here they stay background"]
    return [f"pseudo_labels gave {got}, expected [1, 0, 0, 3, 255, 0]"]


def check_adaptation(function) -> list[str]:
    r, target = _random(2, 3, 4) * 2, torch.tensor([0, 0, 5, 255, 6, 0]).repeat(4).view(2, 3, 4)
    answer, problem = _try(function, r, target, kind=tuple)
    if problem:
        return [problem]
    new, zero = (target > 0) & (target < 255), target == 0
    s = r.sigmoid()
    positive, negative = -(1 - s).log()[new].mean(), ((s - 1) ** 2 - s**2).clamp(min=0)[zero].mean()
    got = [torch.as_tensor(v) for v in answer]
    if len(got) != 2:
        return [f"adaptation returned {len(got)} values, expected BgA+ and BgA-"]
    if not _same(got[0], positive):
        if _same(got[0], -(1 - s).log()[target > 0].mean()):
            return ["adaptation counts ignored pixels (255) as new classes in BgA+"]
        if _same(got[0], -s.log()[new].mean()):
            return ["adaptation pulls the correction up on new classes: the target of BgA+ is 0, so that the background goes down there"]
        if _same(got[0], -(1 - s).log()[new].sum()) or _same(got[0], (-(1 - s).log() * new).mean()):
            return ["adaptation does not divide BgA+ by the number of new-class pixels"]
        return [f"adaptation's BgA+ is {float(got[0]):.4f}, expected {float(positive):.4f}"]
    if not _same(got[1], negative):
        if _same(got[1], (1 - s)[zero].mean()) or _same(got[1], -s.log()[zero].mean()):
            return ["adaptation's BgA- never rests: the hinge is nothing once r >= 0, since the cut then leaves no correction"]
        if _same(got[1], ((s - 1) ** 2 - s**2)[zero].mean()):
            return ["adaptation forgot the max(..., 0) of BgA-"]
        return [f"adaptation's BgA- is {float(got[1]):.4f}, expected {float(negative):.4f}"]
    for one, what in ((torch.full_like(target, 5), "label-0"), (torch.zeros_like(target), "new-class")):
        answer, problem = _try(function, r, one, kind=tuple)
        if problem:
            return [problem]
        if not all(math.isfinite(float(v)) for v in answer):
            return [f"adaptation divides 0 by 0 on a crop without any {what} pixel"]
    return []


def check(module) -> list[str]:
    return [problem for part, name in ((check_labels, "labels_of_step"), (check_aggregate, "aggregate"), (check_pseudo_labels, "pseudo_labels"),
                                       (check_adaptation, "adaptation")) for problem in part(getattr(module, name))]
