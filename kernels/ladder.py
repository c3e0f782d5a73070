"""Climb from the formula to the GPU, one rung at a time: is every kernel proven as far as this machine can prove it?

    python -m kernels.ladder                     # all kernels; minutes
    python -m kernels.ladder patch_mix           # one
    python -m kernels.ladder --json ladder.json

      rung                          what it shows                                                      where
    1 reference gradcheck           the formula's own gradient is right, in float64                    anywhere
    2 interpreter = reference       the kernel's arithmetic, indexing and masks, forward and backward  anywhere with triton
    3 outputs poisoned with NaN     every output element is written                                    anywhere with triton
    4 hypothesis                    the same for shapes and strides nobody thought of                  anywhere with triton
    5 two runs bit-equal            nothing depends on the order of threads or on old memory           anywhere with triton
    6 ahead-of-time compile         it builds for sm_80, sm_90 and gfx942, without spills              anywhere with triton
    7 GPU grid                      compiled code = reference over shapes x dtypes x strides           a CUDA device
    8 GPU offsets past 2^31         64-bit addresses where tensors are that large                      a CUDA device with memory
    9 GPU training curve            training with the kernel on and off gives the same curve           a CUDA device

The rungs run the project's own tests in processes of their own (interpreting and compiling exclude each other) and sort the results; there
is no second set of checks. A test belongs to the first rung whose words occur in its name (RUNGS below), hypothesis tests to rung 4, everything
else in a kernel's test file to rung 2. A rung is green when all of its tests passed, red when one failed or none exists, and "not run
here" when this machine cannot run it: never green. Exit code 1 when a rung is red.
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from kernels import backend

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "kernels"
RECORD = ROOT / "runs" / "ladder.json"
KERNELS = {  # kernel file -> its test files
    "atrous_conv": ("test_atrous*.py",),
    "axial_attention": ("test_axial*.py",),
    "dense_crf": ("test_dense_crf*.py", "test_permutohedral*.py"),
    "patch_mix": ("test_patch_mix*.py",),
}
CPU_RUNGS = {  # rung -> words that put a test on it
    "reference gradcheck": ("gradcheck",),
    "outputs poisoned with NaN": ("poison", "nan_first", "nan_filled"),
    "hypothesis": ("hypothesis",),
    "two runs bit-equal": ("two_runs", "bit_equal"),
    "interpreter = reference": ("",),
}
COMPILE_RUNG = "ahead-of-time compile"
GPU_RUNGS = {
    "GPU offsets past 2^31": ("past_2_31",),
    "GPU training curve": ("training_curve",),
    "GPU grid": ("",),
}
RUNGS = ("reference gradcheck", "interpreter = reference", "outputs poisoned with NaN", "hypothesis", "two runs bit-equal",
         COMPILE_RUNG, "GPU grid", "GPU offsets past 2^31", "GPU training curve")
GREEN, RED, NOT_RUN = "green", "red", "not run here"


@dataclasses.dataclass
class Result:
    """One rung of one kernel."""

    kernel: str
    rung: str
    status: str
    detail: str
    """How many passed, what failed first, or why it was not run."""


# ------------------------------------------------------------------------------------------------ running tests in another process
class Recorder:
    """A pytest plugin that keeps (test id, names and markers, outcome) of every test."""

    def __init__(self):
        self.tests: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report):
        words = sorted(k for k in report.keywords if isinstance(k, str))
        entry = self.tests.setdefault(report.nodeid, {"test": report.nodeid, "words": words, "outcome": "passed"})
        if report.failed:
            entry["outcome"] = "failed"
        elif report.skipped and entry["outcome"] == "passed":
            entry["outcome"] = "skipped"

    def pytest_collectreport(self, report):
        if report.failed:
            self.tests[report.nodeid] = {"test": report.nodeid, "words": [], "outcome": "failed"}


def run_tests(files: list[Path], interpret: bool, arguments: tuple[str, ...] = ()) -> list[dict]:
    """Run test files in a new process that interprets kernels, or compiles them; one dict per test: test, words, outcome."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "tests.json"
        environment = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
        command = [sys.executable, "-m", "kernels.ladder", "--record-tests", str(record), "--", "-q", *arguments, *map(str, files)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not record.exists():
            return [{"test": str(files[0]), "words": [], "outcome": "failed", "why": (done.stdout + done.stderr)[-300:]}]
        return json.loads(record.read_text())


def record_tests(record: Path, arguments: list[str]) -> int:
    """In the process started by `run_tests`."""
    import pytest

    recorder = Recorder()
    code = pytest.main(arguments, plugins=[recorder])
    record.write_text(json.dumps(list(recorder.tests.values())))
    return int(code)


# ------------------------------------------------------------------------------------------------ sorting results into rungs
def rung_of(test: dict, rungs: dict[str, tuple[str, ...]]) -> str:
    """The first rung one of whose words occurs in the test's name; a marker must be equal to the word."""
    name = test["test"].split("::")[-1].split("[")[0]
    return next(rung for rung, words in rungs.items() if any(word in name or word in test["words"] for word in words))


def judge(kernel: str, rung: str, tests: list[dict]) -> Result:
    """Green: all passed. Red: one failed, or there is none. Only skipped: not run here."""
    failed = [t["test"] for t in tests if t["outcome"] == "failed"]
    passed = sum(t["outcome"] == "passed" for t in tests)
    skipped = sum(t["outcome"] == "skipped" for t in tests)
    if failed:
        return Result(kernel, rung, RED, f"{len(failed)} of {len(tests)} failed, first {failed[0]}")
    if not tests:
        return Result(kernel, rung, RED, "no test covers this rung")
    if not passed:
        return Result(kernel, rung, NOT_RUN, f"all {skipped} tests were skipped")
    return Result(kernel, rung, GREEN, f"{passed} tests" + (f", {skipped} skipped" if skipped else ""))


def climb_cpu(kernel: str) -> list[Result]:
    """Rungs 1 to 5 of one kernel: its own test files, interpreted."""
    files = sorted(f for pattern in KERNELS[kernel] for f in TESTS.glob(pattern))
    if not files:
        return [Result(kernel, rung, RED, f"no test file {' or '.join(KERNELS[kernel])} in tests/kernels") for rung in CPU_RUNGS]
    if not backend.HAS_TRITON:
        return [Result(kernel, rung, NOT_RUN, "triton is not installed") for rung in CPU_RUNGS]
    tests = run_tests(files, interpret=True)
    return [judge(kernel, rung, [t for t in tests if rung_of(t, CPU_RUNGS) == rung]) for rung in CPU_RUNGS]


def climb_compile(kernels: list[str]) -> list[Result]:
    """Rung 6 for all kernels: one run of compile_check against the budget file."""
    if not backend.HAS_TRITON:
        return [Result(kernel, COMPILE_RUNG, NOT_RUN, "triton is not installed") for kernel in kernels]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        command = [sys.executable, "-m", "kernels.compile_check", "--kernels", ",".join(kernels), "--json", str(table),
                   "--budget", str(TESTS / "compile_budget.csv")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not table.exists():
            return [Result(kernel, COMPILE_RUNG, RED, f"compile_check stopped: {(done.stdout + done.stderr).strip()[-200:]}") for kernel in kernels]
        rows = json.loads(table.read_text())["rows"]
    results = []
    for kernel in kernels:
        mine = [r for r in rows if r["variant"].split("/")[0] == kernel]
        bad = [f"{r['variant']} on {r['target']}: {r['error'] or r['faults'][0]}" for r in mine if r["error"] or r["faults"]]
        fine = f"{len(mine)} binaries" if mine else "no variant is listed"
        detail = f"{len(bad)} of {len(mine)} binaries out of bounds, first {bad[0]}" if bad else fine
        results.append(Result(kernel, COMPILE_RUNG, RED if bad or not mine else GREEN, detail))
    return results


def climb_gpu(kernels: list[str]) -> list[Result]:
    """Rungs 7 to 9: tests/kernels/test_gpu.py, compiled; a test belongs to the kernels its name or parameters mention."""
    if not torch.cuda.is_available():
        return [Result(kernel, rung, NOT_RUN, "no CUDA device") for kernel in kernels for rung in GPU_RUNGS]
    if not backend.HAS_TRITON:
        return [Result(kernel, rung, NOT_RUN, "triton is not installed") for kernel in kernels for rung in GPU_RUNGS]
    tests = run_tests([TESTS / "test_gpu.py"], interpret=False, arguments=("--slow",))
    lost = [t for t in tests if "::" not in t["test"]]  # the file itself failed to import
    return [judge(kernel, rung, lost + [t for t in tests if kernel in t["test"] and "::" in t["test"] and rung_of(t, GPU_RUNGS) == rung])
            for kernel in kernels for rung in GPU_RUNGS]


def climb(kernels: list[str]) -> list[Result]:
    """All rungs of the kernels, in the order of the table."""
    results = [r for kernel in kernels for r in climb_cpu(kernel)] + climb_compile(kernels) + climb_gpu(kernels)
    return sorted(results, key=lambda r: (RUNGS.index(r.rung), kernels.index(r.kernel)))


# ------------------------------------------------------------------------------------------------ the last result, for bench.py
def fingerprint() -> str:
    """Changes with any kernel, any kernel test, the tolerances, torch, triton or the device: everything a result depends on."""
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("kernels/*.py"), *TESTS.glob("*"), ROOT / "tests" / "tolerances.py", ROOT / "tests" / "conftest.py"]):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    digest.update(f"{torch.__version__} {getattr(backend.triton, '__version__', None)} {device}".encode())
    return digest.hexdigest()


