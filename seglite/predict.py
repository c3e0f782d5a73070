"""Label your own photographs with a finished run, or with published weights.

    python -m seglite.predict run=runs/marsstyle-voc photo.jpg more/*.jpg
    python -m seglite.predict model=deeplabv3_mobilenetv2 weights=... crf=deeplab-voc photo.jpg
    python -m seglite.predict run=runs/zeroseg-scenes photo.png words="ball,star,water"    methods with a text tower: any words

Every photograph gives two files of its own size in out=: NAME.png, a palette picture whose pixel values are the class ids, and
NAME_overlay.jpg to look at. The classes found are printed with their share of the picture. Photographs turned by their EXIF note are
turned upright first, and so are their label maps. A folder stands for all photographs in it and below.

server= names the files and numbers as a test server wants them:

    server=cityscapes    NAME.png with raw ids (7 road ... 33 bicycle), for a run on the 19 classes
    server=voc-comp6     results/VOC2012/Segmentation/comp6_test_cls/ID.png (comp5: trained on VOC's own images alone), ready for tar
"""
from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from seglite import files
from seglite.config import UsageError
from seglite.data import cityscapes, normalise
from seglite.data.pairs import files_below
from seglite.evaluate import enlarge, open_predictor, views, with_crf
from seglite.metrics import best_class
from seglite.pictures import legend, overlay, png_bytes, save_mask_png, stack, voc_palette


@dataclass
class Settings:
    """Label photographs: masks and overlays at their own size."""

    run: str = ""
    """folder of a finished run"""
    model: Literal["", "deeplabv3_mobilenetv2"] = ""
    """instead of a run: a network whose published weights are in weights="""
    weights: str = ""
    """file of the published weights"""
    words: tuple[str, ...] = ()
    """for methods that read: the classes to look for, comma-separated, instead of the run's own"""
    threshold: float | None = None
    """with words=: background where no word scores as much; empty: as the run was tested"""
    root: str = ""
    """where the run's data set lies now, if it has moved"""
    out: str = "predictions"
    """folder of the results"""
    longest: int = 0
    """see photographs shrunk to this longer side (as in training); labels still come at the photograph's own size. 0: as they are"""
    scales: tuple[float, ...] = (1.0,)
    """sizes at which a photograph is seen; their probabilities are averaged"""
    flip: bool = False
    """also see the mirror image"""
    window: int = 0
    """side in pixels of a sliding window; 0: the whole photograph at once"""
    overlap: float = 1 / 3
    """least share of a window that its neighbour sees too"""
    crf: str = ""
    """refine by a CRF: a preset of seglite.crf, or values like 1/3/67/3/4"""
    overlays: bool = True
    """also write NAME_overlay.jpg"""
    server: Literal["", "cityscapes", "voc-comp5", "voc-comp6"] = ""
    """write masks as this test server wants them; empty: palette PNG of class ids"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice"""
    debug: bool = False
    """show tracebacks"""


@torch.no_grad()
def label_photograph(predict: Callable, image: np.ndarray, data, device: str = "cpu", longest: int = 0, crf: str = "") -> np.ndarray:
    """uint8 [H, W, 3] -> class ids uint8 [H, W].

    predict: normalised image [1, 3, h, w] -> scores. data: mean and std of the normalisation. longest: shrink for the network only.
    """
    x = normalise(image[None], data).to(device)
    H, W = image.shape[:2]
    shrink = min(1.0, longest / max(H, W)) if longest else 1.0
    seen = x
    if shrink < 1:
        seen = torch.nn.functional.interpolate(x, (max(1, round(H * shrink)), max(1, round(W * shrink))), mode="bilinear", align_corners=False, antialias=True)
    scores = predict(seen)
    if crf:
        return best_class(with_crf(lambda _: scores, data, crf)(x))[0].to(torch.uint8).cpu().numpy()
    return best_class(enlarge(scores, x))[0].to(torch.uint8).cpu().numpy()


def shares(labels: np.ndarray, classes) -> str:
    """"dog 31 %, sofa 20 %, background 49 %": the classes of a label map, objects first."""
    counts = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
    order = sorted(np.flatnonzero(counts), key=lambda k: (classes[k] == "background", -counts[k]))
    return ", ".join(f"{classes[k]} {max(1, round(100 * counts[k]))} %" for k in order)


