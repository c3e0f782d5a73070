"""Axial attention: every pixel attends along its own row, or along its own column. Nothing is permuted, only strides change.

One line of L pixels (a row or a column) of one group, query i and key j, with keys of D and values of E channels:

    s_ij = scale * (q_i . k_j  +  q_i . rq[j-i]  +  k_j . rk[j-i])        rq, rk: optional relative-position tables
    p_ij = exp(s_ij) / sum_j exp(s_ij)
    o_i  = sum_j p_ij (v_j + rv[j-i])                                     rv: optional relative-position table

Source: Axial-DeepLab, arXiv 2003.07853, equation 4 (its `scale` is 1, with batch norms on the three terms). Row j-i+L-1 of a
table [2L-1, D] belongs to the offset j-i; tables [G, 2L-1, D] give every group its own.

Backward. Given g_i = dloss/do_i, and with delta_i = sum_j p_ij g_i.(v_j + rv[j-i]) = g_i . o_i:

    dp_ij = g_i . (v_j + rv[j-i])          ds_ij = scale * p_ij (dp_ij - delta_i)
    dq_i = sum_j ds_ij (k_j + rq[j-i])     dk_j = sum_i ds_ij (q_i + rk[j-i])      dv_j = sum_i p_ij g_i
    drq[r] = sum ds_ij q_i                 drk[r] = sum ds_ij k_j                  drv[r] = sum p_ij g_i        over all j-i = r

p is recomputed from s and the stored log-sum-exp of each query (4 bytes a pixel and group). The table gradients sum over every
line of the batch: each program adds up its share of the lines in registers and stores one partial table, and `torch.sum`
adds the partial tables: two stages, no atomics, the same bits in every run.

Traffic at B 8, G 8, H = W = 64, D = E = 64, bf16 (one of q, k, v, o is 34 MB), one axis:
    permute copies + attention   3 copies in and 1 out at 67 MB each + attention 134 MB = 402 MB forward
    this file                    q, k, v in and o out = 134 MB forward; q, k, v, o, g in and dq, dk, dv out = 268 MB backward
    arithmetic                   2*2*L*D a pixel and group = 4.3 GFLOP forward: memory decides
A relative term done outside needs its own [B, G, H, W, L] bias (33.5 MB x 8 in bf16); here it is a product of the 32 queries of a
block with the 63 to 95 table rows that the block can meet, shifted into place in registers.

Lines longer than one block are walked in tiles with the online softmax (running maximum and sum), so any length works.
"""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import INTERPRETING, jit, launch_options, path_for, tl, triton

LOG2_E = 1.4426950408889634


