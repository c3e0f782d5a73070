"""BARM: where every gradient goes, every loss against its plain form, the comparators, and a run that is stopped in the middle of step 3."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from seglite import config, incremental, train
from seglite.data import IGNORE
from seglite.data.steps import make_task
from seglite.nets.layers import FrozenBatchNorm, count_parameters
from seglite.papers import barm
from seglite.run import Run, build_optimizer
from seglite.teacher import Teacher
from tests.tolerances import assert_close

METHODS = {"barm": barm}
LEARNERS = ("barm", "shared", "pseudo_labels", "fine_tuning", "mib", "plop")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settings(*typed):
    return config.parse(["method=barm", *typed], METHODS)[0]


def three_steps(c, counts=(4, 1, 2)):
    """Networks after each of three steps; the last in training mode, and the frozen one before it."""
    torch.manual_seed(0)
    network = barm.build(c, [counts[0]])
    for t in range(1, len(counts)):
        before, network = network, barm.grow(network, list(counts[: t + 1]), c)
        for p in network.branches[t].parameters():
            torch.nn.init.normal_(p, std=0.1)  # trained a little, as it were
    return network.train(), Teacher(before, None)


def a_batch(new=(6, 7), seed=0):
    random = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    mask[:, 4:14, 4:14], mask[:, 20:28, 6:16], mask[0, :, :2] = new[0], new[-1], IGNORE
    return {"image": torch.randn(2, 3, 32, 32, generator=random), "mask": mask}


# ---- aggregation ----------------------------------------------------------------------------------------------------------------------


def heads(seed=0):
    return [rand(2, 5, 3, 4, seed=seed), rand(2, 2, 3, 4, seed=seed + 1), rand(2, 3, 3, 4, seed=seed + 2)]


def test_background_at_test_time_is_the_base_plus_what_is_below_zero():
    z = heads()
    out = barm.aggregate(z, training=False)
    assert out.shape == (2, 8, 3, 4)
    assert_close(out[:, 0], z[0][:, 0] + z[1][:, 0].clamp(max=0) + z[2][:, 0].clamp(max=0))
    assert torch.equal(out[:, 1:], torch.cat([z[0][:, 1:], z[1][:, 1:], z[2][:, 1:]], 1))  # learning order; new classes are the last channels
    assert (out[:, 0] <= z[0][:, 0]).all()  # a correction never puts background back


def test_in_training_only_the_current_correction_is_not_cut():
    z = heads()
    assert_close(barm.aggregate(z, training=True)[:, 0], z[0][:, 0] + z[1][:, 0].clamp(max=0) + z[2][:, 0])
    assert_close(barm.aggregate(z, True, "always")[:, 0], barm.aggregate(z, False)[:, 0])
    assert_close(barm.aggregate(z, False, "never")[:, 0], z[0][:, 0] + z[1][:, 0] + z[2][:, 0])
    assert torch.equal(barm.aggregate(z[:1], True), z[0]) and torch.equal(barm.aggregate(z[:1], False), z[0])


def test_the_backgrounds_gradient_reaches_the_current_correction_alone():
    z = [h.requires_grad_() for h in heads()]
    upstream = rand(2, 3, 4, seed=9)
    (barm.aggregate(z, training=True)[:, 0] * upstream).sum().backward()
    assert z[0].grad is None or not z[0].grad.any()  # the base background receives exactly zero
    assert z[1].grad is None or not z[1].grad.any()  # and so do earlier corrections
    assert torch.equal(z[2].grad[:, 0], upstream) and not z[2].grad[:, 1:].any()


@pytest.mark.parametrize("term, reached", [
    ("pb", {"body", "aspp", "branches.2", "classifiers.2"}), ("bga+", {"body", "aspp", "branches.2", "classifiers.2"}),
    ("bga-", {"body", "aspp", "branches.2", "classifiers.2"}), ("gkd", {"body", "aspp", "branches.0", "branches.1", "classifiers.0", "classifiers.1"}),
    ("bfd", {"body", "aspp", "branches.0", "branches.1"})])
def test_each_loss_reaches_what_the_code_lets_it_reach(term, reached):
    """The table of section 3.6, parameter by parameter: all others get no gradient at all, or exactly zero."""
    network, teacher = three_steps(settings())
    with torch.no_grad():
        network.classifiers[2].bias[0] = -0.5  # so that BgA- has something to say
        network.aspp.convs[0][0].weight += 0.01  # and the distillation losses too
    barm.later_step(network, a_batch(), teacher, settings(), new=2)[term].backward()
    got = {".".join(name.split(".")[: 2 if name.startswith(("branches", "classifiers")) else 1])
           for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert got == reached


def test_old_class_logits_of_the_segmentation_loss_are_stopped_and_only_then():
    logits = rand(2, 8, 5, 6).requires_grad_()
    target = torch.randint(0, 8, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    barm.pixel_bce(barm.shield(logits, 2), target).backward()
    assert not logits.grad[:, 1:6].any() and logits.grad[:, 0].all() and logits.grad[:, 6:].all()
    assert torch.equal(barm.shield(logits, 2), logits)
    network, teacher = three_steps(settings())
    barm.later_step(network, a_batch(), teacher, settings("stop_gradient=false"), new=2)["pb"].backward()
    assert network.classifiers[0].weight.grad[1:].any() and not network.classifiers[0].weight.grad[0].any()


# ---- losses ---------------------------------------------------------------------------------------------------------------------------


def test_pixel_bce_is_the_sum_over_channels_and_the_mean_over_valid_pixels():
    logits = rand(2, 4, 3, 5).double() * 5
    target = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    target[0, 0] = IGNORE
    one_hot = F.one_hot(target.clamp_max(3), 4).movedim(3, 1).double()
    each = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1)
    assert_close(barm.pixel_bce(logits, target), each[target != IGNORE].mean())
    empty = barm.pixel_bce(logits.requires_grad_(), torch.full_like(target, IGNORE))
    empty.backward()
    assert float(empty.detach()) == 0 and not logits.grad.any()


def test_pseudo_labels_case_by_case():
    sure, unsure = math.log(0.8 / 0.2), math.log(0.6 / 0.4)
    old = torch.full((1, 3, 1, 7), -5.0)
    for pixel, (channel, value) in enumerate([(1, sure), (2, unsure), (0, sure), (1, sure), (1, sure), (2, sure), (2, math.log(0.7 / 0.3) + 1e-5)]):
        old[0, channel, 0, pixel] = value
    old[0, 0, 0, 5] = sure + 1  # background is surer still
    target = torch.tensor([[[0, 0, 0, 3, IGNORE, 0, 0]]])
    #                       old class, unsure, background, truth wins, stays ignored, background wins, at the threshold
    assert barm.pseudo_labels(target, old, 0.7).flatten().tolist() == [1, 0, 0, 3, IGNORE, 0, 2]


def test_the_two_adaptation_losses():
    r, P = rand(2, 1, 4, 5) * 3, (rand(2, 1, 4, 5, seed=1) > 0).float()
    assert_close(barm.adapt_positive(r, P), F.softplus(r)[P > 0].mean())
    s = r.sigmoid()
    assert_close(barm.adapt_negative(r, P), ((s - 1).square() - s.square()).clamp_min(0)[P > 0].mean())  # the code's two squares
    zero = torch.zeros_like(r)
    assert_close(barm.adapt_positive(zero, P), torch.tensor(math.log(2))) and float(barm.adapt_negative(zero, P)) == 0
    assert float(barm.adapt_negative(r.abs(), P)) == 0 < float(barm.adapt_negative(-r.abs(), P))
    for loss in (barm.adapt_positive, barm.adapt_negative):  # no such pixel in the crop
        x = r.clone().requires_grad_()
        value = loss(x, zero)
        value.backward()
        assert float(value.detach()) == 0 and torch.isfinite(x.grad).all()


def test_group_distillation_counts_every_channel_of_every_old_head():
    z, old = [rand(2, k, 3, 4, seed=k).double() for k in (5, 2)], [rand(2, k, 3, 4, seed=10 + k).double() for k in (5, 2)]
    plain = sum(F.binary_cross_entropy_with_logits(a[:, c], b[:, c].sigmoid()) for a, b in zip(z, old) for c in range(a.shape[1]))
    assert_close(barm.group_distillation(z, old), plain)
    assert_close(barm.group_distillation(z, old, background=False), plain - F.binary_cross_entropy_with_logits(z[0][:, 0], old[0][:, 0].sigmoid()))


def test_feature_distillation_averages_over_all_elements_not_over_the_mask():
    e, old, N = [rand(2, 6, 3, 4, seed=i).double() for i in (0, 1)], [rand(2, 6, 3, 4, seed=i).double() for i in (2, 3)], torch.zeros(2, 1, 3, 4).double()
    N[0] = 1
    assert_close(barm.feature_distillation(e, old, N), sum((a[0] - b[0]).square().sum() / a.numel() for a, b in zip(e, old)))


def test_cells_take_the_nearest_pixel():
    where = torch.zeros(1, 8, 8, dtype=torch.bool)
    where[0, 4, 0] = True
    assert barm.cells(where, torch.zeros(1, 3, 2, 2)).flatten().tolist() == [0, 0, 1, 0]


def test_the_first_iteration_of_a_step():
    """Without dropout student and teacher agree: BFD is 0 and GKD the teacher's own entropy; a correction of 0 gives log 2 and 0."""
    c = settings("step.steps=1")
    torch.manual_seed(1)
    base = barm.build(c, [4])
    network = barm.grow(base, [4, 1], c).train()
    network.aspp.project[-1].p = 0.0
    with torch.no_grad():
        network.classifiers[1].weight[0], network.classifiers[1].bias[0] = 0, 0
    teacher, batch = Teacher(network, None), a_batch((5,))
    teacher.model = base.eval()
    base.load_state_dict({k: v for k, v in network.state_dict().items() if k in base.state_dict()})
    losses = barm.later_step(network, batch, teacher, c, new=1)
    p = base(batch["image"]).logits.double().sigmoid()
    own = -(p * p.log() + (1 - p) * (1 - p).log()).mean((0, 2, 3)).sum()
    losses = {key: value.detach() for key, value in losses.items()}
    assert float(losses["bfd"]) == 0 == float(losses["bga-"])
    assert abs(float(losses["bga+"]) - math.log(2)) < 1e-6
    assert_close(losses["gkd"].double(), own, dtype=torch.float32)


