"""The dense CRF on a CPU: seconds against pydensecrf's C++ on photographs, and where ours go, stage by stage.

    python -m kernels.bench_crf im1.png im2.png im3.png                # --threads 1 --rounds 5 --json crf.json
    python -m kernels.bench_crf photographs/*.jpg --exact              # no times: how many labels are wrong; 13 CPU-seconds a photograph

Six cases for three photographs: each is resized to 500 x 375, with smooth random scores of 21 labels (a stride-8 network's, say), 10 updates,
symmetric normalisation, and the parameters of pydensecrf's README (80/13, smoothness 3) and of DeepLab (67/3, smoothness 1). Set-up is
included, the part that depends on the image size alone too: it is thrown away before every call ("again" keeps it, as the second image of a
size does).

Ours and pydensecrf take turns in one process. With one thread a line gives CPU seconds, which other processes disturb least; with more it gives
wall-clock seconds, which mean something on a quiet machine only. A time is the least of the rounds. pydensecrf always runs on one thread, and is
left out where nobody has built it.

`--exact` compares the labels after ten updates with those of the sum over all pairs of pixels in float64, written out below without any of the
package's filters. Every update needs every pixel's last one, so a sample of the pixels would not do: the photographs are made 100 x 75 instead.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Callable

import torch

from kernels import permutohedral
from kernels.dense_crf import Bilateral, Gaussian, _prepare, mean_field, pixel_features

SETTINGS = {"80/13": (Gaussian(3.0, 3.0), Bilateral(80.0, 13.0, 10.0)), "67/3": (Gaussian(1.0, 3.0), Bilateral(67.0, 3.0, 4.0))}
EXACT_PIXELS = 12_000
INSTALLED = importlib.util.find_spec("pydensecrf") is not None


def pydensecrf(unary: torch.Tensor, image: torch.Tensor, kernels: tuple[Gaussian, Bilateral], iterations: int = 10) -> torch.Tensor:
    """The C++ of Krahenbuhl and Koltun behind its Python wrapper, both for one image: unary [1, K, H, W], image [1, 3, H, W] -> [1, K, H, W]."""
    import numpy as np
    from pydensecrf import densecrf  # a peer to measure against where someone has built it; nothing here depends on it

    _, k, h, w = unary.shape
    smooth, colour = kernels
    crf = densecrf.DenseCRF2D(w, h, k)
    crf.setUnaryEnergy(unary[0].flatten(1).contiguous().numpy())
    crf.addPairwiseGaussian(sxy=smooth.sxy, compat=smooth.weight)
    picture = image[0].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()
    crf.addPairwiseBilateral(sxy=colour.sxy, srgb=colour.srgb, rgbim=picture, compat=colour.weight)
    return torch.from_numpy(np.array(crf.inference(iterations))).view(1, k, h, w)


def scene(path: Path, labels: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [1, K, H, W] and the photograph [1, 3, H, W] uint8 at `size` (width, height)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        image = torch.from_numpy(np.array(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))).permute(2, 0, 1)[None]
    width, height = size
    coarse = np.random.default_rng(0).normal(size=(labels, height // 8 + 2, width // 8 + 2)).astype(np.float32)
    scores = np.stack([np.array(Image.fromarray(c).resize(size, Image.Resampling.BILINEAR)) for c in coarse]) * 3
    return -torch.log_softmax(torch.from_numpy(scores), 0).clamp(min=-11.5)[None], image.contiguous()


def exact(unary: torch.Tensor, image: torch.Tensor, kernels: tuple[Gaussian, Bilateral], iterations: int = 10) -> torch.Tensor:
    """Mean field over all pairs of pixels in float64, the matrix in memory: unary [1, K, H, W], image [1, 3, H, W] -> [1, K, H, W]."""
    smooth, colour = kernels
    prior = -unary[0].double().flatten(1).t()  # [N, K]
    messages = torch.zeros(len(prior), len(prior), dtype=torch.float64)  # [N, N]
    for kernel, channels, srgb in ((smooth, 0, ()), (colour, 3, colour.srgb)):
        features = pixel_features(image[:, :channels].double(), kernel.sxy, srgb)[0]  # [N, 2 + channels]
        pairs = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(-0.5).exp_()  # [N, N]
        root = pairs.sum(1).rsqrt()  # [N]
        messages += pairs.mul_(root).mul_(kernel.weight * root[:, None])
    q = torch.softmax(prior, 1)  # [N, K]
    for _ in range(iterations):
        q = torch.softmax(prior + messages @ q, 1)  # [N, K]
    return q.t().view(unary.shape)


def wrong_labels(unary: torch.Tensor, image: torch.Tensor, kernels: tuple[Gaussian, Bilateral]) -> dict[str, float]:
    """The share of labels that differ from the exact sum's, of ours and of pydensecrf where it is installed."""
    truth = exact(unary, image, kernels).argmax(1)
    found = {"ours": mean_field(unary, image, kernels, method="lattice")} | ({"pydensecrf": pydensecrf(unary, image, kernels)} if INSTALLED else {})
    return {name: float((q.argmax(1) != truth).float().mean()) for name, q in found.items()}


