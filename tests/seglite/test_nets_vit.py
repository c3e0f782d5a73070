"""ViT: DINO's names and counts, the forward pass written a second time, position embeddings at other sizes."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets.layers import count_parameters
from seglite.nets.vit import ViT, vit_base, vit_small, vit_tiny
from tests.tolerances import assert_close


def tiny(**options):
    torch.manual_seed(0)
    return ViT(**{"patch": 4, "width": 12, "depth": 2, "heads": 3, "image_size": 16, **options}).double()


@pytest.mark.parametrize(
    "build, patch, count",
    [
        (vit_tiny, 16, 5_524_416), (vit_small, 16, 21_665_664), (vit_small, 8, 21_670_272), (vit_base, 16, 85_798_656), (vit_base, 8, 85_807_872),
    ],
)
def test_parameter_counts_are_dinos(build, patch, count):
    with torch.device("meta"):
        net = build(patch)
        D = net.channels[0]
        block = 2 * D + (3 * D * D + 3 * D) + (D * D + D) + 2 * D + (4 * D * D + 4 * D) + (4 * D * D + D)
        by_hand = D + (1 + (224 // patch) ** 2) * D + 3 * patch * patch * D + D + 12 * block + 2 * D
        assert count_parameters(net) == by_hand == count


def test_names_and_shapes_are_dinos():
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in vit_small(16).state_dict().items()}
    expected = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384)}
    expected |= {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}
    for i in range(12):
        b = f"blocks.{i}."
        expected |= {b + n: (384,) for n in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.proj.bias", "mlp.fc2.bias")}
        expected |= {b + "attn.qkv.weight": (1152, 384), b + "attn.qkv.bias": (1152,), b + "attn.proj.weight": (384, 384)}
        expected |= {b + "mlp.fc1.weight": (1536, 384), b + "mlp.fc1.bias": (1536,), b + "mlp.fc2.weight": (384, 1536)}
    expected |= {"norm.weight": (384,), "norm.bias": (384,)}
    assert own == expected


def test_forward_written_a_second_time():
    """One image, one token list, loops over heads and explicit softmax; random affine everywhere so that nothing is a no-op."""
    net = tiny()
    g = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3
    image = torch.randn(3, 16, 16, generator=g, dtype=torch.float64)
    s = net.state_dict()

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * s[name + ".weight"] + s[name + ".bias"]

    def linear(x, name):
        return x @ s[name + ".weight"].T + s[name + ".bias"]

    patches = [image[:, y : y + 4, x : x + 4].reshape(-1) for y in range(0, 16, 4) for x in range(0, 16, 4)]
    x = torch.stack(patches) @ s["patch_embed.proj.weight"].reshape(12, -1).T + s["patch_embed.proj.bias"]
    x = torch.cat([s["cls_token"][0], x]) + s["pos_embed"][0]
    for i in range(2):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv[:, :12], qkv[:, 12:24], qkv[:, 24:]
        heads = []
        for a in range(0, 12, 4):
            weight = torch.softmax(q[:, a : a + 4] @ k[:, a : a + 4].T / 2.0, dim=1)
            heads.append(weight @ v[:, a : a + 4])
        x = x + linear(torch.cat(heads, 1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")
    assert_close(net.tokens(image[None])[0], x)
    assert_close(net(image[None])[0], x[1:].T.reshape(12, 4, 4))


def test_map_places_every_token_where_its_patch_is():
    """Without blocks the map is the normalised patch embedding, so an edit of one patch moves one place only."""
    net = tiny(depth=0)
    image = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    edited = image.clone()
    edited[:, :, 4:8, 20:24] += 1
    moved = (net(edited) - net(image)).abs().sum(1)[0] > 0
    assert moved.shape == (4, 6) and moved.nonzero().tolist() == [[1, 5]]


def test_position_embeddings_at_other_sizes():
    net = tiny()
    assert net.positions(4, 4) is net.pos_embed
    wide = net.positions(3, 7)
    assert wide.shape == (1, 22, 12)
    assert torch.equal(wide[:, 0], net.pos_embed[:, 0])  # the class token has no place
    map4 = net.pos_embed[0, 1:].T.reshape(12, 4, 4)
    assert_close(wide[0, 1:].T.reshape(12, 3, 7), F.interpolate(map4[None], (3, 7), mode="bicubic", align_corners=False)[0])
    # Embeddings that depend on the row alone must still do so afterwards, growing downwards: rows and columns are not exchanged.
    net.pos_embed.data[0, 1:] = torch.arange(4.0, dtype=torch.float64).repeat_interleave(4)[:, None]
    rows = net.positions(7, 9)[0, 1:, 0].reshape(7, 9)
    assert_close(rows, rows[:, :1].expand(7, 9))
    assert (rows[1:, 0] > rows[:-1, 0]).all()


def test_position_gradients_reach_the_stored_embeddings():
    net = tiny()
    net(torch.randn(1, 3, 8, 12, dtype=torch.float64)).pow(2).sum().backward()
    assert net.pos_embed.grad[:, 1:].abs().sum() > 0


def test_rectangles_and_the_backbone_interface():
    net = tiny()
    maps = net.features(torch.randn(2, 3, 8, 20, dtype=torch.float64))
    assert [tuple(m.shape) for m in maps] == [(2, 12, 2, 5)] and net.channels == (12,) and net.strides == (4,)
    assert net.tokens(torch.randn(2, 3, 8, 20, dtype=torch.float64)).shape == (2, 11, 12)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="image of 16 x 18 pixels: both sides must be multiples of the patch, 4"):
        tiny()(torch.zeros(1, 3, 16, 18, dtype=torch.float64))
    with pytest.raises(ValueError, match="not divisible by heads=5"):
        tiny(heads=5)
    with pytest.raises(ValueError, match="not a multiple of patch=4"):
        tiny(image_size=18)


def test_initialisation():
    net = vit_tiny(depth=1)
    assert abs(net.pos_embed.std().item() - 0.02) < 0.002 and abs(net.blocks[0].attn.qkv.weight.std().item() - 0.02) < 0.002
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, nn.Linear))
