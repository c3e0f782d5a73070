"""ADE20K, the scene parsing challenge of 2016 (150 classes), ready for data=ade20k.

    python -m data_scripts.ade20k --root ade20k
    python -m seglite.train method=... data=ade20k root=ade20k

Fetches ADEChallengeData2016.zip (about 1 GB) and unpacks images and annotations. Stored labels run from 1; 0 is "none of them" and not judged:
data=ade20k subtracts the one. Checksum: the md5 sum that several independent loaders of this file check.

Licence: the data set's terms allow non-commercial research and education (see https://groups.csail.mit.edu/vision/datasets/ADE20K/). Cite Zhou et al.,
"Scene Parsing through ADE20K Dataset", CVPR 2017.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/ade20k.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_scripts import command
from data_scripts.extract import extract
from data_scripts.fetch import ZIP, Source, fetch
from seglite.data.ade20k import guess, table
from seglite.data.pairs import files_below, paired, read_labels

ARCHIVE = Source("ADEChallengeData2016.zip", ("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                                              "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"),
                 digest="md5:7328b3957e407ddae1d3cbf487f149ef", first=ZIP)
COUNTS = {"training": 20_210, "validation": 2_000}


def keep(name: str) -> str | None:
    """Paths in the archive -> paths below root."""
    inner = name.partition("ADEChallengeData2016/")[2]
    wanted = inner.startswith(("images/", "annotations/", "objectInfo150.txt", "sceneCategories.txt"))
    return inner if wanted and not Path(inner).name.startswith("._") else None


def verify(root: Path, counts: dict[str, int] = COUNTS, say: Callable[[str], None] = print) -> None:
    """Counts, pairs, and every label's values."""
    for part, wanted in counts.items():
        images = {p.stem: p for p in files_below(root / "images" / part)}
        command.expect(len(images), wanted, f"{part} images", root, say)
        for item in paired(images, {p.stem: p for p in files_below(root / "annotations" / part, (".png",))}, "unpack the archive again"):
            read_labels(item.mask, table(), guess)
        say(f"{root}: the {len(images):,} label files of {part} hold only 0 ... 150")


def main(arguments: list[str] | None = None) -> int:
    a = command.parser(__doc__, "ade20k").parse_args(arguments)

    def body():
        if not a.verify_only and not (a.root / "images").is_dir():
            extract(fetch(ARCHIVE, a.archives), a.root, most_bytes=6 << 30, keep=keep)
        verify(a.root)
        print(f"ready: data=ade20k root={a.root}")

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
