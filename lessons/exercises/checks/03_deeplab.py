"""What can go wrong in the exercises of lesson 03, by name. Expected values come from following single pixels, or from PyTorch."""
import torch
import torch.nn.functional as F

from lessons.check import attempt


def _seen(layers) -> tuple[int, int]:
    """Follow output 0 and output 1 back to the image, set by set."""
    def reach(outputs):
        for kernel, stride, rate in reversed(layers):
            outputs = {o * stride + k * rate for o in outputs for k in range(kernel)}
        return min(outputs), max(outputs)

    (low, high), (next_low, _) = reach({0}), reach({1})
    return high - low + 1, next_low - low


def check_field_of_view(function) -> list[str]:
    for layers in ([(3, 1, 1)], [(3, 1, 1), (3, 1, 1)], [(3, 2, 1), (3, 1, 1)], [(3, 1, 2), (2, 2, 1), (3, 1, 4)], [(7, 2, 1), (3, 2, 1), (3, 1, 2), (4, 1, 8)]):
        expected = _seen(layers)
        answer, problem = attempt(function, list(layers))
        if problem:
            return [problem]
        if not isinstance(answer, tuple) or len(answer) != 2:
            return [f"field_of_view must return a pair (pixels seen, pixels between outputs); got {answer!r}"]
        if tuple(answer) == expected:
            continue
        where = f"field_of_view({layers}) is {tuple(answer)}, expected {expected}"
        if answer[1] != expected[1]:
            return [where + ": the distance between outputs is the product of the strides, and nothing else"]
        if answer[0] == _seen([(k, 1, r) for k, _, r in layers])[0]:
            return [where + ": after a stride, one step on the map is several pixels of the image"]
        if answer[0] == _seen([(k, s, 1) for k, s, _ in layers])[0]:
            return [where + ": the taps of a layer are `rate` apart"]
        if answer[0] == expected[0] - 1:
            return [where + ": from the first pixel to the last there is one pixel more than steps"]
        seen, apart = 1, 1
        for kernel, stride, rate in layers:
            apart *= stride
            seen += (kernel - 1) * rate * apart
        if answer[0] == seen:
            return [where + ": a layer's own stride does not widen what it sees, only what later layers see"]
        return [where]
    return []


def _plan(strides, wanted, own=False, double=True, late=False):
    plan, reached, rate = [], 1, 1
    for stride in strides:
        keep = reached * stride <= wanted if not late else reached < wanted
        if not keep and own:
            rate = rate * stride if double else max(rate, stride)
        plan.append((stride if keep else 1, rate))
        if keep:
            reached *= stride
        elif not own:
            rate = rate * stride if double else max(rate, stride)
    return plan


def check_without_strides(function) -> list[str]:
    for strides, wanted in (([2, 1, 2, 1], 2), ([2, 2, 2, 1, 2, 1, 1], 4), ([1, 2, 1, 2, 2, 2, 1], 4), ([2, 2, 2], 8)):
        expected = _plan(strides, wanted)
        answer, problem = attempt(function, list(strides), wanted)
        if problem:
            return [problem]
        try:
            answer = [tuple(pair) for pair in answer]
        except TypeError:
            return [f"without_strides must return a list of pairs (stride, rate); got {answer!r}"]
        if answer == expected:
            continue
        where = f"without_strides({strides}, {wanted}) is {answer}, expected {expected}"
        if [s for s, *_ in answer] != [s for s, _ in expected]:
            return [where + ": strides are kept from the front while their product stays within `wanted`"]
        if answer == _plan(strides, wanted, own=True):
            return [where + ": the layer that loses its stride still touches neighbours; only later ones are dilated (DeepLab's own ResNet "
                    "dilates it too, which is another function)"]
        if answer == _plan(strides, wanted, double=False):
            return [where + ": rates multiply, two lost strides give rate 4"]
        if all(rate == 1 for _, rate in answer):
            return [where + ": without rates every later filter sees half as far as it was trained to"]
        return [where]
    return []


