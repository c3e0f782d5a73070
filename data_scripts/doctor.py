"""Looks through every image and mask of a data set, says what is wrong and what to set.

    python -m data_scripts.doctor VOC2012
    python -m data_scripts.doctor my_photos --images photos --masks labels

Checks: files that cannot be read, images without mask and the other way round, sizes, numbers outside the classes, colours instead of numbers, JPEG
masks, numbers that another data set uses (raw Cityscapes ids, ADE20K's 0, palettes turned to grey, 0 / 255 pictures), the same image in two splits.
Prints the settings to paste, and exits with 0 when nothing is wrong, 1 otherwise. Nothing is changed.
"""
from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__" and not __package__:  # python data_scripts/doctor.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageOps

from data_scripts import command
from seglite.data import ade20k, camvid, cityscapes, coco, voc
from seglite.data.pairs import IGNORE, files_below, identity_table

MANY = 64  # distinct colours or numbers of one mask beyond which it is no label map


@dataclass
class Pair:
    name: str
    image: Path
    mask: Path


@dataclass
class Layout:
    """A data set as it lies there."""

    kind: str
    setting: str
    """what to type to train on it"""
    splits: dict[str, list[Pair]]
    strays: list[Path] = field(default_factory=list)
    """masks without image"""
    table: np.ndarray | None = None
    """number -> class, 255, or -1: must not occur; None: not known yet"""
    classes: int = 0
    names: tuple[str, ...] = ()


@dataclass
class Findings:
    layout: Layout
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images_with: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    modes: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    colours: Counter = field(default_factory=Counter)
    read: int = 0


# ---- what lies there --------------------------------------------------------------------------------------------------------------------


def recognise(root: Path, images: str = "", masks: str = "") -> Layout:
    """Which data set this is, by its folders. FileNotFoundError when it is none."""
    if images or masks:
        return own_folder(root, images or "images", masks or "masks")
    finders = {voc_layout: voc.find_root, ade_layout: ade20k.find_root, city_layout: cityscapes.find_root, coco_layout: coco.find_root}
    for look, finder in finders.items():
        try:
            found = finder(str(root))
        except (FileNotFoundError, ValueError):
            continue
        if look is ade_layout and not any((found / "images" / part).is_dir() for part in ade20k.FOLDERS.values()):
            continue  # images and annotations of somebody else's
        return look(found)
    if (root / "train").is_dir() and (root / "trainannot").is_dir():
        return camvid_layout(root)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return own_folder(root, "images", "masks")
    inside = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8]) if root.is_dir() else ""
    state = f"holds {inside or 'no folders'}" if root.is_dir() else "is not a folder"
    raise FileNotFoundError(f"{root} {state}; expected the layout of voc, camvid, cityscapes, ade20k or coco, or folders images and masks "
                            "(name others with --images and --masks)")


def voc_layout(root: Path) -> Layout:
    splits, used = {}, set()
    for name in ("train", "val", "train_aug"):
        if (root / "ImageSets/Segmentation" / f"{name}.txt").is_file():
            folder = "SegmentationClassAug" if name == "train_aug" else "SegmentationClass"
            ids = voc.read_list(root, name, "train")
            splits[name] = [Pair(i, root / "JPEGImages" / f"{i}.jpg", root / folder / f"{i}.png") for i in ids]
            used |= set(ids)
    strays = [p for p in sorted((root / "SegmentationClass").glob("*.png")) if not (root / "JPEGImages" / f"{p.stem}.jpg").is_file()]
    aug = " voc.train=train_aug voc.masks=SegmentationClassAug" if "train_aug" in splits else ""
    return Layout("voc", f"data=voc root={root}{aug}", splits, strays, identity_table(21), 21, voc.CLASSES)


def camvid_layout(root: Path) -> Layout:
    splits, strays = {}, []
    for part in camvid.SPLITS:
        frames = {p.stem: p for p in files_below(root / part)} if (root / part).is_dir() else {}
        splits[part] = [Pair(n, p, root / f"{part}annot" / f"{n}.png") for n, p in sorted(frames.items())]
        if (root / f"{part}annot").is_dir():
            strays += [p for p in files_below(root / f"{part}annot") if p.stem not in frames]
    table = identity_table(11)
    table[camvid.VOID] = IGNORE
    return Layout("camvid", f"data=camvid root={root}", splits, strays, table, 11, camvid.CLASSES)


