"""Reading runs: what a reader needs of a folder, what it leaves behind, and the kernels that it computes with."""
import os
import shutil

import pytest
import torch

from kernels import backend
from seglite import claims, files, networks, reopen, speed, train
from seglite.config import UsageError
from seglite.nets.resnet import resnet18
from seglite.nets.weights import load_weights, matter, overwritten
from seglite.run import choose_device
from tests.seglite import tiny
from tests.seglite.tiny import METHODS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train.train(["method=tiny", f"out={out}", "kernels=reference", "train.steps=2", "first.steps=1"], METHODS)
    return out


def path() -> str:
    return backend.path_for(torch.zeros(1))


# ---- the lock ---------------------------------------------------------------------------------------------------------------------------


def test_readers_share_a_folder_with_each_other_and_with_its_writer(finished):
    lock = files.FolderLock(finished)  # as a run that is still training holds it
    try:
        readers = [reopen.open_run(finished, METHODS) for _ in range(2)]
        assert torch.equal(*(predict(torch.zeros(1, 3, 24, 24)) for predict, _, _ in readers))
        for *_, run in reversed(readers):
            run.close()
    finally:
        lock.release()


def test_readers_write_nothing(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / ".lock").unlink()
    os.chmod(copy, 0o555)
    before = {p: p.stat().st_mtime_ns for p in [copy, *copy.rglob("*")]}
    try:
        reopen.open_run(copy, METHODS)[2].close()
        assert {p: p.stat().st_mtime_ns for p in [copy, *copy.rglob("*")]} == before
    finally:
        os.chmod(copy, 0o755)


# ---- kernels= ---------------------------------------------------------------------------------------------------------------------------


def test_every_command_computes_with_the_kernels_of_its_run(finished, tmp_path, monkeypatch):
    usual, seen = path(), []
    assert usual != "reference"
    monkeypatch.setitem(tiny.HOOKS, "step", lambda t: seen.append(path()))
    paper = type(tiny.TINY)("tiny")
    vars(paper).update(vars(tiny.TINY), claim=lambda run: tiny.pipeline(run) or {}, CLAIM={"title": ""})
    words = ["method=tiny", "kernels=reference", "train.steps=2", "first.steps=1"]
    train.train([*words, f"out={tmp_path / 'train'}"], METHODS)
    speed.measure(words, METHODS)
    claims.one_seed(paper, words, 0, tmp_path / "claims", {"tiny": paper})
    assert len(seen) > 4 and set(seen) == {"reference"} and path() == usual

    _, _, run = reopen.open_run(finished, METHODS)
    assert path() == "reference"
    run.close()
    run.close()
    assert path() == usual


def test_runs_that_are_timed_by_turns_keep_their_own_kernels(finished, tmp_path, monkeypatch):
    other, seen = tmp_path / "other", []
    train.train(["method=tiny", f"out={other}", "kernels=auto", "train.steps=2", "first.steps=1"], METHODS)
    monkeypatch.setattr(train, "METHODS", METHODS)
    monkeypatch.setattr(torch.nn.Dropout2d, "forward", lambda self, x: seen.append(path()) or x)
    monkeypatch.setattr(networks, "interleaved", lambda calls, *a, **k: {name: len(calls[name]()) for name in calls})
    networks.run_rows(networks.Settings(runs=(str(finished), str(other))), "cpu")
    assert seen == ["reference", path()]


# ---- initial weights that are gone ------------------------------------------------------------------------------------------------------


def test_a_finished_run_opens_without_its_initial_weights(tmp_path):
    """They are read while a stage trains and not after; what else weights= means for the network, its frozen batch norm, stays."""
    weights, image = tmp_path / "w.pth", torch.rand(1, 3, 24, 24)
    torch.save(resnet18(classes=0, stages=3).state_dict(), weights)
    words = ["method=deeplab", f"out={tmp_path / 'run'}", f"weights={weights}", "net=resnet18", "train.steps=1", "train.batch=2",
             "scenes.size=24", "scenes.train_images=2", "scenes.val_images=1", "augment.crop=24"]
    train.train(words, train.METHODS)
    predict, _, run = reopen.open_run(tmp_path / "run")
    before = predict(image)
    run.close()
    weights.unlink()
    predict, _, run = reopen.open_run(tmp_path / "run")
    assert torch.equal(predict(image), before)
    run.close()
    train.train(words, train.METHODS)  # the report anew

    (tmp_path / "run" / "segmenter" / "final.pt").unlink()
    with pytest.raises(ValueError, match="there is no such weights file"):
        train.train(words, train.METHODS)


def test_initial_weights_are_passed_over_inside_a_block_alone(tmp_path):
    model = torch.nn.Linear(2, 2)
    with overwritten():
        with overwritten(False), pytest.raises(ValueError, match="no such weights file"):
            load_weights(model, tmp_path / "gone.pth")
        assert load_weights(model, tmp_path / "gone.pth").loaded == [] and not matter("gone.pth")
    assert matter("gone.pth") and not matter("")
    with pytest.raises(ValueError, match="no such weights file"):
        load_weights(model, tmp_path / "gone.pth")


# ---- device= ----------------------------------------------------------------------------------------------------------------------------


def test_a_numbered_device_becomes_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == ("cuda:1", "asked for") and current == ["cuda:1"]
    assert choose_device("cuda")[0] == "cuda" and choose_device("cpu")[0] == "cpu" and len(current) == 1
    with pytest.raises(UsageError, match="device=cuda:2 was asked for, but torch sees 2 CUDA devices: cuda:0 to cuda:1"):
        choose_device("cuda:2")
