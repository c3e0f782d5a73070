"""Settings: plain dataclasses, filled from `key=value` on the command line.

    defaults of the dataclass  <-  RECIPES[size] of the paper  <-  what was typed

A key is a field's name, with dots for nested settings: `seed=1 train.lr=0.01 scenes.size=96`. The string below a field is its
documentation: `help` prints it, and readers find it where the value is defined. A preset is a dict of the same keys that a user
could type, so nothing about a size is hidden. Unknown keys, wrong types and keys given twice are errors; every override is printed.
"""
from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from seglite.data.camvid import CamvidSettings
from seglite.data.captions import CaptionsSettings
from seglite.data.cityscapes import CityscapesSettings
from seglite.data.coco import CocoSettings
from seglite.data.folder import FolderSettings
from seglite.data.scenes import ScenesSettings
from seglite.data.transforms import AugmentSettings
from seglite.data.voc import VocSettings


class UsageError(ValueError):
    """The command line asks for something that does not exist or does not fit. Exit code 2."""


@dataclass
class Recipe:
    """How one network is trained."""

    steps: int = field(default=1000, metadata={"least": 0})
    """optimizer steps"""
    batch: int = field(default=16, metadata={"least": 1})
    """effective batch: images per optimizer step, over all processes and accumulated parts"""
    micro_batch: int = field(default=0, metadata={"least": 0})
    """most images one process takes at once; a larger share is accumulated in parts, each with its own batch norm statistics, contrastive negatives
    and hard examples. 0: no limit"""
    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd"
    """sgd (with momentum), nesterov (sgd with Nesterov's momentum), adam or adamw"""
    lr: float = field(default=0.01, metadata={"least": 0})
    """learning rate at the start of the schedule"""
    momentum: float = 0.9
    """momentum of sgd; first beta of adam and adamw"""
    beta2: float = 0.999
    """second beta of adam and adamw; 0.95 in masked auto-encoders"""
    weight_decay: float = field(default=1e-4, metadata={"least": 0})
    """weight decay (decoupled for adamw); not applied to biases and norm layers when `decay_all` is off"""
    decay_all: bool = True
    """also decay biases and norm layers, as most segmentation code does"""
    schedule: Literal["poly", "cosine", "constant", "step"] = "poly"
    """poly: lr (1 - t/steps)^power, the schedule of DeepLab; cosine: half a cosine to zero; constant; step: a tenth after every `power` of the steps"""
    power: float = 0.9
    """exponent of the poly schedule; with schedule=step the share of the steps after which the rate falls to a tenth, again and again"""
    warmup: int = field(default=0, metadata={"least": 0})
    """steps of linear warm-up before the schedule"""
    clip: float = field(default=0.0, metadata={"least": 0})
    """largest gradient norm; 0: no clipping"""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """mixed precision: the type that autocast uses (fp16 with loss scaling)"""
    compile: bool = False
    """run the network through torch.compile"""
    channels_last: bool = False
    """keep images and weights channels-last in memory: faster for depthwise convolutions on CPUs and for mixed precision on GPUs"""
    log_every: int = field(default=20, metadata={"least": 1})
    """steps between log lines"""
    save_every: int = field(default=0, metadata={"least": 0})
    """steps between checkpoints; 0: about one a minute"""
    eval_every: int = field(default=0, metadata={"least": 0})
    """steps between validations (keeps best.pt); 0: none"""


@dataclass
class Config:
    """Keys that every method understands. A paper's `Settings` inherits these and adds its own."""

    method: str = "marsstyle"
    """which paper: a file of seglite/papers"""
    data: str = "scenes"
    """which data set: scenes (drawn on the fly, no files), voc (a folder in PASCAL VOC layout), camvid (the SegNet tutorial's), cityscapes,
    ade20k, coco (2014), captions (photographs with captions) or folder (your own images and masks)"""
    root: str = ""
    """folder of the data set, for every data set but scenes"""
    size: Literal["", "toy", "small", "paper"] = ""
    """toy: minutes on a laptop's CPU; small: small networks on photographs; paper: the authors' recipe. Default: toy with scenes, else small"""
    out: str = ""
    """run folder; default runs/<method>-<data>"""
    seed: int = field(default=0, metadata={"least": 0})
    """seed of weights, sampling, augmentation and scenes"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = field(default=0, metadata={"least": 0})
    """CPU threads of torch; 0: torch's own choice"""
    workers: int = field(default=-1, metadata={"least": -1})
    """processes that prepare batches; 0: none, -1: none for scenes, half as many as torch has threads (1 to 8) for files"""
    weights: str = ""
    """file with pretrained backbone weights (a plain state_dict)"""
    kernels: Literal["auto", "torch", "reference"] = "auto"
    """auto: Triton kernels on CUDA tensors; torch: never; reference: the plain formulas"""
    debug: bool = False
    """show tracebacks"""
    train: Recipe = field(default_factory=Recipe)
    """how the method's main network is trained"""
    scenes: ScenesSettings = field(default_factory=ScenesSettings)
    """the procedural world"""
    voc: VocSettings = field(default_factory=VocSettings)
    """lists and folders of a data set in VOC layout"""
    camvid: CamvidSettings = field(default_factory=CamvidSettings)
    """splits of CamVid"""
    captions: CaptionsSettings = field(default_factory=CaptionsSettings)
    """files of a captioned image folder, and the words to look for"""
    cityscapes: CityscapesSettings = field(default_factory=CityscapesSettings)
    """splits and label files of Cityscapes"""
    coco: CocoSettings = field(default_factory=CocoSettings)
    """lists of COCO 2014"""
    folder: FolderSettings = field(default_factory=FolderSettings)
    """a folder of your own images and masks"""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """joint augmentation of images and label maps"""


