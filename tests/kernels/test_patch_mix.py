"""Patch mixing is bit-exact on every path, dtype and layout, and its gradient is the inverse permutation of the upstream gradient."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kernels import backend, patch_mix as module
from kernels.patch_mix import mix_labels, patch_mix, patch_unmix, random_mix_index

PATHS = ["reference", "torch", "triton"]
#        shape                patch     what is special
IMAGES = [((4, 3, 32, 48), (16, 16)),  # power of two
          ((3, 5, 21, 35), (7, 7)),    # odd sizes and an odd patch: no wide loads
          ((2, 17, 1, 13), (1, 1)),    # one row, prime width, patches of one pixel
          ((5, 1, 6, 6), (6, 6)),      # one channel, one patch as large as the image
          ((1, 2, 4, 4), (2, 2)),      # one image: nothing to mix
          ((2, 4, 6, 20), (3, 20)),    # patches as wide as the image
          ((2, 3, 12, 4), (12, 2))]    # patches as high as the image
MASKS = [((3, 20, 28), (4, 4)), ((2, 9, 9), (3, 9))]
TOKENS = [((4, 49, 24), None), ((3, 5, 7), None), ((2, 1, 1), None)]
SHAPES = IMAGES + MASKS + TOKENS
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
LAYOUTS = ["contiguous", "channels_last", "sliced", "batch_inside"]


def values(shape, dtype, seed=0):
    """Every element different wherever the dtype can tell that many apart."""
    x = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(seed)).view(shape)
    return (x % 251).to(dtype) if dtype in (torch.uint8, torch.bool) else x.to(dtype)


def laid_out(x, layout):
    """The same values in other memory: the last of several dimensions first, a window into a larger tensor, the batch innermost."""
    if layout == "channels_last":
        order = (0, 2, 3, 1) if x.ndim == 4 else (0, 2, 1)
        back = (0, 3, 1, 2) if x.ndim == 4 else (0, 2, 1)
        return x.permute(order).contiguous().permute(back)
    if layout == "sliced":
        larger = torch.zeros([n + 3 for n in x.shape], dtype=x.dtype)
        window = larger[tuple(slice(1, n + 1) for n in x.shape)]
        return window.copy_(x)
    if layout == "batch_inside":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x.contiguous()


def index_for(shape, patch, seed=1, images=None):
    positions = shape[1] if patch is None else (shape[-2] // patch[0]) * (shape[-1] // patch[1])
    return random_mix_index(shape[0], positions, images, torch.Generator().manual_seed(seed))


def by_hand(x, index, patch):
    """A second formulation, patch by patch, that shares nothing with the module."""
    y = torch.empty_like(x)
    for b in range(index.shape[0]):
        for p in range(index.shape[1]):
            if patch is None:
                y[b, p] = x[index[b, p], p]
                continue
            columns = x.shape[-1] // patch[1]
            top, left = p // columns * patch[0], p % columns * patch[1]
            place = (..., slice(top, top + patch[0]), slice(left, left + patch[1]))
            y[b][place] = x[index[b, p]][place]
    return y


def name(value):
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, str) else "x".join(map(str, value[0])) + ("-tokens" if value[1] is None else "-p" + "x".join(map(str, value[1])))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHAPES, ids=name)
def test_mix_is_the_definition_in_every_layout(case, layout, path):
    shape, patch = case
    x, index = values(shape, torch.float32), index_for(shape, patch)
    with backend.use(path):
        y = patch_mix(laid_out(x, layout), index, patch)
        back = patch_unmix(laid_out(y, layout), index, patch)
    assert torch.equal(y, by_hand(x, index, patch))
    assert torch.equal(back, x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", [IMAGES[0], IMAGES[1], MASKS[0], TOKENS[0]], ids=name)
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_every_dtype_is_moved_bit_for_bit(case, layout, dtype, path):
    shape, patch = case
    x, index = laid_out(values(shape, dtype), layout), index_for(shape, patch)
    with backend.use(path):
        y = patch_mix(x, index.int(), patch)  # int32 here, int64 in the test above
        back = patch_unmix(y, index.int(), patch)
    assert y.dtype == dtype and torch.equal(y, by_hand(x, index, patch)) and torch.equal(back, x)


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_a_memory_address_that_is_not_a_multiple_of_eight(path):
    """Bytes that start at address 1: the PyTorch path must not read them as 8-byte words."""
    memory = values((2 * 3 * 16 * 16 + 1,), torch.uint8)
    x = memory[1:].view(2, 3, 16, 16)
    index = index_for(x.shape, (8, 8))
    with backend.use(path):
        assert torch.equal(patch_mix(x, index, 8), by_hand(x, index, (8, 8)))


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_not_a_number_travels_with_its_payload(path):
    """Bits, not values: NaNs with different payloads, infinities and negative zero arrive unchanged."""
    bits = torch.tensor([0x7FC00001, 0x7F800001, 0x7F800000, -0x80000000, 1, 0x7FFFFFFF], dtype=torch.int32).repeat(8).view(2, 6, 4)
    index = index_for((2, 6, 4), None)
    with backend.use(path):
        y = patch_mix(bits.view(torch.float32), index)
    assert torch.equal(y.view(torch.int32), by_hand(bits, index, None))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [IMAGES[1], MASKS[0], TOKENS[0]], ids=name)
@pytest.mark.parametrize("operation", [patch_mix, patch_unmix])
def test_gradient_is_the_inverse_move_of_the_upstream_gradient(operation, case, layout, path):
    """Also not the last layer: the operation sits between two nonlinear ones."""
    shape, patch = case
    index, upstream = index_for(shape, patch), laid_out(values(shape, torch.float32, seed=5), layout) / 100
    x = (laid_out(values(shape, torch.float32), layout) / 1000).requires_grad_()
    inverse = index.argsort(0) if operation is patch_mix else index
    forward = index if operation is patch_mix else index.argsort(0)
    with backend.use(path):
        y = operation(x.sin(), index, patch).pow(2)
        (grad,) = torch.autograd.grad(y, x, upstream)
    moved = by_hand(x.detach().sin(), forward, patch)
    expected = by_hand(upstream * 2 * moved, inverse, patch) * x.detach().cos()
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("path", PATHS)
def test_gradcheck_and_second_derivative(path):
    shape = (2, 1, 2, 4) if path == "triton" else (3, 2, 4, 6)  # two calls per element: small in the interpreter
    index = index_for(shape, (2, 2))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with backend.use(path):
        assert torch.autograd.gradcheck(lambda x: patch_mix(x, index, 2).pow(2), x)
        assert torch.autograd.gradcheck(lambda x: patch_unmix(x, index, 2).pow(2), x)
        assert torch.autograd.gradgradcheck(lambda x: patch_mix(x, index, 2).pow(2), x)


@pytest.mark.parametrize("case", SHAPES, ids=name)
@pytest.mark.parametrize("operation", [patch_mix, patch_unmix])
def test_poisoned_outputs_are_overwritten(operation, case, monkeypatch):
    """The kernel's output memory is filled with NaN first."""
    shape, patch = case
    monkeypatch.setattr(module.torch, "empty_like", lambda t, **k: torch.full_like(t, float("nan"), **k))
    with backend.use("triton"):
        y = operation(values(shape, torch.float32), index_for(shape, patch), patch)
    assert not torch.isnan(y).any()


