"""Cityscapes, ready for data=cityscapes. Its licence asks everyone to register, so you fetch two archives by hand and this script does the rest.

    1. register at https://www.cityscapes-dataset.com (free for research) and download into a folder, say archives:
           leftImg8bit_trainvaltest.zip (11 GB)      gtFine_trainvaltest.zip (241 MB)
    2. python -m data_scripts.cityscapes --archives archives --root cityscapes
    3. python -m seglite.train method=... data=cityscapes root=cityscapes

Checks the archives' md5 sums (as the site shows them beside the download), unpacks images and labels without trusting them, and makes the
labelTrainIds files that most tools want (data=cityscapes also reads the raw labelIds; --no-train-ids leaves them out).
Cite Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/cityscapes.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from data_scripts import command
from data_scripts.extract import extract
from data_scripts.fetch import ZIP, Source, fetch
from seglite.data.cityscapes import guess, raw_table
from seglite.data.pairs import identity_table, read_labels

ADVICE = "register at https://www.cityscapes-dataset.com, download it there and put it into the folder named by --archives"
ARCHIVES = {
    "leftImg8bit": (Source("leftImg8bit_trainvaltest.zip", digest="md5:0a6e97e94b616a514066c9e2adb0c97f", first=ZIP, advice=ADVICE), 16 << 30),
    "gtFine": (Source("gtFine_trainvaltest.zip", digest="md5:4237c19de34c8a376e9ba46b495d6f66", first=ZIP, advice=ADVICE), 4 << 30),
}
COUNTS = {"train": 2975, "val": 500, "test": 1525}


def keep(name: str) -> str | None:
    """Photographs and label maps; polygons, instance maps and colour pictures stay in the archive."""
    folder, _, inner = name.partition("/")
    return inner if folder in ARCHIVES and name.endswith(("_leftImg8bit.png", "_labelIds.png", "_labelTrainIds.png")) else None


def make_train_ids(root: Path, say: Callable[[str], None] = print) -> None:
    """A labelTrainIds file beside every labelIds file that has none. Each appears whole."""
    table, made = raw_table(), 0
    for path in sorted((root / "gtFine").glob("*/*/*_gtFine_labelIds.png")):
        target = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        if not target.exists():
            part = target.with_name(f".{target.name}.part.png")
            Image.fromarray(read_labels(path, table, guess)).save(part)
            os.replace(part, target)
            made += 1
            if made % 500 == 0:
                say(f"  {made} labelTrainIds files")
    say(f"{root}: {made} labelTrainIds files made")


def verify(root: Path, counts: dict[str, int] = COUNTS, say: Callable[[str], None] = print) -> None:
    """Counts, pairs, and the values of the labels of train and val."""
    for part, wanted in counts.items():
        names = sorted(p.name.removesuffix("_leftImg8bit.png") for p in (root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
        command.expect(len(names), wanted, f"{part} images", root, say)
        if part == "test":
            continue
        for name in names:
            stem = root / "gtFine" / part / name.split("_")[0] / f"{name}_gtFine_"
            train_ids, ids = Path(f"{stem}labelTrainIds.png"), Path(f"{stem}labelIds.png")
            if not (train_ids.is_file() or ids.is_file()):
                raise FileNotFoundError(f"{ids} does not exist though the image does; unpack gtFine_trainvaltest.zip too")
            read_labels(*((train_ids, identity_table(19)) if train_ids.is_file() else (ids, raw_table())), guess)
        say(f"{root}: the {len(names)} label files of {part} hold only what they may")


def main(arguments: list[str] | None = None) -> int:
    p = command.parser(__doc__, "cityscapes")
    p.add_argument("--no-train-ids", action="store_true", help="do not make labelTrainIds files")
    a = p.parse_args(arguments)

    def body():
        if not a.verify_only:
            for folder, (source, most) in ARCHIVES.items():
                if not (a.root / folder).is_dir():
                    extract(fetch(source, a.archives), a.root / folder, most_bytes=most, keep=keep)
            if not a.no_train_ids:
                make_train_ids(a.root)
        verify(a.root)
        print(f"ready: data=cityscapes root={a.root}")

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
