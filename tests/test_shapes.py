"""Every shape comment in the code is executed: run small examples and compare (grammar and machinery: tests/shape_comments.py).

To add a module: write an example that reaches each of its commented lines with sizes that tell the dimensions apart
(different height and width, batch unlike channels), and enter it in EXAMPLES.
"""
import contextlib
import functools
import importlib
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kernels import backend
from tests.shape_comments import Report, Source, check_shapes

ROOT = Path(__file__).parent.parent


def layers():
    from seglite.nets.layers import FrozenBatchNorm

    FrozenBatchNorm(5)(torch.randn(2, 5, 8, 6))


def resnet():
    from seglite.nets.resnet import resnet18, resnet50

    for build in (resnet18, resnet50):
        for classes in (7, 0):
            build(classes=classes, width=8, output_stride=16)(torch.randn(2, 3, 64, 96))


def mobilenet():
    from seglite.nets.mobilenet import mobilenet_v1, mobilenet_v2

    for classes in (7, 0):
        mobilenet_v2(classes=classes, width=0.25)(torch.randn(2, 3, 64, 96))
        mobilenet_v1(classes=classes, width=0.25)(torch.randn(2, 3, 64, 96))


def vgg():
    from seglite.nets.vgg import Vgg

    groups = ((4, 1), (6, 1), (8, 1), (8, 1), (10, 1))
    Vgg(groups, classes=0, output_stride=8, pool="3x3")(torch.randn(2, 3, 64, 96))
    with torch.device("meta"):  # the classifier's 120 million weights are not needed to see shapes
        Vgg(groups, classes=7)(torch.empty(2, 3, 224, 256))


def deeplab():
    from seglite import config
    from seglite.data import scenes
    from seglite.papers import deeplab as dl

    data = scenes.Scenes(scenes.ScenesSettings(world="rims", size=49, train_images=1, val_images=1), "val")
    image, mask = torch.randn(2, 3, 49, 49), torch.zeros(2, 49, 49, dtype=torch.long)
    for extra in (["hidden=6"], ["head=single", "crf=true", "msc=1,0.5", "test_scale=0.5"]):
        settings = config.parse(["method=deeplab", *extra], {"deeplab": dl})[0]
        net = dl.build(settings, 4)
        dl.step_losses(net(image), mask, 4, settings.msc)
        dl.predictor(net, settings, data)(image)
    dl.radius_of_objects(mask)


def p2at():
    from seglite import config
    from seglite.nets.pspnet import DeepLabV3
    from seglite.nets.resnet import resnet18
    from seglite.papers import p2at as P

    image, mask = torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    for extra in (["attention=squeeze"], ["attention=axial", "boundary=true"], ["attention=full", "fusion=sum"], ["net=pspnet"],
                  ["net=deeplabv3"], ["short_sighted=true"]):
        settings = config.parse(["method=p2at", "body_width=8", "channels=16", "heads=2", "key=4", "value=6", "base=192", *extra], {"p2at": P})[0]
        net = P.build(settings, 5)
        P.step_losses(net.train()(image), mask, settings)
        P.predictor(net.eval(), settings)(image)
    P.predictor(net, config.override(settings, base=0))(image)
    P.Probe(P.attention_twice("squeeze"), 5)(image)
    DeepLabV3(resnet18(classes=0, width=8, output_stride=16), 5, 12)(image)


def mgd():
    from seglite.papers import mgd as M
    from tests.seglite import test_mgd as T

    batch, settings = T.batch_of(), T.settings("learn_padding=true")
    for chosen in (settings, T.settings()):
        M.student_step(T.tiny_net(), batch, {name: M.Teacher(T.tiny_net(f"tiny_{name}"), None) for name in ("deep", "wide")}, chosen)
    M.cps_step(M.Pair(T.tiny_net), batch, True, settings)
    M.ema_step(T.tiny_net(), batch, M.Teacher(T.tiny_net()), True, settings)
    M.Classroom({"one": T.tiny_net()})(batch["image"], M.mixed(batch), set())


