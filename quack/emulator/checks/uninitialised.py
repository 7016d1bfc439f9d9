"""Reads of shared or tensor memory that nothing has written, and stores of registers that nothing has written."""

from typing import Any

import numpy as np

from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from ..tensor_memory import COLUMNS, LANES
from .history import WORD, Words
from .ordering import actor_name
from .places import shared_name


class Uninitialised(Observer):
    """Keeps one bit for each byte of shared memory and each cell of tensor memory."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def start(self, machine: Any) -> None:
        self.shared_written: dict[Any, np.ndarray] = {}
        self.tensor_written: dict[Any, np.ndarray] = {}

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        written = self.shared_written.get(cta)
        if written is None:
            written = self.shared_written[cta] = np.zeros(len(cta.smem.bytes) // WORD, np.uint8)
        for where, mask in self.words(offsets, size):
            if access.is_read:
                missing = written[where] & mask != mask
                if missing.any():
                    raise CheckFailed(
                        f"{actor_name(actor)} reads {shared_name(cta, where, int(missing.argmax()))}, "
                        "which nothing has written"
                    )
            if access.is_write:
                written[where] |= np.uint8(mask)

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        written = self.tensor_written.get(cta)
        if written is None:
            written = self.tensor_written[cta] = np.zeros((LANES, COLUMNS), bool)
        cells = written[lanes, columns]
        if access.is_read and not cells.all():
            lane, column = np.unravel_index(int(cells.argmin()), cells.shape)
            raise CheckFailed(
                f"{actor_name(actor)} reads tensor memory of CTA {cta.rank}, lane {lanes.start + lane}, "
                f"column {columns.start + column}, which nothing has written"
            )
        if access.is_write:
            cells[...] = True

    def tensor_alloc(self, warp: Any, cta: Any, column: int, count: int) -> None:
        written = self.tensor_written.get(cta)
        if written is not None:
            written[:, column : column + count] = False

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.shared_written.pop(cta, None)
            self.tensor_written.pop(cta, None)
