"""Where does the time of a training step go, and does the loader keep up?

    python -m seglite.speed method=marsstyle                   every stage of the method, a few steps each
    python -m seglite.speed method=marsstyle data=voc root=...

For every stage three rates in images per second, measured on the stage's own network and batches: the loader alone, the training
step alone (batches ready in memory), and both together as in a real run. The loader is no bottleneck where its rate is several times the step's.
The stages are cut short, so their networks are as good as untrained; nothing is kept.

Then the network that the method tests with, one image at a time at the size of the validation images, beside networks that everyone knows:
parameters, multiply-adds, images per second, memory (seglite/networks.py compares all of the project's, at any size).

    python -m seglite.speed overhead method=deeplab            every stage: what Run.fit adds to a step
    python -m seglite.speed profile method=deeplab             every stage: which operations its step spends its time in

overhead takes a step in Run.fit and one in the shortest loop that trains alike (learning rate, step, backward, optimizer, averaged teacher) by turns,
on the same ready batches, and reports the median difference; on a CPU the clock is the process's own, so other programs do not count.
"""
from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch

from seglite import config as settings
from seglite import networks
from seglite.measure import cpu_clock, synchronise
from seglite.run import Run, build_optimizer, learning_rate
from seglite.train import METHODS, guarded

STEPS = 12  # measured per stage, after two steps of warm-up
TURNS = 24  # steps in each loop, to find what Run.fit adds
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


class Ready:
    """A few batches in memory, handed out again and again; `Run.fit` takes them for its data. on_device: where the network is, not in the CPU's."""

    on_device = False

    def __init__(self, data, batch: int, count: int):
        self.wants = getattr(data, "wants", ())
        self.batches = [data.share(t, 0, batch) for t in range(count)]

    def share(self, t: int, first: int, last: int):
        return self.batches[t % len(self.batches)]


def plain_loop(model: torch.nn.Module, step: Callable, data: Ready, recipe, groups=None, ema=None) -> Iterator[None]:
    """What one would write by hand, a step per turn: the training of `Run.fit` without logs, checks, checkpoints, processes and mixed precision."""
    model.train()
    optimizer = build_optimizer(model, recipe, groups)
    for t in range(recipe.steps):
        rate = learning_rate(recipe, t)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        losses = step(model, data.share(t, 0, recipe.batch), t)
        sum(v for v in losses.values() if isinstance(v, torch.Tensor) and v.requires_grad).backward()
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(model)
        yield


class OverheadRun(SpeedRun):
    """A run that trains a few steps of every stage in `Run.fit`, with a step of `plain_loop` on a twin before each, and compares milliseconds."""

    def fit(self, name, model, step, data, recipe, groups=None, ema=None, **keywords):
        recipe = dataclasses.replace(recipe, steps=TURNS + 3, micro_batch=0, amp="off", compile=False, channels_last=False, save_every=10**9,
                                     eval_every=0)
        ready = Ready(data, recipe.batch, 3)
        for batch in ready.batches:  # in the layout of Run.fit: channels-last images alone make a step of convolutions a quarter faster
            batch.update({k: v.to(self.device).contiguous() for k, v in batch.items() if isinstance(v, torch.Tensor)})
        ready.on_device = self.device.startswith("cuda")
        model.to(self.device)
        twin = copy.deepcopy(model)
        own = dict(zip(map(id, model.parameters()), twin.parameters()))
        twin_groups = groups and [{**group, "params": [own[id(p)] for p in group["params"]]} for group in groups]
        by_hand = plain_loop(twin, step, ready, recipe, twin_groups, copy.deepcopy(ema))
        clock = time.perf_counter if self.device.startswith("cuda") else cpu_clock
        ms: dict[str, list[float]] = {"plain": [], "fit": []}
        left = None  # when the last turn of the plain loop was over, and Run.fit's step began

        def timed(network, batch, t):
            nonlocal left
            synchronise(self.device)
            entered = clock()
            if left is not None:
                ms["fit"].append(1000 * (entered - left))
            next(by_hand)
            synchronise(self.device)
            left = clock()
            ms["plain"].append(1000 * (left - entered))
            return step(network, batch, t)

        self.quiet, quiet = True, self.quiet
        trained = Run.fit(self, name, model, timed, ready, recipe, groups=groups, ema=ema, **keywords)
        self.quiet = quiet
        added = statistics.median(f - p for f, p in list(zip(ms["fit"], ms["plain"]))[2:])  # the first two warm up
        plain = statistics.median(ms["plain"][2:])
        self.rows.append({"stage": name, "batch": recipe.batch, "plain ms": plain, "Run.fit ms": plain + added, "added ms": added,
                          "added %": 100 * added / plain})
        return trained

    def report(self, predict, model=None, **content):
        """Nothing: only the stages are of interest."""


class ProfileRun(OverheadRun):
    """A run that takes a few steps of every stage under torch.profiler."""

    SHOWN = 12  # operations per stage

    def fit(self, name, model, step, data, recipe, **keywords):
        recipe = dataclasses.replace(recipe, steps=4, micro_batch=0, log_every=10**9, save_every=10**9, eval_every=0)
        data = Ready(data, recipe.batch, 2)  # the loader has its own row in the table of rates
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * self.device.startswith("cuda")
        with torch.profiler.profile(activities=activities) as profile:
            trained = Run.fit(self, name, model, step, data, recipe, **keywords)
        events = profile.key_averages()
        total = sum(e.self_cpu_time_total for e in events)
        for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:self.SHOWN]:
            self.rows.append({"stage": f"{name} {event.key[:48]}", "share %": 100 * event.self_cpu_time_total / total,
                              "ms a step": event.self_cpu_time_total / 1000 / recipe.steps, "calls a step": event.count / recipe.steps})
        return trained


def measure(arguments: list[str], methods: dict = METHODS, kind: type[SpeedRun] = SpeedRun) -> tuple[list[dict], dict[str, dict]]:
    """One row per stage, and the table of the tested network beside others."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise settings.UsageError("seglite.speed measures one process, torchrun started several: leave out torchrun")
    with tempfile.TemporaryDirectory() as folder:
        config, _ = settings.parse([a for a in arguments if not a.startswith("out=")] + [f"out={folder}"], methods)
        paper = methods[config.method]
        run = kind(config, supervision=paper.supervision(config), quiet=True)
        try:
            paper.train(run)
        finally:
            run.close()
        return run.rows, run.tested


def main(arguments: list[str]) -> int:
    kinds = {"overhead": OverheadRun, "profile": ProfileRun}
    kind = kinds.get(arguments[0]) if arguments else None

    def body():
        rows, tested = measure(arguments[1:] if kind else arguments, kind=kind or SpeedRun)
        for table in ({row["stage"]: {k: v for k, v in row.items() if k != "stage"} for row in rows}, tested):
            print("\n".join([*networks.lines(table), ""]) if table else "", end="")

    return guarded(body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
