"""ResNet: torchvision's names and counts, dilation that leaves the function alone, frozen batch norm, real weights."""
import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from seglite.nets.layers import FrozenBatchNorm, count_parameters, dilation_plan, freeze_batch_norm
from seglite.nets.resnet import resnet18, resnet34, resnet50, resnet101, wide_resnet50_2
from seglite.nets.weights import load_weights
from tests.tolerances import assert_close

COUNTS = {resnet18: 11_689_512, resnet34: 21_797_672, resnet50: 25_557_032, resnet101: 44_549_160, wide_resnet50_2: 68_883_240}
DEPTHS = {resnet18: (2, 2, 2, 2), resnet34: (3, 4, 6, 3), resnet50: (3, 4, 6, 3), resnet101: (3, 4, 23, 3), wide_resnet50_2: (3, 4, 6, 3)}


def shuffled_norms(net, seed=0):
    """Batch norm with statistics and affine that matter, so that a forgotten or misplaced norm shows."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = torch.rand(m.weight.shape, generator=g, dtype=torch.float64) + (0.5 if name in ("weight", "running_var") else -0.5)
                getattr(m, name).data.copy_(value)
    return net


@pytest.mark.parametrize("build", COUNTS, ids=lambda f: f.__name__)
def test_parameter_counts_are_torchvisions(build):
    with torch.device("meta"):
        assert count_parameters(build()) == COUNTS[build]


@pytest.mark.parametrize("build", COUNTS, ids=lambda f: f.__name__)
def test_names_and_shapes_are_torchvisions(build):
    """The table of torchvision's names, written down a second time from its documentation rather than from the network."""
    wide = 2 if build is wide_resnet50_2 else 1
    deep = build not in (resnet18, resnet34)
    expected = {}

    def conv_bn(conv, bn, outputs, inputs, kernel):
        expected[f"{conv}.weight"] = (outputs, inputs, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{bn}.{name}"] = (outputs,)
        expected[f"{bn}.num_batches_tracked"] = ()

    conv_bn("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, (blocks, planes) in enumerate(zip(DEPTHS[build], (64, 128, 256, 512)), start=1):
        outputs = planes * (4 if deep else 1)
        for j in range(blocks):
            name = f"layer{stage}.{j}"
            if deep:
                conv_bn(f"{name}.conv1", f"{name}.bn1", planes * wide, inputs, 1)
                conv_bn(f"{name}.conv2", f"{name}.bn2", planes * wide, planes * wide, 3)
                conv_bn(f"{name}.conv3", f"{name}.bn3", outputs, planes * wide, 1)
            else:
                conv_bn(f"{name}.conv1", f"{name}.bn1", planes, inputs, 3)
                conv_bn(f"{name}.conv2", f"{name}.bn2", planes, planes, 3)
            if j == 0 and inputs != outputs:
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    expected["fc.weight"], expected["fc.bias"] = (1000, inputs), (1000,)
    with torch.device("meta"):
        actual = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    assert actual == expected


@pytest.mark.parametrize("build", [resnet18, resnet50], ids=lambda f: f.__name__)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("convention", ["torchvision", "deeplab"])
def test_stage_maps_have_the_promised_sizes(build, output_stride, convention):
    net = build(classes=0, width=8, output_stride=output_stride, convention=convention).eval()
    maps = net.features(torch.zeros(1, 3, 64, 96))
    assert net.strides == tuple(min(s, output_stride) for s in (4, 8, 16, 32))
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(net.channels, net.strides)]


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (50, 71)], ids=str)
@pytest.mark.parametrize("build", [resnet18, resnet50], ids=lambda f: f.__name__)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_exact_dilation_gives_the_strided_networks_numbers(build, output_stride, size):
    """The hole algorithm: at the positions that the strided network visits, the dilated one computes the same."""
    torch.manual_seed(0)
    strided = shuffled_norms(build(classes=0, width=4).double().eval())
    dilated = build(classes=0, width=4, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for coarse, fine, s, d in zip(strided.features(x), dilated.features(x), strided.strides, dilated.strides):
        assert_close(fine[:, :, :: s // d, :: s // d], coarse, what=f"stride {s} against {d}")


def test_deeplab_convention_is_another_function_of_the_same_weights():
    torch.manual_seed(0)
    exact = resnet50(classes=0, width=4, output_stride=8).double().eval()
    early = resnet50(classes=0, width=4, output_stride=8, convention="deeplab").double().eval()
    early.load_state_dict(exact.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert (early.features(x)[3] - exact.features(x)[3]).abs().max() > 1e-3
    rates = lambda net: [stage[j].conv2.dilation[0] for stage in (net.layer3, net.layer4) for j in (0, 1)]  # noqa: E731
    assert rates(exact) == [1, 2, 2, 4]
    assert rates(early) == [2, 2, 4, 4]


def test_multi_grid_multiplies_the_rates_of_layer4():
    net = resnet50(classes=0, width=4, output_stride=16, convention="deeplab", multi_grid=(1, 2, 4))
    assert [b.conv2.dilation[0] for b in net.layer4] == [2, 4, 8]
    assert [b.conv2.dilation[0] for b in net.layer3] == [1] * 6
    with pytest.raises(ValueError, match="layer4 here has 2 blocks"):
        resnet18(width=4, multi_grid=(1, 2, 4))


def test_stopping_before_layer4():
    net = resnet18(classes=5, width=8, stages=3)
    assert not hasattr(net, "layer4") and net.channels == (8, 16, 32) and net.strides == (4, 8, 16)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert resnet18(classes=0, width=8, stages=3)(torch.zeros(2, 3, 64, 64)).shape == (2, 32)


def test_narrow_network_is_a_sixteenth():
    """width=16 has a quarter of the channels everywhere, so convolutions shrink 16-fold (the stem, fed by 3 colours, 4-fold)."""
    with torch.device("meta"):
        inner = lambda net: sum(m.weight.numel() for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and n != "conv1")  # noqa: E731
        assert inner(resnet50(width=16)) * 16 == inner(resnet50())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output_stride": 12}, "can stop at stride"), ({"convention": "other"}, "choose 'torchvision'"), ({"stages": 5}, "1 to 4 stages"),
        ({"width_per_group": 128}, "inner width"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**options)


def test_dilation_plan_by_hand():
    assert dilation_plan((1, 2, 2, 2), 4, 8) == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    assert dilation_plan((1, 2, 2, 2), 4, 8, "deeplab") == [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert dilation_plan((1, 2, 2, 2), 4, 32) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]


def test_frozen_batch_norm_never_moves():
    torch.manual_seed(0)
    plain = shuffled_norms(resnet18(classes=0, width=4))
    frozen = resnet18(classes=0, width=4, frozen_bn=True)
    frozen.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    plain.eval()
    frozen.train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    assert_close(frozen.features(x)[-1], plain.features(x)[-1])
    frozen(x).sum().backward()
    torch.optim.SGD(frozen.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {k for k, v in frozen.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.endswith(("conv1.weight", "conv2.weight", "downsample.0.weight")) for k in moved)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in nn.SyncBatchNorm.convert_sync_batchnorm(frozen).modules())


def test_freezing_a_network_keeps_its_function():
    net = shuffled_norms(resnet50(classes=0, width=4, stages=2)).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    before = net.features(x)[-1]
    assert_close(freeze_batch_norm(net).train().features(x)[-1], before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    with pytest.raises(TypeError, match="pass the network"):
        freeze_batch_norm(nn.BatchNorm2d(3))


def sample_images(root):
    """The 40 photographs, centre crop 224, normalised, and the table of expected results."""
    folder = root / "weights" / "sample_images"
    rows = list(csv.DictReader((folder / "expected.csv").open()))
    crops = []
    for row in rows:
        image = Image.open(folder / row["file"]).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        crops.append(np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255)
    images = torch.from_numpy((np.stack(crops) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).float().permute(0, 3, 1, 2)
    return images, rows


@pytest.mark.realdata
def test_resnet18_features_of_real_photographs(data_root):
    images, rows = sample_images(data_root)
    net = resnet18(classes=0, stages=3).eval()
    load_weights(net, data_root / "weights" / "resnet18_imagenet_stem_to_layer3.pth", partial=("fc.",))
    with torch.no_grad():
        means = net.features(images)[-1].mean((1, 2, 3))
    expected = torch.tensor([float(row["resnet18_layer3_mean"]) for row in rows])
    assert len(rows) == 40
    # The table has five decimals; JPEG decoders differ by about one grey level.
    assert (means - expected).abs().max() < 1e-3
    assert expected.std() > 5e-3  # so that 1e-3 tells the photographs apart
