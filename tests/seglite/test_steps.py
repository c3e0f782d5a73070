"""Class-incremental protocols: image counts of the field's lists, relabelling by hand, and views that show one step only."""
from types import SimpleNamespace

import numpy as np
import pytest

from seglite.data import Batches, steps
from seglite.data.camvid import CLASSES as STREET
from seglite.data.voc import CLASSES as VOC

SCENES = ("background", "a", "b", "c", "d")

# BARM's released lists (the overlapped rows of 15-1 and 10-1 equal DKD's and MiB's index files).
OVERLAPPED = {
    "19-1": (10410, 548), "15-5": (9568, 2145), "15-1": (9568, 487, 299, 491, 500, 548),
    "10-1": (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548), "5-3": (2836, 2331, 1542, 2095, 4484, 1468)}
DISJOINT = {
    "19-1": (10034, 548), "15-5": (8437, 2145), "15-1": (8437, 378, 299, 420, 500, 548),
    "10-1": (3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548), "5-3": (1753, 1517, 624, 1296, 3924, 1468)}
FUTURE = {"19-1": 4, "15-5": 12, "15-1": 12, "10-1": 40, "5-3": 38}  # percent of base images with a class taught later


class Pictures:
    """Four-class label maps of 4 x 6 pixels; the image holds its own number, and every read is noted."""

    classes, provides, mean, std = SCENES, ("image", "mask"), (0.5,) * 3, (0.25,) * 3
    palette = np.arange(15, dtype=np.uint8).reshape(5, 3)

    def __init__(self, contents, height=4, width=6):
        self.contents, self.shape, self.noted = contents, (height, width), []

    def __len__(self):
        return len(self.contents)

    def name(self, i):
        return f"picture{i}"

    def read(self, i, wants=("image", "mask")):
        self.noted.append(i)
        mask = np.zeros(self.shape, np.uint8)
        for column, c in enumerate(self.contents[i]):
            mask[:, column] = c
        sample = {"image": np.full((*self.shape, 3), i, np.uint8), "mask": mask}
        return {"index": i, "name": self.name(i), **{w: sample[w] for w in wants}}


@pytest.mark.parametrize("name, classes, counts", [
    ("15-1", 20, (15, 1, 1, 1, 1, 1)), ("10-1", 20, (10,) + (1,) * 10), ("5-3", 20, (5, 3, 3, 3, 3, 3)), ("100-50", 150, (100, 50)),
    ("100-5", 150, (100,) + (5,) * 10), ("50-50", 150, (50, 50, 50)), ("6-1", 11, (6, 1, 1, 1, 1, 1)), ("2-1", 8, (2,) + (1,) * 6)])
def test_a_task_names_the_classes_of_every_step(name, classes, counts):
    assert steps.parse_task(name, classes) == counts and sum(counts) == classes


@pytest.mark.parametrize("name, message", [("15", "15-1"), ("a-1", "15-1"), ("15-0", "15-1"), ("15-3", "no multiple of 3"), ("20-1", "0 are left")])
def test_tasks_that_do_not_fit_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        steps.parse_task(name, 20)


@pytest.mark.realdata
@pytest.mark.parametrize("setting, table", [("overlapped", OVERLAPPED), ("disjoint", DISJOINT)])
@pytest.mark.parametrize("task", OVERLAPPED)
def test_images_per_step_are_those_of_the_released_lists(data_root, task, setting, table):
    present = steps.read_presence(str(data_root / "lists/voc2012/train_aug_cls.txt"), 20)
    assert len(present) == 10582
    rows = steps.plan(present, steps.make_task(task, VOC), setting)
    assert tuple(r.images for r in rows) == table[task]
    if setting == "overlapped":
        assert round(100 * rows[0].future) == FUTURE[task] and rows[0].old == 0 and rows[-1].future == 0
    else:
        assert all(r.future == 0 for r in rows)
        lists = [steps.images_of_step(present, steps.make_task(task, VOC), t, setting) for t in range(len(rows))]
        assert len(np.unique(np.concatenate(lists))) == sum(map(len, lists))  # every image once


def test_lists_follow_their_definition():
    """A table of five images, worked out by hand: classes a b in step 0, then c, then d."""
    task = steps.make_task("2-1", SCENES)
    present = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
    lists = lambda setting: [steps.images_of_step(present, task, t, setting).tolist() for t in range(3)]
    assert lists("overlapped") == [[0, 1, 3], [1, 2], [2, 3]]
    assert lists("disjoint") == [[0], [1], [2, 3]]
    assert lists("chunks") == [[0, 1], [2], [3]]
    with pytest.raises(ValueError, match="step 2 of the overlapped setting has no image: none shows d"):
        steps.images_of_step(present[:2], task, 2)
    assert [steps.images_of_step(present[:4].repeat(2, 0), task, t, "chunks").tolist() for t in range(3)] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    with pytest.raises(ValueError, match="setting='all'"):
        lists("all")
    rows = steps.plan(present, task)
    assert [(r.images, r.old, r.future) for r in rows] == [(3, 0.0, 2 / 3), (2, 0.5, 0.5), (2, 1.0, 0.0)]


