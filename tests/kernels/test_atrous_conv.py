"""Atrous convolution and ASPP: kernels (in the interpreter) and torch path against the plain formula, gradients included."""
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import atrous_conv as module
from kernels import atrous_taps, backend
from kernels.atrous_conv import aspp, aspp_reference, atrous_conv, atrous_conv_reference, fold_batch_norm
from tests.tolerances import assert_close

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
SMALL = atrous_taps.Tile(16, 16, 16, 1, 1)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Whatever a kernel does not write comes back as NaN."""
    def poison(allocate):
        def filled(*args, **kwargs):
            out = allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() and out.numel() < 1 << 20 and not out.is_meta else out
        return filled

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16 and 24 places for programs: many tiles in every direction, a split sum, a cut-off last round."""
    for key in [k for k in atrous_taps.TILES if k[2] == "interpreter"]:
        monkeypatch.setitem(atrous_taps.TILES, key, SMALL)
    monkeypatch.setattr(module, "slots", lambda tensor, tile: 24)


def tensor(*shape, dtype=torch.float32, layout="nchw", seed=0, scale=1.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).mul(scale)
    if layout == "last":
        return x.to(dtype, memory_format=torch.channels_last)
    if layout == "sliced":  # a view with gaps in every dimension: every stride differs from that of a dense tensor
        wide = torch.full([2 * n + 1 for n in shape], float("nan"), dtype=dtype)
        view = wide[tuple(slice(1, None, 2) for _ in shape)]
        view.copy_(x)
        return view
    return x.to(dtype)


def results(path, function, arguments, upstream_seed=7):
    """The output and the gradient of every tensor argument under a random upstream gradient."""
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    before = [a.clone() for a in arguments if isinstance(a, torch.Tensor)]
    with backend.use(path):
        y = function(*leaves)
        g = tensor(*y.shape, dtype=y.dtype, seed=upstream_seed)
        y.backward(g)
    for a, b in zip((a for a in arguments if isinstance(a, torch.Tensor)), before):
        assert torch.equal(a, b), "an input was modified"
    return [y.detach()] + [leaf.grad for leaf in leaves if isinstance(leaf, torch.Tensor)]


def check_all(function, arguments, what=("y", "dx", "dweight", "dbias"), paths=("torch", "triton"), factor=1.0):
    expected = results("reference", function, arguments)
    for path in paths:
        for name, a, e in zip(what, results(path, function, arguments), expected, strict=True):
            assert a.dtype == e.dtype
            assert_close(a, e, factor=factor, what=f"{path} {name}")


# B C O H W kernel, options, dtype, layout
GRID = [
    (1, 1, 1, 1, 1, (1, 1), {}, torch.float32, "nchw"),
    (1, 3, 2, 1, 9, (1, 3), dict(rate=2, padding="same"), torch.float32, "nchw"),
    (2, 21, 7, 11, 13, (3, 3), dict(rate=2, padding="same"), torch.float32, "nchw"),
    (2, 21, 7, 11, 13, (3, 3), dict(rate=2, padding="same"), torch.float32, "last"),
    (2, 5, 7, 11, 13, (3, 3), dict(rate=2, padding="same", relu=True), torch.float32, "sliced"),
    (2, 16, 32, 8, 8, (3, 3), dict(rate=4, padding=4), torch.bfloat16, "last"),
    (2, 16, 32, 8, 8, (3, 3), dict(rate=4, padding=4, relu=True), torch.float16, "nchw"),
    (1, 70, 67, 7, 31, (3, 3), dict(rate=12, padding=12), torch.float32, "last"),
    (1, 7, 5, 13, 17, (3, 3), dict(stride=2, rate=1, padding=1), torch.float32, "nchw"),
    (2, 7, 5, 13, 17, (3, 2), dict(stride=(2, 3), rate=(3, 2), padding=(4, 1)), torch.float32, "last"),
    (1, 6, 5, 10, 15, (4, 4), dict(stride=2, rate=3, padding="same"), torch.float16, "nchw"),
    (1, 6, 5, 12, 9, (2, 5), dict(stride=4, rate=2, padding=3), torch.float32, "sliced"),
    (1, 6, 5, 7, 7, (1, 1), dict(stride=3), torch.bfloat16, "last"),
    (1, 2, 3, 5, 5, (5, 5), dict(rate=1, padding=6), torch.float32, "nchw"),
    (1, 2, 3, 3, 300, (3, 3), dict(rate=2, padding=2), torch.float32, "nchw"),
]


