"""What the host must know about a CUDA device: architecture, size, current stream, tile counters."""

import functools
from typing import NamedTuple

import torch

from .spec import UnsupportedGemm

ARCH_OF_CAPABILITY = {(9, 0): "sm_90a", (10, 0): "sm_100a", (10, 3): "sm_103a", (12, 0): "sm_120a", (12, 1): "sm_121a"}


class Device(NamedTuple):
    """ordinal: CUDA device number; sms: streaming multiprocessors."""

    ordinal: int
    arch: str
    sms: int


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


@functools.cache
def _stream_counter(device: int, stream: int) -> torch.Tensor:
    with torch.cuda.device(device):
        return torch.zeros(1, dtype=torch.int32, device="cuda")


def tile_counter(device: int) -> torch.Tensor:
    """The dynamic scheduler's counter, int32 (1,), zero between launches.

    One per stream, since launches on different streams may overlap. Under CUDA-graph capture a fresh one, so that a
    replay cannot meet an eager launch that uses the capturing stream's.
    """
    stream = torch._C._cuda_getCurrentRawStream(device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=torch.device("cuda", device))
    return _stream_counter(device, stream)