def test_weights_are_those_of_the_code():
    c = settings()
    assert (c.tau, c.weight_positive, c.weight_negative, c.weight_gkd, c.weight_bfd) == (0.7, 1, 5, 1, 4)
    network, teacher = three_steps(c)
    torch.manual_seed(0)
    full = barm.later_step(network, a_batch(), teacher, c, new=2)
    torch.manual_seed(0)
    doubled = barm.later_step(network, a_batch(), teacher, settings("weight_negative=10", "weight_bfd=0"), new=2)
    assert_close(doubled["bga-"], 2 * full["bga-"])
    assert float(doubled["bfd"]) == 0 < float(full["bfd"]) and torch.equal(doubled["pb"], full["pb"])


def test_the_masks_come_from_the_raw_label():
    """BgA- and BFD look at label 0, not at what the pseudo label made of it."""
    c = settings("tau=0.0")  # every old-class vote becomes a pseudo label
    network, teacher = three_steps(c)
    seen = []
    original = barm.adapt_negative
    try:
        barm.adapt_negative = lambda r, N: seen.append(N) or original(r, N)
        barm.later_step(network, a_batch(), teacher, c, new=2)
    finally:
        barm.adapt_negative = original
    assert torch.equal(seen[0], barm.cells(a_batch()["mask"] == 0, torch.zeros(2, 1, 8, 8)))


