"""The pictures of lesson 16: python -m lessons.figures.make_measuring writes lessons/figures/measuring_*.png.

Nothing here is a measurement: the first picture simulates a machine that changes speed, the second draws the roofline of a made-up machine.
"""
from pathlib import Path

import numpy as np
from PIL import Image

from seglite.charts import BODY, INK, Canvas, line_chart

HERE = Path(__file__).parent


def machine(rounds: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How slow the simulated machine is in every round, and the true milliseconds of ours and the peer's at full speed."""
    rng = np.random.default_rng(0)
    slow = np.where(np.arange(rounds) < rounds // 2, 1.0, 1.9) * rng.lognormal(0, 0.08, rounds)
    slow[rng.choice(rounds, 3, replace=False)] *= 4
    return slow, 10 * rng.lognormal(0, 0.03, rounds), 12 * rng.lognormal(0, 0.03, rounds)


def problem() -> Image.Image:
    """Peer first, ours afterwards: the machine slows down in between, and the faster of the two loses."""
    slow, ours, peer = machine()
    half = len(slow) // 2
    first, second = np.arange(half), np.arange(half, 2 * half)
    apart = line_chart({"peer, measured first": (first, (slow * peer)[:half]), "ours, measured afterwards": (second, (slow * ours)[half:])},
                       "One after the other", "sample", "ms", (440, 300), y_range=(0, 45), markers=True)
    side = line_chart({"peer": (first, (slow * peer)[::2]), "ours": (first, (slow * ours)[::2])}, "Side by side, in turns", "round", "ms", (440, 300),
                      y_range=(0, 45), markers=True)
    canvas = Canvas(900, 350)
    wrong = np.median((slow * peer)[:half]) / np.median((slow * ours)[half:])
    right = np.median((peer / ours)[::2])
    for x, chart, line in ((0, apart, f"medians: ours is {wrong:.2f} times as fast"), (460, side, f"median of the ratios: ours is {right:.2f} times as fast")):
        canvas.paste(chart, x, 0)
        canvas.text(x + 52, 312, line, BODY, INK, bold=True)
    return canvas.done()


OPERATIONS = {  # name: (arithmetic operations, bytes of float32 that must be moved)
    "depthwise 3x3, 960 channels, 65x65": (18 * 960 * 65**2, 4 * 2 * 960 * 65**2),
    "row attention, 48 wide, depth 32": (4 * 48 * 32, 4 * 4 * 32),
    "ASPP, 2048 to 21, 41x41": (2 * 4 * 9 * 2048 * 21 * 41**2, 4 * ((2048 + 21) * 41**2 + 4 * 9 * 2048 * 21)),
    "3x3, 512 to 512, 8 of 65x65": (2 * 9 * 512 * 512 * 8 * 65**2, 4 * (2 * 512 * 8 * 65**2 + 9 * 512 * 512)),
}
PEAK, BANDWIDTH = 1000.0, 25.0  # GFLOP/s and GB/s of the machine in the picture


def roof() -> Image.Image:
    """Under the slope an operation waits for memory, under the flat part for arithmetic."""
    best = lambda intensity: np.minimum(BANDWIDTH * intensity, PEAK)
    x = np.geomspace(0.5, 4000, 100)
    spots = {name: ([flops / moved], [best(flops / moved)]) for name, (flops, moved) in OPERATIONS.items()}
    return line_chart({"roof of a machine with 25 GB/s and 1000 GFLOP/s": (x, best(x)), **spots}, "The most that an operation can get",
                      "operations per byte moved", "GFLOP/s", (900, 400), log_x=True, log_y=True)


if __name__ == "__main__":
    for draw in (problem, roof):
        path = HERE / f"measuring_{draw.__name__}.png"
        draw().quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path.name, path.stat().st_size, "bytes")
