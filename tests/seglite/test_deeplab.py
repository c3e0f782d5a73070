"""DeepLab v2: the paper's parameter counts, exact identities of atrous convolution, the fusion, losses, groups and padding written a second time."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernels import backend
from seglite import config as settings
from seglite.data import normalise
from seglite.data.scenes import Scenes, ScenesSettings
from seglite.nets.layers import FrozenBatchNorm, count_parameters
from seglite.nets.resnet import Bottleneck, ResNet
from seglite.nets.vgg import Vgg
from seglite.export import modules_of
from seglite.papers import deeplab as dl
from seglite.reopen import open_run
from seglite.report import costs
from seglite.run import Run, build_optimizer
from seglite.train import main
from tests.tolerances import assert_close

METHODS = {"deeplab": dl}


def parse(*arguments):
    return settings.parse(["method=deeplab", *arguments], METHODS)[0]


def whole_numbers(net, low=-1, high=2, seed=0):
    """Weights -1, 0 or 1: sums of whole numbers below 2^24 are exact in any order, so a difference of 0 means equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(low, high, p.shape, generator=generator))
    return net.eval()


# ---- the published networks -----------------------------------------------------------------------------------------------------------

HEADS = {  # row of table 1: kernel, rates, hidden, millions of parameters in the paper (ASPP: counted independently, not in the table)
    "original 7x7": (7, (4,), 4096, 134.35), "small kernel 4x4": (4, (8,), 4096, 65.14), "LargeFOV": (3, (12,), 1024, 20.51),
    "ASPP-S": (3, (2, 4, 8, 12), 1024, 37.88), "ASPP-L": (3, (6, 12, 18, 24), 1024, 37.88),
}


@pytest.mark.parametrize("row", HEADS)
def test_parameters_of_table_1(row):
    kernel, rates, hidden, millions = HEADS[row]
    config = parse("net=vgg16", "head=hidden", f"kernel={kernel}", f"hidden={hidden}", "rates=" + ",".join(map(str, rates)), "output_stride=8")
    with torch.device("meta"):
        net = dl.build(config, 21)
        assert round(count_parameters(net) / 1e6, 2) == millions
        assert net(torch.empty(1, 3, 321, 321))[0].shape == (1, 21, 41, 41)


def test_resnet_101_of_the_paper():
    """44.05 M with four branches, 42.89 M with one; strides on the 1x1, rate 2 in every block of res4 and 4 in every block of res5 (prototxt)."""
    with torch.device("meta"):
        net = dl.build(parse("size=paper"), 21)
        one = dl.build(parse("size=paper", "rates=12"), 21)
    assert (round(count_parameters(net) / 1e6, 2), round(count_parameters(one) / 1e6, 2)) == (44.05, 42.89)
    body = net.segmenter.backbone
    for stage, stride, rate, blocks in ((body.layer1, 1, 1, 3), (body.layer2, 2, 1, 4), (body.layer3, 1, 2, 23), (body.layer4, 1, 4, 3)):
        assert len(stage) == blocks and {b.conv2.dilation[0] for b in stage} == {rate} and {b.conv2.stride for b in stage} == {(1, 1)}
        assert [b.conv1.stride[0] for b in stage] == [stride] + [1] * (blocks - 1)
    assert [c.dilation[0] for c in net.segmenter.aspp.convs] == [6, 12, 18, 24]
    with torch.device("meta"):
        assert [m.shape[-1] for m in net(torch.empty(1, 3, 321, 321))] == [41, 31, 21]
        assert [m.shape[-1] for m in net(torch.empty(1, 3, 513, 513))] == [65, 49, 33]


