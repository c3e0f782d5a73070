"""BARM: new classes are carved out of the background, and the old background logit is never touched.

A segmenter learns classes in steps; each step labels only its own classes and calls everything else background, so the meaning of label 0 shifts
with every step. BARM gives each step one extra channel that only *corrects* the background logit, and cuts the correction off above zero: it may
take background away from a new class, and can never put background back over an old one. Two losses place the correction, two distil the rest.

Zhang, Gao, "Background Adaptation with Residual Modeling for Exemplar-Free Class-Incremental Semantic Segmentation", ECCV 2024, arXiv 2407.09838.
"code" below: the authors' ANDYZAQ/BARM; the equations are read from it (the paper's own numbering is not quoted).

    image [B, 3, H, W] --> body --> ASPP --> f [B, D, h, w] --+--> branch 0 --> z_0 [B, 1+C_0, h, w]   background, base classes
                                                              +--> branch 1 --> z_1 [B, 1+C_1, h, w]   residual r_1, classes of step 1
                                                              +--> branch t --> z_t [B, 1+C_t, h, w]   residual r_t, classes of step t
    test       background = z_0[bg] + min(r_1, 0) + ... + min(r_t, 0)        then sigmoid, enlarged, argmax over all channels
    training   the same with everything but r_t held still, and r_t not cut

    python -m seglite.train method=barm                                       scenes, 4 classes and then four times one
    python -m seglite.train method=barm learner=mib                           a method to compare with, same network and budget
    python -m seglite.train method=barm data=camvid root=$SEGLITE_DATA/camvid weights=$SEGLITE_DATA/weights/resnet18_imagenet_stem_to_layer3.pth
    python -m seglite.train method=barm size=paper data=voc root=VOC2012 task=10-1 weights=resnet101.pth
    python -m seglite.train method=barm size=paper data=ade20k root=ADE task=100-10 weights=resnet101.pth epochs=60 step_epochs=100 train.batch=8 \\
        step.batch=4 step.lr=0.01 lr_aspp=0.1 lr_old=0.01 lr_body=0.01
    python -m seglite.claims method=barm seeds=0,1,2

B batch, K channels of an output, D width of branches, H W image, h w feature map.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from seglite import incremental
from seglite.config import Config, Recipe, override
from seglite.data import IGNORE, Batches
from seglite.data.steps import USUAL, Judged, NewClassCrops, StepData, Task, images_of_step, make_task, plan, presence
from seglite.data.transforms import make_transform
from seglite.losses import counted_everywhere, cross_entropy
from seglite.metrics import Confusion
from seglite.nets.layers import StagePlan, count_parameters, freeze_batch_norm
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.resnet import BasicBlock, resnet18, resnet101
from seglite.nets.segmenters import ASPP, RATES, conv_bn_relu, resize
from seglite.nets.weights import load_weights
from seglite.papers.deeplab import label_map_of_each
from seglite.pictures import panels
from seglite.teacher import Teacher


@dataclass
class Settings(Config):
    task: str = ""
    """BASE-INCREMENT: 15-1 is 15 classes, then one per step. VOC: 19-1 15-5 15-1 10-1 5-3, ADE20K: 100-50 100-10 100-5 50-50. Default by data set"""
    order: tuple[int, ...] = ()
    """class ids of the data set in the order of learning; empty: as numbered"""
    setting: Literal["overlapped", "disjoint", "chunks"] = "overlapped"
    """images of a step: overlapped (the paper), disjoint (none with a later class), chunks (its own stretch of the list, for videos)"""
    learner: Literal["barm", "shared", "pseudo_labels", "fine_tuning", "mib", "plop", "joint"] = "barm"
    """barm; shared: one background channel, same branches, pseudo labels and distillation; pseudo_labels: no distillation; fine_tuning: neither;
    mib, plop: seglite/incremental.py; joint: all classes at once"""
    net: Literal["tiny", "resnet18", "mobilenet_v2", "resnet101"] = "tiny"
    """body; paper: resnet101. resnet18 ends after its third stage"""
    output_stride: int = 16
    """of every body but tiny (4). Paper: 16"""
    width: int = 256
    """channels of ASPP and branches. Paper: 256"""
    rates: tuple[int, ...] = ()
    """of the ASPP; empty: DeepLab v3's for the stride"""
    tau: float = 0.7
    """confidence above which the old model's class becomes a pseudo label (code)"""
    weight_positive: float = 1.0
    """of BgA+: the correction is negative on new classes (code: literals, as all these weights)"""
    weight_negative: float = 5.0
    """of BgA-: the correction stays away from all other pixels"""
    weight_gkd: float = 1.0
    """of the distillation of old logits, group by group"""
    weight_bfd: float = 4.0
    """of the distillation of old background features"""
    cut: Literal["test", "always", "never"] = "test"
    """where residuals above zero are cut: test and all earlier steps (code), also the current one in training, or nowhere (ablation)"""
    stop_gradient: bool = True
    """pseudo labels do not train old heads (3.2); False is the ablation"""
    distil_background: bool = True
    """learner=shared: whether distillation also holds the one background channel still"""
    copy_statistics: bool = True
    """a new branch starts with the base branch's batch-norm statistics too; the code leaves them at 0 and 1 for ever"""
    lr_aspp: float = 1.0
    """learning rate of the ASPP over that of new layers, steps 1 and later. VOC 1, ADE20K 0.1 (with step.lr=0.01)"""
    lr_old: float = 0.1
    """of old branches and heads. VOC 0.1, ADE20K 0.01"""
    lr_body: float = 0.1
    """of the body. VOC 0.1, ADE20K 0.01"""
    lr_body_first: float = 0.1
    """of the body in step 0, over that of the rest. Both data sets: 0.1"""
    epochs: int = 0
    """of step 0; sets its train.steps from its image count. 0: train.steps as given. VOC 50, ADE20K 60"""
    step_epochs: int = 0
    """of each later step. VOC 20, ADE20K 100"""
    new_share: float = 0.0
    """draw half of the crops of later steps again (ten times at most) until new classes fill this share; 0: off"""
    test_scale: float = 1.0
    """the network sees test images at this scale; its probabilities are enlarged to the full image"""
    test_crop: int = 0
    """shorter side resized to it and centre-cropped for scoring; VOC and ADE20K: 513, as MiB and all that follow"""
    ablations: bool = False
    """the claim also trains three more methods, and BARM without each of its parts; three times the time"""
    second: str = ""
    """the claim also compares BARM and one shared background in this task, say 6-2"""
    step: Recipe = field(default_factory=Recipe)
    """how each later step is trained (train.*: step 0)"""


