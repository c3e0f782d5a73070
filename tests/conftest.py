"""Shared test set-up. Kernels are interpreted in this process (no GPU needed); ahead-of-time compilation runs in processes of its own."""
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton at its first import, so it stands before every other import

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(min(2, os.cpu_count() or 1))
settings.register_profile("seglite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("seglite")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    data = os.environ.get("SEGLITE_DATA")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "realdata" in item.keywords and not (data and Path(data).is_dir()):
            if os.environ.get("CI"):
                raise pytest.UsageError("CI must run the real-data tests: set SEGLITE_DATA to the folder with voc_mini, camvid and weights")
            item.add_marker(pytest.mark.skip(reason="set SEGLITE_DATA to the folder with voc_mini, camvid and weights"))


@pytest.fixture(autouse=True)
def kernel_path(request):
    """Only tests/kernels lets the interpreter run kernels; everywhere else operations take the PyTorch path a laptop would take."""
    from kernels import backend

    in_kernel_tests = "tests/kernels" in str(request.path).replace(os.sep, "/")
    with backend.use(None if in_kernel_tests else "torch"):
        yield


@pytest.fixture
def data_root() -> Path:
    """The folder of real photographs and weights (tests using it are marked realdata)."""
    return Path(os.environ["SEGLITE_DATA"])
