"""Hopper's numbers, measured on an H200 (`benchmarks/gemm.py --tune`); they only need to rank configurations."""

from ..arch import Arch
from ..gemm_resources import SLAB_M
from ..runtime.spec import GemmSpec
from .tuning import Roofline, Tuning
from .work import line_bytes

MEASURED = Roofline(
    mma_flops_per_ns={32: 3100.0, 16: 6200.0, 8: 12200.0},  # tf32 not measured: half of 16 bits
    l2_bytes_per_ns=74.0,
    l2_burst_bytes_per_ns=110.0,
    hbm_bytes_per_ns=4100.0,
    store_bytes_per_ns=28.0,
    partial_bytes_per_ns=33.0,  # the second launch of 256 x 256 x 65536: 0.13 us a part, 64 SMs
    l2_total_bytes_per_ns=5500.0,  # an estimate, as are the times for split-K in `Roofline`
    l2_bytes=40e6,
    grouped_l2_bytes_per_ns=60.0,
    gather_bytes_per_ns=24.0,
    smem_bytes_per_ns=253.0,  # 128 a clock at 1.98 GHz, the highest; 92 and 92 have been seen (benchmarks/smem_ports.py)
)
TILES_16BIT = {
    (128, 256, False): 0.99,
    (256, 128, False): 0.98,
    (128, 192, True): 0.985,
    (128, 176, True): 0.985,
    (128, 160, True): 0.985,
    (128, 144, True): 0.975,
    (128, 192, False): 0.97,
    (128, 128, True): 0.98,
    (64, 256, True): 0.92,
    (128, 128, False): 0.90,
    (64, 192, True): 0.88,
    (128, 96, True): 0.80,
    (64, 128, True): 0.80,
    (128, 64, True): 0.70,
    (64, 64, True): 0.50,
    (64, 32, True): 0.30,
    (64, 16, True): 0.16,
}
# Measured with dense 16-bit operands only, where they save part of a wave. Grouped, 128 x 176 took 286 us where 128 x 192
# took 265 (64 problems, log-uniform sizes).
DENSE_16BIT_TILES = {(128, 176, True), (128, 160, True), (128, 144, True)}
TILES_FP8_FAST = {tile: share for tile, share in TILES_16BIT.items() if tile not in DENSE_16BIT_TILES} | {
    (128, 256, False): 0.94,
    (256, 128, False): 0.93,
    (128, 192, True): 1.00,
    (128, 192, False): 0.93,
    (128, 128, True): 0.99,
    (64, 256, True): 0.97,
}
# Partial sums take registers, so tiles are narrower; cooperative warpgroups add while the other multiplies.
TILES_FP8_PRECISE = {
    (128, 192, False): 0.90,
    (128, 176, False): 0.93,
    (128, 160, False): 0.88,
    (128, 128, False): 0.84,
    (64, 128, True): 0.52,
    (128, 64, False): 0.60,
    (64, 64, True): 0.40,
    (64, 32, True): 0.24,
    (64, 16, True): 0.13,
}


def operand_reads(spec: GemmSpec) -> int:
    """Each wgmma, of 64 rows, reads its rows of A and all columns of B."""
    a_line, b_line = line_bytes(spec)
    return spec.config.tile_m // SLAB_M * (SLAB_M * a_line + spec.config.tile_n * b_line)


MEASURED_TUNING = Tuning(
    roofline=MEASURED,
    operand_reads=operand_reads,
    tiles={16: TILES_16BIT, 8: TILES_FP8_FAST},
    fp8_precise=TILES_FP8_PRECISE,
    dense_only=frozenset(DENSE_16BIT_TILES),
    clusters=((2, 1), (1, 2), (1, 1)),
    # Ragged M, 8 to 128 groups: tiles drawn from a counter and A multicast along N won everywhere, most with 128 x 128.
    ragged_clusters=((1, 2), (2, 1), (1, 1)),
    gather_clusters=((1, 1),),  # sharing B made copying threads wait for each other: slower at every size tried
    split_clusters=((2, 2),),  # deep products of few tiles read every element once then
    symmetric_tiles=((128, True), (64, True), (128, False)),
    smallest=(64, 64, True),
    ragged_cooperative=1.06,  # measured: how much longer cooperative tiles take than their dense efficiency says
    ragged_wide=1.02,  # the same for tiles of more than 128 columns: the power limit hits them harder
    grouped_swap=1.6,  # how much longer 64 problems of 64 to 4096 took as D^T; not understood, see docs/measured_facts.md
)


def tuning(arch: Arch) -> Tuning:
    """There is one Hopper target."""
    return MEASURED_TUNING
