"""Extents and positions of grids, blocks and clusters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dim3:
    """Extent or position in a grid."""

    x: int = 1
    y: int = 1
    z: int = 1

    @property
    def size(self) -> int:
        return self.x * self.y * self.z

    def position(self, rank: int) -> "Dim3":
        return Dim3(rank % self.x, rank // self.x % self.y, rank // (self.x * self.y))


@dataclass(frozen=True)
class LaunchShape:
    """Geometry of a launch; `dynamic_smem` in bytes."""

    grid: Dim3
    block: Dim3
    cluster: Dim3 = Dim3()
    dynamic_smem: int = 0