# ---- the network ----------------------------------------------------------------------------------------------------------------------


def test_growing_keeps_what_was_learned_and_shares_nothing():
    c = settings()
    torch.manual_seed(0)
    base = barm.build(c, [4])
    for m in base.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
    grown = barm.grow(base, [4, 1], c)
    old, new = base.state_dict(), grown.state_dict()
    assert all(torch.equal(old[k], new[k]) for k in old)
    assert all(torch.equal(new[k], new[k.replace("branches.1", "branches.0")]) for k in new if k.startswith("branches.1"))
    assert new["classifiers.1.weight"].shape == (2, 32, 1, 1) and 0.1 < float(new["classifiers.1.weight"].std()) < 0.5  # sqrt(2 / 32) = 0.25
    addresses = [p.data_ptr() for p in (*base.parameters(), *grown.parameters())]
    assert len(set(addresses)) == len(addresses)
    plain = barm.grow(base, [4, 1], settings("copy_statistics=false")).state_dict()
    assert torch.equal(plain["branches.1.0.weight"], new["branches.1.0.weight"])
    assert not plain["branches.1.1.running_mean"].any() and (plain["branches.1.1.running_var"] == 1).all()
    with pytest.raises(ValueError, match="grows to 2"):
        barm.grow(base, [4, 1, 1], c)
    with pytest.raises(ValueError, match="does not fit"):
        barm.grow(SimpleNamespace(branches=base.branches, state_dict=lambda: {**old, "more": old["classifiers.0.bias"]}), [4, 1], c)