class RelativePositions(NamedTuple):
    """Relative-position tables, each [2L-1, D] (shared by the groups) or [G, 2L-1, D]; None leaves a term out. `value` has E channels."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None


# ---------------------------------------------------------------- the plain formula
def axial_attention_reference(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float, relative: RelativePositions) -> Tensor:
    """The three equations above, one line of code each, in float32 (float64 stays). q, k [B, G, H, W, D], v [B, G, H, W, E]."""
    dtype = v.dtype
    q, k, v = (t.to(torch.promote_types(dtype, torch.float32)) for t in (q, k, v))
    if axis == "column":
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))
    length = q.shape[3]
    place = torch.arange(length, device=q.device)
    offset = place[None, :] - place[:, None] + length - 1  # [L, L]
    rq, rk, rv = (None if t is None else t.to(q.dtype).reshape(-1, *t.shape[-2:])[:, offset].expand(q.shape[1], -1, -1, -1) for t in relative)
    logits = torch.einsum("bgnid,bgnjd->bgnij", q, k)  # [B, G, N, L, L]
    if rq is not None:
        logits = logits + torch.einsum("bgnid,gijd->bgnij", q, rq)  # [B, G, N, L, L]
    if rk is not None:
        logits = logits + torch.einsum("bgnjd,gijd->bgnij", k, rk)  # [B, G, N, L, L]
    p = torch.softmax(scale * logits, -1)  # [B, G, N, L, L]
    out = torch.einsum("bgnij,bgnje->bgnie", p, v)  # [B, G, N, L, E]
    if rv is not None:
        out = out + torch.einsum("bgnij,gije->bgnie", p, rv)  # [B, G, N, L, E]
    return (out.transpose(2, 3) if axis == "column" else out).to(dtype)


# ---------------------------------------------------------------- pieces shared by the kernels
# A tile is [BLOCK, channels] of one line, or [LINES, BLOCK, channels] of several neighbouring lines: where neighbouring lines are
# neighbours in memory (columns of NCHW), LINES of them together make one wide read. A shape without LINES broadcasts to both.


@jit
def _program_lines(OTHER, G, LINES: tl.constexpr):
    """Image b, group g and line(s) n of this program; n is int64, a number or [LINES]."""
    blocks = tl.cdiv(OTHER, LINES)
    program = tl.program_id(0)
    n = (program % blocks).to(tl.int64)
    if LINES > 1:
        n = n * LINES + tl.arange(0, LINES)
    return (program // blocks // G).to(tl.int64), program // blocks % G, n


@jit
def _flip(x, LINES: tl.constexpr):
    """Exchange the last two axes."""
    if LINES == 1:
        return tl.trans(x)
    else:
        return tl.permute(x, (0, 2, 1))


@jit
def _each_line(x, LINES: tl.constexpr):
    """[M, N] -> [LINES, M, N], because dots and gathers want equal ranks."""
    if LINES == 1:
        return x
    else:
        return tl.broadcast_to(x[None, :, :], (LINES, x.shape[0], x.shape[1]))


@jit
def _tile_offsets(s, b, g, n, i, d, LINES: tl.constexpr, WIDE: tl.constexpr):
    """Element offsets of positions i and channels d; s holds the strides (image, group, line, position, channel)."""
    if WIDE:  # one line spans more than 2^31 elements
        i = i.to(tl.int64)
        d = d.to(tl.int64)
    inside = i[:, None] * s[3] + d[None, :] * s[4]
    if LINES == 1:
        return b * s[0] + g * s[1] + n * s[2] + inside
    else:
        return b * s[0] + g * s[1] + n[:, None, None] * s[2] + inside


@jit
def _tile_mask(n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr):
    mask = (i < L)[:, None]
    if d.shape[0] != CHANNELS:
        mask = mask & (d < CHANNELS)[None, :]
    if LINES > 1:
        mask = mask & (n < OTHER)[:, None, None]
    return mask


@jit
def _load(p, s, b, g, n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr):
    return tl.load(p + _tile_offsets(s, b, g, n, i, d, LINES, WIDE), mask=_tile_mask(n, i, d, OTHER, L, CHANNELS, LINES), other=0.0)


@jit
def _store(p, s, value, b, g, n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr):
    offsets = _tile_offsets(s, b, g, n, i, d, LINES, WIDE)
    tl.store(p + offsets, value.to(p.dtype.element_ty), mask=_tile_mask(n, i, d, OTHER, L, CHANNELS, LINES))


@jit
def _lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES: tl.constexpr):
    """Pointers to, and mask of, the log-sum-exps of queries i: p_lse is contiguous [B, G, OTHER, L]."""
    if LINES == 1:
        return p_lse + ((b * G + g) * OTHER + n) * L + i, i < L
    else:
        return p_lse + ((b * G + g) * OTHER + n[:, None]) * L + i[None, :], (i < L)[None, :] & (n < OTHER)[:, None]


# The BLOCK_Q queries from i0 and BLOCK_K keys from j0 meet the offsets j-i of BLOCK_Q + BLOCK_K - 1 table rows: the block's window.
# Column c of a window holds the offset of key j0+b and query i0+a with c = b - a + BLOCK_Q - 1.
@jit
def _window(p_r, s, g, i0, j0, d, L, dtype, CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """The window's rows of one table, [BLOCK_R, channels]; s holds the table's strides (group, row, channel)."""
    row = j0 - i0 + L - BLOCK_Q + tl.arange(0, BLOCK_R)
    mask = ((row >= 0) & (row < 2 * L - 1))[:, None] & (d < CHANNELS)[None, :]
    rows = tl.load(p_r + g * s[0] + row[:, None] * s[1] + d[None, :] * s[2], mask=mask, other=0.0)
    return _each_line(rows.to(dtype), LINES)


@jit
def _window_to_keys(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_Q, BLOCK_R] by window column -> [BLOCK_Q, BLOCK_K] by key."""
    column = tl.arange(0, BLOCK_K)[None, :] - tl.arange(0, BLOCK_Q)[:, None] + (BLOCK_Q - 1)
    return tl.gather(x, _each_line(column, LINES), 1 if LINES == 1 else 2)


@jit
def _window_to_queries(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_K, BLOCK_R] by window column -> [BLOCK_K, BLOCK_Q] by query."""
    column = tl.arange(0, BLOCK_K)[:, None] - tl.arange(0, BLOCK_Q)[None, :] + (BLOCK_Q - 1)
    return tl.gather(x, _each_line(column, LINES), 1 if LINES == 1 else 2)


@jit
def _keys_to_window(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_Q, BLOCK_K] by key -> [BLOCK_Q, BLOCK_R] by window column, zero where the block has no such key."""
    key = tl.arange(0, BLOCK_R)[None, :] + tl.arange(0, BLOCK_Q)[:, None] - (BLOCK_Q - 1)
    inside = (key >= 0) & (key < BLOCK_K)
    moved = tl.gather(x, _each_line(tl.where(inside, key, 0), LINES), 1 if LINES == 1 else 2)
    return tl.where(inside, moved, 0.0)