def test_moving_the_stride_keeps_size_and_weights_but_not_the_function():
    torch.manual_seed(0)
    nets = [ResNet(Bottleneck, (1, 1, 1, 1), classes=0, width=8, output_stride=8, convention="deeplab").eval() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    dl.stride_on_1x1(nets[1])
    image = torch.randn(1, 3, 65, 65)
    maps = [net.features(image) for net in nets]
    assert [m.shape for m in maps[0]] == [m.shape for m in maps[1]]
    assert torch.equal(maps[0][0], maps[1][0]) and not torch.allclose(maps[0][1], maps[1][1], atol=1e-3)


@pytest.mark.parametrize("name,stride_on,warned", [
    ("resnet101-63fe2227.pth", "1x1", True), ("resnet101-63fe2227.pth", "3x3", False), ("mine.pth", "1x1", False)])
def test_torchvision_s_file_on_strides_it_was_not_trained_with_is_mentioned(tmp_path, monkeypatch, name, stride_on, warned):
    small = lambda **keys: ResNet(Bottleneck, (1, 1, 1, 1), width=4, **keys)  # noqa: E731
    monkeypatch.setattr(dl, "resnet101", small)
    torch.save(small(classes=0).state_dict(), tmp_path / name)
    said = []
    dl.build_body(parse("net=resnet101", f"weights={tmp_path / name}", f"stride_on={stride_on}"), say=said.append)
    assert any("stride_on=3x3 fits" in sentence for sentence in said) == warned


def test_the_header_s_commands_are_understood():
    """The VGG-16 line is section 4 of the prototxts: ASPP-L with hidden branches, one scale, ten images at 1e-3."""
    lines = [line for line in re.sub(r" *\\\n *", " ", dl.__doc__).splitlines() if "seglite.train" in line]
    found = [settings.parse([w for w in re.findall(r"\S+=\S+", line) if "..." not in w], METHODS)[0] for line in lines]
    assert [c.net for c in found] == ["tiny", "resnet18", "resnet101", "vgg16"] and found[2].stride_on == "3x3"
    vgg = found[3]
    assert (vgg.head, vgg.rates, vgg.hidden, vgg.dropout) == ("hidden", (6, 12, 18, 24), 1024, 0.5)
    assert (vgg.msc, vgg.scales, vgg.augment.crop) == ((1.0,), (1.0,), 321)
    assert (vgg.train.lr, vgg.train.batch, vgg.train.micro_batch, vgg.train.steps, vgg.train.weight_decay) == (1e-3, 10, 10, 20000, 5e-4)
    assert (vgg.crf, vgg.crf_smooth, vgg.crf_appearance, vgg.crf_iterations) == (True, (2.0, 2.0), (65.0, 3.0, 4.0), 10)


# ---- identities of section 3.1 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(65, 97), (60, 41)], ids=str)
@pytest.mark.parametrize("head", ["single", "hidden"])
def test_taking_a_stride_out_keeps_every_old_score(head, size):
    """Same weights at stride 8 and at stride 4 with doubled rates: the difference on the old grid is 0, borders included."""
    strided = whole_numbers(dl.build(parse("net=mini", f"head={head}", "hidden=6", "output_stride=8", "rates=1,2"), 4))
    dense = dl.build(parse("net=mini", f"head={head}", "hidden=6", "output_stride=4", "rates=2,4"), 4).eval()
    dense.load_state_dict(strided.state_dict())
    image = torch.randint(-3, 4, (2, 3, *size), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        coarse, fine = strided(image)[0], dense(image)[0]
    assert 0 < coarse.abs().max() < 2**24 and fine.shape[-1] > coarse.shape[-1]
    assert (fine[:, :, ::2, ::2] - coarse).abs().max().item() == 0.0


def test_two_strides_taken_out_of_a_resnet():
    """Rates 2 then 4 where the exact rule puts them (first_rate=torchvision), batch norm on stored statistics."""
    torch.manual_seed(0)
    nets = {s: ResNet(Bottleneck, (1, 2, 2, 2), classes=0, width=8, output_stride=s).double().eval() for s in (32, 8)}
    for m in nets[32].modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -1, 1)
            nn.init.uniform_(m.running_var, 0.5, 2)
    nets[8].load_state_dict(nets[32].state_dict())
    image = torch.randn(1, 3, 97, 65, dtype=torch.float64)
    with torch.no_grad():
        coarse, fine = nets[32].features(image)[-1], nets[8].features(image)[-1]
    # Random real weights: convolution algorithms may differ between the two, so equal up to rounding and not to the bit.
    assert_close(fine[:, :, ::4, ::4], coarse)
    deeplab = ResNet(Bottleneck, (1, 2, 2, 2), classes=0, width=8, output_stride=8, convention="deeplab").double().eval()
    deeplab.load_state_dict(nets[32].state_dict())
    assert (deeplab.features(image)[-1][:, :, ::4, ::4] - coarse).abs().max() > 0.1  # "deeplab" rates in first blocks are another function


def test_a_branch_is_ordinary_convolutions_on_interleaved_maps():
    """The paper's second implementation: split into r*r phases, convolve each without holes, weave back."""
    rate = 3
    branch = whole_numbers(dl.Branch(4, 6, 3, 3, rate, 0.5))
    x = torch.randint(-3, 4, (2, 4, 10, 8), generator=torch.Generator().manual_seed(2)).float()
    woven = torch.empty(2, 6, 10, 8)
    for f in range(rate):
        for g in range(rate):
            woven[:, :, f::rate, g::rate] = F.conv2d(x[:, :, f::rate, g::rate], branch.fc6.weight, branch.fc6.bias, padding=1)
    expected = branch.fc8(branch.fc7(woven.relu()).relu())
    assert (branch(x) - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("kernel,rate", [(7, 1), (4, 2), (3, 3), (7, 4), (4, 8)])
def test_branches_keep_the_size_of_the_map_for_every_kernel_of_table_1(kernel, rate):
    assert dl.Branch(3, 4, 2, kernel, rate, 0.0)(torch.randn(1, 3, 11, 9)).shape == (1, 2, 11, 9)


@pytest.mark.parametrize("head", ["single", "hidden"])
def test_branches_are_summed_and_kernels_can_be_switched(head):
    torch.manual_seed(0)
    net = dl.build(parse("net=tiny", f"head={head}", "hidden=8", "rates=1,2,4"), 5).eval()
    image = torch.randn(1, 3, 33, 33)
    x = net.segmenter.backbone.features(image)[-1]
    branches = list(net.segmenter.aspp) if head == "hidden" else None
    expected = sum(b(x) for b in branches) if branches else sum(c(x) for c in net.segmenter.aspp.convs)
    for path in ("reference", "torch"):
        with backend.use(path), torch.no_grad():
            assert_close(net(image)[0], expected.detach())


def test_new_layers_start_as_in_the_prototxt():
    torch.manual_seed(0)
    for head in ("single", "hidden"):
        net = dl.build(parse("net=tiny", f"head={head}", "hidden=200", "rates=6,12,18,24"), 21)
        layers = [b.fc8 for b in net.segmenter.aspp] if head == "hidden" else list(net.segmenter.aspp.convs)
        assert len(layers) == 4
        for layer in layers:
            assert not layer.bias.any() and layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_fc6_and_fc7_start_from_the_decimated_classifier(tmp_path, monkeypatch):
    """The 3x3 x 1024 layer takes taps 0 3 6 of the 7x7 and every fourth output; here with 8 outputs of 16."""
    source = {"classifier.0.weight": torch.randn(16, 4 * 49), "classifier.0.bias": torch.randn(16), "classifier.3.weight": torch.randn(16, 16),
              "classifier.3.bias": torch.randn(16)}
    torch.save(source, tmp_path / "vgg.pth")
    head = dl.HiddenASPP(4, 8, 5, 3, (6, 12), 0.5)
    before = head[0].fc8.weight.clone()
    assert dl.load_hidden(head, str(tmp_path / "vgg.pth"))
    whole = source["classifier.0.weight"].view(16, 4, 7, 7)
    for branch in head:
        for out in (0, 3, 7):
            assert torch.equal(branch.fc6.weight[out], whole[2 * out][:, [0, 3, 6]][:, :, [0, 3, 6]])
            assert branch.fc6.bias[out] == source["classifier.0.bias"][2 * out]
            assert branch.fc7.weight[out, 5] == source["classifier.3.weight"][2 * out, 10]
    assert torch.equal(head[0].fc8.weight, before)
    assert dl.decimate(source["classifier.0.weight"], 4, 16)[0, 0, 1, 3] == whole[0, 0, 2, 6]
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "body.pth")
    assert not dl.load_hidden(head, str(tmp_path / "body.pth"))


def test_batch_norm_is_frozen_with_weights_and_trained_without(tmp_path):
    from seglite.nets.resnet import resnet18

    assert not any(isinstance(m, FrozenBatchNorm) for m in dl.build_body(parse("net=resnet18")).modules())
    torch.save(resnet18(classes=0, stages=3).state_dict(), tmp_path / "w.pth")
    body = dl.build_body(parse("net=resnet18", f"weights={tmp_path / 'w.pth'}"), say=lambda sentence: None)
    assert any(isinstance(m, FrozenBatchNorm) for m in body.modules()) and not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    assert sum(p.ndim == 1 for p in body.parameters()) == 0
    loose = dl.build_body(parse("net=resnet18", f"weights={tmp_path / 'w.pth'}", "frozen_bn=false"), say=lambda sentence: None)
    assert any(isinstance(m, nn.BatchNorm2d) for m in loose.modules())


# ---- several scales -------------------------------------------------------------------------------------------------------------------


def test_fusion_is_the_largest_score_after_resizing():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, n, n, dtype=torch.float64) for n in (9, 7, 5)]
    resized = [F.interpolate(m, (9, 9), mode="bilinear", align_corners=True) for m in maps]
    assert_close(dl.fuse(maps), torch.maximum(torch.maximum(resized[0], resized[1]), resized[2]))
    assert torch.equal(dl.fuse(maps)[..., 0, 0], torch.stack([m[..., 0, 0] for m in maps]).amax(0))  # corners aligned: corners are kept


