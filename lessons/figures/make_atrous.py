"""The pictures of lesson 02: python -m lessons.figures.make_atrous writes lessons/figures/atrous_*.png."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from kernels.atrous_conv import atrous_conv
from seglite.charts import BODY, INK, MUTED, RULE, SMALL, Canvas

HERE = Path(__file__).parent
TAP, SEEN, PAPER = "#d55e00", "#cfe3f2", "#ffffff"


def drawing(size: int = 96) -> np.ndarray:
    """A disc and two thin bars on noise, float [H, W] in 0..1."""
    y, x = np.mgrid[:size, :size]
    picture = 0.25 + 0.04 * np.random.default_rng(0).standard_normal((size, size))
    picture[(y - 34) ** 2 + (x - 32) ** 2 < 17**2] += 0.5
    picture[20:84, 64:67] += 0.5
    picture[70:73, 12:84] += 0.5
    return picture.clip(0, 1)


def grey(picture: np.ndarray, size: int) -> Image.Image:
    low, high = float(picture.min()), float(picture.max())
    scaled = ((picture - low) / (high - low) * 255).astype(np.uint8)
    return Image.fromarray(scaled).resize((size, size), Image.Resampling.NEAREST).convert("RGB")


def problem() -> Image.Image:
    """The same 3x3 edge filter with the same weights: after shrinking four times, and at rate 4 on the full map."""
    image = torch.from_numpy(drawing()).float()[None, None]  # [1, 1, H, W]
    smooth = F.avg_pool2d(image, 4, 1, 2)[:, :, :96, :96]  # [1, 1, H, W]
    weight = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]
    small = atrous_conv(smooth[:, :, ::4, ::4], weight, padding=1)
    large = atrous_conv(smooth, weight, padding=4, rate=4)
    enlarged = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
    canvas = Canvas(900, 266)
    shown = ((image, "the picture", "96 x 96"), (small, "shrink by 4, filter", "576 answers"), (enlarged, "and enlarge again", "the same 576 answers, blurred"),
             (large, "filter at rate 4, no shrinking", "9216 answers, the same weights"))
    for i, (picture, title, note) in enumerate(shown):
        canvas.paste(grey(picture[0, 0].numpy(), 208), i * 230, 0)
        canvas.text(i * 230, 216, title, BODY, INK, bold=True)
        canvas.text(i * 230, 240, note, SMALL, MUTED)
    return canvas.done()


def idea() -> Image.Image:
    """Nine taps at three rates on a grid, and the four phases of rate 2."""
    canvas, cell = Canvas(900, 268), 14
    for i, rate in enumerate((1, 2, 4)):
        x0 = i * 226
        for r in range(13):
            for c in range(13):
                d_r, d_c = r - 6, c - 6
                tap = d_r in (-rate, 0, rate) and d_c in (-rate, 0, rate)
                inside = max(abs(d_r), abs(d_c)) <= rate
                canvas.box(x0 + c * cell, r * cell, cell, cell, TAP if tap else SEEN if inside else PAPER, RULE)
        canvas.text(x0, 192, f"rate {rate}", BODY, INK, bold=True)
        canvas.text(x0, 216, f"9 taps, {2 * rate + 1} x {2 * rate + 1} pixels seen", SMALL, MUTED)
    colours = (("#0072b2", "#e69f00"), ("#009e73", "#cc79a7"))
    for r in range(13):
        for c in range(13):
            canvas.box(690 + c * cell, r * cell, cell, cell, colours[r % 2][c % 2], PAPER)
    canvas.text(690, 192, "rate 2 = four ordinary ones", BODY, INK, bold=True)
    canvas.text(690, 216, "pixels of one colour only ever", SMALL, MUTED)
    canvas.text(690, 238, "meet pixels of the same colour", SMALL, MUTED)
    return canvas.done()


def live() -> Image.Image:
    """How many of the nine taps fall inside a 41 x 41 map, for each pixel."""
    size, canvas = 41, Canvas(900, 276)
    ramp = np.array([[247, 251, 255], [8, 81, 156]], float)
    for i, rate in enumerate((6, 12, 18, 24)):
        at = np.arange(size)
        along = np.array([[0 <= p + d < size for d in (-rate, 0, rate)] for p in at]).sum(1)
        taps = along[:, None] * along[None, :]
        share = taps.mean() / 9
        colours = ramp[0] + (ramp[1] - ramp[0]) * (taps / 9)[..., None]
        canvas.paste(Image.fromarray(colours.astype(np.uint8)).resize((205, 205), Image.Resampling.NEAREST), i * 230, 0)
        edge = min(rate, size - rate) / 2
        for r, c in ((20.5, 20.5), (edge, 20.5), (20.5, size - edge), (edge, edge)):
            value = int(taps[int(r), int(c)])
            canvas.text(i * 230 + 5 * c, 5 * r, str(value), SMALL, "#ffffff" if value > 4 else INK, "mm", bold=True)
        canvas.text(i * 230, 214, f"rate {rate}", BODY, INK, bold=True)
        canvas.text(i * 230, 238, f"{100 * share:.0f} % of the taps exist", SMALL, MUTED)
    return canvas.done()


if __name__ == "__main__":
    for draw in (problem, idea, live):
        path = HERE / f"atrous_{draw.__name__}.png"
        draw().quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path.name, path.stat().st_size, "bytes")
