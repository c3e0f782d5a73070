"""MGD: each loss against its plain form, what teachers see and never change, the authors' networks and their published cost ratios, a whole small run."""
import contextlib
import io
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from seglite import config, train
from seglite.data import IGNORE, Batch, open_data
from seglite.nets.layers import count_parameters
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.resnet import resnet18, resnet101, wide_resnet50_2
from seglite.papers import mgd
from seglite.reopen import open_run
from seglite.run import Run
from seglite.teacher import Teacher
from tests.tolerances import assert_close

K = 4


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settings(*typed) -> mgd.Settings:
    return config.parse(["method=mgd", *typed], {"mgd": mgd})[0]


def batch_of(B=2, side=16, seed=0) -> Batch:
    """Labelled images with masks, two batches of unlabelled ones without, a mask that pastes the right half."""
    mix = torch.zeros(B, side, side, dtype=torch.bool)
    mix[:, :, side // 2:] = True
    place = torch.tensor([0, 1 / side, 0, 1 / side]).repeat(B, 1)
    mask = torch.randint(0, K, (B, side, side), generator=torch.Generator().manual_seed(seed))
    return Batch({"image": rand(B, 3, side, side, seed=seed), "mask": mask, "u0.image": rand(B, 3, side, side, seed=seed + 1), "u0.mix": mix,
                  "u0.place": place, "u1.image": rand(B, 3, side, side, seed=seed + 2), "u1.mix": ~mix, "u1.place": place})


def tiny_net(name="tiny", seed=0) -> mgd.Segmenter:
    torch.manual_seed(seed)
    return mgd.Segmenter(name, K, settings())


# ---- losses ---------------------------------------------------------------------------------------------------------------------------


def test_relations_are_symmetric_cosines_with_a_unit_diagonal():
    M = mgd.relations(rand(2, 5, 15, 20), 7)
    assert M.shape == (2, 49, 49)
    assert_close(M, M.mT)
    assert_close(M.diagonal(dim1=1, dim2=2), torch.ones(2, 49))
    assert M.abs().max() <= 1 + 1e-6


def test_relations_keep_their_digits_under_mixed_precision():
    feature = rand(2, 5, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        M = mgd.relations(feature)
    assert_close(M, mgd.relations(feature))


def test_region_loss_is_the_plain_loop():
    s, w = rand(2, 3, 8, 12), rand(2, 5, 4, 6, seed=1)
    total = 0.0
    for b in range(2):
        q, p = ([F.adaptive_avg_pool2d(x[b], 2)[:, i, j] for i in range(2) for j in range(2)] for x in (s, w))
        for i in range(4):
            for j in range(4):
                cos = [float(v[i] @ v[j] / (v[i].norm() * v[j].norm())) for v in (q, p)]
                total += (cos[0] - cos[1]) ** 2
    assert_close(mgd.region_loss(s, w, 2), torch.tensor(total / 32))


def test_region_loss_does_not_see_the_length_of_a_region_but_its_direction():
    feature = rand(2, 6, 14, 21)
    scale = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(3)) + 0.1
    scaled = feature * scale.repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert mgd.region_loss(feature, scaled) < 1e-10
    turned = torch.linalg.qr(rand(6, 6, seed=4))[0]  # all regions turned alike: their relations stay
    assert mgd.region_loss(feature, torch.einsum("dc,bchw->bdhw", turned, feature)) < 1e-10
    assert mgd.region_loss(feature, feature.flip(-1)) > 1e-3  # the same regions at other places


def test_image_loss_sees_logits_and_is_a_mean():
    s, d = rand(2, 21, 5, 6), rand(2, 21, 5, 6, seed=1)
    plain = sum(abs(float(s[b, c].mean() - d[b, c].mean())) for b in range(2) for c in range(21))
    assert_close(mgd.image_loss(s, d), torch.tensor(plain / 42))
    assert_close(mgd.image_loss(s, s + 3.0), torch.tensor(3.0))  # a softmax would hide the shift
    assert 0.084 * float(mgd.image_loss(s, d)) == pytest.approx(0.002 * plain, rel=1e-5)  # the code's sum on VOC, 2 images per GPU
    assert mgd.image_loss(s, s.flip(-1)) < 1e-6  # the place of a class is not its business


def test_pixel_loss_adds_the_teachers_without_threshold_or_temperature():
    logits, a, b = rand(2, K, 3, 5), torch.randint(0, K, (2, 3, 5)), torch.randint(0, K, (2, 3, 5))
    assert_close(mgd.pixel_loss(logits, [a, b]), F.cross_entropy(logits, a) + F.cross_entropy(logits, b))
    a[:, 0] = IGNORE
    assert_close(mgd.pixel_loss(logits, [a]), F.cross_entropy(logits, a, ignore_index=IGNORE))


def test_ohem_keeps_the_hard_pixels_of_each_image_share():
    mask = torch.zeros(1, 250, 300).long()
    logits = 3 * rand(1, K, 250, 300) + 9 * F.one_hot(mask, K).permute(0, 3, 1, 2)  # most of the 75,000 pixels are easy
    loss = F.cross_entropy(logits, mask, reduction="none").flatten()
    assert (loss > -np.log(0.7)).sum() < 50_000
    assert_close(mgd.supervised_loss(logits, mask, settings("supervised=ohem")), loss.sort(descending=True).values[:50_000].mean(),
                 factor=10)  # float32 sums of 50,000 in another order
    assert_close(mgd.supervised_loss(logits, mask, settings()), loss.mean(), factor=10)


# ---- what a teacher is asked --------------------------------------------------------------------------------------------------------------


def test_labels_of_the_mix_come_from_the_unmixed_images():
    """A "teacher" that answers by the mean of the whole image would answer otherwise on the mix."""
    batch = batch_of()
    batch["u0.image"], batch["u1.image"] = torch.full((2, 3, 16, 16), 1.0), torch.full((2, 3, 16, 16), 3.0)
    seen = []

    def teacher(image):
        seen.append(image)
        kind = image.mean((1, 2, 3)).round().long().clamp(0, K - 1)  # 1, 3, and 2 for the mix
        return F.one_hot(kind, K).float()[:, :, None, None].expand(-1, -1, 16, 16), image[:, :1]

    answer = mgd.ask(teacher, batch, settings())
    assert (answer.mixed_labels[:, :, :8] == 1).all() and (answer.mixed_labels[:, :, 8:] == 3).all()
    assert (answer.logits.argmax(1) == 2).all()  # image level: the teacher sees the mix itself
    assert torch.equal(answer.feature, mgd.mixed(batch)[:, :1])  # region level too
    assert torch.equal(mgd.mixed(batch)[:, 0], torch.where(batch["u0.mix"], 3.0, 1.0))


def test_one_call_for_four_sets_of_images_is_four_calls():
    teacher, batch = Teacher(tiny_net("tiny_deep"), None), batch_of()
    answer = mgd.ask(teacher, batch, settings())
    logits, feature = teacher(mgd.mixed(batch))
    assert_close(answer.logits, logits)
    assert_close(answer.feature, feature)
    assert torch.equal(answer.labels, teacher(batch["image"])[0].argmax(1))


def test_mixing_equal_images_is_the_identity():
    batch = batch_of()
    batch["u1.image"] = batch["u0.image"]
    teacher = Teacher(tiny_net(), None)
    assert torch.equal(mgd.mixed(batch), batch["u0.image"])
    answer = mgd.ask(teacher, batch, settings())
    assert torch.equal(answer.mixed_labels, answer.logits.argmax(1))


def test_padding_has_no_label_unless_asked_for():
    batch = batch_of()
    batch["u0.place"] = torch.tensor([-0.25, 1 / 16, 0, 1 / 16]).repeat(2, 1)  # the upper quarter of u0 is padding, and u1 covers its right half
    logits = rand(2, K, 16, 16)
    labels = mgd.mixed_labels(logits, logits, batch, settings())
    expected = logits.argmax(1)
    assert torch.equal(mgd.mixed_labels(logits, logits, batch, settings("learn_padding=true")), expected)
    expected[:, :4, :8] = IGNORE
    assert torch.equal(labels, expected)


# ---- one step -----------------------------------------------------------------------------------------------------------------------------

EVERYTHING = {"sup", "pixel_l", "pixel_u", "image", "region"}


@pytest.mark.parametrize("typed, terms", [
    ([], EVERYTHING), (["pixel_on=labelled"], EVERYTHING - {"pixel_u"}), (["pixel_on=unlabelled"], EVERYTHING - {"pixel_l"}),
    (["image_teacher=none"], EVERYTHING - {"image"}), (["region_teacher=none"], EVERYTHING - {"region"}),
    (["pixel_teachers=none"], {"sup", "image", "region"}),
    (["pixel_teachers=deep", "image_teacher=none", "region_teacher=none", "pixel_on=labelled"], {"sup", "pixel_l"}),
    (["pixel_teachers=none", "image_teacher=none", "region_teacher=none"], {"sup"})], ids=lambda v: "-".join(sorted(v)) if v else "all")
def test_settings_choose_the_terms_and_the_teachers_that_are_asked(typed, terms):
    chosen = settings(*typed)
    teachers = {name: Teacher(tiny_net(f"tiny_{name}"), None) for name in mgd.needed(chosen)}
    found = mgd.student_step(tiny_net(), batch_of(), teachers, chosen)
    assert set(found) == terms and all(v.requires_grad and torch.isfinite(v) for v in found.values())
    assert mgd.uses_unlabelled(chosen) == bool(terms & {"pixel_u", "image", "region"})
    assert ("deep" in teachers) == ("pixel_teachers=none" not in typed or "image" in terms)


def test_weights_multiply_and_magnitudes_are_logged():
    batch, teachers = batch_of(), {name: Teacher(tiny_net(f"tiny_{name}"), None) for name in ("deep", "wide")}
    one, two = (mgd.student_step(tiny_net(), batch, teachers, settings(f"lambda_image={a}", f"lambda_region={b}")) for a, b in ((0.1, 10), (0.2, 30)))
    assert_close(two["image"], 2 * one["image"])
    assert_close(two["region"], 3 * one["region"])
    assert_close(two["pixel_u"], one["pixel_u"])


def test_image_level_asks_the_deep_teacher_and_region_level_the_wide_one():
    z, f = rand(4, K, 16, 16), rand(4, 6, 8, 8)
    answer = lambda seed: mgd.Answer(torch.zeros(2, 16, 16).long(), torch.zeros(2, 16, 16).long(), rand(2, K, 16, 16, seed=seed), rand(2, 6, 8, 8, seed=seed))
    answers, mask = {"deep": answer(5), "wide": answer(6)}, torch.zeros(2, 16, 16).long()
    found = mgd.student_losses(z, f, mask, answers, settings("lambda_image=1", "lambda_region=1"))
    assert_close(found["image"], mgd.image_loss(z[2:], answers["deep"].logits))
    assert_close(found["region"], mgd.region_loss(f[2:], answers["wide"].feature))
    swapped = mgd.student_losses(z, f, mask, answers, settings("lambda_image=1", "lambda_region=1", "image_teacher=wide", "region_teacher=deep"))
    assert_close(swapped["image"], mgd.image_loss(z[2:], answers["wide"].logits))
    assert_close(swapped["region"], mgd.region_loss(f[2:], answers["deep"].feature))


def test_a_step_changes_nothing_in_the_teachers():
    teachers, student = {name: Teacher(tiny_net(f"tiny_{name}"), None) for name in ("deep", "wide")}, tiny_net(seed=1)
    school = torch.nn.ModuleDict({**teachers, "student": student}).train()  # even inside a module that trains
    before = {k: v.clone() for k, v in school.state_dict().items() if isinstance(v, torch.Tensor)}
    optimizer = torch.optim.SGD([p for p in school.parameters() if p.requires_grad], 0.1)
    sum(mgd.student_step(student, batch_of(), teachers, settings()).values()).backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for t in teachers.values() for p in t.parameters())
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, school.state_dict()[k])}
    assert changed == {"student"}


