"""Patch mixing: build new images by taking every patch from another image of the batch, at the same place.

MixReorg (Cai et al., ICCV 2023, arXiv 2308.04829) trains without masks by mixing captioned images: each patch of a mixed image comes
from one of several images, so the caption it belongs to is known for free. At every position p the batch is permuted,

    mix:    y[b, p] = x[index[b, p], p]          index[:, p] is a permutation of 0 ... B-1 for every p
    unmix:  x[index[b, p], p] = y[b, p]

so that every patch is used exactly once and `patch_unmix(patch_mix(x, index), index)` returns x bit for bit.

Two layouts have one meaning. Images, masks and feature maps [B, C, H, W] or [B, H, W] are cut into H/patch x W/patch patches, numbered
row by row; tokens [B, N, D] (`patch=None`) are their own patches.

Traffic. A patch keeps its place, so the address inside the image never changes: only the image number does. One read and one write of
x is all there is to do; the index is P numbers per image against C*H*W elements.
    cut into patches, index, put together again     3 reads + 3 writes of x
    torch.gather with an index for every element    1 read + 1 write of x, and 8 bytes of index per element
    this kernel                                     1 read + 1 write of x
At 256x3x224x224 in fp32 that is 308 MB moved instead of 925 MB, or 617 MB with gather's index.

Backward. mix is a permutation matrix M on the elements of the batch; dL/dx = M^T dL/dy and M^T = M^-1, so the gradient of mix is unmix
of the gradient with the same index, and the other way round. No inverse index is built: mix gathers (the read goes to the other image),
unmix scatters (the write does). Both are linear, so second derivatives need nothing new.

Bits are moved, not numbers: elements are handled as integers of their size, whatever their dtype.
"""
from __future__ import annotations

import torch

from kernels.backend import INTERPRETING, device_of, jit, launch_options, path_for, tl

ANYWHERE = 1 << 30  # divisor of a dimension that does not matter for the position: the quotient is always 0
SAME_SIZE_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# ------------------------------------------------------------------------------------------------ reference
def patch_mix_reference(x: torch.Tensor, index: torch.Tensor, patch: int | tuple[int, int] | None = None) -> torch.Tensor:
    """The definition in plain PyTorch: cut, pick, put together. Shapes as `patch_mix`; index is trusted."""
    if patch is None:
        return x[index, torch.arange(x.shape[1], device=x.device)]  # [B, N, D]
    tiles = _cut(x, _pair(patch))  # [B, P, n]
    mixed = tiles[index, torch.arange(tiles.shape[1], device=x.device)]  # [B, P, n]
    return _put_together(mixed, x.shape, _pair(patch))


def patch_unmix_reference(x: torch.Tensor, index: torch.Tensor, patch: int | tuple[int, int] | None = None) -> torch.Tensor:
    """Unmix is mix with the inverse permutation of every position."""
    return patch_mix_reference(x, index.argsort(dim=0), patch)


