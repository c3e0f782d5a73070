"""Charts and tables as pictures, drawn with pillow alone: lines, bars, points, rows and columns.

Everything is drawn twice as large as asked and halved at the end, which smooths lines and letters (pillow itself draws without
antialiasing). Colours of data are Okabe and Ito's, which people with any of the common colour deficiencies can tell apart.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, CARD, INK, MUTED, RULE, WASH = "#ffffff", "#f6f7f9", "#1d2129", "#667080", "#d9dde3", "#eef1f5"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c6d1f")
SPELLED = {  # signs that pillow's built-in font lacks
    "\n": " ", "\t": " ", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "x", "\u2192": "->", "\u2264": "<=", "\u2265": ">=", "\u2248": "~",
    "\u00b2": "^2", "\u00b5": "u", "\u03b1": "alpha", "\u03b2": "beta", "\u03b3": "gamma", "\u03b8": "theta", "\u03bb": "lambda",
    "\u03c3": "sigma", "\u03c4": "tau", "\u2191": "(up)", "\u2193": "(down)", "\u2713": "yes",
}
TITLE, HEADING, BODY, SMALL = 32, 21, 16, 14  # letter heights in pixels


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=1024)
def _drawable(letter: str) -> bool:
    """Can the built-in font draw this letter, or would it leave an empty box?"""
    return bytes(_font(20).getmask(letter)) != bytes(_font(20).getmask("\uffff"))


def plain(text) -> str:
    """`text` as a string that the built-in font can draw: common signs spelled out, "?" for any other letter it lacks."""
    return "".join(SPELLED.get(c, c) if c in SPELLED or c == " " or _drawable(c) else "?" for c in str(text))


class Canvas:
    """A white sheet measured in final pixels; `done()` gives the finished RGB picture."""

    def __init__(self, width: float, height: float, background: str = PAPER):
        self.width, self.height = math.ceil(width), math.ceil(height)
        self.image = Image.new("RGB", (2 * self.width, 2 * self.height), background)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text, size: int = BODY, fill: str = INK, anchor: str = "la", bold: bool = False) -> float:
        """Write one line; the anchor is pillow's (first letter l, m, r: left, middle, right; second a, m, s, d: top, middle, baseline, bottom).
        Returns the width."""
        text = plain(text)
        for shift in (0, max(1, round(size / 18))) if bold else (0,):  # the font has one weight: bold is a second strike
            self.pen.text((2 * x + shift, 2 * y), text, fill=fill, font=_font(2 * size), anchor=anchor)
        return text_width(text, size)

    def line(self, points: Sequence[tuple[float, float]], fill: str = INK, width: float = 2) -> None:
        if len(points) > 1:
            self.pen.line([(2 * x, 2 * y) for x, y in points], fill=fill, width=max(1, round(2 * width)), joint="curve")

    def box(self, x: float, y: float, width: float, height: float, fill: str | None = None, outline: str | None = None, radius: float = 0) -> None:
        self.pen.rounded_rectangle([2 * x, 2 * y, 2 * (x + width) - 1, 2 * (y + height) - 1], 2 * radius, fill=fill, outline=outline, width=2)

    def mark(self, x: float, y: float, shape: int, fill: str, r: float = 4.5) -> None:
        """A data point: disc, square, triangle or diamond, so that colour is never the only difference."""
        x, y, r = 2 * x, 2 * y, 2 * r
        if shape % 4 == 0:
            self.pen.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=PAPER)
            return
        corners = {1: [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], 2: [(0, -1.1), (1, 0.8), (-1, 0.8)],
                   3: [(0, -1.2), (1, 0), (0, 1.2), (-1, 0)]}[shape % 4]
        self.pen.polygon([(x + r * dx, y + r * dy) for dx, dy in corners], fill=fill, outline=PAPER)

    def paste(self, picture: Image.Image, x: float, y: float) -> None:
        """Put a finished picture on the sheet, pixel for pixel."""
        doubled = picture.convert("RGB").resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
        self.image.paste(doubled, (round(2 * x), round(2 * y)))

    def done(self, zoom: int = 1) -> Image.Image:
        """The picture in final size, or (zoom=2) twice as large for fine screens."""
        return self.image if zoom == 2 else self.image.reduce(2)


def text_width(text, size: int) -> float:
    return _font(2 * size).getlength(plain(text)) / 2


def wrap(text: str, size: int, width: float) -> list[str]:
    """Break `text` into lines at most `width` pixels wide (between words; a longer single word is cut)."""
    lines, line = [], ""
    for word in plain(text).split():
        while text_width(word, size) > width:
            cut = max(1, next((n for n in range(len(word), 0, -1) if text_width(word[:n], size) <= width), 1))
            if line:
                lines, line = [*lines, line], ""
            lines, word = [*lines, word[:cut]], word[cut:]
        longer = f"{line} {word}".strip()
        if text_width(longer, size) <= width:
            line = longer
        else:
            lines, line = [*lines, line], word
    return [*lines, line] if line else lines


def shorten(text: str, size: int, width: float) -> str:
    """`text`, cut with dots when it is wider than `width` pixels."""
    text = plain(text)
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text + "..."


# ---- numbers in words -----------------------------------------------------------------------------------------------------------------


def number(value) -> str:
    """A number for a reader: 12,345 · 1.23 M · 0.5447 · 7.1e-05; "-" for None and NaN; strings as they are."""
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = float(value)
    if not math.isfinite(value):
        return "-" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def numbers(values: Sequence) -> list[str]:
    """`number` for a column of a table: floats below 1000 get equally many digits behind the point, so that 0.89 does not stand below 0.831."""
    texts = [number(v) for v in values]
    digits = max((len(t.partition(".")[2]) for t in texts), default=0)
    small = [isinstance(v, (float, np.floating)) and abs(v) < 1000 and "e" not in t for v, t in zip(values, texts)]
    if digits > 4 or not all(fits or t == "-" for fits, t in zip(small, texts)):
        return texts
    return [f"{v:.{digits}f}" if fits else t for v, fits, t in zip(values, small, texts)]


def percent(share) -> str:
    """0.5447 -> "54.5"; "-" for None and NaN."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    step = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(step))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)
    first = math.ceil(low / step - 1e-6)
    return [round(i * step, 12) for i in range(first, int(math.floor(high / step + 1e-6)) + 1)]


