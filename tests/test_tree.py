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

# Floors from the ground up; a file imports from its own floor or from below. Longest matching prefix decides; "seglite" stands for its
# __init__ alone, so that a new file of the package has no floor until it is given one.
FLOORS = {
    "kernels": 0, "seglite": 0,
    "seglite.files": 0, "seglite.parallel": 0, "seglite.charts": 0,
    "seglite.nets": 1, "seglite.measure": 1, "seglite.losses": 1, "seglite.metrics": 1, "seglite.pictures": 1, "seglite.html": 1, "seglite.teacher": 1,
    "seglite.tokenizer": 0, "seglite.openvocab": 3, "seglite.clip_teacher": 3, "seglite.data.scenes": 1, "seglite.data.transforms": 1, "seglite.data.voc": 1, "seglite.data": 1, "seglite.crf": 1,
    "seglite.config": 2, "seglite.evaluate": 2, "seglite.evaluate_report": 2, "seglite.evaluate_maps": 2, "seglite.commands": 3,
    "seglite.cam": 3, "seglite.incremental": 3, "seglite.suppression": 3, "seglite.localisation": 2, "seglite.stego": 3, "seglite.kmeans": 3, "seglite.pseudo": 3, "seglite.papers": 4,
    "seglite.run": 3, "seglite.report": 3, "seglite.reopen": 4,
    "seglite.train": 5, "seglite.claims": 6, "seglite.networks": 6, "seglite.speed": 6, "seglite.predict": 6, "seglite.export": 6,
    "data_scripts": 7, "lessons": 8, "tests": 9,
}
# The imports that may run uphill, because they stand inside a function: whoever imports the module does not pay for them.
LAZY = {
    "seglite.commands": {"seglite.train"},  # `guarded` brings every paper along, which `help` need not wait for
    "seglite.reopen": {"seglite.train"},  # a run is opened with any paper, unless the caller names the papers
    # What follows is each file's own command: a library below, and a program that parses keys and opens runs above.
    "seglite.crf": {"seglite.config", "seglite.run", "seglite.commands"},
    "seglite.evaluate": {"seglite.run", "seglite.commands", "seglite.reopen"},
    "seglite.evaluate_maps": {"seglite.commands"},
}


def imports(path: Path, code: str | None = None) -> list[tuple[str, bool]]:
    """(module, whether the import stands inside a function) of every import statement in the file, or in other code in its place."""
    tree = ast.parse(path.read_text() if code is None else code)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            whole = [f"{module}.{alias.name}" for alias in node.names]
            found += [(name if (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir() else module,
                       id(node) in inner) for name in whole]
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int | None:
    if module == "seglite":
        return FLOORS[module]
    while module and module != "seglite":
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


def uphill(module: str, found: list[tuple[str, bool]]) -> list[tuple[str, str, bool]]:
    """(module, imported, inside a function) of every import from a floor above, or from a file of this house that has none."""
    rooms = {path.split(".")[0] for path in FLOORS}
    return [(module, name, inside) for name, inside in found
            if (above := floor(name)) is not None and above > floor(module) or above is None and name.split(".")[0] in rooms]


def test_every_file_has_a_floor():
    assert not [module_name(path) for path in SOURCES if floor(module_name(path)) is None]


def test_no_import_runs_uphill():
    """Neither at the top of a file nor inside a function, apart from LAZY; and nothing is in LAZY that no file needs any more."""
    climbing = [step for path in SOURCES for step in uphill(module_name(path), imports(path))]
    forbidden = [f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})" for module, name, inside in climbing
                 if not (inside and name in LAZY.get(module, ()))]
    assert not forbidden, "\n".join(forbidden)
    assert {(module, name) for module, name, _ in climbing} == {(module, name) for module, names in LAZY.items() for name in names}


@pytest.mark.parametrize("module, line", [
    ("seglite.losses", "import lessons.check"), ("kernels.bench", "def f():\n    from tests.seglite import tiny"),
    ("seglite.run", "from data_scripts import fetch"), ("data_scripts.doctor", "from lessons import chain"), ("seglite", "import seglite.train"),
    ("seglite.papers.barm", "from seglite.train import METHODS"), ("seglite.metrics", "from . import predict"),
    ("seglite.run", "from seglite.nowhere import x"),
])
def test_a_climbing_import_is_seen(module, line):
    assert uphill(module, imports(ROOT / (module.replace(".", "/") + ".py"), line))


# What runs text or bytes as a program. A deliberate use stands here with its reason.
DANGEROUS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"}
DELIBERATE = {("seglite/nets/clip.py", "pickle.Unpickler")}  # a subclass that refuses every name but those of tensors


def dotted(node: ast.AST) -> str:
    """"eval" or "os.system"; longer chains and everything else are none of DANGEROUS."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(code: str) -> set[str]:
    """What of DANGEROUS the code mentions, arguments shell= and allow_pickle= that are not False, torch.load without weights_only=True."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        found |= {dotted(node)} & DANGEROUS
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & DANGEROUS
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            found |= {f"{key}=" for key in ("shell", "allow_pickle") if given.get(key, "False") != "False"}
            found |= {"torch.load"} if dotted(node.func) == "torch.load" and given.get("weights_only") != "True" else set()
    return found


def test_nothing_runs_what_it_reads():
    sources = {str(path.relative_to(ROOT)): path for path in SOURCES}
    seen = {(name, danger) for name, path in sources.items() if not name.startswith("tests/") for danger in dangers(path.read_text())}
    assert seen == DELIBERATE


@pytest.mark.parametrize("line", ["subprocess.run(x, shell=True)", "os.system(x)", "from os import system", "pickle.load(f)", "eval(x)", "f = exec",
                                  "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)"])
def test_a_dangerous_line_is_seen(line):
    assert dangers(line) and not dangers("torch.load(p, weights_only=True); model.eval(); subprocess.run([x], shell=False); re.compile(x)")


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
