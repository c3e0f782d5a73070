"""Files that are either the old version or the new one, never half of each.

Everything a run keeps is written to a temporary name beside its target, flushed to the disk, and renamed over it: a rename is atomic,
so a kill at any moment leaves the previous file whole. Tensors are read with `weights_only=True`; nothing here can run a pickle.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch


class FileProblem(OSError):
    """A file cannot be written or read; the message is one sentence for the user."""


def cannot_write(path: Path | str, problem: OSError, kept: str) -> FileProblem:
    """The sentence about a write that the system refused."""
    return FileProblem(f"cannot write {path}: {problem.strerror or problem}; {kept}. "
                       "Free some space or choose another out=, then run the same command to continue")


@contextlib.contextmanager
def writing(path: Path, kept: str = "what was finished before is untouched"):
    """For writes that are not a whole file: a full disk or a read-only folder becomes one sentence."""
    try:
        yield
    except FileProblem:
        raise
    except OSError as problem:
        raise cannot_write(path, problem, kept) from problem


def write_bytes(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Replace `path` by `content`, atomically; the old file is kept as `previous` when that is given.

    Raises FileProblem (full disk, no permission) and leaves the old file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "its previous version is untouched" if path.exists() else "nothing was written"
        raise cannot_write(f"{path} ({len(content):,} bytes)", problem, kept) from problem


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    sha = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename durable: on POSIX the folder itself must be flushed."""
    with contextlib.suppress(OSError):  # Windows cannot open folders; its renames are journaled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(folder: Path) -> None:
    """Make a folder's files durable before it takes its name, several at a time: one by one, small files wait five milliseconds each."""
    def sync(path: Path) -> None:
        with open(path, "rb+") as f:
            os.fsync(f.fileno())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, [p for p in Path(folder).rglob("*") if p.is_file()]))
    sync_folder(folder)


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that killed writers left in a run's folder and in its stages; for whoever holds its lock alone."""
    below = [p for p in Path(folder).iterdir() if p.is_dir() and not (p / ".lock").exists()]  # a run inside has its own lock, and its own writer
    for path in (p for place in (Path(folder), *below) for p in list(place.glob(".*.part")) if re.fullmatch(r"\..+\.\d+\.part", p.name)):
        with contextlib.suppress(OSError):  # what cannot be deleted is in nobody's way
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def save_tensors(path: Path, value, previous: Path | None = None) -> None:
    """torch.save of nested dicts and lists of tensors, numbers and strings, atomically; see `write_bytes`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue(), previous)


def load_tensors(path: Path, device="cpu"):
    """What `save_tensors` wrote. Raises FileProblem when the file is damaged: every member's checksum is verified first."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged} does not match")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as problem:  # zip, pickle and torch each have their own error types for a damaged file
        raise FileProblem(f"{path} cannot be read ({type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'damaged'})") from problem


@contextlib.contextmanager
def new_folder(path: Path):
    """A temporary folder that takes the name `path` when the block ends well, and is removed when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with writing(path):
            sync_files(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class FolderLock:
    """One process per run folder. The operating system releases the lock when the process ends, however it ends.

    Forked workers of a loader inherit it: after a kill the folder is free once they too have noticed, within seconds.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / ".lock"
        with writing(folder, "nothing was written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+")
        try:
            if os.name == "nt":
                import msvcrt

                self.file.seek(0)
                msvcrt.locking(self.file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            owner = self.file.read().strip() or "another process"
            self.file.close()
            raise FileProblem(f"{folder} is in use by {owner}: two runs cannot share a folder. Wait for it, or give this run its own out=") from None
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"process {os.getpid()}")
        self.file.flush()
        clear_leftovers(folder)

    def release(self) -> None:
        if os.name != "nt" and not self.file.closed:
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_UN)  # closing alone would leave it to workers that still have the file
        self.file.close()
