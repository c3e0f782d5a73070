"""BAS: a mask is large enough when nothing of the class is left outside it.

A classifier that is asked *where* shows its favourite part: once the head is covered, cross-entropy is zero and a mask has no reason to grow over the
body. The class's *activation*, the score before the softmax, is not satisfied so soon: what is left of it in the background falls until the
whole object is covered. BAS trains one mask per class by suppressing that remainder, against a penalty on the mask's area.

Wu, Zhai, Cao, "Background Activation Suppression for Weakly Supervised Object Localization", CVPR 2022, arXiv 2112.00580; Zhai, Wu, Zhu, Cao, Wu, Zha,
the journal version with semantic segmentation, IJCV 2023, arXiv 2309.12943. "Code" is the authors' BAS-Extension, "conference code" their BAS.

    task=wsol   image, its class --> f1, generator, f2 (seglite/suppression.py) --> one mask per class --> box, map, class
    task=wsss   image, its tags  --> the same with several classes -> masks M  \\
                                     plain classifier -> activation maps (CAM)  > seed = CAM + M --> CRF --> labels --> segmenter

    python -m seglite.train method=bas                                   localisation, one object per image; about a CPU-minute
    python -m seglite.train method=bas task=wsss scenes.two_share=0.6    segmentation, one or two objects per image
    python -m seglite.train method=bas data=voc root=VOC weights=mobilenet_v2.pth until=labels    seeds of photographs, refined or not
    python -m seglite.claims method=bas seeds=0,1,2                      PxAP: CAM 0.633, L_bas off 0.769, BAS 0.789

B batch, K classes with background 0, C channels, H W image, h w features and masks, a b class maps, u v either.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from seglite import cam, files, losses, pseudo, suppression
from seglite.config import Config, Recipe, UsageError, override
from seglite.crf import Preset, dense_crf
from seglite.data import IGNORE, Batches, LabelMaps, normalise
from seglite.data.transforms import make_transform, resize
from seglite.evaluate import evaluate, multi_scale, with_crf
from seglite.localisation import THRESHOLDS, Localisation, box_of, scored_frames, ten_crops, with_boxes
from seglite.metrics import Confusion
from seglite.nets.segmenters import DeepLabV2, DeepLabV3Plus, SmallUNet
from seglite.pictures import png_bytes
from seglite.suppression import Suppressor, SuppressionSettings

LABEL_CRF = Preset(3, 3, 50, 5, 10, iterations=10, normalization="symmetric")  # IRN's, in the released pipeline: gt_prob 0.7


@dataclass
class Settings(Config):
    task: Literal["wsol", "wsss"] = "wsol"
    """wsol: localise the only class of an image; wsss: segment, from the tags of all its classes"""
    net: Literal["small", "vgg16", "mobilenet_v1", "mobilenet_v2", "resnet50"] = "small"
    """backbone, cut where the paper cuts it (mobilenet_v2 is ours)"""
    bas: SuppressionSettings = field(default_factory=SuppressionSettings)
    """localisation: weights and switches of the losses"""
    top_k: int = 1
    """localisation map: mean over the masks of the k classes with the highest scores (CUB: 80 to 200); 1: the mask of the given class"""
    box_threshold: float = 0.0
    """boxes are drawn where the map exceeds this (CUB 0.1, ILSVRC 0.25 to 0.5); 0: found on every third validation image, which then does not count"""
    terminal_relu: bool = False
    """the conference code's head: evidence is never negative"""
    square: int = 0
    """first resize images to this square, aspect ratio not kept (wsol 256, wsss 512); 0: no"""
    test_crop: int = 0
    """localisation: centre crop of the squared image (224); 0: no"""
    ten_crop: bool = False
    """localisation: classify by the mean over four corners, centre and their mirror images"""
    baseline: bool = True
    """localisation: also train the plain classifier, for CAM's row and the observation plots"""
    new_lr_scale: float = 1.0
    """learning rate of heads and generator over the backbone's (10)"""
    bias_lr_scale: float = 1.0
    """learning rate of biases over that of weights (wsol 2; wsss 0: the code's optimizer leaves biases out)"""
    nesterov: bool = False
    """Nesterov's momentum where the optimizer is sgd (wsol true; the code's wsss optimizer has none)"""
    seeds: SuppressionSettings = field(default_factory=suppression.segmentation_settings)
    """segmentation: weights and switches of the losses"""
    seed_maps: Literal["cam", "bas", "both"] = "both"
    """segmentation: what labels are made of; both is CAM + BAS, as the released code always does"""
    one_network: bool = False
    """segmentation: CAM from the BAS network's own second half, which only L_mcls trains, instead of a classifier of its own: half the training"""
    seed_background: float = 0.3
    """score of the background in a seed (code: 0.30 for what is surely an object)"""
    sure_background: float = 0.17
    """with refine=sure: where even this low score wins, it is surely background (code)"""
    refine: Literal["none", "crf", "sure"] = "crf"
    """seed as it is; after a dense CRF; or two CRFs, of generous and of strict seeds, 255 where they disagree (code: IRN's training labels)"""
    map_scales: tuple[float, ...] = (1.0,)
    """image scales summed in CAM and masks (code: 1, 0.5, 1.5, 2)"""
    map_flip: bool = True
    """and their mirror images"""
    test_scales: tuple[float, ...] = (1.0,)
    """segmenter: scales averaged at test time"""
    test_flip: bool = False
    """and mirror images"""
    test_crf: bool = False
    """segmenter: dense CRF at test time"""
    classifier: Recipe = field(default_factory=Recipe)
    """segmentation: training of the BAS network, and of the plain classifier behind CAM"""
    segmenter: Recipe = field(default_factory=Recipe)
    """segmentation: training of the segmenter"""
    segmenter_weights: str = ""
    """ImageNet weights of the segmenter's backbone; empty: weights="""
    until: Literal["labels", "segmenter"] = "segmenter"
    """segmentation: stop once all kinds of seeds are scored, with the CRF and without (result.json, labels.png); or train a segmenter and report it"""
    full_claim: bool = False
    """claims: also the smaller ablations, the negative control, seeds and segmenters; four times as long"""


