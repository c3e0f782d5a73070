"""Scoring: enlarging scores before the argmax, mixed image sizes, which images are shown, and the numbers that reach result.json."""
import numpy as np
import pytest
import torch

from seglite.evaluate import evaluate, label_maps


class Pictures:
    """Images whose red channel is the class; sizes differ."""

    classes, palette = ("a", "b", "c"), np.zeros((3, 3), np.uint8)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.masks = [rng.integers(0, 3, (h // 4, w // 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8) for h, w in sizes]

    def __len__(self):
        return len(self.masks)

    def name(self, index):
        return f"image{index}"

    def read(self, index, wants):
        mask = self.masks[index]
        return {"image": np.stack([mask * 100, mask * 0, mask * 0], -1), "mask": mask}


def oracle(x):
    """Scores that are highest for the class in the red channel."""
    red = (x[:, :1] * 255 / 100).round()
    return -(red - torch.arange(3.0)[:, None, None]).abs()


def test_an_oracle_scores_one_on_mixed_sizes():
    data = Pictures([(8, 8), (8, 8), (12, 8), (8, 8), (16, 20)])
    result = evaluate(oracle, data, keep=3)
    assert result.confusion.miou() == 1.0 and result.boundary.miou() == 1.0
    assert int(result.confusion.counts.sum()) == sum(m.size for m in data.masks)
    assert [s["name"] for s in result.samples] == ["image0", "image2", "image4"], "spread over the data set"
    assert result.headline()["miou"] == 1.0 and result.images_per_second > 0


def test_a_wrong_class_counts_where_it_is():
    data = Pictures([(8, 8)])
    result = evaluate(lambda x: oracle(x)[:, [1, 0, 2]], data)
    truth = data.masks[0]
    assert result.confusion.counts[0, 1] == (truth == 0).sum() and result.confusion.counts[1, 0] == (truth == 1).sum()


def test_scores_are_enlarged_before_the_argmax():
    data = Pictures([(8, 8)])
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 1, 0, 0], scores[0, 2, 1, 1] = 3.0, 1.0
    labels = label_maps(lambda x: scores, [data.read(0, ())["image"]], data, "cpu")
    wanted = torch.nn.functional.interpolate(scores, (8, 8), mode="bilinear", align_corners=False).argmax(1).numpy()
    assert (labels == wanted).all() and not (labels == scores.argmax(1).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()).all()


def test_a_foreign_label_is_refused():
    data = Pictures([(8, 8)])
    data.masks[0] = np.full((8, 8), 7, np.uint8)
    with pytest.raises(ValueError, match="holds 7"):
        evaluate(lambda x: torch.zeros(len(x), 3, 8, 8), data)