@jit
def _queries_to_window(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_K, BLOCK_Q] by query -> [BLOCK_K, BLOCK_R] by window column, zero where the block has no such query."""
    query = tl.arange(0, BLOCK_K)[:, None] - tl.arange(0, BLOCK_R)[None, :] + (BLOCK_Q - 1)
    inside = (query >= 0) & (query < BLOCK_Q)
    moved = tl.gather(x, _each_line(tl.where(inside, query, 0), LINES), 1 if LINES == 1 else 2)
    return tl.where(inside, moved, 0.0)


@jit
def _logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D: tl.constexpr,
            BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """q_i . k_j + q_i . rq[j-i] + k_j . rk[j-i] for one block of queries and keys, unscaled; keys past the line give -inf."""
    s = tl.dot(q, _flip(k, LINES), input_precision=PRECISION)
    if p_rq is not None:
        rq = _window(p_rq, s_rq, g, i0, j0, d, L, q.dtype, D, BLOCK_Q, BLOCK_R, LINES)
        s += _window_to_keys(tl.dot(q, _flip(rq, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES)
    if p_rk is not None:
        rk = _window(p_rk, s_rk, g, i0, j0, d, L, k.dtype, D, BLOCK_Q, BLOCK_R, LINES)
        s += _flip(_window_to_queries(tl.dot(k, _flip(rk, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES), LINES)
    return s


@jit
def _probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D: tl.constexpr, E: tl.constexpr,
                              BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """p_ij and ds_ij of one block, float32, zero outside the line: the start of every backward kernel."""
    s = _logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
    i = i0 + tl.arange(0, BLOCK_Q)
    j = j0 + tl.arange(0, BLOCK_K)
    p = tl.exp2(s * (scale * 1.4426950408889634) - tl.expand_dims(lse, -1))
    p = tl.where((i < L)[:, None] & (j < L)[None, :], p, 0.0)
    delta = tl.sum(o.to(tl.float32) * grad.to(tl.float32), -1)
    dp = tl.dot(grad, _flip(v, LINES), input_precision=PRECISION)
    if p_rv is not None:
        rv = _window(p_rv, s_rv, g, i0, j0, e, L, grad.dtype, E, BLOCK_Q, BLOCK_R, LINES)
        dp += _window_to_keys(tl.dot(grad, _flip(rv, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES)
    return p, p * (dp - tl.expand_dims(delta, -1)) * scale


# ---------------------------------------------------------------- forward: grid (lines, query blocks)
@jit
def axial_forward(
    p_q, p_k, p_v, p_o,      # pointers to q, k [B, G, H, W, D] and v, o [B, G, H, W, E], any strides, one dtype
    p_rq, p_rk, p_rv,        # pointers to the tables [1 or G, 2L-1, D or E], same dtype, or None
    p_lse,                   # pointer to float32 [B, G, OTHER, L] contiguous: log2 of sum_j 2^(s_ij log2 e), for the backward
    s_q, s_k, s_v, s_o,      # element strides of each: (image, group, line, position in the line, channel)
    s_rq, s_rk, s_rv,        # element strides of each table: (group, 0 if shared; row; channel)
    scale,                   # float, multiplies the logits
    L, OTHER, G,             # length of a line, number of lines in an image, groups
    D: tl.constexpr, E: tl.constexpr,              # channels of a key and of a value
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,  # the same, rounded up to powers of two
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,  # queries of a program, keys of a step
    BLOCK_R: tl.constexpr,                         # table rows of a window: a power of two >= BLOCK_Q + BLOCK_K - 1
    LINES: tl.constexpr,                           # neighbouring lines of a program
    WIDE: tl.constexpr,                            # int64 offsets inside a line
    PRECISION: tl.constexpr,                       # of float32 dots: "ieee" or "tf32"
):
    b, g, n = _program_lines(OTHER, G, LINES)
    i0 = tl.program_id(1) * BLOCK_Q
    i = i0 + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    q = _load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    if LINES == 1:
        acc = tl.zeros((BLOCK_Q, BLOCK_E), tl.float32)
        total = tl.zeros((BLOCK_Q,), tl.float32)
    else:
        acc = tl.zeros((LINES, BLOCK_Q, BLOCK_E), tl.float32)
        total = tl.zeros((LINES, BLOCK_Q), tl.float32)
    highest = total - float("inf")
    for j0 in range(0, L, BLOCK_K):
        j = j0 + tl.arange(0, BLOCK_K)
        k = _load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        s = _logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        s = tl.where((j < L)[None, :], s * (scale * 1.4426950408889634), float("-inf"))
        higher = tl.maximum(highest, tl.max(s, -1))
        shrink = tl.exp2(highest - higher)
        p = tl.exp2(s - tl.expand_dims(higher, -1))
        total = total * shrink + tl.sum(p, -1)
        highest = higher
        v = _load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        acc = tl.dot(p.to(v.dtype), v, acc * tl.expand_dims(shrink, -1), input_precision=PRECISION)
        if p_rv is not None:
            rv = _window(p_rv, s_rv, g, i0, j0, e, L, v.dtype, E, BLOCK_Q, BLOCK_R, LINES)
            acc = tl.dot(_keys_to_window(p, BLOCK_Q, BLOCK_K, BLOCK_R, LINES).to(v.dtype), rv, acc, input_precision=PRECISION)
    _store(p_o, s_o, acc / tl.expand_dims(total, -1), b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    place, mask = _lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
    tl.store(place, highest + tl.log2(total), mask=mask)


# ---------------------------------------------------------------- backward of keys and values: grid (lines, key blocks)
@jit
def axial_backward_keys(
    p_q, p_k, p_v, p_o, p_grad,             # as in the forward; grad is dloss/do [B, G, H, W, E], any strides
    p_rq, p_rk, p_rv, p_lse,                # as in the forward
    p_dq, p_dk, p_dv,                       # pointers to the gradients of q, k, v; dq is written only when WHOLE
    s_q, s_k, s_v, s_o, s_grad, s_rq, s_rk, s_rv, s_dq, s_dk, s_dv,  # element strides, in the same orders
    scale, L, OTHER, G,                     # as in the forward
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,  # as in the forward
    WHOLE: tl.constexpr,                    # one block holds the line: dq is complete here and everything is read once
):
    b, g, n = _program_lines(OTHER, G, LINES)
    j0 = tl.program_id(1) * BLOCK_K
    j = j0 + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    k = _load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
    v = _load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
    if LINES == 1:
        dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_K, BLOCK_E), tl.float32)
    else:
        dk = tl.zeros((LINES, BLOCK_K, BLOCK_D), tl.float32)
        dv = tl.zeros((LINES, BLOCK_K, BLOCK_E), tl.float32)
    for i0 in range(0, L, BLOCK_Q):
        i = i0 + tl.arange(0, BLOCK_Q)
        q = _load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
        o = _load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        grad = _load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        place, mask = _lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
        lse = tl.load(place, mask=mask, other=0.0)
        p, ds = _probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        dv = tl.dot(_flip(p.to(grad.dtype), LINES), grad, dv, input_precision=PRECISION)
        dk = tl.dot(_flip(ds.to(q.dtype), LINES), q, dk, input_precision=PRECISION)
        if p_rk is not None:
            rk = _window(p_rk, s_rk, g, i0, j0, d, L, k.dtype, D, BLOCK_Q, BLOCK_R, LINES)
            slid = _queries_to_window(_flip(ds, LINES), BLOCK_Q, BLOCK_K, BLOCK_R, LINES)
            dk = tl.dot(slid.to(k.dtype), rk, dk, input_precision=PRECISION)
        if WHOLE:
            dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
            if p_rq is not None:
                rq = _window(p_rq, s_rq, g, i0, j0, d, L, k.dtype, D, BLOCK_Q, BLOCK_R, LINES)
                slid = _keys_to_window(ds, BLOCK_Q, BLOCK_K, BLOCK_R, LINES)
                dq = tl.dot(slid.to(k.dtype), rq, dq, input_precision=PRECISION)
            _store(p_dq, s_dq, dq, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    _store(p_dk, s_dk, dk, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
    _store(p_dv, s_dv, dv, b, g, n, j, e, OTHER, L, E, LINES, WIDE)


# ---------------------------------------------------------------- backward of queries, for lines of several blocks: grid (lines, query blocks)
@jit
def axial_backward_queries(
    p_q, p_k, p_v, p_o, p_grad, p_rq, p_rk, p_rv, p_lse, p_dq,          # as above
    s_q, s_k, s_v, s_o, s_grad, s_rq, s_rk, s_rv, s_dq,                 # as above
    scale, L, OTHER, G,                                                 # as above
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,  # as above
):
    b, g, n = _program_lines(OTHER, G, LINES)
    i0 = tl.program_id(1) * BLOCK_Q
    i = i0 + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    q = _load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    o = _load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    grad = _load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    place, mask = _lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
    lse = tl.load(place, mask=mask, other=0.0)
    if LINES == 1:
        dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    else:
        dq = tl.zeros((LINES, BLOCK_Q, BLOCK_D), tl.float32)
    for j0 in range(0, L, BLOCK_K):
        j = j0 + tl.arange(0, BLOCK_K)
        k = _load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        v = _load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        p, ds = _probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        if p_rq is not None:
            rq = _window(p_rq, s_rq, g, i0, j0, d, L, k.dtype, D, BLOCK_Q, BLOCK_R, LINES)
            dq = tl.dot(_keys_to_window(ds, BLOCK_Q, BLOCK_K, BLOCK_R, LINES).to(k.dtype), rq, dq, input_precision=PRECISION)
    _store(p_dq, s_dq, dq, b, g, n, i, d, OTHER, L, D, LINES, WIDE)


# ---------------------------------------------------------------- backward of the tables, stage one: grid (diagonals of blocks, groups, shares)
@jit
def axial_backward_tables(
    p_q, p_k, p_v, p_o, p_grad, p_rq, p_rk, p_rv, p_lse,  # as above
    p_drq, p_drk, p_drv,                                  # partial tables, float32 [SHARES, G, diagonals, 2*BLOCK, BLOCK_D or BLOCK_E], or None
    s_q, s_k, s_v, s_o, s_grad, s_rq, s_rk, s_rv,         # as above
    scale, L, OTHER, G, B,                                # as above; B images
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,                              # as above
    BLOCK: tl.constexpr,                                  # queries and keys of a block; its window has 2*BLOCK rows
):
    # Every pair of blocks with the same (key block - query block) has the same window, so one program keeps it in registers.
    diagonal = tl.program_id(0)
    g = tl.program_id(1)
    share = tl.program_id(2)
    shares = tl.num_programs(2)
    blocks = tl.cdiv(L, BLOCK)
    ahead = diagonal - (blocks - 1)
    first = tl.maximum(0, -ahead)
    pairs = blocks - tl.abs(ahead)
    line_blocks = tl.cdiv(OTHER, LINES)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    drq = tl.zeros((2 * BLOCK, BLOCK_D), tl.float32)
    drk = tl.zeros((2 * BLOCK, BLOCK_D), tl.float32)
    drv = tl.zeros((2 * BLOCK, BLOCK_E), tl.float32)
    for step in range(share, B * line_blocks * pairs, shares):
        pair = step % pairs
        b = (step // pairs // line_blocks).to(tl.int64)
        n = (step // pairs % line_blocks).to(tl.int64)
        if LINES > 1:
            n = n * LINES + tl.arange(0, LINES)
        i0 = (first + pair) * BLOCK
        j0 = (first + pair + ahead) * BLOCK
        i = i0 + tl.arange(0, BLOCK)
        j = j0 + tl.arange(0, BLOCK)
        q = _load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
        k = _load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        v = _load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        o = _load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        grad = _load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        place, mask = _lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
        lse = tl.load(place, mask=mask, other=0.0)
        p, ds = _probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK, BLOCK, 2 * BLOCK, LINES, PRECISION)
        if p_drq is not None:
            slid = _flip(_keys_to_window(ds, BLOCK, BLOCK, 2 * BLOCK, LINES).to(q.dtype), LINES)
            drq = _add_lines(slid, q, drq, LINES, PRECISION)
        if p_drk is not None:
            slid = _flip(_queries_to_window(_flip(ds, LINES), BLOCK, BLOCK, 2 * BLOCK, LINES).to(k.dtype), LINES)
            drk = _add_lines(slid, k, drk, LINES, PRECISION)
        if p_drv is not None:
            slid = _flip(_keys_to_window(p, BLOCK, BLOCK, 2 * BLOCK, LINES).to(grad.dtype), LINES)
            drv = _add_lines(slid, grad, drv, LINES, PRECISION)
    row = ((share * G + g).to(tl.int64) * (2 * blocks - 1) + diagonal) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    if p_drq is not None:
        tl.store(p_drq + row[:, None] * BLOCK_D + d[None, :], drq)
    if p_drk is not None:
        tl.store(p_drk + row[:, None] * BLOCK_D + d[None, :], drk)
    if p_drv is not None:
        tl.store(p_drv + row[:, None] * BLOCK_E + e[None, :], drv)


@jit
def _add_lines(a, b, acc, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, summed over the lines of the tile."""
    if LINES == 1:
        return tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        return acc + tl.sum(tl.dot(a, b, input_precision=PRECISION), 0)