def test_small_tiles_cover_everything(monkeypatch):
    """Tiles as a GPU gets them (several programs per image, ragged edges) instead of the interpreter's huge ones."""
    monkeypatch.setattr(module, "tile", lambda rows, columns, item_bytes: (4, 8))
    for shape, patch in (((2, 3, 6, 20), (3, 4)), ((2, 1, 5, 15), (5, 5)), MASKS[1], TOKENS[1]):
        x, index = values(shape, torch.float32), index_for(shape, patch)
        with backend.use("triton"):
            y = patch_mix(x, index, patch)
            assert torch.equal(y, by_hand(x, index, patch)) and torch.equal(patch_unmix(y, index, patch), x)


def test_tiles_for_a_gpu_hold_eight_kibibytes():
    """Four 16-byte accesses for each of 128 threads, whatever the element size; narrow images get more rows instead."""
    for item_bytes in (1, 2, 4, 8):
        for rows, columns in ((672, 224), (1, 150528), (28, 57344), (100000, 7)):
            block_r, block_q = module.tile(rows, columns, item_bytes, interpreting=False)
            assert block_r * block_q * item_bytes == 8192, (item_bytes, rows, columns, block_r, block_q)


def test_the_inputs_are_left_alone_and_the_layout_is_kept():
    x, index = values((2, 8, 4, 4), torch.float32).to(memory_format=torch.channels_last), index_for((2, 8, 4, 4), (2, 2))
    before, index_before = x.clone(), index.clone()
    for path in ("torch", "triton"):
        with backend.use(path):
            y = patch_mix(x, index, 2)
        assert y.stride() == x.stride() and torch.equal(x, before) and torch.equal(index, index_before)


