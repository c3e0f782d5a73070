"""CLIP: published counts, names and forward pass; files of both kinds; nothing in a file is ever run."""
import collections
import math
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets import clip as C


@pytest.mark.parametrize("build, tensors, parameters, visual", [
    (C.clip_vit_b32, 302, 151_277_313, 87_849_216), (C.clip_vit_b16, 302, 149_620_737, 86_192_640), (C.clip_vit_l14, 446, 427_616_513, 303_966_208)])
def test_published_counts(build, tensors, parameters, visual):
    with torch.device("meta"):
        model = build()
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.visual.parameters()) == visual
    assert model.logit_scale.shape == ()


def test_published_names_and_shapes():
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in C.clip_vit_l14().state_dict().items()}
    expected = {
        "visual.class_embedding": (1024,), "visual.positional_embedding": (257, 1024), "visual.conv1.weight": (1024, 3, 14, 14),
        "visual.ln_pre.weight": (1024,), "visual.ln_post.bias": (1024,), "visual.proj": (1024, 768),
        "visual.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024), "visual.transformer.resblocks.23.attn.in_proj_bias": (3072,),
        "visual.transformer.resblocks.0.attn.out_proj.weight": (1024, 1024), "visual.transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        "visual.transformer.resblocks.0.mlp.c_proj.weight": (1024, 4096), "visual.transformer.resblocks.0.ln_1.weight": (1024,),
        "token_embedding.weight": (49408, 768), "positional_embedding": (77, 768), "transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "transformer.resblocks.11.mlp.c_fc.weight": (3072, 768), "transformer.resblocks.11.ln_2.bias": (768,), "ln_final.weight": (768,),
        "text_projection": (768, 768), "logit_scale": ()}
    assert {name: own.get(name) for name in expected} == expected
    assert "visual.conv1.bias" not in own


class PublishedBlock(nn.Module):
    """The residual block written a second time, on torch's own MultiheadAttention."""

    def __init__(self, width, heads, mask):
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(collections.OrderedDict(c_fc=nn.Linear(width, width * 4), c_proj=nn.Linear(width * 4, width)))
        self.mask = mask

    def forward(self, x):  # [length, batch, width]
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


