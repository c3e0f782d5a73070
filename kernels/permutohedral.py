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
j has key + step_j with one constant per axis. In the same basis the simplices are those of a cube cut by the order of its coordinates: the
first corner is the point rounded down, every next one lies a step further along the axis with the next smaller fraction, and the weights are the
gaps between the sorted fractions. (The paper rounds to the nearest remainder-0 point in the plane, ranks residuals and repairs roundings
that left the plane. The simplices are the same; a test compares.) So one sort of d fractions per point finds its corners, one sort of all keys yields
the vertices, the offsets of the splat and its order, and a search for `keys + step_j` yields neighbours. No hash table.

Why `F.embedding_bag`. All three stages are "for every row, a short weighted sum of gathered rows", which is what an embedding bag is. On CPU
it is vectorised, threaded, accumulates in float32 and makes no (N(d+1), K) temporary: against `index_add` and gather + sum, splat and slice took
a fiftieth of the time and blur a quarter (one thread, 500 x 375 pixels, 21 labels).

How good it is (measured against the exact sum; `tests/kernels/test_permutohedral.py` asserts these bands). Without
normalisation the 5-D response is 0.4 to 0.6 of the true one; once rows are normalised the mean error is 0.003 to 0.013 per label
and single isolated pixels are far off. The 2-D smoothness kernel need not suffer that: `grid_chain` filters it separably, error below 0.5 %.

`BagChain` is the shape shared by both filters. The transpose of a lattice is the same chain with the blur axes in reverse order.

Where the time goes: `python -m kernels.bench_crf` prints it. The loop waits for memory more than for arithmetic, hence float16
tables, blocks of pixels that stay in cache between slice and softmax, powers of two for exp, and a smoothness filter one axis at a time.
"""
from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

BLOCK, LOOP_BLOCK = 16384, 8192  # points per thread handled at a time, while building and in the loop: the working set stays in a core's cache
LOG2E = 1 / math.log(2)


@dataclass(frozen=True)
class Bag:
    """A sparse matrix: row i of the result is the sum of weight * table[index] over bag i.

    Bags are the rows of a 2-D `index` (int32), or index[offsets[i]:offsets[i + 1]]. With `columns` > 1 the table is an image so many pixels
    wide and the bags name whole lines of it: the same sum for every pixel of a line.
    """
    index: torch.Tensor
    weight: torch.Tensor
    offsets: torch.Tensor | None = None
    columns: int = 1

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """[rows, K] -> [bags, K]"""
        k = table.shape[1]
        if self.columns > 1:
            table = table.view(-1, self.columns * k)
        return F.embedding_bag(self.index, table, self.offsets, mode="sum", per_sample_weights=self.weight).view(-1, k)

    def __getitem__(self, rows: slice) -> Bag:
        """Some of the bags of a 2-D index."""
        return Bag(self.index[rows], self.weight[rows])


@dataclass(frozen=True)
class BagChain:
    """A linear operator on [N, K] values: gather-sum into a table, blur the table, gather-sum back to the N points.

    Row M of a lattice's tables, past the M stored points, stays zero: missing neighbours point there.
    """
    splat: Bag
    blur: list[Bag]
    slice: Bag
    """2-D, not by lines: the loop below reads it in pieces"""
    size: int
    """rows of the table that `slice` reads"""
    symmetric: bool = False
    """the whole chain is its own transpose; otherwise the transpose blurs in reverse order"""
    sums: torch.Tensor | None = None
    """[N] the row sums, where they are known without filtering"""

    def table(self, values: torch.Tensor, transpose: bool = False) -> torch.Tensor:
        """Splat and blur. values [N, K] -> [size, K]."""
        table = self.splat(values)
        for bag in reversed(self.blur) if transpose and not self.symmetric else self.blur:
            table = bag(table)
        return table

    def __call__(self, values: torch.Tensor, transpose: bool = False) -> torch.Tensor:
        """The filtered values, [N, K] -> [N, K], in the dtype of `values`."""
        chain = self.to(values.dtype)
        return chain.slice(chain.table(values.contiguous(), transpose))

    def scaled(self, left: torch.Tensor | float, right: torch.Tensor | float) -> BagChain:
        """diag(left) A diag(right), at no run-time cost: both factors fold into the weights of the bags. Grids take numbers on the right."""
        splat = self.splat
        if torch.is_tensor(right) and right.dim():
            right = right.index_select(0, splat.index.view(-1)).view_as(splat.index)
        if torch.is_tensor(right) or right != 1:
            splat = replace(splat, weight=splat.weight * right)
        left = left[:, None] if torch.is_tensor(left) and left.dim() else left
        return replace(self, splat=splat, slice=replace(self.slice, weight=self.slice.weight * left), sums=None)

    def normalized(self, mode: str) -> BagChain:
        """diag(left) A diag(right) with the factors that `mode` makes of the row sums."""
        return self if mode == "none" else self.scaled(*normalizing_factors(self.row_sums() + 1e-20, mode))

    def to(self, dtype: torch.dtype) -> BagChain:
        """The same chain with weights of `dtype`, which must be the dtype of the values it is applied to."""
        if self.slice.weight.dtype == dtype:
            return self
        cast = {}  # the blur weights of a lattice are one tensor used by all axes: convert it once
        def to(bag):
            if id(bag.weight) not in cast:
                cast[id(bag.weight)] = bag.weight.to(dtype)
            return replace(bag, weight=cast[id(bag.weight)])
        return replace(self, splat=to(self.splat), blur=[to(bag) for bag in self.blur], slice=to(self.slice))

    def row_sums(self) -> torch.Tensor:
        """n = A 1, the normaliser of every point. -> [N]"""
        if self.sums is not None:
            return self.sums
        weight = self.slice.weight
        return self(torch.ones(weight.shape[0], 1, dtype=weight.dtype, device=weight.device))[:, 0]


def normalizing_factors(n: torch.Tensor, mode: str) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The diagonals (left, right) that normalise a matrix with row sums n as `mode` names it."""
    if mode == "none":
        return 1.0, 1.0
    if mode == "symmetric":
        return n.rsqrt(), n.rsqrt()
    return (n.reciprocal(), 1.0) if mode == "after" else (1.0, n.reciprocal())


