"""A finished run as one file that needs torch and nothing of seglite.

    python -m seglite.export run=runs/marsstyle-scenes                   writes model.pt2 beside the run's files, reloads it, compares numbers
    python -m seglite.export run=runs/deeplab-voc height=513 width=513 out=deeplab.pt2

    program = torch.export.load("model.pt2").module()                    # elsewhere, without seglite
    scores = program(image)                                              # image uint8 [1, 3, H, W] -> float [1, K, H, W]

The archive takes a photograph as it is (normalisation is inside) at the size it was exported for, or at any size with sizes=any. Classes,
palette and normalisation lie beside it as JSON, and in the archive as the extra file seglite.json.

ONNX needs the package onnxscript, which this project does not: where you have it, `torch.onnx.export(program, (image,), "model.onnx", dynamo=True)`
turns the loaded program into an ONNX file.
"""
from __future__ import annotations

import functools
import inspect
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from seglite import files
from seglite.evaluate import enlarge, open_predictor

ALIKE = 1e-4  # largest difference of scores between predictor and archive, relative to the largest score


@dataclass
class Settings:
    """Turn a finished run, or published weights, into a torch.export archive."""

    run: str = ""
    """folder of a finished run"""
    model: Literal["", "deeplabv3_mobilenetv2"] = ""
    """instead of a run: a network whose published weights are in weights="""
    weights: str = ""
    """file of the published weights"""
    root: str = ""
    """where the run's data set lies now, if it has moved"""
    out: str = ""
    """file of the archive; empty: model.pt2 in the run's folder"""
    height: int = 0
    """height of the images, pixels; 0: that of the first validation image"""
    width: int = 0
    """width of the images, pixels; 0: that of the first validation image"""
    sizes: Literal["fixed", "any"] = "fixed"
    """fixed: this size only; any: also others, where the network allows it"""
    gives: Literal["scores", "labels"] = "scores"
    """scores: float [1, K, H, W]; labels: the class of the highest, uint8 [1, H, W]"""
    part: Literal["auto", "predictor", "network"] = "auto"
    """predictor: all that the run was tested with (several scales, say); network: its network alone; auto: the predictor if it can be exported"""
    device: str = "cpu"
    """where it is traced: cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    debug: bool = False
    """show tracebacks"""


class Program(nn.Module):
    """What is exported: photograph in, scores of its size out."""

    def __init__(self, predict: Callable, mean, std, gives: str):
        super().__init__()
        self.call, self.gives = predict, gives
        self.networks = nn.ModuleList(modules_of(predict))  # registered, so that their weights are the archive's weights
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: uint8 [1, 3, H, W] -> scores float [1, K, H, W], or labels uint8 [1, H, W]."""
        x = (image.float() / 255 - self.mean) / self.std  # as seglite.data.normalise
        scores = enlarge(self.call(x), x)
        return scores if self.gives == "scores" else scores.argmax(1).to(torch.uint8)


def modules_of(predict: Callable) -> list[nn.Module]:
    """The networks that a function uses: what it is, is bound to, closes over, or holds as attributes; outermost ones only."""
    found: list[nn.Module] = []
    waiting, seen = [predict], set()
    while waiting:
        thing = waiting.pop(0)
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found.append(thing)
        elif isinstance(thing, functools.partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        elif inspect.ismethod(thing):
            waiting += [thing.__self__, thing.__func__]
        elif inspect.isfunction(thing):
            waiting += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
            waiting += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        elif isinstance(thing, (list, tuple)):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif type(thing).__module__.startswith("seglite") and hasattr(thing, "__dict__"):
            waiting += vars(thing).values()
    inner = {id(m) for network in found for m in network.modules() if m is not network}
    return [m for m in found if id(m) not in inner]


def _filled(cell) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is bound later
        return False


def export_program(program: nn.Module, image: torch.Tensor, sizes: str = "fixed") -> torch.export.ExportedProgram:
    """Trace `program` on `image`, uint8 [1, 3, H, W]. Raises ValueError in one sentence when it cannot be traced."""
    shapes = {"image": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}} if sizes == "any" else None
    try:
        return torch.export.export(program.eval(), (image,), dynamic_shapes=shapes, strict=False)
    except Exception as problem:  # torch.export raises a dozen kinds, all meaning this
        reason = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise ValueError(f"torch.export cannot trace this predictor ({type(problem).__name__}: {reason[:160]})") from problem