def supervision(config: Settings) -> tuple[str, ...]:
    """Masks, of which each step sees its own classes only."""
    return ("image", "mask")


def softmax_learner(config: Settings) -> bool:
    return config.learner in ("mib", "plop")


# ---- the network ----------------------------------------------------------------------------------------------------------------------


class TinyBody(nn.Module):
    """A stem and three residual blocks, rates 1, 2, 4: stride 4 for 64-pixel images."""

    channels, strides = (32, 32, 32), (4, 4, 4)

    def __init__(self):
        super().__init__()
        self.stem = conv_bn_relu(3, 16, stride=2)
        down = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
        self.blocks = nn.ModuleList([BasicBlock(16, 32, StagePlan(2, 1, 1), down), BasicBlock(32, 32, StagePlan(1, 2, 2), None),
                                     BasicBlock(32, 32, StagePlan(1, 4, 4), None)])

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image: [B, 3, H, W] -> three maps [B, 32, H/4, W/4], sizes rounded up."""
        x, maps = self.stem(image), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class Maps(NamedTuple):
    """Everything the losses look at."""

    logits: torch.Tensor  # [B, K, h, w]
    heads: list[torch.Tensor]  # z_0 ... z_t, each background or residual first (shared: step 0 only)
    features: list[torch.Tensor]  # e_0 ... e_t, what each classifier sees
    body: list[torch.Tensor]  # maps of the body, and the ASPP's


def aggregate(heads: list[torch.Tensor], training: bool, cut: str = "test") -> torch.Tensor:
    """The unified output. heads: list of [B, 1+C_s, h, w] -> [B, K, h, w] with K = 1 + all classes.

    Corrections of earlier steps and the base background are held still in training (code: detach), so the background's gradient reaches the
    current residual alone. The current one is cut at test time only: while it learns, it must feel being above zero.
    """
    if len(heads) == 1:
        return heads[0]
    base, *residuals = [z[:, :1] for z in heads]
    low = [r if cut == "never" else r.clamp_max(0) for r in residuals]
    if training:
        now = low[-1] if cut == "always" else residuals[-1]
        background = torch.stack([base, *low[:-1]]).sum(0).detach() + now
    else:
        background = torch.stack([base, *low]).sum(0)
    return torch.cat([background, *(z[:, 1:] for z in heads)], 1)  # [B, K, h, w]


class StepNet(nn.Module):
    """Body, ASPP, and one branch (3x3, norm, ReLU) with a 1x1 classifier per step. All branches read the ASPP's output, none another branch.

    counts: classes of each step so far. residual: later classifiers have one more channel, the background residual (BARM); else the only
    background channel is the first classifier's.
    """

    def __init__(self, body: nn.Module, counts: list[int], width: int, rates: tuple[int, ...], residual: bool, cut: str = "test"):
        super().__init__()
        self.body, self.aspp, self.residual, self.cut = body, ASPP(body.channels[-1], width, rates), residual, cut
        self.branches = nn.ModuleList(conv_bn_relu(width, width) for _ in counts)
        self.classifiers = nn.ModuleList(nn.Conv2d(width, n + (residual or t == 0), 1) for t, n in enumerate(counts))
        for classifier in self.classifiers:
            nn.init.kaiming_normal_(classifier.weight)  # fan-in; the bias keeps PyTorch's start (code)

    def forward(self, image: torch.Tensor) -> Maps:
        """image: [B, 3, H, W] -> maps at the body's stride; in training mode the current residual is not cut."""
        maps = self.body.features(image)
        f = self.aspp(maps[-1])  # [B, D, h, w]
        features = [branch(f) for branch in self.branches]  # [B, D, h, w]
        heads = [classifier(e) for classifier, e in zip(self.classifiers, features)]
        logits = aggregate(heads, self.training, self.cut) if self.residual else torch.cat(heads, 1)  # [B, K, h, w]
        return Maps(logits, heads, features, [*maps, f])


