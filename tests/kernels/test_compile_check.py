"""Kernels build for three GPUs without one: no spills, tensor cores where claimed, within the chip and within the budget file.

This process interprets kernels and can therefore not compile any, so every check is a process of its own.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import backend, compile_check
from kernels.compile_check import Row, TARGETS, Variant

pytestmark = pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("compile_budget.csv")


def compile_process(*arguments, code=None):
    """Run compile_check (or `code`) where nothing is interpreted; returns (exit code, output)."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "kernels.compile_check", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


def rows_of(tmp_path, *arguments):
    code, output = compile_process("--json", tmp_path / "table.json", "--budget", BUDGET, *arguments)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"] if (tmp_path / "table.json").exists() else []
    return code, output, rows


# One variant per kernel file: the full table is the slow test below and a step of .ci/run.
QUICK = {"atrous_conv": "sm_90", "axial_attention": "sm_90", "dense_crf": "sm_90", "patch_mix": "sm_80"}


@pytest.mark.parametrize("kernel", QUICK)
def test_first_variant_of_every_kernel_is_within_its_budget(kernel, tmp_path):
    budget = compile_check.read_budget(BUDGET)
    first = next(name for name, target in budget if name.startswith(kernel + "/") and target == QUICK[kernel])
    code, output, rows = rows_of(tmp_path, "--kernels", kernel, "--match", first, "--targets", QUICK[kernel], "--workers", "1")
    assert rows and first in [row["variant"] for row in rows], output
    assert code == 0 and all(row["spills"] == 0 and not row["faults"] and 0 < row["registers"] <= 255 for row in rows), output


@pytest.mark.slow
def test_the_whole_table_is_within_its_budget(tmp_path):
    code, output, rows = rows_of(tmp_path)
    assert code == 0, output
    compiled = {(row["variant"], row["target"]) for row in rows}
    assert compiled == set(compile_check.read_budget(BUDGET)), "the budget file holds other variants than the kernels"
    assert {row["target"] for row in rows} == set(compile_check.DEFAULT_TARGETS)
    for row in rows:
        chip = TARGETS[row["target"]]
        assert row["spills"] == 0 and row["shared"] <= chip.shared and row["registers"] * row["warps"] * chip.lanes <= chip.registers, row


BAD_KERNEL = '''
from kernels.backend import jit, tl

@jit
def too_many_live_values(p_x, p_y, BLOCK: tl.constexpr):
    """Keeps a tile of 512 numbers per thread alive across a reduction."""
    o = tl.arange(0, 64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(p_x + o)
    x = tl.exp2(x) * tl.sum(x)
    tl.store(p_y + o, x - tl.sum(x * x))
'''
BAD_RUN = '''
import sys, json, dataclasses
sys.path.insert(0, {folder!r})
from bad import too_many_live_values
from kernels.compile_check import Variant, compile_variant
types = dict(p_x="*fp32", p_y="*fp32")
for target in ("sm_80", "gfx942"):
    row = compile_variant(Variant("patch_mix/bad", too_many_live_values, types, dict(BLOCK=1024), dot=True), target)
    print(json.dumps(dataclasses.asdict(row)))
print(json.dumps(dataclasses.asdict(compile_variant(Variant("patch_mix/bad", too_many_live_values, types, dict(SIZE=4)), "sm_80"))))
'''


def test_spills_and_broken_claims_are_found(tmp_path):
    """A kernel made to spill, that claims a tensor-core product it does not have, and a variant with a misspelt argument."""
    (tmp_path / "bad.py").write_text(BAD_KERNEL)
    code, output = compile_process(code=BAD_RUN.format(folder=str(tmp_path)))
    assert code == 0, output
    nvidia, amd, misspelt = (json.loads(line) for line in output.strip().splitlines()[-3:])
    assert nvidia["spills"] > 1000
    assert any("spills" in f for f in nvidia["faults"]) and any("no mma instruction" in f for f in nvidia["faults"])
    assert amd["registers"] > 255 and any("no mfma instruction" in f for f in amd["faults"])
    assert "missing ['BLOCK'], unknown ['SIZE']" in misspelt["error"]


def row(target="sm_90", **values):
    return Row("patch_mix/x", target, **{"warps": 4, "registers": 32, **values})


@pytest.mark.parametrize("target, values, claims, sentence", [
    ("sm_90", {}, {}, None),
    ("sm_90", {"spills": 8}, {}, "spills 8 bytes per thread"),
    ("sm_90", {"shared": 228 * 1024}, {}, "needs 233472 bytes of shared memory, sm_90 has 232448"),
    ("sm_80", {"shared": 164 * 1024}, {}, "sm_80 has 166912"),
    ("gfx942", {"shared": 65537}, {}, "gfx942 has 65536"),
    ("sm_90", {"registers": 255, "warps": 16}, {}, "needs 255 x 512 registers, sm_90 has 65536"),
    ("sm_90", {"registers": 128, "warps": 16}, {}, None),  # 128 x 512 is exactly the register file
    ("sm_90", {}, {"dot": True}, "no wgmma instruction"),
    ("sm_90", {"tensor_cores": 4, "instruction": "wgmma"}, {"dot": True}, None),
    ("sm_80", {}, {"dot": True}, "no mma instruction"),
    ("gfx942", {}, {"dot": True}, "no mfma instruction"),
    ("sm_90", {}, {"wide": True}, "claims 16-byte loads"),
])
def test_limits(target, values, claims, sentence):
    found = compile_check.faults(row(target, **values), Variant("patch_mix/x", None, {}, **claims))
    assert (not found) if sentence is None else (len(found) == 1 and sentence in found[0]), found


