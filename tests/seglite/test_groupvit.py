"""The grouping encoder: published sizes and names, what an assignment must be, and a second program for the grouping block."""
import math

import pytest
import torch
from torch.nn import functional as F

from seglite.nets import groupvit as G
from seglite.nets.weights import load_weights

TINY = dict(patch=4, width=24, heads=3, depths=(2, 1, 1), groups=(7, 5), image_size=20)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_published_size():
    """28,837,136 = 12 blocks of 1,774,464 + 2 grouping blocks + stem; with text tower and projectors the checkpoint has 55.7 M."""
    with torch.device("meta"):
        net = G.GroupViT()
    assert sum(p.numel() for p in net.parameters()) == 28_837_136
    assert len(net.state_dict()) == 239
    block = sum(p.numel() for p in net.layers[0].blocks[0].parameters())
    assert block == 1_774_464


def test_names_and_shapes_of_the_checkpoint():
    with torch.device("meta"):
        state = {f"img_encoder.{k}": tuple(v.shape) for k, v in G.GroupViT().state_dict().items()}
    known = {
        "patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.norm.weight": (384,), "pos_embed": (1, 196, 384), "norm.bias": (384,),
        "layers.0.group_token": (1, 64, 384), "layers.1.group_token": (1, 8, 384), "layers.0.blocks.5.attn.qkv.weight": (1152, 384),
        "layers.2.blocks.2.mlp.fc1.weight": (1536, 384), "layers.0.downsample.norm_tokens.weight": (384,),
        "layers.0.downsample.mlp_inter.fc1.weight": (192, 64), "layers.0.downsample.mlp_inter.fc2.weight": (64, 192),
        "layers.1.downsample.pre_assign_attn.attn.q_proj.weight": (384, 384), "layers.1.downsample.pre_assign_attn.norm_post.weight": (384,),
        "layers.1.downsample.pre_assign_attn.norm2.bias": (384,), "layers.1.downsample.assign.k_proj.bias": (384,),
        "layers.0.downsample.norm_post_tokens.weight": (384,), "layers.0.downsample.norm_x.weight": (384,),
        "layers.0.downsample.norm_new_x.weight": (384,), "layers.0.downsample.mlp_channels.fc2.weight": (384, 1536),
        "layers.1.group_projector.0.weight": (384,), "layers.1.group_projector.1.fc1.weight": (192, 64),
        "layers.1.group_projector.1.fc2.weight": (8, 192),
    }
    for name, shape in known.items():
        assert state.get(f"img_encoder.{name}") == shape, name
    assert not [k for k in state if "layers.2.group_token" in k or "layers.2.downsample" in k or "layers.0.group_projector" in k]


def captioned() -> G.CaptionedGroupViT:
    return G.CaptionedGroupViT(G.GroupViT(**TINY), G.TextTower(30, 16, 2, 2, context=9), shared=6, hidden=10)


def test_a_whole_checkpoint_has_the_published_size():
    """55,726,609 parameters: image encoder 28,837,136, text tower 22,145,792, projectors 2,633,984 and 2,109,696, temperature 1."""
    with torch.device("meta"):
        net = G.CaptionedGroupViT(G.GroupViT(), G.TextTower())
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(net.text_encoder), count(net.img_projector), count(net.text_projector)) == (22_145_792, 2_633_984, 2_109_696)
    assert count(net) == 55_726_609
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert shapes["text_encoder.token_embedding.weight"] == (49408, 256) and shapes["text_encoder.positional_embedding"] == (77, 256)
    assert shapes["text_encoder.transformer.resblocks.11.attn.in_proj_weight"] == (768, 256) and shapes["text_encoder.ln_final.bias"] == (256,)
    assert shapes["img_projector.linear_hidden.0.weight"] == (4096, 384, 1) and shapes["text_projector.linear_out.weight"] == (256, 4096, 1)
    assert shapes["img_projector.linear_hidden.1.running_var"] == (4096,) and shapes["logit_scale"] == ()


