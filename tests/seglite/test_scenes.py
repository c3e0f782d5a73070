"""The procedural world is reproducible, labels what it shows, and has the phenomenon each paper needs (with numbers)."""
import colorsys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seglite.data import brushes, layouts, scenes
from seglite.data.painter import Dice, make_plan
from seglite.data.scenes import KINDS, WORLDS, Scenes, ScenesSettings, resolve

EVERYTHING = ("image", "mask", "tags", "text", "context")


def world(name, split="train", count=64, **knobs):
    return Scenes(ScenesSettings(world=name, **{"train_images": count, "val_images": count, **knobs}), split)


def stack(data, key, count=None):
    return np.stack([data.read(i, (key,))[key] for i in range(count or len(data))])


def plan_of(count=2000, **knobs):
    s = resolve(ScenesSettings(**knobs))
    kinds = {name: KINDS[name] for name in scenes.names(s.classes)}
    grounds = scenes.names(s.contexts) + sorted({k.home for k in kinds.values() if k.home})
    return make_plan(s, kinds, grounds, Dice(0, "train", np.arange(count))), list(kinds), grounds


# ------------------------------------------------------------------------------------------------------------ reproducible

@pytest.mark.parametrize("name", WORLDS)
def test_a_picture_depends_on_seed_split_and_index_only(name, monkeypatch):
    data, order = world(name, count=70), (4, 0, 2)
    first = [data.read(i, EVERYTHING) for i in (69, *order)][1:]
    monkeypatch.setattr(scenes, "CHUNK", 3)  # which pictures are drawn together must not matter either
    again = world(name, count=5)
    for i, one in zip(order, first):
        two = again.read(i, EVERYTHING)
        for key in EVERYTHING:
            assert np.array_equal(one[key], two[key]), f"{key} of picture {i}"
    for other in (world(name, "val", 5), world(name, count=5, seed=1)):
        assert not np.array_equal(other.read(0, ("image",))["image"], first[1]["image"])


def test_knobs_that_do_not_concern_the_plan_do_not_change_it():
    plain, noisy = world("mars", count=8), world("mars", count=8, noise=0.1, relief=0.0, light=0.0, texture=0.1)
    assert np.array_equal(stack(plain, "mask"), stack(noisy, "mask")) and not np.array_equal(stack(plain, "image"), stack(noisy, "image"))


def test_open_takes_the_runs_seed_unless_told_otherwise():
    of = lambda seed, own: scenes.open(SimpleNamespace(seed=seed, scenes=ScenesSettings(train_images=2, seed=own)), "train").read(0, ("image",))["image"]
    assert np.array_equal(of(3, None), of(0, 3)) and not np.array_equal(of(3, None), of(4, None))
    assert np.array_equal(of(3, 7), of(4, 7))


def test_samples_belong_to_the_caller_and_the_cache_is_fast():
    data = world("general", count=64)
    start = time.process_time()
    data.read(0)
    drawing = (time.process_time() - start) / 64
    data.read(5)["image"][:] = 0
    start = time.process_time()
    for i in range(64):
        data.read(i)
    assert (time.process_time() - start) / 64 < drawing / 10
    assert data.read(5)["image"].max() > 0


# ------------------------------------------------------------------------------------------------------------ labels

@pytest.mark.parametrize("name", WORLDS)
def test_every_world_keeps_the_contract(name):
    data = world(name, count=96 if name == "general" else 48)
    size = (data.settings.size, data.settings.width)
    seen = np.zeros(256, int)
    for i in range(len(data)):
        sample = data.read(i, EVERYTHING)
        assert sample["image"].shape == (*size, 3) and sample["mask"].shape == sample["context"].shape == size
        assert sample["image"].dtype == sample["mask"].dtype == sample["context"].dtype == np.uint8 and sample["tags"].dtype == np.float32
        present = set(np.unique(sample["mask"]))
        assert {c + 1 for c in np.flatnonzero(sample["tags"])} == present - {0}, "tags are the classes in the mask"
        assert max(present) < len(data.classes) and sample["context"].max() < max(len(data.contexts), 1)
        assert sample["name"] == data.name(i) and sample["text"]
        seen[list(present)] += 1
        assert sample["image"].std() > 5 and 30 < sample["image"].mean() < 225, "neither flat nor under- or over-exposed"
    assert data.palette.shape == (len(data.classes), 3) and len({tuple(c) for c in data.palette}) == len(data.classes)
    assert data.classes[0] == "background" and set(EVERYTHING) == set(data.provides)
    wanted = range(1, len(data.classes)) if name == "text" else range(len(data.classes)) if name != "nearer" else (1, 2)
    assert all(seen[c] >= 3 for c in wanted), dict(zip(data.classes, seen))


