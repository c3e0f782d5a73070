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

from kernels.axial_tiles import (
    add_lines, block_logits, flip, keys_to_window, load, lse_place, probabilities_and_slopes, program_lines, queries_to_window, store, window, zeros,
)
from kernels.backend import INTERPRETING, device_of, jit, launch_options, path_for, tl, triton

LOG2_E = 1.4426950408889634
CACHED_LOGITS = 1 << 19  # 2 MB of float32


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
    b, g, n = program_lines(OTHER, G, LINES)
    i0 = tl.program_id(1) * BLOCK_Q
    i = i0 + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    q = load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    acc = zeros(BLOCK_Q, BLOCK_E, LINES)
    total = tl.sum(acc, -1)
    highest = total - float("inf")
    for j0 in range(0, L, BLOCK_K):
        j = j0 + tl.arange(0, BLOCK_K)
        k = load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        s = block_logits(q, k, p_rq, p_rk, s_rq, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        s = tl.where((j < L)[None, :], s * (scale * 1.4426950408889634), float("-inf"))
        higher = tl.maximum(highest, tl.max(s, -1))
        shrink = tl.exp2(highest - higher)
        p = tl.exp2(s - tl.expand_dims(higher, -1))
        total = total * shrink + tl.sum(p, -1)
        highest = higher
        v = load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        acc = tl.dot(p.to(v.dtype), v, acc * tl.expand_dims(shrink, -1), input_precision=PRECISION)
        if p_rv is not None:
            rv = window(p_rv, s_rv, g, i0, j0, e, L, E, BLOCK_Q, BLOCK_R, LINES)
            acc = tl.dot(keys_to_window(p, BLOCK_Q, BLOCK_K, BLOCK_R, LINES).to(v.dtype), rv, acc, input_precision=PRECISION)
    store(p_o, s_o, acc / tl.expand_dims(total, -1), b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    place, mask = lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
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
    b, g, n = program_lines(OTHER, G, LINES)
    j0 = tl.program_id(1) * BLOCK_K
    j = j0 + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    k = load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
    v = load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
    dk = zeros(BLOCK_K, BLOCK_D, LINES)
    dv = zeros(BLOCK_K, BLOCK_E, LINES)
    for i0 in range(0, L, BLOCK_Q):
        i = i0 + tl.arange(0, BLOCK_Q)
        q = load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
        o = load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        grad = load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        place, mask = lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
        lse = tl.load(place, mask=mask, other=0.0)
        p, ds = probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        dv = tl.dot(flip(p.to(grad.dtype), LINES), grad, dv, input_precision=PRECISION)
        dk = tl.dot(flip(ds.to(q.dtype), LINES), q, dk, input_precision=PRECISION)
        if p_rk is not None:
            rk = window(p_rk, s_rk, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_R, LINES)
            slid = queries_to_window(flip(ds, LINES), BLOCK_Q, BLOCK_K, BLOCK_R, LINES)
            dk = tl.dot(slid.to(k.dtype), rk, dk, input_precision=PRECISION)
        if WHOLE:
            dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
            if p_rq is not None:
                rq = window(p_rq, s_rq, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_R, LINES)
                slid = keys_to_window(ds, BLOCK_Q, BLOCK_K, BLOCK_R, LINES)
                dq = tl.dot(slid.to(k.dtype), rq, dq, input_precision=PRECISION)
            store(p_dq, s_dq, dq, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    store(p_dk, s_dk, dk, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
    store(p_dv, s_dv, dv, b, g, n, j, e, OTHER, L, E, LINES, WIDE)


# ---------------------------------------------------------------- backward of queries, for lines of several blocks: grid (lines, query blocks)
@jit
def axial_backward_queries(
    p_q, p_k, p_v, p_o, p_grad, p_rq, p_rk, p_rv, p_lse, p_dq,          # as above
    s_q, s_k, s_v, s_o, s_grad, s_rq, s_rk, s_rv, s_dq,                 # as above
    scale, L, OTHER, G,                                                 # as above
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,  # as above
):
    b, g, n = program_lines(OTHER, G, LINES)
    i0 = tl.program_id(1) * BLOCK_Q
    i = i0 + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    q = load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
    o = load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    grad = load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
    place, mask = lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
    lse = tl.load(place, mask=mask, other=0.0)
    dq = zeros(BLOCK_Q, BLOCK_D, LINES)
    for j0 in range(0, L, BLOCK_K):
        j = j0 + tl.arange(0, BLOCK_K)
        k = load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        v = load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        p, ds = probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK_Q, BLOCK_K, BLOCK_R, LINES, PRECISION)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        if p_rq is not None:
            rq = window(p_rq, s_rq, g, i0, j0, d, L, D, BLOCK_Q, BLOCK_R, LINES)
            dq = tl.dot(keys_to_window(ds, BLOCK_Q, BLOCK_K, BLOCK_R, LINES).to(k.dtype), rq, dq, input_precision=PRECISION)
    store(p_dq, s_dq, dq, b, g, n, i, d, OTHER, L, D, LINES, WIDE)


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
        b = step // pairs // line_blocks
        n = step // pairs % line_blocks
        if LINES > 1:
            n = n * LINES + tl.arange(0, LINES)
        i0 = (first + pair) * BLOCK
        j0 = (first + pair + ahead) * BLOCK
        i = i0 + tl.arange(0, BLOCK)
        j = j0 + tl.arange(0, BLOCK)
        q = load(p_q, s_q, b, g, n, i, d, OTHER, L, D, LINES, WIDE)
        k = load(p_k, s_k, b, g, n, j, d, OTHER, L, D, LINES, WIDE)
        v = load(p_v, s_v, b, g, n, j, e, OTHER, L, E, LINES, WIDE)
        o = load(p_o, s_o, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        grad = load(p_grad, s_grad, b, g, n, i, e, OTHER, L, E, LINES, WIDE)
        place, mask = lse_place(p_lse, b, g, n, i, OTHER, L, G, LINES)
        lse = tl.load(place, mask=mask, other=0.0)
        p, ds = probabilities_and_slopes(q, k, v, o, grad, lse, p_rq, p_rk, p_rv, s_rq, s_rk, s_rv, g, i0, j0, d, e, scale, L, D, E,
                                          BLOCK, BLOCK, 2 * BLOCK, LINES, PRECISION)
        if p_drq is not None:
            slid = flip(keys_to_window(ds, BLOCK, BLOCK, 2 * BLOCK, LINES).to(q.dtype), LINES)
            drq = add_lines(slid, q, drq, LINES, PRECISION)
        if p_drk is not None:
            slid = flip(queries_to_window(flip(ds, LINES), BLOCK, BLOCK, 2 * BLOCK, LINES).to(k.dtype), LINES)
            drk = add_lines(slid, k, drk, LINES, PRECISION)
        if p_drv is not None:
            slid = flip(keys_to_window(p, BLOCK, BLOCK, 2 * BLOCK, LINES).to(grad.dtype), LINES)
            drv = add_lines(slid, grad, drv, LINES, PRECISION)
    row = ((share * G + g).to(tl.int64) * (2 * blocks - 1) + diagonal) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    if p_drq is not None:
        tl.store(p_drq + row[:, None] * BLOCK_D + d[None, :], drq)
    if p_drk is not None:
        tl.store(p_drk + row[:, None] * BLOCK_D + d[None, :], drk)
    if p_drv is not None:
        tl.store(p_drv + row[:, None] * BLOCK_E + e[None, :], drv)


# ---------------------------------------------------------------- tiles and launches
def _arch(device: torch.device) -> str:
    if INTERPRETING:
        return "interpreter"
    return "hip" if torch.version.hip else "sm90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm80"


def _tiles(arch: str, backward: bool, length: int, channels: int, wide: bool, relative: bool, strides: str) -> dict:
    """Block sizes, lines, warps and stages by shape class; kernels/compile_check.py holds every row to zero spills on sm_80, sm_90, gfx942.

    length, channels: rounded up to powers of two; wide: float32 elements; strides: which neighbours are neighbours in memory,
    "channel" (NHWC), "position" (rows of NCHW) or "line" (columns of NCHW). The kernel of dq swaps BLOCK_Q and BLOCK_K.
    """
    def tile(q, k, lines=1, warps=8, stages=1, table=16):
        table_warps = 8 if wide and arch != "hip" else 4
        return {"BLOCK_Q": q, "BLOCK_K": k, "LINES": lines, "BLOCK": table, "num_warps": warps, "num_stages": stages, "table_warps": table_warps}

    if arch == "interpreter":  # pays per operation, not per element: many lines to a program
        return tile(32, 32, lines=16, table=32)
    large = channels > 64 or wide
    if relative:  # a whole line of queries with its window spills
        side = 16 if large or strides != "channel" else 32
        return tile(16 if backward else side, side, warps=4 if arch == "hip" else 8)
    if strides == "line":
        return tile(16, 16, lines=4 if large else 8)
    if not backward:
        block = min(length, 32 if channels > 128 or wide else 64)
        return tile(block, block, warps=8 if large else 4, stages=1 if length <= block else 2)
    if length <= (32 if large else 64) and (strides == "channel" or arch == "sm90") and channels <= 128:
        return tile(length, length, warps=4 if arch == "hip" else 8)  # the whole line: dq, dk and dv from one reading
    return tile(16, 16) if channels > 128 else tile(32, 32) if large else tile(32, min(length, 64))


def _line_strides(t: Tensor, axis: str) -> tuple[int, int, int, int, int]:
    """Strides of [B, G, H, W, C] as (image, group, line, position in the line, channel)."""
    b, g, h, w, c = t.stride()
    return (b, g, h, w, c) if axis == "row" else (b, g, w, h, c)


def _arguments(maps: dict, tables: dict, lse: Tensor, axis: str, scale: float, precision: str, backward: bool, arch: str) -> tuple[dict, dict]:
    """What every kernel takes, and the tiles. maps: q, k, v, o (and grad) by name; tables: rq, rk, rv."""
    q, v = maps["q"], maps["v"]
    strides = {name: _line_strides(t, axis) for name, t in maps.items()}
    length, lines = (q.shape[3], q.shape[2]) if axis == "row" else (q.shape[2], q.shape[3])
    block_d, block_e = (triton.next_power_of_2(max(t.shape[-1], 16)) for t in (q, v))
    unit = [4 if s[4] == 1 else 3 if s[3] == 1 else 2 if s[2] == 1 else 4 for s in strides.values()]
    tiles = _tiles(arch, backward, triton.next_power_of_2(max(length, 16)), max(block_d, block_e), q.dtype == torch.float32,
                   any(t is not None for t in tables.values()), {4: "channel", 3: "position", 2: "line"}[max(set(unit), key=unit.count)])
    tiles["LINES"] = min(tiles["LINES"], triton.next_power_of_2(lines))
    reach = max((lines - 1) * s[2] + (length - 1) * s[3] + (maps[name].shape[-1] - 1) * s[4] for name, s in strides.items())
    arguments = {f"p_{name}": t for name, t in (maps | tables).items()} | {f"s_{name}": s for name, s in strides.items()}
    for name, table in tables.items():
        arguments[f"s_{name}"] = (0, 0, 0) if table is None else (0, *table.stride()) if table.dim() == 2 else table.stride()
    arguments |= {"p_lse": lse, "scale": scale, "L": length, "OTHER": lines, "G": q.shape[1], "D": q.shape[-1], "E": v.shape[-1], "BLOCK_D": block_d,
                  "BLOCK_E": block_e, "LINES": tiles["LINES"], "WIDE": reach >= 2**31, "PRECISION": precision}
    return arguments, tiles


def _launch(kernel, grid: tuple, arguments: dict, tiles: dict, **more):
    """(kernel, grid, arguments, launch options); kernels/compile_check.py compiles the same tuples without launching them."""
    if "BLOCK_Q" in more:
        more["BLOCK_R"] = triton.next_power_of_2(more["BLOCK_Q"] + more["BLOCK_K"] - 1)
    return kernel, grid, arguments | more, {name: tiles[name] for name in ("num_warps", "num_stages")}


def forward_launch(maps: dict, tables: dict, lse: Tensor, axis: str, scale: float, precision: str, arch: str):
    """The forward kernel's launch for q, k, v, o in `maps`."""
    arguments, tiles = _arguments(maps, tables, lse, axis, scale, precision, False, arch)
    programs = maps["q"].shape[0] * arguments["G"] * triton.cdiv(arguments["OTHER"], tiles["LINES"])
    return _launch(axial_forward, (programs, triton.cdiv(arguments["L"], tiles["BLOCK_Q"])), arguments, tiles,
                   BLOCK_Q=tiles["BLOCK_Q"], BLOCK_K=tiles["BLOCK_K"])


def backward_launches(maps: dict, tables: dict, lse: Tensor, gradients: dict, wanted: dict, axis: str, scale: float, precision: str, arch: str):
    """The launches of the backward for q, k, v, o, grad in `maps`, and the partial tables that they fill."""
    arguments, tiles = _arguments(maps, tables, lse, axis, scale, precision, True, arch)
    images, groups, length, block_q, block_k = maps["q"].shape[0], arguments["G"], arguments["L"], tiles["BLOCK_Q"], tiles["BLOCK_K"]
    programs = images * groups * triton.cdiv(arguments["OTHER"], tiles["LINES"])
    out = {f"p_{name}": t for name, t in gradients.items()} | {f"s_{name}": _line_strides(t, axis) for name, t in gradients.items()}
    whole = length <= min(block_q, block_k)
    grid = (programs, triton.cdiv(length, block_k))
    launches = [_launch(axial_backward_keys, grid, arguments, tiles, **out, BLOCK_Q=block_q, BLOCK_K=block_k, WHOLE=whole)]
    if not whole:
        eight = tiles["LINES"] == 8 and arch == "sm90"  # dq of eight lines spills in 8 warps with triton 3.6; dk and dv would in 16
        launches.append(_launch(axial_backward_queries, grid, arguments, tiles | ({"num_warps": 16} if eight else {}),
                                p_dq=out["p_dq"], s_dq=out["s_dq"], BLOCK_Q=block_k, BLOCK_K=block_q))
    partial = {}
    if any(wanted.values()):
        block, diagonals = tiles["BLOCK"], 2 * triton.cdiv(length, tiles["BLOCK"]) - 1
        shares = min(2 if arch == "interpreter" else max(1, 1024 // (groups * diagonals)), images * arguments["OTHER"])
        for name, width in (("rq", arguments["BLOCK_D"]), ("rk", arguments["BLOCK_D"]), ("rv", arguments["BLOCK_E"])):
            shape = (shares, groups, diagonals, 2 * block, width)
            partial[name] = torch.empty(shape, dtype=torch.float32, device=lse.device) if wanted[name] else None
        launches.append(_launch(axial_backward_tables, (diagonals, groups, shares), arguments, tiles | {"num_warps": tiles["table_warps"]},
                                B=images, BLOCK=block, **{f"p_d{name}": t for name, t in partial.items()}))
    return launches, partial


def _sum_windows(partial: Tensor, table: Tensor) -> Tensor:
    """Stage two: add the shares, lay the windows of neighbouring diagonals over each other (they overlap by half), cut out the table's rows."""
    windows, block = partial.sum(0), partial.shape[3] // 2  # [G, M, R, D]
    rows = F.pad(windows[:, :, :block], (0, 0, 0, 0, 0, 1)) + F.pad(windows[:, :, block:], (0, 0, 0, 0, 1, 0))
    blocks, length = (windows.shape[1] + 1) // 2, (table.shape[-2] + 1) // 2
    rows = rows.flatten(1, 2)[:, blocks * block - length : blocks * block + length - 1, : table.shape[-1]]
    return (rows if table.dim() == 3 else rows.sum(0)).to(table.dtype)


class _AxialAttention(torch.autograd.Function):
    """The kernels under autograd. Outputs and gradients take the memory order of the input they belong to."""

    @staticmethod
    def forward(ctx, q, k, v, rq, rk, rv, axis, scale, precision):
        out = torch.empty_like(v)
        lse = torch.empty(q.shape[:2].numel() * q.shape[2:4].numel(), dtype=torch.float32, device=q.device)
        kernel, grid, arguments, options = forward_launch({"q": q, "k": k, "v": v, "o": out}, {"rq": rq, "rk": rk, "rv": rv}, lse, axis, scale,
                                                          precision, _arch(q.device))
        with device_of(out):
            kernel[grid](**arguments, **launch_options(**options))
        ctx.save_for_backward(q, k, v, out, lse, rq, rk, rv)
        ctx.settings = axis, scale, precision
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, lse, *tables = ctx.saved_tensors
        maps, tables = {"q": q, "k": k, "v": v, "o": out, "grad": grad}, dict(zip(("rq", "rk", "rv"), tables))
        gradients = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(v)}
        wanted = dict(zip(tables, ctx.needs_input_grad[3:6]))
        launches, partial = backward_launches(maps, tables, lse, gradients, wanted, *ctx.settings, _arch(q.device))
        with device_of(q):
            for kernel, grid, arguments, options in launches:
                kernel[grid](**arguments, **launch_options(**options))
        return *gradients.values(), *(_sum_windows(partial[name], tables[name]) if wanted[name] else None for name in tables), None, None, None


def _short_lines(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k') v for lines q, k [..., N, L, D] and v [..., N, L, E], by batched products.

    Without gradients, which keep every p: one image, then one group at a time while logits would not fit a core's cache (iterating over a tensor
    splits its first axis). Lines that must be copied become [D, L]: of NCHW maps whole runs along W move, where [L, D] would gather single numbers.
    """
    if q.dim() > 3 and not q.requires_grad and q[..., 0].numel() * q.shape[-2] > CACHED_LOGITS:
        return torch.stack([_short_lines(*part, scale) for part in zip(q, k, v)])
    a, b, c = (t.flatten(0, -3) if t.stride(-1) == 1 else t.mT.flatten(0, -3).mT for t in (q, k, v))  # [M, L, D], [M, L, D], [M, L, E]
    p = torch.softmax(torch.bmm(a * scale, b.mT), -1)  # [M, L, L]
    return torch.bmm(p, c).unflatten(0, q.shape[:-2])


def _axial_attention_torch(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float, relative: RelativePositions) -> Tensor:
    """The fastest PyTorch form for CPU: which one wins was measured, lessons/05_axial_attention.md has the table.

    relative tables                           the formula: products with table[j-i] beat skewing by as_strided and by gather
    rows of NCHW, or values wider or          plain products (`_short_lines`), in float32 and float64, up to 64 pixels
        narrower than keys                    (half precision stays with SDPA, which keeps its logits in float32)
    rows and columns of NHWC                  SDPA on views
    everything else, e.g. columns of NCHW     SDPA on copies, as anyone would: the copies are the cost, and no order of copying was faster
    """
    if any(t is not None for t in relative):
        return axial_attention_reference(q, k, v, axis, scale, relative)
    if axis == "column":
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))
    lines, length, values, unit = *q.shape[2:4], v.shape[-1], all(t.stride(-1) == 1 for t in (q, k, v))
    if q.dtype in (torch.float32, torch.float64) and length <= 64 and ((not unit and axis == "row") or q.shape[-1] != values):
        out = _short_lines(q, k, v, scale)  # [B, G, N, L, E]
    elif unit and q.shape[-1] == values:
        # SDPA wants four axes: merge the lines with the images (rows of NHWC) or the groups (columns of NHWC), whichever needs no copy
        first = 0 if axis == "row" else 1
        q, k, v = (t.transpose(1, 2).flatten(first, first + 1) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out = out.unflatten(first, (-1, lines) if axis == "row" else (lines, -1)).transpose(1, 2)  # [B, G, N, L, E]
    else:
        widest = max(q.shape[-1], values)  # SDPA is slow for values wider or narrower than keys: zeros change neither
        q, k, v = (t.contiguous() if t.shape[-1] == widest else F.pad(t, (0, widest - t.shape[-1])).contiguous() for t in (q, k, v))
        out = F.scaled_dot_product_attention(*(t.flatten(1, 2) for t in (q, k, v)), scale=scale)
        out = out[..., :values].unflatten(1, (-1, lines))  # [B, G, N, L, E]
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
        raise ValueError("axial_attention: q and k must have one shape, and v the same B, G, H, W; "
                         f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"axial_attention: q, k and v must share one floating-point dtype; got {q.dtype}, {k.dtype}, {v.dtype}; "
                        "convert them with .to(...)")
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
    in v's dtype (the kernel: also in v's memory order). float32, float16, bfloat16 (float64 takes the PyTorch path); sums are float32.
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
        tables = (None if table is None else table.to(q.dtype) for table in relative)
        return _AxialAttention.apply(q, k, v, *tables, axis, scale, "tf32" if allow_tf32 else "ieee")
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
