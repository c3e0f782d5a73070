"""What a killed writer leaves is cleared, what a finished folder holds is on the disk, and a lock ends with its owner."""
import os

import pytest

from seglite import files


def test_what_killed_writers_left_goes_when_the_folder_is_taken(tmp_path):
    """Half files and half folders of earlier processes, in the run's folder and its stages; not a user's files, nor what another run is writing."""
    gone = [".result.json.123.part", "main/.last.pt.4.part", ".labels.77.part/a.png"]
    kept = ["labels.part", "main/final.pt", ".notes.part", "labels/b.part/c.png", "other/.last.pt.4.part", "other/.lock"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    lock = files.FolderLock(tmp_path)
    try:
        left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
        assert left == sorted([*kept, ".lock"]) and not (tmp_path / ".labels.77.part").exists()
        (tmp_path / ".mine.1.part").write_text("")
        with pytest.raises(files.FileProblem, match="in use"):
            files.FolderLock(tmp_path)
        assert (tmp_path / ".mine.1.part").exists(), "who does not get the folder clears nothing"
    finally:
        lock.release()


def test_a_folder_takes_its_name_after_its_files_are_on_the_disk(tmp_path, monkeypatch):
    events, true_sync, true_replace = [], os.fsync, os.replace

    def sync(handle):
        events.append(os.fstat(handle).st_ino)
        true_sync(handle)

    def replace(source, target):
        events.append("rename")
        true_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", replace)
    with files.new_folder(tmp_path / "labels") as part:
        for name in "abc":
            (part / name).write_text(name)
    before = events[: events.index("rename")]
    assert {(tmp_path / "labels" / name).stat().st_ino for name in "abc"} | {(tmp_path / "labels").stat().st_ino} <= set(before)


def test_a_released_lock_is_free_though_a_child_still_has_its_file(tmp_path):
    lock = files.FolderLock(tmp_path)
    inherited = os.dup(lock.file.fileno())  # as a forked worker of the loader holds it
    try:
        lock.release()
        lock.release()
        files.FolderLock(tmp_path).release()
    finally:
        os.close(inherited)
