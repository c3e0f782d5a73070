"""What can go wrong in the exercises of lesson 05, by name. Expected values come from loops and from autograd, not from the project's kernels."""
import torch

from lessons import traffic
from lessons.check import attempt


def _same(a, b) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and bool(torch.isfinite(a).all()) and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7)


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_rows(function) -> list[str]:
    answer, problem = attempt(function, 4)
    if problem:
        return [problem]
    right = torch.tensor([[j - i + 3 for j in range(4)] for i in range(4)])
    if not isinstance(answer, torch.Tensor) or answer.shape != (4, 4):
        return ["table_rows: the result must be a tensor [length, length]"]
    if torch.equal(answer, right):
        return []
    if torch.equal(answer, right.T):
        return ["table_rows: the offset is i - j; keys are on the second axis, and a key to the right has a positive offset j - i"]
    if torch.equal(answer, right - 3):
        return ["table_rows: offsets are not row numbers yet: a negative index counts from the end of the table, without any complaint"]
    if torch.equal(answer, right + 1):
        return ["table_rows: one row too far; the offset -(length - 1) is row 0"]
    if torch.equal(answer, (right - 3).abs()):
        return ["table_rows: distances, not offsets: left and right of the query share a row, and half of the table is never used"]
    return ["table_rows: for length 4 the first row must be 3, 4, 5, 6"]


def check_blocks(function) -> list[str]:
    q, k, v = _random(3, 4), _random(10, 4, seed=1), _random(10, 5, seed=2)
    for scale, what in ((1.0, ""), (300.0, " with logits in the hundreds")):
        asked: list[tuple[int, int]] = []

        def read(start, stop):
            asked.append((int(start), int(stop)))
            return k[start:stop] * scale, v[start:stop]

        answer, problem = attempt(function, q, read, 10, 4)
        if problem:
            return [problem]
        if any(stop - start > 4 for start, stop in asked):
            return ["attend_in_blocks: more than `block` positions were asked for at once; a long line would not fit"]
        seen = sorted(n for start, stop in asked for n in range(start, min(stop, 10)))
        if len(seen) > 10:
            return [f"attend_in_blocks: {len(seen)} positions were read for a line of 10; the online softmax needs each once"]
        if seen != list(range(10)) or any(stop > 10 for _, stop in asked):
            return ["attend_in_blocks: the last, shorter block is wrong: read exactly the positions 0 to length - 1"]
        right = torch.softmax(q @ k.T * scale, 1) @ v
        if not _same(answer, right):
            if isinstance(answer, torch.Tensor) and not torch.isfinite(answer).all():
                return [f"attend_in_blocks: not finite{what}: subtract the running maximum before exp"]
            parts = [torch.softmax(q @ k[s : s + 4].T * scale, 1) @ v[s : s + 4] for s in (0, 4, 8)]
            if _same(answer, sum(parts) / 3):
                return ["attend_in_blocks: each block was normalised by itself; keep one total for the line"]
            return [f"attend_in_blocks: wrong values{what}: when the maximum rises, shrink both the total and the weighted sum by exp(old - new)"]
    return []


def check_backward(function) -> list[str]:
    q, k, v, grad = (_random(5, c, seed=n).requires_grad_() for n, c in enumerate((3, 3, 4, 4)))
    right = torch.autograd.grad(torch.softmax(0.3 * q @ k.T, 1) @ v, (q, k, v), grad.detach())
    q, k, v, grad = (t.detach() for t in (q, k, v, grad))
    answer, problem = attempt(function, q, k, v, grad, 0.3)
    if problem:
        return [problem]
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        return ["line_backward: return the three tensors dq, dk, dv"]
    p = torch.softmax(0.3 * q @ k.T, 1)
    found = []
    if not _same(answer[2], right[2]):
        found.append("line_backward: dv mixes up queries and keys; dv_j sums over queries: p transposed" if _same(answer[2], p @ grad)
                     else "line_backward: dv_j = sum_i p_ij g_i does not hold")
    if not _same(answer[0], right[0]):
        if _same(answer[0] * 0.3, right[0]):
            found.append("line_backward: dq lacks the scale of the logits")
        elif _same(answer[0], 0.3 * (p * (grad @ v.T)) @ k):
            found.append("line_backward: delta is missing: probabilities sum to one, so pushing one up pushes the others down")
        else:
            found.append("line_backward: dq_i = sum_j ds_ij k_j does not hold")
    if _same(answer[0], right[0]) and not _same(answer[1], right[1]):  # with a wrong ds both are wrong: one sentence is enough
        found.append("line_backward: dk_j = sum_i ds_ij q_i does not hold")
    return found


