"""A run: a folder, and the one training loop.

    run.fit(name, model, step, data, recipe)   train a network: the stage's folder holds last.pt while it trains, final.pt once it is done
    run.make(name, build)                      compute something once and keep it
    run.report(predict, ...)                   score on the validation split, draw the report

A paper's pipeline is plain Python that calls these in order. Run it again after a kill and it picks up where it was: finished stages
are loaded, the interrupted one continues from its last checkpoint, and on a CPU the final weights are the same to the last bit,
because batch t and every random draw of step t follow from (seed, stage, t) alone.

    runs/marsstyle-scenes/
        config.json command.txt log.jsonl result.json iou.csv report.png report.html
        classifier/  last.pt previous.pt final.pt best.pt
        debiased_labels/  one PNG per image
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernels import backend
from seglite import files, parallel
from seglite.config import UsageError, flatten, identity, weight_files
from seglite.data import Batches, LabelMaps, Restricted, open_data
from seglite.nets.weights import overwritten
from seglite.pictures import mask_image

CHECKPOINT_SECONDS = 60  # between checkpoints, unless a recipe counts steps


class RunProblem(RuntimeError):
    """Training cannot go on; the message says where it stopped, why, and what is kept."""


def choose_device(wish: str) -> tuple[str, str]:
    """(device, why). A numbered CUDA device becomes the current one, which kernel launches, waiting and memory counters go by."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wish):
        raise UsageError(f"device={wish}: choose auto, cpu, cuda or cuda:N")
    if wish.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={wish} was asked for, but torch {torch.__version__} sees no CUDA device; use device=cpu or device=auto")
    if ":" in wish:
        if int(wish.partition(":")[2]) >= (count := torch.cuda.device_count()):
            raise UsageError(f"device={wish} was asked for, but torch sees {count} CUDA device{'s' * (count != 1)}: cuda:0 to cuda:{count - 1}")
        torch.cuda.set_device(wish)
    if wish != "auto":
        return wish, "asked for"
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    return "cpu", "no CUDA device"


def seed_of(*parts) -> int:
    """A 63-bit seed from numbers and names."""
    text = "/".join(map(str, parts)).encode()
    return zlib.crc32(text) << 31 | zlib.crc32(text[::-1]) >> 1


def seed_generators(seed: int, device_type: str) -> None:
    """torch.manual_seed(seed) for the devices in use. Without CUDA, torch's own notes a stack trace for later at every call: 0.2 ms a step."""
    torch.default_generator.manual_seed(seed)
    if device_type == "cuda":
        torch.cuda.manual_seed_all(seed)


