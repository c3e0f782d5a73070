"""Several processes as one, tested in one process: what each of them computes, with the others' part made up."""
import pytest
import torch
import torch.distributed as dist

from seglite import losses, parallel


def test_whole_batch_norm_in_bfloat16(monkeypatch):
    """As under amp=bf16: the statistics are float32, and output and gradient are of the input's type. The other process sees the same images."""
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "mean_over_processes", lambda x: x)
    whole, plain = parallel.WholeBatchNorm2d(3, momentum=0.5), torch.nn.BatchNorm2d(3, momentum=0.5)
    x = (3 + 2 * torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_(True)  # [B, C, H, W]
    wanted = plain(torch.cat([x.detach(), x.detach()]).float())[:2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = whole(x)
    got.float().square().sum().backward()
    assert got.dtype == x.grad.dtype == torch.bfloat16 and whole.running_var.dtype == torch.float32
    torch.testing.assert_close(got.float(), wanted, rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(whole.running_mean, plain.running_mean)
    torch.testing.assert_close(whole.running_var, plain.running_var)
    assert whole.double()(x.detach().double()).dtype == torch.float64


@pytest.mark.parametrize("loss", [
    lambda x: losses.cross_entropy(x[None, :, None], torch.zeros(1, 1, 4, dtype=torch.int64)),
    lambda x: losses.contrastive(x, x, 1.0),
], ids=["cross_entropy", "contrastive"])
def test_a_loss_computed_alone_waits_for_nobody(loss, monkeypatch):
    x = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_(True)
    wanted = loss(x).item()

    def waits(*_arguments, **_keywords):
        raise RuntimeError("would wait for the other process")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, waits)
    with parallel.alone():
        assert loss(x).item() == wanted
    with pytest.raises(RuntimeError, match="would wait"):
        loss(x)
