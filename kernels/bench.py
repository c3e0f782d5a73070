"""Measure every kernel against what a user would pick instead, next to what the machine itself can do.

    python -m kernels.bench                              # every kernel; on a machine without CUDA: the CPU paths
    python -m kernels.bench patch_mix --json bench.json
    python -m kernels.bench patch_mix --unchecked        # skip the ladder; the JSON says so

How it measures. All candidates of a case see the same inputs and must agree on the result before any of them is timed. They are
timed interleaved (ours, peer, peer, ours, ...), so that a busy or throttling machine hurts all alike; a table entry is the median over
the rounds, a ratio is the median of the ratios within the rounds. On CUDA the L2 cache is overwritten before each sample. The
roofline (copy bandwidth, bf16 matmul rate, exponentials per second) is measured in the same run, on the same device: no data-sheet numbers.
A case says what must be moved and computed at least; the best possible time is the slowest of the three. Aims are written down before the
measurement; losses are printed and stored like wins.

Benchmarks of wrong kernels are worthless: unless --unchecked is given, the run starts with `kernels.ladder` (whose last result is reused
when no source file changed) and stops when a rung is red.

How to add a kernel: write `<file>_cases(device) -> list[Case]` in the section below (one per kernel file, import the kernel inside it)
and name it in CASES. `build` makes the inputs (lazily: cases run one after another and free their memory) and returns the candidates.
"""
from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any, Callable

import torch

from kernels import backend
from kernels.roofline import Candidate, Clock, interleaved, roofline


@dataclasses.dataclass(frozen=True)
class Aim:
    """What was hoped for before measuring."""

    against: str
    """A peer's name: at least `value` times as fast as it. "best peer": as the fastest of them. "roofline": at least this fraction of
    the best possible speed. "milliseconds": at most this long."""
    value: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem size with its rivals."""

    name: str
    """`<kernel file>/<size and dtype>`."""
    build: Callable[[], tuple[Candidate, dict[str, Candidate]]]
    """Makes inputs; returns our call and the peers' calls by name. Each call returns its result (a tensor or a tuple of tensors)."""
    bytes: float = 0.0
    """Memory that any implementation must move: every input read once, every output written once."""
    flops: float = 0.0
    """Tensor-core operations that any implementation must do (a multiply-add counts two)."""
    exps: float = 0.0
    """Exponentials that any implementation must take."""
    aims: tuple[Aim, ...] = ()
    agree: float = 0.0
    """Largest root-mean-square difference between candidates, relative to the RMS of ours; 0 asks for equal bits."""
    approximate: tuple[str, ...] = ()
    """Peers that solve another problem on purpose (approximations): timed, difference reported, not required to agree."""


