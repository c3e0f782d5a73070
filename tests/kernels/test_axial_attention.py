"""Axial and squeeze-axial attention: kernels (interpreted) and PyTorch paths against the plain formulas, values and every gradient."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from kernels import axial_attention as axial
from kernels import backend, squeeze_axial
from kernels.axial_attention import RelativePositions, axial_attention, axial_pair
from kernels.squeeze_axial import PositionTables, spread, squeeze, squeeze_axial_attention
from tests.tolerances import assert_close, compare

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FP32, FP16, BF16 = NAMES


@pytest.fixture
def poisoned(monkeypatch):
    """Every buffer that is asked for uninitialised holds NaN: what a kernel forgets to write shows."""
    def fill(make):
        def poisoned_make(*args, **kwargs):
            buffer = make(*args, **kwargs)
            return buffer.fill_(float("nan")) if buffer.is_floating_point() and buffer.device.type == "cpu" else buffer
        return poisoned_make

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, fill(getattr(owner, name)))


def make_maps(B, G, H, W, D, E, layout, dtype, seed=0):
    """q, k, v and an upstream gradient, each [B, G, H, W, channels] as a view of `layout`."""
    make = torch.Generator().manual_seed(seed)
    if layout == "fused":  # three slices of one NHWC buffer, as one qkv projection leaves them
        qkv = torch.randn(B, H, W, G, 2 * D + E, generator=make).to(dtype).permute(0, 3, 1, 2, 4)
        return *qkv.split((D, D, E), -1), torch.randn(B, G, H, W, E, generator=make).to(dtype)
    maps = []
    for c in (D, D, E, E):
        if layout == "nhwc":
            maps.append(torch.randn(B, H, W, G, c, generator=make).to(dtype).permute(0, 3, 1, 2, 4))
        elif layout == "nchw":
            maps.append(torch.randn(B, G, c, H, W, generator=make).to(dtype).permute(0, 1, 3, 4, 2))
        else:  # sliced: no axis has stride 1
            maps.append(torch.randn(B, 2 * G, H + 1, 2 * W, 2 * c, generator=make).to(dtype)[:, ::2, 1:, ::2, ::2])
    return maps


def make_tables(which, length, G, D, E, dtype):
    make = torch.Generator().manual_seed(7)
    groups = (G,) if "G" in which else ()
    tables = [torch.randn(*groups, 2 * length - 1, c, generator=make).to(dtype) * 0.5 if letter in which else None for letter, c in zip("qkv", (D, D, E))]
    return RelativePositions(*tables)


def values_and_gradients(path, q, k, v, grad, axis, relative):
    """Output, dq, dk, dv and the gradients of the tables that are given."""
    leaves = [t if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (q, k, v, *relative)]
    with backend.use(path):
        out = axial_attention(*leaves[:3], axis, relative=RelativePositions(*leaves[3:]))
        out.backward(grad)
    names = ("out", "dq", "dk", "dv", "d query table", "d key table", "d value table")
    return {name: t for name, t in zip(names, [out.detach()] + [leaf if leaf is None else leaf.grad for leaf in leaves]) if t is not None}


#   B  G  H   W   D   E   axis      layout    tables (G: per group)  dtype
CASES = [
    (1, 1, 1, 1, 1, 1, "row", "nhwc", "qkv", FP32),
    (2, 2, 13, 37, 16, 21, "row", "nhwc", "qkv", FP32),
    (2, 2, 5, 3, 16, 16, "column", "nchw", "", FP32),
    (1, 2, 41, 3, 8, 8, "column", "fused", "", BF16),
    (1, 2, 3, 33, 16, 16, "row", "nchw", "qkvG", BF16),
    (1, 2, 16, 16, 16, 16, "column", "nhwc", "qkv", FP16),
    (1, 1, 1, 70, 8, 4, "row", "sliced", "", FP32),
    (1, 1, 70, 2, 5, 3, "column", "nchw", "qkvG", FP32),
    (1, 2, 4, 6, 4, 5, "row", "sliced", "q", FP32),
    (1, 2, 4, 6, 4, 5, "row", "nhwc", "k", FP32),
    (1, 2, 4, 6, 4, 5, "row", "nhwc", "v", FP32),
    (2, 3, 7, 2, 32, 16, "column", "nhwc", "", FP16),
    (1, 2, 17, 19, 3, 2, "column", "sliced", "kv", FP32),
]


def name_of(case):
    B, G, H, W, D, E, axis, layout, tables, dtype = case
    return f"B{B}-G{G}-H{H}-W{W}-D{D}-E{E}-{axis}-{layout}-{tables or 'plain'}-{NAMES[dtype]}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernels_and_torch_path_match_the_formula_over_poisoned_memory(case, poisoned):
    B, G, H, W, D, E, axis, layout, which, dtype = case
    q, k, v, grad = make_maps(B, G, H, W, D, E, layout, dtype)
    relative = make_tables(which, W if axis == "row" else H, G, D, E, dtype)
    wide = lambda t: None if t is None else t.float()  # noqa: E731
    expected = values_and_gradients("reference", *(wide(t) for t in (q, k, v, grad)), axis, [wide(t) for t in relative])
    for path in ("triton", "torch"):
        found = values_and_gradients(path, q, k, v, grad, axis, relative)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name].dtype == dtype
            if float(expected[name].abs().max()) < 1e-6:  # one pixel: softmax of one logit is constant, so these gradients are rounding only
                assert float(found[name].abs().max()) < 1e-6, (path, name)
            else:  # fp32: a sum over keys, lines and images in another order; half: p and ds are rounded before the second product
                assert_close(found[name], expected[name], dtype, factor=2, what=f"{path} {name}")


def test_every_block_shape_gives_the_same_answer(monkeypatch):
    """The tiles that GPUs get (one line, several lines, queries and keys of different block size) run in the interpreter as well."""
    q, k, v, grad = make_maps(1, 1, 18, 3, 8, 8, "nhwc", FP32)
    relative = make_tables("qkv", 18, 1, 8, 8, FP32)
    expected = values_and_gradients("reference", q, k, v, grad, "column", relative)
    for block_q, block_k, lines, table in ((16, 32, 1, 16), (64, 64, 2, 32)):
        tile = {"BLOCK_Q": block_q, "BLOCK_K": block_k, "LINES": lines, "BLOCK": table, "num_warps": 4, "num_stages": 1, "table_warps": 4}
        monkeypatch.setattr(axial, "_tiles", lambda *_: dict(tile))
        found = values_and_gradients("triton", q, k, v, grad, "column", relative)
        for name in expected:
            assert_close(found[name], expected[name], what=f"{tile} {name}")


def test_tile_table_keeps_lines_together_only_where_they_are_neighbours():
    def tiles(layout, axis, **change):
        maps = dict(zip(("q", "k", "v", "o"), make_maps(1, 2, 64, 64, 64, 64, layout, BF16)))
        arguments, tiles = axial._arguments(maps, dict.fromkeys(("rq", "rk", "rv")), None, axis, 1.0, "ieee", change.get("backward", False), "sm90")
        return tiles

    assert tiles("nchw", "column")["LINES"] == 8
    assert all(tiles(layout, axis)["LINES"] == 1 for layout, axis in (("nhwc", "row"), ("nhwc", "column"), ("nchw", "row")))
    assert tiles("nhwc", "column", backward=True)["BLOCK_Q"] == 64  # a whole line at once: everything is read once


def test_extreme_logits_stay_finite():
    q, k, v, grad = make_maps(1, 1, 2, 40, 16, 16, "nhwc", FP32)
    found = values_and_gradients("triton", 60 * q, 60 * k, v, grad, "row", RelativePositions())
    expected = values_and_gradients("reference", 60 * q.double(), 60 * k.double(), v.double(), grad.double(), "row", RelativePositions())
    assert_close(found["out"], expected["out"], FP32, factor=20, what="logits of several thousand")  # 2^-24 of a logit of 5000 is 3e-4
    assert all(torch.isfinite(t).all() for t in found.values())


def test_two_runs_give_the_same_bits():
    q, k, v, grad = make_maps(2, 1, 2, 33, 8, 8, "nhwc", FP32)
    relative = make_tables("qkv", 33, 1, 8, 8, FP32)
    first, second = (values_and_gradients("triton", q, k, v, grad, "row", relative) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_op_in_the_middle_of_a_network(poisoned):
    """Inputs are results, the output is used twice and permuted, the upstream gradient is expanded (stride 0)."""
    x = make_maps(1, 2, 5, 6, 8, 8, "nhwc", FP32)[0]
    gradients = {}
    for path in ("reference", "triton", "torch"):
        leaf = x.detach().clone().requires_grad_()
        with backend.use(path):
            y = axial_attention(leaf * 2, leaf.tanh(), leaf + 1, "row")
            (y.mean() + (y.permute(0, 2, 3, 1, 4) ** 2).sum() + y.sum(-1).max()).backward()
        gradients[path] = leaf.grad
    assert_close(gradients["triton"], gradients["reference"])
    assert_close(gradients["torch"], gradients["reference"])


@pytest.mark.parametrize("cached, calls", [(1 << 30, 1), (5 * 7 * 7, 1 + 2 + 2 * 3)], ids=["at once", "group by group"])
def test_short_lines_in_pieces_that_fit_the_cache(cached, calls, monkeypatch):
    whole, seen = axial._short_lines, []
    monkeypatch.setattr(axial, "_short_lines", lambda *t: (seen.append(t[0].shape), whole(*t))[1])
    monkeypatch.setattr(axial, "CACHED_LOGITS", cached)
    q, k, v, _ = make_maps(2, 3, 5, 7, 4, 6, "nchw", FP32)
    with backend.use("torch"):
        found = axial_attention(q, k, v, "row")
        assert len(seen) == calls, seen
        q.requires_grad_()
        axial_attention(q, k, v, "row")
        assert len(seen) == calls + 1  # a backward wants every p: nothing to save
    assert_close(found, axial.axial_attention_reference(q, k, v, "row", 0.5, RelativePositions()))


def test_output_keeps_the_memory_order_and_the_inputs():
    for layout in ("nhwc", "nchw"):
        q, k, v, _ = make_maps(2, 2, 3, 5, 4, 6, layout, FP32)
        before = [t.clone() for t in (q, k, v)]
        assert axial_attention(q, k, v, "column").stride() == v.stride()
        assert all(torch.equal(t, old) for t, old in zip((q, k, v), before))


def test_wide_offsets():
    """Maps whose one image spans 2^31 elements switch to int64 offsets; the switched kernel gives the same bits."""
    huge = torch.empty(1, 1, 2**16, 2**10, 64, dtype=BF16, device="meta")
    maps, tables = {"q": huge, "k": huge, "v": huge, "o": huge}, dict.fromkeys(("rq", "rk", "rv"))
    assert axial.forward_launch(maps, tables, None, "row", 1.0, "ieee", "sm90")[2]["WIDE"]
    assert not axial.forward_launch({n: t[:, :, :16] for n, t in maps.items()}, tables, None, "row", 1.0, "ieee", "sm90")[2]["WIDE"]
    q, k, v, _ = make_maps(1, 2, 4, 5, 8, 8, "nchw", FP32)
    results = []
    for wide in (False, True):
        out, lse = torch.full_like(v, float("nan")), torch.full((q[..., 0].numel(),), float("nan"))
        kernel, grid, arguments, _ = axial.forward_launch({"q": q, "k": k, "v": v, "o": out}, tables, lse, "column", 0.3, "ieee", "interpreter")
        kernel[grid](**{**arguments, "WIDE": wide})
        results.append(out)
    assert torch.equal(*results)
    assert_close(results[0], axial.axial_attention_reference(q, k, v, "column", 0.3, RelativePositions()))


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("axis", ["row", "column"])
def test_gradcheck_of_formula_and_torch_path(path, axis):
    length = 3 if axis == "row" else 2
    for values, which in ((3, "qkvG"), (3, ""), (2, "")):
        leaves = [t.double().requires_grad_() for t in make_maps(1, 2, 2, 3, 2, values, "nhwc", FP32)[:3]]
        tables = [t if t is None else t.double().requires_grad_() for t in make_tables(which, length, 2, 2, values, FP32)]
        with backend.use(path):
            assert torch.autograd.gradcheck(lambda *t: axial_attention(*t[:3], axis, relative=RelativePositions(*t[3:])), (*leaves, *tables), fast_mode=True)


def test_formula_agrees_with_a_loop_over_pixels():
    """The reference itself, against nested Python loops that share nothing with it."""
    q, k, v, _ = (t.double() for t in make_maps(1, 1, 3, 2, 2, 2, "nhwc", FP32))
    rq, rk, rv = (t.double() for t in make_tables("qkv", 3, 1, 2, 2, FP32))
    out = axial.axial_attention_reference(q, k, v, "column", 0.7, RelativePositions(rq, rk, rv))
    for w in range(2):
        for i in range(3):
            at = lambda t, j: t[0, 0, j, w]  # noqa: E731
            weights = torch.stack([0.7 * (at(q, i) @ at(k, j) + at(q, i) @ rq[j - i + 2] + at(k, j) @ rk[j - i + 2]) for j in range(3)]).exp()
            expected = sum(weights[j] * (at(v, j) + rv[j - i + 2]) for j in range(3)) / weights.sum()
            assert_close(out[0, 0, i, w], expected)


def test_pair_sequential_and_parallel():
    q, k, v, _ = make_maps(1, 2, 4, 5, 8, 8, "nhwc", FP32)
    column, row = make_tables("qkv", 4, 2, 8, 8, FP32), make_tables("q", 5, 2, 8, 8, FP32)
    plain = lambda t, axis, tables: axial.axial_attention_reference(*t, axis, 8 ** -0.5, tables)  # noqa: E731
    down = plain((q, k, v), "column", column)
    assert_close(axial_pair(q, k, v, column=column, row=row), down + plain((q, k, v), "row", row))
    then = lambda y: (y.sin(), y.cos(), y)  # noqa: E731
    assert_close(axial_pair(q, k, v, then, column=column, row=row), plain(then(down), "row", row))
    moved = v.clone()
    moved[0, :, 3, 4] += 1  # two passes connect any two pixels; the sum of both axes reaches only the same row and column
    assert float((axial_pair(q, k, moved, then) - axial_pair(q, k, v, then))[0, :, 0, 0].abs().max()) > 1e-4
    assert torch.equal(axial_pair(q, k, moved)[0, :, 0, 0], axial_pair(q, k, v)[0, :, 0, 0])


@settings(max_examples=8)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9),
       st.sampled_from(["row", "column"]), st.permutations(range(5)), st.sampled_from(["", "qkv", "kG"]))
def test_any_shape_and_any_strides(B, G, H, W, D, E, axis, order, which):
    make = torch.Generator().manual_seed(H * 10 + W)
    shapes = [(B, G, H, W, c) for c in (D, D, E)]
    q, k, v = (torch.randn([shape[i] for i in order], generator=make).permute([order.index(i) for i in range(5)]) for shape in shapes)
    assert q.shape == shapes[0]
    relative = make_tables(which, W if axis == "row" else H, G, D, E, FP32)
    with backend.use("triton"):
        out = axial_attention(q, k, v, axis, relative=relative)
    assert_close(out, axial.axial_attention_reference(q, k, v, axis, D ** -0.5, relative))


def test_dtypes_under_autocast_and_float64():
    q, k, v, _ = make_maps(1, 1, 3, 4, 4, 4, "nhwc", FP32)
    tables = make_tables("qkv", 4, 1, 4, 4, FP32)
    expected = axial.axial_attention_reference(q, k, v, "row", 0.5, tables)
    for path in ("reference", "torch", "triton"):
        with backend.use(path), torch.autocast("cpu", torch.bfloat16):
            assert_close(axial_attention(q, k, v, "row", relative=tables), expected, what=path)
            half = axial_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), "row", relative=tables)  # float32 tables beside bfloat16 maps
            assert half.dtype == BF16 and compare(half, axial_attention(q, k, v, "row", relative=tables))["rms"] < 0.03
    wide = axial_attention(q.double(), k.double(), v.double(), "row")
    assert wide.dtype == torch.float64
    assert axial_attention(q[:0], k[:0], v[:0], "row").shape == (0, 1, 3, 4, 4)


def test_second_derivative_is_refused():
    q, k, v, _ = make_maps(1, 1, 2, 3, 2, 2, "nhwc", FP32)
    q.requires_grad_()
    first, = torch.autograd.grad((axial_attention(q, k, v, "row") ** 2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


M = torch.zeros(1, 2, 3, 4, 5)
BAD = {
    "axis": (lambda: axial_attention(M, M, M, "rows"), ValueError, "axis must be 'row'"),
    "rank": (lambda: axial_attention(M[0], M, M, "row"), ValueError, r"q must be \[B, G, H, W, channels\]; got 4 axes"),
    "keys": (lambda: axial_attention(M, M[..., :4], M, "row"), ValueError, "q and k must have one shape"),
    "values": (lambda: axial_attention(M, M, M[:, :, :2], "row"), ValueError, r"v the same B, G, H, W; got .*v \(1, 2, 2, 4, 5\)"),
    "dtypes": (lambda: axial_attention(M, M, M.half(), "row"), TypeError, "share one floating-point dtype; got .*float16"),
    "integers": (lambda: axial_attention(M.int(), M.int(), M.int(), "row"), TypeError, "floating-point"),
    "table length": (lambda: axial_attention(M, M, M, "column", relative=RelativePositions(torch.zeros(7, 5))), ValueError,
                     r"relative.query must be \[5, 5\] or \[2, 5, 5\] .*column of L = 3.*got \(7, 5\)"),
    "table groups": (lambda: axial_attention(M, M, M, "row", relative=RelativePositions(None, torch.zeros(3, 7, 5))), ValueError, "relative.key"),
    "table dtype": (lambda: axial_attention(M, M, M, "row", relative=RelativePositions(value=torch.zeros(7, 5).int())), TypeError, "relative.value"),
    "squeeze rank": (lambda: squeeze(M), ValueError, r"squeeze: x must be a map \[B, C, H, W\]; got 5 axes"),
    "squeeze table": (lambda: squeeze(M[0], torch.zeros(3, 5)), ValueError, r"row_table must be \[3, 4\]"),
    "spread shape": (lambda: spread(M[0], M[0, ..., 0], M[0, ..., 0]), ValueError, r"columns \(2, 3, 5\)"),
    "spread dtype": (lambda: spread(M[0], M[0, ..., 0].half(), M[0, :, :, 0]), TypeError, "spread: x, rows and columns must share one dtype"),
    "heads": (lambda: squeeze_axial_attention(M[0], M[0], M[0], 2), ValueError, "heads must divide"),
    "squeeze maps": (lambda: squeeze_axial_attention(M[0], M[0], M[0, :1], 1), ValueError, "v the same B, H, W"),
    "squeeze dtypes": (lambda: squeeze_axial_attention(M[0], M[0], M[0].half(), 1), TypeError, "share one dtype"),
    "position table": (lambda: squeeze_axial_attention(M[0], M[0], M[0], 1, PositionTables(torch.zeros(4, 16))), ValueError,
                       r"tables.row_query must be \[3, slots\]"),
    "projection": (lambda: squeeze_axial_attention(M[0], M[0], M[0], 1, project=lambda r, c: (r[:, :2], c)), ValueError, "rows must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call()


# ---------------------------------------------------------------- squeeze-axial
def p2at_steps(q, k, v, heads, tables, row_projection, column_projection):
    """Steps 4 to 6 of P2AT's block, written from its description with PyTorch's own operations."""
    def branch(dim, query_table, key_table):
        qs, ks, vs = (t.mean(dim) for t in (q, k, v))
        resized = [F.interpolate(t, size=qs.shape[-1], mode="linear") for t in (query_table, key_table)]
        qs, ks, vs = (t.unflatten(1, (heads, -1)).transpose(2, 3) for t in (qs + resized[0], ks + resized[1], vs))
        return F.scaled_dot_product_attention(qs, ks, vs).transpose(2, 3).flatten(1, 2)

    r, c = branch(3, *tables[:2]), branch(2, *tables[2:])
    return v + row_projection(r[..., None]) + column_projection(c[:, :, None])


#                  B  heads H  W   D   E   memory
SQUEEZE_CASES = [(2, 2, 23, 30, 16, 32, torch.contiguous_format, FP32), (1, 3, 7, 40, 5, 3, torch.channels_last, FP32), (1, 1, 1, 1, 2, 2, torch.contiguous_format, FP32),
                 (2, 2, 9, 5, 8, 4, torch.channels_last, BF16), (1, 2, 12, 15, 16, 32, torch.contiguous_format, FP16)]


@pytest.mark.parametrize("case", SQUEEZE_CASES, ids=lambda c: f"B{c[0]}-G{c[1]}-H{c[2]}-W{c[3]}-D{c[4]}-E{c[5]}-{str(c[6])[6:]}-{NAMES[c[7]]}")
def test_squeeze_axial_is_p2at(case, poisoned):
    B, G, H, W, D, E, memory, dtype = case
    torch.manual_seed(3)
    maps = [torch.randn(B, G * c, H, W).to(dtype).contiguous(memory_format=memory) for c in (D, D, E, E)]
    tables, weights = [torch.randn(1, G * D, 16) for _ in range(4)], [torch.randn(G * E, G * E, 1, 1) / (G * E) ** 0.5 for _ in range(2)]
    results = {}
    for path in ("p2at", "triton", "torch", "reference"):
        cast = (lambda t: t.float()) if path == "p2at" else lambda t: t
        leaves = [cast(t).clone(memory_format=torch.preserve_format).requires_grad_() for t in (*maps[:3], *tables)]
        ws = [w.to(leaves[0].dtype, copy=True).requires_grad_() for w in weights]
        row, column = (lambda t: F.prelu(F.conv2d(t, ws[0]), t.new_tensor([0.25]))), (lambda t: F.conv2d(t, ws[1]))
        if path == "p2at":
            y = p2at_steps(*leaves[:3], G, leaves[3:], row, column)
        else:
            with backend.use(path):
                y = squeeze_axial_attention(*leaves[:3], G, PositionTables(*leaves[3:]), lambda r, c: (row(r), column(c)))
        y.backward(maps[3].to(y.dtype))
        results[path] = [y.detach()] + [t.grad for t in (*leaves, *ws)]
    names = ("y", "dq", "dk", "dv", "row query", "row key", "column query", "column key", "row weight", "column weight")
    for path in ("triton", "torch", "reference"):
        for name, found, expected in zip(names, results[path], results["p2at"]):
            if float(expected.abs().max()) < 1e-6:
                assert float(found.abs().max()) < 1e-6, (path, name)
            else:  # half: tokens are rounded twice on the way (squeezed, attended), and 1/16 of a head's gradient cancels
                assert_close(found, expected, dtype, factor=4 if dtype != FP32 else 2, what=f"{path} {name}")
    assert results["triton"][0].is_contiguous(memory_format=memory)


@pytest.mark.parametrize("cached, dtype", [(0, FP32), (1 << 19, FP32), (1 << 19, BF16)], ids=str)
def test_squeeze_axial_on_a_cpu_under_autocast(cached, dtype, monkeypatch):
    """Both ways of attending, and no recording where nothing asks for gradients: the caller's dtype stays."""
    monkeypatch.setattr(squeeze_axial, "CACHED_LOGITS", cached)
    q, k, v = (torch.randn(2, c, 9, 12, generator=torch.Generator().manual_seed(c)).to(dtype) for c in (8, 8, 12))
    with backend.use("torch"), torch.autocast("cpu", torch.bfloat16):
        found = squeeze_axial_attention(q, k, v, 2)
    assert found.dtype == dtype and found.grad_fn is None
    with backend.use("reference"):
        assert_close(found, squeeze_axial_attention(q.float(), k.float(), v.float(), 2), dtype, factor=4 if dtype == BF16 else 1)