def test_pixels_of_other_steps_are_called_background_and_255_stays():
    task = steps.make_task("2-1", SCENES)
    mask = np.array([0, 1, 2, 3, 4, 255], np.uint8)
    assert [task.names_for(t)[mask].tolist() for t in range(3)] == [[0, 1, 2, 0, 0, 255], [0, 0, 0, 3, 0, 255], [0, 0, 0, 0, 4, 255]]
    assert [task.judged(t)[mask].tolist() for t in range(3)] == [[0, 1, 2, 255, 255, 255], [0, 1, 2, 3, 255, 255], [0, 1, 2, 3, 4, 255]]
    assert (task.seen(0), task.seen(2), list(task.new(0)), list(task.new(2)), task.steps) == (3, 5, [1, 2], [4], 3)


def test_another_order_renumbers_the_classes():
    task = steps.make_task("2-2", SCENES, order=(4, 2, 1, 3))
    mask = np.array([0, 1, 2, 3, 4], np.uint8)
    assert task.names == ("background", "d", "b", "a", "c")
    assert task.names_for(0)[mask].tolist() == [0, 0, 2, 0, 1] and task.names_for(1)[mask].tolist() == [0, 3, 0, 4, 0]
    assert task.judged(1)[mask].tolist() == [task.channels()[c] for c in mask] == [0, 3, 2, 4, 1]
    assert task.together().groups == ((4, 2, 1, 3),) and task.together().names == task.names
    with pytest.raises(ValueError, match="every class from 1 to 4 once"):
        steps.make_task("2-2", SCENES, order=(1, 2, 3))


def test_a_data_set_without_background_gets_one():
    """CamVid: sky is class 1 of 11, void teaches background and is not judged."""
    task = steps.make_task("6-1", STREET)
    assert task.names[:2] == ("background", "sky") and task.steps == 6 and task.seen(5) == 12 and not task.background
    mask = np.array([0, 5, 6, 10, 255], np.uint8)
    assert task.names_for(0)[mask].tolist() == [1, 6, 0, 0, 0] and task.names_for(1)[mask].tolist() == [0, 0, 7, 0, 0]
    assert task.judged(1)[mask].tolist() == [1, 6, 7, 255, 255] and task.channels() == list(range(1, 12))
    colours = steps.palette(SimpleNamespace(palette=np.ones((11, 3), np.uint8)), task)
    assert colours.shape == (12, 3) and colours[0].sum() == 0 and colours[1:].all()


def test_a_step_refuses_every_image_that_is_not_its_own():
    """Exemplar-free: through its loader a step reaches its own images and labels, and nothing else."""
    data = Pictures([[1], [2, 3], [3, 4], [1, 4], []])
    task = steps.make_task("2-1", SCENES)
    present = steps.presence(data, task)
    for t in range(3):
        view = steps.StepData(data, task, t, steps.images_of_step(present, task, t))
        data.noted.clear()
        batches = Batches(view, 3, seed=7, wants=("image", "mask"), indices=view.images)
        seen = [batches[i] for i in range(8)]
        assert set(data.noted) == set(view.images.tolist())
        assert {int(v) for b in seen for v in b["mask"].unique()} == {0, *task.new(t)}
        for foreign in set(range(5)) - set(view.images.tolist()):
            with pytest.raises(ValueError, match=f"image {foreign} is none of the .* images of step {t}.*exemplar-free"):
                view.read(foreign)
        assert not set(data.noted) - set(view.images.tolist())  # refused before the file was touched
    with pytest.raises(ValueError, match="exemplar-free"):
        Batches(view, 5, seed=0)[0]  # a loader over all numbers runs into the refusal


def test_the_test_set_drops_what_was_not_taught():
    data, task = Pictures([[1, 2, 3, 4]]), steps.make_task("2-1", SCENES)
    judged = steps.Judged(data, task, 1)
    assert judged.classes == ("background", "a", "b", "c")
    assert judged.read(0)["mask"][0].tolist() == [1, 2, 3, 255, 0, 0]


def test_the_centre_crop_of_the_field():
    """Short side to 513, the middle of the long one; labels stay labels."""
    data = Pictures([[1, 2, 3, 4]], height=100, width=150)
    sample = steps.Judged(data, steps.make_task("2-1", SCENES), 2, side=40).read(0)
    assert sample["image"].shape == (40, 40, 3) and sample["mask"].shape == (40, 40)
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 1
    from PIL import Image
    assert steps.centre(wide, 10, Image.NEAREST).all() and steps.centre(wide.T.copy(), 20, Image.NEAREST).shape == (20, 20)


def test_new_class_crops_look_again_in_half_of_the_samples():
    calls = []

    def transform(sample, rng):
        calls.append(rng.random())
        mask = np.zeros((4, 4), np.uint8)
        mask[0, 0] = 3 if calls[-1] > 0.5 else 0
        return {"mask": mask}

    crops, found, tries = steps.NewClassCrops(transform, 0.05), [], []
    for i in range(200):
        calls.clear()
        found.append(bool(crops({}, np.random.default_rng(i))["mask"].any()))
        tries.append(len(calls))
    assert 0.70 < np.mean(found) < 0.82  # half at chance 1/2, half sure
    assert max(tries) > 3 and sum(n == 1 for n in tries) > 130


def test_the_plan_as_a_command(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("x 0 14\ny 15\nz 14 19\n")
    assert steps.main([str(tmp_path / "list.txt"), "15-5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:4] == ["0", "2", "0%", "50%"] and out[2].split()[:4] == ["1", "2", "50%", "0%"]
    assert steps.main([str(tmp_path / "list.txt"), "15-4"]) == 2 and "no multiple" in capsys.readouterr().err
    assert steps.main([str(tmp_path / "none.txt"), "15-5"]) == 2 and steps.main([]) == 2