class Watch:
    """CPU seconds of this process for one thread, else wall-clock seconds."""

    def __init__(self, threads: int):
        self.now = time.process_time if threads == 1 else time.perf_counter
        self.best: dict[str, float] = {}

    def __call__(self, name: str, call: Callable, repeats: int = 1):
        """The result of `call`, whose least time is kept under `name`."""
        for _ in range(repeats):
            start = self.now()
            result = call()
            self.best[name] = min(self.best.get(name, float("inf")), self.now() - start)
        return result


def measure(unary: torch.Tensor, image: torch.Tensor, kernels: tuple, threads: int, rounds: int) -> dict:
    """One case: seconds of pydensecrf, of ours, of ours again; the ratio; the share of labels that differ."""
    watch = Watch(threads)
    ours = theirs = None
    for _ in range(rounds):
        if INSTALLED:
            theirs = watch("pydensecrf", lambda: pydensecrf(unary, image, kernels))
        permutohedral.grid_chain.cache_clear()
        ours = watch("ours", lambda: mean_field(unary, image, kernels, method="lattice"))
        watch("again", lambda: mean_field(unary, image, kernels, method="lattice"))
    row = dict(watch.best)
    if theirs is not None:
        row["ratio"] = row["pydensecrf"] / row["ours"]
        row["differ"] = float((ours.argmax(1) != theirs.argmax(1)).float().mean())
    return row


def stages(unary: torch.Tensor, image: torch.Tensor, kernels: tuple[Gaussian, Bilateral], threads: int, rounds: int) -> dict[str, float]:
    """Seconds of every step of one call with 10 updates, each step measured alone: what `mean_field` does, in the same order."""
    smooth, colour = kernels
    size, sxy = tuple(unary.shape[2:]), (smooth.sxy, smooth.sxy)
    watch = Watch(threads)

    def step(name, call):
        return watch(name, call, rounds)

    prior, _ = step("energies by pixel", lambda: _prepare(unary, image, kernels, 10, None, "symmetric", "lattice"))
    features = step("features", lambda: pixel_features(image.float(), colour.sxy, colour.srgb)[0])
    keys, _, _ = step("simplices and keys", lambda: permutohedral.corner_keys(features))
    step("sort of the keys", lambda: torch.sort(keys.view(-1)))
    lattice = step("lattice, with the two above", lambda: permutohedral.lattice_chain(features))
    lattice = step("normalise the lattice", lambda: lattice.normalized("symmetric")).to(torch.float16)
    grid = step("smoothness grid", lambda: permutohedral.grid_chain.__wrapped__(*size, sxy, normalization="symmetric")).to(torch.float16)
    q = torch.softmax(prior[0], 1).half()

    def chain(name, of):
        table = step(f"10 x {name} splat", lambda: of.splat(q))
        source = table

        def blur():
            table = source
            for bag in of.blur:
                table = bag(table)
            return table
        table = step(f"10 x {name} blur", blur)
        block = permutohedral.LOOP_BLOCK * threads
        step(f"10 x {name} slice", lambda: [of.slice[start:start + block](table) for start in range(0, len(q), block)])

    for name, of in (("lattice", lattice), ("smoothness", grid)):
        chain(name, of)
    step("10 x softmax", lambda: permutohedral.mean_field_on_chains(prior[0], [], [], 1))
    best = {name: seconds * (10 if name.startswith("10 x") else 1) for name, seconds in watch.best.items()}
    best["10 x softmax"] /= 2  # the call above does it twice
    parts = sum(seconds for name, seconds in best.items() if name not in ("simplices and keys", "sort of the keys"))
    whole = Watch(threads)
    whole("whole", lambda: mean_field(unary, image, kernels, method="lattice"), rounds)
    return {**best, "sum": parts, "whole call": whole.best["whole"]}