# ---------------------------------------------------------------- tiles and launches
def _tiles(length: int, lines: int, channels: int, relative: bool, neighbours: bool, backward: bool) -> dict:
    """Block sizes, warps and stages by shape class; every row is compiled for sm_80, sm_90 and gfx942 by kernels/compile_check.py.

    `channels` is max(BLOCK_D, BLOCK_E); `neighbours` means that only neighbouring lines are neighbours in memory (columns of NCHW).
    """
    fits = triton.next_power_of_2(max(length, 16))
    if INTERPRETING:  # the interpreter pays per operation, not per element: many lines to a program
        return {"BLOCK_Q": 32, "BLOCK_K": 32, "LINES": min(16, triton.next_power_of_2(lines)), "warps": 4, "stages": 1}
    if relative:  # a whole line of queries in 4 warps spills: 32 queries and their window fit
        return {"BLOCK_Q": 32, "BLOCK_K": 32 if backward or channels > 64 else min(fits, 64), "LINES": 1, "warps": 8, "stages": 1}
    if neighbours:
        return {"BLOCK_Q": 16, "BLOCK_K": 16, "LINES": 8, "warps": 8, "stages": 1}
    block = min(fits, 64)
    return {"BLOCK_Q": block, "BLOCK_K": block, "LINES": 1, "warps": 4 if channels <= 64 else 8, "stages": 1 if fits <= 64 else 2}