def test_checkpoint_round_trip_is_strict(tmp_path):
    net, other = captioned(), captioned()
    torch.save({"model": {**net.state_dict(), "multi_label_logit_scale": torch.zeros(())}, "lr_scheduler": {}}, tmp_path / "gv.pth")
    load_weights(other, tmp_path / "gv.pth", partial=("multi_label_logit_scale",), say=lambda _: None)
    image = torch.randn(2, 3, 20, 20)
    assert all(torch.equal(a, b) for a, b in zip(net.eval().segment(image), other.eval().segment(image)))
    load_weights(G.GroupViT(**TINY), tmp_path / "gv.pth", prefix="img_encoder.", say=lambda _: None)
    with pytest.raises(ValueError, match="multi_label_logit_scale"):
        load_weights(other, tmp_path / "gv.pth", say=lambda _: None)


def test_text_tower_ignores_what_follows_the_end_token():
    tower = G.TextTower(30, 16, 2, 2, context=9).eval()
    text = torch.tensor([[28, 3, 4, 29, 0, 0, 0, 0, 0]])
    padded = torch.tensor([[28, 3, 4, 29, 7, 7, 7, 7, 7]])
    assert torch.allclose(tower(text), tower(padded), atol=1e-6)
    assert not torch.allclose(tower(text), tower(torch.tensor([[28, 4, 3, 29, 0, 0, 0, 0, 0]])), atol=1e-3), "word order counts"
    with pytest.raises(ValueError, match="reads 9 tokens, got 4"):
        tower(text[:, :4])


def test_what_zero_shot_segmentation_receives():
    tokens, pooled, shares = captioned().eval().segment(torch.randn(2, 3, 12, 20))
    assert tokens.shape == (2, 5, 6) and pooled.shape == (2, 6) and shares.shape == (2, 5, 3, 5)
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(2, 5)) and torch.allclose(pooled.norm(dim=-1), torch.ones(2))
    assert torch.allclose(shares.sum(1), torch.ones(2, 3, 5), atol=1e-5)


def test_start_of_the_group_tokens():
    """Stage 1's table is zero, so that its group tokens begin as a projection of stage 0's; stage 0's table is random."""
    net = G.GroupViT(**TINY)
    assert net.layers[1].group_token.abs().max() == 0 and net.layers[0].group_token.std() > 0.01
    before = torch.randn(3, 7, 24)
    assert torch.equal(net.layers[1].start(3, before), net.layers[1].group_projector(before))


def test_assignment_is_over_groups_not_tokens():
    logits = torch.randn(2, 5, 9)
    a = G.assign(logits, noisy=False)
    assert torch.allclose(a.soft.sum(1), torch.ones(2, 9)) and not torch.allclose(a.soft.sum(2), torch.ones(2, 5), atol=1e-2)
    assert torch.equal(a.hard.argmax(1), logits.argmax(1))
    assert torch.allclose(a.hard, F.one_hot(logits.argmax(1), 5).transpose(1, 2).float(), atol=1e-6)


def test_straight_through_gradient_is_the_softmax_s():
    logits, upstream = torch.randn(2, 5, 9, dtype=torch.float32, requires_grad=True), torch.randn(2, 5, 9)
    (hard,) = torch.autograd.grad((G.assign(logits, False).hard * upstream).sum(), logits)
    (soft,) = torch.autograd.grad((logits.softmax(1) * upstream).sum(), logits)
    assert torch.allclose(hard, soft, atol=1e-6)


def test_gumbel_noise_samples_from_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0])[None, :, None].expand(1, 3, 20000)
    share = G.assign(logits, noisy=True).hard.mean(2)[0]
    assert torch.allclose(share, logits[0, :, 0].softmax(0), atol=0.015)
    assert torch.equal(G.assign(logits, True).soft, G.assign(logits, False).soft), "the soft map has no noise"


def test_noise_only_while_training():
    net, image = G.GroupViT(**TINY, drop_path=0.0), torch.randn(2, 3, 20, 20)
    net.train()
    assert not torch.equal(net(image).segments, net(image).segments)
    net.eval()
    assert torch.equal(net(image).segments, net(image).segments)
    quiet = G.GroupViT(**TINY, drop_path=0.0, noisy=False).train()
    assert torch.equal(quiet(image).segments, quiet(image).segments)


