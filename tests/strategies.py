"""hypothesis strategies that several tests share: image sizes, images, label maps, generators."""
import numpy as np
from hypothesis import strategies as st

IGNORE = 255


@st.composite
def sizes(draw, low: int = 1, high: int = 40) -> tuple[int, int]:
    """(H, W): one row, odd, prime, long and thin; small enough to be quick."""
    return draw(st.integers(low, high)), draw(st.integers(low, high))


@st.composite
def label_maps(draw, size=None, classes: int = 21, ignore: str = "some") -> np.ndarray:
    """uint8 [H, W] with labels below `classes`; `ignore`: "none", "some" or "all" of it may be 255 ("some" includes none and all)."""
    height, width = draw(sizes()) if size is None else size
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=6, unique=True))
    labels = rng.choice(np.array(present, np.uint8), (height, width))
    share = {"none": 0.0, "all": 1.0}.get(ignore)
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) if share is None else share
    labels[rng.random((height, width)) < share] = IGNORE
    return labels


@st.composite
def images(draw, size=None) -> np.ndarray:
    """uint8 [H, W, 3]: noise, a flat colour, or black and white."""
    height, width = draw(sizes()) if size is None else size
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "flat", "extreme"]))
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "flat":
        return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (height, width, 3)).copy()
    return (255 * rng.integers(0, 2, (height, width, 3))).astype(np.uint8)


@st.composite
def samples(draw) -> dict:
    """An image with a mask of its size."""
    size = draw(sizes())
    return {"image": draw(images(size)), "mask": draw(label_maps(size)), "name": "drawn", "index": 0}


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label map that both say where a pixel came from: image red = column, green = row; label = 1 + (column + row) % 200."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    return image, (1 + (x + y) % 200).astype(np.uint8)


seeds = st.integers(0, 2**32 - 1)
