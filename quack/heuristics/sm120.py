"""Numbers for mma.sync kernels of sm_120, from data sheets: nothing here has been measured.

99 KB of shared memory hold two to four stages of such tiles, and there is no multicast.
"""

from ..arch import Arch
from ..gemm_config import mma_warpgroups
from ..runtime.spec import GemmSpec
from .tuning import Roofline, Tuning
from .work import line_bytes

TILES = {
    (128, 128, False): 0.95,
    (128, 128, True): 0.97,
    (128, 64, False): 0.88,
    (128, 64, True): 0.90,
    (64, 128, True): 0.88,
    (64, 64, True): 0.75,
    (64, 64, False): 0.45,  # one warpgroup stages half of what two do: epilogues with many tiles fit
    (64, 32, True): 0.50,
    (64, 16, True): 0.30,
}

WARPS = 4  # of a warpgroup, stacked along M


def operand_reads(spec: GemmSpec) -> int:
    """A warp loads its rows of A and all columns of B into registers."""
    config, (a_line, b_line) = spec.config, line_bytes(spec)
    warps = WARPS * (1 if config.pingpong else mma_warpgroups(config))
    return config.tile_m * a_line + warps * config.tile_n * b_line


def tuning(arch: Arch) -> Tuning:
    return Tuning(
        roofline=Roofline.of(arch),
        operand_reads=operand_reads,
        tiles={16: TILES},
        fp8_precise=TILES,
        clusters=((1, 1),),
        ragged_clusters=((1, 1),),
        gather_clusters=((1, 1),),
        symmetric_tiles=((128, True), (64, True), (128, False)),
        smallest=(64, 64, True),
    )
