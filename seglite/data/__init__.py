"""Data sets, and the batches made from them.

A data set is any object with these members (see scenes.py and voc.py):

    classes, palette, mean, std           ("background", ...), uint8 [K, 3], three floats each (of x / 255)
    provides                              what it can give: ("image", "mask", "tags", ...)
    len(data), data.name(i)
    data.read(i, wants) -> dict           image uint8 [H, W, 3] · mask uint8 [H, W] (255 = ignore) · tags float32 [K-1] · text str

A batch is a dict: image float32 [B, 3, H, W] (normalised) · mask, label int64 [B, H, W] · tags float32 [B, K-1] · text, name lists of B
strings · index int64 [B]. It holds what the method's supervision allows and nothing else.

**Batch t is a pure function of (seed, t).** Which images, which crops, which colours: all of it follows from the step number, so there is
no loader state to save: a run resumes at step t by asking for batch t, and N processes each take their share of the same batch.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seglite.data import ade20k, camvid, captions, cityscapes, coco, folder, scenes, voc
from seglite.data.transforms import MAPS

DATASETS = {"ade20k": ade20k.open, "camvid": camvid.open, "captions": captions.open, "cityscapes": cityscapes.open, "coco": coco.open,
            "folder": folder.open, "scenes": scenes.open, "voc": voc.open}

IGNORE = 255   # no label: outside the padded image, or a border that the annotators left open
DELETED = 254  # a pseudo label that a method took away and will decide later (MARS's -1)


def open_data(config, split: str):
    """The data set named by `data=`, for split "train" or "val"."""
    if config.data not in DATASETS:
        raise ValueError(f"unknown data set {config.data!r}; there are {', '.join(DATASETS)}")
    data = DATASETS[config.data](config, split)
    if len(data) == 0:
        raise ValueError(f"the {split} split of data={config.data} is empty ({config.root or 'no root'}); a run needs at least one image")
    return data


def look_over(data, wants: tuple[str, ...], count: int = 8) -> str:
    """Read a few samples, spread over the data set: better a sentence now than after an hour. The quick form of data_scripts/doctor.py.

    A file that cannot be used raises its own error. Returns a remark on masks that can be read and are odd; empty when nothing is.
    """
    seen = np.zeros(256, np.int64)
    indices = sorted({round(i) for i in np.linspace(0, len(data) - 1, min(count, len(data)))})
    for index in indices:
        sample = data.read(index, tuple(w for w in ("image", "mask") if w in wants and w in data.provides))
        seen += np.bincount(sample["mask"].ravel(), minlength=256) if "mask" in sample else 0
    classes = np.flatnonzero(seen[:IGNORE])
    if not seen.any() or len(classes) > 1 or len(data.classes) == 1:
        return ""
    found = f"class {classes[0]} ({data.classes[classes[0]]})" if len(classes) else "255, which is not judged"
    return f"the {len(indices)} masks looked at hold nothing but {found}; `python -m data_scripts.doctor` looks through all of them"


class Batch(dict):
    """A dict of tensors. Asking for an annotation that the supervision does not include is an error that says so."""

    def __missing__(self, key):
        raise KeyError(f"this batch has no {key!r}: the method's supervision gives {', '.join(sorted(self))}. "
                       f"A step may use only those; annotations for reports come from run.truth()")

    def to(self, device) -> Batch:
        return Batch({k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in self.items()})

    def pin_memory(self) -> Batch:  # called by torch's DataLoader
        return Batch({k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in self.items()})


class Restricted:
    """A data set that gives only `wants`; the rest is not there to be read."""

    def __init__(self, data, wants: tuple[str, ...]):
        missing = [w for w in wants if w not in data.provides]
        if missing:
            raise ValueError(f"data set {type(data).__name__} has no {', '.join(missing)}; it provides {', '.join(data.provides)}")
        self.data, self.provides = data, tuple(wants)
        self.classes, self.palette, self.mean, self.std, self.name = data.classes, data.palette, data.mean, data.std, data.name

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, wants: tuple[str, ...] | None = None) -> dict:
        wants = self.provides if wants is None else wants
        barred = [w for w in wants if w not in self.provides]
        if barred:
            raise KeyError(f"{', '.join(barred)} asked of a data set that is restricted to {', '.join(self.provides)} by the method's supervision")
        return self.data.read(index, wants)


def normalise(image: np.ndarray, data) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W], (x / 255 - mean) / std."""
    x = torch.from_numpy(np.require(image, requirements=("C", "W"))).movedim(-1, -3).float().div_(255)  # a copy only where torch needs one
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (data.mean, data.std))
    return x.sub_(mean).div_(std)


