"""Few labels: which training images have theirs, and one batch made of labelled and unlabelled images.

    labels=1/8                 a random eighth of the training images; smaller fractions of one seed lie inside larger ones
    labels=100                 a hundred of them
    labels=FOLDER/1_8.txt      the images of a published list; every other training image is unlabelled

Lists are accepted as they are published: bare ids (2007_000032), Cityscapes frames (jena_000078_000019, with or without _leftImg8bit), and
lines "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png" of ST++ and its successors, of which the first path counts.

Unlabelled images are not *asked* to be used without their label: their stream wants ("image",) alone, so no label is ever read.

L labelled images, U unlabelled images.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from seglite.data import Batch, Batches, generator

STREAM = 71  # of random numbers, apart from those of sampling and augmentation


def split(config, data) -> tuple[np.ndarray, np.ndarray]:
    """`config.labels` applied to a training set: indices of the labelled images, int64 [L], and of all others, int64 [U], both ascending.

    A fraction or a count is drawn from (config.seed, number of images) alone. Raises ValueError when nothing or too much would be labelled, when
    a list names an image twice or one that is not in `data`; FileNotFoundError when there is no such list.
    """
    wish, count = config.labels, len(data)
    if wish.endswith(".txt"):
        labelled = listed(wish, [data.name(i) for i in range(count)])
    else:
        labelled = generator(config.seed, STREAM).permutation(count)[: how_many(wish, count)]
    labelled = np.sort(np.asarray(labelled, np.int64))  # [L]
    return labelled, np.setdiff1d(np.arange(count), labelled)


def how_many(wish: str, count: int) -> int:
    """"1/8" of 367 images -> 46 (rounded, at least one); "100" -> 100."""
    above, slash, below = wish.partition("/")
    if not above.isdigit() or (slash and not (below.isdigit() and int(below))):
        raise ValueError(f"labels={wish} is no fraction (1/8), no number of images (100) and no list (FOLDER/1_8.txt)")
    if slash and int(above) > int(below):
        raise ValueError(f"labels={wish} is more than all images; 1/1 labels every one of them")
    wanted = max(1, int(int(above) * count / int(below) + 0.5)) if slash and int(above) else int(above)
    if not 1 <= wanted <= count:
        raise ValueError(f"labels={wish} asks for {wanted} labelled images; this training set has {count}")
    return wanted


def listed(path: str, names: list[str]) -> list[int]:
    """Where the images of a list stand among `names`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels={path}: there is no such list; give the path of a .txt file, a fraction (1/8) or a number of images")
    ids = [bare(line.split()[0]) for line in Path(path).read_text().splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"labels={path}: the list is empty; at least one image must be labelled")
    place = {bare(name): i for i, name in enumerate(names)}
    unknown = [i for i in ids if i not in place]
    if unknown:
        raise ValueError(f"labels={path}: {len(unknown)} of its {len(ids)} names are not in the training set of {len(names)} images (the first: "
                         f"{unknown[0]}); the list belongs to another training list (VOC's blender lists need voc.train=train_aug) or data set")
    if len(set(ids)) < len(ids):
        raise ValueError(f"labels={path}: {next(i for i in ids if ids.count(i) > 1)} is listed more than once; every image must count once")
    return [place[i] for i in ids]


def bare(name: str) -> str:
    """"leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png" -> "jena_000078_000019"."""
    return Path(name).stem.removesuffix("_leftImg8bit")


class Together:
    """Several streams of batches as one, for `run.fit`: `Together(labelled, unlabelled=..., other=...)`.

    A batch holds the first stream's keys as they are ("image", "mask", "index") and every further stream's behind its name ("unlabelled.image").
    All streams have the same batch size, and batch t is as pure a function of t as theirs. Give every stream a seed of its own.
    """

    def __init__(self, first: Batches, **others: Batches):
        self.first, self.others = first, others
        self.wants = tuple(dict.fromkeys(w for stream in (first, *others.values()) for w in stream.wants))
        for name, stream in others.items():
            if stream.batch != first.batch:
                raise ValueError(f"stream {name!r} has a batch of {stream.batch} beside {first.batch}; streams that go together have one batch size")

    def share(self, t: int, first: int, last: int) -> Batch:
        """Images first .. last-1 of batch t of every stream."""
        batch = Batch(self.first.share(t, first, last))
        for name, stream in self.others.items():
            batch.update({f"{name}.{key}": value for key, value in stream.share(t, first, last).items()})
        return batch

    def __getitem__(self, t: int) -> Batch:
        return self.share(t, 0, self.first.batch)
