"""Claims: arithmetic of the tables, verdicts, resuming, the files, and seeds in processes of their own.

Started as a program it takes the command line of `seglite.claims` for a method whose "training" looks numbers up: the processes of jobs=2.
"""
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from seglite import claims
from seglite.config import UsageError
from seglite.run import RunProblem
from tests.seglite.tiny import TINY


def lookup(name: str, calls: list) -> types.ModuleType:
    """A method whose "training" looks numbers up and notes that it ran. Seed 7 fails, seed 8 is killed, seed 9 works for ever."""
    def claim(run):
        s = run.config.seed
        calls.append(s)
        with open("ran.txt", "a") as f:
            f.write(f"{name} {s} {os.getpid()} {run.config.threads}\n")
        run.say(f"numbers of seed {s}")
        if s == 7:
            raise RunProblem("the loss is not finite")
        if s == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        while s == 9:
            time.sleep(0.05)
        return {"main": {"baseline": {"miou": 0.50 + 0.01 * s, "fp": 0.3}, "method": {"miou": 0.60 + 0.03 * s, "fp": 0.1}},
                "extra": {"only": {"miou": 0.1, "note": "fine"}}}

    paper = types.ModuleType(name)
    paper.__dict__.update(TINY.__dict__)
    paper.claim = claim
    paper.CLAIM = {"title": "Tiny claim", "headline": ("main", "miou", ("baseline", "method")), "statements": {
        "the method beats the baseline": lambda t: t["main"]["method"]["miou"] > t["main"]["baseline"]["miou"],
        "by more than 0.11": lambda t: t["main"]["method"]["miou"] - t["main"]["baseline"]["miou"] > 0.11}}
    return paper


@pytest.fixture
def methods(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims, "CHILD", [sys.executable, "-u", __file__, "child"])
    calls = []
    return {"tiny": lookup("tiny", calls)}, calls


def ran() -> list[list[str]]:
    """[[method, seed, process, threads], ...] in order of beginning."""
    return [line.split() for line in Path("ran.txt").read_text().splitlines()]


def test_means_spreads_and_paired_differences(methods):
    methods, _ = methods
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    entry = summary["tables"]["main"]["method"]["miou"]
    assert entry["mean"] == pytest.approx(0.63) and entry["std"] == pytest.approx(statistics.stdev([0.60, 0.63, 0.66]))
    assert entry["difference"] == pytest.approx(0.12) and entry["difference_std"] == pytest.approx(0.02), "seed by seed, not of the means' spreads"
    assert "difference" not in summary["tables"]["main"]["baseline"]["miou"]
    assert claims.cell(entry) == "0.630 ± 0.030 (+0.120 ± 0.020)"
    assert claims.cell(summary["tables"]["extra"]["only"]["note"]) == "fine"


def test_a_claim_must_hold_on_every_seed(methods):
    methods, _ = methods
    first, second = claims.claims(["method=tiny", "seeds=0,1,2"], methods)["statements"]
    assert first["holds"] and (first["seeds"], first["of"]) == (3, 3)
    assert not second["holds"] and (second["seeds"], second["of"]) == (2, 3)


def test_the_headline_quotes_means_spreads_and_verdicts(methods):
    methods, _ = methods
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    summary["minutes_per_seed"] = [2.0, 3.0, 4.0]
    assert claims.headline(methods["tiny"], summary) == (
        "baseline 51.0 ± 1.0, method 63.0 ± 3.0 (+12.0 ± 2.0) miou; seeds 0, 1, 2; 3 min each; 1 of 2 statements hold on every seed")


def test_all_methods_run_one_after_the_other(methods):
    methods, calls = methods
    lines = claims.every_claim(["method=all", "seeds=0,1"], {**methods, "none": types.ModuleType("none")})
    assert calls == [0, 1] and len(lines) == 3 and lines[2].startswith("| tiny | baseline 50.5")


def test_finished_seeds_are_not_rerun(methods, tmp_path):
    methods, calls = methods
    claims.claims(["method=tiny", "seeds=0,1"], methods)
    summary = claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    assert calls == [0, 1, 2]
    kept = json.loads((tmp_path / "runs/claims/tiny/claim.json").read_text())
    assert kept["seeds"] == [0, 1, 2] and kept["tables"] == json.loads(json.dumps(summary["tables"]))
    assert (tmp_path / "runs/claims/tiny/claim.png").stat().st_size > 1000


@pytest.mark.parametrize("goodbye, expected", [(30, 60), (90, 90)], ids=["killed", "interrupted"])
def test_seconds_of_earlier_starts_count(goodbye, expected, methods, tmp_path):
    """A killed start counts up to its last whole log line, an interrupted one up to its goodbye; dates of files and the wall clock say nothing."""
    out = tmp_path / "runs/claims/tiny/seed0"
    out.mkdir(parents=True)
    (out / "seconds.json").write_text(str(goodbye))
    (out / "log.jsonl").write_text('{"stage": "main", "step": 1, "seconds": 45.5}\n{"stage": "main", "step": 2, "seconds": 60.0}\n{"stage": "main", "step": 3, "sec')
    for path in out.iterdir():
        os.utime(path, (0, 0))
    summary = claims.claims(["method=tiny", "seeds=0"], methods[0])
    assert expected <= json.loads((out / "seconds.json").read_text()) < expected + 10
    assert expected / 60 <= summary["minutes_per_seed"][0] + 0.005 and summary["minutes_per_seed"][0] < expected / 60 + 0.17


def test_a_jumping_clock_does_not_reach_the_minutes(methods, monkeypatch):
    monkeypatch.setattr(time, "time", itertools.cycle([2e9, 1e9, 1e9 + 7200]).__next__)
    assert 0 <= claims.claims(["method=tiny", "seeds=0"], methods[0])["minutes_per_seed"][0] < 0.2


