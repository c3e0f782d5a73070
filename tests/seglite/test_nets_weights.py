"""load_weights: every name accounted for, clear refusals, a refused file leaves the model alone."""
import pytest
import torch
from torch import nn

from seglite.nets.weights import load_weights


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.fixture
def saved(tmp_path):
    """write(content) -> path of a file written with torch.save."""

    def write(content, name="w.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def state(offset=1.0):
    return {k: v + offset if v.is_floating_point() else v + 7 for k, v in small().state_dict().items()}


def holds(model, content):
    return all(torch.equal(v, content[k]) for k, v in model.state_dict().items())


def test_exact_match_loads_everything_and_says_so(saved):
    model, said = small(), []
    done = load_weights(model, saved(state()), say=said.append)
    assert holds(model, state())
    assert sorted(done.loaded) == sorted(state()) and done.kept == done.unused == []
    assert said == ["weights: 9 tensors from w.pth"]


def test_half_precision_files_take_the_models_dtype(saved):
    model = small()
    load_weights(model, saved({k: v.half() if v.ndim > 1 else v for k, v in state().items()}))
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, state()["0.weight"].half().float())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_nested_checkpoints_are_opened_and_it_is_said(saved, key):
    model, said = small(), []
    load_weights(model, saved({key: state(), "epoch": 3}), say=said.append)
    assert holds(model, state()) and f"taken from the checkpoint's '{key}'" in said[0]


@pytest.mark.parametrize("mark", ["module.", "_orig_mod."])
def test_obvious_wrapper_marks_are_taken_off_and_it_is_said(saved, mark):
    model, said = small(), []
    load_weights(model, saved({mark + k: v for k, v in state().items()}), say=said.append)
    assert holds(model, state()) and f"'{mark}' taken off every name" in said[0]


def test_a_mark_on_some_names_only_is_not_obvious(saved):
    content = {("module." if i else "") + k: v for i, (k, v) in enumerate(state().items())}
    with pytest.raises(ValueError, match=r"8 names of the file are not in the model \(module\.0\.bias"):
        load_weights(small(), saved(content))


def test_strip_on_demand(saved):
    model = small()
    load_weights(model, saved({"net.head." + k: v for k, v in state().items()}), strip="net.head.")
    assert holds(model, state())
    with pytest.raises(ValueError, match="9 names do not begin with it"):
        load_weights(model, saved(state()), strip="net.")


def test_prefix_takes_one_part(saved):
    model, said = small(), []
    content = {"backbone." + k: v for k, v in state().items()} | {"head.weight": torch.zeros(2)}
    load_weights(model, saved(content), prefix="backbone.", say=said.append)
    assert holds(model, state()) and "1 outside 'backbone.' left aside" in said[0]
    with pytest.raises(ValueError, match=r"no name begins with prefix='encoder\.'; the file's names are backbone\.0\.weight"):
        load_weights(model, saved(content), prefix="encoder.")


def refused(content, message, saved, **options):
    """The call raises one sentence and no number of the model has moved."""
    model = small()
    path = content if not isinstance(content, dict) else saved(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, path, **options)
    assert holds(model, small().state_dict())
    assert "\n" not in str(caught.value)


def without(name):
    return {k: v for k, v in state().items() if k != name}


def test_missing_and_unexpected_names_are_refused(saved):
    refused(without("2.bias"), r"1 names of the model are not in the file \(2\.bias \[2\]\).*partial=\('2\.',\)", saved)
    refused(state() | {"fc.bias": torch.zeros(5)}, r"1 names of the file are not in the model \(fc\.bias \[5\]\)", saved)


def test_another_shape_is_refused_even_when_partial(saved):
    content = state() | {"2.weight": torch.zeros(21, 4, 1, 1)}
    refused(content, r"first 2\.weight: file \[21, 4, 1, 1\], model \[2, 4, 1, 1\].*partial=\('2\.',\)", saved)
    refused(content, r"first 2\.weight", saved, partial=True)


def test_partial_by_name_allows_just_that(saved):
    model = small()
    content = state() | {"2.weight": torch.zeros(21, 4, 1, 1), "2.bias": torch.zeros(21)}
    done = load_weights(model, saved(content), partial=("2.",))
    assert done.kept == done.unused == ["2.weight", "2.bias"] and len(done.loaded) == 7
    assert torch.equal(model[2].weight, small()[2].weight) and torch.equal(model[0].weight, state()["0.weight"])
    refused(without("0.weight"), r"0\.weight", saved, partial=("2.",))


def test_partial_for_any_name(saved):
    model = small()
    done = load_weights(model, saved(without("0.weight") | {"extra": torch.zeros(1)}), partial=True)
    assert done.kept == ["0.weight"] and done.unused == ["extra"]
    assert str(done) == "weights: 8 tensors from w.pth; 1 of the model kept as they were (0.weight); 1 of the file not used (extra)"
    refused({"other": torch.zeros(1)}, "not one of its 1 names is in the model", saved, partial=True)


def test_old_files_without_counters_load(saved):
    done = load_weights(small(), saved(without("1.num_batches_tracked")))
    assert "1 num_batches_tracked counters absent" in str(done) and done.kept == []


def test_unsuitable_numbers_are_refused(saved):
    refused(state() | {"0.bias": torch.ones(4, dtype=torch.int8)}, "0.bias is torch.int8, the model wants torch.float32", saved)
    refused(state() | {"0.bias": torch.tensor([1.0, 2.0, float("nan"), 4.0])}, "0.bias holds numbers that are not finite", saved)


def test_files_that_are_no_weights_are_refused(saved, tmp_path):
    refused(tmp_path / "absent.pth", "there is no such weights file", saved)
    refused(tmp_path, "there is no such weights file", saved)
    contents = {"empty": b"", "text": b"hello, not weights\n", "html": b"<!DOCTYPE html><html></html>" * 50, "zeros": bytes(4096)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"not a PyTorch weights file, or one cut short \\({len(content)} bytes\\)", saved)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
def test_files_cut_short_are_refused(saved, tmp_path, part):
    whole = saved(state()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(part * len(whole))])
    refused(tmp_path / "cut.pth", "cut short", saved)


def test_a_damaged_archive_is_refused(saved, tmp_path):
    """Bytes overwritten in the middle: either refused in one sentence, or numbers that are read as they stand, never a crash."""
    whole = bytearray(saved(state()).read_bytes())
    for start in range(0, len(whole), 97):
        damaged = bytes(whole[:start]) + b"\xff" * 8 + bytes(whole[start + 8 :])
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            load_weights(small(), tmp_path / "damaged.pth", say=lambda sentence: None)
        except ValueError as error:
            assert "damaged.pth" in str(error) and "\n" not in str(error)


class Trap:
    def __reduce__(self):
        return (open, ("trap-was-sprung", "w"))


def test_python_objects_are_never_unpickled(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused({"state_dict": state(), "args": Trap()}, "Python objects besides tensors, which are never executed", saved)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_tables_without_tensors_are_refused(saved):
    refused({"epoch": 3, "lr": 0.1}, "no table of named tensors in it; it holds the keys epoch, lr", saved)
    refused(saved([1, 2], "list.pth"), "holds a list, expected a state_dict", saved)
    refused(state() | {"version": 3}, r"1 entries are not tensors \(version\)", saved)
