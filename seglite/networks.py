"""Every segmenter of the project beside the others: parameters, multiply-adds, images per second, memory, and accuracy where a run has measured it.

    python -m seglite.networks                                          all of them at 360 x 480, on this machine
    python -m seglite.networks size=720,960 only=P2AT-S,PSPNet-50 compiled=true
    python -m seglite.networks runs=runs/p2at-camvid,runs/deeplab-camvid          finished runs: speed and accuracy, with a plot
    python -m seglite.networks only=none attention=true                 attention alone: full, axial, squeezed, on maps of five sizes

One image at a time, random numbers as input, batch norm folded where that keeps the answer (marked otherwise), auxiliary heads taken off. All networks are timed in
turn in one process; on a CPU the clock is the process's own, so give threads=1 on a shared machine. What is not timed: reading, argmax.
"""
from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kernels.axial_attention import axial_attention, axial_pair
from kernels.squeeze_axial import squeeze_axial_attention
from seglite import charts, commands, files, pictures
from seglite.config import UsageError
from seglite.measure import interleaved, multiply_adds, peak_bytes
from seglite.nets.fold import fold_batch_norm
from seglite.nets.layers import count_parameters
from seglite.nets.mobilenet import mobilenet_v2
from seglite.nets.p2at import P2AT
from seglite.nets.pspnet import DeepLabV3, PSPNet
from seglite.nets.resnet import resnet18, resnet34, resnet50
from seglite.nets.segmenters import DeepLabV3Mobile, DeepLabV3Plus, SmallUNet
from seglite.papers import deeplab

NOT_RUN = "not run here"


def deeplab_v2(classes: int, **keys) -> nn.Module:
    """The paper's network from its own file, rates 6 12 18 24, one scale; scores are enlarged as by the others here."""
    network = deeplab.build(deeplab.Settings(**keys), classes).segmenter
    network.upsample = True
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "P2AT-S": lambda classes: P2AT(resnet18(classes=0), classes),
    "P2AT-M": lambda classes: P2AT(resnet34(classes=0), classes),
    "P2AT-L": lambda classes: P2AT(resnet50(classes=0), classes),
    "PSPNet-18": lambda classes: PSPNet(resnet18(classes=0, output_stride=8), classes, 128),
    "PSPNet-50": lambda classes: PSPNet(resnet50(classes=0, output_stride=8), classes),
    "DeepLabV3-50": lambda classes: DeepLabV3(resnet50(classes=0, output_stride=8), classes),
    "DeepLabV3+-50": lambda classes: DeepLabV3Plus(resnet50(classes=0, output_stride=16), classes),
    "DeepLabV3+-MobileNetV2": lambda classes: DeepLabV3Plus(mobilenet_v2(classes=0, output_stride=16), classes),
    "DeepLabV3-MobileNetV2": lambda classes: DeepLabV3Mobile(classes),
    "DeepLabV2-VGG16": lambda classes: deeplab_v2(classes, net="vgg16", head="hidden"),
    "DeepLabV2-101": lambda classes: deeplab_v2(classes, net="resnet101"),
    "SmallUNet": lambda classes: SmallUNet(classes),
}