def supervision(config: Settings) -> tuple[str, ...]:
    """Images and tags; with task=wsol every image has one."""
    return ("image", "tags")


# ---- training --------------------------------------------------------------------------------------------------------------------------------


class Squared:
    """A transform that first makes the sample a square."""

    def __init__(self, side: int, then: Callable):
        self.side, self.then = side, then

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        return self.then(resize(sample, self.side, self.side) if self.side else sample, rng)


def batches(run, recipe: Recipe, stage: int, labels=None) -> Batches:
    data = run.data("train")
    transform = make_transform(run.config.augment, data.mean)
    if labels is None:  # what the tags are trained on is squared, what the segmenter sees is not
        transform = Squared(run.config.square, transform)
    return Batches(data, recipe.batch, run.config.seed * 10 + stage, transform, ("image", "tags"), labels=labels)


def fit_localiser(run, name: str, config: Settings, pool: bool = True) -> Suppressor:
    """The localisation network with the losses of `config.bas`. Every name starts from the same weights and sees the same batches."""
    if not abs(THRESHOLDS - config.box_threshold).min() < 1e-6:  # said before the training, not after it
        raise UsageError(f"box_threshold={config.box_threshold}: boxes are measured at 0.01, 0.02, ... 0.99; choose one of these, or 0 to have it searched")
    cam.same_start(run, 0)
    model = run.build(name, lambda: suppression.build(config.net, "wsol", len(run.data("train").classes) - 1, config.bas, weights=config.weights,
                                                      terminal_relu=config.terminal_relu, pool=pool, say=run.say))
    s = config.bas
    if s.weight == s.alpha == s.beta == 0:  # a plain classifier needs one forward pass, and no generator
        model.generator.requires_grad_(False)
        step = lambda network, batch, t: {"cls": F.cross_entropy(network(batch["image"]).float(), suppression.one_class(batch["tags"]))}
    else:
        step = lambda network, batch, t: suppression.wsol_step(network, batch, t, s)
    groups = suppression.parameter_groups(model, config.new_lr_scale, config.bias_lr_scale, nesterov=config.nesterov)
    return run.fit(name, model, step, batches(run, config.train, 0), config.train, groups=groups)


PLAIN = {"bas__weight": 0.0, "bas__alpha": 0.0, "bas__beta": 0.0}


# ---- localisation: maps, boxes, classes ----------------------------------------------------------------------------------------------------------


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Min-max normalisation of each map, at its own resolution: after enlarging, the same threshold would mean something else. [B, h, w] -> [B, h, w]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)  # [B, 1, 1], [B, 1, 1]
    return (maps - low) / (high - low).clamp_min(1e-8)


@torch.no_grad()
def localisation_maps(model: Suppressor, image: torch.Tensor, label: torch.Tensor | None, top_k: int = 1, kind: str = "bas") -> torch.Tensor:
    """Where the class is. image [B, 3, H, W], label int64 [B] or None (then the likeliest class) -> [B, H, W] in 0..1.

    kind="bas": the class's mask; top_k > 1: the mean mask of the k classes with the highest scores, whatever the label. kind="cam": ReLU(A).
    """
    features = model.features(image)  # [B, C, h, w]
    evidence = model.f2(features)  # [B, K-1, a, b]
    scores = evidence.mean((2, 3))  # [B, K-1]
    maps = model.masks(features) if kind == "bas" else evidence.relu()  # [B, K-1, u, v]
    if kind == "bas" and top_k > 1:
        chosen = scores.topk(min(top_k, scores.shape[1])).indices  # [B, k]
    else:
        chosen = (scores.argmax(1) if label is None else label)[:, None]  # [B, k]
    one = maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[-2:])).mean(1)  # [B, u, v]
    return F.interpolate(stretched(one)[:, None], image.shape[-2:], mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)  # [B, H, W]


