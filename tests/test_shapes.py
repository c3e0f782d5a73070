"""Every shape comment in the code is executed: run small examples and compare (grammar and machinery: tests/shape_comments.py).

To add a module: write an example that reaches each of its commented lines with sizes that tell the dimensions apart
(different height and width, batch unlike channels), and enter it in EXAMPLES.
"""
import importlib
from pathlib import Path

import pytest
import torch

from tests.shape_comments import Source, check_shapes

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
    from seglite.nets.mobilenet import mobilenet_v2

    for classes in (7, 0):
        mobilenet_v2(classes=classes, width=0.25)(torch.randn(2, 3, 64, 96))


def segmenters():
    from seglite.nets.resnet import resnet18
    from seglite.nets.segmenters import DeepLabV2, DeepLabV3Plus, SmallClassifier, SmallUNet

    image = torch.randn(2, 3, 64, 96)
    for upsample in (True, False):
        DeepLabV2(resnet18(classes=0, width=8), 5, upsample=upsample)(image)
        DeepLabV3Plus(resnet18(classes=0, width=8), 5, 12, 10, upsample=upsample)(image)
    SmallUNet(5)(image)
    SmallClassifier(4)(image)


def vit():
    from seglite.nets.vit import ViT

    net = ViT(patch=4, width=24, depth=2, heads=3, image_size=20)
    for size in ((20, 20), (8, 12)):
        net.features(torch.randn(2, 3, *size))


EXAMPLES = {
    "seglite.nets.layers": layers,
    "seglite.nets.resnet": resnet,
    "seglite.nets.mobilenet": mobilenet,
    "seglite.nets.segmenters": segmenters,
    "seglite.nets.vit": vit,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_shape_comments_are_true(name):
    torch.manual_seed(0)
    report = check_shapes([importlib.import_module(name)], EXAMPLES[name])
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