def segmenters():
    from seglite.nets.resnet import resnet18
    from seglite.nets.segmenters import DeepLabV2, DeepLabV3Mobile, DeepLabV3Plus, SmallClassifier, SmallUNet

    image = torch.randn(2, 3, 64, 96)
    for upsample in (True, False):
        DeepLabV2(resnet18(classes=0, width=8), 5, upsample=upsample)(image)
        DeepLabV3Plus(resnet18(classes=0, width=8), 5, 12, 10, upsample=upsample)(image)
    DeepLabV3Mobile(5, side=97).predict(image)
    SmallUNet(5)(image)
    SmallClassifier(4)(image)


def vit():
    from seglite.nets.vit import ViT

    net = ViT(patch=4, width=24, depth=2, heads=3, image_size=20)
    for size in ((20, 20), (8, 12)):
        net.features(torch.randn(2, 3, *size))


def groupvit():
    from seglite.nets.groupvit import CaptionedGroupViT, GroupViT, TextTower

    net = GroupViT(patch=4, width=24, heads=3, depths=(2, 1, 1), groups=(7, 5), image_size=20)
    model = CaptionedGroupViT(net, TextTower(30, 16, 2, 2, context=9), shared=6, hidden=10)
    for size in ((20, 20), (8, 12)):
        model.segment(torch.randn(2, 3, *size))
    model.encode_text(torch.randint(0, 30, (3, 9)))
    model.scale()


def mixreorg():
    from seglite import config
    from seglite.papers import mixreorg as M

    tokens = torch.zeros(6, 24, dtype=torch.long)
    tokens[:, 0], tokens[:, 1] = torch.arange(6), 9
    for extra in (["progressive=attend"], ["progressive=add", "mask_captions=batch", "mask_loss=probabilities"], ["mixing=false"]):
        settings = config.parse(["method=mixreorg", "images=3", "image_size=32", "context=24", "context_blocks=1", *extra], {"mixreorg": M})[0]
        M.step_losses(M.build(settings, 10), torch.randn(6, 3, 32, 40), tokens, settings)


def losses():
    from seglite import losses as L

    logits, target = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))
    L.cross_entropy(logits, target, weight=torch.rand(2, 6, 7))
    L.ohem_cross_entropy(logits, target, keep=20)
    L.multilabel_soft_margin(torch.randn(2, 4), torch.ones(2, 4))
    L.contrastive(torch.randn(2, 4, requires_grad=True), torch.randn(2, 4), 5.0)


def clip():
    from seglite.nets.clip import LockedTower, clip_tiny

    for image in (torch.randn(2, 3, 8, 8), torch.randn(2, 192)):
        LockedTower(torch.nn.Flatten(), 192, 8, 5)(image)
    model = clip_tiny(9, image_size=20, patch=4, context=7)
    model(torch.randn(2, 3, 20, 20), torch.randint(0, 9, (2, 7)))


def zeroseg():
    """A whole run of a few steps, and a student that sees an image larger than it was trained on."""
    from seglite import train
    from seglite.clip_teacher import ClipTeacher
    from seglite.nets import mae
    from seglite.nets.clip import clip_tiny
    from seglite.papers import zeroseg as Z
    from seglite.tokenizer import Words
    from tests.seglite.test_zeroseg import TINY

    with tempfile.TemporaryDirectory() as folder, backend.use("torch"), contextlib.redirect_stdout(io.StringIO()):
        arguments = ["method=zeroseg", f"out={folder}/run", *(f"{k}={v}" for k, v in {**TINY, "coordinates": "mean", "each_patch": "true"}.items())]
        assert train.main(arguments) == 0
    model = mae.MaskedAutoencoder(patch=4, width=12, depth=1, heads=2, image_size=16, decoder_width=8, decoder_depth=1, decoder_heads=2)
    model.encode(torch.randn(2, 3, 16, 24), 0.5)
    Z.l1(torch.randn(2, 3, 5), torch.randn(2, 4, 5), "mean")
    tokenizer = Words(["a dog"], context=7)
    ClipTeacher(clip_tiny(tokenizer.size, 16, 8, 7), tokenizer, (0.5,) * 3, (0.5,) * 3).texts(["a dog", "a", "dog"])


