"""BAS: who receives which gradient, each loss against its plain form, the traps of the paper and its code, and a miniature that fails without the ratio."""
import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lessons import chain
from seglite import cam, config, suppression, train
from seglite.data import IGNORE
from seglite.nets.layers import count_parameters
from seglite.papers import bas, marsstyle
from seglite.reopen import open_run
from seglite.run import Run, build_optimizer, learning_rate
from seglite.suppression import Branches, SuppressionSettings
from tests.tolerances import assert_close


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(task="wsol", tags=4, seed=0, **switches):
    torch.manual_seed(seed)
    settings = dataclasses.replace(SuppressionSettings() if task == "wsol" else suppression.segmentation_settings(), **switches)
    return suppression.build("small", task, tags, settings)


LABEL = torch.tensor([1, 3])


def positive(model):
    """Make every class's score positive, so that no ReLU and no clause hides a gradient."""
    last = model.f2.head[-1]
    if last.bias is not None:
        nn.init.constant_(last.bias, 1.0)
    else:
        last.weight.data.abs_()  # what it sees has passed a ReLU
    return model


def gradients(model, loss):
    """Sum of absolute gradients in f1, generator and f2."""
    model.zero_grad()
    loss.backward()
    return [sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) for part in (model.f1, model.generator, model.f2)]


# ---- the background branch -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_constant_copy_is_a_deep_copy_whose_gradients_nobody_reads(training):
    model = network().train(training)
    x = rand(2, 32, 16, 16).abs().requires_grad_()
    twin, y = copy.deepcopy(model.f2), x.detach().clone().requires_grad_()
    before = {k: v.clone() for k, v in model.f2.state_dict().items()}
    ours, theirs = suppression.on_a_copy(model.f2, x), twin(y)
    assert_close(ours, theirs)
    ours.square().sum().backward(), theirs.square().sum().backward()
    assert_close(x.grad, y.grad)
    assert all(p.grad is None for p in model.f2.parameters()) and any(p.grad is not None for p in twin.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.f2.state_dict().items()), "erased features entered the running statistics"
    if training:
        assert not torch.equal(twin.body[1][1].running_mean, before["body.1.1.running_mean"])  # the statistics would have moved


def test_a_training_step_updates_norm_statistics_by_the_intact_features_alone():
    model, plain = network().train(), network().train()
    image = rand(4, 3, 64, 64)
    model(image, torch.tensor([0, 1, 2, 3]))
    plain(image)
    for (name, ours), theirs in zip(model.named_buffers(), plain.buffers()):
        assert torch.equal(ours, theirs), name


def test_who_receives_which_gradient():
    """The table of the paper's figure and code: the suppression loss never trains f2, and f1 only through the generator's convolution."""
    image = rand(2, 3, 64, 64)
    for task, guide_f2 in (("wsol", True), ("wsss", False)):
        model = positive(network(task)).train()
        found = lambda: model(image, LABEL)
        f1, generator, f2 = gradients(model, F.cross_entropy(found().scores, LABEL))
        assert f1 > 0 and generator == 0 and f2 > 0
        branches = found()
        f1, generator, f2 = gradients(model, suppression.suppression(branches.rest, branches.whole, "keep").mean())
        assert f1 > 0 and generator > 0 and f2 == 0
        f1, generator, f2 = gradients(model, F.cross_entropy(found().guided, LABEL))
        assert f1 > 0 and generator > 0 and (f2 > 0) == guide_f2
        f1, generator, f2 = gradients(model, found().mask.mean())
        assert f1 > 0 and generator > 0 and f2 == 0


def test_f_is_detached_where_it_is_erased():
    """With the generator's own way to F cut, the suppression loss must not reach f1; without the detachment it does."""
    for detach in (True, False):
        model = positive(network(detach_features=detach)).train()
        model.masks = lambda features, own=model: own.generator(features.detach()).sigmoid()
        branches = model(rand(2, 3, 64, 64), LABEL)
        assert branches.rest.min() > 0
        f1, _, f2 = gradients(model, suppression.suppression(branches.rest, branches.whole, "keep").sum())
        assert (f1 == 0) == detach and f2 == 0


def test_the_denominator_is_detached():
    for detach in (True, False):
        model = positive(network(detach_whole=detach)).train()
        branches = model(rand(2, 3, 64, 64), LABEL)
        assert branches.whole.min() > 0 and branches.whole.requires_grad != detach
        f2 = gradients(model, suppression.suppression(branches.rest, branches.whole, "keep").sum())[2]
        assert (f2 == 0) == detach  # otherwise the ratio falls by inflating S


