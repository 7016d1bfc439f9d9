"""The address spaces: parameters, shared memory of each CTA, local memory, and the host memory that stands for global.

Generic addresses of the windows are placed where no host pointer can be (bits 60 to 62); anything else is global.
"""

import bisect
import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np

from .errors import IllegalAccess

SHARED_WINDOW = 1 << 62
LOCAL_WINDOW = 1 << 61
PARAM_WINDOW = 1 << 60

# A shared::cluster address is CTA rank << 24 | offset. The first KiB of a CTA's shared memory belongs to the system.
RANK_SHIFT = 24
OFFSET_MASK = (1 << RANK_SHIFT) - 1
SHARED_RESERVED = 1024
SHARED_POISON = 0xA5


class GlobalMemory:
    """Host memory, restricted to the address ranges that were handed to the launch."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """ranges: (address, bytes) of each tensor; overlapping and touching ranges are merged."""
        merged: list[list[int]] = []
        for start, size in sorted(ranges):
            if size and merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], start + size)
            elif size:
                merged.append([start, start + size])
        self.starts = [start for start, _ in merged]
        self.ends = [end for _, end in merged]
        # Views begin at a multiple of 256 bytes, so that typed views of them are aligned; what lies before `start` is
        # never touched.
        self.bases = [start & ~255 for start in self.starts]
        self.bytes = [
            np.ctypeslib.as_array((ctypes.c_uint8 * (end - base)).from_address(base))
            for base, end in zip(self.bases, self.ends)
        ]
        self.typed: dict[tuple[int, Any], np.ndarray] = {}

    def find(self, address: int, size: int) -> int:
        """Index of the range that holds these bytes."""
        i = bisect.bisect_right(self.starts, address) - 1
        if i < 0 or address + size > self.ends[i]:
            raise IllegalAccess(f"global memory access {self.describe(address, size)}")
        return i

    def describe(self, address: int, size: int) -> str:
        """Where an illegal access lies with respect to the nearest tensor."""
        if not self.starts:
            return f"at {address:#x} ({size} bytes): no tensor was passed to this launch"
        before = [(address - end, f"{address - end} bytes behind the end") for end in self.ends if address >= end]
        after = [(start - address, f"{start - address} bytes before the start") for start in self.starts]
        inside = [
            (0, f"{address - start} bytes into a tensor of {end - start} bytes, across its end")
            for start, end in zip(self.starts, self.ends)
            if start <= address < end
        ]
        _, where = min(inside or before + [x for x in after if x[0] > 0])
        return f"at {address:#x} ({size} bytes) is outside every tensor: {where} of the nearest one"

    def view(self, address: int, size: int) -> np.ndarray:
        """Bytes [address, address + size) as a uint8 array over the host memory."""
        i = self.find(address, size)
        offset = address - self.bases[i]
        return self.bytes[i][offset : offset + size]

    def typed_view(self, i: int, dtype: Any) -> np.ndarray:
        """Range i as an array of `dtype` that starts at its base."""
        key = (i, dtype)
        if key not in self.typed:
            raw = self.bytes[i]
            whole = len(raw) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize
            self.typed[key] = raw[:whole].view(dtype)
        return self.typed[key]

    def locate(self, addresses: np.ndarray, size: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """(array, indices) such that array[indices] are the elements of `dtype` at `addresses`, all in one range.

        size: bytes that each address accesses (a multiple of the element).
        """
        low, high = int(addresses.min()), int(addresses.max())
        i = self.find(low, size)
        if high + size > self.ends[i]:
            self.find(high, size)
            raise IllegalAccess("lanes of one instruction access different tensors")  # handled lane by lane by callers
        element = np.dtype(dtype).itemsize
        return self.typed_view(i, dtype), (addresses - np.uint64(self.bases[i])).astype(np.int64) // element


class SharedMemory:
    """Shared memory of one CTA, indexed by offset in its window (the reserved first KiB included)."""

    def __init__(self, size: int) -> None:
        """size: bytes of static and dynamic shared memory."""
        self.size = SHARED_RESERVED + size
        self.bytes = np.full(-(-self.size // 16) * 16, SHARED_POISON, np.uint8)
        self.views = {dtype: self.bytes.view(dtype) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64)}

    def check(self, offset: int, size: int) -> None:
        """Raise unless [offset, offset + size) belongs to the kernel."""
        if offset < SHARED_RESERVED or offset + size > self.size:
            raise IllegalAccess(
                f"shared memory access at offset {offset - SHARED_RESERVED} ({size} bytes): the CTA has "
                f"{self.size - SHARED_RESERVED} bytes"
            )
