"""What can go wrong in the exercises of lesson 04, by name. Expected values are worked out here, without the project's own kernel."""
import torch

from lessons import traffic
from lessons.check import attempt


def _shaped(answer, shape, name):
    if not isinstance(answer, torch.Tensor):
        return f"{name} must return a tensor, not {type(answer).__name__}"
    if tuple(answer.shape) != shape:
        return f"{name} must return shape {list(shape)}; yours is {list(answer.shape)}"
    return None


def _near(a, b):
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max().clamp_min(1.0))


def _diagnose(name, answer, expected, mistakes, otherwise):
    if _near(answer, expected):
        return []
    return [f"{name}: {next((words for wrong, words in mistakes if _near(answer, wrong)), otherwise)}"]


def _data():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=g) * 1.5
    q = torch.softmax(torch.randn(40, 4, generator=g) * 2, 1)
    scores = -0.5 * (features[:, None] - features[None]).square().sum(-1)
    return features, q, scores


def check_message_as_attention(f) -> list[str]:
    features, q, scores = _data()
    answer, problem = attempt(f, features, q)
    problem = problem or _shaped(answer, (40, 4), "message_as_attention")
    if problem:
        return [problem]
    dot, bias = features @ features.t(), -0.5 * features.square().sum(1)
    return _diagnose("message_as_attention", answer, torch.softmax(scores, 1) @ q, [
        (torch.softmax(dot, 1) @ q, "the term -|f_j|^2 / 2 is missing, so points far from the origin shout loudest; add it as a bias of the keys"),
        (torch.softmax(dot / 3**0.5 + bias, 1) @ q, "the scores were divided by sqrt(d), attention's default; the Gaussian wants scale=1"),
        (torch.softmax(dot / 3**0.5, 1) @ q, "scale=1 and the bias -|f_j|^2 / 2 are both missing"),
        (torch.softmax(dot + 2 * bias, 1) @ q, "the bias is -|f_j|^2 / 2, with the half"),
        (torch.softmax(dot - bias, 1) @ q, "the bias has the wrong sign: far keys must lose, -|f_j|^2 / 2"),
        (torch.softmax(dot + bias[:, None], 1) @ q, "the bias stands on the rows, where softmax cancels it; it belongs to the keys, the columns"),
        (torch.exp(scores) @ q, "these are the raw sums; \"after\" divides row i by sum_j k_ij"),
    ], "wrong values; -|f_i - f_j|^2 / 2 = f_i . f_j - |f_j|^2 / 2 - |f_i|^2 / 2, and softmax over j does not see the last term")


def check_potts_update(f) -> list[str]:
    g = torch.Generator().manual_seed(1)
    unary, messages, weights = torch.rand(30, 4, generator=g) * 3, [torch.rand(30, 4, generator=g) for _ in range(2)], [3.0, 0.7]
    kept = unary.clone()
    answer, problem = attempt(f, unary, messages, weights)
    problem = problem or _shaped(answer, (30, 4), "potts_update")
    if problem:
        return [problem]
    if not torch.equal(unary, kept):
        return ["potts_update: it changed the unary, which every later update needs again"]
    total = weights[0] * messages[0] + weights[1] * messages[1]
    return _diagnose("potts_update", answer, torch.softmax(-unary + total, 1), [
        (torch.softmax(-unary - total, 1), "the messages repel; under Potts the energy of label l falls by w * message(l)"),
        (torch.softmax(unary + total, 1), "unary is an energy, -log p: it enters with a minus"),
        (torch.softmax(-unary + total, 0), "the softmax runs over pixels; probabilities of one pixel's labels sum to 1"),
        (torch.softmax(total, 1), "the unary is missing; without it the network's opinion is gone after one update"),
        (torch.softmax(-unary + messages[0] + messages[1], 1), "the weights are missing"),
        (torch.softmax(-unary + weights[0] * messages[0], 1), "only the first kernel's message is used"),
        (torch.exp(-unary + total), "the result is not normalised"),
    ], "wrong values; softmax over labels of -unary + sum_m w_m message_m")


def check_message_gradient(f) -> list[str]:
    features, _, scores = _data()
    grad = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
    answer, problem = attempt(f, features, grad)
    problem = problem or _shaped(answer, (40, 4), "message_gradient")
    if problem:
        return [problem]
    k = torch.exp(scores)
    n = k.sum(1, keepdim=True)
    return _diagnose("message_gradient", answer, k @ (grad / n), [
        (k @ grad / n, "this is the forward operator again; K is symmetric, but D^-1 K is not: divide the gradient before the sum"),
        (k @ grad, "the normalisation is missing"),
        ((k @ (grad / n)) / n, "normalised twice, once on each side"),
        (k @ (grad / n.sqrt()) / n.sqrt(), "this is the gradient of the symmetric normalisation"),
        (k @ (grad * n), "multiplied by n where it must be divided"),
    ], "wrong values; transpose out = D^-1 K q")


