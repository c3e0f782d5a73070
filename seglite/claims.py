"""Rerun a paper's claim in miniature: baseline, each component, the full method, on several seeds, with equal budget.

    python -m seglite.claims method=marsstyle seeds=0,1,2
    python -m seglite.claims method=all                      every paper; ends with the miniature column of README's table

A paper's `claim(run)` trains every row of its tables for one seed and returns {table: {row: {metric: value}}}; the first row of a table is
the baseline that the others are compared with, seed by seed. `CLAIM["statements"]` says what the paper claims, as a sentence and
a test on one seed's tables; a claim that does not hold on every seed is printed as not holding. `CLAIM["headline"]` names what README quotes:
(table, metric, rows).

Written to runs/claims/<method>/: seed<k>/ (a run folder; killed claims resume), claim.json, claim.png.
"""
from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from seglite import config as settings
from seglite import charts, files, pictures
from seglite.run import Run, duration
from seglite.train import METHODS, guarded


def one_seed(paper, arguments: list[str], seed: int, folder: Path, methods: dict) -> dict:
    """{"tables": {table: {row: {metric: value}}}, "minutes": ...} of one seed; kept in the seed's run folder."""
    out = folder / f"seed{seed}"
    config, _ = settings.parse([*arguments, f"seed={seed}", f"out={out}"], methods)
    done, clock, open_since = out / "claim.json", out / "seconds.json", out / "open_since.json"
    earlier = (json.loads(clock.read_text()) if clock.exists() else 0.0) + killed_seconds(out, open_since)
    run = Run(config, supervision=paper.supervision(config))
    try:
        if done.exists():
            run.say(f"seed {seed}: finished earlier")
            return json.loads(done.read_text())
        began = time.time()
        files.write_json(clock, earlier)
        files.write_json(open_since, began)
        try:
            tables = paper.claim(run)
        finally:
            files.write_json(clock, earlier + time.time() - began)  # an interrupted seed goes on counting
            open_since.unlink(missing_ok=True)
        result = {"seed": seed, "minutes": (earlier + time.time() - began) / 60, "tables": tables}
        files.write_json(done, result)
        return result
    finally:
        run.close()


def killed_seconds(out: Path, open_since: Path) -> float:
    """How long a start that never said goodbye had worked: from its beginning to the last file it wrote (the log, within seconds)."""
    if not open_since.exists():
        return 0.0
    last = max(path.stat().st_mtime for path in out.rglob("*") if path.is_file())
    return max(0.0, last - json.loads(open_since.read_text()))


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


def headline(paper, summary: dict) -> str:
    """What README says of a claim: "biased labels 59.1 ± 4.7, + complement 77.0 ± 4.9 (+17.9 ± 1.0) mIoU; seeds 0, 1, 2, ..."; shares in percent."""
    table, metric, rows = paper.CLAIM["headline"]
    entries = {row: summary["tables"][table][row][metric] for row in rows}
    scale = 100 if all(abs(v) <= 1 for entry in entries.values() for v in entry["values"]) else 1
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


def claims(arguments: list[str], methods: dict = METHODS) -> dict:
    """Run all seeds, print and write the tables."""
    typed = settings.split_arguments(arguments)
    try:
        seeds = [int(s) for s in typed.pop("seeds", "0,1,2").split(",")]
    except ValueError:
        raise settings.UsageError(f"seeds wants comma-separated integers; got {settings.split_arguments(arguments)['seeds']!r}") from None
    for key in ("seed", "out"):
        if key in typed:
            raise settings.UsageError(f"claims chooses {key}= for each seed itself; use seeds=0,1,2")
    method = typed.get("method", settings.Config.method)
    paper = settings.choose_method(method, methods)
    rest = [f"{k}={v}" for k, v in typed.items()]
    changed = "-".join(f"{k}={v}" for k, v in typed.items() if k != "method" and k not in settings.FREE_KEYS).replace("/", "_")
    folder = Path("runs/claims") / (method + (f"-{changed}" if changed else ""))
    results = [one_seed(paper, rest, seed, folder, methods) for seed in seeds]
    summary = {
        "method": method, "title": paper.CLAIM["title"], "paper": paper.CLAIM.get("paper", {}), "seeds": seeds,
        "command": f"python -m seglite.claims {' '.join(arguments)}",
        "minutes_per_seed": [round(r["minutes"], 2) for r in results], "torch": torch.__version__, "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(), **summarise(paper, results),
    }
    files.write_json(folder / "claim.json", summary)
    files.write_bytes(folder / "claim.png", pictures.png_bytes(drawing(summary)))
    return {**summary, "folder": str(folder)}


def every_claim(arguments: list[str], methods: dict = METHODS) -> list[str]:
    """All papers one after the other, each in its own folder; finished seeds are not rerun. Lines of a Markdown table."""
    typed = settings.split_arguments(arguments)
    rest = [f"{k}={v}" for k, v in typed.items() if k != "method"]
    rows = [(paper, claims([f"method={name}", *rest], methods)) for name, paper in sorted(methods.items()) if hasattr(paper, "claim")]
    return ["| paper | miniature |", "|---|---|", *(f"| {summary['method']} | {headline(paper, summary)} |" for paper, summary in rows)]


def main(arguments: list[str]) -> int:
    def body():
        if "method=all" in arguments:
            print("\n" + "\n".join(every_claim(arguments)))
            return
        summary = claims(arguments)
        folder = Path(summary["folder"])
        print(f"\n{summary['title']} · seeds {', '.join(map(str, summary['seeds']))} · mean ± std (paired difference to the first row)")
        for title, rows in summary["tables"].items():
            print("\n".join(text_table(title, rows)))
        print()
        for s in summary["statements"]:
            print(f"{'holds' if s['holds'] else 'DOES NOT HOLD'} on {s['seeds']} of {s['of']} seeds: {s['claim']}")
        print(f"\n{duration(60 * sum(summary['minutes_per_seed']))} of training · {folder / 'claim.json'} · {folder / 'claim.png'}")

    return guarded(body, debug="debug=true" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
