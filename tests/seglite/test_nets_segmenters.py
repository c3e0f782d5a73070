"""Segmenters: names, sizes, hand-computed ASPP, receptive fields, and that each can learn."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets.layers import count_parameters, freeze_batch_norm
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.resnet import resnet18, resnet50, resnet101
from seglite.nets.segmenters import ASPP, DeepLabV2, DeepLabV3Plus, SmallClassifier, SmallUNet, resize
from tests.seglite.test_nets_resnet import shuffled_norms
from tests.tolerances import assert_close

def multiply_adds(net, image):
    """Multiply-adds of all convolutions for one image."""
    total = []
    hooks = [
        m.register_forward_hook(lambda m, inputs, output: total.append(output.numel() * m.weight[0].numel()))
        for m in net.modules() if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    return sum(total)


BACKBONES = {
    "resnet18-8": lambda: resnet18(classes=0, width=8, output_stride=8),
    "resnet50-16": lambda: resnet50(classes=0, width=4, output_stride=16),
    "resnet18-stages3": lambda: resnet18(classes=0, width=8, stages=3),
    "mobilenet-16": lambda: mobilenet_v2(classes=0, width=0.25, output_stride=16),
}


@pytest.mark.parametrize("size", [(64, 96), (65, 33)], ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_deeplabs_return_logits_of_the_image_size_or_of_their_stride(backbone, size):
    image = torch.randn(2, 3, *size)
    for build, stride in ((DeepLabV2, None), (lambda b, k, **o: DeepLabV3Plus(b, k, width=16, low_width=8, **o), 4)):
        net = build(BACKBONES[backbone](), 5).train()
        assert net(image).shape == (2, 5, *size)
        coarse = build(BACKBONES[backbone](), 5, upsample=False).eval()
        s = stride or coarse.backbone.strides[-1]
        assert coarse(image).shape == (2, 5, -(-size[0] // s), -(-size[1] // s))


def test_parameters_of_the_published_designs():
    """Counted by hand from the papers' descriptions, backbone (42,500,160 without fc) aside."""
    with torch.device("meta"):
        v2 = DeepLabV2(resnet101(classes=0, output_stride=8, convention="deeplab"), 21)
        assert count_parameters(v2) - count_parameters(v2.backbone) == 4 * (2048 * 21 * 9 + 21)
        assert count_parameters(v2.backbone) == 44_549_160 - 2048 * 1000 - 1000
        v3 = DeepLabV3Plus(resnet101(classes=0, output_stride=16), 21)
        aspp = 2048 * 256 + 512 + 3 * (2048 * 256 * 9 + 512) + 2048 * 256 + 512 + 5 * 256 * 256 + 512
        decoder = 256 * 48 + 96 + 304 * 256 * 9 + 512 + 256 * 256 * 9 + 512
        assert count_parameters(v3) - count_parameters(v3.backbone) == aspp + decoder + 256 * 21 + 21


def test_names_of_the_concatenating_head_are_torchvisions():
    names = ASPP(8, 4, (6, 12, 18)).state_dict()
    convolutions = {name: tuple(value.shape) for name, value in names.items() if value.ndim == 4}
    assert convolutions == {
        "convs.0.0.weight": (4, 8, 1, 1), "convs.1.0.weight": (4, 8, 3, 3), "convs.2.0.weight": (4, 8, 3, 3), "convs.3.0.weight": (4, 8, 3, 3),
        "convs.4.1.weight": (4, 8, 1, 1), "project.0.weight": (4, 20, 1, 1),
    }
    assert {"convs.0.1.running_mean", "convs.4.2.running_mean", "project.1.running_var"} <= set(names)


def test_summed_aspp_written_a_second_time():
    torch.manual_seed(0)
    net = ASPP(6, 3, (1, 2, 5), fuse="sum").double()
    assert all(not c.bias.any() and 0.005 < c.weight.std().item() < 0.015 for c in net.convs)
    for c in net.convs:
        nn.init.normal_(c.bias)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    expected = sum(F.conv2d(x, c.weight, c.bias, padding=r, dilation=r) for c, r in zip(net.convs, (1, 2, 5)))
    assert_close(net(x), expected)


def test_concatenated_aspp_written_a_second_time():
    torch.manual_seed(0)
    net = shuffled_norms(ASPP(6, 4, (2, 3)).double().eval())
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)

    def norm_relu(y, bn):
        y = (y - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + 1e-5).sqrt()
        return (y * bn.weight[:, None, None] + bn.bias[:, None, None]).clamp_min(0)

    pooled = norm_relu(F.conv2d(x.mean((2, 3), keepdim=True), net.convs[3][1].weight), net.convs[3][2])
    branches = [norm_relu(F.conv2d(x, net.convs[0][0].weight), net.convs[0][1])]
    branches += [norm_relu(F.conv2d(x, net.convs[i][0].weight, padding=r, dilation=r), net.convs[i][1]) for i, r in ((1, 2), (2, 3))]
    joined = torch.cat(branches + [pooled.expand(2, 4, 9, 7)], 1)
    assert_close(net(x), norm_relu(F.conv2d(joined, net.project[0].weight), net.project[1]))


