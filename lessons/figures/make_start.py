"""Figures of lesson 00: python -m lessons.figures.make_start"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seglite import config, pictures
from seglite.data import open_data
from seglite.train import METHODS

HERE = Path(__file__).parent
TILE, GAP, CROP = 256, 12, 8


def numbers(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A small crop of a label map with the class id written into every cell."""
    picture = Image.new("RGB", (TILE, TILE), "white")
    draw, cell, font = ImageDraw.Draw(picture), TILE // CROP, ImageFont.load_default(15)
    for y in range(CROP):
        for x in range(CROP):
            colour = tuple(int(c) for c in palette[labels[y, x]])
            draw.rectangle([x * cell, y * cell, (x + 1) * cell - 1, (y + 1) * cell - 1], fill=colour, outline="#ffffff")
            ink = "#000000" if sum(colour) > 380 else "#ffffff"
            draw.text((x * cell + cell / 2, y * cell + cell / 2), str(labels[y, x]), fill=ink, font=font, anchor="mm")
    return picture


def busiest(mask: np.ndarray) -> tuple[int, int]:
    """Where the crop sees the most classes, evenly."""
    best = max(((len(np.unique(c)), np.bincount(c.ravel(), minlength=20)[1:].sum() * (c == 0).sum(), y, x)
                for y in range(0, mask.shape[0] - CROP, 2) for x in range(0, mask.shape[1] - CROP, 2)
                for c in [mask[y : y + CROP, x : x + CROP]]))
    return best[2], best[3]


def idea() -> Image.Image:
    settings, _ = config.parse(["method=marsstyle", "scenes.world=general"], METHODS)
    data = open_data(settings, "val")
    rows = []
    for index in (4, 2, 11):
        sample = data.read(index, ("image", "mask"))
        y, x = busiest(sample["mask"])
        size = (TILE, TILE)
        image = Image.fromarray(sample["image"]).resize(size, Image.Resampling.NEAREST)
        labels = Image.fromarray(pictures.colourise(sample["mask"], data.palette)).resize(size, Image.Resampling.NEAREST)
        scale = TILE / sample["mask"].shape[0]
        for tile in (image, labels):
            ImageDraw.Draw(tile).rectangle([x * scale, y * scale, (x + CROP) * scale, (y + CROP) * scale], outline="#ffffff", width=2)
        rows.append([image, labels, numbers(sample["mask"][y : y + CROP, x : x + CROP], data.palette)])
    head = 26
    sheet = Image.new("RGB", (3 * TILE + 2 * GAP, head + len(rows) * (TILE + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, caption in enumerate(("image", "label map, in colours", "the same, in numbers (the framed 8 x 8)")):
        draw.text((i * (TILE + GAP), 4), caption, fill="#444444", font=font)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet.paste(tile, (c * (TILE + GAP), head + r * (TILE + GAP)))
    return sheet


def main() -> None:
    idea().quantize(200, dither=Image.Dither.NONE).save(HERE / "start_idea.png", optimize=True)


if __name__ == "__main__":
    main()
