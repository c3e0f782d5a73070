"""Losses against sums written out by hand, and what must not depend on ignored pixels, dtypes or the number of processes."""
import datetime
import math
import socket

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seglite.losses import contrastive, cross_entropy, multilabel_soft_margin, ohem_cross_entropy, pixel_cross_entropy
from tests.tolerances import assert_close


def batch(seed=0, B=2, K=5, H=6, W=7, ignored=0.2):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, K, H, W, generator=g)
    target = torch.randint(K, (B, H, W), generator=g)
    target[torch.rand(B, H, W, generator=g) < ignored] = 255
    return logits, target


def by_hand(logits, target, weight=None):
    """Sum of -w log p over counted pixels, in float64 and with Python loops, and how many there are."""
    total, count = 0.0, 0
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)).tolist():
        k = int(target[b, y, x])
        if k != 255:
            scores = [math.exp(v) for v in logits[b, :, y, x].double().tolist()]
            total -= (1.0 if weight is None else float(weight[b, y, x])) * math.log(scores[k] / sum(scores))
            count += 1
    return total, count


def test_mean_over_counted_pixels():
    logits, target = batch()
    total, count = by_hand(logits, target)
    assert 50 < count < 84
    assert float(cross_entropy(logits, target)) == pytest.approx(total / count, rel=1e-6)


def test_two_pixels_in_numbers():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 5.0]]).view(1, 2, 1, 2)
    assert float(cross_entropy(logits, torch.tensor([[[1, 255]]]))) == pytest.approx(math.log(4 / 3))
    assert float(cross_entropy(logits, torch.tensor([[[0, 255]]]))) == pytest.approx(math.log(4))


def test_weights_scale_pixels_and_leave_the_divisor_alone():
    logits, target = batch()
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    total, count = by_hand(logits, target, weight)
    assert float(cross_entropy(logits, target, weight)) == pytest.approx(total / count, rel=1e-6)
    # Half the confidence, half the step: dividing by the sum of weights would give the same loss for both.
    assert float(cross_entropy(logits, target, 0.5 * weight)) == pytest.approx(0.5 * total / count, rel=1e-6)


def test_weights_on_ignored_pixels_leak_neither_forwards_nor_backwards():
    logits, target = batch()
    logits.requires_grad_()
    weight = torch.where(target == 255, float("nan"), 1.0)
    loss = cross_entropy(logits, target, weight)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(cross_entropy(logits.detach(), target)))
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy], ids=["cross_entropy", "ohem"])
def test_nothing_to_learn_from_gives_zero_with_a_gradient(loss):
    logits, target = batch()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(target, 255))
    assert float(value.detach()) == 0.0
    value.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 6), st.floats(0, 1))
def test_ignored_pixels_get_no_gradient_and_do_not_dilute(seed, B, K, ignored):
    logits, target = batch(seed, B, K, 3, 4, ignored)
    logits.requires_grad_()
    cross_entropy(logits, target).backward()
    assert torch.equal(logits.grad.abs().sum(1)[target == 255], torch.zeros(int((target == 255).sum())))
    # Appending an image of ignored pixels changes nothing.
    padded = torch.cat([logits.detach(), torch.randn(1, K, 3, 4)]), torch.cat([target, torch.full((1, 3, 4), 255)])
    assert float(cross_entropy(*padded)) == pytest.approx(float(cross_entropy(logits.detach(), target)), rel=1e-6)