def test_the_four_losses_written_a_second_time():
    torch.manual_seed(0)
    mask = torch.randint(0, 4, (2, 65, 65))
    mask[:, :20, :20] = 255
    maps = [torch.randn(2, 4, n, n) for n in (9, 7, 5)]
    found = dl.step_losses(maps, mask, 8, (1.0, 0.75, 0.5))
    assert list(found) == ["x1", "x0.75", "x0.5", "fused"]
    up = F.interpolate(maps[1], (9, 9), mode="bilinear", align_corners=True)
    for key, scores, step in (("x1", maps[0], 8), ("x0.75", up, 8), ("x0.5", maps[2], 16), ("fused", dl.fuse(maps), 8)):
        assert found[key].item() == pytest.approx(F.cross_entropy(scores, mask[:, ::step, ::step], ignore_index=255).item(), rel=1e-6)
    assert list(dl.step_losses(maps[:1], mask, 8, (1.0,))) == ["x1"]


@pytest.mark.parametrize("side", [65, 73, 321])
def test_every_scale_has_labels_of_its_own_size(side):
    net = dl.DeepLab(nn.Conv2d(3, 2, 3, stride=8, padding=1), (1.0, 0.75, 0.5))
    maps = net(torch.zeros(1, 3, side, side))
    losses = dl.step_losses(maps, torch.zeros(1, side, side, dtype=torch.long), 8, net.scales)
    assert len(losses) == 4 and all(torch.isfinite(v) for v in losses.values())
    if side == 321:
        assert [m.shape[-1] for m in maps] == [41, 31, 21]
    with pytest.raises(ValueError, match="largest scale comes first"):
        dl.DeepLab(net, (0.5, 1.0))