def climb_and_remember(kernels: list[str]) -> list[Result]:
    """Climb, and keep the results beside those of other kernels; they count for the files as they were when the climb began."""
    now = fingerprint()
    results = climb(kernels)
    kept = recall()
    kept.update({r.kernel: [dataclasses.asdict(q) for q in results if q.kernel == r.kernel] for r in results})
    RECORD.parent.mkdir(exist_ok=True)
    temporary = RECORD.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"fingerprint": now, "kernels": kept}, indent=1))
    os.replace(temporary, RECORD)
    return results


def recall() -> dict[str, list[dict]]:
    """kernel -> its results, from the last climb with the same fingerprint; empty when anything changed."""
    try:
        record = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record["kernels"] if record.get("fingerprint") == fingerprint() else {}


def red_rungs(kernels: list[str]) -> list[str]:
    """One line per red rung of the kernels, climbing those that were not climbed since the last change; empty: nothing is red."""
    known = recall()
    todo = [k for k in kernels if k not in known]
    if todo:
        print(f"climbing the ladder first ({', '.join(todo)}; minutes, remembered until a file changes)", flush=True)
        for result in climb_and_remember(todo):
            known.setdefault(result.kernel, []).append(dataclasses.asdict(result))
    return [f"{r['kernel']}: {r['rung']}: {r['detail']}" for k in kernels for r in known[k] if r["status"] == RED]


