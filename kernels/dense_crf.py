"""Mean field in the fully connected CRF is attention: exact messages without an N x N matrix.

Krahenbuhl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS 2011, arXiv 1210.5644.
With energies U (unary, -log p), features f and K_ij = exp(-|f_i - f_j|^2 / 2), one parallel update of all N pixels is

    Q <- softmax(-U - sum_m w_m (A_m Q) C_m^T),   A = diag(left) K diag(right),   Q [N, K]

    values [N, K] --right--> sum_j exp(-|f_i - f_j|^2 / 2) v_j --left--> compatibility --> softmax
                             flash-attention tiles: scores live in registers only

Normalisation, with n = K 1 (diagonal included) and the names of pydensecrf:  "symmetric" n^-1/2 K n^-1/2 (its default),
"after" n^-1 K (a weighted average: softmax attention with logits f_i . f_j - |f_j|^2 / 2; DeepLab and CRF-RNN), "before" K n^-1, "none" K.
Compatibility C: an energy, so positive repels. None means Potts, C = 1 - I; its constant part cancels in the softmax, which leaves
logits = -U + sum_m w_m A_m Q. The message of a pixel to itself is kept, as in both C++ versions; `self_message=False` is the paper's sum.

Budget for 500 x 375 pixels, 21 labels, one kernel, one pass: N^2 = 3.5e10 pairs, one exp and 2 K = 42 FLOP each. Naive: an N^2 matrix of
141 GB written and read. Fused: values and features are read once per 64-row tile (from L2), 16 MB written; the bound is the exp units
(4.2e12 exp/s on an H200: 8.4 ms a pass). Distances come from the tensor cores, f_i . f_j - |f_i|^2/2 - |f_j|^2/2, with every feature split
into two float16 numbers so that [hi, hi, lo] . [hi, lo, hi] is f_i . f_j to 22 bits: one K = 16 step for 5 features. Pixels are sorted along
a Hilbert curve in feature space; a pair of 64-pixel tiles whose bounding boxes are further apart than `cull` (squared) is skipped. What is
lost is at most sum over skipped tiles of 64 exp(-box distance^2 / 2) per pixel: `plan_tiles` returns that bound. Tiles are square, so the
culled K is exactly symmetric.

Backward. The message is linear and K symmetric: out = diag(l) K diag(r) v gives dv = diag(r) K diag(l) dout, the same kernel with
the normalisations swapped. Softmax, weights and compatibility are left to autograd, as in CRF-RNN (Zheng et al., ICCV 2015, arXiv 1502.03240):
with G = dJ/dQ_t, dL = Q_t (G - <Q_t, G>), dU -= dL, dw_m += <dL, A_m Q>, G <- sum_m w_m A_m^T dL. Features get no gradient.

On a CPU, `mean_field` uses kernels/permutohedral.py instead: approximate, where the exact sum would take most of a minute an iteration.
The smoothness kernel depends on positions only, so exp splits into x and y parts and it is never paid N^2 for.
"""
from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Callable, Sequence

import torch

from kernels import permutohedral
from kernels.backend import INTERPRETING, device_of, jit, launch_options, path_for, tl
from kernels.crf_tiles import plan_tiles

NORMALIZATIONS = ("symmetric", "after", "before", "none")
LOG2E = 1.4426950408889634


# ------------------------------------------------------------------------------------------------------------ pairwise kernels
@dataclass(frozen=True)
class Gaussian:
    """Smoothness: nearby pixels agree. exp(-(dx / sx)^2 / 2 - (dy / sy)^2 / 2)."""
    sxy: float | tuple[float, float] = 3.0
    """standard deviation in pixels, one number or (x, y)"""
    weight: float | torch.Tensor = 3.0
    """a number, or a tensor [] or [K] (one weight per label, as CRF-RNN learns them)"""
    compat: torch.Tensor | None = None
    """[K, K] energies of this kernel; None: the `compat` of mean_field"""
    normalization: str | None = None
    """None: the `normalization` of mean_field"""