def test_grouping_block_against_a_second_program():
    """The formulas of the paper written out with loops over groups, on the module's own weights."""
    block = G.GroupingBlock(24, 3, 7, 5).eval()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, g = torch.randn(2, 9, 24), torch.randn(2, 7, 24)
    got, assignment = block(x, g)
    for b in range(2):
        gn, xn = block.norm_tokens(g[b]), block.norm_x(x[b])
        m = block.mlp_inter
        p = block.norm_post_tokens((m.fc2.weight @ F.gelu(m.fc1.weight @ gn + m.fc1.bias[:, None]) + m.fc2.bias[:, None]))
        c = block.pre_assign_attn
        q, k, v = c.attn.q_proj(p), c.attn.k_proj(xn), c.attn.v_proj(xn)
        heads = [torch.softmax(q[:, h * 8:h * 8 + 8] @ k[:, h * 8:h * 8 + 8].T / math.sqrt(8), 1) @ v[:, h * 8:h * 8 + 8] for h in range(3)]
        p = p + c.attn.proj(torch.cat(heads, 1))
        p = c.norm_post(p + c.mlp(c.norm2(p)))
        logits = block.assign.q_proj(p) @ block.assign.k_proj(xn).T / math.sqrt(24)
        values, winner, means = block.assign.v_proj(xn), logits.argmax(0), []
        for s in range(5):
            mine = [values[n] for n in range(9) if winner[n] == s]
            means.append(sum(mine, torch.zeros(24)) / (len(mine) + 1))
        y = block.assign.proj(torch.stack(means)) + p
        assert torch.allclose(got[b], y + block.mlp_channels(block.norm_new_x(y)), atol=1e-4)
        assert torch.allclose(assignment.soft[b], logits.softmax(0), atol=1e-5)


def test_patch_to_segment_is_the_product():
    net = G.GroupViT(**TINY).eval()
    found = net(torch.randn(2, 3, 20, 20))
    soft, hard = G.patch_to_segment(found.assignments), G.patch_to_segment(found.assignments, hard=True)
    assert soft.shape == hard.shape == (2, 5, 25)
    assert torch.allclose(soft.sum(1), torch.ones(2, 25), atol=1e-5) and torch.allclose(hard.sum(1), torch.ones(2, 25), atol=1e-5)
    first, second = (a.hard.argmax(1) for a in found.assignments)
    assert torch.equal(hard.argmax(1), second.gather(1, first)), "patch -> group -> segment"


def test_other_sizes_and_bad_ones():
    net = G.GroupViT(**TINY).eval()
    assert net(torch.randn(1, 3, 8, 32)).assignments[0].soft.shape == (1, 7, 16)
    assert torch.equal(net.positions(5, 5), net.pos_embed)
    with pytest.raises(ValueError, match="multiples of the patch, 4"):
        net(torch.randn(1, 3, 18, 20))
    with pytest.raises(ValueError, match="not divisible by heads=5"):
        G.GroupViT(width=24, heads=5)
    with pytest.raises(ValueError, match="one entry less"):
        G.GroupViT(**{**TINY, "groups": (7, 5, 3)})


def test_drop_path_keeps_the_mean_and_rests_in_evaluation():
    drop, x = G.DropPath(0.25).train(), torch.ones(4000, 2, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(y.mean() - 1) < 0.05
    assert (y == y[:, :1, :1]).all(), "a path is dropped for a whole image"
    assert torch.equal(drop.eval()(x), x)
    rates = [b.drop_path.rate for stage in G.GroupViT(**TINY).layers for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1 / 3, 0.2 / 3, 0.1])


def test_projector_treats_tokens_alike():
    project = G.Projector(24, 6, 10).eval()
    x = torch.randn(2, 5, 24)
    assert torch.allclose(project(x)[1, 3], project(x[1, 3]), atol=1e-6)
    names = {k: tuple(v.shape) for k, v in project.state_dict().items()}
    assert names["linear_hidden.0.weight"] == (10, 24, 1) and names["linear_out.weight"] == (6, 10, 1) and "linear_hidden.1.running_mean" in names


def test_every_parameter_learns():
    net = G.GroupViT(**TINY)
    found = net(torch.randn(4, 3, 20, 20))
    (found.segments.square().sum() + G.patch_to_segment(found.assignments).square().sum()).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
