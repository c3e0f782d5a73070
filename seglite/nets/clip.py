"""CLIP: an image tower and a text tower that end in one space, with the state-dict names of the released models.

    image [B, 3, H, W] - conv1, class token, positions - ln_pre - blocks - ln_post on the class token - @ proj  -> [B, E]
    tokens [B, T] - embedding, positions - causal blocks - ln_final at the end token - @ text_projection        -> [B, E]

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020; names and details from
the published code (openai/CLIP). `clip_vit_b32`, `clip_vit_b16` and `clip_vit_l14` are the released shapes, `clip_tiny` is for scenes.
`load_clip(path)` reads a released file, which is a TorchScript archive, or a plain state dict, and runs nothing that is in it.

B batch, T text tokens, N patches, D width of a tower, G heads, E joint embedding, H W image, V vocabulary.
"""
from __future__ import annotations

import collections
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from seglite.nets.weights import read_tensors

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the released models' input, x / 255
LARGEST_SCALE = 100.0  # the paper clips the learned temperature so that logits are never scaled by more (section 2.5)
EXTRAS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # what archives keep besides the weights: sizes, the causal mask


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation that the released weights were trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention under the parameter names of torch.nn.MultiheadAttention: queries, keys, values packed in this order."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]; causal: a token sees itself and those before it."""
        B, N, D = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(B, N, 3, self.heads, D // self.heads)  # [B, N, 3, G, D/G]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, G, N, D/G], [B, G, N, D/G], [B, G, N, D/G]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # [B, G, N, D/G]
        return self.out_proj(y.transpose(1, 2).reshape(B, N, D))  # [B, N, D]


class Block(nn.Module):
    """Pre-norm: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(collections.OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.ln_1(x), causal)  # [B, N, D]
        return x + self.mlp(self.ln_2(x))  # [B, N, D]


class Transformer(nn.Module):
    """A stack of blocks, `resblocks.0` ..., causal or not; published initialisation."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}; each head takes an equal share of the embedding")
        self.causal = causal
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        for block in self.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        for block in self.resblocks:
            x = block(x, self.causal)  # [B, N, D]
        return x


class ImageTower(nn.Module):
    """The vision transformer of CLIP: patches without bias, a class token, a norm before the blocks."""

    def __init__(self, image_size: int, patch: int, width: int, layers: int, heads: int, embed: int):
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}")
        self.image_size, self.patch, grid = image_size, patch, image_size // patch
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(1 + grid**2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, causal=False)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed))

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """All tokens in the joint space, class token first: ln_post and proj on every one (what CLIP baselines of segmentation use).

        image: [B, 3, H, W] -> [B, 1+N, E]. Raises ValueError for any size but the stored one.
        """
        if tuple(image.shape[-2:]) != (self.image_size, self.image_size):
            raise ValueError(f"this CLIP sees {self.image_size} x {self.image_size} pixels, the image has {image.shape[-2]} x {image.shape[-1]}; resize it first")
        patches = self.conv1(image).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.class_embedding.expand(len(image), 1, -1).to(patches), patches], 1) + self.positional_embedding  # [B, 1+N, D]
        return self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj  # [B, 1+N, E]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] normalised by MEAN and STD -> [B, E], not of unit length."""
        return self.tokens(image)[:, 0]  # [B, E]