def check_box_distance(f) -> list[str]:
    g = torch.Generator().manual_seed(3)
    points_a, points_b = torch.randn(6, 1, 3, generator=g) * 3 + torch.rand(6, 8, 3, generator=g) * 2, torch.randn(5, 1, 3, generator=g) * 3 + torch.rand(5, 8, 3, generator=g) * 2
    points_b[0] = points_a[0] * 0.5 + points_a[0].mean(0) * 0.5  # one box inside another
    la, ha, lb, hb = points_a.amin(1), points_a.amax(1), points_b.amin(1), points_b.amax(1)
    answer, problem = attempt(f, la, ha, lb, hb)
    problem = problem or _shaped(answer, (6, 5), "box_distance")
    if problem:
        return [problem]
    gap = torch.maximum(la[:, None] - hb, lb - ha[:, None])
    clamped = gap.clamp_min(0)
    centre = ((la + ha)[:, None] - (lb + hb)) / 2
    return _diagnose("box_distance", answer, clamped.square().sum(-1), [
        (gap.square().sum(-1), "negative gaps (overlap along an axis) are squared too; clamp them at 0"),
        (clamped.square().sum(-1).sqrt(), "this is the distance; the kernel value needs its square"),
        (clamped.sum(-1), "gaps are added, not squared"),
        (clamped.square().amax(-1), "only the widest axis counts here; add the squares of all axes"),
        (centre.square().sum(-1), "the distance of the centres is larger than that of the nearest points, so tiles that matter would be skipped"),
        ((la[:, None] - hb).clamp_min(0).square().sum(-1), "only gaps with box a above box b are seen; b may lie above a"),
    ], "wrong values; per axis the gap is max(low_a - high_b, low_b - high_a, 0)")


def _potts_kernel(kernel):
    """(traffic, the least bytes, problems)."""
    g = torch.Generator().manual_seed(4)
    unary, a, b = torch.rand(6, 5, generator=g) * 3, torch.rand(6, 5, generator=g), torch.rand(6, 5, generator=g)
    unary[0] += 200  # exp(-200) is 0 in float32: only a softmax that subtracts the maximum survives
    q, name = torch.full((6, 5), float("nan")), "potts_kernel"
    found, problem = traffic.run(kernel, name, (6,), {"unary": unary, "a": a, "b": b, "q": q}, 3.0, 0.7, 5, BLOCK=8)
    if problem:
        return None, None, [problem]
    score = -unary + 3.0 * a + 0.7 * b
    padded = torch.cat([score, torch.zeros(6, 3)], 1)  # the block's dead lanes taken for labels
    if q[0].isnan().any() and not q[1:].isnan().any():
        return None, None, [f"{name}: exp of a large energy is 0 and 0 / 0 is NaN: subtract the row's maximum first"]
    if q.isnan().any():
        return None, None, [f"{name} gives NaN: give every masked load an other= that cannot win, and write all K labels"]
    if _near(torch.nan_to_num(q), torch.softmax(score, 1)):
        least = dict.fromkeys(("unary", "a", "b", "q"), 4 * 30)
        return found, least, traffic.verdict(name, found, least)
    return None, None, _diagnose(name, q[1:], torch.softmax(score, 1)[1:], [
        (torch.softmax(padded, 1)[1:, :5], "the lanes from K to BLOCK count as labels with score 0; load the unary there with other=inf"),
        (torch.softmax(-unary - 3.0 * a - 0.7 * b, 1)[1:], "the messages repel; they enter with a plus"),
        (torch.exp(score - score.amax(1, keepdim=True))[1:], "the row does not sum to 1"),
    ], "wrong values; softmax over the row's K labels of -unary + w_a a + w_b b")


def check_potts_kernel(kernel) -> list[str]:
    return _potts_kernel(kernel)[2]


def scores(module) -> list[str]:
    """What to say of a right answer."""
    found, least, _ = _potts_kernel(module.potts_kernel)
    return [f"potts_kernel moves {traffic.ratio(found, least):.2f} times the least bytes"] if found else []


def check(module) -> list[str]:
    """Sentences that name the mistakes; empty when every exercise is right."""
    return (check_message_as_attention(module.message_as_attention) + check_potts_update(module.potts_update)
            + check_message_gradient(module.message_gradient) + check_box_distance(module.box_distance)
            + check_potts_kernel(module.potts_kernel))
