"""What a tile takes of the compiled kernel: one cluster in the emulator, with one tile and with two, with few and more k tiles.

Work grows with tiles and with k tiles and with nothing else, so three launches of the same kernel tell what one tile and one
k tile take, free of what a launch does once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..emulator.stats import KernelStats, Stats
from ..gemm_interface import gemm_tuned
from ..runtime.spec import GemmSpec, UnsupportedGemm
from .lines import Amount, Counted, Resource
from .problem import Problem

FEW_K_TILES, MORE_K_TILES = 2, 4
TILES = 2


@dataclass(frozen=True)
class Launch:
    """tiles: of each CTA; k_tiles: of each tile."""

    tiles: int
    k_tiles: int


def count(problem: Problem, spec: GemmSpec, launches: Sequence[Launch] = ()) -> Counted:
    """Of one CTA. spec: of the problem, with the configuration to run. launches: three, of which the second has more tiles than
    the first and the third more k tiles than the second; the default is small. UnsupportedGemm if whole tiles have another kernel.
    """
    whole, _ = problem.tiles(spec.config, 1, FEW_K_TILES).configured(spec.config)
    if whole != spec:
        raise UnsupportedGemm(
            "rows of D are no multiples of 16 bytes, and only whole tiles are counted", "an aligned shape"
        )
    first, second, third = launches or (
        Launch(1, FEW_K_TILES),
        Launch(TILES, FEW_K_TILES),
        Launch(TILES, MORE_K_TILES),
    )
    one, two, deep = (totals(run(problem, spec, launch)) for launch in (first, second, third))
    ctas = spec.config.cluster_m * spec.config.cluster_n
    found = {}
    for name in {*one, *two, *deep}:
        k_tile = (deep[name] - two[name]) / (third.k_tiles - second.k_tiles) / second.tiles
        tile = (two[name] - one[name]) / (second.tiles - first.tiles) - second.k_tiles * k_tile
        found[name] = Amount(k_tile / ctas, tile / ctas)
    return _lines(found)


def _lines(found: dict[str, Amount]) -> Counted:
    """TMA writes operands k tile by k tile, and C once a tile."""
    written, staged = found["TMA writes"], ("C, D read", "C, D written", "TMA reads")
    return {
        Resource.MMA: found["flops"],
        Resource.SMEM_OPERAND_READS: found["operands read"],
        Resource.SMEM_OPERAND_WRITES: Amount(written.k_tile, 0),
        Resource.SMEM_STAGED: Amount(
            sum(found[name].k_tile for name in staged), written.tile + sum(found[name].tile for name in staged)
        ),
        Resource.SMEM_CONFLICTS: found["conflicts"],
        Resource.L2_LOADS: found["global loads"],
        Resource.L2_STORES: found["global stores"],
        Resource.TMEM: found["tensor loads"],
        Resource.CONVERSIONS: found["conversions"],
        Resource.ISSUE: found["instructions"],
    }


def run(problem: Problem, spec: GemmSpec, launch: Launch) -> KernelStats:
    """One emulated launch on a device that holds one cluster."""
    config, stats = spec.config, Stats()
    request = problem.tiles(config, launch.tiles, launch.k_tiles).request(fill)
    with problem.emulated(config.cluster_m * config.cluster_n, [stats]):
        gemm_tuned.fn(request.A, request.B, request.out, request.C, config=config)
    (kernel,) = stats.kernels.values()
    return kernel


def fill(tensor: torch.Tensor) -> None:
    """Numbers of every dtype, none of which decides what is executed."""
    tensor.copy_(torch.randn(tensor.shape))


def totals(kernel: KernelStats) -> Counter[str]:
    """Of a launch. Registers are loaded with operands by ldmatrix, and with C by ld."""
    conversions = sum(n for code, n in kernel.opcodes().items() if code.startswith("cvt.") and code.endswith(".f32"))
    matrices = "ldmatrix, stmatrix"
    return Counter(
        {
            "flops": kernel.flops,
            "operands read": kernel.bytes("shared", "MMA operands", "read") + kernel.bytes("shared", matrices, "read"),
            "TMA writes": kernel.bytes("shared", "TMA", "written"),
            "TMA reads": kernel.bytes("shared", "TMA", "read"),
            "C, D read": kernel.bytes("shared", "ld, st", "read"),
            "C, D written": kernel.bytes("shared", "ld, st", "written") + kernel.bytes("shared", matrices, "written"),
            "conflicts": sum(site.excess for site in kernel.sites.values()),
            "global loads": kernel.bytes("global", "TMA", "read") + kernel.bytes("global", "ld, st", "read"),
            "global stores": kernel.bytes("global", "TMA", "written") + kernel.bytes("global", "ld, st", "written"),
            "tensor loads": kernel.bytes("tensor", "tcgen05.ld", "read"),
            "conversions": conversions,
            "instructions": epilogue_instructions(kernel),
        }
    )


def epilogue_instructions(kernel: KernelStats) -> int:
    """`KernelStats.epilogue_instructions` without moves between registers: PTX names a pair of them by one, ptxas does not."""
    code = kernel.program.instructions
    kept = [sum(i.parts[0] != "mov" for i in code[region.first : region.end]) for region in kernel.regions]
    warps = [number for role in kernel.roles if "epilogue" in role.name for number in role.warps]
    return sum(int(kernel.epilogue[number] @ kept) for number in warps)
