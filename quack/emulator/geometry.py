"""Extents and positions of grids, blocks and clusters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Dim3:
    """Extent or position in a grid."""

    x: int = 1
    y: int = 1
    z: int = 1

    @property
    def size(self) -> int:
        return self.x * self.y * self.z

    def __iter__(self) -> Iterator[int]:
        return iter((self.x, self.y, self.z))

    def position(self, rank: int) -> "Dim3":
        return Dim3(rank % self.x, rank // self.x % self.y, rank // (self.x * self.y))


@dataclass(frozen=True)
class LaunchShape:
    """Geometry of a launch; `dynamic_smem` in bytes. preferred: a larger cluster, a multiple of `cluster` that divides the grid, in
    whose place hardware may start it, see `cluster_queue`."""

    grid: Dim3
    block: Dim3
    cluster: Dim3 = Dim3()
    dynamic_smem: int = 0
    preferred: Optional[Dim3] = None
