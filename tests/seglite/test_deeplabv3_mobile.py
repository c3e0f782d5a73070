"""DeepLab v3 on MobileNetV2: the published weights fit by name and give the published score."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from seglite.evaluate import Settings, score
from seglite.nets.layers import count_parameters
from seglite.nets.segmenters import DeepLabV3Mobile
from seglite.nets.weights import read_tensors

DATA = Path(os.environ.get("SEGLITE_DATA", "/nowhere"))
WEIGHTS = DATA / "weights/deeplabv3_mobilenetv2_voc.pth"


def test_size_and_shapes():
    net = DeepLabV3Mobile(21).eval()
    assert count_parameters(net) == 2_112_789
    assert [m.dilation for m in net.backbone.features[15].modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1] == [(2, 2)]
    assert [m.stride for m in net.backbone.features[14].modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1] == [(1, 1)]
    with torch.no_grad():
        assert net.coarse(torch.zeros(1, 3, 65, 97)).shape == (1, 21, 5, 7)
        assert net(torch.zeros(1, 3, 65, 97)).shape == (1, 21, 65, 97)


@torch.no_grad()
def test_predict_lays_the_photograph_on_grey_and_shrinks_what_is_larger():
    torch.manual_seed(0)
    net = DeepLabV3Mobile(4, side=65).eval()
    image = torch.randn(2, 3, 40, 50)
    canvas = torch.tensor(net.grey)[None, :, None, None].repeat(2, 1, 65, 65)
    canvas[..., :40, :50] = image
    torch.testing.assert_close(net.predict(image), net(canvas)[..., :40, :50])
    grey = (torch.tensor(net.grey) * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor([0.485, 0.456, 0.406])) * 255
    torch.testing.assert_close(grey, torch.full((3,), 127.5))
    assert net.predict(torch.randn(1, 3, 130, 90)).shape == (1, 4, 130, 90)


@pytest.mark.realdata
def test_published_weights_fit_by_name():
    tensors, _ = read_tensors(WEIGHTS)
    own = DeepLabV3Mobile(21).state_dict()
    assert len(tensors) == 314 and {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in own.items()}


@pytest.mark.realdata
@pytest.mark.parametrize("images", [6, pytest.param(120, marks=pytest.mark.slow)])
def test_published_weights_give_the_published_score(images):
    """The 120 images are those of the weights' README: the first 120 of RandomState(0)'s permutation give its two numbers and 20 classes."""
    settings = Settings(model="deeplabv3_mobilenetv2", weights=str(WEIGHTS), root=str(DATA / "voc_mini"), images=images, widths=(), keep=0)
    confusion = score(settings, say=lambda line: None)["scores"].confusion
    if images == 120:
        assert confusion.absent() == ["bus"]
        assert confusion.miou() == pytest.approx(0.714, abs=0.005) and confusion.pixel_accuracy() == pytest.approx(0.933, abs=0.002)
    else:
        assert confusion.pixel_accuracy() > 0.85, "six photographs are enough to see that the weights work"
        assert np.isfinite(confusion.miou())
