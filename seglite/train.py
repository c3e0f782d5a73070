"""Train a paper's method, end to end.

    python -m seglite.train method=marsstyle                     procedural scenes, CPU, minutes
    python -m seglite.train method=marsstyle data=voc root=VOC   photographs, size=small
    torchrun --nproc_per_node=2 -m seglite.train method=...      the same on several processes
    python -m seglite.train help                                 every key

Exit codes: 0 done · 1 failure · 2 the command line does not fit. Killed or interrupted? The same command continues.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence

from seglite import config as settings
from seglite import parallel
from seglite.papers import barm, bas, cwbass, deeplab, marsstyle, mgd, mixreorg, p2at, zeroseg
from seglite.data import look_over
from seglite.run import Run

METHODS = {"barm": barm, "bas": bas, "cwbass": cwbass, "deeplab": deeplab, "marsstyle": marsstyle, "mgd": mgd, "mixreorg": mixreorg, "p2at": p2at, "zeroseg": zeroseg}

CONTINUES = "the same command continues from the last checkpoint"


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


def guarded(body, arguments: Sequence[str] = (), continues: str = "") -> int:
    """Call body(); every foreseeable problem becomes one sentence on stderr and an exit code. With debug=true among the arguments it is raised.

    continues: what an interrupted user should know of the next start.
    """
    try:
        body()
        return 0
    except KeyboardInterrupt:
        print("; ".join(["interrupted", *[continues] * bool(continues)]), file=sys.stderr)
        return 1
    except Exception as problem:
        if settings.wants_traceback(arguments):
            raise
        message = problem.args[0] if isinstance(problem, KeyError) and problem.args else str(problem)
        if isinstance(problem, MemoryError):  # mostly without a word of its own
            message = f"not enough memory{f' ({message})' if message else ''}; smaller batches, crops or pictures need less"
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
    return guarded(lambda: train(arguments, methods), arguments, CONTINUES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
