"""What can go wrong in the exercises of lesson 13, by name. Expected values are worked out here, without the project's own kernel."""
import torch

from lessons import traffic
from lessons.check import attempt


def _shaped(answer, shape, dtype, name):
    if not isinstance(answer, torch.Tensor):
        return f"{name} must return a tensor, not {type(answer).__name__}"
    if tuple(answer.shape) != shape:
        return f"{name} must return shape {list(shape)}; yours is {list(answer.shape)}"
    if answer.dtype != dtype:
        return f"{name} must return {dtype}; yours is {answer.dtype}"
    return None


def check_draw_index(f) -> list[str]:
    groups, images, positions = 3, 4, 200
    index, problem = attempt(f, groups, images, positions, torch.Generator().manual_seed(0))
    problem = problem or _shaped(index, (groups * images, positions), torch.int64, "draw_index")
    if problem:
        return [problem]
    for g in range(groups):
        rows = index[g * images:(g + 1) * images]
        if ((rows < g * images) | (rows >= (g + 1) * images)).any():
            return [f"draw_index: group {g} mixes images of another group; add the first image's number g * images to every group's permutation"]
        if not torch.equal(rows.sort(0).values, torch.arange(g * images, (g + 1) * images)[:, None].expand(-1, positions)):
            return ["draw_index: at some position an image is taken twice and another never, so unmixing cannot restore it; draw a permutation (argsort of random numbers)"]
        if (rows == rows[:, :1]).all():
            return ["draw_index: every position has the same permutation, so whole images are swapped, not patches; draw one per position"]
    if torch.equal(index[:images] % images, index[images:2 * images] % images):
        return ["draw_index: all groups share one draw; the random numbers need a group dimension"]
    again = f(groups, images, positions, torch.Generator().manual_seed(0))
    if not torch.equal(index, again):
        return ["draw_index: the same generator state gives another index; pass generator= to torch.rand"]
    return []


def check_mix_gradient(f) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    index = torch.rand(3, 5, generator=generator).argsort(0)  # three images: mixing twice is not the identity
    grad = torch.randn(3, 5, 2, generator=generator)
    before = grad.clone()
    answer, problem = attempt(f, grad, index)
    problem = problem or _shaped(answer, (3, 5, 2), torch.float32, "mix_gradient")
    if problem:
        return [problem]
    if not torch.equal(grad, before):
        return ["mix_gradient changed grad itself; write into a new tensor, the caller may still need the old one"]
    expected, mixed = torch.empty_like(grad), torch.empty_like(grad)
    for b in range(3):
        for p in range(5):
            expected[index[b, p], p] = grad[b, p]
            mixed[b, p] = grad[index[b, p], p]
    if torch.equal(answer, expected):
        return []
    if torch.equal(answer, mixed):
        return ["mix_gradient mixes the gradient once more; the transpose of a permutation is its inverse, so it must unmix"]
    if torch.equal(answer, grad):
        return ["mix_gradient returns grad unchanged; every patch's gradient must go back to the image it came from"]
    return ["mix_gradient: wrong values; dL/dx[index[b, p], p] = dL/dy[b, p] for every b and p"]


def _addresses(index, shape, strides, patch, image=None, columns=None):
    B, C, H, W = shape
    out = torch.empty(shape, dtype=torch.int64)
    for b in range(B):
        for h in range(H):
            for w in range(W):
                p = h // patch * (columns or W // patch) + w // patch
                source = b if image == "own" else int(index[b, p % index.shape[1]])
                out[b, :, h, w] = source * strides[0] + torch.arange(C) * strides[1] + h * strides[2] + w * strides[3]
    return out


