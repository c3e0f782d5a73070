"""Mean field on every path against the formula in float64, its gradients, the culling bound, and what bad input says."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernels import backend, crf_tiles, dense_crf as module
from kernels.dense_crf import NORMALIZATIONS, Bilateral, Features, Gaussian, gaussian_message, gaussian_message_reference, mean_field, pixel_features
from tests.tolerances import assert_close

PATHS = ["torch", "triton"]
#          B, K, H, W, what is special
SHAPES = [(2, 5, 8, 16), (1, 21, 7, 19), (1, 2, 1, 37), (2, 17, 9, 1), (1, 3, 1, 1), (1, 1, 12, 11)]
IDS = [f"B{b}-K{k}-H{h}-W{w}" for b, k, h, w in SHAPES]


def inputs(b, k, h, w, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    image = (torch.rand(b, 3, -(-h // 4), -(-w // 4), generator=g) * 255).repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :h, :w]
    image = (image + torch.randn(b, 3, h, w, generator=g) * 5).clamp(0, 255)
    return (torch.rand(b, k, h, w, generator=g) * 4).to(dtype), image


def message_inputs(b, k, h, w, d=5, dtype=torch.float32):
    _, image = inputs(b, 2, h, w)
    values = torch.randn(b, h * w, k, generator=torch.Generator().manual_seed(2)).to(dtype)
    return pixel_features(image, 6.0, 13.0)[..., :d].contiguous(), values


KERNELS = (Gaussian(1.5, 1.2), Bilateral(6.0, 13.0, 2.0))


def by_hand(unary, image, kernels, iterations, normalization="symmetric", compat=None, self_message=True):
    """Section 6 of the notes this project is built on: dense matrices, float64, no shared code."""
    unary = unary.double()
    b, k, h, w = unary.shape
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    out = []
    for u, picture in zip(unary, image.double()):
        operators = []
        for kernel in kernels:
            f = torch.stack([x, y], -1).view(-1, 2) / kernel.sxy
            if isinstance(kernel, Bilateral):
                f = torch.cat([f, picture.flatten(1).t() / kernel.srgb], 1)
            a = torch.exp(-0.5 * (f[:, None] - f[None]).pow(2).sum(-1))
            n = a.sum(1)
            a = {"symmetric": a / (n[:, None] * n).sqrt(), "after": a / n[:, None], "before": a / n, "none": a}[normalization]
            operators.append((a if self_message else a - torch.diag(a.diagonal()), float(kernel.weight)))
        mu = 1 - torch.eye(k, dtype=torch.float64) if compat is None else compat.double()
        u = u.flatten(1).t()
        q = torch.softmax(-u, 1)
        for _ in range(iterations):
            q = torch.softmax(-u - sum(weight * (a @ q) @ mu.t() for a, weight in operators), 1)
        out.append(q.t().view(k, h, w))
    return torch.stack(out)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that a kernel forgets to write shows up as NaN."""
    real = torch.empty

    def empty(*shape, **options):
        out = real(*shape, **options)
        return out.fill_(math.nan) if out.is_floating_point() else out
    monkeypatch.setattr(module.torch, "empty", empty)