@torch.no_grad()
def classify(model: Suppressor, image: torch.Tensor, config: Settings) -> torch.Tensor:
    """Class probabilities of the squared image, from its centre or from ten crops. [B, 3, H, W] -> [B, K-1]."""
    if not config.test_crop:
        return model(image).softmax(1)
    views = ten_crops(image, config.test_crop)
    return torch.stack([model(view).softmax(1) for view in (views if config.ten_crop else views[4:5])]).mean(0)  # [B, K-1]


def localise(run, rows: dict[str, tuple[Suppressor, dict]], config: Settings) -> dict[str, Localisation]:
    """Score several networks in one pass over the validation images; rows: name -> (network, keywords of `localisation_maps`)."""
    found, data = {name: Localisation() for name in rows}, run.truth("val")
    for samples, whole, image in scored_frames(data, config.square, config.test_crop):
        whole, image = whole.to(run.device), image.to(run.device)
        label = torch.from_numpy(np.stack([s["tags"] for s in samples])).to(run.device).argmax(1)  # [B]
        for name, (model, how) in rows.items():
            order = classify(model, whole if config.test_crop else image, config).argsort(1, descending=True)  # [B, K-1]
            rank = (order == label[:, None]).int().argmax(1).tolist()
            for sample, heat, c, r in zip(samples, localisation_maps(model, image, label, **how).cpu().numpy(), label.tolist(), rank):
                mask = sample["mask"] == c + 1
                if mask.any():  # a crop may have cut the object away
                    found[name].add(heat, [box_of(mask)], mask, sample["mask"] == IGNORE, r)
    return found


def scores_of(found: Localisation, config: Settings) -> dict[str, float]:
    """The numbers of one row; without a fixed threshold it is chosen on every third image, and the other two thirds are what counts."""
    everything = np.arange(len(found))
    if config.box_threshold:
        return {**found.summary(config.box_threshold), "threshold": config.box_threshold}
    threshold = found.best_threshold(images=everything[::3])
    return {**found.summary(threshold, everything[everything % 3 > 0]), "threshold": threshold}


def box_predictor(model: Suppressor, config: Settings, threshold: float) -> Callable:
    """image [B, 3, H, W] -> scores [B, K, H, W]: the likeliest class where its map exceeds the threshold, background elsewhere."""

    def predict(image: torch.Tensor) -> torch.Tensor:
        scores = model(image)  # [B, K-1]
        maps = localisation_maps(model, image, None, config.top_k)  # [B, H, W]
        floor = torch.full_like(maps[:, None], threshold)  # [B, 1, H, W]
        return torch.cat([floor, F.one_hot(scores.argmax(1), scores.shape[1])[:, :, None, None] * maps[:, None]], 1)

    return predict


# ---- the observation (first figure of both papers) ------------------------------------------------------------------------------------------------


def masked_images(run, images: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Validation images [B, 3, H, W], the masks of their classes bool [B, H, W] and the classes int64 [B]. For reports only."""
    data = run.truth("val")
    samples = [data.read(i, ("image", "mask", "tags")) for i in range(min(images, len(data)))]
    label = torch.from_numpy(np.stack([s["tags"] for s in samples])).argmax(1)  # [B]
    mask = torch.from_numpy(np.stack([s["mask"] for s in samples])) == label[:, None, None] + 1  # [B, H, W]
    return normalise(np.stack([s["image"] for s in samples]), data).to(run.device), mask.to(run.device), label.to(run.device)


def observe(run, model: Suppressor, images: int = 200, radii: Iterable[int] = range(-14, 15, 2)) -> list[dict[str, float]]:
    """The observation on validation images, with their masks."""
    return suppression.observation(model, *masked_images(run, images), list(radii))


# ---- segmentation: seeds, labels, segmenter -----------------------------------------------------------------------------------------------------------


def fit_classifiers(run, config: Settings) -> tuple[Suppressor, Suppressor]:
    """The plain multi-label classifier whose activation maps are CAM (or, with one_network, BAS once more), and the BAS network: same cut, batches, recipe."""
    tags = len(run.data("train").classes) - 1
    new = {"new": config.new_lr_scale, "bias": config.bias_lr_scale, "nesterov": config.nesterov}
    drawn = lambda: (batches(run, config.classifier, 1), config.classifier)
    cam.same_start(run, 1)
    masked = suppression.fit_tag_maps(run, "bas", config.net, *drawn(), settings=config.seeds, weights=config.weights, **new)
    if config.one_network:
        return masked, masked
    cam.same_start(run, 1)
    plain = run.build("cam", lambda: suppression.build(config.net, "wsss", tags, config.seeds, weights=config.weights, say=run.say))
    plain.generator.requires_grad_(False)
    step = lambda network, batch, t: {"loss": losses.multilabel_soft_margin(network(batch["image"]), batch["tags"])}
    return run.fit("cam", plain, step, *drawn(), groups=suppression.parameter_groups(plain, **new)), masked


def tag_maps(run, config: Settings, plain: Suppressor, masked: Suppressor) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, dict]]:
    """Indices, images, tags and {cam, bas, both: maps [B, K-1, h, w] in 0..1} of the training set, in order. Each map is divided by its maximum per
    class and image; both is their sum, divided again (code). The networks run once; what they say of an image's own classes is kept."""
    data = run.data("train", ("image", "tags"))

    def build() -> dict[str, list[torch.Tensor]]:
        kept: dict[str, list[torch.Tensor]] = {"cam": [], "bas": []}
        for _, image, tags in cam.in_order(data, run.device):
            for kind, scores in (("cam", plain.evidence), ("bas", masked.class_maps)):
                maps = cam.normalise(cam.activation_maps(scores, image, config.map_scales, config.map_flip), tags)  # [B, K-1, h, w]
                kept[kind] += [own[tag > 0].cpu() for own, tag in zip(maps, tags)]
        return kept

    kept = run.make("maps", build)
    for index, image, tags in cam.in_order(data, run.device):
        found = {}
        for kind, maps in kept.items():
            found[kind] = torch.zeros(*tags.shape, *maps[index[0]].shape[-2:], device=run.device)  # [B, K-1, h, w]
            found[kind][tags > 0] = torch.cat([maps[i] for i in index]).to(run.device)
        yield index, image, tags, found | {"both": cam.normalise(found["cam"] + found["bas"], tags)}


def refined(labels: torch.Tensor, image: torch.Tensor, tags: torch.Tensor, data) -> torch.Tensor:
    """Dense CRF of a label map that is trusted to 0.7, among background and the image's classes. int64 [B, H, W], image [B, 3, H, W] -> [B, H, W]."""
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in (data.mean, data.std))
    out = []
    for one, photograph, tag in zip(labels, (image * std + mean) * 255, tags):
        present = [0, *(tag.nonzero()[:, 0] + 1).tolist()]
        if len(present) == 1:
            out.append(one)
            continue
        place = torch.stack([one == c for c in present]).float()  # [P, H, W]
        found = dense_crf(photograph, place * (0.7 - 0.3 / (len(present) - 1)) + 0.3 / (len(present) - 1), LABEL_CRF)  # [P, H, W]
        out.append(torch.tensor(present, device=one.device)[found.argmax(0)])
    return torch.stack(out)  # [B, H, W]