def test_squeeze_and_spread_alone(poisoned):
    x = torch.randn(2, 5, 33, 65, generator=torch.Generator().manual_seed(0)).requires_grad_()
    r, c = torch.randn(2, 5, 33).requires_grad_(), torch.randn(2, 5, 65).requires_grad_()
    with backend.use("triton"):
        rows, columns = squeeze(x)
        assert_close(rows, x.mean(3))
        assert_close(columns, x.mean(2))
        found = torch.autograd.grad((rows ** 2).sum(), x)[0]  # only one of the two outputs is used
        assert_close(found, 2 * x.mean(3, keepdim=True).expand_as(x) / 65)
        y = spread(x[:, :, ::2, 1:], r[:, :, ::2], c[:, :, 1:])
        assert_close(y, (x + r[..., None] + c[:, :, None])[:, :, ::2, 1:])
        dr, dc = torch.autograd.grad((y ** 2).sum(), (r, c))
    assert_close(dr[:, :, ::2], 2 * y.sum(3))
    assert_close(dc[:, :, 1:], 2 * y.sum(2))
    assert squeeze(x[:0])[0].shape == (0, 5, 33)


def test_several_rows_of_blocks_in_squeeze(monkeypatch):
    monkeypatch.setattr(squeeze_axial, "_tiles", lambda x, interpreting: {"BLOCK_C": 2, "BLOCK_H": 4, "BLOCK_W": 8})
    x = torch.randn(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with backend.use("triton"):
        rows, columns = squeeze(x, torch.ones(3, 9), torch.full((3, 7), 2.0))
        ((rows ** 2).sum() + (columns ** 3).sum()).backward()
    expected = x.detach().clone().requires_grad_()
    (((expected.mean(3) + 1) ** 2).sum() + ((expected.mean(2) + 2) ** 3).sum()).backward()
    assert_close(x.grad, expected.grad)


def test_gradcheck_of_squeeze_axial():
    make = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 4, 3, 5, generator=make, dtype=torch.float64).requires_grad_() for _ in range(3)]
    tables = [torch.randn(4, 6, generator=make, dtype=torch.float64).requires_grad_() for _ in range(4)]
    for path in ("reference", "torch"):
        with backend.use(path):
            assert torch.autograd.gradcheck(lambda *t: squeeze_axial_attention(*t[:3], 2, PositionTables(*t[3:])), (*leaves, *tables), fast_mode=True)


