"""The end of a run: score the validation split, and write what a reader wants to see.

    result.json    the headline numbers by name, per-class numbers, costs
    iou.csv        one line per class
    report.png     one picture
    report.html    one self-contained page
"""
from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kernels import backend
from seglite import files
from seglite.charts import percent
from seglite.data import normalise
from seglite.evaluate import Evaluation, evaluate, label_maps
from seglite.html import report_html
from seglite.pictures import Report, png_bytes, report_png


def write_report(run, predict: Callable, *, model: nn.Module | None = None, headline: dict | None = None, tables: Sequence[dict] = (),
                 figures: Sequence[dict] = (), notes: Sequence[str] = (), samples: Callable[[dict], dict] | None = None,
                 result: Evaluation | None = None) -> Evaluation | None:
    """Evaluate `predict` on the validation split and write the report. Called through `Run.report`. Data without masks: see `write_gallery`.

    Args:
        predict: image float [B, 3, H, W] normalised -> scores [B, K, h, w].
        model: the network that is used at test time, for the number of parameters.
        headline: further numbers to show first and to keep in result.json.
        tables, figures: see `pictures.Report`.
        notes: sentences shown below (deviations, warnings).
        samples: one of the shown samples (name, image, truth, prediction) -> dict of further pictures to show in its row.
        result: `predict` evaluated on the validation split, where the caller has it already.
    """
    data = run.truth("val")
    if "mask" not in data.provides:
        return write_gallery(run, predict, data, model=model, headline=headline, tables=tables, figures=figures, notes=notes)
    result = evaluate(predict, data, run.device) if result is None else result
    scores = result.headline()
    cost = costs(run, predict, model, data, result)
    if samples is not None:
        result.samples = [{**s, "extra": samples(s)} for s in result.samples]
    absent = scores.pop("absent")
    result_json = {
        "method": run.config.method, "data": run.config.data, "size": run.config.size, "seed": run.config.seed, "images": len(data),
        **{k: v for k, v in scores.items() if k != "images_per_second"}, **(headline or {}),
        "mean_over": f"classes that occur in truth or prediction; absent: {', '.join(absent) or 'none'}",
        "miou_conventions": result.confusion.conventions(), "classes": result.confusion.rows(), "costs": cost,
    }
    shown = readable({"mIoU": scores["miou"], "boundary mIoU": scores["boundary_miou"], "pixel accuracy": scores["pixel_accuracy"], **(headline or {})})
    command = (run.folder / "command.txt").read_text().strip() if (run.folder / "command.txt").exists() else ""
    all_notes = [f"mIoU is the mean over the {len(data.classes) - len(absent)} classes that occur in the {len(data)} validation images or in the predictions"
                 + (f"; absent: {', '.join(absent)}." if absent else "."), *notes]
    page = Report(
        title=f"{run.config.method} on {run.config.data}", subtitle=f"size {run.config.size} · seed {run.config.seed} · supervised by {' and '.join(run.supervision)}",
        command=command, headline=shown, classes=data.classes, palette=data.palette, samples=result.samples, per_class=result.confusion.rows(),
        curves=loss_curves(run), figures=figures, tables=tables, costs=cost, notes=all_notes)
    files.write_json(run.folder / "result.json", result_json)
    files.write_text(run.folder / "iou.csv", csv_text(result.confusion.rows()))
    files.write_bytes(run.folder / "report.png", png_bytes(report_png(page)))
    files.write_text(run.folder / "report.html", report_html(page))
    print_table(run, result, shown)
    return result


