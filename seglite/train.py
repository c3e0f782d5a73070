"""Train a paper's method, end to end.

    python -m seglite.train method=marsstyle                     procedural scenes, CPU, minutes
    python -m seglite.train method=marsstyle data=voc root=VOC   photographs, size=small
    torchrun --nproc_per_node=2 -m seglite.train method=...      the same on several processes
    python -m seglite.train help                                 every key

Exit codes: 0 done · 1 failure · 2 the command line does not fit. Killed or interrupted? The same command continues.
"""
from __future__ import annotations

import sys

from seglite import config as settings
from seglite import parallel
from seglite.papers import barm, bas, cwbass, deeplab, marsstyle, mgd, mixreorg, p2at, zeroseg
from seglite.data import look_over
from seglite.run import Run

METHODS = {"barm": barm, "bas": bas, "cwbass": cwbass, "deeplab": deeplab, "marsstyle": marsstyle, "mgd": mgd, "mixreorg": mixreorg, "p2at": p2at, "zeroseg": zeroseg}


def train(arguments: list[str], methods: dict) -> None:
    """Parse, open the run, call the paper's pipeline."""
    config, overrides = settings.parse(arguments, methods)
    paper = methods[config.method]
    run = Run(config, command=["python", "-m", "seglite.train", *arguments], supervision=paper.supervision(config))
    try:
        run.say(f"method {config.method} · data {config.data} · size {config.size} · sees {', '.join(run.supervision)}")
        for line in overrides:
            run.say(f"  {line}")
        for split, wants in (() if config.data == "scenes" else (("train", run.supervision), ("val", ("image", "mask")))):
            if remark := look_over(run.truth(split), wants):
                run.say(f"{split}: {remark}")
        paper.train(run)
    finally:
        run.close()


def guarded(body, debug: bool = False) -> int:
    """Call body(); every foreseeable problem becomes one sentence on stderr and an exit code."""
    try:
        body()
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 1
    except Exception as problem:
        if debug:
            raise
        message = problem.args[0] if isinstance(problem, KeyError) and problem.args else str(problem)
        if isinstance(problem, (ValueError, KeyError, OSError, RuntimeError, MemoryError)):
            print(f"seglite: {message}", file=sys.stderr)
        else:
            print(f"seglite: {type(problem).__name__}: {message} (an unforeseen error: debug=true shows where)", file=sys.stderr)
        return 2 if isinstance(problem, settings.UsageError) else 1
    finally:
        parallel.stop()


def main(arguments: list[str], methods: dict = METHODS) -> int:
    if any(a.lstrip("-") in ("help", "h") for a in arguments):
        typed = settings.split_arguments([a for a in arguments if "=" in a])
        print(settings.help_text(methods, typed.get("method")))
        return 0
    return guarded(lambda: train(arguments, methods), debug="debug=true" in arguments or "debug=1" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