# ------------------------------------------------------------------------------------------------ report
def format_results(results: list[Result]) -> str:
    kernel, rung = (max(len(getattr(r, field)) for r in results) for field in ("kernel", "rung"))
    colour = {GREEN: "32", RED: "31", NOT_RUN: "33"} if sys.stdout.isatty() else {}
    lines = []
    for r in results:
        status = f"{r.status:{len(NOT_RUN)}}"
        status = f"\033[{colour[r.status]}m{status}\033[0m" if colour else status
        lines.append(f"{r.rung:{rung}}  {r.kernel:{kernel}}  {status}  ({r.detail})")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--record-tests"]:
        return record_tests(Path(arguments[1]), arguments[3:])
    parser = argparse.ArgumentParser(prog="python -m kernels.ladder", description="Prove the kernels as far as this machine can.")
    parser.add_argument("kernels", nargs="*", help=f"kernel files (default: {' '.join(KERNELS)})")
    parser.add_argument("--json", type=Path, help="also write the results here")
    given = parser.parse_args(arguments)
    unknown = [k for k in given.kernels if k not in KERNELS]
    if unknown:
        parser.error(f"no kernel file named {unknown[0]!r}; known: {', '.join(KERNELS)}")
    if not TESTS.is_dir():
        parser.error(f"the ladder runs the tests in tests/kernels, and {TESTS} does not exist; run it in a checkout of the repository")
    started = time.perf_counter()
    results = climb_and_remember(given.kernels or list(KERNELS))
    print(format_results(results))
    counts = {status: sum(r.status == status for r in results) for status in (GREEN, RED, NOT_RUN)}
    print(f"{counts[GREEN]} green, {counts[RED]} red, {counts[NOT_RUN]} not run here; {time.perf_counter() - started:.0f} s")
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1) + "\n")
    return 1 if counts[RED] else 0


if __name__ == "__main__":
    sys.exit(main())