def test_rates_follow_the_backbones_stride():
    rates = lambda net: [c[0].dilation[0] for c in list(net.aspp.convs)[1:4]]  # noqa: E731
    assert rates(DeepLabV3Plus(BACKBONES["resnet18-8"](), 2, 8, 4)) == [12, 24, 36]
    assert rates(DeepLabV3Plus(BACKBONES["resnet50-16"](), 2, 8, 4)) == [6, 12, 18]
    assert rates(DeepLabV3Plus(BACKBONES["resnet50-16"](), 2, 8, 4, rates=(1, 2, 3))) == [1, 2, 3]
    with pytest.raises(ValueError, match="ends at stride 4; name them"):
        DeepLabV3Plus(resnet18(classes=0, width=4, stages=1), 2)


def test_a_batch_of_one_is_refused_where_it_cannot_be_normalised():
    image = torch.randn(1, 3, 32, 32)
    net = DeepLabV3Plus(BACKBONES["resnet50-16"](), 2, 8, 4)
    with pytest.raises(ValueError, match="image_pooling=False"):
        net(image)
    assert net.eval()(image).shape == (1, 2, 32, 32)
    assert freeze_batch_norm(net).train()(image).shape == (1, 2, 32, 32)
    assert DeepLabV3Plus(BACKBONES["resnet50-16"](), 2, 8, 4, image_pooling=False)(image).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="choose 'sum'"):
        ASPP(3, 3, (1,), fuse="max")


def test_decode_is_features_in_two_steps():
    net = DeepLabV3Plus(BACKBONES["resnet50-16"](), 2, 8, 4).eval()
    image = torch.randn(2, 3, 64, 64)
    maps = net.backbone.features(image)
    assert torch.equal(net.decode(maps[0], maps[-1]), net.features(image))
    assert torch.equal(resize(net.classifier(net.features(image)), (64, 64)), net(image))


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (33, 50)], ids=str)
def test_small_networks_take_any_size(size):
    image = torch.randn(2, 3, *size)
    half, quarter = tuple(-(-s // 2) for s in size), tuple(-(-s // 4) for s in size)
    unet, classifier = SmallUNet(5), SmallClassifier(4)
    assert unet(image).shape == (2, 5, *size) and unet.features(image).shape == (2, 16, *half)
    assert classifier.features(image).shape == (2, 72, *quarter)
    assert classifier.class_maps(image).shape == (2, 4, *quarter) and classifier(image).shape == (2, 4)
    assert [m.out_channels for m in unet.modules() if isinstance(m, nn.Conv2d)] == [16, 16, 32, 32, 48, 48, 32, 16, 5]


def test_sizes_that_the_docstrings_state():
    unet = SmallUNet(5).eval()
    assert count_parameters(unet) == 81_637 and count_parameters(SmallClassifier(4)) == 41_040
    assert round(multiply_adds(unet, torch.zeros(1, 3, 64, 64)) / 1e6) == 22


def test_class_maps_see_19_pixels_and_hold_no_constant():
    torch.manual_seed(0)
    net = shuffled_norms(SmallClassifier(4)).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    net.class_maps(image)[0, :, 8, 8].sum().backward()
    seen = image.grad[0].abs().sum(0).nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    assert extent.tolist() == [19, 19]
    assert net.classifier.bias is None
    assert_close(net(image), net.class_maps(image).mean((2, 3)))


LEARNERS = {
    "unet": lambda: SmallUNet(3, 8),
    "deeplab": lambda: DeepLabV3Plus(resnet18(classes=0, width=8, stages=2), 3, 16, 8, rates=(1, 2)),
}


@pytest.mark.parametrize("build", LEARNERS.values(), ids=LEARNERS)
def test_a_segmenter_overfits_two_images(build):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32)
    truth = F.interpolate(torch.randint(0, 3, (2, 1, 4, 4)).float(), size=(32, 32))[:, 0].long()
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        loss = F.cross_entropy(net(image), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(image).argmax(1) == truth).float().mean() > 0.9


def test_a_classifier_learns_tags():
    """One square somewhere whose colour is the tag."""
    torch.manual_seed(0)
    image, present = 0.1 * torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    for i in range(16):
        y, x = (int(v) for v in torch.randint(0, 24, (2,)))
        image[i, present[i], y : y + 8, x : x + 8] += 2
    net = SmallClassifier(2, 8)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(40):
        loss = F.multilabel_soft_margin_loss(net(image), F.one_hot(present).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert net(image).argmax(1).tolist() == present.tolist() and loss < 0.2