# ---- the step: groups, augmentation ---------------------------------------------------------------------------------------------------


def test_learning_rates_are_1_2_10_20_and_biases_do_not_decay():
    config = parse("size=paper", "data=scenes", "net=mini")
    net = dl.build(config, 21)
    optimizer = build_optimizer(net, config.train, dl.parameter_groups(net, config))
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    names = dict(net.named_parameters())
    assert len(found) == len(names)
    expected = {("backbone", "weight"): (1.0, 5e-4), ("backbone", "bias"): (2.0, 0.0), ("aspp", "weight"): (10.0, 5e-4), ("aspp", "bias"): (20.0, 0.0)}
    for name, p in names.items():
        assert found[id(p)] == expected[name.split(".")[1], name.split(".")[-1]], name


@pytest.mark.parametrize("head,classifier,layers", [("hidden", True, ("0.fc8", "1.fc8")), ("single", True, ("convs.0", "convs.1")),
                                                    ("hidden", False, [f"{i}.fc{n}" for i in (0, 1) for n in (6, 7, 8)])])
def test_what_came_from_an_imagenet_vgg_is_old_and_all_else_new(tmp_path, monkeypatch, head, classifier, layers):
    """Of branches converted from the file's classifier only fc8 is new; without a classifier, or with 3x3 branches, the whole head is."""
    monkeypatch.setattr(dl, "vgg16", lambda **keys: Vgg(dl.MINI, **keys))
    file = dl.vgg16(classes=0, output_stride=8).state_dict()
    if classifier:
        file |= {"classifier.0.weight": torch.randn(16, 48 * 49), "classifier.0.bias": torch.randn(16), "classifier.3.weight": torch.randn(16, 16),
                 "classifier.3.bias": torch.randn(16)}
    torch.save(file, tmp_path / "vgg.pth")
    config = parse("net=vgg16", f"head={head}", "hidden=4", "rates=6,12", f"weights={tmp_path / 'vgg.pth'}", "output_stride=8", "head_lr_scale=10",
                   "bias_lr_scale=2")
    net = dl.build(config, 3, say=lambda sentence: None)
    scale = {id(p): g["lr_scale"] for g in dl.parameter_groups(net, config) for p in g["params"]}
    fast = {name: scale[id(p)] for name, p in net.named_parameters() if scale[id(p)] >= 10}
    assert fast == {f"segmenter.aspp.{layer}.{kind}": rate for layer in layers for kind, rate in (("weight", 10.0), ("bias", 20.0))}


