"""How many images a second one core prepares: this project's batches beside a plain loop of pillow and numpy that does the same.

    python -m data_scripts.throughput --camvid CamVid --voc VOC2012

CamVid: whole frames of 480 x 360, flipped at random. VOC: random scale 0.5 ... 2, crop of 321, flip. Both decode images and masks and end in a
normalised float batch. The two take turns, so that a busy machine slows both; the ratio is the number to trust.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__" and not __package__:  # python data_scripts/throughput.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from data_scripts import command
from seglite.data import Batches, camvid, voc
from seglite.data.transforms import AugmentSettings, make_transform

BATCH = 8


def plain_batch(pairs: list[tuple[Path, Path]], data, crop: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What one would write without this project: open, resize, pad, cut, flip, normalise, one image after the other."""
    mean, std = np.array(data.mean, np.float32), np.array(data.std, np.float32)
    images, masks = [], []
    for image_path, mask_path in pairs:
        image, mask = Image.open(image_path).convert("RGB"), Image.open(mask_path)
        if crop:
            scale = rng.uniform(0.5, 2.0)
            size = round(image.width * scale), round(image.height * scale)
            image, mask = image.resize(size, Image.BILINEAR), mask.resize(size, Image.NEAREST)
        x, y = np.array(image), np.array(mask)
        if crop:
            down, right = max(crop - x.shape[0], 0), max(crop - x.shape[1], 0)
            x = np.pad(x, ((0, down), (0, right), (0, 0)))
            y = np.pad(y, ((0, down), (0, right)), constant_values=255)
            top, left = rng.integers(x.shape[0] - crop + 1), rng.integers(x.shape[1] - crop + 1)
            x, y = x[top:top + crop, left:left + crop], y[top:top + crop, left:left + crop]
        if rng.random() < 0.5:
            x, y = x[:, ::-1], y[:, ::-1]
        x = (x.astype(np.float32) / 255 - mean) / std
        images.append(torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))))
        masks.append(torch.from_numpy(np.ascontiguousarray(y)).long())
    return torch.stack(images), torch.stack(masks)


def compare(name: str, data, pairs: list[tuple[Path, Path]], settings: AugmentSettings, rounds: int) -> str:
    """One line: images a second of both, and the ratio of their medians."""
    batches = Batches(data, BATCH, seed=0, transform=make_transform(settings, data.mean), wants=("image", "mask"))
    rng, ours, plain = np.random.default_rng(0), [], []
    for t in range(rounds + 1):  # the first round warms the file cache
        began = time.process_time()
        batch = batches[t]
        between = time.process_time()
        images, _ = plain_batch([pairs[int(i)] for i in batch["index"]], data, settings.crop, rng)  # the same files
        ended = time.process_time()
        assert images.shape == batch["image"].shape
        if t:
            ours.append(between - began)
            plain.append(ended - between)
    fast, slow = BATCH / np.median(ours), BATCH / np.median(plain)
    return (f"{name:<28} {fast:7.1f} images/s a core   plain loop {slow:7.1f}   ratio {fast / slow:.2f}   "
            f"({rounds} batches of {BATCH} each, processor time)")


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--camvid", type=Path, help="folder of CamVid")
    p.add_argument("--voc", type=Path, help="folder of VOC 2012")
    p.add_argument("--rounds", type=int, default=12, help="batches of each (default: 12)")
    a = p.parse_args(arguments)
    if not (a.camvid or a.voc):
        p.error("name at least one data set: --camvid FOLDER or --voc FOLDER")

    def body():
        torch.set_num_threads(1)
        if a.camvid:
            data = camvid.open(SimpleNamespace(root=str(a.camvid), camvid=camvid.CamvidSettings()), "train")
            print(compare("CamVid 480 x 360, flip", data, data.frames, AugmentSettings(), a.rounds))
        if a.voc:
            data = voc.open(SimpleNamespace(root=str(a.voc), voc=voc.VocSettings()), "train")
            pairs = [(data.root / "JPEGImages" / f"{i}.jpg", data.root / "SegmentationClass" / f"{i}.png") for i in data.ids]
            print(compare("VOC, scale, crop 321, flip", data, pairs, AugmentSettings(scale_min=0.5, scale_max=2.0, crop=321), a.rounds))

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