def test_branches_read_the_aspp_and_not_each_other():
    network, _ = three_steps(settings())
    network.eval()
    x = rand(1, 3, 32, 32)
    before = network(x)
    with torch.no_grad():
        network.branches[0][0].weight.zero_()
    after = network(x)
    assert not torch.equal(before.heads[0], after.heads[0])
    assert all(torch.equal(a, b) for a, b in zip(before.heads[1:], after.heads[1:]))


def test_batch_norm_is_frozen_from_step_1_on():
    base = barm.build(settings(), [4])
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in base.modules())
    network, teacher = three_steps(settings())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    frozen = [m for m in network.modules() if isinstance(m, FrozenBatchNorm)]
    before = [m.running_mean.clone() for m in frozen]
    network(rand(4, 3, 32, 32))
    assert all(torch.equal(a, m.running_mean) for a, m in zip(before, frozen))
    trained = {id(p) for g in barm.parameter_groups(network, settings()) for p in g["params"]}
    assert not trained & {id(b) for m in frozen for b in m.buffers()}


def test_the_teacher_cuts_and_does_not_drop():
    network, teacher = three_steps(settings())
    x = rand(1, 3, 32, 32)
    a, b = teacher(x), teacher(x)
    assert torch.equal(a.logits, b.logits) and not a.logits.requires_grad and not teacher.model.training
    assert_close(a.logits[:, 0], a.heads[0][:, 0] + a.heads[1][:, 0].clamp_max(0))


def test_learning_rate_groups_hold_every_parameter_once():
    network, _ = three_steps(settings())
    c = settings("lr_aspp=0.3", "lr_old=0.2", "lr_body=0.05")
    groups = barm.parameter_groups(network, c)
    names = {id(p): n for n, p in network.named_parameters()}
    found = {scale: {names[id(p)].split(".")[0] + "." + names[id(p)].split(".")[1] for p in g["params"]} for g in groups for scale in [g["lr_scale"]]}
    assert found[1.0] == {"branches.2", "classifiers.2"} and found[0.2] == {"branches.0", "branches.1", "classifiers.0", "classifiers.1"}
    assert all(n.startswith("aspp.") for n in found[0.3]) and all(n.startswith("body.") for n in found[0.05])
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(names)
    first = barm.parameter_groups(barm.build(c, [4]), settings("lr_body_first=0.1"))
    assert [g["lr_scale"] for g in first] == [1.0, 0.1]
    optimizer = build_optimizer(network, c.step, groups)
    assert optimizer.defaults["nesterov"] and optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["weight_decay"] == 1e-4


@pytest.mark.parametrize("task", ["10-1", "5-3", "15-1"])
def test_the_papers_network_step_by_step(task):
    """ResNet-101: 16.1 M weights in the first head, 590,336 + 257 (C_t + 1) more per step, 33 x 33 cells for a crop of 513 (section 2.1)."""
    from seglite.data.voc import CLASSES

    c = settings("data=voc", "size=paper", f"task={task}")
    t = make_task(c.task, CLASSES)
    counts = [len(g) for g in t.groups]
    with torch.device("meta"):
        networks = [barm.build(c, counts[: s + 1]) for s in range(t.steps)]
        out = networks[-1].eval()(torch.empty(1, 3, 513, 513))
    sizes = [count_parameters(n) for n in networks]
    assert [b - a for a, b in zip(sizes, sizes[1:])] == [590_336 + 257 * (n + 1) for n in counts[1:]]
    head = sizes[0] - count_parameters(networks[0].body)
    assert head == 16_125_440 - 590_336 + 590_336 + 257 * (1 + counts[0]) and round(head / 1e6, 1) == 16.1
    assert out.logits.shape == (1, 21, 33, 33) and len(out.heads) == t.steps and [h.shape[1] for h in out.heads] == [n + 1 for n in counts]
    assert all(e.shape == (1, 256, 33, 33) for e in out.features)
    assert [conv[0].dilation[0] for conv in networks[0].aspp.convs[1:4]] == [6, 12, 18] and networks[0].aspp.project[-1].p == 0.1
    if task == "10-1":
        assert t.steps == 11 and round((sizes[-1] - sizes[0]) / 1e6, 1) == 5.9


