"""Solutions of lesson 13."""
import torch

from kernels.backend import jit, tl


def draw_index(groups: int, images: int, positions: int, generator: torch.Generator) -> torch.Tensor:
    order = torch.rand(groups, images, positions, generator=generator).argsort(dim=1)
    return (order + images * torch.arange(groups).view(-1, 1, 1)).view(groups * images, positions)


def mix_gradient(grad: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    back = torch.empty_like(grad)
    back[index, torch.arange(grad.shape[1])] = grad  # unmix: what came from x[index[b, p], p] goes back there
    return back


def source_address(index: torch.Tensor, shape: tuple[int, int, int, int], strides: tuple[int, int, int, int], patch: int) -> torch.Tensor:
    B, C, H, W = shape
    c, h, w = torch.arange(C).view(-1, 1, 1), torch.arange(H).view(-1, 1), torch.arange(W)
    position = h // patch * (W // patch) + w // patch  # [H, W]
    image = index[:, position][:, None]  # [B, 1, H, W]
    return image * strides[0] + c * strides[1] + h * strides[2] + w * strides[3]


def bytes_moved(shape: tuple[int, int, int, int], item_bytes: int, how: str) -> int:
    elements = torch.Size(shape).numel()
    return elements * {"kernel": 2 * item_bytes, "gather": 2 * item_bytes + 8, "join": 6 * item_bytes}[how]


@jit
def mix_tokens(p_x, p_index, p_y, P, D, BLOCK: tl.constexpr):
    b, p = tl.program_id(0), tl.program_id(1)
    source = tl.load(p_index + b * P + p)
    d = tl.arange(0, BLOCK)
    token = tl.load(p_x + (source * P + p) * D + d, mask=d < D, other=0.0)
    tl.store(p_y + (b * P + p) * D + d, token, mask=d < D)
