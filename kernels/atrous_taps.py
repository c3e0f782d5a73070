"""What the atrous kernels share: where taps fall, which of them are live, how work is cut into launches.

Along one axis a convolution of kernel size K, stride s, rate r and padding p lets output i read input i*s - p + u*r through tap u. Everything
here is that line, solved for something else: for the live taps of a run of outputs (`live`), for the outputs a tap is live for (`reach`),
for the outputs that read a given input (`adjoint_taps`, the heart of the backward pass).
"""
from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch

from kernels.backend import INTERPRETING, device_of, jit, launch_options, tl


class Geometry(NamedTuple):
    """Where taps fall. `pads` and `rates` hold one (vertical, horizontal) pair per branch; `pads` is the padding before the first pixel."""
    stride: tuple[int, int]
    pads: tuple[tuple[int, int], ...]
    rates: tuple[tuple[int, int], ...]
    out: tuple[int, int]  # height and width of the result


def forward_taps(g: Geometry) -> tuple[int, ...]:
    """TAPS of the forward pass: tap j of a branch reads row stride*i - pad + j*rate."""
    return tuple(v for (p_h, p_w), (r_h, r_w) in zip(g.pads, g.rates) for v in (-p_h, r_h, -p_w, r_w))


def adjoint_taps(phase: int, kernel: int, stride: int, pad: int, rate: int) -> tuple[int, int, int, int, int]:
    """Along one axis, which taps carry a gradient to input pixels q = stride*t + phase, and from which output pixel i.

    Tap u does where (q + pad - u*rate) / stride is whole; then i = t + start + j*step for the j-th such tap, counted from the last one down so
    that i grows with j. Returns (number of taps, first tap u, step from tap to tap, start, step of i)."""
    taps = [u for u in reversed(range(kernel)) if (phase + pad - u * rate) % stride == 0]
    shared = math.gcd(stride, rate)
    start = (phase + pad - taps[0] * rate) // stride if taps else 0
    return len(taps), taps[0] if taps else 0, -(stride // shared), start, rate // shared


@jit
def live(low, high, step, size, count):
    """Of positions low+j*step .. high+j*step (j < count), the run of j for which some position lies in [0, size): first j, how many."""
    first = (tl.maximum(-high, 0) + step - 1) // step
    end = tl.minimum((tl.maximum(size - low, 0) + step - 1) // step, count)
    return first, tl.maximum(end - first, 0)

@jit
def reach(offset, STRIDE, size, count):
    """Of positions i*STRIDE + offset (i < count), the run of i with position in [0, size): first i, how many."""
    first = (tl.maximum(-offset, 0) + STRIDE - 1) // STRIDE
    end = tl.minimum((tl.maximum(size - offset, 0) + STRIDE - 1) // STRIDE, count)
    return first, tl.maximum(end - first, 0)


@jit
def tap_offsets(tap, TAPS: tl.constexpr, N_BRANCHES: tl.constexpr, N_H: tl.constexpr, N_W: tl.constexpr):
    """Row and column offset of tap number `tap` = (branch * N_H + row) * N_W + column."""
    branch = tap // (N_H * N_W)
    start_h, step_h, start_w, step_w = TAPS[0], TAPS[1], TAPS[2], TAPS[3]
    for n in tl.static_range(1, N_BRANCHES):
        start_h = tl.where(branch == n, TAPS[4 * n], start_h)
        step_h = tl.where(branch == n, TAPS[4 * n + 1], step_h)
        start_w = tl.where(branch == n, TAPS[4 * n + 2], start_w)
        step_w = tl.where(branch == n, TAPS[4 * n + 3], step_w)
    return start_h + (tap // N_W) % N_H * step_h, start_w + tap % N_W * step_w

# ------------------------------------------------------------------------------------------------ launching


class Tile(NamedTuple):
    m: int  # rows of the accumulator (pixels; input channels for dW)
    n: int  # columns of the accumulator (output channels)
    k: int  # reduced per step
    warps: int
    stages: int


# Dense tiles by (kernel, what is multiplied, architecture). "half": 16-bit with channels last and strides of whole 32-byte groups, loaded 16
# bytes at a time straight to shared memory. "strided": 16-bit in any other layout, loaded one element at a time through registers, hence small.
# "float": exact float32 has no tensor cores, so registers bound the tile. Interpreted programs cost by their number, not their size.
TILES = {
    ("correlate", "strided", "any"): Tile(64, 64, 32, 4, 2),
    ("grad_weight", "strided", "any"): Tile(64, 64, 32, 8, 2),
    ("correlate", "half", "sm90"): Tile(128, 256, 64, 8, 4),
    ("correlate", "half", "sm80"): Tile(128, 128, 64, 8, 3),
    ("correlate", "half", "hip"): Tile(128, 128, 32, 8, 2),
    ("correlate", "float", "any"): Tile(64, 64, 32, 8, 2),
    ("grad_weight", "half", "sm90"): Tile(128, 128, 64, 8, 3),
    ("grad_weight", "half", "sm80"): Tile(128, 128, 64, 8, 3),
    ("grad_weight", "half", "hip"): Tile(128, 128, 32, 8, 2),
    ("grad_weight", "float", "any"): Tile(64, 64, 32, 4, 2),
    ("correlate", "any", "interpreter"): Tile(256, 64, 64, 1, 1),
    ("grad_weight", "any", "interpreter"): Tile(64, 64, 256, 1, 1),
}
# Pixels and channels of the memory-bound kernels, by which of the two is contiguous in memory.
FLAT_TILES = {"channels": Tile(32, 64, 0, 4, 1), "pixels": Tile(512, 1, 0, 4, 1), "planes": Tile(256, 4, 0, 4, 1),
              "interpreter": Tile(512, 32, 0, 1, 1)}


class Launch(NamedTuple):
    """One launch as the wrapper asked for it, for `record_launches`."""
    kernel: object
    tile: Tile
    arguments: tuple
    constants: dict


class _Recording(NamedTuple):
    architecture: str
    launches: list[Launch]


_recording: _Recording | None = None


@contextlib.contextmanager
def record_launches(architecture: str):
    """Inside the block kernels are not started but listed, as they would be started on `architecture` ("sm80", "sm90", "hip"). With tensors on
    the "meta" device this shows what a GPU would be given, on a machine that has none: `kernels.compile_check` compiles exactly that."""
    global _recording
    previous, _recording = _recording, _Recording(architecture, [])
    try:
        yield _recording.launches
    finally:
        _recording = previous


def architecture_of(tensor: torch.Tensor) -> str:
    if _recording is not None:
        return _recording.architecture
    if INTERPRETING:
        return "interpreter"
    if torch.version.hip:
        return "hip"
    return "sm90" if torch.cuda.get_device_capability(tensor.device)[0] >= 9 else "sm80"


def tile_for(kernel: str, tensors: tuple[torch.Tensor, ...], m: int, n: int, k: int) -> Tile:
    """The table's tile for a kernel that reads `tensors` ([B, C, H, W] each), no wider than the problem
    (16 is the least that a matrix instruction takes)."""
    arch = architecture_of(tensors[0])
    aligned = all(t.stride(1) == 1 and all(s % 16 == 0 for i, s in enumerate(t.stride()) if i != 1 and t.shape[i] > 1) for t in tensors)
    kind = "float" if tensors[0].dtype == torch.float32 else "half" if aligned else "strided"
    tile = next(TILES[key] for key in ((kernel, kind, arch), (kernel, kind, "any"), (kernel, "any", arch)) if key in TILES)
    return tile._replace(m=min(tile.m, power_of_two(m)), n=min(tile.n, power_of_two(n)), k=min(tile.k, power_of_two(k)))


def flat_tile_for(tensor: torch.Tensor, m: int, n: int, kind: str) -> Tile:
    tile = FLAT_TILES["interpreter" if architecture_of(tensor) == "interpreter" else kind]
    return tile._replace(m=min(tile.m, power_of_two(m)), n=min(tile.n, power_of_two(n, least=1)))


def power_of_two(n: int, least: int = 16) -> int:
    return max(least, 1 << (n - 1).bit_length())


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def slots(tensor: torch.Tensor, tile: Tile) -> int:
    """Programs that run at the same time: one per processor for the largest tiles, two otherwise (1 in the interpreter)."""
    arch = architecture_of(tensor)
    if arch == "interpreter":
        return 1
    if _recording is not None:
        processors = {"sm80": 108, "sm90": 132, "hip": 304}[arch]
    else:
        processors = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return processors * (1 if tile.m * tile.n > 128 * 128 else 2)


def plan(n_pixels: int, block: int, columns: int, slots: int) -> list[tuple[int, int, int]]:
    """How to launch `n_pixels` in tiles of `block`, times `columns` tiles of channels, on `slots` places: [(first pixel, end pixel, split)].

    A map too small for the GPU is split along the sum. A last round that would leave most places idle is cut off and split."""
    if n_pixels == 0:
        return []
    tiles = cdiv(n_pixels, block)
    if tiles * columns * 2 <= slots:
        return [(0, n_pixels, min(64, slots // (tiles * columns)))]
    rest = tiles % max(1, slots // columns)
    if rest == tiles or rest == 0 or rest * columns * 4 > slots:
        return [(0, n_pixels, 1)]
    edge = (tiles - rest) * block
    return [(0, edge, 1), (edge, n_pixels, min(64, slots // (rest * columns)))]


def float32_precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def launch(kernel, grid: tuple[int, ...], tile: Tile, tensor: torch.Tensor, *arguments, **constants) -> None:
    if 0 in grid:
        return
    if _recording is not None:
        _recording.launches.append(Launch(kernel, tile, arguments, constants))
        return
    with device_of(tensor):
        kernel[grid](*arguments, **constants, **launch_options(num_warps=tile.warps, num_stages=tile.stages))


def empty_like_layout(x: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """An uninitialised [B, channels, height, width] with channels last in memory if x has them last."""
    last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.empty(x.shape[0], channels, height, width, dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last if last else torch.contiguous_format)

def grad_input(g: torch.Tensor, x: torch.Tensor, geometry: Geometry, kernel: tuple[int, int], one_phase) -> torch.Tensor:
    """dX, one phase of the stride at a time. `one_phase(first, step, count, taps, target)` correlates dY with the named taps into `target`."""
    dx = torch.empty_like(x)  # [B, C, H, W]
    (s_h, s_w), pads, rates, _ = geometry
    for f_h in range(min(s_h, x.shape[2])):
        for f_w in range(min(s_w, x.shape[3])):
            taps = []
            for (p_h, p_w), (r_h, r_w) in zip(pads, rates):
                n_h, u, du, start_h, step_h = adjoint_taps(f_h, kernel[0], s_h, p_h, r_h)
                n_w, v, dv, start_w, step_w = adjoint_taps(f_w, kernel[1], s_w, p_w, r_w)
                taps += [start_h, step_h, start_w, step_w]
            # With several branches the stride is 1: all of them use the same taps, all taps.
            one_phase((u, v), (du, dv), (n_h, n_w), tuple(taps), dx[:, :, f_h::s_h, f_w::s_w])
    return dx


def through_relu(g: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """The gradient through a fused ReLU whose result was y."""
    return g if y is None else torch.where(y > 0, g, 0)

def grad_bias(g: torch.Tensor) -> torch.Tensor:
    return g.sum((0, 2, 3), dtype=torch.float32).to(g.dtype)