def build(config: Settings, counts: list[int], say: Callable | None = None) -> StepNet:
    """A network with random branches and heads; the body has the weights of weights= when `say` is given (step 0)."""
    s = config.output_stride
    if config.net == "tiny":
        body, spare = TinyBody(), ()
    elif config.net == "resnet18":
        body, spare = resnet18(classes=0, stages=3, output_stride=s), ("fc.", "layer4.")
    elif config.net == "mobilenet_v2":
        body, spare = mobilenet_v2(classes=0, output_stride=s), ("classifier.", "features.18.")
    else:
        body, spare = resnet101(classes=0, output_stride=s), ("fc.",)
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01  # code, backbone only
    if config.weights and say is not None:
        load_weights(body, config.weights, partial=spare, say=say)
    return StepNet(body, counts, config.width, config.rates or RATES[body.strides[-1]], config.learner == "barm", config.cut)


def grow(network: StepNet, counts: list[int], config: Settings) -> StepNet:
    """The network of the next step: old weights, a branch that starts as the base branch, batch norm frozen from now on. `network` is left alone.

    Raises ValueError unless `counts` is the old network's counts and one more.
    """
    t = len(network.branches)
    if len(counts) != t + 1:
        raise ValueError(f"a network of {t} steps grows to {t + 1}, got the class counts of {len(counts)} steps")
    grown = build(config, counts)
    missing, foreign = grown.load_state_dict(network.state_dict(), strict=False)
    if foreign or any(not name.startswith((f"branches.{t}.", f"classifiers.{t}.")) for name in missing):
        raise ValueError(f"the old network does not fit: {(foreign or missing)[0]!r} is in one of the two only")
    base = {k: v for k, v in grown.branches[0].state_dict().items() if config.copy_statistics or "running" not in k}
    grown.branches[t].load_state_dict(base, strict=False)
    if config.learner in ("mib", "plop"):
        incremental.mib_start(grown.classifiers[0], grown.classifiers[t])
    return freeze_batch_norm(grown)


def parameter_groups(network: StepNet, config: Settings) -> list[dict]:
    """Step 0: body and the rest. Later: new branch and classifier, ASPP, old branches and heads, body (section 5 of the recipe)."""
    t, groups = len(network.branches) - 1, {"new": [], "aspp": [], "old": [], "body": []}
    for name, p in network.named_parameters():
        place = "body" if name.startswith("body.") else "aspp" if name.startswith("aspp.") else "new" if name.split(".")[1] == str(t) else "old"
        groups["new" if t == 0 and place == "aspp" else place].append(p)
    scales = {"new": 1.0, "aspp": config.lr_aspp, "old": config.lr_old, "body": config.lr_body if t else config.lr_body_first}
    return [{"params": params, "lr_scale": scales[place]} for place, params in groups.items() if params]


# ---- losses ---------------------------------------------------------------------------------------------------------------------------