def summary(wrong: list[dict[str, float]]) -> str:
    """What several photographs say together: single ones differ by more than the two programs do."""
    means = ", ".join(f"{who} {sum(row[who] for row in wrong) / len(wrong):.2%}" for who in wrong[0])
    closer = f"; ours the closer one on {sum(row['ours'] < row['pydensecrf'] for row in wrong)}" if "pydensecrf" in wrong[0] else ""
    return f"mean of {len(wrong)} photographs: {means}{closer}"


def report_wrong_labels(given: argparse.Namespace, machine: dict, size: tuple[int, int]) -> int:
    """The table of `--exact`, printed and written."""
    print(f"labels that differ from the exact float64 sum's after 10 updates; {given.labels} labels, {given.size}, torch {machine['torch']}, "
          f"{machine['date']}")
    rows = []
    for name in [given.settings] if given.settings else SETTINGS:
        for path in given.photographs:
            wrong = wrong_labels(*scene(path, given.labels, size), SETTINGS[name])
            rows.append({"photograph": path.name, "settings": name, "wrong": wrong})
            print(f"{name:6} {path.name:10} " + "   ".join(f"{who} {share:.2%}" for who, share in wrong.items()), flush=True)
        print(f"{name:6} {summary([row['wrong'] for row in rows if row['settings'] == name])}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "size": given.size, "rows": rows}, indent=1) + "\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    from kernels.bench import describe_machine

    parser = argparse.ArgumentParser(prog="python -m kernels.bench_crf",
                                     description="The CPU dense CRF against pydensecrf on photographs, and by stage.")
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--exact", action="store_true", help="the share of wrong labels against the exact sum in float64, instead of times")
    parser.add_argument("--size", help="pixels, width x height (default: 500x375, with --exact 100x75)")
    parser.add_argument("--labels", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", choices=tuple(SETTINGS), help="only these parameters")
    parser.add_argument("--no-stages", action="store_true", help="leave out the second table")
    parser.add_argument("--json", type=Path, help="write the record here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.size = given.size or ("100x75" if given.exact else "500x375")
    width, height = (int(v) for v in given.size.split("x"))
    machine = describe_machine("cpu")
    if given.exact:
        if width * height > EXACT_PIXELS:
            parser.error(f"--exact keeps two matrices of pixels x pixels in float64: {given.size} would take {16e-9 * (width * height) ** 2:.0f} GB; "
                         f"at most {EXACT_PIXELS} pixels, e.g. --size 100x75")
        return report_wrong_labels(given, machine, (width, height))
    clock = "CPU seconds" if given.threads == 1 else "wall-clock seconds"
    print(f"{machine['name']}, torch {machine['torch']}, {given.threads} thread(s), {machine['date']}; {given.labels} labels, {given.size}; {clock}, "
          f"least of {given.rounds} rounds; pydensecrf {'by turns' if INSTALLED else 'is not installed'}")
    rows, tables = [], {}
    for name in [given.settings] if given.settings else SETTINGS:
        for path in given.photographs:
            unary, image = scene(path, given.labels, (width, height))
            row = measure(unary, image, SETTINGS[name], given.threads, given.rounds)
            rows.append({"photograph": path.name, "settings": name, **row})
            peer = f"pydensecrf {row['pydensecrf']:.3f}   ratio {row['ratio']:.2f}   labels that differ {row['differ']:.2%}" if INSTALLED else ""
            print(f"{name:6} {path.name:10} ours {row['ours']:.3f} (again {row['again']:.3f})   {peer}", flush=True)
            if not given.no_stages:
                tables[f"{name} {path.name}"] = stages(unary, image, SETTINGS[name], given.threads, given.rounds)
    if INSTALLED:
        total = {key: sum(row[key] for row in rows) for key in ("pydensecrf", "ours")}
        print(f"together: pydensecrf {total['pydensecrf']:.2f}, ours {total['ours']:.2f}, ratio {total['pydensecrf'] / total['ours']:.2f}; "
              f"least ratio {min(row['ratio'] for row in rows):.2f}")
    if tables:
        print("\nmilliseconds by stage" + "".join(f"{name:>18}" for name in tables))
        for stage in next(iter(tables.values())):
            print(f"{stage:28}" + "".join(f"{1e3 * table[stage]:11.1f}       " for table in tables.values()))
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "clock": clock, "rows": rows, "stages": tables}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
