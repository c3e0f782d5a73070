"""The pictures of lesson 5: `python lessons/figures/make_axial.py` draws axial_problem.png, axial_reach.png and axial_window.png beside this file."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
INK, GRID, SELF = (40, 44, 52), (205, 209, 216), (214, 84, 62)
FIRST, SECOND, SUMMARY = (242, 178, 86), (252, 226, 178), (120, 170, 214)


def font(size: int):
    return ImageFont.load_default(size)


def board(draw: ImageDraw.ImageDraw, left: int, top: int, rows: int, columns: int, cell: int, colour) -> None:
    """A grid of cells; `colour(row, column)` gives each its fill or None."""
    for r in range(rows):
        for c in range(columns):
            box = (left + c * cell, top + r * cell, left + (c + 1) * cell, top + (r + 1) * cell)
            draw.rectangle(box, fill=colour(r, c) or (255, 255, 255), outline=GRID)


def draw_problem() -> Image.Image:
    """A picture whose label depends only on ticks at its border, and how much of it a small receptive field sees."""
    rng, size, cell = np.random.default_rng(0), 64, 32
    rows, columns = np.array([0, 1, 1, 0, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 0, 1, 1, 0])
    picture = rng.normal(120, 28, (size, size))
    picture[:, :5] = np.repeat(np.where(rows, 240, 20), 8)[:, None]
    picture[:5, :] = np.repeat(np.where(columns, 240, 20), 8)[None, :]
    label = np.repeat(np.repeat(2 * rows[:, None] + columns[None, :], 8, 0), 8, 1)
    palette = np.array([(68, 84, 106), (120, 170, 214), (242, 178, 86), (214, 84, 62)], np.uint8)
    image = Image.new("RGB", (960, 300), "white")
    draw = ImageDraw.Draw(image)
    shown = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).convert("RGB").resize((216, 216), Image.NEAREST)
    image.paste(shown, (14, 60))
    image.paste(Image.fromarray(palette[label]).resize((216, 216), Image.NEAREST), (330, 60))
    image.paste(shown, (646, 60))
    place = (646 + 150, 60 + 120)
    for x, y, title in ((14, 30, "image: noise, ticks on two borders"), (330, 30, "label: row tick and column tick"), (646, 30, "what a 20-pixel field sees")):
        draw.text((x, y - 10), title, fill=INK, font=font(16))
    draw.rectangle((place[0] - cell, place[1] - cell, place[0] + cell, place[1] + cell), outline=SELF, width=3)
    draw.line((place[0] - cell, place[1], 660, place[1]), fill=FIRST, width=4)
    draw.line((place[0], place[1] - cell, place[0], 74), fill=FIRST, width=4)
    draw.text((14, 281), "The answer at the centre of the red frame needs two places outside it, both on its own row and column (orange).", fill=INK, font=font(14))
    return image


def draw_reach() -> Image.Image:
    """Which pixels the red one hears from: full, one axis, both axes in turn, squeezed."""
    image = Image.new("RGB", (960, 300), "white")
    draw = ImageDraw.Draw(image)
    rows, columns, cell, y, x = 9, 11, 19, 3, 6
    panels = [
        ("full attention", "every pixel: N = h w logits", lambda r, c: FIRST),
        ("one axis (column)", "h logits a pixel", lambda r, c: FIRST if c == x else None),
        ("column, then row", "h + w logits; light: by a relay", lambda r, c: FIRST if r == y else SECOND),
        ("squeeze-axial", "one mean per row and per column", lambda r, c: None),
    ]
    for i, (title, note, colour) in enumerate(panels):
        left, top = 14 + i * 240, 62
        draw.text((left, 10), title, fill=INK, font=font(17))
        draw.text((left, 34), note, fill=INK, font=font(13))
        board(draw, left, top, rows, columns, cell, lambda r, c: SELF if (r, c) == (y, x) else colour(r, c))
        if i == 3:  # row means to the right of the map, column means below it
            for r in range(rows):
                draw.rectangle((left, top + r * cell + 7, left + columns * cell, top + r * cell + 11), fill=SUMMARY)
            for c in range(columns):
                draw.rectangle((left + c * cell + 7, top, left + c * cell + 11, top + rows * cell), fill=SUMMARY)
            draw.rectangle((left + x * cell, top + y * cell, left + (x + 1) * cell, top + (y + 1) * cell), fill=SELF)
    draw.text((14, 252), "red: the pixel that asks      orange: heard directly      yellow: heard through a pixel of its row      "
              "blue: averaged before anyone asks", fill=INK, font=font(14))
    draw.text((14, 274), "The squeezed pixel hears h + w averages: two objects in one row have become one number.", fill=INK, font=font(14))
    return image


def draw_window() -> Image.Image:
    """How a block of queries and keys meets a short window of the relative table, and how a row of products slides into place."""
    image = Image.new("RGB", (960, 330), "white")
    draw = ImageDraw.Draw(image)
    cell, queries, keys = 34, 4, 4
    shades = [(246 - 14 * n, 214 - 18 * n, 150 - 8 * n) for n in range(queries + keys - 1)]
    draw.text((14, 10), "logits: offset j - i", fill=INK, font=font(17))
    draw.text((330, 10), "q times window: one column per table row", fill=INK, font=font(17))
    draw.text((690, 10), "slid into place by row", fill=INK, font=font(17))
    for a in range(queries):
        for b in range(keys):
            for left, text in ((60, f"{b - a:+d}"), (730, f"{b - a:+d}")):
                box = (left + b * cell, 70 + a * cell, left + (b + 1) * cell, 70 + (a + 1) * cell)
                draw.rectangle(box, fill=shades[b - a + queries - 1], outline="white")
                draw.text((box[0] + 7, box[1] + 9), text, fill=INK, font=font(13))
        for c in range(queries + keys - 1):
            used = 0 <= c + a - (queries - 1) < keys
            box = (350 + c * cell, 70 + a * cell, 350 + (c + 1) * cell, 70 + (a + 1) * cell)
            draw.rectangle(box, fill=shades[c] if used else (255, 255, 255), outline="white" if used else GRID)
            draw.text((box[0] + 7, box[1] + 9), f"{c - queries + 1:+d}", fill=INK if used else GRID, font=font(13))
        draw.text((20, 78 + a * cell), f"i{a}", fill=INK, font=font(14))
    for b in range(keys):
        draw.text((70 + b * cell, 48), f"j{b}", fill=INK, font=font(14))
    draw.text((240, 130), "=", fill=INK, font=font(26))
    draw.text((630, 118), "slide", fill=INK, font=font(15))
    draw.line((620, 145, 690, 145), fill=INK, width=3)
    draw.polygon([(690, 138), (704, 145), (690, 152)], fill=INK)
    lines = ["4 queries x 4 keys meet 4 + 4 - 1 = 7 offsets, so 7 rows of the table are enough for the block.",
             "The product of the queries with those rows is 4 x 7; query a needs the 4 columns that start at 3 - a (shaded).",
             "Real blocks are 32 x 32: a window of 63 rows. The value term slides the probabilities the other way, then multiplies."]
    for n, line in enumerate(lines):
        draw.text((14, 236 + 26 * n), line, fill=INK, font=font(15))
    return image


def main() -> None:
    for name, image in (("axial_problem.png", draw_problem()), ("axial_reach.png", draw_reach()), ("axial_window.png", draw_window())):
        image.quantize(64).save(HERE / name, optimize=True)


if __name__ == "__main__":
    main()