def to_labels(maps: torch.Tensor, image: torch.Tensor, tags: torch.Tensor, config: Settings, data) -> torch.Tensor:
    """Maps in 0..1 over a constant background, then the chosen refinement. [B, K-1, h, w] -> int64 [B, H, W], 255 where two readings disagree."""
    size = image.shape[-2:]
    strict = cam.seeds(maps, config.seed_background, size)  # [B, H, W]
    if config.refine == "none":
        return strict
    strict = refined(strict, image, tags, data)
    if config.refine == "crf":
        return strict
    generous = refined(cam.seeds(maps, config.sure_background, size), image, tags, data)  # [B, H, W]
    return torch.where((strict > 0) | (generous == 0), strict, IGNORE)  # [B, H, W]


def seed_labels(run, config: Settings, plain: Suppressor, masked: Suppressor, name: str = "labels") -> LabelMaps:
    """The pseudo labels of the training set, made once."""
    data = run.data("train")

    def maps():
        for _, image, tags, found in tag_maps(run, config, plain, masked):
            yield from to_labels(found[config.seed_maps], image, tags, config, data).to(torch.uint8).cpu().numpy()

    return run.make_labels(name, maps, cam.names_of(data), data.palette)


def sweep(run, config: Settings, plain: Suppressor, masked: Suppressor, backgrounds: Sequence[float]) -> dict[str, dict[str, float]]:
    """Seed mIoU on the training images for every constant background, as the field reports seeds: with the masks, at the best constant.

    One count for all constants: pixels by true class, by the class that is highest (`cam.seeds`), and by how many constants it exceeds.
    """
    truth, n = run.truth("train"), len(backgrounds)
    K, rising = len(truth.classes), torch.tensor(sorted(backgrounds), device=run.device)
    counts = {kind: torch.zeros(K * K * (n + 1), dtype=torch.int64) for kind in KINDS}
    for index, image, tags, found in tag_maps(run, config, plain, masked):
        mask = torch.from_numpy(np.stack([truth.read(i, ("mask",))["mask"] for i in index])).to(run.device).long()  # [B, H, W]
        here = F.pad(tags[:, 1:].any(0), (1, 0), value=True).nonzero()[:, 0]  # the others cannot win, and there may be many; one is kept in any case
        for kind, maps in found.items():
            height, place = F.interpolate(maps[:, here], image.shape[-2:], mode="bilinear", align_corners=False).max(1)  # [B, H, W], [B, H, W]
            cell = (mask * K + here[place] + 1) * (n + 1) + torch.bucketize(height, rising)  # [B, H, W]
            counts[kind] += torch.bincount(cell[mask != IGNORE], minlength=K * K * (n + 1)).cpu()
    scores: dict[str, dict[str, float]] = {kind: {} for kind in counts}
    for kind, count in counts.items():
        count = count.view(K, K, n + 1)
        for j, b in enumerate(sorted(backgrounds)):
            confusion = Confusion(truth.classes)
            confusion.counts += count[:, :, j + 1 :].sum(2)
            confusion.counts[:, 0] += count[:, :, : j + 1].sum((1, 2))
            scores[kind][str(b)] = confusion.miou()
    return scores


