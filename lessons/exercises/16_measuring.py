"""Exercises of lesson 16. Replace each `return None`, then run:   python -m lessons.check 16"""


def times_as_fast(rounds: list[tuple[float, float]]) -> float:
    """Exercise 1. How many times as fast as the peer are we? `rounds`: (our milliseconds, the peer's milliseconds), taken side by side.

    One noisy round must not decide, and a machine that slows down for half of the rounds must not either.
    """
    return None  # your code here


def floor_ms(moved: float, flops: float, exps: float, roof: dict[str, float]) -> float:
    """Exercise 2. The shortest possible time in milliseconds of an operation that must move `moved` bytes, do `flops` and take `exps`.

    roof: {"bytes_per_s": ..., "flops_per_s": ..., "exps_per_s": ...}. The three happen at the same time.
    """
    return None  # your code here


def paired(baseline: list[float], method: list[float]) -> tuple[float, float]:
    """Exercise 3. Mean and sample standard deviation of the method's gain over the baseline, seed by seed."""
    return None  # your code here


def row_attention_bytes(batch: int, heads: int, height: int, width: int, depth: int, copies: bool) -> int:
    """Exercise 4. Bytes of float32 that attention along rows must move for q, k, v -> out, each [batch, heads, height, width, depth].

    copies=False: the kernel reads its inputs where they lie. copies=True: q, k and v are first permuted into new tensors, the kernel works on
    those, and its result is permuted back into a last one. Scores stay on the chip in both cases.
    """
    return None  # your code here
