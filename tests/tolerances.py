"""One table of tolerances for the whole project, and the comparison that uses it.

Errors are measured relative to the root mean square of the expected tensor, so that the limits mean the same at every scale.
"""
import torch

#            worst element   root mean square      (both divided by the RMS of the expected tensor)
LIMITS = {
    torch.float64: (1e-9, 1e-11),
    torch.float32: (2e-4, 1e-5),
    torch.float16: (4e-2, 4e-3),
    torch.bfloat16: (3e-1, 3e-2),
}


def compare(actual: torch.Tensor, expected: torch.Tensor) -> dict:
    """Worst index, both values there, relative RMS error and the number of non-finite elements."""
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert a.shape == e.shape, f"shape {tuple(a.shape)}, expected {tuple(e.shape)}"
    if a.numel() == 0:
        return {"worst": (), "actual": 0.0, "expected": 0.0, "max": 0.0, "rms": 0.0, "bad": 0}
    scale = e.pow(2).mean().sqrt().clamp_min(1e-30)
    difference = (a - e).abs() / scale
    bad = int((~torch.isfinite(a)).sum())
    flat = int(torch.nan_to_num(difference, nan=float("inf")).argmax())
    worst = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), a.shape))
    return {"worst": worst, "actual": float(a[worst]), "expected": float(e[worst]), "max": float(difference[worst]),
            "rms": float(difference.pow(2).mean().sqrt()), "bad": bad}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None, factor: float = 1.0, what: str = "result") -> None:
    """Fail with the worst index, both values and the relative RMS error unless `actual` matches `expected`.

    `dtype` chooses the row of the table (default: the dtype of `actual`); `factor` widens it for long sums, with a reason at the call.
    """
    limit_max, limit_rms = (factor * limit for limit in LIMITS[dtype or actual.dtype])
    r = compare(actual, expected)
    assert r["bad"] == 0, f"{what}: {r['bad']} of {actual.numel()} elements are not finite, first at {r['worst']}"
    assert r["max"] <= limit_max and r["rms"] <= limit_rms, (
        f"{what}: worst at {r['worst']}: got {r['actual']:.7g}, expected {r['expected']:.7g}; "
        f"max error / RMS {r['max']:.2e} (limit {limit_max:.0e}), RMS error / RMS {r['rms']:.2e} (limit {limit_rms:.0e})"
    )