def check_source_address(f) -> list[str]:
    shape, patch = (3, 2, 4, 6), 2
    index = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)).argsort(0)
    contiguous, sliced_last = (48, 24, 6, 1), (3 * 8 * 5, 1, 8 * 3, 3)  # the second: a window into a larger channels-last tensor
    for strides, layout in ((contiguous, "a contiguous x"), (sliced_last, "a window into a channels-last x")):
        answer, problem = attempt(f, index, shape, strides, patch)
        problem = problem or _shaped(answer, shape, torch.int64, "source_address")
        if problem:
            return [problem]
        if torch.equal(answer, _addresses(index, shape, strides, patch)):
            continue
        if torch.equal(answer, _addresses(index, shape, contiguous, patch)):
            return [f"source_address assumes contiguous memory: wrong for {layout}; multiply every coordinate by its own stride"]
        if torch.equal(answer, _addresses(index, shape, strides, patch, image="own")):
            return ["source_address never looks at the index: it gives every element its own address; replace b by index[b, p]"]
        if torch.equal(answer, _addresses(index, shape, strides, patch, columns=shape[2] // patch)):
            return ["source_address counts positions with the wrong row length: a row of patches holds W / patch of them, not H / patch"]
        return [f"source_address: wrong for {layout}; address = index[b, p] * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]"]
    return []


def check_bytes_moved(f) -> list[str]:
    for shape, item in (((256, 3, 224, 224), 4), ((2, 3, 32, 32), 2)):
        elements = shape[0] * shape[1] * shape[2] * shape[3]
        for how, right in (("kernel", 2 * item), ("gather", 2 * item + 8), ("join", 6 * item)):
            answer, problem = attempt(f, shape, item, how)
            if problem:
                return [problem]
            if answer == elements * right:
                continue
            if answer == elements * right // 2 and how != "gather":
                return [f'bytes_moved("{how}") counts only one direction; every byte that is read is also written']
            if how == "gather" and answer == elements * 2 * item:
                return ['bytes_moved("gather") forgets the index: 8 bytes of int64 are read for every element']
            if how == "gather" and answer == elements * 3 * item:
                return ['bytes_moved("gather") takes the index for as small as x; int64 is 8 bytes whatever x is']
            if answer in (2, 6, elements * 2, elements * 6):
                return [f'bytes_moved("{how}") counts elements or passes; multiply by the number of elements and by item_bytes']
            return [f'bytes_moved("{how}") for shape {shape} and {item} bytes: expected {elements * right}, got {answer}']
    return []


def _mix_tokens(kernel):
    """(traffic, the least bytes, problems)."""
    B, P, D, name = 4, 5, 12, "mix_tokens"
    g = torch.Generator().manual_seed(3)
    x, y, index = torch.randn(B, P, D, generator=g), torch.full((B, P, D), float("nan")), torch.rand(B, P, generator=g).argsort(0)
    found, problem = traffic.run(kernel, name, (B, P), {"x": x, "index": index, "y": y}, P, D, BLOCK=16)
    if problem:
        return None, None, [problem]
    place = torch.arange(P)
    back = torch.empty_like(x)
    back[index, place] = x
    if torch.equal(y, x[index, place]):
        least = {"x": 4 * B * P * D, "index": 8 * B * P, "y": 4 * B * P * D}
        return found, least, traffic.verdict(name, found, least)
    if y.isnan().any():
        return None, None, [f"{name} leaves {int(y.isnan().sum())} of {y.numel()} numbers unwritten or NaN: every program moves D numbers of its token"]
    if torch.equal(y, back):
        return None, None, [f"{name} unmixes: it writes to the image in the index instead of reading from it"]
    if torch.equal(y, x):
        return None, None, [f"{name} copies: every token comes from the image that the index names"]
    return None, None, [f"{name} has wrong values: the token of image i at position p starts at (i * P + p) * D"]


def check_mix_tokens(kernel) -> list[str]:
    return _mix_tokens(kernel)[2]


def scores(module) -> list[str]:
    """What to say of a right answer."""
    found, least, _ = _mix_tokens(module.mix_tokens)
    return [f"mix_tokens moves {traffic.ratio(found, least):.2f} times the least bytes"] if found else []


def check(module) -> list[str]:
    """Sentences that name the mistakes; empty when every exercise is right."""
    return (check_draw_index(module.draw_index) + check_mix_gradient(module.mix_gradient)
            + check_source_address(module.source_address) + check_bytes_moved(module.bytes_moved)
            + check_mix_tokens(module.mix_tokens))
