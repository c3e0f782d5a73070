"""Tiles of axial attention: how a program of `kernels/axial_attention.py` finds its lines, reads and writes them, and shifts relative positions.

A tile is [BLOCK, channels] of one line, or [LINES, BLOCK, channels] of several neighbouring lines: where neighbouring lines are
neighbours in memory (columns of NCHW), LINES of them together make one wide read. A shape without LINES broadcasts to both.
"""
from __future__ import annotations

from kernels.backend import jit, tl


@jit
def program_lines(OTHER, G, LINES: tl.constexpr):
    """Image b, group g and line(s) n of this program; n is a number or [LINES]."""
    blocks = tl.cdiv(OTHER, LINES)
    program = tl.program_id(0)
    n = program % blocks
    if LINES > 1:
        n = n * LINES + tl.arange(0, LINES)
    return program // blocks // G, program // blocks % G, n


@jit
def flip(x, LINES: tl.constexpr):
    """Exchange the last two axes."""
    if LINES == 1:
        return tl.trans(x)
    else:
        return tl.permute(x, (0, 2, 1))


@jit
def zeros(M: tl.constexpr, N: tl.constexpr, LINES: tl.constexpr):
    if LINES == 1:
        return tl.zeros((M, N), tl.float32)
    else:
        return tl.zeros((LINES, M, N), tl.float32)


@jit
def each_line(x, LINES: tl.constexpr):
    """[M, N] -> [LINES, M, N], because dots and gathers want equal ranks."""
    if LINES == 1:
        return x
    else:
        return tl.broadcast_to(x[None, :, :], (LINES, x.shape[0], x.shape[1]))


