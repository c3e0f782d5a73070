"""The picture at the top of README: python -m seglite.train method=marsstyle && python -m lessons.figures.make_readme runs/marsstyle-scenes"""
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from seglite.charts import BODY, INK, Canvas
from seglite.config import parse
from seglite.data import DELETED, LabelMaps, open_data
from seglite.pictures import colourise, scaled
from seglite.train import METHODS

HERE = Path(__file__).parent
SIDE, GAP, HEAD = 208, 14, 30


def hatched(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A label map in colours; deleted pixels get diagonal stripes."""
    picture = colourise(np.where(labels == DELETED, 0, labels), palette)
    y, x = np.indices(labels.shape)
    picture[(labels == DELETED) & ((x + y) % 4 < 2)] = (236, 238, 242)
    picture[(labels == DELETED) & ((x + y) % 4 >= 2)] = (120, 128, 140)
    return picture


def panels(run: Path) -> Image.Image:
    settings, _ = parse(["method=marsstyle"], METHODS)
    data = open_data(settings, "train")
    names = [data.name(i) for i in range(len(data))]
    biased, debiased = (LabelMaps(run / folder, names) for folder in ("biased_labels", "debiased_labels"))
    problem = [data.classes.index(c) for c in ("train", "boat")]
    gain = []
    for i in range(400):  # pictures with one object, whose label the deletion helped most
        truth = data.read(i, ("mask",))["mask"]
        if set(np.unique(truth)) <= {0, problem[0]} or set(np.unique(truth)) <= {0, problem[1]}:
            wrong = (biased[i] > 0) & (truth == 0)
            gone = debiased[i] == DELETED
            gain.append(((wrong & gone).sum() - 3 * (gone & (truth > 0)).sum(), int(truth.max()), i))
    gain.sort(reverse=True)
    shown = [i for kind in problem for _, c, i in [g for g in gain if g[1] == kind][2:3]]
    canvas = Canvas(4 * SIDE + 3 * GAP, HEAD + len(shown) * (SIDE + GAP) - GAP)
    for column, title in enumerate(("image, tagged only", "what a classifier says", "after debiasing", "truth")):
        canvas.text(column * (SIDE + GAP), 6, title, BODY, INK, bold=True)
    for row, i in enumerate(shown):
        sample = data.read(i, ("image", "mask"))
        tiles = (sample["image"], colourise(biased[i], data.palette), hatched(debiased[i], data.palette), colourise(sample["mask"], data.palette))
        for column, tile in enumerate(tiles):
            canvas.paste(Image.fromarray(scaled(tile, (SIDE, SIDE), smooth=False)), column * (SIDE + GAP), HEAD + row * (SIDE + GAP))
    return canvas.done()


if __name__ == "__main__":
    panels(Path(sys.argv[1])).quantize(160, dither=Image.Dither.NONE).save(HERE / "readme_idea.png", optimize=True)