@pytest.mark.realdata
def test_the_preset_of_voc_10_1_builds_all_eleven_steps(data_root):
    """size=paper, task=10-1: images of every step from the lists, iterations from the images, and a network grown ten times from the first."""
    from seglite.data.steps import images_of_step, read_presence
    from seglite.data.voc import CLASSES

    c = settings("data=voc", "size=paper", "task=10-1")
    task = barm.task_of(c, SimpleNamespace(classes=CLASSES))
    present = read_presence(str(data_root / "lists/voc2012/train_aug_cls.txt"), len(CLASSES) - 1)
    images = [len(images_of_step(present, task, t, c.setting)) for t in range(task.steps)]
    assert images == [6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548]
    iterations = [barm.recipe_of(c.step if t else c.train, c.step_epochs if t else c.epochs, n).steps for t, n in enumerate(images)]
    assert iterations == [50 * (6139 // 16), *(20 * (n // 8) for n in images[1:])] and iterations[0] == 19150 and iterations[7] == 740
    counts = [len(group) for group in task.groups]
    with torch.device("meta"):
        network = barm.build(c, counts[:1])
        for t in range(1, task.steps):
            network = barm.grow(network, counts[: t + 1], c)
            assert [z.out_channels for z in network.classifiers] == [11] + [2] * t and task.seen(t) == 11 + t
            assert [g["lr_scale"] for g in barm.parameter_groups(network, c)] == [1.0, 1.0, 0.1, 0.1]
        assert network.eval()(torch.empty(1, 3, 97, 97)).logits.shape == (1, 21, 7, 7)


def test_the_papers_recipe():
    c = settings("data=voc", "size=paper")
    assert barm.recipe_of(c.step, c.step_epochs, 487).steps == 20 * 60  # VOC 15-1, step 1: 487 images, batch 8
    assert barm.recipe_of(c.train, c.epochs, 9568).steps == 50 * 598 and barm.recipe_of(c.train, 0, 9568) is c.train
    assert (c.train.lr, c.step.lr, c.lr_aspp, c.lr_old, c.lr_body, c.lr_body_first) == (0.01, 0.001, 1.0, 0.1, 0.1, 0.1)
    assert (c.train.optimizer, c.train.power, c.augment.crop, c.test_crop, c.output_stride, c.width) == ("nesterov", 0.9, 513, 513, 16, 256)
    with torch.device("meta"):
        body = barm.build(c, [15]).body
    assert body.bn1.momentum == 0.01


# ---- scores and comparators -----------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    task = make_task("2-1", ("background", "a", "b", "c"))
    counts = torch.tensor([[80, 0, 5, 15], [10, 30, 0, 0], [0, 0, 20, 0], [30, 0, 0, 10]])
    s = incremental.step_scores(counts, task, 1)
    iou = [80 / 140, 30 / 40, 20 / 25, 10 / 55]
    assert s["old"] == pytest.approx(100 * sum(iou[:3]) / 3) and s["new"] == pytest.approx(100 * iou[3]) and s["all"] == pytest.approx(100 * sum(iou) / 4)
    assert s["all"] == pytest.approx((3 * s["old"] + 1 * s["new"]) / 4) and s["hIoU"] == pytest.approx(2 * s["old"] * s["new"] / (s["old"] + s["new"]))
    assert (s["new on true background"], s["new lost to background"], s["old lost to background"]) == pytest.approx((15, 75, 100 * 10 / 60))
    first = incremental.step_scores(counts[:3, :3], task, 0)
    assert math.isnan(first["new"]) and incremental.run_scores([counts[:3, :3], counts], task)["avg"] == pytest.approx((first["all"] + s["all"]) / 2)


def test_scores_without_a_background_class():
    """CamVid: background is no class, but a class pixel called background is an error."""
    task = make_task("1-1", ("sky", "road"))
    counts = torch.tensor([[0, 0, 0], [4, 6, 0], [0, 0, 5]])
    s = incremental.step_scores(counts, task, 1)
    assert (s["old"], s["new"], s["all"]) == pytest.approx((60, 100, 80)) and math.isnan(s["new on true background"])


def test_mib_is_the_paper_s_two_sums_of_probabilities():
    logits, target = rand(2, 6, 3, 4).double(), torch.tensor([0, 4, 5, IGNORE]).repeat(2, 3, 1)
    p = logits.softmax(1)
    unbiased = torch.cat([p[:, :4].sum(1, keepdim=True), p[:, 4:]], 1).log()
    picked = [-unbiased[b, {0: 0, 4: 1, 5: 2}[int(target[b, i, j])], i, j] for b in range(2) for i in range(3) for j in range(3)]
    assert_close(incremental.mib_cross_entropy(logits, target, old=4), torch.stack(picked).mean())
    old = rand(2, 4, 3, 4, seed=1).double()
    student = torch.cat([p[:, :1] + p[:, 4:].sum(1, keepdim=True), p[:, 1:4]], 1).log()
    assert_close(incremental.mib_distillation(logits, old), -(old.softmax(1) * student).sum(1).mean() / 4)


def test_mib_starts_by_dividing_the_background():
    c = settings("learner=mib")
    torch.manual_seed(0)
    base = barm.build(c, [4])
    grown, x = barm.grow(base, [4, 2], c).eval(), rand(1, 3, 32, 32)
    before, after = base.eval()(x).logits.softmax(1), grown(x).logits.softmax(1)
    assert_close(after[:, 1:5], before[:, 1:5])
    assert_close(after[:, [0, 5, 6]], (before[:, :1] / 3).expand(-1, 3, -1, -1))


def test_plop_labels_the_sure_and_drops_the_unsure():
    old = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0.1, 0], [0, 0, 9], [0, 9, 0]]).T[None, :, None]  # [1, 3, 1, 5]: sure 0, sure 1, unsure, sure 2, -
    target = torch.tensor([[[0, 0, 0, 0, 3]]])
    logits = rand(1, 4, 1, 5)
    ce = F.cross_entropy(logits, torch.tensor([[[0, 1, IGNORE, 2, 3]]]), ignore_index=IGNORE, reduction="none") * 3 / 4
    assert_close(incremental.plop_cross_entropy(logits, target, old, torch.full((3,), 0.5)), ce.mean())
    pairs = [(torch.cat([old, rand(1, 3, 2, 5)], 2), torch.zeros(1, 3, 5, dtype=torch.int64))]
    u, found = incremental.entropy(pairs[0][0]), pairs[0][0].argmax(1)
    expected = [max(float(u[found == k].median()), 1e-3) for k in range(3)]
    assert incremental.class_thresholds(pairs, 4).tolist() == pytest.approx([*expected, 1e-3])
    with torch.device("meta"):  # stands for any device that is not the logits': what is made beside them must lie with them
        assert incremental.class_thresholds(pairs, 4).tolist() == pytest.approx([*expected, 1e-3])
    assert float(incremental.entropy(torch.zeros(1, 7, 1, 1))) == pytest.approx(1)