def test_budget_is_compared_written_and_merged(tmp_path, monkeypatch):
    path = tmp_path / "budget.csv"
    monkeypatch.setattr(compile_check, "VARIANTS", {"patch_mix": lambda: [Variant("patch_mix/x", None, {})],
                                                    "dense_crf": lambda: [Variant("dense_crf/y", None, {})]})
    other = Row("dense_crf/y", "sm_80", registers=100, shared=1024, tensor_cores=8, wide_loads=2)
    gone = Row("patch_mix/gone", "sm_90", registers=10)
    compile_check.write_budget(path, [other, gone])
    compile_check.write_budget(path, [row(registers=40, shared=2048, wide_loads=4)])
    budget = compile_check.read_budget(path)
    assert budget == {("dense_crf/y", "sm_80"): dict(registers=100, shared=1024, tensor_cores=8, wide_loads=2),
                      ("patch_mix/x", "sm_90"): dict(registers=40, shared=2048, tensor_cores=0, wide_loads=4)}
    assert compile_check.over_budget(row(registers=56, shared=2048 + 4096, wide_loads=1), budget) == []  # 16 more registers, 4 KiB more
    more, larger = compile_check.over_budget(row(registers=57, shared=6145, wide_loads=4), budget)
    assert more == "registers 57, the budget is 40 (limit 56)" and larger == "shared 6145, the budget is 2048 (limit 6144)"
    assert compile_check.over_budget(Row("dense_crf/y", "sm_80", registers=130, tensor_cores=1, wide_loads=1), budget) == []
    assert len(compile_check.over_budget(Row("dense_crf/y", "sm_80", registers=131, tensor_cores=1, wide_loads=1), budget)) == 1
    (lost,) = compile_check.over_budget(row(registers=40, shared=0), budget)
    assert lost == "wide_loads fell to 0, the budget has 4"
    (unknown,) = compile_check.over_budget(row("sm_80"), budget)
    assert "no budget line" in unknown


def test_instructions_are_counted_in_assembly_text():
    amd = Row("patch_mix/x", "gfx942")
    compile_check.read_amd(amd, "v_mfma_f32_32x32x8 a\nglobal_load_dwordx4 v[0:3]\nbuffer_load_dwordx4 v\n .vgpr_count: 77\n .vgpr_spill_count: 2\n")
    assert (amd.registers, amd.spills, amd.tensor_cores, amd.instruction, amd.wide_loads) == (77, 8, 1, "mfma", 2)


def test_launch_arguments_are_specialised_as_the_jit_does():
    class Parameter:
        def __init__(self, name, is_constexpr=False):
            self.name, self.is_constexpr = name, is_constexpr

    class Kernel:
        params = [Parameter("p_x"), Parameter("one"), Parameter("many"), Parameter("huge"), Parameter("scale"), Parameter("p_none"), Parameter("BLOCK", True)]

    v = compile_check.from_launch("patch_mix/x", Kernel, {"p_x": "*bf16"}, dict(one=1, many=48, huge=2 ** 31, scale=0.5, p_none=None, BLOCK=64))
    assert v.types == {"p_x": "*bf16", "many": "i32", "huge": "i64", "scale": "fp32"}
    assert v.constants == {"one": 1, "p_none": None, "BLOCK": 64} and v.divisible == ("many", "huge")


def test_names_are_unique_and_known(monkeypatch):
    monkeypatch.setattr(compile_check, "VARIANTS", {"patch_mix": lambda: [Variant("patch_mix/x", None, {})] * 2})
    with pytest.raises(ValueError, match="must be unique; given twice: patch_mix/x"):
        compile_check.variants()
    with pytest.raises(ValueError, match="no kernel file named 'nothing'; known: patch_mix"):
        compile_check.variants(("nothing",))
    monkeypatch.setattr(compile_check, "VARIANTS", {"patch_mix": lambda: [Variant("x", None, {})]})
    with pytest.raises(ValueError, match="must start with their kernel file"):
        compile_check.variants()


@pytest.mark.parametrize("arguments, sentence", [
    (["--targets", "sm_9"], "no target named 'sm_9'; known: sm_80"),
    (["--kernels", "pach_mix"], "no kernel file named 'pach_mix'"),
])
def test_usage_errors(arguments, sentence):
    code, output = compile_process(*arguments)
    assert code == 2 and sentence in output


@pytest.mark.skipif(not backend.INTERPRETING, reason="needs a process that interprets")
def test_an_interpreting_process_says_why_it_cannot_compile(capsys):
    with pytest.raises(SystemExit) as stop:
        compile_check.main([])
    assert stop.value.code == 2 and "env -u TRITON_INTERPRET" in capsys.readouterr().err


def test_meta_tensors_have_the_layout_of_real_ones():
    """The patch-mix variants take their launch arguments from tensors without memory: same strides, same plan."""
    from kernels import patch_mix

    shape, index = (2, 16, 8, 8), torch.empty(2, 16, dtype=torch.int64)
    for layout in (torch.contiguous_format, torch.channels_last):
        real = torch.empty(shape).to(memory_format=layout)
        meta = torch.empty(shape, device="meta").to(memory_format=layout)
        plans = [patch_mix.launch_arguments(x, index, torch.empty_like(x), (2, 2), False) for x in (real, meta)]
        assert plans[0] == plans[1]