def check_table(function) -> list[str]:
    ds, q = _random(4, 4), _random(4, 3, seed=1)
    right = torch.zeros(7, 3, dtype=torch.float64)
    by_key = right.clone()
    for i in range(4):
        for j in range(4):
            right[j - i + 3] += ds[i, j] * q[i]
            by_key[j - i + 3] += ds[i, j] * q[j]
    answer, problem = attempt(function, ds, q)
    if problem:
        return [problem]
    if _same(answer, right):
        return []
    if _same(answer, right.flip(0)):
        return ["table_gradient: the rows are in reverse order: the offset is key minus query"]
    if _same(answer, by_key):
        return ["table_gradient: ds[i, j] meets q[i], the query, not the one at the key's place"]
    if isinstance(answer, torch.Tensor) and answer.shape == right.shape and _same(answer[[0, 6]], right[[0, 6]]):
        return ["table_gradient: only the corners are right, where one pair has the offset: pairs with equal offsets must be added, not overwritten"]
    return ["table_gradient: wrong values; row 0 must be ds[3, 0] q[3], the only pair with offset -3"]


def check_bytes(function) -> list[str]:
    answer, problem = attempt(function, 8, 8, 64, 64, 64, 2)
    if problem:
        return [problem]
    once = 8 * 8 * 64 * 64 * 64 * 2
    try:
        copies, strides = (int(n) for n in answer)
    except (TypeError, ValueError):
        return ["bytes_moved: return two numbers"]
    found = []
    if strides != 4 * once:
        found.append("bytes_moved: logits stay on the chip, only q, k, v and o count" if strides > 4 * once else "bytes_moved: with strides, q, k and v are read and o is written: four maps")
    if copies != 12 * once:
        found.append("bytes_moved: a copy both reads and writes" if copies == 8 * once else
                     "bytes_moved: the output is copied back as well" if copies == 10 * once else
                     "bytes_moved: with copies it is four copies (read and write each) and the attention itself")
    return found


def _attend_line(kernel):
    """(traffic, the least bytes, problems)."""
    H = W = D = 16
    q, k, v = (_random(H, W, D, seed=n).float() for n in (7, 8, 9))
    name, found, least = "attend_line", None, None
    for s_line, s_position, axis in ((W * D, D, "rows"), (D, W * D, "columns")):
        o = torch.full((H, W, D), float("nan"))
        found, problem = traffic.run(kernel, name, (16,), {"q": q, "k": k, "v": v, "o": o}, 0.25, s_line, s_position, L=16, D=16)
        if problem:
            return None, None, [problem]

        def along(t, axis=axis):
            return t if axis == "rows" else t.transpose(0, 1)

        def attend(scale=0.25, dim=-1):
            return torch.softmax(scale * along(q) @ along(k).mT, dim) @ along(v)

        if not torch.allclose(along(o), attend(), rtol=1e-4, atol=1e-5):
            mistakes = ((attend(1.0), "the scale is missing"), (attend(dim=-2), "the softmax runs over the queries; each query's weights sum to 1"))
            near = [words for wrong, words in mistakes if torch.allclose(along(o), wrong, rtol=1e-4, atol=1e-5)]
            if axis == "columns":
                near = ["right along rows, wrong along columns: positions are s_position apart, lines s_line"]
            return None, None, [f"{name}: {near[0] if near else 'wrong values; o = softmax(scale q k^T) v along each line'}"]
        least = dict.fromkeys(("q", "k", "v", "o"), 4 * H * W * D)
    return found, least, traffic.verdict(name, found, least)


def check_attend_line(kernel) -> list[str]:
    return _attend_line(kernel)[2]


def scores(module) -> list[str]:
    """What to say of a right answer."""
    found, least, _ = _attend_line(module.attend_line)
    return [f"attend_line moves {traffic.ratio(found, least):.2f} times the least bytes"] if found else []


def check(module) -> list[str]:
    parts = ((check_rows, "table_rows"), (check_blocks, "attend_in_blocks"), (check_backward, "line_backward"), (check_table, "table_gradient"),
             (check_bytes, "bytes_moved"), (check_attend_line, "attend_line"))
    return [problem for part, name in parts for problem in part(getattr(module, name))]