# ------------------------------------------------------------------------------------------------------- the lattice
def elevation(d: int, dtype: torch.dtype, device=None) -> torch.Tensor:
    """E [d + 1, d]: features to the plane sum(x) = 0, scaled so that splat + blur + slice has unit variance (Adams et al., section 3.1)."""
    e = torch.zeros(d + 1, d, dtype=dtype, device=device)
    for j in range(d):
        scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt((j + 1) * (j + 2))
        e[: j + 1, j] = scale
        e[j + 1, j] = -(j + 1) * scale
    return e


def corner_keys(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Keys [N, d + 1] and barycentric weights [N, d + 1] of every point's simplex, and the d + 1 key steps to the next neighbour per axis."""
    n, d = features.shape
    e = elevation(d, features.dtype, features.device)
    digits = (e[:d] - e[d]) / (d + 1) @ features.t()
    lowest, highest = digits.amin(1).floor(), digits.amax(1).floor()
    low = (lowest - 1).tolist()  # corners reach one further up, and their neighbours one further either way
    size = (highest - lowest + 4).tolist()
    stride = [1] * d
    for i in range(d - 2, -1, -1):
        stride[i] = stride[i + 1] * int(size[i + 1])
    total = stride[0] * int(size[0])
    if total >= 2**62:
        spans = [round(float(v)) for v in features.amax(0) - features.amin(0)]
        raise ValueError(f"features span {spans} standard deviations per axis, more than 64-bit lattice keys can number; expected about 2000 "
                         'at most for 5 features: use larger standard deviations (sxy, srgb) or method="exact"')
    narrow = torch.int32 if total < 2**31 else torch.int64  # narrow keys sort in half the time
    from_last = torch.tensor(stride[::-1], dtype=narrow, device=features.device)
    origin = sum(int(l) * s for l, s in zip(low, stride))
    axis_from_last = torch.arange(d - 1, -1, -1, dtype=torch.int32, device=features.device)[:, None]
    whole, fine = (torch.int64, 2.0**53) if features.dtype == torch.float64 else (torch.int32, 2.0**25)
    keys = torch.empty(n, d + 1, dtype=narrow, device=features.device)
    weights = torch.empty(n, d + 1, dtype=features.dtype, device=features.device)
    block = BLOCK * torch.get_num_threads()
    for start in range(0, n, block):
        rows = slice(start, start + block)
        cell = digits[:, rows].floor()
        # One integer holds a fraction and, in its last five bits, the axis that it belongs to: sorting takes both along. Of equal fractions
        # the lower axis comes first, as in the authors' code: it decides which vertices of weight 0 exist, and a blur passes through those.
        ranked = list(((digits[:, rows] - cell) * fine).to(whole).mul_(32).add_(axis_from_last))
        for end in range(d - 1, 0, -1):
            for i in range(end):
                ranked[i], ranked[i + 1] = torch.maximum(ranked[i], ranked[i + 1]), torch.minimum(ranked[i], ranked[i + 1])
        fractions = [(r >> 5).to(features.dtype).mul_(1 / fine) for r in ranked]
        cell = cell.to(narrow)
        key = torch.full((cell.shape[1],), -origin, dtype=narrow, device=features.device)
        for i in range(d):
            key.add_(cell[i], alpha=stride[i])
        keys[rows, 0], weights[rows, 0] = key, 1 - fractions[0]
        for k in range(1, d + 1):
            key = key + from_last.index_select(0, ranked[k - 1] & 31)
            keys[rows, k], weights[rows, k] = key, fractions[k - 1] - (fractions[k] if k < d else 0)
    return keys, weights, stride + [-sum(stride)]


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
        blur.append(Bag(index, blur_weight))
    # Blurring with (1/4, 1/2, 1/4) keeps half precision in range; the 2^(d+1) that this takes away is given back here, together with
    # the factor 1 / (1 + 2^-d) of the authors' code.
    alpha = 2.0**corners / (1 + 2.0**-d)
    return BagChain(Bag(splat_index, splat_weight, offsets), blur, Bag(slice_index.view(n, corners), weights * alpha), m + 1)


# ------------------------------------------------------------------------------------- the smoothness kernel, on a grid
def _taps(sigma: float, step: int, length: int) -> torch.Tensor:
    """The Gaussian between nodes `step` pixels apart, as float64 weights of the 2 r + 1 nearest of `length` nodes."""
    # Quadratic splatting and slicing blur by step^2 / 4 each, wherever a pixel lies between nodes (linear ones do not: their error is ten
    # times larger). The taps supply the rest of the variance, and the sum of the true kernel.
    inner = math.sqrt((sigma / step) ** 2 - (1 / 2 if step > 1 else 0))
    reach = 4.8 if step == 1 else 4.3  # the first tap left out is below 1e-5, or 1e-4 where the splines are wrong by more than that
    radius = min(max(math.ceil(reach * inner) - 1, 0), length - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / inner) ** 2)
    if step > 1:
        full = sum(math.exp(-0.5 * (k / inner) ** 2) for k in range(-math.ceil(8 * inner), math.ceil(8 * inner) + 1))
        taps *= math.sqrt(2 * math.pi) * sigma / (step * full)
    return taps


