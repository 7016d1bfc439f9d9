"""What only Hopper's kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..gemm_resources import EPILOGUE_REGISTERS
from .budget import budget_of
from .spec import GATHERING, GemmSpec

THREE_WARPGROUPS_REGISTERS = 128  # of a thread, whatever `setmaxnreg` is set to


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