# ------------------------------------------------------------------------------------------------------------------ messages
@pytest.mark.parametrize("cull", [None, 40.0], ids=["all", "culled"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_message_into_poisoned_memory_against_the_formula(shape, path, cull, poisoned):
    features, values = message_inputs(*shape)
    expected = gaussian_message_reference(features.double(), values.double())
    with backend.use(path):
        assert_close(gaussian_message(features, values, cull=cull), expected, what=path)  # 40: what is left out is below 2e-9 a pair


@pytest.mark.parametrize("method, path", [("exact", path) for path in PATHS] + [("lattice", "torch")])
def test_two_runs_are_bit_equal(method, path):
    features, values = message_inputs(*SHAPES[-1])
    with backend.use(path):
        first, second = (gaussian_message(features, values, "symmetric", method, cull=9.2) for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=["fp16", "bf16", "fp64"])
@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_message_dtypes(path, dtype):
    features, values = message_inputs(1, 5, 8, 13, dtype=dtype)
    features = features.double() if dtype == torch.float64 else features
    with backend.use(path):
        out = gaussian_message(features, values)
    assert out.dtype == dtype
    assert_close(out, gaussian_message_reference(features.double(), values.double()))


@pytest.mark.parametrize("d", [1, 2, 6], ids=lambda d: f"d{d}")
def test_message_in_any_dimension_fast_and_precise(d):
    g = torch.Generator().manual_seed(d)
    features, values = torch.randn(1, 90, d, generator=g) * 2, torch.rand(1, 90, 4, generator=g)
    expected = gaussian_message_reference(features.double(), values.double())
    for half, dtype in ((False, torch.float32), (True, torch.float16)):
        assert_close(module._TritonMessage(features, None)(values, half), expected, dtype)
    fast = module._TritonMessage(features, None)(values, True)
    assert float((fast - expected).norm() / expected.norm()) < 3e-4  # the claim for tensor-core distances, float16 scores and values


def test_features_too_far_apart_for_float16_pairs_take_the_careful_distances():
    features = torch.arange(70.0)[None, :, None].expand(1, 70, 2) * 3
    message = module._TritonMessage(features, None)
    assert not message.matrix and module._TritonMessage(features / 3, None).matrix
    values = torch.rand(1, 70, 3)
    assert_close(message(values, True), gaussian_message_reference(features.double(), values.double()), torch.float16)


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_message_of_values_of_any_size(scale):
    features, values = message_inputs(1, 3, 8, 9)
    with backend.use("triton"):
        assert_close(gaussian_message(features, values * scale), gaussian_message_reference(features.double(), values.double() * scale))


@pytest.mark.parametrize("path", PATHS)
def test_message_reads_strided_values_and_changes_nothing(path):
    features, values = message_inputs(2, 6, 5, 14)
    features, values = features[:, ::2], values[:, ::2, 1:4]
    kept = features.clone(), values.clone()
    with backend.use(path):
        out = gaussian_message(features, values)
        again = gaussian_message(features, values)
    assert torch.equal(out, again) and torch.equal(features, kept[0]) and torch.equal(values, kept[1])
    assert_close(out, gaussian_message_reference(features.double(), values.double()))


# ------------------------------------------------------------------------------------------------------------------ culling
def test_hilbert_order_visits_a_grid_in_unit_steps():
    side = 16
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    order = crf_tiles.hilbert_order(grid)
    assert torch.equal(order.sort().values, torch.arange(side * side))
    assert (grid[order].diff(dim=0).abs().sum(1) <= 2).float().mean() > 0.95  # rounding to 10 bits bends a few steps


def test_culling_loses_less_than_its_bound_and_keeps_symmetry():
    _, image = inputs(1, 2, 24, 32)
    features = pixel_features(image, 8.0, 5.0)
    plan = crf_tiles.plan_tiles(features[0], 9.2)
    assert plan.kept < 0.9
    values = torch.rand(1, 768, 3, generator=torch.Generator().manual_seed(1))
    exact = gaussian_message_reference(features.double(), values.double())
    with backend.use("triton"):
        culled = gaussian_message(features, values, cull=9.2).double()
    lost = (exact - culled)[0, plan.order].amax(1)
    bound = plan.bound.double().repeat_interleave(64)[:768]
    assert (lost <= bound + 1e-4).all() and lost.max() > 1e-6
    assert lost.max() / exact.max() < 2e-3  # the loss itself is far below the bound
    live = torch.zeros(len(plan.bound), len(plan.bound), dtype=torch.bool)
    for row in range(len(plan.bound)):
        live[row, plan.live[plan.start[row]:plan.start[row + 1]].long()] = True
    assert torch.equal(live, live.t())


# ------------------------------------------------------------------------------------------------------------------ mean field
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_mean_field_exact(path, normalization):
    unary, image = inputs(2, 4, 9, 10)
    kernels = KERNELS if normalization != "none" else (Gaussian(1.5, 0.1), Bilateral(6.0, 13.0, 0.05))
    with backend.use(path):
        q = mean_field(unary, image, kernels, iterations=4, normalization=normalization, method="exact", cull=None)
    expected = by_hand(unary, image, kernels, 4, normalization)
    assert (q - expected).abs().max() < (2e-3 if path == "triton" else 1e-5)
    assert (q - expected).abs().mean() < 1e-4 and (q.argmax(1) != expected.argmax(1)).float().mean() < 0.006


def test_mean_field_precise_kernel_and_no_self_message():
    unary, image = inputs(1, 3, 8, 9)
    with backend.use("triton"):
        q = mean_field(unary, image, KERNELS, iterations=3, cull=None, half=False, self_message=False)
    assert (q - by_hand(unary, image, KERNELS, 3, self_message=False)).abs().max() < 1e-5
    assert (q - by_hand(unary, image, KERNELS, 3)).abs().max() > 1e-3


def test_general_compatibility_weights_per_label_and_kernels_of_their_own():
    unary, image = inputs(1, 4, 8, 9)
    g = torch.Generator().manual_seed(5)
    compat = torch.rand(4, 4, generator=g)
    compat = compat + compat.t()
    with backend.use("torch"):
        for method, limit in (("exact", 1e-5), ("lattice", 0.1)):
            q = mean_field(unary, image, KERNELS, iterations=3, compat=compat, method=method)
            assert (q - by_hand(unary, image, KERNELS, 3, compat=compat)).abs().max() < limit, method
        # a vector weight w on Potts is the energy -diag(w); a kernel's own compat and normalisation win
        w = torch.rand(4, generator=g)
        for method in ("exact", "lattice"):
            a = mean_field(unary, image, [Gaussian(2.0, w)], iterations=2, method=method, normalization="after")
            b = mean_field(unary, image, [Gaussian(2.0, 1.0, compat=-torch.diag(w), normalization="after")], iterations=2, method=method,
                           compat=compat)
            assert (a - b).abs().max() < 1e-5, method


def test_free_features_equal_the_bilateral_kernel_made_of_them():
    unary, image = inputs(2, 3, 7, 9)
    features = pixel_features(image, 6.0, 13.0).transpose(1, 2).reshape(2, 5, 7, 9)
    with backend.use("torch"):
        for method in ("exact", "lattice"):
            a = mean_field(unary, image, [Bilateral(6.0, 13.0, 2.0)], iterations=3, method=method)
            b = mean_field(unary, None, [Features(features, 2.0)], iterations=3, method=method)
            assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_invariants(method):
    unary, image = inputs(1, 4, 10, 12)
    with backend.use("torch"):
        def run(u, kernels=KERNELS, **k):
            return mean_field(u, image, kernels, iterations=4, method=method, half=False, **k)
        q = run(unary)
        assert (q.sum(1) - 1).abs().max() < 1e-5
        swap = [2, 0, 3, 1]
        assert (run(unary[:, swap]) - q[:, swap]).abs().max() < 1e-5  # labels have no order
        assert (run(unary + torch.rand(1, 1, 10, 12) * 9) - q).abs().max() < 1e-4  # a constant per pixel changes nothing
        assert (run(unary, [Gaussian(3.0, 0.0)]) - torch.softmax(-unary, 1)).abs().max() < 1e-6
        assert (run(unary, []) - torch.softmax(-unary, 1)).abs().max() < 1e-6
        assert (run(unary * 0) - 0.25).abs().max() < 1e-5  # nothing to prefer
        one = mean_field(unary, image, [Gaussian(1e-3, 1.5)], iterations=1, method=method, half=False)  # K = I
        assert (one - torch.softmax(-unary + 1.5 * torch.softmax(-unary, 1), 1)).abs().max() < 1e-5
        scores = run(unary, logits=True)
        assert (torch.softmax(scores, 1) - q).abs().max() < 1e-5
        shared = torch.cat([unary, unary.flip(1)])
        both = mean_field(shared, image.expand(2, -1, -1, -1), KERNELS, iterations=4, method=method, half=False)
        assert (both[:1] - q).abs().max() < 1e-5  # images of a batch do not see each other


def test_free_energy_never_rises_with_the_self_message():
    unary, image = inputs(1, 3, 9, 11)
    features = pixel_features(image, 6.0, 13.0).double()
    k = gaussian_message_reference(features, torch.eye(99, dtype=torch.float64)[None])[0]
    k = k / (k.sum(1)[:, None] * k.sum(1)).sqrt()
    u, energies = unary.double().flatten(2)[0].t(), []
    for t in range(12):
        with backend.use("torch"):
            q = mean_field(unary.double(), image, [Bilateral(6.0, 13.0, 3.0)], iterations=t, method="exact").flatten(2)[0].t()
        energies.append(float((q * q.log()).sum() + (u * q).sum() - 1.5 * (q * (k @ q)).sum()))
    assert all(b <= a + 1e-9 for a, b in zip(energies, energies[1:])) and energies[0] - energies[-1] > 1


def test_float16_unary_and_autocast():
    unary, image = inputs(1, 3, 8, 9)
    with backend.use("torch"):
        plain = mean_field(unary, image, KERNELS, iterations=2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(mean_field(unary, image, KERNELS, iterations=2), plain)
        half = mean_field(unary.half(), image.to(torch.uint8), KERNELS, iterations=2)
        assert half.dtype == torch.float16 and (half - plain).abs().max() < 0.05


# ------------------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_gradcheck_of_unary_weights_and_compatibility(method):
    unary, image = inputs(1, 2, 2, 3, dtype=torch.float64)
    weights = torch.tensor([1.2, 0.7], dtype=torch.float64)
    compat = torch.eye(2, dtype=torch.float64) * -1 + 0.1
    for t in (unary, weights, compat):
        t.requires_grad_()

    def run(u, w, c):
        return mean_field(u, image, [Gaussian(1.0, w[0]), Bilateral(3.0, 20.0, w[1], normalization="after")], iterations=2, compat=c, method=method)
    with backend.use("torch"):
        assert torch.autograd.gradcheck(run, (unary, weights, compat))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("path", PATHS)
def test_gradient_of_values_swaps_the_normalisations(path, normalization):
    features, values = message_inputs(1, 4, 8, 9)
    up = torch.randn(1, 72, 4, generator=torch.Generator().manual_seed(3))
    wide = values.double().requires_grad_()
    with backend.use("reference"):
        (gaussian_message(features.double(), wide, normalization).sin() * up).sum().backward()  # the op is not the last layer
    values.requires_grad_()
    with backend.use(path):
        (gaussian_message(features, values, normalization).sin() * up).sum().backward()
    assert_close(values.grad, wide.grad, factor=4)  # two sums of 72 terms one after the other


def test_gradient_on_the_kernel_equals_the_reference():
    unary, image = inputs(1, 3, 8, 9)
    up = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(3))

    def gradients(path, dtype):
        leaves = [unary.to(dtype, copy=True).requires_grad_(), torch.tensor(1.2, dtype=dtype, requires_grad=True),
                  (1 - torch.eye(3, dtype=dtype)).requires_grad_()]
        with backend.use(path):
            q = mean_field(leaves[0], image, [Gaussian(1.5, 1.0), Bilateral(6.0, 13.0, leaves[1])], iterations=2, compat=leaves[2], method="exact",
                           cull=None, half=False)
        (q * up).sum().backward()
        return [leaf.grad for leaf in leaves]
    for actual, expected in zip(gradients("triton", torch.float32), gradients("reference", torch.float64)):
        assert_close(actual, expected)


def test_weights_can_be_learned():
    """Noisy unaries of a two-coloured picture: gradient descent finds that the colour kernel helps."""
    truth = torch.zeros(12, 12, dtype=torch.long)
    truth[3:9, 4:10] = 1
    g = torch.Generator().manual_seed(0)
    image = (truth * 120 + 60.0 + torch.randn(3, 12, 12, generator=g) * 5)[None]
    unary = -torch.log_softmax(torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1)[None] * 1.0 + torch.randn(1, 2, 12, 12, generator=g), 1)
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.3)
    losses = []
    with backend.use("torch"):
        for _ in range(12):
            q = mean_field(unary, image, [Bilateral(6.0, 13.0, weight)], iterations=3, logits=True)
            losses.append(torch.nn.functional.cross_entropy(q, truth[None]))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    assert losses[-1] < 0.7 * losses[0] and weight > 1


