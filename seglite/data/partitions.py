"""Few labels: which training images have theirs, and one batch made of labelled and unlabelled images.

    labels=1/8                 a random eighth of the training images; smaller fractions of one seed lie inside larger ones
    labels=100                 a hundred of them
    labels=FOLDER/1_8.txt      the images of a published list; every other training image is unlabelled

Lists are accepted as they are published: bare ids (2007_000032), Cityscapes frames (jena_000078_000019, with or without _leftImg8bit), and
lines "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png" of ST++ and its successors, of which the first path counts. An image of
data=folder is named by its path below the folder of images (a/b.jpg) or by its name in a run (a__b).

Unlabelled images are not *asked* to be used without their label: their stream wants ("image",) alone, so no label is ever read.

L labelled images, U unlabelled images.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from seglite.data import Batch, Batches, generator
from seglite.data.pairs import without_suffix

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
    lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"labels={path}: the list is empty; at least one image must be labelled")
    exact, bare = places(names, str), places(names, without_ending)
    found = [next((table[s] for s in spellings(line) for table in (exact, bare) if s in table), []) for line in lines]
    unknown = [line.split()[0] for line, where in zip(lines, found) if not where]
    if unknown:
        raise ValueError(f"labels={path}: {len(unknown)} of its {len(lines)} names are not in the training set of {len(names)} images (the first: "
                         f"{unknown[0]}); the list belongs to another training list (VOC's blender lists need voc.train=train_aug) or data set")
    for line, where in zip(lines, found):
        if len(where) > 1:
            raise ValueError(f"labels={path}: {line.split()[0]} may be any of {', '.join(names[i] for i in where)}; write the name of one of them in full")
    labelled = [where[0] for where in found]
    if len(set(labelled)) < len(labelled):
        raise ValueError(f"labels={path}: {next(names[i] for i in labelled if labelled.count(i) > 1)} is listed more than once; every image must count once")
    return labelled


def places(names: list[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    """{key(name): where such names stand}."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(key(name), []).append(i)
    return found


def without_ending(name: str) -> str:
    """Neither an image's suffix nor Cityscapes' ending; every other dot belongs to the name, as in scan.1 and scan.2."""
    return without_suffix(name).removesuffix("_leftImg8bit")


def spellings(line: str) -> list[str]:
    """The names that a line may stand for, the most literal first: as it is, its first path, that path without its outer folders.

    data=folder writes __ for the folders of a name, so leftImg8bit/train/a/b.png is also train__a__b, a__b and, as the published lists mean it, b.
    """
    first = line.split()[0]
    parts = without_ending(first).split("/")
    return [line, without_ending(line), without_ending(line).replace("/", "__"), first,
            *(joined.join(parts[outer:]) for outer in range(len(parts)) for joined in ("/", "__"))]


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
