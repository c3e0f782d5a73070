"""Lesson 13's checks accept the solution, and tell each known mistake by its name."""
import torch

from kernels.backend import jit, tl
from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "13"))


def first_of_group(groups, images):
    return images * torch.arange(groups).view(-1, 1, 1)


def index_with(order, groups, images, positions):
    return (order + first_of_group(groups, images)).view(groups * images, positions)


def address(index, shape, strides, patch, columns=None):
    B, C, H, W = shape
    c, h, w = torch.arange(C).view(-1, 1, 1), torch.arange(H).view(-1, 1), torch.arange(W)
    position = (h // patch * (columns or W // patch) + w // patch) % index.shape[1]
    return index[:, position][:, None] * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]


def numel(shape):
    return torch.Size(shape).numel()


@jit
def mix_any(p_x, p_index, p_y, P, D, BLOCK: tl.constexpr, SCALAR: tl.constexpr, BACK: tl.constexpr, OWN: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr):
    b, p, d = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK)
    source = tl.load(p_index + b * P + p) if SCALAR else tl.load(p_index + b * P + p + 0 * d, mask=d < D, other=0)
    if OWN:
        source = source * 0 + b
    there, here = (source * P + p) * WIDTH, (b * P + p) * D
    if BACK:
        tl.store(p_y + there + d, tl.load(p_x + here + d, mask=d < D, other=0.0), mask=d < D)
    else:
        real = d < D if MASK else d < BLOCK
        tl.store(p_y + here + d, tl.load(p_x + there + d, mask=real, other=0.0), mask=real)


class mixer:
    """mix_any with some of its mistakes switched on."""

    def __init__(self, **mistakes):
        self.mistakes = {"SCALAR": 1, "BACK": 0, "OWN": 0, "WIDTH": 12, "MASK": 1} | mistakes

    def __getitem__(self, grid):
        return lambda *arguments, **options: mix_any[grid](*arguments, **options, **self.mistakes)


WRONG = [
    ("draw_index", lambda g, k, p, r: None, "returned None"),
    ("draw_index", lambda g, k, p, r: torch.randint(0, k, (g * k, p), generator=r) + first_of_group(g, k).expand(-1, k, -1).reshape(-1, 1), "taken twice"),
    ("draw_index", lambda g, k, p, r: index_with(torch.rand(g, k, 1, generator=r).argsort(1).expand(-1, -1, p), g, k, p), "whole images are swapped"),
    ("draw_index", lambda g, k, p, r: torch.rand(g, k, p, generator=r).argsort(1).view(g * k, p), "images of another group"),
    ("draw_index", lambda g, k, p, r: torch.rand(g * k, p, generator=r).argsort(0), "images of another group"),
    ("draw_index", lambda g, k, p, r: index_with(torch.rand(1, k, p, generator=r).argsort(1).expand(g, -1, -1), g, k, p), "share one draw"),
    ("draw_index", lambda g, k, p, r: index_with(torch.rand(g, k, p).argsort(1), g, k, p), "pass generator="),
    ("draw_index", lambda g, k, p, r: index_with(torch.rand(g, k, p, generator=r).argsort(1), g, k, p).int(), "must return torch.int64"),
    ("mix_gradient", lambda grad, i: grad[i, torch.arange(grad.shape[1])], "mixes the gradient once more"),
    ("mix_gradient", lambda grad, i: grad.clone(), "unchanged"),
    ("mix_gradient", lambda grad, i: grad.copy_(SOLUTION.mix_gradient(grad, i)), "changed grad itself"),
    ("mix_gradient", lambda grad, i: grad[i.argsort(1), torch.arange(grad.shape[1])] if i.shape[0] > i.shape[1] else grad.flip(0), "wrong values"),
    ("mix_gradient", lambda grad, i: grad[i], "must return shape"),
    ("mix_gradient", lambda grad, i: {}["oh"], "mix_gradient stopped with KeyError"),
    ("source_address", lambda i, shape, strides, patch: address(i, shape, torch.empty(shape).stride(), patch), "assumes contiguous memory"),
    ("source_address", lambda i, shape, strides, patch: address(torch.arange(shape[0])[:, None].expand_as(i), shape, strides, patch), "never looks at the index"),
    ("source_address", lambda i, shape, strides, patch: address(i, shape, strides, patch, columns=shape[2] // patch), "wrong row length"),
    ("source_address", lambda i, shape, strides, patch: address(i.argsort(0), shape, strides, patch), "address = index"),
    ("source_address", lambda i, shape, strides, patch: address(i, shape, strides, patch).float(), "must return torch.int64"),
    ("bytes_moved", lambda shape, item, how: numel(shape) * {"kernel": item, "gather": 2 * item + 8, "join": 6 * item}[how], "only one direction"),
    ("bytes_moved", lambda shape, item, how: numel(shape) * {"kernel": 2, "gather": 2, "join": 6}[how] * item, "forgets the index"),
    ("bytes_moved", lambda shape, item, how: numel(shape) * {"kernel": 2, "gather": 3, "join": 6}[how] * item, "as small as x"),
    ("bytes_moved", lambda shape, item, how: numel(shape) * {"kernel": 2, "gather": 4, "join": 6}[how], "elements or passes"),
    ("bytes_moved", lambda shape, item, how: numel(shape) * {"kernel": 2 * item, "gather": 2 * item + 8, "join": 4 * item}[how], "expected"),
    ("mix_tokens", mixer(SCALAR=0), "it touches index 12 times"),
    ("mix_tokens", mixer(BACK=1), "unmixes"),
    ("mix_tokens", mixer(OWN=1), "copies"),
    ("mix_tokens", mixer(WIDTH=11), "starts at (i * P + p) * D"),
    ("mix_tokens", mixer(MASK=0), "lie in none of its tensors"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("13", WRONG, 5)


def test_the_solutions_agree_with_the_kernel_file():
    """Reading x at the addresses of exercise 3 is patch mixing; the gradient of exercise 2 is autograd's."""
    from kernels.patch_mix import patch_mix

    index = SOLUTION.draw_index(2, 2, 6, torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    memory = x.permute(0, 2, 3, 1).flatten()
    assert torch.equal(memory[SOLUTION.source_address(index, tuple(x.shape), x.stride(), 4)], patch_mix(x, index, 4))
    tokens = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    grad = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad(patch_mix(tokens, index), tokens, grad)
    assert torch.equal(SOLUTION.mix_gradient(grad, index), expected)