def collate(samples: list[dict], data) -> Batch:
    """Samples of one size -> Batch."""
    batch = Batch()
    for key in samples[0]:
        values = [s[key] for s in samples]
        if key in ("image", "strong"):  # views.py's second view of the image
            batch[key] = normalise(np.stack(values), data)
        elif key in MAPS:
            batch[key] = torch.from_numpy(np.stack(values)).long()
        elif isinstance(values[0], np.ndarray):
            batch[key] = torch.from_numpy(np.stack(values))
        elif isinstance(values[0], (int, np.integer)):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[key] = values
    return batch


def generator(*key: int) -> np.random.Generator:
    """A random generator that is a pure function of the integers in `key`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class Batches:
    """The endless sequence of training batches of one stage: `batches[t]` is a pure function of (seed, t).

    Sampling without replacement: image number p = t * batch + j of the sequence is entry p mod N of the permutation of epoch p // N.

    Args:
        data: a data set. batch: effective batch. wants: what a batch holds (default: everything `data` provides).
        transform: (sample, rng) -> sample, e.g. `transforms.make_transform(...)`; None leaves images as they are.
        labels: one uint8 map per image (pseudo labels), augmented with the image and given as batch["label"].
        indices: restrict to these images (a subset of labelled images, say).
    """

    def __init__(self, data, batch: int, seed: int, transform=None, wants=None, labels=None, indices=None):
        self.data, self.batch, self.seed, self.transform, self.labels = data, batch, seed, transform, labels
        self.wants = tuple(data.provides if wants is None else wants)
        self.indices = np.arange(len(data)) if indices is None else np.asarray(indices)
        if len(self.indices) == 0:
            raise ValueError("a stage has no training images: the list of indices is empty")
        if labels is not None and len(labels) != len(data):
            raise ValueError(f"{len(labels)} label maps for {len(data)} images; a data set needs one map per image")
        self._epoch, self._order = -1, None

    def index_at(self, position: int) -> int:
        """Which image stands at this position of the endless sequence."""
        epoch, place = divmod(position, len(self.indices))
        if epoch != self._epoch:
            self._order, self._epoch = generator(self.seed, 1, epoch).permutation(self.indices), epoch
        return int(self._order[place])

    def sample(self, position: int) -> dict:
        index = self.index_at(position)
        sample = dict(self.data.read(index, self.wants), index=index)
        if self.labels is not None:
            sample["label"] = np.asarray(self.labels[index])
        if self.transform is not None:
            sample = self.transform(sample, generator(self.seed, 2, position))
        return sample

    def share(self, t: int, first: int, last: int) -> Batch:
        """Images first .. last-1 of batch t."""
        return collate([self.sample(t * self.batch + j) for j in range(first, last)], self.data)

    def __getitem__(self, t: int) -> Batch:
        return self.share(t, 0, self.batch)


class LabelMaps:
    """Label maps stored as one PNG per image, read on demand; small sets are kept in memory."""

    KEEP = 64 << 20  # bytes of maps to keep

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names, self.kept, self.bytes = Path(folder), list(names), {}, 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self.kept:
            return self.kept[index]
        path = self.folder / f"{self.names[index]}.png"
        try:
            with Image.open(path) as picture:
                labels = np.array(picture)
        except OSError as problem:
            raise OSError(f"pseudo label {path} cannot be read ({problem}); delete the folder {self.folder} and run again to rebuild it") from problem
        if self.bytes + labels.nbytes <= self.KEEP:
            self.kept[index] = labels
            self.bytes += labels.nbytes
        return labels
