"""Rerun a paper's claim in miniature: baseline, each component, the full method, on several seeds, with equal budget.

    python -m seglite.claims method=marsstyle seeds=0,1,2
    python -m seglite.claims method=all                      every paper; ends with a table of their headlines
    python -m seglite.claims method=all jobs=2               two seeds at a time, each in a process of its own
    python -m lessons.readme record=runs/claims              what is finished becomes the record: lessons/claims, README's tables, lesson 00's minutes

With jobs=N each process gets cores // N threads unless threads= says otherwise. Small networks gain little from a second thread, so two
processes do nearly twice the work of one on two cores. When a seed fails, the others go on; the same command then runs what is missing.

A paper's `claim(run)` trains every row of its tables for one seed and returns {table: {row: {metric: value}}}; the first row of a table is
the baseline that the others are compared with, seed by seed. `CLAIM["statements"]` says what the paper claims, as a sentence and
a test on one seed's tables; a claim that does not hold on every seed is printed as not holding. `CLAIM["headline"]` names what README quotes:
(table, metric, rows).

Written to runs/claims/<method>/: seed<k>/ (a run folder; killed claims resume), claim.json, claim.png. Settings that were typed are part of the
folder's name, root= and weights= too: a claim whose data set or weights have moved begins anew, unless its folder is renamed likewise.
"""
from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from seglite import config as settings
from seglite import charts, files, pictures
from seglite.run import Run, RunProblem, duration
from seglite.train import CONTINUES, METHODS, guarded

CHILD = [sys.executable, "-u", "-m", "seglite.claims", "child"]  # begins the command of one seed in a process of its own


class Asked(NamedTuple):
    """What a command line asks for, one method's part of it."""

    method: str
    paper: ModuleType
    seeds: list[int]
    jobs: int
    rest: list[str]  # the run's settings, without seed= and out=
    folder: Path


def names_files(key: str) -> bool:
    """Whether a key holds the path of a data set or of weights."""
    return key == "root" or key.endswith("weights")


def typed_name(key: str, value: str) -> str:
    """What a typed key adds to the name of a claim's folder; a path gives its last part and eight digits that tell it from others."""
    if names_files(key):
        path = Path(value).absolute()
        value = f"{re.sub('[^A-Za-z0-9._-]', '_', path.name)[:24]}.{zlib.crc32(os.fsencode(path)):08x}"
    return f"{key}={value}".replace("/", "_")


