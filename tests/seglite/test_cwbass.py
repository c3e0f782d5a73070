"""CW-BASS: every formula against its plain form, the traps of the published code, and one step from the student's side."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from seglite import config, losses, parallel
from seglite.data import IGNORE, Batches, partitions, views
from seglite.data.transforms import AugmentSettings, make_transform
from seglite.papers import cwbass as cw
from seglite.run import Run, RunProblem
from seglite.teacher import Teacher
from tests.strategies import seeds
from tests.tolerances import assert_close

METHODS = {"cwbass": cw}


def settings(*arguments):
    """Later arguments win."""
    last = dict(argument.split("=", 1) for argument in arguments)
    return config.parse(["method=cwbass", *(f"{k}={v}" for k, v in last.items())], METHODS)[0]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the threshold -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t0, beta", [(0.6, 0.5), (1.0, 5.0), (0.6, 5.0)])
def test_threshold_is_half_of_t0_at_one_half_and_rises(t0, beta):
    mean = torch.linspace(0, 1, 101)
    T = cw.dynamic_threshold(mean, t0, beta)
    assert float(T[50]) == pytest.approx(t0 / 2)
    assert (T.diff() > 0).all()


def test_threshold_takes_the_values_of_both_sources():
    """Worked by hand: the code's constants never leave 0.30 ... 0.337; the figure's curve passes 0.075, 0.5 and 0.925."""
    mean = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.9, 1.0])
    assert_close(cw.dynamic_threshold(mean, 0.6, 0.5, 0.3, 0.8), torch.tensor([0.3, 0.3, 0.3, 0.3149875, 0.3299004, 0.3373060]))
    assert_close(cw.dynamic_threshold(mean, 1.0, 5.0), torch.tensor([0.0758582, 0.2689414, 0.5, 0.7310586, 0.8807971, 0.9241418]))
    assert cw.FIGURE == {"t0": 1.0, "beta": 5.0, "t_min": 0.0, "t_max": 1.0} and cw.CODE == {"t0": 0.6, "beta": 0.5, "t_min": 0.3, "t_max": 0.8}


def test_mean_confidence_leaves_padding_out():
    p, real = torch.full((2, 4, 4), 0.8), torch.ones(2, 4, 4, dtype=torch.bool)
    p[0, :2], real[0, :2] = 0.1, False
    assert float(cw.mean_confidence(p, real)) == pytest.approx(0.8)
    assert math.isfinite(float(cw.mean_confidence(p, torch.zeros_like(real))))


# ---- borders -----------------------------------------------------------------------------------------------------------------------------


def sobel_by_the_book(labels, classes):
    """One-hot maps, two 3 x 3 filters per class, replicate padding, any response."""
    hot = F.pad(F.one_hot(labels, classes).movedim(-1, 1).float(), (1, 1, 1, 1), mode="replicate")
    gx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    filters = torch.stack([gx, gx.T])[:, None].repeat(classes, 1, 1, 1)
    response = F.conv2d(hot, filters, groups=classes).unflatten(1, (classes, 2)).square().sum(2).sqrt()
    return response.sum(1) > 0


@hypothesis.settings(max_examples=25)
@given(seeds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 6, 21, 27, 28, 60]))
def test_boundary_is_sobel_on_every_class(seed, height, width, classes):
    labels = torch.randint(0, classes, (2, height, width), generator=torch.Generator().manual_seed(seed))
    few = labels % max(1, min(classes, 3)) + max(0, classes - 3)  # large classes only, in patches
    for maps in (labels, few):
        assert torch.equal(cw.sobel_boundary(maps, classes), sobel_by_the_book(maps, classes))


def test_a_constant_map_has_no_border_not_even_at_the_frame():
    assert not cw.sobel_boundary(torch.full((1, 6, 7), 4), 5).any()


def test_half_and_half_gives_a_band_of_two_pixels():
    labels = torch.zeros(1, 8, 10, dtype=torch.long)
    labels[:, :, 5:] = 3
    wanted = torch.zeros(1, 8, 10, dtype=torch.bool)
    wanted[:, :, 4:6] = True
    assert torch.equal(cw.sobel_boundary(labels, 5), wanted)
    assert torch.equal(cw.sobel_boundary(labels.mT, 5), wanted.mT)


def test_a_thin_line_is_not_marked_itself():
    labels = torch.zeros(1, 7, 9, dtype=torch.long)
    labels[:, :, 4] = 1
    edge = cw.sobel_boundary(labels, 2)
    assert edge[0, 3].nonzero().flatten().tolist() == [3, 5]


# ---- targets and losses ------------------------------------------------------------------------------------------------------------------


def confident(p, label, classes=4):
    """Logits whose softmax gives `label` with probability p everywhere. p [B, H, W], label int64 [B, H, W]."""
    rest = ((1 - p) / (classes - 1))[..., None].expand(*p.shape, classes)
    return torch.where(F.one_hot(label, classes).bool(), p[..., None], rest).log().movedim(-1, 1)


def test_what_is_filtered_is_ignored_and_never_class_zero():
    p = torch.tensor([[[0.9, 0.6, 0.95, 0.4]]])
    label = torch.tensor([[[2, 2, 1, 3]]])
    found = cw.targets(confident(p, label), torch.ones(1, 1, 4, dtype=torch.bool), settings("threshold=fixed", "fixed=0.7"))
    assert found.label.tolist() == [[[2, IGNORE, 1, IGNORE]]]
    assert_close(found.weight, p)
    assert found.edge.tolist() == [[[IGNORE, IGNORE, 1, IGNORE]]]  # 2 2 1 3: the band is pixels 1 to 3, of which one is retained
    assert float(found.notes["kept"]) == 0.5 and float(found.notes["confidence"]) == pytest.approx(p.mean())


def test_the_filter_is_strict():
    logits = torch.zeros(1, 2, 3, 3)  # confidence one half exactly
    real = torch.ones(1, 3, 3, dtype=torch.bool)
    assert float(cw.targets(logits, real, settings("threshold=fixed", "fixed=0.5")).notes["kept"]) == 0
    assert float(cw.targets(logits, real, settings("threshold=fixed", "fixed=0.49")).notes["kept"]) == 1
    assert float(cw.targets(logits, real, settings("threshold=none")).notes["kept"]) == 1


def test_padding_is_never_a_target_and_does_not_move_the_threshold():
    p, label = torch.full((2, 4, 6), 0.9), torch.randint(0, 4, (2, 4, 6), generator=torch.Generator().manual_seed(1))
    real = torch.ones(2, 4, 6, dtype=torch.bool)
    real[:, :, :2] = False
    alone = cw.targets(confident(p, label), real, settings())
    p[~real] = 0.3
    beside = cw.targets(confident(p, label), real, settings())
    assert float(alone.notes["T"]) == pytest.approx(float(beside.notes["T"]))
    assert (beside.label[~real] == IGNORE).all() and (beside.edge[~real] == IGNORE).all() and float(beside.notes["kept"]) == 1


def test_without_weights_and_threshold_the_loss_is_plain_cross_entropy():
    teacher, student = rand(2, 5, 6, 7), rand(2, 5, 6, 7, seed=1)
    plain = settings("threshold=none", "gamma=0", "lambda_boundary=0")
    found = cw.unsupervised_loss(student, cw.targets(teacher, torch.ones(2, 6, 7, dtype=torch.bool), plain), None, plain)
    assert list(found) == ["weighted"]
    assert_close(found["weighted"], F.cross_entropy(student, teacher.argmax(1)))


def test_weighted_and_boundary_loss_are_the_plain_loops():
    teacher = 3 * rand(2, 4, 2, 2).repeat_interleave(4, 2).repeat_interleave(5, 3) + 0.3 * rand(2, 4, 8, 10, seed=3)  # patches of one class
    student, cut = rand(2, 4, 8, 10, seed=1), rand(2, 8, 10, seed=2) > 1
    full = settings("gamma=2", "t0=0.9", "beta=1", "lambda_boundary=0.5")
    found = cw.unsupervised_loss(student, cw.targets(teacher, torch.ones(2, 8, 10, dtype=torch.bool), full), cut, full)
    p, label = teacher.softmax(1).max(1)
    T = 0.9 / (1 + math.exp(-(float(p.mean()) - 0.5)))
    ce, edge = F.cross_entropy(student, label, reduction="none"), sobel_by_the_book(label, 4)
    weighted, border = [], []
    for place in np.ndindex(2, 8, 10):
        if p[place] > T and not cut[place]:
            weighted.append(float(p[place]) ** 2 * float(ce[place]))
            border += [float(ce[place])] if edge[place] else []
    assert 5 < len(border) < len(weighted) < 150
    assert float(found["weighted"]) == pytest.approx(sum(weighted) / len(weighted), rel=1e-5)
    assert float(found["boundary"]) == pytest.approx(0.5 * sum(border) / len(border), rel=1e-5)


def test_a_batch_in_which_all_is_filtered_costs_nothing_and_is_not_nan():
    student = rand(2, 4, 5, 5).requires_grad_()
    strict = settings("threshold=fixed", "fixed=1")
    found = cw.unsupervised_loss(student, cw.targets(rand(2, 4, 5, 5, seed=1), torch.ones(2, 5, 5, dtype=torch.bool), strict), None, strict)
    total = sum(found.values())
    total.backward()
    assert float(total.detach()) == 0 and torch.equal(student.grad, torch.zeros_like(student))


def test_nothing_flows_back_to_the_teacher():
    teacher = rand(1, 3, 4, 4).requires_grad_()
    found = cw.targets(teacher, torch.ones(1, 4, 4, dtype=torch.bool), settings())
    assert not found.weight.requires_grad and all(not v.requires_grad for v in found.notes.values())


# ---- decay -------------------------------------------------------------------------------------------------------------------------------

WHOLE = torch.tensor([0, 1 / 6, 0, 1 / 8])  # a view that is the whole image of 6 x 8 pixels


def test_after_k_visits_below_the_factor_is_alpha_to_the_k_and_starts_over_above():
    memory = cw.Memory(np.array([1, 4]), 5, (6, 8))
    below = torch.zeros(1, 6, 8, dtype=torch.bool)
    below[0, 2, 3] = True
    for k in range(1, 4):
        visits = memory.visit(torch.tensor([4]), WHOLE[None], below)
        assert int(visits[0, 2, 3]) == k and int(visits.sum()) == k
    assert int(memory.visits[0].sum()) == 0, "the other image was not visited"
    assert int(memory.visit(torch.tensor([4]), WHOLE[None], ~below)[0, 2, 3]) == 0
    memory.visits[1, 0, 0] = 255
    assert int(memory.visit(torch.tensor([4]), WHOLE[None], torch.ones_like(below))[0, 0, 0]) == 255, "the counter must not wrap"
    again = cw.Memory(np.array([1, 4]), 5, (6, 8))
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.visits, memory.visits)


@hypothesis.settings(max_examples=25)
@given(seeds, st.booleans())
def test_the_memory_follows_crops_scales_and_mirrors(seed, scaled):
    """A mark on the source image: wherever a view shows it, it is counted there and nowhere else."""
    rng = np.random.default_rng(seed)
    height, width = 20, 26
    image = np.zeros((height, width, 3), np.uint8)
    image[rng.random((height, width)) < 0.3] = 255
    transform = views.Views(make_transform(AugmentSettings(crop=16, flip=0.5, **({"scale_min": 3.0, "scale_max": 3.0} if scaled else {})), (0, 0, 0)), place=True)
    memory = cw.Memory(np.array([0]), 1, (height, width))
    seen = np.zeros((height, width), int)
    for _ in range(4):
        sample = transform({"image": image}, rng)
        place = torch.from_numpy(sample["place"])[None]
        rows, columns = views.coordinates(place, 16, 16)
        y, x = (rows[0].numpy() * height).astype(int), (columns[0].numpy() * width).astype(int)
        below = torch.from_numpy(sample["image"][..., 0] > 250)[None]
        memory.visit(torch.tensor([0]), place, below)
        inside = np.zeros((height, width), bool)
        centre = [c[0].numpy() * n % 1 for c, n in ((rows, height), (columns, width))]  # a cell is written when its middle is in the view
        inside[np.ix_(*(np.unique(k[abs(c - 0.5) < 1e-2]) for k, c in zip((y, x), centre)))] = True
        seen[inside] = np.where(image[..., 0] == 255, seen + 1, 0)[inside]
    assert np.array_equal(memory.visits[0].numpy(), seen)


@pytest.mark.parametrize("decay, weights, labels", [
    ("none", [0.9, 0.6], [1, IGNORE]), ("retained", [0.81, 0.54], [1, IGNORE]), ("stateless", [0.9, 0.54], [1, 1]), ("memory", [0.9, 0.6 * 0.9**3], [1, 1])])
def test_the_readings_of_the_decay(decay, weights, labels):
    logits = confident(torch.tensor([[[0.9, 0.6]]]), torch.ones(1, 1, 2, dtype=torch.long))
    visit = lambda below: torch.where(below, 3, 0).to(torch.uint8)
    found = cw.targets(logits, torch.ones(1, 1, 2, dtype=torch.bool), settings(f"decay={decay}", "threshold=fixed", "fixed=0.7"), visit)
    assert_close(found.weight[0, 0], torch.tensor(weights))
    assert found.label[0, 0].tolist() == labels
    assert found.edge[0, 0].tolist() == [IGNORE, IGNORE]


def test_the_toy_never_mirrors():
    """In its world a mirror image of "rising" stripes shows "falling" ones: a mirrored label map would be wrong."""
    assert settings().augment.flip == 0 and {"rising", "falling"} <= set(batch_classes())


def batch_classes():
    from seglite.data import open_data

    return open_data(settings(*TINY), "train").classes


# ---- a step, a run ------------------------------------------------------------------------------------------------------------------------

TINY = ("scenes.size=24", "scenes.train_images=24", "scenes.val_images=6", "labels=1/4", "threads=1", "burn_in.steps=3", "burn_in.batch=4", "train.steps=4",
        "train.batch=4", "train.log_every=1")


def batch_of(config, t=0):
    from seglite.data import Restricted, open_data

    data = open_data(config, "train")
    labelled, unlabelled = partitions.split(config, data)
    view = views.Views(make_transform(config.augment, data.mean), config.strong, place=True)
    first = Batches(Restricted(data, ("image", "mask")), 4, 0, make_transform(config.augment, data.mean), indices=labelled)
    return partitions.Together(first, unlabelled=Batches(Restricted(data, ("image",)), 4, 1, view, indices=unlabelled))[t]


def test_a_step_is_formula_seven_and_teaches_only_the_student():
    c = settings(*TINY, "lambda_u=2", "ramp=0.5", "lambda_boundary=0.5")
    torch.manual_seed(0)
    model = cw.build(c, 6)
    teacher = Teacher(model, 0.9, ramp=False)
    before = {k: v.clone() for k, v in teacher.state_dict().items() if isinstance(v, torch.Tensor)}
    batch = batch_of(c)
    found = cw.step(model.train(), batch, 1, teacher, None, c)
    with torch.no_grad():
        model.train()
        logits = model(torch.cat([batch["image"], batch["unlabelled.strong"]]))
        wanted = cw.targets(teacher(batch["unlabelled.image"]), torch.ones(4, 24, 24, dtype=torch.bool), c)
        parts = cw.unsupervised_loss(logits[4:], wanted, batch["unlabelled.cut"], c)
    assert_close(found["labelled"].detach(), losses.cross_entropy(logits[:4], batch["mask"]))
    assert_close(found["weighted"].detach(), 2 * 0.5 * parts["weighted"])  # step 1 of a ramp of two
    assert_close(found["boundary"].detach(), 2 * 0.5 * parts["boundary"])
    sum(v for v in found.values() if v.requires_grad).backward()
    assert all(p.grad is not None for p in model.parameters()) and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    assert not teacher.model.training


def test_the_first_step_of_the_ramp_learns_from_labels_alone():
    c = settings(*TINY, "ramp=1")
    model = cw.build(c, 6)
    found = cw.step(model.train(), batch_of(c), 0, Teacher(model), None, c)
    found = {k: float(v.detach()) for k, v in found.items()}
    assert found["weighted"] == 0 and found["boundary"] == 0 and found["labelled"] > 0


def test_labels_only_needs_no_unlabelled_stream():
    c = settings(*TINY, "lambda_u=0")
    batch = {k: v for k, v in batch_of(c).items() if "." not in k}
    assert list(cw.step(cw.build(c, 6).train(), batch, 0, None, None, c)) == ["labelled"]


def test_a_whole_run_never_reads_an_unlabelled_mask_and_reports(tmp_path, monkeypatch):
    c = settings(*TINY, "decay=memory", f"out={tmp_path / 'run'}")
    run = Run(c, supervision=cw.supervision(c), quiet=True)
    try:
        truth = run.truth("train")
        labelled, unlabelled = partitions.split(c, truth)
        read, masks = truth.read, []
        monkeypatch.setattr(truth, "read", lambda i, wants=("image", "mask"): (masks.append(i) if "mask" in wants else None, read(i, wants))[1])
        first = cw.burn_in(run, labelled)
        student, teacher = cw.fit_student(run, "student", first, labelled, unlabelled, c)
        assert masks and set(masks) <= set(labelled.tolist())
        assert not torch.equal(student.classifier.weight, teacher.model.classifier.weight)
        record = json.loads((run.folder / "log.jsonl").read_text().splitlines()[-1])
        assert {"labelled", "weighted", "boundary", "confidence", "T", "kept", "border"} <= set(record)
        judged = cw.judge_labels(run, teacher, unlabelled, c)
        assert 0 <= judged["right, all"] <= 1 and 0 < judged["mean confidence"] < 1
        assert set(cw.score(run, student, teacher, c)) == {"mIoU", "mIoU of the teacher", "at borders", "inside"}
    finally:
        run.close()
    again = Run(c, supervision=cw.supervision(c), quiet=True)
    try:
        predict = cw.reopen(again)
        x = rand(1, 3, 24, 24)
        assert_close(predict(x), student.eval()(x))
    finally:
        again.close()


def test_every_image_labelled_is_refused_in_one_sentence(tmp_path):
    c = settings(*TINY, "labels=1/1", f"out={tmp_path / 'run'}")
    run = Run(c, supervision=cw.supervision(c), quiet=True)
    try:
        with pytest.raises(ValueError, match="labels every image; there is nothing to learn"):
            cw.fit_student(run, "student", cw.build(c, 6), np.arange(24), np.arange(0), c)
        with pytest.raises(RunProblem, match="tags"):
            run.fit("x", cw.build(c, 6), None, Batches(run.truth("train"), 4, 0), c.train)
    finally:
        run.close()


def test_judging_labels_counts_as_a_loop_would(tmp_path):
    c = settings(*TINY, f"out={tmp_path / 'run'}", "threshold=fixed", "fixed=0.7", "train.batch=100")
    run = Run(c, supervision=cw.supervision(c), quiet=True)
    try:
        truth = run.truth("train")
        torch.manual_seed(3)
        net = cw.build(c, 6).eval()
        net.classifier.weight.data.mul_(200)  # opinions, right or wrong
        found = cw.judge_labels(run, net, np.arange(24), c)
        from seglite.data import normalise

        with torch.no_grad():
            p, label = net(normalise(np.stack([truth.read(i)["image"] for i in range(24)]), truth)).softmax(1).max(1)
        mask = torch.from_numpy(np.stack([truth.read(i)["mask"] for i in range(24)]))
        assert found["kept"] == pytest.approx(float((p > 0.7).float().mean()), abs=1e-4) and 0.05 < found["kept"] < 0.95
        assert found["right, kept"] == pytest.approx(float((label == mask)[p > 0.7].float().mean()), abs=1e-4)
        assert found["right, all"] == pytest.approx(float((label == mask).float().mean()), abs=1e-4)
    finally:
        run.close()


def test_gather_is_the_tensor_itself_in_one_process():
    x = torch.arange(3)
    assert parallel.gather(x) is x


# ---- the paper's network ------------------------------------------------------------------------------------------------------------------


def test_the_papers_network_has_the_published_layers_and_count():
    """ST++'s DeepLabv3+ on ResNet-50, written down from its published layers: convolutions have no bias, every one is followed by a norm."""
    c = settings("size=paper", "data=voc", "root=nowhere")
    with torch.device("meta"):
        model = cw.build(c, 21)
    conv = lambda i, o, k: i * o * k * k + 2 * o  # with the norm's scale and shift
    body, inputs = conv(3, 64, 7), 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            body += conv(inputs, planes, 1) + conv(planes, planes, 3) + conv(planes, 4 * planes, 1) + (conv(inputs, 4 * planes, 1) if block == 0 else 0)
            inputs = 4 * planes
    head = conv(2048, 256, 1) + 3 * conv(2048, 256, 3) + conv(2048, 256, 1) + conv(5 * 256, 256, 1)
    decoder = conv(256, 48, 1) + conv(256 + 48, 256, 3) + conv(256, 256, 3) + 256 * 21 + 21
    count = sum(p.numel() for p in model.parameters())
    assert body == 23_508_032 and count == body + head + decoder == 40_352_181
    assert [conv[0].dilation for conv in list(model.aspp.convs)[1:4]] == [(12, 12), (24, 24), (36, 36)]
    assert isinstance(model.aspp.project[-1], torch.nn.Dropout2d) and model.aspp.project[-1].p == 0.5
    assert isinstance(model.decoder[-1], torch.nn.Dropout) and model.decoder[-1].p == 0.1
    assert model.backbone.strides == (4, 8, 8, 8)
    assert "layer4.2.conv3.weight" in model.backbone.state_dict(), "the backbone takes torchvision's names"