def openvocab():
    from seglite import openvocab as O
    from seglite.tokenizer import Words

    tokenizer = Words(["a dog on grass"], context=7)
    embed = lambda names: O.class_embeddings(lambda tokens: torch.randn(len(tokens), 6), tokenizer, names, ("a {}", "{}"))  # noqa: E731
    segment = lambda image: O.Segmented(torch.randn(2, 4, 6), torch.randn(2, 6), torch.rand(2, 4, 3, 5))  # noqa: E731
    for options in ({}, {"threshold": 0.5, "short_side": 18}, {"window": 8, "stride": 4}):
        O.WordPredictor(segment, embed, ("dog", "grass", "dog grass"), **options)(torch.randn(2, 3, 12, 20))
    O.retrieval(torch.randn(3, 6), torch.randn(7, 6), torch.arange(7) % 3)


def cam():
    from seglite import cam as C
    from seglite.nets.segmenters import SmallClassifier

    image, tags = torch.randn(2, 3, 32, 48), torch.ones(2, 4)
    maps = C.activation_maps(SmallClassifier(4).eval().class_maps, image, scales=(1.0, 0.5), flip=True)
    C.seeds(C.normalise(maps, tags), 0.3, (32, 48))


def suppression():
    from seglite import suppression as S

    tags = torch.eye(3)[:2]
    for task, settings in (("wsol", S.SuppressionSettings()), ("wsss", S.segmentation_settings())):
        model = S.build("small", task, 3, settings)
        model.class_maps(torch.randn(2, 3, 64, 96))
        model.evidence(torch.randn(2, 3, 64, 96))
        model(torch.randn(2, 3, 64, 96))
        (S.wsol_step if task == "wsol" else S.wsss_step)(model, {"image": torch.randn(2, 3, 64, 96), "tags": tags}, 0, settings)
    S.suppression(torch.ones(2), torch.ones(2), "keep")
    wsol, image, mask = S.build("small", "wsol", 3, S.SuppressionSettings()), torch.randn(2, 3, 64, 96), torch.rand(2, 64, 96) > 0.5
    S.observation(wsol, image, mask, torch.tensor([0, 1]), (-2, 0, 2))
    S.heights(wsol, image, mask, torch.tensor([0, 2]))


def bas():
    """Both pipelines of a few steps."""
    from seglite import train

    tiny = {"scenes.size": 32, "scenes.train_images": 12, "scenes.val_images": 4, "bas.warmup": 1, "top_k": 2, "refine": "sure",
            **{f"{stage}.steps": 2 for stage in ("train", "classifier", "segmenter")}, **{f"{stage}.batch": 4 for stage in ("train", "classifier", "segmenter")}}
    for task in ("wsol", "wsss"):
        with tempfile.TemporaryDirectory() as folder, backend.use("torch"), contextlib.redirect_stdout(io.StringIO()):
            words = [f"{k}={v}" for k, v in {**tiny, "task": task, "out": f"{folder}/run", "threads": 1}.items()]
            assert train.main(["method=bas", *words]) == 0
    from seglite import suppression as S
    from seglite.papers import bas as B

    model, image = S.build("small", "wsol", 3, S.SuppressionSettings()).eval(), torch.randn(2, 3, 32, 32)
    B.classify(model, image, B.Settings(test_crop=24))


def stego():
    from seglite import stego as S

    image, net = torch.randn(2, 3, 32, 48), S.TextureNet()
    S.backbone_step(net, {"image": image}, 0.3, 2)
    codes = S.SegmentationHead(32, 9)(net(image))
    S.encode(net, image)
    S.separation(codes, torch.randint(-1, 3, (2, 16, 24)), pairs=50)
    S.stego_step(S.SegmentationHead(32, 9), net, {"image": image, "partner": image.flip(-1)}, S.StegoSettings())