# Keys that may differ between a run and its continuation: they change where and how fast, not what is computed. What `weights` and `root`
# hold does decide the result: they may move, and the run compares their content. `.micro_batch` is not among them: batch norm, contrastive
# negatives and hard examples are those of a part.
FREE_KEYS = ("out", "root", "device", "threads", "workers", "debug", "weights")
FREE_ENDINGS = (".log_every", ".save_every")


def flatten(settings) -> dict[str, object]:
    """{"train.lr": 0.01, ...}: every leaf of a settings object, in order of definition."""
    flat = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if is_dataclass(value):
            flat.update({f"{f.name}.{key}": leaf for key, leaf in flatten(value).items()})
        else:
            flat[f.name] = value
    return flat


def identity(settings) -> dict[str, object]:
    """The part of the settings that decides the result: a run folder belongs to exactly one identity."""
    flat = {key: value for key, value in flatten(settings).items() if key not in FREE_KEYS and not key.endswith(FREE_ENDINGS)}
    return json.loads(json.dumps(flat))  # tuples become lists, as they do in config.json


def weight_files(settings) -> dict[str, str]:
    """{"weights": path, "dino_weights": path, ...}: the keys that name a file of weights; empty where none is given."""
    return {key: value for key, value in flatten(settings).items() if key.endswith("weights") and isinstance(value, str)}


@functools.cache
def field_docs(cls) -> dict[str, str]:
    """The string below each field of a dataclass, base classes included."""
    docs = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body[0].body
        for statement, following in zip(body, body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def leaves(cls, prefix: str = "") -> dict[str, tuple[object, str]]:
    """{"train.lr": (type, documentation), ...} for every leaf key of a settings class."""
    known = {}
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            known.update(leaves(hints[f.name], f"{prefix}{f.name}."))
        else:
            known[prefix + f.name] = (hints[f.name], docs.get(f.name, ""))
    return known


def least_values(cls, prefix: str = "") -> dict[str, float]:
    """{"train.batch": 1, ...}: the smallest value that makes sense, for the keys whose field says it (metadata "least")."""
    hints, found = typing.get_type_hints(cls), {}
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            found.update(least_values(hints[f.name], f"{prefix}{f.name}."))
        elif "least" in f.metadata:
            found[prefix + f.name] = f.metadata["least"]
    return found


def type_name(kind) -> str:
    """How a type is called in messages: "an integer", "one of sgd, adam", ..."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) or "(empty)" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"comma-separated values, each {type_name(typing.get_args(kind)[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def convert(text: str, kind, key: str):
    """The value of type `kind` that `text` spells; UsageError says what was wanted and what came."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):  # "float | None"
        if text.lower() in ("none", ""):
            return None
        return convert(text, next(a for a in typing.get_args(kind) if a is not type(None)), key)
    if origin is tuple:
        return tuple(convert(part.strip(), typing.get_args(kind)[0], key) for part in text.strip("()[]").split(",") if part.strip())
    wanted = f"{key} wants {type_name(kind)}; got {text!r}"
    if origin is Literal:
        if text not in typing.get_args(kind):
            raise UsageError(wanted + near(text, [str(c) for c in typing.get_args(kind)]))
        return text
    if kind is bool:
        truth = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if text.lower() not in truth:
            raise UsageError(wanted)
        return truth[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise UsageError(wanted) from None


def wants_traceback(arguments: list[str]) -> bool:
    """Whether debug= is on, read before the command line is parsed, since that may be what fails."""
    try:
        return any(convert(a.removeprefix("debug="), bool, "debug") for a in arguments if a.startswith("debug="))
    except UsageError:
        return False


def near(word: str, words) -> str:
    """' Did you mean ...?' with the closest of `words`, or nothing."""
    words = list(words)
    close = difflib.get_close_matches(word, words, n=2, cutoff=0.6)
    close += [w for w in words if w.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1] and w not in close][:2]
    return f". Did you mean {' or '.join(close)}?" if close else ""


def split_arguments(arguments: list[str]) -> dict[str, str]:
    """["a=1", "b.c=x=y"] -> {"a": "1", "b.c": "x=y"}; anything that is not key=value, or a key given twice, is a UsageError."""
    typed = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"expected key=value, got {argument!r}; for example seed=1 (no dashes; `help` lists every key)")
        if key.startswith("-"):
            raise UsageError(f"keys have no dashes: write {argument.lstrip('-')!r} instead of {argument!r}")
        if key in typed:
            raise UsageError(f"{key} is given twice: {key}={typed[key]} and {argument}; keep one")
        typed[key] = value
    return typed