def test_region_loss_trains_the_decoder_and_leaves_the_classifier():
    student, teachers = tiny_net(), {"wide": Teacher(tiny_net("tiny_wide"), None)}
    chosen = settings("pixel_teachers=none", "image_teacher=none")
    mgd.student_step(student, batch_of(), teachers, chosen)["region"].backward()
    assert student.net.decoder[0][0].weight.grad.abs().sum() > 0 and student.net.classifier.weight.grad is None


# ---- stage 0 ------------------------------------------------------------------------------------------------------------------------------


def test_cps_teaches_each_copy_by_the_other():
    torch.manual_seed(0)
    pair, batch, chosen = mgd.Pair(lambda: mgd.Segmenter("tiny", K, settings())), batch_of(), settings()
    assert not torch.equal(pair.first.net.classifier.weight, pair.second.net.classifier.weight)
    for model, answer in ((pair.first, 1), (pair.second, 3)):  # copies of one opinion each
        torch.nn.init.zeros_(model.net.classifier.weight)
        model.net.classifier.bias.data = 5 * F.one_hot(torch.tensor(answer), K).float()
    found = mgd.cps_step(pair.train(), batch, True, chosen)
    assert set(found) == {"sup_0", "semi_0", "sup_1", "semi_1"}
    wrong = -torch.tensor([5.0, 0, 0, 0]).log_softmax(0)[1]  # what the other says has probability e^0 / (e^5 + 3)
    assert_close(found["semi_0"], wrong)
    assert_close(found["semi_1"], wrong)
    assert set(mgd.cps_step(pair, batch, False, chosen)) == {"sup_0", "sup_1"}
    assert_close(mgd.cps_step(pair, batch, True, settings("semi_weight=5"))["semi_0"], 5 * wrong)