def test_the_papers_recipe_runs_in_small(tmp_path):
    """size=paper with everything but sizes: ResNet-50's head rates, both dropouts, ramp, scaled crops with padding, the memory's grid."""
    c = settings("size=paper", "scenes.world=few", "data=scenes", "net=mobilenet_v2", "scenes.size=40", "scenes.train_images=8", "scenes.val_images=2", "labels=1/2",
                 "augment.long_side=40", "augment.crop=48", "burn_in.steps=1", "burn_in.batch=2", "train.steps=2", "train.batch=2", "burn_in.amp=off", "train.amp=off",
                 "decay=memory", "threads=1", f"out={tmp_path / 'run'}")
    assert (c.t0, c.beta, c.t_min, c.t_max, c.ema, c.output_stride) == (0.6, 0.5, 0.3, 0.8, 0.999, 8)
    run = Run(c, supervision=cw.supervision(c), quiet=True)
    try:
        labelled, unlabelled = partitions.split(c, run.data("train"))
        student, teacher = cw.fit_student(run, "student", cw.burn_in(run, labelled), labelled, unlabelled, c)
        assert all(torch.isfinite(p).all() for p in student.parameters())
        assert cw.predictor(teacher, config.override(c, test_scales=(1.0, 0.5)))(rand(1, 3, 40, 40)).shape == (1, 6, 40, 40)
    finally:
        run.close()


