"""Where does the time of a training step go, and does the loader keep up?

    python -m seglite.speed method=marsstyle                   every stage of the method, a few steps each
    python -m seglite.speed method=marsstyle data=voc root=...

For every stage three rates in images per second, measured on the stage's own network and batches: the loader alone, the training
step alone (batches ready in memory), and both together as in a real run. The loader is no bottleneck where its rate is several times the step's.
The stages are cut short, so their networks are as good as untrained; nothing is kept.

Then the network that the method tests with, one image at a time at the size of the validation images, beside networks that everyone knows:
parameters, multiply-adds, images per second, memory (seglite/networks.py compares all of the project's, at any size).
"""
from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time

from seglite import config as settings
from seglite import networks, parallel
from seglite.run import Run
from seglite.train import METHODS, guarded

STEPS = 12  # measured per stage, after two steps of warm-up
RIVALS = ("P2AT-S", "PSPNet-50", "DeepLabV3-50", "DeepLabV3+-MobileNetV2")  # networks.NETWORKS that a method's own is timed beside


class SpeedRun(Run):
    """A run whose stages stop after a few steps and note how fast they were."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.rows: list[dict] = []
        self.tested: dict[str, dict] = {}

    def fit(self, name, model, step, data, recipe, **keywords):
        recipe = dataclasses.replace(recipe, steps=STEPS + 2, log_every=10**9, save_every=10**9, eval_every=0)
        parts = self._parts(name, recipe)
        images = recipe.batch * STEPS
        loader = self._loader(data, recipe, parts, 0)
        ready = [next(loader) for _ in range(2 * parts)]  # workers have started
        began = time.perf_counter()
        ready += list(itertools.islice(loader, STEPS * parts))
        loader_seconds = time.perf_counter() - began

        marks: list[float] = []

        def timed(network, batch, t):
            marks.append(time.perf_counter())
            return step(network, batch, t)

        true_loader, self._loader = self._loader, lambda *a: iter(ready)
        self.quiet, quiet = True, self.quiet
        try:
            trained = super().fit(name, model, timed, data, recipe, **keywords)
        finally:
            self._loader, self.quiet = true_loader, quiet
        step_seconds = (marks[-1] - marks[2 * parts]) * STEPS * parts / (len(marks) - 1 - 2 * parts)
        row = {"stage": name, "batch": recipe.batch, "parameters": sum(p.numel() for p in model.parameters()),
               "step ms": 1000 * step_seconds / STEPS, "step img/s": images / step_seconds, "loader img/s": images / loader_seconds,
               "loader / step": step_seconds / loader_seconds}
        self.rows.append(row)
        return trained

    def report(self, predict, model=None, **content):
        """Instead of a report: what the tested network costs, beside others. A method that names no model is left out."""
        if model is not None and self.rank == 0:
            size = self.truth("val").read(0, ("image",))["image"].shape[:2]
            wanted = {"this method's": lambda _: model, **{name: networks.NETWORKS[name] for name in RIVALS}}
            asked = networks.Settings(size=size, classes=len(self.truth("val").classes), seconds=0.5)
            self.tested = networks.rows(asked, self.device, wanted, say=lambda sentence: None)
            self.tested = {f"{name}, {size[0]} x {size[1]}" if name == "this method's" else name: row for name, row in self.tested.items()}


def measure(arguments: list[str], methods: dict = METHODS) -> tuple[list[dict], dict[str, dict]]:
    """One row per stage, and the table of the tested network beside others."""
    with tempfile.TemporaryDirectory() as folder:
        config, _ = settings.parse([a for a in arguments if not a.startswith("out=")] + [f"out={folder}"], methods)
        paper = methods[config.method]
        run = SpeedRun(config, supervision=paper.supervision(config), quiet=True)
        try:
            paper.train(run)
        finally:
            run.close()
        return (run.rows, run.tested) if parallel.world() == 1 or run.rank == 0 else ([], {})


def main(arguments: list[str]) -> int:
    def body():
        rows, tested = measure(arguments)
        for table in ({row["stage"]: {k: v for k, v in row.items() if k != "stage"} for row in rows}, tested):
            print("\n".join([*networks.lines(table), ""]) if table else "", end="")

    return guarded(body, debug="debug=true" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