def test_memory_seen_as_few_long_rows():
    """What the kernel sees of one image: (size, stride in x, stride in y, divisor, step), the fastest dimension last."""
    def seen(x, patch):
        return [d for d in module.dimensions(x, torch.empty_like(x), patch) if d[0] > 1]

    tokens = torch.empty(2, 196, 384)
    assert seen(tokens, None) == [(196 * 384, 1, 1, 384, 1)]  # one vector
    assert seen(torch.empty(2, 197, 384)[:, 1:], None) == [(196 * 384, 1, 1, 384, 1)]  # without the class token: still one
    image = torch.empty(2, 3, 32, 64)
    assert seen(image, (16, 16)) == [(3, 2048, 2048, module.ANYWHERE, 0), (32, 64, 64, 16, 4), (64, 1, 1, 16, 1)]
    last = image.to(memory_format=torch.channels_last)
    assert seen(last, (16, 16)) == [(32, 192, 192, 16, 4), (192, 1, 1, 48, 1)]  # rows of W*C elements
    assert seen(image, (16, 64)) == [(3, 2048, 2048, module.ANYWHERE, 0), (2048, 1, 1, 1024, 1)]  # patches as wide as the image


def test_groups_mix_only_among_themselves():
    index = random_mix_index(6, 40, images=2, generator=torch.Generator().manual_seed(0))
    assert index.dtype == torch.int64 and index.shape == (6, 40)
    for group in range(3):
        assert torch.equal(index[2 * group:2 * group + 2].sort(0).values, torch.tensor([[2 * group], [2 * group + 1]]).expand(2, 40))
    assert 0.3 < (index[0] == 0).float().mean() < 0.7  # both orders occur


def test_labels_say_where_the_pixels_came_from():
    """An image filled with its own number mixes into exactly its label map."""
    index = random_mix_index(4, 6, images=2, generator=torch.Generator().manual_seed(3))
    numbers = (torch.arange(4) % 2).view(4, 1, 1).expand(4, 8, 12)
    assert torch.equal(patch_mix(numbers, index, 4), mix_labels(index, 2, 4, (8, 12)))
    assert torch.equal(mix_labels(index, 2), index % 2)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_in_nothing_out(path):
    with backend.use(path):
        assert patch_mix(torch.empty(0, 3, 4, 4), torch.empty(0, 4, dtype=torch.int64), 2).shape == (0, 3, 4, 4)
        assert patch_unmix(torch.empty(2, 0, 4, 4), index_for((2, 1, 4, 4), (2, 2)), 2).shape == (2, 0, 4, 4)


def test_two_runs_give_the_same_bits():
    x, index = values((4, 3, 32, 48), torch.bfloat16), index_for((4, 3, 32, 48), (16, 16))
    for path in PATHS:
        with backend.use(path):
            assert torch.equal(patch_mix(x, index, 16), patch_mix(x, index, 16))


