"""ASPP for few output channels (21 class scores): one matrix product over all taps, then shifted additions. Public call: `aspp`.

    z_tap = w_tap x                           every pixel, every tap: one product [R*9*O, C] @ [C, H*W]
    y[q]  = bias + sum over taps of z_tap[q + shift of the tap]                                  z = 0 outside the map

The direct form has tiles of only O columns and reads x 9*R times; here x is read once and z, 9*R*O/C times its size, twice. It cannot
leave out the taps that fall outside. Backward of the two lines, in reverse: dz_tap[q] = dy[q - shift], then dx = w^T dz and dw = dz x^T.

z is stored in the dtype of x. With bfloat16 that rounds 9*R summands instead of R: their errors are independent, so the relative error of
the sum is again that of one rounding.
"""
from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from kernels.atrous_taps import cdiv, empty_like_layout, flat_tile_for, grad_bias, launch
from kernels.backend import jit, tl


@jit
def _shift_add_kernel(
    p_z,  # pointer to z [B, R * 9, O, H, W], contiguous: for every tap, the map it would add to the result if it sat in the middle
    p_bias,  # pointer to the bias [O]; not read unless HAS_BIAS
    p_y,  # pointer to the result [B, O, H, W]
    O, H, W,  # sizes
    s_yb, s_yc, s_yh, s_yw,  # element strides of the result
    RATES: tl.constexpr, N_BRANCHES: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """y[q] = bias + sum over taps of z_tap[q + shift of the tap]. Grid: (tiles of pixels, tiles of channels, B)."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    image = tl.program_id(2).to(tl.int64)
    row, col = pixel // W, pixel % W
    m_channel = channel < O
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for n in tl.static_range(N_BRANCHES):
        for tap in range(9):
            i, j = row + (tap // 3 - 1) * RATES[n], col + (tap % 3 - 1) * RATES[n]
            mask = m_channel[:, None] & ((i >= 0) & (i < H) & (j >= 0) & (j < W) & (row < H))[None, :]
            o_plane = ((image * (N_BRANCHES * 9) + n * 9 + tap) * O + channel) * H * W
            total += tl.load(p_z + o_plane[:, None] + (i * W + j)[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(p_bias + channel, mask=m_channel, other=0.0).to(tl.float32)[:, None]
    p_out = p_y + image * s_yb + (channel.to(tl.int64) * s_yc)[:, None] + (row.to(tl.int64) * s_yh + col.to(tl.int64) * s_yw)[None, :]
    tl.store(p_out, total.to(p_y.dtype.element_ty), mask=m_channel[:, None] & (row < H)[None, :])


@jit
def _spread_kernel(
    p_g,  # pointer to the upstream gradient [B, O, H, W]
    p_dz,  # pointer to dz [B, R * 9, O, H, W], contiguous
    O, H, W,  # sizes
    s_gb, s_gc, s_gh, s_gw,  # element strides of the upstream gradient
    RATES: tl.constexpr, N_BRANCHES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """dz_tap[q] = dy[q - shift of the tap], 0 outside. Grid: (tiles of pixels, tiles of channels, B)."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    image = tl.program_id(2).to(tl.int64)
    row, col = pixel // W, pixel % W
    m_channel = channel < O
    p_up = p_g + image * s_gb + (channel.to(tl.int64) * s_gc)[:, None]
    for n in tl.static_range(N_BRANCHES):
        for tap in range(9):
            i, j = row - (tap // 3 - 1) * RATES[n], col - (tap % 3 - 1) * RATES[n]
            mask = m_channel[:, None] & ((i >= 0) & (i < H) & (j >= 0) & (j < W) & (row < H))[None, :]
            b_g = tl.load(p_up + (i.to(tl.int64) * s_gh + j.to(tl.int64) * s_gw)[None, :], mask=mask, other=0.0)
            o_plane = ((image * (N_BRANCHES * 9) + n * 9 + tap) * O + channel) * H * W
            tl.store(p_dz + o_plane[:, None] + pixel[None, :], b_g, mask=m_channel[:, None] & (row < H)[None, :])

class ShiftAdd(torch.autograd.Function):
    """ASPP as one product and shifted additions: x [B, C, H, W], weight [R, O, C, 3, 3], bias [O] or None -> [B, O, H, W].

    The product is torch.matmul (cuBLAS or oneDNN); the shifts are the kernels above, or slices on the torch path."""

    @staticmethod
    def forward(ctx, x, weight, bias, rates: tuple[int, ...], path: str):
        batch, channels, height, width = x.shape
        n_out = weight.shape[1]
        matrix = weight.permute(0, 3, 4, 1, 2).reshape(-1, channels)  # [R*9*O, C]
        z = torch.matmul(matrix, x.flatten(2)).view(batch, len(rates) * 9, n_out, height, width)  # [B, R*9, O, H, W]
        y = empty_like_layout(x, n_out, height, width)  # [B, O, H, W]
        if path == "triton":
            tile = flat_tile_for(x, height * width, n_out, "planes")
            launch(_shift_add_kernel, (cdiv(height * width, tile.m), cdiv(n_out, tile.n), batch), tile, x,
                    z, bias if bias is not None else x, y, n_out, height, width, *y.stride(),
                    RATES=rates, N_BRANCHES=len(rates), HAS_BIAS=bias is not None, BLOCK_M=tile.m, BLOCK_N=tile.n)
        else:
            total = torch.zeros(y.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)  # [B, O, H, W]
            for tap, seen, target in shifts(rates, height, width):
                total[target] += z[:, tap][seen]
            y.copy_(total if bias is None else total + bias[None, :, None, None])
        ctx.save_for_backward(x, matrix)
        ctx.rates, ctx.path = rates, path
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, matrix = ctx.saved_tensors
        (batch, channels, height, width), n_out = x.shape, g.shape[1]
        n_taps = len(ctx.rates) * 9
        if ctx.path == "triton":
            dz = torch.empty(batch, n_taps, n_out, height, width, dtype=g.dtype, device=g.device)  # [B, R*9, O, H, W]
            tile = flat_tile_for(g, height * width, n_out, "planes")
            launch(_spread_kernel, (cdiv(height * width, tile.m), cdiv(n_out, tile.n), batch), tile, g,
                    g, dz, n_out, height, width, *g.stride(), RATES=ctx.rates, N_BRANCHES=len(ctx.rates), BLOCK_M=tile.m, BLOCK_N=tile.n)
        else:
            dz = torch.zeros(batch, n_taps, n_out, height, width, dtype=g.dtype, device=g.device)  # [B, R*9, O, H, W]
            for tap, seen, target in shifts(ctx.rates, height, width):
                dz[:, tap][seen] = g[target]
        dz = dz.view(batch, n_taps * n_out, height * width)  # [B, R*9*O, H*W]
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.matmul(matrix.t(), dz).view(x.shape)  # [B, C, H, W]
        if ctx.needs_input_grad[1]:
            dw = torch.bmm(dz, x.flatten(2).transpose(1, 2)).sum(0)  # [R*9*O, C]
            dw = dw.view(len(ctx.rates), 3, 3, n_out, channels).permute(0, 3, 4, 1, 2)  # [R, O, C, 3, 3]
        return dx, dw, grad_bias(g) if ctx.needs_input_grad[2] else None, None, None


def shifts(rates: tuple[int, ...], height: int, width: int):
    """For every tap that reaches the map: its number, the slice of z that is used, and the slice of y that it is added to."""
    for tap in range(len(rates) * 9):
        d_h, d_w = (tap % 9 // 3 - 1) * rates[tap // 9], (tap % 3 - 1) * rates[tap // 9]
        if abs(d_h) < height and abs(d_w) < width:
            seen = slice(max(0, d_h), height + min(0, d_h)), slice(max(0, d_w), width + min(0, d_w))
            target = slice(max(0, -d_h), height - max(0, d_h)), slice(max(0, -d_w), width - max(0, d_w))
            yield tap, (..., *seen), (..., *target)