def test_pod_is_the_plain_loop():
    x = rand(2, 3, 6, 8).double()
    parts = []
    for s in (1, 2, 4):
        for i in range(s):
            for j in range(s):
                region = x[:, :, round(i * 6 / s) : round((i + 1) * 6 / s), round(j * 8 / s) : round((j + 1) * 8 / s)] ** 2
                parts += [region.mean(3).flatten(1), region.mean(2).flatten(1)]
    assert_close(incremental.local_pod(x), torch.cat(parts, 1))
    logits, old = rand(2, 5, 4, 4).double(), rand(2, 3, 4, 4, seed=1).double()
    folded = torch.cat([logits[:, :1] + logits[:, 3:4] + logits[:, 4:5], logits[:, 1:3]], 1)
    distance = lambda a, b: (incremental.local_pod(a) - incremental.local_pod(b)).norm(dim=1).mean()
    expected = (0.01 * distance(x, 2 * x) + 0.0005 * distance(folded, old)) / 2 * math.sqrt(4 / 2)
    assert_close(incremental.pod_loss([x], [2 * x], logits, old, 3), expected)
    assert float(incremental.pod_loss([x], [x], torch.cat([old, torch.zeros(2, 1, 4, 4).double()], 1), old, 3)) == 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_pulls_the_new_class_up_where_it_is_labelled(learner):
    """The gradient of the loss by the new class's logits: negative on its pixels, positive on the others."""
    logits, old = torch.zeros(2, 6, 32, 32, requires_grad=True), torch.zeros(2, 5, 32, 32)
    features = [torch.ones(2, 4, 32, 32)] * 2
    head = lambda z: [z[:, :5], torch.cat([z[:, :1], z[:, 5:]], 1)]
    student = lambda x: barm.Maps(logits, head(logits), features, features)
    teacher = lambda x: barm.Maps(old, head(old)[:1], features[:1], features)
    batch = a_batch((5,))
    sum(barm.later_step(student, batch, teacher, settings(f"learner={learner}"), 1, torch.full((5,), 2.0)).values()).backward()
    assert (logits.grad[:, 5][batch["mask"] == 5] < 0).all() and (logits.grad[:, 5][batch["mask"] == 0] > 0).all()
    assert not logits.grad[:, 5][batch["mask"] == IGNORE].any() or learner == "mib"  # MiB distils ignored pixels too


