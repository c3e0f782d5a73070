"""Where does the time of a training step go, and does the loader keep up?

    python -m seglite.speed method=marsstyle                   every stage of the method, a few steps each
    python -m seglite.speed method=marsstyle data=voc root=...

For every stage three rates in images per second, measured on the stage's own network and batches: the loader alone, the training
step alone (batches ready in memory), and both together as in a real run. The loader is no bottleneck where its rate is several times the step's.
The stages are cut short, so their networks are as good as untrained; nothing is kept.
"""
from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
import time

from seglite import config as settings
from seglite import parallel
from seglite.run import Run
from seglite.train import METHODS, guarded

STEPS = 12  # measured per stage, after two steps of warm-up


class SpeedRun(Run):
    """A run whose stages stop after a few steps and note how fast they were."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.rows: list[dict] = []

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

    def report(self, predict, **content):
        return None


def measure(arguments: list[str], methods: dict = METHODS) -> list[dict]:
    """One row per stage."""
    with tempfile.TemporaryDirectory() as folder:
        config, _ = settings.parse([a for a in arguments if not a.startswith("out=")] + [f"out={folder}"], methods)
        paper = methods[config.method]
        run = SpeedRun(config, supervision=paper.supervision(config), quiet=True)
        try:
            paper.train(run)
        finally:
            run.close()
        return run.rows if parallel.world() == 1 or run.rank == 0 else []


def main(arguments: list[str]) -> int:
    def body():
        rows = measure(arguments)
        columns = list(rows[0])
        lines = [columns] + [[f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            print("  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths))))

    return guarded(body, debug="debug=true" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
