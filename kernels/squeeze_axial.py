"""Squeeze-axial attention (P2AT): average the map over one axis, attend along the other, add both answers back to every pixel.

For queries and keys of D channels a head, values of E channels a head, and position tables of S slots stretched to the line:

    qr = mean_w q + stretch(row query table)     kr = mean_w k + stretch(row key table)     vr = mean_w v        one token per row
    qc = mean_h q + stretch(column query table)  kc = mean_h k + stretch(column key table)  vc = mean_h v        one token per column
    r = softmax(qr kr' / sqrt(D)) vr in each head          c = softmax(qc kc' / sqrt(D)) vc in each head
    y[:, h, w] = v[:, h, w] + project_row(r)[:, h] + project_column(c)[:, w]

Source: P2AT (arXiv 2310.15025), released block P2A2, steps 4 to 6 up to the convolution that follows (D 16, E 32, 8 heads, S 16); its
attention is SeaFormer's (ICLR 2023). The block puts a convolution with batch norm and PReLU on r and a bare convolution on c before they
are added, so the cut is there: `project` is called on both short results, and nothing of the block is lost.

Three kernels. `squeeze_kernel` reads a map once and writes the means over both axes, tables added; `kernels/axial_attention.py` attends along
the H + W tokens; `spread_kernel` adds both answers to v in one pass. Backward: each is the other's transpose. With g = dloss/dy,

    spread:   dv = g    dr[h] = sum_w g    dc[w] = sum_h g                         (squeeze_kernel with factor 1 instead of 1/W, 1/H)
    squeeze:  dx[h, w] = drows[h] / W + dcolumns[w] / H (+ g for x = v)            (spread_kernel; the g of y goes along, not as a second pass)

Traffic for maps of M bytes (q, k: M/2 each with 8 heads of 16 against v's 8 of 32): forward q, k, v once, v again, y: 4 M. Written with
PyTorch: two means of each map and v + r + c in two steps: 4 M + 5 M = 9 M. Tokens and their attention are small: 8 heads cost
(H^2 + W^2) * 8 * (16 + 32) multiply-adds, 0.55 million at 23 x 30 where full attention costs 183 million. At that size even full attention is
under 1 % of the network's 42 GMAC (P2AT-S, 720 x 960): the squeeze saves what matters only at stride 8 or 16.

A hint for callers: means commute with 1x1 convolutions that have no bias, so q and k may be computed from squeezed maps:
mean(conv(t)) = conv(mean(t)).
"""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.axial_attention import CACHED_LOGITS, axial_attention
from kernels.backend import INTERPRETING, device_of, jit, launch_options, path_for, tl, triton


class PositionTables(NamedTuple):
    """P2AT's learned tables, [C, S] or [1, C, S] with C = the channels of q and S = 16 slots; None leaves one out. None is added to v."""

    row_query: Tensor | None = None
    row_key: Tensor | None = None
    column_query: Tensor | None = None
    column_key: Tensor | None = None


def stretch(table: Tensor | None, length: int) -> Tensor | None:
    """Resize [C, S] or [1, C, S] to [C, length] linearly, ends not aligned (as F.interpolate(mode="linear") does it).

    A product with a small matrix, because the gradient of F.interpolate adds in random order on a GPU.
    """
    if table is None:
        return None
    slots = table.shape[-1]
    place = ((torch.arange(length, device=table.device, dtype=torch.float32) + 0.5) * slots / length - 0.5).clamp(0, slots - 1)
    slot = torch.arange(slots, device=table.device)[:, None]
    weight = (1 - (place[None, :] - slot).abs()).clamp_min(0)  # [S, L]
    return table.reshape(-1, slots) @ weight.to(table.dtype)


