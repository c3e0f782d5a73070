"""Stored label maps before and after a CRF: rows count what they say, files that do not fit are named, published figures come out."""
import numpy as np
import pytest
from PIL import Image

from seglite import evaluate_maps as M
from seglite.config import UsageError
from seglite.crf import preset_of
from seglite.metrics import Confusion
from seglite.pictures import save_mask_png, voc_palette

CLASSES = ("ground", "square", "other")
LOCAL = "1/1/9/20/3"


@pytest.fixture
def tree(tmp_path):
    """Four noisy pictures of a bright square; their label maps place it two pixels too low."""
    for name in ("photos", "labels", "truths", "refined"):
        (tmp_path / name).mkdir()
    for i in range(4):
        rng = np.random.default_rng(i)
        truth = np.zeros((20, 28), np.uint8)
        top, left = rng.integers(2, 7, 2)
        truth[top:top + 9, left:left + 12] = 1
        image = (60 + 120 * truth[..., None] + rng.normal(0, 8, (20, 28, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"photos/{i}.png")
        truth[0] = 255
        for folder, labels in (("truths", truth), ("labels", np.roll(np.where(truth == 255, 0, truth), 2, 0)), ("refined", np.where(truth == 255, 2, truth))):
            save_mask_png(labels.astype(np.uint8), voc_palette(3), tmp_path / folder / f"{i}.png")
    return tmp_path


def settings(tree, **changes):
    return M.Settings(**{**dict(photos=str(tree / "photos"), labels=str(tree / "labels"), truths=str(tree / "truths"), crf=(LOCAL,), classes=CLASSES,
                                widths=(1, 2)), **changes})


def test_rows_count_the_maps_they_name(tree):
    lines = []
    results, errors = M.score(settings(tree, refined=str(tree / "refined"), out=str(tree / "out"), exact=28), lines.append)
    assert list(results) == ["as given", "refined=", LOCAL]
    direct = Confusion(CLASSES)
    for i in range(4):
        direct.add(*(np.array(Image.open(tree / folder / f"{i}.png")) for folder in ("truths", "labels")))
    assert (results["as given"].confusion.counts == direct.counts).all()
    assert results["refined="].confusion.miou() == 1.0
    assert results["as given"].confusion.pixel_accuracy() < 0.94 and results[LOCAL].confusion.pixel_accuracy() > 0.99, "the CRF finds the square again"
    assert results[LOCAL].boundary.miou() > results["as given"].boundary.miou() + 0.2
    assert results["as given"].trimap.miou() == {1: 1.0, 2: 1.0}, "bands lie along the void row, far from the square"
    assert len(errors[LOCAL]) == 4 and max(errors[LOCAL]) < 0.05
    assert any("from 0.00" in line or "mean" in line for line in lines) and (tree / "out/evaluation.json").is_file() and (tree / "out/samples.png").is_file()


def test_the_energies_trust_the_map_as_far_as_told():
    image, labels = np.zeros((2, 3, 3), np.uint8), np.array([[7, 7, 2], [2, 2, 2]])
    unary, photo, ids = M.energy(image, labels, 0.8)
    assert ids.tolist() == [2, 7] and unary.shape == (1, 2, 2, 3) and photo.shape == (1, 3, 2, 3)
    assert np.exp(-unary[0, :, 0, 0].numpy()) == pytest.approx([0.2, 0.8])
    for only in (0, 5):  # a map of one label has nothing to decide
        assert (M.refine_map(image, np.full((2, 3), only), preset_of(LOCAL)) == only).all()


def test_a_photograph_of_the_night_is_refined_too():
    """Levels 0 and 1 as bytes: they are no image in 0..1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (8, 9))
    refined = M.refine_map(rng.integers(0, 2, (8, 9, 3), np.uint8), labels, preset_of(LOCAL))
    assert refined.shape == (8, 9) and set(np.unique(refined)) <= {0, 1}


def test_what_is_refused(tree, capsys):
    with pytest.raises(UsageError, match="truths= is missing"):
        M.score(settings(tree, truths=""))
    with pytest.raises(FileNotFoundError, match="refined=.* is not a folder"):
        M.score(settings(tree, refined=str(tree / "nowhere")))
    with pytest.raises(FileNotFoundError, match="holds no PNG"):
        M.score(settings(tree, labels=str(tree / "out2")) if (tree / "out2").mkdir() is None else None)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tree / "photos/1.png")
    with pytest.raises(ValueError, match=r"1.png is \[20, 28\] and its photograph \[9, 9\]"):
        M.score(settings(tree), lambda _: None)
    (tree / "truths/0.png").unlink()
    assert M.main([f"photos={tree / 'photos'}", f"labels={tree / 'labels'}", f"truths={tree / 'truths'}"]) == 1
    assert "has no" in capsys.readouterr().err
    assert M.main(["help"]) == 0 and "gt_prob=0.7" in capsys.readouterr().out


@pytest.mark.realdata
def test_deeplabs_stored_results_score_as_their_readme_says(data_root):
    """25 photographs: 59.2 / 88.8 before and 65.4 / 91.8 after the authors' CRF (mean over the classes in the truth, pixels)."""
    folder = data_root / "densecrf/deeplab_voc"
    results, _ = M.score(M.Settings(photos=str(folder / "image"), labels=str(folder / "single"), truths=str(folder / "gt"), refined=str(folder / "single_crf"),
                                    crf=(), widths=(), keep=0), lambda _: None)
    found = {row: (100 * r.confusion.conventions()["in_truth"], 100 * r.confusion.pixel_accuracy()) for row, r in results.items()}
    assert found["as given"] == pytest.approx((59.2, 88.8), abs=0.06) and found["refined="] == pytest.approx((65.4, 91.8), abs=0.06)