def choose_program(predict: Callable, data, settings: Settings, image: torch.Tensor, say: Callable[[str], None]) -> tuple[Program, object]:
    """(program, exported): the whole predictor, or its network alone where that is wanted or all that can be traced."""
    whole = Program(predict, data.mean, data.std, settings.gives).to(image.device)
    if settings.part != "network":
        try:
            return whole, export_program(whole, image, settings.sizes)
        except ValueError as problem:
            if settings.part == "predictor" or len(whole.networks) != 1:
                hint = "part=network exports the network alone" if len(whole.networks) == 1 else f"it uses {len(whole.networks)} networks"
                raise ValueError(f"{problem}; {hint}") from problem
            say(f"the predictor as tested cannot be traced (test-time views and CRF decide by looking at numbers); exporting its network "
                f"{type(whole.networks[0]).__name__} alone")
    if len(whole.networks) != 1:
        raise ValueError(f"part=network needs a predictor with one network, this one uses {len(whole.networks)}")
    alone = Program(whole.networks[0], data.mean, data.std, settings.gives).to(image.device)
    scores = alone(image)
    if not isinstance(scores, torch.Tensor) or settings.gives == "scores" and scores.shape[1] != len(data.classes):
        raise ValueError(f"the network {type(whole.networks[0]).__name__} does not give one score per class by itself, and the predictor around it "
                         "cannot be traced")
    return alone, export_program(alone, image, settings.sizes)


@torch.no_grad()
def export(settings: Settings, methods: dict | None = None, say: Callable[[str], None] = print) -> Path:
    """What the command does: trace, save, reload, compare. Returns the archive's path; nothing is left when the numbers differ."""
    from seglite.data import normalise
    from seglite.data.voc import Voc

    predict, own, device, close = open_predictor(settings, settings.root, methods)
    try:
        data = own or Voc
        first = torch.from_numpy(own.read(0, ("image",))["image"]).movedim(-1, 0)[None] if own is not None else None
        usual = first.shape[2:] if first is not None else (513, 513)
        height, width = settings.height or usual[0], settings.width or usual[1]
        # A photograph where there is one, cut or repeated to the size; noise otherwise: the comparison below wants more than one colour.
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8) if first is None else \
            first.repeat(1, 1, -(-height // first.shape[2]), -(-width // first.shape[3]))[..., :height, :width].contiguous()
        image = image.to(device)
        began = time.monotonic()
        program, exported = choose_program(predict, data, settings, image, say)
        about = {"classes": list(data.classes), "palette": data.palette.tolist(), "mean": list(data.mean), "std": list(data.std),
                 "input": f"uint8 [1, 3, {height}, {width}] RGB", "sizes": settings.sizes, "output": settings.gives, "run": settings.run or settings.model, "torch": torch.__version__}
        buffer = io.BytesIO()
        torch.export.save(exported, buffer, extra_files={"seglite.json": json.dumps(about)})
        buffer.seek(0)
        reloaded = torch.export.load(buffer).module()
        expected, got = program(image).float(), reloaded(image).float()
        worst, scale = float((expected - got).abs().max()), max(float(expected.abs().max()), 1e-9)
        if settings.part != "network" and program.call is predict and settings.gives == "scores":
            x = normalise(image[0].movedim(0, -1).cpu().numpy()[None], data).to(device)
            worst = max(worst, float((enlarge(predict(x), x) - got).abs().max()))
        if not worst <= ALIKE * scale:
            raise ValueError(f"the reloaded archive differs from the predictor by {worst:.3g} (scores up to {scale:.3g}); nothing was written")
        path = Path(settings.out) if settings.out else Path(settings.run or ".") / "model.pt2"
        files.write_bytes(path, buffer.getvalue())
        files.write_json(path.with_suffix(".json"), about)
        say(f"{path}: {len(buffer.getvalue()) / 2**20:.1f} MiB, {height} x {width}{' and other sizes' if settings.sizes == 'any' else ''}, reloaded, "
            f"largest difference {worst:.2g} of scores up to {scale:.3g}, {time.monotonic() - began:.0f} s")
        return path
    finally:
        close()


def main(arguments: list[str]) -> int:
    from seglite import commands

    return commands.serve("seglite.export", "run=FOLDER", Settings, arguments, body=lambda settings, _: export(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