def test_asking_a_network_in_training_leaves_no_trace():
    net = tiny_net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    logits, _ = mgd.in_evaluation(net, rand(2, 3, 16, 16))
    assert not logits.requires_grad and all(m.training for m in net.modules())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_ema_teaches_by_the_slow_average_after_the_burn_in():
    net, batch = tiny_net(), batch_of()
    slow = Teacher(tiny_net(seed=7), 0.9)
    assert set(mgd.ema_step(net, batch, slow, False, settings())) == {"sup"}
    found = mgd.ema_step(net.eval(), batch, slow, True, settings())
    target = mgd.mixed_labels(slow(batch["u0.image"])[0], slow(batch["u1.image"])[0], batch, settings())
    assert_close(found["semi"], F.cross_entropy(net(mgd.mixed(batch))[0], target), factor=10)  # a batch of four instead of two


# ---- the authors' networks ----------------------------------------------------------------------------------------------------------------


def test_compression_ratios_of_the_abstract():
    """3.4-5.3x and 38.7-59.6x: backbones at 512 x 512, convolutions and two operations per value of a batch norm, the code's stems."""
    spent = {name: mgd.trunk_cost(name, stem)[0] for name, stem in mgd.COUNTED.items()}
    ratios = [round(spent[teacher] / spent[student], 1) for student in ("resnet18", "mobilenet_v2") for teacher in ("resnet101", "wide_resnet50_2")]
    assert ratios == [3.4, 5.3, 38.7, 59.6]
    plain = {name: mgd.trunk_cost(name)[0] for name in mgd.COUNTED}  # torchvision's stems, which size=paper loads
    assert [round(plain[t] / plain["resnet18"], 1) for t in ("resnet101", "wide_resnet50_2")] == [3.3, 5.7]


