"""What only the tcgen05 kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator
from typing import Optional

from ..arch import TCGEN05
from ..gemm_config import Dtype, Major
from ..gemm_port import PortKind, present_ports
from .activation_rules import BACKWARD
from .spec import GATHERING, GROUPED, PARALLEL_COMBINE, RAGGED_M, GemmSpec

ROUNDING = "quack.epilogue.rounding:"
MOST_COLUMNS_REDUCED = 128  # of the gradients of grouped problems; 256 spilt 32 bytes
MOST_COLUMNS_OF_PARTS = 64  # beside what `_held_with_parts` names; 128 spill 144 bytes and more


def sm100_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, a = spec.config, spec.operands.a
    copies_a = spec.adapter in GATHERING and not config.use_tma_gather and spec.pieces_of is None
    if copies_a and a.dtype is Dtype.FP32 and a.major is Major.OUTER:
        yield (
            "fp32 columns of A picked by A_idx do not lie in shared memory as threads copy them",
            "use_tma_gather=True",
        )
    held = _held_with_parts(spec)
    if held is not None and config.tile_n > MOST_COLUMNS_OF_PARTS:
        yield (
            f"tile_n={config.tile_n} leaves too few registers for {held} where parts of a tile are put together",
            f"tile_n={MOST_COLUMNS_OF_PARTS}",
        )
    kinds = {port.kind for port in present_ports(spec.epilogue)}
    is_parallel = spec.combine == PARALLEL_COMBINE
    reduces_beside_tile = {PortKind.ROW_PARTIALS, PortKind.TILE_OUTPUT} <= kinds  # 256 x 128 spills 16 bytes
    if is_parallel and reduces_beside_tile and spec.adapter in RAGGED_M and a.dtype is Dtype.FP32:
        yield (
            "SplitKMode.PARALLEL of ragged fp32 rows leaves too few registers for a tile and a row reduction",
            "SplitKMode.SERIAL",
        )
    reduces_gradient = PortKind.ROW_PARTIALS in kinds and any(op.mixin.startswith(BACKWARD) for op in spec.epilogue)
    if reduces_gradient and spec.adapter == GROUPED and config.tile_n > MOST_COLUMNS_REDUCED:
        yield (
            f"tile_n={config.tile_n} leaves too few registers for the gradient of an activation and its row reduction, and the "
            "addresses of grouped problems",
            f"tile_n={MOST_COLUMNS_REDUCED} with tile_m=256",
        )
    if not config.is_pair:
        return
    if config.cluster_m % 2:
        yield f"tile_m={config.tile_m} is shared by two CTAs, and cluster_m={config.cluster_m} is odd", "cluster_m=2"
    if config.tile_n % TCGEN05.pair_tile_n_step:
        yield (
            f"tile_n={config.tile_n}: tiles of tile_m={config.tile_m}, shared by two CTAs, have multiples of "
            f"{TCGEN05.pair_tile_n_step} columns",
            "tile_n=128",
        )


def _held_with_parts(spec: GemmSpec) -> Optional[str]:
    """What of a kernel that puts parts together takes the registers: random words of all subtiles, or the addresses of the tiles
    that are read by element beside those of ragged rows."""
    if spec.combine is None or spec.pieces_of is not None:
        return None
    if any(op.mixin.startswith(ROUNDING) for op in spec.epilogue):
        return "stochastic rounding"
    reads_tiles = any(port.kind is PortKind.TILE_INPUT for port in present_ports(spec.epilogue))
    return "tiles to add to ragged rows" if reads_tiles and spec.adapter in RAGGED_M else None
