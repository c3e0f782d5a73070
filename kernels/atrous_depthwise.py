"""Depthwise atrous convolution: every input channel feeds O/C output channels of its own. The public call is `atrous_conv(..., groups=C)`.

    y[b, o, i, j] = bias[o] + sum over taps (u, v) of x[b, o // m, i*s + u*r - p, j*s + v*r - p] * w[o, 0, u, v]          m = O / C

There is no sum over channels, so no matrix product: 2 * KH * KW operations per element, far below what the memory system feeds. The floor is
one read of x and one write of y; the KH*KW reads of a neighbourhood come from cache. Tiles follow the memory layout: wide in channels for
channels-last maps, wide in pixels otherwise.

Backward. dX is the same kernel with reversed taps, one phase of the stride at a time (see `adjoint_taps`); with m > 1 it adds up the m outputs of
a channel. dW[o, u, v] = sum over pixels of x * dY where the tap is inside; programs that share a sum write partial sums, added in a fixed order.
"""
from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from kernels.atrous_taps import (
    Geometry, cdiv, empty_like_layout, flat_tile_for, forward_taps, grad_bias, grad_input, launch, slots, tap_offsets, reach, through_relu,
)
from kernels.backend import jit, tl


@jit
def _depthwise_kernel(
    p_x,  # pointer to the map that is read [B, Cr, H, W]
    p_w,  # pointer to the weight of the first tap [O, KH, KW] through the strides below
    p_bias,  # pointer to the bias [C]; not read unless HAS_BIAS
    p_y,  # pointer to the result [B, C, h, w]
    n_pixels, C, H, W, h, w,  # result pixels (B*h*w), result channels, height and width read and written
    s_xb, s_xc, s_xh, s_xw,  # element strides of the map that is read
    s_wo, s_wh, s_ww,  # element strides of the weight: channel, tap row, tap column (the last two may be negative)
    s_yb, s_yc, s_yh, s_yw,  # element strides of the result
    TAPS: tl.constexpr, N_H: tl.constexpr, N_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DIVIDE: tl.constexpr, MULTIPLY: tl.constexpr,  # result channel c reads channels c // DIVIDE * MULTIPLY + (0 .. MULTIPLY-1)
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,  # pixels, channels
):
    """Grid: (tiles of pixels, tiles of channels). Bound by memory: every element is read from cache for each tap, once from DRAM."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_pixel, m_channel = pixel < n_pixels, channel < C
    image, b_row, b_col = (pixel // (h * w)).to(tl.int64), pixel // w % h, pixel % w
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for j in range(MULTIPLY):
        source = channel // DIVIDE * MULTIPLY + j
        p_pixel = p_x + (image * s_xb)[:, None] + (source.to(tl.int64) * s_xc)[None, :]
        for tap in range(N_H * N_W):
            i = b_row * STRIDE_H + TAPS[0] + tap // N_W * TAPS[1]
            k = b_col * STRIDE_W + TAPS[2] + tap % N_W * TAPS[3]
            m_seen = m_pixel & (i >= 0) & (i < H) & (k >= 0) & (k < W)
            b_x = tl.load(p_pixel + (i.to(tl.int64) * s_xh + k.to(tl.int64) * s_xw)[:, None], mask=m_seen[:, None] & m_channel[None, :], other=0.0)
            o_w = (channel * MULTIPLY + j) * s_wo + tap // N_W * s_wh + tap % N_W * s_ww
            total += b_x.to(tl.float32) * tl.load(p_w + o_w, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(p_bias + channel, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    p_out = p_y + (image * s_yb + b_row.to(tl.int64) * s_yh + b_col.to(tl.int64) * s_yw)[:, None] + (channel.to(tl.int64) * s_yc)[None, :]
    tl.store(p_out, total.to(p_y.dtype.element_ty), mask=m_pixel[:, None] & m_channel[None, :])


@jit
def _depthwise_grad_weight_kernel(
    p_x,  # pointer to the forward input [B, C, H, W]
    p_g,  # pointer to the upstream gradient [B, O, h, w]
    p_dw,  # pointer to partial weight gradients, float32 [SPLIT, KH * KW, O], contiguous
    B, O, H, W, h, w,  # sizes
    s_xb, s_xc, s_xh, s_xw,  # element strides of the input
    s_gb, s_gc, s_gh, s_gw,  # element strides of the upstream gradient
    TAPS: tl.constexpr, N_H: tl.constexpr, N_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DIVIDE: tl.constexpr,  # outputs per input channel
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,  # parts of the pixel sum, pixels per step, channels
):
    """Grid: (tiles of O, taps, SPLIT)."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_channel = channel < O
    i_tap = tl.program_id(1)
    d_h, d_w = tap_offsets(i_tap, TAPS, 1, N_H, N_W)
    first_row, n_rows = reach(d_h, STRIDE_H, H, h)
    first_col, n_cols = reach(d_w, STRIDE_W, W, w)
    n_pixels = B * n_rows * n_cols
    p_in = p_x + (channel // DIVIDE).to(tl.int64) * s_xc
    p_up = p_g + channel.to(tl.int64) * s_gc
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    share = tl.cdiv(n_pixels, SPLIT)
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, n_pixels)
    for k in range(begin, end, BLOCK_M):
        pixel = k + tl.arange(0, BLOCK_M)
        mask = (pixel < end)[:, None] & m_channel[None, :]
        row = (first_row + pixel // n_cols % n_rows).to(tl.int64)
        col = (first_col + pixel % n_cols).to(tl.int64)
        image = (pixel // (n_rows * n_cols)).to(tl.int64)
        o_x = image * s_xb + (row * STRIDE_H + d_h) * s_xh + (col * STRIDE_W + d_w) * s_xw
        o_g = image * s_gb + row * s_gh + col * s_gw
        b_x = tl.load(p_in[None, :] + o_x[:, None], mask=mask, other=0.0).to(tl.float32)
        b_g = tl.load(p_up[None, :] + o_g[:, None], mask=mask, other=0.0).to(tl.float32)
        total += b_x * b_g
    o_row = (tl.program_id(2) * tl.num_programs(1) + i_tap).to(tl.int64) * O
    tl.store(p_dw + o_row + channel, tl.sum(total, 0), mask=m_channel)

class Depthwise(torch.autograd.Function):
    """Every input channel feeds O/C output channels of its own: x [B, C, H, W], weight [O, 1, KH, KW], bias [O] or None -> [B, O, h, w]."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry: Geometry, relu: bool):
        y = empty_like_layout(x, weight.shape[0], *geometry.out)  # [B, O, h, w]
        kernel = tuple(weight.shape[2:])
        _depthwise(x, weight, (0, 0), (1, 1), kernel, bias, y, forward_taps(geometry), geometry.stride, y.shape[1] // x.shape[1], 1, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.geometry = geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, y = ctx.saved_tensors
        g = through_relu(g, y)  # [B, O, h, w]
        kernel, many = tuple(weight.shape[2:]), weight.shape[0] // x.shape[1]
        needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]

        def one_phase(first, step, count, taps, target):
            _depthwise(g, weight, first, step, count, None, target, taps, (1, 1), 1, many, False)

        dx = grad_input(g, x, ctx.geometry, kernel, one_phase) if needs_x else None
        dw = _depthwise_grad_weight(x, g, kernel, ctx.geometry).view_as(weight).to(weight.dtype) if needs_w else None
        return dx, dw, grad_bias(g) if needs_b else None, None, None


def _depthwise(x, weight, first, step, count, bias, y, taps, stride, divide, multiply, relu) -> None:
    batch, n_out, h, w = y.shape
    kind = "channels" if x.stride(1) == 1 and n_out > 1 else "pixels"
    tile = flat_tile_for(x, batch * h * w, n_out, kind)
    s_wo, _, s_wh, s_ww = weight.stride()
    launch(
        _depthwise_kernel, (cdiv(batch * h * w, tile.m), cdiv(n_out, tile.n)), tile, x,
        x, weight[:, :, first[0]:, first[1]:], bias if bias is not None else x, y, batch * h * w, n_out, x.shape[2], x.shape[3], h, w,
        *x.stride(), s_wo, s_wh * step[0], s_ww * step[1], *y.stride(),
        TAPS=taps, N_H=count[0], N_W=count[1], STRIDE_H=stride[0], STRIDE_W=stride[1], DIVIDE=divide, MULTIPLY=multiply,
        HAS_BIAS=bias is not None, RELU=relu, BLOCK_M=tile.m, BLOCK_N=tile.n,
    )


def _depthwise_grad_weight(x, g, kernel, geometry: Geometry) -> torch.Tensor:
    """dW, float32 [O, KH * KW]."""
    batch, n_out, h, w = g.shape
    tile = flat_tile_for(x, batch * h * w, n_out, "channels" if x.stride(1) == 1 and n_out > 1 else "pixels")
    programs, n_taps = cdiv(n_out, tile.n), kernel[0] * kernel[1]
    split = max(1, min(64, cdiv(batch * h * w, 4 * tile.m), 4 * slots(x, tile) // (programs * n_taps)))
    partial = torch.empty(split, n_taps, n_out, dtype=torch.float32, device=x.device)
    launch(
        _depthwise_grad_weight_kernel, (programs, n_taps, split), tile, x,
        x, g, partial, batch, n_out, x.shape[2], x.shape[3], h, w, *x.stride(), *g.stride(),
        TAPS=forward_taps(geometry), N_H=kernel[0], N_W=kernel[1], STRIDE_H=geometry.stride[0], STRIDE_W=geometry.stride[1],
        DIVIDE=n_out // x.shape[1], SPLIT=split, BLOCK_M=tile.m, BLOCK_N=tile.n,
    )
    return partial.sum(0).t().contiguous()
