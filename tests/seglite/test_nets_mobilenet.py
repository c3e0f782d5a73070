"""MobileNetV2: torchvision's names and counts, dilation, narrow versions, real weights with known logits."""
import pytest
import torch

from seglite.nets.layers import count_parameters
from seglite.nets.mobilenet import divisible, mobilenet_v1, mobilenet_v2
from seglite.nets.resnet import resnet101
from seglite.nets.weights import load_weights
from tests.seglite.test_nets_resnet import sample_images, shuffled_norms
from tests.seglite.test_nets_segmenters import multiply_adds
from tests.tolerances import assert_close


def test_parameter_count_is_torchvisions():
    with torch.device("meta"):
        assert count_parameters(mobilenet_v2()) == 3_504_872


def test_multiply_adds_are_the_papers():
    """Table 4 of the paper: 300 million at 224 x 224; the docstring compares it with a ResNet-101's 7.8 billion."""
    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        assert round(multiply_adds(mobilenet_v2().eval(), image) / 1e6) == 299
        assert round(multiply_adds(resnet101().eval(), image) / 1e8) == 78


def test_names_and_shapes_are_torchvisions():
    """Spot list (the real-data test below compares all 314)."""
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in mobilenet_v2().state_dict().items()}
    assert len(own) == 314
    expected = {
        "features.0.0.weight": (32, 3, 3, 3), "features.0.1.running_var": (32,), "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1), "features.1.conv.2.bias": (16,), "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3), "features.2.conv.2.weight": (24, 96, 1, 1), "features.2.conv.3.weight": (24,),
        "features.14.conv.1.0.weight": (576, 1, 3, 3), "features.17.conv.2.weight": (320, 960, 1, 1), "features.18.0.weight": (1280, 320, 1, 1),
        "features.18.1.num_batches_tracked": (), "classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,),
    }
    assert {name: own.get(name) for name in expected} == expected


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("width", [0.5, 0.25])
def test_stage_maps_have_the_promised_sizes(output_stride, width):
    net = mobilenet_v2(classes=0, width=width, output_stride=output_stride).eval()
    assert net.channels == tuple(divisible(c * width) for c in (24, 32, 96, 320))
    maps = net.features(torch.zeros(1, 3, 32, 64))
    assert [tuple(m.shape) for m in maps] == [(1, c, 32 // s, 64 // s) for c, s in zip(net.channels, net.strides)]
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, net.channels[-1])


@pytest.mark.parametrize("width", [0.25, 0.1])  # 0.1: neighbouring groups have equal widths, where a shortcut must not appear
@pytest.mark.parametrize("output_stride", [16, 8])
def test_exact_dilation_gives_the_strided_networks_numbers(output_stride, width):
    torch.manual_seed(0)
    strided = shuffled_norms(mobilenet_v2(classes=0, width=width).double().eval())
    dilated = mobilenet_v2(classes=0, width=width, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 33, 64, dtype=torch.float64)
    for coarse, fine, s, d in zip(strided.features(x), dilated.features(x), strided.strides, dilated.strides):
        assert_close(fine[:, :, :: s // d, :: s // d], coarse, what=f"stride {s} against {d}")


def test_where_dilation_begins_in_each_convention():
    rates = lambda net: [net.features[i].conv[1][0].dilation[0] for i in (13, 14, 15, 16, 17)]  # noqa: E731
    assert rates(mobilenet_v2(classes=0, width=0.25, output_stride=16)) == [1, 1, 2, 2, 2]
    assert rates(mobilenet_v2(classes=0, width=0.25, output_stride=16, convention="deeplab")) == [1, 2, 2, 2, 2]
    assert rates(mobilenet_v2(classes=0, width=0.25, output_stride=8)) == [2, 2, 4, 4, 4]


def test_rounding_of_channels():
    """By hand: 3.2 -> 8 (the least); 33.6 -> 32; 11 -> 8 would lose more than a tenth -> 16; 1280 stays."""
    assert [divisible(c) for c in (3.2, 33.6, 11, 1280)] == [8, 32, 16, 1280]


def test_frozen_batch_norm():
    net = mobilenet_v2(classes=3, width=0.25, frozen_bn=True).train()
    before = net.features[0][1].running_mean.clone()
    net(torch.randn(2, 3, 32, 32))
    assert torch.equal(net.features[0][1].running_mean, before)
    assert all(not name.endswith(("0.1.weight", "0.1.bias")) for name, _ in net.named_parameters())


@pytest.mark.realdata
def test_logits_of_real_photographs(data_root):
    images, rows = sample_images(data_root)
    net = mobilenet_v2().eval()
    done = load_weights(net, data_root / "weights" / "mobilenet_v2_imagenet.pth")
    assert len(done.loaded) == 314 and not done.kept and not done.unused
    with torch.no_grad():
        logits = net(images)  # [40, 1000]
    assert logits.argmax(1).tolist() == [int(row["mobilenet_v2_imagenet_top1"]) for row in rows]
    expected = torch.tensor([float(row["mobilenet_v2_imagenet_top1_logit"]) for row in rows])
    # Agreement to about 0.01 is promised by the table; JPEG decoders differ by about one grey level.
    assert (logits.max(1).values - expected).abs().max() < 0.01


@pytest.mark.realdata
def test_backbone_of_a_published_segmenter_loads_by_prefix(data_root):
    net = mobilenet_v2(classes=0, output_stride=16).eval()
    done = load_weights(net, data_root / "weights" / "deeplabv3_mobilenetv2_voc.pth", prefix="backbone.")
    assert len(done.loaded) == 306 and "8 outside 'backbone.' left aside" in str(done)
    assert net.features(torch.zeros(1, 3, 65, 65))[-1].shape == (1, 320, 5, 5)


# ---- version 1 ---------------------------------------------------------------------------------------------------------------------------


def test_version_1_has_the_papers_parameters_and_multiply_adds():
    """Table 8 of arXiv 1704.04861: 4.2 million parameters, 569 million multiply-adds; half as wide 1.3 and 149 million (table 6)."""
    with torch.device("meta"):
        net, image = mobilenet_v1().eval(), torch.empty(1, 3, 224, 224)
        assert count_parameters(net) == 4_231_976
        assert round((multiply_adds(net, image) + 1024 * 1000) / 1e6) == 569  # convolutions, and the classifier
        half = mobilenet_v1(width=0.5).eval()
        assert round(count_parameters(half) / 1e5) == 13 and round((multiply_adds(half, image) + 512 * 1000) / 1e6) == 149


def test_version_1_names_and_shapes():
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in mobilenet_v1().state_dict().items()}
    assert len(own) == 6 + 13 * 12 + 2
    expected = {"model.0.0.weight": (32, 3, 3, 3), "model.0.1.running_var": (32,), "model.1.0.weight": (32, 1, 3, 3), "model.1.3.weight": (64, 32, 1, 1),
                "model.6.3.weight": (512, 256, 1, 1), "model.12.0.weight": (512, 1, 3, 3), "model.13.4.bias": (1024,), "fc.weight": (1000, 1024)}
    assert {name: own.get(name) for name in expected} == expected


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_version_1_maps_and_exact_dilation(output_stride):
    torch.manual_seed(0)
    strided = shuffled_norms(mobilenet_v1(classes=0, width=0.25).double().eval())
    dilated = mobilenet_v1(classes=0, width=0.25, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    assert dilated.channels == (32, 64, 128, 256)
    x = torch.randn(1, 3, 33, 64, dtype=torch.float64)
    for coarse, fine, c, s, d in zip(strided.features(x), dilated.features(x), dilated.channels, strided.strides, dilated.strides):
        assert fine.shape == (1, c, -(-33 // d), -(-64 // d))
        assert_close(fine[:, :, :: s // d, :: s // d], coarse, what=f"stride {s} against {d}")
    assert dilated(x).shape == (1, 256)
