"""A kernel that multiplies two 16x16 matrices, for test_backend.py (kernels must live in a file)."""
from kernels.backend import jit, tl


@jit
def dot_kernel(p_a, p_b, p_c):
    """c = a @ b: pointers to contiguous [16, 16]. Grid: (1,)."""
    o = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(p_c + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o)))