def grid_id(case):
    b, c, o, h, w, k, options, dtype, layout = case
    extra = "".join(f"-{n}{v}" for n, v in options.items()).replace(" ", "")
    return f"B{b}-C{c}-O{o}-H{h}-W{w}-k{k[0]}x{k[1]}{extra}-{NAMES[dtype]}-{layout}"


def make(case, groups=1):
    b, c, o, h, w, k, options, dtype, layout = case
    x = tensor(b, c, h, w, dtype=dtype, layout=layout)
    weight = tensor(o, c // groups, *k, dtype=dtype, layout=layout, seed=1, scale=(c // groups * k[0] * k[1]) ** -0.5)
    return (lambda x, w, bias: atrous_conv(x, w, bias, groups=groups, **options)), (x, weight, tensor(o, dtype=dtype, seed=2))


@pytest.mark.parametrize("case", GRID, ids=grid_id)
def test_dense_grid(case):
    check_all(*make(case))


DEPTHWISE = [
    (2, 6, 6, 9, 11, (3, 3), dict(rate=2, padding="same"), torch.float32, "nchw"),
    (2, 37, 37, 5, 7, (3, 3), dict(rate=3, padding=3, relu=True), torch.float32, "last"),
    (1, 5, 15, 9, 8, (3, 3), dict(stride=2, padding=1), torch.float32, "sliced"),
    (2, 4, 8, 9, 8, (2, 3), dict(stride=(3, 2), rate=(2, 1), padding="same"), torch.float16, "last"),
    (1, 33, 33, 14, 15, (4, 4), dict(rate=4, padding=6), torch.bfloat16, "last"),
]


@pytest.mark.parametrize("case", DEPTHWISE, ids=grid_id)
def test_depthwise_grid(case):
    check_all(*make(case, groups=case[1]))


@pytest.mark.parametrize("route", ["direct", "shift_add"])
@pytest.mark.parametrize("rates,dtype,layout", [((6, 12, 18, 24), torch.bfloat16, "last"), ((1, 3), torch.float32, "sliced"),
                                                ((2,), torch.float16, "nchw"), ((1, 2, 3, 4, 5, 6, 7, 8), torch.float32, "last")],
                         ids=lambda v: NAMES.get(v, str(v).replace(" ", "")))
def test_aspp(route, rates, dtype, layout):
    x = tensor(*((1, 20, 6, 5) if len(rates) == 8 else (2, 20, 11, 9)), dtype=dtype, layout=layout)
    weights = tensor(len(rates), 18, 20, 3, 3, dtype=dtype, seed=1, scale=180 ** -0.5)
    biases = tensor(len(rates), 18, dtype=dtype, seed=2)
    check_all(lambda x, w, b: aspp(x, w, b, rates, route=route), (x, weights, biases))


@pytest.mark.parametrize("route", ["direct", "shift_add"])
def test_aspp_takes_lists_and_no_bias(route):
    x, w1, w2 = tensor(1, 3, 7, 9), tensor(4, 3, 3, 3, seed=1), tensor(4, 3, 3, 3, seed=2)
    b1, b2 = tensor(4, seed=3), tensor(4, seed=4)
    check_all(lambda x, w1, w2, b1, b2: aspp(x, [w1, w2], [b1, b2], (1, 4), route=route), (x, w1, w2, b1, b2), ("y", "dx", "dw1", "dw2", "db1", "db2"))
    check_all(lambda x, w1, w2: aspp(x, (w1, w2), None, [1, 4], route=route), (x, w1, w2), ("y", "dx", "dw1", "dw2"))


def test_default_routes_agree_with_and_without_gradients():
    x, weights, biases = tensor(1, 24, 12, 12), tensor(2, 3, 24, 3, 3, seed=1), tensor(2, 3, seed=2)
    expected = aspp_reference(x, weights, biases, (2, 5))
    for path in ("torch", "triton"):
        with backend.use(path):
            assert_close(aspp(x, weights, biases, (2, 5)), expected)
            assert_close(aspp(x.requires_grad_(), weights, biases, (2, 5)), expected)
            x = x.detach()
    wide = tensor(2, 40, 24, 3, 3, seed=3)
    with backend.use("torch"):
        assert_close(aspp(x, wide, None, (2, 5)), aspp_reference(x, wide, None, (2, 5)))


def test_many_tiles_and_split_sums(small_tiles):
    """Tiles smaller than every dimension; the plan splits the sum and cuts off the last round (checked here to really happen)."""
    assert atrous_taps.plan(2 * 9 * 11, 16, 2, 24) == [(0, 192, 1), (192, 198, 12)]
    check_all(*make((2, 20, 18, 9, 11, (3, 3), dict(rate=2, padding="same", relu=True), torch.float32, "last")), paths=("triton",))
    assert atrous_taps.plan(49, 16, 2, 24) == [(0, 49, 3)]
    check_all(*make((1, 34, 17, 7, 7, (3, 3), dict(rate=5, padding=5), torch.float32, "nchw")), paths=("triton",))


def test_every_element_is_written_over_poisoned_memory(small_tiles):
    """New memory is NaN in all tests of this file; here on purpose where taps, phases or whole tiles have nothing to add."""
    assert torch.isnan(torch.empty(3)).all() and torch.isnan(torch.empty_like(torch.zeros(3))).all()
    for options in (dict(rate=9, padding=9), dict(stride=4), dict(stride=3, padding=2, rate=2)):
        for groups in (1, 2):
            function, arguments = make((1, 2, 4, 7, 9, (3, 3), options, torch.float32, "nchw"), groups)
            for result in results("triton", function, arguments):
                assert torch.isfinite(result).all()


def test_two_runs_are_equal_to_the_bit(small_tiles):
    function, arguments = make((1, 20, 18, 7, 7, (3, 3), dict(rate=2, padding="same"), torch.float16, "last"))
    for a, b in zip(results("triton", function, arguments), results("triton", function, arguments)):
        assert torch.equal(a, b)


def test_taps_outside_the_map_are_never_multiplied():
    """At rate 24 on a 9-row map the rows above and below do not exist: their weights may be NaN. Columns reach, so they count."""
    x = tensor(1, 4, 9, 60)
    weight = tensor(5, 4, 3, 3, seed=1)
    clean = weight.clone()
    clean[:, :, (0, 2)] = 0
    weight[:, :, (0, 2)] = float("nan")
    with backend.use("triton"):
        y = atrous_conv(x, weight, padding=24, rate=24)
    assert_close(y, atrous_conv_reference(x, clean, padding=24, rate=24))


def test_reference_is_the_definition():
    """Five nested loops over integers against the reference: exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (2, 2, 6, 5), generator=generator).double()
    weight, bias = torch.randint(-3, 4, (3, 2, 2, 3), generator=generator).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    (s_h, s_w), (p_h, p_w), (r_h, r_w) = (2, 1), (1, 2), (3, 2)
    y = atrous_conv_reference(x, weight, bias, (s_h, s_w), (p_h, p_w), (r_h, r_w))
    assert y.shape == (2, 3, 3, 5)
    for b, o, i, j in itertools.product(*map(range, y.shape)):
        total = bias[o].item()
        for c, u, v in itertools.product(range(2), range(2), range(3)):
            q, k = i * s_h + u * r_h - p_h, j * s_w + v * r_w - p_w
            if 0 <= q < 6 and 0 <= k < 5:
                total += (x[b, c, q, k] * weight[o, c, u, v]).item()
        assert y[b, o, i, j].item() == total


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_gradcheck_in_float64(path):
    def args(*shapes):
        return tuple(tensor(*s, dtype=torch.float64, seed=i).requires_grad_() for i, s in enumerate(shapes))

    with backend.use(path):
        for options in (dict(rate=2, padding="same"), dict(stride=2, rate=3, padding=2, relu=True)):
            assert torch.autograd.gradcheck(lambda x, w, b: atrous_conv(x, w, b, **options), args((1, 2, 4, 5), (2, 2, 3, 2), (2,)))
        assert torch.autograd.gradcheck(lambda x, w, b: atrous_conv(x, w, b, rate=2, padding=2, groups=2), args((1, 2, 4, 3), (4, 1, 3, 2), (4,)))
        for route in ("direct", "shift_add"):
            assert torch.autograd.gradcheck(lambda x, w, b: aspp(x, w, b, (1, 4), route=route), args((2, 2, 3, 4), (2, 2, 2, 3, 3), (2, 2)))


# ------------------------------------------------------------------------------------------------ arithmetic behind the launches


@given(kernel=st.integers(1, 6), stride=st.integers(1, 5), pad=st.integers(0, 9), rate=st.integers(1, 7), size=st.integers(1, 15))
@settings(max_examples=300)
def test_adjoint_taps_invert_the_forward_taps(kernel, stride, pad, rate, size):
    """The triples (input q, tap u, output i) of the backward pass are those of the forward pass, along one axis."""
    out = (size + 2 * pad - rate * (kernel - 1) - 1) // stride + 1
    forward = {(q, u, i) for i in range(max(out, 0)) for u in range(kernel) for q in [i * stride + u * rate - pad] if 0 <= q < size}
    backward = set()
    for phase in range(min(stride, size)):
        count, first, step_u, start, step = atrous_taps.adjoint_taps(phase, kernel, stride, pad, rate)
        assert step > 0
        for t, j in itertools.product(range(len(range(phase, size, stride))), range(count)):
            if 0 <= t + start + j * step < out:
                backward.add((stride * t + phase, first + j * step_u, t + start + j * step))
    assert backward == forward


@given(n=st.integers(1, 60000), block=st.sampled_from([16, 64, 128]), columns=st.integers(1, 40), slots=st.integers(1, 300))
@settings(max_examples=300)
def test_plan_covers_every_pixel_once(n, block, columns, slots):
    launches = atrous_taps.plan(n, block, columns, slots)
    assert launches[0][0] == 0 and launches[-1][1] == n
    assert all(a[1] == b[0] and a[1] % block == 0 for a, b in zip(launches, launches[1:]))
    assert all(end > first and 1 <= split <= 64 for first, end, split in launches)
    assert all(math.ceil((end - first) / block) * columns * split <= slots for first, end, split in launches if split > 1)


def test_plan_avoids_the_nearly_empty_last_round():
    """8 x 65 x 65 pixels are 264.06 tiles of 128 on 132 processors: two full rounds and 8 pixels, which 64 programs share."""
    assert atrous_taps.plan(8 * 65 * 65, 128, 1, 132) == [(0, 264 * 128, 1), (264 * 128, 8 * 65 * 65, 64)]
    assert atrous_taps.plan(41 * 41, 128, 1, 132) == [(0, 41 * 41, 9)]
    assert atrous_taps.plan(200 * 128, 128, 1, 132) == [(0, 200 * 128, 1)]


def test_recorded_launches_start_nothing():
    x = torch.empty(8, 2048, 65, 65, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.empty(4, 256, 2048, 3, 3, dtype=torch.bfloat16, device="meta", requires_grad=True)
    pads = tuple((r, r) for r in (6, 12, 18, 24))
    with atrous_taps.record_launches("sm90") as launches:
        y = module._Dense.apply(x, weight, None, module.Geometry((1, 1), pads, pads, (65, 65)), False)
        forward = len(launches)
        y.backward(torch.empty_like(y))
    assert forward == 3 and [launch.constants["SPLIT"] for launch in launches] == [1, 64, 64, 1, 1]
    assert launches[0].tile == (128, 256, 64, 8, 4) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ["nchw", "last"])
def test_result_keeps_the_memory_layout(layout):
    x, weight = tensor(2, 4, 6, 5, layout=layout), tensor(3, 4, 3, 3, seed=1)
    for function in (lambda: atrous_conv(x, weight, padding=1), lambda: aspp(x, weight[None], None, (2,)),
                     lambda: atrous_conv(x, tensor(4, 1, 3, 3), padding=1, groups=4)):
        with backend.use("triton"):
            y = function()
        assert y.is_contiguous(memory_format=torch.channels_last if layout == "last" else torch.contiguous_format)


def test_offsets_beyond_32_bits():
    """Three images 2^30 elements apart, so strides fit 32 bits and offsets do not (memory that is never touched is never made)."""
    far = torch.empty(2 ** 31 + 4096, dtype=torch.float16).as_strided((3, 3, 5, 7), (2 ** 30, 35, 7, 1))
    x = tensor(3, 3, 5, 7, dtype=torch.float16)
    far.copy_(x)
    weight = tensor(4, 3, 3, 3, dtype=torch.float16, seed=1).requires_grad_()
    grads = []
    for source in (x, far):
        with backend.use("triton"):
            y = atrous_conv(source, weight, padding=2, rate=2)
            grads.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), weight)))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])


@given(data=st.data())
@settings(max_examples=15)
def test_any_shape_any_strides(data):
    draw = data.draw
    b, c, o = draw(st.integers(0, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    h, w, k = draw(st.integers(1, 9)), draw(st.integers(1, 9)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    rate, stride = (draw(st.integers(1, 4)), draw(st.integers(1, 4))), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    depthwise = draw(st.booleans())
    order = draw(st.permutations(range(4)))
    sizes = (b, c, h, w)
    x = tensor(*(sizes[i] for i in order)).permute([order.index(i) for i in range(4)])
    assert x.shape == sizes
    weight = tensor(c * o if depthwise else o, 1 if depthwise else c, *k, seed=1)
    function = lambda x, w: atrous_conv(x, w, None, stride, "same", rate, c if depthwise else 1)  # noqa: E731
    check_all(function, (x, weight), ("y", "dx", "dweight"))


# ------------------------------------------------------------------------------------------------ identities DeepLab rests on


def test_polyphase_equality():
    """Atrous convolution at rate r = ordinary convolutions of the r*r sub-sampled maps, interleaved back (the paper's second implementation)."""
    rate, x, weight = 3, tensor(2, 3, 12, 15, dtype=torch.float64), tensor(4, 3, 3, 3, dtype=torch.float64, seed=1)
    woven = torch.empty(2, 4, 12, 15, dtype=torch.float64)
    for f, g in itertools.product(range(rate), repeat=2):
        woven[:, :, f::rate, g::rate] = F.conv2d(x[:, :, f::rate, g::rate], weight, padding=1)
    assert_close(atrous_conv(x, weight, padding=rate, rate=rate), woven)
    with backend.use("triton"):
        assert_close(atrous_conv(x.float(), weight.float(), padding=rate, rate=rate), woven.float())


def test_removing_strides_keeps_the_old_grid_exactly():
    """Strides removed, later rates multiplied (2, then 4): on the old grid the same weights give the same numbers, borders included.

    Values are whole numbers, so that sums are exact in whatever order a library takes them: the difference is 0, not merely small."""
    x, first, second, third = (tensor(*s, seed=i).mul(3).round().double()
                               for i, s in enumerate([(1, 3, 33, 41), (4, 3, 3, 3), (5, 4, 3, 3), (6, 5, 3, 3)]))

    def network(stride):
        rate_2, rate_3 = 2 // stride, 4 // stride ** 2
        y = F.max_pool2d(atrous_conv(x, first, padding=1, relu=True), 3, stride, 1)
        y = atrous_conv(y, second, stride=stride, padding=rate_2, rate=rate_2, relu=True)
        return atrous_conv(y, third, padding=rate_3, rate=rate_3)

    with backend.use("torch"):
        strided, dense = network(2), network(1)
    assert strided.shape == (1, 6, 9, 11) and dense.shape == (1, 6, 33, 41)
    assert strided.abs().max().item() > 100
    assert (dense[:, :, ::4, ::4] - strided).abs().max().item() == 0.0


# ------------------------------------------------------------------------------------------------ use in a network


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_fold_batch_norm(path):
    """Value and gradients equal convolution followed by batch norm with frozen statistics."""
    norm = torch.nn.BatchNorm2d(5).eval()
    for i, p in enumerate([norm.weight, norm.bias, norm.running_mean, norm.running_var]):
        p.data = tensor(5, seed=i).abs() + 0.5
    x, weight, bias = tensor(2, 3, 6, 6), tensor(5, 3, 3, 3, seed=1).requires_grad_(), tensor(5, seed=9).requires_grad_()
    plain = F.relu(norm(F.conv2d(x, weight, bias, padding=2, dilation=2)))
    with backend.use(path):
        fused = atrous_conv(x, *fold_batch_norm(weight, bias, norm), padding=2, rate=2, relu=True)
    assert_close(fused, plain)
    leaves = (weight, bias, norm.weight, norm.bias)
    g = tensor(*plain.shape, seed=3)
    for a, e in zip(torch.autograd.grad(fused, leaves, g), torch.autograd.grad(plain, leaves, g)):
        assert_close(a, e)


def test_fold_batch_norm_says_what_it_cannot_do():
    weight = tensor(5, 3, 3, 3)
    with pytest.raises(ValueError, match="training mode.*norm.eval"):
        fold_batch_norm(weight, None, torch.nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="4 channels, the weight 5 outputs"):
        fold_batch_norm(weight, None, torch.nn.BatchNorm2d(4).eval())
    with pytest.raises(ValueError, match="track_running_stats=False"):
        fold_batch_norm(weight, None, torch.nn.BatchNorm2d(5, track_running_stats=False).eval())


def test_not_the_last_layer_and_under_autocast():
    """A convolution before and a layer after: gradients flow through; autocast makes it bf16 and hands float32 gradients back."""
    x, before = tensor(2, 3, 8, 8), tensor(4, 3, 3, 3, seed=1, scale=0.3)
    weights, biases = tensor(2, 6, 4, 3, 3, seed=2, scale=0.2), tensor(2, 6, seed=3)

    def function(before, weights, biases):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = atrous_conv(x, before, padding=1, relu=True)
            assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
            return torch.sigmoid(aspp(y, weights, biases, (1, 3)).float() * 2).mean((2, 3))

    what = ("y", "dbefore", "dweights", "dbiases")
    autocast = False
    check_all(function, (before, weights, biases), what)
    exact = results("torch", function, (before, weights, biases))
    autocast = True
    for path in ("torch", "triton"):
        for name, a, e in zip(what, results(path, function, (before, weights, biases)), exact):
            assert a.dtype == torch.float32
            assert_close(a, e, torch.bfloat16, what=f"{path} {name}")


def test_relu_keeps_nan():
    x = tensor(1, 2, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    with backend.use("triton"):
        assert torch.isnan(atrous_conv(x, tensor(3, 2, 1, 1), relu=True)[0, :, 0, 0]).all()
        assert torch.isnan(atrous_conv(x, tensor(2, 1, 1, 1), relu=True, groups=2)[0, 0, 0, 0])


def test_float64_takes_the_torch_path_and_second_derivatives_are_refused():
    x, weight = tensor(1, 2, 4, 4, dtype=torch.float64), tensor(3, 2, 1, 1, dtype=torch.float64)
    assert_close(atrous_conv(x, weight), F.conv2d(x, weight))
    w = weight.float().requires_grad_()
    (first,) = torch.autograd.grad(atrous_conv(x.float(), w).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


X, W = torch.zeros(1, 4, 8, 8), torch.zeros(6, 4, 3, 3)
BAD_CONV = [
    ((X[0], W), {}, ValueError, r"x must be \[batch, channels, height, width\]; got shape \(4, 8, 8\)"),
    ((X, W[0]), {}, ValueError, r"weight must be .*got shape \(4, 3, 3\)"),
    ((X, torch.zeros(6, 5, 3, 3)), {}, ValueError, "x has 4 channels but weight .* has 5 input channels"),
    ((X, W), dict(rate=0), ValueError, "rate must be at least 1; got 0 .*ordinary"),
    ((X, W), dict(stride=(1, 0)), ValueError, r"stride must be at least 1; got \(1, 0\)"),
    ((X, W), dict(padding=-1), ValueError, "padding must be at least 0; got -1"),
    ((X, W), dict(padding="valid"), ValueError, '"same"; got \'valid\''),
    ((X, W), dict(rate=1.5), TypeError, "rate must be an integer or a pair .*got 1.5"),
    ((X, W), dict(rate=4), ValueError, r"spans 9x9 pixels, more than x \(1, 4, 8, 8\)"),
    ((X, W.half()), {}, TypeError, "x is torch.float32 but weight is torch.float16; cast one"),
    ((X.long(), W.long()), {}, TypeError, "x is torch.int64; it must be float32"),
    ((X, W, torch.zeros(4)), {}, ValueError, r"bias must have shape \(6,\).*got \(4,\)"),
    ((X, W), dict(groups=2), ValueError, "groups must be 1, or 4 .*got 2"),
    ((X, torch.zeros(6, 1, 3, 3)), dict(groups=4), ValueError, "multiple of 4 outputs; got 6"),
    ((X, torch.zeros(4, 4, 3, 3)), dict(groups=4), ValueError, "4 channels per group, where depthwise weights have 1"),
    ((X.numpy(), W), {}, TypeError, "x must be a tensor; got ndarray"),
    ((torch.empty(2 ** 17, 4, 128, 128, device="meta"), W.to("meta")), {}, ValueError, "2147483648 pixels in one call.*split the batch"),
]


@pytest.mark.parametrize("arguments,options,kind,text", BAD_CONV, ids=[t[3][:30] for t in BAD_CONV])
@pytest.mark.parametrize("path", ["reference", "torch", "triton"])
def test_bad_input_says_what_is_wrong(path, arguments, options, kind, text):
    with backend.use(path), pytest.raises(kind, match="atrous_conv: .*" + text):
        atrous_conv(*arguments, **options)


V = torch.zeros(2, 6, 4, 3, 3)
BAD_ASPP = [
    ((X, V, None, (1,)), {}, ValueError, "1 rates need weights"),
    ((X, V, None, (1, 0)), {}, ValueError, r"1 to 8 integers of at least 1; got \(1, 0\)"),
    ((X, V, None, (1,) * 9), {}, ValueError, "1 to 8 integers"),
    ((X, V[:, :, :, :1], None, (1, 2)), {}, ValueError, r"3, 3\]; got shape \(2, 6, 4, 1, 3\)"),
    ((X[:, :3], V, None, (1, 2)), {}, ValueError, "x has 3 channels but .* 4 input channels"),
    ((X, V, torch.zeros(2, 5), (1, 2)), {}, ValueError, r"biases must have shape \(2, 6\).*got \(2, 5\)"),
    ((X, V.half(), None, (1, 2)), {}, TypeError, "x is torch.float32 but weight is torch.float16"),
    ((X, V, None, (1, 2)), dict(route="fast"), ValueError, 'route must be "direct", "shift_add" or None; got \'fast\''),
]


@pytest.mark.parametrize("arguments,options,kind,text", BAD_ASPP, ids=[t[3][:30] for t in BAD_ASPP])
def test_bad_aspp_input_says_what_is_wrong(arguments, options, kind, text):
    with pytest.raises(kind, match="aspp: .*" + text):
        aspp(*arguments, **options)