def test_other_settings_go_to_another_folder(methods):
    methods, calls = methods
    a = claims.claims(["method=tiny", "seeds=0"], methods)["folder"]
    b = claims.claims(["method=tiny", "seeds=0", "train.lr=0.1"], methods)["folder"]
    assert a != b and calls == [0, 0]


def test_other_weights_or_data_go_to_another_folder(methods, tmp_path):
    methods, calls = methods
    typed = [["weights=a/w.pth"], ["weights=b/w.pth"], [], ["root=voc mini?*" + "x" * 300], ["root=voc", "weights=a/w.pth"]]
    folders = [claims.claims(["method=tiny", "seeds=0", *line], methods)["folder"] for line in typed]
    assert len(set(folders)) == len(calls) == 5 and folders[2] == "runs/claims/tiny", folders
    assert all(re.fullmatch(r"runs/claims/tiny(-(root|weights)=[\w.-]+\.[0-9a-f]{8}){0,2}", f) and len(f) < 110 for f in folders), folders
    assert claims.claims(["method=tiny", "seeds=0", f"weights={tmp_path}/a/w.pth"], methods)["folder"] == folders[0], "the same file, told otherwise"
    Path("a").mkdir()
    Path("a/w.pth").write_bytes(b"numbers")
    claims.claims(["method=tiny", "seeds=0", "weights=a/w.pth"], methods)
    Path("a/w.pth").write_bytes(b"other numbers")
    with pytest.raises(UsageError, match="began with other weights"):
        claims.claims(["method=tiny", "seeds=0", "weights=a/w.pth"], methods)


@pytest.mark.parametrize("arguments, words", [
    (["seeds=a,b"], "comma-separated integers"), (["seed=1"], "use seeds="), (["out=x"], "chooses out="), (["jobs=0"], "at least 1; got '0'"),
    (["jobs=two"], "number of processes"), (["jobs=2", "train.stepz=1"], "unknown key"), (["seeds=0,-1", "jobs=2"], "at least 0"),
    (["seeds=0,1,00"], "seeds=0,1,00 names a seed twice")])
def test_mistakes(methods, arguments, words):
    with pytest.raises(UsageError, match=words):
        claims.claims(["method=tiny", *arguments], methods[0])


def test_seeds_in_processes_of_their_own_give_the_same_claim(methods, tmp_path, monkeypatch, capfd):
    methods, calls = methods
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    claims.claims(["method=tiny", "seeds=0"], methods)
    claims.claims(["method=tiny", "seeds=0,1,2", "jobs=2"], methods)
    children = ran()[1:]
    assert sorted(seed for _, seed, *_ in children) == ["1", "2"], "seed 0 was finished"
    assert len({process for *_, process, _ in children} | {str(os.getpid())}) == 3 and {threads for *_, threads in children} == {"3"}
    said = capfd.readouterr().out
    assert "\ntiny seed 1: numbers of seed 1\n" in said and "\ntiny seed 2: numbers of seed 2\n" in said
    together = json.loads((tmp_path / "runs/claims/tiny/claim.json").read_text())
    (tmp_path / "runs").rename(tmp_path / "earlier")
    claims.claims(["method=tiny", "seeds=0,1,2"], methods)
    alone = json.loads((tmp_path / "runs/claims/tiny/claim.json").read_text())
    assert alone.keys() == together.keys() and all(alone[k] == together[k] for k in ("tables", "statements", "seeds", "paper", "title"))
    assert len(together["minutes_per_seed"]) == 3


def test_a_seed_that_fails_is_named_and_the_others_finish(methods, tmp_path, capfd):
    """Two papers, three processes; one seed stops with a sentence, one is killed from outside. README's rows are not printed from parts."""
    other = {"other": lookup("other", [])}
    methods = {**methods[0], **other}
    assert claims.main(["method=all", "seeds=7,0", "jobs=3"], methods) == 1
    said = capfd.readouterr()
    assert "tiny seed 7: seglite: the loss is not finite" in said.out and "| paper |" not in said.out
    assert said.err.startswith("seglite: other seed 7: the loss is not finite; tiny seed 7: the loss is not finite; the other seeds are finished")
    assert sorted(p.parts[-3:-1] for p in tmp_path.rglob("claim.json")) == [("other", "seed0"), ("tiny", "seed0")]
    with pytest.raises(RunProblem, match="^tiny seed 8: its process ended with exit code -9; the other"):
        claims.claims(["method=tiny", "seeds=0,8", "jobs=2"], methods)
    assert [line[:2] for line in ran()].count(["tiny", "0"]) == 1, "what is finished is not run again"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_no_process_outlives_the_command(end, methods, tmp_path):
    command, child = subprocess.Popen([sys.executable, __file__, "method=tiny", "seeds=9,1", "jobs=2"], stderr=subprocess.PIPE, text=True), 0
    try:
        assert wait(lambda: (tmp_path / "ran.txt").exists() and any(seed == "9" for _, seed, *_ in ran())), "seed 9 began"
        child = next(int(process) for _, seed, process, _ in ran() if seed == "9")
        command.send_signal(end)
        assert wait(lambda: not alive(child), 20), "the process of seed 9 is gone"
        said = command.communicate(timeout=60)[1]
        assert "Traceback" not in said and (end != signal.SIGINT or "interrupted; the same command continues" in said), said
    finally:
        command.kill()
        if child and alive(child):
            os.kill(child, signal.SIGKILL)


def wait(what, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests in the background has it ignored
    claims.CHILD[:] = [sys.executable, "-u", __file__, "child"]
    sys.exit(claims.main(sys.argv[1:], {name: lookup(name, []) for name in ("tiny", "other")}))
