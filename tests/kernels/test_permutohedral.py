"""The lattice and the grid against the exact sum: bands for what is approximate, equality for what is not."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernels import permutohedral as P
from kernels.dense_crf import pixel_features


def exact(features):
    """K [N, N] in float64."""
    return torch.exp(-0.5 * torch.cdist(features.double(), features.double()).pow(2))


def photograph(height=36, width=48, seed=0):
    """Smooth colour regions with noise, [1, 3, H, W] in 0..255: what a lattice sees in a photograph, without a file."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=g) * 255
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    image[..., : width // 2] = 255 - image[..., : width // 2]
    return (image + torch.randn(1, 3, height, width, generator=g) * 4).clamp(0, 255)


def labels(n, k=5, seed=1):
    return torch.softmax(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 2, 1)


def relative(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def dense(chain, n, transpose=False):
    return chain(torch.eye(n, dtype=chain.slice.weight.dtype), transpose)


# ------------------------------------------------------------------------------------------------- parts of the lattice
def textbook_simplex(points):
    """Adams et al., section 3.1, for elevated `points` [d + 1, N]: the corners [N, d + 1 corners, d + 1 coordinates] and their weights [N, d + 1].

    Round to the nearest point of remainder 0, rank the residuals, mend roundings that left the plane; corner k by the canonical simplex.
    """
    corners, n = points.shape
    cell = torch.round(points / corners)
    residual = points - cell * corners
    rank = (-residual).argsort(dim=0, stable=True).argsort(0) + cell.sum(0).long()  # equal residuals: the lower coordinate first
    fix = (rank < 0).long() - (rank > corners - 1).long()
    rank, cell, residual = rank + fix * corners, cell + fix, residual - fix * corners
    ordered = torch.empty_like(residual).scatter_(0, rank, residual) / corners  # largest residual first
    weight = torch.stack([1 - (ordered[0] - ordered[-1]), *(ordered[corners - 1 - k] - ordered[corners - k] for k in range(1, corners))], 1)
    points = torch.stack([cell * corners + torch.where(rank <= corners - 1 - k, k, k - corners) for k in range(corners)])
    return points.permute(2, 0, 1).long(), weight


def some_points(n, d, spread):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) * spread


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7])
def test_barycentric_weights_rebuild_the_point(d):
    elevated = P.elevation(d, torch.float64) @ some_points(200, d, 5).t()
    assert elevated.sum(0).abs().max() < 1e-10  # in the plane
    corner, weight = textbook_simplex(elevated)
    assert corner.sum(2).abs().max() == 0 and weight.min() > -1e-12 and (weight.sum(1) - 1).abs().max() < 1e-12
    assert ((corner * weight[..., None]).sum(1).t() - elevated).abs().max() < 1e-10


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7, 20])
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_sorted_fractions_find_the_corners_of_the_textbook(d, dtype, close):
    """Two ways to one triangulation: floor and sort fractions in a basis of steps, or round and rank in the plane."""
    features = some_points(300, d, 3 if d < 20 else 0.3)
    keys, weights, _ = P.corner_keys(features.to(dtype))
    corner, expected = textbook_simplex(P.elevation(d, torch.float64) @ features.t())
    assert (weights.sort(1).values - expected.sort(1).values).abs().max() < close
    named = {}  # which weight every point gives to every lattice point, by key and by coordinates
    for p in range(300):
        ours = sorted(zip(weights[p].tolist(), keys[p].tolist()))
        for (w, key), (v, place) in zip(ours, sorted(zip(expected[p].tolist(), map(tuple, corner[p].tolist())))):
            if v > 2 * close and min(abs(v - o) for o in expected[p].tolist() if o != v) > 2 * close:
                assert named.setdefault(key, place) == place
    assert len(named) > 10 and len(set(named.values())) == len(named)


