"""Atrous (dilated) convolution, and DeepLab v2's ASPP: several atrous convolutions of one feature map, summed, as one operation.

    y[b, o, i, j] = bias[o] + sum over branch n, taps (u, v), channel c of
                    x[b, c, i*s + u*r_n - p_n, j*s + v*r_n - p_n] * w[n, o, c, u, v]          s stride, r rate, p padding; x = 0 outside

DeepLab: arXiv 1606.00915, section 3.1 (equation 2) and 3.2 (ASPP). One branch is `atrous_conv`; R branches of 3x3 are `aspp`.

Forward. A program owns BLOCK_M consecutive output pixels (counted through the batch, so no tile is padded at the image border) times
BLOCK_N output channels, and adds up products [pixels, channels] @ [channels, outputs] in ONE loop over (live tap, block of channels).
Which taps a tile can reach at all is arithmetic: along each axis the live ones are a run lo .. lo+n-1, per branch a rectangle of the kernel.
Dead taps cost nothing, and a single loop keeps the load pipeline full: an `if live` around an inner loop drains it once per tap.

Backward, all of it without atomics and in a fixed order, so two runs are equal to the bit.
    dX   tap (u, v) reads x at i*s + u*r - p, so input pixel q is read by output i = (q + p - u*r) / s where that is whole. Write
         q = s*t + f: for each phase f of the s^2 phases the usable u form an arithmetic progression and i is affine in t. That is a
         stride-1 correlation of dY with the same weights, taps reversed, input and output channels swapped: the same kernel again,
         writing every s-th pixel of dX. With s = 1 there is one phase.
    dW   w[n, o, c, u, v] gathers x[.., i*s + u*r - p, ..] * dY[.., i, ..] over the pixels for which the tap is inside the image: a
         rectangle, so the loop enumerates exactly those. One program per (tap, tile of C, tile of O).
    db   the sum of dY. With the fused ReLU, dY is first zeroed where y is 0.

Budget for the ResNet-101 head, x 8 x 2048 x 65 x 65, 2048 -> 256, rates 6 12 18 24, bf16: 1.276 TFLOP if every tap counts, of which 72.1 %
exist (dX and dW the same again); tiles of 128 pixels keep 86.2 %. x is 138 MB; four separate convolutions read it four times and three
additions move another 156 MB. 33800 pixels are 264.06 tiles: on 132 processors that is three rounds for two rounds of work, unless the
last 8 pixels are spread over idle processors by splitting the sum. `plan` does that, and the same for maps too small to fill the GPU.

ASPP with few outputs (21 classes): tiles of 21 columns would read x 36 times. Multiply once instead, z = W x with W [R*9*K, C], then add 36 shifted
maps: y[q] = sum over taps z_tap[q + shift]. x is read once and z is small. Backward: dz is dY shifted 36 ways, dX = W^T dz, dW = dz x^T.

Precision: products of float16/bfloat16 accumulate in float32. float32 follows torch.set_float32_matmul_precision: "highest" (the default) is
exact float32, anything else allows TF32. float64 always takes the torch path. Channels-last tensors are the fast layout on a GPU; any strides work.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from kernels.atrous_depthwise import Depthwise
from kernels.atrous_shift_add import ShiftAdd
from kernels.atrous_taps import (
    Geometry, cdiv, empty_like_layout, flat_tile_for, float32_precision, forward_taps, grad_bias, grad_input, launch, live, plan, reach, slots,
    tap_offsets, through_relu, tile_for,
)
from kernels.backend import jit, path_for, tl


# ------------------------------------------------------------------------------------------------ the formula, in plain torch


def atrous_conv_reference(x, weight, bias=None, stride=1, padding=0, rate=1, groups=1, relu=False) -> torch.Tensor:
    """The definition, one tap at a time, in float32 (float64 for float64 input). Arguments as `atrous_conv`."""
    geometry = _check(x, weight, bias, stride, padding, rate, groups)
    (s_h, s_w), ((p_h, p_w),), ((r_h, r_w),), (h, w) = geometry
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    k_h, k_w = weight.shape[-2:]
    padded = F.pad(x.to(wide), (p_w, (w - 1) * s_w + (k_w - 1) * r_w, p_h, (h - 1) * s_h + (k_h - 1) * r_h))
    total = torch.zeros(x.shape[0], weight.shape[0], h, w, dtype=wide, device=x.device)  # [B, O, h, w]
    for u in range(k_h):
        for v in range(k_w):
            seen = padded[:, :, u * r_h:u * r_h + (h - 1) * s_h + 1:s_h, v * r_w:v * r_w + (w - 1) * s_w + 1:s_w]  # [B, C, h, w]
            tap = weight[:, :, u, v].to(wide)  # [O, I]
            if groups == 1:
                total = total + torch.einsum("bchw,oc->bohw", seen, tap)  # [B, O, h, w]
            else:
                total = total + seen.repeat_interleave(weight.shape[0] // groups, 1) * tap[None, :, :, None]  # [B, O, h, w]
    if bias is not None:
        total = total + bias.to(wide)[None, :, None, None]  # [B, O, h, w]
    return (total.relu() if relu else total).to(x.dtype)


def aspp_reference(x, weights, biases, rates) -> torch.Tensor:
    """Four (or R) atrous convolutions, added in float32. Arguments as `aspp`."""
    weights, bias, rates = _check_aspp(x, weights, biases, rates)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = sum(atrous_conv_reference(x.to(wide), w.to(wide), None, 1, r, r) for w, r in zip(weights, rates))  # [B, O, H, W]
    return (total if bias is None else total + bias.to(wide)[None, :, None, None]).to(x.dtype)


# ------------------------------------------------------------------------------------------------ kernels: dense

@jit
def _correlate_kernel(
    p_x,  # pointer to the map that is read, [B, C, H, W]
    p_w,  # pointer to the weight of the first tap, [R, KH, KW, C, O] through the strides below
    p_bias,  # pointer to the bias [O]; not read unless HAS_BIAS
    p_y,  # pointer to the result [B, O, h, w]; with SPLIT > 1 to float32 partial sums [SPLIT, end_pixel - first_pixel, O]
    first_pixel, end_pixel,  # output pixels computed here, counted through the batch: (b * h + i) * w + j
    C, O, H, W, h, w,  # channels read and written, height and width read and written
    s_xb, s_xc, s_xh, s_xw,  # element strides of the map that is read
    s_wr, s_wh, s_ww, s_wc, s_wo,  # element strides of the weight: branch, tap row, tap column (these two may be negative), channels in, out
    s_yb, s_yc, s_yh, s_yw,  # element strides of the result
    TAPS: tl.constexpr,  # per branch: row of tap 0, row step, column of tap 0, column step, relative to pixel * stride
    N_BRANCHES: tl.constexpr, N_H: tl.constexpr, N_W: tl.constexpr,  # branches, tap rows, tap columns
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    SPLIT: tl.constexpr,  # programs that share one tile, each summing its part of the loop
    PRECISION: tl.constexpr,  # of float32 products: "ieee" or "tf32"
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # output pixels, output channels, input channels per step
):
    """Grid: (tiles of pixels * tiles of output channels, SPLIT)."""
    i_tile = tl.program_id(0)
    n_columns = tl.cdiv(O, BLOCK_N)
    first = first_pixel + (i_tile // n_columns) * BLOCK_M
    pixel = first + tl.arange(0, BLOCK_M)
    m_pixel = pixel < end_pixel
    b_image = (pixel // (h * w)).to(tl.int64)
    b_row = pixel // w % h
    b_col = pixel % w
    o_out = (i_tile % n_columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_out = o_out < O

    # Rows and columns this run of pixels can have: all of them once it wraps around.
    last = tl.minimum(first + BLOCK_M, end_pixel) - 1
    line_first, line_last = first // w, last // w
    one_line = line_first == line_last
    one_image = line_first // h == line_last // h
    col_low = tl.where(one_line, first % w, 0) * STRIDE_W
    col_high = tl.where(one_line, last % w, w - 1) * STRIDE_W
    row_low = tl.where(one_image, line_first % h, 0) * STRIDE_H
    row_high = tl.where(one_image, line_last % h, h - 1) * STRIDE_H

    ends, firsts_h, firsts_w, counts_w = (), (), (), ()
    n_live = 0
    for n in tl.static_range(N_BRANCHES):
        first_h, count_h = live(row_low + TAPS[4 * n], row_high + TAPS[4 * n], TAPS[4 * n + 1], H, N_H)
        first_w, count_w = live(col_low + TAPS[4 * n + 2], col_high + TAPS[4 * n + 2], TAPS[4 * n + 3], W, N_W)
        n_live += count_h * count_w
        ends += (n_live,)
        firsts_h += (first_h,)
        firsts_w += (first_w,)
        counts_w += (count_w,)

    b_h = b_row * STRIDE_H
    b_w = b_col * STRIDE_W
    p_pixel = p_x + b_image * s_xb + b_h.to(tl.int64) * s_xh + b_w.to(tl.int64) * s_xw
    o_k = tl.arange(0, BLOCK_K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    n_blocks = tl.cdiv(C, BLOCK_K)
    share = tl.cdiv(n_live * n_blocks, SPLIT)
    begin = tl.program_id(1) * share
    for i in range(begin, tl.minimum(begin + share, n_live * n_blocks)):
        tap = i // n_blocks
        k = (i % n_blocks) * BLOCK_K
        branch, before = 0, 0
        first_h, first_w, count_w = firsts_h[0], firsts_w[0], counts_w[0]
        start_h, step_h, start_w, step_w = TAPS[0], TAPS[1], TAPS[2], TAPS[3]
        for n in tl.static_range(1, N_BRANCHES):
            here = tap >= ends[n - 1]
            branch = tl.where(here, n, branch)
            before = tl.where(here, ends[n - 1], before)
            first_h = tl.where(here, firsts_h[n], first_h)
            first_w = tl.where(here, firsts_w[n], first_w)
            count_w = tl.where(here, counts_w[n], count_w)
            start_h = tl.where(here, TAPS[4 * n], start_h)
            step_h = tl.where(here, TAPS[4 * n + 1], step_h)
            start_w = tl.where(here, TAPS[4 * n + 2], start_w)
            step_w = tl.where(here, TAPS[4 * n + 3], step_w)
        tap_h = first_h + (tap - before) // count_w
        tap_w = first_w + (tap - before) % count_w
        d_h = start_h + tap_h * step_h
        d_w = start_w + tap_w * step_w
        m_seen = m_pixel & (b_h + d_h >= 0) & (b_h + d_h < H) & (b_w + d_w >= 0) & (b_w + d_w < W)
        m_k = k + o_k < C
        o_x = d_h.to(tl.int64) * s_xh + d_w.to(tl.int64) * s_xw + k.to(tl.int64) * s_xc
        b_x = tl.load(p_pixel[:, None] + (o_x + o_k.to(tl.int64) * s_xc)[None, :], mask=m_seen[:, None] & m_k[None, :], other=0.0)
        p_tap = p_w + (branch * s_wr + tap_h * s_wh + tap_w * s_ww) + k.to(tl.int64) * s_wc
        b_weight = tl.load(p_tap + o_k[:, None] * s_wc + o_out[None, :] * s_wo, mask=m_k[:, None] & m_out[None, :], other=0.0)
        accumulator = tl.dot(b_x, b_weight, accumulator, input_precision=PRECISION)

    if SPLIT > 1:
        o_part = (pixel - first_pixel).to(tl.int64) + tl.program_id(1) * (end_pixel - first_pixel)
        tl.store(p_y + o_part[:, None] * O + o_out[None, :], accumulator, mask=m_pixel[:, None] & m_out[None, :])
    else:
        if HAS_BIAS:
            accumulator += tl.load(p_bias + o_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
        if RELU:
            accumulator = tl.where(accumulator < 0, 0.0, accumulator)  # not maximum, which would turn NaN into 0
        p_out = p_y + b_image * s_yb + b_row.to(tl.int64) * s_yh + b_col.to(tl.int64) * s_yw
        p_out = p_out[:, None] + o_out.to(tl.int64)[None, :] * s_yc
        tl.store(p_out, accumulator.to(p_y.dtype.element_ty), mask=m_pixel[:, None] & m_out[None, :])


@jit
def _finish_kernel(
    p_part,  # pointer to partial sums, float32 [SPLIT, n_pixels, O], contiguous
    p_bias,  # pointer to the bias [O]; not read unless HAS_BIAS
    p_y,  # pointer to the result [B, O, h, w]
    first_pixel, n_pixels, O, h, w,  # where the partial sums belong: pixels first_pixel .. first_pixel + n_pixels
    s_yb, s_yc, s_yh, s_yw,  # element strides of the result
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """Add the SPLIT partial sums, always in the same order, then bias and ReLU. Grid: (tiles of pixels, tiles of output channels)."""
    o_part = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (o_part < n_pixels)[:, None] & (o_out < O)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(SPLIT):
        o_row = (o_part + i * n_pixels).to(tl.int64)
        total += tl.load(p_part + o_row[:, None] * O + o_out[None, :], mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(p_bias + o_out, mask=o_out < O, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    pixel = first_pixel + o_part
    p_out = p_y + (pixel // (h * w)).to(tl.int64) * s_yb + (pixel // w % h).to(tl.int64) * s_yh + (pixel % w).to(tl.int64) * s_yw
    tl.store(p_out[:, None] + o_out.to(tl.int64)[None, :] * s_yc, total.to(p_y.dtype.element_ty), mask=mask)

@jit
def _grad_weight_kernel(
    p_x,  # pointer to the forward input [B, C, H, W]
    p_g,  # pointer to the upstream gradient [B, O, h, w]
    p_dw,  # pointer to the weight gradient [SPLIT, R * KH * KW, C, O], contiguous; float32 when SPLIT > 1
    B, C, O, H, W, h, w,  # sizes
    s_xb, s_xc, s_xh, s_xw,  # element strides of the input
    s_gb, s_gc, s_gh, s_gw,  # element strides of the upstream gradient
    TAPS: tl.constexpr, N_BRANCHES: tl.constexpr, N_H: tl.constexpr, N_W: tl.constexpr,  # as in the forward kernel
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    SPLIT: tl.constexpr,  # programs that share one tile, each summing its part of the pixels
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # input channels, output channels, pixels per step
):
    """Grid: (tiles of C * tiles of O, taps of all branches, SPLIT)."""
    n_columns = tl.cdiv(O, BLOCK_N)
    o_in = (tl.program_id(0) // n_columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_out = (tl.program_id(0) % n_columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_in, m_out = o_in < C, o_out < O
    i_tap = tl.program_id(1)
    d_h, d_w = tap_offsets(i_tap, TAPS, N_BRANCHES, N_H, N_W)
    first_row, n_rows = reach(d_h, STRIDE_H, H, h)
    first_col, n_cols = reach(d_w, STRIDE_W, W, w)
    n_pixels = B * n_rows * n_cols
    p_in = p_x + o_in.to(tl.int64) * s_xc
    p_up = p_g + o_out.to(tl.int64) * s_gc
    o_k = tl.arange(0, BLOCK_K)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    share = tl.cdiv(tl.cdiv(n_pixels, SPLIT), BLOCK_K) * BLOCK_K
    begin = tl.program_id(2) * share
    for k in range(begin, tl.minimum(begin + share, n_pixels), BLOCK_K):
        pixel = k + o_k
        m_pixel = pixel < n_pixels
        row = first_row + pixel // n_cols % n_rows
        col = first_col + pixel % n_cols
        image = (pixel // (n_rows * n_cols)).to(tl.int64)
        o_x = image * s_xb + (row * STRIDE_H + d_h).to(tl.int64) * s_xh + (col * STRIDE_W + d_w).to(tl.int64) * s_xw
        o_g = image * s_gb + row.to(tl.int64) * s_gh + col.to(tl.int64) * s_gw
        b_x = tl.load(p_in[None, :] + o_x[:, None], mask=m_pixel[:, None] & m_in[None, :], other=0.0)
        b_g = tl.load(p_up[None, :] + o_g[:, None], mask=m_pixel[:, None] & m_out[None, :], other=0.0)
        accumulator = tl.dot(tl.trans(b_x), b_g, accumulator, input_precision=PRECISION)
    o_row = ((tl.program_id(2) * tl.num_programs(1) + i_tap).to(tl.int64) * C + o_in) * O
    tl.store(p_dw + o_row[:, None] + o_out[None, :], accumulator.to(p_dw.dtype.element_ty), mask=m_in[:, None] & m_out[None, :])

class _Weights(NamedTuple):
    """Weights as a kernel reads them: from the first tap on, with one (rows, columns) step that may walk backwards."""
    tensor: torch.Tensor  # [R, KH, KW, C, O], any strides
    first: tuple[int, int]
    step: tuple[int, int]
    count: tuple[int, int]

def _correlate(x, weights: _Weights, bias, y, taps: tuple[int, ...], stride: tuple[int, int], relu: bool) -> None:
    """Launch the dense kernel: y (any strides, every element is written) from x."""
    (batch, channels, height, width), (_, n_out, h, w) = x.shape, y.shape
    tile = tile_for("correlate", (x,), batch * h * w, n_out, channels)
    columns = cdiv(n_out, tile.n)
    tensor = weights.tensor[:, weights.first[0]:, weights.first[1]:]
    s_wr, s_wh, s_ww, s_wc, s_wo = tensor.stride()
    common = dict(HAS_BIAS=bias is not None, RELU=relu)
    for first, end, split in plan(batch * h * w, tile.m, columns, slots(x, tile)):
        target = torch.empty(split, end - first, n_out, dtype=torch.float32, device=x.device) if split > 1 else y
        launch(
            _correlate_kernel, (cdiv(end - first, tile.m) * columns, split), tile, x,
            x, tensor, bias if bias is not None else x, target, first, end, channels, n_out, height, width, h, w, *x.stride(),
            s_wr, s_wh * weights.step[0], s_ww * weights.step[1], s_wc, s_wo, *y.stride(),
            TAPS=taps, N_BRANCHES=len(taps) // 4, N_H=weights.count[0], N_W=weights.count[1], STRIDE_H=stride[0], STRIDE_W=stride[1],
            SPLIT=split, PRECISION=float32_precision(), BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **common,
        )
        if split > 1:
            small = flat_tile_for(x, end - first, n_out, "channels")
            launch(
                _finish_kernel, (cdiv(end - first, small.m), cdiv(n_out, small.n)), small, x,
                target, bias if bias is not None else x, y, first, end - first, n_out, h, w, *y.stride(),
                SPLIT=split, BLOCK_M=small.m, BLOCK_N=small.n, **common,
            )

class _Dense(torch.autograd.Function):
    """Sum of R branches on the kernels: x [B, C, H, W], weight [R, O, C, KH, KW], bias [O] or None -> [B, O, h, w]."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry: Geometry, relu: bool):
        # One repacked copy [R, KH, KW, C, O], unit stride along O: read along O by the forward pass and along C by the backward pass.
        packed = weight.permute(0, 3, 4, 2, 1).contiguous()
        y = empty_like_layout(x, weight.shape[1], *geometry.out)  # [B, O, h, w]
        kernel = tuple(weight.shape[3:])
        _correlate(x, _Weights(packed, (0, 0), (1, 1), kernel), bias, y, forward_taps(geometry), geometry.stride, relu)
        ctx.save_for_backward(x, packed, y if relu else None)
        ctx.geometry = geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, packed, y = ctx.saved_tensors
        g = through_relu(g, y)  # [B, O, h, w]
        needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]
        swapped = packed.transpose(3, 4)  # [R, KH, KW, O, C]

        def one_phase(first, step, count, taps, target):
            if count[0] * count[1] == 0:  # a stride that skips these pixels altogether
                target.zero_()
            else:
                _correlate(g, _Weights(swapped, first, step, count), None, target, taps, (1, 1), relu=False)

        dx = grad_input(g, x, ctx.geometry, tuple(packed.shape[1:3]), one_phase) if needs_x else None
        dw = _grad_weight(x, g, packed, ctx.geometry).permute(0, 4, 3, 1, 2) if needs_w else None  # [R, O, C, KH, KW]
        return dx, dw, grad_bias(g) if needs_b else None, None, None