@jit
def tile_pointers(p, s, b, g, n, i, d, LINES: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to positions i and channels d; s holds the strides (image, group, line, position, channel)."""
    p += b.to(tl.int64) * s[0] + g.to(tl.int64) * s[1]  # one number for the program, so that the tile's own offsets can be int32
    if WIDE:  # one image spans more than 2^31 elements
        i = i.to(tl.int64)
        d = d.to(tl.int64)
        n = n.to(tl.int64)
    inside = i[:, None] * s[3] + d[None, :] * s[4]
    if LINES == 1:
        return p + n.to(tl.int64) * s[2] + inside
    else:
        return p + (n[:, None, None] * s[2] + inside)


@jit
def tile_mask(n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr):
    mask = (i < L)[:, None]
    if d.shape[0] != CHANNELS:
        mask = mask & (d < CHANNELS)[None, :]
    if LINES > 1:
        mask = mask & (n < OTHER)[:, None, None]
    return mask


@jit
def load(p, s, b, g, n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr):
    return tl.load(tile_pointers(p, s, b, g, n, i, d, LINES, WIDE), mask=tile_mask(n, i, d, OTHER, L, CHANNELS, LINES), other=0.0)


@jit
def store(p, s, value, b, g, n, i, d, OTHER, L, CHANNELS: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr):
    tl.store(tile_pointers(p, s, b, g, n, i, d, LINES, WIDE), value.to(p.dtype.element_ty), mask=tile_mask(n, i, d, OTHER, L, CHANNELS, LINES))


@jit
def lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES: tl.constexpr):
    """Pointers to, and mask of, the log-sum-exps of queries i: p_lse is contiguous [B, G, OTHER, L]."""
    p_lse += (b * G + g).to(tl.int64) * OTHER * L
    if LINES == 1:
        return p_lse + n * L + i, i < L
    else:
        return p_lse + (n[:, None] * L + i[None, :]), (i < L)[None, :] & (n < OTHER)[:, None]


# The BLOCK_Q queries from i0 and BLOCK_K keys from j0 meet the offsets j-i of BLOCK_Q + BLOCK_K - 1 table rows: the block's window.
# Column c of a window holds the offset of key j0+b and query i0+a with c = b - a + BLOCK_Q - 1.
@jit
def window(p_r, s, g, i0, j0, d, L, CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """The window's rows of one table, [BLOCK_R, channels]; s holds the table's strides (group, row, channel)."""
    row = j0 - i0 + L - BLOCK_Q + tl.arange(0, BLOCK_R)
    mask = ((row >= 0) & (row < 2 * L - 1))[:, None] & (d < CHANNELS)[None, :]
    rows = tl.load(p_r + g * s[0] + row[:, None] * s[1] + d[None, :] * s[2], mask=mask, other=0.0)
    return each_line(rows, LINES)


@jit
def window_to_keys(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_Q, BLOCK_R] by window column -> [BLOCK_Q, BLOCK_K] by key."""
    column = tl.arange(0, BLOCK_K)[None, :] - tl.arange(0, BLOCK_Q)[:, None] + (BLOCK_Q - 1)
    return tl.gather(x, each_line(column, LINES), 1 if LINES == 1 else 2)


@jit
def window_to_queries(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_K, BLOCK_R] by window column -> [BLOCK_K, BLOCK_Q] by query."""
    column = tl.arange(0, BLOCK_K)[:, None] - tl.arange(0, BLOCK_Q)[None, :] + (BLOCK_Q - 1)
    return tl.gather(x, each_line(column, LINES), 1 if LINES == 1 else 2)


@jit
def keys_to_window(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_Q, BLOCK_K] by key -> [BLOCK_Q, BLOCK_R] by window column, zero where the block has no such key."""
    key = tl.arange(0, BLOCK_R)[None, :] + tl.arange(0, BLOCK_Q)[:, None] - (BLOCK_Q - 1)
    inside = (key >= 0) & (key < BLOCK_K)
    moved = tl.gather(x, each_line(tl.where(inside, key, 0), LINES), 1 if LINES == 1 else 2)
    return tl.where(inside, moved, 0.0)


@jit
def queries_to_window(x, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK_K, BLOCK_Q] by query -> [BLOCK_K, BLOCK_R] by window column, zero where the block has no such query."""
    query = tl.arange(0, BLOCK_K)[:, None] - tl.arange(0, BLOCK_R)[None, :] + (BLOCK_Q - 1)
    inside = (query >= 0) & (query < BLOCK_Q)
    moved = tl.gather(x, each_line(tl.where(inside, query, 0), LINES), 1 if LINES == 1 else 2)
    return tl.where(inside, moved, 0.0)


@jit
def block_logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D: tl.constexpr,
                 BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """q_i . k_j + q_i . rq[j-i] + k_j . rk[j-i] for one block of queries and keys: unscaled, keys past the line not masked yet."""
    s = tl.dot(q, flip(k, LINES), input_precision=PRECISION)
    if p_rq is not None:
        rq = window(p_rq, s_rq, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_R, LINES)
        s += window_to_keys(tl.dot(q, flip(rq, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES)
    if p_rk is not None:
        rk = window(p_rk, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_R, LINES)
        s += flip(window_to_queries(tl.dot(k, flip(rk, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES), LINES)
    return s


@jit
def probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D: tl.constexpr, E: tl.constexpr,
                             BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """p_ij and ds_ij of one block, float32, zero outside the line: the start of every backward kernel."""
    delta = tl.sum(o.to(tl.float32) * grad.to(tl.float32), -1)
    s = block_logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
    i = i0 + tl.arange(0, BLOCK_Q)
    j = j0 + tl.arange(0, BLOCK_K)
    p = tl.exp2(s * (scale * 1.4426950408889634) - tl.expand_dims(lse, -1))
    p = tl.where((i < L)[:, None] & (j < L)[None, :], p, 0.0)
    dp = tl.dot(grad, flip(v, LINES), input_precision=PRECISION)
    if p_rv is not None:
        rv = window(p_rv, s_rv, g, i0, j0, e, L, E, BLOCK_Q, BLOCK_R, LINES)
        dp += window_to_keys(tl.dot(grad, flip(rv, LINES), input_precision=PRECISION), BLOCK_Q, BLOCK_K, LINES)
    return p, p * (dp - tl.expand_dims(delta, -1)) * scale


@jit
def add_lines(a, b, acc, LINES: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, summed over the lines of the tile."""
    if LINES == 1:
        return tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        return acc + tl.sum(tl.dot(a, b, input_precision=PRECISION), 0)