KINDS = {"cam": "CAM", "bas": "BAS masks", "both": "CAM + BAS"}
BACKGROUNDS = tuple(round(0.05 * i, 2) for i in range(1, 19))  # constants tried for a seed


def compared_seeds(run, config: Settings, plain: Suppressor, masked: Suppressor) -> tuple[dict[str, dict], dict[str, LabelMaps]]:
    """Every kind of seed at its best constant, as it is and after the CRF: {row: scores} and {row: label maps}."""
    rows, maps = {}, {}
    found = run.make("sweep", lambda: sweep(run, config, plain, masked, BACKGROUNDS))
    best = {kind: float(max(by, key=by.get)) for kind, by in found.items()}
    chosen_first = sorted(best, key=lambda kind: kind != config.seed_maps)
    for refine, kinds in (("none", best), ("crf", chosen_first)):
        for kind in kinds:
            row = KINDS[kind] + " + CRF" * (refine == "crf")
            changed = override(config, seed_maps=kind, seed_background=best[kind], refine=refine)
            maps[row] = seed_labels(run, changed, plain, masked, f"labels_{kind}_{refine}")
            found = run.make(f"score_{kind}_{refine}", lambda: pseudo.score(pseudo.compare(run.truth("train"), maps[row])))
            rows[row] = {"mIoU": found["mIoU"], "FP": found["FP"], "FN": found["FN"], "background": best[kind]}
    return rows, maps


def fit_segmenter(run, name: str, labels, config: Settings) -> nn.Module:
    """A segmenter on pseudo labels; the authors' is DeepLab v2, whose training is not in their repository."""
    cam.same_start(run, 2)
    classes, weights = len(run.data("train").classes), (config.segmenter_weights or config.weights) if config.net == "mobilenet_v2" else ""
    if config.net == "small":
        model: nn.Module = SmallUNet(classes)
    elif config.net == "resnet50":
        model = DeepLabV2(run.build(name, lambda: cam.trunk("resnet101", 8, config.segmenter_weights, run.say)), classes)
    else:
        model = DeepLabV3Plus(run.build(name, lambda: cam.trunk("mobilenet_v2", 16, weights, run.say)), classes, width=128)
    step = lambda network, batch, t: {"loss": losses.cross_entropy(network(batch["image"]), batch["label"])}
    return run.fit(name, model, step, batches(run, config.segmenter, 2, labels), config.segmenter, groups=cam.new_layers_first(model, 0.1))


def segment_predictor(model: nn.Module, config: Settings, data) -> Callable:
    average = multi_scale(model, config.test_scales, config.test_flip)
    return with_crf(average, data, "deeplab-voc") if config.test_crf else average


# ---- the two pipelines --------------------------------------------------------------------------------------------------------------------------------


def train_wsol(run) -> None:
    """One network; beside it the plain classifier, whose activation maps are the baseline and which shows why BAS is needed."""
    config, rows, figures, plain = run.config, {}, [], None
    if config.baseline:
        plain = fit_localiser(run, "classifier", override(config, **PLAIN))
        rows["CAM of the plain classifier"] = plain, {"kind": "cam"}
    model = fit_localiser(run, "bas", config)
    rows[f"BAS, top_k={config.top_k}"] = model, {"top_k": config.top_k}
    found = {name: scores_of(f, config) for name, f in localise(run, rows, config).items()} if run.rank == 0 else {}
    if plain is not None and run.rank == 0 and config.data == "scenes":
        both = [np.asarray(chart) for chart in suppression.observation_charts(observe(run, plain))]
        figures = [{"title": "The observation, on the plain classifier", "image": np.concatenate(both, 1),
                    "note": "features are seen through the true mask, eroded and dilated"}]
    final = found.get(f"BAS, top_k={config.top_k}", {"threshold": 0.5})
    data = run.truth("val")

    def samples(sample: dict) -> dict:
        heat = localisation_maps(model, normalise(sample["image"][None], data).to(run.device), None, config.top_k)[0].cpu().numpy()
        return {"map, box (yellow), true box (green)": with_boxes(sample, heat, final["threshold"])}

    columns = list(final)
    tables = [{"title": "Localisation, validation images", "columns": ["", *columns], "rows": [[n, *(round(r[c], 3) for c in columns)] for n, r in found.items()],
               "note": "box threshold chosen on every third image, scores on the others" if not config.box_threshold else ""}]
    frame = " and ".join([f"squared to {config.square} pixels"] * bool(config.square) + [f"cut to their centre, {config.test_crop}"] * bool(config.test_crop))
    run.report(box_predictor(model, config, final["threshold"]), model=model, headline={k: final[k] for k in columns[:6] if k in final}, tables=tables,
               figures=figures, samples=samples, notes=[f"the table is of images {frame}; mIoU and pictures are of whole images as they are"] * bool(frame)
               + [f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1)])


