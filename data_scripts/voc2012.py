"""PASCAL VOC 2012 with the augmented labels of SBD, ready for data=voc.

    python -m data_scripts.voc2012 --root VOC2012
    python -m seglite.train method=... data=voc root=VOC2012 voc.train=train_aug voc.masks=SegmentationClassAug

Fetches VOCtrainval_11-May-2012.tar (1.9 GB) and benchmark.tgz (1.3 GB), and makes

    JPEGImages, ImageSets/Segmentation, SegmentationClass     as VOC gives them
    SegmentationClassAug/ID.png                               official labels where VOC has them, SBD's elsewhere
    ImageSets/Segmentation/train_aug.txt                      10,582 ids: VOC train, SBD train and SBD val, without VOC val

Licence: the photographs are from Flickr and fall under its terms of use; research use. Cite Everingham et al., IJCV 2015, and for the augmented
labels Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011. Checksums: md5 sums as torchvision checks them.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/voc2012.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from data_scripts import command
from data_scripts.extract import extract, opened
from data_scripts.fetch import GZIP, Source, fetch
from data_scripts.matfile import read_mat
from seglite import files
from seglite.data.voc import CLASSES, palette, read_mask

VOC = Source("VOCtrainval_11-May-2012.tar",
             ("https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
              "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"),
             digest="md5:6cd6e144f989b92b3379bac3b3de84fd", size=1_999_639_040)
SBD = Source("benchmark.tgz",
             ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
              "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"),
             digest="md5:82b4d87ceb2ed10f6038a1cba92111cb", first=GZIP)
COUNTS = {"train": 1464, "val": 1449, "train_aug": 10_582}
LISTS, WANTED = "ImageSets/Segmentation", ("JPEGImages/", "SegmentationClass/", "ImageSets/Segmentation/")


def keep(name: str) -> str | None:
    """Paths in VOC's tar -> paths below root."""
    inner = name.partition("VOCdevkit/VOC2012/")[2]
    return inner if inner.startswith(WANTED) else None


def read_list(root: Path, name: str) -> list[str]:
    return (root / LISTS / f"{name}.txt").read_text().split()


def save_mask(labels: np.ndarray, path: Path) -> None:
    """A palette PNG whose indices are the labels."""
    picture = Image.fromarray(labels, "P")
    picture.putpalette(palette(256).tobytes())
    picture.save(path, optimize=False)


def add_sbd(root: Path, archive: Path, say: Callable[[str], None] = print) -> None:
    """SegmentationClassAug and train_aug.txt; both appear when they are complete."""
    official, val = set(read_list(root, "train")) | set(read_list(root, "val")), set(read_list(root, "val"))
    listed, made = {}, set()
    with files.new_folder(root / "SegmentationClassAug") as part:
        with opened(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if path.parent.name == "cls" and path.suffix == ".mat" and path.stem not in official:
                    save_mask(sbd_labels(tar.extractfile(member).read(), path), part / f"{path.stem}.png")
                    made.add(path.stem)
                elif path.parent.name == "dataset" and path.name in ("train.txt", "val.txt"):
                    listed[path.stem] = tar.extractfile(member).read().decode().split()
                if made and len(made) % 2000 == 0 and path.suffix == ".mat":
                    say(f"  {len(made):,} SBD labels")
        if set(listed) != {"train", "val"}:
            raise ValueError(f"{archive} has no dataset/train.txt and val.txt; it is another archive than SBD's benchmark.tgz")
        augmented = sorted((set(listed["train"]) | set(listed["val"]) | official) - val)
        missing = [i for i in augmented if i not in official and i not in made]
        if missing:
            raise ValueError(f"{archive} lists {missing[0]} and holds no label of it ({len(missing)} are missing)")
        for i in sorted(official):
            (part / f"{i}.png").write_bytes((root / "SegmentationClass" / f"{i}.png").read_bytes())
    files.write_text(root / LISTS / "train_aug.txt", "\n".join(augmented) + "\n")
    say(f"{root}: {len(made):,} SBD labels beside {len(official):,} official ones, {len(augmented):,} ids in train_aug.txt")


def sbd_labels(content: bytes, path: Path) -> np.ndarray:
    """GTcls.Segmentation of one .mat file, uint8 [H, W] with classes 0 ... 20."""
    try:
        labels = read_mat(content)["GTcls"]["Segmentation"]
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{path} holds no readable GTcls.Segmentation ({problem})") from problem
    if labels.ndim != 2 or labels.max() >= len(CLASSES):
        raise ValueError(f"{path}: labels {labels.shape} up to {labels.max()}; expected a label map of classes 0 ... 20")
    return labels.astype(np.uint8)


def verify(root: Path, counts: dict[str, int] = COUNTS, say: Callable[[str], None] = print) -> None:
    """Lists, one image and one readable mask per id. ValueError or FileNotFoundError on the first that is wrong."""
    for name, wanted in counts.items():
        path = root / LISTS / f"{name}.txt"
        if not path.is_file():
            say(f"{path} does not exist" + ("; run without --no-sbd to make it" if name == "train_aug" else ""))
            if name != "train_aug":
                raise FileNotFoundError(f"{path} does not exist; {root} is no VOC 2012 tree")
            continue
        ids = read_list(root, name)
        command.expect(len(ids), wanted, f"ids in {name}.txt", root, say)
        masks = root / ("SegmentationClassAug" if name == "train_aug" else "SegmentationClass")
        for i in ids:
            if not (root / "JPEGImages" / f"{i}.jpg").is_file():
                raise FileNotFoundError(f"{root / 'JPEGImages' / i}.jpg does not exist though {name}.txt lists it")
            read_mask(masks / f"{i}.png", len(CLASSES))
        say(f"{masks}: {len(ids):,} masks of {name}.txt hold only 0 ... 20 and 255")


def main(arguments: list[str] | None = None) -> int:
    p = command.parser(__doc__, "VOC2012")
    p.add_argument("--no-sbd", action="store_true", help="leave the augmented labels out")
    a = p.parse_args(arguments)

    def body():
        if not a.verify_only:
            if not (a.root / "JPEGImages").is_dir():
                extract(fetch(VOC, a.archives), a.root, most_bytes=4 << 30, keep=keep)
            if not a.no_sbd and not (a.root / LISTS / "train_aug.txt").is_file():
                add_sbd(a.root, fetch(SBD, a.archives))
        verify(a.root)
        print(f"ready: data=voc root={a.root}" + ("" if a.no_sbd else " voc.train=train_aug voc.masks=SegmentationClassAug"))

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
