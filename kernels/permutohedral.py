"""Gaussian filtering in many dimensions on a CPU: the permutohedral lattice, written as a chain of weighted gather-sums.

The problem. out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j for N points with d features: N^2 exponentials if taken literally.
The idea (Adams, Baek, Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010):
scatter the values onto a lattice whose cells are simplices, blur there, read back.

    values [N, K] --splat--> table [M, K] --blur along d+1 axes--> table [M, K] --slice--> out [N, K]
             every point feeds the d+1      (1/2, 1, 1/2) each,               with the same
             corners of its simplex         missing neighbours are 0          d+1 weights

Cost O(N d^2), and only occupied lattice points are stored: M is 0.1 N to 4 N for photographs.

How a lattice point is named. The lattice lives in the plane sum(x) = 0 of R^(d+1) and is spanned by the steps u_0 .. u_d, where u_j is
+d in coordinate j and -1 elsewhere; they sum to zero, so d of them form a basis. In that basis a point has the integer digits
n_i = (x_i - x_d) / (d + 1), and key = sum n_i stride_i (mixed radix, exact in 64 bits) is *linear*: the neighbour of a point along axis
j has key + step_j with one constant per axis. A point's simplex starts at its nearest remainder-0 lattice point; corner k is corner k-1
minus the step of the coordinate that ranks k-th from below. So one sort of all keys yields the vertices, the offsets of the splat and its
order, and a search for `keys + step_j` yields neighbours. No hash table.

Why `F.embedding_bag`. All three stages are "for every row, a short weighted sum of gathered rows", which is what an embedding bag is. On CPU
it is vectorised, threaded, accumulates in float32 and makes no (N(d+1), K) temporary: against `index_add` and gather + sum, splat and slice took
a fiftieth of the time and blur a quarter (one thread, 500 x 375 pixels, 21 labels).

How good it is (measured against the exact sum; `tests/kernels/test_permutohedral.py` asserts these bands). Without
normalisation the 5-D response is 0.4 to 0.6 of the true one; once rows are normalised the mean error is 0.003 to 0.013 per label
and single isolated pixels are far off. The 2-D smoothness kernel need not suffer that: `grid_chain` filters it separably, error below 0.5 %.

`BagChain` is the shape shared by both filters. Its transpose is the same chain with the blur axes in reverse order.
"""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

BLOCK = 16384  # points handled at a time while building: the working set stays in a core's cache


