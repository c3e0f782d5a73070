"""What can go wrong in the exercises of lesson 09, by name. Expected values are worked out here with plain loops and finite answers."""
import math

import torch
from torch import nn

from lessons.check import attempt


def check_ratio(function) -> list[str]:
    rest = torch.tensor([0.5, 3.0, 1.0, 0.0, 2.0], requires_grad=True)
    whole = torch.tensor([2.0, 1.5, 1.0, 0.0, 0.0], requires_grad=True)
    answer, problem = attempt(function, rest, whole, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    if answer.shape != rest.shape:
        return [f"ratio returned the shape {list(answer.shape)}, expected one value per image, {list(rest.shape)}: the mean comes later"]
    values = [round(v, 4) for v in answer.detach().tolist()]
    if not math.isfinite(sum(values)):
        return ["ratio divides zero by zero: add 1e-8 under the bar"]
    if values != [0.25, 1.0, 1.0, 0.0, 1.0]:
        if values[1] == 2.0 or values[4] > 1e6:
            return ["ratio exceeds 1 where more survives outside than was there: the clause puts a constant 1 there"]
        if values[1] == 0.0:
            return ["ratio is 0 where S_b > S: that is the conference's clause (and VGG's); the journal's constant is 1"]
        return [f"ratio gave {values}, expected [0.25, 1.0, 1.0, 0.0, 1.0]"]
    if not answer.requires_grad:
        return ["ratio has no gradient at all: the mask learns through S_b"]
    answer.sum().backward()
    if whole.grad is not None and float(whole.grad.abs().sum()) > 0:
        return ["ratio sends a gradient into S: the network could lower the loss by inflating the score instead of growing the mask"]
    if float(rest.grad[1].abs() + rest.grad[4].abs()) > 0:
        return ["ratio sends a gradient where S_b > S: a clamp or a constant that depends on S_b is not the clause"]
    if float((rest.grad[0] - 0.5).abs()) > 1e-5:
        return [f"ratio's gradient with respect to S_b is {float(rest.grad[0]):.3g} for S = 2, expected 0.5"]
    return []


def _second_half():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)).train()


def check_background(function) -> list[str]:
    f2 = _second_half()
    features = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mask = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    label = torch.tensor([0, 1, 2, 3, 1, 2])
    before = {k: v.clone() for k, v in f2.state_dict().items()}
    answer, problem = attempt(function, f2, features, mask, label, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]
    twin = _second_half()

    def pooled(erased):
        return twin(erased).mean((2, 3))[torch.arange(6), label]

    right = pooled(features.detach() * (1 - mask.detach())).detach()
    if answer.shape != right.shape or not torch.allclose(answer, right.relu(), atol=1e-5):
        if answer.shape == right.shape and torch.allclose(answer, pooled(features.detach() * mask.detach()).detach().relu(), atol=1e-5):
            return ["background looked at the foreground: erase the mask, multiply with 1 - mask"]
        if answer.shape == right.shape and torch.allclose(answer, right, atol=1e-5):
            return ["background forgot the ReLU: a negative score would turn the ratio's sign"]
        rectified = twin(features.detach() * (1 - mask.detach())).relu().mean((2, 3))[torch.arange(6), label]
        if answer.shape == right.shape and torch.allclose(answer, rectified, atol=1e-5):
            return ["background rectified before pooling: that is the conference's head; here the pooled score is rectified"]
        return [f"background gave {[round(float(v), 3) for v in answer.flatten()[:6]]}, expected {[round(float(v), 3) for v in right.relu()]}"]
    if any(not torch.equal(v, before[k]) for k, v in f2.state_dict().items()):
        return ["background moved f2's running statistics: batch norm must not see erased features, so use a copy of f2"]
    if not answer.requires_grad:
        return ["background has no gradient: the mask must receive one"]
    answer.sum().backward()
    if any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in f2.parameters()):
        return ["background trains f2: it would learn to ignore the class instead of the mask to cover it. Copy f2 first"]
    if features.grad is not None and float(features.grad.abs().sum()) > 0:
        return ["background sends a gradient into the features: detach them, or f1 learns to hide the evidence"]
    if mask.grad is None or float(mask.grad.abs().sum()) == 0:
        return ["background sends no gradient into the mask, which is all that it is for"]
    return []


