"""Label maps as pictures, and the one-page report of a run.

Arrays in, pillow pictures out; nothing here reads a data set or a network. Label maps are uint8 or int [H, W] with 255 = ignore,
palettes are uint8 [K, 3], photographs uint8 [H, W, 3]. K classes, H W image size.

`Report` is the content of a run's report as plain data: `report_png` draws it here, seglite/html.py writes the same content as a page.
"""
from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from seglite import files
from seglite.charts import (
    BODY, CARD, HEADING, INK, LINES, MUTED, RULE, SMALL, TITLE, WASH, Canvas, line_chart, number, percent, shorten, table, text_width, wrap)
from seglite.metrics import IGNORE, boundary_pixels, dilate

DELETED = 254
DELETED_COLOUR = (235, 70, 200)
WRONG_COLOUR = (213, 60, 0)
TRUE_EDGE, PREDICTED_EDGE, IGNORED_ZONE = (0, 114, 178), (255, 176, 0), (86, 180, 233)
WIDTH, MARGIN = 1560, 44  # of the report, in pixels


# ---- label maps -----------------------------------------------------------------------------------------------------------------------


def voc_palette(classes: int = 256) -> np.ndarray:
    """PASCAL VOC's colours, uint8 [K, 3]: the bits of the class id dealt out in turn to red, green and blue, highest bits first.

    Neighbouring ids get far apart colours, 0 is black, 255 (ignore) is a pale cream.
    """
    ids = np.arange(classes)
    palette = np.zeros((classes, 3), np.uint8)  # [K, 3]
    for round_ in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * round_ + channel) & 1) << (7 - round_)).astype(np.uint8)
    return palette


def full_palette(palette: np.ndarray) -> np.ndarray:
    """A colour for every uint8 id, uint8 [256, 3]: `palette` first, VOC's cream for 255, pink for 254 (deleted), VOC's colours elsewhere."""
    palette = np.asarray(palette)
    if palette.ndim != 2 or palette.shape[1] != 3 or len(palette) > 254:
        raise ValueError(f"a palette is uint8 [K, 3] with at most 254 classes, got shape {list(palette.shape)}")
    table_ = voc_palette()
    table_[DELETED] = DELETED_COLOUR
    table_[: len(palette)] = palette
    return table_


def _labels(labels, what: str = "label map") -> np.ndarray:
    """A label map as uint8 [H, W]."""
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"a {what} is integers [H, W], got {labels.dtype} of shape {list(labels.shape)}")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"a {what} holds ids 0..255, got values from {labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)


def colourise(labels, palette: np.ndarray) -> np.ndarray:
    """Label map [H, W] -> its colours, uint8 [H, W, 3]."""
    return full_palette(palette)[_labels(labels)]


def overlay(image: np.ndarray, labels, palette: np.ndarray, alpha: float = 0.55, clear: Sequence[int] = ()) -> np.ndarray:
    """The photograph with its classes laid over it and a dark line between them, uint8 [H, W, 3]. `clear`: ids left transparent (background)."""
    labels = _labels(labels)
    image = _photograph(image, labels.shape)
    mixed = (1 - alpha) * image + alpha * colourise(labels, palette)  # [H, W, 3]
    mixed = np.where(np.isin(labels, [*clear, IGNORE])[..., None], image, mixed)
    mixed[boundary_pixels(labels)] *= 0.35
    return mixed.round().astype(np.uint8)


def _photograph(image, size: tuple[int, int]) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a photograph is uint8 [H, W, 3], got {image.dtype} of shape {list(image.shape)}")
    if image.shape[:2] != tuple(size):
        raise ValueError(f"photograph is {image.shape[0]}x{image.shape[1]} and its label map {size[0]}x{size[1]}, expected equal sizes")
    return image


def _faded(image: np.ndarray) -> np.ndarray:
    """Grey and pale, so that what is drawn on top stands out. uint8 [H, W, 3] -> float [H, W, 3]."""
    grey = image @ np.array([0.299, 0.587, 0.114])  # [H, W]
    return np.repeat((0.55 * grey + 0.45 * 255)[..., None], 3, axis=2)  # [H, W, 3]


def error_map(image: np.ndarray, truth, prediction) -> np.ndarray:
    """Wrong pixels in red over the faded photograph, ignored ones hatched, uint8 [H, W, 3]."""
    truth, prediction = _labels(truth, "truth"), _labels(prediction, "prediction")
    picture = _faded(_photograph(image, truth.shape))
    picture[(truth != prediction) & (truth != IGNORE)] = WRONG_COLOUR
    rows, columns = np.indices(truth.shape)
    picture[(truth == IGNORE) & ((rows + columns) % 4 < 2)] = (205, 205, 190)
    return picture.round().astype(np.uint8)


