"""Published weights, by name: fetched, checked, loaded once to see that every tensor has its place.

    python -m data_scripts.weights                         what there is
    python -m data_scripts.weights resnet101 dino_vitb8    fetch into --root (default: weights)
    python -m seglite.train method=... weights=weights/resnet101-63fe2227.pth

Every name says which network of seglite.nets it fills and how its input is normalised. Checksums: PyTorch puts the first eight digits of a file's
sha256 into its name, OpenAI the whole into the address, MAE's README shows six digits of the md5. DINO publishes none: there the first bytes and
the loading itself are the check, and the sha256 is printed for your notes.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/weights.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data_scripts import command
from data_scripts.fetch import TORCH, ZIP, Source, fetch
from seglite.nets import clip, mobilenet, resnet, vgg, vit
from seglite.nets.weights import load_weights

IMAGENET = "x / 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)"
CLIPS = f"x / 255, minus {clip.MEAN}, divided by {clip.STD}"


@dataclass(frozen=True)
class Weights:
    """One published file and the network that it fills."""

    source: Source
    origin: str
    licence: str
    network: str
    """how to build it, as one would type it"""
    build: Callable[[], torch.nn.Module] | None
    """None: the file says its own shape (CLIP)"""
    normalisation: str = IMAGENET

    def load(self, path: Path, say: Callable[[str], None] = print) -> torch.nn.Module:
        """The network with these weights; ValueError when a name or shape does not agree."""
        if self.build is None:
            return clip.load_clip(path, say=say)
        model = self.build()
        load_weights(model, path, say=say)
        return model


def torchvision(file: str, network: str, build: Callable) -> Weights:
    """A file of download.pytorch.org: the eight digits of its name begin its sha256."""
    digits = file.removesuffix(".pth").rpartition("-")[2]
    return Weights(Source(file, (f"https://download.pytorch.org/models/{file}",), f"sha256:{digits}", first=TORCH), "torchvision, ImageNet-1k",
                   "BSD 3-clause", network, build)


def dino(folder: str, network: str, build: Callable) -> Weights:
    file = f"{folder}.pth"
    return Weights(Source(file, (f"https://dl.fbaipublicfiles.com/dino/{folder}/{file}",), first=TORCH),
                   "DINO, ImageNet-1k without labels, arXiv 2104.14294", "Apache 2.0", network, build)


def mae(size: str, digits: str, network: str, build: Callable) -> Weights:
    file = f"mae_pretrain_vit_{size}.pth"
    return Weights(Source(file, (f"https://dl.fbaipublicfiles.com/mae/pretrain/{file}",), f"md5:{digits}", first=TORCH),
                   "MAE (encoder), ImageNet-1k without labels, arXiv 2111.06377", "CC BY-NC 4.0", network, build)


def openai(file: str, sha256: str) -> Weights:
    return Weights(Source(file, (f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}",), f"sha256:{sha256}", first=ZIP),
                   "OpenAI CLIP, arXiv 2103.00020", "MIT", f"clip.load_clip('{file}')", None, CLIPS)


WEIGHTS = {
    "resnet18": torchvision("resnet18-f37072fd.pth", "resnet.resnet18()", resnet.resnet18),
    "resnet34": torchvision("resnet34-b627a593.pth", "resnet.resnet34()", resnet.resnet34),
    "resnet50": torchvision("resnet50-0676ba61.pth", "resnet.resnet50()", resnet.resnet50),
    "resnet50_v2": torchvision("resnet50-11ad3fa6.pth", "resnet.resnet50()", resnet.resnet50),
    "resnet101": torchvision("resnet101-63fe2227.pth", "resnet.resnet101()", resnet.resnet101),
    "resnet101_v2": torchvision("resnet101-cd907fc2.pth", "resnet.resnet101()", resnet.resnet101),
    "vgg16": torchvision("vgg16-397923af.pth", "vgg.vgg16()", vgg.vgg16),
    "mobilenet_v2": torchvision("mobilenet_v2-b0353104.pth", "mobilenet.mobilenet_v2()", mobilenet.mobilenet_v2),
    "mobilenet_v2_v2": torchvision("mobilenet_v2-7ebf99e0.pth", "mobilenet.mobilenet_v2()", mobilenet.mobilenet_v2),
    "dino_vits16": dino("dino_deitsmall16_pretrain", "vit.vit_small(16)", lambda: vit.vit_small(16)),
    "dino_vits8": dino("dino_deitsmall8_pretrain", "vit.vit_small(8)", lambda: vit.vit_small(8)),
    "dino_vitb16": dino("dino_vitbase16_pretrain", "vit.vit_base(16)", lambda: vit.vit_base(16)),
    "dino_vitb8": dino("dino_vitbase8_pretrain", "vit.vit_base(8)", lambda: vit.vit_base(8)),
    "dino_resnet50": dino("dino_resnet50_pretrain", "resnet.resnet50(classes=0)", lambda: resnet.resnet50(classes=0)),
    "mae_vitb16": mae("base", "8cad7c", "vit.vit_base(16)", lambda: vit.vit_base(16)),
    "mae_vitl16": mae("large", "b8b06e", "vit.ViT(patch=16, width=1024, depth=24, heads=16)",
                      lambda: vit.ViT(patch=16, width=1024, depth=24, heads=16)),
    "clip_vitb32": openai("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "clip_vitb16": openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "clip_vitl14": openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
}


def table() -> str:
    """What there is, one paragraph a name."""
    lines = []
    for name, w in WEIGHTS.items():
        lines += [f"{name:<16} {w.source.name}", f"                 {w.origin} · {w.licence} · {w.network}",
                  f"                 {w.source.digest or 'no published checksum'} · input {w.normalisation}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    p = command.parser(__doc__, "weights", archives=False)
    p.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(WEIGHTS)}, or all")
    p.add_argument("--no-load", action="store_true", help="do not load the files into their networks to check names and shapes")
    a = p.parse_args(arguments)
    unknown = [n for n in a.names if n not in (*WEIGHTS, "all")]
    if unknown:
        p.error(f"there are no weights {unknown[0]!r}; known are {', '.join(WEIGHTS)}")

    def body():
        if not a.names:
            print(table())
        for name in WEIGHTS if "all" in a.names else a.names:
            w = WEIGHTS[name]
            path = fetch(w.source, a.root, verify_only=a.verify_only)
            if not a.no_load:
                w.load(path)
            print(f"ready: {w.network} with weights={path} · input {w.normalisation} · {w.licence}")

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