TWO = """
import sys, numpy as np, torch
from seglite import parallel
from seglite.papers import cwbass as cw
rank, world = parallel.start("cpu")
g = torch.Generator().manual_seed(0)
memory = cw.Memory(np.arange(4), 4, (6, 8))
place = torch.tensor([0, 1 / 6, 0, 1 / 8]).repeat(4, 1)
p, real = torch.rand(4, 6, 8, generator=g), torch.rand(4, 6, 8, generator=g) > 0.3
mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
for _ in range(2):
    memory.visit(torch.arange(4)[mine], place[mine], (p < 0.5)[mine])
torch.save({"visits": memory.visits, "mean": cw.mean_confidence(p[mine], real[mine])}, f"{sys.argv[1]}.{world}.{rank}")
parallel.stop()
"""


@pytest.mark.slow
def test_two_processes_share_one_memory_and_one_mean(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        done = subprocess.run([*launcher, str(script), str(tmp_path / "out")], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
        assert done.returncode == 0, done.stderr
    one, *two = (torch.load(tmp_path / f"out.{name}") for name in ("1.0", "2.0", "2.1"))
    assert int(one["visits"].max()) == 2
    for part in two:
        assert torch.equal(part["visits"], one["visits"])
        assert_close(part["mean"], one["mean"])
