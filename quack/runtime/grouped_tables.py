"""The device tables of a grouped launch; what is where in them: `grouped_table`."""

from typing import Optional

import numpy as np
import torch

from ..gemm_config import TMA_ALIGN_BYTES, OperandSpec
from ..grouped_table import LINE_WORDS
from .device import EMULATED, is_capturing, raw_stream

LINE_BYTES = 8 * LINE_WORDS


class BoundTables:
    """The tables of one launch for one set of addresses. Immutable once its first launch has run.

    descriptors: so many a problem; sum_descriptors: those of a second launch, whose boxes differ, None if there is none.
    """

    def __init__(self, rows: np.ndarray, device: torch.device, descriptors: int, sum_descriptors: Optional[int] = None):
        self.staging = torch.from_numpy(rows)
        self.descriptors = _aligned_rows(descriptors * len(rows), LINE_WORDS, device)
        self.sum_descriptors: Optional[torch.Tensor] = None
        if sum_descriptors is not None:
            self.sum_descriptors = _aligned_rows(sum_descriptors * len(rows), LINE_WORDS, device)
        self.table = _aligned_rows(len(rows), rows.shape[1], device)
        self.device = self.table.get_device()
        if device.type == "cuda":
            self.staging = self.staging.pin_memory()  # the copy reads it later, a graph at every replay
        self.table.copy_(self.staging, non_blocking=True)
        self.stream = raw_stream(self.device)
        self.written: Optional[torch.cuda.Event] = None

    def use(self) -> None:
        """Before every launch but the first: order the current stream behind the one that wrote the tables. Not while
        capturing, for an event from outside cannot be captured; captures begin on an idle device (`torch.cuda.graph`)."""
        if raw_stream(self.device) == self.stream or self.written is None or is_capturing(self.device):
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self.written)
        for tensor in (self.table, self.descriptors, self.sum_descriptors):
            if tensor is not None:
                tensor.record_stream(current)

    def mark_written(self) -> None:
        """After the first launch."""
        if self.device != EMULATED and not is_capturing(self.device):
            self.written = torch.cuda.current_stream(self.device).record_event()


def pitch_of(spec: OperandSpec, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements between neighbours of the strided mode; a legal number where there are no neighbours."""
    strided, packed = 1 - spec.unit_stride_dim, 2 if spec.dtype.is_packed else 1
    if shape[strided] > 1:
        return strides[strided] * packed
    per_row = TMA_ALIGN_BYTES * 2 if spec.dtype.is_packed else TMA_ALIGN_BYTES // spec.dtype.bytes
    return max(1, -(-shape[1 - strided] * packed // per_row)) * per_row


def _aligned_rows(rows: int, words: int, device: torch.device) -> torch.Tensor:
    """(rows, words) int64, uninitialised, at a multiple of 128 bytes, as words is of 16."""
    buffer = torch.empty(rows * words + LINE_WORDS, dtype=torch.int64, device=device)
    skip = -buffer.data_ptr() % LINE_BYTES // 8
    return buffer[skip : skip + rows * words].view(rows, words)