def pseudo_labels(target: torch.Tensor, old: torch.Tensor, tau: float) -> torch.Tensor:
    """Label-0 pixels that the old model calls one of its classes with at least `tau` get that class; everything else stays as it is.

    target int64 [B, H, W] with 0, new channels and 255; old: the teacher's logits [B, K, H, W] -> int64 [B, H, W]. A confident vote for
    background changes nothing, an unsure pixel stays background (PLOP ignores it), ground truth always wins.
    """
    score, found = old.sigmoid().max(1)  # [B, H, W]
    return torch.where((target == 0) & (found > 0) & (score >= tau), found, target)  # [B, H, W]


def pixel_bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every channel against "is it this one?": summed over channels, averaged over pixels that are not 255.

    logits [B, K, H, W], target int64 [B, H, W]. With q one-hot, -q log s(z) - (1 - q) log(1 - s(z)) = softplus(z) - q z.
    """
    valid = target != IGNORE  # [B, H, W]
    own = logits.gather(1, target.where(valid, 0)[:, None])[:, 0]  # [B, H, W]
    each = F.softplus(logits).sum(1) - own  # [B, H, W]
    count, processes = counted_everywhere(valid.sum(), needs_grad=logits.requires_grad)
    return (each * valid).sum() / count * processes


def shield(logits: torch.Tensor, new: int) -> torch.Tensor:
    """The same values, with no gradient into old classes: [background, stopped old classes, last `new` channels]. [B, K, H, W] both."""
    return torch.cat([logits[:, :1], logits[:, 1:-new].detach(), logits[:, -new:]], 1)  # [B, K, H, W]


def adapt_positive(r: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """BgA+: on new-class cells the correction is negative, mean softplus(r). r [B, 1, h, w] raw and uncut, P [B, 1, h, w] of 0 and 1."""
    count, processes = counted_everywhere(P.sum(), needs_grad=r.requires_grad)
    return (F.softplus(r) * P).sum() / count * processes


def adapt_negative(r: torch.Tensor, N: torch.Tensor) -> torch.Tensor:
    """BgA-: on label-0 cells the correction is not negative. r [B, 1, h, w] raw and uncut, N [B, 1, h, w] of 0 and 1.

    The code writes max((s - 1)^2 - s^2, 0) with s = sigmoid(r), "closer to 1 than to 0"; the squares cancel: max(1 - 2 s, 0), nothing once
    r >= 0. The code divides by |N| alone, which is 0/0 on a crop that a new class fills; here by at least 1.
    """
    count, processes = counted_everywhere(N.sum(), needs_grad=r.requires_grad)
    return ((1 - 2 * r.sigmoid()).clamp_min(0) * N).sum() / count * processes


def group_distillation(heads: list[torch.Tensor], old: list[torch.Tensor], background: bool = True) -> torch.Tensor:
    """GKD: every old head keeps its own sigmoids, residuals and base background included: sum over heads and channels, mean over cells.

    Lists of [B, K_s, h, w], one per old step. background=False leaves out channel 0 of head 0 (for learner=shared).
    """
    total = 0
    for s, (z, z_old) in enumerate(zip(heads, old)):
        each = F.softplus(z) - z_old.sigmoid() * z  # [B, K_s, h, w] each: binary cross-entropy, soft target
        total = total + each.mean((0, 2, 3))[0 if background or s else 1 :].sum()
    return total


def feature_distillation(features: list[torch.Tensor], old: list[torch.Tensor], N: torch.Tensor) -> torch.Tensor:
    """BFD: on label-0 cells every old branch keeps its features. Lists of [B, D, h, w], N [B, 1, h, w]; mean over all elements (code)."""
    return sum((N * (e - e_old)).square().mean() for e, e_old in zip(features, old))


def cells(where: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A map of pixels at the size of a feature map, by nearest neighbour (code). bool [B, H, W], like [B, D, h, w] -> float [B, 1, h, w]."""
    return F.interpolate(where[:, None].float(), like.shape[-2:])  # [B, 1, h, w]


def first_step(network: nn.Module, batch: dict, config: Settings) -> dict:
    """Step 0: an ordinary segmenter with a background channel."""
    target = batch["mask"]
    logits = resize(network(batch["image"]).logits.float(), target.shape[-2:])  # [B, K, H, W]
    return {"loss": cross_entropy(logits, target) if softmax_learner(config) else pixel_bce(logits, target)}


