"""The pictures of lesson 14: python -m lessons.figures.make_mixreorg [folder] writes lessons/figures/mixreorg_*.png.

The masks need the networks of one claim seed, default runs/claims/mixreorg/seed0; without that folder only the drawings are made.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kernels.patch_mix import mix_labels, patch_mix, random_mix_index
from seglite.charts import BODY, INK, MUTED, SMALL, Canvas
from seglite.data import normalise, scenes
from seglite.pictures import colourise, scaled

HERE = Path(__file__).parent
TILE, PATCH = 132, 8
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
SOURCE = np.array([[0, 114, 178], [213, 94, 0]], np.uint8)
PICTURES = (34, 32)


def world() -> scenes.Scenes:
    return scenes.Scenes(scenes.ScenesSettings(world="text", seed=0), "val")


def tile(canvas: Canvas, picture: np.ndarray, x: float, y: float, side: int = TILE) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (side, side), smooth=False)), x, y)


def arrow(canvas: Canvas, x0: float, y0: float, x1: float, y1: float, colour: str = MUTED) -> None:
    canvas.line([(x0, y0), (x1, y1)], colour, 2)
    along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
    side = np.array([-along[1], along[0]])
    for s in (-4, 4):
        canvas.line([(x1, y1), tuple(np.array([x1, y1]) - 8 * along + s * side)], colour, 2)


def cut(image: np.ndarray, gap: int = 1) -> np.ndarray:
    """The image in patches with white lines between them."""
    n = image.shape[0] // PATCH
    out = np.full((n * (PATCH + gap) - gap,) * 2 + (3,), 255, np.uint8)
    for i in range(n):
        for j in range(n):
            y, x = i * (PATCH + gap), j * (PATCH + gap)
            out[y:y + PATCH, x:x + PATCH] = image[i * PATCH:(i + 1) * PATCH, j * PATCH:(j + 1) * PATCH]
    return out


def problem() -> Image.Image:
    """One image, one vector, one caption: nothing asks a single patch."""
    sample = world().read(PICTURES[0], ("image", "text"))
    canvas = Canvas(830, 182)
    tile(canvas, sample["image"], 2, 20)
    arrow(canvas, TILE + 6, 86, TILE + 40, 86)
    tile(canvas, cut(sample["image"]), TILE + 48, 20)
    canvas.text(TILE + 48, 162, "64 patches", SMALL, MUTED)
    arrow(canvas, 2 * TILE + 54, 86, 2 * TILE + 88, 86)
    for i, shade in enumerate(("#0072b2", "#56b4e9", "#0072b2", "#cfe6f5", "#56b4e9", "#0072b2")):
        canvas.box(2 * TILE + 98, 38 + 16 * i, 22, 14, fill=shade)
    canvas.text(2 * TILE + 92, 162, "one vector", SMALL, MUTED)
    canvas.text(2 * TILE + 150, 60, "must fit", BODY, MUTED)
    canvas.text(2 * TILE + 216, 60, f"“{sample['text']}”", BODY, INK, bold=True)
    canvas.text(2 * TILE + 150, 86, "and no other caption of the batch.", BODY, MUTED)
    canvas.text(2 * TILE + 150, 124, "Which of the 64 patches are which word? Nothing asks.", BODY, ORANGE)
    return canvas.done()


def idea() -> Image.Image:
    """Two captioned images, mixed; sorted by caption; and restored."""
    data = world()
    samples = [data.read(i, ("image", "text")) for i in PICTURES]
    images = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2).contiguous()
    index = random_mix_index(2, 64, generator=torch.Generator().manual_seed(1))
    mixed = patch_mix(images, index, PATCH).permute(0, 2, 3, 1).numpy()
    labels = SOURCE[mix_labels(index, 2, PATCH, (64, 64)).numpy()]
    canvas = Canvas(770, 346)
    for i, (sample, colour) in enumerate(zip(samples, (BLUE, ORANGE))):
        y = 20 + 168 * i
        tile(canvas, cut(sample["image"]), 0, y)
        words = sample["text"] if len(sample["text"]) < 30 else sample["text"][:29] + "…"
        canvas.text(0, y + TILE + 4, words, SMALL, colour)
        canvas.text(TILE + 33, y + 48, "mix", SMALL, MUTED, "ma")
        canvas.text(2 * TILE + 108, y + 48, "sort", SMALL, BLUE, "ma")
        arrow(canvas, TILE + 10, y + 66, TILE + 56, y + 66)
        tile(canvas, cut(mixed[i]), TILE + 66, y)
        tile(canvas, cut(labels[i]), 2 * TILE + 150, y)
        arrow(canvas, 2 * TILE + 76, y + 66, 2 * TILE + 140, y + 66, BLUE)
    canvas.text(0, 0, "clean C", SMALL, MUTED)
    canvas.text(TILE + 66, 0, "mixed M", SMALL, MUTED)
    canvas.text(2 * TILE + 150, 0, "which caption? (free labels)", SMALL, MUTED)
    x = 3 * TILE + 176
    for y, colour, title, lines in ((26, INK, "1  original", ("C against captions,", "as in GroupViT")),
                                    (130, BLUE, "2  mixed", ("sort the patches of M", "by caption: a mask loss")),
                                    (234, GREEN, "3  restored", ("put them back: the images", "must still fit their captions"))):
        canvas.text(x, y, title, BODY, colour, bold=True)
        for i, line in enumerate(lines):
            canvas.text(x, y + 22 + 18 * i, line, SMALL, INK)
    return canvas.done()


def masks(folder: Path, rows: dict[str, str], shown: tuple[int, ...]) -> Image.Image:
    """Held-out scenes, truth, and what networks say that saw captions only. rows: title -> stage of the run folder."""
    from seglite.papers import mixreorg
    from seglite.reopen import Reopened, read_settings
    from seglite.train import METHODS

    run = Reopened(read_settings(folder, METHODS), supervision=("image", "text"), quiet=True)
    data, tokenizer = run.truth("val"), mixreorg.open_tokenizer(run)
    canvas = Canvas(92 + len(shown) * (TILE + 8), (2 + len(rows)) * (TILE + 8) + 24)
    predictors = []
    for title, stage in rows.items():
        state = torch.load(folder / stage / "final.pt", weights_only=True)["model"]
        config = mixreorg.override(run.config, mixing="mask_logit_scale" in state)
        model = mixreorg.build(config, tokenizer.size).eval()
        model.load_state_dict(state)
        predictors.append((title, mixreorg.predictor(model, config, tokenizer, data.classes[1:], "cpu")))
    for y, title in enumerate(("image", "truth", *rows)):
        for i, line in enumerate(title.split(" ")):
            canvas.text(0, y * (TILE + 8) + 50 + 16 * i, line, SMALL, INK)
    for k, name in enumerate(data.classes[1:]):
        canvas.box(92 + 86 * k, (2 + len(rows)) * (TILE + 8) + 6, 12, 12, fill=tuple(data.palette[k + 1].tolist()), outline=MUTED)
        canvas.text(110 + 86 * k, (2 + len(rows)) * (TILE + 8) + 4, name, SMALL, INK)
    for x, i in enumerate(shown):
        sample = data.read(i, ("image", "mask"))
        pictures = [sample["image"], colourise(sample["mask"], data.palette)]
        pictures += [colourise(predict(normalise(sample["image"][None], data)).argmax(1)[0].numpy(), data.palette) for _, predict in predictors]
        left = 92 + x * (TILE + 8)
        for y, picture in enumerate(pictures):
            tile(canvas, picture, left, y * (TILE + 8))
    run.close()
    return canvas.done()


def save(picture: Image.Image, name: str) -> None:
    picture.quantize(192, dither=Image.Dither.NONE).save(HERE / f"mixreorg_{name}.png", optimize=True)


def main(folder: str = "runs/claims/mixreorg/seed0") -> None:
    save(problem(), "problem")
    save(idea(), "idea")
    if Path(folder).is_dir():
        save(masks(Path(folder), {"GroupViT style": "GroupViT_style_equal_compute", "MixReorg": "MixReorg"}, (0, 1, 2, 3, 4)), "masks")


if __name__ == "__main__":
    main(*sys.argv[1:])