def assign(settings, key: str, value) -> None:
    """settings.a.b = value for key "a.b"."""
    *path, last = key.split(".")
    for name in path:
        settings = getattr(settings, name)
    setattr(settings, last, value)


def choose_method(name: str, methods: dict):
    """The paper module called `name`."""
    if name not in methods:
        raise UsageError(f"unknown method {name!r}; there are {', '.join(methods)}" + near(name, methods))
    return methods[name]


def parse(arguments: list[str], methods: dict) -> tuple[Config, list[str]]:
    """Command line -> (settings of the chosen paper, one line per override for the log).

    Raises UsageError for unknown methods and keys (with near misses), wrong types and keys given twice.
    """
    typed = split_arguments(arguments)
    paper = choose_method(typed.get("method", Config.method), methods)
    known = leaves(paper.Settings)
    for key in typed:
        if key not in known:
            group = f" ({key} is a group of keys: {', '.join(k for k in known if k.startswith(key + '.'))})" if any(k.startswith(key + ".") for k in known) else ""
            raise UsageError(f"unknown key {key!r}{group}{near(key, known)} `python -m seglite.train help` lists every key")
    config = paper.Settings()
    size = typed.get("size") or ("toy" if typed.get("data", Config.data) == "scenes" else "small")
    config.size = convert(size, known["size"][0], "size")
    config.method = typed.get("method", Config.method)
    for key, value in paper.RECIPES[config.size].items():
        if key not in known:
            raise KeyError(f"recipe {config.size!r} of {paper.__name__} sets {key!r}, which is no key")
        assign(config, key, value)
    before, notes, bounds = flatten(config), [], least_values(paper.Settings)
    for key, text in typed.items():
        value = convert(text, known[key][0], key)
        if (least := bounds.get(key)) is not None and value is not None and value < least:
            raise UsageError(f"{key}={text}: it must be at least {least}")
        if key not in ("method", "size") and value != before[key]:
            notes.append(f"{key}={value}" + (f" (was {before[key]})" if before[key] not in ("", None) else ""))
        assign(config, key, value)
    config.size = config.size or size
    config.out = config.out or f"runs/{config.method}-{config.data}"
    return config, notes


def override(config: Config, **changes) -> Config:
    """A copy of the settings with some keys changed; dots are written as double underscores: override(config, train__lr=0.1)."""
    copy = dataclasses.replace(config)
    for f in fields(copy):
        if is_dataclass(getattr(copy, f.name)):
            setattr(copy, f.name, dataclasses.replace(getattr(copy, f.name)))
    for key, value in changes.items():
        assign(copy, key.replace("__", "."), value)
    return copy


def help_text(methods: dict, method: str | None = None) -> str:
    """Every key with type, default and meaning: the common ones, then each method's own."""
    def block(cls, keys) -> list[str]:
        known, default = leaves(cls), flatten(cls())
        lines = []
        for key in keys:
            kind, doc = known[key]
            short = type_name(kind).removeprefix("one of ").replace("an integer", "int").replace("a number", "float").replace("true or false", "bool")
            value = default[key]
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            lines += [f"  {key}={shown}", f"      {short}: {doc}"]
        return lines

    common = list(leaves(Config))
    lines = ["usage: python -m seglite.train method=NAME key=value ...", "", "methods:"]
    lines += [f"  {name:<12}{(inspect.getdoc(module) or '').splitlines()[0]}" for name, module in methods.items()]
    lines += ["", "keys of every method (defaults before the recipe of a size is applied):", *block(Config, common)]
    for name, module in methods.items():
        if method in (None, name):
            own = [key for key in leaves(module.Settings) if key not in common]
            lines += ["", f"keys of method={name}:", *block(module.Settings, own)]
            for size, recipe in module.RECIPES.items():
                lines += [f"  size={size}: " + " ".join(f"{k}={v}" for k, v in recipe.items())]
    return "\n".join(lines)
