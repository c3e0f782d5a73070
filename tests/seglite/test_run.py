"""The run: exact resume after kills, several processes as one, one folder one run, and nothing lost when something goes wrong."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seglite import files, train
from seglite.config import Recipe
from seglite.data import Batches
from seglite.run import Run, learning_rate
from tests.seglite.tiny import METHODS, network

TINY = Path(__file__).with_name("tiny.py")


def start(out, *arguments, processes: int = 1, **environment) -> subprocess.CompletedProcess:
    launcher = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                                                        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.run([*launcher, str(TINY), "method=tiny", f"out={out}", *arguments], capture_output=True, text=True, timeout=900,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def weights(out, stage="main", part="model") -> dict:
    return files.load_tensors(Path(out) / stage / "final.pt")[part]


def losses(out, stage="main") -> list[float]:
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = start(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("deaths", [["step:3"], ["write:2", "step:0"], ["rename:7", "write:2", "step:11"]], ids="+".join)
def test_a_killed_run_ends_with_the_same_bits(deaths, undisturbed, tmp_path):
    out = tmp_path / "killed"
    for death in deaths:
        killed = start(out, f"die={death}")
        assert killed.returncode == -signal.SIGKILL, f"{death}: {killed.stdout[-500:]}{killed.stderr[-500:]}"
    resumed = start(out)
    assert resumed.returncode == 0, resumed.stderr
    for part in ("model", "ema"):
        mine, theirs = weights(out, part=part), weights(undisturbed, part=part)
        mine, theirs = ({**w.pop("model"), **w} if "model" in w else w for w in (mine, theirs))
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])), f"{part} {key} differs after {deaths}"
    assert losses(out) == losses(undisturbed), "the log has every step once"
    assert not list(out.rglob("*.part")), "what the killed processes had half written is cleared"


def test_two_processes_follow_one(undisturbed, tmp_path):
    one = start(tmp_path / "one", TINY_DROPOUT="0")
    two = start(tmp_path / "two", processes=2, TINY_DROPOUT="0")
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    a, b = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(a) == len(b) == 12
    assert max(abs(x - y) for x, y in zip(a, b)) < 2e-5 * max(a), list(zip(a, b))
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[key], value, rtol=1e-4, atol=1e-5)


def test_accumulated_parts_follow_the_whole_batch(tmp_path):
    """Without batch norm and dropout, four parts of two images give the gradient of eight."""
    def fit(out, **recipe):
        config, _ = train.settings.parse(["method=tiny", f"out={out}"], METHODS)
        run = Run(config, supervision=("image", "mask", "tags"), quiet=True)
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, len(run.data("train").classes), 3, padding=1)
        data = Batches(run.data("train"), 8, 0)
        step = lambda m, batch, t: {"ce": torch.nn.functional.cross_entropy(m(batch["image"]), batch["mask"])}
        run.fit("x", model, step, data, Recipe(steps=3, batch=8, lr=0.1, **recipe))
        run.close()
        return model.weight.detach()

    torch.testing.assert_close(fit(tmp_path / "b", micro_batch=2), fit(tmp_path / "a"), rtol=1e-5, atol=1e-7)


def test_channels_last_trains_the_same_network(tmp_path):
    """Same numbers, other order in memory: images and weights arrive channels-last at the step, and the weights end where they would have."""
    def fit(out, channels_last):
        config, _ = train.settings.parse(["method=tiny", f"out={out}"], METHODS)
        run = Run(config, supervision=("image", "mask", "tags"), quiet=True)
        torch.manual_seed(0)
        model, seen = torch.nn.Conv2d(3, len(run.data("train").classes), 3, padding=1), set()

        def step(m, batch, t):
            seen.update(x.is_contiguous(memory_format=torch.channels_last) for x in (batch["image"], m.weight))
            return {"ce": torch.nn.functional.cross_entropy(m(batch["image"]), batch["mask"])}

        run.fit("x", model, step, Batches(run.data("train"), 8, 0), Recipe(steps=3, batch=8, lr=0.1, channels_last=channels_last))
        run.close()
        return model.weight.detach(), seen

    (plain, seen_plain), (last, seen_last) = fit(tmp_path / "a", False), fit(tmp_path / "b", True)
    assert seen_plain == {False} and seen_last == {True}
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-7)


def test_finished_stages_are_loaded(undisturbed):
    before = (undisturbed / "main" / "final.pt").stat().st_mtime_ns
    again = start(undisturbed)
    assert again.returncode == 0 and "main: finished earlier" in again.stdout
    assert (undisturbed / "main" / "final.pt").stat().st_mtime_ns == before


def test_the_run_folder_is_complete(undisturbed):
    for name in ("config.json", "command.txt", "log.jsonl", "result.json", "iou.csv", "report.png", "report.html"):
        assert (undisturbed / name).stat().st_size > 0, name
    result = json.loads((undisturbed / "result.json").read_text())
    assert 0 <= result["miou"] <= 1 and result["classes"]
    page = (undisturbed / "report.html").read_text()
    assert "src=\"http" not in page and "data:image/png;base64," in page, "the page must be self-contained"


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(undisturbed, tmp_path):
    out = tmp_path / "damaged"
    assert start(out, "die=step:9").returncode == -signal.SIGKILL
    last = out / "main" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    resumed = start(out)
    assert resumed.returncode == 0 and "using the checkpoint before it" in resumed.stdout
    assert all(torch.equal(v, weights(undisturbed)[k]) for k, v in weights(out).items())


def test_a_full_disk_is_one_sentence_and_loses_nothing(undisturbed, tmp_path):
    """RLIMIT_FSIZE makes every write beyond the limit fail, as a full disk does."""
    out = tmp_path / "full"
    assert start(out, "die=step:5").returncode == -signal.SIGKILL
    kept = (out / "main" / "last.pt").read_bytes()
    code = ("import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
            f"sys.argv = [{str(TINY)!r}, 'method=tiny', 'out={out}']; runpy.run_path({str(TINY)!r}, run_name='__main__')")
    full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert full.returncode == 1 and "cannot write" in full.stderr and "untouched" in full.stderr and "Traceback" not in full.stderr, full.stderr
    assert (out / "main" / "last.pt").read_bytes() == kept
    assert start(out).returncode == 0
    assert all(torch.equal(v, weights(undisturbed)[k]) for k, v in weights(out).items())


def main(capsys, *arguments, methods=METHODS) -> tuple[int, str]:
    code = train.main(["method=tiny", *arguments], methods)
    return code, capsys.readouterr().err


def test_nan_stops_with_a_sentence_and_keeps_the_checkpoint(tmp_path, capsys):
    code, said = main(capsys, f"out={tmp_path / 'nan'}", "poison=7")
    assert code == 1 and "not finite at step 8" in said and "ce=nan" in said and "last.pt is intact" in said
    assert files.load_tensors(tmp_path / "nan" / "main" / "last.pt")["step"] == 6


def test_a_weak_step_cannot_peek_at_masks(tmp_path, capsys):
    code, said = main(capsys, f"out={tmp_path / 'peek'}", "peek=true")
    assert code == 1 and "has no 'mask'" in said and "supervision" in said


def test_fit_refuses_data_beyond_the_supervision(tmp_path):
    config, _ = train.settings.parse(["method=tiny", f"out={tmp_path / 'r'}"], METHODS)
    run = Run(config, supervision=("image", "tags"), quiet=True)
    with pytest.raises(RuntimeError, match="would train on mask"):
        run.fit("x", network(3), lambda *a: {}, Batches(run.truth("train"), 2, 0, wants=("image", "mask")), Recipe(steps=1, batch=2))
    with pytest.raises(ValueError, match="mask is not among them"):
        run.data("train", ("image", "mask"))
    run.close()


def test_another_configuration_is_refused(undisturbed, capsys):
    code, said = main(capsys, f"out={undisturbed}", "train.lr=0.5")
    assert code == 2 and "train.lr=0.05 there, train.lr=0.5 now" in said


def test_a_folder_from_before_micro_batch_decided_is_continued_with_the_same(undisturbed, tmp_path, capsys):
    out = tmp_path / "older"
    shutil.copytree(undisturbed, out)
    saved = json.loads((out / "config.json").read_text())
    for key in [k for k in saved["identity"] if k.endswith(".micro_batch")]:
        del saved["identity"][key]
    (out / "config.json").write_text(json.dumps(saved))
    code, said = main(capsys, f"out={out}", "train.micro_batch=4")
    assert code == 2 and "train.micro_batch=0 there, train.micro_batch=4 now" in said
    assert main(capsys, f"out={out}") == (0, "")


def test_a_second_process_is_refused(undisturbed, capsys):
    lock = files.FolderLock(undisturbed)
    try:
        code, said = main(capsys, f"out={undisturbed}")
        assert code == 1 and "is in use by process" in said
    finally:
        lock.release()


def test_an_unequal_share_is_refused(tmp_path):
    done = start(tmp_path / "odd", "train.batch=9", processes=2)
    assert done.returncode != 0 and "cannot be shared equally by 2 processes" in done.stderr


def test_a_weights_file_may_move_and_go_but_not_change(tmp_path, capsys):
    """The tiny method never reads it: what is compared is the file, before anything is loaded."""
    out, file, moved = tmp_path / "run", tmp_path / "a.pth", tmp_path / "b.pth"
    begin = [f"out={out}", "train.steps=1", "first.steps=1"]
    file.write_bytes(b"numbers")
    assert main(capsys, *begin, f"weights={file}") == (0, "")
    file.rename(moved)
    assert main(capsys, *begin, f"weights={moved}") == (0, "")
    assert main(capsys, *begin, f"weights={file}") == (0, ""), "gone, and the finished run does not need it"
    file.write_bytes(b"other numbers")
    for arguments, now in ([f"weights={file}"], f"weights={file}"), ([], "none"):
        code, said = main(capsys, *begin, *arguments)
        assert code == 2 and f"{out} holds a run that began with other weights (now {now}); choose another out=" in said and said.count("\n") == 1
    code, said = main(capsys, *begin[1:], f"out={tmp_path / 'without'}")
    assert code == 0 and main(capsys, *begin[1:], f"out={tmp_path / 'without'}", f"weights={file}")[0] == 2, "nor may one come in later"


def test_a_folder_from_before_digests_goes_on(tmp_path, capsys):
    out, file = tmp_path / "run", tmp_path / "a.pth"
    begin = [f"out={out}", "train.steps=1", "first.steps=1"]
    file.write_bytes(b"numbers")
    assert main(capsys, *begin)[0] == 0
    old = json.loads((out / "config.json").read_text())
    del old["content"]
    (out / "config.json").write_text(json.dumps(old))
    assert main(capsys, *begin, f"weights={file}")[0] == 0
    assert json.loads((out / "config.json").read_text())["content"] == {"weights": files.digest(file)}


def test_a_data_set_may_move_but_not_change(tmp_path):
    def look(root):
        config, _ = train.settings.parse(["method=tiny", f"out={tmp_path / 'run'}", "data=folder", f"root={root}"], METHODS)
        run = Run(config, supervision=("image", "mask"), quiet=True)
        try:
            return len(run.data("train")) + len(run.truth("val"))
        finally:
            run.close()

    for split, names in ("train", "abc"), ("val", "de"):
        for name in names:
            for kind, shape in ("images", (4, 6, 3)), ("masks", (4, 6)):
                (tmp_path / "data" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full(shape, 1, np.uint8)).save(tmp_path / "data" / kind / split / f"{name}.png")
    (tmp_path / "data/classes.txt").write_text("grass\nsky\n")
    assert look(tmp_path / "data") == 5
    (tmp_path / "data").rename(tmp_path / "moved")
    assert look(tmp_path / "moved") == 5
    for kind in "images", "masks":
        (tmp_path / "moved" / kind / "val/e.png").unlink()
    with pytest.raises(train.settings.UsageError, match=r"holds a run that began with other val images \(now root=.*moved\); choose another out="):
        look(tmp_path / "moved")


@pytest.mark.parametrize("arguments, code, pieces", [
    (["train.lrr=1"], 2, ["train.lr"]), (["device=cuda:7"], 2, ["no CUDA device"]), (["data=vok"], 1, ["unknown data set 'vok'"]),
    (["data=voc", "root=/nowhere/at/all"], 1, ["/nowhere/at/all"]), (["data=voc"], 1, ["root"]),
], ids=lambda v: "-".join(v) if isinstance(v, list) else "")
def test_bad_command_lines(arguments, code, pieces, tmp_path, capsys):
    if "device=cuda:7" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    got, said = main(capsys, f"out={tmp_path / 'x'}", *arguments)
    assert got == code and "Traceback" not in said and said.count("\n") == 1, said
    for piece in pieces:
        assert piece in said


def test_schedules():
    poly = Recipe(steps=100, lr=1.0, schedule="poly", power=0.9)
    assert learning_rate(poly, 0) == 1.0 and abs(learning_rate(poly, 50) - 0.5**0.9) < 1e-12
    cosine = Recipe(steps=110, lr=2.0, schedule="cosine", warmup=10)
    assert learning_rate(cosine, 4) == 1.0 and learning_rate(cosine, 10) == 2.0 and abs(learning_rate(cosine, 60) - 1.0) < 1e-12
    assert learning_rate(Recipe(steps=10, lr=3.0, schedule="constant"), 9) == 3.0
    step = Recipe(steps=120, lr=1.0, schedule="step", power=80 / 120)
    assert [round(learning_rate(step, t), 6) for t in (0, 79, 80, 119)] == [1, 1, 0.1, 0.1]
    thirds = Recipe(steps=9, lr=1.0, schedule="step", power=1 / 3)
    assert [round(learning_rate(thirds, t), 6) for t in range(9)] == [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]


def test_batches_are_a_pure_function_of_the_step(tmp_path):
    config, _ = train.settings.parse(["method=tiny", f"out={tmp_path / 'r'}"], METHODS)
    run = Run(config, supervision=("image", "mask", "tags"), quiet=True)
    data = run.data("train")
    a, b = Batches(data, 8, 5), Batches(data, 8, 5)
    forward = [a[t]["index"].tolist() for t in range(5)]
    assert forward == [b[t]["index"].tolist() for t in reversed(range(5))][::-1]
    assert sorted(sum(forward, [])[:20]) == list(range(20)), "one epoch of 20 images holds every image once"
    assert forward != [Batches(data, 8, 6)[t]["index"].tolist() for t in range(5)]
    halves = a.share(2, 0, 4)["index"].tolist() + a.share(2, 4, 8)["index"].tolist()
    assert halves == forward[2]
    run.close()
