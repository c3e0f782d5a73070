"""Localisation scores against flood fill, hand-drawn cases and an independent precision-recall loop."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seglite.localisation import Localisation, box_iou, box_of, component_boxes, largest_box, with_boxes


def flood(mask):
    """Components of a mask by flood fill, 8-connected: sorted rows (left, top, right, bottom, pixels)."""
    mask, found = mask.copy(), []
    for y, x in np.argwhere(mask):
        if not mask[y, x]:
            continue
        stack, seen = [(y, x)], []
        mask[y, x] = False
        while stack:
            a, b = stack.pop()
            seen.append((a, b))
            for i in range(max(a - 1, 0), min(a + 2, mask.shape[0])):
                for j in range(max(b - 1, 0), min(b + 2, mask.shape[1])):
                    if mask[i, j]:
                        mask[i, j] = False
                        stack.append((i, j))
        ys, xs = zip(*seen)
        found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1, len(seen)))
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.integers(0, 10**6))
def test_components_of_every_threshold_are_those_of_flood_fill(h, w, levels, seed):
    heat = np.random.default_rng(seed).integers(0, levels, (h, w)) / levels
    thresholds = [0.0, 0.2, 0.35, 0.5, 0.2, 0.99]  # in any order, with a repetition
    for t, found in zip(thresholds, component_boxes(heat, thresholds)):
        assert sorted(map(tuple, found.tolist())) == flood(heat > t)


def test_diagonal_neighbours_are_one_component_and_the_largest_counts_pixels_not_area():
    mask = np.zeros((6, 9))
    for i in range(4):
        mask[i, i] = 1.0  # four pixels in a box of sixteen
    mask[4:6, 6:9] = 1.0  # six pixels in a box of six
    (found,) = component_boxes(mask, [0.5])
    assert sorted(found[:, 4].tolist()) == [4, 6]
    assert largest_box(found, mask.shape).tolist() == [6, 4, 9, 6]
    assert largest_box(found[:0], mask.shape).tolist() == [0, 0, 9, 6]  # nothing survives: the whole image


def test_box_iou_by_hand():
    a, b = np.array([[0, 0, 4, 4], [0, 0, 1, 1]]), np.array([[2, 2, 6, 6], [0, 0, 4, 2], [9, 9, 10, 10]])
    assert np.allclose(box_iou(a, b), [[4 / 28, 0.5, 0], [0, 1 / 8, 0]])
    assert box_of(np.eye(5, dtype=bool)[:, :3]).tolist() == [0, 0, 3, 3]
    with pytest.raises(ValueError, match="no box"):
        box_of(np.zeros((2, 2), bool))


def two_images():
    """One map with a strong quarter and a weak rest of the object, one map that is right at once."""
    scores = Localisation([0.1, 0.3, 0.5, 0.7])
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    part = mask * 0.2
    part[2:4, 2:4] = 0.9
    scores.add(part, [[2, 2, 6, 6]], mask, rank=0)
    scores.add(mask * 1.0, [[0, 0, 1, 1], [2, 2, 6, 6]], mask, rank=3)  # any true box may be matched
    return scores


def test_boxes_at_thresholds_and_with_classes():
    scores = two_images()
    assert [scores.box_accuracy(t) for t in scores.thresholds] == [1, 0.5, 0.5, 0.5]
    assert scores.best_threshold() == 0.1 and scores.max_box_acc() == 1
    assert scores.box_accuracy(0.1, top=1) == 0.5 and scores.box_accuracy(0.1, top=5) == 1
    assert scores.box_accuracy(0.3, iou=0.25) == 1  # a quarter of the box
    assert scores.box_accuracy(0.3, images=[0]) == 0 and scores.best_threshold(images=[1]) == 0.5
    with pytest.raises(ValueError, match="not measured"):
        scores.box_accuracy(0.2)


def test_version_2_takes_any_component_and_a_threshold_of_its_own_for_each_iou():
    scores = Localisation([0.1, 0.5])
    heat = np.zeros((10, 10))
    heat[0:3, 0:4] = 1.0  # a distraction with more pixels
    heat[6:8, 6:8] = 0.9  # the object
    heat[6:9, 6:9] = np.maximum(heat[6:9, 6:9], 0.3)
    heat[9, 9] = 0.2  # touches the object, outside it
    scores.add(heat, [[6, 6, 9, 9]])
    assert scores.max_box_acc() == 0  # the distraction is the largest at both
    assert np.allclose(scores.best[0], [9 / 16, 4 / 9])
    assert np.isclose(scores.max_box_acc_v2(), (1 + 1 + 0) / 3)
    assert np.isclose(scores.max_box_acc_v2(ious=(0.4,)), 1)


def test_pxap_is_the_plain_loop_over_thresholds():
    random = np.random.default_rng(0)
    scores, maps, masks, ignored = Localisation([0.5]), [], [], []
    for _ in range(3):
        mask, heat, ignore = random.random((7, 9)) < 0.3, random.integers(0, 1001, (7, 9)) / 1000, random.random((7, 9)) < 0.2
        mask[0, 0] = True
        scores.add(heat, [box_of(mask)], mask, ignore)
        maps.append(heat[~ignore]), masks.append(mask[~ignore]), ignored.append(ignore)
    heat, mask = np.concatenate(maps), np.concatenate(masks)
    area = before = best = 0.0
    for t in range(1000, -1, -1):
        chosen = np.round(heat * 1000) >= t
        if chosen.any():
            recall = (chosen & mask).sum() / mask.sum()
            area += (chosen & mask).sum() / chosen.sum() * (recall - before)
            best = max(best, (chosen & mask).sum() / (chosen | mask).sum())
            before = recall
    assert np.isclose(scores.pxap(), area, atol=5e-3) and np.isclose(scores.piou(), best, atol=5e-3)
    assert scores.pxap(images=[1]) != scores.pxap()


def test_a_perfect_map_has_pxap_one_and_a_constant_one_the_object_s_share():
    mask = np.zeros((8, 8), bool)
    mask[:, :2] = True
    perfect, constant = Localisation(), Localisation()
    perfect.add(mask * 1.0, [box_of(mask)], mask)
    constant.add(np.full((8, 8), 0.4), [box_of(mask)], mask)
    assert perfect.summary(0.5)["PxAP"] == 1 and perfect.piou() == 1
    assert constant.pxap() == 0.25 and constant.piou() == 0.25


def test_half_height_sees_what_pxap_is_blind_to():
    """A map that is high on a part of the object and faint on the rest ranks every pixel right, and covers only the part."""
    mask, heat = np.zeros((8, 8), bool), np.zeros((8, 8))
    mask[:, :4] = True
    heat[:, :4], heat[:, :1] = 0.2, 1.0
    heat[0, 7] = 0.1
    faint = Localisation()
    faint.add(heat, [box_of(mask)], mask)
    assert faint.pxap() == 1 and faint.max_box_acc() == 1
    assert faint.at_half() == (8 / 32, 8 / 32)
    bold = Localisation()
    bold.add(np.where(mask, 0.5, heat), [box_of(mask)], mask)
    bold.add(np.full((8, 8), 0.9), [box_of(mask)], mask)
    assert bold.at_half() == (1, 64 / 96) and bold.at_half(images=[0]) == (1, 1)
    assert (bold.summary(0.5)["recall at half"], bold.summary(0.5)["IoU at half"]) == bold.at_half()


def test_wrong_maps_are_refused():
    scores = Localisation()
    with pytest.raises(ValueError, match="normalise it"):
        scores.add(np.full((4, 4), 1.5), [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="without a true box"):
        scores.add(np.zeros((4, 4)), [])
    scores.add(np.zeros((4, 4)), [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="without"):
        scores.pxap()
    with pytest.raises(ValueError, match="without"):
        scores.at_half()


@pytest.mark.parametrize("stored, green", [((), False), ((255,), False), ((1, 255), True)])
def test_pixels_that_are_not_judged_have_no_box(stored, green):
    truth, heat = np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.float32)
    heat[1:3, 1:4] = 1
    for i, value in enumerate(stored):
        truth[3 + 2 * i : 5 + 2 * i, 5:8] = value
    picture = with_boxes({"image": np.full((8, 9, 3), 100, np.uint8), "truth": truth}, heat, 0.5)
    assert tuple(picture[1, 1]) == (240, 220, 40) and ((picture == (60, 200, 90)).all(2).sum() == 6) == green
