"""Compile every shipped kernel for real GPUs on a machine that has none, and read the binaries.

    python -m kernels.compile_check                                     # sm_80, sm_90 and gfx942; about a minute, cached afterwards
    python -m kernels.compile_check --kernels patch_mix --targets sm_90
    python -m kernels.compile_check --json table.json --budget tests/kernels/compile_budget.csv
    python -m kernels.compile_check --kernels patch_mix --write-budget tests/kernels/compile_budget.csv

Triton's wheel carries the assemblers, so no driver and no CUDA installation is needed. The table says what a run on a GPU would not
say so plainly: registers per thread, bytes spilled to memory, shared memory, tensor-core instructions, 16-byte loads. It cannot say
how fast a kernel is, nor that its result is right (the interpreter tests do that). Exit code 1 when a row is out of bounds:
spills, shared memory or registers beyond the chip, a claimed tensor-core instruction or 16-byte load that is not there, or more
registers or shared memory than the budget file allows.

Compiling and interpreting exclude each other in one process, so TRITON_INTERPRET must not be set; tests start this as a subprocess.
Another triton can be checked without a second environment: install it beside and put it first on the path,

    pip install --target triton36 --no-deps triton==3.6.0
    PYTHONPATH=triton36 python -m kernels.compile_check      # limits of the chips only: the budget is that of CI's triton

How to add a kernel: write a function `<file>_variants() -> list[Variant]` in the section below (one per kernel file, import the
kernel inside it) and name it in VARIANTS. A variant is one launch as the wrapper makes it: what the JIT would find out by itself from
the arguments (types, the constant 1, divisibility by 16) is written down here; `from_launch` does it from the very arguments of a
launch (see patch_mix). Take tile sizes from the kernel file's own table, so that this file compiles what is launched. Then write the
budget lines with --write-budget and commit them.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import datetime
import functools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from kernels import backend


@dataclasses.dataclass(frozen=True)
class Target:
    """A chip: how triton names it, shared memory and registers that one program may use."""

    backend: str
    arch: int | str
    lanes: int
    shared: int
    registers: int = 65536


TARGETS = {
    "sm_80": Target("cuda", 80, 32, shared=163 * 1024),   # A100
    "sm_86": Target("cuda", 86, 32, shared=99 * 1024),    # RTX 30
    "sm_89": Target("cuda", 89, 32, shared=99 * 1024),    # RTX 40, L4
    "sm_90": Target("cuda", 90, 32, shared=227 * 1024),   # H100, H200
    "sm_100": Target("cuda", 100, 32, shared=227 * 1024),  # B200
    "gfx942": Target("hip", "gfx942", 64, shared=64 * 1024, registers=4 * 512 * 64),  # MI300: four SIMDs of 512 registers x 64 lanes
}
DEFAULT_TARGETS = ("sm_80", "sm_90", "gfx942")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kernel launch, described without tensors."""

    name: str
    """`<kernel file>/<what varies>`, e.g. "axial_attention/forward-L64-d64-bf16": the key of the budget file."""
    kernel: Any
    """The function decorated with `jit`."""
    types: dict[str, str]
    """Run-time arguments: "*bf16" pointer to bf16, "*fp32", "*i64", "*u8"; "i32", "i64", "fp32" by value."""
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    """All `tl.constexpr` arguments, and run-time arguments the JIT would specialise: strides that are 1, pointers that are None."""
    divisible: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16 in this launch (pointers are taken as 16-byte aligned); 16-byte loads need it."""
    tuples: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Arguments that are tuples of integers (strides): their values in this launch, specialised one by one as the JIT does it."""
    warps: int = 4
    stages: int = 3
    dot: bool = False
    """The kernel claims a matrix product on tensor cores: wgmma (sm_90), mma.sync (sm_80), mfma (gfx942) must appear."""
    wide: bool = False
    """The kernel claims 16-byte loads."""
    targets: tuple[str, ...] | None = None
    """Only these targets (None: all), for a variant that the wrapper launches on some chips only."""