def _tick_text(value: float, spacing: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.{max(0, -math.floor(math.log10(spacing) + 1e-9))}f}" if spacing < 1 else f"{value:g}"


# ---- axes -----------------------------------------------------------------------------------------------------------------------------


class _Axes:
    """A frame with ticks and labels; `at(x, y)` gives the place of a data point on the canvas."""

    def __init__(self, canvas: Canvas, frame, x_range, y_range, x_label: str, y_label: str, log_y: bool = False, log_x: bool = False,
                 x_air: float = 0.0):
        self.left, self.top, self.right, self.bottom = frame
        self.log_x, self.log_y = log_x, log_y
        self.x_low, self.x_high = self._room(*x_range, log_x, x_air)
        self.y_low, self.y_high = self._room(*y_range, log_y, 0.06)
        for value, label in self._marks(self.x_low, self.x_high, log_x, (self.right - self.left) / 90):
            x, _ = self.at(value, None)
            canvas.line([(x, self.bottom), (x, self.bottom + 4)], RULE, 1)
            canvas.text(x, self.bottom + 8, label, SMALL, MUTED, "ma")
        for value, label in self._marks(self.y_low, self.y_high, log_y, (self.bottom - self.top) / 48):
            _, y = self.at(None, value)
            canvas.line([(self.left, y), (self.right, y)], RULE, 1)
            canvas.text(self.left - 8, y, label, SMALL, MUTED, "rm")
        canvas.line([(self.left, self.bottom), (self.right, self.bottom)], MUTED, 1)
        canvas.text((self.left + self.right) / 2, self.bottom + 28, x_label, SMALL, MUTED, "ma")
        canvas.text(self.left - 44, self.top - 24, y_label, SMALL, MUTED, "la")

    @staticmethod
    def _room(low: float, high: float, log: bool, share: float) -> tuple[float, float]:
        """The range with a little air, in log10 units where the axis is logarithmic."""
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        air = share * (high - low)
        return (low - air if low != 0 or log else low), high + air

    @staticmethod
    def _marks(low: float, high: float, log: bool, wanted: float) -> list[tuple[float, str]]:
        if log and high - low > 0.6:
            step = max(1, math.ceil((high - low) / max(2, wanted)))
            digits = (1, 2, 5) if high - low < 2.2 else (1,)
            values = [d * 10.0**p for p in range(math.floor(low), math.floor(high) + 1, step) for d in digits]
            return [(v, f"{v:g}" if 1e-4 < v < 1e5 else f"{v:.0e}".replace("e-0", "e-").replace("e+0", "e")) for v in values
                    if low - 1e-9 <= math.log10(v) <= high + 1e-9]
        if log:
            low, high = 10**low, 10**high
        values = ticks(low, high, max(2, round(wanted)))
        spacing = values[1] - values[0] if len(values) > 1 else 1.0
        return [(v, _tick_text(v, spacing)) for v in values]

    def at(self, x, y) -> tuple[float, float]:
        place = []
        for v, log, low, high, a, b in ((x, self.log_x, self.x_low, self.x_high, self.left, self.right),
                                        (y, self.log_y, self.y_low, self.y_high, self.bottom, self.top)):
            place.append(a if v is None else a + ((math.log10(v) if log else v) - low) / (high - low) * (b - a))
        return place[0], place[1]


