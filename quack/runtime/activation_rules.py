"""Which tiles the activation mixins compile for without spilling registers, found by compiling them all."""

from collections.abc import Iterator

from ..gemm_port import PortKind, PortSource, tile_layouts
from .budget import budget_of
from .spec import GemmSpec

FORWARD, BACKWARD = "quack.epilogue.activation:", "quack.epilogue.activation_backward:"
MOST_WITH_OUTPUT = (
    136  # accumulators: a postact as wide as preact, and a vector, or addresses because it is stored by element
)
MOST_BY_ELEMENT = 96  # several of C, D and postact by element
MOST_REDUCING_BY_ELEMENT = 32  # the same with a row reduction; already one of them
MOST_REDUCING = 96  # with a row reduction in ping-pong; 128 x 128 spills with swiglu
REDUCING_COOPERATIVE = ((128, 256), (256, 128))  # cooperative tiles for a row reduction


def activation_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    ops = [op for op in spec.epilogue if op.mixin.startswith((FORWARD, BACKWARD))]
    if not ops:
        return
    tiles = tile_layouts(spec.epilogue, PortKind.TILE_OUTPUT)
    accessed = [layout for layout in (spec.operands.d, spec.operands.c, *tiles) if layout is not None]
    by_element = sum(not layout.is_tma for layout in accessed)
    has_vector = any(
        port.kind in (PortKind.ROW_VECTOR, PortKind.COL_VECTOR) and port.source is not PortSource.ABSENT
        for op in spec.epilogue
        for port in op.ports
    )
    reduces = any(p.kind is PortKind.ROW_PARTIALS and p.source is not PortSource.ABSENT for op in ops for p in op.ports)
    config = spec.config
    limit, what = 256, ""
    if any(not tile.is_halved and (has_vector or not tile.is_tma) for tile in tiles):
        limit, what = MOST_WITH_OUTPUT, "a postact beside preact"
    if by_element > 1 and tiles:
        limit, what = MOST_BY_ELEMENT, "several of C, preact and postact by element"
    if reduces and by_element:
        limit, what = MOST_REDUCING_BY_ELEMENT, "a row reduction and outputs by element"
    found = budget_of(spec).accumulator_registers
    if found > limit:
        yield f"{config} needs {found} accumulator registers a thread, limit {limit} with {what}", "a smaller tile_n"
    is_cooperative = not config.pingpong and (config.tile_m, config.tile_n) in REDUCING_COOPERATIVE
    is_small = (config.pingpong and found <= MOST_REDUCING and config.tile_n <= 128) or spec.pieces_of is not None
    if reduces and not is_cooperative and not is_small:
        yield (
            f"{config} leaves too few registers for the gradient of an activation and its row reduction",
            f"(tile_m, tile_n) out of {REDUCING_COOPERATIVE} with pingpong=False",
        )
