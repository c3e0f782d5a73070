"""What the scripts share: their command line, and problems as one sentence.

Every script takes --root (where the data set goes, or lies already), --archives (where downloads are kept) and --verify-only. Exit codes: 0 done ·
1 something is wrong, said in one sentence · 2 the command line does not fit.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def parser(module_doc: str, root: str, archives: bool = True) -> argparse.ArgumentParser:
    """A parser with the common options; the module's docstring is the help text."""
    p = argparse.ArgumentParser(description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", type=Path, default=Path(root), help=f"folder of the data set (default: {root})")
    if archives:
        p.add_argument("--archives", type=Path, default=Path("archives"),
                       help="folder of the downloaded archives; they may be deleted afterwards (default: archives)")
    p.add_argument("--verify-only", action="store_true", help="check what is there; download, unpack and write nothing")
    return p


def guarded(body: Callable[[], object]) -> int:
    """Call body(); problems become one sentence on stderr and exit code 1."""
    try:
        body()
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
    return 1


def expect(found: int, wanted: int, what: str, where: Path, say: Callable[[str], None] = print) -> None:
    """Counts of a complete data set."""
    if found != wanted:
        raise ValueError(f"{where} holds {found:,} {what}, the complete data set has {wanted:,}; move it away and run this again")
    say(f"{where}: {found:,} {what}")


def spread(items: Iterable, count: int) -> list:
    """Up to `count` items, evenly spaced."""
    items = list(items)
    return items if len(items) <= count else [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]