def _legend(canvas: Canvas, names: Sequence[str], x: float, y: float, width: float, shapes: bool = False) -> float:
    """Names with their colours, flowing over lines. Returns the y below the last line."""
    start = x
    for i, name in enumerate(names):
        name = shorten(name, SMALL, width - 30)
        need = text_width(name, SMALL) + 46
        if x + need - 20 > start + width and x > start:
            x, y = start, y + 22
        if shapes:
            canvas.mark(x + 10, y + 9, i, LINES[i % len(LINES)])
        else:
            canvas.line([(x, y + 9), (x + 20, y + 9)], LINES[i % len(LINES)], 3)
        canvas.text(x + 27, y + 9, name, SMALL, INK, "lm")
        x += need
    return y + 22


def _frame(title: str, names: Sequence[str], width: int, height: int, shapes: bool = False) -> tuple[Canvas, tuple[float, float, float, float]]:
    """A canvas with title and legend, and what is left for the axes (left, top, right, bottom)."""
    canvas = Canvas(width, height)
    canvas.text(0, 2, shorten(title, HEADING - 3, width), HEADING - 3, INK, bold=True)
    y = 32 if title else 6
    if len(names) > 1:
        y = _legend(canvas, names, 0, y, width, shapes)
    return canvas, (52, y + 30, width - 24, height - 50)


def _limits(values: list[float], fixed, log: bool, what: str) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else ((0.1, 1.0) if log else (0.0, 1.0))
    if fixed is None:
        return low, high
    low, high = (low if fixed[0] is None else fixed[0]), (high if fixed[1] is None else fixed[1])
    if low > high:
        raise ValueError(f"{what} range runs from {low} to {high}, expected low <= high")
    return low, high


# ---- charts ---------------------------------------------------------------------------------------------------------------------------