def _spline(distance: torch.Tensor) -> torch.Tensor:
    """The quadratic B-spline; its values at all integers away from any point sum to 1 and have variance 1/4."""
    distance = distance.abs()
    return torch.where(distance < 0.5, 0.75 - distance.square(), 0.5 * (1.5 - distance).clamp(min=0).square())


def line_bags(length: int, sigma: float, normalization: str) -> tuple[list[Bag], torch.Tensor]:
    """The Gaussian along a line of `length` pixels: float64 bags to be applied in turn, normalised as named, and its row sums before that.

    One bag below 3 pixels; above, splat to every `step`-th pixel, blur and slice. Nothing enters from outside the line.
    """
    step = max(1, int(sigma / 1.5))
    nodes = length if step == 1 else (length - 1 + step // 2) // step + 3  # node k sits at pixel (k - 1) step
    taps = _taps(sigma, step, nodes)
    source = torch.arange(nodes)[:, None] + torch.arange(len(taps)) - len(taps) // 2
    bags = [Bag(source.clamp(0, nodes - 1), taps * ((source >= 0) & (source < nodes)))]
    if step > 1:
        widest = (3 * step - 1) // 2
        source = (torch.arange(nodes)[:, None] - 1) * step + torch.arange(-widest, widest + 1)
        weight = _spline(torch.arange(-widest, widest + 1).double() / step) * ((source >= 0) & (source < length))
        pixel = torch.arange(length)[:, None]
        node = (pixel + step // 2) // step + torch.arange(3)
        bags = [Bag(source.clamp(0, length - 1), weight), *bags, Bag(node, _spline(pixel.double() / step - (node - 1)))]
    sums = torch.ones(length, dtype=torch.float64)
    for bag in bags:
        sums = (bag.weight * sums[bag.index]).sum(1)
    left, right = normalizing_factors(sums, normalization)
    bags[0] = replace(bags[0], weight=bags[0].weight * (right[bags[0].index] if torch.is_tensor(right) else right))
    bags[-1] = replace(bags[-1], weight=bags[-1].weight * (left[:, None] if torch.is_tensor(left) else left))
    return bags, sums


@functools.lru_cache(maxsize=4)  # the same for every image of a size; 10 MB each at 500 x 375
def grid_chain(height: int, width: int, sigma: tuple[float, float], dtype: torch.dtype = torch.float32, device=None,
               normalization: str = "none") -> BagChain:
    """exp(-(dx/sx)^2/2 - (dy/sy)^2/2) over all pixels of an image, sigma = (sx, sy) in pixels, as a `BagChain`, symmetric if so normalised.

    Every bag runs along one axis of the image; rows of the kernel matrix normalise axis by axis too, since their sums are products. Below 3
    pixels there is one bag per axis: a separable convolution, exact to 1e-5. Above, the filter runs on every second (third, ...) pixel
    between a splat and a slice with quadratic B-splines, whose own variance is taken out of the taps: the kernel's relative error is
    below 0.5 %, and the cost falls as sigma grows.
    """
    (down, sums_down), (across, sums_across) = line_bags(height, sigma[1], normalization), line_bags(width, sigma[0], normalization)
    rows, columns, bags = height, width, []
    across = [None] * (len(down) - len(across)) + across  # the axes commute: the last bag runs across, so that it can be read in pieces
    for pair in itertools.zip_longest(down, across):
        for line, vertical in zip(pair, (True, False)):
            if line is None:
                continue
            size = rows * columns  # of the table that this bag reads; the last one's is the chain's
            index = line.index.to(device, torch.int32)  # one row of entries for every point of the line
            weight = line.weight.to(device, dtype)
            if vertical:
                bags.append(Bag(index, weight, columns=columns))
                rows = len(index)
            else:
                row_starts = torch.arange(rows, dtype=torch.int32, device=device) * columns
                everywhere = row_starts[:, None, None] + index  # image row, point of the line, entry
                bags.append(Bag(everywhere.flatten(0, 1), weight.expand_as(everywhere).flatten(0, 1)))
                columns = len(index)
    sums = torch.outer(sums_down, sums_across).view(-1).to(device, dtype) if normalization == "none" else None
    return BagChain(bags[0], bags[1:-1], bags[-1], size, symmetric=normalization in ("none", "symmetric"), sums=sums)


# ----------------------------------------------------------------------------------------- mean field on chains, no gradient
def mean_field_on_chains(log_prior: torch.Tensor, chains: list[BagChain], mixers: list[torch.Tensor | None], iterations: int,
                         half: bool = True, logits: bool = False) -> torch.Tensor:
    """softmax(log_prior + sum_m chain_m(Q) mixer_m), repeated: the inference loop of a CPU, without autograd.

    log_prior [N, K], float32 or float64. Chains already carry their normalisation and, where `mixers` holds None (Potts), their weight;
    otherwise mixers[m] [K, K] turns the filtered Q into the logits it adds. half: Q, tables and bag weights in float16, which halves the
    traffic of a loop that waits for memory (sums are float32 either way); leave it off without normalisation, where sums may pass
    float16's range. Slicing, adding and the softmax go through blocks of pixels, LOOP_BLOCK per thread: small enough for a core's cache.
    Returns Q [N, K], or the logits before the last softmax, up to a constant per pixel.
    """
    if logits and not iterations:
        return log_prior.clone()
    n, k = log_prior.shape
    log_prior = log_prior * LOG2E  # powers of two take half as long as exp: everything below is in units of log 2
    storage = torch.float16 if half else log_prior.dtype
    chains = [chain.scaled(LOG2E, 1.0).to(storage) for chain in chains]
    ones = torch.ones(k, 1, dtype=log_prior.dtype, device=log_prior.device)
    block = LOOP_BLOCK * torch.get_num_threads()
    rows = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    out = torch.empty_like(log_prior)
    q = torch.empty(n, k, dtype=storage, device=log_prior.device) if iterations else out

    def scores(r: slice, tables: list[torch.Tensor]) -> torch.Tensor:
        x = log_prior[r].clone()
        for chain, mixer, table in zip(chains, mixers, tables):
            message = chain.slice[r](table)
            x = x.add_(message) if mixer is None else x.addmm_(message.to(x.dtype), mixer)
        return x

    def softmax(r: slice, tables: list[torch.Tensor], out: torch.Tensor) -> bool:
        """Softmax of the scores. Faster than torch.softmax for few labels, because it skips the maximum: energies are -log p as a rule, and
        normalised messages add a few units. Where powers of two overflow or die all the same, it goes the careful way and says False."""
        e = scores(r, tables).exp2_()
        total = e @ ones
        low, high = total.aminmax()
        safe = float(high) < 1e30 and float(low) > 1e-30
        out.copy_(e.mul_(total.reciprocal_()) if safe else torch.softmax(scores(r, tables) / LOG2E, 1))
        return safe

    for r in rows:
        if not softmax(r, [], q[r]):
            log_prior[r] -= log_prior[r].amax(1, keepdim=True)  # the passes to come are safe
    for iteration in range(1, iterations + 1):
        tables = [chain.table(q) for chain in chains]
        target = out if iteration == iterations else q
        for r in rows:
            if logits and target is out:
                torch.mul(scores(r, tables), 1 / LOG2E, out=out[r])
            else:
                softmax(r, tables, target[r])
    return out