def _cut(x: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    """[B, C, H, W] or [B, H, W] -> patches [B, P, n], position by position, n elements each."""
    B, H, W = x.shape[0], x.shape[-2], x.shape[-1]
    tiles = x.reshape(B, -1, H // patch[0], patch[0], W // patch[1], patch[1])
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // patch[0]) * (W // patch[1]), -1)


def _put_together(tiles: torch.Tensor, shape: torch.Size, patch: tuple[int, int]) -> torch.Tensor:
    """The inverse of `_cut`: [B, P, n] -> `shape`."""
    B, H, W = shape[0], shape[-2], shape[-1]
    grid = tiles.reshape(B, H // patch[0], W // patch[1], -1, patch[0], patch[1])
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(shape)


# ------------------------------------------------------------------------------------------------ kernel
@jit
def patch_mix_kernel(
    p_x,  # pointer to any integer type: the input [B, A, R, Q]
    p_index,  # pointer to int32 or int64 [B, P]: the other image of every position
    p_y,  # pointer to the type of p_x: the output [B, A, R, Q]
    R,  # int, size of the middle dimension
    rows,  # int, A * R
    Q,  # int, size of the inner dimension
    blocks_r,  # int, programs along the rows
    blocks_q,  # int, programs along Q
    stride_xb, stride_xa, stride_xr, stride_xq,  # elements from one image, a, r, q of x to the next
    stride_yb, stride_ya, stride_yr, stride_yq,  # the same for y
    stride_ib, stride_ip,  # the same for the index
    step_a, step_r, step_q,  # positions gained when a // DIV_A, r // DIV_R, q // DIV_Q grow by one (0: that dimension lies inside a patch)
    DIV_A: tl.constexpr,  # size of a patch along A, R and Q; constants, because dividing by a constant is a multiplication
    DIV_R: tl.constexpr,
    DIV_Q: tl.constexpr,
    RUN: tl.constexpr,  # power of two that divides DIV_Q and BLOCK_Q: neighbours along Q that surely share a patch
    SCATTER: tl.constexpr,  # False: mix, read from the other image. True: unmix, write to it
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """One program moves BLOCK_R rows x BLOCK_Q columns of one image. Grid: (B * blocks_r * blocks_q,)."""
    i_program = tl.program_id(0)
    i_q = i_program % blocks_q
    i_r = (i_program // blocks_q) % blocks_r
    i_image = (i_program // (blocks_q * blocks_r)).to(tl.int64)
    o_row = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
    o_run = i_q * BLOCK_Q + tl.arange(0, BLOCK_Q // RUN) * RUN
    o_q = o_run[:, None] + tl.arange(0, RUN)[None, :]
    o_a = o_row // R
    o_r = o_row % R
    # One index load serves a whole run: the data tile is [BLOCK_R, BLOCK_Q / RUN, RUN], the index tile lacks the last dimension.
    m_run = (o_row < rows)[:, None] & (o_run < Q)[None, :]
    position = ((o_a // DIV_A) * step_a + (o_r // DIV_R) * step_r)[:, None] + ((o_run // DIV_Q) * step_q)[None, :]
    b_other = tl.load(p_index + i_image * stride_ib + position.to(tl.int64) * stride_ip, mask=m_run, other=0).to(tl.int64)[:, :, None]
    m_all = (o_row < rows)[:, None, None] & (o_q < Q)[None, :, :]
    x_row = o_a.to(tl.int64) * stride_xa + o_r.to(tl.int64) * stride_xr
    y_row = o_a.to(tl.int64) * stride_ya + o_r.to(tl.int64) * stride_yr
    x_place = x_row[:, None, None] + (o_q.to(tl.int64) * stride_xq)[None, :, :]
    y_place = y_row[:, None, None] + (o_q.to(tl.int64) * stride_yq)[None, :, :]
    if SCATTER:
        b_x = tl.load(p_x + i_image * stride_xb + x_place, mask=m_all, other=0)
        tl.store(p_y + b_other * stride_yb + y_place, b_x, mask=m_all)
    else:
        b_x = tl.load(p_x + b_other * stride_xb + x_place, mask=m_all, other=0)
        tl.store(p_y + i_image * stride_yb + y_place, b_x, mask=m_all)


# ------------------------------------------------------------------------------------------------ launch
def tile(rows: int, columns: int, item_bytes: int, interpreting: bool = INTERPRETING) -> tuple[int, int]:
    """(BLOCK_R, BLOCK_Q): four 16-byte accesses for each of 128 threads; one huge tile for the interpreter, which pays per operation."""
    elements = 1 << 18 if interpreting else 8192 // item_bytes
    block_q = min(1 << (columns - 1).bit_length(), elements if interpreting or rows == 1 else elements // 4)
    block_r = min(1 << (rows - 1).bit_length(), max(1, elements // block_q))
    return block_r, block_q


def dimensions(x: torch.Tensor, y: torch.Tensor, patch: tuple[int, int] | None) -> list[tuple[int, int, int, int, int]]:
    """How the kernel sees one image: three dimensions (size, stride in x, stride in y, divisor, step), the fastest of y last.

    position = sum over the dimensions of (coordinate // divisor) * step. Neighbouring dimensions that lie back to back in memory
    become one where the position allows it: tokens turn into one long vector, channels-last images into rows of W*C elements.
    """
    if patch is None:
        dims = [(1, 1), (ANYWHERE, 0)]  # tokens, then features
    else:
        columns = x.shape[-1] // patch[1]
        across = (patch[1], 1) if columns > 1 else (ANYWHERE, 0)  # patches as wide as the image: the column does not matter
        dims = [(ANYWHERE, 0)] * (x.ndim - 3) + [(patch[0], columns), across]
    merged: list[tuple[int, int, int, int, int]] = []
    for i in sorted(range(len(dims)), key=lambda i: (-y.stride(i + 1), -x.stride(i + 1), i)):
        size, x_stride, y_stride, (divisor, step) = x.shape[i + 1], x.stride(i + 1), y.stride(i + 1), dims[i]
        if size == 1:
            continue
        if merged:
            above = merged[-1]
            touching = above[1] == size * x_stride and above[2] == size * y_stride and above[0] * size < 2 ** 31
            if touching and step == 0:  # the inner dimension lies inside a patch: only the outer one decides
                divisor = above[3] * size if above[4] else ANYWHERE
                merged[-1] = (above[0] * size, x_stride, y_stride, divisor, above[4])
                continue
        merged.append((size, x_stride, y_stride, divisor, step))
    return [(1, 0, 0, ANYWHERE, 0)] * (3 - len(merged)) + merged


def launch_arguments(x: torch.Tensor, index: torch.Tensor, y: torch.Tensor, patch: tuple[int, int] | None, scatter: bool) -> tuple[int, dict]:
    """(number of programs, every kernel argument but the pointers, by name)."""
    a, r, q = dimensions(x, y, patch)
    block_r, block_q = tile(a[0] * r[0], q[0], x.element_size())
    run = min(q[3] & -q[3], block_q)  # n & -n is the largest power of two that divides n
    blocks_r, blocks_q = -(-a[0] * r[0] // block_r), -(-q[0] // block_q)  # rounded up
    arguments = dict(
        R=r[0], rows=a[0] * r[0], Q=q[0], blocks_r=blocks_r, blocks_q=blocks_q,
        stride_xb=x.stride(0), stride_xa=a[1], stride_xr=r[1], stride_xq=q[1],
        stride_yb=y.stride(0), stride_ya=a[2], stride_yr=r[2], stride_yq=q[2],
        stride_ib=index.stride(0), stride_ip=index.stride(1), step_a=a[4], step_r=r[4], step_q=q[4],
        DIV_A=a[3], DIV_R=r[3], DIV_Q=q[3], RUN=run, SCATTER=scatter, BLOCK_R=block_r, BLOCK_Q=block_q,
    )
    return x.shape[0] * blocks_r * blocks_q, arguments


def _move_triton(x: torch.Tensor, index: torch.Tensor, patch: tuple[int, int] | None, scatter: bool) -> torch.Tensor:
    y = torch.empty_like(x)  # keeps the layout of x, so both sides are read and written along memory
    bits = SAME_SIZE_INTEGER[x.element_size()]
    programs, arguments = launch_arguments(x, index, y, patch, scatter)
    with device_of(x):
        patch_mix_kernel[(programs,)](x.view(bits), index, y.view(bits), **arguments, **launch_options(num_warps=4))
    return y


# ------------------------------------------------------------------------------------------------ the fast PyTorch form
def _move_torch(x: torch.Tensor, index: torch.Tensor, patch: tuple[int, int] | None, scatter: bool) -> torch.Tensor:
    """Memory seen as rows that lie inside one patch: copy row by row (long rows), or gather machine words (short ones).

    On a CPU this was 1.1 to 7 times as fast as cutting, indexing and putting together, and 2 to 10 times as fast as torch.gather, on the
    sizes of `python -m kernels.bench patch_mix` (one thread).
    """
    if scatter:
        index = index.argsort(dim=0)
    if not (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        x = x.contiguous()
    B, index = x.shape[0], index.long()
    a, r, q = dimensions(x, x, patch)
    run = q[3] if q[4] else q[0]  # elements of the inner dimension that share a patch
    shape = (B, a[0], r[0], q[0] // run)
    word = next(n for n in (8, 4, 2, 1) if run * x.element_size() % n == 0 and x.data_ptr() % n == 0)
    memory = x.as_strided((x.numel(),), (1,)).view(SAME_SIZE_INTEGER[x.element_size()])
    words, per_run = memory.view(SAME_SIZE_INTEGER[word]), run * x.element_size() // word
    place = [torch.arange(d[0], device=x.device) // d[3] * d[4] for d in (a, r)] + [torch.arange(shape[3], device=x.device) * q[4]]
    if a[4] == 0:
        place[0] = place[0][:1]  # the same for every a: one plane of positions serves all channels
    position = place[0][:, None, None] + place[1][:, None] + place[2]  # [A, R, Q/run], or [1, R, Q/run]
    other = index.index_select(1, position.flatten()).view(B, *position.shape)
    if per_run == 1:
        moved = words.view(shape).gather(0, other.expand(shape))
    else:
        per_image = a[0] * r[0] * shape[3]
        rows = torch.add(torch.arange(per_image, device=x.device).view(shape[1:]), other, alpha=per_image)
        moved = words.view(1, -1, per_run).index_select(1, rows.flatten())  # dimension 1: PyTorch copies whole rows there
    return moved.view(-1).view(x.dtype).as_strided(x.shape, x.stride())


# ------------------------------------------------------------------------------------------------ autograd
class _Move(torch.autograd.Function):
    """y = mix(x) or, with scatter, unmix(x); the gradient goes the other way with the same index."""

    @staticmethod
    def forward(ctx, x, index, patch, scatter):
        ctx.save_for_backward(index)
        ctx.patch, ctx.scatter = patch, scatter
        path = path_for(x)
        if x.numel() == 0:
            return torch.empty_like(x)
        if path == "reference":
            return (patch_unmix_reference if scatter else patch_mix_reference)(x, index, patch)
        return (_move_triton if path == "triton" else _move_torch)(x, index, patch, scatter)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return _Move.apply(grad, index, ctx.patch, not ctx.scatter), None, None, None


# ------------------------------------------------------------------------------------------------ public operations
def patch_mix(x: torch.Tensor, index: torch.Tensor, patch: int | tuple[int, int] | None = None, check: bool = True) -> torch.Tensor:
    """y[b, p] = x[index[b, p], p]: every patch of image b comes from image index[b, p], same place.

    x: [B, C, H, W] or [B, H, W] with `patch` (one number or (height, width)), or tokens [B, N, D] with patch=None; any dtype of 1 to 8
    bytes, any strides (nothing is copied first on the Triton path). index: int32 or int64 [B, P], P = (H/patch) * (W/patch) or N, each
    column a permutation of 0 ... B-1. check=False trusts that last property (on CUDA, checking waits for the GPU); shapes are always
    checked. Returns the mixed tensor in the layout of x, bit for bit the elements of x. Differentiable in x, to any order.
    Raises ValueError (shapes, not a permutation) or TypeError (dtypes). Source: MixReorg, section 3 (mixing); see `random_mix_index`.
    """
    return _Move.apply(x, index, _validated(x, index, patch, check), False)


def patch_unmix(x: torch.Tensor, index: torch.Tensor, patch: int | tuple[int, int] | None = None, check: bool = True) -> torch.Tensor:
    """The inverse of `patch_mix` with the same arguments: y[index[b, p], p] = x[b, p]; unmix(mix(x)) equals x bit for bit."""
    return _Move.apply(x, index, _validated(x, index, patch, check), True)


def random_mix_index(batch: int, positions: int, images: int | None = None, generator: torch.Generator | None = None,
                     device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 [B, P]: an independent random permutation at every position, within consecutive groups of `images` (default: the batch)."""
    images = batch if images is None else images
    if images < 1 or batch % images:
        raise ValueError(f"images per mix must divide the batch: batch {batch}, images {images}; choose a divisor or drop the last images")
    order = torch.rand(batch // images, images, positions, generator=generator, device=device).argsort(dim=1)
    first = torch.arange(0, batch, images, device=device).view(-1, 1, 1)
    return (order + first).view(batch, positions)


def mix_labels(index: torch.Tensor, images: int, patch: int | tuple[int, int] | None = None, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Which image of its group (0 ... images-1) every patch was taken from: the label map that mixing gives for free.

    int64 [B, P] for tokens; with patch and size=(H, W), int64 [B, H, W] for the pixels of the mixed images.
    """
    labels = index.long() % images  # [B, P]
    if patch is None:
        return labels
    if size is None:
        raise ValueError("mix_labels with a patch size also needs size=(H, W) of the image, to draw the map at that size")
    height, width = _pair(patch)
    if size[0] % height or size[1] % width or (size[0] // height) * (size[1] // width) != index.shape[1]:
        raise ValueError(f"an image of {size[0]}x{size[1]} in patches of {height}x{width} does not have the {index.shape[1]} positions of the index")
    grid = labels.view(-1, size[0] // height, size[1] // width)
    return grid.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)


def _pair(patch: int | tuple[int, int]) -> tuple[int, int]:
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def _validated(x: torch.Tensor, index: torch.Tensor, patch: int | tuple[int, int] | None, check: bool) -> tuple[int, int] | None:
    """The patch as a pair, or None for tokens; raises the sentence that says what is wrong."""
    if x.element_size() not in SAME_SIZE_INTEGER:
        raise TypeError(f"patch mixing moves elements of 1, 2, 4 or 8 bytes; x is {x.dtype}")
    if patch is None:
        if x.ndim != 3:
            raise ValueError(f"without a patch size x must be tokens [B, N, D]; got shape {tuple(x.shape)}; give patch= for images and masks")
        positions, pair = x.shape[1], None
    else:
        pair = _pair(patch)
        if x.ndim not in (3, 4):
            raise ValueError(f"with a patch size x must be [B, C, H, W] or [B, H, W]; got shape {tuple(x.shape)}")
        if min(pair) < 1:
            raise ValueError(f"patch must be at least 1 pixel high and wide; got {pair[0]}x{pair[1]}")
        H, W = x.shape[-2:]
        if H % pair[0] or W % pair[1]:
            raise ValueError(f"patches of {pair[0]}x{pair[1]} do not tile an image of {H}x{W}; crop or pad to multiples of the patch")
        positions = (H // pair[0]) * (W // pair[1])
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index must be int32 or int64; got {index.dtype}")
    if tuple(index.shape) != (x.shape[0], positions):
        raise ValueError(f"index must be [B, P] = [{x.shape[0]}, {positions}] for x of shape {tuple(x.shape)}; got {tuple(index.shape)}")
    if index.device != x.device:
        raise ValueError(f"index is on {index.device}, x on {x.device}; move the index to {x.device}")
    if check and index.numel():
        wrong = index.sort(dim=0).values != torch.arange(x.shape[0], device=x.device)[:, None]
        if wrong.any():
            position = int(wrong.any(dim=0).nonzero()[0])
            seen = index[:, position].tolist()
            raise ValueError(f"index is not a permutation at position {position}: the images there are {seen[:8]}{' ...' if len(seen) > 8 else ''}, "
                             f"each of 0 to {x.shape[0] - 1} must appear once")
    return pair