def later_step(network: nn.Module, batch: dict, teacher: Teacher, config: Settings, new: int, thresholds: torch.Tensor | None = None) -> dict:
    """One iteration of step t >= 1: the losses of the chosen learner. `new`: classes of this step. `thresholds`: PLOP's, [C]."""
    target = batch["mask"]
    size = target.shape[-2:]
    now = network(batch["image"])
    logits = resize(now.logits.float(), size)  # [B, K, H, W]
    if config.learner == "fine_tuning":
        return {"bce": pixel_bce(logits, target)}
    old = teacher(batch["image"])
    known = resize(old.logits.float(), size)  # [B, C, H, W]
    channels, steps = known.shape[1], len(old.heads)
    if config.learner == "mib":
        return {"ce": incremental.mib_cross_entropy(logits, target, channels), "kd": 10 * incremental.mib_distillation(logits, known)}
    if config.learner == "plop":
        pod = incremental.pod_loss(now.body, old.body, now.logits, old.logits, channels)
        return {"ce": incremental.plop_cross_entropy(logits, target, known, thresholds), "pod": pod}
    label = pseudo_labels(target, known, config.tau)
    if config.learner == "pseudo_labels":
        return {"bce": pixel_bce(logits, label)}
    losses = {"pb": pixel_bce(shield(logits, new) if config.stop_gradient else logits, label)}
    N = cells(target == 0, now.logits)  # [B, 1, h, w]: the raw label, not the pseudo label (code)
    if config.learner == "barm":
        r = now.heads[-1][:, :1].float()  # [B, 1, h, w]
        P = cells((target > 0) & (target != IGNORE), now.logits)  # [B, 1, h, w]
        losses |= {"bga+": config.weight_positive * adapt_positive(r, P), "bga-": config.weight_negative * adapt_negative(r, N)}
    keep_background = config.learner == "barm" or config.distil_background
    floats = lambda maps: [m.float() for m in maps[:steps]]
    losses["gkd"] = config.weight_gkd * group_distillation(floats(now.heads), floats(old.heads), keep_background)
    losses["bfd"] = config.weight_bfd * feature_distillation(floats(now.features), floats(old.features), N)
    return losses


# ---- prediction -----------------------------------------------------------------------------------------------------------------------


def predictor(network: StepNet, config: Settings, channels: list[int] | None = None) -> Callable:
    """image [B, 3, H, W] -> probabilities [B, K, h, w], sigmoids of the cut sum: no threshold, no views. `channels`: which, in which order."""
    @torch.no_grad()
    def predict(image: torch.Tensor) -> torch.Tensor:
        logits = network(at_test_scale(image, config)).logits
        p = logits.softmax(1) if softmax_learner(config) else logits.sigmoid()  # [B, K, h, w]
        return p if channels is None else p[:, channels]
    return predict


def at_test_scale(image: torch.Tensor, config: Settings) -> torch.Tensor:
    return resize(image, tuple(round(n * config.test_scale) for n in image.shape[-2:]))


def heads_of(network: StepNet, config: Settings) -> Callable:
    """image [B, 3, H, W] -> z_0 ... z_t with corrections as they are, for tables and pictures."""
    return lambda image: network(at_test_scale(image, config)).heads


# ---- the pipeline ---------------------------------------------------------------------------------------------------------------------


def task_of(config: Settings, data) -> Task:
    return make_task(config.task or USUAL.get(config.data, "1-1"), data.classes, config.order)


