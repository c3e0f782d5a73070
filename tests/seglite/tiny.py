"""The smallest possible "paper": a two-layer network on 24-px scenes. The tests of config, run and train use it, because a whole run takes a second.

Started as a program it takes the command line of `seglite.train`, and `die=` makes it kill itself (SIGKILL) at a chosen moment:
    die=step:7      inside training step 7
    die=write:3     half-way through the third checkpoint file
    die=rename:3    after the third file is written, before it takes its name
"""
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from seglite import files, train
from seglite.config import Config, Recipe
from seglite.data import Batches
from seglite.losses import cross_entropy
from seglite.teacher import Teacher


@dataclass
class Settings(Config):
    """Keys of the tiny method."""

    ema: float = 0.9
    """decay of the averaged model"""
    poison: int = -1
    """step whose loss becomes NaN"""
    peek: bool = False
    """ask for masks although only tags are allowed"""
    first: Recipe = field(default_factory=Recipe)
    """recipe of the first stage"""


RECIPES = {"toy": {"train.steps": 12, "train.batch": 8, "train.lr": 0.05, "train.log_every": 1, "train.save_every": 2, "workers": 0,
                   "first.steps": 4, "first.batch": 4, "first.log_every": 1, "first.save_every": 1,
                   "scenes.size": 24, "scenes.train_images": 20, "scenes.val_images": 6},
           "small": {"train.steps": 2, "train.batch": 2}, "paper": {}}
DEVIATIONS = ()
HOOKS = {"step": lambda t: None}


def supervision(config) -> tuple[str, ...]:
    return ("image", "tags") if config.peek else ("image", "mask", "tags")


def network(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(8, classes, 1))


def pipeline(run) -> None:
    config = run.config
    data = run.data("train")
    classes = len(data.classes)

    def first_step(model, batch, t):
        return {"ce": cross_entropy(model(batch["image"]), batch["mask"])}

    def step(model, batch, t):
        HOOKS["step"](t)
        loss = cross_entropy(model(batch["image"]), batch["mask"])
        return {"ce": loss * float("nan") if t == config.poison else loss, "seen": float(len(batch["index"]))}

    run.fit("first", network(classes), first_step, Batches(data, config.first.batch, config.seed), config.first)
    scale = run.make("scale", lambda: {"factor": torch.tensor(1.0)})["factor"]
    torch.manual_seed(config.seed)
    model = network(classes)
    if os.environ.get("TINY_DROPOUT") == "0":
        model[3] = nn.Identity()
    teacher = Teacher(model, decay=config.ema)
    run.fit("main", model, step, Batches(data, config.train.batch, config.seed), config.train, ema=teacher)
    run.report(lambda image: teacher(image) * scale)


TINY = type(sys)("tiny")
TINY.__doc__ = "Tiny: a method for tests."
TINY.Settings, TINY.RECIPES, TINY.DEVIATIONS, TINY.supervision, TINY.train = Settings, RECIPES, DEVIATIONS, supervision, pipeline
METHODS = {"tiny": TINY}


def arrange_death(wish: str) -> None:
    kind, number = wish.split(":")
    number = int(number)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if kind == "step":
        HOOKS["step"] = lambda t: die() if t == number else None
        return
    count = {"replace": 0, "write": 0}
    true_replace, true_open = os.replace, open

    def replace(source, target):
        if Path(target).suffix == ".pt":
            count["replace"] += 1
            if kind == "rename" and count["replace"] == number:
                die()
        return true_replace(source, target)

    def half_written(path, mode="r", *rest):
        if "b" in mode and "w" in mode and ".pt." in str(path):
            count["write"] += 1
            if kind == "write" and count["write"] == number:
                with true_open(path, "wb") as f:
                    f.write(b"PK\x03\x04 half a checkpoint")
                    f.flush()
                die()
        return true_open(path, mode, *rest)

    files.os.replace = replace
    files.open = half_written


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = []
    for argument in sys.argv[1:]:
        if argument.startswith("die="):
            arrange_death(argument.removeprefix("die="))
        else:
            arguments.append(argument)
    sys.exit(train.main(arguments, METHODS))