def test_sharing_f2_is_the_trap_that_the_copy_avoids():
    model = positive(network(branch="shared")).train()
    branches = model(rand(2, 3, 64, 64), LABEL)
    assert gradients(model, suppression.suppression(branches.rest, branches.whole, "keep").sum())[2] > 0


@pytest.mark.parametrize("task", ["wsol", "wsss"])
def test_an_empty_mask_leaves_everything_and_a_full_one_nothing(task):
    model, image = positive(network(task)).eval(), rand(2, 3, 64, 64)
    model.masks = lambda features: torch.zeros(len(features), 4, *features.shape[-2:])
    found = model(image, LABEL)
    assert_close(found.rest, found.whole)
    counted = found.whole > 0
    assert_close(suppression.suppression(found.rest, found.whole, "keep")[counted], torch.ones(int(counted.sum())))
    assert_close(found.guided, torch.zeros(2, 4))
    model.masks = lambda features: torch.ones(len(features), 4, *features.shape[-2:])
    found = model(image, LABEL)
    nothing = model.f2(torch.zeros_like(model.features(image)))
    assert_close(found.rest, suppression.activation(nothing, LABEL))
    assert_close(found.guided, found.scores)


# ---- the losses ---------------------------------------------------------------------------------------------------------------------------------


def test_ratio_above_one_is_a_constant_without_gradient():
    rest, whole = torch.tensor([0.5, 3.0, 2.0, 1.0], requires_grad=True), torch.tensor([1.0, 1.5, 0.0, 1.0])
    for above, expected in (("one", [0.5, 1, 1, 1]), ("zero", [0.5, 0, 0, 1])):
        ratio = suppression.suppression(rest, whole, above)
        assert_close(ratio, torch.tensor(expected))
        rest.grad = None
        ratio.sum().backward()
        assert_close(rest.grad, torch.tensor([1.0, 0, 0, 1]))
    assert suppression.suppression(rest, whole, "keep")[2] > 1e8  # what the clause is for: S is zero in the first steps


def test_activation_is_never_negative_and_pools_before_it_rectifies():
    evidence = torch.tensor([[[[3.0, -1.0]], [[-3.0, 1.0]]]])
    assert suppression.activation(evidence, torch.tensor([0])).item() == 1 and suppression.activation(evidence, torch.tensor([1])).item() == 0
    model = suppression.build("small", "wsol", 4, SuppressionSettings(), terminal_relu=True)
    assert model.evidence(rand(2, 3, 32, 32)).min() >= 0  # the conference's head rectifies first


def test_equation_9_is_the_printed_sum():
    scores, tags = rand(3, 4).double(), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]])
    total = 0.0
    for z, t in zip(scores, tags):
        for k in range(4):
            if t[k]:
                absent = sum(float(z[n].exp()) for n in range(4) if not t[n])
                total -= float(torch.log(z[k].exp() / (z[k].exp() + absent)))
    assert_close(suppression.positives_against_negatives(scores, tags).float(), torch.tensor(total / 3))
    every = scores.float().requires_grad_()
    suppression.positives_against_negatives(every, torch.ones(3, 4)).backward()
    assert torch.isfinite(every.grad).all()  # nothing is absent: nothing to compete with
    pair = torch.zeros(1, 4, requires_grad=True)
    suppression.positives_against_negatives(pair, tags[:1].float()).backward()
    assert pair.grad[0, 0] == pair.grad[0, 1] < 0  # positives do not push one another down


def test_one_class_alone_makes_equation_9_the_ordinary_cross_entropy():
    scores, label = rand(5, 6), torch.tensor([0, 1, 2, 3, 5])
    assert_close(suppression.positives_against_negatives(scores, F.one_hot(label, 6).float()), F.cross_entropy(scores, label))


def test_losses_are_weighted_averaged_and_silent_during_the_warm_up():
    found = Branches(torch.zeros(2, 3), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 4.0]), rand(2, 3), torch.full((2, 1, 2, 2), 0.25))
    label, settings = torch.tensor([0, 2]), SuppressionSettings(weight=1.0, alpha=0.5, beta=2.0, warmup=3)
    got = suppression.losses_of(found, label, settings, 3)
    assert_close(got["bas"], torch.tensor((0.5 + 1.0) / 2)), assert_close(got["area"], torch.tensor(0.5))
    assert_close(got["frg"], 0.5 * F.cross_entropy(found.guided, label))
    assert got["clause"] == 0.5 and got["mask"] == 0.25
    assert all(float(got[k]) == 0 for got in [suppression.losses_of(found, label, settings, 2)] for k in ("frg", "bas", "area"))
    first = suppression.losses_of(found, label, settings, 3, torch.tensor([1.0, 0.0]))
    assert_close(first["bas"], torch.tensor(0.5))
    none = suppression.losses_of(found, label, settings, 3, torch.zeros(2))
    assert float(none["bas"]) == 0