@dataclass(frozen=True)
class Bilateral:
    """Appearance: pixels that are near and look alike agree."""
    sxy: float | tuple[float, float] = 80.0
    """standard deviation in pixels, one number or (x, y)"""
    srgb: float | tuple[float, ...] = 13.0
    """standard deviation per image channel, in the units of the image (0..255)"""
    weight: float | torch.Tensor = 10.0
    compat: torch.Tensor | None = None
    normalization: str | None = None


@dataclass(frozen=True)
class Features:
    """Any feature tensor [B, d, H, W], already divided by its standard deviations: depth, motion, points (H = 1)."""
    values: torch.Tensor
    weight: float | torch.Tensor = 1.0
    compat: torch.Tensor | None = None
    normalization: str | None = None


PairwiseKernel = Gaussian | Bilateral | Features


def pixel_features(image: torch.Tensor, sxy: float | tuple[float, float], srgb: float | tuple[float, ...]) -> torch.Tensor:
    """(x / sx, y / sy, channels / srgb) of every pixel: image [B, C, H, W] -> [B, H*W, 2 + C] float32, or float64 for a float64 image."""
    b, c, h, w = image.shape
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    sx, sy = _pair(sxy)
    out = torch.empty(b, h, w, 2 + c, dtype=dtype, device=image.device)
    out[..., 0] = torch.arange(w, dtype=dtype, device=image.device) / sx
    out[..., 1] = (torch.arange(h, dtype=dtype, device=image.device) / sy)[:, None]
    out[..., 2:] = image.permute(0, 2, 3, 1)
    out[..., 2:] /= torch.tensor(srgb, dtype=dtype, device=image.device)
    return out.view(b, h * w, 2 + c)


def _pair(sxy) -> tuple[float, float]:
    return (float(sxy[0]), float(sxy[1])) if isinstance(sxy, (tuple, list)) else (float(sxy), float(sxy))


