"""What of an activation's epilogue costs registers. How much there is room for is each kernel's own: see `sm90_rules`,
`sm100_rules`, `sm120_rules`."""

from dataclasses import dataclass
from typing import Optional

from ..gemm_port import PortKind, PortSource, tile_layouts
from .spec import GemmSpec

FORWARD, BACKWARD = "quack.epilogue.activation:", "quack.epilogue.activation_backward:"
GATE_BACKWARD = BACKWARD + "GateBackward"


@dataclass(frozen=True)
class ActivationCost:
    """Of a spec with an activation, or the gradient of one.

    by_element:  how many of C, D and the other tiles are accessed element by element; outputs_by_element: of D and the tiles.
    has_wide_output: a tile as wide as D beside a vector, or by element.
    has_tiles:   other tiles than D are stored.
    is_gradient: of an activation. reduces: with its row sums. is_gated_gradient: both gradients of a gated activation in a word.
    """

    by_element: int
    outputs_by_element: int
    has_wide_output: bool
    has_tiles: bool
    is_gradient: bool
    reduces: bool
    is_gated_gradient: bool


def activation_cost(spec: GemmSpec) -> Optional[ActivationCost]:
    """None without activation."""
    ops = [op for op in spec.epilogue if op.mixin.startswith((FORWARD, BACKWARD))]
    if not ops:
        return None
    tiles = tile_layouts(spec.epilogue, PortKind.TILE_OUTPUT)
    c = () if spec.operands.c is None else (spec.operands.c,)
    has_vector = any(
        port.kind in (PortKind.ROW_VECTOR, PortKind.COL_VECTOR) and port.source is not PortSource.ABSENT
        for op in spec.epilogue
        for port in op.ports
    )
    outputs_by_element = sum(not layout.is_tma for layout in (spec.operands.d, *tiles))
    return ActivationCost(
        by_element=outputs_by_element + sum(not layout.is_tma for layout in c),
        outputs_by_element=outputs_by_element,
        has_wide_output=any(not tile.is_halved and (has_vector or not tile.is_tma) for tile in tiles),
        has_tiles=bool(tiles),
        is_gradient=any(op.mixin.startswith(BACKWARD) for op in ops),
        reduces=any(
            p.kind is PortKind.ROW_PARTIALS and p.source is not PortSource.ABSENT for op in ops for p in op.ports
        ),
        is_gated_gradient=any(op.mixin == GATE_BACKWARD for op in ops),
    )
