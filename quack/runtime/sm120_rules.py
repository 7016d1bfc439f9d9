"""What only the mma.sync kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..sm120.resources import MAIN_LOOP_REGISTERS, PART_REGISTERS, fragment_registers
from .budget import budget_of
from .spec import GATHERING, GemmSpec


def sm120_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, a_bytes = spec.config, spec.operands.a.dtype.bytes
    budget = budget_of(spec)
    fragments = fragment_registers(config, budget)
    limit = budget.mma_registers - MAIN_LOOP_REGISTERS
    adds_parts_and_c = spec.combine is not None and spec.pieces_of is None and spec.operands.c is not None
    if adds_parts_and_c and budget.slabs > 1 and not config.pingpong:
        limit -= PART_REGISTERS
    if budget.accumulator_registers + fragments > limit:
        yield (
            f"{config} needs {budget.accumulator_registers} accumulator registers a thread and {fragments} for operands, "
            f"together at most {limit}",
            "tile_n=128" if config.tile_n > 128 else "tile_n=64",
        )
    if spec.adapter in GATHERING and (config.tile_k or 0) * a_bytes % 128:
        yield (
            f"tile_k={config.tile_k} is {(config.tile_k or 0) * a_bytes} bytes: A_idx picks lines of 128 bytes",
            f"tile_k={128 // a_bytes}",
        )
