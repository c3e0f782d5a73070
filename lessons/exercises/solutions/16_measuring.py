"""Solutions of lesson 16."""
import statistics


def times_as_fast(rounds: list[tuple[float, float]]) -> float:
    return statistics.median(peer / ours for ours, peer in rounds)


def floor_ms(moved: float, flops: float, exps: float, roof: dict[str, float]) -> float:
    return 1e3 * max(moved / roof["bytes_per_s"], flops / roof["flops_per_s"], exps / roof["exps_per_s"])


def paired(baseline: list[float], method: list[float]) -> tuple[float, float]:
    gains = [m - b for b, m in zip(baseline, method, strict=True)]
    return statistics.fmean(gains), statistics.stdev(gains)


def row_attention_bytes(batch: int, heads: int, height: int, width: int, depth: int, copies: bool) -> int:
    tensor = 4 * batch * heads * height * width * depth
    kernel = 4 * tensor  # q, k, v read, out written
    return kernel + 4 * 2 * tensor if copies else kernel  # four permutations, each reads and writes