def recipe_of(recipe: Recipe, epochs: int, images: int) -> Recipe:
    """The recipe, its steps counted in epochs of this many images when asked; incomplete batches are dropped (code)."""
    return dataclasses.replace(recipe, steps=max(epochs * (images // recipe.batch), 1)) if epochs else recipe


def step_batches(run, config: Settings, view: StepData, recipe: Recipe) -> Batches:
    """Batches of one step: nothing but this step's images and labels can be read through them."""
    transform = make_transform(config.augment, view.mean)
    if view.step and config.new_share:
        transform = NewClassCrops(transform, config.new_share)
    return Batches(view, recipe.batch, config.seed * 100 + view.step, transform, ("image", "mask"), indices=view.images)


def fit_step(run, config: Settings, task: Task, t: int, images: np.ndarray, before: StepNet | None, name: str) -> StepNet:
    """Train step t from the network of the step before. The data set is seen through `StepData` only."""
    view = StepData(run.data("train"), task, t, images)
    counts = [len(g) for g in task.groups[: t + 1]]
    torch.manual_seed(config.seed * 100 + t)  # initial weights depend on seed and step only, so that a continued run starts its next step alike
    if before is None:
        network, recipe = run.build(name, lambda: build(config, counts, run.say)), recipe_of(config.train, config.epochs, len(images))
        step = lambda network, batch, i: first_step(network, batch, config)
    else:
        network, recipe = grow(before, counts, config), recipe_of(config.step, config.step_epochs, len(images))
        teacher = Teacher(before, decay=None).to(run.device)
        thresholds = plop_thresholds(run, config, view, teacher, name) if config.learner == "plop" else None
        step = lambda network, batch, i: later_step(network, batch, teacher, config, counts[-1], thresholds)
    return run.fit(name, network, step, step_batches(run, config, view, recipe), recipe, groups=parameter_groups(network, config))


def plop_thresholds(run, config: Settings, view: StepData, teacher: Teacher, name: str) -> torch.Tensor:
    """PLOP's median entropies: one pass over the step's images, augmented as in training."""
    def measure():
        batches = step_batches(run, config, view, config.step)
        parts = (batches[i].to(run.device) for i in range(-(-len(view.images) // config.step.batch)))
        pairs = ((resize(teacher(part["image"]).logits.float(), part["mask"].shape[-2:]), part["mask"]) for part in parts)
        return {"thresholds": incremental.class_thresholds(pairs, len(view.classes) - len(view.new)).cpu()}
    return run.make(f"{name}_thresholds", measure)["thresholds"].to(run.device)


def judge(run, network: StepNet, config: Settings, task: Task, t: int) -> torch.Tensor:
    """Confusion on the test images after step t, int64 [K, K]; pixels of classes not yet taught do not count."""
    data = Judged(run.truth("val"), task, t, config.test_crop)
    confusion = Confusion(data.classes)
    for truth, labels in label_map_of_each(predictor(network, config), data, run.device):
        confusion.add(truth, labels)
    return confusion.counts


def learn(run, config: Settings, task: Task, present: np.ndarray, name: str = "", first: str = "step0") -> tuple[StepNet, list[torch.Tensor]]:
    """All steps in turn -> the last network, one confusion matrix per step. `first`: the stage of step 0, which the rows of a claim share."""
    network, counts = None, []
    for t in range(task.steps):
        stage = f"{name}step{t}" if t else first
        network = fit_step(run, config, task, t, images_of_step(present, task, t, config.setting), network, stage)
        counts.append(run.make(f"{stage}_counts", lambda: {"counts": judge(run, network, config, task, t)})["counts"])
    return network, counts


def start(run) -> tuple[Task, np.ndarray]:
    """The task, and which classes each training image shows, bool [n, C]: the only use of labels across steps, to draw up the lists."""
    task = task_of(run.config, run.data("train"))
    present = run.make("presence", lambda: {"present": torch.from_numpy(presence(run.data("train"), task))})["present"].numpy()
    return task, present


def schedule(config: Settings, task: Task) -> tuple[Settings, Task]:
    """What is learned when; learner=joint has every class in one step and the iterations of all steps together."""
    if config.learner != "joint":
        return config, task
    return override(config, train__steps=config.train.steps + (task.steps - 1) * config.step.steps), task.together()


def reopen(run) -> Callable:
    """The tested network of a finished run."""
    task, present = start(run)
    network, _ = learn(run, *schedule(run.config, task), present)
    return predictor(network, run.config, task.channels())


def train(run) -> None:
    """T + 1 stages, one per step; each starts from the network of the step before."""
    config = run.config
    task, present = start(run)
    rows = plan(present, task, config.setting)
    for row in rows:
        run.say(f"step {row.step}: {row.classes} · {row.images} images, {row.old:.0%} also show an earlier class, {row.future:.0%} a later one")
    network, counts = learn(run, *schedule(config, task), present)
    tables = [{"title": "The plan: images of each step, and how many show a class that is called background there",
               "columns": ["step", "classes", "images", "an earlier class", "a later class"],
               "rows": [[r.step, r.classes, r.images, f"{r.old:.0%}", f"{r.future:.0%}"] for r in rows]}]
    if config.learner == "joint":
        final = incremental.step_scores(counts[0], task, task.steps - 1)
    else:
        steps = [incremental.step_scores(c, task, t) for t, c in enumerate(counts)]
        final = incremental.run_scores(counts, task)
        tables.append({"title": "After each step, in percent (classes not yet taught do not count)", "columns": ["step", *steps[0]],
                       "rows": [[t, *(round(v, 1) for v in s.values())] for t, s in enumerate(steps)],
                       "note": f"avg, the mean of all over the steps: {final['avg']:.1f}"})
    figures = []
    if config.learner == "barm" and task.steps > 1 and run.rank == 0:
        see, test = heads_of(network, config), Judged(run.truth("val"), task, task.steps - 1, config.test_crop)
        tables.append({"title": "Mean correction of the background logit, by true class of the pixel",
                       "rows": incremental.residual_table(see, test, task, run.device),
                       "columns": ["", "own class", "older classes", "later classes", "true background", "below 0 on background"]})
        shown = incremental.residual_pictures(see, test, task, run.device, list(range(min(3, len(test)))))
        figures.append({"title": "What each step takes out of the background (blue: lowered, red: above 0)", "image": panels(shown, test.palette)})
    run.report(predictor(network, config, task.channels()), model=network, tables=tables, figures=figures,
               headline={k: final[k] / 100 for k in ("old", "new", "all", "avg") if k in final},
               notes=[f"{count_parameters(network):,} trainable parameters after the last step", *(f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1))])


# ---- the claim ------------------------------------------------------------------------------------------------------------------------

METHOD_TABLE, ABLATION_TABLE = "Methods after the last step, percent", "Ablations of BARM, percent"
SECOND_TABLE, RESIDUAL_TABLE = "A second layout, percent", "Mean correction r_t by true class of the pixel, logits"
METHODS = {  # the first row is what the others are compared with. step.lr, 0.1 or as given: the best of 0.01, 0.02, 0.05, 0.1 on seed 9, never reported
    "one shared background": {"learner": "shared", "distil_background": False},  # its strongest form: BARM's branches, pseudo labels, BFD, GKD on classes
    "BARM": {},
    "one shared background, distilled too": {"learner": "shared", "step__lr": 0.05},
    "pseudo labels only": {"learner": "pseudo_labels"},
    "fine-tuning": {"learner": "fine_tuning"},
    "MiB": {"learner": "mib"},
    "PLOP": {"learner": "plop", "step__lr": 0.05},
}
MORE = ("one shared background, distilled too", "pseudo labels only", "PLOP")  # with ablations=true
ABLATIONS = {
    "- BgA+": {"weight_positive": 0.0}, "- BgA-": {"weight_negative": 0.0}, "- BgA+ - BgA-": {"weight_positive": 0.0, "weight_negative": 0.0},
    "- cut": {"cut": "never"}, "- stop-gradient": {"stop_gradient": False}, "- GKD": {"weight_gkd": 0.0}, "- BFD": {"weight_bfd": 0.0},
}


def claim(run) -> dict:
    """One seed: methods on the task, what the corrections look like; ablations=true: more methods, BARM without each part; second=: another layout."""
    config = run.config
    task, present = start(run)

    def measured(row: str, changes: dict, name: str, layout: Task, first: str) -> tuple[StepNet, dict]:
        changed = override(config, **changes)
        network, counts = learn(run, changed, layout, present, name + "_", f"{first}_{'softmax' if softmax_learner(changed) else 'sigmoid'}")
        scores = incremental.run_scores(counts, layout)
        run.say(f"{row}: " + ", ".join(f"{k} {v:.1f}" for k, v in scores.items()))
        return network, scores

    methods = {}
    for i, row in ((i, row) for i, row in enumerate(METHODS) if config.ablations or row not in MORE):
        network, methods[row] = measured(row, METHODS[row], f"method{i}", task, "first")
        if row == "BARM":
            test = Judged(run.truth("val"), task, task.steps - 1, config.test_crop)
            table = run.make("residuals", lambda: {"rows": incremental.residual_table(heads_of(network, config), test, task, run.device)})["rows"]
    joint = learn(run, *schedule(override(config, learner="joint"), task), present, first="joint")[1]
    methods["joint, all classes at once"] = incremental.step_scores(joint[0], task, task.steps - 1)
    columns = ("own class", "older classes", "later classes", "true background", "below 0 on background")
    tables = {METHOD_TABLE: methods, RESIDUAL_TABLE: {row: dict(zip(columns, values)) for row, *values in table}}
    if config.ablations:
        tables[ABLATION_TABLE] = {"BARM": methods["BARM"], **{
            row: measured(row, changes, f"ablation{i}", task, "first")[1] for i, (row, changes) in enumerate(ABLATIONS.items())}}
    if config.second:
        other = make_task(config.second, run.data("train").classes, config.order)
        tables[SECOND_TABLE] = {row: measured(row, METHODS[row], f"second{i}", other, "second")[1] for i, row in enumerate(list(METHODS)[:2])}
    return tables


CLAIM = {
    "title": "BARM in miniature: scenes.world=steps, 4 classes, then four times one",
    "headline": (METHOD_TABLE, "all", ("one shared background", "BARM", "MiB", "joint, all classes at once")),
    "paper": {"VOC 10-1, overlapped, 0-10 / 11-20 / all": "MiB 12.2 / 13.1 / 12.6, PLOP 44.0 / 15.5 / 30.5, DKD 73.1 / 46.5 / 60.4, BARM 72.2 / 51.0 / 62.1, joint 78.4 / 76.4 / 77.4",
              "VOC 15-1, 0-15 / 16-20 / all": "MiB 38.0 / 13.5 / 32.2, PLOP 65.1 / 21.1 / 54.6, DKD 78.1 / 42.7 / 69.7, BARM 77.6 / 45.9 / 70.0"},
    "statements": {
        "corrections beat one shared background: new classes gain more than 5 points, old ones lose less than 1":
            lambda t: t[METHOD_TABLE]["BARM"]["new"] > t[METHOD_TABLE]["one shared background"]["new"] + 5
            and t[METHOD_TABLE]["BARM"]["old"] > t[METHOD_TABLE]["one shared background"]["old"] - 1,
        "BARM is ahead of MiB over all classes, as on VOC":
            lambda t: t[METHOD_TABLE]["BARM"]["all"] > t[METHOD_TABLE]["MiB"]["all"],
        "at every step the correction is negative on its own class and not on true background":
            lambda t: all(row["own class"] < 0 <= row["true background"] for row in t[RESIDUAL_TABLE].values()),
    },
}

RECIPES = {
    "toy": {
        "net": "tiny", "width": 32, "rates": (2, 5), "lr_body_first": 1.0, "scenes.world": "steps",
        "train.steps": 400, "train.batch": 8, "train.optimizer": "nesterov", "train.lr": 0.05, "train.clip": 5.0,
        "step.steps": 60, "step.batch": 8, "step.optimizer": "nesterov", "step.lr": 0.1, "step.clip": 5.0,
    },
    "small": {
        "net": "resnet18", "output_stride": 8, "width": 128, "rates": (3, 6, 9), "setting": "chunks", "new_share": 0.05, "augment.long_side": 240,
        "augment.scale_min": 0.75, "augment.scale_max": 1.5, "augment.crop": 160, "test_scale": 0.5,
        "train.steps": 300, "train.batch": 8, "train.optimizer": "nesterov", "train.lr": 0.02, "train.clip": 5.0,
        "step.steps": 60, "step.batch": 8, "step.optimizer": "nesterov", "step.lr": 0.02, "step.clip": 5.0,
    },
    "paper": {
        "net": "resnet101", "epochs": 50, "step_epochs": 20, "copy_statistics": False, "augment.scale_min": 0.5, "augment.scale_max": 2.0,
        "augment.crop": 513, "test_crop": 513, "voc.train": "train_aug", "voc.masks": "SegmentationClassAug",
        "train.batch": 16, "train.optimizer": "nesterov", "train.lr": 0.01, "train.amp": "fp16",
        "step.batch": 8, "step.optimizer": "nesterov", "step.lr": 1e-3, "step.amp": "fp16",
    },
}

DEVIATIONS = (
    "The released recipe runs two processes whose gradients are never averaged, each on one fixed half of a step's images; effectively one process, "
    "batch 8 (VOC) or 4 (ADE20K). Here: one process or several that agree, batch 8, all images.",
    "The code's learning rate stops falling at 1e-6 per group; here the poly schedule runs to zero. It matters in the last steps of a schedule only.",
    "The code pads crops with label 0, so padding is trained as background; here it is 255, ignored, as everywhere in this project.",
    "New branches: the code copies weights but not batch-norm statistics, which then stay 0 and 1 for ever. copy_statistics=false (size=paper) does that; "
    "toy and small copy all five tensors. Effect not measured.",
    "BgA- divides by |N| and BgA+ by |P| + 1e-8 in the code; here |N| is at least 1, so a crop that a new class fills gives 0 and not 0/0.",
    "Step 1 of the code starts from the checkpoint of step 0 that was best on VOC's val images; here from the last one, so no test image selects anything.",
    "In several processes the means over P, N and valid pixels are taken per process and then averaged, as in the code.",
    "Miniature: stride 4, width 32, random start, batch 8, 60 iterations per step, gradients clipped at norm 5: frozen norms and losses summed over channels "
    "diverge otherwise now and then. Later steps learn at 0.1, ten times ADE20K's rate and a hundred times VOC's, in a tenth of the iterations or less.",
    "ADE20K and CamVid have no background class here: void teaches background, as in the code, but is not judged, so old is 1-100 where the field says 0-100.",
    "PLOP's pixel share is counted on crops, its medians over one augmented pass; features are those of the body's stages and the ASPP.",
)