def city_layout(root: Path) -> Layout:
    train_ids = any((root / "gtFine").glob("train/*/*_gtFine_labelTrainIds.png"))
    kind = "labelTrainIds" if train_ids else "labelIds"
    splits, strays = {}, []
    for part in ("train", "val"):
        names = {p.name.removesuffix("_leftImg8bit.png"): p for p in (root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png")}
        splits[part] = [Pair(n, p, root / "gtFine" / part / n.split("_")[0] / f"{n}_gtFine_{kind}.png") for n, p in sorted(names.items())]
        strays += [p for p in sorted((root / "gtFine" / part).glob(f"*/*_{kind}.png")) if p.name.removesuffix(f"_gtFine_{kind}.png") not in names]
    table = identity_table(19) if train_ids else cityscapes.raw_table()
    return Layout("cityscapes", f"data=cityscapes root={root}", splits, strays, table, 19, cityscapes.CLASSES)


def ade_layout(root: Path) -> Layout:
    splits, strays = {}, []
    for part in ade20k.FOLDERS.values():
        names = {p.stem: p for p in files_below(root / "images" / part)}
        splits[part] = [Pair(n, p, root / "annotations" / part / f"{n}.png") for n, p in sorted(names.items())]
        strays += [p for p in files_below(root / "annotations" / part, (".png",)) if p.stem not in names]
    return Layout("ade20k", f"data=ade20k root={root}", splits, strays, ade20k.table(), 150, ade20k.CLASSES)


def coco_layout(root: Path) -> Layout:
    splits = {}
    for part in ("train", "val"):
        path = root / f"{part}.txt"
        names = path.read_text().split() if path.is_file() else [p.stem for p in sorted((root / f"{part}2014").glob("*.jpg"))]
        splits[part] = [Pair(n, root / f"{part}2014" / f"{n}.jpg", root / "masks" / f"{part}2014" / f"{n}.png") for n in names]
    return Layout("coco", f"data=coco root={root}", splits, [], identity_table(81), 81, coco.CLASSES)


def own_folder(root: Path, images: str, masks: str) -> Layout:
    """images/ and masks/, with the ending of the mask names found out, and the classes of classes.txt where it is there."""
    from seglite.data import folder

    for name in (images, masks):
        if not (root / name).is_dir():
            raise FileNotFoundError(f"{root} has no folder {name}; name the folders with --images and --masks")
    photos, labels = folder.by_key(root / images), folder.by_key(root / masks)
    ending = ""
    if photos and not set(photos) & set(labels):
        endings = Counter(key[len(own):] for own in photos for key in labels if key.startswith(own))
        ending = endings.most_common(1)[0][0] if endings else ""
    by_name = {key.removesuffix(ending) if ending else key: path for key, path in labels.items()}
    keys, splits = sorted(photos), {}
    try:
        for split in ("train", "val"):
            splits[split] = folder.in_split(keys, root, split, 0.2)
    except (ValueError, FileNotFoundError):
        splits = {"all": keys}
    typed = {"images": images if images != "images" else "", "masks": masks if masks != "masks" else "", "ending": ending}
    setting = f"data=folder root={root}" + "".join(f" folder.{key}={value}" for key, value in typed.items() if value)
    pairs = {s: [Pair(k, photos[k], by_name.get(k, root / masks / f"{k}{ending}.png")) for k in names] for s, names in splits.items()}
    layout = Layout("folder", setting, pairs, [p for k, p in sorted(by_name.items()) if k not in photos])
    if (root / "classes.txt").is_file():
        classes, colours = folder.read_classes(folder.FolderSettings(), root)
        layout.classes, layout.names, layout.table = len(classes), classes, None if colours is not None else identity_table(len(classes))
    return layout


# ---- looking ----------------------------------------------------------------------------------------------------------------------------


def examine(layout: Layout, limit: int = 0, say: Callable[[str], None] = print) -> Findings:
    """Read every pair (or `limit` of each split) once."""
    found, bad = Findings(layout), defaultdict(list)
    prints: dict[str, dict[str, str]] = defaultdict(dict)  # split -> fingerprint of the file -> name
    total = sum(min(len(p), limit) if limit else len(p) for p in layout.splits.values())
    done = 0
    for split, pairs in layout.splits.items():
        for pair in command.spread(pairs, limit) if limit else pairs:
            done += 1
            if done % 1000 == 0:
                say(f"  {done:,} of {total:,}")
            size = look_at_image(pair, split, prints, bad)
            look_at_mask(pair, size, found, bad)
    found.read = done
    judge(found, bad, prints)
    return found


def look_at_image(pair: Pair, split: str, prints, bad) -> tuple[int, int] | None:
    """Decode the photograph; returns (width, height)."""
    try:
        content = pair.image.read_bytes()
        with Image.open(pair.image) as picture:
            upright = ImageOps.exif_transpose(picture)
            upright.load()
            if picture.getexif().get(0x0112, 1) != 1:
                bad["turned"].append(pair.image)
        prints[split][hashlib.sha1(content).hexdigest()] = pair.name
        return upright.size
    except FileNotFoundError:
        bad["no image"].append(pair.image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        bad["broken image"].append((pair.image, problem))
    return None


def look_at_mask(pair: Pair, size: tuple[int, int] | None, found: Findings, bad) -> None:
    try:
        with Image.open(pair.mask) as picture:
            found.modes[picture.mode] += 1
            lossy, labels, mask_size = picture.format == "JPEG", np.array(picture), picture.size
    except FileNotFoundError:
        bad["no mask"].append(pair.mask)
        return
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        bad["broken mask"].append((pair.mask, problem))
        return
    found.sizes[mask_size] += 1
    if size is not None and size != mask_size:
        bad["sizes"].append((pair.mask, mask_size, size))
    if lossy:
        bad["jpeg"].append(pair.mask)
    if labels.ndim == 3:
        bad["colours"].append(pair.mask)
        packed = (labels[..., 0].astype(np.int64) << 16) | (labels[..., 1].astype(np.int64) << 8) | labels[..., 2]
        values, counts = np.unique(packed, return_counts=True)
        for value, count in zip(values[:4 * MANY].tolist(), counts.tolist()):
            found.colours[(value >> 16, value >> 8 & 255, value & 255)] += count
        return
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype != np.uint8:
        if labels.min() < 0 or labels.max() > 255:
            bad["wide"].append((pair.mask, int(labels.max())))
            return
        labels = labels.astype(np.uint8)
    counts = np.bincount(labels.ravel(), minlength=256)
    found.pixels += counts
    found.images_with += counts > 0
    table = found.layout.table
    if table is not None and (counts[table == -1] > 0).any():
        bad["foreign"].append((pair.mask, [int(v) for v in np.flatnonzero((counts > 0) & (table == -1))]))


# ---- judging ----------------------------------------------------------------------------------------------------------------------------


def some(items: list, of: str) -> str:
    """"a/b.png (and 3 more)"."""
    first = items[0][0] if isinstance(items[0], tuple) else items[0]
    return f"{first}" + (f" (and {len(items) - 1} more {of})" if len(items) > 1 else "")


def judge(found: Findings, bad, prints) -> None:
    """Turn what was seen into sentences: what, how often, what to do."""
    say, layout = found.problems.append, found.layout
    if not found.read:
        say(f"there is not one image: {layout.kind} was recognised by its folders, but they are empty")
    if bad["no image"]:
        say(f"listed and not there: {some(bad['no image'], 'images')}; the download is incomplete, or the list is another data set's")
    if bad["no mask"]:
        say(f"image without mask: {some(bad['no mask'], 'masks are missing')}; leave those images out of the lists, or fetch their masks")
    if layout.strays:
        say(f"mask without image: {some(layout.strays, 'masks')}; remove them or find their images")
    for kind, what in (("broken image", "image"), ("broken mask", "mask")):
        if bad[kind]:
            path, problem = bad[kind][0]
            more = f" and {len(bad[kind]) - 1} more" if len(bad[kind]) > 1 else ""
            say(f"{what} cannot be read: {path} ({str(problem).splitlines()[0]}){more}; fetch it again")
    if bad["sizes"]:
        path, mask, image = bad["sizes"][0]
        turned = " It is the image turned by 90 degrees: save the pair upright." if mask == image[::-1] else ""
        say(f"mask and image differ in size: {path} is {mask[0]} x {mask[1]}, its image {image[0]} x {image[1]}"
            + (f" (and {len(bad['sizes']) - 1} more)" if len(bad["sizes"]) > 1 else "") + f"; resize masks with nearest neighbour only.{turned}")
    if bad["jpeg"]:
        say(f"masks are JPEG files: {some(bad['jpeg'], 'masks')}; JPEG changes numbers at every border: export the labels again as PNG")
    if bad["wide"]:
        path, highest = bad["wide"][0]
        say(f"mask holds numbers up to {highest}: {path}; this is an instance or depth map: class maps have one byte per pixel")
    if bad["colours"] and not bad["jpeg"]:
        judge_colours(found, len(bad["colours"]))
    judge_numbers(found, bad)
    for a, b in ((a, b) for i, a in enumerate(prints) for b in list(prints)[i + 1:]):
        same = set(prints[a]) & set(prints[b])
        # train is part of train_aug by construction
        if same and {a, b} != {"train", "train_aug"}:
            one = sorted(same)[0]
            say(f"the same picture is in {a} and {b}: {prints[a][one]} and {prints[b][one]}" + (f" (and {len(same) - 1} more)" if len(same) > 1 else "")
                + "; scores on such a split are flattered")
    if bad["turned"]:
        found.remarks.append(f"{len(bad['turned'])} photographs carry an EXIF note that turns them ({bad['turned'][0].name}); they are read upright")
    if len(found.modes) > 1:
        ways = ", ".join(f"{n} {mode}" for mode, n in found.modes.most_common())
        found.remarks.append(f"masks are stored in several ways: {ways} (P: palette, L: grey; both are read by number)")


PALETTES = {"voc": voc.palette(21), "cityscapes": cityscapes.PALETTE, "camvid": np.array(camvid.COLOURS, np.uint8)}


def judge_colours(found: Findings, count: int) -> None:
    """Masks that are colour pictures: whose colours?"""
    colours = {c for c, n in found.colours.items()}
    if len(colours) > 4 * MANY:
        found.problems.append(f"{count} masks are colour pictures with more than {4 * MANY} colours: photographs, or labels smoothed by resizing; "
                              "export them with one number per pixel")
        return
    for name, table in PALETTES.items():
        known = {tuple(c) for c in table.tolist()} | {(0, 0, 0), (255, 255, 255), (224, 224, 192)}
        if colours <= known and len(colours) > 1:
            found.problems.append(f"{count} masks are colour pictures in the colours of {name}; take its label files with numbers, or list the "
                                  "colours in classes.txt (below)")
            break
    else:
        if found.layout.kind == "folder" and found.layout.classes and found.layout.table is None:
            return  # classes.txt names the colours; reading checks them
        found.problems.append(f"{count} masks are colour pictures with {len(colours)} colours; list them in classes.txt (below), one class per "
                              "line, and they are read as they are")
    lines = "\n".join(f"      class{k} {r} {g} {b}" for k, ((r, g, b), _) in enumerate(found.colours.most_common(20)))
    found.remarks.append(f"colours by frequency, as classes.txt wants them (give them names):\n{lines}")


def judge_numbers(found: Findings, bad) -> None:
    """Numbers outside the classes, and what they look like."""
    layout = found.layout
    values = [int(v) for v in np.flatnonzero(found.pixels)]
    inner = [v for v in values if v != IGNORE]
    if not values:
        return
    greys = {int(v) for v in np.round(voc.palette(21).astype(float) @ (0.299, 0.587, 0.114))}
    if len(values) > MANY and layout.kind not in ("ade20k", "coco"):
        found.problems.append(f"masks hold {len(values)} different numbers; label maps hold a few: this is a grey photograph, a soft mask, or "
                              "labels smoothed by resizing")
    elif values == [0, 255]:
        found.problems.append("masks hold only 0 and 255: black-and-white pictures of one class; 255 means 'not judged' here, so no object would "
                              "be seen. Divide the files by 255 (0 background, 1 object)")
    elif len(inner) > 2 and max(inner) > 20 and {v for v in inner if v} <= greys and layout.kind in ("voc", "folder"):
        found.problems.append(f"masks hold {inner[:6]}, the grey values of VOC's palette: palette pictures were converted to grey; take the "
                              "original files")
    elif bad["foreign"]:
        path, foreign = bad["foreign"][0]
        found.problems.append(f"mask holds {', '.join(map(str, foreign[:5]))} outside the {layout.classes} classes: {path}"
                              + (f" (and {len(bad['foreign']) - 1} more masks)" if len(bad["foreign"]) > 1 else "") + f"; {scheme(values, layout)}")
    elif len(inner) == 1 and layout.kind != "coco":
        found.problems.append(f"every mask holds only {inner[0]}: there is nothing to learn; the labels were lost on export")
    elif not inner:
        found.problems.append("every pixel of every mask is 255, not judged: there is nothing to learn")
    if layout.kind == "folder" and not layout.classes and inner and len(values) <= MANY and values != [0, 255]:
        first = 1 if 0 not in inner else 0
        layout.setting += f" folder.classes={max(inner) + 1 - first}" + (" folder.first=1" if first else "")
        gaps = [v for v in range(first, max(inner)) if v not in inner]
        if gaps:
            found.remarks.append(f"numbers {', '.join(map(str, gaps[:8]))} never occur between {first} and {max(inner)}: fine if those classes "
                                 "exist and are rare")
        if guess := scheme(values, layout):
            found.remarks.append(guess)


def scheme(values: list[int], layout: Layout) -> str:
    """Whose numbers these are, and what to do."""
    inner = {v for v in values if v != IGNORE}
    highest = max(inner)
    if layout.kind == "cityscapes" and highest <= cityscapes.LARGEST_RAW:
        return "these are raw Cityscapes ids: set cityscapes.labels=ids, or make labelTrainIds files (data_scripts/cityscapes.py)"
    if layout.kind == "folder" and layout.classes and inner == set(range(1, layout.classes + 1)):
        return f"labels run from 1 to {layout.classes}: set folder.first=1"
    if layout.kind == "folder" and layout.classes and highest == layout.classes:
        return "there is one number more than classes.txt has lines: add the class, or the background"
    if inner <= set(range(21)) and IGNORE in values and highest > 11:
        return "these look like VOC's 21 classes with 255 at the borders"
    if inner >= {7, 11, 21} and highest <= cityscapes.LARGEST_RAW:
        return "these look like raw Cityscapes ids (7 road, 11 building, 21 vegetation ...): use data=cityscapes"
    if highest == camvid.VOID and len(inner) > 6:
        return "these look like CamVid's 11 classes with 11 = void: use data=camvid"
    if 33 < highest <= 150 and len(inner) > 20:
        return "these look like ADE20K's numbers, 1 ... 150 with 0 = not judged: use data=ade20k"
    return "these numbers fit none of the known schemes: look at one such mask" if layout.classes else ""


# ---- printing ---------------------------------------------------------------------------------------------------------------------------


def tell(found: Findings, say: Callable[[str], None] = print) -> None:
    """The report."""
    layout = found.layout
    splits = ", ".join(f"{split} {len(pairs):,}" for split, pairs in layout.splits.items())
    say(f"layout: {layout.kind} · {splits} · {found.read:,} pairs looked at")
    if found.modes:
        names = {"P": "palette", "L": "grey", "RGB": "colour", "RGBA": "colour with alpha", "1": "black and white", "I;16": "16 bit", "I": "32 bit"}
        modes = ", ".join(f"{n:,} {names.get(mode, mode)}" for mode, n in found.modes.most_common())
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in found.sizes.most_common(3))
        say(f"masks: {modes} · sizes {sizes}" + (f" and {len(found.sizes) - 3} more" if len(found.sizes) > 3 else ""))
    values = np.flatnonzero(found.pixels)
    if len(values) and len(values) <= 2 * MANY + 30:
        all_pixels = found.pixels.sum()
        say("number   pixels   masks  class")
        for v in values:
            k = layout.table[v] if layout.table is not None else IGNORE if v == IGNORE else None
            meaning = "" if k is None else "not judged" if k == IGNORE else "OUTSIDE THE CLASSES" if k < 0 else layout.names[k]
            say(f"{v:6}  {found.pixels[v] / all_pixels:7.3%}  {found.images_with[v]:6,}  {meaning}".rstrip())
    for remark in found.remarks:
        say(f"  note: {remark}")
    for problem in found.problems:
        say(f"  PROBLEM: {problem}")
    say(f"settings: {layout.setting}")
    say("nothing is wrong" if not found.problems else f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}")


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("root", type=Path, help="folder of the data set")
    p.add_argument("--images", default="", help="folder of the photographs below root, for data of your own (default: images)")
    p.add_argument("--masks", default="", help="folder of the masks below root, for data of your own (default: masks)")
    p.add_argument("--limit", type=int, default=0, help="look at this many pairs of each split only, evenly spread (default: all)")
    a = p.parse_args(arguments)
    verdict = []

    def body():
        found = examine(recognise(a.root, a.images, a.masks), a.limit)
        tell(found)
        verdict.extend(found.problems)

    return command.guarded(body) or int(bool(verdict))


if __name__ == "__main__":
    sys.exit(main())
