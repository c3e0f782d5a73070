"""Score the memory traffic of a learner's Triton kernel, without a GPU.

Triton's interpreter runs a kernel's programs one after the other in NumPy. `Traffic` looks over its shoulder: every load and every store is
counted in bytes, per tensor, live lanes only. Three mistakes that a GPU would hide or punish much later are told at once: an address outside
every tensor, a masked load without `other=` (its dead lanes hold anything: here NaN), and a result that was never written (outputs start as NaN).

    with Traffic(x=x, y=y) as traffic:
        kernel[(programs,)](x, y, n, BLOCK=64)
    traffic.bytes["x"], traffic.bytes["y"]

The interpreter must have been chosen before triton is first imported: `python -m lessons.check` and the tests do so.
"""
from __future__ import annotations

import torch

from kernels import backend


class Traffic:
    """Bytes that kernels load from and store to the named tensors, while the `with` block lasts."""

    def __init__(self, **tensors: torch.Tensor):
        self.tensors = tensors
        self.bytes = dict.fromkeys(tensors, 0)
        self.stored = 0

    def __enter__(self) -> Traffic:
        from triton.runtime.interpreter import interpreter_builder as builder

        self.builder, load, store = builder, builder.create_masked_load, builder.create_masked_store

        def counted_load(pointers, mask, other, *options):
            self._count("loads", pointers, mask)
            found = load(pointers, mask, other, *options)
            if other is None and found.data.dtype.kind == "f":
                found.data[~mask.data] = float("nan")
            return found

        def counted_store(pointers, value, mask, *options):
            self.stored += self._count("stores", pointers, mask)
            return store(pointers, value, mask, *options)

        builder.create_masked_load, builder.create_masked_store = counted_load, counted_store  # on the object; the class keeps its own
        return self

    def __exit__(self, *problem) -> None:
        del self.builder.create_masked_load, self.builder.create_masked_store

    def _count(self, verb: str, pointers, mask) -> int:
        addresses = pointers.data[mask.data].astype("int64")
        left = len(addresses)
        for name, tensor in self.tensors.items():
            start = tensor.untyped_storage().data_ptr()
            inside = int(((addresses >= start) & (addresses < start + tensor.untyped_storage().nbytes())).sum())
            self.bytes[name] += inside * tensor.element_size()
            left -= inside
        if left:
            raise IndexError(f"it {verb} {left} elements that lie in none of its tensors: mask them")
        return len(addresses)


def run(kernel, name: str, grid: tuple[int, ...], tensors: dict[str, torch.Tensor], *arguments, **options) -> tuple[Traffic | None, str | None]:
    """Run `kernel` over `grid` on the tensors, then the other arguments: (its traffic, nothing) or (nothing, a sentence)."""
    if not backend.INTERPRETING:
        return None, f"{name} is not checked: kernels run here in Triton's interpreter, which needs triton (Linux) and TRITON_INTERPRET=1"
    try:
        with Traffic(**tensors) as traffic:
            kernel[grid](*tensors.values(), *arguments, **options)
    except Exception as error:  # a learner's kernel may fail in any way; the interpreter wraps what happened inside
        cause = error.__cause__ or error
        return None, f"{name} stopped: {cause}" if isinstance(cause, IndexError) else f"{name} stopped with {type(cause).__name__}: {cause}"
    return (traffic, None) if traffic.stored else (None, f"{name} stores nothing: nothing written yet?")


def ratio(traffic: Traffic, least: dict[str, int]) -> float:
    """Bytes moved per byte that must move."""
    return sum(traffic.bytes.values()) / sum(least.values())


def verdict(name: str, traffic: Traffic, least: dict[str, int], allowed: float = 1.05) -> list[str]:
    """Nothing, or a sentence that says how many times the least traffic the right values cost, and where."""
    if ratio(traffic, least) <= allowed:
        return []
    wasted = sorted(least, key=lambda n: least[n] - traffic.bytes[n])
    where = ", ".join(f"{n} {traffic.bytes[n] / least[n]:.2g} times" for n in wasted if traffic.bytes[n] > allowed * least[n])
    return [f"{name} has the right values, but moves {ratio(traffic, least):.2f} times the least bytes: it touches {where}"]