# ---------------------------------------------------------------- the plain formula
def squeeze_reference(x: Tensor, row_table: Tensor | None = None, column_table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means over W and over H of x [B, C, H, W], plus tables [C, H] and [C, W]: [B, C, H] and [B, C, W]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    rows, columns = wide.mean(3), wide.mean(2)  # [B, C, H], [B, C, W]
    rows = rows if row_table is None else rows + row_table
    columns = columns if column_table is None else columns + column_table
    return rows.to(x.dtype), columns.to(x.dtype)


def spread_reference(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x[b, c, h, w] + rows[b, c, h] + columns[b, c, w]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) + rows.to(wide)[..., None] + columns.to(wide)[:, :, None]).to(x.dtype)


# ---------------------------------------------------------------- squeeze: grid (B * channel blocks)
@jit
def squeeze_kernel(
    p_x,                           # pointer to x [B, C, H, W], any strides
    p_rows, p_columns,             # pointers to the results [B, C, H] and [B, C, W], contiguous
    p_row_table, p_column_table,   # pointers to what is added, [C, H] and [C, W] contiguous, or None
    s_x,                           # element strides of x: (image, channel, row, column)
    row_factor, column_factor,     # floats: 1/W and 1/H for means, 1 for sums
    C, H, W,                       # sizes
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,  # channels of a program, rows of a step
    BLOCK_W: tl.constexpr,                         # a power of two >= W: the column sums of the whole width stay in registers
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    b = (tl.program_id(0) // channel_blocks).to(tl.int64)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    w = tl.arange(0, BLOCK_W)
    p_line = p_x + b * s_x[0] + c[:, None, None].to(tl.int64) * s_x[1] + w[None, None, :] * s_x[3]
    total = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        mask = (c < C)[:, None, None] & (h < H)[None, :, None] & (w < W)[None, None, :]
        x = tl.load(p_line + h[None, :, None].to(tl.int64) * s_x[2], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(x, 1)
        rows = tl.sum(x, 2) * row_factor
        mask = (c < C)[:, None] & (h < H)[None, :]
        if p_row_table is not None:
            rows += tl.load(p_row_table + c[:, None] * H + h[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(p_rows + (b * C + c[:, None]) * H + h[None, :], rows.to(p_rows.dtype.element_ty), mask=mask)
    columns = total * column_factor
    mask = (c < C)[:, None] & (w < W)[None, :]
    if p_column_table is not None:
        columns += tl.load(p_column_table + c[:, None] * W + w[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(p_columns + (b * C + c[:, None]) * W + w[None, :], columns.to(p_columns.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- spread: grid (B * channel blocks, row blocks)
@jit
def spread_kernel(
    p_x,                           # pointer to x [B, C, H, W], any strides, or None for zero
    p_rows, p_columns,             # pointers to [B, C, H] and [B, C, W], contiguous
    p_y,                           # pointer to the result [B, C, H, W], any strides
    s_x, s_y,                      # element strides: (image, channel, row, column)
    row_factor, column_factor,     # floats that multiply rows and columns
    C, H, W,                       # sizes
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,  # as above
):
    channel_blocks = tl.cdiv(C, BLOCK_C)
    b = (tl.program_id(0) // channel_blocks).to(tl.int64)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    w = tl.arange(0, BLOCK_W)
    rows = tl.load(p_rows + (b * C + c[:, None]) * H + h[None, :], mask=(c < C)[:, None] & (h < H)[None, :], other=0.0).to(tl.float32)
    columns = tl.load(p_columns + (b * C + c[:, None]) * W + w[None, :], mask=(c < C)[:, None] & (w < W)[None, :], other=0.0).to(tl.float32)
    y = (rows * row_factor)[:, :, None] + (columns * column_factor)[:, None, :]
    mask = (c < C)[:, None, None] & (h < H)[None, :, None] & (w < W)[None, None, :]
    if p_x is not None:
        o_x = c[:, None, None].to(tl.int64) * s_x[1] + h[None, :, None].to(tl.int64) * s_x[2] + w[None, None, :] * s_x[3]
        y += tl.load(p_x + b * s_x[0] + o_x, mask=mask, other=0.0).to(tl.float32)
    o_y = c[:, None, None].to(tl.int64) * s_y[1] + h[None, :, None].to(tl.int64) * s_y[2] + w[None, None, :] * s_y[3]
    tl.store(p_y + b * s_y[0] + o_y, y.to(p_y.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- tiles and launches
def _tiles(x: Tensor, interpreting: bool) -> dict:
    """2048 elements a step (64 thousand when interpreting): the whole width, then channels where they are neighbours (NHWC), else rows."""
    step, width = (65536, 2048)[not interpreting], triton.next_power_of_2(x.shape[3])
    rest = max(1, step // width)
    channels = min(triton.next_power_of_2(x.shape[1]), rest if interpreting else min(rest, 16) if x.stride(1) == 1 else min(rest, 4))
    return {"BLOCK_C": channels, "BLOCK_H": min(triton.next_power_of_2(x.shape[2]), max(1, rest // channels)), "BLOCK_W": width}


def squeeze_launch(x: Tensor, rows: Tensor, columns: Tensor, tables: tuple, factors: tuple[float, float], interpreting: bool):
    """(kernel, grid, arguments, launch options) of one squeeze; kernels/compile_check.py compiles the same tuple."""
    B, C, H, W = x.shape
    tiles = _tiles(x, interpreting)
    arguments = {"p_x": x, "p_rows": rows, "p_columns": columns, "p_row_table": tables[0], "p_column_table": tables[1], "s_x": x.stride(),
                 "row_factor": factors[0], "column_factor": factors[1], "C": C, "H": H, "W": W, **tiles}
    return squeeze_kernel, (B * triton.cdiv(C, tiles["BLOCK_C"]),), arguments, {"num_warps": 4, "num_stages": 2}


def spread_launch(x: Tensor | None, rows: Tensor, columns: Tensor, y: Tensor, factors: tuple[float, float], interpreting: bool):
    """The same for one spread."""
    B, C, H, W = y.shape
    tiles = _tiles(y, interpreting)
    arguments = {"p_x": x, "p_rows": rows, "p_columns": columns, "p_y": y, "s_x": (0, 0, 0, 0) if x is None else x.stride(), "s_y": y.stride(),
                 "row_factor": factors[0], "column_factor": factors[1], "C": C, "H": H, "W": W, **tiles}
    return spread_kernel, (B * triton.cdiv(C, tiles["BLOCK_C"]), triton.cdiv(H, tiles["BLOCK_H"])), arguments, {"num_warps": 4, "num_stages": 1}


def _run(kernel, grid, arguments, options):
    with device_of(arguments["p_rows"]):
        kernel[grid](**arguments, **launch_options(**options))


class _Squeeze(torch.autograd.Function):
    """Rows, columns and x itself: a gradient that reaches x by another way is added in the same pass over memory. With `kernels` false the
    same three passes run as PyTorch operations (autograd of two means would write a full map for each of them)."""

    @staticmethod
    def forward(ctx, x, row_table, column_table, kernels):
        B, C, H, W = x.shape
        tables = tuple(None if t is None else t.contiguous() for t in (row_table, column_table))
        if kernels:
            rows, columns = x.new_empty(B, C, H), x.new_empty(B, C, W)
            _run(*squeeze_launch(x, rows, columns, tables, (1 / W, 1 / H), INTERPRETING))
        else:
            rows, columns = squeeze_reference(x, *tables)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        ctx.like = torch.empty_like(x, device="meta")  # shape and memory order of dx, without holding x
        ctx.table_dtypes = tuple(None if t is None else t.dtype for t in tables)
        return rows, columns, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_rows, d_columns, d_x):
        B, C, H, W = ctx.like.shape
        known = next((t for t in (d_rows, d_columns, d_x) if t is not None), None)
        if known is None:  # no result was used
            return None, None, None, None
        d_rows = known.new_zeros(B, C, H) if d_rows is None else d_rows.contiguous()
        d_columns = known.new_zeros(B, C, W) if d_columns is None else d_columns.contiguous()
        if ctx.kernels:
            dx = torch.empty_like(ctx.like, device=known.device)
            _run(*spread_launch(d_x, d_rows, d_columns, dx, (1 / W, 1 / H), INTERPRETING))
        else:
            rows, columns = (d_rows / W)[..., None], (d_columns / H)[:, :, None]  # [B, C, H, 1], [B, C, 1, W]
            dx = rows + columns if d_x is None else (d_x + rows).add_(columns)
        sums = (None if dtype is None else t.sum(0, dtype=torch.promote_types(t.dtype, torch.float32)).to(dtype)
                for t, dtype in zip((d_rows, d_columns), ctx.table_dtypes))
        return dx, *sums, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, columns):
        y = torch.empty_like(x)
        _run(*spread_launch(x, rows.contiguous(), columns.contiguous(), y, (1.0, 1.0), INTERPRETING))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        B, C, H, W = grad.shape
        d_rows, d_columns = grad.new_empty(B, C, H), grad.new_empty(B, C, W)
        _run(*squeeze_launch(grad, d_rows, d_columns, (None, None), (1.0, 1.0), INTERPRETING))
        return grad, d_rows, d_columns


# ---------------------------------------------------------------- public operations
def _on_kernels(x: Tensor) -> bool:
    return path_for(x) == "triton" and x.dtype != torch.float64 and x.numel() > 0


def _check_map(x: Tensor, name: str, op: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} must be a map [B, C, H, W]; got {x.dim()} axes, shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point; got {x.dtype}; convert it with .float()")


def squeeze(x: Tensor, row_table: Tensor | None = None, column_table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means of x [B, C, H, W] over W and over H, from one reading of x: [B, C, H] and [B, C, W], in x's dtype (summed in float32).

    row_table [C, H] and column_table [C, W], any floating-point dtype, are added to them. Differentiable in all three.
    """
    return _squeeze_and_keep(x, row_table, column_table)[:2]


def _squeeze_and_keep(x: Tensor, row_table: Tensor | None = None, column_table: Tensor | None = None,
                      op: str = "squeeze") -> tuple[Tensor, Tensor, Tensor]:
    _check_map(x, "x", op)
    for name, table, length in (("row_table", row_table, x.shape[2]), ("column_table", column_table, x.shape[3])):
        if table is not None and tuple(table.shape) != (x.shape[1], length):
            raise ValueError(f"{op}: {name} must be [{x.shape[1]}, {length}] for a map of shape {tuple(x.shape)}; got {tuple(table.shape)}")
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, row_table, column_table))
    if path_for(x) == "reference" or not (recorded or _on_kernels(x)):
        return *squeeze_reference(x, row_table, column_table), x
    return _Squeeze.apply(x, row_table, column_table, _on_kernels(x))


def spread(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x + rows + columns, each broadcast over the axis it lacks, in one pass. x [B, C, H, W], rows [B, C, H], columns [B, C, W], one dtype."""
    _check_map(x, "x", "spread")
    B, C, H, W = x.shape
    if tuple(rows.shape) != (B, C, H) or tuple(columns.shape) != (B, C, W):
        raise ValueError(f"spread: for x {tuple(x.shape)} rows must be {(B, C, H)} and columns {(B, C, W)}; "
                         f"got {tuple(rows.shape)} and {tuple(columns.shape)}")
    if not (x.dtype == rows.dtype == columns.dtype):
        raise TypeError(f"spread: x, rows and columns must share one dtype; got {x.dtype}, {rows.dtype}, {columns.dtype}; convert them with .to(...)")
    if _on_kernels(x):
        return _Spread.apply(x, rows, columns)
    return spread_reference(x, rows, columns) if path_for(x) == "reference" else (x + rows[..., None]).add_(columns[:, :, None])


def squeeze_axial_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, tables: PositionTables | None = None,
                            project: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None, scale: float | None = None) -> Tensor:
    """v + project_row(r) + project_column(c) of the equations above: P2AT's block between its q, k, v convolutions and its last convolution.

    q, k: [B, heads * D, H, W], v: [B, heads * E, H, W], any strides, one dtype. Returns [B, heads * E, H, W] in v's dtype.
    tables: `PositionTables`, [heads * D, S] each, stretched to H (rows) or W (columns).
    project: called once with r [B, heads * E, H, 1] and c [B, heads * E, 1, W], returns both in the same shapes (P2AT: one convolution each);
        None adds them as they are.
    scale: of the logits, default D ** -0.5 (P2AT: 1/4 with D 16).
    Differentiable once in q, k, v, the tables and whatever `project` holds. ValueError or TypeError for shapes and dtypes that do not fit.
    """
    op = "squeeze_axial_attention"
    tables = PositionTables() if tables is None else PositionTables(*tables)
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check_map(t, name, op)
    if q.shape != k.shape or q.shape[0] != v.shape[0] or q.shape[2:] != v.shape[2:]:
        raise ValueError(f"{op}: q and k must have one shape, and v the same B, H, W; got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if not (q.dtype == k.dtype == v.dtype):
        raise TypeError(f"{op}: q, k and v must share one dtype; got {q.dtype}, {k.dtype}, {v.dtype}; convert them with .to(...)")
    if heads < 1 or q.shape[1] % heads or v.shape[1] % heads:
        raise ValueError(f"{op}: heads must divide the channels of q and v; got heads {heads}, {q.shape[1]} and {v.shape[1]} channels")
    for name, table in zip(PositionTables._fields, tables):
        if table is not None and (table.shape[-2] != q.shape[1] or table.numel() != q.shape[1] * table.shape[-1]):
            raise ValueError(f"{op}: tables.{name} must be [{q.shape[1]}, slots] or [1, {q.shape[1]}, slots]; got {tuple(table.shape)}")
    H, W = q.shape[2:]
    q_rows, q_columns, _ = _squeeze_and_keep(q, stretch(tables.row_query, H), stretch(tables.column_query, W), op)
    k_rows, k_columns, _ = _squeeze_and_keep(k, stretch(tables.row_key, H), stretch(tables.column_key, W), op)
    v_rows, v_columns, v = _squeeze_and_keep(v, op=op)
    rows = _attend(q_rows, k_rows, v_rows, heads, scale)  # [B, C, H]
    columns = _attend(q_columns, k_columns, v_columns, heads, scale)  # [B, C, W]
    if project is not None:
        rows, columns = project(rows[..., None], columns[:, :, None])
        rows, columns = rows.flatten(2), columns.flatten(2)
    return spread(v, rows, columns)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> Tensor:
    """Attention along tokens [B, heads * channels, L]: one line per image and head.

    On a CPU, as long as the logits fit its cache, two products of the tokens as they lie: a map of 23 x 30 pixels takes under a millisecond, and
    the views and checks of `axial_attention` would be a tenth of it.
    """
    q, k, v = (t.unflatten(1, (heads, -1)) for t in (q, k, v))  # [B, G, D, L], [B, G, D, L], [B, G, E, L]
    wide = q.dtype in (torch.float32, torch.float64)
    if path_for(q) == "torch" and wide and q[:, :, 0].numel() * q.shape[-1] <= CACHED_LOGITS:
        scale = q.shape[2] ** -0.5 if scale is None else scale
        with torch.autocast(q.device.type, enabled=False):
            a, b, c = (t.flatten(0, 1) for t in (q, k, v))  # [M, D, L], [M, D, L], [M, E, L]
            p = torch.softmax(torch.bmm((a * scale).mT, b), -1)  # [M, L, L]
            return torch.bmm(c, p.mT).view(q.shape[0], -1, q.shape[3])
    q, k, v = (t.mT[:, :, None] for t in (q, k, v))  # [B, G, 1, L, D], [B, G, 1, L, D], [B, G, 1, L, E]
    return axial_attention(q, k, v, "row", scale)[:, :, 0].mT.flatten(1, 2)
