"""Open a finished run for reading: its settings, its data set, and the function that it was tested with.

    predict, data, run = open_run("runs/marsstyle-scenes")
    scores = predict(image)                       # image float [B, 3, H, W] normalised -> scores [B, K, h, w]

The contract with a paper's file is what `run.fit` promises already: a finished stage is loaded, not trained. So the paper's own `train(run)`
is walked through once more with a run that only loads, up to the `predict` that it hands to `run.report`. A paper whose `train` computes
tables for its report before that point can spare its readers the wait with

    def reopen(run) -> Callable:                  # in seglite/papers/<paper>.py; optional
        return the same predict, calling no more than run.data, run.fit and run.make

Nothing in the run's folder is changed and no lock is taken, so any number of readers may share a folder, also one that may not be written, or
whose later stages still train. An unfinished run is refused with the stage that is missing.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from seglite import files
from seglite.config import Config, UsageError, assign, leaves
from seglite.run import Run, RunProblem


class Found(Exception):
    """Carries the predictor out of a paper's `train`."""

    def __init__(self, predict: Callable):
        super().__init__("predictor found")
        self.predict = predict


class Reopened(Run):
    """A run that loads what is there and refuses to compute what is not."""

    def _lock(self) -> None:
        """A finished stage is a whole file that nobody writes again, so readers are in nobody's way."""

    def _claim_folder(self, command) -> None:
        """A reader leaves config.json and command.txt as they are."""

    def _claim_data(self, split: str, data) -> None:
        """A reader may look at other images."""

    def _needs(self, path: Path, what: str) -> None:
        if not path.exists():
            command = self.folder / "command.txt"
            again = f"continue it first: {command.read_text().strip()}" if command.exists() else "finish that run first"
            raise RunProblem(f"run {self.folder} is not finished: {what} has no {path.name}; {again}")

    def fit(self, name, model, *arguments, **keywords):
        self._needs(self.folder / name / "final.pt", f"stage {name!r}")
        return super().fit(name, model, *arguments, **keywords)

    def make(self, name, build):
        self._needs(self.folder / f"{name}.pt", f"artifact {name!r}")
        return files.load_tensors(self.folder / f"{name}.pt")

    def make_labels(self, name, maps, names, palette):
        self._needs(self.folder / name, f"label maps {name!r}")
        return super().make_labels(name, maps, names, palette)

    def report(self, predict, **content):
        raise Found(predict)


def read_settings(folder: Path, methods: dict, **changes) -> Config:
    """The settings that config.json of a run folder holds, with some keys replaced.

    UsageError when the folder holds no run, or one of another version of this code.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run (no config.json); give run= the folder that `python -m seglite.train` printed as run folder")
    saved = json.loads(path.read_text())["settings"]
    if saved.get("method") not in methods:
        raise UsageError(f"{path} is a run of method {saved.get('method')!r}; this version has {', '.join(methods)}")
    settings = methods[saved["method"]].Settings()
    foreign = [key for key in saved if key not in leaves(type(settings))]
    if foreign:
        raise UsageError(f"{path} was written by another version: it sets {', '.join(foreign[:3])}, which method={saved['method']} no longer has")
    for key, value in {**saved, **changes, "out": str(folder)}.items():
        assign(settings, key, tuple(value) if isinstance(value, list) else value)
    return settings


def open_run(folder: str | Path, methods: dict | None = None, **changes) -> tuple[Callable, object, Run]:
    """(predict, data, run) of a finished run. `data`: its validation split, with every annotation.

    changes: keys that do not change what was computed (root, device, threads).
    Raises UsageError or RunProblem in one sentence when there is no such run, or it is not finished. Call run.close() in the end.
    """
    if methods is None:
        from seglite.train import METHODS as methods
    settings = read_settings(Path(folder), methods, **changes)
    paper = methods[settings.method]
    run = Reopened(settings, supervision=paper.supervision(settings), quiet=True)
    try:
        data = run.truth("val")
        if hasattr(paper, "reopen"):
            return paper.reopen(run), data, run
        paper.train(run)
    except Found as found:
        return found.predict, data, run
    except BaseException:
        run.close()
        raise
    run.close()
    raise RunProblem(f"method={settings.method} ended without a report, so there is no predictor to reopen")
