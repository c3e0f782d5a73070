"""Every method, killed again and again at random writes, ends where an undisturbed run ends: same weights, same artifacts, same score.

Each run is cut down to three steps per stage on a few scenes, with a checkpoint after every step. A hook counts the moments at which a file
is about to be replaced or has just been replaced, and dies at a chosen one: before the rename (the new file is lost) or after it
(the log is behind). The kill points are drawn from a fixed seed over the whole run, so every stage is hit sooner or later.
"""
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seglite import config as settings
from seglite import files
from seglite.train import METHODS

KILLS = 4  # per method: 36 in all
SHORT = {"steps": 3, "batch": 4, "save_every": 1, "warmup": 0, "log_every": 1}
FEW = {"scenes.train_images": 24, "scenes.val_images": 4, "scenes.size": 48}
OWN = {"cwbass": {"labels": "1/4"}, "mgd": {"labels": "1/4"}}  # keys without which so few images are refused

DRIVER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from seglite import files, train
count, death, true_replace = 0, int(sys.argv[1]), os.replace

def moment():
    global count
    count += 1
    if count == death:
        os.kill(os.getpid(), signal.SIGKILL)

def replace(source, target):
    moment()
    true_replace(source, target)
    moment()

files.os.replace = replace
code = train.main(sys.argv[2:])
print("moments", count)
sys.exit(code)
"""


def shortened(method: str) -> list[str]:
    """The command line of a run of seconds."""
    known = settings.leaves(METHODS[method].Settings)
    recipes = [key.removesuffix(".optimizer") for key in known if key.endswith(".optimizer")]
    keys = {f"{recipe}.{name}": value for recipe in recipes for name, value in SHORT.items()} | FEW | OWN.get(method, {})
    return [f"method={method}", "threads=1", *(f"{key}={value}" for key, value in keys.items() if key in known)]


def start(out: Path, method: str, death: int = 0) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", DRIVER, str(death), *shortened(method), f"out={out}"], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"})


def flat(value, name=""):
    """(path, leaf) of everything in a nested artifact."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{name}/{i}")
    else:
        yield name, value


def contents(out: Path) -> dict:
    """Every tensor file and label map of a finished run, and its score."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".pt":
            found |= {f"{name}{key}": leaf for key, leaf in flat(files.load_tensors(path))}
        elif path.suffix == ".png" and path.parent != out:
            found[name] = path.read_bytes()
    result = json.loads((out / "result.json").read_text())
    found["miou"] = result.get("miou")
    return found


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a.double()), torch.nan_to_num(b.double()))
    return a == b or (a != a and b != b)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_kills_at_random_moments_change_nothing(method, tmp_path):
    whole = start(tmp_path / "whole", method)
    assert whole.returncode == 0, whole.stderr[-2000:]
    moments = int(whole.stdout.split("moments ")[-1])
    assert moments >= 4 * KILLS, "checkpoints were written"
    dice = random.Random(method)
    for kill in range(KILLS):
        # A continued run has fewer moments left, so later deaths are drawn from a smaller and smaller part.
        killed = start(tmp_path / "killed", method, death=dice.randint(1, max(2, moments // (KILLS + 1))))
        assert killed.returncode == -signal.SIGKILL, f"kill {kill} of {method}: {killed.stdout[-300:]}{killed.stderr[-300:]}"
    ended = start(tmp_path / "killed", method)
    assert ended.returncode == 0, ended.stderr[-2000:]
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert expected.keys() == found.keys()
    differ = [key for key in expected if not same(expected[key], found[key])]
    assert not differ, f"{method}: {len(differ)} of {len(expected)} entries differ, such as {differ[:3]}"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_short_command_lines_parse(method):
    """The soak's overrides name keys that exist; at least the main recipe is cut."""
    config, _ = settings.parse(shortened(method), METHODS)
    assert config.train.steps == 3 and config.train.save_every == 1


def test_the_comparison_sees_a_difference():
    a = {"x": {"w": torch.ones(2), "n": float("nan")}, "l": [1, "s"]}
    b = {"x": {"w": torch.tensor([1.0, 1.0 + 1e-7]), "n": float("nan")}, "l": [1, "s"]}
    one, two = dict(flat(a)), dict(flat(b))
    assert [k for k in one if not same(one[k], two[k])] == ["/x/w"]