def test_the_classification_loss_can_be_taken_away():
    batch = {"image": rand(2, 3, 32, 32), "tags": torch.eye(4)[[1, 3]]}
    model, on, off = network().eval(), SuppressionSettings(), SuppressionSettings(classify=0.0)
    with_it, without = suppression.wsol_step(model, batch, 0, on), suppression.wsol_step(model, batch, 0, off)
    assert float(with_it["cls"].detach()) > 0.5 and float(without["cls"].detach()) == 0
    assert_close(with_it["frg"], without["frg"]), assert_close(with_it["area"], without["area"])


def test_localisation_wants_one_class_and_segmentation_draws_one_of_them():
    assert suppression.one_class(torch.eye(4)[[2, 0]]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="task=wsss"):
        suppression.one_class(torch.tensor([[1.0, 1.0, 0.0]]))
    drawn, tags = [], torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])

    class Recorder(nn.Module):
        def forward(self, image, label):
            drawn.append(label.tolist())
            return Branches(torch.zeros(2, 4, requires_grad=True), torch.ones(2), torch.ones(2), torch.zeros(2, 4), torch.zeros(2, 1, 2, 2))

    torch.manual_seed(0)
    for t in range(300):
        losses = suppression.wsss_step(Recorder(), {"image": torch.zeros(2, 3, 4, 4), "tags": tags}, t, suppression.segmentation_settings())
    counts = np.bincount([d[0] for d in drawn], minlength=4)
    assert counts[1] == 0 and (counts[[0, 2, 3]] > 75).all()  # uniform over the three that are there
    assert float(losses["bas"]) == 0.5 * 2  # the image without any class does not take part


# ---- where the backbones are cut ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net, channels, width, parameters", [
    ("vgg16", 512, 512, None), ("mobilenet_v1", 512, 1024, None), ("resnet50", 1024, 2048, None), ("mobilenet_v2", 96, 320, None)])
def test_backbones_are_cut_where_the_paper_says(net, channels, width, parameters):
    with torch.device("meta"):
        model = suppression.build(net, "wsol", 200, SuppressionSettings()).eval()
        image = torch.empty(1, 3, 224, 224)
        assert model.features(image).shape == (1, channels, 28, 28)
        assert model.evidence(image).shape == (1, 200, 14, 14) and model.class_maps(image).shape == (1, 200, 28, 28)
        convolutions = [m for m in model.f2.head if isinstance(m, nn.Conv2d)]
        assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions] == [(width, 1024, 3), (1024, 1024, 3), (1024, 200, 1)]
        assert model.generator.bias is not None and count_parameters(model.generator) == channels * 200 * 9 + 200
        model = suppression.build(net, "wsss", 20, suppression.segmentation_settings()).eval()
        image = torch.empty(1, 3, 448, 448)
        side = 56 if net == "vgg16" else 28
        assert model.features(image).shape[2:] == model.evidence(image).shape[2:] == (side, side)
        width = 1280 if net == "mobilenet_v2" else width  # a bare 1x1 stands on features.18, not on the linear layer before it
        assert model.generator.bias is None and [p.shape for p in model.f2.head.parameters()] == [(20, width, 1, 1)]


def test_parameters_of_the_split_networks_are_the_backbone_s_and_the_new_layers():
    from seglite.nets.resnet import resnet50
    from seglite.nets.vgg import vgg16

    new = lambda c, width, tags: (width * 1024 * 9 + 1024) + (1024 * 1024 * 9 + 1024) + (1024 * tags + tags) + (c * tags * 9 + tags)
    with torch.device("meta"):
        assert count_parameters(suppression.build("resnet50", "wsol", 200, SuppressionSettings())) == count_parameters(resnet50(classes=0)) + new(1024, 2048, 200)
        assert count_parameters(suppression.build("vgg16", "wsol", 200, SuppressionSettings())) == count_parameters(vgg16(classes=0)) + new(512, 512, 200)
        assert count_parameters(suppression.build("resnet50", "wsss", 20, SuppressionSettings())) == count_parameters(resnet50(classes=0)) + 2048 * 20 + 1024 * 20 * 9


