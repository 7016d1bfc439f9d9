"""Which configuration for which shape: a small roofline model for every architecture, pure Python.

    time = waves * max(MMA, shared memory, L2 traffic) per tile + what the epilogue does not hide, at least the HBM time

Its numbers are those of the spec's architecture (`tuning_of`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

from ..arch import ARCHES, Feature
from ..gemm_config import GemmConfig, RasterOrder
from ..gemm_port import present_ports
from ..runtime.budget import budget_of
from ..runtime.legality import legality
from ..runtime.spec import GATHERING, GemmShape, GemmSpec, UnsupportedGemm
from . import sm90, sm100, sm120
from .tuning import Clusters, Roofline, Tile, Tuning
from .work import drain_work, k_tile_work

TUNINGS = {"quack.sm90": sm90.tuning, "quack.sm100": sm100.tuning, "quack.sm120": sm120.tuning}


@functools.cache
def tuning_of(arch: str) -> Tuning:
    """The numbers of an architecture, and the tiles to try there."""
    return TUNINGS[ARCHES[arch].execution.package](ARCHES[arch])


def roofline_of(arch: str) -> Roofline:
    """The rates of an architecture."""
    return tuning_of(arch).roofline


@dataclass(frozen=True)
class Candidate:
    """A legal configuration and the model's time for it."""

    spec: GemmSpec
    shape: GemmShape  # in kernel terms
    predicted_ns: float


def predict_ns(spec: GemmSpec, shape: GemmShape, sms: int) -> float:
    """Modelled run time of one launch."""
    config, tuning = spec.config, tuning_of(spec.arch)
    tiles_m: float = _round_up(math.ceil(shape.m / config.cta_tile_m), config.cluster_m)
    if shape.is_ragged_m:
        tiles_m = (
            shape.m / config.cta_tile_m + 0.25 * config.cluster_m
        )  # each problem ends in a tile that multiplies half
    tiles_n = _round_up(math.ceil(shape.n / config.tile_n), config.cluster_n)
    waves = math.ceil(tiles_m * tiles_n * shape.batch / sms)
    exposed = drain_ns(spec) if hides_drain(spec) else 0.0
    compute = waves * tile_ns(spec, shape.k, rates_of(spec, waves, shape.k)) + exposed
    moved = shape.batch * bytes_moved(spec, shape)
    if shape.is_ragged_m:
        compute *= 1.0 if config.pingpong else tuning.ragged_cooperative
        compute *= 1.0 if config.tile_n <= 128 else tuning.ragged_wide
    # The last term breaks ties among memory-bound configurations in favour of the one with slack.
    rates = tuning.roofline
    return launch_ns(spec) + overlapped(compute, moved / rates.hbm_bytes_per_ns) + 0.02 * compute


def overlapped(*times: float) -> float:
    """The time of things that go on together: the longest, and a little more where several are about as long."""
    longest = max(*times, 1.0)
    return longest * sum((time / longest) ** 4 for time in times) ** 0.25


def launch_ns(spec: GemmSpec) -> float:
    """Before the first work and after the last."""
    rates, config = roofline_of(spec.arch), spec.config
    return rates.launch_ns + (rates.cluster_ns if config.cluster_m * config.cluster_n > 1 else 0.0)


def rates_of(spec: GemmSpec, waves: int, k: int) -> Roofline:
    """The rates of a launch: higher where all that an SM loads is one small tile."""
    rates = roofline_of(spec.arch)
    is_short = waves <= 1 and traffic_ns(spec, k, rates) * rates.l2_bytes_per_ns <= rates.burst_bytes
    return replace(rates, l2_bytes_per_ns=rates.l2_burst_bytes_per_ns) if is_short else rates


def hides_drain(spec: GemmSpec) -> bool:
    """Whether a tile's epilogue runs behind the next tile's multiplication."""
    return spec.config.pingpong or overlaps_drain(spec)


def overlaps_drain(spec: GemmSpec) -> bool:
    """The same of tiles that are not ping-pong: block scales may leave tensor memory no room for two."""
    return tuning_of(spec.arch).overlaps_drain and budget_of(spec).acc_stages > 1


def traffic_ns(spec: GemmSpec, k: int, rates: Roofline) -> float:
    """A tile's operands from the L2 to one SM."""
    config = spec.config
    lines = config.cta_tile_m / config.cluster_n + config.tile_n / config.cluster_m
    return lines * k * element_bytes(spec) / rates.l2_bytes_per_ns