class LockedTower(nn.Module):
    """A published classifier as image tower: its features stay as they are, a projection into the joint space is learned.

    Locked-image tuning (Zhai et al., "LiT", CVPR 2022, arXiv 2111.07991): with few pairs a good image network should not be moved by them; the text
    tower learns to read it. features: image -> [B, C] pooled; image_size: the side it is asked for, as in `ImageTower`.
    """

    def __init__(self, features: Callable[[torch.Tensor], torch.Tensor], channels: int, image_size: int, embed: int):
        super().__init__()
        self.features = features.requires_grad_(False)
        self.image_size = image_size
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, embed)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] normalised as the classifier wants it, or what `features` gave for it [B, C] -> [B, E], not of unit length."""
        if image.dim() == 2:
            return self.proj(self.norm(image))  # [B, E]
        if tuple(image.shape[-2:]) != (self.image_size, self.image_size):
            raise ValueError(f"this CLIP sees {self.image_size} x {self.image_size} pixels, the image has {image.shape[-2]} x {image.shape[-1]}; resize it first")
        with torch.no_grad():
            found = self.features(image)  # [B, C]
        return self.proj(self.norm(found))  # [B, E]


@dataclass(frozen=True)
class Shape:
    """Every size of a CLIP model."""

    embed: int = 512
    """E, the joint space"""
    image_size: int = 224
    """side of the input in pixels"""
    patch: int = 32
    """side of a patch in pixels"""
    width: int = 768
    """D of the image tower"""
    layers: int = 12
    """blocks of the image tower"""
    text_width: int = 512
    """D of the text tower"""
    text_layers: int = 12
    """blocks of the text tower"""
    context: int = 77
    """T, the length that texts are cut or padded to"""
    vocabulary: int = 49408
    """V, token ids; the end-of-text token has the largest id of any text"""
    head_width: int = 64
    """channels of one attention head, in both towers"""


class Clip(nn.Module):
    """Both towers and the learned temperature.

    Parameter names are those of the released files, so `load_state_dict` takes them as they are.
    """

    def __init__(self, shape: Shape = Shape()):
        super().__init__()
        self.shape = shape
        self.visual = ImageTower(shape.image_size, shape.patch, shape.width, shape.layers, shape.width // shape.head_width, shape.embed)
        self.transformer = Transformer(shape.text_width, shape.text_layers, shape.text_width // shape.head_width, causal=True)
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(shape.context, shape.text_width))
        self.ln_final = nn.LayerNorm(shape.text_width)
        self.text_projection = nn.Parameter(shape.text_width**-0.5 * torch.randn(shape.text_width, shape.embed))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, H, W] -> [B, E], not of unit length."""
        return self.visual(image)  # [B, E]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: int64 [B, T] (start, words, end, zeros) -> [B, E], not of unit length: the feature at the end token, the largest id."""
        if tokens.shape[1] != self.shape.context:
            raise ValueError(f"this CLIP reads texts of {self.shape.context} tokens, got {tokens.shape[1]}; give the tokenizer context={self.shape.context}")
        x = self.token_embedding(tokens) + self.positional_embedding  # [B, T, D]
        x = self.ln_final(self.transformer(x))  # [B, T, D]
        return x[torch.arange(len(x), device=x.device), tokens.argmax(1)] @ self.text_projection  # [B, E]

    def scale(self) -> torch.Tensor:
        """exp(logit_scale), at most 100: what cosines are multiplied by. []"""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)  # []

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit vectors of images and texts, and the scale: image [B, 3, H, W], tokens int64 [B, T] -> [B, E], [B, E], []."""
        return F.normalize(self.encode_image(image), dim=1), F.normalize(self.encode_text(tokens), dim=1), self.scale()


VIT_B32 = Shape()
VIT_B16 = Shape(patch=16)
VIT_L14 = Shape(embed=768, patch=14, width=1024, layers=24, text_width=768)


def clip_vit_b32() -> Clip:
    """151,277,313 parameters in 302 tensors."""
    return Clip(VIT_B32)


def clip_vit_b16() -> Clip:
    """149,620,737 parameters in 302 tensors."""
    return Clip(VIT_B16)


def clip_vit_l14() -> Clip:
    """427,616,513 parameters in 446 tensors."""
    return Clip(VIT_L14)


def clip_tiny(vocabulary: int, image_size: int = 32, patch: int = 4, context: int = 24, **changes) -> Clip:
    """A CLIP for scenes: width 64, 4 + 2 blocks, heads of 16; `changes`: other fields of `Shape`."""
    sizes = {"embed": 64, "width": 64, "layers": 4, "text_width": 64, "text_layers": 2, "head_width": 16, **changes}
    return Clip(Shape(image_size=image_size, patch=patch, context=context, vocabulary=vocabulary, **sizes))


# ---- files ------------------------------------------------------------------------------------------------------------------------------


def infer_shape(tensors: dict[str, torch.Tensor], head_width: int = 64) -> Shape:
    """Every size, read off a state dict's shapes. Raises ValueError naming a missing tensor or a size that does not come out."""
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        rows = tensors["visual.positional_embedding"].shape[0] - 1
        vocabulary, text_width = tensors["token_embedding.weight"].shape
        context, embed = tensors["positional_embedding"].shape[0], tensors["text_projection"].shape[1]
    except KeyError as missing:
        hint = "; this looks like a CLIP with a ResNet, only vision transformers are built here" if "visual.layer1.0.conv1.weight" in tensors else ""
        raise ValueError(f"no {missing.args[0]} among {len(tensors)} tensors: this is not the state dict of a CLIP with a vision transformer{hint}") from None
    grid = math.isqrt(rows)
    if grid**2 != rows:
        raise ValueError(f"visual.positional_embedding has {rows + 1} rows; expected 1 + a square number (class token and patches)")
    layers, text_layers = (sum(name.startswith(start) and name.endswith("attn.in_proj_weight") for name in tensors)
                           for start in ("visual.transformer.", "transformer."))
    return Shape(embed, grid * patch, patch, width, layers, text_width, text_layers, context, vocabulary, head_width)


