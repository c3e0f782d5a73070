"""One fault at a time, in this process: full disks, damaged and removed files, jumping clocks, folders that cannot be written or vanish.

Every run here is the tiny method's; after each fault the same command must end with the weights of an undisturbed run. Deaths of whole
processes are in tests/seglite/test_run.py and tests/test_soak.py.
"""
import builtins
import errno
import itertools
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from seglite import files, run, speed, train
from tests.seglite.tiny import HOOKS, METHODS

KINDS = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0]], np.uint8)


def start(capsys, out, *arguments) -> tuple[int, str, str]:
    """(exit code, what was said, the sentence on stderr)."""
    code = train.main(["method=tiny", "threads=1", f"out={out}", *arguments], METHODS)
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") == (code != 0), said.err
    return code, said.out, said.err


def weights(out) -> dict:
    return {f"{stage} {key}": value for stage in ("first", "main") for key, value in files.load_tensors(out / stage / "final.pt")["model"].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("faults") / "whole"
    assert train.main(["method=tiny", "threads=1", f"out={out}"], METHODS) == 0
    return out


def ends_well(capsys, out, whole) -> str:
    """The same command once more ends with the same weights and score; what it said."""
    code, said, complaint = start(capsys, out)
    assert code == 0, complaint
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)
    scores = [json.loads((folder / "result.json").read_text())["miou"] for folder in (out, whole)]
    assert scores[0] == scores[1]
    assert not [p for p in out.rglob("*.part")], "no half files are left"
    steps = [(line["stage"], line["step"]) for line in map(json.loads, (out / "log.jsonl").read_text().splitlines())]
    assert sorted(steps) == [("first", t + 1) for t in range(4)] + [("main", t + 1) for t in range(12)]  # a stage computed anew logs last
    return said


@pytest.fixture
def interrupted(capsys, tmp_path, monkeypatch):
    """A run stopped in step 8 of its main stage; last.pt holds step 6, previous.pt step 4."""
    def stop(t):
        if t == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(HOOKS, "step", stop)
        code, _, complaint = start(capsys, tmp_path / "run")
    assert code == 1 and "the same command continues" in complaint
    return tmp_path / "run"


class FullFile:
    """A file on a full disk: half of what is written arrives."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()


def fill_disk(patch, name: str, turn: int) -> None:
    """From the turn-th write to a file called `name` (or its temporary name) on, the disk is full for it."""
    true_open, turns = open, itertools.count(1)

    def full_open(path, mode="r", *rest, **options):
        file = true_open(path, mode, *rest, **options)
        here = isinstance(path, (str, Path)) and Path(path).name in (name, f".{name}.{os.getpid()}.part")
        return FullFile(file) if here and set(mode) & set("wa") and next(turns) >= turn else file

    patch.setattr(builtins, "open", full_open)


@pytest.mark.parametrize("name, turn", [("config.json", 1), ("command.txt", 1), ("log.jsonl", 3), ("last.pt", 2), ("last.pt", 5), ("final.pt", 1), ("scale.pt", 1),
                                        ("final.pt", 2), ("result.json", 1), ("iou.csv", 1), ("report.png", 1), ("report.html", 1)])
def test_a_disk_full_at_any_file_is_a_sentence_and_loses_nothing(name, turn, capsys, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        fill_disk(patch, name, turn)
        code, _, complaint = start(capsys, tmp_path / "run")
    assert code == 1 and f"/{name}" in complaint and "cannot write" in complaint and "No space left on device" in complaint and "continue" in complaint, complaint
    ends_well(capsys, tmp_path / "run", whole)


def label_run(out):
    config, _ = train.settings.parse(["method=tiny", f"out={out}"], METHODS)
    return run.Run(config, supervision=("image",), quiet=True)


def make_labels(one) -> list[np.ndarray]:
    names = [f"image{i}" for i in range(4)]
    labels = one.make_labels("labels", lambda: (np.full((5, 7), i % 3, np.uint8) for i in range(4)), names, KINDS)
    return [labels[i] for i in range(4)]


def test_labels_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk is full at the third of four maps; then the folder is removed, then one map of it."""
    one = label_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        fill_disk(patch, "image2.png", 1)
        with pytest.raises(files.FileProblem, match=r"cannot write .*image2\.png: No space left on device; .*continue"):
            make_labels(one)
    assert not list((tmp_path / "run").glob("*labels*")), "neither the folder nor a part of it"
    for _ in range(2):
        assert [int(m.max()) for m in make_labels(one)] == [0, 1, 2, 0]
        shutil.rmtree(tmp_path / "run" / "labels")
    make_labels(one)
    (tmp_path / "run" / "labels" / "image1.png").unlink()
    with pytest.raises(OSError, match=r"image1\.png cannot be read .* delete the folder .*labels and run again"):
        make_labels(one)
    one.close()