def test_gradient_equals_its_formula():
    logits, target = batch(B=1, K=3, H=2, W=3)
    logits = logits.double().requires_grad_()
    weight = torch.rand(target.shape, dtype=torch.float64)
    # The arithmetic is float32 on purpose: too coarse for finite differences, so the derivative is compared with its formula.
    cross_entropy(logits, target, weight).backward()
    onehot = torch.nn.functional.one_hot(target.clamp(max=2), 3).movedim(-1, 1)
    counted = (target != 255)[:, None]
    expected = (logits.detach().softmax(1) - onehot) * weight[:, None] * counted / counted.sum()
    assert_close(logits.grad, expected, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_float32_under_autocast(dtype):
    logits, target = batch()
    logits = (logits * 10).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [f(logits, target) for f in (cross_entropy, ohem_cross_entropy)]
        values.append(multilabel_soft_margin(logits[:, :, 0, 0], torch.ones(2, 5)))
    exact = [f(logits.float(), target) for f in (cross_entropy, ohem_cross_entropy)]
    exact.append(multilabel_soft_margin(logits[:, :, 0, 0].float(), torch.ones(2, 5)))
    for value, expected in zip(values, exact):
        assert value.dtype == torch.float32 and float(value) == float(expected)


def test_pixel_losses_sum_to_the_whole():
    logits, target = batch()
    per_pixel = pixel_cross_entropy(logits, target)
    assert per_pixel.shape == target.shape and float(per_pixel[target == 255].abs().max()) == 0.0
    assert float(per_pixel.sum()) == pytest.approx(by_hand(logits, target)[0], rel=1e-6)


# Five pixels whose true class (0 of 2) has probability 0.1, 0.3, 0.5, 0.8, 0.95.
LIKELY = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95])
HARD_LOGITS = torch.stack([LIKELY.log(), (1 - LIKELY).log()]).view(1, 2, 1, 5)
ZEROS = torch.zeros(1, 1, 5, dtype=torch.int64)


@pytest.mark.parametrize("threshold,keep,chosen", [
    (0.6, 1, 3),     # all below the threshold, though one would do
    (0.2, 2, 2),     # fewer than `keep` below: the two least likely
    (0.2, 4, 4),
    (0.2, 5, 5),     # no more pixels than `keep`: all of them
    (0.2, 99, 5),
    (1.0, 1, 5),
    (0.9, 1, 4),
])
def test_ohem_picks_the_hardest(threshold, keep, chosen):
    expected = -LIKELY[:chosen].log().mean()
    assert float(ohem_cross_entropy(HARD_LOGITS, ZEROS, threshold, keep)) == pytest.approx(float(expected), rel=1e-5)


def test_ohem_ignores_before_it_counts():
    target = torch.tensor([[[255, 0, 0, 0, 255]]])
    assert float(ohem_cross_entropy(HARD_LOGITS, target, 0.2, 1)) == pytest.approx(-math.log(0.3), rel=1e-5)


def test_ohem_only_moves_hard_pixels():
    logits = HARD_LOGITS.clone().requires_grad_()
    ohem_cross_entropy(logits, ZEROS, 0.6, 1).backward()
    assert (logits.grad[0, 0, 0] != 0).tolist() == [True, True, True, False, False]


def test_soft_margin_equals_its_formula():
    g = torch.Generator().manual_seed(0)
    logits, tags = torch.randn(3, 4, generator=g), torch.randint(2, (3, 4), generator=g).float()
    p = logits.double().sigmoid()
    expected = -(tags * p.log() + (1 - tags) * (1 - p).log()).mean()
    assert float(multilabel_soft_margin(logits, tags)) == pytest.approx(float(expected), rel=1e-6)
    assert float(multilabel_soft_margin(torch.tensor([[1000.0]]), torch.tensor([[0.0]]))) == 1000.0  # no overflow


def test_bad_input():
    logits, target = batch()
    with pytest.raises(ValueError, match=r"\[2, 5, 6, 7\].*\[2, 6, 8\].*enlarge"):
        cross_entropy(logits, torch.zeros(2, 6, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="int64"):
        cross_entropy(logits, target.to(torch.uint8))
    with pytest.raises(ValueError, match="weight is"):
        cross_entropy(logits, target, torch.ones(2, 1, 6, 7))
    with pytest.raises(ValueError, match="threshold=0"):
        ohem_cross_entropy(logits, target, threshold=0)
    with pytest.raises(ValueError, match="foreground class"):
        multilabel_soft_margin(torch.zeros(2, 4), torch.zeros(2, 5))


# ---- two processes ----------------------------------------------------------------------------------------------------------------------


def uneven_batch():
    """Image 0 has 2 counted pixels of 42, image 1 all of them: means of means would be far off."""
    logits, target = batch(ignored=0.0)
    target[0].fill_(255)
    target[0, 0, :2] = 1
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(2))
    return logits, target, weight