@pytest.mark.parametrize("d", [2, 5])
def test_keys_name_lattice_points_one_to_one_and_steps_lead_to_neighbours(d):
    features = some_points(300, d, 3)
    keys, weights, steps = P.corner_keys(features)
    corner, expected = textbook_simplex(P.elevation(d, torch.float64) @ features.t())
    by_key = {}
    for p in range(300):  # equal weights pair corners up
        by_key |= zip(keys[p, weights[p].argsort()].tolist(), map(tuple, corner[p, expected[p].argsort()].tolist()))
    assert len(by_key) == len(set(by_key.values())) == len(set(map(tuple, corner.flatten(0, 1).tolist())))
    found = 0
    for key, point in by_key.items():
        for axis, step in enumerate(steps):
            neighbour = tuple(x + d if i == axis else x - 1 for i, x in enumerate(point))
            assert by_key.get(key + step) == (neighbour if neighbour in by_key.values() else None)
            found += key + step in by_key
        if len(by_key) > 400 and found > 100:
            break
    assert found > 100


def slow_lattice(features, values):
    """Adams et al. literally: a dictionary of vertices, loops for splat, blur and slice."""
    n, d = features.shape
    corner, weight = textbook_simplex(P.elevation(d, features.dtype) @ features.t())
    corner = [[tuple(c) for c in point] for point in corner.tolist()]
    table = {}
    for p in range(n):
        for k in range(d + 1):
            table[corner[p][k]] = table.get(corner[p][k], 0) + weight[p, k] * values[p]
    for axis in range(d + 1):
        shift = lambda v, s: tuple(x + s * (d if i == axis else -1) for i, x in enumerate(v))  # noqa: E731
        table = {v: t + 0.5 * (table.get(shift(v, 1), 0) + table.get(shift(v, -1), 0)) for v, t in table.items()}
    return torch.stack([sum(weight[p, k] * table[corner[p][k]] for k in range(d + 1)) for p in range(n)]) / (1 + 2.0**-d)


@pytest.mark.parametrize("d", [1, 2, 4, 5])
def test_chain_equals_the_textbook_lattice(d):
    g = torch.Generator().manual_seed(d)
    features, values = torch.randn(60, d, generator=g, dtype=torch.float64) * 2, torch.rand(60, 3, generator=g, dtype=torch.float64)
    assert (P.lattice_chain(features)(values) - slow_lattice(features, values)).abs().max() < 1e-12


