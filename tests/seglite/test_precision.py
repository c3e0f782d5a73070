"""Every stage of every method in mixed precision, in accumulated parts and compiled: it trains, and its losses stay near the plain ones."""
import functools
import math

import pytest
import torch

from seglite import run, train
from tests.seglite.test_distributed import command, curves

# How far a loss may be from the plain one, relative, over three steps from the same weights. bf16 has eight bits of mantissa: 4 % was seen in
# MixReorg, whose patches choose their group by argmax. Parts have batch norms of half the images, and each draws its own random numbers: 0.1.
# Where the images of a part also compete with one another (captions, Barlow Twins, STEGO's unrelated images) there are half as many: another
# loss, only its size is the same.
BF16, FP16, PARTS = 0.1, 0.1, 0.1
COMPETING = {("zeroseg", "clip"): 0.8, ("mixreorg", "model"): 0.4, ("marsstyle", "backbone"): 0.3, ("marsstyle", "head"): 0.8,
             ("marsstyle", "segmenter"): 0.3}  # the last learns from what the head found


@pytest.fixture
def losses(tmp_path, monkeypatch):
    """(method, parts, {key of a recipe: value}) -> {(stage, step): loss}, trained in this process and without a report."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(run.Run, "report", lambda *arguments, **content: None)

    def trained(method: str, parts: int = 1, **recipe) -> dict[tuple[str, int], float]:
        words = dict(word.split("=", 1) for word in command(method))
        stages = [key.removesuffix(".steps") for key in words if key.endswith(".steps")]
        words |= {f"{stage}.{key}": value for stage in stages for key, value in recipe.items()}
        if parts > 1:
            words |= {f"{stage}.micro_batch": str(int(words[f"{stage}.batch"]) // parts) for stage in stages}
        out = tmp_path / "-".join([f"run{parts}", *recipe])
        assert train.main([*(f"{key}={value}" for key, value in words.items()), f"out={out}"]) == 0
        return curves(out)

    yield trained
    torch.set_num_threads(threads)


def assert_near(found: dict, plain: dict, limit) -> None:
    assert found.keys() == plain.keys() and len(plain) >= 3 and found != plain, "the same stages, computed in another way"
    for (stage, step), loss in plain.items():
        here = found[stage, step]
        assert math.isfinite(here) and abs(here - loss) <= limit(stage) * abs(loss) + 1e-6, f"{stage}, step {step}: {here}, plain {loss}"


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(train.METHODS))
def test_every_method_in_mixed_precision_and_in_parts(method, losses):
    plain = losses(method)
    assert_near(losses(method, amp="bf16"), plain, lambda stage: BF16)
    assert_near(losses(method, parts=2), plain, lambda stage: COMPETING.get((method, stage), PARTS))


@pytest.mark.slow
def test_every_step_of_barm_in_fp16(losses):
    """Five networks in a row with scaled losses, on a CPU: autocast and GradScaler know it too."""
    assert_near(losses("barm", amp="fp16"), losses("barm"), lambda stage: FP16)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cwbass", "deeplab", "mgd", "zeroseg"])  # a few seconds of tracing each; the others take longer
def test_compiled_methods_train_the_same(method, losses, monkeypatch):
    """torch.compile's graphs run by PyTorch itself, so to float error the same curves."""
    compiled, calls = functools.partial(torch.compile, backend="eager"), []
    monkeypatch.setattr(torch, "compile", lambda network: calls.append(network) or compiled(network))
    plain, graphs = losses(method), losses(method, compile="true")
    assert len(calls) == len({stage for stage, _ in plain}) and graphs.keys() == plain.keys()
    for key, loss in plain.items():
        assert abs(graphs[key] - loss) <= 1e-4 * abs(loss) + 1e-6, f"{key}: {graphs[key]}, plain {loss}"