@pytest.mark.parametrize("name, parameters, published", [("resnet18", 11_176_512, resnet18), ("resnet101", 42_500_160, resnet101),
                                                         ("wide_resnet50_2", 66_834_240, wide_resnet50_2), ("mobilenet_v2", 1_811_712, mobilenet_v2)])
def test_trunks_have_the_published_names_and_sizes(name, parameters, published):
    with torch.device("meta"):
        trunk, whole = mgd.trunk(name), published()
    own, theirs = trunk.state_dict(), whole.state_dict()
    assert count_parameters(trunk) == parameters
    assert all(theirs[k].shape == v.shape for k, v in own.items())
    assert all(k.startswith(("fc.", "classifier.", "features.18.")) for k in set(theirs) - set(own))


def test_dilations_and_strides_are_those_of_the_code():
    with torch.device("meta"):
        deep, small, phone = mgd.trunk("resnet101"), mgd.trunk("resnet18"), mgd.trunk("mobilenet_v2")
        stems = [mgd.trunk(name, "3x3x3") for name in ("resnet18", "resnet101")]
    assert [block.conv2.dilation[0] for block in deep.layer4] == [2, 4, 8] and deep.strides[-1] == 16
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in small.layer4] == [(2, 2), (4, 4)]
    depthwise = [[m.dilation[0] for m in phone.features[i].modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1] for i in range(14, 18)]
    assert depthwise == [[1], [2], [4], [8]] and phone.strides[-1] == 32
    assert [stem.conv1[-1].out_channels for stem in stems] == [64, 128]
    assert stems[1].layer1[0].downsample[0].in_channels == 128


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnet101", "wide_resnet50_2"])
def test_paper_networks_give_logits_and_the_decoder_feature(name):
    chosen = settings("size=paper", "data=voc", f"student={name}")
    with torch.device("meta"):
        net = mgd.Segmenter(name, 21, chosen)
        logits, feature = net(torch.empty(2, 3, 64, 96))
    assert logits.shape == (2, 21, 64, 96) and feature.shape == (2, 256, 16, 24)
    fine = {"mobilenet_v2": (24, 24), "resnet18": (64, 48)}.get(name, (256, 48))
    assert (net.net.low[0].in_channels, net.net.low[0].out_channels) == fine and net.net.decoder[0][0].in_channels == 256 + fine[1]
    assert [c[0].dilation[0] for c in net.net.aspp.convs[1:4]] == [6, 12, 18]
    assert net.net.aspp.project[-1].p == 0