def bag(index: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Row i of the result is the sum of weight * table[index] over bag i: rows of a 2-D `index`, or index[offsets[i]:offsets[i + 1]]."""
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weight)


@dataclass(frozen=True)
class BagChain:
    """A linear operator on [N, K] values: gather-sum into a table, blur the table, gather-sum back to the N points.

    splat: (index, weight, offsets or None); blur: list of (index, weight); slice: (index [N, S], weight [N, S]).
    Row M of every table, past the M stored points, stays zero: missing neighbours point there.
    """
    splat: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
    blur: list[tuple[torch.Tensor, torch.Tensor]]
    slice: tuple[torch.Tensor, torch.Tensor]
    vertices: int

    def table(self, values: torch.Tensor, transpose: bool = False) -> torch.Tensor:
        """Splat and blur. values [N, K] -> [M or M + 1, K]."""
        index, weight, offsets = self.splat
        table = bag(index, weight, values, offsets)
        for index, weight in reversed(self.blur) if transpose else self.blur:
            table = bag(index, weight, table)
        return table

    def __call__(self, values: torch.Tensor, transpose: bool = False) -> torch.Tensor:
        """The filtered values, [N, K] -> [N, K], in the dtype of `values`."""
        chain = self.to(values.dtype)
        return bag(*chain.slice, chain.table(values.contiguous(), transpose))

    def scaled(self, left: torch.Tensor | float, right: torch.Tensor | float) -> BagChain:
        """diag(left) A diag(right), at no run-time cost: both factors fold into the weights of the bags."""
        index, weight, offsets = self.splat
        if torch.is_tensor(right) and right.dim():
            weight = weight * right.index_select(0, index.view(-1)).view_as(index)
        else:
            weight = weight * right
        slice_index, slice_weight = self.slice
        slice_weight = slice_weight * (left[:, None] if torch.is_tensor(left) and left.dim() else left)
        return replace(self, splat=(index, weight, offsets), slice=(slice_index, slice_weight))

    def to(self, dtype: torch.dtype) -> BagChain:
        """The same chain with weights of `dtype`, which must be the dtype of the values it is applied to."""
        if self.slice[1].dtype == dtype:
            return self
        cast = {}  # the blur weights of a lattice are one tensor used by all axes: convert it once
        def to(weight):
            if id(weight) not in cast:
                cast[id(weight)] = weight.to(dtype)
            return cast[id(weight)]
        return replace(self, splat=(self.splat[0], to(self.splat[1]), self.splat[2]),
                       blur=[(index, to(weight)) for index, weight in self.blur], slice=(self.slice[0], to(self.slice[1])))

    def row_sums(self) -> torch.Tensor:
        """n = A 1, the normaliser of every point. -> [N]"""
        weight = self.slice[1]
        return self(torch.ones(weight.shape[0], 1, dtype=weight.dtype, device=weight.device))[:, 0]


class _Apply(torch.autograd.Function):
    """values -> chain(values); the operator is linear, so its backward is its transpose."""

    @staticmethod
    def forward(ctx, values, chain, transpose):
        ctx.chain, ctx.transpose = chain, transpose
        return chain(values, transpose)

    @staticmethod
    def backward(ctx, grad):
        return _Apply.apply(grad, ctx.chain, not ctx.transpose), None, None


def apply_chain(chain: BagChain, values: torch.Tensor) -> torch.Tensor:
    """`chain(values)` with a gradient to `values` [N, K]. The chain must be unscaled or symmetrically scaled (transpose = reversed blur)."""
    return _Apply.apply(values, chain, False)


# ------------------------------------------------------------------------------------------------------- the lattice
def elevation(d: int, dtype: torch.dtype, device=None) -> torch.Tensor:
    """E [d + 1, d]: features to the plane sum(x) = 0, scaled so that splat + blur + slice has unit variance (Adams et al., section 3.1)."""
    e = torch.zeros(d + 1, d, dtype=dtype, device=device)
    for j in range(d):
        scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt((j + 1) * (j + 2))
        e[: j + 1, j] = scale
        e[j + 1, j] = -(j + 1) * scale
    return e


def locate(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The simplex around each elevated point.

    points [d + 1, N] with columns that sum to zero. Returns `cell` [d + 1, N], the nearest remainder-0 lattice point divided by d + 1;
    `rank` [d + 1, N] int64, 0 for the coordinate with the largest residual; and the barycentric weights [N, d + 1] of the corners.
    """
    corners, n = points.shape
    cell = torch.round(points * (1 / corners))
    residual = points - cell * corners
    rank = cell.sum(0).to(torch.int8).expand(corners, n).clone()
    for i in range(corners):
        for j in range(i + 1, corners):
            behind = (residual[i] < residual[j]).view(torch.int8)
            rank[i] += behind
            rank[j] += 1 - behind
    # Rounding may leave the plane: the coordinates whose rank fell outside 0 .. d are the ones to round the other way.
    fix = (rank < 0).view(torch.int8) - (rank >= corners).view(torch.int8)
    rank = (rank + fix * corners).to(torch.int64)
    cell += fix
    residual -= fix * float(corners)
    ordered = torch.empty_like(residual).scatter_(0, rank, residual)  # largest residual first
    weight = torch.empty(n, corners, dtype=points.dtype, device=points.device)
    weight[:, 0] = 1 - (ordered[0] - ordered[-1]) * (1 / corners)
    for k in range(1, corners):
        weight[:, k] = (ordered[corners - 1 - k] - ordered[corners - k]) * (1 / corners)
    return cell, rank, weight


def corner_keys(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Keys [N, d + 1] and barycentric weights [N, d + 1] of every point's simplex, and the d + 1 key steps to the next neighbour per axis."""
    n, d = features.shape
    columns = features.t()
    e = elevation(d, features.dtype, features.device)
    digits = (e[:d] - e[d]) @ columns / (d + 1)
    low = digits.amin(1).floor() - 4  # 2 for rounding, 1 for the other corners, 1 for their neighbours
    size = (digits.amax(1).ceil() + 5 - low).tolist()
    low = low.tolist()
    stride = [1] * d
    for i in range(d - 2, -1, -1):
        stride[i] = stride[i + 1] * int(size[i + 1])
    total = stride[0] * int(size[0])
    if total >= 2**62:
        raise ValueError(
            f"features span {[round(float(v)) for v in (features.amax(0) - features.amin(0))]} standard deviations per axis, more than "
            "64-bit lattice keys can number; expected about 2000 at most for 5 features: use larger standard deviations (sxy, srgb) or method=\"exact\""
        )
    steps = stride + [-sum(stride)]
    dtype = torch.int32 if total < 2**31 else torch.int64  # narrow keys sort in half the time
    step = torch.tensor(steps, dtype=dtype, device=features.device)[:, None]
    origin = sum(int(l) * s for l, s in zip(low, stride))
    keys = torch.empty(n, d + 1, dtype=dtype, device=features.device)
    weights = torch.empty(n, d + 1, dtype=features.dtype, device=features.device)
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        cell, rank, weights[rows] = locate(e @ columns[:, rows])
        key = torch.full((cell.shape[1],), -origin, dtype=dtype, device=features.device)
        for i in range(d):
            key.add_((cell[i] - cell[d]).to(dtype), alpha=stride[i])
        step_of_rank = torch.empty(rank.shape, dtype=dtype, device=features.device).scatter_(0, rank, step.expand_as(rank))
        keys[rows, 0] = key
        for k in range(1, d + 1):
            key = key - step_of_rank[d + 1 - k]
            keys[rows, k] = key
    return keys, weights, steps


def find(sorted_keys: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Positions of `wanted` (also ascending) in `sorted_keys`, or len(sorted_keys) where absent. int64"""
    if sorted_keys.is_cuda:
        position = torch.searchsorted(sorted_keys, wanted)
    else:  # numpy starts each search where the last one ended: half the time of torch's
        position = torch.from_numpy(sorted_keys.numpy().searchsorted(wanted.numpy()))
    size = sorted_keys.numel()
    closed = torch.cat([sorted_keys, sorted_keys[:1]])  # a position past the end reads the smallest key, which is never wanted there
    return torch.where(closed.index_select(0, position) == wanted, position, size)


def lattice_chain(features: torch.Tensor) -> BagChain:
    """The permutohedral lattice over `features` [N, d], each already divided by its standard deviation, as a `BagChain`.

    float32 or float64. The chain approximates K_ij = exp(-|f_i - f_j|^2 / 2) including the diagonal. d <= 20.
    """
    n, d = features.shape
    corners = d + 1
    keys, weights, steps = corner_keys(features)
    ordered, order = torch.sort(keys.view(-1))
    first = torch.ones(n * corners, dtype=torch.bool, device=features.device)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    starts = first.nonzero().view(-1)
    vertex_keys = ordered.index_select(0, starts)
    m = vertex_keys.numel()

    vertex = torch.cumsum(first, 0, dtype=torch.int32).sub_(1)
    slice_index = torch.empty(n * corners, dtype=torch.int32, device=features.device)
    slice_index.scatter_(0, order, vertex)
    splat_index = torch.div(order.to(torch.int32), corners, rounding_mode="floor")
    splat_weight = weights.view(-1).index_select(0, order)
    # one more offset than vertices: the last bag is empty and becomes the zero row that stands for missing neighbours
    offsets = torch.cat([starts, starts.new_tensor([n * corners])]).to(torch.int32)

    own = torch.arange(m, dtype=torch.int32, device=features.device)
    blur_weight = torch.tensor([0.5, 0.25, 0.25], dtype=features.dtype, device=features.device).expand(m + 1, 3).contiguous()
    blur = []
    for step in steps:
        after = find(vertex_keys, vertex_keys + step)
        before = torch.full((m + 1,), m, dtype=torch.int32, device=features.device).scatter_(0, after, own)
        index = torch.full((m + 1, 3), m, dtype=torch.int32, device=features.device)
        index[:m, 0], index[:m, 1], index[:m, 2] = own, after, before[:m]
        blur.append((index, blur_weight))
    # Blurring with (1/4, 1/2, 1/4) keeps half precision in range; the 2^(d+1) that this takes away is given back here, together with
    # the factor 1 / (1 + 2^-d) of the authors' code.
    alpha = 2.0**corners / (1 + 2.0**-d)
    return BagChain((splat_index, splat_weight, offsets), blur, (slice_index.view(n, corners), weights * alpha), m)


# ------------------------------------------------------------------------------------- the smoothness kernel, on a grid
def _axis(length: int, sigma: float, device) -> tuple[int, int, torch.Tensor]:
    """One image axis: node spacing, number of nodes, and the taps of the Gaussian between nodes."""
    step = max(1, int(sigma / 1.5))
    nodes = length if step == 1 else (length - 1 + step // 2) // step + 3  # node k sits at pixel (k - 1) step
    # Quadratic splatting and slicing blur by step^2 / 4 each, wherever a pixel lies between nodes (linear ones do not: their error is ten
    # times larger). The taps supply the rest of the variance, and the sum of the true kernel.
    inner = math.sqrt((sigma / step) ** 2 - (1 / 2 if step > 1 else 0))
    radius = min(max(math.ceil(4.8 * inner) - 1, 0), nodes - 1)  # the first tap left out is below 1e-5
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64, device=device) / inner) ** 2)
    if step > 1:
        full = sum(math.exp(-0.5 * (k / inner) ** 2) for k in range(-math.ceil(8 * inner), math.ceil(8 * inner) + 1))
        taps *= math.sqrt(2 * math.pi) * sigma / (step * full)
    return step, nodes, taps


def _taps_bag(rows: int, columns: int, axis: int, taps: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and weight [rows * columns, taps] of a 1-D convolution along axis 0 (down) or 1 (across); nothing enters from outside."""
    size = rows if axis == 0 else columns
    line = torch.arange(size, dtype=torch.int32, device=taps.device)[:, None]
    target = line + (torch.arange(len(taps), dtype=torch.int32, device=taps.device) - len(taps) // 2)
    weight = taps.to(dtype) * ((target >= 0) & (target < size))
    target = target.clamp(0, size - 1)
    if axis == 0:
        index = target[:, None] * columns + torch.arange(columns, dtype=torch.int32, device=taps.device)[:, None]
        weight = weight[:, None].expand_as(index)
    else:
        index = torch.arange(rows, dtype=torch.int32, device=taps.device)[:, None, None] * columns + target
        weight = weight.expand_as(index)
    return index.view(-1, len(taps)), weight.reshape(-1, len(taps))


@functools.lru_cache(maxsize=4)  # the same for every image of a size; 30 MB each at 500 x 375
def grid_chain(height: int, width: int, sigma: tuple[float, float], dtype: torch.dtype = torch.float32, device=None) -> BagChain:
    """exp(-(dx/sx)^2/2 - (dy/sy)^2/2) over all pixels of an image, sigma = (sx, sy) in pixels, as a symmetric `BagChain`.

    Below 3 pixels it is a separable convolution, exact to 1e-5. Above, the filter runs on every second (third, ...) pixel between a splat
    and a slice with quadratic B-splines, whose own variance is taken out of the taps: the kernel's relative error is below 0.5 %, and
    the cost falls as sigma grows.
    """
    step_x, nodes_x, taps_x = _axis(width, sigma[0], device)
    step_y, nodes_y, taps_y = _axis(height, sigma[1], device)
    across, down = (_taps_bag(nodes_y, nodes_x, axis, taps, dtype) for axis, taps in ((1, taps_x), (0, taps_y)))
    if step_x == step_y == 1:
        return BagChain((*across, None), [], down, height * width)
    nodes = nodes_y * nodes_x
    # slice: every pixel reads the 3 x 3 nodes nearest to it; splat is its transpose: every node collects the pixels below its spline
    (read_y, spline_y), (read_x, spline_x) = _reads(height, step_y, nodes_y, device), _reads(width, step_x, nodes_x, device)
    gather = _product(read_y * nodes_x, read_x, spline_y, spline_x, dtype)
    (fed_y, spline_y), (fed_x, spline_x) = _feeds(height, step_y, nodes_y, device), _feeds(width, step_x, nodes_x, device)
    scatter = _product(fed_y * width, fed_x, spline_y, spline_x, dtype)
    return BagChain((*scatter, None), [across, down], gather, nodes)


def _spline(distance: torch.Tensor) -> torch.Tensor:
    """The quadratic B-spline; its values at all integers away from any point sum to 1 and have variance 1/4."""
    distance = distance.abs()
    return torch.where(distance < 0.5, 0.75 - distance.square(), 0.5 * (1.5 - distance).clamp(min=0).square())


def _reads(length: int, step: int, nodes: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """The nodes that every pixel of a line reads, and their weights. Both [length, 3], or [length, 1] with weight 1 for step 1."""
    pixel = torch.arange(length, dtype=torch.int32, device=device)[:, None]
    if step == 1:
        return pixel, torch.ones(length, 1, dtype=torch.float64, device=device)
    node = (pixel + step // 2) // step + torch.arange(3, dtype=torch.int32, device=device)
    return node, _spline(pixel.double() / step - (node - 1))


def _feeds(length: int, step: int, nodes: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels that feed every node of a line, and their weights: `_reads` transposed. Both [nodes, pixels below a spline]"""
    if step == 1:
        return _reads(length, step, nodes, device)
    widest = (3 * step - 1) // 2
    pixel = (torch.arange(nodes, dtype=torch.int32, device=device)[:, None] - 1) * step
    pixel = pixel + torch.arange(-widest, widest + 1, dtype=torch.int32, device=device)
    weight = _spline(pixel.double() / step - (torch.arange(nodes, device=device)[:, None] - 1))
    return pixel.clamp(0, length - 1), weight * ((pixel >= 0) & (pixel < length))


def _product(index_y, index_x, weight_y, weight_x, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 1-D bags make the 2-D bag: every pair of their entries."""
    entries = index_y.shape[1] * index_x.shape[1]
    index = index_y[:, None, :, None] + index_x[None, :, None, :]
    weight = weight_y.to(dtype)[:, None, :, None] * weight_x.to(dtype)[None, :, None, :]
    return index.reshape(-1, entries), weight.reshape(-1, entries)


# ----------------------------------------------------------------------------------------- mean field on chains, no gradient
def mean_field_on_chains(log_prior: torch.Tensor, chains: list[BagChain], mixers: list[torch.Tensor | None], iterations: int,
                         half: bool = True, logits: bool = False, block: int = 8192) -> torch.Tensor:
    """softmax(log_prior + sum_m chain_m(Q) mixer_m), repeated: the inference loop of a CPU, without autograd.

    log_prior [N, K], float32 or float64. Chains already carry their normalisation and, where `mixers` holds None (Potts), their weight;
    otherwise mixers[m] [K, K] turns the filtered Q into the logits it adds. half: Q, tables and bag weights in float16, which halves the
    traffic of a loop that waits for memory (sums are float32 either way); leave it off without normalisation, where sums may pass
    float16's range. Slicing, adding and the softmax go through blocks of pixels small enough for a core's cache.
    Returns Q [N, K], or the logits before the last softmax.
    """
    n, k = log_prior.shape
    log_prior = log_prior - log_prior.amax(1, keepdim=True)
    storage = torch.float16 if half else log_prior.dtype
    chains = [chain.to(storage) for chain in chains]
    ones = torch.ones(k, 1, dtype=log_prior.dtype, device=log_prior.device)
    rows = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    out = torch.empty_like(log_prior)
    q = torch.empty(n, k, dtype=storage, device=log_prior.device) if iterations else out
    for r in rows:
        _softmax_into(log_prior[r], ones, q[r])
    for iteration in range(iterations):
        last = iteration == iterations - 1
        tables = [chain.table(q) for chain in chains]
        for r in rows:
            x = log_prior[r]
            for chain, mixer, table in zip(chains, mixers, tables):
                index, weight = chain.slice
                message = bag(index[r], weight[r], table)
                x = x + message if mixer is None else torch.addmm(x, message.to(x.dtype), mixer)
            if last and logits:
                out[r] = x
            else:
                _softmax_into(x, ones, out[r] if last else q[r])
    return out


def _softmax_into(x: torch.Tensor, ones: torch.Tensor, out: torch.Tensor) -> None:
    """Softmax over the last axis into `out`. Faster than torch.softmax for few labels, because it skips the maximum: the logits
    start at most at 0 and normalised messages add a few units. Where exp overflows or dies all the same, do it the careful way."""
    e = torch.exp(x)
    total = e @ ones
    if float(total.amax()) < 1e30 and float(total.amin()) > 1e-30:
        torch.mul(e, total.reciprocal_(), out=out)
    else:
        out.copy_(torch.softmax(x, 1))
