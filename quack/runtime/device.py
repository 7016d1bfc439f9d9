"""What the host must know about a device: architecture, size, current stream, tile counters.

A device is a CUDA device, or the emulated one that stands behind CPU tensors while `quack.emulator` is switched on. No
other module knows the emulator.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch

from .. import emulator
from ..arch import ARCH_OF_CAPABILITY
from .spec import UnsupportedGemm

EMULATED = -1  # ordinal; also what `Tensor.get_device` says of a CPU tensor


class Device(NamedTuple):
    """ordinal: CUDA device number or EMULATED; sms: streaming multiprocessors. arch: whose kernels it runs; target: its own
    architecture, if that is another one."""

    ordinal: int
    arch: str
    sms: int
    target: Optional[str] = None

    @property
    def is_emulated(self) -> bool:
        return self.ordinal == EMULATED


def why_unusable(name: str, device: torch.device) -> Optional[str]:
    """Why kernels cannot run on the tensor `name`, which is on this device, and what to do; None if they can."""
    if device.type == "cuda" or (device.type == "cpu" and emulator.current().arch is not None):
        return None
    hint = f", or set {emulator.SWITCH}=sm90 to run emulated" if device.type == "cpu" else ""
    return f"{name} is on {device}: quack runs on CUDA devices; pass {name}.cuda(){hint}"


def device_of(tensor: torch.Tensor) -> Device:
    """The device whose kernels work on `tensor`; it must be usable."""
    if tensor.is_cuda:
        found = device_info(tensor.device.index)
    else:
        settings = emulator.current()
        assert settings.arch is not None
        properties = settings.device(settings.arch)
        found = Device(EMULATED, ARCH_OF_CAPABILITY[properties.compute_capability], properties.sm_count)
    asked = _kernels_of.get()
    return found if asked in (None, found.arch) else found._replace(arch=asked, target=found.arch)


def kernel_key(tensor: torch.Tensor) -> Optional[tuple]:
    """What a plan depends on besides the tensors."""
    asked = _kernels_of.get()
    if tensor.is_cuda:
        return None if asked is None else (asked,)
    settings = emulator.current()
    return settings.arch, settings.sms, asked


_kernels_of: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("kernels_of", default=None)


@contextlib.contextmanager
def kernels_of(arch: str) -> Iterator[None]:
    """For tests: within it devices run the kernels of another architecture, compiled for their own. `legality` refuses what
    does not run there (`Execution.runs_on`)."""
    token = _kernels_of.set(arch)
    try:
        yield
    finally:
        _kernels_of.reset(token)


@functools.cache
def device_info(index: int) -> Device:
    """Facts of one CUDA device; creates its context, so only called with a tensor on it."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    if capability not in ARCH_OF_CAPABILITY:
        raise UnsupportedGemm(
            f"{properties.name} has compute capability {capability[0]}.{capability[1]}, "
            f"quack knows {sorted(ARCH_OF_CAPABILITY)}"
        )
    return Device(index, ARCH_OF_CAPABILITY[capability], properties.multi_processor_count)


def emulated_function(path: Path, name: str, ptx: str) -> Callable[..., None]:
    """The function `name` of an object file, with the PTX of its kernels run by the emulator on CPU tensors."""
    linked = emulator.load(path, name, ptx)

    def call(*arguments: Any) -> None:
        emulator.launch(linked, *arguments, reachable=_reachable.get())

    return call


_reachable: contextvars.ContextVar[tuple[torch.Tensor, ...]] = contextvars.ContextVar("reachable", default=())


@contextlib.contextmanager
def reachable(tensors: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """Within it, emulated kernels may touch `tensors` although they only get their addresses. No effect on a GPU."""
    token = _reachable.set(tensors)
    try:
        yield
    finally:
        _reachable.reset(token)


@functools.cache
def _stream_counter(device: int, stream: int) -> torch.Tensor:
    with torch.cuda.device(device):
        return torch.zeros(1, dtype=torch.int32, device="cuda")


def is_capturing(device: int) -> bool:
    """Whether the current stream of a device is being captured into a CUDA graph."""
    return device != EMULATED and torch.cuda.is_current_stream_capturing()


def raw_stream(device: int) -> int:
    """Handle of the current stream of a device; 0 when emulated."""
    return 0 if device == EMULATED else torch._C._cuda_getCurrentRawStream(device)


def tile_counter(device: int) -> torch.Tensor:
    """The dynamic scheduler's counter, int32 (1,), zero between launches.

    One per stream, since launches on different streams may overlap. Under CUDA-graph capture a fresh one, so that a
    replay cannot meet an eager launch that uses the capturing stream's.
    """
    if device == EMULATED:
        return torch.zeros(1, dtype=torch.int32)
    stream = torch._C._cuda_getCurrentRawStream(device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=torch.device("cuda", device))
    return _stream_counter(device, stream)