# ------------------------------------------------------------------------------------------------ cases, one section per kernel file
def atrous_conv_cases(device: str) -> list[Case]:
    """DeepLab v2's heads and its dilated blocks, forward alone and with the backward pass. Peers: cuDNN (or oneDNN) through F.conv2d, in both
    memory layouts, ASPP as one call per branch and additions. The floor counts every tap, as the peers do, and x once."""
    import torch.nn.functional as F

    from kernels.atrous_conv import aspp, atrous_conv

    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32

    def branches(x, weights, biases, rates):
        y = F.conv2d(x, weights[0], biases[0], padding=rates[0], dilation=rates[0])
        for weight, bias, rate in zip(weights[1:], biases[1:], rates[1:]):
            y = y + F.conv2d(x, weight, bias, padding=rate, dilation=rate)
        return y

    def case(name, x_shape, n_out, rates, backward, groups=1, aims=(), agree=2e-2):
        batch, channels, height, width = x_shape

        def build():
            generator = torch.Generator(device).manual_seed(0)
            x = torch.randn(x_shape, generator=generator, device=device).to(dtype)  # [B, C, H, W]
            scale = (9 * channels // groups) ** -0.5
            w = torch.randn(len(rates), n_out, channels // groups, 3, 3, generator=generator, device=device).mul(scale).to(dtype)
            b = torch.zeros(len(rates), n_out, device=device, dtype=dtype)
            g = torch.randn(batch, n_out, height, width, generator=generator, device=device).to(dtype)  # [B, O, H, W]
            torch.backends.cudnn.benchmark = True  # the peer's best algorithm, found in its warm-up call

            def candidate(function, layout):
                leaves = [x.to(memory_format=layout, copy=True).requires_grad_(backward), w.clone().requires_grad_(backward)]
                upstream = g.to(memory_format=layout)

                def call():
                    with torch.set_grad_enabled(backward):
                        y = function(*leaves)
                    return (y.detach(), *torch.autograd.grad(y, leaves, upstream)) if backward else y
                return call

            last, rows = torch.channels_last, torch.contiguous_format
            if groups > 1 or len(rates) == 1:
                r = rates[0]
                ours = lambda x, w: atrous_conv(x, w[0], b[0], padding=r, rate=r, groups=groups)  # noqa: E731
                peer = lambda x, w: F.conv2d(x, w[0], b[0], padding=r, dilation=r, groups=groups)  # noqa: E731
            else:
                ours, peer = lambda x, w: aspp(x, w, b, rates), lambda x, w: branches(x, w, b, rates)
            peers = {"F.conv2d channels-last": candidate(peer, last), "F.conv2d contiguous": candidate(peer, rows)}
            return candidate(ours, last if cuda else rows), peers

        size = torch.finfo(dtype).bits // 8
        passes = 3 if backward else 1
        weights = len(rates) * n_out * channels // groups * 9
        maps = batch * height * width * (channels + n_out)
        return Case(f"atrous_conv/{name}-{'training' if backward else 'forward'}-{str(dtype).removeprefix('torch.')}", build,
                    bytes=size * (maps + weights) * (2 if backward else 1),
                    flops=passes * 2.0 * batch * height * width * weights, aims=aims, agree=agree)

    pyramid = (6, 12, 18, 24)
    if not cuda:
        return [case(f"aspp-{c}-{o}-{n}x{h}x{h}", (n, c, h, h), o, rates, backward, aims=(Aim("best peer", 1.0),), agree=1e-4)
                for n, c, o, h, rates in ((1, 2048, 21, 41, pyramid), (8, 256, 11, 33, pyramid), (8, 128, 64, 32, (2, 4, 8, 12)))
                for backward in (False, True)]
    found = []
    for backward in (False, True):
        found += [
            case("aspp-2048-256-8x65x65", (8, 2048, 65, 65), 256, pyramid, backward, aims=(Aim("best peer", 1.1),)),
            case("aspp-2048-21-8x65x65", (8, 2048, 65, 65), 21, pyramid, backward, aims=(Aim("best peer", 2.0),)),
            case("aspp-2048-21-1x41x41", (1, 2048, 41, 41), 21, pyramid, backward, aims=(Aim("best peer", 2.0),)),
            case("conv-512-512-rate4-8x65x65", (8, 512, 65, 65), 512, (4,), backward, aims=(Aim("best peer", 1.0),)),
            case("depthwise-960-rate2-8x65x65", (8, 960, 65, 65), 960, (2,), backward, groups=960, aims=(Aim("best peer", 1.0),)),
        ]
    return found


def axial_attention_cases(device: str) -> list[Case]:
    """One axis of an axial layer against SDPA on permuted copies; with relative tables against einsum (eager, compiled) and FlexAttention;
    P2AT's squeeze against its description in PyTorch. Forward, and forward with backward."""
    from kernels.axial_attention import RelativePositions, axial_attention, axial_attention_reference
    from kernels.squeeze_axial import squeeze_axial_attention

    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    B, G, L, D = (8, 8, 64, 64) if cuda else (2, 8, 48, 32)

    def with_backward(attend, leaves, upstream):
        def call():
            return torch.autograd.grad(attend(), leaves, upstream)
        return call

    def case(axis, layout, relative, backward, length=L):
        def build():
            generator = torch.Generator().manual_seed(0)

            def a_map():
                if layout == "nhwc":
                    x = torch.randn(B, length, length, G, D, generator=generator).to(device, dtype).permute(0, 3, 1, 2, 4)
                else:
                    x = torch.randn(B, G, D, length, length, generator=generator).to(device, dtype).permute(0, 1, 3, 4, 2)
                return x.requires_grad_(backward)

            q, k, v = (a_map() for _ in range(3))
            upstream = a_map().detach()
            tables = [torch.randn(2 * length - 1, D, generator=generator).to(device, dtype).mul(0.3).requires_grad_(backward)
                      for _ in range(3 * relative)]
            positions = RelativePositions(*tables)

            def sdpa_on_copies():
                lines = [(t if axis == "row" else t.transpose(2, 3)).contiguous().view(B, G * length, length, D) for t in (q, k, v)]  # [B, M, L, D]
                out = torch.nn.functional.scaled_dot_product_attention(*lines).view(B, G, length, length, D)
                return out if axis == "row" else out.transpose(2, 3).contiguous()

            def einsum():
                return axial_attention_reference(q, k, v, axis, D ** -0.5, positions)

            peers = {"einsum": einsum} if relative else {"SDPA on copies": sdpa_on_copies}
            if relative and cuda:
                peers["compiled einsum"] = torch.compile(einsum)
                if not backward:
                    peers |= flex_peer(q, k, v, positions, axis)
            calls = {"ours": lambda: axial_attention(q, k, v, axis, relative=positions), **peers}
            if backward:
                calls = {name: with_backward(call, [q, k, v, *tables], upstream) for name, call in calls.items()}
            return calls.pop("ours"), calls

        moved = B * G * length * length * D * dtype.itemsize
        work = 2.0 * 2 * B * G * length ** 3 * D * (2.5 if relative else 1)
        name = f"{axis}-{layout}-L{length}{'-relative' if relative else ''}{'-with-backward' if backward else ''}"
        aims = () if not cuda else (Aim("best peer", 2.0 if relative else 1.0),) if layout == "nhwc" and axis == "row" else (Aim("best peer", 2.0),)
        return Case(f"axial_attention/{name}", build, bytes=(4 + 8 * backward) * moved, flops=work * (3.5 if backward else 1),
                    exps=B * G * length ** 3 * (2 if backward else 1), aims=aims or (Aim("best peer", 1.0),), agree=2e-2 if cuda else 1e-5,
                    approximate=("FlexAttention without value term",))

    def flex_peer(q, k, v, positions, axis):
        """FlexAttention adds query and key terms by a score function that gathers from q rq' and k rk'; the value term needs p, so v + rv is out
        of its reach: the peer leaves it out and is marked approximate."""
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention)

        def call():
            a, b, c = ((t if axis == "row" else t.transpose(2, 3)).flatten(1, 2).contiguous() for t in (q, k, v))
            length, scale = a.shape[2], a.shape[-1] ** -0.5
            query_term, key_term = a @ positions.query.t() * scale, b @ positions.key.t() * scale

            def score(s, image, line, i, j):
                return s + query_term[image, line, i, j - i + length - 1] + key_term[image, line, j, j - i + length - 1]

            return compiled(a, b, c, score_mod=score).view(B, G, -1, length, D)
        return {"FlexAttention without value term": call}

    def squeeze_case(H, W, backward):
        def build():
            generator = torch.Generator().manual_seed(0)
            q, k, v, upstream = (torch.randn(B, c, H, W, generator=generator).to(device, dtype).requires_grad_(backward)
                                 for c in (128, 128, 256, 256))

            def eager():
                def branch(dim):
                    tokens = (t.mean(dim).unflatten(1, (8, -1)).transpose(2, 3) for t in (q, k, v))
                    return torch.nn.functional.scaled_dot_product_attention(*tokens).transpose(2, 3).flatten(1, 2)
                return v + branch(3)[..., None] + branch(2)[:, :, None]

            calls = {"ours": lambda: squeeze_axial_attention(q, k, v, 8), "eager": eager}
            if backward:
                calls = {name: with_backward(call, [q, k, v], upstream.detach()) for name, call in calls.items()}
            return calls.pop("ours"), calls

        moved = B * H * W * dtype.itemsize
        return Case(f"axial_attention/squeeze-{H}x{W}{'-with-backward' if backward else ''}", build, bytes=moved * (768 + 768 * backward),
                    aims=(Aim("best peer", 1.5 if cuda else 1.0),), agree=2e-2 if cuda else 1e-5)

    cases = [case(axis, layout, False, backward) for backward in (False, True) for layout in ("nhwc", "nchw") for axis in ("row", "column")]
    cases += [case("column", "nhwc", True, backward) for backward in (False, True)]
    cases += [case("column", "nhwc", False, True, 256)] if cuda else []
    return cases + [squeeze_case(*size, backward) for size in ((23, 30), (90, 120)) for backward in (False, True)]


def dense_crf_cases(device: str) -> list[Case]:
    """Ten mean-field iterations: exact against eager and compiled PyTorch on a small image; on a 500 x 375 image with 21 labels the kernel
    (CUDA) or the lattice (CPU) against pydensecrf's C++, if that happens to be installed. `kernels.bench_crf` does it on photographs."""
    from kernels import bench_crf
    from kernels.dense_crf import Bilateral, Gaussian, gaussian_message_reference, mean_field, pixel_features

    def inputs(k, h, w):
        """Smooth coloured regions with noise, and the upsampled scores of a stride-8 network. unary [1, K, H, W], image [1, 3, H, W]"""
        g = torch.Generator().manual_seed(0)

        def enlarged(x):
            return torch.nn.functional.interpolate(x, (h, w), mode="bilinear", align_corners=False)

        image = enlarged(torch.rand(1, 3, h // 40 + 2, w // 40 + 2, generator=g) * 255) + torch.randn(1, 3, h, w, generator=g) * 3
        scores = enlarged(torch.randn(1, k, h // 8 + 2, w // 8 + 2, generator=g) * 3)
        return -torch.log_softmax(scores, 1).to(device), image.clamp(0, 255).round().to(device)

    def eager(unary, image, kernels):
        """The whole matrix, in PyTorch."""
        u = unary.flatten(2).transpose(1, 2)  # rows of pixels, [1, N, K]
        operators = []
        for kernel in kernels:
            f = pixel_features(image, kernel.sxy, getattr(kernel, "srgb", 1.0))  # rows of pixels, [1, N, 5]
            f = f[..., :2] if isinstance(kernel, Gaussian) else f
            n = gaussian_message_reference(f, torch.ones_like(f[..., :1])).rsqrt()  # rows of pixels, [1, N, 1]
            operators.append((f, n, kernel.weight))
        q = torch.softmax(-u, -1)
        for _ in range(10):
            q = torch.softmax(-u + sum(w * n * gaussian_message_reference(f, n * q) for f, n, w in operators), -1)
        return q.transpose(1, 2).reshape(unary.shape)

    def small():
        unary, image = inputs(21, 48, 64)
        kernels = (Gaussian(3.0, 3.0), Bilateral(20.0, 13.0, 10.0))
        ours = {"method": "exact", "cull": None, "half": device == "cuda"}
        peers = {"eager matrix": lambda: eager(unary, image, kernels)}
        if device == "cuda":
            peers["compiled matrix"] = torch.compile(peers["eager matrix"])
        return lambda: mean_field(unary, image, kernels, **ours), peers

    def photograph(sxy, srgb, weight, sigma):
        def build():
            unary, image = inputs(21, 375, 500)
            kernels = (Gaussian(sigma, 3.0), Bilateral(sxy, srgb, weight))
            peers = {}
            if device == "cuda":
                peers = {"every pair": lambda: mean_field(unary, image, kernels, cull=None),
                         "lattice": lambda: mean_field(unary, image, kernels, method="lattice")}
            elif bench_crf.INSTALLED:
                peers = {"pydensecrf": lambda: bench_crf.pydensecrf(unary, image, kernels)}
            else:
                peers = {"float32 lattice": lambda: mean_field(unary, image, kernels, half=False)}
            return lambda: mean_field(unary, image, kernels), peers
        return build

    pixels, passes = 500 * 375, 11  # ten messages and one for the normaliser
    exps = passes * float(pixels) ** 2 if device == "cuda" else 0.0
    aim = (Aim("every pair", 1.5),) if device == "cuda" else (Aim("pydensecrf", 1.8),) if bench_crf.INSTALLED else ()
    others = ("lattice", "pydensecrf", "float32 lattice")
    return [
        Case("dense_crf/exact-64x48-L21", small, exps=passes * (64.0 * 48) ** 2, aims=(Aim("best peer", 1.0),), agree=2e-3),
        Case("dense_crf/500x375-L21-80-13", photograph(80.0, 13.0, 10.0, 3.0), exps=exps, aims=aim, agree=2e-2, approximate=others),
        Case("dense_crf/500x375-L21-67-3", photograph(67.0, 3.0, 4.0, 1.0), exps=exps, aims=aim, agree=2e-2, approximate=others),
    ]


def patch_mix_cases(device: str) -> list[Case]:
    """Images, masks, feature maps and tokens against the formulations people write: gather, advanced indexing, cut-index-join."""
    from kernels.patch_mix import patch_mix, random_mix_index

    def case(name, shape, dtype, patch, layout=torch.contiguous_format):
        def build():
            generator = torch.Generator().manual_seed(0)
            x = (torch.rand(shape, generator=generator) * 200).to(dtype).to(device).contiguous(memory_format=layout)
            positions = shape[1] if patch is None else (shape[-2] // patch) * (shape[-1] // patch)
            index = random_mix_index(shape[0], positions, generator=generator).to(device)
            place = torch.arange(positions, device=device)
            rows, columns = (1, 1) if patch is None else (shape[-2] // patch, shape[-1] // patch)

            def cut_index_join():
                tiles = x.view(shape[0], -1, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).reshape(shape[0], positions, -1)  # [B, P, n]
                grid = tiles[index, place].view(shape[0], rows, columns, -1, patch, patch)
                return grid.permute(0, 3, 1, 4, 2, 5).reshape(shape)

            def gather():
                if patch is None:
                    return x.gather(0, index[:, :, None].expand(shape))
                source = index.view(shape[0], rows, columns).repeat_interleave(patch, 1).repeat_interleave(patch, 2)  # [B, H, W]
                return x.gather(0, (source if len(shape) == 3 else source[:, None]).expand(shape))

            peers = {"torch.gather": gather}
            if patch is None:
                peers["x[index, positions]"] = lambda: x[index, place]
            elif layout == torch.contiguous_format:
                peers["cut, index, join"] = cut_index_join
            return (lambda: patch_mix(x, index, patch, check=False)), peers

        elements = torch.Size(shape).numel()
        if device == "cpu":
            aims: tuple[Aim, ...] = (Aim("best peer", 1.0),)
        else:
            aims = (Aim("roofline", 0.85),) + ((Aim("cut, index, join", 3.0),) if patch is not None and layout == torch.contiguous_format else ())
        return Case(f"patch_mix/{name}", build, bytes=2.0 * elements * dtype.itemsize, aims=aims)

    batch, features = (256, (256, 2048, 28, 28)) if device == "cuda" else (16, (16, 256, 28, 28))
    return [
        case("images-fp32-p16", (batch, 3, 224, 224), torch.float32, 16),
        case("images-bf16-p16", (batch, 3, 224, 224), torch.bfloat16, 16),
        case("images-u8-p32", (batch, 3, 224, 224), torch.uint8, 32),
        case("masks-i64-p16", (batch, 224, 224), torch.int64, 16),
        case("tokens-bf16", (batch, 196, 768), torch.bfloat16, None),
        case("tokens-fp32", (batch, 196, 384), torch.float32, None),
        case("features-bf16-p2", features, torch.bfloat16, 2),
        case("features-bf16-p2-channels-last", features, torch.bfloat16, 2, torch.channels_last),
    ]


CASES: dict[str, Callable[[str], list[Case]]] = {
    "atrous_conv": atrous_conv_cases,
    "axial_attention": axial_attention_cases,
    "dense_crf": dense_crf_cases,
    "patch_mix": patch_mix_cases,
}


def best_possible_ms(case: Case, roof: dict) -> float:
    """The roofline time: whatever takes longest of moving, multiplying and exponentiating what must be."""
    return 1e3 * max(case.bytes / roof["copy_bytes_per_s"], case.flops / roof["matmul_flops_per_s"], case.exps / roof["exp_per_s"])


# ------------------------------------------------------------------------------------------------ one case
def difference(ours: Any, theirs: Any) -> float:
    """RMS difference relative to the RMS of ours, the worst over the tensors of a result; 0 exactly when all bits are equal."""
    ours, theirs = (r if isinstance(r, (tuple, list)) else (r,) for r in (ours, theirs))
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if torch.equal(a, b):
            continue
        a, b = a.double(), b.double()
        worst = max(worst, float((a - b).pow(2).mean().sqrt() / a.pow(2).mean().sqrt().clamp_min(1e-30)))
    return worst


def run_case(case: Case, clock: Clock, roof: dict, rounds: int) -> dict:
    """One JSON row: times, ratios, fraction of the roofline, aims held or missed. A candidate that fails is reported, not hidden."""
    row: dict[str, Any] = {"case": case.name, "peers": {}, "aims": []}
    ours, peers = case.build()
    expected = ours()
    calls = {"ours": ours}
    for name, call in peers.items():
        entry: dict[str, Any] = {}
        row["peers"][name] = entry
        try:
            entry["difference"] = difference(expected, call())
        except Exception as error:  # a peer may lack a dtype, a size or the memory: that is a finding, the other rows still count
            entry["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        if entry["difference"] > case.agree and name not in case.approximate:
            entry["error"] = f"disagrees with ours by {entry['difference']:.1e} (allowed {case.agree:.1e}), so it was not timed"
            continue
        calls[name] = call
    del expected
    if clock.cuda:
        for name, call in calls.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            extra = (torch.cuda.max_memory_allocated() - before) / 2 ** 20
            (row if name == "ours" else row["peers"][name])["extra_mib"] = round(extra, 1)
    times = interleaved(clock, calls, rounds)
    row["ours_ms"] = statistics.median(times["ours"])
    row["ours_quartiles_ms"] = statistics.quantiles(times["ours"], n=4)[::2] if rounds > 1 else []
    for name in calls:
        if name != "ours":
            row["peers"][name]["ms"] = statistics.median(times[name])
            row["peers"][name]["ratio"] = statistics.median(t / o for t, o in zip(times[name], times["ours"]))
    row["roofline_ms"] = best_possible_ms(case, roof)
    row["roofline_fraction"] = row["roofline_ms"] / row["ours_ms"]
    row["aims"] = [judge(aim, row) for aim in case.aims]
    return row


def judge(aim: Aim, row: dict) -> dict:
    """The aim, the number that was measured for it (None: the peer did not run) and whether it held."""
    ratios = {name: entry["ratio"] for name, entry in row["peers"].items() if "ratio" in entry}
    if aim.against == "milliseconds":
        return {"against": aim.against, "value": aim.value, "measured": row["ours_ms"], "held": row["ours_ms"] <= aim.value}
    if aim.against == "roofline":
        measured = row["roofline_fraction"]
    elif aim.against == "best peer":
        measured = min(ratios.values(), default=None)
    else:
        measured = ratios.get(aim.against)
    return {"against": aim.against, "value": aim.value, "measured": measured, "held": measured is not None and measured >= aim.value}


# ------------------------------------------------------------------------------------------------ report
def describe_aim(aim: dict) -> str:
    measured = "not measured" if aim["measured"] is None else f"{aim['measured']:.3g}"
    wanted = {"milliseconds": f"<= {aim['value']:g} ms", "roofline": f">= {aim['value']:.0%} of the roofline"}
    text = wanted.get(aim["against"], f">= {aim['value']:g}x {aim['against']}")
    return f"aim {text}: {measured}, {'held' if aim['held'] else 'MISSED'}"


def format_row(row: dict) -> str:
    if "error" in row:
        return f"{row['case']}\n    did not run: {row['error']}"
    lines = [row["case"],
             f"    ours {row['ours_ms']:.3f} ms   best possible {row['roofline_ms']:.3f} ms ({row['roofline_fraction']:.0%} reached)"]
    for name, peer in row["peers"].items():
        if "error" in peer:
            lines.append(f"    {name}: {peer['error']}")
        else:
            verdict = "ours faster" if peer["ratio"] >= 1 else "OURS LOSES"
            note = f", differs by {peer['difference']:.1e}" if peer["difference"] else ", same bits"
            lines.append(f"    {name} {peer['ms']:.3f} ms   {peer['ratio']:.2f}x   {verdict}{note}")
    return "\n".join(lines + [f"    {describe_aim(aim)}" for aim in row["aims"]])


def describe_machine(device: str) -> dict[str, Any]:
    """GPU or CPU, versions and date: without them a number means nothing."""
    machine = {"device": device, "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
               "torch": torch.__version__, "triton": backend.triton.__version__ if backend.HAS_TRITON else None,
               "python": platform.python_version(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine.update(name=properties.name, multiprocessors=properties.multi_processor_count, memory_gib=round(properties.total_memory / 2 ** 30, 1),
                       cuda=torch.version.cuda or torch.version.hip, cudnn=torch.backends.cudnn.version())
    elif os.path.exists("/proc/cpuinfo"):
        models = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        machine["name"] = models[0] if models else machine["name"]
    return machine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description="Measure the kernels against their peers and the roofline.")
    parser.add_argument("kernels", nargs="*", help=f"kernel files (default: {' '.join(CASES)})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--unchecked", action="store_true", help="measure although the ladder was not run; the record says so")
    given = parser.parse_args(arguments)
    unknown = [k for k in given.kernels if k not in CASES]
    if unknown:
        parser.error(f"no kernel file named {unknown[0]!r}; known: {', '.join(CASES)}")
    if backend.INTERPRETING:
        parser.error("TRITON_INTERPRET is set, so kernels would be interpreted, not measured; run env -u TRITON_INTERPRET python -m kernels.bench")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("device cuda was asked for, but torch sees no CUDA device; leave --device out to measure the CPU paths")
    if given.threads:
        torch.set_num_threads(given.threads)
    kernels = given.kernels or list(CASES)
    ladder_says = "unchecked"
    if not given.unchecked:
        from kernels import ladder

        red = ladder.red_rungs(kernels)
        if red:
            print("refused: these rungs are red, so speed means nothing yet (see python -m kernels.ladder; --unchecked measures anyway)",
                  file=sys.stderr)
            print("\n".join(f"    {line}" for line in red), file=sys.stderr)
            return 1
        ladder_says = "no red rung"

    machine = describe_machine(given.device)
    clock = Clock(given.device)
    roof = roofline(given.device, clock)
    print(f"{machine['name']}, torch {machine['torch']}, triton {machine['triton']}, {machine['threads']} CPU threads; ladder: {ladder_says}")
    print(f"roofline measured here: copy {roof['copy_bytes_per_s'] / 1e9:.4g} GB/s, "
          f"{roof['matmul_dtype']} matmul {roof['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s, {roof['exp_per_s'] / 1e9:.3g} G exp/s\n")
    rows = []
    for kernel in kernels:
        for case in CASES[kernel](given.device):
            if given.match not in case.name:
                continue
            try:
                row = run_case(case, clock, roof, given.rounds)
            except torch.OutOfMemoryError as error:
                row = {"case": case.name, "error": f"out of memory: {str(error)[:200]}"}
            rows.append(row)
            print(format_row(row), flush=True)
            if given.device == "cuda":
                torch.cuda.empty_cache()
    aims = [a for r in rows for a in r.get("aims", [])]
    losses = [f"{r['case']} to {n}" for r in rows for n, p in r.get("peers", {}).items() if p.get("ratio", 1) < 1]
    print(f"\n{len(rows)} cases, {sum(a['held'] for a in aims)} of {len(aims)} aims held, {len(losses)} losses"
          f"{': ' + '; '.join(losses) if losses else ''}")
    if given.json:
        record = {"machine": machine, "ladder": ladder_says, "roofline": roof, "rounds": given.rounds, "losses": losses, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
