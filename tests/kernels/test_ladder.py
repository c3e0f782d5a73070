"""The ladder's own logic: which test stands on which rung, what is green, and that bench refuses while something is red."""
import json

import pytest

from kernels import bench, ladder
from kernels.ladder import CPU_RUNGS, GPU_RUNGS, GREEN, NOT_RUN, RED, Result, judge, rung_of


def recorded(name, outcome="passed", words=()):
    return {"test": f"tests/kernels/test_patch_mix.py::{name}", "words": list(words), "outcome": outcome}


@pytest.mark.parametrize("name, words, rung", [
    ("test_gradcheck_and_second_derivative[torch]", (), "reference gradcheck"),
    ("test_poisoned_outputs_are_overwritten[a]", (), "outputs poisoned with NaN"),
    ("test_any_shape", ("hypothesis",), "hypothesis"),
    ("test_two_runs_give_the_same_bits", (), "two runs bit-equal"),
    ("test_mix_is_the_definition[gradcheck]", (), "interpreter = reference"),  # a parameter is not the name
])
def test_a_test_stands_on_the_first_rung_that_its_name_mentions(name, words, rung):
    assert rung_of(recorded(name, words=words), CPU_RUNGS) == rung


@pytest.mark.parametrize("name, rung", [
    ("test_offsets_past_2_31[patch_mix]", "GPU offsets past 2^31"),
    ("test_training_curve_is_the_same[axial_attention]", "GPU training curve"),
    ("test_atrous_conv", "GPU grid"),
])
def test_gpu_tests_have_rungs(name, rung):
    assert rung_of(recorded(name), GPU_RUNGS) == rung


def test_every_rung_of_the_table_is_climbed_once():
    assert sorted([*CPU_RUNGS, ladder.COMPILE_RUNG, *GPU_RUNGS]) == sorted(ladder.RUNGS)
    assert set(ladder.KERNELS) == set(bench.CASES)


@pytest.mark.parametrize("outcomes, status, detail", [
    (["passed", "passed"], GREEN, "2 tests"),
    (["passed", "skipped"], GREEN, "1 tests, 1 skipped"),
    (["passed", "failed"], RED, "1 of 2 failed, first tests/kernels/test_patch_mix.py::test_1"),
    (["skipped"], NOT_RUN, "all 1 tests were skipped"),
    ([], RED, "no test covers this rung"),
])
def test_a_rung_is_green_only_when_something_passed_and_nothing_failed(outcomes, status, detail):
    result = judge("patch_mix", "hypothesis", [recorded(f"test_{i}", o) for i, o in enumerate(outcomes)])
    assert (result.status, result.detail) == (status, detail)


SAMPLE = '''
import pytest
from hypothesis import given, strategies as st
import os

def test_it_runs_interpreted():
    assert os.environ["TRITON_INTERPRET"] == "1"

@given(st.integers())
def test_numbers(n):
    assert n == n

@pytest.mark.parametrize("path", ["torch", "triton"])
def test_gradcheck(path):
    assert path == "torch"

@pytest.mark.skip(reason="no")
def test_two_runs():
    pass
'''


def test_tests_run_in_another_process_are_recorded_with_their_markers(tmp_path):
    file = tmp_path / "test_sample.py"
    file.write_text(SAMPLE)
    tests = {t["test"].split("::")[-1]: t for t in ladder.run_tests([file], interpret=True)}
    assert {name: t["outcome"] for name, t in tests.items()} == {
        "test_it_runs_interpreted": "passed", "test_numbers": "passed", "test_gradcheck[torch]": "passed",
        "test_gradcheck[triton]": "failed", "test_two_runs": "skipped"}
    assert rung_of(tests["test_numbers"], CPU_RUNGS) == "hypothesis"


def test_a_test_file_that_does_not_import_is_a_failure(tmp_path):
    file = tmp_path / "test_broken.py"
    file.write_text("import nothing_of_that_name\n")
    (test,) = ladder.run_tests([file], interpret=True)
    assert test["outcome"] == "failed"