def mars():
    """A whole run of a few steps, refinement included."""
    from seglite import train
    from seglite.papers import marsstyle as M

    tiny = {"scenes.size": 32, "scenes.train_images": 12, "scenes.val_images": 2, "deleted": "weighted", "crf": "true", "smallest_region": 2,
            "views.crop": 16, **{f"{stage}.steps": 2 for stage in ("classifier", "backbone", "head", "train")},
            **{f"{stage}.batch": 4 for stage in ("classifier", "backbone", "head", "train")}}
    with tempfile.TemporaryDirectory() as folder, backend.use("torch"), contextlib.redirect_stdout(io.StringIO()):
        assert train.main(["method=marsstyle", f"out={folder}/run", "threads=1", *(f"{k}={v}" for k, v in tiny.items())]) == 0
    M.binarise(torch.rand(2, 5, 6), (10, 12), 0.5)


def barm():
    """A whole run of three steps for each learner that has lines of its own."""
    from seglite import incremental, train
    from seglite.data import steps
    from seglite.papers import barm as B

    tiny = ["method=barm", "scenes.size=32", "scenes.width=48", "scenes.train_images=20", "scenes.val_images=2", "task=4-2", "width=8", "threads=1",
            "train.steps=1", "train.batch=4", "step.steps=1", "step.batch=4"]
    with tempfile.TemporaryDirectory() as folder, backend.use("torch"), contextlib.redirect_stdout(io.StringIO()):
        for learner in ("barm", "mib", "plop"):
            assert train.main([*tiny, f"learner={learner}", f"out={folder}/{learner}"]) == 0
        tags = Path(folder) / "tags.txt"
        tags.write_text("one 3 7\n")
        steps.read_presence(str(tags), 20)
    incremental.diverging(np.zeros((5, 6)))
    with torch.device("meta"):
        B.build(B.Settings(net="resnet18"), [3])(torch.empty(2, 3, 32, 48))


def scoring():
    from seglite import evaluate as E

    x, data = torch.randn(2, 3, 24, 32), SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)
    E.enlarge(torch.randn(2, 5, 6, 8), x)
    halved = lambda image: torch.randn(len(image), 5, image.shape[-2] // 2, image.shape[-1] // 2)  # noqa: E731
    E.multi_scale(E.sliding_window(halved, 16), (1.0, 0.75), flip=True)(x)
    E.photographs(x, data)


def metrics():
    from seglite import metrics as M

    truth, prediction = torch.randint(0, 5, (2, 12, 17)), torch.randint(0, 5, (2, 12, 17))
    for meter in (M.Confusion(5), M.BoundaryIoU(5, ratio=0.1), M.Trimap(5)):
        meter.add(truth, prediction).miou()
    M.boundary_pixels(truth[0].numpy())


def pictures():
    from seglite import pictures as P

    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    truth, prediction = np.random.default_rng(1).integers(0, 5, (2, 12, 17))
    P.overlay(image, truth, P.voc_palette(5))
    P.error_map(image, truth, prediction)
    P.boundary_map(image, truth, prediction)


def scenes():
    from seglite.data.scenes import Scenes, ScenesSettings

    for world in ("general", "mars", "bas", "rims", "faint", "axial", "nearer", "road", "few", "text", "steps"):
        data = Scenes(ScenesSettings(world=world, seed=0, train_images=3, val_images=2), "train")
        data.read(1, ("image", "mask", "tags", "text", "context"))


def transforms():
    from seglite.data.transforms import jitter

    jitter(np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8), 1.1, 0.9, 1.2, 0.1)


def partitions():
    from seglite.data import partitions as P

    P.split(SimpleNamespace(labels="1/4", seed=0), range(9))


def cwbass():
    """A run of a few steps with the memory, and the other readings of the decay."""
    from seglite import train
    from seglite.papers import cwbass as C

    tiny = {"scenes.size": 32, "scenes.train_images": 12, "scenes.val_images": 2, "labels": "1/3", "decay": "memory", "decay_grid": 9,
            **{f"{stage}.{key}": value for stage in ("burn_in", "train") for key, value in (("steps", 2), ("batch", 4))}}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        assert train.main(["method=cwbass", f"out={folder}/run", "threads=1", *(f"{k}={v}" for k, v in tiny.items())]) == 0
    for decay in ("stateless", "retained"):
        C.targets(torch.randn(2, 5, 6, 7), torch.ones(2, 6, 7, dtype=torch.bool), C.Settings(decay=decay))