def test_a_backbone_s_weights_arrive_in_both_halves(tmp_path):
    from seglite.nets.mobilenet import mobilenet_v1

    torch.manual_seed(1)
    published = mobilenet_v1(classes=1000).state_dict()
    torch.save(published, tmp_path / "mobilenet.pth")
    model = suppression.build("mobilenet_v1", "wsol", 3, SuppressionSettings(), weights=str(tmp_path / "mobilenet.pth"), say=lambda s: None)
    assert torch.equal(model.f1[11][3].weight, published["model.11.3.weight"]) and torch.equal(model.f2.body[0][0].weight, published["model.12.0.weight"])
    assert model.f1[6][0].stride == (1, 1) and model.f2.body[0][0].stride == (2, 2)
    with pytest.raises(ValueError, match="not built for BAS"):
        suppression.build("inception_v3", "wsol", 3, SuppressionSettings())


def test_parameter_groups_cover_everything_once_at_the_paper_s_rates():
    model = network()
    groups = suppression.parameter_groups(model, new=10, bias=2, nesterov=True)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    rate = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    found = [rate[id(p)] for p in (model.f1[0][0].weight, model.f1[0][1].bias, model.f2.head[0].weight, model.generator.bias)]
    assert found == [1, 2, 10, 20] and all(g["nesterov"] for g in groups)
    frozen = suppression.parameter_groups(model, new=10, bias=0)  # segmentation: the code's optimizer never sees a bias
    assert {g["lr_scale"] for g in frozen} == {1, 0, 10} and "nesterov" not in frozen[0]


def test_every_size_and_every_published_row_can_be_typed():
    for size in ("toy", "small", "paper"):
        settings, _ = config.parse([f"size={size}", "method=bas", "data=voc", "root=x"], {"bas": bas})
        assert (settings.seeds.weight, settings.seeds.alpha, settings.seeds.beta, settings.seeds.guide) == (1.0, 0.2, 1.2, "mask")
    assert settings.classifier.momentum == 1e-4 and settings.seed_background == 0.3 and settings.sure_background == 0.17
    epochs = {"cub": (120, 5994, [80]), "ilsvrc": (9, 1_280_000, [3, 6]), "openimages": (50, 29_819, [20, 40])}  # and the epochs of the drops
    for (data, net), keys in bas.PUBLISHED.items():
        typed = {"method": "bas", "size": "paper", "task": "wsol", "net": net, **bas.WSOL, **keys}
        settings, _ = config.parse([f"{k}={v}" for k, v in typed.items()], {"bas": bas})
        assert settings.bas.weight == 1 and settings.bas.above_one == ("zero" if net == "vgg16" else "one")
        recipe, (count, images, drops) = settings.train, epochs[data]
        assert recipe.batch == {"cub": 32, "ilsvrc": 256 if net == "vgg16" else 128, "openimages": 64}[data]
        assert abs(recipe.steps * recipe.batch / images - count) < 0.01
        rates = [learning_rate(recipe, round((e + 0.5) * recipe.steps / count)) for e in range(count)]  # in the middle of every epoch
        assert_close(torch.tensor(rates), torch.tensor([1e-3 * 0.1 ** sum(e >= drop for drop in drops) for e in range(count)]))
    values = lambda data, net: [bas.PUBLISHED[data, net][key] for key in ("bas.alpha", "bas.beta", "top_k", "box_threshold")]
    assert values("cub", "resnet50") == [0.5, 1.5, 200, 0.1] and values("ilsvrc", "vgg16") == [0.05, 1.0, 1, 0.45]
    assert values("openimages", "resnet50") == [0.5, 1.5, 1, 0.0]  # boxes of OpenImages have no published threshold


# ---- maps, boxes, classes -----------------------------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network whose masks and evidence are given: masks [K-1, h, w], evidence [K-1, a, b]."""

    def __init__(self, masks, evidence):
        super().__init__()
        self.given, self.shown = masks, evidence

    def features(self, image): return image
    def masks(self, features): return self.given[None].expand(len(features), -1, -1, -1)
    def f2(self, features): return self.shown[None].expand(len(features), -1, -1, -1)
    def forward(self, image): return self.f2(image).mean((2, 3))


def test_maps_take_the_given_class_or_the_mean_of_the_likeliest():
    masks = torch.zeros(3, 2, 2)
    masks[0, 0, 0], masks[1, 0, 1], masks[2, 1, 1] = 0.5, 0.9, 0.3
    model = Fixed(masks, torch.tensor([1.0, 3.0, 2.0])[:, None, None].expand(3, 2, 2))
    image = torch.zeros(1, 3, 2, 2)
    peak = lambda **how: bas.localisation_maps(model, image, torch.tensor([0]), **how)[0]
    assert peak().tolist() == [[1, 0], [0, 0]]  # the class that is given, stretched to 0..1
    assert bas.localisation_maps(model, image, None)[0].tolist() == [[0, 1], [0, 0]]  # the likeliest
    assert_close(peak(top_k=2), torch.tensor([[0.0, 1.0], [0.0, 0.3 / 0.9]]))  # classes 1 and 2, whatever the label
    assert_close(peak(top_k=200), torch.tensor([[0.5 / 0.9, 1.0], [0.0, 0.3 / 0.9]]))