def test_scales_are_drawn_from_the_set_and_padding_is_at_right_and_bottom():
    config = parse("scales=0.5,1,1.5", "augment.crop=33", "augment.flip=0")
    cut = dl.ScaleCropFlip(config, (0.5, 0.25, 0.0))
    sample = {"image": np.full((20, 40, 3), 200, np.uint8), "mask": np.full((20, 40), 3, np.uint8)}
    heights = set()
    for seed in range(40):
        out = cut(dict(sample), np.random.default_rng(seed))
        assert out["image"].shape == (33, 33, 3) and out["mask"].shape == (33, 33)
        inside = out["mask"] == 3
        height, width = inside.any(1).sum(), inside.any(0).sum()
        assert inside[:height, :width].all() and (out["mask"][~inside] == 255).all()
        assert (out["image"][~inside] == (128, 64, 0)).all() and (out["image"][inside] == 200).all()
        heights.add((int(height), int(width)))
    assert heights == {(10, 20), (20, 33), (30, 33)}


def test_crops_reach_every_corner_and_mirror_half_of_the_time():
    config = parse("augment.crop=3")
    cut = dl.ScaleCropFlip(config, (0, 0, 0))
    mask = np.arange(20, dtype=np.uint8).reshape(4, 5)
    corners, mirrored = set(), 0
    for seed in range(300):
        out = cut({"image": np.zeros((4, 5, 3), np.uint8), "mask": mask}, np.random.default_rng(seed))["mask"]
        mirrored += out[0, 0] > out[0, 1]
        corners.add(min(out[0, 0], out[0, 2]))
    assert corners == {0, 1, 2, 5, 6, 7} and 110 < mirrored < 190


# ---- prediction -----------------------------------------------------------------------------------------------------------------------


def test_padding_reaches_8k_plus_1_at_right_and_bottom():
    for side, padded in ((1, 1), (2, 9), (9, 9), (65, 65), (360, 361), (480, 481)):
        image = torch.ones(1, 3, side, 9)
        out = dl.pad(image, 8)
        assert out.shape == (1, 3, padded, 9) and torch.equal(out[:, :, :side], image) and not out[:, :, side:].any()


def test_three_scales_line_up_at_32k_plus_1():
    assert [dl.period(8, s) for s in ((1.0,), (1.0, 0.5), (1.0, 0.75), (1.0, 0.75, 0.5))] == [8, 16, 32, 32]
    assert dl.period(4, (1.0, 0.75, 0.5)) == 16 and 64 % 16 == 0 and 320 % 32 == 0  # the miniature's 65 pixels and the crop of 321 stay as they are
    for side, padded in ((57, 65), (65, 65), (66, 97), (73, 97), (321, 321)):
        assert dl.pad(torch.ones(1, 3, side, 65), dl.period(8, (1.0, 0.75, 0.5))).shape == (1, 3, padded, 65)