def views():
    from seglite.data import generator, views as V

    mix = torch.from_numpy(np.stack([V.box_mask(generator(i), 12, 17) for i in range(2)]))
    V.paste(torch.randn(2, 3, 12, 17), torch.randn(2, 3, 12, 17), mix)
    V.valid(torch.tensor([[0, 0.1, 0, 0.05]] * 2), 12, 17)


def voc():
    from seglite.data.voc import VocSettings, open as open_voc, read_tags

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2012"
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / name).mkdir(parents=True)
        (root / "ImageSets/Segmentation/train.txt").write_text("one\n")
        (root / "tags.txt").write_text("one 3 7\n")
        Image.new("RGB", (9, 6)).save(root / "JPEGImages/one.jpg")
        Image.new("L", (9, 6)).save(root / "SegmentationClass/one.png")
        read_tags(str(root / "tags.txt"), 21)
        open_voc(SimpleNamespace(root=str(root), voc=VocSettings()), "train").read(0, ("image", "mask", "tags"))


def own_folder():
    from seglite.data import folder as own

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part, mode in (("images", "RGB"), ("masks", "L")):
            (root / part).mkdir()
            Image.new(mode, (9, 6)).save(root / part / "one.png")
        settings = own.FolderSettings(classes="background,a,b", val=1e-9)
        own.open(SimpleNamespace(root=name, folder=settings), "train").read(0, ("image", "mask", "tags"))


def bench():
    from kernels import bench as B

    B.roofline("cpu", SimpleNamespace(sample=lambda call: 1.0))
    for case in [*B.atrous_conv_cases("cpu")[:1], *B.dense_crf_cases("cpu")[:1]]:
        case.build()
    for case in [*B.axial_attention_cases("cpu"), *B.patch_mix_cases("cpu")]:
        for peer in case.build()[1].values():
            peer()


def atrous():
    from kernels import atrous_conv as A, backend

    x, w, b = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    for path in ("reference", "torch", "triton"):
        with backend.use(path):
            A.atrous_conv(x, w, b, stride=2, padding=2, rate=2).sum().backward()
            A.atrous_conv(x, torch.randn(6, 1, 3, 3, requires_grad=True), None, padding=1, groups=3, relu=True).sum().backward()
            for route in ("direct", "shift_add"):
                A.aspp(x, torch.randn(2, 5, 3, 3, 3, requires_grad=True), torch.randn(2, 5), (1, 2), route).sum().backward()
    for bias in (None, b):
        A.fold_batch_norm(w, bias, torch.nn.BatchNorm2d(4).eval())


def axial():
    from kernels import axial_attention as A, backend

    q, v = torch.randn(1, 2, 3, 5, 4, requires_grad=True), torch.randn(1, 2, 3, 5, 7)
    tables = A.RelativePositions(*(torch.randn(9, c, requires_grad=True) for c in (4, 4, 7)))
    for path in ("reference", "torch", "triton"):
        with backend.use(path):
            A.axial_attention(q, q, v, "row", relative=tables).sum().backward()
            for axis in ("row", "column"):
                A.axial_attention(q, q, v, axis)
                A.axial_attention(q, q, v.transpose(-1, -2).contiguous().transpose(-1, -2), axis)
                A.axial_attention(q, q, torch.randn(1, 2, 3, 5, 4), axis)
    with backend.use("torch"):
        A.axial_attention(q.half(), q.half(), v.half(), "row")  # half precision with wider values has a path of its own


def squeeze():
    from kernels import backend, squeeze_axial as S

    q, v = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(2, 8, 5, 7)
    for path in ("reference", "torch", "triton"):
        with backend.use(path):
            S.squeeze_axial_attention(q, q, v, 2, S.PositionTables(*[torch.randn(6, 16)] * 4)).sum().backward()


def crf():
    from kernels import backend
    from kernels.dense_crf import mean_field

    unary, image = torch.rand(2, 3, 5, 6, requires_grad=True), torch.randint(0, 256, (2, 3, 5, 6)).float()
    with backend.use("reference"):
        mean_field(unary, image, iterations=2).sum().backward()