@pytest.mark.parametrize("d", [2, 3])
def test_points_on_the_walls_between_simplices_bring_the_vertices_of_the_textbook(d):
    """Equal fractions leave a choice of vertices with weight 0, and a blur passes through those that exist."""
    axes = [torch.arange(4, dtype=torch.float64) * scale for scale in (0.5, 0.75, 1.25)[:d]]
    features = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, d)
    values = torch.rand(len(features), 3, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    corner, weight = textbook_simplex(P.elevation(d, torch.float64) @ features.t())
    assert (weight == 0).sum() > len(features) / 4
    assert (P.lattice_chain(features)(values) - slow_lattice(features, values)).abs().max() < 1e-12


# ------------------------------------------------------------------------------------------------- accuracy bands of the lattice
@pytest.mark.parametrize("sxy, srgb, mean", [(20.0, 13.0, 0.013), (20.0, 5.0, 0.025)], ids=["srgb13", "srgb5"])
def test_lattice_5d_stays_inside_the_published_bands(sxy, srgb, mean):
    """Mean 0.003 to 0.013 and worst 0.51 on photographs; colour noise of one srgb isolates the pixels of the second case."""
    features = pixel_features(photograph(), sxy, srgb)[0]
    k, q, chain = exact(features), labels(features.shape[0]), P.lattice_chain(features)
    response = chain.row_sums().double() / k.sum(1)
    assert 0.35 < response.median() < 0.65  # the raw response is about half of the truth ...
    error = (chain(q).double() / chain.row_sums().double()[:, None] - k @ q.double() / k.sum(1, keepdim=True)).abs()
    assert error.mean() < mean and error.max() < 0.51  # ... which normalisation hides


def test_lattice_2d_stays_inside_the_published_bands():
    features = pixel_features(photograph(), 3.0, 1.0)[0, :, :2].contiguous()
    k, q, chain = exact(features), labels(features.shape[0]), P.lattice_chain(features)
    assert 0.85 < (chain.row_sums().double() / k.sum(1)).median() < 0.90
    error = (chain(q).double() / chain.row_sums().double()[:, None] - k @ q.double() / k.sum(1, keepdim=True)).abs()
    assert error.mean() < 0.003 and error.max() < 0.025


def test_transpose_reverses_the_blur_and_is_not_the_operator_itself():
    features = pixel_features(photograph(10, 13), 8.0, 10.0)[0].double()
    chain = P.lattice_chain(features)
    a, t = dense(chain, 130), dense(chain, 130, transpose=True)
    assert (a.t() - t).abs().max() < 1e-12
    assert (a - a.t()).abs().max() > 0.01 * a.abs().max()  # assuming self-adjointness would be a visible mistake
    left, right = torch.rand(130, dtype=torch.float64), torch.rand(130, dtype=torch.float64)
    assert (dense(chain.scaled(left, right), 130) - left[:, None] * a * right).abs().max() < 1e-12


def test_float16_storage_costs_less_than_a_thousandth():
    features = pixel_features(photograph(), 20.0, 13.0)[0]
    chain, q = P.lattice_chain(features), labels(features.shape[0])
    r = chain.row_sums().rsqrt()
    scaled = chain.scaled(r, r)
    assert 1e-6 < relative(scaled(q.half()), scaled(q).double()) < 1e-3


def test_too_wide_features_are_refused_with_the_span():
    features = torch.tensor([[0.0] * 5, [1e5] * 5])
    with pytest.raises(ValueError, match="64-bit lattice keys"):
        P.lattice_chain(features)


# ------------------------------------------------------------------------------------------------- the smoothness kernel on a grid
@pytest.mark.parametrize("sigma", [(0.3, 0.3), (1.0, 1.5), (2.9, 1.0)], ids=str)
def test_grid_below_three_pixels_is_exact(sigma):
    features = torch.stack(torch.meshgrid(torch.arange(19.0) / sigma[1], torch.arange(23.0) / sigma[0], indexing="ij"), -1).view(-1, 2)
    q = labels(19 * 23)
    assert relative(P.grid_chain(19, 23, sigma)(q), exact(features) @ q.double()) < 2e-5


@pytest.mark.parametrize("sigma", [3.0, 4.0, 7.5, 20.0])
def test_grid_above_three_pixels_beats_the_lattice(sigma):
    features = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(52.0), indexing="ij"), -1).view(-1, 2) / sigma
    q, k = labels(40 * 52), exact(features)
    truth = k @ q.double() / k.sum(1, keepdim=True)  # noise from pixel to pixel: the hardest input for a filter on every second pixel
    grid, lattice = P.grid_chain(40, 52, (sigma, sigma)), P.lattice_chain(features)
    of_grid, of_lattice = (relative(c(q) / c.row_sums()[:, None], truth) for c in (grid, lattice))
    assert of_grid < 1.5e-3 and of_grid < of_lattice / 5, (of_grid, of_lattice)
    assert relative(grid(q), k @ q.double()) < 5e-3 and relative(grid.row_sums(), k.sum(1)) < 5e-3  # raw sums, borders included