def check_enlarge(function) -> list[str]:
    for h, stride in ((5, 8), (4, 3), (1, 4)):
        scores = torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0])[:h]
        expected = F.interpolate(scores[None, None, None], (1, (h - 1) * stride + 1), mode="bilinear", align_corners=True)[0, 0, 0]
        plain, watched = F.interpolate, []
        F.interpolate = lambda *a, **k: watched.append(1) or plain(*a, **k)
        try:
            answer, problem = attempt(function, scores.clone(), stride)
        finally:
            F.interpolate = plain
        if problem:
            return [problem + f" (with {h} scores)"]
        if watched:
            return ["enlarge calls F.interpolate: the point is to see where its numbers come from"]
        if not isinstance(answer, torch.Tensor) or answer.shape != expected.shape:
            got = list(getattr(answer, "shape", []))
            hint = ": h scores leave h - 1 gaps" if got == [h * stride] else ""
            return [f"enlarge gave shape {got} for {h} scores at stride {stride}; it must be {list(expected.shape)}{hint}"]
        if torch.allclose(answer.float(), expected, atol=1e-5):
            continue
        if torch.equal(answer.float(), scores[torch.arange(len(expected)) // stride]):
            return ["enlarge repeats the score at the left: between two scores lies a straight line"]
        half = plain(scores[None, None, None], (1, len(expected)), mode="bilinear", align_corners=False)[0, 0, 0]
        if torch.allclose(answer.float(), half, atol=1e-5):
            return ["enlarge aligns the edges of pixels, not their centres: score i must stand at pixel i * stride exactly"]
        if torch.allclose(answer.float().flip(0), expected, atol=1e-5):
            return ["enlarge runs backwards: the weight of the right score grows with the distance from the left one"]
        return [f"enlarge differs from corner-aligned interpolation for {h} scores at stride {stride}"]
    return []


def check_learning_rate(function) -> list[str]:
    for step, steps, new_layer, bias in ((0, 100, False, False), (50, 100, False, False), (99, 100, True, False), (25, 100, False, True), (25, 100, True, True)):
        expected = 0.001 * (1 - step / steps) ** 0.9 * (10 if new_layer else 1) * (2 if bias else 1)
        answer, problem = attempt(function, step, steps, 0.001, new_layer, bias)
        if problem:
            return [problem]
        if isinstance(answer, float) and abs(answer - expected) < 1e-9:
            continue
        where = f"learning_rate(step={step}, steps={steps}, base=0.001, new_layer={new_layer}, bias={bias}) is {answer!r}, expected {expected:.6g}"
        known = {
            0.001 * (1 - step / steps): ": the power is 0.9, not 1",
            0.001 * (step / steps) ** 0.9: ": it falls from base to 0, not the other way round",
            0.001 * (1 - (step / steps) ** 0.9): ": the power belongs to (1 - step/steps) as a whole",
        }
        for value, words in known.items():
            if isinstance(answer, float) and not new_layer and not bias and abs(answer - value) < 1e-9:
                return [where + words]
        if new_layer and bias and isinstance(answer, float) and abs(answer - expected * 12 / 20) < 1e-9:
            return [where + ": a bias of a new layer learns 20 times as fast, the factors multiply"]
        if bias and not new_layer and isinstance(answer, float) and abs(answer - expected / 2) < 1e-9:
            return [where + ": biases learn twice as fast as weights"]
        if new_layer and isinstance(answer, float) and abs(answer - expected / 10) < 1e-9:
            return [where + ": new layers learn ten times as fast"]
        return [where]
    return []


def check(module) -> list[str]:
    return [s for name, function in (("field_of_view", check_field_of_view), ("without_strides", check_without_strides), ("enlarge", check_enlarge),
                                     ("learning_rate", check_learning_rate)) for s in function(getattr(module, name))]