def check_many_classes(function) -> list[str]:
    scores = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]])
    tags = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    answer, problem = attempt(function, scores, tags, kind=torch.Tensor, called="a tensor")
    if problem:
        return [problem]

    def loops(against_all=False, mean=False):
        total = 0.0
        for z, t in zip(scores.tolist(), tags.tolist()):
            chosen = [k for k in range(4) if t[k]]
            parts = [-math.log(math.exp(z[k]) / sum(math.exp(z[n]) for n in range(4) if n == k or against_all or not t[n])) for k in chosen]
            total += sum(parts) / (len(parts) if mean else 1)
        return total

    got, right = float(answer.detach().sum()) if answer.numel() == 1 else math.nan, loops() / 2
    if not math.isclose(got, right, rel_tol=1e-4):
        for wrong, words in ((loops(against_all=True) / 2, "lets the classes of an image compete with one another: only absent classes stand under the bar"),
                             (loops(mean=True) / 2, "averages over the classes of an image: Eq. (9) sums them"),
                             (loops(), "sums over images: average them"),
                             (float(torch.nn.functional.binary_cross_entropy_with_logits(scores, tags)), "is the sigmoid loss per class; here there is no sigmoid")):
            if math.isclose(got, wrong, rel_tol=1e-4):
                return [f"many_classes {words}"]
        return [f"many_classes gave {got:.4f}, expected {right:.4f}"]
    big, problem = attempt(function, 1000 * scores, tags, kind=torch.Tensor, called="a tensor")
    if problem or not bool(torch.isfinite(big).all()):
        return ["many_classes overflows for large scores: use logsumexp"]
    return []


HEAT = torch.tensor([[9.0, 1.0, 1.0, 1.0, 5.0, 1.0], [1.0, 8.0, 1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 8.0, 1.0, 5.0, 5.0], [1.0, 1.0, 1.0, 8.0, 1.0, 1.0],
                     [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])


def check_box(function) -> list[str]:
    def ask(heat, threshold):
        answer, problem = attempt(function, heat, threshold, kind=list, called="a list")
        return ([int(v) for v in answer] if answer is not None else None), problem

    touching, problem = ask(HEAT, 0.4)  # 5 is (5 - 1) / 8 = 0.5: diagonal and block touch at (3, 3)-(2, 4)
    if problem:
        return [problem]
    if touching == [0, 0, 6, 5]:
        return ["box returned the whole map: normalise to 0..1 before the threshold, and draw the box of one component only"]
    if touching in ([4, 0, 6, 3], [0, 0, 4, 4]):
        return ["box treats diagonal neighbours as apart: they are connected"]
    if touching == [0, 0, 5, 3]:
        return ["box's far edges are half open: right and bottom lie one beyond the last cell"]
    if touching != [0, 0, 6, 4]:
        return [f"box gave {touching} at threshold 0.4, expected [0, 0, 6, 4]"]
    apart = HEAT.clone()
    apart[3, 3] = 1.0
    answer, problem = ask(apart, 0.4)  # now five cells of the block against three of the diagonal
    if problem or answer != [4, 0, 6, 3]:
        return ["box must take the component with most cells, not the strongest, the widest, or all of them together" + (f" ({problem})" if problem else "")]
    answer, problem = ask(HEAT, 1.0)
    if problem or answer != [0, 0, 6, 5]:
        return ["box must be the whole map where nothing exceeds the threshold" + (f" ({problem})" if problem else "")]
    return []


def check(module) -> list[str]:
    return [problem for part, name in ((check_ratio, "ratio"), (check_background, "background"), (check_many_classes, "many_classes"), (check_box, "box"))
            for problem in part(getattr(module, name))]