def test_maps_are_stretched_before_they_are_enlarged():
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 0] = 0.4
    masks[0] += 0.2
    found = bas.localisation_maps(Fixed(masks, torch.ones(1, 2, 2)), torch.zeros(1, 3, 8, 8), torch.tensor([0]))[0]
    assert found.min() == 0 and found.max() == 1 and found[2, 2] < 0.8
    constant = bas.localisation_maps(Fixed(torch.full((1, 2, 2), 0.7), torch.ones(1, 2, 2)), torch.zeros(1, 3, 8, 8), torch.tensor([0]))
    assert torch.isfinite(constant).all()


def test_ten_crops_are_corners_centre_and_their_mirror_images():
    image = torch.arange(36.0).view(1, 1, 6, 6)
    crops = bas.ten_crops(image, 4)
    assert len(crops) == 10 and all(c.shape == (1, 1, 4, 4) for c in crops)
    assert [float(c[0, 0, 0, 0]) for c in crops[:5]] == [0, 2, 12, 14, 7]
    assert all(torch.equal(crops[i + 5], crops[i].flip(-1)) for i in range(5))


def test_classes_are_averaged_as_probabilities_over_the_crops():
    class Corner(nn.Module):
        def forward(self, x): return torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], 1)

    image = torch.zeros(1, 3, 6, 6)
    image[..., 0, 0] = 9.0
    settings = bas.Settings(test_crop=4, ten_crop=True)
    certain = torch.tensor([9.0, -9.0]).softmax(0)[0]
    assert_close(bas.classify(Corner(), image, settings)[0, 0], 0.1 * certain + 0.9 * 0.5)
    assert_close(bas.classify(Corner(), image, bas.Settings(test_crop=4))[0, 0], torch.tensor(0.5))


def test_masks_grow_and_shrink_by_squares():
    mask = torch.zeros(1, 9, 9)
    mask[0, 3:6, 3:6] = 1
    assert [int(suppression.grown(mask, r).sum()) for r in (-2, -1, 0, 1, 2, 9)] == [0, 1, 9, 25, 49, 81]
    edge = torch.zeros(1, 5, 5)
    edge[0, :, :2] = 1
    assert int(suppression.grown(edge, -1).sum()) == 0  # what lies outside the image is not object


def test_heights_are_means_on_the_object_beside_it_and_far_away():
    masks = torch.zeros(2, 16, 16)
    masks[1, :, :4], masks[1, :, 4:8], masks[1, :, 8:] = 0.9, 0.4, 0.1
    masks[0] = 0.7  # of another class
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[:, :, :4] = True
    found = suppression.heights(Fixed(masks, torch.zeros(2, 1, 1)), torch.zeros(1, 3, 16, 16), truth, torch.tensor([1]))
    assert_close(torch.tensor(list(found.values())), torch.tensor([0.9, 0.4, 0.1, (0.9 + 0.4 + 2 * 0.1) / 4]))


# ---- seeds and labels ----------------------------------------------------------------------------------------------------------------------------------


def test_sure_labels_leave_open_what_the_generous_seed_adds(monkeypatch):
    monkeypatch.setattr(bas, "refined", lambda labels, image, tags, data: labels)
    maps = torch.tensor([[[[0.9, 0.25, 0.1]], [[0.1, 0.1, 0.2]]]])
    image, tags = torch.zeros(1, 3, 1, 3), torch.ones(1, 2)
    labels = lambda **keys: bas.to_labels(maps, image, tags, bas.Settings(**keys), None).flatten().tolist()
    assert labels(refine="none") == [1, 0, 0] and labels(refine="crf") == [1, 0, 0]
    assert labels(refine="sure") == [1, IGNORE, IGNORE]
    maps[..., 2] = 0.1
    assert labels(refine="sure") == [1, IGNORE, 0]


def test_refinement_keeps_to_the_image_s_classes_and_follows_an_edge():
    class Data:
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    image = torch.full((2, 3, 16, 16), -1.5)
    image[:, :, :, 8:] = 1.5
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[0, :, 9:] = 3  # one column short of the edge
    found = bas.refined(labels, image, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), Data())
    assert (found[0, :, 8:] == 3).all() and (found[0, :, :8] == 0).all() and (found[1] == 0).all()


