"""Masked auto-encoder: published names and counts, masking, positions, the loss on removed patches only."""
import math

import pytest
import torch

from seglite.nets import mae as M
from tests.tolerances import assert_close


def test_published_count_and_names():
    with torch.device("meta"):
        base = M.MaskedAutoencoder()
    own = {name: tuple(value.shape) for name, value in base.state_dict().items()}
    assert sum(p.numel() for p in base.parameters()) == 111_907_840
    expected = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768), "patch_embed.proj.weight": (768, 3, 16, 16), "blocks.11.attn.qkv.weight": (2304, 768),
                "blocks.0.mlp.fc1.weight": (3072, 768), "norm.weight": (768,), "mask_token": (1, 1, 512), "decoder_embed.weight": (512, 768),
                "decoder_pos_embed": (1, 197, 512), "decoder_blocks.7.attn.proj.weight": (512, 512), "decoder_norm.bias": (512,), "decoder_pred.weight": (768, 512)}
    assert {name: own.get(name) for name in expected} == expected
    assert not base.pos_embed.requires_grad and not base.decoder_pos_embed.requires_grad


def test_positions_by_the_published_formula():
    table = M.sine_positions(8, 3, 3, 3)[0]
    assert table.shape == (10, 8) and (table[0] == 0).all()
    for row in range(3):
        for column in range(3):
            half = lambda p: [math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)]  # noqa: E731
            assert_close(table[1 + 3 * row + column], torch.tensor(half(column) + half(row)))


def test_positions_of_a_finer_map_lie_between():
    coarse, fine = M.sine_positions(8, 1, 14, 14, False)[0], M.sine_positions(8, 1, 28, 14, False)[0]
    assert float(fine[0, 0]) == pytest.approx(math.sin(-0.25)) and float(fine[27, 0]) == pytest.approx(math.sin(13.25))
    assert_close(fine[:, 0].asin().diff()[:3], torch.full((3,), 0.5))  # half a patch from one to the next
    assert_close(M.sine_positions(8, 1, 42, 14, False)[0][1::3], coarse)
    with pytest.raises(ValueError, match="multiple of 4"):
        M.sine_positions(6, 2, 2, 2)


@pytest.mark.parametrize("patches, ratio, kept", [(196, 0.6, 78), (196, 0.75, 49), (64, 0.6, 25), (10, 0.9, 1)])
def test_hiding_keeps_the_right_number_and_finds_the_way_back(patches, ratio, kept):
    torch.manual_seed(0)
    hidden = M.random_hiding(3, patches, ratio)
    assert hidden.keep.shape == (3, kept) and (hidden.removed.sum(1) == patches - kept).all()
    x = torch.arange(patches).expand(3, -1)
    shuffled = torch.cat([x.gather(1, hidden.keep), torch.full((3, patches - kept), -1)], 1)
    back = shuffled.gather(1, hidden.restore)
    assert torch.equal(torch.where(hidden.removed == 0, x, -1), back)
    assert not torch.equal(hidden.keep[0].sort().values, hidden.keep[1].sort().values) or kept == 1


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match="leaves 0 of 4 patches"):
        M.random_hiding(1, 4, 0.9)


def small(**changes):
    torch.manual_seed(0)
    return M.MaskedAutoencoder(**{"patch": 4, "width": 16, "depth": 1, "heads": 2, "image_size": 16, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, **changes})


def test_the_encoder_sees_visible_patches_only():
    model, image = small().eval(), torch.randn(1, 3, 16, 16)
    torch.manual_seed(1)
    seen, hidden = model.encode(image, 0.5)
    changed = image.clone()
    place = int(hidden.removed[0].nonzero()[0])
    changed[:, :, 4 * (place // 4) :, :][:, :, :4, 4 * (place % 4) : 4 * (place % 4) + 4] += 9
    torch.manual_seed(1)
    assert torch.equal(model.encode(changed, 0.5)[0], seen) and seen.shape == (1, 1 + 8, 16)
    assert not torch.equal(model.encode(changed)[0], model.encode(image)[0])
    assert model.encode(image)[1] is None and model.encode(image)[0].shape == (1, 17, 16)


def test_patches_come_row_by_row_colours_last():
    image = torch.arange(2 * 3 * 4 * 8).float().view(2, 3, 4, 8)
    found = M.patches_of(image, 4)
    assert found.shape == (2, 2, 48)
    assert found[1, 1].tolist() == image[1, :, :, 4:].permute(1, 2, 0).flatten().tolist()


def test_loss_counts_removed_patches():
    image, removed = torch.randn(1, 3, 4, 8), torch.tensor([[0.0, 1.0]])
    target = M.patches_of(image, 4)
    wrong = target.clone()
    wrong[0, 0] += 5
    assert float(M.reconstruction_loss(wrong, image, removed, 4)) == 0
    assert float(M.reconstruction_loss(wrong, image, removed, 4, everywhere=True)) == pytest.approx(12.5, rel=1e-5)
    wrong[0, 1] += 2
    assert float(M.reconstruction_loss(wrong, image, removed, 4)) == pytest.approx(4.0, rel=1e-5)
    flat = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert float(M.reconstruction_loss(flat, image, removed, 4, each_patch=True)) < 1e-10


def test_every_parameter_learns():
    model, image = small().train(), torch.randn(2, 3, 16, 16)
    seen, hidden = model.encode(image, 0.5)
    M.reconstruction_loss(model.decode(seen, hidden.restore), image, hidden.removed, 4).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)] == []
    assert small(decoder_depth=0).decoder_embed is None
    with pytest.raises(ValueError, match="multiples of the patch, 4"):
        model.encode(torch.randn(1, 3, 16, 18))