def crf_exact():
    from kernels import bench_crf

    bench_crf.exact(torch.rand(1, 3, 5, 6), torch.randint(0, 256, (1, 3, 5, 6)), bench_crf.SETTINGS["67/3"], iterations=1)


def mixing():
    from kernels import backend, patch_mix as P

    index = P.random_mix_index(4, 6, images=2)
    P.mix_labels(index, 2, (4, 5), (8, 15))
    for path in ("reference", "torch", "triton"):
        with backend.use(path):
            P.patch_mix(torch.randn(4, 3, 8, 15), index, (4, 5))
            P.patch_unmix(torch.randn(4, 6, 5), index)
            P.patch_mix(torch.randn(4, 8, 15), index, (4, 5))


EXAMPLES = {
    "seglite.nets.layers": layers,
    "seglite.nets.resnet": resnet,
    "seglite.nets.mobilenet": mobilenet,
    "seglite.nets.segmenters": segmenters,
    "seglite.nets.vgg": vgg,
    "seglite.nets.p2at": p2at,
    "seglite.nets.pspnet": p2at,
    "seglite.papers.p2at": p2at,
    "seglite.papers.barm": barm,
    "seglite.incremental": barm,
    "seglite.data.steps": barm,
    "seglite.papers.deeplab": deeplab,
    "seglite.papers.mgd": mgd,
    "seglite.nets.vit": vit,
    "seglite.nets.groupvit": groupvit,
    "seglite.papers.mixreorg": mixreorg,
    "seglite.losses": losses,
    "seglite.nets.clip": clip,
    "seglite.tokenizer": openvocab,
    "seglite.nets.mae": zeroseg,
    "seglite.clip_teacher": zeroseg,
    "seglite.papers.zeroseg": zeroseg,
    "seglite.openvocab": openvocab,
    "seglite.cam": cam,
    "seglite.suppression": suppression,
    "seglite.papers.bas": bas,
    "seglite.localisation": bas,
    "seglite.stego": stego,
    "seglite.kmeans": mars,
    "seglite.pseudo": mars,
    "seglite.papers.marsstyle": mars,
    "seglite.evaluate": scoring,
    "seglite.metrics": metrics,
    "seglite.pictures": pictures,
    "seglite.data.scenes": scenes,
    "seglite.data.partitions": partitions,
    "seglite.papers.cwbass": cwbass,
    "seglite.data.views": views,
    "seglite.data.painter": scenes,
    "seglite.data.layouts": scenes,
    "seglite.data.brushes": scenes,
    "seglite.data.transforms": transforms,
    "seglite.data.voc": voc,
    "seglite.data.pairs": own_folder,
    "kernels.bench": bench,
    "kernels.atrous_conv": atrous,
    "kernels.atrous_depthwise": atrous,
    "kernels.atrous_shift_add": atrous,
    "kernels.atrous_taps": atrous,
    "kernels.axial_attention": axial,
    "kernels.squeeze_axial": squeeze,
    "kernels.dense_crf": crf,
    "kernels.bench_crf": crf_exact,
    "kernels.patch_mix": mixing,
}


@functools.cache
def reports(example) -> dict[str, Report]:
    """One run of the example for all modules that it serves."""
    torch.manual_seed(0)
    names = [name for name in EXAMPLES if EXAMPLES[name] is example]
    return dict(zip(names, check_shapes([importlib.import_module(name) for name in names], example)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_shape_comments_are_true(name):
    report = reports(EXAMPLES[name])[name]
    assert report.comments or report.documented, f"{name} has no shape comments: take it out of EXAMPLES"
    wrong = report.failures + report.untested
    assert not wrong, f"{len(wrong)} of {len(report.comments)} shape comments:\n" + "\n".join(wrong)


def test_every_module_with_shape_comments_has_an_example():
    """A shape comment that no example executes is a claim that nobody checks."""
    commented = {}
    for path in [*ROOT.glob("seglite/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        if count := len(Source(path).comments):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            commented[name] = count
    missing = [f"{name} ({count} shape comments)" for name, count in sorted(commented.items()) if name not in EXAMPLES]
    assert not missing, "add an example to EXAMPLES for " + ", ".join(missing)
