"""MGD: a small student, few labels, and two frozen teachers that are good at different things.

A light backbone loses most when labels are few. Here it learns from a deep, thin network and a shallow, wide one, both trained beforehand with the
same few labels: hard labels of both at every pixel, the deep one's answer for the image as a whole, the wide one's relations between regions. It does
so on labelled and on mixed unlabelled images. Only the student is kept.

Qin, Wu, Li, Xiao, Zheng, Wang, "Multi-Granularity Distillation Scheme Towards Lightweight Semi-Supervised Semantic Segmentation", ECCV 2022,
arXiv 2208.10169. "code" below: the authors' repository JayQine/MGD-SSSS.

    x, y       labelled                      T_D deep ---> labels(x), labels(u_mix), mean logits(u_mix)
    u0, u1  -- CutMix --> u_mix              T_W wide ---> labels(x), labels(u_mix), 49 x 49 relations of the 7 x 7 regions of u_mix
                                             student ----> logits [B, K, H, W], decoder feature [B, D, h, w]
    loss = CE(x, y) + pixel(x) + pixel(u_mix) + lambda_image |mean logits - T_D's| + lambda_region (relations - T_W's)^2

    python -m seglite.train method=mgd                                                      scenes, minutes of CPU
    python -m seglite.train method=mgd data=camvid root=$SEGLITE_DATA/camvid labels=1/8 deep_weights=... wide_weights=...
    python -m seglite.claims method=mgd seeds=0,1,2

B batch, K classes, C D channels, H W image, h w decoder feature, S = v * v regions.
"""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from seglite import files, losses
from seglite.config import Config, Recipe, override
from seglite.data import IGNORE, Batches, partitions, views
from seglite.data.transforms import make_transform
from seglite.evaluate import confusion_of, multi_scale, sliding_window
from seglite.measure import multiply_adds
from seglite.metrics import best_class
from seglite.nets.layers import count_parameters
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.resnet import BasicBlock, ResNet, resnet18, resnet101, wide_resnet50_2
from seglite.nets.segmenters import DeepLabV3Plus, resize
from seglite.nets.weights import load_weights
from seglite.run import seed_of
from seglite.teacher import Teacher, unwrap

Net = Literal["tiny", "tiny_deep", "tiny_wide", "resnet18_layer3", "resnet18", "mobilenet_v2", "mobilenet_v2_16", "resnet101", "wide_resnet50_2"]
Who = Literal["deep", "wide", "none"]


@dataclass
class Settings(Config):
    labels: str = "1/8"
    """which training images keep their labels: a fraction, a number of images, or a list file"""
    student: Net = "tiny"
    """the network that is kept. Paper: resnet18, mobilenet_v2. tiny: miniatures; resnet18_layer3: no layer4; mobilenet_v2_16: CW-BASS's"""
    deep: Net = "tiny_deep"
    """T_D, deep and thin. Paper: resnet101"""
    wide: Net = "tiny_wide"
    """T_W, shallow and wide. Paper: "Wide ResNet-34", which in the code is wide_resnet50_2 (3, 4, 6, 3 bottlenecks of doubled width)"""
    deep_weights: str = ""
    """file with pretrained backbone weights of T_D (weights= is the student's)"""
    wide_weights: str = ""
    """file with pretrained backbone weights of T_W"""
    teachers_from: str = ""
    """folder of an earlier run whose stages deep and wide are taken; every tensor must fit. Empty: they are trained here"""
    stem: Literal["7x7", "3x3x3"] = "7x7"
    """first layers of resnet18 and resnet101: 7x7 as in torchvision's weights, 3x3x3 as in the code"""
    head_width: int = 0
    """channels of ASPP and decoder; 0: the network's own (256 in the paper)"""
    pixel_teachers: Literal["both", "deep", "wide", "none"] = "both"
    """whose hard labels the student learns (L_P). Paper: both"""
    pixel_on: Literal["both", "labelled", "unlabelled"] = "both"
    """on which images it learns them. Paper: both"""
    image_teacher: Who = "deep"
    """whose mean logits it learns (L_I). Paper: deep"""
    region_teacher: Who = "wide"
    """whose relations between regions it learns (L_R). Paper: wide"""
    lambda_image: float = 0.08
    """weight of L_I, a mean over images and classes. Code, a sum, as a mean: VOC 0.084 (ResNet-18), 0.021 (MobileNetV2); Cityscapes 0.038"""
    lambda_region: float = 100.0
    """weight of L_R. Code: 100 with ResNet-18, 50 with MobileNetV2"""
    regions: int = 7
    """v: the decoder feature is pooled to v x v regions"""
    boxes: int = 3
    """rectangles of a CutMix mask; where they overlap they toggle"""
    learn_padding: bool = False
    """teachers also label the padding of unlabelled crops, as the code does; false: those pixels are ignored"""
    supervised: Literal["ce", "ohem"] = "ce"
    """loss on true labels: cross-entropy (VOC), or its hardest pixels (Cityscapes: threshold 0.7, 50,000 pixels per image)"""
    teacher_training: Literal["cps", "ema"] = "cps"
    """how teachers use unlabelled images: cps, two copies label for each other (code); ema, a slow average labels for the network"""
    semi_weight: float = 1.0
    """weight of the teachers' loss on unlabelled images. Code: 1 on VOC, 5 on Cityscapes"""
    burn_in: float = 0.0
    """share of a teacher's steps before unlabelled images count. Code: 0"""
    ema: float = 0.99
    """decay of the slow average (teacher_training=ema, and the baseline without teachers)"""
    window: int = 0
    """side of the sliding window at test, pixels; 0: the whole image. Code: the training crop, a third of it shared"""
    test_scales: tuple[float, ...] = (1.0,)
    """sizes at which the student sees a test image; probabilities are averaged. Code: 1"""
    deep_train: Recipe = field(default_factory=Recipe)
    """how T_D is trained"""
    wide_train: Recipe = field(default_factory=Recipe)
    """how T_W is trained"""


