"""COCO 2014 as semantic segmentation (80 kinds of objects and the background), ready for data=coco.

    python -m data_scripts.coco2014 --root coco2014
    python -m seglite.train method=... data=coco root=coco2014

Fetches train2014.zip (13 GB), val2014.zip (6 GB), annotations_trainval2014.zip (241 MB), and makes

    masks/{train2014,val2014}/NAME.png    0 = background, 1 ... 80: the instances of an image, smaller ones on top, drawn as COCO's own tools do
    {train,val}.txt, {train,val}_tags.txt the images that show at least one object, and what they show (0 = person), for weak supervision

Checksums: the md5 sums that several independent loaders check (the server's own ETag of the annotations is the same number).
Licence: annotations CC BY 4.0; the photographs are from Flickr and fall under its terms of use. Cite Lin et al., ECCV 2014.
"""
from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/coco2014.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from data_scripts import command
from data_scripts.coco_masks import semantic_mask
from data_scripts.extract import extract
from data_scripts.fetch import ZIP, Source, fetch
from data_scripts.voc2012 import save_mask
from seglite import files
from seglite.data.coco import CLASSES, THINGS, guess
from seglite.data.pairs import identity_table, read_labels

SITE = "http://images.cocodataset.org"
IMAGES = {
    "train": Source("train2014.zip", (f"{SITE}/zips/train2014.zip",), digest="md5:0da8c0bd3d6becc4dcb32757491aca88", first=ZIP),
    "val": Source("val2014.zip", (f"{SITE}/zips/val2014.zip",), digest="md5:a3d79f5ed8d289b7a7554ce06a5782b3", first=ZIP),
}
ANNOTATIONS = Source("annotations_trainval2014.zip", (f"{SITE}/annotations/annotations_trainval2014.zip",),
                     digest="md5:0a379cfc70b0e71301e0f377548639bd", first=ZIP)
COUNTS = {"train": 82_783, "val": 40_504}


def class_numbers(categories: list[dict]) -> dict[int, int]:
    """{category id: class 1 ... 80}, in the order of the ids; their names must be the ones this project knows."""
    ordered = sorted(categories, key=lambda c: c["id"])
    if tuple(c["name"] for c in ordered) != THINGS:
        raise ValueError("the annotations list other categories than COCO 2014's 80 things; expected instances_train2014.json or "
                         "instances_val2014.json")
    return {c["id"]: k for k, c in enumerate(ordered, 1)}


def make_masks(root: Path, part: str, crowd: str = "class", say: Callable[[str], None] = print) -> None:
    """Masks, list and tags of one split. A mask that is there is not made again; the list, written last, says that all are."""
    source = root / "annotations" / f"instances_{part}2014.json"
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; unpack annotations_trainval2014.zip there")
    say(f"{source}: reading")
    content = json.loads(source.read_text())
    class_of, by_image = class_numbers(content["categories"]), defaultdict(list)
    for a in content["annotations"]:
        by_image[a["image_id"]].append(a)
    folder, lines = root / "masks" / f"{part}2014", []
    folder.mkdir(parents=True, exist_ok=True)
    for done, image in enumerate(sorted(content["images"], key=lambda i: i["file_name"]), 1):
        name, found = Path(image["file_name"]).stem, by_image[image["id"]]
        if not found:
            continue
        target = folder / f"{name}.png"
        if not target.exists():
            try:
                labels = semantic_mask(found, image["height"], image["width"], class_of, crowd)
            except (ValueError, KeyError, TypeError) as problem:
                raise ValueError(f"{source}: the annotations of {name} cannot be drawn ({problem})") from problem
            partial = target.with_name(f".{name}.part.png")
            save_mask(labels, partial)
            os.replace(partial, target)
        lines.append((name, sorted({class_of[a["category_id"]] - 1 for a in found})))
        if done % 5000 == 0:
            say(f"  {done:,} of {len(content['images']):,} images")
    files.write_text(root / f"{part}_tags.txt", "".join(f"{name} {' '.join(map(str, tags))}\n" for name, tags in lines))
    files.write_text(root / f"{part}.txt", "".join(f"{name}\n" for name, _ in lines))
    say(f"{root}: {len(lines):,} of {len(content['images']):,} {part} images show objects; their masks are in {folder}")


def verify(root: Path, counts: dict[str, int] = COUNTS, masks: int = 500, say: Callable[[str], None] = print) -> None:
    """Counts and pairs of everything, sizes and values of a sample of `masks` per split."""
    for part, wanted in counts.items():
        found = {p.stem for p in (root / f"{part}2014").glob("*.jpg")}
        command.expect(len(found), wanted, f"images in {part}2014", root, say)
        if not (root / f"{part}.txt").is_file():
            raise FileNotFoundError(f"{root / part}.txt does not exist; run without --verify-only to make masks and lists")
        names = (root / f"{part}.txt").read_text().split()
        missing = [n for n in names if n not in found or not (root / "masks" / f"{part}2014" / f"{n}.png").is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} of {part}.txt lacks its image or mask ({len(missing)} of {len(names)})")
        for name in command.spread(names, masks):
            labels = read_labels(root / "masks" / f"{part}2014" / f"{name}.png", identity_table(len(CLASSES)), guess)
            with Image.open(root / f"{part}2014" / f"{name}.jpg") as picture:
                if picture.size != labels.shape[::-1]:
                    raise ValueError(f"mask of {name} is {labels.shape[1]} x {labels.shape[0]}, its image {picture.size[0]} x {picture.size[1]}")
        say(f"{root}: {len(names):,} images of {part}.txt have masks; {min(masks, len(names))} of them looked at")


def main(arguments: list[str] | None = None) -> int:
    p = command.parser(__doc__, "coco2014")
    p.add_argument("--crowd", choices=("class", "ignore"), default="class",
                   help="groups that were outlined as one: their class, or not judged (default: class)")
    a = p.parse_args(arguments)

    def body():
        if not a.verify_only:
            if not (a.root / "annotations").is_dir():
                extract(fetch(ANNOTATIONS, a.archives), a.root / "annotations", most_bytes=2 << 30,
                        keep=lambda n: n.removeprefix("annotations/") if "instances" in n else None)
            for part, source in IMAGES.items():
                if not (a.root / f"{part}2014").is_dir():
                    extract(fetch(source, a.archives), a.root / f"{part}2014", most_bytes=20 << 30,
                            keep=lambda n: Path(n).name if n.endswith(".jpg") else None)
                if not (a.root / f"{part}.txt").is_file():
                    make_masks(a.root, part, a.crowd)
        verify(a.root)
        print(f"ready: data=coco root={a.root}")

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