def train_wsss(run) -> None:
    """Two classifiers, a seed, labels, a segmenter."""
    config = run.config
    plain, masked = fit_classifiers(run, config)
    if config.until == "labels":
        rows, maps = compared_seeds(run, config, plain, masked)
        if run.rank == 0:
            files.write_json(run.folder / "result.json", {"method": "bas", "data": config.data, "images": len(run.data("train")), "seeds": rows})
            files.write_bytes(run.folder / "labels.png", png_bytes(pseudo.label_pictures(run.truth("train"), maps)[0]["image"]))
        run.say("\n".join(f"{row:16s} " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()) for row, scores in rows.items()))
        return
    labels = seed_labels(run, config, plain, masked)
    found = run.make("sweep", lambda: sweep(run, config, plain, masked, BACKGROUNDS))  # every process waits at its end, so every process calls it
    tables, figures, truth = [], [], run.truth("train")
    if run.rank == 0:
        rows = [[KINDS[kind], round(max(by.values()), 3), float(max(by, key=by.get))] for kind, by in found.items()]
        rows.append([f"labels: {KINDS[config.seed_maps]}, refine={config.refine}, background {config.seed_background}",
                     round(pseudo.compare(truth, labels).miou(), 3), ""])
        tables = [{"title": "Seeds of the training images, at the best constant background", "columns": ["seed", "mIoU", "background"], "rows": rows}]
        figures = pseudo.label_pictures(truth, {"pseudo label": labels})
    segmenter = fit_segmenter(run, "segmenter", labels, config)
    run.report(segment_predictor(segmenter, config, run.data("train")), model=segmenter, tables=tables, figures=figures,
               notes=[f"deviation {i}: {d}" for i, d in enumerate(DEVIATIONS, 1)])


def train(run) -> None:
    (train_wsol if run.config.task == "wsol" else train_wsss)(run)


def reopen(run) -> Callable:
    """The predictor of a finished run."""
    config = run.config
    if config.task == "wsss":
        return segment_predictor(fit_segmenter(run, "segmenter", None, config), config, run.data("train"))
    model = fit_localiser(run, "bas", config)
    found = localise(run, {"bas": (model, {"top_k": config.top_k})}, config)["bas"]
    return box_predictor(model, config, scores_of(found, config)["threshold"])


# ---- the claim -----------------------------------------------------------------------------------------------------------------------------------------

BOXES, SIGHT, CONTROL = "Localisation, validation images", "The observation, at shares of the object's area", "Negative control: toys of one colour"
HEIGHTS = "Mean height of the masks as they are, validation images"
SEEDS, SEGMENTERS = "Seeds of the training images, best constant background", "Segmenters, validation images"
TRAINED = {  # row: (changed keys, keywords of fit_localiser, keywords of localisation_maps)
    "CAM": (PLAIN, {}, {"kind": "cam"}),
    "mask, cross-entropy (L_bas off)": ({"bas__weight": 0.0}, {}, {}),
    "BAS": ({}, {}, {}),
    "BAS, L_frg off": ({"bas__alpha": 0.0}, {}, {}),
    "BAS, L_ac off": ({"bas__beta": 0.0}, {}, {}),
    "BAS, L_cls off": ({"bas__classify": 0.0}, {}, {}),
    "BAS, beta 1.5": ({"bas__beta": 1.5}, {}, {}),
    "BAS, beta 2": ({"bas__beta": 2.0}, {}, {}),
    "BAS, beta 2.5": ({"bas__beta": 2.5}, {}, {}),
    "mask, cross-entropy, tuned": ({"bas__weight": 0.0, "bas__alpha": 1.0, "bas__beta": 0.3}, {}, {}),
}
MORE = {  # with full_claim=true
    "CAM, as fine as the masks": (PLAIN, {"pool": False}, {"kind": "cam"}),
    "BAS, f2 shared": ({"bas__branch": "shared"}, {}, {}),
    "BAS, S not detached": ({"bas__detach_whole": False}, {}, {}),
    "BAS, F not detached": ({"bas__detach_features": False}, {}, {}),
    "BAS, beta half": ({"bas__beta": 0.5}, {}, {}),
    "BAS, terminal ReLU": ({"terminal_relu": True}, {}, {}),
}
JUDGED, MEANS = ("mask, cross-entropy (L_bas off)", "BAS"), (2, 6)  # rows of HEIGHTS; top_k: means over that many masks of row "BAS"
EASY = {"scenes__classes": "box,cone,star,kite,moon,heart"}  # every part of an object says its class
TWO = {"task": "wsss", "scenes__two_share": 0.6, "scenes__scale_max": 0.26, "scenes__scale_min": 0.2, "scenes__train_images": 600}