@pytest.fixture
def climbed(monkeypatch, tmp_path):
    """A ladder whose climb takes no time: returns the list of climbs; patch_mix is red once, the rest green."""
    climbs = []

    def climb(kernels):
        climbs.append(list(kernels))
        return [Result(k, "GPU grid", RED if k == "patch_mix" else GREEN, "because") for k in kernels]

    monkeypatch.setattr(ladder, "climb", climb)
    monkeypatch.setattr(ladder, "RECORD", tmp_path / "runs" / "ladder.json")
    return climbs


def test_results_are_remembered_until_a_file_changes(climbed, monkeypatch):
    assert ladder.red_rungs(["dense_crf"]) == [] and climbed == [["dense_crf"]]
    assert ladder.red_rungs(["dense_crf", "patch_mix"]) == ["patch_mix: GPU grid: because"]
    assert climbed == [["dense_crf"], ["patch_mix"]]  # the first was remembered
    ladder.red_rungs(["dense_crf", "patch_mix"])
    assert len(climbed) == 2
    monkeypatch.setattr(ladder, "fingerprint", lambda: "another")
    ladder.red_rungs(["dense_crf"])
    assert climbed[2:] == [["dense_crf"]]


def test_the_exit_code_says_whether_a_rung_is_red(climbed, capsys, tmp_path):
    assert ladder.main(["dense_crf"]) == 0
    assert ladder.main(["dense_crf", "patch_mix", "--json", str(tmp_path / "ladder.json")]) == 1
    assert "1 green, 1 red, 0 not run here" in capsys.readouterr().out
    assert [r["status"] for r in json.loads((tmp_path / "ladder.json").read_text())] == [GREEN, RED]
    with pytest.raises(SystemExit) as stop:
        ladder.main(["pach_mix"])
    assert stop.value.code == 2 and "no kernel file named 'pach_mix'" in capsys.readouterr().err


def test_bench_refuses_while_a_rung_is_red(climbed, monkeypatch, capsys):
    monkeypatch.setattr(bench.backend, "INTERPRETING", False)
    monkeypatch.setattr(bench, "CASES", {name: (lambda device: []) for name in bench.CASES})
    monkeypatch.setattr(bench, "roofline", lambda device, clock: {"copy_bytes_per_s": 1e9, "matmul_flops_per_s": 1e9, "exp_per_s": 1e9, "matmul_dtype": "float32"})
    assert bench.main(["patch_mix", "--device", "cpu"]) == 1
    assert "refused" in capsys.readouterr().err
    assert bench.main(["dense_crf", "--device", "cpu"]) == 0
    assert bench.main(["patch_mix", "--device", "cpu", "--unchecked"]) == 0
    assert "ladder: unchecked" in capsys.readouterr().out


def test_bench_measures_judges_and_reports_failures():
    """Two candidates of known relation, one that disagrees and one that fails: all four end in the row, none is hidden."""
    import torch

    x = torch.ones(1000, 1000)

    def fails():
        raise RuntimeError("no such kernel")

    case = bench.Case("patch_mix/sample", lambda: (lambda: x + 1, {"slow": lambda: [x.sin() for _ in range(20)] and x + 1, "wrong": lambda: x, "broken": fails}),
                      bytes=8e6, aims=(bench.Aim("slow", 2.0), bench.Aim("slow", 1e6), bench.Aim("roofline", 1e-9), bench.Aim("milliseconds", 1e9), bench.Aim("broken", 1.0)))
    row = bench.run_case(case, bench.Clock("cpu"), {"copy_bytes_per_s": 1e12, "matmul_flops_per_s": 1e12, "exp_per_s": 1e12}, rounds=3)
    assert row["peers"]["slow"]["ratio"] > 2 and row["peers"]["slow"]["difference"] == 0
    assert "disagrees with ours by 5.0e-01" in row["peers"]["wrong"]["error"] and "no such kernel" in row["peers"]["broken"]["error"]
    assert row["roofline_ms"] == pytest.approx(8e-3)
    assert [a["held"] for a in row["aims"]] == [True, False, True, True, False]
    assert "OURS LOSES" not in bench.format_row(row) and "MISSED" in bench.format_row(row)