@settings(max_examples=40)
@given(st.data())
def test_any_shape_patch_and_stride(data):
    """Random sizes, patches, dtypes and strides: permuted, stepped and offset views."""
    number = st.integers(1, 4)
    grid, patch = (data.draw(number), data.draw(number)), (data.draw(number), data.draw(number))
    shape = [data.draw(number), data.draw(st.integers(1, 5)), grid[0] * patch[0], grid[1] * patch[1]]
    if data.draw(st.booleans()):
        del shape[1]
    dtype = data.draw(st.sampled_from(DTYPES))
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.integers(1, 2)) for _ in shape]
    memory = torch.zeros([shape[d] * steps[d] for d in order], dtype=dtype)
    x = memory.permute([order.index(d) for d in range(len(shape))])[tuple(slice(None, None, s) for s in steps)]
    x.copy_(values(shape, dtype))
    index = index_for(shape, patch, seed=data.draw(st.integers(0, 9)))
    expected = by_hand(x, index, patch)
    for path in ("torch", "triton"):
        with backend.use(path):
            y = patch_mix(x, index, patch)
            assert torch.equal(y, expected) and torch.equal(patch_unmix(y, index, patch), x)


INDEX = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])
IMAGE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize("arguments, error, sentence", [
    ((torch.zeros(2, 3, 5, 4), INDEX, 2), ValueError, "patches of 2x2 do not tile an image of 5x4"),
    ((torch.zeros(2, 3, 4, 6), INDEX, (2, 4)), ValueError, "patches of 2x4 do not tile an image of 4x6"),
    ((IMAGE, INDEX, 0), ValueError, "at least 1 pixel high and wide; got 0x0"),
    ((IMAGE, INDEX), ValueError, r"must be tokens \[B, N, D\]; got shape \(2, 3, 4, 4\)"),
    ((torch.zeros(2, 4), INDEX, 2), ValueError, r"must be \[B, C, H, W\] or \[B, H, W\]; got shape \(2, 4\)"),
    ((IMAGE, INDEX.float(), 2), TypeError, "index must be int32 or int64; got torch.float32"),
    ((IMAGE, INDEX[:, :3], 2), ValueError, r"index must be \[B, P\] = \[2, 4\].*got \(2, 3\)"),
    ((IMAGE, INDEX[:1], 2), ValueError, r"got \(1, 4\)"),
    ((IMAGE, torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]), 2), ValueError, r"not a permutation at position 2: the images there are \[0, 0\]"),
    ((IMAGE, INDEX + 1, 2), ValueError, r"not a permutation at position 0: the images there are \[1, 2\], each of 0 to 1 must appear once"),
    ((IMAGE, INDEX - 1, 2), ValueError, r"not a permutation at position 0: the images there are \[-1, 0\]"),
    ((IMAGE.to(torch.complex128), INDEX, 2), TypeError, "1, 2, 4 or 8 bytes; x is torch.complex128"),
    ((IMAGE, INDEX.to("meta"), 2), ValueError, "index is on meta, x on cpu"),
])
@pytest.mark.parametrize("operation", [patch_mix, patch_unmix])
def test_bad_input_is_told_in_one_sentence(operation, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        operation(*arguments)


def test_bad_groups_and_label_sizes_are_told():
    with pytest.raises(ValueError, match="must divide the batch: batch 6, images 4"):
        random_mix_index(6, 4, images=4)
    with pytest.raises(ValueError, match="needs size="):
        mix_labels(INDEX, 2, 2)
    with pytest.raises(ValueError, match="an image of 4x8 in patches of 2x2 does not have the 4 positions"):
        mix_labels(INDEX, 2, 2, (4, 8))


def test_unchecked_index_is_trusted():
    """check=False skips the permutation test and nothing else."""
    twice = torch.zeros(2, 4, dtype=torch.int64)
    with backend.use("torch"):
        assert torch.equal(patch_mix(IMAGE, twice, 2, check=False), IMAGE)
    with pytest.raises(ValueError, match="index must be"):
        patch_mix(IMAGE, twice[:, :2], 2, check=False)