def test_on_photographs_the_student_is_cwbasss_network():
    """size=small: both methods and their baselines train the same layers, so that their numbers can be compared."""
    from seglite.papers import cwbass

    other = config.parse(["method=cwbass", "data=camvid", "root=nowhere"], {"cwbass": cwbass})[0]
    own = settings("data=camvid", "root=nowhere")
    with torch.device("meta"):
        ours, theirs = mgd.Segmenter(own.student, 11, own).net, cwbass.build(other, 11)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    geometry = lambda net: [(m.stride, m.dilation, m.padding) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert geometry(ours) == geometry(theirs) and ours.backbone.strides == theirs.backbone.strides == (4, 8, 16, 16)
    assert all(m.p == 0 for net in (ours, theirs) for m in net.modules() if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d)))
    assert other.burn_in.steps == own.train.steps, "lesson 07 compares MGD with lesson 08's network after its burn-in, labels only, as many steps"
    assert own.train.batch == other.train.batch == other.burn_in.batch and own.train.lr == other.burn_in.lr
    assert (own.augment, own.test_scales, own.train.lr) == (other.augment, other.test_scales, other.train.lr)


def test_published_weights_reach_the_trunk(tmp_path):
    torch.save(resnet18(width=64).state_dict(), tmp_path / "resnet18.pth")
    net = mgd.Segmenter("resnet18", 21, settings("size=paper", "data=voc"), str(tmp_path / "resnet18.pth"), say=lambda s: None)
    published = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    assert torch.equal(net.net.backbone.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    with pytest.raises(ValueError, match="conv1"):  # the authors' code left such stems at random numbers without a word
        mgd.Segmenter("resnet18", 21, settings("size=paper", "data=voc", "stem=3x3x3"), str(tmp_path / "resnet18.pth"), say=lambda s: None)


def test_size_paper_is_the_authors_recipe():
    s = settings("size=paper", "data=voc")
    assert (s.student, s.deep, s.wide, s.teacher_training) == ("resnet18", "resnet101", "wide_resnet50_2", "cps")
    assert (s.train.lr, s.deep_train.lr, s.wide_train.lr) == (0.0025, 0.0025, 0.001)
    for recipe in (s.train, s.deep_train, s.wide_train):
        assert (recipe.batch, recipe.weight_decay, recipe.decay_all, recipe.power, recipe.schedule) == (8, 4e-4, False, 0.9, "poly")
        assert recipe.steps == 34 * 9259 // 8  # 34 passes over the unlabelled images of 1/8
    assert (s.lambda_region, s.regions, s.boxes, s.augment.crop, s.window, s.supervised, s.burn_in) == (100, 7, 3, 512, 512, "ce", 0)
    assert s.lambda_image == pytest.approx(0.002 * 2 * 21)


def test_windows_and_scales_at_test(tmp_path):
    """A network that answers with its input: windows and a half-size view give the image's own size back."""
    net = lambda image: (image.repeat(1, 2, 1, 1), None)
    image = rand(1, 3, 40, 52)
    assert_close(mgd.predictor(net, settings())(image), image.repeat(1, 2, 1, 1))
    assert_close(mgd.predictor(net, settings("window=24"))(image), image.repeat(1, 2, 1, 1).softmax(1))
    seen = []
    mgd.predictor(lambda view: (seen.append(view.shape) or view, None), settings("test_scales=0.5"))(image)
    assert seen == [(1, 3, 20, 26)]


def test_the_toy_never_mirrors_pictures_whose_stripes_are_the_class():
    """A mirror image turns rising stripes into falling ones, and the label stays."""
    assert settings().augment.flip == 0 and settings().scenes.world == "few"
    data, signs = open_data(settings("scenes.train_images=64"), "train"), {"rising": set(), "falling": set()}
    for sample in (data.read(i, ("image", "mask")) for i in range(len(data))):
        gy, gx = np.gradient(sample["image"].astype(float).mean(2))
        for name, found in signs.items():
            here = sample["mask"] == data.classes.index(name)
            if here.sum() >= 150:
                found.add(float(np.sign((gx * gy)[here].sum())))
    assert signs == {"rising": {1.0}, "falling": {-1.0}}  # mirroring changes the sign of gx alone


# ---- runs -----------------------------------------------------------------------------------------------------------------------------------

STAGES = ("deep_train", "wide_train", "train")
SMALL = {"scenes.size": 32, "scenes.train_images": 24, "scenes.val_images": 4, "threads": 1,
         **{f"{s}.steps": 3 for s in STAGES}, **{f"{s}.batch": 4 for s in STAGES}}


def run_of(folder, *typed):
    keys = SMALL | dict(argument.split("=") for argument in typed)
    chosen = settings(*(f"{k}={v}" for k, v in keys.items()), f"out={folder}")
    return Run(chosen, supervision=mgd.supervision(chosen), quiet=True)


def test_no_mask_of_an_unlabelled_image_is_read(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run")
    labelled, _ = mgd.partitions.split(run.config, run.data("train"))
    true_read, read = type(run.truth("train")).read, {"mask": set(), "image": set()}

    def watched(self, index, wants):
        for want in wants:
            read[want].add(index)
        return true_read(self, index, wants)

    monkeypatch.setattr(type(run.truth("train")), "read", watched)
    data = mgd.streams(run, run.config.train, 3)
    batches = [data[t] for t in range(8)]
    assert read["mask"] == set(labelled.tolist()) and len(labelled) == 3
    assert read["image"] == set(range(24))
    assert not any(torch.equal(b["u0.image"], b["u1.image"]) for b in batches)  # two independent streams
    run.close()


@pytest.mark.parametrize("kind", ["ema", "cps"])
def test_a_whole_run_reopens_and_lends_its_teachers(tmp_path, kind):
    typed = ["method=mgd", f"teacher_training={kind}", *(f"{k}={v}" for k, v in SMALL.items())]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert train.main([*typed, f"out={tmp_path}/run"], {"mgd": mgd}) == 0
    assert "deep teacher: " in said.getvalue() and "wide teacher: " in said.getvalue()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["costs"]["parameters"] == count_parameters(tiny_net()) - K * 17 + 6 * 17  # six classes instead of four: the student alone
    predict, data, run = open_run(tmp_path / "run", {"mgd": mgd})
    assert predict(torch.zeros(1, 3, 32, 32)).shape == (1, 6, 32, 32)
    run.close()

    lent = run_of(tmp_path / "second", f"teacher_training={kind}", f"teachers_from={tmp_path}/run")
    teachers = mgd.fit_teachers(lent)
    assert not (tmp_path / "second/deep").exists()
    saved = torch.load(tmp_path / "run/deep/final.pt", weights_only=True)["model" if kind == "cps" else "ema"]
    key = "first.net.classifier.weight" if kind == "cps" else "model.net.classifier.weight"
    assert torch.equal(teachers["deep"].model.net.classifier.weight, saved[key])
    lent.close()
    other = run_of(tmp_path / "third", f"teacher_training={kind}", f"teachers_from={tmp_path}/run", "deep=tiny_wide")
    with pytest.raises(ValueError, match="holds another network"):
        mgd.fit_teachers(other)
    other.config.teachers_from = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no"):
        mgd.fit_teachers(other)
    other.close()


def test_students_side_by_side_learn_as_if_alone(tmp_path):
    run = run_of(tmp_path / "run", "deep_train.steps=1", "wide_train.steps=1")
    teachers = mgd.fit_teachers(run)
    rows = {"labels only": mgd.NONE, "MGD": {}, "L_P": mgd.PIXELS}
    plans = {row: config.override(run.config, **changes) for row, changes in rows.items()}
    together = mgd.fit_classroom(run, teachers, plans)
    for i, plan in enumerate(plans.values()):
        alone = Run(config.override(plan, out=str(tmp_path / f"alone{i}")), supervision=run.supervision, quiet=True)
        student = mgd.fit_student(alone, {name: teachers[name] for name in mgd.needed(plan)})
        for (name, a), b in zip(student.state_dict().items(), list(together.values())[i].state_dict().values()):
            assert_close(b.double(), a.double(), torch.float32, what=name)
        alone.close()
    run.close()


def test_a_student_learns_from_teachers_what_its_labels_do_not_show():
    """Labels know classes 0 and 1, the teachers class 2 as well; the student sees it on unlabelled images only."""
    torch.manual_seed(0)
    truth = torch.zeros(8, 32, 32, dtype=torch.long)
    for i in range(8):
        truth[i, 8:24, 2 + i: 18 + i] = 1 + i % 2
    image = 0.1 * rand(8, 3, 32, 32) + F.one_hot(truth, 3).permute(0, 3, 1, 2)
    chosen = settings("pixel_teachers=deep", "image_teacher=none", "region_teacher=none", "pixel_on=unlabelled")
    teacher = lambda x: (10 * (x - 0.5), x)  # knows everything
    mix = torch.zeros(4, 32, 32, dtype=torch.bool)
    mix[:, :16] = True
    place = torch.tensor([0, 1 / 32, 0, 1 / 32]).repeat(4, 1)
    batch = Batch({"image": image[::2], "mask": truth[::2], "u0.image": image[1::2], "u1.image": image[[3, 5, 7, 1]], "u0.mix": mix, "u0.place": place,
                   "u1.place": place})
    student = mgd.Segmenter("tiny", 3, chosen).train()
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(40):
        loss = sum(mgd.student_step(student, batch, {"deep": teacher}, chosen).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = student.eval()(image)[0].argmax(1)
    assert np.mean((found == truth).numpy()) > 0.95 and (found[1::2] == 2)[truth[1::2] == 2].float().mean() > 0.85