def _train_step(rank: int, port: int, out: str) -> None:
    limit = datetime.timedelta(seconds=60)  # a process left waiting fails the test
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=limit)
    torch.manual_seed(0)
    scale = torch.nn.Conv2d(5, 5, 1)
    logits, target, weight = (x[rank : rank + 1] for x in uneven_batch())
    loss = cross_entropy(scale(logits), target, weight)
    loss.backward()
    torch.distributed.all_reduce(scale.weight.grad)
    scale.weight.grad /= 2  # what DistributedDataParallel does
    if rank == 0:  # an evaluation on one process only must not wait for the other
        alone = cross_entropy(logits, target)
        torch.save({"gradient": scale.weight.grad, "alone": alone}, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_step_of_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_train_step, args=(port, str(tmp_path / "step.pt")), nprocs=2)
    found = torch.load(tmp_path / "step.pt", weights_only=True)
    torch.manual_seed(0)
    scale = torch.nn.Conv2d(5, 5, 1)
    logits, target, weight = uneven_batch()
    cross_entropy(scale(logits), target, weight).backward()
    assert_close(found["gradient"], scale.weight.grad)
    assert float(found["alone"]) == pytest.approx(float(cross_entropy(logits[:1], target[:1])))


# ---- images and texts -------------------------------------------------------------------------------------------------------------------


def pairs_of(count=6):
    g = torch.Generator().manual_seed(3)
    return (torch.nn.functional.normalize(torch.randn(count, 5, generator=g), dim=1) for _ in range(2))


def test_contrastive_equals_its_formula():
    image, text = pairs_of()
    p = (7.0 * image.double() @ text.double().T).exp()
    expected = -(torch.log(p.diag() / p.sum(1)) + torch.log(p.diag() / p.sum(0))).mean() / 2
    assert float(contrastive(image, text, 7.0)) == pytest.approx(float(expected), rel=1e-5)
    same = torch.ones(4, 5) / 5**0.5
    assert float(contrastive(same, same, 10.0)) == pytest.approx(math.log(4), rel=1e-5)  # nothing to tell them apart: chance
    assert float(contrastive(torch.eye(5), torch.eye(5), 100.0)) < 1e-6
    with pytest.raises(ValueError, match=r"\[6, 5\].*\[4, 5\]"):
        contrastive(image, same, 1.0)


def _contrastive_step(rank: int, port: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    gradients, loss = _contrastive_gradients(slice(3 * rank, 3 * rank + 3))
    for x in (*gradients, loss):
        torch.distributed.all_reduce(x)
        x /= 2  # what DistributedDataParallel and the log do
    if rank == 0:
        torch.save({"gradients": gradients, "loss": loss}, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _contrastive_gradients(rows: slice):
    """Gradients of a shared layer and of the temperature for some rows of the batch, and the loss."""
    torch.manual_seed(0)
    layer, scale = torch.nn.Linear(5, 4), torch.tensor(3.0, requires_grad=True)
    image, text = (torch.nn.functional.normalize(layer(x[rows]), dim=1) for x in pairs_of())
    loss = contrastive(image, text, scale)
    loss.backward()
    return [layer.weight.grad, scale.grad], loss.detach()


def test_contrastive_over_two_processes_sees_the_whole_batch(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_contrastive_step, args=(port, str(tmp_path / "step.pt")), nprocs=2)
    found = torch.load(tmp_path / "step.pt", weights_only=True)
    gradients, loss = _contrastive_gradients(slice(None))
    assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(found["gradients"], gradients):
        assert_close(a, b)