@dataclass
class Settings:
    """Compare the costs of all networks, or of finished runs."""

    size: tuple[int, ...] = (360, 480)
    """height,width of the image"""
    classes: int = 11
    """classes of the networks"""
    only: tuple[str, ...] = ()
    """names of networks; empty: all. none: no network, runs only"""
    runs: tuple[str, ...] = ()
    """folders of finished runs: the function they were tested with is timed on images of their own size, beside the accuracy in result.json"""
    attention: bool = False
    """also the cost of P2AT's attention (8 heads of 16 and 32 channels) on its own, full, axial and squeezed, on maps of growing size"""
    full_up_to: int = 2700
    """most positions for which full attention is timed and not only counted; 90 x 120 takes some ten seconds on a CPU"""
    compiled: bool = False
    """also time torch.compile (a minute or more per network to build on a CPU)"""
    seconds: float = 2.0
    """least time spent on each network and way of running it"""
    fold: bool = True
    """fold batch norm into convolutions before timing"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    out: str = "runs/networks"
    """folder for networks.json, networks.png and, with runs=, accuracy.png"""
    debug: bool = False
    """show tracebacks"""


def served(model: nn.Module, image: torch.Tensor, fold: bool) -> tuple[nn.Module, bool]:
    """What would be deployed: eval mode, no auxiliary heads, batch norm folded if possible. Returns (network, whether it was folded)."""
    model = model.to(image.device).eval()
    for head in ("aux1", "aux2"):
        if hasattr(model, head):
            delattr(model, head)
    if fold:
        try:
            return fold_batch_norm(model, image), True
        except ValueError:
            pass
    return model, False


def ways(device: str, compiled: bool) -> list[str]:
    """How each network is run."""
    found = ["eager", "channels_last"] + (["compiled"] if compiled else [])
    return found + (["bf16"] if device.startswith("cuda") else [])


def cxx() -> str:
    """The C++ compiler that torch.compile calls for CPU code."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def runner(model: nn.Module, image: torch.Tensor, way: str) -> Callable:
    """model(image) in one of the `ways`. The model stays as it is: `.to` works in place, and the ways after it would be timed in its format."""
    if way == "channels_last":
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    elif way == "compiled":
        model = torch.compile(model)
    elif way == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.channels_last)
        image = image.to(torch.bfloat16, memory_format=torch.channels_last)
    return lambda: model(image)


def rows(settings: Settings, device: str, networks: dict[str, Callable] = NETWORKS, say: Callable = print) -> dict[str, dict]:
    """{network: {column: number}}: costs at `settings.size`, one image at a time."""
    unknown = [name for name in settings.only if name not in networks and name != "none"]
    if unknown or len(settings.size) != 2:
        raise UsageError(f"only={','.join(settings.only)} size={','.join(map(str, settings.size))}: size is height,width, and there are {', '.join(networks)}")
    image = torch.randn(1, 3, *settings.size, generator=torch.Generator().manual_seed(0)).to(device)
    table: dict[str, dict] = {}
    for name, build in networks.items():
        if not settings.only or name in settings.only:
            say(f"{name} ...")
            torch.manual_seed(0)
            model, folded = served(build(settings.classes), image, settings.fold)
            table[name] = {"M params": count_parameters(model) / 1e6, "GMAC": multiply_adds(model, settings.size) / 1e9,
                           "peak MiB": peak_bytes(lambda: model(image), device) / 2**20, "folded": "yes" if folded else "no", "model": model}
    for way in ways(device, settings.compiled):
        missing = way == "compiled" and not device.startswith("cuda") and not shutil.which(cxx())
        if missing:
            say(f"compiled: not run here, torch.compile needs a C++ compiler on a CPU and {cxx()} is not on the path (install one, or set CXX)")
        calls = {name: runner(row["model"], image, way) for name, row in table.items()} if not missing else {}
        found = interleaved(calls, settings.seconds, device=device) if calls else {}
        for name, row in table.items():
            row[f"img/s {way}"] = 1000 / found[name] if name in found else NOT_RUN
    for row in table.values():
        del row["model"]
    return table


def run_rows(settings: Settings, device: str) -> dict[str, dict]:
    """{folder's name: {"mIoU": ..., "img/s": ...}} of finished runs; each is timed on images of its own validation split's size."""
    import json

    from seglite.data import normalise
    from seglite.reopen import open_run

    def caller(predict: Callable, image: torch.Tensor, run) -> Callable:
        def call():
            with run.kernels():
                return predict(image)
        return call

    calls, found = {}, {}
    for folder in settings.runs:
        predict, data, run = open_run(folder, device=settings.device, threads=settings.threads)
        run.close()  # they are timed by turns, so each call brings its own run's kernels=
        image = normalise(data.read(0, ("image",))["image"][None], data).to(device)
        name = Path(folder).name
        calls[name] = caller(predict, image, run)
        found[name] = {"mIoU": 100 * json.loads((Path(folder) / "result.json").read_text())["miou"], "size": "x".join(map(str, image.shape[-2:]))}
    for name, ms in interleaved(calls, settings.seconds, device=device).items() if calls else ():
        found[name]["img/s"] = 1000 / ms
    return found