def _line_strides(t: Tensor, axis: str) -> tuple[int, int, int, int, int]:
    """Strides of [B, G, H, W, C] as (image, group, line, position in the line, channel)."""
    b, g, h, w, c = t.stride()
    return (b, g, h, w, c) if axis == "row" else (b, g, w, h, c)


def _launch(q: Tensor, v: Tensor, axis: str, tables: tuple, tensors: tuple, precision: str, backward: bool) -> tuple[dict, dict, dict]:
    """Arguments that all kernels share: run-time sizes, compile-time sizes, launch options."""
    B, G, H, W, D = q.shape
    E = v.shape[-1]
    length, lines = (W, H) if axis == "row" else (H, W)
    block_d, block_e = (triton.next_power_of_2(max(c, 16)) for c in (D, E))
    strides = [_line_strides(t, axis) for t in tensors]
    neighbours = lines > 1 and all(s[2] == 1 and s[3] != 1 and s[4] != 1 for s in strides)
    tiles = _tiles(length, lines, max(block_d, block_e), any(t is not None for t in tables), neighbours, backward)
    wide = any((length - 1) * abs(s[3]) + (t.shape[-1] - 1) * abs(s[4]) >= 2**31 for s, t in zip(strides, tensors))
    constants = {"D": D, "E": E, "BLOCK_D": block_d, "BLOCK_E": block_e, "LINES": tiles["LINES"], "WIDE": wide, "PRECISION": precision}
    blocks = {"BLOCK_Q": tiles["BLOCK_Q"], "BLOCK_K": tiles["BLOCK_K"], "BLOCK_R": triton.next_power_of_2(tiles["BLOCK_Q"] + tiles["BLOCK_K"])}
    options = launch_options(num_warps=tiles["warps"], num_stages=tiles["stages"])
    return {"L": length, "OTHER": lines, "G": G}, constants, {"blocks": blocks, "options": options, "programs": B * G * -(-lines // tiles["LINES"])}


def _table_arguments(tables: tuple) -> dict:
    arguments = {}
    for name, table in zip(("rq", "rk", "rv"), tables):
        arguments[f"p_{name}"] = table
        arguments[f"s_{name}"] = (0, 0, 0) if table is None else (0, *table.stride()) if table.dim() == 2 else table.stride()
    return arguments


class _AxialAttention(torch.autograd.Function):
    """The kernels under autograd. Outputs and gradients take the memory order of the input they belong to."""

    @staticmethod
    def forward(ctx, q, k, v, rq, rk, rv, axis, scale, precision):
        out = torch.empty_like(v)
        sizes, constants, launch = _launch(q, v, axis, (rq, rk, rv), (q, k, v, out), precision, backward=False)
        lse = torch.empty(*q.shape[:2], sizes["OTHER"], sizes["L"], dtype=torch.float32, device=q.device)
        grid = (launch["programs"], triton.cdiv(sizes["L"], launch["blocks"]["BLOCK_Q"]))
        strides = {f"s_{name}": _line_strides(t, axis) for name, t in zip("qkvo", (q, k, v, out))}
        axial_forward[grid](p_q=q, p_k=k, p_v=v, p_o=out, p_lse=lse, scale=scale, **strides, **_table_arguments((rq, rk, rv)), **sizes,
                            **constants, **launch["blocks"], **launch["options"])
        ctx.save_for_backward(q, k, v, out, lse, rq, rk, rv)
        ctx.axis, ctx.scale, ctx.precision = axis, scale, precision
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, lse, *tables = ctx.saved_tensors
        axis, (dq, dk, dv) = ctx.axis, (torch.empty_like(t) for t in (q, k, v))
        sizes, constants, launch = _launch(q, v, axis, tables, (q, k, v, out, grad), ctx.precision, backward=True)
        blocks, options, programs = launch["blocks"], launch["options"], launch["programs"]
        names = {"q": q, "k": k, "v": v, "o": out, "grad": grad}
        inputs = {f"p_{name}": t for name, t in names.items()} | {f"s_{name}": _line_strides(t, axis) for name, t in names.items()}
        inputs |= {"p_lse": lse, "scale": ctx.scale, **_table_arguments(tables), **sizes, **constants}
        outputs = {f"p_d{name}": t for name, t in zip("qkv", (dq, dk, dv))} | {f"s_d{name}": _line_strides(t, axis) for name, t in zip("qkv", (dq, dk, dv))}
        whole = sizes["L"] <= min(blocks["BLOCK_Q"], blocks["BLOCK_K"])
        axial_backward_keys[programs, triton.cdiv(sizes["L"], blocks["BLOCK_K"])](**inputs, **outputs, **blocks, WHOLE=whole, **options)
        if not whole:
            outputs = {"p_dq": dq, "s_dq": outputs["s_dq"]}
            axial_backward_queries[programs, triton.cdiv(sizes["L"], blocks["BLOCK_Q"])](**inputs, **outputs, **blocks, **options)
        wanted = [t if t is not None and needed else None for t, needed in zip(tables, ctx.needs_input_grad[3:6])]
        return dq, dk, dv, *_table_gradients(wanted, inputs, q.shape[0], options), None, None, None


def _table_gradients(wanted: list, inputs: dict, images: int, options: dict) -> list:
    """Both stages of the table gradients; None where none is wanted."""
    if all(table is None for table in wanted):
        return [None, None, None]
    length, groups, block = inputs["L"], inputs["G"], 32
    blocks = -(-length // block)
    shares = min(2 if INTERPRETING else max(1, 512 // (groups * (2 * blocks - 1))), images * inputs["OTHER"])
    widths = (inputs["BLOCK_D"], inputs["BLOCK_D"], inputs["BLOCK_E"])
    partial = [None if t is None else torch.empty(shares, groups, 2 * blocks - 1, 2 * block, width, dtype=torch.float32, device=t.device)
               for t, width in zip(wanted, widths)]
    axial_backward_tables[2 * blocks - 1, groups, shares](p_drq=partial[0], p_drk=partial[1], p_drv=partial[2], **inputs, B=images, BLOCK=block, **options)
    gradients = []
    for table, part in zip(wanted, partial):
        if table is not None:
            windows = part.sum(0)  # [G, M, 64, D]
            rows = F.pad(windows[:, :, :block], (0, 0, 0, 0, 0, 1)) + F.pad(windows[:, :, block:], (0, 0, 0, 0, 1, 0))  # neighbours overlap by half
            rows = rows.flatten(1, 2)[:, blocks * block - length : blocks * block + length - 1, : table.shape[-1]]
            gradients.append((rows if table.dim() == 3 else rows.sum(0)).to(table.dtype))
        else:
            gradients.append(None)
    return gradients


def _axial_attention_torch(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float, relative: RelativePositions) -> Tensor:
    """The fastest of the PyTorch forms that were timed on CPU (lessons/05_axial_attention.md has the table)."""
    if any(t is not None for t in relative):
        return axial_attention_reference(q, k, v, axis, scale, relative)  # beat skewing by as_strided and by gather, forward and backward
    if axis == "column":
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))
    if q.stride(-1) != 1 and q.shape[3] <= 128 and q.dtype in (torch.float32, torch.float64):
        out = torch.softmax((q * scale) @ k.transpose(-1, -2), -1) @ v  # [B, G, N, L, E]
    else:
        # SDPA wants four axes: merge lines with images (rows of NHWC) or with groups (columns of NHWC), whichever needs no copy
        dims, lines = ((0, 1) if axis == "row" else (1, 2)), q.shape[2]
        q, k, v = (t.transpose(1, 2).flatten(*dims) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out = out.unflatten(dims[0], (-1, lines) if axis == "row" else (lines, -1)).transpose(1, 2)
    return out.transpose(2, 3) if axis == "column" else out


# ---------------------------------------------------------------- public operations
def _check(q: Tensor, k: Tensor, v: Tensor, axis: str, relative: RelativePositions) -> None:
    if axis not in ("row", "column"):
        raise ValueError(f"axial_attention: axis must be 'row' (along W) or 'column' (along H); got {axis!r}")
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 5:
            raise ValueError(f"axial_attention: {name} must be [B, G, H, W, channels]; got {t.dim()} axes, shape {tuple(t.shape)}; "
                             "an NHWC map becomes x.unflatten(-1, (G, -1)).permute(0, 3, 1, 2, 4)")
    if q.shape != k.shape or q.shape[:4] != v.shape[:4]:
        raise ValueError(f"axial_attention: q and k must have one shape, and v the same B, G, H, W; got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"axial_attention: q, k and v must share one floating-point dtype; got {q.dtype}, {k.dtype}, {v.dtype}; convert them with .to(...)")
    if not (q.device == k.device == v.device):
        raise ValueError(f"axial_attention: q, k and v must be on one device; got {q.device}, {k.device}, {v.device}")
    groups, length = q.shape[1], q.shape[3 if axis == "row" else 2]
    for name, table, channels in zip(RelativePositions._fields, relative, (q.shape[-1], q.shape[-1], v.shape[-1])):
        if table is not None and (tuple(table.shape[-2:]) != (2 * length - 1, channels) or tuple(table.shape[:-2]) not in ((), (groups,))):
            raise ValueError(f"axial_attention: relative.{name} must be [{2 * length - 1}, {channels}] or [{groups}, {2 * length - 1}, {channels}] "
                             f"(2L-1 offsets of a {axis} of L = {length}); got {tuple(table.shape)}")
        if table is not None and (not table.is_floating_point() or table.device != q.device):
            raise TypeError(f"axial_attention: relative.{name} must be floating point on {q.device}; got {table.dtype} on {table.device}")


def axial_attention(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float | None = None, relative: RelativePositions | None = None,
                    *, allow_tf32: bool = False) -> Tensor:
    """Attention along every row (`axis="row"`, over W) or every column (`axis="column"`, over H) of a map, in each group by itself.

    q, k: [B, G, H, W, D], v: [B, G, H, W, E], any strides: views of NHWC and NCHW maps are read where they lie. Returns [B, G, H, W, E]
    in v's dtype and memory order. float32, float16, bfloat16 (float64 takes the PyTorch path); sums are float32.
    scale: multiplies the logits, relative terms included; default D ** -0.5 (Axial-DeepLab: 1, it normalises the logits by batch norm).
    relative: tables of `RelativePositions`, [2L-1, D] or [G, 2L-1, D] with L = W for rows, H for columns. Any floating-point dtype: they are
    converted to q's, so float32 tables work beside bfloat16 maps under autocast.
    allow_tf32: let float32 products use TF32 on a GPU.
    Differentiable once, in q, k, v and the tables. ValueError or TypeError for shapes and dtypes that do not fit.
    Source: Axial-DeepLab (arXiv 2003.07853), equation 4.
    """
    relative = RelativePositions() if relative is None else RelativePositions(*relative)
    _check(q, k, v, axis, relative)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    path = path_for(q)
    if path == "triton" and q.dtype != torch.float64 and q.numel() > 0 and v.numel() > 0:
        return _AxialAttention.apply(q, k, v, *relative, axis, scale, "tf32" if allow_tf32 else "ieee")
    form = axial_attention_reference if path == "reference" else _axial_attention_torch
    with torch.autocast(q.device.type, enabled=False):  # every path keeps the dtype it was given
        return form(q, k, v, axis, scale, relative)


def axial_pair(q: Tensor, k: Tensor, v: Tensor, then: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None, scale: float | None = None,
               column: RelativePositions | None = None, row: RelativePositions | None = None, *, allow_tf32: bool = False) -> Tensor:
    """Both axes. With `then`: columns first, then rows, one after the other, as Axial-DeepLab's block does (section 3.2: height axis, then width
    axis), so that two passes connect any two pixels; `then` makes the row pass's (q, k, v) from the column pass's output [B, G, H, W, E], which
    is where the block has its second set of projections. Without `then`: column(q, k, v) + row(q, k, v), the sum of both axes in one pass.

    column, row: relative tables of each pass. Shapes and errors as in `axial_attention`.
    """
    down = axial_attention(q, k, v, "column", scale, column, allow_tf32=allow_tf32)
    if then is None:
        return down + axial_attention(q, k, v, "row", scale, row, allow_tf32=allow_tf32)
    return axial_attention(*then(down), "row", scale, row, allow_tf32=allow_tf32)