def write_gallery(run, predict: Callable, data, *, model: nn.Module | None, headline: dict | None, tables: Sequence[dict], figures: Sequence[dict],
                  notes: Sequence[str], keep: int = 12) -> None:
    """The report of a data set without masks: pictures of predictions to judge by eye, and whatever numbers the method brings along."""
    samples = []
    for index in sorted({round(i * (len(data) - 1) / max(keep - 1, 1)) for i in range(keep)}):
        image = data.read(index, ("image",))["image"]
        samples.append({"name": data.name(index), "image": image, "prediction": label_maps(predict, [image], data, run.device)[0]})
    shown = readable(headline or {})
    parameters = {} if model is None else {"parameters": sum(p.numel() for p in model.parameters())}
    page = Report(
        title=f"{run.config.method} on {run.config.data}", subtitle=f"size {run.config.size} · seed {run.config.seed} · supervised by {' and '.join(run.supervision)}",
        command=(run.folder / "command.txt").read_text().strip() if (run.folder / "command.txt").exists() else "", headline=shown, classes=data.classes,
        palette=data.palette, samples=samples, curves=loss_curves(run), figures=figures, tables=tables, costs=parameters,
        notes=["This data set has no masks: predictions are shown, not scored.", *notes])
    files.write_json(run.folder / "result.json", {"method": run.config.method, "data": run.config.data, "size": run.config.size, "seed": run.config.seed,
                                                  "images": len(data), **(headline or {}), "costs": parameters})
    files.write_bytes(run.folder / "report.png", png_bytes(report_png(page)))
    files.write_text(run.folder / "report.html", report_html(page))
    run.say(" · ".join(f"{k} {v}" for k, v in shown.items()) or "no numbers: this data set has no masks")
    run.say(f"report: {run.folder / 'report.html'} · {run.folder / 'report.png'}")


def readable(numbers: dict) -> dict:
    """Shares as "54.5 %" ("- %" for NaN), everything else as it is."""
    return {k: f"{percent(v)} %" if isinstance(v, float) and (0 <= v <= 1 or v != v) else v for k, v in numbers.items()}


def print_table(run, result: Evaluation, shown: dict) -> None:
    """The per-class table and where the report lies, on the terminal."""
    rows = result.confusion.rows()
    width = max(len(row["class"]) for row in rows)
    run.say(f"\n{'class':<{width}}    IoU     FP     FN      pixels")
    for row in rows:
        values = "  ".join("  -  " if row[k] is None else f"{row[k]:5.3f}" for k in ("iou", "fp", "fn"))
        run.say(f"{row['class']:<{width}}  {values}  {row['pixels']:>10,}")
    run.say("\n" + " · ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
    run.say(f"report: {run.folder / 'report.html'} · {run.folder / 'report.png'}")


def csv_text(rows: list[dict]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def loss_curves(run) -> list[dict]:
    """One chart of the loss per stage, read from log.jsonl."""
    stages: dict[str, list[tuple[int, float]]] = {}
    for _, record in run.logged():
        if "loss" in record:
            stages.setdefault(record["stage"], []).append((record["step"], record["loss"]))
    return [{"lines": {"loss": tuple(zip(*points))}, "title": stage, "x": "step", "y": "loss"} for stage, points in stages.items() if len(points) > 1]


@torch.no_grad()
def costs(run, predict: Callable, model: nn.Module | None, data, result: Evaluation) -> dict:
    """Parameters, FLOPs of one image (a multiply-add counts as two), speed, memory, training time.

    FLOPs are counted on the torch path wherever the run took place, since torch's counter does not see Triton's kernels; memory is read before that.
    """
    found: dict[str, object] = {}
    if model is not None:
        found["parameters"] = sum(p.numel() for p in model.parameters())
    peak = torch.cuda.max_memory_allocated() if run.device.startswith("cuda") else 0
    image = normalise(data.read(0, ("image",))["image"][None], data).to(run.device)
    with backend.use("torch"), FlopCounterMode(display=False) as counter:
        predict(image)
    found["GFLOPs per image"] = round(counter.get_total_flops() / 1e9, 4)
    found["image size"] = f"{image.shape[-2]} x {image.shape[-1]}"
    found["images per second"] = round(result.images_per_second, 2)
    if run.device.startswith("cuda"):
        found["peak memory, GiB"] = round(peak / 2**30, 2)
    elif sys.platform != "win32":  # Windows has no getrusage
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # counted in bytes on macOS, in KiB on Linux
        found["peak memory, GiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)
    found["minutes, this start"] = round((time.monotonic() - run.started) / 60, 2)
    return found
