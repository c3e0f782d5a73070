"""Check the exercises of a lesson:

    python -m lessons.check 01             your answers in lessons/exercises/01_*.py
    python -m lessons.check 01 solutions   the solutions (they must pass)

Each lesson's check is a function `check(module) -> list[str]`: sentences that name what is wrong, or an empty list. Where a kernel is among the
answers, `scores(module) -> list[str]` says how many times the least memory traffic the right answer costs (lessons/traffic.py).
"""
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent / "exercises"


def load(path: Path):
    """A file as a module, whatever its name begins with."""
    spec = importlib.util.spec_from_file_location("exercise_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(folder: str, number: str) -> Path:
    """The one file of a lesson in a folder of exercises."""
    found = sorted((HERE / folder).glob(f"{number}_*.py"))
    if len(found) != 1:
        known = ", ".join(sorted(p.name[:2] for p in HERE.glob("[0-9][0-9]_*.py"))) or "none"
        raise SystemExit(f"lesson {number!r} has {len(found)} files in {HERE / folder}, expected one; lessons with exercises: {known}")
    return found[0]


def attempt(function, *arguments, kind: type = object, called: str = "an answer"):
    """(answer, nothing) or (nothing, sentence): what a learner's function gives, which may fail in any way. `called`: the kind, in words."""
    try:
        answer = function(*arguments)
    except Exception as error:
        return None, f"{function.__name__} stopped with {type(error).__name__}: {error}"
    if kind is object and answer is None:
        return None, f"{function.__name__} returned None: nothing written yet?"
    if not isinstance(answer, kind):
        return None, f"{function.__name__} returned {type(answer).__name__}, expected {called}: nothing written yet?"
    return answer, None


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2 or arguments[1:] not in ([], ["solutions"]):
        print(__doc__.split("\n\nEach")[0], file=sys.stderr)
        return 2
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels of exercises run in Triton's interpreter; read when triton is first imported
    answers, checks = find(arguments[1] if len(arguments) == 2 else ".", arguments[0]), load(find("checks", arguments[0]))
    module = load(answers)
    problems = checks.check(module)
    for sentence in problems or getattr(checks, "scores", lambda module: [])(module):
        print("·", sentence)
    print(f"{answers.name}: {len(problems)} still to do" if problems else f"{answers.name}: all right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