def supervision(config: Settings) -> tuple[str, ...]:
    """Masks of the labelled images only: streams of unlabelled images ask for nothing but the image."""
    return ("image", "mask")


# ---- networks -------------------------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """The head that a trunk carries: channels of ASPP and decoder, of the reduced fine map, rates of the ASPP."""

    width: int
    low: int
    rates: tuple[int, ...]


TINY = {"tiny": ((1, 1, 1), 8), "tiny_deep": ((2, 3, 2), 16), "tiny_wide": ((1, 1, 1), 32)}  # blocks per stage, channels after the stem
HEADS = {"tiny": Shape(16, 8, (1, 2, 3)), "tiny_deep": Shape(24, 12, (1, 2, 3)), "tiny_wide": Shape(32, 12, (1, 2, 3)),
         "mobilenet_v2": Shape(256, 24, (6, 12, 18)), "mobilenet_v2_16": Shape(128, 48, (6, 12, 18))}
PAPER_HEAD = Shape(256, 48, (6, 12, 18))


def deep_stem(body: ResNet, width: int) -> ResNet:
    """Three 3x3 convolutions of `width`, `width` and 2 `width` channels instead of the 7x7 (code, furnace/base_model/resnet.py); in place."""
    out, first = 2 * width, body.layer1[0]
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, width, 2), (width, width, 1), (width, out, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    body.conv1, body.bn1 = nn.Sequential(*layers[:-2]), layers[-2]
    if out != first.conv1.in_channels:  # resnet101: 128 channels leave the stem
        first.conv1 = nn.Conv2d(out, first.conv1.out_channels, first.conv1.kernel_size, bias=False)
        first.downsample[0] = nn.Conv2d(out, first.downsample[0].out_channels, 1, bias=False)
    return body


def trunk(name: Net, stem: str = "7x7") -> nn.Module:
    """The backbone of a student or teacher, untrained; `channels`, `strides` and `features` as every backbone."""
    if name in TINY:
        depths, width = TINY[name]
        body = ResNet(BasicBlock, depths, classes=0, width=width, stages=3, output_stride=16)
        body.maxpool = nn.Identity()  # pictures of 48 pixels: strides 2, 4, 8
        body.strides = (2, 4, 8)
        return body
    if name == "mobilenet_v2":
        body = mobilenet_v2(classes=0)
        for layer, rate in zip(list(body.features)[15:18], (2, 4, 8)):  # code: after the last stride, which therefore stays (stride 32)
            depthwise = next(m for m in layer.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
            depthwise.dilation = depthwise.padding = (rate, rate)
        return body
    if name in ("mobilenet_v2_16", "resnet18_layer3"):
        return mobilenet_v2(classes=0, output_stride=16) if name == "mobilenet_v2_16" else resnet18(classes=0, stages=3, output_stride=16)
    options = {"classes": 0, "output_stride": 16, "convention": "deeplab"}
    if name == "resnet18":
        body, width = resnet18(multi_grid=(1, 2), **options), 32
    elif name == "resnet101":
        body, width = resnet101(multi_grid=(1, 2, 4), **options), 64
    else:
        return wide_resnet50_2(multi_grid=(1, 2, 4), **options)
    return deep_stem(body, width) if stem == "3x3x3" else body


class Segmenter(nn.Module):
    """DeepLab v3+ that also returns what its classifier sees."""

    def __init__(self, name: Net, classes: int, config: Settings, weights: str = "", say: Callable = print):
        super().__init__()
        body, head = trunk(name, config.stem), HEADS.get(name, PAPER_HEAD)
        if weights:
            load_weights(body, weights, partial=("fc.", "classifier.", "features.18.", *(("layer4.",) if name == "resnet18_layer3" else ())), say=say)
        self.net = DeepLabV3Plus(body, classes, config.head_width or head.width, head.low, head.rates, dropout=0.0)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """image: [B, 3, H, W] -> logits [B, K, H, W], decoder feature [B, D, h, w]."""
        feature = self.net.features(image)  # [B, D, h, w]
        return resize(self.net.classifier(feature), image.shape[-2:]), feature  # [B, K, H, W], [B, D, h, w]


def trunk_cost(name: Net, stem: str = "7x7", side: int = 512) -> tuple[float, int]:
    """(multiply-adds in billions, parameters) of a trunk on a side x side image.

    Convolutions, and two operations per value of a batch norm: of the ways we tried, the one that gives the abstract's four ratios.
    """
    with torch.device("meta"):
        body, image = trunk(name, stem).eval(), torch.empty(1, 3, side, side)
    normed = [0]
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _inputs, output: normed.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body.features(image)
    return (counter.get_total_flops() / 2 + 2 * sum(normed)) / 1e9, count_parameters(body)


# The stems that give the abstract's ratios: deep ones in ResNet-18 and -101, none in the wide one.
COUNTED = {"resnet18": "3x3x3", "mobilenet_v2": "7x7", "resnet101": "3x3x3", "wide_resnet50_2": "7x7"}


# ---- losses ---------------------------------------------------------------------------------------------------------------------------


def pixel_loss(logits: torch.Tensor, labels: list[torch.Tensor]) -> torch.Tensor:
    """L_P: cross-entropy with the hard labels of each teacher, added up; no threshold, no temperature. logits [B, K, H, W], labels [B, H, W] each."""
    return torch.stack([losses.cross_entropy(logits, target) for target in labels]).sum()


def image_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_I: how far the mean logits of an image lie from the teacher's, mean over images and classes. Both logits [B, K, H, W], never softmaxed."""
    return (student.float().mean((2, 3)) - teacher.float().mean((2, 3))).abs().mean()


def relations(feature: torch.Tensor, v: int = 7) -> torch.Tensor:
    """Cosines between the v x v regions of an image: feature [B, D, h, w] -> [B, S, S], S = v * v."""
    with torch.autocast(feature.device.type, enabled=False):  # differences of cosines are small: bfloat16 would lose them
        regions = F.adaptive_avg_pool2d(feature.float(), v).flatten(2)  # [B, D, S]
        unit = F.normalize(regions, dim=1)  # [B, D, S]
        return unit.mT @ unit  # [B, S, S]


def region_loss(student: torch.Tensor, teacher: torch.Tensor, v: int = 7) -> torch.Tensor:
    """L_R: mean squared difference of the relations. Features [B, C, h, w] and [B, D, h, w]: only relations are compared, so no adapter is needed."""
    return (relations(student, v) - relations(teacher, v)).square().mean()


def supervised_loss(logits: torch.Tensor, mask: torch.Tensor, config: Settings) -> torch.Tensor:
    """L_sup on true labels. logits [B, K, H, W], mask int64 [B, H, W]."""
    return losses.ohem_cross_entropy(logits, mask, 0.7, 50_000 * len(mask)) if config.supervised == "ohem" else losses.cross_entropy(logits, mask)


# ---- stage 1: the student -------------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a frozen teacher says about one batch."""

    labels: torch.Tensor  # [B, H, W]
    mixed_labels: torch.Tensor  # [B, H, W]
    logits: torch.Tensor  # [B, K, H, W]
    feature: torch.Tensor  # [B, D, h, w]


def mixed(batch: dict) -> torch.Tensor:
    """u_mix: float [B, 3, H, W]."""
    return views.paste(batch["u0.image"], batch["u1.image"], batch["u0.mix"])


def mixed_labels(first: torch.Tensor, second: torch.Tensor, batch: dict, config: Settings) -> torch.Tensor:
    """Hard labels of u_mix from logits [B, K, H, W] of the two images *before* mixing: int64 [B, H, W], 255 on padding."""
    labels = best_class(views.paste(first, second, batch["u0.mix"]))  # [B, H, W]
    if config.learn_padding:
        return labels
    there = [views.valid(batch[f"{u}.place"], *labels.shape[1:]) for u in ("u0", "u1")]  # [B, H, W]
    return labels.masked_fill(~views.paste(*there, batch["u0.mix"]), IGNORE)  # [B, H, W]


def ask(teacher: Callable, batch: dict, config: Settings) -> Answer:
    """The teacher sees x, u0, u1 and u_mix; in evaluation mode no image changes the answer for another, so one call does for all four."""
    B = len(batch["image"])
    logits, feature = teacher(torch.cat([batch["image"], batch["u0.image"], batch["u1.image"], mixed(batch)]))  # [4*B, K, H, W], [4*B, D, h, w]
    x, u0, u1, u_mix = logits.split(B)  # [B, K, H, W]
    return Answer(best_class(x), mixed_labels(u0, u1, batch, config), u_mix, feature[3 * B:])


def uses_unlabelled(config: Settings) -> bool:
    """Does any loss of these settings look at unlabelled images?"""
    return (config.pixel_teachers != "none" and config.pixel_on != "labelled") or config.image_teacher != "none" or config.region_teacher != "none"


def student_losses(logits: torch.Tensor, feature: torch.Tensor, mask: torch.Tensor, answers: dict[str, Answer], config: Settings) -> dict:
    """Every term of the loss, weighted, by name.

    logits [N, K, H, W] and feature [N, D, h, w] of x alone (N = B), or of x and u_mix (N = 2*B); mask int64 [B, H, W]; answers by "deep" and "wide".
    """
    B, wanted = len(mask), ("deep", "wide") if config.pixel_teachers == "both" else (config.pixel_teachers,)
    asked = [answers[name] for name in wanted if name != "none"]
    found = {"sup": supervised_loss(logits[:B], mask, config)}
    if asked and config.pixel_on != "unlabelled":
        found["pixel_l"] = pixel_loss(logits[:B], [a.labels for a in asked])
    if asked and config.pixel_on != "labelled":
        found["pixel_u"] = pixel_loss(logits[B:], [a.mixed_labels for a in asked])
    if config.image_teacher != "none":
        found["image"] = config.lambda_image * image_loss(logits[B:], answers[config.image_teacher].logits)
    if config.region_teacher != "none":
        found["region"] = config.lambda_region * region_loss(feature[B:], answers[config.region_teacher].feature, config.regions)
    return found


def student_step(network: nn.Module, batch: dict, teachers: dict[str, Teacher], config: Settings) -> dict:
    """One step of stage 1."""
    answers = {name: ask(teacher, batch, config) for name, teacher in teachers.items()}
    image = torch.cat([batch["image"], mixed(batch)]) if uses_unlabelled(config) else batch["image"]
    return student_losses(*network(image), batch["mask"], answers, config)


# ---- stage 0: the teachers, and the baseline without teachers ---------------------------------------------------------------------------


class Pair(nn.Module):
    """Two copies of one architecture with different heads (Chen et al., "Cross pseudo supervision", CVPR 2021, arXiv 2106.01226)."""

    def __init__(self, build: Callable[[], Segmenter]):
        super().__init__()
        self.first, self.second = build(), build()

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image: [B, 3, H, W] -> two logits [B, K, H, W]."""
        return [self.first(image)[0], self.second(image)[0]]


@torch.no_grad()
def in_evaluation(network: nn.Module, image: torch.Tensor):
    """What a network in training would answer if it were tested now; its batch norms learn nothing from it."""
    network.eval()
    try:
        return network(image)
    finally:
        network.train()


def cps_step(network: nn.Module, batch: dict, started: bool, config: Settings) -> dict:
    """Each copy learns true labels, and on u_mix the other's hard labels."""
    B = len(batch["image"])
    if not started:
        return {f"sup_{i}": supervised_loss(z, batch["mask"], config) for i, z in enumerate(network(batch["image"]))}
    before = in_evaluation(unwrap(network), torch.cat([batch["u0.image"], batch["u1.image"]]))  # [2*B, K, H, W]
    labels = [mixed_labels(*z.split(B), batch, config) for z in before]  # [B, H, W]
    found = {}
    for i, z in enumerate(network(torch.cat([batch["image"], mixed(batch)]))):
        found[f"sup_{i}"] = supervised_loss(z[:B], batch["mask"], config)
        found[f"semi_{i}"] = config.semi_weight * losses.cross_entropy(z[B:], labels[1 - i])
    return found


def ema_step(network: nn.Module, batch: dict, slow: Teacher, started: bool, config: Settings) -> dict:
    """The network learns true labels, and on u_mix the hard labels of its own slow average."""
    B = len(batch["image"])
    if not started:
        return {"sup": supervised_loss(network(batch["image"])[0], batch["mask"], config)}
    before = slow(torch.cat([batch["u0.image"], batch["u1.image"]]))[0]  # [2*B, K, H, W]
    z = network(torch.cat([batch["image"], mixed(batch)]))[0]  # [2*B, K, H, W]
    return {"sup": supervised_loss(z[:B], batch["mask"], config),
            "semi": config.semi_weight * losses.cross_entropy(z[B:], mixed_labels(*before.split(B), batch, config))}


# ---- the pipeline -----------------------------------------------------------------------------------------------------------------------


def streams(run, recipe: Recipe, stage: int) -> partitions.Together:
    """Labelled images, and two independent streams of unlabelled ones, all with the same weak augmentation."""
    config, data = run.config, run.data("train")
    labelled, unlabelled = partitions.split(config, data)
    weak = make_transform(config.augment, data.mean)
    seed = config.seed * 100 + 10 * stage
    seen = run.data("train", ("image",))
    blind = lambda offset: Batches(seen, recipe.batch, seed + offset, views.Views(weak, boxes=config.boxes, place=True), ("image",), indices=unlabelled)
    return partitions.Together(Batches(data, recipe.batch, seed, weak, indices=labelled), u0=blind(1), u1=blind(2))


def builder(run, role: str, name: str = "") -> Callable[[], Segmenter]:
    """Makes the student or a teacher, untrained; the first one from the same random numbers in every run of this seed. name: the stage, if not the role."""
    config, classes = run.config, len(run.data("train").classes)
    torch.manual_seed(seed_of(config.seed, role))
    weights = {"student": config.weights, "deep": config.deep_weights, "wide": config.wide_weights}[role]
    return lambda: run.build(name or role, lambda: Segmenter(getattr(config, role), classes, config, weights, run.say))


def fit_semi(run, name: str, role: str, recipe: Recipe, kind: str, stage: int) -> Teacher:
    """Train one architecture by cps or ema; returns it frozen. Stage 0, and (role "student", ema) the plain pseudo-label baseline."""
    config, data, start = run.config, streams(run, recipe, stage), run.config.burn_in * recipe.steps
    make = builder(run, role, name)
    if kind == "cps":
        model, slow = Pair(make), None
        step = lambda network, batch, t: cps_step(network, batch, t >= start, config)
    else:
        model = make()
        slow = Teacher(model, config.ema)
        step = lambda network, batch, t: ema_step(network, batch, slow, t >= start, config)
    if config.teachers_from and role != "student":
        take_over({"model": model, "ema": slow}, Path(config.teachers_from) / name / "final.pt")
    else:
        run.fit(name, model, step, data, recipe, ema=slow)
    return Teacher(model.first if slow is None else slow.model, None).to(run.device)


def take_over(kept: dict, path: Path) -> None:
    """Load a finished stage of another run; ValueError unless every tensor of it fits."""
    if not path.is_file():
        raise ValueError(f"teachers_from: there is no {path}; give the folder of a finished run of method=mgd with the same teachers")
    saved = files.load_tensors(path)
    for key, thing in ((key, thing) for key, thing in kept.items() if thing is not None):
        try:
            thing.load_state_dict(saved.get(key, {}))
        except RuntimeError as problem:
            raise ValueError(f"teachers_from: {path} holds another network ({str(problem).splitlines()[1].strip()[:160]}); deep=, wide=, stem=, "
                             "head_width= and teacher_training= must be those of that run") from None


def needed(config: Settings) -> tuple[str, ...]:
    """Which teachers the losses of these settings ask."""
    asked = {config.pixel_teachers, config.image_teacher, config.region_teacher}
    return tuple(name for name in ("deep", "wide") if name in asked or "both" in asked)


def fit_teachers(run) -> dict[str, Teacher]:
    """Stage 0. Both see the same labels and the same unlabelled images as the student."""
    config = run.config
    return {name: fit_semi(run, name, name, getattr(config, f"{name}_train"), config.teacher_training, stage)
            for stage, name in enumerate(("deep", "wide"), 1) if name in needed(config)}


def fit_student(run, teachers: dict[str, Teacher]) -> Segmenter:
    """Stage 1."""
    config = run.config
    return run.fit("student", builder(run, "student")(), lambda network, batch, t: student_step(network, batch, teachers, config),
                   streams(run, config.train, 3), config.train)


def predictor(model: nn.Module, config: Settings) -> Callable:
    """image [B, 3, H, W] normalised -> scores [B, K, H, W]."""
    predict = torch.no_grad()(lambda image: model(image)[0])
    predict = sliding_window(predict, config.window) if config.window else predict
    return multi_scale(predict, config.test_scales) if tuple(config.test_scales) != (1.0,) else predict


def quality(run, model: nn.Module) -> dict:
    """Validation mIoU, percent."""
    return {"mIoU": 100 * confusion_of(predictor(model, run.config), run.truth("val"), run.device).miou()}


def cost(model: nn.Module, shape: tuple[int, ...]) -> dict:
    """Parameters, and multiply-adds of one image of this shape, in millions."""
    return {"parameters": count_parameters(model), "MMAC": multiply_adds(copy.deepcopy(model).eval(), shape) / 1e6}


def reopen(run) -> Callable:
    """The student of a finished run."""
    return predictor(fit_student(run, {}), run.config)


def train(run) -> None:
    """Stage 0, a look at the teachers, stage 1."""
    config = run.config
    teachers = fit_teachers(run)
    scores = {name: run.make(f"{name}_quality", lambda: quality(run, teacher)) for name, teacher in teachers.items()}
    for name, row in scores.items():
        run.say(f"{name} teacher: {row['mIoU']:.1f} mIoU")
    student = fit_student(run, teachers)
    shape = run.truth("val").read(0, ("image",))["image"].shape[:2]
    own, rows = cost(student, shape), []
    for name, model in {"student": student, **teachers}.items():
        spent = cost(model, shape)
        found = scores.get(name) or quality(run, model)
        rows.append([f"{name}: {getattr(config, name)}", round(found["mIoU"], 2), f"{spent['parameters']:,}", round(spent["MMAC"], 1),
                     round(spent["parameters"] / own["parameters"], 2), round(spent["MMAC"] / own["MMAC"], 2)])
    table = {"title": "What the student costs, and what its teachers cost", "rows": rows,
             "columns": ["", "mIoU", "parameters", "million multiply-adds", "parameters / student's", "multiply-adds / student's"],
             "note": f"whole networks, one image of {shape[0]} x {shape[1]}; only the student is used at test time"}
    labelled, unlabelled = partitions.split(config, run.data("train"))
    run.report(predictor(student, config), model=student, tables=[table],
               notes=[f"{len(labelled)} labelled and {len(unlabelled)} unlabelled images",
                      *(f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1))])


# ---- the claims -------------------------------------------------------------------------------------------------------------------------


class Classroom(nn.ModuleDict):
    """Students of several settings that learn side by side from the same batches, so that the teachers are asked once.

    No parameter is shared and the loss is a sum, so each is trained as if it were alone (tested).
    """

    def forward(self, image: torch.Tensor, mixed_image: torch.Tensor, blind: set[str]) -> dict:
        """(logits, feature) by name; students in `blind` see the labelled images alone. Both images [B, 3, H, W]."""
        both = torch.cat([image, mixed_image])  # [2*B, 3, H, W]
        return {name: student(image if name in blind else both) for name, student in self.items()}


def fit_classroom(run, teachers: dict[str, Teacher], plans: dict[str, Settings]) -> Classroom:
    """Every plan's student, from the same start, with the recipe of `train.*`."""
    blind = {name for name, plan in plans.items() if not uses_unlabelled(plan)}

    def step(network, batch, t):
        answers = {name: ask(teacher, batch, run.config) for name, teacher in teachers.items()}
        seen = network(batch["image"], mixed(batch), blind)
        return {f"{name}: {key}": value for name, plan in plans.items()
                for key, value in student_losses(*seen[name], batch["mask"], answers, plan).items()}

    students = Classroom({name: builder(run, "student", "students")() for name in plans})
    return run.fit("students", students, step, streams(run, run.config.train, 3), run.config.train)


NONE = {"pixel_teachers": "none", "image_teacher": "none", "region_teacher": "none"}
PIXELS = {"image_teacher": "none", "region_teacher": "none"}
GRID = {f"{who}, {where}": {**PIXELS, "pixel_teachers": key, "pixel_on": on}
        for who, key in (("deep", "deep"), ("wide", "wide"), ("deep + wide", "both"))
        for where, on in (("labelled", "labelled"), ("unlabelled", "unlabelled"), ("both", "both"))}
LOSSES = {"L_P": PIXELS, "L_P + L_I": {"region_teacher": "none"}, "L_P + L_R": {"image_teacher": "none"}, "L_P + L_I + L_R": {},
          "L_I from wide, L_R from deep": {"image_teacher": "wide", "region_teacher": "deep"}}
ROWS = {"labels only": NONE, **GRID, **{row: changes for row, changes in LOSSES.items() if row != "L_P"}}  # L_P is the grid's last row
STUDENTS, PIXEL_TABLE, LOSS_TABLE = "A. Students of equal budget", "B. Whose hard labels, and on which images", "C. Which losses"


def claim(run) -> dict:
    """One seed of three tables of students with the same budget, start and batches; the teachers stand in the first."""
    config, teachers = run.config, fit_teachers(run)
    students = fit_classroom(run, teachers, {row: override(config, **changes) for row, changes in ROWS.items()})
    alone = fit_semi(run, "pseudo_labels", "student", config.train, "ema", 3)
    judged = run.make("scores", lambda: {name: quality(run, model)
                                         for name, model in {**students, "plain pseudo-labels": alone, **teachers}.items()})
    shape = run.truth("val").read(0, ("image",))["image"].shape[:2]
    row = lambda name, model: {**judged[name], "MMAC": cost(model, shape)["MMAC"]}
    first = {"labels only": row("labels only", alone), "plain pseudo-labels": row("plain pseudo-labels", alone),
             "pixel KD, labelled images only": row("deep + wide, labelled", alone), "MGD": row("L_P + L_I + L_R", alone),
             "(deep teacher)": row("deep", teachers["deep"]), "(wide teacher)": row("wide", teachers["wide"])}
    return {STUDENTS: first, PIXEL_TABLE: {name: judged[name] for name in ("labels only", *GRID)},
            LOSS_TABLE: {name: judged["deep + wide, both" if name == "L_P" else name] for name in LOSSES}}


CLAIM = {
    "title": "MGD in miniature: scenes.world=few, one label in eight",
    "headline": (STUDENTS, "mIoU", ("labels only", "plain pseudo-labels", "MGD")),
    "paper": {"abstract": "Cityscapes 1/16: ResNet-18 +11.5, MobileNetV2 +4.6 mIoU over the same backbone's baseline; backbone FLOPs down 3.4-5.3x and "
                          "38.7-59.6x"},
    "statements": {
        "MGD beats the same student trained on labels only":
            lambda t: t[STUDENTS]["MGD"]["mIoU"] > t[STUDENTS]["labels only"]["mIoU"],
        "MGD beats plain pseudo-labels":
            lambda t: t[STUDENTS]["MGD"]["mIoU"] > t[STUDENTS]["plain pseudo-labels"]["mIoU"],
        "MGD beats pixel distillation on labelled images only":
            lambda t: t[STUDENTS]["MGD"]["mIoU"] > t[STUDENTS]["pixel KD, labelled images only"]["mIoU"],
        "both teachers are better than the label-only student":
            lambda t: min(t[STUDENTS][f"({name} teacher)"]["mIoU"] for name in ("deep", "wide")) > t[STUDENTS]["labels only"]["mIoU"],
        "two teachers beat either one (L_P on both kinds of image)":
            lambda t: t[PIXEL_TABLE]["deep + wide, both"]["mIoU"] > max(t[PIXEL_TABLE][f"{name}, both"]["mIoU"] for name in ("deep", "wide")),
        "the image-level loss helps": lambda t: t[LOSS_TABLE]["L_P + L_I"]["mIoU"] > t[LOSS_TABLE]["L_P"]["mIoU"],
        "the region-level loss helps": lambda t: t[LOSS_TABLE]["L_P + L_R"]["mIoU"] > t[LOSS_TABLE]["L_P"]["mIoU"],
        "image level from deep and region level from wide beats the exchange":
            lambda t: t[LOSS_TABLE]["L_P + L_I + L_R"]["mIoU"] > t[LOSS_TABLE]["L_I from wide, L_R from deep"]["mIoU"],
    },
}

RECIPES = {
    "toy": {
        "scenes.world": "few", "scenes.size": 48, "scenes.train_images": 320, "scenes.val_images": 150, "labels": "1/8",
        "augment.flip": 0.0, "teacher_training": "ema", "burn_in": 0.8, "lambda_image": 0.1, "lambda_region": 10.0,
        **{f"{stage}.{key}": value for stage in ("deep_train", "wide_train", "train")
           for key, value in (("steps", 300), ("batch", 8), ("optimizer", "adam"), ("lr", 5e-3), ("weight_decay", 0.0))},
    },
    "small": {
        "student": "mobilenet_v2_16", "deep": "mobilenet_v2_16", "wide": "resnet18_layer3", "head_width": 64, "labels": "1/8",
        "teacher_training": "ema", "burn_in": 0.8, "lambda_image": 0.021, "lambda_region": 50.0, "augment.long_side": 240, "augment.scale_min": 0.75,
        "augment.scale_max": 1.5, "augment.crop": 128, "test_scales": (0.5,),
        **{f"{stage}.{key}": value for stage in ("deep_train", "wide_train", "train")
           for key, value in (("steps", 600), ("batch", 8), ("lr", 0.02), ("channels_last", True))},
    },
    "paper": {
        "student": "resnet18", "deep": "resnet101", "wide": "wide_resnet50_2", "labels": "1/8", "lambda_image": 0.084, "lambda_region": 100.0,
        "voc.train": "train_aug", "voc.masks": "SegmentationClassAug", "augment.scale_min": 0.5, "augment.scale_max": 2.0, "augment.crop": 512,
        "window": 512,
        **{f"{stage}.{key}": value for stage in ("deep_train", "wide_train", "train")
           for key, value in (("steps", 39350), ("batch", 8), ("lr", 2.5e-3), ("weight_decay", 4e-4), ("decay_all", False))},
        "wide_train.lr": 1e-3,
    },
}

DEVIATIONS = (
    "Code: teachers stay in training mode, with batch statistics that go on changing; here they are in evaluation mode. Effect not measured.",
    "Code: L_I is a sum over images and classes; here a mean, and lambda_image is converted (0.002 x 2 images x 21 classes = 0.084).",
    "Code: losses of the frozen teachers against the student's labels are constants; left out.",
    "Code: x and u_mix pass the student one after the other; here as one batch, so batch norm sees both at once.",
    "Code: labels on the padding of unlabelled crops count; here they are ignored (learn_padding=true restores them).",
    "Code: the head's image pooling is added after the projection and activations are leaky; here it is DeepLab v3+'s, concatenated, without dropout.",
    "Code: ResNet-18's first layers start from random numbers because their names do not match; stem=7x7 takes torchvision's with weights.",
    "Code: cps labels come from batch statistics; here from the copy in evaluation mode.",
    "Code: windows add logits, ours average probabilities; and the code picks the best of the last epochs on val, we take the last.",
    "4 GPUs: the code divides losses by their number twice; lr and weight decay of size=paper are the equivalents for one mean over the batch.",
    "Miniatures learn by Adam; their teachers by ema instead of cps (half the cost) after a burn-in on labels, on 48 x 48 pictures.",
)