# -------------------------------------------------------------------------------------------------------------------- reference
def gaussian_message_reference(features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j the plain way. features [B, N, d], values [B, N, K] -> [B, N, K]. Differentiable in both."""
    difference = features[:, :, None] - features[:, None]
    return torch.exp(-0.5 * difference.pow(2).sum(-1)) @ values


def _message_in_rows(features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same sum with 4M scores in memory at a time. Distances from differences: the expanded form loses 7e-4 in float32."""
    b, n, d = features.shape
    out = torch.empty_like(values)
    rows = max(1, 2**22 // n)
    for image in range(b):
        columns = features[image].t().contiguous()
        for start in range(0, n, rows):
            block = columns[:, start:start + rows]
            distance = torch.zeros(block.shape[1], n, dtype=features.dtype, device=features.device)
            for c in range(d):
                difference = block[c, :, None] - columns[c]
                distance.addcmul_(difference, difference)
            torch.matmul(distance.mul_(-0.5).exp_(), values[image], out=out[image, start:start + rows])
    return out


# ---------------------------------------------------------------------------------------------------------------- the kernel
@jit
def _message_kernel(
    p_query,  # MATRIX: float16 [B, N, DEPTH], rows [hi, hi, lo, 0]; else float32 [B, DEPTH, N]. Features times sqrt(log2 e)
    p_key,  # MATRIX: float16 [B, N, DEPTH], rows [hi, lo, hi, 0]; else the same pointer as p_query
    p_bias,  # float32 [B, N]: -|f|^2 / 2 of those features (read if MATRIX)
    p_value,  # float16 [B, N, LABELS]; rows past the last pixel are zero
    p_value_low,  # float16 [B, N, LABELS]: what rounding p_value to float16 left over (read if SPLIT)
    p_out,  # float32 [B, N, LABELS], 2^14 times the sums
    p_start,  # int64 [B, tiles + 1]: where a row tile's list begins in p_live (read if CULL)
    p_live,  # int32: column tiles to visit, all images behind one another (read if CULL)
    n,  # pixels rounded up to a multiple of BLOCK
    FEATURES: tl.constexpr,  # d, used if not MATRIX
    DEPTH: tl.constexpr,  # columns of p_query: 3 d rounded up to a multiple of 16, or d
    LABELS: tl.constexpr,  # K rounded up to a power of two, at least 16
    BLOCK: tl.constexpr,  # pixels in a tile, rows and columns alike
    CULL: tl.constexpr,
    MATRIX: tl.constexpr,  # distances by tensor cores
    SPLIT: tl.constexpr,  # scores and values as float16 pairs: float32 accuracy from three float16 products
):
    """One program sums the messages to one tile of pixels. Grid (tiles, B)."""
    i_tile = tl.program_id(0)
    i_image = tl.program_id(1).to(tl.int64)
    tiles = n // BLOCK
    o_row = i_tile * BLOCK + tl.arange(0, BLOCK)
    o_in = tl.arange(0, BLOCK)
    o_label = tl.arange(0, LABELS)
    p_value += i_image * n * LABELS
    p_value_low += i_image * n * LABELS
    p_out += i_image * n * LABELS
    p_query += i_image * n * DEPTH
    p_key += i_image * n * DEPTH
    p_bias += i_image * n
    if MATRIX:
        o_depth = tl.arange(0, DEPTH)
        b_query = tl.load(p_query + o_row[:, None] * DEPTH + o_depth[None, :])
        b_bias = tl.load(p_bias + o_row) + 14  # scores times 2^14: float16 then reaches down to 4e-12 instead of 6e-8
    b_out = tl.zeros((BLOCK, LABELS), dtype=tl.float32)
    if CULL:
        p_start += i_image * (tiles + 1) + i_tile
        first = tl.load(p_start)
        steps = (tl.load(p_start + 1) - first).to(tl.int32)
        p_live += first
    else:
        steps = tiles
    for step in range(steps):
        if CULL:
            i_column = tl.load(p_live + step)
        else:
            i_column = step
        o_column = i_column * BLOCK + o_in
        if MATRIX:
            b_key = tl.load(p_key + o_column[:, None] * DEPTH + o_depth[None, :])
            b_score = tl.dot(b_query, tl.trans(b_key)) + (b_bias[:, None] + tl.load(p_bias + o_column)[None, :])
        else:
            b_score = tl.full((BLOCK, BLOCK), 14, dtype=tl.float32)
            for c in tl.static_range(FEATURES):
                b_gap = tl.load(p_query + c * n + o_row)[:, None] - tl.load(p_query + c * n + o_column)[None, :]
                b_score -= 0.5 * b_gap * b_gap
        b_weight = tl.exp2(b_score)
        b_value = tl.load(p_value + o_column[:, None] * LABELS + o_label[None, :])
        b_high = b_weight.to(tl.float16)
        b_out = tl.dot(b_high, b_value, b_out)
        if SPLIT:
            b_low = (b_weight - b_high.to(tl.float32)).to(tl.float16)
            b_value_low = tl.load(p_value_low + o_column[:, None] * LABELS + o_label[None, :])
            b_out = tl.dot(b_low, b_value, b_out)
            b_out = tl.dot(b_high, b_value_low, b_out)
    tl.store(p_out + o_row[:, None] * LABELS + o_label[None, :], b_out)


# ------------------------------------------------------------------------------------------------------------ launching it
BLOCK = 64  # rows and columns of a tile: one wgmma row block, and small enough for tight bounding boxes
INTERPRETED_BLOCK = 256  # the interpreter pays per operation, not per element
EXPONENT_ERROR = 2e-3  # tensor-core distances only while |f|^2 2^-22 keeps the exponent this exact


def kernel_constants(features: int, labels: int, block: int, cull: bool, matrix: bool, split: bool) -> dict:
    """The compile-time arguments of one launch; compile_check compiles the same."""
    return {"FEATURES": features, "DEPTH": -(-3 * features // 16) * 16 if matrix else features, "LABELS": max(16, 1 << (labels - 1).bit_length()),
            "BLOCK": block, "CULL": cull, "MATRIX": matrix, "SPLIT": split}


def warps_and_stages(matrix: bool, amd: bool = torch.version.hip is not None) -> dict:
    """Distances on the ALU hold twice the numbers in registers. 8 warps share them without spilling; AMD's 4 warps of 64 lanes do so
    without a second stage."""
    if matrix:
        return {"num_warps": 4, "num_stages": 2}
    return {"num_warps": 4, "num_stages": 1} if amd else {"num_warps": 8, "num_stages": 2}


class _TritonMessage:
    """Features prepared once for many messages: sorted, split into float16 pairs, with their lists of live tiles."""

    def __init__(self, features: torch.Tensor, cull: float | None, block: int | None = None):
        b, n, d = features.shape
        self.n, self.features = n, d
        self.block = block or (INTERPRETED_BLOCK if INTERPRETING and cull is None else BLOCK)
        self.padded = -(-n // self.block) * self.block
        self.cull = cull is not None
        features = features.detach().float()
        features = features - (features.amin(1, keepdim=True) + features.amax(1, keepdim=True)) / 2  # small numbers, small errors
        plans = [plan_tiles(image, cull, self.block) for image in features] if self.cull else []
        self.kept = sum(plan.kept for plan in plans) / b if plans else 1.0
        self.order = torch.stack([plan.order for plan in plans]) if plans else None
        self.start, self.live = features.new_zeros(1, dtype=torch.int64), features.new_zeros(1, dtype=torch.int32)
        if plans:
            features = features.gather(1, self.order[..., None].expand(-1, -1, d))
            sizes = [0]
            for plan in plans[:-1]:
                sizes.append(sizes[-1] + plan.live.numel())
            self.start = torch.stack([plan.start + size for plan, size in zip(plans, sizes)])
            self.live = torch.cat([plan.live for plan in plans])
        scaled = torch.nn.functional.pad(features * math.sqrt(LOG2E), (0, 0, 0, self.padded - n))
        self.columns = scaled.transpose(1, 2).contiguous()
        square = scaled.pow(2).sum(-1)
        self.matrix = float(square.amax()) * 2.0**-22 < EXPONENT_ERROR
        if self.matrix:
            high = scaled.half()
            low = (scaled - high.float()).half()
            spare = high.new_zeros(b, self.padded, -3 * d % 16)
            self.query = torch.cat([high, high, low, spare], -1)
            self.key = torch.cat([high, low, high, spare], -1)
            self.bias = -0.5 * (high.float() + low.float()).pow(2).sum(-1)

    def __call__(self, values: torch.Tensor, half: bool = False) -> torch.Tensor:
        """values [B, N, K] -> float32 [B, N, K]. half: scores and values rounded to float16, distances by tensor cores, which costs about
        2e-5 of relative accuracy; otherwise as exact as float32."""
        b, n, k = values.shape
        matrix = self.matrix and half
        constants = kernel_constants(self.features, k, self.block, self.cull, matrix, split=not half)
        # a power of two brings the largest value to 2^13 .. 2^14, so that float16 serves gradients of any size
        exponent = 14 - torch.frexp(values.detach().float().abs().amax().clamp_min(1e-30)).exponent
        values = torch.ldexp(values.float(), exponent)
        if self.order is not None:
            index = self.order[..., None].expand(-1, -1, k)
            values = values.gather(1, index)
        high = values.new_zeros(b, self.padded, constants["LABELS"], dtype=torch.float16)
        high[:, :n, :k] = values
        low = high if half else torch.zeros_like(high)
        if not half:
            low[:, :n, :k] = values - high[:, :n, :k]
        out = torch.empty(b, self.padded, constants["LABELS"], dtype=torch.float32, device=values.device)
        query, key, bias = (self.query, self.key, self.bias) if matrix else (self.columns, self.columns, self.columns)
        with device_of(out):
            _message_kernel[(self.padded // self.block, b)](query, key, bias, high, low, out, self.start, self.live, self.padded, **constants,
                                                            **launch_options(**warps_and_stages(matrix)))
        out = torch.ldexp(out[:, :n, :k], -14 - exponent)
        return out if self.order is None else torch.empty_like(out).scatter_(1, index, out)


# ----------------------------------------------------------------------------------- K as a symmetric operator, with its gradient
class _ExactMessage:
    """K over features [B, N, d], by the path that `path_for` names."""

    def __init__(self, features: torch.Tensor, cull: float | None):
        self.features = features.detach()
        self.path = path_for(features)
        if self.path == "triton" and features.dtype != torch.float64:
            self.kernel = _TritonMessage(features, cull)

    def __call__(self, values: torch.Tensor, half: bool = False) -> torch.Tensor:
        if self.path == "reference":
            return gaussian_message_reference(self.features, values)
        if self.path == "torch" or self.features.dtype == torch.float64:  # the kernel has no float64: the exact sum in rows does
            return _message_in_rows(self.features, values)
        return self.kernel(values, half)


class _SeparableMessage:
    """K of the smoothness kernel, exact: a Toeplitz matrix down the columns and one along the rows."""

    def __init__(self, height: int, width: int, sxy: tuple[float, float], like: torch.Tensor):
        def toeplitz(size, sigma):
            place = torch.arange(size, dtype=torch.float64, device=like.device)
            return torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2).to(like.dtype)
        self.down, self.across = toeplitz(height, sxy[1]), toeplitz(width, sxy[0])

    def __call__(self, values: torch.Tensor, half: bool = False) -> torch.Tensor:
        b, n, k = values.shape
        h, w = len(self.down), len(self.across)
        rows = torch.matmul(self.across, values.reshape(b * h, w, k))
        return torch.matmul(self.down, rows.view(b, h, w * k)).view(b, n, k)


class _LatticeMessage:
    """K approximated by one chain per image, or one chain that all images share. `normalized[i](mode)` is the chain of image i."""

    def __init__(self, normalized: list[Callable[[str], permutohedral.BagChain]]):
        self.normalized = normalized

    @functools.cached_property
    def chains(self) -> list[permutohedral.BagChain]:
        return [chain("none") for chain in self.normalized]

    def __call__(self, values: torch.Tensor, half: bool = False, transpose: bool = False) -> torch.Tensor:
        return torch.stack([chain(image, transpose) for chain, image in zip(self.chains, values)])

    def row_sums(self) -> torch.Tensor:
        """K 1, [B, N, 1]"""
        return torch.stack([chain.row_sums() for chain in self.chains])[..., None]


class _Symmetric(torch.autograd.Function):
    """values -> K values. K is its own transpose, except on the lattice, where the transpose blurs the axes in reverse order."""

    @staticmethod
    def forward(ctx, values, message, half):
        ctx.message = message
        return message(values, half).to(values.dtype)

    @staticmethod
    def backward(ctx, grad):
        if isinstance(ctx.message, _LatticeMessage):
            return ctx.message(grad, transpose=True), None, None
        return _Symmetric.apply(grad, ctx.message, False), None, None  # gradients sum over pixels and steps: float32


def _factors(message, like: torch.Tensor, normalization: str) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The diagonals (left, right) [B, N, 1] of A = diag(left) K diag(right)."""
    if normalization == "none":
        return 1.0, 1.0
    # the same filter as the message, so that "after" really averages
    n = message.row_sums() if isinstance(message, _LatticeMessage) else message(torch.ones_like(like[..., :1]))
    return permutohedral.normalizing_factors(n.to(like.dtype) + 1e-20, normalization)


# --------------------------------------------------------------------------------------------------------------- public operations
def gaussian_message(features: torch.Tensor, values: torch.Tensor, normalization: str = "none", method: str = "exact",
                     cull: float | None = None) -> torch.Tensor:
    """out = A v with K_ij = exp(-|f_i - f_j|^2 / 2) and A normalised as named; differentiable in `values`.

    features [B, N, d] divided by their standard deviations; values [B, N, K] -> [B, N, K] in the dtype of `values`.
    method: "exact", or "lattice" (approximate, fast on a CPU). cull: squared box distance beyond which tile pairs are skipped by the Triton
    kernel (9.2 loses at most a few 1e-4 of a message, `plan_tiles` gives the bound); other paths visit every pair.
    float16 values are multiplied as they are; everything else as exactly as float32 (float64 stays float64, without the kernel).
    Raises ValueError on ranks, sizes, names or non-finite features that do not fit, and on features that require a gradient.
    """
    if features.dim() != 3 or values.dim() != 3 or features.shape[:2] != values.shape[:2]:
        raise ValueError(f"features must be [B, N, d] and values [B, N, K] with equal B and N; got {list(features.shape)} and {list(values.shape)}")
    if features.device != values.device:
        raise ValueError(f"features and values must be on one device; got {features.device} and {values.device}")
    _check_choice("normalization", normalization, NORMALIZATIONS)
    _check_choice("method", method, ("exact", "lattice"))
    _check_features(features)
    if cull is not None and not cull > 0:
        raise ValueError(f"cull must be a positive squared distance, or None to visit every pair; got {cull}")
    dtype = values.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(compute)
        message = (_ExactMessage(features, cull) if method == "exact"
                   else _LatticeMessage([permutohedral.lattice_chain(f).normalized for f in features]))
        wide = values.to(compute)
        left, right = _factors(message, wide, normalization)
        return (left * _Symmetric.apply(wide * right, message, dtype == torch.float16)).to(dtype)


def mean_field(unary: torch.Tensor, image: torch.Tensor | None = None, kernels: Sequence[PairwiseKernel] = (Gaussian(), Bilateral()), *,
               iterations: int = 10, compat: torch.Tensor | None = None, normalization: str = "symmetric", method: str = "auto",
               self_message: bool = True, cull: float | None = 9.2, half: bool = True, logits: bool = False) -> torch.Tensor:
    """Label probabilities Q [B, K, H, W] after `iterations` parallel mean-field updates of the fully connected CRF.

    unary [B, K, H, W]: energies -log p. image [B, C, H, W], 0..255, any dtype; needed by `Bilateral`. kernels: any number of `Gaussian`,
    `Bilateral` and `Features`. compat [K, K]: energies for all kernels that bring none of their own; None: Potts.
    method: "exact" (Triton on CUDA; quadratic on a CPU), "lattice" (approximate; fast on a CPU) or "auto", which is exact where
    kernels run and lattice elsewhere. self_message=False leaves out j = i (exact only). cull, exact on Triton only: skip tile pairs
    whose boxes are this far apart, squared (None: visit all). half: keep Q in float16 inside; Q then moves by a few 1e-5 (kernel, seen in the
    interpreter) or a few 1e-4 (lattice) relative to float32.
    logits=True returns the scores before the last softmax, for a cross-entropy. Differentiable in unary, weights and compat; not in the
    standard deviations (sxy, srgb: the paper's theta), the image or the features, which are constants: choose those on validation images.
    The result has the dtype of `unary`; float16 and bfloat16 are computed in float32.
    """
    log_prior, terms = _prepare(unary, image, kernels, iterations, compat, normalization, method)
    b, k, h, w = unary.shape
    if method == "auto":
        method = "lattice" if path_for(unary) == "torch" else "exact"
    if method == "lattice" and not self_message:
        raise ValueError('self_message=False needs method="exact": the diagonal of the lattice is not 1, so the self-message cannot be taken out')
    learned = [unary, *(t for kernel in kernels for t in (kernel.weight, kernel.compat)), compat]
    learning = torch.is_grad_enabled() and any(torch.is_tensor(t) and t.requires_grad for t in learned)
    with torch.autocast(unary.device.type, enabled=False):
        built = []  # (operator, weight, compatibility, normalisation) of every kernel
        for kernel, coupling, mode in terms:
            message = _message_of(kernel, image, log_prior, (h, w), method, cull)
            built.append((message, kernel.weight, coupling, mode))
        if method == "lattice" and not learning:
            result = _run_on_chains(log_prior, built, iterations, half, logits)
        else:
            result = _run(log_prior, built, iterations, self_message, half, logits)
    return result.transpose(1, 2).reshape(b, k, h, w).to(unary.dtype)


def _run(log_prior, terms, iterations: int, self_message: bool, half: bool, logits: bool) -> torch.Tensor:
    """The update of the docstring, differentiable. log_prior [B, N, K]"""
    terms = [(message, *_factors(message, log_prior, mode), weight, coupling) for message, weight, coupling, mode in terms]
    scores = log_prior
    for _ in range(iterations):
        q = torch.softmax(scores, -1)  # [B, N, K]
        scores = log_prior
        for message, left, right, weight, coupling in terms:
            incoming = left * _Symmetric.apply(q * right, message, half)  # [B, N, K]
            if not self_message:
                incoming = incoming - left * right * q
            incoming = incoming * _like(weight, incoming)
            scores = scores + (incoming if coupling is None else -incoming @ coupling.t())
    return scores if logits else torch.softmax(scores, -1)


def _run_on_chains(log_prior, terms, iterations: int, half: bool, logits: bool) -> torch.Tensor:
    """The same update, image by image, by the fused loop of the lattice."""
    k = log_prior.shape[-1]
    half = half and log_prior.dtype == torch.float32 and all(mode != "none" for *_, mode in terms)
    out = []
    for i, prior in enumerate(log_prior):
        chains, mixers = [], []
        for message, weight, coupling, mode in terms:
            chain = message.normalized[i](mode)
            weight = _like(weight, prior).detach()
            if coupling is None and weight.numel() == 1:
                chain, mixer = chain.scaled(weight.reshape(()), 1.0), None
            else:
                mixer = weight * torch.eye(k, dtype=prior.dtype, device=prior.device)
                mixer = mixer if coupling is None else -mixer @ coupling.detach().t()
            chains.append(chain)
            mixers.append(mixer)
        out.append(permutohedral.mean_field_on_chains(prior.detach(), chains, mixers, iterations, half, logits))
    return torch.stack(out)


def _like(weight, tensor: torch.Tensor) -> torch.Tensor:
    return weight.to(tensor) if torch.is_tensor(weight) else torch.tensor(float(weight), dtype=tensor.dtype, device=tensor.device)


def _message_of(kernel: PairwiseKernel, image, like: torch.Tensor, size: tuple[int, int], method: str, cull: float | None):
    """The raw operator K of one pairwise kernel for a batch [B, N, K] like `like`."""
    if isinstance(kernel, Gaussian):
        if method == "exact":
            return _SeparableMessage(*size, _pair(kernel.sxy), like)
        def grid(mode: str) -> permutohedral.BagChain:
            return permutohedral.grid_chain(*size, _pair(kernel.sxy), like.dtype, like.device, mode)
        return _LatticeMessage([grid] * like.shape[0])
    if isinstance(kernel, Bilateral):
        features = pixel_features(image.to(like.dtype), kernel.sxy, kernel.srgb)
    else:
        features = kernel.values.detach().to(like.dtype).flatten(2).transpose(1, 2)
    if method == "exact":
        return _ExactMessage(features, cull)
    return _LatticeMessage([permutohedral.lattice_chain(f).normalized for f in features])


# -------------------------------------------------------------------------------------------------------------- what may go wrong
def _check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _check_features(features: torch.Tensor) -> None:
    if features.requires_grad:
        raise ValueError("features require a gradient, but none is computed for them (as in CRF-RNN); pass features.detach()")
    if not math.isfinite(float(features.sum())):
        raise ValueError("features hold NaN or infinity; every feature must be finite")


def check_colours(image: torch.Tensor, srgb: float | tuple[float, ...], image_name: str, srgb_name: str) -> None:
    """Refuse an image scaled to 0..1 where srgb counts grey levels. A nearly uniform photograph is none: one may hold only levels 128 and 129."""
    low, high = (float(v) for v in image.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{image_name} holds NaN or infinity; expected colours 0..255")
    narrowest = min(srgb) if isinstance(srgb, (tuple, list)) else srgb
    if image.is_floating_point() and 0 <= low < high <= 1 and narrowest >= 1:
        raise ValueError(f"{image_name} spans only {low:.3g}..{high:.3g} while {srgb_name} is {srgb}, so colour would play no part; "
                         "expected colours 0..255: multiply the image by 255, or divide srgb by it")


def _prepare(unary, image, kernels, iterations, compat, normalization, method):
    """Refuse what cannot be meant; return log_prior [B, N, K] and (kernel, compatibility or None, normalisation) for every kernel."""
    if unary.dim() != 4 or not unary.is_floating_point():
        raise ValueError(f"unary must be a floating-point tensor [B, K, H, W] of energies -log p; got {unary.dtype} {list(unary.shape)}")
    b, k, h, w = unary.shape
    if k < 2:
        raise ValueError(f"unary has K = {k} labels; a CRF needs at least 2 (for a binary mask stack the energies of background and object)")
    if min(b, h, w) < 1:
        raise ValueError(f"unary is empty: {list(unary.shape)}; expected at least one image of one pixel")
    if not math.isfinite(float(unary.detach().sum())):
        bad = (~torch.isfinite(unary.detach())).nonzero()
        if len(bad):
            raise ValueError(f"unary has {len(bad)} NaN or infinite energies, first at [b, k, y, x] = {bad[0].tolist()}; "
                             "clip probabilities before the log, for example at 1e-5")
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be an integer of at least 0; got {iterations!r}")
    _check_choice("method", method, ("auto", "exact", "lattice"))
    _check_choice("normalization", normalization, NORMALIZATIONS)
    if image is not None and (image.dim() != 4 or image.shape[0] != b or image.shape[2:] != unary.shape[2:]):
        raise ValueError(f"image must be [B, C, H, W] with B, H, W of the unary ({b}, {h}, {w}); got {list(image.shape)}")
    terms = []
    for kernel in kernels:
        terms.append((kernel, _check_kernel(kernel, image, unary, compat), kernel.normalization or normalization))
    work = torch.float64 if unary.dtype == torch.float64 else torch.float32
    return -unary.to(work).flatten(2).transpose(1, 2).contiguous(), terms


def _check_kernel(kernel, image, unary: torch.Tensor, compat) -> torch.Tensor | None:
    """One sentence for what is wrong with `kernel`, or its compatibility matrix in working precision."""
    b, k, h, w = unary.shape
    name = type(kernel).__name__
    if not isinstance(kernel, (Gaussian, Bilateral, Features)):
        raise TypeError(f"kernels must hold Gaussian, Bilateral and Features; got {name}")
    if kernel.normalization is not None:
        _check_choice(f"{name}.normalization", kernel.normalization, NORMALIZATIONS)
    for field in ("sxy", "srgb"):
        sigma = getattr(kernel, field, 1.0)
        each = sigma if isinstance(sigma, (tuple, list)) else [sigma]
        if any(torch.is_tensor(s) and s.requires_grad for s in each):
            raise ValueError(f"{name}.{field} requires a gradient, but none is computed for standard deviations; pass numbers and learn the weight")
        if any(not (s > 0 and math.isfinite(s)) for s in each):
            raise ValueError(f"{name}.{field} must be positive (a standard deviation); got {sigma}")
    if isinstance(kernel, Bilateral):
        if image is None:
            raise ValueError("Bilateral needs the image that it should follow; got image=None")
        if isinstance(kernel.srgb, (tuple, list)) and len(kernel.srgb) != image.shape[1]:
            raise ValueError(f"Bilateral.srgb has {len(kernel.srgb)} entries for an image of {image.shape[1]} channels")
        check_colours(image, kernel.srgb, "image", "Bilateral.srgb")
    if isinstance(kernel, Features):
        if kernel.values.dim() != 4 or kernel.values.shape[0] != b or kernel.values.shape[2:] != unary.shape[2:]:
            raise ValueError(f"Features.values must be [B, d, H, W] with B, H, W of the unary ({b}, {h}, {w}); got {list(kernel.values.shape)}")
        _check_features(kernel.values)
    if torch.is_tensor(kernel.weight) and kernel.weight.shape not in ((), (1,), (k,)):
        raise ValueError(f"{name}.weight must be a number or a tensor [] or [K] with K = {k}; got {list(kernel.weight.shape)}")
    coupling = kernel.compat if kernel.compat is not None else compat
    if coupling is None:
        return None
    if tuple(coupling.shape) != (k, k):
        raise ValueError(f"compat must be [K, K] energies with K = {k}; got {list(coupling.shape)} (a scalar weight belongs into {name}.weight)")
    if not coupling.requires_grad and not torch.allclose(coupling, coupling.t(), rtol=1e-4, atol=1e-6):
        warnings.warn("compat is not symmetric, so the updates minimise no energy; use (compat + compat.T) / 2 unless it was learned so",
                      stacklevel=4)
    return coupling.to(unary.device, torch.float64 if unary.dtype == torch.float64 else torch.float32)