def test_cam_and_bas_are_added_and_divided_again():
    one, other = torch.tensor([[[[1.0, 0.2]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert_close(cam.normalise(one + other, torch.ones(1, 1)), torch.tensor([[[[1 / 1.2, 1.0]]]]))


class Tagged:
    """Three images of three tags, the last without any."""

    mean, std = (0.5,) * 3, (0.25,) * 3
    classes = ("background", "a", "b", "c")

    def __len__(self): return 3
    def name(self, i): return str(i)

    def read(self, i, wants):
        mask = np.full((16, 16), IGNORE, np.uint8)
        mask[:, :12] = (2, 3, 0)[i]
        mask[:, :4] = 0
        tags = np.array(((0, 1, 0), (1, 0, 1), (0, 0, 0))[i], np.float32)
        return {"image": np.full((16, 16, 3), 40 * i, np.uint8), "mask": mask, "tags": tags}


class FakeRun:
    device = "cpu"

    def __init__(self):
        self.made = {}

    def data(self, split, wants=None): return Tagged()
    truth = data

    def make(self, name, build):
        if name not in self.made:
            self.made[name] = build()
        return self.made[name]


def test_maps_are_made_once_and_kept_for_the_images_own_classes(monkeypatch):
    calls = []

    class Shown(nn.Module):
        def maps(self, image):
            calls.append(len(image))
            return rand(1, 3, 4, 4, seed=5).abs().expand(len(image), -1, -1, -1) + 0.1

        evidence = class_maps = maps

    run, settings = FakeRun(), bas.Settings(map_flip=False)
    first, again = ([*bas.tag_maps(run, settings, Shown(), Shown())] for _ in range(2))
    assert calls == [3, 3]  # two networks, one pass
    (index, image, tags, found), = first
    expected = cam.normalise(Shown().maps(image), tags)
    assert index == [0, 1, 2] and set(found) == {"cam", "bas", "both"}
    for kind in found:
        assert_close(found[kind], expected), assert_close(again[0][3][kind], expected)
    assert [len(m) for m in run.made["maps"]["cam"]] == [1, 2, 0]


def test_the_sweep_is_the_seed_s_score_at_every_constant():
    class Shown(nn.Module):
        def evidence(self, image): return rand(1, 3, 4, 4, seed=5).abs().expand(len(image), -1, -1, -1)
        def class_maps(self, image): return rand(1, 3, 4, 4, seed=6).abs().expand(len(image), -1, -1, -1)

    from seglite.metrics import Confusion

    run, settings, model = FakeRun(), bas.Settings(), Shown()
    found = bas.sweep(run, settings, model, model, (0.2, 0.5, 0.8))
    maps = next(bas.tag_maps(run, settings, model, model))[3]
    masks = np.stack([Tagged().read(i, ())["mask"] for i in range(3)])
    for kind in ("cam", "bas", "both"):
        for b in (0.2, 0.5, 0.8):
            assert found[kind][str(b)] == Confusion(Tagged.classes).add(masks, cam.seeds(maps[kind], b, (16, 16)).numpy()).miou()
    assert len({v for by in found.values() for v in by.values()}) > 4  # the scores do differ


@pytest.mark.parametrize("threshold", [0.125, 1.0, -0.1])
def test_a_box_threshold_that_nobody_measures_is_refused_before_the_training(threshold, tmp_path, capsys):
    assert train.main(tiny("bas", out=tmp_path / "run", box_threshold=threshold)) == 2
    assert f"box_threshold={threshold}: boxes are measured at 0.01, 0.02, ... 0.99" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]  # no stage began


def test_images_with_two_classes_are_refused_for_localisation():
    class Data:
        mean, std = (0.5,) * 3, (0.25,) * 3
        def __len__(self): return 1
        def name(self, i): return "pair"
        def read(self, i, wants): return {"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 8), np.uint8), "tags": np.ones(2, np.float32)}

    with pytest.raises(ValueError, match="pair has 2 classes"):
        next(bas.scored_frames(Data()))


def test_scoring_frame_is_the_centre_of_the_square():
    class Data:
        mean, std = (0.5,) * 3, (0.25,) * 3
        def __len__(self): return 2
        def name(self, i): return str(i)
        def read(self, i, wants):
            mask = np.zeros((10 + i, 20), np.uint8)
            mask[:, :10] = 1
            return {"image": np.zeros((10 + i, 20, 3), np.uint8), "mask": mask, "tags": np.eye(2, dtype=np.float32)[0]}

    samples, whole, image = next(bas.scored_frames(Data(), square=16, test_crop=12))
    assert whole.shape == (2, 3, 16, 16) and image.shape == (2, 3, 12, 12)
    assert (samples[0]["mask"] == 1).sum() == 6 * 12
    with pytest.raises(ValueError, match="differ in size"):
        next(bas.scored_frames(Data()))


# ---- whole runs ----------------------------------------------------------------------------------------------------------------------------------------


def tiny(method, **keys):
    stages = ("train", "classifier", "segmenter") if method == "bas" else ("train", "classifier", "suppressor", "backbone", "head")
    common = {"method": method, "scenes.size": 32, "scenes.train_images": 16, "scenes.val_images": 6, "threads": 1}
    return [f"{k}={v}" for k, v in {**common, **{f"{stage}.steps": 2 for stage in stages}, **{f"{stage}.batch": 4 for stage in stages}, **keys}.items()]


@pytest.mark.parametrize("task, keys", [("wsol", {"top_k": 2, "square": 40, "test_crop": 32, "ten_crop": True}), ("wsss", {"scenes.two_share": 0.6, "refine": "none"})])
def test_a_run_ends_in_a_report_and_can_be_reopened(tmp_path, task, keys):
    assert train.main(tiny("bas", task=task, out=tmp_path / "run", **keys)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert ("the table is of images squared to 40 pixels and cut to their centre, 32; mIoU and pictures" in (tmp_path / "run" / "report.html").read_text()) == (task == "wsol")
    assert ("GT-known" in result) == (task == "wsol") and (tmp_path / "run" / "report.png").stat().st_size > 10_000
    predict, data, run = open_run(tmp_path / "run")
    run.close()
    assert predict(rand(1, 3, 32, 32)).shape[:2] == (1, len(data.classes))
    before = (tmp_path / "run" / "bas" / "final.pt").stat().st_mtime_ns
    assert train.main(tiny("bas", task=task, out=tmp_path / "run", **keys)) == 0  # finished stages are loaded
    assert (tmp_path / "run" / "bas" / "final.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("one_network", [False, True])
def test_seeds_alone_end_in_a_table_and_a_picture(tmp_path, one_network):
    typed = tiny("bas", task="wsss", out=tmp_path / "run", until="labels", one_network=str(one_network).lower(), **{"scenes.two_share": 0.6})
    assert train.main(typed) == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["seeds"]
    assert list(rows) == ["CAM", "BAS masks", "CAM + BAS", "CAM + BAS + CRF", "CAM + CRF", "BAS masks + CRF"]
    assert all(0 < row["mIoU"] < 1 and row["background"] in bas.BACKGROUNDS for row in rows.values())
    assert (tmp_path / "run" / "bas").exists() and (tmp_path / "run" / "cam").exists() != one_network
    assert (tmp_path / "run" / "labels.png").stat().st_size > 3000 and not (tmp_path / "run" / "segmenter").exists()


def test_the_chain_scores_labels_and_segmenters_on_top_of_both_sources(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert chain.main([*(a for a in tiny("marsstyle") if not a.startswith("method=")), "seeds=0"]) == 0
    summary = json.loads((next((tmp_path / "runs/claims").glob("chain*")) / "claim.json").read_text())
    assert summary["command"].startswith("python -m lessons.chain scenes.size=32 ") and "method=" not in summary["command"]
    for kind in ("cam", "bas"):
        assert list(summary["tables"][chain.SEGMENTERS.format(kind)]) == ["biased", "+ MARS"]
        assert len(summary["tables"][chain.LABELS.format(kind)]) == 2 + len(chain.CONSTANTS)
    assert summary["tables"][chain.LABELS.format("cam")] != summary["tables"][chain.LABELS.format("bas")]
    assert "MARS raises the segmenter trained on BAS's labels" in capsys.readouterr().out


def test_mars_takes_its_biased_labels_from_the_masks(tmp_path):
    settings, _ = config.parse(tiny("marsstyle", wsss="bas", out=tmp_path / "run"), {"marsstyle": marsstyle})
    run = Run(settings, supervision=("image", "tags"), quiet=True)
    try:
        network = marsstyle.fit_classifier(run)
        assert isinstance(network, suppression.Suppressor) and (network.settings.alpha, network.settings.beta, network.settings.guide) == (0.2, 1.2, "mask")
        labels = marsstyle.biased_labels(run, network)
        index, image, tags = next(cam.in_order(run.data("train")))
        with torch.no_grad():
            masks = (network.class_maps(image) + network.class_maps(image.flip(-1)).flip(-1)) / 2
        expected = cam.seeds(cam.normalise(masks, tags), settings.cam_background, image.shape[-2:])
        assert all(np.array_equal(labels[i], e) for i, e in zip(index, expected.numpy()))
    finally:
        run.close()


class Caught(Exception):
    """Carries what would have been trained out of a paper's file."""


@pytest.mark.parametrize("size", ["toy", "small", "paper"])
def test_mars_trains_bas_at_bas_s_own_rates_and_length(size, monkeypatch):
    """The parameter groups that reach the optimizer, from parsed settings; the toy's record has the recipe of MARS's classifier and Nesterov's momentum."""
    def caught(name, model, step, data, recipe, groups):
        raise Caught(recipe, [{k: v for k, v in g.items() if k != "params"} | {"weights": sum(p.numel() for p in g["params"]), "lr": recipe.lr * g["lr_scale"]}
                              for g in build_optimizer(model, recipe, groups).param_groups])

    def trained(paper, *typed):
        settings, _ = config.parse([f"size={size}", "data=voc", "root=x", *typed], {"bas": bas, "marsstyle": marsstyle})
        run = SimpleNamespace(config=settings, data=lambda *a: Tagged(), say=None, build=lambda name, make: make(), fit=caught)
        with pytest.raises(Caught) as found:
            paper.fit_classifiers(run, settings) if paper is bas else paper.fit_classifier(run)
        recipe, groups = found.value.args
        kept = ("lr", "momentum", "nesterov", "weight_decay", "weights")
        return {**dataclasses.asdict(recipe), "lr": 0, "optimizer": ""}, [[round(float(g[k]), 9) for k in kept] for g in groups]

    small = network("wsss")
    monkeypatch.setattr(suppression, "build", lambda *a, **k: small)
    recipe, groups = trained(marsstyle, "method=marsstyle", "wsss=bas")
    if size == "toy":
        assert {tuple(g[:4]) for g in groups} == {(0.05, 0.9, 1, 1e-4)} and (recipe["steps"], recipe["batch"]) == (450, 32)
    else:
        assert (recipe, groups) == trained(bas, "method=bas", "task=wsss")
        rates, expected = [g[0] for g in groups], {"small": (0.001, 0.01), "paper": (0.005, 0.05)}[size]
        assert set(rates) - {0.0} == set(expected) and (0.0 in rates) == (size == "paper")
    _, changed = trained(marsstyle, "method=marsstyle", "wsss=bas", "suppressor.lr=0.3")
    assert max(g[0] for g in changed) == 0.3  # what is typed wins


# ---- the mechanism -------------------------------------------------------------------------------------------------------------------------------------


def settled_mask(settings, judge):
    """The mask that gradient descent ends in, for a fixed classifier that finds 6 points of score in a head of 4 cells and 3 in a body of 24."""
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, 1:3, 1:3], features[0, 1, 3:7, 1:7] = 1, 1
    f2 = nn.Conv2d(2, 6, 1, bias=False)
    with torch.no_grad():
        f2.weight.zero_()
        f2.weight[0, :, 0, 0] = torch.tensor([6 * 64 / 4, 3 * 64 / 24])
    logits = torch.zeros(1, 6, 8, 8, requires_grad=True)
    model = suppression.Suppressor(nn.Identity(), f2, nn.Conv2d(2, 6, 3, padding=1), settings)
    model.masks = lambda found: logits.sigmoid()
    label = torch.tensor([0])
    for _ in range(60):
        losses = suppression.losses_of(model(features, label), label, settings, 0)
        step, = torch.autograd.grad(sum(losses[key] for key in judge), logits)
        with torch.no_grad():
            logits -= 0.2 * step.sign()
    mask = logits.sigmoid()[0, 0].detach()
    body = torch.zeros(8, 8, dtype=torch.bool)
    body[3:7, 1:7] = True
    ground = ~body
    ground[1:3, 1:3] = False
    return [float(v) for v in (mask[1:3, 1:3].mean(), mask[body].mean(), mask[ground].mean())]


def test_the_ratio_covers_the_object_where_cross_entropy_stops_at_the_head():
    """Both pay the same for area. Fails when S_b sees the foreground, when the clause swallows everything, when a loss is lost."""
    head, body, ground = settled_mask(SuppressionSettings(beta=0.5), ("bas", "area"))
    assert head > 0.95 and body > 0.95 and ground < 0.05
    head, body, ground = settled_mask(SuppressionSettings(alpha=1.0, beta=0.5), ("frg", "area"))
    assert head > 0.5 and body < 0.05 and ground < 0.05
    head, body, ground = settled_mask(SuppressionSettings(beta=1.5), ("bas", "area"))  # too dear: 3/9 of the activation for 24/64 of the area
    assert head > 0.95 and body < 0.05
    head, body, ground = settled_mask(SuppressionSettings(), ("bas",))
    assert body > 0.95 and ground > 0.4  # nothing makes the mask small
