"""What only the mma.sync kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..sm120.resources import MAIN_LOOP_REGISTERS, PART_REGISTERS, fragment_registers
from .activation_rules import activation_cost
from .budget import budget_of
from .spec import GATHERING, RAGGED_M, GemmSpec

MOST_REDUCING_BY_ELEMENT = (
    96  # accumulators beside row sums of a gradient and several matrices by element; 128 spill 976 bytes
)


def sm120_activation_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative). Of 63 kernels with activations on tiles of 32 to 128 accumulators, 3 spilt: these."""
    cost = activation_cost(spec)
    if cost is None or cost.by_element < 2:
        return
    found = budget_of(spec).accumulator_registers
    if cost.reduces and found > MOST_REDUCING_BY_ELEMENT:
        yield (
            f"{spec.config} needs {found} accumulator registers a thread, limit {MOST_REDUCING_BY_ELEMENT} with row sums and "
            "several of C, preact and postact by element",
            "a smaller tile_n",
        )
    if spec.combine is not None and spec.pieces_of is None and spec.adapter in RAGGED_M:
        yield (
            "several of C, preact and postact by element leave too few registers where parts of ragged rows are put together",
            "split_k=1",
        )


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