def understand(arguments: list[str], methods: dict) -> Asked:
    """The command line of one method, checked for every seed; UsageError when it does not fit."""
    typed = settings.split_arguments(arguments)
    given = {"seeds": "0,1,2", "jobs": "1"} | {key: typed.pop(key) for key in ("seeds", "jobs") if key in typed}
    try:
        seeds = [int(s) for s in given["seeds"].split(",")]
    except ValueError:
        raise settings.UsageError(f"seeds wants comma-separated integers; got {given['seeds']!r}") from None
    if len(set(seeds)) < len(seeds):
        raise settings.UsageError(f"seeds={given['seeds']} names a seed twice, which would count one run as two; name each seed once")
    if not given["jobs"].isdecimal() or int(given["jobs"]) < 1:
        raise settings.UsageError(f"jobs wants the number of processes, at least 1; got {given['jobs']!r}")
    for key in ("seed", "out"):
        if key in typed:
            raise settings.UsageError(f"claims chooses {key}= for each seed itself; use seeds=0,1,2")
    method, jobs = typed.get("method", settings.Config.method), int(given["jobs"])
    paper = settings.choose_method(method, methods)
    changed = "-".join(typed_name(k, v) for k, v in typed.items() if k != "method" and (k not in settings.FREE_KEYS or names_files(k)))
    if jobs > 1:
        typed.setdefault("threads", str(max(1, (os.cpu_count() or 1) // jobs)))
    rest = [f"{k}={v}" for k, v in typed.items()]
    for seed in seeds:
        settings.parse([*rest, f"seed={seed}"], methods)
    return Asked(method, paper, seeds, jobs, rest, Path("runs/claims") / (method + (f"-{changed}" if changed else "")))


def train_together(asked: list[Asked], jobs: int) -> None:
    """Train the seeds that are not finished, up to `jobs` at once, each in a process of its own; RunProblem names those that failed."""
    children, stop = [], threading.Event()

    def train(one: Asked, seed: int) -> tuple[int, str]:
        """(exit code, what went wrong)."""
        name, said = f"{one.method} seed {seed}", ""
        with subprocess.Popen([*CHILD, *one.rest, f"seeds={seed}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, errors="replace") as child:
            children.append(child)
            if stop.is_set():
                child.stdin.close()
            for said in child.stdout:
                print(f"{name}: {said.rstrip()}\n", end="", flush=True)
        why = said.strip().removeprefix("seglite: ") if said.startswith("seglite: ") else f"its process ended with exit code {child.returncode}"
        return child.returncode, f"{name}: {why}"

    with ThreadPoolExecutor(jobs) as pool:
        missing = [(one, seed) for one in asked for seed in one.seeds if not (one.folder / f"seed{seed}" / "claim.json").exists()]
        futures = [pool.submit(train, *task) for task in missing]
        try:
            failed = [result for result in (future.result() for future in futures) if result[0]]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.set()
            for child in children:
                child.stdin.close()
            raise
    if failed:
        kind = settings.UsageError if all(code == 2 for code, _ in failed) else RunProblem
        raise kind("; ".join(why for _, why in failed) + "; the other seeds are finished and kept, and the same command runs what is missing")


def end_with_parent() -> None:
    """End this process when its standard input ends: then the process that started it is gone, or wants it gone. No other way tells of a kill."""
    def watch():
        while os.read(0, 1):
            pass
        os._exit(1)  # as good as a kill, and kills are what runs are made for

    threading.Thread(target=watch, daemon=True).start()


def one_seed(paper, arguments: list[str], seed: int, folder: Path, methods: dict) -> dict:
    """{"tables": {table: {row: {metric: value}}}, "minutes": ...} of one seed; kept in the seed's run folder."""
    out = folder / f"seed{seed}"
    config, _ = settings.parse([*arguments, f"seed={seed}", f"out={out}"], methods)
    done, clock = out / "claim.json", out / "seconds.json"
    run = Run(config, supervision=paper.supervision(config))
    try:
        if done.exists():
            run.say(f"seed {seed}: finished earlier")
            return json.loads(done.read_text())
        run.earlier = max(run.earlier, json.loads(clock.read_text()) if clock.exists() else 0.0)
        files.write_json(clock, run.seconds())  # a resumed stage forgets log lines, and with them the seconds of a killed start
        try:
            tables = paper.claim(run)
        finally:
            files.write_json(clock, run.seconds())  # an interrupted seed goes on counting
        result = {"seed": seed, "minutes": run.seconds() / 60, "tables": tables}
        files.write_json(done, result)
        return result
    finally:
        run.close()


def summarise(paper, seeds: list[dict]) -> dict:
    """Mean, standard deviation and paired difference to the first row, per table, row and metric; verdict per statement."""
    tables = {}
    for title in seeds[0]["tables"]:
        rows = {}
        first = next(iter(seeds[0]["tables"][title]))
        for row, metrics in seeds[0]["tables"][title].items():
            rows[row] = {}
            for metric in metrics:
                values = [s["tables"][title][row][metric] for s in seeds]
                entry = {"values": values}
                if all(isinstance(v, (int, float)) for v in values):
                    entry |= {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
                    base = [s["tables"][title][first].get(metric) for s in seeds]
                    if row != first and all(isinstance(v, (int, float)) for v in base):
                        paired = [v - b for v, b in zip(values, base)]
                        entry |= {"difference": statistics.fmean(paired), "difference_std": statistics.stdev(paired) if len(paired) > 1 else 0.0}
                rows[row][metric] = entry
        tables[title] = rows
    statements = []
    for sentence, holds in paper.CLAIM.get("statements", {}).items():
        verdicts = [bool(holds(s["tables"])) for s in seeds]
        statements.append({"claim": sentence, "holds": all(verdicts), "seeds": sum(verdicts), "of": len(verdicts)})
    return {"tables": tables, "statements": statements}


def cell(entry: dict, digits: int = 3) -> str:
    """"0.741 ± 0.010 (+0.082 ± 0.006)": mean, spread, and the paired difference to the baseline."""
    if "mean" not in entry:
        return ", ".join(map(str, dict.fromkeys(entry["values"])))
    text = f"{entry['mean']:.{digits}f} ± {entry['std']:.{digits}f}"
    if "difference" in entry:
        text += f" ({entry['difference']:+.{digits}f} ± {entry['difference_std']:.{digits}f})"
    return text


def text_table(title: str, rows: dict) -> list[str]:
    """One table for the terminal."""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    body = [[row, *(cell(entries[m]) if m in entries else "" for m in metrics)] for row, entries in rows.items()]
    widths = [max(len(line[i]) for line in [["", *metrics], *body]) for i in range(len(metrics) + 1)]
    return ["", title, *("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in [["", *metrics], *body])]


def quoted(paper, summary: dict) -> tuple[str, dict[str, dict], int]:
    """What README quotes: (metric, {row: its entry}, 100 where all values are shares and read as percent, else 1)."""
    table, metric, rows = paper.CLAIM["headline"]
    entries = {row: summary["tables"][table][row][metric] for row in rows}
    return metric, entries, 100 if all(abs(v) <= 1 for entry in entries.values() for v in entry["values"]) else 1


def headline(paper, summary: dict) -> str:
    """What README says of a claim: "biased labels 59.1 ± 4.7, + complement 77.0 ± 4.9 (+17.9 ± 1.0) mIoU; seeds 0, 1, 2, ..."; shares in percent."""
    metric, entries, scale = quoted(paper, summary)
    numbers = ("mean", "std", "difference", "difference_std")
    parts = [f"{row} {cell({k: scale * v if k in numbers else v for k, v in entry.items()}, 1)}" for row, entry in entries.items()]
    held = sum(s["holds"] for s in summary["statements"])
    return (f"{', '.join(parts)} {metric}; seeds {', '.join(map(str, summary['seeds']))}; {statistics.fmean(summary['minutes_per_seed']):.0f} min each; "
            f"{held} of {len(summary['statements'])} statements hold on every seed")


def drawing(summary: dict, width: int = 1200):
    """The tables and verdicts as one picture."""
    parts = []
    for title, rows in summary["tables"].items():
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        body = [[row, *(cell(entries[m]) if m in entries else "" for m in metrics)] for row, entries in rows.items()]
        parts.append(charts.table(["", *metrics], body, title=title, width=width))
    verdicts = [[f"holds on {s['seeds']} of {s['of']} seeds" if s["holds"] else f"does NOT hold: {s['seeds']} of {s['of']} seeds", s["claim"]]
                for s in summary["statements"]]
    if verdicts:
        parts.append(charts.table(["verdict", "claim"], verdicts, title="Claims", width=width))
    note = f"seeds {', '.join(map(str, summary['seeds']))}; mean ± standard deviation (paired difference to the first row); {summary['date']}; {summary['command']}"
    parts.insert(0, charts.table([note], [], title=summary["title"], width=width))
    return pictures.stack(parts, gap=24)


def claims(arguments: list[str], methods: dict = METHODS, command: str = "") -> dict:
    """Run all seeds, print and write the tables. command: what to write down as the command, where it is another one."""
    asked = understand(arguments, methods)
    if asked.jobs > 1:
        train_together([asked], asked.jobs)
    paper, seeds, folder = asked.paper, asked.seeds, asked.folder
    results = [one_seed(paper, asked.rest, seed, folder, methods) for seed in seeds]
    summary = {
        "method": asked.method, "title": paper.CLAIM["title"], "paper": paper.CLAIM.get("paper", {}), "seeds": seeds,
        "command": command or f"python -m seglite.claims {' '.join(arguments)}",
        "minutes_per_seed": [round(r["minutes"], 2) for r in results], "torch": torch.__version__, "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(), **summarise(paper, results),
    }
    files.write_json(folder / "claim.json", summary)
    files.write_bytes(folder / "claim.png", pictures.png_bytes(drawing(summary)))
    return {**summary, "folder": str(folder)}


def every_claim(arguments: list[str], methods: dict = METHODS) -> list[str]:
    """All papers, each in its own folder; finished seeds are not rerun. Lines of a Markdown table."""
    rest = [f"{k}={v}" for k, v in settings.split_arguments(arguments).items() if k != "method"]
    lines = [[f"method={name}", *rest] for name, paper in sorted(methods.items()) if hasattr(paper, "claim")]
    asked = [understand(line, methods) for line in lines]
    if asked[0].jobs > 1:
        train_together(asked, asked[0].jobs)  # the processes go on from one paper to the next
    rows = [(one.paper, claims(line, methods)) for one, line in zip(asked, lines)]
    return ["| paper | miniature |", "|---|---|", *(f"| {summary['method']} | {headline(paper, summary)} |" for paper, summary in rows)]


def main(arguments: list[str], methods: dict = METHODS) -> int:
    def body():
        if arguments[:1] == ["child"]:
            end_with_parent()
            asked = understand(arguments[1:], methods)
            one_seed(asked.paper, asked.rest, asked.seeds[0], asked.folder, methods)
            return
        if "method=all" in arguments:
            print("\n" + "\n".join(every_claim(arguments, methods)))
            return
        summary = claims(arguments, methods)
        folder = Path(summary["folder"])
        print(f"\n{summary['title']} · seeds {', '.join(map(str, summary['seeds']))} · mean ± std (paired difference to the first row)")
        for title, rows in summary["tables"].items():
            print("\n".join(text_table(title, rows)))
        print()
        for s in summary["statements"]:
            print(f"{'holds' if s['holds'] else 'DOES NOT HOLD'} on {s['seeds']} of {s['of']} seeds: {s['claim']}")
        print(f"\n{duration(60 * sum(summary['minutes_per_seed']))} of training · {folder / 'claim.json'} · {folder / 'claim.png'}")

    return guarded(body, arguments, CONTINUES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