def box_table(run, trained: dict, means: Sequence[int] = ()) -> tuple[dict, dict[str, Suppressor]]:
    """{row: scores} and the networks."""
    models = {row: fit_localiser(run, f"net_{i}", override(run.config, **changes), **build) for i, (row, (changes, build, _)) in enumerate(trained.items())}
    rows = {row: (models[row], how) for row, (_, _, how) in trained.items()}
    rows |= {f"BAS, mean of {k} masks": (models["BAS"], {"top_k": k}) for k in means}
    return run.make("boxes", lambda: {row: scores_of(found, run.config) for row, found in localise(run, rows, run.config).items()}), models


def seed_tables(run) -> dict:
    """Seeds of one or two objects per image at their best constant, with and without the CRF, and segmenters trained on the refined ones."""
    config, trained = run.config, {}
    rows, maps = compared_seeds(run, config, *fit_classifiers(run, config))
    for kind in KINDS:
        predict = segment_predictor(fit_segmenter(run, f"segmenter_{kind}", maps[f"{KINDS[kind]} + CRF"], config), config, run.data("train"))
        trained[KINDS[kind]] = {"mIoU": run.make(f"score_segmenter_{kind}", lambda: evaluate(predict, run.truth("val"), run.device).confusion.miou())}
    return {SEEDS: rows, SEGMENTERS: trained}


def claim(run) -> dict:
    """One seed: localisation with each loss taken away, and the observation; with full_claim the smaller ablations, the control, segmentation."""
    full = run.config.full_claim
    boxes, models = box_table(run, TRAINED | (MORE if full else {}), MEANS)
    seen = run.make("observation", lambda: observe(run, models["CAM"]))
    tables = {BOXES: boxes, SIGHT: {f"area {a}": suppression.reached(seen, a) for a in (0.25, 0.5, 1.0, 1.5)}}
    tables[HEIGHTS] = run.make("heights", lambda: {row: suppression.heights(models[row], *masked_images(run)) for row in JUDGED})
    for name, changes, table in (("easy", EASY, lambda world: {CONTROL: box_table(world, {row: TRAINED[row] for row in ("CAM", "BAS")})[0]}),
                                 ("two", TWO, seed_tables)) if full else ():
        world = type(run)(override(run.config, out=str(run.folder / name), **changes), supervision=run.supervision, quiet=run.quiet)
        try:
            tables |= table(world)
        finally:
            world.close()
    return tables


def better(tables: dict, row: str, than: str, *metrics: str) -> bool:
    return all(tables[BOXES][row][m] > tables[BOXES][than][m] for m in metrics)


CLAIM = {
    "title": "BAS in miniature: scenes.world=bas, 1,500 images of birds with loud heads and quiet bodies",
    "paper": {"localisation": "CUB, ResNet-50, GT-known: CAM 57.35, FAM 85.73, BAS 95.13 (journal code 95.41); ILSVRC: 51.86, 64.56, 71.77 (72.00)",
              "segmentation": "VOC train: seed 57.7, after IRN 71.1; DeepLab v2 on val 69.6, test 69.9"},
    "headline": (BOXES, "PxAP", ("CAM", "mask, cross-entropy (L_bas off)", "BAS")),
    "statements": {
        "at the object's border cross-entropy has lost nine tenths, and the activation is still below three quarters of its plateau":
            lambda t: t[SIGHT]["area 1.0"]["cross-entropy"] < 0.1 and t[SIGHT]["area 1.0"]["activation"] < 0.75,
        "the activation left outside falls until the object is covered: over a third at half of it, under an eighth at 1.5 times":
            lambda t: t[SIGHT]["area 0.5"]["background activation"] > 0.33 and t[SIGHT]["area 1.5"]["background activation"] < 0.125,
        "BAS beats CAM in GT-known and PxAP": lambda t: better(t, "BAS", "CAM", "GT-known", "PxAP"),
        "BAS beats masks judged by cross-entropy in GT-known and PxAP": lambda t: better(t, "BAS", "mask, cross-entropy (L_bas off)", "GT-known", "PxAP"),
        "at half its height a mask of BAS covers more of the object than one judged by cross-entropy, and overlaps it better":
            lambda t: better(t, "BAS", "mask, cross-entropy (L_bas off)", "recall at half", "IoU at half"),
        "without L_cls it is worse (PxAP)": lambda t: better(t, "BAS", "BAS, L_cls off", "PxAP"),
        "without L_frg it is worse (PxAP)": lambda t: better(t, "BAS", "BAS, L_frg off", "PxAP"),
        "without L_ac it is worse (PxAP)": lambda t: better(t, "BAS", "BAS, L_ac off", "PxAP"),
        "the mean of all masks is better where classes share a shape (PxAP)": lambda t: better(t, "BAS, mean of 6 masks", "BAS", "PxAP"),
    },
}

# ---- settings of the sizes, and the authors' per backbone ---------------------------------------------------------------------------------------------