def test_means_commute_with_bias_free_1x1_convolutions():
    """The docstring's hint: q of the squeezed map is the squeezed q."""
    t, weight = torch.randn(1, 6, 5, 7), torch.randn(8, 6, 1, 1)
    assert_close(squeeze(F.conv2d(t, weight))[0], F.conv2d(squeeze(t)[0][..., None], weight)[..., 0])


@pytest.mark.parametrize("length", [1, 5, 16, 37])
def test_stretch_is_linear_interpolation(length):
    table = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    assert_close(squeeze_axial.stretch(table, length), F.interpolate(table[None], size=length, mode="linear")[0])


@pytest.mark.gpu
def test_on_a_gpu_past_two_to_the_31():
    """On a real device: bf16 maps of more than 2^31 elements, and the interpreter's grid of shapes against the formula."""
    q, k, v, grad = (t.cuda() for t in make_maps(2, 2, 33, 65, 64, 64, "nchw", BF16))
    for axis in ("row", "column"):
        relative = RelativePositions(*(t.cuda() for t in make_tables("qkv", 65 if axis == "row" else 33, 2, 64, 64, FP32)))
        expected = values_and_gradients("reference", *(t.float() for t in (q, k, v, grad)), axis, relative)
        found = values_and_gradients("triton", q, k, v, grad, axis, relative)
        for name in expected:
            assert_close(found[name], expected[name], BF16, factor=2, what=name)
    big = torch.randn(5, 8, 1024, 1024, 64, dtype=BF16, device="cuda")
    out = axial_attention(big, big, big, "row")
    assert_close(out[-1, -1:, -2:], axial.axial_attention_reference(*(big[-1:, -1:, -2:].float(),) * 3, "row", 0.125, RelativePositions())[0], BF16)
