"""Triton's interpreter holds bfloat16 as raw 16-bit patterns, and its `tl.dot` multiplies those patterns (triton 3.6 to 3.9).
Widening both operands to float32 first is what a GPU does; without it every bf16 dot is wrong by many orders of magnitude."""
from kernels import backend


def widen_bf16_dots():
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain_dot = InterpreterBuilder.create_dot
    if getattr(plain_dot, "widens_bf16", False):
        return

    def create_dot(self, a, b, accumulator, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a = self.cast_impl(a, tl.float32)
        if b.dtype.scalar == tl.bfloat16:
            b = self.cast_impl(b, tl.float32)
        return plain_dot(self, a, b, accumulator, *rest)

    create_dot.widens_bf16 = True
    InterpreterBuilder.create_dot = create_dot


if backend.INTERPRETING:
    widen_bf16_dots()