RECIPES = {
    "toy": {
        "scenes.world": "bas", "scenes.val_images": 240, "nesterov": True, "bas.beta": 1.0, "bas.warmup": 60, "seeds.warmup": 60,
        **{f"{stage}.{key}": value for stage in ("train", "classifier")
           for key, value in {"steps": 330, "batch": 32, "lr": 0.02, "schedule": "cosine", "weight_decay": 5e-4}.items()},
        "segmenter.steps": 200, "segmenter.batch": 16, "segmenter.lr": 0.05,
    },
    "small": {
        "task": "wsss", "net": "mobilenet_v2", "augment.long_side": 320, "augment.scale_min": 0.75, "augment.scale_max": 1.5, "augment.crop": 224,
        "new_lr_scale": 10.0, "nesterov": True, "one_network": True, "map_flip": False, "refine": "crf", "classifier.steps": 400, "classifier.batch": 8,
        "classifier.lr": 0.001, "classifier.channels_last": True,
        "segmenter.steps": 200, "segmenter.batch": 8, "segmenter.lr": 0.02, "segmenter.channels_last": True, "test_flip": True,
    },
    "paper": {  # ResNet-50: VOC's tags, or with task=wsol a data set of one class per image with CUB's values; the other backbones: PUBLISHED
        "task": "wsss", "net": "resnet50", "voc.train": "train_aug", "voc.masks": "SegmentationClassAug", "square": 512, "augment.crop": 448,
        "new_lr_scale": 10.0, "bias_lr_scale": 0.0, "map_scales": (1.0, 0.5, 1.5, 2.0), "refine": "sure",
        "classifier.steps": 6610, "classifier.batch": 16, "classifier.lr": 0.005, "classifier.momentum": 1e-4, "classifier.weight_decay": 1e-4,
        "segmenter.steps": 20000, "segmenter.batch": 10, "segmenter.lr": 2.5e-4, "segmenter.weight_decay": 5e-4,
        "test_scales": (1.0, 0.5, 1.5, 2.0), "test_flip": True, "test_crf": True,
    },
}
WSOL = {  # to be typed beside size=paper task=wsol, with a row of PUBLISHED
    "nesterov": True, "bias_lr_scale": 2.0, "square": 256, "augment.crop": 224, "test_crop": 224, "ten_crop": True, "baseline": False,
    "train.lr": 1e-3, "train.weight_decay": 5e-4, "train.schedule": "step",
}
LENGTHS = {"cub": (5994, 120, 80), "ilsvrc": (1_280_000, 9, 3), "openimages": (29_819, 50, 20)}  # images, epochs, epochs until each fall of the rate
PUBLISHED = {  # journal code, per data set and backbone. OpenImages is scored by PxAP and pIoU: no threshold for its boxes is known, so it is searched
    (data, net): {"bas.alpha": alpha, "bas.beta": beta, "bas.above_one": "zero" if net == "vgg16" else "one", "top_k": top_k, "box_threshold": threshold,
                  "train.steps": round(images * epochs / batch), "train.batch": batch, "train.power": fall / epochs}
    for data, net, alpha, beta, top_k, threshold, batch in (
        ("cub", "vgg16", 0.0, 0.9, 80, 0.1, 32), ("cub", "mobilenet_v1", 0.5, 1.9, 80, 0.1, 32), ("cub", "resnet50", 0.5, 1.5, 200, 0.1, 32),
        ("ilsvrc", "vgg16", 0.05, 1.0, 1, 0.45, 256), ("ilsvrc", "mobilenet_v1", 0.5, 1.5, 1, 0.5, 128), ("ilsvrc", "resnet50", 1.0, 2.0, 1, 0.25, 128),
        ("openimages", "resnet50", 0.5, 1.5, 1, 0.0, 64)) for images, epochs, fall in [LENGTHS[data]]}

DEVIATIONS = (
    "Backbones: InceptionV3 is left out; MobileNetV2 is added, since small ImageNet weights of it are at hand. Toy: 4 + 2 convolutions from scratch, "
    "and the first sixth of the steps trains the classification alone; beta 1.0 lets masks grow over the border (mean 0.26, objects 0.15); 1.5 to 2.5 score no better.",
    "The copy of f2 is the same weights taken as constants and copied norm statistics: what a deep copy gives, without copying weights (tested against one).",
    "Boxes: 8-connected components; IoU of half-open boxes without the +1 of the authors' evaluation; true boxes are those of the masks. Thresholds are "
    "chosen on a third of the validation images and scored on the rest; the authors fixed k, threshold and epoch on the test set.",
    "Data: no reader for CUB, ILSVRC or OpenImages; task=wsol takes any data set with one tag per image. Images are classified from ten crops, localised from one; "
    "OpenImages is tested on the centre of 256 as the others are (code: resized to 224 directly).",
    "Segmentation: the random walk of IRN is not built; refine=sure gives IRN's training labels directly to the segmenter. Effect not measured.",
    "Segmentation: the plain classifier behind CAM, and the DeepLab v2 on top, are not in the authors' repository: same network without generator, IRN's "
    "loss (size=small: the BAS network's own maps); the segmenter's recipe is our choice. Maps are averaged at the resolution of the first scale.",
)