def for_words(predict: Callable, data, words: tuple[str, ...], threshold: float | None = None) -> tuple[Callable, SimpleNamespace]:
    """A predictor that reads (see `openvocab.WordPredictor`) asked for other words, and what `predict_files` needs to know of its classes."""
    if not hasattr(predict, "for_words"):
        raise UsageError("words= needs a run of a method with a text tower (zeroseg, mixreorg); this run knows a fixed list: " + ", ".join(data.classes))
    if len(set(words)) < len(words):
        raise UsageError(f"words={','.join(words)} names a word twice")
    found = predict.for_words(words, **({} if threshold is None else {"threshold": threshold}))
    return found, SimpleNamespace(classes=found.classes, palette=voc_palette(len(found.classes)), mean=data.mean, std=data.std)


def names_for(photographs: list[str]) -> list[str]:
    """One file stem per photograph; equal stems from different folders get numbers."""
    names, used = [], set()
    for path in photographs:
        stem, name, number = Path(path).stem, Path(path).stem, 2
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def with_folders(photographs: list[str]) -> list[str]:
    """Folders replaced by the photographs in them, in alphabetical order. Raises FileNotFoundError for what does not exist."""
    found = []
    for path in photographs:
        inside = files_below(Path(path)) if Path(path).is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"folder {path} holds no photographs (jpg, png, bmp, tif, webp)")
        found += [str(p) for p in inside]
    missing = [p for p in found if not Path(p).is_file()]
    if missing:
        raise FileNotFoundError(f"photograph {missing[0]} does not exist" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))
    return found


def mask_writer(server: str, data) -> Callable[[np.ndarray, str, Path], Path]:
    """(labels, name, folder) -> the file written, in the layout that `server` wants."""
    if server == "cityscapes":
        if tuple(data.classes) != cityscapes.CLASSES:
            raise UsageError(f"server=cityscapes needs a run on Cityscapes' 19 classes, this one has {len(data.classes)} ({', '.join(data.classes[:3])}, ...)")
        grey = np.repeat(np.arange(cityscapes.LARGEST_RAW + 1, dtype=np.uint8)[:, None], 3, 1)
        return lambda labels, name, folder: _written(cityscapes.RAW_IDS[labels], grey, folder / f"{name.removesuffix('_leftImg8bit')}.png")
    if server:
        if len(data.classes) != 21:
            raise UsageError(f"server={server} needs a run on VOC's 21 classes, this one has {len(data.classes)}")
        below = Path("results/VOC2012/Segmentation") / f"{server.removeprefix('voc-')}_test_cls"
        return lambda labels, name, folder: _written(labels, data.palette, folder / below / f"{name}.png")
    return lambda labels, name, folder: _written(labels, data.palette, folder / f"{name}.png")


def _written(labels: np.ndarray, palette: np.ndarray, path: Path) -> Path:
    save_mask_png(labels, palette, path)
    return path


def predict_files(photographs: list[str], settings: Settings, methods: dict | None = None, say: Callable[[str], None] = print) -> list[np.ndarray]:
    """What the command does. Returns the label maps."""
    from seglite.data.voc import Voc, read_image

    photographs = with_folders(photographs)
    predict, data, device, close = open_predictor(settings, settings.root, methods)
    data, folder, results = data or Voc, Path(settings.out), []
    try:
        if settings.words:
            predict, data = for_words(predict, data, settings.words, settings.threshold)
        predict = views(predict, settings)
        write_mask = mask_writer(settings.server, data)
        for path, name in zip(photographs, names_for(photographs)):
            image = read_image(Path(path))
            labels = label_photograph(predict, image, data, device, settings.longest, settings.crf)
            written = [write_mask(labels, name, folder)]
            present = np.unique(labels)
            if settings.overlays:
                picture = Image.fromarray(overlay(image, labels, data.palette, clear=(0,) if data.classes[0] == "background" else ()))
                files.write_bytes(folder / f"{name}_overlay.jpg", jpeg_bytes(picture))
                written.append(folder / f"{name}_overlay.jpg")
            say(f"{path} -> {', '.join(map(str, written))}: {shares(labels, data.classes)}")
            results.append(labels)
        colours = legend([data.classes[k] for k in present], data.palette[present], width=600, ignore=False) if len(photographs) == 1 else \
            legend(data.classes, data.palette, width=600, ignore=False)
        files.write_bytes(folder / "legend.png", png_bytes(stack([colours], margin=12)))
    finally:
        close()
    return results


def jpeg_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def main(arguments: list[str]) -> int:
    from seglite import commands

    return commands.serve("seglite.predict", "run=FOLDER photo.jpg ...", Settings, arguments, files=(1, math.inf),
                          body=lambda settings, photographs: predict_files(photographs, settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