def line_chart(lines: dict[str, tuple[Sequence[float], Sequence[float]]], title: str = "", x: str = "", y: str = "",
               size: tuple[int, int] = (720, 380), spread: dict[str, Sequence[float]] | None = None, log_x: bool = False, log_y: bool = False,
               y_range=None, markers: bool = False, zoom: int = 1) -> Image.Image:
    """Curves. `lines`: {name: (xs, ys)}; None and NaN break a curve, a long noisy curve is drawn faint with its rolling mean on top.

    `spread`: {name: half widths} shades a band around a curve (one standard deviation over seeds, say). `y_range`: (low, high), None = from data.
    """
    lines = {name: ([float(v) for v in xs], [float("nan") if v is None else float(v) for v in ys]) for name, (xs, ys) in lines.items()}
    for name, (xs, ys) in lines.items():
        if len(xs) != len(ys):
            raise ValueError(f"curve {name!r} has {len(xs)} x values and {len(ys)} y values, expected equal numbers")
    spread = spread or {}
    canvas, frame = _frame(title, list(lines), *size)
    tops = [v + s for name, (_, ys) in lines.items() for v, s in zip(ys, spread.get(name, [0] * len(ys)))]
    lows = [v - s for name, (_, ys) in lines.items() for v, s in zip(ys, spread.get(name, [0] * len(ys)))]
    x_all = [v for xs, _ in lines.values() for v in xs]
    axes = _Axes(canvas, frame, _limits(x_all, None, log_x, "x"), _limits(tops + lows, y_range, log_y, "y"), x, y, log_y, log_x)
    if not any(math.isfinite(v) for v in tops):
        canvas.text((frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2, "nothing to draw yet", BODY, MUTED, "mm")
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        colour = LINES[i % len(LINES)]
        if name in spread:
            _band(canvas, axes, xs, ys, spread[name], colour)
        noisy = len(xs) > 150
        if noisy:
            for part in _parts(xs, ys, axes):
                canvas.line(part, _tint(colour, 0.30), 1)
            ys = _rolling_mean(ys, max(5, len(ys) // 40))
        for part in _parts(xs, ys, axes):
            canvas.line(part, colour, 2.2)
            if markers or len(part) == 1:
                for px, py in part:
                    canvas.mark(px, py, i, colour, 4)
    return canvas.done(zoom)


def _parts(xs, ys, axes: _Axes) -> list[list[tuple[float, float]]]:
    """Unbroken stretches of a curve, as canvas points cut to the frame's height."""
    parts, part = [], []
    for x, y in zip(xs, ys):
        if math.isfinite(y) and (y > 0 or not axes.log_y) and (x > 0 or not axes.log_x):
            px, py = axes.at(x, y)
            part.append((px, min(max(py, axes.top), axes.bottom)))
        elif part:
            parts, part = [*parts, part], []
    return [*parts, part] if part else parts


def _rolling_mean(ys: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` neighbours, NaN left out."""
    values = np.asarray(ys, np.float64)
    ok = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(ok, values, 0), kernel, "same")
    count = np.convolve(ok.astype(np.float64), kernel, "same")
    return list(np.where(ok, total / np.maximum(count, 1), np.nan))


def _tint(colour: str, strength: float) -> str:
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + strength * (c - 255)):02x}" for c in channels)


def _band(canvas: Canvas, axes: _Axes, xs, ys, half, colour: str) -> None:
    points = [(x, y, h) for x, y, h in zip(xs, ys, half) if math.isfinite(y)]
    upper = [axes.at(x, y + h) for x, y, h in points]
    lower = [axes.at(x, max(y - h, 10**axes.y_low) if axes.log_y else y - h) for x, y, h in points]
    if len(points) > 1:
        canvas.pen.polygon([(2 * px, 2 * py) for px, py in upper + lower[::-1]], fill=_tint(colour, 0.18))


def bar_chart(bars: Sequence[dict], title: str = "", x: str = "", width: int = 720, x_range=None, text=number) -> Image.Image:
    """Horizontal bars, one dict each: name, value; optional spread (a whisker), points (single runs as dots), strong (accent colour).

    Bars start at 0 unless `x_range` says otherwise, in which case a broken foot says so. `text` turns a value into its label.
    """
    bars = list(bars)
    names = [plain(b["name"]) for b in bars]
    left = min(width * 0.45, max([text_width(n, BODY) for n in names], default=0) + 14)
    canvas = Canvas(width, 44 + 38 * len(bars) + 56)
    canvas.text(0, 2, shorten(title, HEADING - 3, width), HEADING - 3, INK, bold=True)
    reach = [v for b in bars for v in ([b["value"] or 0, (b["value"] or 0) + (b.get("spread") or 0), *b.get("points", ())])]
    low, high = _limits([0.0, *reach], x_range, False, "x")
    high = high if high > low else low + 1
    top, bottom, right = 44, 44 + 38 * len(bars), width - 74
    place = lambda v: left + (min(max(v, low), high) - low) / (high - low) * (right - left)  # noqa: E731
    marks = ticks(low, high, max(2, int((right - left) / 90)))
    for v in marks:
        canvas.line([(place(v), top), (place(v), bottom)], RULE, 1)
        canvas.text(place(v), bottom + 6, _tick_text(v, marks[1] - marks[0] if len(marks) > 1 else 1), SMALL, MUTED, "ma")
    canvas.text((left + right) / 2, bottom + 28, x + ("" if low <= 0 else f"   (axis starts at {low:g})"), SMALL, MUTED, "ma")
    for i, bar in enumerate(bars):
        y = top + 38 * i
        colour = LINES[1] if bar.get("strong") else LINES[0]
        canvas.text(left - 12, y + 19, shorten(names[i], BODY, left - 12), BODY, INK, "rm")
        if bar["value"] is None or math.isnan(bar["value"]):
            canvas.text(left + 8, y + 19, "not measured", SMALL, MUTED, "lm")
            continue
        zero, end = place(max(0.0, low)), place(bar["value"])
        canvas.box(min(zero, end), y + 7, max(1.0, abs(end - zero)), 24, fill=_tint(colour, 0.75), radius=2)
        edge = end
        if bar.get("spread"):
            a, b = place(bar["value"] - bar["spread"]), place(bar["value"] + bar["spread"])
            canvas.line([(a, y + 19), (b, y + 19)], INK, 1.5)
            for px in (a, b):
                canvas.line([(px, y + 14), (px, y + 24)], INK, 1.5)
            edge = max(edge, b)
        for p in bar.get("points", ()):
            canvas.mark(place(p), y + 19, 0, INK, 2.6)
            edge = max(edge, place(p))
        canvas.text(edge + 9, y + 19, text(bar["value"]), BODY, INK, "lm", bold=bool(bar.get("strong")))
    canvas.line([(place(max(0.0, low)), top), (place(max(0.0, low)), bottom)], MUTED, 1)
    return canvas.done()


def scatter(groups: dict[str, Sequence[tuple[float, float]]], title: str = "", x: str = "", y: str = "", size: tuple[int, int] = (720, 420),
            log_x: bool = False, log_y: bool = False, names: dict[tuple[float, float], str] | None = None) -> Image.Image:
    """Points. `groups`: {name: [(x, y), ...]}, one colour and shape each; `names` labels single points."""
    canvas, frame = _frame(title, list(groups), *size, shapes=True)
    points = [p for group in groups.values() for p in group]
    xs, ys = _limits([p[0] for p in points], None, log_x, "x"), _limits([p[1] for p in points], None, log_y, "y")
    axes = _Axes(canvas, frame, xs, ys, x, y, log_y, log_x, x_air=0.05)
    for i, group in enumerate(groups.values()):
        for point in group:
            px, py = axes.at(*point)
            canvas.mark(px, py, i, LINES[i % len(LINES)], 5)
            label = (names or {}).get(tuple(point))
            if label:
                room = frame[2] - px - 9
                flip = text_width(label, SMALL) > room
                canvas.text(px + (-9 if flip else 9), py, label, SMALL, INK, "rm" if flip else "lm")
    return canvas.done()


def table(columns: Sequence[str], rows: Sequence[Sequence], title: str = "", width: int = 720, strong: Sequence[int] = ()) -> Image.Image:
    """Rows and columns; words to the left and wrapped, numbers to the right (through `numbers`). `strong`: row indices in bold."""
    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {i} of table {title!r} has {len(row)} cells, expected {len(columns)}: {', '.join(map(str, columns))}")
    cells = list(zip(*(numbers([row[c] for row in rows]) for c in range(len(columns)))))
    numeric = [bool(rows) and all(not isinstance(r[c], str) for r in rows) for c in range(len(columns))]
    widths = _column_widths([[columns[c], *(r[c] for r in cells)] for c in range(len(columns))], width)
    lines = [[wrap(value, BODY if i else SMALL, w - 14) for value, w in zip(row, widths)] for i, row in enumerate([list(map(str, columns)), *cells])]
    heights = [6 + 22 * max([len(cell) for cell in row] + [1]) for row in lines]
    top = 36 if title else 0
    canvas = Canvas(width, top + sum(heights) + 8)
    canvas.text(0, 2, shorten(title, HEADING - 3, width), HEADING - 3, INK, bold=True)
    y = top
    for i, (row, height) in enumerate(zip(lines, heights)):
        x = 0.0
        for c, cell in enumerate(row):
            at, anchor = (x + widths[c] - 8, "rm") if numeric[c] else (x + 4, "lm")
            for j, line in enumerate(cell):
                canvas.text(at, y + 14 + 22 * j, line, BODY if i else SMALL, INK if i else MUTED, anchor, bold=bool(i) and i - 1 in strong)
            x += widths[c]
        y += height
        canvas.line([(0, y), (width, y)], MUTED if i == 0 else WASH, 1)
    return canvas.done()


def _column_widths(columns: Sequence[Sequence[str]], width: float) -> list[float]:
    """Widths that add up to `width`: what each column needs and an equal share of what is left; if it is too much, the wide ones give way."""
    need = [max(text_width(v, BODY) for v in column) + 24 for column in columns]
    if sum(need) <= width:
        spare = (width - sum(need)) / len(need)
        return [n + spare for n in need]
    limit = width / len(need)
    while True:  # raise the limit until the columns above it fill the width exactly
        small = [n for n in need if n <= limit]
        raised = (width - sum(small)) / (len(need) - len(small))
        if raised <= limit + 0.01:
            return [min(n, limit) for n in need]
        limit = raised
