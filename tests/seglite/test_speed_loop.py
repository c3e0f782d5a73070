"""What the project itself costs: the loop around a step, and importing it."""
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seglite import config as settings
from seglite import speed
from seglite.data import Batches
from tests.seglite.tiny import METHODS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("method, keys", [("deeplab", ["scenes.train_images=32"]), ("p2at", ["scenes.train_images=32"]),
                                          ("mixreorg", ["scenes.train_images=32"])], ids=lambda value: value if isinstance(value, str) else "")
def test_the_loop_adds_little_to_a_step(method, keys, monkeypatch):
    """`python -m seglite.speed overhead method=...`: at most 3 % of a step, the process's own time. A second measurement may correct the first,
    because the caches are shared with whatever else the machine does; what the loop really cost would be there again.
    """
    monkeypatch.setattr(speed, "TURNS", 12)
    measured = lambda: speed.measure([f"method={method}", "threads=1", *keys], kind=speed.OverheadRun)[0]
    fine = lambda rows: all(row["added %"] <= 3 for row in rows)
    rows = measured()
    assert rows and all(row["plain ms"] > 20 for row in rows), "a toy's step, not an empty one"
    assert fine(rows) or fine(again := measured()), (rows, again)


def test_the_loop_adds_no_milliseconds_to_an_empty_step():
    """The tiny network's step takes two milliseconds, so the loop's own cost shows: seeds, loader, meter and checks."""
    from tests.seglite.tiny import METHODS

    rows, _ = speed.measure(["method=tiny", "threads=1"], METHODS, speed.OverheadRun)
    assert [row["stage"] for row in rows] == ["first", "main"]
    assert max(row["added ms"] for row in rows) < 2.0, rows
    assert all(row["plain ms"] > 0.1 for row in rows)


def test_batches_on_the_device_are_neither_pinned_nor_brought_by_others(tmp_path, monkeypatch):
    """As seglite.speed overhead hands them to Run.fit on a GPU."""
    config, _ = settings.parse(["method=tiny", f"out={tmp_path}", "workers=2"], METHODS)
    run, asked = speed.OverheadRun(config, quiet=True), []
    monkeypatch.setattr(torch.utils.data, "DataLoader", lambda *a, **keywords: asked.append(keywords) or [])
    run.device = "cuda"
    data = speed.Ready(Batches(run.truth("train"), 2, 0, wants=("image",)), 2, 1)
    for data.on_device in (False, True):
        run._loader(data, config.train, 1, 0)
    run.close()
    assert [(k["pin_memory"], k["num_workers"], k["prefetch_factor"]) for k in asked] == [(True, 2, 4), (False, 0, None)]


def test_speed_is_of_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert speed.main(["method=deeplab"]) == 2 and "leave out torchrun" in capsys.readouterr().err


def test_importing_takes_hardly_longer_than_torch():
    """Seconds of this process alone, the best of three in turn; `seglite.train` brings every paper and the kernels along."""
    modules = ("torch", "seglite", "seglite.train")
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(3):
        for name in modules:
            code = f"import torch, {name}, time; print(time.process_time())"
            seconds[name].append(float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout))
    best = {name: min(values) for name, values in seconds.items()}
    assert best["seglite"] < 1.5 * best["torch"] and best["seglite.train"] < 1.5 * best["torch"], best
    assert statistics.median(seconds["torch"]) > 0.3, "the clock is the process's own"