def from_launch(name: str, kernel: Any, pointers: dict[str, str], given: dict[str, Any], **claims) -> Variant:
    """A variant from the very arguments of a launch (names -> values), specialised as the JIT does it: integers equal to 1 become
    constants, multiples of 16 are noted, values beyond 32 bits become i64, floats fp32. `pointers` gives the pointer types."""
    types, constants, divisible, tuples = dict(pointers), {}, [], {}
    for argument in kernel.params:
        if argument.name in pointers:
            continue
        value = given[argument.name]
        if argument.is_constexpr or value is None or (type(value) is int and value == 1):
            constants[argument.name] = value
        elif isinstance(value, tuple):
            tuples[argument.name] = tuple(value)
        elif isinstance(value, float):
            types[argument.name] = "fp32"
        else:
            types[argument.name] = "i32" if -2 ** 31 <= value < 2 ** 31 else "i64"
            if value % 16 == 0:
                divisible.append(argument.name)
    return Variant(name, kernel, types, constants, tuple(divisible), tuples, **claims)


# ------------------------------------------------------------------------------------------------ variants, one section per kernel file
def atrous_conv_variants() -> list[Variant]:
    """DeepLab's ASPP heads, a dilated ResNet block, a strided and a depthwise convolution. The launches are those of the wrapper itself,
    recorded per chip with tensors that have no memory."""
    import torch

    from kernels import atrous_conv as conv
    from kernels.atrous_taps import record_launches

    pointer = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    kernels = {"_correlate_kernel": "sum", "_finish_kernel": "finish", "_grad_weight_kernel": "dw", "_depthwise_kernel": "depthwise",
               "_depthwise_grad_weight_kernel": "depthwise-dw", "_shift_add_kernel": "shift-add", "_spread_kernel": "spread"}
    found: dict[str, Variant] = {}

    def record(name, arch, target, call, x_shape, w_shape, dtype, channels_last=True):
        x = torch.empty(x_shape, dtype=dtype, device="meta", requires_grad=True)
        if channels_last:
            x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.empty(w_shape, dtype=dtype, device="meta", requires_grad=True)
        with record_launches(arch) as launches:
            y = call(x, weight)
            n_forward = len(launches)
            y.backward(torch.empty_like(y))
        for i, (kernel, tile, arguments, constants) in enumerate(launches):
            what = kernels[kernel.__name__]
            given = {**dict(zip(kernel.arg_names, arguments)), **constants}
            part = "-split" if constants.get("SPLIT", 1) > 1 and what != "finish" else ""
            step = "dx" if what in ("sum", "depthwise") and i >= n_forward else "forward" if what in ("sum", "depthwise") else what
            key = f"atrous_conv/{'' if what == 'finish' else name + '-'}{step}{part}-{target}"
            pointers = {n: pointer[v.dtype] for n, v in given.items() if isinstance(v, torch.Tensor)}
            dot = what in ("sum", "dw") and dtype != torch.float32
            found.setdefault(key, from_launch(key, kernel, pointers, given, warps=tile.warps, stages=tile.stages, dot=dot,
                                              wide=dot and channels_last and arch != "hip", targets=(target,)))

    geometry = lambda x, rates, stride=1: conv.Geometry((stride, stride), tuple((r, r) for r in rates), tuple((r, r) for r in rates),  # noqa: E731
                                                        tuple((s - 1) // stride + 1 for s in x.shape[2:]))
    pyramid = (6, 12, 18, 24)
    for arch, target in (("sm80", "sm_80"), ("sm90", "sm_90"), ("hip", "gfx942")):
        def dense(name, x_shape, w_shape, rates, stride=1, dtype=torch.bfloat16, **options):
            def call(x, w):
                return conv._Dense.apply(x, w, None, geometry(x, rates, stride), False)
            record(name, arch, target, call, x_shape, w_shape, dtype, **options)

        dense("aspp256-bf16", (8, 2048, 65, 65), (4, 256, 2048, 3, 3), pyramid)
        dense("aspp256-bf16-nchw", (8, 2048, 65, 65), (4, 256, 2048, 3, 3), pyramid, channels_last=False)
        dense("res3-stride2-fp16", (8, 256, 129, 129), (1, 128, 256, 3, 3), (1,), stride=2, dtype=torch.float16)
        dense("res5-rate4-fp32", (2, 512, 65, 65), (1, 512, 512, 3, 3), (4,), dtype=torch.float32)
        record("aspp21-bf16", arch, target, lambda x, w: conv.ShiftAdd.apply(x, w, None, pyramid, "triton"), (8, 2048, 65, 65), (4, 21, 2048, 3, 3),
               torch.bfloat16)
        for layout in (True, False):
            record(f"depthwise-bf16{'' if layout else '-nchw'}", arch, target, lambda x, w: conv.Depthwise.apply(x, w, None, geometry(x, (2,)), True),
                   (8, 960, 65, 65), (960, 1, 3, 3), torch.bfloat16, channels_last=layout)
    return list(found.values())


def axial_attention_variants() -> list[Variant]:
    """One axis of an Axial-DeepLab layer at 1/16 and longer lines, in both memory orders, with and without tables; P2AT's squeeze at 1/8.
    The launches come from the wrappers themselves, given tensors without memory."""
    import torch

    from kernels import axial_attention as axial
    from kernels import squeeze_axial

    pointer = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
    steps = {"axial_forward": "forward", "axial_backward_keys": "dk-dv", "axial_backward_queries": "dq", "axial_backward_tables": "tables"}
    found: list[Variant] = []

    def add(name, target, launch, **claims):
        kernel, _, given, options = launch
        pointers = {n: pointer[t.dtype] for n, t in given.items() if isinstance(t, torch.Tensor)}
        found.append(from_launch(f"axial_attention/{name}-{target}", kernel, pointers, given, warps=options["num_warps"],
                                 stages=options["num_stages"], targets=(target,), **claims))

    def both_ways(name, axis, length, channels, nhwc, relative=False, dtype=torch.bfloat16):
        def a_map(c):
            if nhwc:
                return torch.empty(8, length, length, 8, c, dtype=dtype, device="meta").permute(0, 3, 1, 2, 4)
            return torch.empty(8, 8, c, length, length, dtype=dtype, device="meta").permute(0, 1, 3, 4, 2)

        q, k, v, o, grad, dq, dk, dv = (a_map(channels) for _ in range(8))
        tables = dict.fromkeys(("rq", "rk", "rv"), torch.empty(2 * length - 1, channels, dtype=dtype, device="meta") if relative else None)
        lse = torch.empty(8 * 8 * length * length, device="meta")
        for arch, target in (("sm80", "sm_80"), ("sm90", "sm_90"), ("hip", "gfx942")):
            maps, setting = {"q": q, "k": k, "v": v, "o": o}, (axis, channels ** -0.5, "ieee", arch)
            launches = [axial.forward_launch(maps, tables, lse, *setting)]
            gradients, wanted = {"dq": dq, "dk": dk, "dv": dv}, dict.fromkeys(tables, relative)
            launches += axial.backward_launches(maps | {"grad": grad}, tables, lse, gradients, wanted, *setting)[0]
            half = dtype != torch.float32
            for launch in launches:
                add(f"{name}-{steps[launch[0].__name__]}", target, launch, dot=half, wide=nhwc and half and arch != "hip")

    both_ways("column-L64-d64-bf16", "column", 64, 64, nhwc=True)
    both_ways("row-L64-d64-bf16-nchw", "row", 64, 64, nhwc=False)
    both_ways("column-L64-d64-bf16-nchw", "column", 64, 64, nhwc=False)
    both_ways("column-L256-d64-bf16", "column", 256, 64, nhwc=True)
    both_ways("row-L64-d128-bf16", "row", 64, 128, nhwc=True)
    both_ways("row-L64-d64-fp32", "row", 64, 64, nhwc=True, dtype=torch.float32)
    both_ways("column-L64-d64-bf16-relative", "column", 64, 64, nhwc=True, relative=True)
    both_ways("column-L64-d64-bf16-nchw-relative", "column", 64, 64, nhwc=False, relative=True)
    both_ways("row-L64-d64-fp32-relative", "row", 64, 64, nhwc=True, relative=True, dtype=torch.float32)
    for layout, last in (("", torch.contiguous_format), ("-channels-last", torch.channels_last)):
        x = torch.empty(8, 256, 96, 128, dtype=torch.bfloat16, device="meta").to(memory_format=last)
        rows, columns = (torch.empty(8, 256, n, dtype=torch.bfloat16, device="meta") for n in (96, 128))
        tables = tuple(torch.empty(256, n, device="meta") for n in (96, 128))
        for target in ("sm_80", "sm_90", "gfx942"):
            wide = target != "gfx942"
            add(f"squeeze-bf16{layout}", target, squeeze_axial.squeeze_launch(x, rows, columns, tables, (1 / 128, 1 / 96), False), wide=wide)
            add(f"spread-bf16{layout}", target, squeeze_axial.spread_launch(x, rows, columns, torch.empty_like(x), (1.0, 1.0), False), wide=wide)
    return found


def dense_crf_variants() -> list[Variant]:
    """Messages for 500 x 375 pixels: 5-D and 2-D features, 21 and 5 labels, all tile pairs or the live ones, float16 and float32."""
    from kernels import dense_crf as crf

    pixels = -(-500 * 375 // crf.BLOCK) * crf.BLOCK

    def variant(name, features, labels, cull, half, amd=False):
        constants = crf.kernel_constants(features, labels, crf.BLOCK, cull, matrix=half, split=not half)
        feature = "*fp16" if half else "*fp32"
        pointers = {"p_query": feature, "p_key": feature, "p_bias": "*fp32", "p_value": "*fp16", "p_value_low": "*fp16", "p_out": "*fp32",
                    "p_start": "*i64", "p_live": "*i32"}
        launch = crf.warps_and_stages(half, amd)
        targets = None if half else ("gfx942",) if amd else tuple(name for name in TARGETS if name.startswith("sm_"))
        return from_launch(f"dense_crf/{name}", crf._message_kernel, pointers, {"n": pixels, **constants},
                           warps=launch["num_warps"], stages=launch["num_stages"], dot=True, wide=half, targets=targets)

    return [
        variant("d5-L21-all-fp16", 5, 21, False, True),
        variant("d5-L21-culled-fp16", 5, 21, True, True),
        variant("d5-L5-culled-fp16", 5, 5, True, True),
        variant("d2-L21-all-fp16", 2, 21, False, True),
        variant("d5-L21-all-fp32", 5, 21, False, False),
        variant("d5-L21-culled-fp32", 5, 21, True, False),
        variant("d5-L21-culled-fp32-amd", 5, 21, True, False, amd=True),
        variant("d2-L5-culled-fp32", 2, 5, True, False),
        variant("d2-L5-culled-fp32-amd", 2, 5, True, False, amd=True),
    ]


def patch_mix_variants() -> list[Variant]:
    """Images, masks, feature maps and tokens; mix and unmix. Arguments come from the wrapper itself, given tensors without memory."""
    import torch

    from kernels import patch_mix

    def variant(name, shape, dtype, patch, layout=torch.contiguous_format, scatter=False):
        x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)
        positions = shape[1] if patch is None else (shape[-2] // patch[0]) * (shape[-1] // patch[1])
        index = torch.empty(shape[0], positions, dtype=torch.int64, device="meta")
        _, given = patch_mix.launch_arguments(x, index, torch.empty_like(x), patch, scatter)
        element = {1: "*u8", 2: "*i16", 4: "*i32", 8: "*i64"}[x.element_size()]
        return from_launch(f"patch_mix/{name}", patch_mix.patch_mix_kernel, {"p_x": element, "p_index": "*i64", "p_y": element}, given, wide=True)

    images, features = (256, 3, 224, 224), (256, 2048, 28, 28)
    return [
        variant("images-fp32", images, torch.float32, (16, 16)),
        variant("images-fp32-unmix", images, torch.float32, (16, 16), scatter=True),
        variant("images-bf16", images, torch.bfloat16, (16, 16)),
        variant("images-u8-channels-last", images, torch.uint8, (16, 16), torch.channels_last),
        variant("masks-i64", (256, 224, 224), torch.int64, (16, 16)),
        variant("features-bf16-channels-last", features, torch.bfloat16, (2, 2), torch.channels_last),
        variant("tokens-bf16", (256, 196, 768), torch.bfloat16, None),
        variant("tokens-fp32-unmix", (256, 196, 768), torch.float32, None, scatter=True),
    ]


VARIANTS: dict[str, Callable[[], list[Variant]]] = {
    "atrous_conv": atrous_conv_variants,
    "axial_attention": axial_attention_variants,
    "dense_crf": dense_crf_variants,
    "patch_mix": patch_mix_variants,
}


# ------------------------------------------------------------------------------------------------ compiling one variant
@dataclasses.dataclass
class Row:
    """What the binary of one variant for one target says."""

    variant: str
    target: str
    warps: int = 0
    registers: int = 0
    """32-bit registers per thread."""
    spills: int = 0
    """Bytes per thread that live in memory because registers ran out (the stack frame on NVIDIA)."""
    shared: int = 0
    """Bytes of shared memory per program."""
    tensor_cores: int = 0
    """Matrix instructions in the code (static count)."""
    instruction: str = ""
    """Which ones: wgmma, mma, tcgen05, mfma."""
    wide_loads: int = 0
    """Loads of 16 bytes, asynchronous copies included (static count)."""
    seconds: float = 0.0
    error: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)


def compile_variant(variant: Variant, target_name: str) -> Row:
    """Compile ahead of time and read the result. A compiler error becomes the row's `error`, not an exception."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    import triton

    target = TARGETS[target_name]
    row = Row(variant.name, target_name, warps=variant.warps)
    names = list(variant.kernel.arg_names)
    given = {**variant.types, **variant.constants, **variant.tuples}
    missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
    if missing or unknown:
        row.error = f"the variant must name every argument of {variant.kernel.__name__}: missing {missing}, unknown {unknown}"
        return row
    signature = {n: "constexpr" if n in variant.constants else variant.types.get(n) for n in names}
    aligned = [n for n in variant.types if n not in variant.constants and (n in variant.divisible or variant.types[n].startswith("*"))]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    constants = dict(variant.constants)
    for n, values in variant.tuples.items():
        signature[n] = tuple("constexpr" if v == 1 else "i32" if -2 ** 31 <= v < 2 ** 31 else "i64" for v in values)
        constants.update({(names.index(n), i): 1 for i, v in enumerate(values) if v == 1})
        attributes.update({(names.index(n), i): [["tt.divisibility", 16]] for i, v in enumerate(values) if v % 16 == 0})
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}  # as backend.launch_options
    started = time.perf_counter()
    try:
        source = ASTSource(variant.kernel, signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget(target.backend, target.arch, target.lanes), options=options)
    except Exception as error:  # whatever the compiler raises belongs in the table, so that the other rows still appear
        row.error = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        return row
    row.seconds = round(time.perf_counter() - started, 2)
    row.shared, row.warps = compiled.metadata.shared, compiled.metadata.num_warps
    if target.backend == "cuda":
        read_nvidia(row, compiled.asm["ptx"], compiled.asm["cubin"])
    else:
        read_amd(row, compiled.asm["amdgcn"])
    row.faults = faults(row, variant)
    return row


def read_nvidia(row: Row, ptx: str, cubin: bytes) -> None:
    """Registers and stack from cuobjdump (in triton's wheel), instructions from the PTX text."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        row.error = f"cuobjdump -res-usage printed no REG/STACK line: {text[-200:]!r}"
        return
    row.registers, row.spills = int(found[1]), int(found[2])
    counts = {"wgmma": len(re.findall(r"wgmma\.mma_async", ptx)), "tcgen05": len(re.findall(r"tcgen05\.mma", ptx)),
              "mma": len(re.findall(r"(?<![\w.])mma\.sync", ptx))}
    row.tensor_cores = sum(counts.values())
    row.instruction = max(counts, key=counts.get) if row.tensor_cores else ""
    plain = re.findall(r"ld\.global[\w.:]*\.(?:v4\.[bfsu]32|v2\.[bfsu]64)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10", ptx)
    row.wide_loads = len(plain) + len(copies) + ptx.count("cp.async.bulk.tensor")


def read_amd(row: Row, assembly: str) -> None:
    """Everything stands in the assembly text; spills are counted in registers there, 4 bytes each."""
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    row.registers, row.spills = number("vgpr_count"), 4 * number("vgpr_spill_count")
    row.tensor_cores = len(re.findall(r"v_mfma", assembly))
    row.instruction = "mfma" if row.tensor_cores else ""
    row.wide_loads = len(re.findall(r"(?:global|buffer)_load_(?:dwordx4|b128)", assembly))


def faults(row: Row, variant: Variant) -> list[str]:
    """Sentences on what the chip would punish; empty when the row is fine."""
    target, found = TARGETS[row.target], []
    if row.error:
        return found
    if row.spills:
        found.append(f"spills {row.spills} bytes per thread; fewer live values, smaller tiles or more warps")
    if row.shared > target.shared:
        found.append(f"needs {row.shared} bytes of shared memory, {row.target} has {target.shared}; fewer stages or smaller tiles")
    threads = row.warps * target.lanes
    if row.registers * threads > target.registers:
        found.append(f"needs {row.registers} x {threads} registers, {row.target} has {target.registers}; fewer warps or smaller tiles")
    wanted = {"sm_90": "wgmma", "gfx942": "mfma", "sm_100": "tcgen05"}.get(row.target, "mma")
    if variant.dot and row.tensor_cores == 0:
        found.append(f"claims a tensor-core product, but no {wanted} instruction is in the code")
    if variant.wide and row.wide_loads == 0:
        found.append("claims 16-byte loads, but none is in the code; strides must be 1 or divisible by 16")
    return found


# ------------------------------------------------------------------------------------------------ the budget file
BUDGET_COLUMNS = ("variant", "target", "registers", "shared", "tensor_cores", "wide_loads")
SLACK = 1.3  # registers of neighbouring triton versions differ by up to a quarter for the same source
ALLOWANCE = {"registers": 16, "shared": 4096}  # and what a small kernel may grow by without meaning anything


def read_budget(path: Path) -> dict[tuple[str, str], dict[str, int]]:
    """(variant, target) -> the numbers that were accepted, from a CSV with BUDGET_COLUMNS."""
    with open(path, newline="") as file:
        return {(r["variant"], r["target"]): {c: int(r[c]) for c in BUDGET_COLUMNS[2:]} for r in csv.DictReader(file)}


def write_budget(path: Path, rows: list[Row]) -> None:
    """Replace the lines of the compiled (variant, target) pairs, drop variants of those files that no longer exist, keep the rest."""
    budget = read_budget(path) if path.exists() else {}
    compiled = {row.variant.split("/")[0] for row in rows}
    existing = {v.name for name in compiled for v in variants((name,))}
    budget = {key: value for key, value in budget.items() if key[0].split("/")[0] not in compiled or key[0] in existing}
    budget.update({(row.variant, row.target): {c: getattr(row, c) for c in BUDGET_COLUMNS[2:]} for row in rows})
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(BUDGET_COLUMNS)
        writer.writerows([*key, *values.values()] for key, values in sorted(budget.items()))


def over_budget(row: Row, budget: dict) -> list[str]:
    """Sentences on what grew beyond the accepted numbers (registers and shared memory by more than SLACK, or instructions lost)."""
    accepted = budget.get((row.variant, row.target))
    if accepted is None:
        return [f"no budget line; python -m kernels.compile_check --kernels {row.variant.split('/')[0]} --write-budget <file> adds it"]
    found = []
    for column in ("registers", "shared"):
        value, limit = getattr(row, column), max(math.ceil(accepted[column] * SLACK), accepted[column] + ALLOWANCE[column])
        if value > limit:
            found.append(f"{column} {value}, the budget is {accepted[column]} (limit {limit})")
    for column in ("tensor_cores", "wide_loads"):
        if accepted[column] and not getattr(row, column):
            found.append(f"{column} fell to 0, the budget has {accepted[column]}")
    return found


# ------------------------------------------------------------------------------------------------ the whole table
def variants(kernels: tuple[str, ...] | None = None) -> list[Variant]:
    """All variants of the named kernel files (default: every file), names checked to be unique and to start with the file's name."""
    found = []
    for name in kernels or tuple(VARIANTS):
        if name not in VARIANTS:
            raise ValueError(f"no kernel file named {name!r}; known: {', '.join(VARIANTS)}")
        found += VARIANTS[name]()
        wrong = [v.name for v in found if v.name.split("/")[0] not in VARIANTS]
        if wrong:
            raise ValueError(f"variant names must start with their kernel file, as in {name}/forward-fp32; got {wrong[0]!r}")
    names = [v.name for v in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"variant names must be unique; given twice: {', '.join(twice)}")
    return found


@functools.lru_cache(maxsize=None)
def _by_name(kernel: str) -> dict[str, Variant]:
    return {v.name: v for v in variants((kernel,))}


def _compile_named(job: tuple[str, str]) -> Row:
    """In a worker process: kernels cannot be pickled, names can."""
    name, target = job
    return compile_variant(_by_name(name.split("/")[0])[name], target)


def compile_all(kernels: tuple[str, ...] | None = None, targets: tuple[str, ...] = DEFAULT_TARGETS, workers: int = 1,
                match: str = "") -> list[Row]:
    """One row per variant and target, in the order of the table. `match` keeps variants whose name contains it."""
    jobs = [(v.name, t) for v in variants(kernels) if match in v.name for t in targets if v.targets is None or t in v.targets]
    if workers <= 1 or len(jobs) <= 1:
        return [_compile_named(job) for job in jobs]
    context = multiprocessing.get_context("spawn")  # LLVM's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        return list(pool.map(_compile_named, jobs))


def format_table(rows: list[Row]) -> str:
    """The table as text, one line per row, faults below their row."""
    width = max((len(r.variant) for r in rows), default=8)
    lines = [f"{'variant':{width}}  target  warps  registers  spills  shared  tensor-cores  16-byte-loads  seconds"]
    for r in rows:
        matrix = f"{r.tensor_cores} {r.instruction}".strip() if r.tensor_cores else "-"
        lines.append(f"{r.variant:{width}}  {r.target:6}  {r.warps:5}  {r.registers:9}  {r.spills:6}  {r.shared:6}  {matrix:>12}  "
                     f"{r.wide_loads:13}  {r.seconds:7.1f}")
        lines += [f"{'':{width}}  ^ {text}" for text in ([f"did not compile: {r.error}"] if r.error else []) + r.faults]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_check", description="Compile all kernels ahead of time, without a GPU.")
    parser.add_argument("--kernels", default="", help=f"comma-separated kernel files (default: {','.join(VARIANTS)})")
    parser.add_argument("--targets", default=",".join(DEFAULT_TARGETS), help=f"comma-separated, of {','.join(TARGETS)}")
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (default: cores, at most 4)")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--budget", type=Path, help="compare with this budget file")
    parser.add_argument("--write-budget", type=Path, help="accept the compiled numbers: replace their lines in this budget file")
    given = parser.parse_args(arguments)
    kernels = tuple(k for k in given.kernels.split(",") if k) or None
    targets = tuple(t for t in given.targets.split(",") if t)
    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        parser.error(f"no target named {unknown[0]!r}; known: {', '.join(TARGETS)}")
    if not backend.HAS_TRITON:
        parser.error("triton is not installed, nothing can be compiled; pip install triton")
    if backend.INTERPRETING:
        parser.error("TRITON_INTERPRET is set, and a process that interprets cannot compile; "
                     "run env -u TRITON_INTERPRET python -m kernels.compile_check")
    started = time.perf_counter()
    try:
        rows = compile_all(kernels, targets, given.workers, given.match)
    except ValueError as error:
        parser.error(str(error))
    seconds = time.perf_counter() - started
    if given.budget:
        budget = read_budget(given.budget)
        for row in rows:
            if not row.error:
                row.faults += over_budget(row, budget)
    import triton

    print(format_table(rows))
    bad = [r for r in rows if r.error or r.faults]
    print(f"triton {triton.__version__}: {len(rows)} binaries, {len(bad)} out of bounds, {seconds:.0f} s")
    if given.write_budget:
        write_budget(given.write_budget, [r for r in rows if not r.error])
    if given.json:
        record = {"triton": triton.__version__, "date": datetime.date.today().isoformat(), "seconds": round(seconds, 1),
                  "rows": [dataclasses.asdict(r) for r in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
