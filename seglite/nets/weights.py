"""Load published weights: a file of named tensors, every name accounted for, nothing unpickled, nothing skipped in silence."""
import contextlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's mark on every name
NESTED = ("state_dict", "model", "model_state", "net")  # where training scripts keep the tensors inside a checkpoint


@dataclass
class Loaded:
    """What `load_weights` did; `str(loaded)` is the sentence it says."""

    path: str
    loaded: list[str] = field(default_factory=list)  # names in the model that now hold numbers of the file
    kept: list[str] = field(default_factory=list)  # names in the model that keep their old numbers
    unused: list[str] = field(default_factory=list)  # names in the file that the model does not take
    notes: list[str] = field(default_factory=list)  # what was unwrapped or stripped

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors from {Path(self.path).name}"]
        if self.kept:
            parts.append(f"{len(self.kept)} of the model kept as they were ({some(self.kept)})")
        if self.unused:
            parts.append(f"{len(self.unused)} of the file not used ({some(self.unused)})")
        return "weights: " + "; ".join(parts + self.notes)


def some(names: list[str], limit: int = 3) -> str:
    """The first few names and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read a file of named tensors, or the one inside a training checkpoint, without unpickling anything but tensors.

    Returns the tensors by name, and notes about what was unwrapped.

    Raises:
        ValueError: no such file, not a PyTorch file, or a file without a table of named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file; data_scripts/weights.py fetches the published ones.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a PyTorch weights file, or one cut short ({path.stat().st_size} bytes); fetch it again.") from error
        raise ValueError(
            f"{path}: holds Python objects besides tensors, which are never executed here; where you trust the file, load it once yourself "
            "and torch.save its state_dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a PyTorch weights file, or one cut short ({path.stat().st_size} bytes); fetch it again.") from error
    notes = []
    while isinstance(content, Mapping) and not any(isinstance(v, torch.Tensor) for v in content.values()):
        inside = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        if not inside:
            keys = some([str(k) for k in content])
            raise ValueError(f"{path}: no table of named tensors in it; it holds the keys {keys or '(none)'}, expected a state_dict.")
        content = content[inside[0]]
        notes.append(f"taken from the checkpoint's {inside[0]!r}")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a state_dict, that is a table of named tensors.")
    odd = [str(k) for k, v in content.items() if not (isinstance(k, str) and isinstance(v, torch.Tensor))]
    if odd:
        raise ValueError(f"{path}: {len(odd)} entries are not tensors ({some(odd)}); expected a state_dict, that is a table of named tensors.")
    return dict(content), notes


_overwritten = False  # inside `overwritten()`


@contextlib.contextmanager
def overwritten(soon: bool = True) -> Iterator[None]:
    """A block that builds a network whose numbers a finished stage replaces at once: initial weights are not read, since their file may be gone.

    What else a builder makes of weights= stays as it was in training, a frozen batch norm for example.
    """
    global _overwritten
    before, _overwritten = _overwritten, soon
    try:
        yield
    finally:
        _overwritten = before


def matter(path: str | Path) -> bool:
    """Whether there are initial weights to read: a path is given, and `overwritten` does not say that they are replaced."""
    return bool(path) and not _overwritten


def load_weights(
    model: nn.Module, path: str | Path, prefix: str = "", partial: bool | tuple[str, ...] = False, strip: str | None = None,
    say: Callable[[str], None] = print,
) -> Loaded:
    """Copy the tensors of a file into `model`, or raise and leave the model as it was.

    Args:
        model: any network; its own `state_dict()` names are what the file must provide.
        path: a file written by torch.save(state_dict), or a checkpoint that holds one under "state_dict" or "model".
        prefix: use only the file's names that begin with this, without it: "backbone." loads a backbone out of a segmenter.
        partial: False: every name must agree on both sides. A tuple of beginnings, e.g. ("fc.",): those names may be missing, left over
            or of another shape, on either side. True: any name may be missing or left over; shapes must still agree.
        strip: a beginning to take off every name, e.g. "module."; by itself only a wrapper's mark that every name carries is taken off,
            and said.
        say: receives the one sentence about what was done.

    Returns:
        `Loaded`: the names that were loaded, kept and not used; none inside `overwritten`. Floating-point tensors take the model's dtype.

    Raises:
        ValueError: unreadable file (see `read_tensors`), names or shapes that do not agree, integers for floats, numbers that are not finite.
    """
    if _overwritten:
        return Loaded(str(path))
    tensors, notes = read_tensors(path)
    own = model.state_dict()
    own = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    if strip:
        bare = [name for name in tensors if not name.startswith(strip)]
        if bare:
            raise ValueError(f"{path}: strip={strip!r}, but {len(bare)} names do not begin with it (first {bare[0]!r}).")
        tensors = {name[len(strip):]: value for name, value in tensors.items()}
    else:
        for mark in WRAPPERS:
            if tensors and all(name.startswith(mark) for name in tensors) and not any(name.startswith(mark) for name in own):
                tensors = {name[len(mark):]: value for name, value in tensors.items()}
                notes.append(f"{mark!r} taken off every name")
    if prefix:
        chosen = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
        if not chosen:
            raise ValueError(f"{path}: no name begins with prefix={prefix!r}; the file's names are {some(list(tensors))}.")
        notes.append(f"{len(tensors) - len(chosen)} outside {prefix!r} left aside")
        tensors = chosen

    free = (lambda name: partial) if isinstance(partial, bool) else (lambda name: name.startswith(tuple(partial)))
    # Files from before PyTorch 0.4.1 lack this counter; nothing reads it unless BatchNorm2d's momentum is None.
    counters = [name for name in own if name not in tensors and name.endswith("num_batches_tracked")]
    kept = [name for name in own if name not in tensors and name not in counters]
    unused = [name for name in tensors if name not in own]
    misfits = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    tolerated = [] if isinstance(partial, bool) else [name for name in misfits if free(name)]
    check(path, own, tensors, [n for n in kept if not free(n)], [n for n in unused if not free(n)], [n for n in misfits if n not in tolerated])
    fitting = {name: value for name, value in tensors.items() if name in own and name not in tolerated}
    if not fitting:
        names = f"the file has {some(list(tensors))}, the model {some(list(own))}"
        raise ValueError(f"{path}: not one of its {len(tensors)} names is in the model; {names}.")
    for name, value in fitting.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{path}: {name} is {value.dtype}, the model wants {own[name].dtype}; quantised weights must be expanded first.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite; the file is damaged or its training had diverged.")
    model.load_state_dict(fitting, strict=False)
    if counters:
        notes.append(f"{len(counters)} num_batches_tracked counters absent from the file, left alone")
    result = Loaded(str(path), list(fitting), kept + tolerated, unused + tolerated, notes)
    say(str(result))
    return result


def check(path: str | Path, own: dict, tensors: dict, missing: list[str], unexpected: list[str], misfits: list[str]) -> None:
    """Raise one sentence about the first names that do not agree, with the way out."""
    if misfits:
        name = misfits[0]
        raise ValueError(
            f"{path}: {len(misfits)} tensors have another shape, first {name}: file {list(tensors[name].shape)}, model {list(own[name].shape)}; "
            f"build the model to match, or leave it out with partial=({name.rsplit('.', 1)[0] + '.'!r},)."
        )
    if missing or unexpected:
        sides = []
        if missing:
            listed = some([f"{n} {list(own[n].shape)}" for n in missing])
            sides.append(f"{len(missing)} names of the model are not in the file ({listed})")
        if unexpected:
            listed = some([f"{n} {list(tensors[n].shape)}" for n in unexpected])
            sides.append(f"{len(unexpected)} names of the file are not in the model ({listed})")
        first = (missing or unexpected)[0].split(".")[0] + "."
        raise ValueError(f"{path}: {' and '.join(sides)}; check prefix=, or allow it with partial=({first!r},), or partial=True for any name.")