def smem_ns(spec: GemmSpec, k: int, rates: Roofline) -> float:
    """What goes through shared memory while one tile is multiplied: its operands, in and out, and what the epilogue of another
    tile stages, where tiles drain behind the next one (the model hides that of ping-pong as a whole)."""
    assert spec.config.tile_k is not None
    tuning = tuning_of(spec.arch)
    moved = k / spec.config.tile_k * k_tile_work(tuning, spec).smem_bytes
    return (moved + (drain_work(spec).smem_bytes if overlaps_drain(spec) else 0)) / rates.smem_bytes_per_ns


def tile_ns(spec: GemmSpec, k: int, rates: Roofline) -> float:
    """Time from one tile to the next on one SM."""
    config, size, tuning = spec.config, element_bytes(spec), tuning_of(spec.arch)
    tile_m = config.cta_tile_m
    assert config.tile_k is not None
    k = math.ceil(k / config.tile_k) * config.tile_k
    efficiency = tuning.tiles_of(spec).get((config.tile_m, config.tile_n, config.pingpong), 0.5)
    mma = 2 * tile_m * config.tile_n * k / (rates.mma_flops_per_ns[spec.operands.a.dtype.bits] * efficiency)
    traffic = traffic_ns(spec, k, rates)
    copies = (
        tile_m * k * size / rates.gather_bytes_per_ns
        if spec.adapter in GATHERING and not config.use_tma_gather
        else 0.0
    )
    shared = smem_ns(spec, k, rates)
    if overlaps_drain(spec):
        return max(mma, shared, traffic, copies, drain_ns(spec))
    return max(mma, shared, traffic, copies) + (0 if config.pingpong else rates.tile_start_ns + drain_ns(spec))


def drain_ns(spec: GemmSpec) -> float:
    """Epilogue of one tile; see `hides_drain`."""
    return spec.config.cta_tile_m * spec.config.tile_n * output_bytes(spec) / roofline_of(spec.arch).store_bytes_per_ns


def element_bytes(spec: GemmSpec) -> float:
    """Of A or B, with its part of a scale."""
    a = spec.operands.a
    return a.dtype.bits / 8 + (0.0 if a.scaling is None else 1 / a.scaling.block)


def output_bytes(spec: GemmSpec) -> float:
    """Moved per element of the accumulator: D, C and the mixins' tiles."""
    tiles = (port.layout for port in present_ports(spec.epilogue) if port.layout is not None)
    moved = [spec.operands.d, spec.operands.c, *tiles]
    return sum(t.dtype.bytes / (2 if t.is_halved else 1) for t in moved if t is not None)


def bytes_moved(spec: GemmSpec, shape: GemmShape) -> float:
    """Least HBM traffic of one problem."""
    inputs = (shape.m + shape.n) * shape.k * element_bytes(spec)
    return inputs + shape.m * shape.n * output_bytes(spec)


def candidates(
    base: GemmSpec,
    shape: GemmShape,
    sms: int,
    swapped: Optional[GemmSpec] = None,
    clusters: Optional[Clusters] = None,
) -> list[Candidate]:
    """Every legal configuration, best predicted first. `swapped` is `base` computing D^T = B^T A^T. clusters: to try instead of
    those of the tuning."""
    tuning, capability, found = tuning_of(base.arch), ARCHES[base.arch].capability[0], []
    for spec, extents in ((base, shape), (swapped, shape.swapped())):
        if spec is None:
            continue
        tile_k = spec.operands.a.dtype.elements_in(128)
        for tile_m, tile_n, pingpong in tuning.tiles_of(spec):
            for cluster_m, cluster_n in clusters or tuning.clusters_of(spec, extents.is_ragged_m):
                config = GemmConfig(
                    tile_m,
                    tile_n,
                    tile_k,
                    pingpong=pingpong,
                    cluster_m=cluster_m,
                    cluster_n=cluster_n,
                    swap_ab=spec is swapped,
                    max_swizzle_size=swizzle_size(tuning, extents, tile_n * cluster_n),
                    raster=RasterOrder.ALONG_N if extents.is_ragged_m else RasterOrder.ALONG_M,
                    use_tma_gather=gathers_by_tma(spec),
                    device_capacity=capability,
                )
                candidate = replace(spec, config=config)
                if _pays_off(config, extents) and legality(candidate).ok:
                    found.append(Candidate(candidate, extents, predict_ns(candidate, extents, sms)))
    return sorted(found, key=lambda c: c.predicted_ns)


