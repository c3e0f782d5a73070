"""P2AT: the released parameter counts and answers, each block written a second time, losses by hand, augmentation, selection, folding."""
import json
import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seglite import config as settings
from seglite.losses import cross_entropy
from seglite.measure import multiply_adds
from seglite.nets import p2at as net
from seglite.nets.fold import fold_batch_norm
from seglite.nets.layers import count_parameters
from seglite.nets.pspnet import BinPooling, DeepLabV3, PSPNet
from seglite.nets.resnet import resnet18, resnet34, resnet50
from seglite.networks import NETWORKS
from seglite.papers import p2at
from seglite.run import Run
from seglite.train import main
from tests.tolerances import assert_close

METHODS = {"p2at": p2at}
BODIES = {"S": resnet18, "M": resnet34, "L": resnet50}


def parse(*arguments):
    return settings.parse(["method=p2at", *arguments], METHODS)[0]


def by_name(model: nn.Module) -> nn.Module:
    """Fill every tensor with numbers that follow from its name alone (Philox), so that results can be written down."""
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if t.is_floating_point():
                u = torch.from_numpy(np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).uniform(-1, 1, tuple(t.shape)))
                last, fan = name.rsplit(".", 1)[-1], t[0].numel() if t.ndim > 1 else 1
                if last in ("running_var", "scale") or (t.ndim == 1 and last == "weight"):
                    t.copy_(1 + 0.3 * u)
                elif last == "gamma":
                    t.copy_(0.5 * u)
                else:
                    t.copy_(u * math.sqrt(3 / fan) if fan > 1 and not last.startswith(("row", "column")) else 0.3 * u)
    return model.eval()


# ---- the published network --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant,millions,with_heads,small,full", [("S", 12.74, 12.81, 10.6, 41.9), ("M", 22.84, 22.92, 17.1, 67.4), ("L", 25.28, 25.35, 18.9, 74.5)])
def test_released_counts(variant, millions, with_heads, small, full):
    """Parameters at 11 classes, and GMAC at 360 x 480 and 720 x 960. The released LFR convolves the mean after spreading it over the map; we before:
    two 1x1 convolutions of 64 channels fewer at 1/4 and 1/8, 0.22 GMAC at 720 x 960."""
    with torch.device("meta"):
        model = net.P2AT(BODIES[variant](classes=0), 11, pooling="as_released", dead_taps=True)
    assert round(count_parameters(model) / 1e6, 2) == with_heads
    assert round((count_parameters(model) - net.auxiliary(model)) / 1e6, 2) == millions
    saved = 64 * 64 * (180 * 240 + 90 * 120) / 1e9
    model = model.to_empty(device="cpu").eval()  # numbers do not matter
    assert abs(multiply_adds(model, (720, 960)) / 1e9 + saved - full) < 0.06
    if variant == "S":
        assert abs(multiply_adds(model, (360, 480)) / 1e9 + saved / 4 - small) < 0.06


def test_answers_of_the_released_network():
    """Logits of the authors' code (models/P2AT.py at commit 17e959a) with the weights of `by_name`, written down once."""
    model = by_name(net.P2AT(resnet18(classes=0), 11, pooling="as_released", dead_taps=True))
    image = torch.sin(torch.arange(2 * 3 * 97 * 140, dtype=torch.float64) * 0.013).reshape(2, 3, 97, 140).float()
    with torch.no_grad():
        logits = model(image)
    expected = [14.46716, -3.92421, 4.65282, 1.61375, 1.25678, -6.45748, -8.40478, -5.50018, 1.72636, -7.21889, -2.77949]
    assert_close(logits[1, :, 40, 77], torch.tensor(expected), factor=5)  # five digits were written down
    assert abs(float(logits.mean()) + 0.90632) < 1e-3 and abs(float(logits.std()) - 4.69399) < 1e-3


