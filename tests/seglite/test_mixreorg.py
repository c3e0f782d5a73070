"""MixReorg: mixing loses nothing, labels follow the patches, every branch does what its key says, and a run works end to end."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels import backend
from kernels.patch_mix import patch_mix, patch_unmix
from seglite import config as settings
from seglite import train
from seglite.data import Batch
from seglite.papers import mixreorg as M

METHODS = {"mixreorg": M}
TINY = ["scenes.size=32", "image_size=32", "scenes.train_images=40", "scenes.val_images=20", "train.steps=3", "train.batch=8", "train.warmup=0"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parsed(*extra: str) -> M.Settings:
    """Tiny settings with the paper's stages on (the toy recipe switches two of them off); what is given wins."""
    keys = dict(k.split("=", 1) for k in (*TINY, "context=24", "images=2", "context_blocks=1", "progressive=average", *extra))
    return settings.parse(["method=mixreorg", *(f"{k}={v}" for k, v in keys.items())], METHODS)[0]


def network(*extra: str, B: int = 8):
    """(model, images, tokens) for some settings: texts are all different."""
    config = parsed(*extra)
    tokens = torch.zeros(B, config.context, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 48, torch.arange(B) + 2, 49
    return M.build(config, 50, say=lambda _: None), torch.randn(B, 3, 32, 32), tokens


# ---- mixing -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images, tile", [(2, 1), (4, 1), (8, 1), (4, 2), (2, 3)])
def test_unmix_of_mix_is_x_bit_for_bit(images, tile):
    index = M.draw_index(8, 5, 7, images, tile)
    x = torch.randn(8, 35, 6)
    assert torch.equal(patch_unmix(patch_mix(x, index), index), x)
    groups = index.unflatten(0, (-1, images))
    first = torch.arange(0, 8, images)[:, None, None]
    assert torch.equal(groups.sort(1).values, (first + torch.arange(images)[None, :, None]).expand_as(groups)), "a permutation at every position"
    assert not (index == index[:, :1]).all(), "whole images would be swapped, which teaches nothing"


def test_tiles_move_together():
    index = M.draw_index(4, 6, 6, 4, tile=3).unflatten(1, (2, 3, 2, 3))
    assert (index == index[:, :, :1, :, :1]).all()


def test_images_must_divide_the_batch():
    with pytest.raises(ValueError, match="images per mix must divide the batch: batch 8, images 3"):
        M.draw_index(8, 4, 4, 3)


@pytest.mark.parametrize("images", [2, 4])
def test_labels_name_the_caption_of_the_source(images):
    """Feed one-hot image numbers instead of features: the label of every patch must pick the caption of the image it came from."""
    B, index = 8, M.draw_index(8, 3, 4, images)
    one_hot = torch.eye(B)
    mixed = patch_mix(one_hot[:, None].expand(-1, 12, -1).contiguous(), index)  # what a patch "is"
    tokens = torch.arange(B)[:, None]
    captions, target, same = M.vocabulary_of(one_hot, tokens, index, images, whole_batch=False)
    assert captions.shape == (B, images, B) and torch.equal(same, torch.eye(images, dtype=torch.bool).expand(B, -1, -1))
    picked = captions.gather(1, target[..., None].expand(-1, -1, B))
    assert torch.equal(picked, mixed)
    captions, target, _ = M.vocabulary_of(one_hot, tokens, index, images, whole_batch=True)
    assert torch.equal(captions.gather(1, target[..., None].expand(-1, -1, B)), mixed)


# ---- the mask loss -----------------------------------------------------------------------------------------------------------------------


def test_mask_loss_is_cross_entropy_when_captions_differ():
    logits, target = torch.randn(3, 5, 4), torch.randint(0, 4, (3, 5))
    same = torch.eye(4, dtype=torch.bool).expand(3, -1, -1)
    assert torch.allclose(M.mask_loss(logits, target, same), F.cross_entropy(logits.flatten(0, 1), target.flatten()))


def test_equal_captions_are_one_answer():
    logits = torch.randn(1, 6, 3, requires_grad=True)
    same = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]).bool()
    target = torch.tensor([[0, 1, 2, 0, 1, 2]])
    p = logits.softmax(2)[0]
    expected = -torch.stack([(p[n, 0] + p[n, 1] if target[0, n] < 2 else p[n, 2]).log() for n in range(6)]).mean()
    assert torch.allclose(M.mask_loss(logits, target, same), expected)
    nothing = M.mask_loss(logits, target, torch.ones(1, 3, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert abs(nothing) < 1e-6 and gradient.abs().max() < 1e-6, "a mix of one caption teaches nothing"


def test_caption_logits_against_loops():
    segments, captions, shares = F.normalize(torch.randn(2, 3, 4), dim=-1), F.normalize(torch.randn(2, 5, 4), dim=-1), torch.rand(2, 3, 6).softmax(1)
    scale = torch.tensor(7.0)
    for how in ("logits", "probabilities"):
        got = M.caption_logits(segments, shares, captions, scale, how)
        for b in range(2):
            for n in range(6):
                scores = scale * segments[b] @ captions[b].T
                mixture = sum(shares[b, s, n] * (scores[s] if how == "logits" else scores[s].softmax(0)) for s in range(3))
                assert torch.allclose(got[b, n], mixture if how == "logits" else mixture.log(), atol=1e-5)


def test_a_perfect_sorter_scores_one_and_an_unlucky_one_chance():
    config, B, K = parsed("images=4"), 8, 4
    index = M.draw_index(B, 8, 8, K)
    text, tokens = torch.eye(B), torch.arange(B)[:, None]
    segments = text.unflatten(0, (-1, K)).repeat_interleave(K, 0)  # segment k of every mixed image is caption k
    shares = F.one_hot(index % K, K).transpose(1, 2).float()
    out = M.Outputs(text, text, torch.tensor(50.0), torch.tensor(50.0), None, segments, shares, shares, index)
    loss, right = M.sort_patches(out, tokens, config)
    assert right == 1 and loss < 1e-6
    _, wrong = M.sort_patches(out._replace(soft=shares.roll(1, 1)), tokens, config)
    assert wrong == 0
    _, alike = M.sort_patches(out._replace(soft=shares.roll(1, 1)), torch.zeros_like(tokens), config)
    assert alike == 1, "equal captions cannot be confused"


# ---- the branches -------------------------------------------------------------------------------------------------------------------------


def branches(model, X, index):
    return [x for x, _ in model.eval().two_branches(X, index)]


def test_without_context_and_progress_the_mix_is_of_raw_patches():
    model, image, _ = network("context_blocks=0", "progressive=off")
    X, index = model.img_encoder.embed(image), M.draw_index(8, 4, 4, 4)
    clean, mixed = branches(model, X, index)
    stage = model.img_encoder.layers[0]
    assert torch.allclose(mixed, stage.mingle(patch_mix(X, index), stage.start(8))[0], atol=1e-5)
    assert torch.allclose(clean, stage.mingle(X, stage.start(8))[0], atol=1e-5)


def test_context_block_runs_before_the_mix():
    model, image, _ = network("context_blocks=1", "progressive=off")
    X, index = model.img_encoder.embed(image), M.draw_index(8, 4, 4, 4)
    stage = model.img_encoder.layers[0]
    first, _ = stage.mingle(X, stage.start(8), 0, 1)
    expected, _ = stage.mingle(patch_mix(first, index), stage.start(8), 1)
    assert torch.allclose(branches(model, X, index)[1], expected, atol=1e-5), "fresh group tokens, remaining blocks"


@pytest.mark.parametrize("how, at", [("average", "every"), ("add", "every"), ("average", "last"), ("attend", "last")])
def test_progressive_operators_against_a_second_program(how, at):
    model, image, _ = network(f"progressive={how}", f"progressive_at={at}", "progressive_share=0.3")
    X, index = model.img_encoder.embed(image), M.draw_index(8, 4, 4, 4)
    stage = model.img_encoder.layers[0]
    C, g = stage.mingle(X, stage.start(8), 0, 1)
    mixed, mixed_g = patch_mix(C, index), stage.start(8)
    for l in (1, 2):
        now = at == "every" or l == 2
        if how == "attend" and now:
            N = mixed.shape[1]
            seen, mixed_g = stage.mingle(torch.cat([mixed, patch_mix(C, index)], 1), mixed_g, l, l + 1)
            mixed = seen[:, :N]
        else:
            mixed, mixed_g = stage.mingle(mixed, mixed_g, l, l + 1)
        C, g = stage.mingle(C, g, l, l + 1)
        if now and how == "average":
            mixed = 0.7 * mixed + 0.3 * patch_mix(C, index)
        if now and how == "add":
            mixed = mixed + 0.3 * patch_mix(C, index)
    got_clean, got_mixed = branches(model, X, index)
    assert torch.allclose(got_clean, C, atol=1e-5), "the clean branch never sees the mixed one"
    assert torch.allclose(got_mixed, mixed, atol=1e-5)


def test_restoring_pure_clean_features_gives_the_original_image():
    """With a = 1 the mixed branch is the clean one, scrambled: unscrambled and grouped it must give the same vector."""
    for keys, equal in ((["progressive_share=1"], True), (["progressive=off"], False)):
        model, image, tokens = network(*keys, "images=4")
        for p in model.img_encoder.parameters():
            torch.nn.init.normal_(p, std=0.2)
        out = model.eval()(image, tokens)
        assert torch.allclose(out.restored, out.original, atol=1e-4) == equal


def test_the_test_path_is_a_plain_groupvit():
    model, image, tokens = network()
    model.eval()
    plain, _, _ = network("mixing=false")
    state = {k: v for k, v in model.state_dict().items() if k != "mask_logit_scale"}
    plain.load_state_dict(state)
    plain.eval()
    assert torch.equal(plain(image, tokens).original, plain.pooled(plain.img_encoder(image).segments))
    assert all(torch.equal(a, b) for a, b in zip(model.segment(image), plain.segment(image)))
    assert torch.allclose(model(image, tokens).original, plain(image, tokens).original, atol=1e-5)


@pytest.mark.parametrize("keys, expected", [
    ([], {"original", "restored", "mask", "sorted"}), (["restored_weight=0"], {"original", "mask", "sorted"}),
    (["mask_weight=0"], {"original", "restored"}), (["mixing=false"], {"original"})])
def test_losses_switch_on_their_own(keys, expected):
    model, image, tokens = network(*keys)
    found = M.step_losses(model.train(), image, tokens, parsed(*keys))
    assert set(found) == expected and all(torch.isfinite(v) for v in found.values())


def test_every_parameter_learns():
    model, image, tokens = network()
    found = M.step_losses(model.train(), image, tokens, parsed())
    sum(v for v in found.values() if v.requires_grad).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_half_precision_keeps_losses_in_float32():
    model, image, tokens = network("images=4")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = M.step_losses(model.train(), image, tokens, parsed("images=4"))
    total = sum(v for v in found.values() if v.requires_grad)
    total.backward()
    assert all(v.dtype == torch.float32 for v in found.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_path_of_the_mixing_kernel_gives_the_same_bits():
    model, image, tokens = network("images=4")
    index = M.draw_index(8, 4, 4, 4)
    usual = model.eval()(image, tokens, index)
    with backend.use("reference"):
        plain = model(image, tokens, index)
    assert torch.equal(usual.restored, plain.restored) and torch.equal(usual.segments, plain.segments)


@pytest.mark.parametrize("stop, learns", [("true", False), ("false", True)])
def test_stop_clean_keeps_the_mask_loss_out_of_the_context_block(stop, learns):
    model, image, tokens = network(f"stop_clean={stop}", "progressive=off", "restored_weight=0")
    M.step_losses(model.train(), image, tokens, parsed("restored_weight=0"))["mask"].backward()
    gradient = model.img_encoder.layers[0].blocks[0].mlp.fc1.weight.grad
    assert (gradient is not None and float(gradient.abs().sum()) > 0) == learns


def test_context_blocks_out_of_range():
    with pytest.raises(ValueError, match=r"context_blocks=4 must lie in 0 \.\.\. 3"):
        network("context_blocks=4")


# ---- the published size -----------------------------------------------------------------------------------------------------------------


def test_paper_size_is_groupvit_and_one_temperature(tmp_path):
    config = settings.parse(["method=mixreorg", "size=paper"], METHODS)[0]
    with torch.device("meta"):
        model = M.build(config, 49408)
    assert sum(p.numel() for p in model.parameters()) == 55_726_609 + 1
    assert (config.train.batch, config.image_size, config.context, config.train.lr) == (4096, 224, 77, 1.6e-3)
    assert config.train.steps == pytest.approx(30 * 12e6 / 4096, rel=1e-3)


def test_a_groupvit_checkpoint_can_be_the_start(tmp_path):
    plain, _, _ = network("mixing=false")
    torch.save({"model": {**plain.state_dict(), "multi_label_logit_scale": torch.zeros(())}}, tmp_path / "groupvit.pth")
    model, _, _ = network(f"weights={tmp_path / 'groupvit.pth'}")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in plain.state_dict().items())


# ---- photographs ------------------------------------------------------------------------------------------------------------------------


def test_views_of_photographs():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    one, two = (M.random_area(image, np.random.default_rng(7), 0.08, 32) for _ in range(2))
    assert one.shape == (32, 32, 3) and np.array_equal(one, two)
    assert M.erased(image, np.random.default_rng(0), 0.0) is image
    before = image.copy()
    shares = [(M.erased(image, np.random.default_rng(i), 1.0) != image).any(2).mean() for i in range(200)]
    assert np.array_equal(image, before) and 0.01 < min(shares) < 0.05 and 0.25 < max(shares) < 0.36
    ramp = np.linspace(0, 255, 60)[None, :, None].repeat(40, 0).repeat(3, 2).astype(np.uint8)
    spans = [np.ptp(M.random_area(ramp, np.random.default_rng(i), 0.08, 32)[..., 0].astype(int)) for i in range(100)]
    assert min(spans) < 100 and max(spans) > 200, "small and large rectangles"


def test_plain_view_is_the_middle_square():
    config = parsed("crop_area=0.5")
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    assert (M.plain_view(config, None)(image) == 200).all()
    assert M.plain_view(parsed(), None)(image) is image


# ---- whole runs -------------------------------------------------------------------------------------------------------------------------


def test_supervision_is_images_and_words_only():
    assert M.supervision(parsed()) == ("image", "text") and M.supervision(parsed("data=captions", "root=x")) == ("image", "texts")
    with pytest.raises(KeyError, match="no 'mask'"):
        Batch(image=torch.zeros(1), text=["a"])["mask"]


def test_a_run_end_to_end(tmp_path):
    arguments = ["method=mixreorg", *TINY, f"out={tmp_path / 'run'}", "threads=1"]
    assert train.main(arguments, METHODS) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["miou"] <= 1 and 0 <= result["patches sorted"] <= 1 and result["images"] == 20
    words = torch.load(tmp_path / "run/words.pt", weights_only=True)["words"]
    assert {"ball", "grass", "photo"} <= set(words)
    assert (tmp_path / "run/report.html").stat().st_size > 10_000

    from seglite.reopen import open_run

    predict, data, run = open_run(tmp_path / "run", METHODS)
    try:
        image = torch.randn(1, 3, 32, 48)
        assert predict(image).shape == (1, 9, 32, 48)
        two = predict.for_words(("ball", "water"))
        assert two(image).shape == (1, 3, 32, 48) and two.classes == ("background", "ball", "water")
        with pytest.raises(ValueError, match="never saw the word 'zebra'"):
            predict.for_words(("zebra",))
    finally:
        run.close()


def test_a_run_on_captioned_photographs(tmp_path):
    """A folder in Flickr8k's layout, drawn here: two colours, two captions each."""
    from PIL import Image

    (tmp_path / "set/images").mkdir(parents=True)
    lines = ["image,caption"]
    for i in range(24):
        colour, word = [((200, 40, 40), "red"), ((40, 60, 200), "blue")][i % 2]
        Image.new("RGB", (44, 36 + i % 5), colour).save(tmp_path / f"set/images/{i:02d}.jpg")
        lines += [f"{i:02d}.jpg,a {word} wall", f'{i:02d}.jpg,"something, {word}"']
    (tmp_path / "set/captions.txt").write_text("\n".join(lines) + "\n")
    arguments = ["method=mixreorg", "data=captions", f"root={tmp_path / 'set'}", "captions.val_images=8", "captions.words=red,blue", "rare=1", "net=tiny",
                 "image_size=32", "patch=8", "short_side=32", "train.steps=2", "train.batch=4", "train.warmup=0", "threads=1", "workers=0", f"out={tmp_path / 'run'}"]
    assert train.main(arguments, METHODS) == 0
    measured = torch.load(tmp_path / "run/diagnosis.pt", weights_only=True)
    assert 0 <= measured["patches sorted"] <= 1 and 0 <= measured["text to image R@5"] <= 1


def test_the_claim_compares_like_with_like(monkeypatch):
    """Same start, data and recipe; the baseline gets twice the steps; ablations change one part each."""
    trained = {}

    def fit(run, name, config):
        trained[name] = settings.flatten(config)
        return config

    monkeypatch.setattr(M, "fit", fit)
    monkeypatch.setattr(M, "scores", lambda run, model, config: {"mIoU": 0.2 if config.mixing else 0.1})
    for ablations in (False, True):
        run = SimpleNamespace(config=parsed(f"ablations={str(ablations).lower()}"), make=lambda name, build: build())
        tables = M.claim(run)
        assert list(tables[M.TABLE])[:2] == [M.BASE, M.METHOD] and len(tables[M.TABLE]) == (7 if ablations else 2)
    own = settings.flatten(parsed("ablations=true"))
    changed = {name: {k for k in own if config[k] != own[k]} for name, config in trained.items()}
    assert changed["GroupViT_style_equal_compute"] == {"mixing", "train.steps"}
    assert trained["GroupViT_style_equal_compute"]["train.steps"] == 2 * own["train.steps"] and changed["MixReorg"] == set()
    assert changed["without_the_mask_loss"] == {"mask_weight"} and changed["GroupViT_style_equal_steps"] == {"mixing"}
    assert all(holds(tables) for holds in M.CLAIM["statements"].values())
    tables[M.TABLE][M.METHOD]["mIoU"] = 0.05
    assert not any(holds(tables) for holds in M.CLAIM["statements"].values())


@pytest.mark.slow
def test_it_learns_to_sort_patches(tmp_path):
    """The toy recipe: words are found in held-out scenes (after three steps mIoU is about 0.06), and patches are sorted above chance."""
    assert train.main(["method=mixreorg", f"out={tmp_path / 'run'}", "threads=1"], METHODS) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["miou"] > 0.1 and result["patches sorted"] > 0.27
