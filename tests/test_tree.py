"""The house: what lives where, who may import whom, and that importing does nothing."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {"lessons", "seglite", "kernels", "tests", "data_scripts", "README.md", "pyproject.toml", "LICENSE", "CITATION.cff"}
ALLOWED = {"torch", "triton", "numpy", "PIL", "pytest", "hypothesis", "seglite", "kernels", "lessons", "tests", "data_scripts"}
PEERS = {"kernels/bench_crf.py": "pydensecrf"}  # measured against where a user has it; imported inside a function only
SOURCES = sorted(p for part in ("seglite", "kernels", "lessons", "data_scripts", "tests") for p in (ROOT / part).rglob("*.py"))

# Floors from the ground up; a file imports from its own floor or from below. Longest matching prefix decides.
FLOORS = {
    "kernels": 0,
    "seglite.files": 0, "seglite.parallel": 0, "seglite.charts": 0,
    "seglite.nets": 1, "seglite.measure": 1, "seglite.losses": 1, "seglite.metrics": 1, "seglite.pictures": 1, "seglite.html": 1, "seglite.teacher": 1,
    "seglite.tokenizer": 0, "seglite.openvocab": 3, "seglite.clip_teacher": 3, "seglite.data.scenes": 1, "seglite.data.transforms": 1, "seglite.data.voc": 1, "seglite.data": 1, "seglite.crf": 1,
    "seglite.config": 2, "seglite.evaluate": 2, "seglite.evaluate_report": 2, "seglite.evaluate_maps": 2, "seglite.commands": 3,
    "seglite.cam": 3, "seglite.incremental": 3, "seglite.suppression": 3, "seglite.localisation": 2, "seglite.stego": 3, "seglite.kmeans": 3, "seglite.pseudo": 3, "seglite.papers": 4,
    "seglite.run": 3, "seglite.report": 3, "seglite.reopen": 4,
    "seglite.train": 5, "seglite.claims": 6, "seglite.networks": 6, "seglite.speed": 6, "seglite.predict": 6, "seglite.export": 6,
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether the import stands inside a function) of every import statement."""
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir() else node.module,
                       id(node) in inner) for name in whole]
    return found


def floor(module: str) -> int | None:
    while module:
        if module in FLOORS:
            return FLOORS[module]
        module = module.rpartition(".")[0]
    return None


def test_the_top_level_is_what_was_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    names = {line.split("/")[0] for line in tracked} or {p.name for p in ROOT.iterdir()}
    assert {n for n in names if not n.startswith(".")} <= TOP


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_agreed_packages_are_imported(path):
    local = {p.stem for p in path.parent.glob("*.py")}
    for module, inside in imports(path):
        top = module.split(".")[0]
        if inside and PEERS.get(str(path.relative_to(ROOT))) == top:
            continue
        assert top in ALLOWED | local or top in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {module}"


def test_no_import_runs_uphill():
    uphill = []
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = floor(module)
        if own is None:
            continue
        uphill += [f"{module} (floor {own}) imports {name} (floor {floor(name)})" for name, inside in imports(path)
                   if not inside and floor(name) is not None and floor(name) > own and not name.startswith(module + ".")]
    assert not uphill, "\n".join(uphill)


def test_kernels_know_nothing_of_seglite():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not [name for name, _ in imports(path) if name.startswith("seglite")], path.name


def test_papers_do_not_import_each_other():
    """A named predecessor is fine: the segmenter papers stand on deeplab."""
    for path in (ROOT / "seglite/papers").glob("[a-z]*.py"):
        others = [name for name, _ in imports(path) if name.startswith("seglite.papers.") and name != "seglite.papers.deeplab"]
        assert not others, f"{path.name} imports {others}"


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if p.parts[len(ROOT.parts)] != "tests" and (n := len(p.read_text().splitlines())) > 600}
    assert not long, f"split these, 600 lines at the most: {long}"


def test_importing_does_nothing():
    """No file, no download, no device, no thread: only names."""
    code = """
import sys, os, threading, torch
before = set(os.listdir('.')), threading.active_count(), torch.get_num_threads()
import seglite.train, seglite.claims, seglite.speed
assert not torch.cuda.is_initialized()
assert (set(os.listdir('.')), threading.active_count(), torch.get_num_threads()) == before
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