class Run:
    def __init__(self, config, command: list[str] | None = None, supervision: tuple[str, ...] = ("image", "mask"), quiet: bool = False):
        self.config, self.supervision, self.quiet = config, supervision, quiet
        self.device, why = choose_device(config.device)
        self.rank, self.world = parallel.start(self.device)
        if self.device == "cuda" and self.world > 1:
            self.device = f"cuda:{self.rank % torch.cuda.device_count()}"
            torch.cuda.set_device(self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.folder = Path(config.out)
        self.lock, self.held = self._lock(), contextlib.ExitStack()
        self.opened: dict[str, object] = {}
        self.content: dict[str, str] = {}
        self.earlier, self.started = 0.0, time.monotonic()
        try:
            self.held.enter_context(self.kernels())
            self._claim_folder(command)
        except BaseException:
            self.close()
            raise
        torch.manual_seed(seed_of(config.seed, "run"))
        self.say(f"run folder {self.folder} · device {self.device} ({why}) · {self.world} process{'es' if self.world > 1 else ''} · "
                 f"{torch.get_num_threads()} threads · torch {torch.__version__}")

    def _lock(self) -> files.FolderLock | None:
        return files.FolderLock(self.folder) if self.rank == 0 else None

    def kernels(self):
        """A block whose kernel calls go by the setting `kernels=`: `with run.kernels(): ...`. A run is in one from its start to `close`."""
        return contextlib.nullcontext() if self.config.kernels == "auto" else backend.use(self.config.kernels)

    def _claim_folder(self, command) -> None:
        """Write config.json, or make sure that the folder belongs to the same settings and the same weights."""
        if self.rank == 0:
            path, mine = self.folder / "config.json", identity(self.config)
            if path.exists():
                try:
                    saved = json.loads(path.read_text())
                    theirs, self.content = saved["identity"], dict(saved.get("content", {}))
                    theirs = {**{k: v for k, v in saved.get("settings", {}).items() if k in mine}, **theirs}  # micro_batch joined the identity later
                except (ValueError, KeyError, TypeError) as problem:
                    raise files.FileProblem(f"{path} is damaged, so nobody knows whose folder this is; delete that file if the same command made the "
                                            f"folder (what is finished is then kept), else choose another out=") from problem
                different = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
                if different:
                    shown = ", ".join(f"{k}={theirs.get(k)} there, {k}={mine.get(k)} now" for k in different[:3])
                    raise UsageError(f"{self.folder} holds a run with other settings ({shown}{', ...' if len(different) > 3 else ''}); "
                                     f"choose another out=, or delete that folder to start over")
            for key, file in weight_files(self.config).items():
                if not file or Path(file).is_file():  # one that is gone may not be needed any more; the loader says when it is
                    self._same_content(key, files.digest(Path(file)) if file else "none", f"{key}={file}" if file else "none")
            self._write_settings()
            if command is not None:
                files.write_text(self.folder / "command.txt", shlex.join(command) + "\n")
        parallel.barrier()
        self.earlier = max((record.get("seconds", 0.0) for _, record in self.logged()), default=0.0)

    def _write_settings(self) -> None:
        files.write_json(self.folder / "config.json", {"identity": identity(self.config), "settings": flatten(self.config), "content": self.content})

    def _same_content(self, what: str, digest: str, now: str) -> None:
        """Files may move between a run and its continuation, but hold what they held. A folder from before digests were kept takes what is there."""
        if self.content.setdefault(what, digest) != digest:
            raise UsageError(f"{self.folder} holds a run that began with other {what} (now {now}); "
                             "choose another out=, or delete that folder to start over")

    def _claim_data(self, split: str, data) -> None:
        """Make sure that a data set read from files has the images it had when the run began, by their names."""
        if self.rank == 0 and self.config.root:
            known = len(self.content)
            names = "\n".join(data.name(i) for i in range(len(data)))
            self._same_content(f"{split} images", hashlib.sha256(names.encode()).hexdigest(), f"root={self.config.root}")
            if len(self.content) > known:
                self._still_there()
                self._write_settings()

    def _still_there(self) -> None:
        """A folder that was deleted under its run would come back without the settings it belongs to."""
        if self.rank == 0 and not (self.folder / "config.json").exists():
            raise RunProblem(f"{self.folder} was deleted or moved while this run was working in it; the same command begins again with what is there")

    def seconds(self) -> float:
        """Working time of all starts, a killed one up to its last log line. Wall clocks jump, so none is asked."""
        return self.earlier + time.monotonic() - self.started

    def close(self) -> None:
        """Leave the folder to others and the kernels to their usual choice. Runs that overlap are closed in reverse, as blocks end."""
        self.held.close()
        if self.lock:
            self.lock.release()

    # ------------------------------------------------------------------ data

    def data(self, split: str, wants: tuple[str, ...] | None = None):
        """The data set, restricted to what the method's supervision allows."""
        wants = self.supervision if wants is None else tuple(wants)
        barred = [w for w in wants if w not in self.supervision]
        if barred:
            raise ValueError(f"method={self.config.method} is supervised by {', '.join(self.supervision)}; {', '.join(barred)} is not among them")
        return Restricted(self._open(split), wants)

    def truth(self, split: str):
        """The data set with every annotation, for reports and diagnostics. `fit` refuses it."""
        return self._open(split)

    def _open(self, split: str):
        if split not in self.opened:
            data = open_data(self.config, split)
            self._claim_data(split, data)
            self.opened[split] = data
        return self.opened[split]

    # ------------------------------------------------------------------ words

    def say(self, sentence: str) -> None:
        if self.rank == 0 and not self.quiet:
            print(sentence, flush=True)

    def _log(self, record: dict) -> None:
        if self.rank == 0:
            self._still_there()
            path = self.folder / "log.jsonl"
            with files.writing(path, "the last checkpoint is untouched"), open(path, "a") as f:
                f.write(json.dumps({**record, "seconds": round(self.seconds(), 1)}) + "\n")

    def logged(self) -> list[tuple[str, dict]]:
        """(line, record) of every whole line of the log; a kill or a full disk may have cut one in half."""
        path, whole = self.folder / "log.jsonl", []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                whole.append((line, json.loads(line)))
        return whole

    def _forget_log_after(self, stage: str, step: int) -> None:
        """A resumed stage repeats the steps after its checkpoint: their old lines go."""
        path = self.folder / "log.jsonl"
        if self.rank == 0 and path.exists():
            lines = [line for line, record in self.logged() if record.get("stage") != stage or record.get("step", 0) <= step]
            files.write_text(path, "".join(line + "\n" for line in lines))

    # ------------------------------------------------------------------ artifacts

    def make(self, name: str, build: Callable[[], object]):
        """build()'s result (nested dicts and lists of tensors, numbers, strings), computed once and kept as <name>.pt."""
        path = self.folder / f"{name}.pt"
        if self.rank == 0 and not path.exists():
            began = time.monotonic()
            self.say(f"{name}: computing")
            with parallel.alone():
                built = build()
            self._still_there()
            files.save_tensors(path, built)
            self.say(f"{name}: done in {duration(time.monotonic() - began)}")
        parallel.barrier()
        return self._load(path)

    def _load(self, path: Path):
        try:
            return files.load_tensors(path)
        except files.FileProblem as problem:
            raise files.FileProblem(f"{problem}; delete it, and the same command computes it anew") from problem

    def make_labels(self, name: str, maps: Callable[[], Iterable[np.ndarray]], names: list[str], palette: np.ndarray) -> LabelMaps:
        """Label maps, one palette PNG per image in the folder <name>, computed once. `maps()` yields uint8 [H, W] in index order."""
        folder = self.folder / name
        if self.rank == 0 and not folder.exists():
            began = time.monotonic()
            self.say(f"{name}: computing")
            with parallel.alone(), files.new_folder(folder) as part:
                count = 0
                for image_name, labels in zip(names, maps(), strict=True):
                    with files.writing(part / f"{image_name}.png"):
                        mask_image(labels, palette).save(part / f"{image_name}.png")
                    count += 1
                self._still_there()
            self.say(f"{name}: {count} maps in {duration(time.monotonic() - began)}")
        parallel.barrier()
        return LabelMaps(folder, names)

    # ------------------------------------------------------------------ training

    def build(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """make(), the network with which a stage begins. A finished stage replaces its numbers, so the files of initial weights may be gone by then."""
        with overwritten(self.finished(name)):
            return make()

    def finished(self, name: str) -> bool:
        return (self.folder / name / "final.pt").exists()

    def fit(self, name: str, model: nn.Module, step: Callable, data: Batches, recipe, *, ema=None, validate: Callable | None = None,
            state: dict | None = None, groups: list[dict] | None = None) -> nn.Module:
        """Train `model` and return it in eval mode; a finished stage is loaded instead.

        Args:
            name: the stage, and its folder.
            step: (model, batch, t) -> dict. Tensors that require grad are summed to the loss; everything else is only logged.
            data: what batch t is, e.g. `Batches(run.data("train"), ...)`.
            recipe: config.Recipe.
            ema: a Teacher, updated after every step and kept in the checkpoint.
            validate: model -> score, higher is better; called every `recipe.eval_every` steps, best weights kept in best.pt.
            state: further objects with state_dict / load_state_dict that belong to the stage (a memory of confidences, say).
            groups: parameter groups as torch's optimizers take them, with "lr_scale" beside "params"; default: all parameters.

        Raises RunProblem when the loss is not finite, when `data` holds an annotation outside the supervision, or when the batch
        cannot be shared out among the processes.
        """
        folder = self.folder / name
        kept = {"model": model, **({"ema": ema} if ema is not None else {}), **(state or {})}
        if self.finished(name):
            restore(kept, self._load(folder / "final.pt"))
            if ema is not None:
                ema.to(self.device)
            self.say(f"{name}: finished earlier, loaded from {folder / 'final.pt'}")
            return model.to(self.device).eval()
        barred = [w for w in getattr(data, "wants", ()) if w not in self.supervision]
        if barred:
            raise RunProblem(f"stage {name!r} would train on {', '.join(barred)}, which the supervision ({', '.join(self.supervision)}) does not include")
        parts = self._parts(name, recipe)

        device_type = self.device.split(":")[0]
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        model.to(self.device, memory_format=layout).train()
        if ema is not None:
            ema.to(self.device)
        model = parallel.whole_batch_norm(model)
        kept["model"] = model
        optimizer = build_optimizer(model, recipe, groups)
        scaler = torch.amp.GradScaler(device_type, enabled=recipe.amp == "fp16")
        kept |= {"optimizer": optimizer, "scaler": scaler}
        network: nn.Module = model
        if recipe.compile:
            network = torch.compile(network)
        if self.world > 1:
            network = nn.parallel.DistributedDataParallel(network)

        meter = Meter()
        first, best = self._resume(name, folder, kept, meter)
        batches = self._loader(data, recipe, parts, first)
        began = saved = time.monotonic()
        autocast = torch.autocast(device_type, dtype=torch.float16 if recipe.amp == "fp16" else torch.bfloat16, enabled=recipe.amp != "off")
        for t in range(first, recipe.steps):
            rate = learning_rate(recipe, t)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            for part in range(parts):
                seed_generators(seed_of(self.config.seed, name, t, self.rank, part), device_type)
                batch = next(batches).to(self.device)
                batch.update({k: v.contiguous(memory_format=layout) for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim == 4})
                if self.world > 1:
                    network.require_backward_grad_sync = part == parts - 1
                with autocast:
                    losses = step(network, batch, t)
                    total = sum(v for v in losses.values() if isinstance(v, torch.Tensor) and v.requires_grad)
                if not isinstance(total, torch.Tensor):
                    raise RunProblem(f"stage {name!r}: its step returned no tensor that requires grad (got {', '.join(losses) or 'nothing'})")
                meter.add({"loss": total, **losses}, len(batch["index"]), self.world)
                scaler.scale(total / parts if parts > 1 else total).backward()
            if self.device == "cpu":
                self._check_finite(name, t, meter, folder)
            if recipe.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update(model)

            done = t + 1
            due = done % recipe.save_every == 0 if recipe.save_every else time.monotonic() - saved > CHECKPOINT_SECONDS
            if done % recipe.log_every == 0 or done == recipe.steps:
                self._check_finite(name, t, meter, folder)
                self._progress(name, done, recipe, first, meter, rate, began)
            if validate is not None and recipe.eval_every and (done % recipe.eval_every == 0 or done == recipe.steps):
                best = self._validate(name, folder, done, model, validate, best)
            if due and done < recipe.steps:
                self._check_finite(name, t, meter, folder)
                self._save(folder, done, kept, meter, best)
                saved = time.monotonic()
        self._finish(folder, kept)
        return model.eval()

    def _parts(self, name: str, recipe) -> int:
        """Into how many parts each process cuts its share of a batch."""
        share, rest = divmod(recipe.batch, self.world)
        if rest:
            raise RunProblem(f"stage {name!r}: an effective batch of {recipe.batch} cannot be shared equally by {self.world} processes; "
                             f"choose a multiple of {self.world}")
        parts = math.ceil(share / recipe.micro_batch) if recipe.micro_batch else 1
        if share % parts:
            raise RunProblem(f"stage {name!r}: {share} images per process cannot be cut into equal parts of at most micro_batch={recipe.micro_batch}")
        return parts

    def _loader(self, data: Batches, recipe, parts: int, first: int):
        """An iterator over this process's parts of batches first, first + 1, ..."""
        size = recipe.batch // self.world // parts
        shares = Shares(data, size, parts, offset=self.rank * size * parts)
        there = getattr(data, "on_device", False)  # seglite.speed's: a GPU's tensors cannot be pinned, nor come from another process
        workers = self.config.workers if self.config.workers >= 0 else 0 if self.config.data == "scenes" else max(1, min(8, torch.get_num_threads() // 2))
        workers = 0 if there else workers
        return iter(torch.utils.data.DataLoader(shares, batch_size=None, sampler=range(first * parts, recipe.steps * parts), num_workers=workers,
                                                pin_memory=self.device.startswith("cuda") and not there, prefetch_factor=4 if workers else None,
                                                worker_init_fn=one_thread))

    def _resume(self, name, folder, kept, meter) -> tuple[int, float]:
        """(first step, best score so far): from last.pt, from previous.pt when last.pt is damaged, else from the beginning."""
        for path in (folder / "last.pt", folder / "previous.pt"):
            if not path.exists():
                continue
            try:
                checkpoint = files.load_tensors(path)
            except files.FileProblem as problem:
                older = path.name == "last.pt" and (folder / "previous.pt").exists()
                self.say(f"{name}: {problem}; " + ("using the checkpoint before it" if older else "no older checkpoint is left, so the stage begins again"))
                continue
            restore(kept, checkpoint)
            meter.load(checkpoint["meter"])
            self._forget_log_after(name, checkpoint["step"])
            self.say(f"{name}: continuing at step {checkpoint['step']}")
            return checkpoint["step"], checkpoint["best"]
        self._forget_log_after(name, 0)
        return 0, -math.inf

    def _save(self, folder, step, kept, meter, best) -> None:
        if self.rank == 0:
            self._still_there()
            files.save_tensors(folder / "last.pt", {"step": step, "best": best, "meter": meter.state(), **{k: v.state_dict() for k, v in kept.items()}},
                               previous=folder / "previous.pt")

    def _finish(self, folder, kept) -> None:
        if self.rank == 0:
            self._still_there()
            files.save_tensors(folder / "final.pt", {k: v.state_dict() for k, v in kept.items() if k not in ("optimizer", "scaler")})
            for name in ("last.pt", "previous.pt"):
                (folder / name).unlink(missing_ok=True)
        parallel.barrier()

    def _validate(self, name, folder, step, model, validate, best) -> float:
        model.eval()
        with parallel.alone():
            score = float(validate(model)) if self.rank == 0 else None
        score = parallel.from_first(score)
        model.train()
        self._log({"stage": name, "step": step, "score": score})
        self.say(f"{name}: step {step}, validation score {score:.4f}" + (" (best)" if score > best else ""))
        if score > best and self.rank == 0:  # `_log` has just found the folder in its place
            files.save_tensors(folder / "best.pt", {"model": model.state_dict(), "step": step, "score": score})
        return max(score, best)

    def _check_finite(self, name, t, meter, folder) -> None:
        bad = meter.not_finite()
        if bad:
            kept = next((f"the checkpoint {p} is intact" for p in (folder / "last.pt", folder / "previous.pt") if p.exists()), "no checkpoint was written yet")
            raise RunProblem(f"stage {name!r}: the loss is not finite at step {t + 1} ({bad}); {kept}. "
                             "Lower the stage's learning rate (.lr), add .clip=1, or look for broken images or labels")

    def _progress(self, name, done, recipe, first, meter, rate, began) -> None:
        steps, log_every = recipe.steps, recipe.log_every
        values = meter.read(self.device)
        seconds = max(time.monotonic() - began, 1e-9)
        per_step = seconds / max(done - first, 1)
        images = meter.images / max(meter.seconds(), 1e-9)
        self._log({"stage": name, "step": done, "lr": rate, "images_per_second": round(images, 2), **values})
        rest = " ".join(f"{k} {v:.3g}" for k, v in values.items() if k != "loss")
        memory = f"  mem {torch.cuda.max_memory_allocated() / 2**30:.1f}G" if self.device.startswith("cuda") else ""
        line = (f"{name}  step {done}/{steps} {done / steps:4.0%}  loss {values['loss']:.3f}" + (f" ({rest})" if rest else "")
                + f"  lr {rate:.1e}  {images:.0f} img/s{memory}  eta {duration(per_step * (steps - done))}")
        meter.restart_clock()
        if self.rank == 0 and not self.quiet:
            if sys.stdout.isatty():
                print(f"\r\033[K{line}", end="\n" if done == steps else "", flush=True)
            elif done == steps or done * 10 // steps > (done - log_every) * 10 // steps:  # a file or a pipe gets about ten lines a stage
                print(line, flush=True)

    # ------------------------------------------------------------------ the report

    def report(self, predict: Callable, **content):
        """Score `predict` on the validation split and write result.json, iou.csv, report.png and report.html: see `report.write_report`."""
        from seglite.report import write_report  # drawing is not needed until here

        self._still_there()
        with parallel.alone():
            result = write_report(self, predict, **content) if self.rank == 0 else None
        parallel.barrier()
        return result


class Shares(torch.utils.data.Dataset):
    """One process's view of `Batches`: item i is part i % parts of its share of batch i // parts."""

    def __init__(self, data, size: int, parts: int, offset: int):
        self.data, self.size, self.parts, self.offset = data, size, parts, offset

    def __getitem__(self, i: int):
        t, part = divmod(i, self.parts)
        first = self.offset + part * self.size
        return self.data.share(t, first, first + self.size)


def one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


class Meter:
    """Losses since the last log line, and their exponential average over log lines; no device is waited for until a line is due."""

    def __init__(self, keep: float = 0.7):
        self.keep, self.smooth, self.sums, self.count = keep, {}, {}, 0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.images, self.clock = 0, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.clock

    def add(self, values: dict, images: int, world: int) -> None:
        for key, value in values.items():
            value = value.detach().float().mean() if isinstance(value, torch.Tensor) else value
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        self.images += images * world

    def not_finite(self) -> str:
        return ", ".join(f"{k}={float(v)}" for k, v in self.sums.items() if not math.isfinite(float(v)))

    def read(self, device: str) -> dict[str, float]:
        """Averaged over processes and smoothed; starts a new sum."""
        now = {k: float(parallel.mean_over_processes(torch.tensor(float(v) / self.count, device=device))) for k, v in self.sums.items()}
        self.smooth = {k: self.keep * self.smooth.get(k, v) + (1 - self.keep) * v for k, v in now.items()}
        self.sums, self.count = {}, 0
        return dict(self.smooth)

    def state(self) -> dict:
        return {"smooth": dict(self.smooth), "sums": {k: float(v) for k, v in self.sums.items()}, "count": self.count}

    def load(self, state: dict) -> None:
        self.smooth, self.sums, self.count = dict(state["smooth"]), dict(state["sums"]), state["count"]


def restore(kept: dict, checkpoint: dict) -> None:
    """Load every part of a stage's state that the checkpoint has."""
    for key, thing in kept.items():
        if key in checkpoint:
            thing.load_state_dict(checkpoint[key])


def learning_rate(recipe, t: int) -> float:
    """The schedule at step t (0-based): linear warm-up, then the recipe's schedule over the remaining steps."""
    if t < recipe.warmup:
        return recipe.lr * (t + 1) / recipe.warmup
    progress = (t - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    if recipe.schedule == "poly":
        return recipe.lr * (1 - progress) ** recipe.power
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** math.floor(progress / recipe.power + 1e-9)  # 80 of 120 epochs is a whole drop, also in binary
    return recipe.lr


def build_optimizer(model: nn.Module, recipe, groups: list[dict] | None = None) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameter groups; biases and norms without decay when the recipe says so."""
    groups = groups or [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if not recipe.decay_all:
        split = []
        for group in groups:
            rest = {k: v for k, v in group.items() if k != "params"}
            params = list(group["params"])
            split += [{**rest, "params": [p for p in params if p.ndim > 1]}, {**rest, "params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0}]
        groups = [g for g in split if g["params"]]
    if recipe.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.optimizer == "nesterov")
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, betas=(recipe.momentum, recipe.beta2), weight_decay=recipe.weight_decay)


def duration(seconds: float) -> str:
    """"48s", "6m40s", "2h05m"."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