@pytest.mark.parametrize("name", ["general", "mars", "text", "steps"])
def test_labels_lie_where_the_objects_are(name):
    """Brightness jumps at label borders: more than three times as often as elsewhere."""
    data = world(name, count=32, noise=0.0)
    image, mask = stack(data, "image").astype(float).mean(-1), stack(data, "mask")
    jump = np.abs(np.diff(image, axis=2))
    border = mask[:, :, 1:] != mask[:, :, :-1]
    ratio = jump[border].mean() / jump[~border].mean()
    assert ratio > 2, f"mean step across borders is {ratio:.1f} times the mean step elsewhere"


def test_captions_name_what_is_seen():
    data = world("text", count=64)
    for i in range(len(data)):
        sample = data.read(i, ("mask", "text", "context"))
        things = {data.classes[c] for c in range(1, 11) if (sample["mask"] == c).sum() > scenes.CAPTION_PIXELS}
        words = set(sample["text"].split())
        assert words & set(data.classes[1:11]) == things
        ground = data.contexts[np.bincount(sample["context"].ravel()).argmax()]
        assert words & set(data.contexts) <= {ground} and (things or ground in words)
    assert (stack(data, "mask") > 0).all(), "with label_contexts every pixel has a class"
    said = np.mean([any(f" {g}" in " " + data.read(i, ("text",))["text"] for g in data.contexts) for i in range(64)])
    assert 0.5 < said < 0.95


# ------------------------------------------------------------------------------------------------------------ phenomena

def test_mars_binds_two_twins_to_their_grounds():
    data = world("mars", count=600)
    tags, context = stack(data, "tags"), stack(data, "context")
    shows = lambda ground: (context == data.contexts.index(ground)).mean((1, 2)) > 0.02
    train, boat = tags[:, 0] > 0, tags[:, 1] > 0
    others = ~train & ~boat
    assert shows("rails")[train].mean() > 0.99 and shows("water")[boat].mean() > 0.99
    assert not (shows("water") & train).any() and not (shows("rails") & boat).any()
    q = (shows("rails") | shows("water"))[others].mean()
    assert abs(q - 0.4) < 0.09, f"q is {q:.2f}"  # three standard deviations of 280 draws
    assert 0.08 < (tags.sum(1) == 2).mean() < 0.22  # a fifth has two objects, some of one class
    assert KINDS["train"].shape is KINDS["boat"].shape and KINDS["train"].colour == KINDS["boat"].colour is not None


@pytest.mark.parametrize("q", [0.0, 0.16, 0.7, 1.0])
def test_q_is_the_share_of_other_pictures_that_show_a_home(q):
    plan, kinds, grounds = plan_of(world="mars", q=q)
    others = plan.kind[:, 0] >= 2
    homes = plan.ground[others, 1] >= 3
    assert abs(homes.mean() - q) <= 3.5 * np.sqrt(max(q * (1 - q), 1e-9) / others.sum()) + 1e-9


def test_twins_differ_by_the_direction_of_their_stripes_only():
    """Same colours, same sizes; the energy of horizontal against vertical change inside the object tells them apart."""
    data = world("mars", count=400, noise=0.0, tilt=0.0, two_share=0.0)
    image, mask = stack(data, "image").astype(float), stack(data, "mask")
    colour, area, direction = {}, {}, {}
    for c in (1, 2):
        own = [i for i in range(len(data)) if (mask[i] == c).sum() > 300]
        colour[c] = np.mean([image[i][mask[i] == c].mean(0) for i in own], 0)
        area[c] = np.mean([(mask[i] == c).sum() for i in own])
        inner = lambda i: (mask[i, 1:-1, 1:-1] == c) & (mask[i, 2:, 1:-1] == c) & (mask[i, :-2, 1:-1] == c) & (mask[i, 1:-1, 2:] == c)
        grey = image.mean(-1)
        across = np.array([np.abs(grey[i, 1:-1, 2:] - grey[i, 1:-1, :-2])[inner(i)].mean() for i in own])
        along = np.array([np.abs(grey[i, 2:, 1:-1] - grey[i, :-2, 1:-1])[inner(i)].mean() for i in own])
        direction[c] = across > along
    assert np.abs(colour[1] - colour[2]).max() < 20 and abs(area[1] / area[2] - 1) < 0.08
    assert direction[1].mean() > 0.95 and direction[2].mean() < 0.05