# ------------------------------------------------------------------------------------------------------------------ properties, bad input
@settings(max_examples=12)
@given(b=st.integers(1, 2), k=st.integers(2, 6), h=st.integers(1, 9), w=st.integers(1, 9), scale=st.floats(0, 60), seed=st.integers(0, 99))
def test_any_size_and_extreme_energies_give_probabilities(b, k, h, w, scale, seed):
    unary, image = inputs(b, k, h, w, seed)
    unary = (unary * scale).transpose(2, 3).contiguous().transpose(2, 3)
    with backend.use("torch"):
        for method in ("lattice", "exact"):
            q = mean_field(unary, image, KERNELS, iterations=3, method=method)
            assert torch.isfinite(q).all() and q.min() >= 0 and (q.sum(1) - 1).abs().max() < 1e-4


U, I = inputs(1, 3, 6, 7)
NAN = U.clone()
NAN[0, 2, 1, 4] = math.nan


@pytest.mark.parametrize("call, sentence", [
    (lambda: mean_field(NAN, I), r"unary has 1 NaN .* first at \[b, k, y, x\] = \[0, 2, 1, 4\]"),
    (lambda: mean_field(U[0], I), r"unary must be a floating-point tensor \[B, K, H, W\].*\[3, 6, 7\]"),
    (lambda: mean_field(U.long(), I), "unary must be a floating-point tensor .* torch.int64"),
    (lambda: mean_field(U[:, :1], I), "K = 1 labels; a CRF needs at least 2"),
    (lambda: mean_field(U[:, :, :0], I), "unary is empty"),
    (lambda: mean_field(U, I[..., :5]), r"image must be .*\(1, 6, 7\); got \[1, 3, 6, 5\]"),
    (lambda: mean_field(U), "Bilateral needs the image"),
    (lambda: mean_field(U, I / 255), "image spans only .* multiply the image by 255"),
    (lambda: mean_field(U, I / 255, [Bilateral(3.0, (1.0, 2.0, 3.0))]), r"image spans only .* Bilateral.srgb is \(1.0, 2.0, 3.0\)"),
    (lambda: mean_field(U, I * math.nan), "image holds NaN"),
    (lambda: mean_field(U, I, [Gaussian(0.0)]), "Gaussian.sxy must be positive .* got 0.0"),
    (lambda: mean_field(U, I, [Bilateral(3.0, (3.0, -1.0, 3.0))]), "Bilateral.srgb must be positive"),
    (lambda: mean_field(U, I, [Gaussian(torch.tensor(3.0, requires_grad=True))]), "Gaussian.sxy requires a gradient, but none is computed"),
    (lambda: mean_field(U, I, [Bilateral(3.0, (3.0, 3.0, torch.tensor(3.0, requires_grad=True)))]), "Bilateral.srgb requires a gradient"),
    (lambda: mean_field(U, I, [Bilateral(3.0, (3.0, 1.0))]), "2 entries for an image of 3 channels"),
    (lambda: mean_field(U, I, [Gaussian(1.0, torch.ones(2))]), r"Gaussian.weight must be a number or a tensor \[\] or \[K\] with K = 3; got \[2\]"),
    (lambda: mean_field(U, I, compat=torch.eye(4)), r"compat must be \[K, K\] energies with K = 3; got \[4, 4\]"),
    (lambda: mean_field(U, I, iterations=-1), "iterations must be an integer of at least 0; got -1"),
    (lambda: mean_field(U, I, normalization="row"), "normalization must be one of symmetric, after, before, none; got 'row'"),
    (lambda: mean_field(U, I, method="fast"), "method must be one of auto, exact, lattice"),
    (lambda: mean_field(U, I, method="lattice", self_message=False), "self_message=False needs method=\"exact\""),
    (lambda: mean_field(U, I, [Features(torch.zeros(1, 2, 5, 7))]), r"Features.values must be .* got \[1, 2, 5, 7\]"),
    (lambda: gaussian_message(torch.zeros(1, 5, 2), torch.zeros(1, 6, 3)), r"features must be \[B, N, d\] and values \[B, N, K\]"),
    (lambda: gaussian_message(torch.zeros(1, 5, 2, requires_grad=True), torch.zeros(1, 5, 3)), "features require a gradient"),
    (lambda: gaussian_message(torch.full((1, 5, 2), math.inf), torch.zeros(1, 5, 3)), "features hold NaN or infinity"),
    (lambda: gaussian_message(torch.zeros(1, 5, 2), torch.zeros(1, 5, 3), cull=-1.0), "cull must be a positive squared distance"),
])
def test_bad_input_is_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_nearly_uniform_photograph_is_no_image_in_0_to_1():
    """Levels 128 and 129 as floats are what a photograph of a wall holds: the same probabilities as from its bytes."""
    levels = (I[:, :, :, :1] > 128).float().expand_as(I)
    for shift in (128.0, 1.0, -0.5):
        image = levels + shift
        q = mean_field(U, image, KERNELS, iterations=2, method="exact")
        assert_close(q, mean_field(U, 100 * image, (KERNELS[0], Bilateral(6.0, 1300.0, 2.0)), iterations=2, method="exact"))
    for uniform in (0.0, 0.5, 1.0, 200.0):  # nothing to tell pixels apart, in any unit
        assert torch.isfinite(mean_field(U, torch.full_like(I, uniform), KERNELS, iterations=2)).all()
    with pytest.raises(ValueError, match=r"image spans only 0\.\.1 while Bilateral.srgb is 13.0"):
        mean_field(U, levels, KERNELS)
    assert torch.isfinite(mean_field(U, levels.byte(), KERNELS, iterations=2)).all(), "bytes count grey levels, whatever they are"
    assert torch.isfinite(mean_field(U, levels, [Bilateral(6.0, (0.1, 13.0, 13.0))], iterations=2)).all(), "red plays a part"


def test_foreign_kernel_and_asymmetric_compatibility():
    with pytest.raises(TypeError, match="kernels must hold Gaussian, Bilateral and Features; got float"):
        mean_field(U, I, [3.0])
    with backend.use("torch"), pytest.warns(UserWarning, match="compat is not symmetric"):
        mean_field(U, I, KERNELS, compat=torch.arange(9.0).view(3, 3), iterations=1)
