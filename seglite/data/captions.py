"""A folder of photographs with captions (Flickr8k's layout). No masks: it is what image-text methods train on.

    root/images/NAME.jpg
    root/captions.txt        CSV with a header, one line per caption: image,caption      (usually several captions per image)

The last `captions.val_images` names, in alphabetical order, are the split "val", the others "train". `captions.words` are the classes that a
finished run is asked to find: any words, chosen after training if you like.

    python -m seglite.train method=zeroseg data=captions root=flickr8k_mini
"""
from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seglite.data.pairs import IMAGES, files_below
from seglite.data.voc import palette, read_image


@dataclass
class CaptionsSettings:
    """Files of a captioned image folder, and the words to look for."""

    file: str = "captions.txt"
    """CSV file below root, header image,caption"""
    images: str = "images"
    """folder of the photographs below root"""
    val_images: int = field(default=200, metadata={"least": 1})
    """the last so many names are held out"""
    words: tuple[str, ...] = ("person", "dog", "grass", "sky", "water", "snow", "sand", "street", "building", "tree")
    """classes of the zero-shot masks, comma-separated; background stands for none of them"""


def read_captions(path: Path) -> dict[str, list[str]]:
    """{image file name: its captions} from a CSV with the header image,caption. Raises ValueError naming the line."""
    table: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = csv.reader(lines)
            header = [column.strip().lower() for column in next(rows, [])]
            if header != ["image", "caption"]:
                raise ValueError(f"{path} begins with {','.join(header)!r}; expected the header image,caption")
            for row in rows:
                if not row:
                    continue
                if len(row) != 2 or not row[0].strip() or not row[1].strip():
                    raise ValueError(f"{path} line {rows.line_num}: {','.join(row)!r}; expected image,caption (captions with commas in quotes)")
                table.setdefault(row[0].strip(), []).append(" ".join(row[1].split()))
    except FileNotFoundError:
        raise FileNotFoundError(f"captions {path} do not exist; expected a CSV with the header image,caption (key captions.file)") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ValueError(f"captions {path} cannot be read ({problem}); expected a UTF-8 CSV with the header image,caption") from problem
    if not table:
        raise ValueError(f"captions {path} have no line besides the header")
    return table


class Captions:
    """A split of a captioned folder; see `seglite.data` for the contract that every data set keeps."""

    provides = ("image", "text", "texts")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, root: str, settings: CaptionsSettings, split: str):
        if split not in ("train", "val"):
            raise ValueError(f"split {split!r} does not exist in captions; known are train, val")
        if not root:
            raise ValueError(f"data=captions needs root=FOLDER, the folder that holds {settings.images}/ and {settings.file}")
        self.folder, table = Path(root) / settings.images, read_captions(Path(root) / settings.file)
        there = {p.name for p in self.folder.iterdir() if p.suffix.lower() in IMAGES} if self.folder.is_dir() else set()
        missing = sorted(set(table) - there)
        if missing:
            raise FileNotFoundError(f"image {self.folder / missing[0]} does not exist though {settings.file} names it ({len(missing)} of {len(table)} are missing)")
        files = sorted(table)
        if not 0 < settings.val_images < len(files):
            raise ValueError(f"captions.val_images={settings.val_images} must lie between 1 and {len(files) - 1}: there are {len(files)} captioned images")
        if not settings.words or len(set(settings.words)) < len(settings.words):
            raise ValueError(f"captions.words={','.join(settings.words)} must name at least one word and none twice")
        self.files = files[-settings.val_images :] if split == "val" else files[: -settings.val_images]
        self.captions = [table[file] for file in self.files]
        self.classes = ("background", *settings.words)
        self.palette = palette(len(self.classes))

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file's stem."""
        return Path(self.files[index]).stem

    def read(self, index: int, wants: tuple[str, ...] = ("image", "text")) -> dict:
        """Photograph `index` with what `wants` names: image uint8 `[H, W, 3]`, text str (its first caption), texts list of str (all)."""
        if not 0 <= index < len(self):
            raise IndexError(f"this split has no image {index}: it holds 0 ... {len(self) - 1}")
        unknown = [w for w in wants if w not in self.provides]
        if unknown:
            raise ValueError(f"data=captions cannot give {', '.join(unknown)}; it gives {', '.join(self.provides)}: there are no masks")
        sample = {"index": int(index), "name": self.name(index)}
        if "image" in wants:
            sample["image"] = read_image(self.folder / self.files[index])
        if "text" in wants:
            sample["text"] = self.captions[index][0]
        if "texts" in wants:
            sample["texts"] = list(self.captions[index])
        return sample


class Images:
    """All photographs at or below a folder, without any annotation: ImageNet's training folder, say. In the order of their paths."""

    provides = ("image",)
    classes: tuple[str, ...] = ("background",)
    palette = palette(1)
    mean, std = Captions.mean, Captions.std

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.files = sorted(str(path.relative_to(folder)) for path in files_below(self.folder))
        if not self.files:
            raise ValueError(f"images={folder} holds no photograph ({', '.join(IMAGES)}) at or below it")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The path below the folder, without its ending."""
        return str(Path(self.files[index]).with_suffix(""))

    def read(self, index: int, wants: tuple[str, ...] = ("image",)) -> dict:
        """Photograph `index`: image uint8 `[H, W, 3]`."""
        if tuple(wants) != ("image",):
            raise ValueError(f"a plain folder of images gives images only, not {', '.join(wants)}")
        return {"index": int(index), "name": self.name(index), "image": read_image(self.folder / self.files[index])}


def one_caption(transform: Callable | None) -> Callable:
    """A transform that also picks one of an image's captions as sample["text"]; data sets with one caption pass through.

    The caption is drawn before anything else, so colour and crop settings do not change which one.
    """

    def picked(sample: dict, rng: np.random.Generator) -> dict:
        if "texts" in sample:
            texts = sample["texts"]
            sample = {**{k: v for k, v in sample.items() if k != "texts"}, "text": texts[rng.integers(len(texts))]}
        return sample if transform is None else transform(sample, rng)

    return picked


def open(config, split: str) -> Captions:
    """The data set for `config.root` and `config.captions`, split "train" or "val"."""
    return Captions(config.root, config.captions, split)