def test_size_paper_is_the_published_recipe():
    config = parse("size=paper", "data=camvid", "root=x")
    assert (config.base, config.window, config.augment.scale_min, config.augment.scale_max) == (960, (720, 960), 0.5, 2.1)
    assert (config.train.lr, config.train.weight_decay, config.train.momentum, config.train.power) == (1e-3, 5e-4, 0.9, 0.9)
    assert (config.ohem_threshold, config.aux_weight, config.train.batch) == (0.9, 0.4, 8)
    assert round(config.ohem_share, 4) == round(131072 / (4 * 720 * 960), 4)
    assert config.train.steps == 140 * (367 // 8) and config.select_on == "val" and config.camvid.val == "test"
    with torch.device("meta"):
        model = p2at.build(config, 11)
    assert count_parameters(model) == 12_811_169 - 2 * 64 * 64 * (8 + 48)  # GCE without its dead taps


def test_the_heavy_rivals_are_the_published_ones():
    """torchvision's deeplabv3_resnet50 has 42,004,074 parameters, of them 2,365,205 in an auxiliary head; a stride-8 ResNet-50 takes 262.8 GMAC."""
    with torch.device("meta"):
        assert count_parameters(DeepLabV3(resnet50(classes=0, output_stride=8), 21)) == 42_004_074 - 2_365_205
        psp = PSPNet(resnet50(classes=0, output_stride=8), 21)
        assert psp.pooling.project[0].weight.shape == (512, 4096, 3, 3) and [b[0].out_channels for b in psp.pooling.branches] == [512] * 4
    assert round(multiply_adds(resnet50(classes=0, output_stride=8).features, (720, 960)) / 1e9, 1) == 262.8


# ---- blocks, written a second time ------------------------------------------------------------------------------------------------------


def test_the_attention_block_pixel_by_pixel():
    """Means, tables stretched by F.interpolate, softmax over rows and over columns, projections, the gate: an odd, oblong map."""
    torch.manual_seed(0)
    block = by_name(net.P2A2(12, heads=2, key=3, value=5, pooling="none"))
    x = torch.randn(2, 12, 7, 18)
    with torch.no_grad():
        q, k, v = block.q(x), block.k(x), block.v(x)
        answers = []
        for axis, query, key in ((3, block.row_query, block.row_key), (2, block.column_query, block.column_key)):
            a, b, c = q.mean(axis), k.mean(axis), v.mean(axis)
            a, b = (m + F.interpolate(table, m.shape[-1], mode="linear", align_corners=False) for m, table in ((a, query), (b, key)))
            heads = [torch.softmax(a[:, 3 * g:3 * g + 3].mT @ b[:, 3 * g:3 * g + 3] / math.sqrt(3), -1) @ c[:, 5 * g:5 * g + 5].mT for g in range(2)]
            answers.append(torch.cat(heads, 2).mT.unsqueeze(axis))
        near = block.local(x)
        expected = block.leave(v + block.row(answers[0]) + block.column(answers[1])) * (near + block.local_more(near))
        assert_close(block(x), expected)


def test_full_attention_is_full_and_axial_is_axial():
    """A change at one pixel reaches every pixel under full attention, its row and column under axial attention and (through means) all under squeeze."""
    x = torch.randn(1, 8, 6, 9, generator=torch.Generator().manual_seed(0))
    bumped = x.clone()
    bumped[0, :, 2, 5] += 1
    for kind in net.ATTENTIONS:
        block = by_name(net.P2A2(8, heads=2, key=4, value=4, attention=kind, pooling="none"))
        block.local_more = nn.Identity()
        with torch.no_grad():
            reached = (block(bumped) - block(x)).abs().amax(1)[0] > 1e-6
        cross = torch.zeros(6, 9, dtype=torch.bool)
        cross[2], cross[:, 5] = True, True
        assert torch.equal(reached, cross if kind == "axial" else torch.ones(6, 9, dtype=torch.bool)), kind


def test_squeezed_attention_cannot_tell_pixels_of_a_row_apart():
    """Permuting the pixels of one row changes no row mean: the row answer stays. Axial attention notices."""
    x = torch.randn(1, 8, 6, 9, generator=torch.Generator().manual_seed(0))
    swapped = x.clone()
    swapped[0, :, 2, [1, 7]] = x[0, :, 2, [7, 1]]
    seen = {}
    for kind in ("squeeze", "axial"):
        block = by_name(net.P2A2(8, heads=2, key=4, value=4, attention=kind, pooling="none"))
        block.column = nn.Conv2d(8, 8, 1, bias=False)
        nn.init.zeros_(block.column.weight)
        with torch.no_grad():
            seen[kind] = float((block(swapped) - block(x))[0, :, 4, 7].abs().max())  # another row, a column that changed
    assert seen["squeeze"] < 1e-6 < 1e-3 < seen["axial"]


def test_pyramids():
    """Interleaved: output channel c hears only channel c. As released: group 0 hears channels 0, 1, 2 and the second scale is not used directly."""
    for order, heard in (("interleaved", {0}), ("as_released", {0, 1, 2})):
        pool = by_name(net.PyramidPooling(6, order))
        pool.enter = nn.Identity()
        x = torch.rand(1, 6, 9, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (pool.mix[0](scales := spy(pool, x))[:, 0]).sum().backward()
        assert {c for c in range(6) if x.grad[0, c].abs().max() > 0} == heard
        p1 = F.avg_pool2d(x, 3, 1, 1)
        p2 = F.avg_pool2d(p1, 5, 1, 2)
        p3 = F.avg_pool2d(p2, 7, 1, 3)
        expected = torch.stack([p1, p2, p3], 2).flatten(1, 2) if order == "interleaved" else torch.cat([p1, p1, p3], 1)
        assert_close(scales.detach(), expected.detach())


def spy(pool: net.PyramidPooling, x: torch.Tensor) -> torch.Tensor:
    """What reaches the grouped convolution."""
    found = []
    hook = pool.mix.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    pool(x)
    hook.remove()
    return found[0]


def test_fusion_by_hand():
    torch.manual_seed(0)
    block = by_name(net.BiF(5, 7, 6))
    detail, middle, semantic = torch.randn(2, 5, 12, 10), torch.randn(2, 7, 6, 5), torch.randn(2, 6, 3, 3)
    enlarge = lambda x: F.interpolate(x, (12, 10), mode="bilinear", align_corners=False)
    with torch.no_grad():
        c = block.detail(detail)
        spread = F.adaptive_avg_pool2d(c, 1).expand_as(c)
        d = block.detail_out(block.detail_mean(spread) + torch.sigmoid(block.detail_gate(c)))
        u = enlarge(block.semantic(semantic) * F.softmax(block.semantic_share(semantic), dim=1))
        s = enlarge(block.middle(middle))
        assert_close(block(detail, middle, semantic), block.mix(torch.cat([d, u, s], 1)) + s * u + torch.sigmoid(s * d))


def test_decoder_starts_as_the_identity():
    block, x = net.Dec(8, 5).eval(), torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        assert (block(x) - x).abs().max() < 1e-5
        block.gamma.fill_(1.0)
        y = block.depthwise(x)
        y = torch.einsum("bchw,dc->bdhw", F.hardswish(torch.einsum("bchw,dc->bdhw", y, block.up.weight) + block.up.bias[:, None, None]), block.down.weight)
        assert_close(block(x), x + y + block.down.bias[:, None, None])


def test_dead_taps():
    """3x3 and 7x7 kernels on 1x1 maps: outputs do not depend on 64 * 64 * (8 + 48) weights of each of the two blocks."""
    torch.manual_seed(0)
    model = by_name(net.P2AT(resnet18(classes=0, width=8), 5, 16, dead_taps=True, heads=2, key=4, value=4))
    image = torch.randn(2, 3, 64, 96)
    before, count = model(image), count_parameters(model)
    net.cut_dead_taps(model)
    assert_close(model(image).detach(), before.detach())
    assert count - count_parameters(model) == 2 * 16 * 16 * (8 + 48)
    assert 2 * 64 * 64 * (8 + 48) == 458_752


@pytest.mark.parametrize("size,keys", [((33, 49), []), ((64, 96), ["attention=axial"]), ((45, 60), ["attention=full"]), ((45, 60), ["context=bins"]),
                                       ((33, 49), ["context=none", "fusion=sum", "gce=false"]), ((33, 49), ["boundary=true"])], ids=str)
def test_any_size_every_gradient(size, keys):
    """Sizes that 32 does not divide; in training mode three maps, and every parameter is used."""
    torch.manual_seed(0)
    model = p2at.build(parse("body_width=8", "channels=16", "heads=2", "key=4", "value=4", *keys), 5).train()
    outputs = model(torch.randn(2, 3, *size))
    assert [tuple(o.shape) for o in outputs] == [(2, 5, *size), (2, 5, *size), (2, 1 if "boundary=true" in keys else 5, *size)]
    sum(o.square().mean() for o in outputs).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None]
    assert dead == []
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_the_short_sighted_body_sees_19_pixels():
    """Impulse response of each map, so that whatever the claim's table C shows from further away came through context or decoder."""
    body = by_name(p2at.ShortSighted(4))
    image = torch.randn(1, 3, 64, 64).requires_grad_()
    for x, stride, sees in zip(body.features(image), body.strides, (11, 19, 19, 19)):
        assert x.shape[-2:] == (64 // stride, 64 // stride)
        grad = torch.autograd.grad(x[0, :, 32 // stride, 32 // stride].square().sum(), image, retain_graph=True)[0].abs().sum((0, 1))
        rows = grad.sum(1).nonzero().flatten()
        assert rows.max() - rows.min() + 1 == sees
    with pytest.raises(ValueError, match="short_sighted"):
        p2at.build(parse("short_sighted=true", "net=pspnet"), 5)


def test_the_rivals_are_the_networks_of_the_table():
    """net= and variant= build what seglite.networks times, and at toy width the same network narrow."""
    for name, keys in (("PSPNet-50", ["net=pspnet"]), ("DeepLabV3-50", ["net=deeplabv3", "rates=12,24,36"])):
        with torch.device("meta"):
            ours, listed = p2at.build(parse("variant=L", "body_width=64", *keys), 11), NETWORKS[name](11)
        assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == {k: tuple(v.shape) for k, v in listed.state_dict().items()}
    narrow = p2at.build(parse("net=deeplabv3", "variant=L", "body_width=8"), 5)
    assert [conv[0].dilation[0] for conv in narrow.classifier[0].convs[1:4]] == [2, 4, 6] and narrow.classifier[0].convs[0][0].out_channels == 32


def test_bfloat16_autocast():
    torch.manual_seed(0)
    model = by_name(p2at.build(parse("body_width=8", "channels=16", "heads=2", "key=4", "value=4"), 5))
    image = torch.randn(2, 3, 64, 64)
    for kind in net.ATTENTIONS:
        for layer in model.context:
            layer.attention.attention = kind
        with torch.no_grad():
            whole = model(image)
            with torch.autocast("cpu", torch.bfloat16):
                half = model(image)
        assert_close(half.float(), whole, dtype=torch.bfloat16, factor=2)  # thirty layers deep, not one


def test_bfloat16_gradients_of_the_squeezed_block():
    """Its batch norm over row averages is sensitive: with tokens in bfloat16 the gradient of v's convolution turned by 13 degrees, with float32 by 4."""
    torch.manual_seed(0)
    block = net.P2A2(16, 2, 4, 6).train()
    x, upstream = torch.randn(2, 4, 16, 16, 20)
    found = []
    for half in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = block(x)
        (y.float() * upstream).sum().backward()
        found.append({name: p.grad.float().flatten() for name, p in block.named_parameters()})
    for name in ("v.weight", "q.weight", "row.0.weight", "row_query"):
        assert F.cosine_similarity(found[0][name], found[1][name], 0) > 0.99, name
    whole = block.to(torch.bfloat16).eval()  # a network served in bfloat16 throughout
    assert whole(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_training_needs_two_images_and_says_so():
    for block, word in ((net.GCE(4), "global context"), (BinPooling(8, 8), "one bin")):
        with pytest.raises(ValueError, match=word):
            block.train()(torch.randn(1, 4 if word == "global context" else 8, 5, 5))
    with pytest.raises(ValueError, match="squeeze, axial, full"):
        net.P2A2(8, attention="sideways")


# ---- folding ----------------------------------------------------------------------------------------------------------------------------


def test_folding_keeps_the_answer_and_drops_the_norms():
    torch.manual_seed(0)
    model = by_name(net.P2AT(resnet18(classes=0, width=8), 5, 16, heads=2, key=4, value=4))
    image = torch.randn(1, 3, 64, 64)
    folded = fold_batch_norm(model, image)
    assert_close(folded(image).detach(), model(image).detach(), factor=5)  # other order of products, 40 layers
    norms = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["head.0", "aux1.0", "aux2.0"]  # the first norm of a head stands before a ReLU, not after a convolution
    rival = by_name(PSPNet(resnet18(classes=0, width=8, output_stride=8), 5, 16))
    assert_close(fold_batch_norm(rival, image)(image).detach(), rival(image).detach(), factor=5)
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norm(model.train(), image)


def test_folding_refuses_what_is_registered_in_a_misleading_order():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.uniform_(self.norm.running_var, 2, 3)

        def forward(self, x):
            return self.conv(self.norm(x).relu())

    with pytest.raises(ValueError, match="folding changed the answer"):
        fold_batch_norm(Odd().eval(), torch.randn(1, 3, 5, 5))


# ---- losses -----------------------------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    g = torch.Generator().manual_seed(0)
    final, one, two = (torch.randn(2, 4, 6, 5, generator=g) * 3 for _ in range(3))
    mask = torch.randint(0, 4, (2, 6, 5), generator=g)
    mask[0, :2] = 255
    config = parse("ohem_share=0.1167", "ohem_threshold=0.2", "aux_weight=0.4")
    found = p2at.step_losses((final, one, two), mask, config)
    assert round(0.1167 * mask.numel()) == 7
    p = final.softmax(1).movedim(1, -1)[mask != 255].gather(1, mask[mask != 255][:, None])[:, 0].sort().values
    hard = p[p <= max(0.2, p[6])]
    assert abs(float(found["final"]) + float(hard.log().mean())) < 1e-5 and 7 <= len(hard) < len(p)
    assert abs(float(found["aux1"]) - 0.4 * float(F.cross_entropy(one, mask, ignore_index=255))) < 1e-6
    assert abs(float(found["aux2"]) - 0.4 * float(F.cross_entropy(two, mask, ignore_index=255))) < 1e-6
    assert list(p2at.step_losses(final, mask, config)) == ["final"]


def test_boundary_terms_by_hand():
    mask = torch.zeros(1, 8, 10, dtype=torch.long)
    mask[:, :, 5:] = 1
    mask[:, 7] = 255
    target = p2at.boundary_target(mask, thickness=1)
    assert torch.equal(target[0, :7], F.one_hot(torch.tensor([4, 5]), 10).sum(0).float().expand(7, 10)) and target[0, 7].sum() == 0
    assert p2at.boundary_target(mask).sum(2)[0, 3] == 2 + 3  # dilated by 4x4
    assert p2at.boundary_target(torch.full((1, 4, 4), 255)).sum() == 0
    logits = torch.randn(1, 1, 8, 10, generator=torch.Generator().manual_seed(0))
    x, y = logits[0, 0, :7].flatten(), p2at.boundary_target(mask)[0, :7].flatten()
    share = float(y.mean())
    bce = -(torch.where(y > 0, (1 - share) * x.sigmoid().log(), share * (-x).sigmoid().log())).mean()
    dice = 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
    assert abs(float(p2at.boundary_loss(logits, mask)) - float(20 * bce + dice)) < 1e-4
    final = torch.randn(1, 2, 8, 10)
    found = p2at.step_losses((final, final, logits), mask, parse("boundary=true", "ohem_share=1"))
    near = torch.where(logits[:, 0].sigmoid() > 0.8, mask, 255)
    assert abs(float(found["near_edge"]) - 0.4 * float(cross_entropy(final, near))) < 1e-5 and set(found) == {"final", "aux1", "edge", "near_edge"}
    assert float(p2at.boundary_loss(logits, torch.full((1, 8, 10), 255))) == 0


# ---- augmentation, prediction, selection ------------------------------------------------------------------------------------------------


def test_scales_crop_and_flip():
    """Seventeen scales 0.5 ... 2.1 of the longer side; what lies beyond the image is black and unlabelled; image and mask move together."""
    config = parse("base=40", "window=24,32", "augment.scale_min=0.5", "augment.scale_max=2.1")
    image = np.full((36, 48, 3), 200, np.uint8)
    mask = np.tile(np.arange(48, dtype=np.uint8)[None], (36, 1))
    seen, flips = set(), 0
    for i in range(300):
        out = p2at.ScaleCropFlip(config)({"image": image, "mask": mask}, np.random.default_rng(i))
        assert out["image"].shape == (24, 32, 3) and out["mask"].shape == (24, 32)
        assert np.array_equal(out["mask"] == 255, out["image"][..., 0] == 0)
        inside = (out["mask"] != 255).any(0).sum()
        seen.add(inside)
        row = out["mask"][0][out["mask"][0] != 255].astype(int)
        flips += row[-1] < row[0]
    assert {20, 24, 28, 32} == seen  # longer sides 20, 24, 28 fit into 32 columns; all the others fill them
    assert 100 < flips < 200
    with pytest.raises(ValueError, match="height,width"):
        p2at.ScaleCropFlip(parse("window=720"))


def test_prediction_sees_the_image_at_base_size():
    sizes = []

    class Net(nn.Module):
        def forward(self, x):
            sizes.append(tuple(x.shape[-2:]))
            return x[:, :2]

    image = torch.rand(1, 3, 36, 48)
    assert p2at.predictor(Net(), parse("base=96"))(image).shape == (1, 2, 36, 48)
    assert torch.equal(p2at.predictor(Net(), parse())(image), image[:, :2])
    p2at.predictor(Net(), parse("base=24"))(image)
    assert sizes == [(72, 96), (36, 48), (18, 24)]


@pytest.mark.parametrize("keys", [["select_on=val"], ["select_on=test", "data=camvid", "train.eval_every=1"], ["select_on=val", "data=camvid"],
                                  ["select_on=val", "data=camvid", "camvid.train=train+val", "train.eval_every=1"]], ids=str)
def test_weights_are_never_selected_on_what_is_reported(keys):
    with pytest.raises(ValueError, match="third split"):
        p2at.chooser(None, parse(*keys))


def test_a_whole_run_and_its_second_start(tmp_path, capsys):
    command = ["method=p2at", f"out={tmp_path / 'run'}", "threads=1", "body_width=8", "channels=16", "heads=2", "key=4", "value=4", "scenes.size=32",
               "scenes.width=48", "scenes.train_images=8", "scenes.val_images=2", "train.steps=3", "train.batch=2"]
    assert main(command) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["costs"]["parameters"] > 100_000 and 0 <= result["miou"] <= 1
    assert main(command) == 0 and "finished earlier" in capsys.readouterr().out


def test_overfitting_four_pictures(tmp_path):
    """The whole network, losses and loop: four street scenes are learnt by heart."""
    config = parse(f"out={tmp_path}", "threads=1", "body_width=8", "channels=16", "heads=2", "key=4", "value=4", "scenes.size=48", "scenes.width=64",
                   "scenes.train_images=4", "train.steps=60", "train.batch=4", "augment.flip=0", "train.lr=0.01")
    run = Run(config, quiet=True)
    try:
        data = run.data("train")
        model = p2at.fit(run, "segmenter", config, data)
        samples = [data.read(i) for i in range(4)]
        image = torch.from_numpy(np.stack([s["image"] for s in samples])).movedim(-1, 1) / 255
        with torch.no_grad():
            logits = model((image - 0.45) / 0.25)
        right = (logits.argmax(1).numpy() == np.stack([s["mask"] for s in samples])).mean()
    finally:
        run.close()
    assert right > 0.85, right


@pytest.mark.realdata
def test_imagenet_body_and_camvid_frames(data_root, tmp_path):
    """size=small on real frames: body weights up to layer3, half-size crops, two steps, a report on test images."""
    from seglite.data import Batches

    config = parse("data=camvid", f"root={data_root / 'camvid'}", f"weights={data_root / 'weights/resnet18_imagenet_stem_to_layer3.pth'}", "train.batch=2",
                   f"out={tmp_path}", "threads=1", "train.steps=2")
    run = Run(config, quiet=True)
    try:
        data = run.data("train")
        batch = Batches(data, 2, 0, p2at.ScaleCropFlip(config), ("image", "mask"))[0]
        assert batch["image"].shape == (2, 3, 144, 192) and len(data) == 367 and len(run.truth("val")) == 233
        model = p2at.fit(run, "segmenter", config, data)
        frame = torch.zeros(1, 3, 360, 480)
        assert p2at.predictor(model, config)(frame).shape == (1, 11, 360, 480)
    finally:
        run.close()


@pytest.mark.slow
def test_every_row_of_the_claim_exists(tmp_path):
    """Two steps per row: five tables with the metrics that the statements read, and costs that order as arithmetic does."""
    config = parse(f"out={tmp_path}", "threads=1", "train.steps=2", "train.batch=2", "probe_steps=2", "street_steps=2", "ablations=true", "scenes.train_images=24", "scenes.val_images=2")
    run = Run(config, quiet=True)
    try:
        tables = p2at.claim(run)
    finally:
        run.close()
    assert list(tables) == [p2at.AXIAL, p2at.NEARER, p2at.WHOLE_AXIAL, p2at.STREET, p2at.FULL_WIDTH]
    assert list(tables[p2at.STREET]) == [*p2at.ROAD, *p2at.PARTS] and list(tables[p2at.WHOLE_AXIAL]) == list(p2at.CONTEXTS)
    assert {type(holds(tables)) for holds in p2at.CLAIM["statements"].values()} == {bool}
    street, wide = tables[p2at.STREET], tables[p2at.FULL_WIDTH]
    assert street["P2AT-S"]["MMAC"] < street["P2AT, full attention"]["MMAC"] < street["PSPNet-18, stride 8"]["MMAC"] < street["PSPNet-50, stride 8"]["MMAC"]
    assert street["feature pyramid, no context"]["params k"] < street["P2AT, no context"]["params k"] < street["P2AT-S"]["params k"]
    assert abs(wide["P2AT-S"]["params M"] - 12.28) < 0.01 and wide["P2AT-S"]["GMAC"] < 3 < 25 < wide["DeepLabV3-50, stride 8"]["GMAC"] < wide["PSPNet-50, stride 8"]["GMAC"]
