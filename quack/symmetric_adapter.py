"""D = D^T: problems whose tiles come in pairs, of which the schedulers of `triangular_scheduler` visit one."""

from .gemm_config import GemmConfig
from .gemm_problem_adapter import DenseAdapter
from .tile_scheduler import TileScheduler
from .triangular_scheduler import (
    TriangularDynamicScheduler,
    TriangularSingleTileScheduler,
    TriangularStaticScheduler,
)


class SymmetricAdapter(DenseAdapter):
    """One GEMM with M = N and a symmetric result, or a batch of them. Tiles are square; goes with `SymmetricCommit`."""

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        if config.is_dynamic_persistent:
            return TriangularDynamicScheduler
        return TriangularStaticScheduler if config.is_persistent else TriangularSingleTileScheduler
