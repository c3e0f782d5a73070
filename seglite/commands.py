"""The command lines beside training: files and key=value, in any order.

    python -m seglite.crf photo.jpg labels.png out.png preset=camvid
    python -m seglite.predict run=runs/marsstyle-voc holiday/*.jpg
    python -m seglite.evaluate run=runs/marsstyle-voc crf=deeplab-voc

Keys are the fields of one flat dataclass; `help` lists them with the string below each field. Exit codes as in seglite.train.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from seglite.config import UsageError, convert, flatten, leaves, near, split_arguments, type_name


def serve(program: str, usage: str, cls: type, arguments: list[str], body: Callable, files: int | tuple[int, float] = 0) -> int:
    """Parse, call body(settings, files), and turn every foreseeable problem into one sentence and an exit code.

    files: how many file arguments the command takes, or (least, most).
    """
    from seglite.train import guarded  # imports every paper, which `help` need not wait for

    if any(a.lstrip("-") in ("help", "h") for a in arguments):
        print(help_text(program, usage, cls))
        return 0
    return guarded(lambda: body(*parse(program, usage, cls, arguments, files)), arguments)


def parse(program: str, usage: str, cls: type, arguments: list[str], files: int | tuple[int, float] = 0) -> tuple[object, list[str]]:
    """Command line -> (settings, file arguments). UsageError for unknown keys, wrong types and a wrong number of files."""
    known = leaves(cls)
    paths = [a for a in arguments if "=" not in a or (a.partition("=")[0] not in known and Path(a).exists())]
    dashed = next((p for p in paths if p.startswith("-") and not Path(p).exists()), None)
    if dashed:
        raise UsageError(f"options have no dashes here: write key=value instead of {dashed!r} (`python -m {program} help` lists every key)")
    least, most = files if isinstance(files, tuple) else (files, files)
    if not least <= len(paths) <= most:
        wanted = str(least) if least == most else f"at least {least}" if most == float("inf") else f"{least} to {most}"
        raise UsageError(f"expected {wanted} files, got {len(paths)}: python -m {program} {usage} key=value ...")
    settings = cls()
    for key, text in split_arguments([a for a in arguments if a not in paths]).items():
        if key not in known:
            raise UsageError(f"unknown key {key!r}{near(key, known)} `python -m {program} help` lists every key")
        setattr(settings, key, convert(text, known[key][0], key))
    return settings, paths


def help_text(program: str, usage: str, cls: type) -> str:
    """Every key with default, type and meaning."""
    default = flatten(cls())
    lines = [inspect.getdoc(cls), "", f"usage: python -m {program} {usage} key=value ...", ""]
    for key, (kind, doc) in leaves(cls).items():
        value = default[key]
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else value
        name = type_name(kind) if not hasattr(kind, "__args__") or type(None) not in kind.__args__ else type_name(kind.__args__[0])
        lines += [f"  {key}={shown}", f"      {name.removeprefix('one of ')}: {doc}"]
    return "\n".join(lines)