def _grad_weight(x: torch.Tensor, g: torch.Tensor, packed: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """dW in the packed order [R, KH, KW, C, O]."""
    n_branches, k_h, k_w, channels, n_out = packed.shape
    batch, _, h, w = g.shape
    tile = tile_for("grad_weight", (x, g), channels, n_out, batch * h * w)
    tiles, n_taps = cdiv(channels, tile.m) * cdiv(n_out, tile.n), n_branches * k_h * k_w
    steps = max(1, cdiv(batch * h * w, tile.k))
    split = max(1, min(64, steps // 4, slots(x, tile) // (tiles * n_taps)))
    dw = torch.empty(split, *packed.shape, dtype=torch.float32 if split > 1 else packed.dtype, device=x.device)
    launch(
        _grad_weight_kernel, (tiles, n_taps, split), tile, x,
        x, g, dw, batch, channels, n_out, x.shape[2], x.shape[3], h, w, *x.stride(), *g.stride(),
        TAPS=forward_taps(geometry), N_BRANCHES=n_branches, N_H=k_h, N_W=k_w, STRIDE_H=geometry.stride[0], STRIDE_W=geometry.stride[1],
        SPLIT=split, PRECISION=float32_precision(), BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
    )
    return dw.sum(0).to(packed.dtype) if split > 1 else dw[0]


# ------------------------------------------------------------------------------------------------ the public operations

# ASPP multiplies first and shifts afterwards up to this many outputs, if x has at least this many times as many channels: z must be small
# beside x. On the CPU measured for 2048 -> 21, 256 -> 11, 48 -> 6 (wins) and 128 -> 32, 48 -> 12 (loses); on a GPU not measured yet.
SHIFT_ADD_OUTPUTS, SHIFT_ADD_RATIO = 32, 8


def atrous_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0, rate: int | tuple[int, int] = 1, groups: int = 1, relu: bool = False,
) -> torch.Tensor:
    """2-D convolution whose taps lie `rate` pixels apart; differentiable in x, weight and bias.

    Shape:
        x [B, C, H, W], contiguous, channels-last or any other strides (no copy is made); float32, float16, bfloat16 (kernel) or float64 (torch)
        weight [O, C, KH, KW], or [O, 1, KH, KW] with groups=C (depthwise; O a multiple of C); bias [O]; one dtype for all
        result [B, O, h, w], h = floor((H + 2*padding - rate*(KH-1) - 1) / stride) + 1, in the memory layout of x

    padding="same" gives h = ceil(H / stride): rate*(K-1) pixels in all, of which the smaller half comes first. relu=True fuses max(0, y).
    Under torch.autocast all tensors are cast to its dtype, as F.conv2d does. A second derivative is not supported.
    ValueError and TypeError say what does not fit. Source: DeepLab, arXiv 1606.00915, equation 2.
    """
    x, weight, bias = _autocast(x, weight, bias)
    geometry = _check(x, weight, bias, stride, padding, rate, groups)
    path = path_for(x)
    if path == "reference":
        return atrous_conv_reference(x, weight, bias, stride, padding, rate, groups, relu)
    if path == "triton" and x.dtype != torch.float64:
        if groups == 1:
            return _Dense.apply(x, weight[None], bias, geometry, relu)
        return Depthwise.apply(x, weight, bias, geometry, relu)
    if padding == "same":  # an odd number of padding pixels puts the extra one at the end, which F.conv2d cannot say
        odd_h, odd_w = ((k - 1) * r % 2 for k, r in zip(weight.shape[2:], geometry.rates[0]))
        x = F.pad(x, (0, odd_w, 0, odd_h)) if odd_h or odd_w else x
    y = F.conv2d(x, weight, bias, geometry.stride, geometry.pads[0], geometry.rates[0], groups)  # [B, O, h, w]
    return y.relu() if relu else y


def fold_batch_norm(weight: torch.Tensor, bias: torch.Tensor | None, norm: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of one convolution that equals convolution, then `norm` in evaluation mode; differentiable, so it also serves
    networks trained with frozen statistics (DeepLab). weight [O, ..], bias [O] or None -> the same shapes. Computed in float32."""
    if norm.training:
        raise ValueError("fold_batch_norm: the batch norm is in training mode, where its statistics change with every batch; call norm.eval() first")
    if norm.running_var is None:
        raise ValueError("fold_batch_norm: the batch norm keeps no running statistics (track_running_stats=False), so there is nothing to fold")
    if norm.num_features != weight.shape[0]:
        raise ValueError(
            f"fold_batch_norm: the batch norm has {norm.num_features} channels, the weight {weight.shape[0]} outputs; they must be equal")
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)  # [O]
    scale = scale if norm.weight is None else scale * norm.weight.to(wide)  # [O]
    shift = -norm.running_mean.to(wide) * scale  # [O]
    shift = shift if bias is None else shift + bias.to(wide) * scale  # [O]
    shift = shift if norm.bias is None else shift + norm.bias.to(wide)  # [O]
    return (weight.to(wide) * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype), shift.to(weight.dtype)


def aspp(
    x: torch.Tensor, weights: torch.Tensor | Sequence[torch.Tensor], biases: torch.Tensor | Sequence[torch.Tensor] | None,
    rates: Sequence[int], route: str | None = None,
) -> torch.Tensor:
    """Atrous spatial pyramid pooling of DeepLab v2: the sum over branches of conv3x3(x, weights[r], rate=rates[r], padding=rates[r]) + biases[r].

    Shape:
        x [B, C, H, W], any strides; weights [R, O, C, 3, 3] or R tensors [O, C, 3, 3]; biases [R, O], R tensors [O], or None; R = 1 .. 8 rates
        result [B, O, H, W] in the memory layout of x; differentiable in x, weights and biases (not twice)

    route="direct" sums all live taps in one loop (on a CPU: R calls of F.conv2d); "shift_add" multiplies all taps at once and adds shifted maps.
    None takes shift_add for few outputs of many channels (O <= 32 and C >= 8 O), else direct.
    """
    if not isinstance(weights, torch.Tensor):
        weights = torch.stack(list(weights))
    if biases is not None and not isinstance(biases, torch.Tensor):
        biases = torch.stack(list(biases))
    x, weights, biases = _autocast(x, weights, biases)
    weights, bias, rates = _check_aspp(x, weights, biases, rates)
    if route not in (None, "direct", "shift_add"):
        raise ValueError(f'aspp: route must be "direct", "shift_add" or None; got {route!r}')
    path = path_for(x)
    if path == "reference":
        return aspp_reference(x, weights, biases, rates)
    path = "torch" if x.dtype == torch.float64 else path
    if route is None:
        few = weights.shape[1] <= SHIFT_ADD_OUTPUTS and x.shape[1] >= SHIFT_ADD_RATIO * weights.shape[1]
        training = torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad)
        # Measured: one contiguous image without a backward pass is the case where oneDNN's convolutions win nevertheless.
        route = "shift_add" if few and not (path == "torch" and not training and x.shape[0] == 1 and x.is_contiguous()) else "direct"
    if route == "shift_add":
        return ShiftAdd.apply(x, weights, bias, rates, path)
    if path == "triton":
        pads = tuple((r, r) for r in rates)
        return _Dense.apply(x, weights, bias, Geometry((1, 1), pads, pads, tuple(x.shape[2:])), False)
    total = F.conv2d(x, weights[0], bias, padding=rates[0], dilation=rates[0])  # [B, O, H, W]
    for weight, rate in zip(weights[1:], rates[1:]):
        total = total + F.conv2d(x, weight, None, padding=rate, dilation=rate)  # [B, O, H, W]
    return total


def _autocast(*tensors: torch.Tensor | None) -> tuple:
    """Cast as torch.autocast would: to its dtype, unless a tensor is float64 or absent."""
    kind = next((t.device.type for t in tensors if isinstance(t, torch.Tensor)), "cpu")
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _pair(value, name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else None
    if pair is None or len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise TypeError(f"atrous_conv: {name} must be an integer or a pair (vertical, horizontal); got {value!r}")
    if min(pair) < least:
        note = " (rate 1 is an ordinary convolution)" if name == "rate" else ""
        raise ValueError(f"atrous_conv: {name} must be at least {least}; got {value!r}{note}")
    return pair


def _check_tensors(name: str, x, weight, bias) -> None:
    for what, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None and what == "bias":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: {what} must be a tensor; got {type(tensor).__name__}")
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"{name}: {what} is {tensor.dtype}; it must be float32, float16, bfloat16 or float64")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}: x is {x.dtype} but {what} is {tensor.dtype}; cast one of them, or call under torch.autocast")
        if tensor.device != x.device:
            raise ValueError(f"{name}: x is on {x.device} but {what} on {tensor.device}; move one of them")
    if x.dim() != 4:
        raise ValueError(f"{name}: x must be [batch, channels, height, width]; got shape {tuple(x.shape)}")


def _check(x, weight, bias, stride, padding, rate, groups) -> Geometry:
    """Refuse what does not fit, in one sentence; else where the taps fall."""
    _check_tensors("atrous_conv", x, weight, bias)
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"atrous_conv: weight must be [outputs, channels, rows, columns], none of them 0; got shape {tuple(weight.shape)}")
    (_, channels, height, width), (n_out, per_group, *kernel) = x.shape, weight.shape
    if groups not in (1, channels):
        raise ValueError(f"atrous_conv: groups must be 1, or {channels} (depthwise, one group for each channel of x); got {groups!r}")
    if per_group * groups != channels:
        wanted = f"{per_group} input channels" if groups == 1 else f"{per_group} channels per group, where depthwise weights have 1"
        raise ValueError(f"atrous_conv: x has {channels} channels but weight {tuple(weight.shape)} has {wanted}")
    if n_out % groups:
        raise ValueError(f"atrous_conv: a depthwise weight needs a multiple of {groups} outputs; got {n_out}")
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(f"atrous_conv: bias must have shape ({n_out},), one value for each output of weight; got {tuple(bias.shape)}")
    stride, rate = _pair(stride, "stride", 1), _pair(rate, "rate", 1)
    spans = [(k - 1) * r for k, r in zip(kernel, rate)]
    if padding == "same":
        pads, out = tuple(span // 2 for span in spans), tuple(-(-size // s) for size, s in zip((height, width), stride))
    elif isinstance(padding, str):
        raise ValueError(f'atrous_conv: padding must be an integer, a pair, or "same"; got {padding!r}')
    else:
        pads = _pair(padding, "padding", 0)
        out = tuple((size + 2 * p - span - 1) // s + 1 for size, p, span, s in zip((height, width), pads, spans, stride))
    if min(out) < 1 or 0 in (channels, height, width):
        raise ValueError(f"atrous_conv: a {kernel[0]}x{kernel[1]} kernel at rate {rate} spans {spans[0] + 1}x{spans[1] + 1} pixels, "
                         f"more than x {tuple(x.shape)} with padding {padding!r} has; use a smaller rate or more padding")
    _check_pixels("atrous_conv", x, out)
    return Geometry(stride, (pads,), (rate,), out)


def _check_pixels(name: str, x: torch.Tensor, out) -> None:
    pixels = x.shape[0] * max(out[0] * out[1], x.shape[2] * x.shape[3])
    if pixels > 2 ** 31 - 2 ** 16:
        raise ValueError(f"{name}: {pixels} pixels in one call; kernels count pixels in 32 bits (elements in 64), so split the batch")


def _check_aspp(x, weights, biases, rates) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, ...]]:
    """Refuse what does not fit; else the weights [R, O, C, 3, 3], the branches' biases added up, and the rates as a tuple."""
    if not isinstance(weights, torch.Tensor):
        weights = torch.stack(list(weights))
    if biases is not None and not isinstance(biases, torch.Tensor):
        biases = torch.stack(list(biases))
    _check_tensors("aspp", x, weights, biases)
    rates = tuple(rates) if isinstance(rates, (tuple, list)) else (rates,)
    if not 1 <= len(rates) <= 8 or not all(isinstance(r, int) and r >= 1 for r in rates):
        raise ValueError(f"aspp: rates must be 1 to 8 integers of at least 1; got {rates!r}")
    if weights.dim() != 5 or weights.shape[0] != len(rates) or weights.shape[3:] != (3, 3) or 0 in weights.shape:
        raise ValueError(f"aspp: {len(rates)} rates need weights [{len(rates)}, outputs, channels, 3, 3]; got shape {tuple(weights.shape)}")
    if weights.shape[2] != x.shape[1]:
        raise ValueError(f"aspp: x has {x.shape[1]} channels but the weights {tuple(weights.shape)} have {weights.shape[2]} input channels")
    if biases is not None and biases.shape != weights.shape[:2]:
        raise ValueError(f"aspp: biases must have shape {tuple(weights.shape[:2])}, one row for each branch; got {tuple(biases.shape)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"aspp: x has no channels or no pixels: shape {tuple(x.shape)}")
    _check_pixels("aspp", x, x.shape[2:])
    return weights, None if biases is None else biases.sum(0), rates
