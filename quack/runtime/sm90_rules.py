"""What only Hopper's kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..gemm_resources import EPILOGUE_REGISTERS
from .activation_rules import activation_cost
from .budget import budget_of
from .spec import GATHERING, GROUPED, STREAM_COMBINE, GemmSpec

THREE_WARPGROUPS_REGISTERS = 128  # of a thread, whatever `setmaxnreg` is set to
# Accumulators beside an activation, found by compiling.
MOST_WITH_OUTPUT = 136  # and a postact as wide as preact, and a vector, or addresses because it is stored by element
MOST_BY_ELEMENT = 96  # and several of C, D and postact by element
MOST_REDUCING_BY_ELEMENT = 32  # the same with a row reduction; already one of them
MOST_REDUCING = 96  # with a row reduction in ping-pong; 128 x 128 spilt with swiglu
# Of cooperative tiles with a 32-bit D: the gradient of an activation where stream-K puts parts together, an activation of grouped
# problems; 128 spilt 16 bytes with gelu, and up to 160 with sigmoid.
MOST_WIDE = 96
REDUCING_COOPERATIVE = ((128, 256), (256, 128))  # cooperative tiles for a row reduction


def sm90_activation_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    cost = activation_cost(spec)
    if cost is None:
        return
    config = spec.config
    limit, what = 256, ""
    if cost.has_wide_output:
        limit, what = MOST_WITH_OUTPUT, "a postact beside preact"
    if cost.by_element > 1 and cost.has_tiles:
        limit, what = MOST_BY_ELEMENT, "several of C, preact and postact by element"
    if cost.reduces and cost.by_element:
        limit, what = MOST_REDUCING_BY_ELEMENT, "a row reduction and outputs by element"
    found = budget_of(spec).accumulator_registers
    if found > limit:
        yield f"{config} needs {found} accumulator registers a thread, limit {limit} with {what}", "a smaller tile_n"
    is_streamed = spec.combine == STREAM_COMBINE and cost.is_gradient and not cost.is_gated_gradient
    is_grouped = spec.adapter == GROUPED and not cost.is_gradient and not cost.has_tiles
    is_wide = not config.pingpong and spec.operands.d.dtype.bits == 32 and found > MOST_WIDE
    if is_wide and (is_streamed or is_grouped):
        yield (
            f"{config} needs {found} accumulator registers a thread, limit {MOST_WIDE} with an activation and fp32 results of "
            f"{'stream-K' if is_streamed else 'grouped problems'}",
            "a smaller tile_n",
        )
    is_cooperative = not config.pingpong and (config.tile_m, config.tile_n) in REDUCING_COOPERATIVE
    is_small = (config.pingpong and found <= MOST_REDUCING and config.tile_n <= 128) or spec.pieces_of is not None
    if cost.reduces and not is_cooperative and not is_small:
        yield (
            f"{config} leaves too few registers for the gradient of an activation and its row reduction",
            f"(tile_m, tile_n) out of {REDUCING_COOPERATIVE} with pingpong=False",
        )


def sm90_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, a_bytes = spec.config, spec.operands.a.dtype.bytes
    if (
        spec.adapter in GATHERING
        and config.tile_m == 192
        and not config.pingpong
        and (config.tile_k or 0) * a_bytes > 128
    ):
        yield (
            f"tile_m=192 leaves loading warps 32 registers, too few to gather tile_k={config.tile_k}",
            f"tile_k={128 // a_bytes}",
        )
    budget = budget_of(spec)
    if budget.fragment_registers:
        registers = THREE_WARPGROUPS_REGISTERS if budget.mma_warpgroups == 3 else budget.mma_registers
        limit = registers - EPILOGUE_REGISTERS - budget.fragment_registers
        if budget.accumulator_registers > limit:
            yield (
                f"{config} needs {budget.accumulator_registers} accumulator registers a thread, limit {limit} beside "
                f"{budget.fragment_registers} for A, which is not K-major",
                "a smaller tile_n",
            )
