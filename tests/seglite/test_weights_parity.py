"""Files laid out as their publishers lay them out, names written here from the published architectures, fill the networks that data_scripts/weights.py names."""
import pytest
import torch

from seglite.nets.resnet import resnet50
from seglite.nets.vgg import vgg16
from seglite.nets.vit import ViT
from seglite.nets.weights import load_weights

WIDTH, DEPTH, PATCH, SIDE = 12, 2, 4, 16


def encoder(width=WIDTH, depth=DEPTH, patch=PATCH, tokens=1 + (SIDE // PATCH) ** 2) -> dict:
    """Names and shapes of MAE's and DINO's vision transformer (models_mae.py, vision_transformer.py)."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width), "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        for name, shape in {"norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
                            "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                            "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,), "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}.items():
            shapes[f"blocks.{i}.{name}"] = shape
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def decoder() -> dict:
    """What MAE's visualisation checkpoint holds besides the encoder."""
    return {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 17, 8), "decoder_embed.weight": (8, WIDTH), "decoder_embed.bias": (8,),
            "decoder_blocks.0.norm1.weight": (8,), "decoder_norm.weight": (8,), "decoder_pred.weight": (3 * PATCH**2, 8)}


def filled(shapes: dict) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def vit():
    return ViT(patch=PATCH, width=WIDTH, depth=DEPTH, heads=3, image_size=SIDE)


def silent(_):
    pass


def test_maes_encoder_file_fills_the_vision_transformer(tmp_path):
    tensors = filled(encoder())
    torch.save({"model": tensors}, tmp_path / "mae_pretrain_vit_base.pth")
    net, said = vit(), []
    result = load_weights(net, tmp_path / "mae_pretrain_vit_base.pth", say=said.append)
    assert not result.kept and not result.unused and len(result.loaded) == 4 + 12 * DEPTH + 2 and "taken from the checkpoint's 'model'" in said[0]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in tensors.items())
    assert torch.isfinite(net(torch.randn(1, 3, SIDE, SIDE))).all()


def test_maes_checkpoint_with_decoder_is_refused_by_name_and_taken_on_request(tmp_path):
    torch.save({"model": filled(encoder() | decoder())}, tmp_path / "mae_visualize_vit_base.pth")
    with pytest.raises(ValueError, match=r"7 names of the file are not in the model \(mask_token"):
        load_weights(vit(), tmp_path / "mae_visualize_vit_base.pth", say=silent)
    result = load_weights(vit(), tmp_path / "mae_visualize_vit_base.pth", partial=("decoder", "mask_token"), say=silent)
    assert sorted(result.unused) == sorted(decoder()) and not result.kept


def test_dinos_backbone_file_is_the_bare_table(tmp_path):
    torch.save(filled(encoder()), tmp_path / "dino_deitsmall16_pretrain.pth")
    assert len(load_weights(vit(), tmp_path / "dino_deitsmall16_pretrain.pth", say=silent).loaded) == len(encoder())


def test_files_from_before_the_zip_format_load(tmp_path):
    """torchvision's oldest files, and DINO's and MAE's, were written as a plain pickle; nothing in them is executed either."""
    tensors = filled(encoder())
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert (tmp_path / "old.pth").read_bytes()[:1] == b"\x80"  # what data_scripts.fetch.TORCH accepts as a beginning
    net = vit()
    load_weights(net, tmp_path / "old.pth", say=silent)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in tensors.items())


def test_another_patch_or_width_is_refused_with_both_shapes(tmp_path):
    torch.save(filled(encoder(patch=8)), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight: file \[12, 3, 8, 8\], model \[12, 3, 4, 4\]"):
        load_weights(vit(), tmp_path / "x.pth", say=silent)


def test_dinos_resnet_has_no_classifier():
    with torch.device("meta"):
        whole, bare = set(resnet50().state_dict()), set(resnet50(classes=0).state_dict())
    assert whole - bare == {"fc.weight", "fc.bias"} and not bare - whole and len(bare) == 318


def test_vgg_file_has_32_tensors_at_torchvisions_places():
    with torch.device("meta"):
        names = vgg16().state_dict()
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert list(names) == [f"features.{i}.{k}" for i in places for k in ("weight", "bias")] + [f"classifier.{i}.{k}" for i in (0, 3, 6) for k in ("weight", "bias")]
    assert tuple(names["classifier.0.weight"].shape) == (4096, 25088) and tuple(names["features.28.weight"].shape) == (512, 512, 3, 3)
