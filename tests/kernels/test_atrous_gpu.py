"""The compiled atrous kernels on a CUDA device: values and gradients, far addresses, a training curve."""
import pytest
import torch
import torch.nn.functional as F

from kernels import backend
from kernels.atrous_conv import aspp, atrous_conv, atrous_conv_reference
from tests.kernels.test_atrous_conv import DEPTHWISE, GRID, grid_id, make
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
LARGE = [  # several tiles in every direction, a split sum, a cut-off last round
    (8, 128, 256, 65, 65, (3, 3), dict(rate=12, padding=12), torch.bfloat16, "last"),
    (1, 512, 320, 41, 41, (3, 3), dict(rate=4, padding=4, relu=True), torch.float16, "last"),
    (2, 130, 70, 33, 37, (3, 3), dict(stride=2, padding=1), torch.bfloat16, "nchw"),
    (2, 130, 70, 33, 37, (3, 3), dict(rate=6, padding="same"), torch.float32, "last"),
]


def gradients(path, function, arguments, dtype=None, device=None):
    leaves = [a.detach().to(device=device or DEVICE, dtype=dtype or a.dtype).requires_grad_() for a in arguments]
    with backend.use(path):
        y = function(*leaves)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(arguments[0].dtype)
        y.backward(g.to(y))
    return [y.detach()] + [leaf.grad for leaf in leaves]


def check(function, arguments):
    expected = gradients("reference", function, arguments, torch.float64, "cpu")
    kind = arguments[0].dtype
    for name, actual, e in zip(("y", "dx", "dweight", "dbias"), gradients("triton", function, arguments), expected, strict=True):
        assert actual.dtype == kind
        assert_close(actual, e, kind, what=name)


@pytest.mark.parametrize("case", GRID + LARGE, ids=grid_id)
def test_gpu_dense_grid(case):
    check(*make(case))


@pytest.mark.parametrize("case", DEPTHWISE, ids=grid_id)
def test_gpu_depthwise_grid(case):
    check(*make(case, groups=case[1]))


@pytest.mark.parametrize("route", ["direct", "shift_add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gpu_aspp(route, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 192, 41, 43, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    weights = (torch.randn(4, 21, 192, 3, 3, generator=generator) / 40).to(dtype)
    check(lambda x, w, b: aspp(x, w, b, (6, 12, 18, 24), route=route), (x, weights, torch.randn(4, 21, generator=generator).to(dtype)))


def test_gpu_offsets_past_2_31():
    """Three images 2^30 elements apart: strides fit 32 bits, offsets do not. 4 GiB of device memory."""
    far = torch.empty(2 ** 31 + 4096, dtype=torch.float16, device=DEVICE).as_strided((3, 3, 5, 7), (2 ** 30, 35, 7, 1))
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator).half().to(DEVICE) for s in ((3, 3, 5, 7), (4, 3, 3, 3)))
    far.copy_(x)
    for source in (x, far):
        weight = weight.detach().requires_grad_()
        y = atrous_conv(source, weight, padding=2, rate=2)
        assert_close(y, atrous_conv_reference(x, weight, padding=2, rate=2))
        (dw,) = torch.autograd.grad(y.float().square().sum(), weight)
        expected = dw if source is x else expected
        assert torch.equal(dw, expected)


def test_gpu_training_curve(monkeypatch):
    """Sixty steps of a small pyramid on a fixed task, kernels against torch in exact float32: the same curve."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def curve(path):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 3, 24, 24, generator=generator).to(DEVICE)
        target = (F.avg_pool2d(x, 9, 1, 4).sum(1) > 0).long()
        w1, w2 = ((torch.randn(s, generator=generator) * k).to(DEVICE).requires_grad_() for s, k in (((16, 3, 3, 3), 0.2), ((3, 2, 16, 3, 3), 0.05)))
        losses = []
        with backend.use(path):
            for _ in range(60):
                loss = F.cross_entropy(aspp(atrous_conv(x, w1, padding=1, relu=True), w2, None, (1, 2, 4)), target)
                grads = torch.autograd.grad(loss, (w1, w2))
                with torch.no_grad():
                    for w, g in zip((w1, w2), grads):
                        w -= 0.3 * g
                losses.append(loss.item())
        return torch.tensor(losses)

    ours, theirs = curve("triton"), curve("torch")
    assert ours[-1] < 0.6 * ours[0]
    assert (ours - theirs).abs().max() < 1e-3 * ours[0]
