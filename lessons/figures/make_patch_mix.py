"""The pictures of lesson 13: python -m lessons.figures.make_patch_mix writes lessons/figures/patch_mix_*.png."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kernels import backend
from kernels.patch_mix import mix_labels, patch_mix, random_mix_index
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.data import scenes
from seglite.pictures import scaled

HERE = Path(__file__).parent
SIDE, PATCH = 64, 8
PICTURES = (34, 32)
SOURCE = np.array([[0, 114, 178], [230, 159, 0]], np.uint8)  # image 0, image 1
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#d8d8d8"


def two_scenes() -> tuple[np.ndarray, list[str], torch.Tensor]:
    """Two captioned scenes [2, 64, 64, 3], their captions, and the index that mixes them."""
    data = scenes.Scenes(scenes.ScenesSettings(world="text", seed=0, val_images=64), "val")
    samples = [data.read(i, ("image", "text")) for i in PICTURES]
    images = np.stack([scaled(s["image"], (SIDE, SIDE)) for s in samples])
    index = random_mix_index(2, (SIDE // PATCH) ** 2, generator=torch.Generator().manual_seed(1))
    return images, [s["text"] for s in samples], index


def mixed(images: np.ndarray, index: torch.Tensor) -> np.ndarray:
    with backend.use("reference"):
        y = patch_mix(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), index, PATCH)
    return y.numpy().transpose(0, 2, 3, 1)


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, size: int, title: str) -> None:
    canvas.paste(Image.fromarray(scaled(picture, (size, size), smooth=False)), x, y)
    canvas.text(x, y + size + 6, title, SMALL, INK)


def problem() -> Image.Image:
    """Two captioned images become two mixed images and a free label map."""
    images, captions, index = two_scenes()
    canvas = Canvas(900, 236)
    labels = SOURCE[mix_labels(index, 2, PATCH, (SIDE, SIDE)).numpy()]
    titles = ["image 0", "image 1", "mixed image 0", "where it came from"]
    pictures = [images[0], images[1], mixed(images, index)[0], labels[0]]
    for i, (picture, title) in enumerate(zip(pictures, titles)):
        tile(canvas, picture, 232 * i, 0, 196, title)
    for i in range(2):
        words = captions[i] if len(captions[i]) <= 32 else captions[i][:31] + "…"
        canvas.text(232 * i, 218, f"“{words}”", SMALL, BLUE if i == 0 else ORANGE)
    canvas.text(696, 218, "blue: image 0, orange: image 1", SMALL, MUTED)
    return canvas.done()


def idea() -> Image.Image:
    """The same place in both images: only the image number changes. Three passes against one."""
    canvas = Canvas(900, 250)
    canvas.text(0, 4, "y[b, place] = x[index[b, p(place)], place]", BODY, INK, bold=True)
    index = np.array([[0, 1, 1, 0], [1, 0, 0, 1]])
    for b in range(2):
        for name, x0 in (("x", 0), ("y", 300)):
            y0 = 52 + 98 * b
            canvas.text(x0, y0 + 24, f"{name}[{b}]", BODY, INK)
            for p in range(4):
                source = b if name == "x" else index[b, p]
                canvas.box(x0 + 44 + 42 * p, y0, 42, 64, fill=BLUE if source == 0 else ORANGE, outline="#ffffff")
                canvas.text(x0 + 65 + 42 * p, y0 + 32, f"p{p}", SMALL, "#ffffff", "mm")
        canvas.text(258, 52 + 98 * b + 24, "->", BODY, MUTED)
    canvas.text(44, 226, "memory of x, image after image", SMALL, MUTED)
    canvas.text(344, 226, "memory of y: same places", SMALL, MUTED)
    canvas.text(560, 4, "bytes moved (fp32, 256×3×224×224)", BODY, INK, bold=True)
    for i, (name, parts) in enumerate((("cut, index, join", [154.14] * 6), ("torch.gather", [154.14, 154.14, 308.28]), ("this kernel", [154.14, 154.14]))):
        y0, x = 56 + 58 * i, 560
        canvas.text(560, y0 - 18, f"{name}: {sum(parts):.0f} MB", SMALL, INK)
        for k, part in enumerate(parts):
            width = part * 330 / 925
            canvas.box(x, y0, width, 22, fill=GREY if k == 2 and i == 1 else (BLUE if k % 2 == 0 else ORANGE), outline="#ffffff")
            x += width
    canvas.text(560, 226, "blue: read x   orange: write   grey: read index", SMALL, MUTED)
    return canvas.done()


def runs() -> Image.Image:
    """The same image in three memory layouts: how long the runs are that share one index entry."""
    canvas = Canvas(900, 214)
    rows = (("NCHW, C=3, patch 16", 16, "runs of 16 numbers, one row of a patch in one channel"),
            ("channels last, C=3, patch 16", 48, "runs of 48 numbers, one row of a patch in all channels"),
            ("tokens, D=384", 384, "runs of 384 numbers, a whole token"))
    for i, (name, length, words) in enumerate(rows):
        y0 = 24 + 66 * i
        canvas.text(0, y0 - 20, f"{name}: {words}", SMALL, INK, bold=True)
        x, colour = 0.0, 0
        pattern = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0] * 4
        width = 900 * length / 1152
        while x < 899 and colour < len(pattern):
            canvas.box(x, y0, min(width, 900 - x), 26, fill=BLUE if pattern[colour] == 0 else ORANGE, outline="#ffffff")
            x, colour = x + width, colour + 1
    canvas.text(0, 196, "1152 neighbouring numbers of one mixed image in memory; colour: the image they are copied from", SMALL, MUTED)
    return canvas.done()


def main() -> None:
    for name, picture in (("problem", problem()), ("idea", idea()), ("runs", runs())):
        picture.convert("P", palette=Image.ADAPTIVE, colors=128).save(HERE / f"patch_mix_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
