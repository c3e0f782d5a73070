"""What networks cost: counts against formulas, memory against a hand count, timing in turn, the two commands."""
import json
import time

import pytest
import torch
from torch import nn

from seglite import networks, speed
from seglite.measure import interleaved, multiply_adds, peak_bytes
from seglite.nets.layers import count_parameters
from seglite.nets.p2at import P2A2
from tests.seglite.tiny import METHODS


def test_multiply_adds_by_hand():
    """k*k*C*D*h*w for a convolution, C*D per position for a linear layer; norms and activations are free."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, groups=8))
    assert multiply_adds(model.eval(), (20, 30)) == (9 * 3 * 8 + 25 * 8) * 10 * 15
    assert multiply_adds(model.eval(), (20, 30), batch=3) == 3 * (9 * 3 * 8 + 25 * 8) * 10 * 15


@pytest.mark.parametrize("kind,pairs", [("squeeze", 12**2 + 15**2), ("axial", 12 * 15 * (12 + 15)), ("full", (12 * 15) ** 2)])
def test_attention_is_counted(kind, pairs):
    """Section 7 of the study: 8 heads of 16 + 32 channels for every pair, N^2, N (H + W) or H^2 + W^2 pairs."""
    block = P2A2(64, attention=kind, pooling="none").eval()
    stem = nn.Conv2d(3, 64, 1)
    lengths = 12 + 15 if kind == "squeeze" else 2 * 12 * 15
    tables = 4 * 128 * 16 * (12 + 15) // 2  # position tables are stretched by a product: two of 12, two of 15
    around = 12 * 15 * (3 * 64 + 64 * 64 * 10 + 64 * (128 + 128 + 256) + 256 * 64) + lengths * 256 * 256
    assert multiply_adds(nn.Sequential(stem, block), (12, 15)) == around + tables + 8 * (16 + 32) * pairs


def test_memory_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    image = torch.randn(1, 3, 50, 40)
    assert peak_bytes(lambda: model(image)) == 2 * 8 * 50 * 40 * 4  # the first map and its ReLU; then the first is gone
    a = torch.randn(1000)
    assert peak_bytes(lambda: [a + 1 for _ in range(5)]) == 20000 and peak_bytes(lambda: ((a + 1) + 1) + 1) == 8000
    assert peak_bytes(lambda: a.view(10, 100).t()) == 0 and peak_bytes(lambda: a.add_(1)) == 0


def test_calls_are_timed_in_turn():
    order = []
    found = interleaved({"a": lambda: (order.append("a"), spin(0.002)), "b": lambda: (order.append("b"), spin(0.008))}, seconds=0, warm_up=1, least=4)
    assert order == ["a", "b"] + ["a", "b"] * 4
    assert 1.5 < torch.get_num_threads() * found["a"] < 8 and found["b"] > 2 * found["a"]


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


SMALL = ["P2AT-S", "SmallUNet"]


def test_the_command_writes_table_and_picture(tmp_path, capsys):
    assert networks.main(["size=64,96", "only=" + ",".join(SMALL), "seconds=0", f"out={tmp_path}", "classes=5"]) == 0
    result = json.loads((tmp_path / "networks.json").read_text())["networks"]
    assert list(result) == SMALL and (tmp_path / "networks.png").stat().st_size > 5000
    for row in result.values():
        assert min(row["M params"], row["GMAC"], row["peak MiB"], row["img/s eager"], row["img/s channels_last"]) > 0
    assert abs(result["P2AT-S"]["M params"] - 12.27) < 0.02  # without dead taps, with folded norms
    assert result["P2AT-S"]["folded"] == "yes" and "GMAC" in capsys.readouterr().out
    assert networks.main(["only=PSP", f"out={tmp_path}"]) == 2 and "PSPNet-50" in capsys.readouterr().err


def test_without_a_compiler_the_table_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert networks.main(["size=64,96", "only=SmallUNet", "seconds=0", f"out={tmp_path}", "compiled=true", "device=cpu"]) == 0
    row = json.loads((tmp_path / "networks.json").read_text())["networks"]["SmallUNet"]
    assert row["img/s compiled"] == "not run here" and row["img/s eager"] > 0 and (tmp_path / "networks.png").stat().st_size > 3000
    assert "no-such-compiler is not on the path" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["eager", "channels_last", "bf16"])
def test_a_way_of_running_leaves_the_network_to_the_next(way):
    """On a CPU all ways follow each other on one network: compiled after channels_last must be compiled alone."""
    model = nn.Conv2d(3, 8, 3, padding=1).eval()
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    out = networks.runner(model, image, way)()
    assert model.weight.dtype == torch.float32 and model.weight.is_contiguous() and image.is_contiguous()
    assert out.is_contiguous(memory_format=torch.channels_last) == (way != "eager") and out.dtype == (torch.bfloat16 if way == "bf16" else torch.float32)


def test_every_network_of_the_list_is_counted():
    """Each builds and answers at 65 x 97 with 7 classes; weights are left as memory happens to be."""
    for name, build in networks.NETWORKS.items():
        with torch.device("meta"):
            model = build(7)
        assert multiply_adds(model.to_empty(device="cpu").eval(), (65, 97)) > 1e7, name


def test_deeplab_v2_is_the_paper_s():
    """37.88 M with hidden branches on VGG-16; 44.05 M on ResNet-101 with strides on the 1x1 (papers/deeplab.py); multiply-adds at 321 (21 classes)."""
    for name, parameters, operations in (("DeepLabV2-VGG16", 37.88, 80.1), ("DeepLabV2-101", 44.05, 75.1)):
        with torch.device("meta"):
            model = networks.NETWORKS[name](21)
        assert round(count_parameters(model) / 1e6, 2) == parameters, name
        model = model.to_empty(device="cpu").eval()
        assert round(multiply_adds(model, (321, 321)) / 1e9, 1) == operations, name
    assert model.backbone.layer2[0].conv1.stride == (2, 2) and model.backbone.layer2[0].conv2.stride == (1, 1)


def test_attention_alone(monkeypatch):
    """The counts of section 7 of the study; full attention is not timed where it would take long."""
    monkeypatch.setattr(networks, "MAPS", ((12, 15), (23, 30)))
    table = networks.attention_rows(networks.Settings(seconds=0, full_up_to=200), "cpu")
    assert [round(table["12x15"][f"{kind} MMAC"], 2) for kind in ("full", "axial", "squeeze")] == [12.44, 1.87, 0.14]
    assert table["12x15"]["full MiB"] > 2 * table["12x15"]["squeeze MiB"] > 0 and table["23x30"]["full MiB"] == "-"
    assert round(table["23x30"]["full MMAC"]) == 183 and table["23x30"]["full ms"] == "-" and table["12x15"]["full ms"] > 0 and table["23x30"]["axial ms"] > 0


def test_finished_runs_are_placed_by_speed_and_accuracy(tmp_path, monkeypatch):
    from seglite import train

    monkeypatch.chdir(tmp_path)
    assert train.main(["method=tiny", "threads=1", "out=run"], METHODS) == 0
    monkeypatch.setattr(train, "METHODS", METHODS)
    assert networks.main(["only=none", "runs=run", "seconds=0", "out=compared"]) == 0
    row = json.loads((tmp_path / "compared/networks.json").read_text())["runs"]["run"]
    assert row["mIoU"] == pytest.approx(100 * json.loads((tmp_path / "run/result.json").read_text())["miou"]) and row["img/s"] > 1 and row["size"] == "24x24"
    assert (tmp_path / "compared/accuracy.png").stat().st_size > 3000


def test_stages_of_a_method_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "STEPS", 2)
    rows, tested = speed.measure(["method=tiny", "threads=1", "data=scenes"], METHODS)
    assert [row["stage"] for row in rows] == ["first", "main"] and all(row["step img/s"] > 0 and row["loader img/s"] > 0 for row in rows)
    assert tested == {}  # the tiny method names no model in its report


def test_the_tested_network_is_put_beside_others(monkeypatch, capsys):
    monkeypatch.setattr(speed, "STEPS", 2)
    monkeypatch.setattr(speed, "RIVALS", ("SmallUNet",))
    assert speed.main(["method=p2at", "threads=1", "body_width=8", "channels=16", "heads=2", "key=4", "value=4", "scenes.size=32", "scenes.width=48",
                       "scenes.train_images=16", "scenes.val_images=1", "train.batch=2"]) == 0
    printed = capsys.readouterr().out
    assert "segmenter" in printed and "this method's, 32 x 48" in printed and "SmallUNet" in printed and "img/s channels_last" in printed
