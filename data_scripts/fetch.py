"""Download one file so that it is either whole and right, or not there.

    .NAME.part        what has arrived so far; the next try asks the server for the rest
    NAME              appears by a rename, after size, first bytes and checksum were found right

Whatever the network does, a file that was there before stays as it was: a wrong one is reported, not overwritten. Standard library only.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 16
PROGRESS = 1 << 20  # a try that brought this many bytes does not count as a failed one


class FetchProblem(OSError):
    """A file cannot be had; the message is one sentence for the user."""


class Again(Exception):
    """This try failed, the next one may not."""


class NextSource(Exception):
    """This source will not give the file, however often it is asked."""


@dataclass(frozen=True)
class Source:
    """One file and how to know it. Digests are the ones its publisher or widely used code gives; none is made up."""

    name: str
    """file name"""
    urls: tuple[str, ...] = ()
    """where it is, tried in this order; none: the user fetches it by hand"""
    digest: str = ""
    """"sha256:...", "sha1:..." or "md5:..."; some publishers give the first digits only, then those are compared"""
    size: int = 0
    """bytes; 0: unknown"""
    first: tuple[bytes, ...] = ()
    """what the file may begin with; catches error pages after the first packet"""
    advice: str = ""
    """how to get it by hand"""


ZIP, GZIP = (b"PK\x03\x04",), (b"\x1f\x8b",)
TORCH = (b"PK\x03\x04", b"\x80")  # torch.save's zip, and the plain pickle of old files


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, kind).hexdigest() if hasattr(hashlib, "file_digest") else _digest_slowly(f, kind)


def _digest_slowly(f, kind: str) -> str:
    state = hashlib.new(kind)  # Python 3.10 has no file_digest
    while chunk := f.read(1 << 20):
        state.update(chunk)
    return state.hexdigest()


def fault_of(path: Path, source: Source) -> str:
    """What is wrong with a complete file, as the middle of a sentence; empty: nothing."""
    size = path.stat().st_size
    if source.size and size != source.size:
        return f"has {size:,} bytes, expected {source.size:,}"
    with open(path, "rb") as f:
        begins = f.read(16)
    if source.first and not begins.startswith(source.first):
        return f"begins with {begins!r}, which is {kind_of(begins)}"
    if source.digest:
        kind, wanted = source.digest.split(":")
        found = digest_of(path, kind)
        if not found.startswith(wanted):
            return f"has {kind} {found}, expected {wanted}{'...' if len(wanted) < len(found) else ''}"
    elif size == 0:
        return "is empty"
    return ""


def kind_of(begins: bytes) -> str:
    if begins.lstrip()[:1] == b"<":
        return "a web page and not the file: the server answered with a login or an error"
    return "not what such a file begins with"


def fetch(source: Source, folder: Path, *, verify_only: bool = False, timeout: float = 30, tries: int = 5, pause: float = 2,
          slowest: float = 256, say: Callable[[str], None] = print) -> Path:
    """Make sure that `folder/source.name` is there and right; returns its path.

    Args:
        verify_only: look, but download nothing.
        timeout: seconds without a byte after which a try is given up (and the next one continues).
        tries: failed tries in a row per source; a try that brought a mebibyte is not a failed one.
        pause: seconds before the second try, doubled each time.
        slowest: bytes per second below which a connection counts as stalled.

    Raises FetchProblem: nothing works, or a file of that name is there and wrong. It is then left as it is.
    """
    target = Path(folder) / source.name
    if target.exists():
        fault = fault_of(target, source)
        if fault:
            raise FetchProblem(f"{target} {fault}; it was left as it is: move it away, then run this again")
        say(f"{target}: there, {checked(target, source)}")
        return target
    if verify_only or not source.urls:
        raise FetchProblem(f"{target} does not exist" + (f"; {source.advice}" if source.advice else ""))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Part(target) as part:
            failures = []
            for url in source.urls:
                try:
                    _from_one(url, source, part, timeout, tries, pause, slowest, say)
                    part.finish()
                    say(f"{target}: {target.stat().st_size:,} bytes, {checked(target, source)}")
                    return target
                except NextSource as problem:
                    failures.append(f"{url} {problem}")
                    say(f"  {failures[-1]}")
            kept = f"; {part.size:,} bytes are kept, and running this again continues there" if part.size else ""
            by_hand = f". By hand: {source.advice}" if source.advice else ""
            raise FetchProblem(f"{target.name} could not be fetched: {'; '.join(failures)}{kept}{by_hand}")
    except FetchProblem:
        raise
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            raise FetchProblem(f"the disk of {folder} is full; what arrived is kept, free some space and run this again to continue") from problem
        raise FetchProblem(f"cannot write {target}: {problem.strerror or problem}") from problem


def checked(path: Path, source: Source) -> str:
    """How the file was checked, for the log."""
    if source.digest:
        kind, wanted = source.digest.split(":")
        return f"{kind} {wanted}{'...' if len(wanted) < hashlib.new(kind).digest_size * 2 else ''} is right"
    return f"no published checksum to compare; sha256 {digest_of(path)}"


class Part:
    """The unfinished file, locked against a second process, with a note of where its bytes came from."""

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self.note_path = target.with_name(f".{target.name}.part.json")

    def __enter__(self) -> Part:
        self.file = open(self.path, "a+b")
        with contextlib.suppress(ImportError):  # Windows: two processes are not told apart there
            import fcntl

            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.file.close()
                raise FetchProblem(f"{self.target.name} is being fetched by another process; wait for it") from None
        self.size = os.fstat(self.file.fileno()).st_size
        self.note = {}
        with contextlib.suppress(OSError, ValueError):
            self.note = json.loads(self.note_path.read_text())
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.forget()

    def describe(self, url: str, mark: str) -> None:
        """Remember the source of these bytes. `mark`: its ETag or date, by which a server tells whether the file has changed since."""
        if self.note != {"url": url, "mark": mark}:
            self.note = {"url": url, "mark": mark}
            self.note_path.write_text(json.dumps(self.note))

    def restart(self) -> None:
        self.file.truncate(0)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.size += len(chunk)

    def flush(self) -> None:
        self.file.flush()

    def finish(self) -> None:
        self.flush()
        os.fsync(self.file.fileno())
        self.file.close()  # Windows renames no open file
        os.replace(self.path, self.target)
        self.note_path.unlink(missing_ok=True)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


def _from_one(url: str, source: Source, part: Part, timeout, tries, pause, slowest, say) -> None:
    """Bring `part` to completion from one source, or raise NextSource."""
    failed, swallowed = 0, 0
    while True:
        before = part.size
        try:
            _one_try(url, source, part, timeout, slowest, say)
            part.flush()
            fault = fault_of(part.path, source)
            if not fault:
                return
            part.restart()  # wrong bytes are worth nothing
            swallowed += 1
            if swallowed == 2:
                raise NextSource(f"gives a file that {fault}")
            reason, wait = f"what arrived {fault}; starting over", None
        except Again as problem:
            part.flush()
            if part.size and part.size <= before and source.digest and not fault_of(part.path, source):
                return  # the announced length was wrong, the bytes are right
            reason, wait = problem.args
        gained = part.size - before
        failed = 0 if gained >= PROGRESS else failed + 1
        if failed >= tries:
            raise NextSource(f"failed {tries} times in a row, at last: {reason}")
        seconds = min(wait if wait is not None else pause * 2 ** max(failed - 1, 0), 60)
        say(f"  {reason}; trying again{f' in {seconds:.0f} s' if seconds >= 1 else ''}, {part.size:,} bytes are here")
        time.sleep(seconds)


def _one_try(url: str, source: Source, part: Part, timeout: float, slowest: float, say) -> None:
    """One request for what is missing. Raises Again or NextSource; returns when the server has sent everything it announced."""
    # Bytes of another address may only be continued when a checksum will judge the whole.
    if part.size and (part.note.get("url") != url and not source.digest):
        part.restart()
    if source.size and part.size > source.size:
        part.restart()
    headers = {"User-Agent": "seglite-data-scripts", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.note.get("mark") and part.note.get("url") == url:
            headers["If-Range"] = part.note["mark"]
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            total = _where_it_starts(answer, part, say)
            if source.size and total and total != source.size:
                raise NextSource(f"offers {total:,} bytes, expected {source.size:,}")
            etag = answer.headers.get("ETag", "")
            part.describe(url, etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", ""))
            _need_room(part.target.parent, (total or source.size) - part.size)
            _copy(answer, source, part, total, timeout, slowest, say)
    except urllib.error.HTTPError as problem:
        with problem:
            if problem.code == 416:  # nothing left to send, or the file has become shorter
                end = re.search(r"/(\d+)$", problem.headers.get("Content-Range", ""))
                if end and int(end[1]) == part.size:
                    return
                part.restart()
                raise Again("the file on the server is another one now; starting over", 0) from None
            if problem.code in (408, 425, 429) or problem.code >= 500:
                wait = problem.headers.get("Retry-After", "")
                raise Again(f"the server answers {problem.code} {problem.reason}", float(wait) if wait.isdigit() else None) from None
            raise NextSource(f"answers {problem.code} {problem.reason}") from None
    except (TimeoutError, socket.timeout):
        raise Again(f"no byte for {timeout:g} s", None) from None
    except http.client.HTTPException as problem:
        raise Again(f"the connection broke ({type(problem).__name__})", None) from None
    except urllib.error.URLError as problem:
        if isinstance(problem.reason, (TimeoutError, socket.timeout)):
            raise Again(f"no answer for {timeout:g} s", None) from None
        if isinstance(problem.reason, ValueError) or "unknown url type" in str(problem.reason):
            raise NextSource(f"cannot be asked ({problem.reason})") from None
        raise Again(f"cannot be reached ({problem.reason})", None) from None
    except ConnectionError as problem:
        raise Again(f"the connection broke ({problem.strerror or problem})", None) from None


def _where_it_starts(answer, part: Part, say) -> int:
    """Make `part` end where the answer begins; returns the announced total size, 0 if the server does not say."""
    length = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not stated or int(stated[1]) != part.size:
            part.restart()
            raise Again("the server sent another part than the one asked for; starting over", 0)
        return int(stated[3]) if stated[3] != "*" else 0
    if answer.status != 200:
        raise NextSource(f"answers {answer.status} instead of a file")
    if part.size:
        say(f"  the server cannot continue at byte {part.size:,}, or its file has changed; starting over")
        part.restart()
    return int(length) if length.isdigit() else 0


def _need_room(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise FetchProblem(f"{missing:,} bytes are still to come and {folder} has {free:,} free; free some space and run this again to continue")


def _copy(answer, source: Source, part: Part, total: int, timeout: float, slowest: float, say) -> None:
    """Move the answer into the part file."""
    began = mark_time = time.monotonic()
    first_size = mark_size = part.size
    bar = Progress(source.name, total or source.size, say)
    while chunk := answer.read1(CHUNK):
        if part.size == 0 and source.first and not chunk.startswith(source.first) and len(chunk) >= 4:
            raise NextSource(f"gives a file that begins with {chunk[:16]!r}, which is {kind_of(chunk[:16])}")
        part.write(chunk)
        now = time.monotonic()
        bar.show(part.size, first_size, now - began)
        if now - mark_time > timeout:
            if part.size - mark_size < slowest * (now - mark_time):
                raise Again(f"stalled: {part.size - mark_size:,} bytes in {now - mark_time:.0f} s", None)
            mark_time, mark_size = now, part.size
    bar.end()
    if total and part.size < total:
        raise Again(f"the connection ended after {part.size:,} of {total:,} bytes", None)
    if total and part.size > total:
        part.restart()
        raise Again(f"more than the announced {total:,} bytes came; starting over", None)


class Progress:
    """One updating line on a terminal, a line per tenth elsewhere."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]):
        self.name, self.total, self.say, self.last, self.shown = name, total, say, 0.0, -1
        self.terminal = sys.stdout.isatty() and say is print

    def show(self, size: int, first: int, seconds: float) -> None:
        tenth = 10 * size // self.total if self.total else size >> 28
        if self.terminal and seconds - self.last < 0.2 or not self.terminal and tenth == self.shown:
            return
        started = self.shown >= 0
        self.last, self.shown = seconds, tenth
        if not self.terminal and (not started or size - first < PROGRESS):
            return  # small files need no line
        rate = (size - first) / max(seconds, 1e-6)
        left = f", {(self.total - size) / max(rate, 1):.0f} s left" if self.total else ""
        line = f"  {self.name} {size / 2**20:.1f}{f' of {self.total / 2**20:.1f}' if self.total else ''} MiB, {rate / 2**20:.1f} MiB/s{left}"
        print(f"\r\033[K{line}", end="", flush=True) if self.terminal else self.say(line)

    def end(self) -> None:
        if self.terminal and self.shown >= 0:
            print(flush=True)