def load_clip(path: str | Path, head_width: int = 64, say: Callable[[str], None] = print) -> Clip:
    """A released archive or a plain state dict -> the model in float32, in eval mode.

    Released files are half precision; training or computing in half precision on a CPU gives NaN, so everything is widened.
    Raises ValueError when names or shapes do not agree, or when the file is neither.
    """
    tensors = read_archive(path) if is_archive(path) else read_tensors(path)[0]
    tensors = {name: value.float() for name, value in tensors.items() if name.rpartition(".")[2] not in EXTRAS}
    try:
        shape = infer_shape(tensors, head_width)
        with torch.device("meta"):
            model = Clip(shape)
        model.load_state_dict(tensors, assign=True)
    except (ValueError, RuntimeError) as problem:
        raise ValueError(f"{path}: {str(problem).replace(chr(10), ' ')}") from None
    model.requires_grad_(True)  # assigned tensors come without
    say(f"CLIP from {Path(path).name}: {len(tensors)} tensors, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"patch {shape.patch}, {shape.image_size} px, E = {shape.embed}")
    return model.eval()


def is_archive(path: str | Path) -> bool:
    """Is this a TorchScript archive, as the released files are? They hold a folder `code`; a saved state dict does not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


class Inert:
    """Stands for a module of the archive: takes its attributes, has no behaviour."""

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


class TensorsOnly(pickle.Unpickler):
    """Reads data.pkl of a TorchScript archive. Of all names in it, only those that rebuild a tensor mean anything; none is imported."""

    STORAGES = {"HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "LongStorage": torch.int64,
                "IntStorage": torch.int32, "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool}

    def __init__(self, archive: zipfile.ZipFile, prefix: str):
        super().__init__(archive.open(prefix + "data.pkl"))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str):
        if module == "torch" and name in self.STORAGES:
            return self.STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return lambda values: values
        if module.startswith("__torch__"):
            return type("Inert", (Inert,), {})
        raise pickle.UnpicklingError(f"names {module}.{name}, which no CLIP archive needs")

    def persistent_load(self, key):
        """("storage", type, file, device, count) -> a flat tensor."""
        _, kind, file, _, count = key
        if not count:
            return torch.empty(0, dtype=kind)
        return torch.frombuffer(bytearray(self.archive.read(f"{self.prefix}data/{file}")), dtype=kind, count=count)


def rebuild(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    """A tensor from its storage; torch checks that it lies inside."""
    return storage.as_strided(size, stride, offset)


def read_archive(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript archive by name, as `torch.jit.load(path).state_dict()` gives them, without loading its program.

    Raises ValueError when the archive is damaged or holds anything unusual.
    """
    found: dict[str, torch.Tensor] = {}

    def walk(module: Inert, name: str) -> None:
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                found[name + key] = value
            elif isinstance(value, Inert):
                walk(value, f"{name}{key}.")

    try:
        with zipfile.ZipFile(path) as archive:
            prefix = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            walk(TensorsOnly(archive, prefix).load(), "")
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, StopIteration, RuntimeError, ValueError, EOFError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path}: not a CLIP archive, or a damaged one ({problem}); fetch it again and compare its sha256") from problem
    return found