def boundary_map(image: np.ndarray, truth, prediction) -> np.ndarray:
    """True class borders in blue, predicted ones in amber on top, over the faded photograph, uint8 [H, W, 3].

    Where both agree an amber line runs inside a blue one; a lone line of either colour is an error. Ignored pixels (VOC's outlines, where
    any border is right) are pale blue. Draw it at display size.
    """
    truth, prediction = _labels(truth, "truth"), _labels(prediction, "prediction")
    picture = _faded(_photograph(image, truth.shape))
    picture[truth == IGNORE] = 0.5 * picture[truth == IGNORE] + 0.5 * np.array(IGNORED_ZONE)
    picture[dilate(boundary_pixels(truth), 1)] = TRUE_EDGE
    picture[boundary_pixels(prediction)] = PREDICTED_EDGE
    return picture.round().astype(np.uint8)


def mask_image(labels, palette: np.ndarray) -> Image.Image:
    """A palette picture (mode P) whose pixel values are the class ids: the way VOC stores masks."""
    picture = Image.fromarray(_labels(labels))
    picture.putpalette(full_palette(palette).tobytes())
    return picture


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=picture.mode == "P")
    return buffer.getvalue()


def save_mask_png(labels, palette: np.ndarray, path: Path | str) -> None:
    """Write a label map as a palette PNG, atomically; reading it back in mode P gives the ids unchanged."""
    files.write_bytes(Path(path), png_bytes(mask_image(labels, palette)))


# ---- rows of panels -------------------------------------------------------------------------------------------------------------------


def display_size(shape: tuple[int, int], width: int) -> tuple[int, int]:
    """(width, height) of an image drawn `width` pixels wide, not taller than 1.15 times that."""
    height = round(shape[0] * width / shape[1])
    limit = round(1.15 * width)
    return (width, height) if height <= limit else (max(1, round(width * limit / height)), limit)


def scaled(picture: np.ndarray, size: tuple[int, int], smooth: bool = True) -> np.ndarray:
    """Resize to (width, height): enlarged pixels stay squares, reduced ones are averaged unless `smooth` is off (label maps)."""
    shrink = size[0] < picture.shape[1]
    how = Image.Resampling.LANCZOS if shrink and smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, how))


