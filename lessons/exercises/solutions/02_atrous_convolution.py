"""Solutions of lesson 02."""
import torch
import torch.nn.functional as F

from kernels.backend import jit, tl


def polyphase(x: torch.Tensor, weight: torch.Tensor, rate: int) -> torch.Tensor:
    y = x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:])
    for f in range(min(rate, x.shape[2])):
        for g in range(min(rate, x.shape[3])):
            y[:, :, f::rate, g::rate] = F.conv2d(x[:, :, f::rate, g::rate], weight, padding=1)
    return y


def live_taps(low: int, high: int, step: int, size: int, count: int) -> tuple[int, int]:
    first = (max(-high, 0) + step - 1) // step
    end = min((max(size - low, 0) + step - 1) // step, count)
    return first, max(end - first, 0)


def readers(q: int, kernel: int, stride: int, padding: int, rate: int, outputs: int) -> list[tuple[int, int]]:
    found = []
    for u in range(kernel):
        i, rest = divmod(q + padding - u * rate, stride)
        if rest == 0 and 0 <= i < outputs:
            found.append((u, i))
    return found


def shift_add(z: torch.Tensor, rates: tuple[int, ...]) -> torch.Tensor:
    batch, _, _, _, outputs, height, width = z.shape
    y = z.new_zeros(batch, outputs, height, width)
    for n, rate in enumerate(rates):
        for u in range(3):
            for v in range(3):
                padded = F.pad(z[:, n, u, v], (rate, rate, rate, rate))
                y += padded[:, :, u * rate:u * rate + height, v * rate:v * rate + width]
    return y


def traffic(pixels: int, channels: int, outputs: int, branches: int, bytes_each: int = 2) -> dict[str, int]:
    x, y = pixels * channels * bytes_each, pixels * outputs * bytes_each
    return {"separate": branches * (x + y) + (branches - 1) * 3 * y, "fused": x + y, "shift_add": x + 2 * 9 * branches * y + y}


@jit
def aspp_row(p_x, p_w, p_y, n, NEAR: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = i < n
    total = (tl.load(p_w + 1) + tl.load(p_w + 4)) * tl.load(p_x + i, mask=real, other=0.0)  # the centre belongs to both branches: load it once
    for u in tl.static_range(0, 3, 2):
        near, far = i + (u - 1) * NEAR, i + (u - 1) * FAR
        total += tl.load(p_w + u) * tl.load(p_x + near, mask=real & (near >= 0) & (near < n), other=0.0)
        total += tl.load(p_w + 3 + u) * tl.load(p_x + far, mask=real & (far >= 0) & (far < n), other=0.0)
    tl.store(p_y + i, total, mask=real)