@pytest.mark.parametrize("size", [(57, 73), (73, 57), (65, 60)], ids=str)
def test_a_ramp_comes_back_from_three_scales(size):
    """Every scale returns each 8th pixel of its image. With the corners in line no scale says more than the ramp; out of line, one does."""
    class Sample(nn.Module):
        def forward(self, image):
            return image[:, :2, ::8, ::8]

    ramp = torch.arange(float(size[1])) + 3 * torch.arange(float(size[0]))[:, None]
    image = torch.stack([ramp, 500 - ramp, ramp])[None].double()  # a shift either way is the largest score, the padding's 0 is not
    config = parse("output_stride=8", "msc=1,0.75,0.5")
    scores = dl.scores_of(dl.DeepLab(Sample(), config.msc), image, config)
    rows, columns = ((n - 1) // 8 * 8 + 1 for n in size)  # behind the last score lies the padding
    assert_close(scores[:, :, :rows, :columns], image[:, :2, :rows, :columns])


def test_scores_are_enlarged_with_corners_aligned_and_the_padding_is_cut():
    """A network that returns every 8th pixel of the image: a linear ramp must come back as it was, which half-pixel alignment would not do."""
    class Sample(nn.Module):
        def forward(self, image):
            return image[:, :2, ::8, ::8]

    ramp = (torch.arange(65.0)[None, :] + 3 * torch.arange(65.0)[:, None]).expand(1, 3, 65, 65).double()
    model, config = dl.DeepLab(Sample()), parse("output_stride=8")
    assert_close(dl.scores_of(model, ramp, config), ramp[:, :2])
    assert_close(dl.scores_of(model, ramp[:, :, :57, :49], config), ramp[:, :2, :57, :49])
    assert dl.scores_of(model, ramp[:, :, :60, :50], config).shape == (1, 2, 60, 50)
    half = dl.scores_of(model, ramp, settings.override(config, test_scale=0.5))
    assert_close(half, ramp[:, :2])


def test_the_crf_sees_the_photograph_and_moves_the_border_to_the_edge():
    data = Scenes(ScenesSettings(world="faint", train_images=1, val_images=1), "val")
    image = np.zeros((33, 33, 3), np.uint8)
    image[:, :16], image[:, 16:] = (180, 60, 60), (60, 60, 180)
    x = normalise(image[None], data)
    assert torch.equal(dl.photographs(x, data), torch.from_numpy(image).movedim(-1, 0)[None])  # uint8 through float32 and back
    at = torch.arange(33.0)
    logits = torch.stack([(18.6 - at), (at - 18.6)])[None, :, None].expand(1, 2, 33, 33) / 3  # [B, K, H, W]: the border three pixels off
    assert (logits.argmax(1)[0, 5] == 1).sum() == 14
    config = parse("crf=true", "crf_appearance=9,10,4")
    refined = dl.refine(logits, dl.photographs(x, data), config)
    assert (refined.argmax(1)[0] == (torch.arange(33) >= 16).long()).all()
    plain = dl.refine(logits, dl.photographs(x, data), settings.override(config, crf_appearance=(9.0, 10.0, 0.0)))
    assert (plain.argmax(1)[0, 16] == 1).sum() == 14  # smoothness alone leaves a straight border where it is


@pytest.mark.parametrize("low", [0, 128])
def test_the_crf_takes_a_photograph_of_two_neighbouring_levels(low):
    data = Scenes(ScenesSettings(world="faint", train_images=1, val_images=1), "val")
    image = low + np.random.default_rng(0).integers(0, 2, (9, 9, 3), np.uint8)
    refined = dl.refine(torch.zeros(1, 2, 9, 9), dl.photographs(normalise(image[None].astype(np.uint8), data), data), parse("crf=true"))
    assert_close(refined, torch.full((1, 2, 9, 9), 0.5))


def test_radius_of_objects():
    masks = torch.zeros(2, 20, 20, dtype=torch.long)
    masks[0, 2:6, 2:6], masks[0, 10:19, 10:19], masks[0, 2, 10] = 1, 1, 2
    masks[1, 5:8, 5:15] = 3
    radius = dl.radius_of_objects(masks)
    for (i, y, x), count in {(0, 3, 3): 16, (0, 12, 17): 81, (0, 2, 10): 1, (1, 6, 9): 30, (1, 0, 0): 370}.items():
        assert radius[i, y, x].item() == pytest.approx((count / np.pi) ** 0.5)


@pytest.mark.parametrize("head", ["single", "hidden"])
def test_costs_are_the_same_on_every_path(head):
    """Triton's kernels, live on a GPU and here in the interpreter, are invisible to torch's counter."""
    config = parse(f"head={head}", "hidden=8", "rates=1,2", "scenes.size=17", "output_stride=4")
    net = dl.build(config, 5).eval()
    body = 17 * 17 * 9 * 3 * 24 + 9 * 9 * 9 * 24 * 48
    branch = 9 * 48 * 5 if head == "single" else 9 * 48 * 8 + 8 * 8 + 8 * 5
    for path in ("reference", "torch", None):
        with backend.use(path):
            assert dl.cost(net, config) == {"MMAC": (body + 2 * 5 * 5 * branch) / 1e6, "parameters": count_parameters(net)}
    with backend.use(None):
        assert backend.path_for(torch.zeros(1)) == "triton"
        run, data = SimpleNamespace(device="cpu", started=0.0), Scenes(ScenesSettings(size=17, train_images=1, val_images=1), "val")
        found = costs(run, dl.predictor(net, config, data), net, data, SimpleNamespace(images_per_second=1.0))
    assert found["GFLOPs per image"] == round(2 * (body + 2 * 5 * 5 * branch) / 1e9, 4) and found["image size"] == "17 x 17"


# ---- the method lives -----------------------------------------------------------------------------------------------------------------


def test_a_few_images_are_learned_by_heart():
    torch.manual_seed(0)
    config = parse()
    data = Scenes(ScenesSettings(world="rims", size=65, train_images=4), "train")
    net = dl.build(config, len(data.classes))
    image = normalise(np.stack([data.read(i, ("image",))["image"] for i in range(4)]), data)
    mask = torch.from_numpy(np.stack([data.read(i, ("mask",))["mask"] for i in range(4)])).long()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(120):
        loss = sum(dl.step_losses(net(image), mask, 4, (1.0,)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        at_stride = net(image)[0].argmax(1)
    assert loss.item() < 0.12 and (at_stride == mask[:, ::4, ::4]).float().mean() > 0.96


def test_a_whole_run_writes_its_report(tmp_path, monkeypatch):
    out = tmp_path / "run"
    arguments = ["method=deeplab", f"out={out}", "scenes.train_images=8", "scenes.val_images=3", "train.steps=3", "train.batch=4", "msc=1,0.75,0.5",
                 "crf=true", "threads=1"]
    assert main(arguments) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["method"] == "deeplab" and 0 <= result["miou"] <= 1 and (out / "report.png").exists()
    losses = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-1]
    assert {"x1", "x0.75", "x0.5", "fused"} <= set(losses)
    assert losses["loss"] == pytest.approx(sum(losses[k] for k in ("x1", "x0.75", "x0.5", "fused")), rel=1e-4)
    # A finished run is reopened without judging it again, as the predictor with the CRF that its report was about.
    monkeypatch.setattr(dl, "evaluate_many", None)
    predict, data, run = open_run(out, METHODS)
    run.close()
    assert dl.judge(predict, data, "cpu")["mIoU"] == pytest.approx(100 * result["miou"], abs=1e-9)
    before = dl.judge(dl.predictors(modules_of(predict)[0], settings.override(run.config, crf=False), data)["scores"], data, "cpu")
    cells = [f"{before[k]:.2f}".rstrip("0").rstrip(".") for k in ("mIoU", "1 px", "2 px", "5 px")]
    assert all(f">{cell}<" in (out / "report.html").read_text() for cell in cells), f"the row before the CRF must say {cells}"


def test_the_claim_has_every_row_of_the_study(tmp_path):
    """Two steps a row. Heads of table B reach 7 cells with 49, 16 and 9 taps; the first rows, with which all others are compared, stay."""
    config = parse(f"out={tmp_path}", "train.steps=2", "train.batch=2", "scenes.train_images=4", "scenes.val_images=2", "scenes.size=33", "threads=1")
    run = Run(config, quiet=True)
    try:
        tables = dl.claim(run)
    finally:
        run.close()
    fields, rates = tables["B. Field of view, one branch"], tables["C. ASPP, rates of four branches"]
    assert list(fields) == ["3x3 rate 1", "7x7 rate 1", "4x4 rate 2", "3x3 rate 3"] and [k * r - r + 1 for k, r in dl.FIELDS.values()] == [3, 7, 7, 7]
    taps = {row: (fields[row]["parameters"] - fields["3x3 rate 1"]["parameters"]) / 48**2 + 9 for row in fields}
    assert list(taps.values()) == [9, 49, 16, 9]
    assert list(rates) == ["2 2 2 2", "3 3 3 3", "4 4 4 4", "6 6 6 6", "1 2 4 6", "1 1 1 1"]
    assert all(set(row) == {"mIoU", "small", "medium", "large"} for row in rates.values())
    assert {type(said(tables)) for said in dl.CLAIM["statements"].values()} == {bool}


def test_every_recipe_builds():
    for size in ("toy", "small", "paper"):
        with torch.device("meta"):
            assert dl.build(parse(f"size={size}", "data=voc", "root=x"), 21)
    with pytest.raises(ValueError, match="other kernels need head=hidden"):
        dl.build(parse("head=single", "kernel=7"), 3)
