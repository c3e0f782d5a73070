"""Pixel counts against label maps small enough to count by hand, and properties that hold for every label map."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seglite.metrics import BoundaryIoU, Confusion, Trimap, best_class, boundary_pixels, dilate, inner_band

# Four classes; class 3 occurs nowhere, class 2 only in the prediction. Hits 6 and 7, unions 7, 9 and 3.
TRUTH = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
PREDICTION = np.array([[0, 0, 0, 2], [0, 0, 0, 1], [2, 2, 1, 1], [1, 1, 1, 1]])


def random_pair(seed, classes, shape, ignore=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    return np.where(rng.random(shape) < ignore, 255, truth), rng.integers(0, classes, shape)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_best_class_is_argmax_and_takes_the_first_of_equals(layout):
    scores = torch.randint(0, 3, (3, 7, 33, 21), generator=torch.Generator().manual_seed(0)).float().contiguous(memory_format=layout)  # many ties
    first = np.argmax(scores.numpy(), 1)
    assert np.array_equal(best_class(scores).numpy(), first)
    assert np.array_equal(best_class(scores[:, :, 0, 0]).numpy(), first[:, 0, 0])


def test_counts_and_ratios_of_a_worked_example():
    c = Confusion(("road", "tree", "car", "bus")).add(TRUTH, PREDICTION)
    assert c.counts.dtype == torch.int64
    assert c.counts.tolist() == [[6, 0, 1, 0], [0, 7, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(c.iou(), [6 / 7, 7 / 9, 0, np.nan])
    np.testing.assert_allclose(c.false_positive(), [0, 0, 1, np.nan])
    np.testing.assert_allclose(c.false_negative(), [1 / 7, 2 / 9, 0, np.nan])
    np.testing.assert_allclose(c.precision(), [1, 1, 0, np.nan])
    np.testing.assert_allclose(c.recall(), [6 / 7, 7 / 9, np.nan, np.nan])
    assert c.absent() == ["bus"]
    assert c.pixel_accuracy() == 13 / 16
    assert c.class_accuracy() == pytest.approx((6 / 7 + 7 / 9) / 2)
    summary = c.summary()
    assert summary.pop("absent") == ["bus"]
    assert summary == pytest.approx({
        "miou": (6 / 7 + 7 / 9) / 3, "pixel_accuracy": 13 / 16, "class_accuracy": (6 / 7 + 7 / 9) / 2, "fp": 1 / 3,
        "fn": (1 / 7 + 2 / 9) / 3, "pixels": 16})
    assert c.rows()[2] == {"class": "car", "iou": 0.0, "fp": 1.0, "fn": 0.0, "recall": None, "precision": 0.0, "pixels": 0}
    assert c.rows()[3]["iou"] is None


def test_one_label_map_four_published_numbers():
    rules = Confusion(4).add(TRUTH, PREDICTION).conventions()
    assert {name: round(100 * value, 1) for name, value in rules.items()} == {
        "occurring": 54.5, "in_truth": 81.7, "absent_is_0": 40.9, "absent_is_1": 65.9}


def test_ignored_pixels_change_nothing():
    c = Confusion(3).add([[0, 255], [255, 1]], [[0, 1], [2, 1]])
    assert c.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert c.miou() == 1.0
    # Whatever is written where the truth is void is never looked at, not even a foreign id.
    assert Confusion(3).add([[0, 255]], [[0, 77]]).pixel_accuracy() == 1.0


def test_subset_of_classes():
    c = Confusion(4).add(TRUTH, PREDICTION)
    assert c.miou(only=[0, 1]) == pytest.approx((6 / 7 + 7 / 9) / 2)
    assert c.miou(only=[0, 3]) == pytest.approx(6 / 7)
    assert np.isnan(c.miou(only=[3]))


@pytest.mark.parametrize("kind", ["numpy-uint8", "numpy-int32", "torch-uint8", "torch-int64", "lists", "batch", "strided"])
def test_every_way_to_hand_in_labels(kind):
    expected = [[6, 0, 1, 0], [0, 7, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    t, p = {
        "numpy-uint8": (TRUTH.astype(np.uint8), PREDICTION.astype(np.uint8)),
        "numpy-int32": (TRUTH.astype(np.int32), PREDICTION),
        "torch-uint8": (torch.tensor(TRUTH, dtype=torch.uint8), torch.tensor(PREDICTION)),
        "torch-int64": (torch.tensor(TRUTH), PREDICTION),
        "lists": (TRUTH.tolist(), PREDICTION.tolist()),
        "batch": (TRUTH[None, None], PREDICTION[None, None]),
        "strided": (np.repeat(TRUTH, 2, 1)[:, ::2], np.asfortranarray(PREDICTION)),
    }[kind]
    assert Confusion(4).add(t, p).counts.tolist() == expected


@pytest.mark.parametrize("classes,truth,prediction,words", [
    (19, [[0, 33]], [[0, 0]], ["truth holds 33 at [0, 1]", "K=19 allows 0..18 and 255", "raw id of bicycle"]),
    (21, [[0, -1]], [[0, 0]], ["truth holds -1", "void", "map -1 to 255"]),
    (150, [[1, 150]], [[0, 0]], ["truth holds 150", "from 1 to 150", "subtract 1"]),
    (21, [[0, 254]], [[0, 0]], ["truth holds 254", "deleted"]),
    (21, [[0, 8388736]], [[0, 0]], ["truth holds 8388736", "palette"]),
    (21, [[0, 75]], [[0, 0]], ["truth holds 75", "grey"]),
    (21, [[0, 1]], [[0, 255]], ["prediction holds 255 at [0, 1]", "K=21 allows 0..20.", "must decide"]),
    (21, [[0, 1]], [[0, 30]], ["prediction holds 30"]),
])
def test_foreign_labels_are_refused_with_a_reason(classes, truth, prediction, words):
    c = Confusion(classes)
    with pytest.raises(ValueError) as e:
        c.add(truth, prediction)
    for word in words:
        assert word in str(e.value)
    assert int(c.counts.sum()) == 0  # a refused image leaves no trace


def test_other_bad_input():
    with pytest.raises(TypeError, match="argmax"):
        Confusion(2).add(torch.zeros(4, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\[4, 4\] and prediction is \[4, 8\].*resize"):
        Confusion(2).add(torch.zeros(4, 4).long(), torch.zeros(4, 8).long())
    with pytest.raises(ValueError, match=r"argmax\(1\)"):
        Confusion(2).add(torch.zeros(1, 4, 4).long(), torch.zeros(1, 2, 4, 4).long())
    with pytest.raises(ValueError, match="1 to 254 classes"):
        Confusion(256)
    with pytest.raises(ValueError, match="no pixel was counted"):
        Confusion(2).add([[255]], [[0]]).miou()
    with pytest.raises(ValueError, match="cannot merge"):
        Confusion(2).merge(Confusion(3))
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        BoundaryIoU(2).add([0, 1], [0, 1])
    with pytest.raises(ValueError, match="seeds"):
        Trimap(2, seeds="contour")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Trimap(2, widths=(0, 1))
    with pytest.raises(ValueError, match="diagonal"):
        BoundaryIoU(2, ratio=2)


def test_counts_beyond_float_precision_stay_exact():
    c = Confusion(2)
    c.counts[0, 0] = 2**53
    c.add([[0]], [[0]])
    assert int(c.counts[0, 0]) == 2**53 + 1


# ---- properties ----------------------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@given(seeds, st.integers(1, 9), sizes)
def test_counts_equal_a_double_loop(seed, classes, shape):
    truth, prediction = random_pair(seed, classes, shape)
    expected = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel()):
        if t != 255:
            expected[t, p] += 1
    assert Confusion(classes).add(truth, prediction).counts.tolist() == expected.tolist()


@given(seeds, st.integers(1, 9), sizes)
def test_permuting_classes_permutes_iou(seed, classes, shape):
    truth, prediction = random_pair(seed, classes, shape)
    new_id = np.random.default_rng(seed + 1).permutation(classes)
    lookup = np.append(new_id, np.full(256 - classes, 255))  # ids above K stay void
    before = Confusion(classes).add(truth, prediction).iou()
    after = Confusion(classes).add(lookup[truth], lookup[prediction]).iou()
    np.testing.assert_array_equal(after[new_id], before)


@given(seeds, st.integers(2, 9), sizes)
def test_perfect_prediction_scores_one_everywhere(seed, classes, shape):
    truth, _ = random_pair(seed, classes, shape)
    truth[0, 0, 0] = 0
    filled = np.where(truth == 255, 1, truth)  # any guess on void pixels
    c = Confusion(classes).add(truth, filled)
    assert [c.conventions()[rule] for rule in ("occurring", "in_truth", "absent_is_1")] == [1.0, 1.0, 1.0]
    assert c.miou() == c.pixel_accuracy() == c.class_accuracy() == 1.0
    assert BoundaryIoU(classes).add(truth, filled).miou() == 1.0
    assert all(v == 1.0 or np.isnan(v) for v in Trimap(classes).add(truth, filled).miou().values())


@given(seeds, st.integers(1, 6), sizes)
def test_merging_parts_gives_the_whole(seed, classes, shape):
    truth, prediction = random_pair(seed, classes, shape)
    truth[0, 0, 0] = 0
    for make in (Confusion, BoundaryIoU, Trimap):
        whole = make(classes).add(truth, prediction)
        parts = make(classes)
        for t, p in zip(truth, prediction):
            parts.merge(make(classes).add(t[None], p[None]))
        assert str(parts.miou()) == str(whole.miou())  # as text, so that NaN equals NaN
        assert str(parts.across_processes().miou()) == str(whole.miou())


@given(seeds, st.integers(1, 9), sizes)
def test_iou_and_both_errors_fill_the_union(seed, classes, shape):
    c = Confusion(classes).add(*random_pair(seed, classes, shape, ignore=0))
    total = c.iou() + c.false_positive() + c.false_negative()
    np.testing.assert_allclose(total[c.union > 0], 1)
    assert c.conventions()["absent_is_0"] <= c.miou() <= c.conventions()["in_truth"] + 1e-12
    assert c.miou() <= c.conventions()["absent_is_1"] + 1e-12


# ---- boundaries ------------------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(0, 15))
def test_dilation_equals_its_definition(seed, height, width, radius):
    mask = np.random.default_rng(seed).random((height, width)) < 0.1
    rows, columns = np.where(mask)
    expected = np.zeros_like(mask)
    for y, x in zip(rows, columns):
        expected[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    np.testing.assert_array_equal(dilate(mask, radius), expected)


@given(seeds, st.integers(1, 10), st.integers(1, 10), st.integers(1, 4))
def test_band_equals_repeated_3x3_erosion(seed, height, width, distance):
    mask = np.random.default_rng(seed).random((height, width)) < 0.9
    eroded = np.pad(mask, 1)
    for _ in range(distance):
        around = np.pad(eroded, 1)
        shifts = [around[dy : dy + eroded.shape[0], dx : dx + eroded.shape[1]] for dy in range(3) for dx in range(3)]
        eroded = np.logical_and.reduce(shifts)
    np.testing.assert_array_equal(inner_band(mask, distance), mask & ~eroded[1:-1, 1:-1])


def test_boundary_pixels_of_two_halves():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 255, 1, 1]])
    assert boundary_pixels(labels).astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_boundary_iou_of_a_shifted_square():
    truth, prediction = np.zeros((20, 20), int), np.zeros((20, 20), int)
    truth[4:14, 4:14] = 1
    prediction[5:15, 4:14] = 1  # one row lower
    b = BoundaryIoU(2, ratio=0.02)
    assert b.distance(20, 20) == 1 and b.distance(375, 500) == 12
    b.add(truth, prediction)
    # Each contour is a ring of 36 pixels; shared are its two vertical sides, rows 5..13 of 2 columns.
    ring_t, ring_p = inner_band(truth == 1, 1), inner_band(prediction == 1, 1)
    assert ring_t.sum() == ring_p.sum() == 36 and (ring_t & ring_p).sum() == 18
    assert b.iou()[1] == 18 / (36 + 36 - 18)
    assert b.iou()[1] < Confusion(2).add(truth, prediction).iou()[1] == 90 / 110


def test_boundary_iou_forgives_size_that_plain_iou_rewards():
    """The same one-pixel error on a small and on a large square: plain IoU rises with size, boundary IoU hardly moves (the paper's point)."""
    plain, boundary = [], []
    for side in (20, 60):
        truth, prediction = np.zeros((100, 100), int), np.zeros((100, 100), int)
        truth[10 : 10 + side, 10 : 10 + side] = 1
        prediction[11 : 9 + side, 11 : 9 + side] = 1
        plain.append(Confusion(2).add(truth, prediction).iou()[1])
        boundary.append(BoundaryIoU(2).add(truth, prediction).iou()[1])
    assert plain == pytest.approx([324 / 400, 3364 / 3600])
    # d = 3: bands 204 and 180 wide share 128 of them at side 20; 684 and 660 share 448 at side 60.
    assert boundary == pytest.approx([128 / 256, 448 / 896])


def test_boundary_iou_with_a_void_outline():
    truth = np.zeros((12, 12), int)
    truth[2:10, 2:10] = 255
    truth[3:9, 3:9] = 1
    prediction = np.zeros((12, 12), int)
    prediction[2:10, 2:10] = 1  # fills the void too: not an error
    assert BoundaryIoU(2).add(truth, prediction).miou() == 1.0


def test_trimap_bands_of_two_halves():
    truth = np.zeros((6, 10), int)
    truth[:, 5:] = 1
    prediction = np.zeros((6, 10), int)
    prediction[:, 6:] = 1  # the edge is one column late: column 5 is wrong
    bands = Trimap(2, widths=(1, 2, 9)).add(truth, prediction)
    # Seeds are columns 4 and 5; width 1 covers columns 3..6, width 2 columns 2..7, width 9 everything.
    assert [int(c.counts.sum()) for c in bands.bands.values()] == [24, 36, 60]
    assert bands.miou() == pytest.approx({1: (12 / 18 + 6 / 12) / 2, 2: (18 / 24 + 12 / 18) / 2, 9: (30 / 36 + 24 / 30) / 2})


def test_trimap_seeds():
    truth = np.zeros((5, 9), int)
    truth[:, 6:] = 1
    truth[:, 1] = 255
    prediction = np.zeros((5, 9), int)
    count = {seeds: int(Trimap(2, widths=(1,), seeds=seeds).add(truth, prediction).bands[1].counts.sum()) for seeds in ("void", "edges", "auto")}
    assert count == {"void": 10, "edges": 20, "auto": 10}  # columns 0, 2 around the void; columns 4..7 around the edge; auto saw a void
    no_void = np.where(truth == 255, 0, truth)
    assert int(Trimap(2, widths=(1,), seeds="void").add(no_void, prediction).bands[1].counts.sum()) == 0
    assert int(Trimap(2, widths=(1,)).add(no_void, prediction).bands[1].counts.sum()) == 20


def test_trimap_sees_errors_near_edges_first():
    """A prediction that is wrong only next to true edges: the narrower the band, the lower the score."""
    truth = np.zeros((40, 40), int)
    truth[10:30, 10:30] = 1
    prediction = np.where(dilate(truth == 1, 1), 1, 0)
    scores = list(Trimap(2, widths=(1, 2, 5, 10)).add(truth, prediction).miou().values())
    assert scores == sorted(scores) and scores[0] < 0.75 < scores[-1]


def _count_in_process(rank: int, world: int, port: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    truth, prediction = random_pair(rank, 3, (2, 8, 8))
    totals = [make(3).add(truth, prediction).across_processes() for make in (Confusion, BoundaryIoU, Trimap)]
    if rank == 0:
        torch.save([str(t.miou()) for t in totals], out)
    torch.distributed.destroy_process_group()


def test_two_processes_count_like_one(tmp_path, free_port):
    out = str(tmp_path / "total.pt")
    torch.multiprocessing.spawn(_count_in_process, args=(2, free_port, out), nprocs=2)
    for make, text in zip((Confusion, BoundaryIoU, Trimap), torch.load(out, weights_only=True)):
        whole = make(3).add(*random_pair(0, 3, (2, 8, 8))).add(*random_pair(1, 3, (2, 8, 8)))
        assert text == str(whole.miou())


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
