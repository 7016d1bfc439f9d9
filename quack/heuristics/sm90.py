"""Which configuration for which shape on Hopper: a small roofline model, pure Python.

    time = waves * max(MMA, L2 traffic) per tile + what the epilogue does not hide, at least the HBM time

Rates are those measured on an H200 (`benchmarks/gemm.py --tune`); they only need to rank configurations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

from ..gemm_config import Dtype, GemmConfig, RasterOrder
from ..gemm_port import present_ports
from ..runtime.legality import legality
from ..runtime.spec import DENSE, GATHERING, GemmShape, GemmSpec, UnsupportedGemm
from ..sm90.resources import resources

# One SM, large tiles, by element bits; fp32 (tf32): half the 16-bit rate, not measured.
MMA_FLOPS_PER_NS = {32: 3100.0, 16: 6200.0, 8: 12200.0}
L2_BYTES_PER_NS = 74.0  # one SM, sustained, after multicast
HBM_BYTES_PER_NS = 4100.0  # whole device
STORE_BYTES_PER_NS = 28.0  # one SM draining a tile
TILE_START_NS = 700.0  # pipeline fill of a tile
LAUNCH_NS = 2500.0

# (tile_m, tile_n, pingpong) and the share of the MMA rate its mainloop reaches.
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
CLUSTERS = ((2, 1), (1, 2), (1, 1))
# Ragged M, 8 to 128 groups on an H200: tiles drawn from a counter and A multicast along N won everywhere, most with 128 x 128.
RAGGED_CLUSTERS = ((1, 2), (2, 1), (1, 1))
RAGGED_SWIZZLE = 16
RAGGED_COOPERATIVE = 1.06  # measured: how much longer cooperative tiles take than their dense efficiency says
RAGGED_WIDE = 1.02  # the same for tiles of more than 128 columns: the power limit hits them harder
GATHER_CLUSTERS = ((1, 1),)  # sharing B made copying threads wait for each other: slower at every size tried
GATHER_BYTES_PER_NS = 24.0  # of A, one SM: what the copying warps reach beside the multiplication
GROUPED_SWAP = 1.6  # how much longer 64 problems of 64 to 4096 took as D^T; not understood, see docs/measured_facts.md
GROUPED_L2_BYTES_PER_NS = 60.0  # as L2_BYTES_PER_NS where neighbouring tiles often belong to different problems


@dataclass(frozen=True)
class Candidate:
    """A legal configuration and the model's time for it."""

    spec: GemmSpec
    shape: GemmShape  # in kernel terms
    predicted_ns: float


def predict_ns(spec: GemmSpec, shape: GemmShape, sms: int) -> float:
    """Modelled run time of one launch."""
    config = spec.config
    tiles_m: float = _round_up(math.ceil(shape.m / config.tile_m), config.cluster_m)
    if shape.is_ragged_m:
        tiles_m = shape.m / config.tile_m + 0.25 * config.cluster_m  # each problem ends in a tile that multiplies half
    tiles_n = _round_up(math.ceil(shape.n / config.tile_n), config.cluster_n)
    waves = math.ceil(tiles_m * tiles_n * shape.batch / sms)
    exposed = drain_ns(spec) if config.pingpong else 0.0
    compute = waves * tile_ns(spec, shape.k) + exposed
    moved = shape.batch * bytes_moved(spec, shape)
    if shape.is_ragged_m:
        compute *= 1.0 if config.pingpong else RAGGED_COOPERATIVE
        compute *= 1.0 if config.tile_n <= 128 else RAGGED_WIDE
    # The last term breaks ties among memory-bound configurations in favour of the one with slack.
    return LAUNCH_NS + max(compute, moved / HBM_BYTES_PER_NS) + 0.02 * compute


def tile_ns(spec: GemmSpec, k: int, l2_bytes_per_ns: float = L2_BYTES_PER_NS) -> float:
    """Time from one tile to the next on one SM."""
    config, size = spec.config, spec.operands.a.dtype.bytes
    assert config.tile_k is not None
    k = math.ceil(k / config.tile_k) * config.tile_k
    efficiency = tile_efficiency(spec).get((config.tile_m, config.tile_n, config.pingpong), 0.5)
    mma = 2 * config.tile_m * config.tile_n * k / (MMA_FLOPS_PER_NS[spec.operands.a.dtype.bits] * efficiency)
    traffic = (config.tile_m / config.cluster_n + config.tile_n / config.cluster_m) * k * size / l2_bytes_per_ns
    copies = config.tile_m * k * size / GATHER_BYTES_PER_NS if spec.adapter in GATHERING else 0.0
    return max(mma, traffic, copies) + (0 if config.pingpong else TILE_START_NS + drain_ns(spec))


def drain_ns(spec: GemmSpec) -> float:
    """Epilogue of one tile; ping-pong hides it behind the other warpgroup's multiplication."""
    return spec.config.tile_m * spec.config.tile_n * output_bytes(spec) / STORE_BYTES_PER_NS


def output_bytes(spec: GemmSpec) -> float:
    """Moved per element of the accumulator: D, C and the mixins' tiles."""
    tiles = (port.layout for port in present_ports(spec.epilogue) if port.layout is not None)
    moved = [spec.operands.d, spec.operands.c, *tiles]
    return sum(t.dtype.bytes / (2 if t.is_halved else 1) for t in moved if t is not None)


def bytes_moved(spec: GemmSpec, shape: GemmShape) -> float:
    """Least HBM traffic of one problem."""
    inputs = (shape.m + shape.n) * shape.k * spec.operands.a.dtype.bytes
    return inputs + shape.m * shape.n * output_bytes(spec)