@pytest.mark.parametrize("size, sigma", [((1, 1), (3.0, 3.0)), ((1, 17), (4.0, 1.0)), ((13, 1), (1.0, 6.0)), ((5, 7), (90.0, 2.0))], ids=str)
def test_grid_is_symmetric_on_any_size(size, sigma):
    n = size[0] * size[1]
    chain = P.grid_chain(*size, sigma, torch.float64)
    a = dense(chain, n)
    assert (a - a.t()).abs().max() < 1e-12 and (a.diagonal() > 0).all()
    assert (chain.row_sums() - a.sum(1)).abs().max() < 1e-12 * n  # known without filtering
    assert (dense(P.grid_chain(*size, sigma, torch.float64), n, transpose=True) - a).abs().max() < 1e-12


# ------------------------------------------------------------------------------------------------- gradients, loop, properties
def test_gradcheck_of_the_chain():
    features = pixel_features(photograph(4, 5), 4.0, 20.0)[0].double()
    from kernels.dense_crf import _LatticeMessage, _Symmetric
    message = _LatticeMessage([P.lattice_chain(features).normalized])
    values = torch.rand(1, 20, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _Symmetric.apply(v, message, False), (values,))


def test_loop_is_the_update_written_out(monkeypatch):
    n, k = 12 * 15, 4
    monkeypatch.setattr(P, "LOOP_BLOCK", 50)  # several blocks, the last one shorter
    g = torch.Generator().manual_seed(0)
    prior = torch.randn(n, k, generator=g, dtype=torch.float64) * 3
    chains = [P.lattice_chain(pixel_features(photograph(12, 15), 6.0, 15.0)[0].double()), P.grid_chain(12, 15, (1.0, 1.0), torch.float64)]
    mixers = [None, torch.randn(k, k, generator=g, dtype=torch.float64)]
    q = torch.softmax(prior, 1)
    for _ in range(3):
        scores = prior + chains[0](q) + chains[1](q) @ mixers[1]
        q = torch.softmax(scores, 1)
    assert (P.mean_field_on_chains(prior, chains, mixers, 3, half=False) - q).abs().max() < 1e-12
    shift = P.mean_field_on_chains(prior, chains, mixers, 3, half=False, logits=True) - scores
    assert (shift - shift[:, :1]).abs().max() < 1e-12  # equal up to a constant per pixel
    assert (P.mean_field_on_chains(prior, chains, mixers, 0, half=False) - torch.softmax(prior, 1)).abs().max() < 1e-12
    unchanged = P.mean_field_on_chains(prior, chains, mixers, 0, half=False, logits=True)
    assert torch.equal(unchanged, prior) and unchanged.data_ptr() != prior.data_ptr()


def test_messages_that_overflow_exp_are_still_normalised():
    q = P.mean_field_on_chains(torch.zeros(64, 3), [P.grid_chain(8, 8, (2.0, 2.0))], [torch.eye(3) * torch.tensor([1e3, 1e3, 0.0])], 2, half=False)
    assert torch.isfinite(q).all() and (q.sum(1) - 1).abs().max() < 1e-6


@settings(max_examples=15)
@given(n=st.integers(1, 80), d=st.integers(1, 6), spread=st.floats(0.01, 50), seed=st.integers(0, 99))
def test_lattice_of_any_points_is_finite_positive_and_transposable(n, d, spread, seed):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=g, dtype=torch.float64) * spread
    chain = P.lattice_chain(features)
    assert chain.row_sums().min() > 0 and math.isfinite(float(chain.row_sums().sum()))
    a, b = torch.rand(2, n, 1, generator=g, dtype=torch.float64)
    assert abs(float((a * chain(b)).sum() - (chain(a, transpose=True) * b).sum())) < 1e-9 * n


def test_shared_points_and_extreme_sizes():
    same = P.lattice_chain(torch.zeros(50, 5))  # all pixels alike: one simplex
    assert same.size <= 7 and same.row_sums().std() < 1e-4
    far = P.lattice_chain(torch.arange(4.0)[:, None].expand(4, 2) * 300)  # four points that do not see each other
    a = dense(far, 4)
    assert (a - torch.diag(a.diagonal())).abs().max() == 0