class Trap:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __reduce__(self):
        return (open, ("trap-was-sprung", "w"))


def hostile(path: Path) -> None:
    torch.save({"step": 6, "best": 0.0, "meter": Trap(), "model": {}}, path)


def flip_one_bit(path: Path) -> None:
    """In the middle of the largest tensor, where nothing but a checksum can tell."""
    with zipfile.ZipFile(path) as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    content, tensor = bytearray(path.read_bytes()), max(tensors, key=len)
    content[content.index(tensor) + len(tensor) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "flipped": flip_one_bit,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "hostile": hostile,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("victims", [["last.pt"], ["last.pt", "previous.pt"]], ids="+".join)
def test_damaged_checkpoints_are_said_and_not_used(damage, victims, interrupted, capsys, whole, monkeypatch):
    monkeypatch.chdir(interrupted)
    for victim in victims:
        DAMAGES[damage](interrupted / "main" / victim)
    said = ends_well(capsys, interrupted, whole)
    for victim in victims:
        assert f"main/{victim} cannot be read" in said
    if len(victims) == 1:
        assert "using the checkpoint before it" in said and "main: continuing at step 4" in said
    else:
        assert said.count("using the checkpoint before it") == 1 and "no older checkpoint is left, so the stage begins again" in said
        assert "main: continuing" not in said
    assert not (interrupted / "trap-was-sprung").exists()


@pytest.mark.parametrize("gone", ["scale.pt", "first", "main", "first/final.pt", "result.json", "log.jsonl"])
def test_what_was_removed_is_computed_again(gone, capsys, tmp_path, whole):
    """Whatever is removed from a finished chain, in its middle too, comes back the same; the rest is not touched."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.pt") if gone not in str(p)}
    shutil.rmtree(out / gone) if (out / gone).is_dir() else (out / gone).unlink()
    code, said, complaint = start(capsys, out)
    assert code == 0, complaint
    assert all(torch.equal(value, weights(out)[key]) for key, value in weights(whole).items())
    assert json.loads((out / "result.json").read_text())["miou"] == json.loads((whole / "result.json").read_text())["miou"]
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())


@pytest.mark.parametrize("name, damage", [("scale.pt", "empty"), ("scale.pt", "hostile"), ("main/final.pt", "flipped"), ("main/final.pt", "truncated"),
                                          ("first/final.pt", "zeros"), ("first/final.pt", "hostile")])
def test_a_damaged_result_is_named_with_the_way_out(name, damage, capsys, tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    monkeypatch.chdir(out)
    DAMAGES[damage](out / name)
    code, _, complaint = start(capsys, out)
    assert code == 1 and f"{name} cannot be read" in complaint and "delete it, and the same command computes it anew" in complaint, complaint
    assert not (out / "trap-was-sprung").exists()
    (out / name).unlink()
    ends_well(capsys, out, whole)


def test_a_damaged_log_costs_lines_and_nothing_else(interrupted, capsys, whole, tmp_path):
    """In the middle of a stage, and when nothing but the report is missing."""
    shutil.copytree(whole, tmp_path / "late")
    (tmp_path / "late" / "result.json").unlink()
    for out in (interrupted, tmp_path / "late"):
        with open(out / "log.jsonl", "ab") as log:
            log.write(b'\x00\x00\xff\xfe{"stage": "main", "st')
    ends_well(capsys, interrupted, whole)
    code, _, complaint = start(capsys, tmp_path / "late")
    assert code == 0 and (tmp_path / "late" / "result.json").exists(), complaint


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"[]", b'{"identity"'], ids=["empty", "zeros", "list", "half"])
def test_damaged_settings_are_named(content, interrupted, capsys, whole):
    (interrupted / "config.json").write_bytes(content)
    code, _, complaint = start(capsys, interrupted)
    assert code == 1 and "config.json is damaged" in complaint and "delete that file if the same command made the folder" in complaint
    (interrupted / "config.json").unlink()
    assert "main: continuing at step 6" in ends_well(capsys, interrupted, whole)


JUMPS = {"back": lambda: itertools.count(2e9, -3600).__next__, "forth": lambda: itertools.count(2e9, 3600).__next__}


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_hours_changes_nothing(jump, capsys, tmp_path, whole, monkeypatch):
    """Each look at the wall clock is an hour off. Checkpoints by seconds are still written; rates and minutes stay possible."""
    monkeypatch.setattr(time, "time", JUMPS[jump]())
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setitem(HOOKS, "step", lambda t: interrupt() if t == 7 else None)
        code, said, _ = start(capsys, tmp_path / "run", "train.save_every=0")
    assert code == 1 and files.load_tensors(tmp_path / "run" / "main" / "last.pt")["step"] == 7
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (0, 0) if jump == "back" else (2**32, 2**32))
    assert all("h" not in line.rsplit("eta ", 1)[1] for line in said.splitlines() if "eta " in line)
    assert "main: continuing at step 7" in ends_well(capsys, tmp_path / "run", whole)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(a["seconds"] <= b["seconds"] < 300 for a, b in zip(lines, lines[1:])), "one clock over both starts, and it runs forwards"
    assert all(0 < line["images_per_second"] < 1e6 for line in lines)
    assert 0 <= json.loads((tmp_path / "run" / "result.json").read_text())["costs"]["minutes, this start"] < 5


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_does_not_reach_measured_speeds(jump, monkeypatch):
    monkeypatch.setattr(time, "time", JUMPS[jump]())
    monkeypatch.setattr(speed, "STEPS", 3)
    rows, _ = speed.measure(["method=tiny", "threads=1"], METHODS)
    assert [row["stage"] for row in rows] == ["first", "main"] and all(0 < row["step ms"] < 1000 and row["loader img/s"] > 1 for row in rows), rows


@pytest.mark.parametrize("problem", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_a_sentence(problem, capsys, tmp_path, monkeypatch):
    """Root may write everywhere, so the refusal is played; an out= that is a file is refused by the system itself."""
    true_open = open

    def refuse(path, mode="r", *rest, **options):
        if isinstance(path, (str, Path)) and str(path).startswith(str(tmp_path)) and set(mode) & set("wa"):
            raise OSError(problem, os.strerror(problem), str(path))
        return true_open(path, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        code, _, complaint = start(capsys, tmp_path / "run")
    assert code == 1 and f"cannot write {tmp_path / 'run'}: {os.strerror(problem)}; nothing was written" in complaint and "another out=" in complaint
    (tmp_path / "file").write_text("mine")
    code, _, complaint = start(capsys, tmp_path / "file")
    assert code == 1 and f"cannot write {tmp_path / 'file'}: File exists" in complaint and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("when", [3, 5], ids=["before a log line", "before a checkpoint"])
@pytest.mark.parametrize("how", [shutil.rmtree, lambda out: out.rename(out.with_name("moved"))], ids=["deleted", "moved"])
def test_a_folder_deleted_under_its_run_does_not_come_back_without_settings(when, how, capsys, tmp_path, whole, monkeypatch):
    out, every = tmp_path / "run", "1" if when == 3 else "100"
    with monkeypatch.context() as patch:
        patch.setitem(HOOKS, "step", lambda t: how(out) if t == when else None)
        code, _, complaint = start(capsys, out, f"train.log_every={every}")
    assert code == 1 and f"{out} was deleted or moved while this run was working in it" in complaint
    assert not out.exists()
    ends_well(capsys, out, whole)
