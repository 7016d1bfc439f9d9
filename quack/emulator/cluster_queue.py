"""The clusters of a launch that have not started, of one shape or of two.

With a preferred cluster shape, hardware groups CTAs either as that says or into regular clusters (CUDA runtime API,
cudaLaunchAttributePreferredClusterDimension): here a preferred cluster's place is taken whole, or broken up into regular ones. Each
kind is numbered as if the launch had no other. Which of the two starts is up to the schedule: they alternate, or are drawn at
random. A request to cancel gets a cluster of the shape of the one that asks.
"""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Optional

from .geometry import Dim3, LaunchShape


@dataclass(frozen=True)
class Place:
    """A cluster to be: `index` among those of its shape."""

    index: Dim3
    dims: Dim3

    @property
    def origin(self) -> Dim3:
        """Index of its first CTA."""
        return Dim3(*(i * d for i, d in zip(self.index, self.dims)))


class ClusterQueue:
    """In order of their index; `random` decides between the shapes, if there are two."""

    def __init__(self, shape: LaunchShape, random: Optional[Random]) -> None:
        self.regular, self.preferred, self.random = shape.cluster, shape.preferred, random
        self.whole = deque(_places(shape.grid, self.preferred or self.regular))
        self.pieces: deque[Place] = deque()  # of a preferred cluster's place that has been broken up
        self.was_preferred = False

    def __bool__(self) -> bool:
        return bool(self.whole or self.pieces)

    def take(self, dims: Dim3) -> Optional[Place]:
        """The next one of this shape, if any is left."""
        if dims == (self.preferred or self.regular):
            return self.whole.popleft() if self.whole else None
        if not self.pieces and self.whole:
            self.pieces.extend(_parts(self.whole.popleft(), self.regular))
        return self.pieces.popleft() if self.pieces else None

    def start(self, free: int) -> Optional[Place]:
        """What starts next on so many free SMs; None: nothing fits, or nothing is left."""
        if self.preferred is not None and self.preferred.size <= free and self.whole and self._prefers():
            return self.take(self.preferred)
        return self.take(self.regular) if self.regular.size <= free else None

    def _prefers(self) -> bool:
        if self.random is not None:
            return self.random.random() < 0.5
        if not self.pieces:  # or the other parts of what has been broken up
            self.was_preferred = not self.was_preferred
        return self.was_preferred


def _places(grid: Dim3, dims: Dim3) -> list[Place]:
    counts = Dim3(*(g // d for g, d in zip(grid, dims)))
    return [Place(counts.position(i), dims) for i in range(counts.size)]


def _parts(whole: Place, dims: Dim3) -> list[Place]:
    """The regular clusters in place of a preferred one."""
    first = [o // d for o, d in zip(whole.origin, dims)]
    return [Place(Dim3(*(f + i for f, i in zip(first, part.index))), dims) for part in _places(whole.dims, dims)]