def with_tile(spec: GemmSpec, tile: Tile, cluster: tuple[int, int] = (1, 1)) -> GemmSpec:
    """The spec with a tile and a cluster, legal or not, and everything else of the configuration by default."""
    tile_m, tile_n, pingpong = tile
    config = GemmConfig(
        tile_m,
        tile_n,
        pingpong=pingpong,
        cluster_m=cluster[0],
        cluster_n=cluster[1],
        use_tma_gather=gathers_by_tma(spec),
    )
    return spec.configured(config)


def gathers_by_tma(spec: GemmSpec) -> bool:
    """Whether A_idx is better left to TMA: wherever there is a kernel for that."""
    return spec.adapter in GATHERING and Feature.TMA_GATHER in ARCHES[spec.arch].execution.features


def default_config(arch: str) -> GemmConfig:
    """What suits large 16-bit problems, and is legal for plain ones of any size."""
    tuning = tuning_of(arch)
    (tile_m, tile_n, pingpong), (cluster_m, cluster_n) = next(iter(tuning.tiles[16])), tuning.clusters[0]
    capability = ARCHES[arch].capability[0]
    return GemmConfig(
        tile_m, tile_n, pingpong=pingpong, cluster_m=cluster_m, cluster_n=cluster_n, device_capacity=capability
    )


def choose(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None) -> GemmSpec:
    """The best predicted legal configuration; raises with the reason if none is legal."""
    ranked = candidates(base, shape, sms, swapped)
    if ranked:
        return ranked[0].spec
    legality(with_tile(base, tuning_of(base.arch).smallest)).require()
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
            slower = tuning_of(spec.arch).grouped_swap
            return slower * predict_grouped_ns(spec, [s.swapped() for s in shapes], sms)
        return predict_grouped_ns(spec, shapes, sms)

    return min(choices, key=grouped_ns)


def predict_grouped_ns(spec: GemmSpec, shapes: Sequence[GemmShape], sms: int) -> float:
    """Modelled run time of one launch whose clusters draw tiles, longest K first."""
    config, rates = spec.config, roofline_of(spec.arch)
    grouped = replace(rates, l2_bytes_per_ns=rates.grouped_l2_bytes_per_ns)
    tile_m = config.cta_tile_m
    works, longest, moved = 0.0, 0.0, 0.0
    for shape in shapes:
        tile = tile_ns(spec, shape.k, grouped)
        full_rows, rest = divmod(shape.m, tile_m * config.cluster_m)
        last_row = 0.0 if rest == 0 else 0.5 if rest <= tile_m // 2 else 1.0  # short tiles multiply half
        tiles_n = _round_up(math.ceil(shape.n / config.tile_n), config.cluster_n)
        works += (full_rows + last_row) * config.cluster_m * tiles_n * tile
        longest = max(longest, tile)
        moved += bytes_moved(spec, shape)
    return rates.launch_ns + max(works / sms + 0.5 * longest, longest, moved / rates.hbm_bytes_per_ns)


def swizzle_size(tuning: Tuning, shape: GemmShape, cluster_tile_n: int) -> int:
    """Cluster tiles across one L2 strip; strips run along M, so they are cut along N. Powers of two, to share kernels."""
    if shape.is_ragged_m:
        return tuning.ragged_swizzle
    columns = min(tuning.strip_columns, max(shape.n, 1))
    return 1 << math.ceil(math.log2(math.ceil(columns / cluster_tile_n)))


def explain(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None) -> str:
    """The choice and its runners-up with predicted times."""
    lines = []
    for candidate in candidates(base, shape, sms, swapped)[:4]:
        budget = budget_of(candidate.spec)
        lines.append(
            f"{candidate.predicted_ns / 1e3:9.1f} us  {candidate.spec.config}  "
            f"{budget.ab_stages} stages, {budget.smem_bytes} B smem, {budget.threads} threads"
        )
    return "\n".join(lines)


def _pays_off(config: GemmConfig, shape: GemmShape) -> bool:
    """A cluster wider than the problem would only load tiles that nobody needs."""
    return (config.cluster_m == 1 or shape.m > config.cta_tile_m) and (config.cluster_n == 1 or shape.n > config.tile_n)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
