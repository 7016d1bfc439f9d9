"""Everything here needs a Hopper GPU and is skipped without one. A hung kernel kills its pytest worker.

With pytest-xdist the report then names the test; the stacks of the killed worker are in `HANG_LOG`.
"""

import faulthandler
import os
import tempfile
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
HANG_SECONDS = 120
HANG_LOG = Path(tempfile.gettempdir()) / f"quack-hang-{os.getpid()}.txt"


def reason_to_skip() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    return "" if capability == (9, 0) else f"needs compute capability 9.0, this device has {capability}"


def pytest_configure(config):
    config.addinivalue_line("markers", "hang_guard(seconds): kill the worker after this long, default 120 s")


def pytest_collection_modifyitems(items):
    mine = [item for item in items if HERE in item.path.parents]
    reason = reason_to_skip() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def _hang_log():
    with open(HANG_LOG, "w") as log:
        yield log
    HANG_LOG.unlink()


@pytest.fixture(autouse=True)
def hang_guard(request, _hang_log):
    """A kernel that never ends cannot be interrupted from Python: print where we are and leave the process."""
    marker = request.node.get_closest_marker("hang_guard")
    print(request.node.nodeid, file=_hang_log, flush=True)
    faulthandler.dump_traceback_later(marker.args[0] if marker else HANG_SECONDS, exit=True, file=_hang_log)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def return_memory():
    """Eight workers share one GPU: do not sit on the memory of the largest case."""
    yield
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > 1 << 30:
        torch.cuda.empty_cache()