MAPS = ((12, 15), (23, 30), (45, 60), (64, 128), (90, 120))  # 1/32 of 384 x 480 and of 720 x 960, 1/16 of the latter, 1/16 of Cityscapes, 1/8


def attention_rows(settings: Settings, device: str) -> dict[str, dict]:
    """{"23x30": {"full MMAC": ..., "full ms": ..., "full MiB": ..., "axial ...", "squeeze ..."}}: q, k and v given, nothing but attention."""
    heads, key, value, table = 8, 16, 32, {}
    for h, w in MAPS:
        q, k, v = (torch.randn(1, heads * c, h, w, device=device) for c in (key, key, value))
        in_heads = lambda: [x.unflatten(1, (heads, -1)).movedim(2, 4) for x in (q, k, v)]  # noqa: E731
        one_line = [x.flatten(2, 3)[:, :, None] for x in in_heads()]
        pairs = {"full": (h * w) ** 2, "axial": h * w * (h + w), "squeeze": h * h + w * w}
        calls = {"full": lambda: axial_attention(*one_line, "row"),
                 "axial": lambda: axial_pair(*in_heads()),
                 "squeeze": lambda: squeeze_axial_attention(q, k, v, heads)}
        if h * w > settings.full_up_to:
            del calls["full"]
        ms = interleaved(calls, settings.seconds / 4, warm_up=1, least=3, device=device)
        memory = {kind: peak_bytes(call, device) / 2**20 for kind, call in calls.items()}
        table[f"{h}x{w}"] = {f"{kind} {what}": number for kind in pairs
                             for what, number in (("MMAC", heads * (key + value) * pairs[kind] / 1e6), ("ms", ms.get(kind, "-")), ("MiB", memory.get(kind, "-")))}
    return table


def lines(table: dict[str, dict]) -> list[str]:
    """The table for a terminal."""
    columns = list(next(iter(table.values())))
    body = [["", *columns], *([name, *(f"{row[c]:,.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns)] for name, row in table.items())]
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))) for line in body]


def drawing(table: dict[str, dict], title: str):
    """The table, and speed against multiply-adds (log-log): a straight line if arithmetic were all."""
    columns = [c for c in next(iter(table.values())) if c != "folded"]
    shown = [[name, *(round(row[c], 2) if isinstance(row[c], float) else row[c] for c in columns)] for name, row in table.items()]
    picture = charts.table(["network", *columns], shown, title=title, width=1000)
    points = {(row["GMAC"], row["img/s eager"]): name for name, row in table.items()}
    chart = charts.scatter({"eager, batch 1": list(points)}, x="GMAC per image", y="images per second", size=(1000, 460), log_x=True, log_y=True, names=points)
    return pictures.stack([picture, chart], gap=24)


def accuracy_plot(found: dict[str, dict]):
    """mIoU against images per second."""
    points = {(row["img/s"], row["mIoU"]): name for name, row in found.items()}
    return charts.scatter({"finished runs": list(points)}, title="Accuracy and speed", x="images per second, batch 1", y="mIoU, percent", size=(820, 460),
                          log_x=True, names=points)


def compare(settings: Settings, _files: list[str] = ()) -> dict:
    """What the command does."""
    from seglite.run import choose_device

    device, why = choose_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    title = f"One image of {' x '.join(map(str, settings.size))} at a time · {machine} · float32 · torch {torch.__version__}"
    folder, result = Path(settings.out), {"title": title, "device": device, "why": why}
    table = rows(settings, device)
    if table:
        result["networks"] = table
        print("\n".join(["", title, *lines(table)]))
        files.write_bytes(folder / "networks.png", pictures.png_bytes(drawing(table, title)))
    if settings.attention:
        result["attention"] = attention_rows(settings, device)
        print("\n".join(["", *lines(result["attention"])]))
    if settings.runs:
        result["runs"] = run_rows(settings, device)
        print("\n".join(["", *lines(result["runs"])]))
        files.write_bytes(folder / "accuracy.png", pictures.png_bytes(accuracy_plot(result["runs"])))
    files.write_json(folder / "networks.json", result)
    print(f"\n{folder / 'networks.json'}")
    return result


def main(arguments: list[str]) -> int:
    return commands.serve("seglite.networks", "", Settings, arguments, compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