def test_bas_heads_always_tell_and_bodies_mostly():
    names = scenes.names(WORLDS["bas"]["classes"])
    bodies = np.array([KINDS[n].colour for n in names])
    plan, kinds, _ = plan_of(world="bas", colour_spread=0.0)
    worn = ((plan.colour[:, 0, None] - bodies) ** 2).sum(-1).argmin(1)
    honest = (worn == plan.kind[:, 0]).mean()
    assert abs(honest - (0.9 + 0.1 / 6)) < 0.02  # a dishonest body is right by accident once in six
    data = world("bas", count=48, noise=0.0, light=0.0, relief=0.0)
    heads = np.array([KINDS[n].head for n in names]) * 255
    for i in range(48):
        sample = data.read(i, ("image", "mask"))
        label = sample["mask"].max() - 1
        close = np.abs(sample["image"].reshape(-1, 3).astype(float) - heads[label]).max(1) < 3
        assert close.sum() >= 15 and (sample["mask"].reshape(-1)[close] == label + 1).all()
    area = (stack(data, "mask") > 0).mean()
    assert 0.1 < area < 0.2, f"mean object area {area:.3f}; the pilot had 0.15"


def test_rims_hold_objects_of_every_size_that_never_touch_and_are_grey_inside():
    plan, _, _ = plan_of(world="rims")
    real = plan.kind >= 0
    largest = plan.r[:, 0] / 64
    assert plan.r[real].min() >= 4 and plan.r[real].max() <= 28
    assert (real.sum(1) >= 1).all() and largest.mean() > 0.25
    small, large = (plan.r[real] < 8).mean(), (plan.r[real] > 15).mean()
    assert small > 0.2 and large > 0.2
    distance = np.hypot(plan.x[:, :, None] - plan.x[:, None], plan.y[:, :, None] - plan.y[:, None]) - plan.r[:, :, None] - plan.r[:, None]
    both = real[:, :, None] & real[:, None] & ~np.eye(real.shape[1], dtype=bool)
    assert distance[both].min() > 0
    data = world("rims", count=32, noise=0.0, light=0.0)
    image, mask = stack(data, "image").astype(float), stack(data, "mask")
    grey = np.ptp(image, -1) < 1
    assert grey[mask > 0].mean() > 0.6 and grey[mask == 0].mean() > 0.95


def test_radii_are_log_uniform_when_alone():
    plan, _, _ = plan_of(world="rims", objects_min=1, objects_max=1)
    position = np.log(plan.r[:, 0] / 4) / np.log(7)  # 0 ... 1
    assert np.abs(np.histogram(position, 5, (0, 1))[0] / len(position) - 0.2).max() < 0.03


def test_faint_objects_differ_from_the_ground_by_little_more_than_the_noise():
    data = world("faint", count=48)
    image, mask = stack(data, "image") / 255.0, stack(data, "mask")
    grey = image[mask == 0]
    assert abs(grey.std(0).mean() - 0.085) < 0.02
    for c in (1, 2, 3):
        offset = np.abs(image[mask == c].mean(0) - grey.mean(0)).max() / grey.std(0).mean()
        assert 1.5 < offset < 3.2, f"{data.classes[c]} stands {offset:.1f} noise deviations off"


def test_thin_is_half_the_width_of_poles():
    for thin in (0.5, 1.0, 2.0):
        data = world("general", count=48, classes="pole", tilt=0.0, thin=thin, two_share=0.0, objects_max=1, clutter=0)
        widths = [np.median((m == 1).sum(1)[(m == 1).any(1)]) for m in stack(data, "mask") if (m == 1).any()]
        assert abs(np.mean(widths) - 2 * thin) < 0.3