# ---- whole runs -----------------------------------------------------------------------------------------------------------------------

TINY = ("scenes.size=32", "scenes.train_images=30", "scenes.val_images=4", "train.steps=2", "train.batch=4", "step.steps=4", "step.batch=4", "threads=1",
        "width=8")


def run_it(folder, *typed) -> int:
    typed = dict(pair.split("=", 1) for pair in (*TINY, *typed))
    return train.main(["method=barm", f"out={folder}", *(f"{key}={value}" for key, value in typed.items())], METHODS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("barm") / "run"
    assert run_it(folder) == 0
    return folder


def final(folder, stage):
    return torch.load(folder / stage / "final.pt", weights_only=True)["model"]


def test_a_run_is_one_stage_per_step_and_reports_old_new_and_all(undisturbed):
    import json

    assert all((undisturbed / f"step{t}" / "final.pt").exists() for t in range(5)) and not (undisturbed / "step5").exists()
    result = json.loads((undisturbed / "result.json").read_text())
    assert {"old", "new", "all", "avg", "miou"} <= result.keys() and len(result["classes"]) == 9
    assert final(undisturbed, "step4")["classifiers.4.weight"].shape[0] == 2
    page = (undisturbed / "report.html").read_text()
    assert all(words in page for words in ("called background there", "Mean correction", "What each step takes out"))


def test_a_run_stopped_in_the_middle_of_step_3_ends_in_the_same_bits(undisturbed, tmp_path, monkeypatch):
    calls, original = [], barm.later_step

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4 + 4 + 3:  # steps 1 and 2 whole, then the third iteration of step 3
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(barm, "later_step", interrupted)
    assert run_it(tmp_path / "run", "step.save_every=1") == 1
    assert (tmp_path / "run/step3/last.pt").exists() and not (tmp_path / "run/step3/final.pt").exists()
    monkeypatch.setattr(barm, "later_step", lambda *a: calls.append(1) or original(*a))
    calls.clear()
    assert run_it(tmp_path / "run", "step.save_every=1") == 0
    assert len(calls) == 2 + 4  # two iterations of step 3 were left, and step 4
    for stage in ("step3", "step4"):
        a, b = final(undisturbed, stage), final(tmp_path / "run", stage)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_no_step_reads_an_image_of_another_step(tmp_path, monkeypatch):
    """What the data set is asked for while a step trains is a subset of that step's list; the lists differ."""
    from seglite.data.scenes import Scenes

    asked, current, lists = {}, [None], {}
    read, fit = Scenes.read, Run.fit

    def noted(self, index, wants=("image", "mask")):
        if current[0] is not None:
            asked.setdefault(current[0], set()).add(int(index))
        return read(self, index, wants)

    def named(self, name, model, step, data, recipe, **more):
        lists[name], current[0] = set(data.indices.tolist()), name
        try:
            return fit(self, name, model, step, data, recipe, **more)
        finally:
            current[0] = None

    monkeypatch.setattr(Scenes, "read", noted)
    monkeypatch.setattr(Run, "fit", named)
    assert run_it(tmp_path / "run", "setting=disjoint", "task=4-2", "scenes.train_images=60", "step.steps=8") == 0
    assert list(asked) == ["step0", "step1", "step2"] and all(asked[s] <= lists[s] for s in asked)
    assert not any(lists[a] & lists[b] for a in lists for b in lists if a < b)  # disjoint


@pytest.mark.parametrize("learner", ["shared", "mib", "plop", "joint"])
def test_comparators_run_end_to_end(tmp_path, learner):
    assert run_it(tmp_path / "run", f"learner={learner}", "task=6-1", "step.steps=2") == 0
    assert (tmp_path / "run/step1").exists() == (learner != "joint")


def test_a_finished_run_is_reopened(undisturbed):
    from seglite.reopen import open_run

    predict, data, run = open_run(undisturbed, METHODS)
    try:
        scores = predict(rand(2, 3, 32, 32))
        assert scores.shape == (2, 9, 8, 8) and 0 <= float(scores.min()) and float(scores.max()) <= 1
    finally:
        run.close()


def test_channels_follow_the_data_sets_classes_whatever_the_order_of_learning(tmp_path):
    c = settings("order=8,7,6,5,4,3,2,1")
    task = barm.task_of(c, SimpleNamespace(classes=("background", *"abcdefgh")))
    network, x = barm.build(c, [8]).eval(), rand(1, 3, 32, 32)
    plain, ordered = barm.predictor(network, c)(x), barm.predictor(network, c, task.channels())(x)
    assert torch.equal(ordered[:, 0], plain[:, 0]) and torch.equal(ordered[:, 1], plain[:, 8]) and torch.equal(ordered[:, 8], plain[:, 1])


@pytest.mark.realdata
def test_camvid_in_steps(data_root, tmp_path):
    """Frames without a background class, in chunks: a few iterations of 9-1 at a sixteenth of the pixels."""
    weights = data_root / "weights/resnet18_imagenet_stem_to_layer3.pth"
    typed = ["data=camvid", f"root={data_root / 'camvid'}", f"weights={weights}", "task=9-1", "camvid.train=val", "camvid.val=val", "workers=0",
             "augment.long_side=120", "augment.crop=64", "test_scale=0.25", "train.steps=1", "train.batch=2", "step.steps=1", "step.batch=2", "width=8", "threads=1"]
    c = settings(*typed, f"out={tmp_path / 'run'}")
    run = Run(c, supervision=barm.supervision(c), quiet=True)
    try:
        task, present = barm.start(run)
        assert task.names[0] == "background" and present.shape == (101, 11)
        images = [barm.images_of_step(present, task, t, c.setting) for t in range(3)]
        assert not np.intersect1d(images[0], images[1]).size and not np.intersect1d(images[1], images[2]).size
        network = None
        for t in range(3):
            network = barm.fit_step(run, c, task, t, images[t], network, f"step{t}")
        assert network(rand(1, 3, 90, 120)).logits.shape[1] == 12
    finally:
        run.close()


@pytest.mark.slow
def test_miniature_acceptance(tmp_path):
    """The toy on seed 0: old classes stay, new ones are learned; without BgA+ the corrections never open."""
    c = settings(f"out={tmp_path / 'run'}", "threads=1")
    run = Run(c, supervision=barm.supervision(c), quiet=True)
    task, present = barm.start(run)
    scores = {}
    for weight in (1.0, 0.0):
        counts = barm.learn(run, config.override(c, weight_positive=weight), task, present, f"{weight}-")[1]
        scores[weight] = incremental.run_scores(counts, task)
    run.close()
    assert scores[1.0]["old"] > 75 and scores[1.0]["new"] > 40  # measured 80.9 and 51.9
    assert scores[1.0]["new"] > scores[0.0]["new"] + 25  # measured 4.9 without
