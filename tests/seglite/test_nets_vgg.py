"""VGG: torchvision's names and sizes, DeepLab's pools, dense answers from the same weights, wrong options."""
import pytest
import torch
from torch.nn import functional as F

from seglite.nets.layers import count_parameters
from seglite.nets.vgg import Vgg, vgg16

SMALL = ((4, 1), (6, 1), (8, 2), (8, 1), (8, 2))


def test_names_and_sizes_are_torchvisions():
    """Names and counts as published with torchvision's vgg16: 138,357,544 parameters, features.28 the last convolution."""
    with torch.device("meta"):
        net = vgg16()
    assert count_parameters(net) == 138_357_544
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len(shapes) == 32 and shapes["features.0.weight"] == (64, 3, 3, 3) and shapes["features.28.weight"] == (512, 512, 3, 3)
    assert {n: shapes[n + ".weight"] for n in ("classifier.0", "classifier.3", "classifier.6")} == {
        "classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}
    with torch.device("meta"):
        body = vgg16(classes=0, output_stride=8, pool="3x3").state_dict()
    assert {n: tuple(v.shape) for n, v in body.items()} == {n: s for n, s in shapes.items() if n.startswith("features.")}


def test_sizes_of_the_released_prototxt():
    """321 -> 161 -> 81 -> 41 -> 41 -> 41, conv5 at rate 2, every pool 3x3 with padding 1 (DeepLab's train.prototxt)."""
    net = Vgg(SMALL, classes=0, output_stride=8, pool="3x3").eval()
    assert net.strides == (4, 8, 8, 8) and net.channels == (6, 8, 8, 8)
    with torch.no_grad():
        assert [m.shape[-1] for m in net.features(torch.zeros(1, 3, 321, 321))] == [81, 41, 41, 41]
    rates = [m.dilation[0] for m in net.features if isinstance(m, torch.nn.Conv2d)]
    assert rates == [1, 1, 1, 1, 1, 2, 2]
    pools = [(m.kernel_size, m.stride, m.padding) for m in net.features if isinstance(m, torch.nn.MaxPool2d)]
    assert pools == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2


@pytest.mark.parametrize("size", [(65, 97), (64, 50)], ids=str)
def test_dense_answers_hold_the_strided_ones(size):
    """Same weights, pool4 with and without its stride: the difference on the old grid is exactly 0, borders included."""
    torch.manual_seed(0)
    strided, dense = (Vgg(SMALL, classes=0, output_stride=s, pool="3x3").double().eval() for s in (16, 8))
    dense.load_state_dict(strided.state_dict())
    # Whole numbers: sums are exact in any order, so 0 means equal and not nearly equal.
    with torch.no_grad():
        for net in (strided, dense):
            for p in net.parameters():
                p.copy_((p * 8).round())
        image = torch.randint(-3, 4, (2, 3, *size)).double()
        before, after = image, image
        for a, b in zip(list(strided.features)[:-1], list(dense.features)[:-1]):  # up to conv5: pool5 stays undilated, as in the prototxt
            before, after = a(before), b(after)
    assert before.abs().max() > 0
    assert (after[:, :, ::2, ::2] - before).abs().max().item() == 0.0


def test_forward_written_a_second_time():
    torch.manual_seed(0)
    net = Vgg(SMALL, classes=0, pool="2x2").double().eval()
    x = image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    convolutions = iter(m for m in net.features if isinstance(m, torch.nn.Conv2d))
    for _, count in SMALL:
        for _ in range(count):
            c = next(convolutions)
            x = F.conv2d(x, c.weight, c.bias, padding=1).relu()
        x = F.max_pool2d(x, 2)
    assert torch.equal(net(image), x.mean((2, 3)))


def test_wrong_options_are_sentences():
    with pytest.raises(ValueError, match=r"can stop at stride \[2, 4, 8, 16, 32\]"):
        Vgg(SMALL, classes=0, output_stride=64)
    with pytest.raises(ValueError, match="use pool='3x3'"):
        Vgg(SMALL, classes=0, output_stride=8)
    with pytest.raises(ValueError, match="choose '2x2'"):
        Vgg(SMALL, classes=0, pool="max")
    with pytest.raises(ValueError, match="use classes=0"):
        Vgg(SMALL[:3], classes=5, output_stride=8, pool="3x3")