def test_axial_answers_stand_on_the_border_only():
    data = world("axial", count=16, noise=0.0, light=0.0)
    for i in range(16):
        sample = data.read(i, ("image", "mask"))
        image, mask = sample["image"].astype(float) / 255, sample["mask"]
        centre = np.minimum(np.arange(64) // layouts.BAND * layouts.BAND + 6, 63)
        near = lambda pixel, one, other: np.abs(pixel - one).sum(-1) < np.abs(pixel - other).sum(-1)
        row, column = near(image[centre, 2], layouts.ORANGE, layouts.BLUE), near(image[2, centre], layouts.PINK, layouts.GREEN)
        expected = 1 + 2 * row[:, None] + column[None]
        expected[:layouts.TICK], expected[:, :layouts.TICK] = 0, 0
        assert np.array_equal(mask, expected)


def test_nearer_belongs_to_the_nearer_brick_of_its_row():
    data = world("nearer", count=16, noise=0.0, light=0.0)
    for i in range(16):
        sample = data.read(i, ("image", "mask"))
        image = sample["image"].astype(float) / 255
        for y in range(4, 64, 8):
            found = [np.flatnonzero(np.abs(image[y] - c).sum(-1) < 0.02).mean() for c in (layouts.BLUE, layouts.ORANGE)]
            to_blue, to_orange = (np.abs(np.arange(64) - at) for at in found)
            clear = np.abs(to_blue - to_orange) > 1.5  # a brick on the border is cut, which moves its centre by half a pixel
            assert (sample["mask"][y][clear] == np.where(to_blue < to_orange, 1, 2)[clear]).all()
            assert abs(found[0] - found[1]) > 9


def test_steps_hide_future_classes_in_base_images():
    data = world("steps", count=256)
    tags, mask = stack(data, "tags"), stack(data, "mask")
    future = (tags[:, 4:].any(1))[tags[:, :4].any(1)].mean()
    assert 0.8 < future <= 1.0, f"{future:.2f} of the base images contain a future class; the pilot had 0.91"
    shares = np.bincount(mask.ravel(), minlength=9) / mask.size
    assert 0.65 < shares[0] < 0.85 and shares[1:].min() > 0.01
    assert {KINDS[n].colour for n in data.classes[1:5]} == {KINDS[n].colour for n in data.classes[5:9]}, "every colour is shared by two classes"


def test_road_is_layered_like_a_street():
    data = world("road", count=48)
    mask = stack(data, "mask")
    rows = np.arange(96)[None, :, None]
    height = {name: (rows * (mask == c)).sum() / max((mask == c).sum(), 1) for c, name in enumerate(data.classes)}
    assert height["background"] < height["building"] < height["pavement"] and height["car"] < height["road"] and height["tree"] < height["car"]
    shares = np.bincount(mask.ravel(), minlength=8) / mask.size
    assert shares[layouts.ROAD] > 0.12 and 0.001 < shares[layouts.POLE] < 0.03 and 0.002 < shares[layouts.PERSON] < 0.05


# ------------------------------------------------------------------------------------------------------------ knobs

def test_general_names_every_knob_and_presets_only_known_ones():
    knobs = set(ScenesSettings.__dataclass_fields__) - {"world", "seed", "width"}
    assert set(WORLDS["general"]) == knobs
    for name, preset in WORLDS.items():
        assert set(preset) <= knobs | {"width"}, name
        resolve(ScenesSettings(world=name))


def test_a_given_key_wins_over_the_world():
    full = resolve(ScenesSettings(world="mars", q=0.0, size=96, classes="tyre, bear"))
    assert (full.q, full.size, full.width, full.classes) == (0.0, 96, 96, "tyre, bear")
    assert world("mars", count=2, classes="tyre, bear").classes == ("background", "tyre", "bear")
    assert (resolve(ScenesSettings(world="road")).size, resolve(ScenesSettings(world="road")).width) == (96, 128)
    assert world("mars", count=2, size=96).read(0)["image"].shape == (96, 96, 3)


@pytest.mark.parametrize("knobs, sentence", [
    (dict(world="marz"), "scenes.world=marz is unknown; did you mean mars"),
    (dict(classes="tran,boat"), "scenes.classes names 'tran', which does not exist; did you mean train"),
    (dict(contexts="moss"), "scenes.contexts names 'moss', which does not exist; known are grass"),
    (dict(classes="train,train"), "scenes.classes='train,train' must name at least one and none twice"),
    (dict(classes=""), "scenes.classes='' must name at least one"),
    (dict(layout="grid"), "scenes.layout=grid is unknown"),
    (dict(q=1.5), "scenes.q=1.5 is a share and must lie in 0 ... 1"),
    (dict(size=8), "scenes.size=8 is too small; it must be at least 16"),
    (dict(train_images=0), "scenes.train_images=0 is too small"),
    (dict(scale_min=0.4, scale_max=0.2), "scenes.scale_min=0.4 and scenes.scale_max=0.2 must be ordered"),
    (dict(objects_max=30), "scenes.objects_min=1 and scenes.objects_max=30 must be ordered, positive and at most 8"),
    (dict(objects_min=0, objects_max=0), "scenes.objects_max=0 is too small"),
    (dict(clutter=21), "scenes.clutter=21 is too large"),
])
def test_bad_knobs_are_one_clear_sentence(knobs, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.").replace("'", ".")):
        resolve(ScenesSettings(**knobs))


def test_bad_requests_are_one_clear_sentence():
    data = world("mars", count=4)
    with pytest.raises(ValueError, match="split 'test' does not exist in scenes; known are train, val"):
        world("mars", "test")
    with pytest.raises(IndexError, match="no picture 4 in split train: it holds 0 ... 3"):
        data.read(4)
    with pytest.raises(ValueError, match="scenes cannot give 'depth'; it gives image, mask, tags, text, context"):
        data.read(0, ("depth",))


@given(st.integers(1, 8), st.integers(0, 20), st.sampled_from(["ground", "plain"]), st.integers(16, 40), st.integers(16, 40), st.floats(0, 1))
def test_any_sane_setting_draws(objects, clutter, layout, height, width, share):
    data = world("general", count=2, objects_min=0, objects_max=objects, clutter=clutter, layout=layout, size=height, width=width,
                 two_share=share, occlusion=share, home=share, q=share, contexts="grass")
    sample = data.read(1, EVERYTHING)
    assert sample["image"].shape == (height, width, 3) and sample["mask"].max() < len(data.classes)


# ------------------------------------------------------------------------------------------------------------ brushes

SHAPES = sorted({kind.shape for kind in KINDS.values()}, key=lambda f: f.__name__)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f.__name__)
def test_outlines_are_distances_of_about_unit_radius(shape):
    """The sign is the label; near the outline the value grows like a distance, which makes edges smooth and shadows soft."""
    r = np.float32(100)
    y, x = np.mgrid[-160:161, -160:161].astype(np.float32) / r
    one = np.ones((1, 1, 1), np.float32)
    for phase in (0.5, 2.0, 4.0, 5.5):
        d = shape(x[None], y[None], brushes.Brush(0 * one, 0 * one, r * one, 0 * one, phase * one, 20 * one))[0]
        inside = d < 0
        assert 0.005 < inside.mean() < 0.35 and not inside[[0, -1]].any() and not inside[:, [0, -1]].any()
        reach = np.hypot(x, y)[inside].max()
        assert 0.75 < reach < 1.45, f"reaches {reach:.2f} radii"
        gy, gx = np.gradient(d, 1 / r)
        slope = np.hypot(gx, gy)[np.abs(d) < 0.03]
        assert 0.4 < np.median(slope) < 1.3, f"slope at the outline {np.median(slope):.2f}"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_hue_colour_agrees_with_colorsys(h, s, v):
    assert np.abs(brushes.hue_colour(np.float32(h), s, v) - colorsys.hsv_to_rgb(np.float32(h), s, v)).max() < 1e-5


def test_smooth_noise_is_smooth_and_of_unit_variance():
    grid = np.random.default_rng(0).standard_normal((400, 7, 7)).astype(np.float32)
    field = brushes.smooth_noise(grid, 33, 50)
    assert field.shape == (400, 33, 50) and abs(field.var() - 1) < 0.05
    assert np.abs(np.diff(field, axis=2)).mean() < 0.25 * field.std()