def tile_efficiency(spec: GemmSpec) -> dict[tuple[int, int, bool], float]:
    """The tiles worth trying for this accumulation mode, and how well they run."""
    dtype = spec.operands.a.dtype
    if not dtype.is_fp8:
        if spec.adapter == DENSE and dtype is not Dtype.FP32:
            return TILES_16BIT
        return {tile: share for tile, share in TILES_16BIT.items() if tile not in DENSE_16BIT_TILES}
    return TILES_FP8_FAST if spec.fast_accum else TILES_FP8_PRECISE


def candidates(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None) -> list[Candidate]:
    """Every legal configuration, best predicted first. `swapped` is `base` computing D^T = B^T A^T."""
    found = []
    for spec, extents in ((base, shape), (swapped, shape.swapped())):
        if spec is None:
            continue
        for tile_m, tile_n, pingpong in tile_efficiency(spec):
            for cluster_m, cluster_n in cluster_shapes(spec, extents):
                config = GemmConfig(
                    tile_m,
                    tile_n,
                    pingpong=pingpong,
                    cluster_m=cluster_m,
                    cluster_n=cluster_n,
                    swap_ab=spec is swapped,
                    max_swizzle_size=swizzle_size(extents, tile_m * cluster_m, tile_n * cluster_n),
                    raster=RasterOrder.ALONG_N if extents.is_ragged_m else RasterOrder.ALONG_M,
                ).with_tile_k(spec.operands.a.dtype)
                candidate = replace(spec, config=config)
                if legality(candidate).ok and _pays_off(config, extents):
                    found.append(Candidate(candidate, extents, predict_ns(candidate, extents, sms)))
    return sorted(found, key=lambda c: c.predicted_ns)


def choose(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None) -> GemmSpec:
    """The best predicted legal configuration; raises with the reason if none is legal."""
    ranked = candidates(base, shape, sms, swapped)
    if ranked:
        return ranked[0].spec
    smallest = GemmConfig(64, 64, pingpong=True, cluster_m=1).with_tile_k(base.operands.a.dtype)
    legality(replace(base, config=smallest)).require()
    raise UnsupportedGemm("no tile configuration fits this combination of operands and epilogue")


def choose_grouped(
    base: GemmSpec, shapes: Sequence[GemmShape], sms: int, swapped: Optional[GemmSpec] = None
) -> GemmSpec:
    """The best predicted legal configuration for problems of different sizes in one launch."""
    largest = max(shapes, key=lambda shape: shape.flops)
    choices = [candidate.spec for candidate in candidates(base, largest, sms, swapped)]
    if not choices:
        return choose(base, largest, sms, swapped)

    def grouped_ns(spec: GemmSpec) -> float:
        if spec.config.swap_ab:
            return GROUPED_SWAP * predict_grouped_ns(spec, [s.swapped() for s in shapes], sms)
        return predict_grouped_ns(spec, shapes, sms)

    return min(choices, key=grouped_ns)


def predict_grouped_ns(spec: GemmSpec, shapes: Sequence[GemmShape], sms: int) -> float:
    """Modelled run time of one launch whose clusters draw tiles, longest K first."""
    config = spec.config
    works, longest, moved = 0.0, 0.0, 0.0
    for shape in shapes:
        tile = tile_ns(spec, shape.k, GROUPED_L2_BYTES_PER_NS)
        full_rows, rest = divmod(shape.m, config.tile_m * config.cluster_m)
        last_row = 0.0 if rest == 0 else 0.5 if rest <= config.tile_m // 2 else 1.0  # short tiles multiply half
        tiles_n = _round_up(math.ceil(shape.n / config.tile_n), config.cluster_n)
        works += (full_rows + last_row) * config.cluster_m * tiles_n * tile
        longest = max(longest, tile)
        moved += bytes_moved(spec, shape)
    return LAUNCH_NS + max(works / sms + 0.5 * longest, longest, moved / HBM_BYTES_PER_NS)


def cluster_shapes(spec: GemmSpec, shape: GemmShape) -> tuple[tuple[int, int], ...]:
    """Clusters worth trying."""
    if spec.adapter in GATHERING:
        return GATHER_CLUSTERS
    return RAGGED_CLUSTERS if shape.is_ragged_m else CLUSTERS


def swizzle_size(shape: GemmShape, cluster_tile_m: int, cluster_tile_n: int) -> int:
    """Cluster tiles across one L2 strip; strips run along M, so they are cut along N."""
    if shape.is_ragged_m:
        return RAGGED_SWIZZLE
    return max(1, min(4, math.ceil(shape.n / cluster_tile_n)))


def explain(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None) -> str:
    """The choice and its runners-up with predicted times."""
    lines = []
    for candidate in candidates(base, shape, sms, swapped)[:4]:
        spec = candidate.spec
        budget = resources(spec.operands, spec.config, spec.fast_accum, spec.epilogue)
        lines.append(
            f"{candidate.predicted_ns / 1e3:9.1f} us  {spec.config}  "
            f"{budget.ab_stages} stages, {budget.smem_bytes} B smem, {budget.threads} threads"
        )
    return "\n".join(lines)


def _pays_off(config: GemmConfig, shape: GemmShape) -> bool:
    """A cluster wider than the problem would only load tiles that nobody needs."""
    return (config.cluster_m == 1 or shape.m > config.tile_m) and (config.cluster_n == 1 or shape.n > config.tile_n)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
