"""Compiled kernels on a real GPU: a grid against the reference, the same bits twice, addresses past 2^31, a training curve on and off.

    python -m kernels.ladder                                          # runs these too where a CUDA device is
    TRITON_INTERPRET=0 python -m pytest tests/kernels/test_gpu.py     # alone; a process that interprets cannot compile

Test names and parameters contain the kernel's name: that is how the ladder sorts them.
"""
import contextlib

import pytest
import torch

from kernels import backend
from kernels.atrous_conv import aspp, atrous_conv
from kernels.axial_attention import RelativePositions, axial_attention
from kernels.dense_crf import Bilateral, Gaussian, gaussian_message, mean_field
from kernels.patch_mix import patch_mix, patch_unmix, random_mix_index
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "sliced"]


@pytest.fixture(autouse=True)
def compiled():
    if backend.INTERPRETING:
        pytest.skip("this process interprets kernels; start it with TRITON_INTERPRET=0, or use python -m kernels.ladder")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """References multiply float32 as float32: cuDNN's and cuBLAS's TF32 would be the larger error."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def random(shape, dtype, seed=0, scale=1.0):
    """Made on the CPU with a local generator, so that every machine sees the same numbers."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype).to(DEVICE)


def laid_out(x, layout):
    """The same values with other strides: the second dimension innermost, or a window into a larger tensor."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        window = x.new_zeros([n + 2 for n in x.shape])[tuple(slice(1, n + 1) for n in x.shape)]
        return window.copy_(x)
    return x.contiguous()


def agree(call, inputs, dtype, factor=1.0):
    """Result and every gradient of the kernel against the reference in float32 on the same numbers; twice, with equal bits."""
    runs = []
    for path, wide in (("triton", False), ("triton", False), ("reference", True)):
        leaves = [(t.detach().float() if wide else t.detach()).requires_grad_() for t in inputs]
        with backend.use(path):
            y = call(*leaves)
            grads = torch.autograd.grad(y, leaves, random(y.shape, dtype, seed=99).to(y.dtype))
        runs.append((y.detach(), *grads))
    for n, (first, second, expected) in enumerate(zip(*runs, strict=True)):
        what = "result" if n == 0 else f"gradient of input {n - 1}"
        assert torch.equal(first, second), f"{what}: two runs differ"
        assert_close(first, expected, dtype, factor, what)


def label(value):
    return str(value).removeprefix("torch.").replace(" ", "")


# ---------------------------------------------------------------------------------------------------------------- grid
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8], ids=label)
@pytest.mark.parametrize("shape, patch", [((8, 3, 224, 224), 16), ((5, 17, 21, 35), 7), ((4, 256, 28, 28), 2), ((3, 1, 1, 13), 1), ((16, 196, 384), None)], ids=label)
def test_patch_mix_moves_bits(shape, patch, dtype, layout):
    x = laid_out((random(shape, torch.float32) * 100).to(dtype), layout)
    positions = shape[1] if patch is None else (shape[2] // patch) * (shape[3] // patch)
    index = random_mix_index(shape[0], positions, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with backend.use("reference"):
        expected = patch_mix(x, index, patch)
    mixed = patch_mix(x, index, patch)
    assert torch.equal(mixed, expected) and torch.equal(patch_unmix(mixed, index, patch), x)
    if dtype.is_floating_point:
        agree(lambda x: patch_mix(x, index, patch), [x], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=label)
@pytest.mark.parametrize("shape, outputs, rate, stride, groups", [
    ((2, 64, 33, 41), 48, 2, 1, 1), ((1, 3, 65, 65), 16, 1, 2, 1), ((2, 256, 17, 19), 128, 6, 1, 1), ((2, 37, 24, 1), 21, 3, 1, 1), ((2, 96, 32, 32), 96, 4, 1, 96)], ids=label)
def test_atrous_conv_is_the_reference(shape, outputs, rate, stride, groups, dtype, layout):
    x, bias = laid_out(random(shape, dtype), layout), random((outputs,), dtype, 2)
    weight = random((outputs, shape[1] // groups, 3, 3), dtype, 1, scale=(9 * shape[1] / groups) ** -0.5)
    agree(lambda x, w, b: atrous_conv(x, w, b, stride=stride, padding=rate, rate=rate, groups=groups), [x, weight, bias], dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=label)
@pytest.mark.parametrize("outputs", [21, 256])
@pytest.mark.parametrize("route", ["direct", "shift_add"])
def test_atrous_conv_aspp_is_the_reference(outputs, route, dtype):
    x = laid_out(random((2, 128, 33, 33), dtype), "channels_last")
    weights, biases = random((4, outputs, 128, 3, 3), dtype, 1, scale=(4 * 9 * 128) ** -0.5), random((4, outputs), dtype, 2)
    agree(lambda x, w, b: aspp(x, w, b, (6, 12, 18, 24), route=route), [x, weights, biases], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=label)
@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("size, channels, relative", [((64, 64), 64, False), ((33, 17), 16, True), ((1, 97), 32, True), ((56, 56), 8, True)], ids=label)
def test_axial_attention_is_the_reference(size, channels, relative, axis, dtype, layout):
    shape = (2, 3, *size, channels)
    q, k, v = (laid_out(random(shape, dtype, seed), layout) for seed in range(3))
    length = size[1] if axis == "row" else size[0]
    tables = [random((2 * length - 1, channels), dtype, seed, scale=0.3) for seed in (3, 4, 5)] if relative else []
    agree(lambda q, k, v, *tables: axial_attention(q, k, v, axis, relative=RelativePositions(*tables) if tables else None), [q, k, v, *tables], dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=label)
@pytest.mark.parametrize("pixels, labels, dimensions", [(1000, 21, 5), (257, 2, 2), (1, 1, 3), (4096, 33, 5)])
def test_dense_crf_message_is_the_reference(pixels, labels, dimensions, dtype):
    features, values = random((2, pixels, dimensions), torch.float32, 1, scale=2.0), random((2, pixels, labels), dtype, 2).softmax(-1)
    agree(lambda v: gaussian_message(features, v, "symmetric"), [values], dtype)


def test_dense_crf_mean_field_is_the_reference_and_culling_changes_little():
    unary, image = random((1, 21, 60, 80), torch.float32), random((1, 3, 60, 80), torch.float32, 1, scale=40).add(128).clamp(0, 255)
    with backend.use("reference"):
        expected = mean_field(unary, image, (Gaussian(), Bilateral()), method="exact")
    for half, cull, limit in ((False, None, 1e-4), (True, None, 1e-3), (True, 9.2, 5e-3)):
        q = mean_field(unary, image, (Gaussian(), Bilateral()), method="exact", half=half, cull=cull)
        again = mean_field(unary, image, (Gaussian(), Bilateral()), method="exact", half=half, cull=cull)
        assert torch.equal(q, again)
        assert (q - expected).abs().max() < limit, (half, cull)


# ---------------------------------------------------------------------------------------------------------------- 2^31
PAST = 2 ** 31 + 2 ** 20


def need(gib):
    total = torch.cuda.get_device_properties(0).total_memory / 2 ** 30
    if total < gib + 2:
        pytest.skip(f"needs a GPU with {gib + 2} GiB of memory; this one has {total:.0f}")
    torch.cuda.empty_cache()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_patch_mix_past_2_31(layout):
    """Three byte images of 2^30 pixels and more: both the other image and the place inside it lie beyond 32 bits."""
    need(12)
    x = torch.empty(3, 2, 16384, 65536 // 2, dtype=torch.uint8, device=DEVICE)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    assert x.numel() > PAST
    for b in range(3):
        x[b].random_(0, 256, generator=torch.Generator(DEVICE).manual_seed(b))
    index = random_mix_index(3, 64 * 128, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    y = patch_mix(x, index, 256)
    for p in (0, 1, 127, 128, 5000, 64 * 128 - 1):
        place = (..., slice(p // 128 * 256, p // 128 * 256 + 256), slice(p % 128 * 256, p % 128 * 256 + 256))
        for b in range(3):
            assert torch.equal(y[b][place], x[int(index[b, p])][place]), (b, p)
    back = patch_unmix(y, index, 256)
    assert all(torch.equal(back[b], x[b]) for b in range(3))


@pytest.mark.slow
def test_atrous_conv_past_2_31():
    """The last image of a batch beyond 2^31 elements gives the bits it gives alone; so does the gradient."""
    need(24)
    images = PAST // (64 * 512 * 512) + 1
    x = torch.zeros(images, 64, 512, 512, dtype=torch.bfloat16, device=DEVICE).to(memory_format=torch.channels_last)
    assert x.numel() > 2 ** 31
    x[-1] = random((64, 512, 512), torch.bfloat16)
    x.requires_grad_()
    weight, bias = random((64, 64, 3, 3), torch.bfloat16, 1, 0.05), random((64,), torch.bfloat16, 2)
    y = atrous_conv(x, weight, bias, padding=2, rate=2)
    (grad,) = torch.autograd.grad(y[-1:].float().pow(2).sum(), x)
    alone = x[-1:].detach().requires_grad_()
    z = atrous_conv(alone, weight, bias, padding=2, rate=2)
    (grad_alone,) = torch.autograd.grad(z.float().pow(2).sum(), alone)
    assert torch.equal(y[-1:], z) and torch.equal(grad[-1:], grad_alone)
    assert torch.equal(y[0, :, 256, 256], bias) and not grad[:-1].any()


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["row", "column"])
def test_axial_attention_past_2_31(axis):
    need(60)
    images = PAST // (8 * 64 * 64 * 64) + 1
    q, k, v = (torch.zeros(images, 8, 64, 64, 64, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    assert q.numel() > 2 ** 31
    for seed, t in enumerate((q, k, v)):
        t[-1] = random(t.shape[1:], torch.bfloat16, seed)
        t.requires_grad_()
    y = axial_attention(q, k, v, axis)
    grads = torch.autograd.grad(y[-1:].float().pow(2).sum(), (q, k, v))
    alone = [t[-1:].detach().requires_grad_() for t in (q, k, v)]
    z = axial_attention(*alone, axis)
    grads_alone = torch.autograd.grad(z.float().pow(2).sum(), alone)
    assert torch.equal(y[-1:], z) and not y[0].any()
    for name, grad, expected in zip("qkv", grads, grads_alone):
        assert torch.equal(grad[-1:], expected), name


@pytest.mark.slow
def test_dense_crf_past_2_31():
    """Values [B, N, K] beyond 2^31 elements: the last image gives what it gives alone."""
    need(60)
    images, pixels, labels = PAST // (4096 * 21) + 1, 4096, 21
    values = torch.zeros(images, pixels, labels, dtype=torch.float16, device=DEVICE)
    assert values.numel() > 2 ** 31
    features = random((1, pixels, 2), torch.float32, 1).expand(images, -1, -1)
    values[-1] = random((pixels, labels), torch.float32, 2).softmax(-1).half()
    together = gaussian_message(features, values, "none")
    alone = gaussian_message(features[-1:].contiguous(), values[-1:].contiguous(), "none")
    assert_close(together[-1:], alone, torch.float16)
    assert not together[0].any()


# ---------------------------------------------------------------------------------------------------------------- training
def atrous_conv_net(p, x):
    y = atrous_conv(x, p["stem"], padding=2, rate=2, relu=True)  # [B, 16, H, W]
    return aspp(y, p["heads"], p["biases"], (1, 2, 4, 6))


def axial_attention_net(p, x):
    y = torch.nn.functional.conv2d(x, p["stem"], padding=1)
    for axis, name in (("column", "qkv1"), ("row", "qkv2")):
        q, k, v = (t.unflatten(1, (2, 8)).movedim(2, -1) for t in torch.einsum("oc,bchw->bohw", p[name], y).chunk(3, dim=1))  # [B, 2, H, W, 8]
        y = y + axial_attention(q, k, v, axis, relative=RelativePositions(p["table"], p["table"], p["table"])).movedim(-1, 2).flatten(1, 2)
    return torch.nn.functional.conv2d(y.relu(), p["out"])


def patch_mix_net(p, x):
    index = random_mix_index(x.shape[0], 16, generator=torch.Generator().manual_seed(7)).to(x.device)
    y = torch.nn.functional.conv2d(x, p["stem"], padding=1).relu()
    mixed = torch.nn.functional.conv2d(patch_mix(y, index, 4), p["middle"], padding=1).relu()
    return torch.nn.functional.conv2d(patch_unmix(mixed, index, 4), p["out"])


def dense_crf_net(p, x):
    """CRF-RNN in small: the weights of the pairwise terms are learned through the iterations."""
    logits = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, p["stem"], padding=1).relu(), p["out"])
    kernels = (Gaussian(2.0, p["smooth"].exp()), Bilateral(8.0, 20.0, p["look"].exp()))
    return mean_field(-logits.log_softmax(1), x * 40 + 128, kernels, iterations=3, method="exact", half=False, cull=None, logits=True)


NETS = {
    "atrous_conv": (atrous_conv_net, dict(stem=(16, 3, 3, 3), heads=(4, 5, 16, 3, 3), biases=(4, 5))),
    "axial_attention": (axial_attention_net, dict(stem=(16, 3, 3, 3), qkv1=(48, 16), qkv2=(48, 16), table=(31, 8), out=(5, 16, 1, 1))),
    "dense_crf": (dense_crf_net, dict(stem=(16, 3, 3, 3), out=(5, 16, 1, 1), smooth=(), look=())),
    "patch_mix": (patch_mix_net, dict(stem=(16, 3, 3, 3), middle=(16, 16, 3, 3), out=(5, 16, 1, 1))),
}


def curve(name, path, steps):
    """Losses of a small network on one fixed batch: 16x16 pictures whose class is a function of place and colour."""
    net, shapes = NETS[name]
    parameters = {n: random(s, torch.float32, i, 0.5 * (torch.Size(s[1:]).numel() ** -0.5 if len(s) > 1 else 0.1)).requires_grad_()
                  for i, (n, s) in enumerate(shapes.items())}
    x = random((4, 3, 16, 16), torch.float32, 50)
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2) * 4
    target = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    optimizer = torch.optim.SGD(parameters.values(), lr=0.2, momentum=0.9)
    losses = []
    with backend.use(path) if path else contextlib.nullcontext():
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(net(parameters, x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("name", NETS)
def test_training_curve_is_the_same_with_the_kernel_on_and_off(name):
    """60 steps: equal to 1e-5 in the first step, to 1 % of the first loss throughout, and the loss falls by a third."""
    on, off = curve(name, "triton", 60), curve(name, "reference", 60)
    assert torch.allclose(on[0], off[0], rtol=1e-5), (on[0], off[0])
    assert (on - off).abs().max() < 0.01 * off[0], (on - off).abs().max()
    assert on[-1] < 0.67 * on[0], (on[0], on[-1])
