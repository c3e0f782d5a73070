"""The pictures of lesson 04: python -m lessons.figures.make_crf writes lessons/figures/crf_*.png."""
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kernels import backend
from kernels.crf_tiles import hilbert_order
from kernels.dense_crf import Bilateral, Gaussian, gaussian_message, mean_field, pixel_features
from kernels.permutohedral import lattice_chain
from seglite.charts import INK, MUTED, SMALL, Canvas, line_chart
from seglite.pictures import scaled

HERE = Path(__file__).parent
COLOURS = np.array([[238, 238, 238], [0, 114, 178], [230, 159, 0]], np.uint8)
SIDE = 64
KERNELS = (Gaussian(1.0, 3.0), Bilateral(9.0, 10.0, 4.0))  # VOC's weights, sxy scaled to the picture


def toy(seed: int = 1, noise: float = 11.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A disc and a bent bar on a noisy ground. image [1, 3, 64, 64], truth [64, 64], and the unary of a blurred network [1, 3, 64, 64]."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    truth = torch.zeros(SIDE, SIDE, dtype=torch.long)
    truth[((x - 20) ** 2 + (y - 24) ** 2).float().sqrt() < 14 + 2 * torch.sin(torch.atan2(y - 24.0, x - 20.0) * 5)] = 1
    truth[(x - 42 - 6 * torch.sin(y / 9.0)).abs() < 4] = 2
    colour = torch.tensor([[120.0, 120, 120], [170, 110, 110], [110, 110, 170]])
    image = colour[truth].permute(2, 0, 1) + torch.randn(3, SIDE, SIDE, generator=g) * noise
    share = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1)[None].float()
    coarse = torch.nn.functional.avg_pool2d(share, 8) * 4 + torch.randn(1, 3, 8, 8, generator=g) * 0.8
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return image.clamp(0, 255)[None], truth, -torch.log_softmax(fine, 1)


def refined(unary, image, kernels, **options) -> torch.Tensor:
    with backend.use("torch"):
        return mean_field(unary, image, kernels, method="exact", **options)


def show(canvas: Canvas, picture: np.ndarray, x: float, y: float, title: str, note: str = "", size: int = 208) -> None:
    canvas.paste(Image.fromarray(scaled(np.ascontiguousarray(picture), (size, size), smooth=False)), x, y)
    canvas.text(x, y + size + 6, title, SMALL, INK, bold=True)
    canvas.text(x, y + size + 24, note, SMALL, MUTED)


def problem() -> Image.Image:
    image, truth, unary = toy()
    photo = image[0].permute(1, 2, 0).byte().numpy()
    canvas = Canvas(900, 256)
    before, weak = unary.argmin(1)[0], refined(unary, image, KERNELS[:1]).argmax(1)[0]
    after = refined(unary, image, KERNELS).argmax(1)[0]
    show(canvas, photo, 0, 0, "image", "colours overlap in the noise")
    for i, (name, labels) in enumerate((("network at 1/8", before), ("smoothness only", weak), ("dense CRF", after))):
        show(canvas, COLOURS[labels.numpy()], 230 * (i + 1), 0, name, f"{float((labels != truth).float().mean()):.1%} of pixels wrong")
    return canvas.done()


def heat(row: torch.Tensor) -> np.ndarray:
    """A row of K as a picture: white 0, dark 1."""
    value = row.view(SIDE, SIDE).clamp(0, 1).sqrt()[..., None].numpy()
    return (255 - value * (255 - np.array([0, 60, 110]))).astype(np.uint8)


def idea() -> Image.Image:
    """To whom does one pixel listen? A row of K, three ways."""
    image, _, _ = toy(noise=5.0)
    row, column = 40, 34
    pixel = row * SIDE + column
    photo = image[0].permute(1, 2, 0).byte().numpy().copy()
    frame = np.zeros((5, 5, 1), bool)
    frame[[0, -1]] = frame[:, [0, -1]] = True
    part = photo[row - 2:row + 3, column - 2:column + 3]
    part[...] = np.where(frame, 255, part)
    features = pixel_features(image, 9.0, 10.0)
    one = torch.zeros(1, SIDE * SIDE, 1)
    one[0, pixel] = 1
    with backend.use("torch"):
        near = gaussian_message(features[..., :2].contiguous(), one)[0, :, 0]
        both = gaussian_message(features, one)[0, :, 0]
    lattice = lattice_chain(features[0])(one[0])[:, 0]
    canvas = Canvas(900, 256)
    show(canvas, photo, 0, 0, "one pixel asks", "it lies on the edge of the bar")
    show(canvas, heat(near), 230, 0, "near", "position alone crosses edges")
    show(canvas, heat(both), 460, 0, "near and alike", "one row of K: along the bar")
    show(canvas, heat(lattice), 690, 0, "the lattice's row", "same shape, weaker")
    return canvas.done()


def tiles() -> Image.Image:
    """Live tiles of the score matrix, in raster order and along the Hilbert curve."""
    image, _, _ = toy(noise=5.0)
    features = pixel_features(image, 12.0, 10.0)[0]
    canvas = Canvas(900, 272)
    for i, (name, order) in enumerate((("raster order", torch.arange(SIDE * SIDE)), ("Hilbert order in (x, y, r, g, b)", hilbert_order(features)))):
        boxes = features[order].view(-1, 16, 5)
        low, high = boxes.amin(1), boxes.amax(1)
        gap = torch.maximum(low[:, None] - high, low - high[:, None]).clamp_min(0).pow(2).sum(-1)
        live = gap <= 9.2
        picture = np.where(live[..., None].numpy(), np.array([0, 114, 178]), 245).astype(np.uint8)
        show(canvas, picture, 310 * i, 0, name, f"{float(live.float().mean()):.0%} of tile pairs to visit", 224)
    words = ("Rows and columns: tiles of 16 pixels.", "White: the two tiles' bounding boxes are", "further apart than squared distance 9.2,",
             "so every kernel value in there is", "below exp(-4.6) = 0.01.", "", "Sorting costs one argsort; the labelling", "does not depend on the order at all.")
    for i, line in enumerate(words):
        canvas.text(620, 6 + 22 * i, line, SMALL, INK)
    return canvas.done()


def voc() -> Image.Image:
    """mIoU in bands around the true outlines of 225 photographs, from the recorded evaluation."""
    rows = json.loads((HERE.parent / "records/voc-crf.json").read_text())["the half that was not searched"]
    names = {"scores": "the network", "deeplab-voc": "with deeplab-voc", "pydensecrf-readme": "with pydensecrf-readme"}
    bands = [int(width) for width in rows["scores"]["trimap_miou"]]
    return line_chart({name: (bands, [100 * v for v in rows[row]["trimap_miou"].values()]) for row, name in names.items()},
                      x="band around the true outline, pixels", y="mIoU inside it, percent", size=(720, 360), markers=True, log_x=True)


def main() -> None:
    for name, picture in (("problem", problem()), ("idea", idea()), ("tiles", tiles()), ("voc", voc())):
        picture.convert("P", palette=Image.ADAPTIVE, colors=96).save(HERE / f"crf_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