def published(model, image, tokens):
    """Both encoders computed anew from the state dict."""
    own, shape = model.state_dict(), model.shape

    def blocks(x, start, width, mask):
        i = 0
        while f"{start}.resblocks.{i}.ln_1.weight" in own:
            block = PublishedBlock(width, width // shape.head_width, mask)
            prefix = f"{start}.resblocks.{i}."
            block.load_state_dict({k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)})
            x, i = block(x.transpose(0, 1)).transpose(0, 1), i + 1
        return x

    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], own[name + ".weight"], own[name + ".bias"], 1e-5)  # noqa: E731
    x = F.conv2d(image, own["visual.conv1.weight"], stride=shape.patch).flatten(2).permute(0, 2, 1)
    x = torch.cat([own["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + own["visual.positional_embedding"]
    x = blocks(norm(x, "visual.ln_pre"), "visual.transformer", shape.width, None)
    seen = norm(x[:, 0], "visual.ln_post") @ own["visual.proj"]
    mask = torch.full((shape.context, shape.context), -math.inf).triu(1)
    y = blocks(own["token_embedding.weight"][tokens] + own["positional_embedding"], "transformer", shape.text_width, mask)
    read = norm(y, "ln_final")[torch.arange(len(y)), tokens.argmax(-1)] @ own["text_projection"]
    return seen, read


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    model = C.clip_tiny(40, image_size=16, patch=4, context=9).eval()
    for p in model.parameters():  # norms and biases away from 1 and 0
        p.data += 0.05 * torch.randn_like(p)
    return model


TOKENS = torch.tensor([[38, 5, 6, 39, 0, 0, 0, 0, 0], [38, 7, 8, 9, 10, 11, 12, 13, 39]])


@torch.no_grad()
def test_forward_is_the_published_one(tiny):
    image = torch.randn(2, 3, 16, 16)
    seen, read = published(tiny, image, TOKENS)
    torch.testing.assert_close(tiny.encode_image(image), seen, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiny.encode_text(TOKENS), read, atol=1e-5, rtol=1e-5)
    assert torch.equal(tiny.encode_image(image), tiny.encode_image(image))
    units = tiny(image, TOKENS)
    torch.testing.assert_close(units[0].norm(dim=1), torch.ones(2))
    torch.testing.assert_close(tiny.visual.tokens(image)[:, 0], seen, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_is_read_at_its_end_and_not_beyond(tiny):
    changed = TOKENS.clone()
    changed[0, 4:] = 3  # padding after the end token is never seen: the attention is causal
    assert torch.equal(tiny.encode_text(TOKENS), tiny.encode_text(changed))
    changed[0, 1] = 9
    assert not torch.allclose(tiny.encode_text(TOKENS)[0], tiny.encode_text(changed)[0])


def test_scale_starts_at_fourteen_and_stops_at_hundred():
    model = C.clip_tiny(10)
    assert model.scale().item() == pytest.approx(1 / 0.07)
    model.logit_scale.data.fill_(10.0)
    assert model.scale().item() == 100.0


def test_wrong_inputs_are_sentences(tiny):
    with pytest.raises(ValueError, match="sees 16 x 16 pixels, the image has 16 x 20"):
        tiny.encode_image(torch.randn(1, 3, 16, 20))
    with pytest.raises(ValueError, match="9 tokens, got 8"):
        tiny.encode_text(TOKENS[:, :8])
    with pytest.raises(ValueError, match="not a multiple of patch=5"):
        C.clip_tiny(10, image_size=16, patch=5)


# ---- files ------------------------------------------------------------------------------------------------------------------------------


def same(a, b):
    return a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_plain_state_dict_in_half_precision(tiny, tmp_path):
    half = {k: v.half() for k, v in tiny.state_dict().items()}
    torch.save({**half, "input_resolution": torch.tensor(16), "context_length": torch.tensor(9), "vocab_size": torch.tensor(40)}, tmp_path / "clip.pt")
    said = []
    model = C.load_clip(tmp_path / "clip.pt", head_width=16, say=said.append)
    assert model.shape == tiny.shape and not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert torch.equal(model.visual.proj, tiny.visual.proj.half().float())
    assert "86 tensors" in said[0]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archive_is_read_without_being_run(tiny, tmp_path, monkeypatch):
    """Released files are archives like this one. All names, every bit, and torch.jit never called."""
    traced = torch.jit.trace(tiny, (torch.randn(2, 3, 16, 16), TOKENS))
    torch.jit.save(traced, tmp_path / "clip.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("the archive's program was loaded"))
    assert C.is_archive(tmp_path / "clip.pt")
    assert same(C.load_clip(tmp_path / "clip.pt", head_width=16, say=lambda _: None), tiny)


class Nasty:
    def __reduce__(self):
        return eval, ("1/0",)


def test_nothing_but_tensors_comes_out_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps(Nasty(), protocol=2))
        archive.writestr("bad/code/__torch__.py", "")
    with pytest.raises(ValueError, match="eval, which no CLIP archive needs"):
        C.read_archive(tmp_path / "bad.pt")


def test_a_damaged_archive_and_a_foreign_state_dict(tiny, tmp_path):
    with zipfile.ZipFile(tmp_path / "cut.pt", "w") as archive:
        archive.writestr("cut/code/__torch__.py", "")
    with pytest.raises(ValueError, match="not a CLIP archive"):
        C.load_clip(tmp_path / "cut.pt")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no visual.conv1.weight among 1 tensors"):
        C.load_clip(tmp_path / "other.pt")
    lacking = {k: v for k, v in tiny.state_dict().items() if k != "ln_final.weight"}
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(ValueError, match="lacking.pt.*Missing.*ln_final.weight"):
        C.load_clip(tmp_path / "lacking.pt", head_width=16)
    torch.save({**tiny.state_dict(), "visual.positional_embedding": torch.zeros(16, 64)}, tmp_path / "grid.pt")
    with pytest.raises(ValueError, match="16 rows; expected 1"):
        C.load_clip(tmp_path / "grid.pt")


def test_a_locked_tower_learns_its_projection_and_nothing_else():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
    tower, image = C.LockedTower(features, 6, 8, 4), torch.randn(5, 3, 8, 8)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower(image).square().sum().backward()
    torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], 0.1).step()
    moved = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"norm.weight", "norm.bias", "proj.weight", "proj.bias"}
    assert all(p.grad is None for p in tower.features.parameters())
    assert torch.equal(tower(features(image)), tower(image))
    with pytest.raises(ValueError, match="sees 8 x 8 pixels, the image has 16 x 8"):
        tower(torch.randn(1, 3, 16, 8))