def tiles(sample: dict, palette: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """{caption: uint8 [h, w, 3]} of one sample at display size (its own size by default).

    sample: image uint8 [H, W, 3]; optional prediction and truth [H, W]; optional extra {caption: label map [H, W] or picture [H, W, 3]};
    optional called: the prediction's caption.
    Gives image, truth, extras, prediction, error, boundary: those that the sample allows (an overlay instead of the last two without truth).
    """
    image = np.asarray(sample["image"])
    size = size or (image.shape[1], image.shape[0])
    shown = {"image": scaled(image, size)}
    maps = {key: _labels(sample[key], key) for key in ("truth", "prediction") if sample.get(key) is not None}
    if "truth" in maps:
        shown["truth"] = scaled(colourise(maps["truth"], palette), size)
    for caption, extra in (sample.get("extra") or {}).items():
        extra = np.asarray(extra.cpu() if hasattr(extra, "cpu") else extra)
        shown[caption] = scaled(extra if extra.ndim == 3 else colourise(extra, palette), size)
    if "prediction" in maps:
        shown[sample.get("called", "prediction")] = scaled(colourise(maps["prediction"], palette), size)
        if "truth" in maps:
            shown["error"] = scaled(error_map(image, maps["truth"], maps["prediction"]), size)
            fine = (3 * size[0] // 2, 3 * size[1] // 2)  # drawn larger and reduced: thin, smooth lines
            truth, prediction = (scaled(maps[key], fine, smooth=False) for key in ("truth", "prediction"))
            shown["boundary"] = scaled(boundary_map(scaled(image, fine), truth, prediction), size)
        else:
            shown["overlay"] = scaled(overlay(image, maps["prediction"], palette, clear=(0,)), size)
    return shown


def score_of(sample: dict) -> str:
    """"91.2 % of pixels right", or nothing without truth and prediction."""
    if sample.get("truth") is None or sample.get("prediction") is None:
        return ""
    truth, prediction = np.asarray(sample["truth"]), np.asarray(sample["prediction"])
    counted = truth != IGNORE
    return f"{percent((truth == prediction)[counted].mean())} % of pixels right" if counted.any() else "every pixel ignored"


def panels(samples: Sequence[dict], palette: np.ndarray, width: int = WIDTH - 2 * MARGIN, gap: int = 12) -> Image.Image:
    """One row per sample (see `tiles`; `name` labels the row), one captioned column per kind of picture."""
    if not samples:
        raise ValueError("panels need at least one sample, got none")
    captions = list(dict.fromkeys(caption for s in samples for caption in tiles(s, palette)))
    tile = (width - gap * (len(captions) - 1)) // len(captions)
    rows = [(s, tiles(s, palette, display_size(np.asarray(s["image"]).shape[:2], min(tile, 420)))) for s in samples]
    tile = min(tile, 420)
    heights = [max(t.shape[0] for t in row.values()) for _, row in rows]
    edges = [("predicted", PREDICTED_EDGE), ("true", TRUE_EDGE)] if "boundary" in captions else []  # from right to left
    key_width = sum(text_width(word, SMALL) + 30 for word, _ in edges)
    top = 28 if text_width("boundary", SMALL) + key_width <= tile or not edges else 48  # the key takes a line of its own where it does not fit
    canvas = Canvas(width, top + sum(h + 34 for h in heights))
    for i, caption in enumerate(captions):
        canvas.text(i * (tile + gap), 4, shorten(caption, SMALL, tile), SMALL, MUTED)
    x = captions.index("boundary") * (tile + gap) + tile if edges else 0
    for word, colour in edges:
        x -= text_width(word, SMALL)
        canvas.text(x, top - 24, word, SMALL, MUTED)
        canvas.line([(x - 20, top - 16), (x - 6, top - 16)], "#%02x%02x%02x" % colour, 4)
        x -= 30
    y = top
    for (sample, row), height in zip(rows, heights):
        for caption, picture in row.items():
            canvas.paste(Image.fromarray(picture), captions.index(caption) * (tile + gap), y)
        label = "  ·  ".join(filter(None, (str(sample.get("name", "")), score_of(sample))))
        canvas.text(0, y + height + 5, shorten(label, SMALL, width), SMALL, MUTED)
        y += height + 34
    return canvas.done()


def legend(names: Sequence[str], palette: np.ndarray, width: int = WIDTH - 2 * MARGIN, ignore: bool = True) -> Image.Image:
    """Class names with their colours, flowing over lines; `ignore` adds 255's colour."""
    entries = [(name, tuple(int(c) for c in colour)) for name, colour in zip(names, palette)]
    entries += [("ignored", tuple(int(c) for c in full_palette(palette)[IGNORE]))] * ignore
    places, x, y = [], 0.0, 0
    for name, _ in entries:
        need = 26 + text_width(name, SMALL) + 22
        if x and x + need - 22 > width:
            x, y = 0.0, y + 26
        places.append((x, y))
        x += need
    canvas = Canvas(width, y + 26)
    for (name, colour), (x, y) in zip(entries, places):
        canvas.box(x, y + 4, 18, 18, fill=colour, outline=RULE, radius=3)
        canvas.text(x + 26, y + 13, name, SMALL, INK, "lm")
    return canvas.done()


def class_table(rows: Sequence[dict], palette: np.ndarray, width: int = WIDTH - 2 * MARGIN) -> Image.Image:
    """Per-class results with a bar for IoU (`Confusion.rows()`), in as many columns as fit on a page. Absent classes say so."""
    columns = 1 if len(rows) <= 8 else (2 if len(rows) <= 60 else 3)
    gap, per = 40, math.ceil(len(rows) / columns)
    each = (width - gap * (columns - 1)) / columns
    numbers = [("IoU", "iou", 62), ("FP", "fp", 62), ("FN", "fn", 62), ("recall", "recall", 62), ("pixels", "pixels", 82)]  # title, key, width
    if each <= 480:
        numbers = [(title, key, 50) for title, key, _ in numbers[:4]]
    name_width = min(max([text_width(r["class"], BODY) for r in rows], default=0) + 36, 0.34 * each)
    bar = each - name_width - sum(n for _, _, n in numbers) - 20
    canvas = Canvas(width, 30 + 28 * per + 6)
    for c in range(columns):
        left = c * (each + gap)
        right = left + each
        stops = [right - sum(n for _, _, n in numbers[i + 1 :]) for i in range(len(numbers))]
        canvas.text(left, 6, "class", SMALL, MUTED)
        for (title, _, _), x in zip(numbers, stops):
            canvas.text(x, 6, title, SMALL, MUTED, "ra")
        canvas.line([(left, 28), (right, 28)], MUTED, 1)
        for i, row in enumerate(rows[c * per : (c + 1) * per]):
            y, k = 30 + 28 * i, c * per + i
            canvas.box(left, y + 6, 16, 16, fill=tuple(int(v) for v in palette[k]), outline=RULE, radius=3)
            canvas.text(left + 26, y + 14, shorten(row["class"], BODY, name_width - 34), BODY, INK, "lm")
            canvas.box(left + name_width, y + 9, bar, 10, fill=WASH, radius=2)
            if row["iou"] is None:
                canvas.text(left + name_width + 8, y + 14, "absent", 12, MUTED, "lm")
            elif row["iou"] > 0:
                canvas.box(left + name_width, y + 9, max(2, bar * row["iou"]), 10, fill=LINES[0], radius=2)
            for (_, key, _), x in zip(numbers, stops):
                text = number(row["pixels"]) if key == "pixels" else percent(row[key])
                canvas.text(x, y + 14, text, BODY, INK if key == "iou" else MUTED, "rm")
            canvas.line([(left, y + 28), (right, y + 28)], WASH, 1)
    return canvas.done()


# ---- the report -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run has to show, as plain data. Everything but the title may stay empty; empty parts are not drawn."""

    title: str
    """e.g. "MARS on scenes" """
    subtitle: str = ""
    """one line: the paper, or what was trained on what"""
    command: str = ""
    """the command that made this report, ready to be typed again"""
    headline: dict[str, str | float] = field(default_factory=dict)
    """name -> number or ready text; a text like "54.5 %" is shown as it is"""
    classes: Sequence[str] = ()
    palette: np.ndarray | None = None
    """class names and colours, uint8 [K, 3]"""
    samples: Sequence[dict] = ()
    """rows of panels: name, image, truth, prediction, extra (see `tiles`)"""
    per_class: Sequence[dict] = ()
    """`Confusion.rows()`"""
    curves: Sequence[dict] = ()
    """keyword arguments of `charts.line_chart`: lines={name: (xs, ys)}, title, x, y, ..."""
    figures: Sequence[dict] = ()
    """title and image (a pillow picture or uint8 [H, W, 3]); optional note"""
    tables: Sequence[dict] = ()
    """title, columns, rows; optional strong (row indices in bold), note"""
    costs: dict[str, str | float] = field(default_factory=dict)
    """parameters, FLOPs, images per second, peak memory, minutes, ... -> number or ready text"""
    notes: Sequence[str] | dict[str, str] = ()
    """sentences, or name -> sentence: conventions, deviations, seeds, warnings"""

    def has_ignored(self) -> bool:
        return any((np.asarray(s["truth"]) == IGNORE).any() for s in self.samples if s.get("truth") is not None)

    def has_truth(self) -> bool:
        return any(s.get("truth") is not None for s in self.samples)

    def note_lines(self) -> list[tuple[str, str]]:
        """Notes as (name, sentence); the name may be empty."""
        return [(str(k), str(v)) for k, v in self.notes.items()] if isinstance(self.notes, dict) else [("", str(n)) for n in self.notes]


def stack(parts: Sequence[Image.Image], gap: int = 16, margin: int = MARGIN, background: str = "#ffffff") -> Image.Image:
    """Pictures one below the other on one sheet."""
    width = max(p.width for p in parts) + 2 * margin
    sheet = Image.new("RGB", (width, sum(p.height for p in parts) + gap * (len(parts) - 1) + 2 * margin), background)
    y = margin
    for part in parts:
        sheet.paste(part.convert("RGB"), (margin, y))
        y += part.height + gap
    return sheet


def side_by_side(pictures: Sequence[Image.Image], width: int, gap: int = 40) -> Image.Image:
    """Pictures from left to right, next line when one does not fit; tops aligned."""
    places, x, y, line = [], 0, 0, 0
    for p in pictures:
        if x and x + p.width > width:
            x, y, line = 0, y + line + 18, 0
        places.append((x, y))
        x, line = x + p.width + gap, max(line, p.height)
    sheet = Image.new("RGB", (max(width, *(p.width for p in pictures)), y + line), "#ffffff")
    for p, place in zip(pictures, places):
        sheet.paste(p.convert("RGB"), place)
    return sheet


def _heading(title: str, width: int, note: str = "") -> Image.Image:
    canvas = Canvas(width, 46)
    canvas.line([(0, 1), (width, 1)], RULE, 1)
    canvas.text(0, 16, title, HEADING, INK, bold=True)
    if note:
        canvas.text(text_width(title, HEADING) + 18, 21, shorten(note, SMALL, width - text_width(title, HEADING) - 20), SMALL, MUTED)
    return canvas.done()


def _masthead(report: Report, width: int) -> Image.Image:
    command = wrap(report.command, BODY, width - 40) if report.command else []
    subtitle = wrap(report.subtitle, BODY, width)
    canvas = Canvas(width, 48 + 24 * len(subtitle) + (30 + 24 * len(command) if command else 0))
    canvas.text(0, 0, shorten(report.title, TITLE, width), TITLE, INK, bold=True)
    y = 48
    for line in subtitle:
        canvas.text(0, y, line, BODY, MUTED)
        y += 24
    if command:
        canvas.box(0, y + 8, width, 18 + 24 * len(command), fill=CARD, outline=RULE, radius=6)
        for i, line in enumerate(command):
            canvas.text(20, y + 8 + 9 + 24 * i + 12, line, BODY, INK, "lm")
    return canvas.done()


def _cards(values: dict, width: int, size: int) -> Image.Image:
    """Numbers in a row of boxes, the name below each, all of one width."""
    gap, texts = 14, [(number(v), str(name)) for name, v in values.items()]
    need = max([max(text_width(v, size), text_width(n, SMALL)) for v, n in texts]) + 40
    per_row = max(1, min(len(texts), int((width + gap) // (need + gap))))
    lines = math.ceil(len(texts) / per_row)
    per_row = math.ceil(len(texts) / lines)
    each, height = min((width - gap * (per_row - 1)) / per_row, 0.33 * width), size + 52
    canvas = Canvas(width, lines * (height + gap) - gap)
    for i, (value, name) in enumerate(texts):
        x, y = (i % per_row) * (each + gap), (i // per_row) * (height + gap)
        canvas.box(x, y, each, height, fill=CARD, outline=RULE, radius=8)
        canvas.text(x + 18, y + 14, shorten(value, size, each - 30), size, INK, bold=True)
        canvas.text(x + 18, y + size + 24, shorten(name, SMALL, each - 30), SMALL, MUTED)
    return canvas.done()


def _notes(lines: Sequence[tuple[str, str]], width: int) -> Image.Image:
    wrapped = []
    for name, sentence in lines:
        wrapped += [(i == 0, line) for i, line in enumerate(wrap(f"{name}: {sentence}" if name else sentence, BODY, width - 24))]
    canvas = Canvas(width, 25 * len(wrapped) + 6)
    for i, (first, line) in enumerate(wrapped):
        if first:
            canvas.mark(5, 25 * i + 12, 0, MUTED, 2.5)
        canvas.text(20, 25 * i + 12, line, BODY, INK, "lm")
    return canvas.done()


def _picture(image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))


def report_png(report: Report, width: int = WIDTH) -> Image.Image:
    """The report on one sheet: masthead, headline numbers, panels, classes, curves, tables, figures, cost, notes."""
    inner, half = width - 2 * MARGIN, (width - 2 * MARGIN - 40) // 2
    parts = [_masthead(report, inner)]
    if report.headline:
        parts.append(_cards(report.headline, inner, 30))
    if report.samples:
        note = "red: wrong pixels; hatched or pale blue: ignored in the truth"
        note = note if report.has_truth() else "predictions, and the same laid over the picture"
        parts += [_heading("What it sees", inner, note), panels(report.samples, report.palette, inner)]
        if len(report.classes) <= 40:
            parts.append(legend(report.classes, report.palette, inner, ignore=report.has_ignored()))
    if report.per_class:
        note = "percent; FP and FN are shares of the union, so that IoU + FP + FN = 100"
        parts += [_heading("Class by class", inner, note), class_table(report.per_class, report.palette, inner)]
    if report.curves:
        charts = [line_chart(**{"size": (half, 360), **curve}) for curve in report.curves]
        parts += [_heading("Curves", inner), side_by_side(charts, inner)]
    if report.tables:
        drawn = [table(t["columns"], t["rows"], t.get("title", ""), half if len(t["columns"]) < 6 else inner, t.get("strong", ()))
                 for t in report.tables]
        parts += [_heading("Tables", inner), side_by_side(drawn, inner)]
    for figure in report.figures:
        picture = _picture(figure["image"])
        if picture.width > inner:
            picture = picture.convert("RGB").resize((inner, round(picture.height * inner / picture.width)), Image.Resampling.LANCZOS)
        parts += [_heading(figure.get("title", "Figure"), inner, figure.get("note", "")), picture]
    if report.costs:
        parts += [_heading("What it costs", inner), _cards(report.costs, inner, 21)]
    if report.note_lines():
        parts += [_heading("Notes", inner), _notes(report.note_lines(), inner)]
    return stack(parts, gap=18)
