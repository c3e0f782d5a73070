"""Unpack a tar or zip archive from the internet without trusting it.

Nothing is written outside a new folder, no link is ever created, no permission is taken over, and the folder gets its name by a rename when
everything is in it. An archive that tries something is refused as a whole, before its first file is written.
"""
from __future__ import annotations

import contextlib
import gzip
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHUNK = 1 << 20


class ArchiveProblem(OSError):
    """The archive is damaged or not to be trusted; the message is one sentence for the user."""


@dataclass(frozen=True)
class Member:
    name: str
    size: int
    kind: str
    """file, folder, link or other"""
    target: str = ""
    """of a link"""


def members(archive) -> Iterator[tuple[Member, object]]:
    """(Member, the library's own handle) of an open TarFile or ZipFile."""
    if isinstance(archive, tarfile.TarFile):
        for m in archive:
            kind = "file" if m.isreg() else "folder" if m.isdir() else "link" if m.issym() or m.islnk() else "other"
            # A hard link's target counts from the archive's root, a symbolic one's from its own folder.
            target = m.linkname if m.islnk() else posixpath.join(posixpath.dirname(m.name), m.linkname) if m.issym() else ""
            if m.issym() and m.linkname.startswith("/"):
                target = m.linkname
            yield Member(m.name, m.size, kind, target), m
        return
    for z in archive.infolist():
        mode = z.external_attr >> 16
        if z.flag_bits & 1:
            raise ArchiveProblem(f"{archive.filename}: {z.filename} is encrypted")
        if stat.S_ISLNK(mode):
            if z.file_size > 4096:
                raise ArchiveProblem(f"{archive.filename}: {z.filename} is a link with a target of {z.file_size:,} bytes")
            target = archive.read(z).decode("utf-8", "replace")
            yield Member(z.filename, 0, "link", target if target.startswith("/") else posixpath.join(posixpath.dirname(z.filename), target)), z
        else:
            odd = mode and stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
            yield Member(z.filename, z.file_size, "other" if odd else "folder" if z.is_dir() else "file"), z


def inside(name: str) -> bool:
    """Whether a member's path stays in the folder it is unpacked to, on every operating system."""
    if not name or "\\" in name or "\0" in name or name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return False
    return ".." not in PurePosixPath(name).parts


@contextlib.contextmanager
def opened(path: Path):
    """An open TarFile or ZipFile; every way in which it can be damaged becomes an ArchiveProblem."""
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield archive
        else:
            with tarfile.open(path) as archive:
                yield archive
    except ArchiveProblem:
        raise
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError) as problem:
        raise ArchiveProblem(f"{path} is damaged or cut short ({first_line(problem)}); fetch it again") from problem


def first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0].rstrip(":")


def checked_members(archive, path: Path, most_bytes: int, most_files: int,
                    keep: Callable[[str], str | None]) -> tuple[list[tuple[object, str]], int, int]:
    """([(handle, name to write)], bytes, links left out). Raises ArchiveProblem on the first member that is not to be trusted."""
    wanted, names, total, links = [], set(), 0, 0
    for count, (member, handle) in enumerate(members(archive), 1):
        if count > most_files:
            raise ArchiveProblem(f"{path} holds more than {most_files:,} members; that is not the archive it should be")
        if not inside(member.name.rstrip("/") or "."):
            raise ArchiveProblem(f"{path} wants to write to {member.name!r}, outside its folder; nothing was unpacked")
        if member.kind == "other":
            raise ArchiveProblem(f"{path} holds {member.name!r}, a device or pipe; nothing was unpacked")
        if member.kind == "link":
            if not inside(posixpath.normpath(member.target)):
                raise ArchiveProblem(f"{path} holds a link {member.name!r} to {member.target!r}, outside its folder; nothing was unpacked")
            links += 1
            continue
        if member.kind != "file":
            continue
        total += member.size
        if total > most_bytes:
            raise ArchiveProblem(f"{path} would unpack to more than {most_bytes:,} bytes; that is not the archive it should be")
        name = keep(member.name)
        if name is None:
            continue
        if not inside(name):
            raise ArchiveProblem(f"{member.name!r} of {path} would be written to {name!r}")
        if name.lower() in names:
            raise ArchiveProblem(f"{path} holds {name!r} twice; nothing was unpacked")
        names.add(name.lower())
        wanted.append((handle, name, member.size))
    clash = next((n for _, n, _ in wanted if any(str(p).lower() in names for p in PurePosixPath(n).parents if str(p) != ".")), None)
    if clash:
        raise ArchiveProblem(f"{path} holds {clash!r} below a member that is a file; nothing was unpacked")
    return [(h, n) for h, n, _ in wanted], sum(s for *_, s in wanted), links


def extract(path: Path, folder: Path, *, most_bytes: int, most_files: int = 500_000, keep: Callable[[str], str | None] = lambda name: name,
            finish: Callable[[Path], None] = lambda part: None, say: Callable[[str], None] = print) -> Path:
    """Unpack `path` into the new folder `folder`.

    Args:
        most_bytes, most_files: more than this is refused (an archive that unpacks to a full disk).
        keep: member name -> path below `folder`, or None to leave it out.
        finish: called with the still unnamed folder when all files are in it: checks, conversions.

    Raises ArchiveProblem, or what `finish` raises; `folder` does not exist then.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists():
        raise ArchiveProblem(f"{folder} exists already; move it away to unpack {path.name} anew")
    part = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    try:
        with opened(path) as archive:
            wanted, size, links = checked_members(archive, path, most_bytes, most_files, keep)
            if not wanted:
                raise ArchiveProblem(f"{path} holds none of the files that were looked for; it is another archive")
            free = shutil.disk_usage(part).free
            if size > free:
                raise ArchiveProblem(f"{path} unpacks to {size:,} bytes and {folder.parent} has {free:,} free")
            say(f"{path.name}: unpacking {len(wanted):,} files, {size / 2**20:,.0f} MiB" + (f", {links} links left out" if links else ""))
            for handle, name in wanted:
                _write(archive, handle, part / name, path)
        finish(part)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(archive, handle, target: Path, path: Path) -> None:
    """One member, at most as many bytes as it announced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    announced = handle.size if isinstance(handle, tarfile.TarInfo) else handle.file_size
    with (archive.extractfile(handle) if isinstance(handle, tarfile.TarInfo) else archive.open(handle)) as source, open(target, "xb") as out:
        written = 0
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > announced:
                raise ArchiveProblem(f"{path}: {target.name} is longer than the {announced:,} bytes announced")
            out.write(chunk)
    if written != announced:
        raise ArchiveProblem(f"{path} is cut short: {target.name} has {written:,} of {announced:,} bytes; fetch it again")
