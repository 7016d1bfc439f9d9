"""Whether to split K, into how many parts, and who adds them up: `model`, extended by what parts cost.

    time = waves of parts + fix-up, and for SEPARATE a second launch
    STREAM: whole waves + the longest range of k tiles + one more work's start + fix-up

A split must promise MIN_GAIN to be chosen. Only modes that give the same bits every time are.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Optional

from ..gemm_config import GemmConfig
from ..runtime.legality import legality
from ..runtime.residency import cluster_count
from ..runtime.spec import DENSE, GemmShape, GemmSpec
from ..runtime.split_k import split_spec, sum_spec
from ..runtime.stream_k import streamed_tiles
from ..split_k import SplitKMode
from . import model

SMALL_SPLITS = (2, 3, 4, 5, 6, 8)
MIN_GAIN = 0.9  # of the time without split-K
# How much of the traffic from the L2 does not hide behind that from HBM: 256 x 256 x 65536 in 16 to 32 parts of six tiles, within 8 %.
SERIAL_SHARE = 0.54
ROUND_NS = 350.0  # latency of the loads of one batch of parts
BATCH = 16  # parts, where pieces are narrow


class Choice(NamedTuple):
    """spec: without split-K. splits: parts of every tile, 1 for STREAM."""

    spec: GemmSpec
    splits: int = 1
    mode: SplitKMode = SplitKMode.SERIAL
    predicted_ns: float = 0.0

    @property
    def is_split(self) -> bool:
        return self.splits > 1 or self.mode is SplitKMode.STREAM

    def describe(self) -> str:
        """As a user would ask for it."""
        return f"split_k={self.splits} {self.mode.name}" if self.splits > 1 else self.mode.name


def choose(
    base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec] = None, is_drawn: bool = False
) -> Choice:
    """The best predicted legal configuration, split or not; raises with the reason if none is legal. is_drawn: works will be
    drawn from a counter, which rules out STREAM."""
    ranked = model.candidates(base, shape, sms, swapped)
    whole = Choice(model.choose(base, shape, sms, swapped) if not ranked else model.with_fallback(ranked[0].spec))
    if base.adapter != DENSE or not ranked:
        return whole
    best = ranked[0].predicted_ns
    rates = model.roofline_of(base.arch)
    flops_per_ns = sms * rates.mma_flops_per_ns[base.operands.a.dtype.bits]
    least_work = max(shape.flops / flops_per_ns, shape.batch * model.bytes_moved(base, shape) / rates.hbm_bytes_per_ns)
    if best * MIN_GAIN < rates.launch_ns + max(rates.turn_ns, least_work):
        return whole  # nothing to gain: most calls end here
    found = min(
        (
            choice
            for candidate in (*ranked, *_clustered(base, shape, sms, swapped))
            for choice in splits_of(candidate.spec, candidate.shape, sms)
            if not (is_drawn and choice.mode is SplitKMode.STREAM)
        ),
        key=lambda choice: choice.predicted_ns,
        default=whole,
    )
    return found if found.is_split and found.predicted_ns < MIN_GAIN * best else whole


def choose_for(
    base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec], splits: int, mode: SplitKMode
) -> GemmSpec:
    """The best predicted legal configuration for a number of parts and a mode that are given."""
    found = (*model.candidates(base, shape, sms, swapped), *_clustered(base, shape, sms, swapped))
    ranked = [c for c in found if legality(split_spec(c.spec, mode)).ok]
    if not ranked:
        return model.choose(base, shape, sms, swapped)
    fits = [c for c in ranked if splits <= cluster_count(c.spec.config, sms)]
    return min(fits or ranked, key=lambda c: predict_ns(c.spec, c.shape, sms, splits, mode)).spec


def _clustered(base: GemmSpec, shape: GemmShape, sms: int, swapped: Optional[GemmSpec]) -> list[model.Candidate]:
    """Configurations with the clusters that are only worth trying where K is split: larger ones, as the tiles are few."""
    clusters = model.tuning_of(base.arch).split_clusters
    return model.candidates(base, shape, sms, swapped, clusters) if clusters and base.adapter == DENSE else []


def splits_of(spec: GemmSpec, shape: GemmShape, sms: int) -> Iterator[Choice]:
    """What is worth trying with one configuration: a few parts, or as many as fill the device once or twice."""
    works, config = cluster_tiles(shape, spec.config), spec.config
    clusters = cluster_count(config, sms)
    assert config.tile_k is not None
    k_tiles = math.ceil(shape.k / config.tile_k)
    modes = [m for m in (SplitKMode.SERIAL, SplitKMode.SEPARATE) if legality(split_spec(spec, m)).ok]
    counts = {*SMALL_SPLITS, *(clusters * share // 5 // max(works, 1) for share in (4, 5, 10))}
    for splits in sorted(counts):
        if 2 <= splits <= min(clusters, k_tiles) and works <= clusters * 2:
            for mode in modes:
                yield Choice(spec, splits, mode, predict_ns(spec, shape, sms, splits, mode))
    if works % clusters and legality(split_spec(spec, SplitKMode.STREAM)).ok:
        yield Choice(spec, 1, SplitKMode.STREAM, stream_ns(spec, shape, sms))


def cluster_tiles(shape: GemmShape, config: GemmConfig) -> int:
    """Works without split-K."""
    tiles_m, tiles_n = shape.m / (config.cta_tile_m * config.cluster_m), shape.n / (config.tile_n * config.cluster_n)
    return math.ceil(tiles_m) * math.ceil(tiles_n) * shape.batch


def predict_ns(spec: GemmSpec, shape: GemmShape, sms: int, splits: int, mode: SplitKMode) -> float:
    """Modelled run time of one call with this many parts. shape in kernel terms."""
    if mode is SplitKMode.STREAM:
        return stream_ns(spec, shape, sms)
    config, rates = spec.config, model.roofline_of(spec.arch)
    works = cluster_tiles(shape, config)
    clusters = max(cluster_count(config, sms) // splits * splits, 1)
    waves = math.ceil(works * splits / clusters)
    part_k = math.ceil(shape.k / splits)
    part = model.tile_ns(spec, part_k, model.rates_of(spec, waves, part_k))
    partial_bytes = 4 * config.cta_tile_m * config.tile_n
    pass_ns = partial_bytes / rates.partial_bytes_per_ns
    # Parts of a tile end at about the same time, so all but the first wait for their turn.
    fix_up = pass_ns + (splits - 1) * (rates.turn_ns + 2 * pass_ns) if mode is SplitKMode.SERIAL else pass_ns
    time = waves * (part + fix_up)
    moved = shape.batch * model.bytes_moved(spec, shape) / rates.hbm_bytes_per_ns
    time = max(time, moved + SERIAL_SHARE * waves * model.traffic_ns(spec, part_k, rates))
    if mode is SplitKMode.SEPARATE:
        time += rates.second_launch_ns + sum_ns(spec, works, sms, splits)
    elif model.hides_drain(spec):
        time += model.drain_ns(spec)
    return model.launch_ns(spec) + 1.02 * time


def stream_ns(spec: GemmSpec, shape: GemmShape, sms: int) -> float:
    """The same for STREAM: whole tiles, the longest range of k tiles and the fix-up. Every cluster cuts one tile more than it
    would otherwise work on."""
    config, rates = spec.config, model.roofline_of(spec.arch)
    assert config.tile_k is not None
    clusters, tiles = cluster_count(config, sms), cluster_tiles(shape, config)
    k_tiles = math.ceil(shape.k / config.tile_k)
    streamed = streamed_tiles(tiles, clusters)
    share = math.ceil(streamed * k_tiles / clusters)
    time = (tiles - streamed) // clusters * model.tile_ns(spec, shape.k, rates)
    time += model.tile_ns(spec, share * config.tile_k, rates)
    touched = math.ceil(share / max(k_tiles, 1)) + 1  # tiles of a range, the first part of the last is not drained
    if not model.hides_drain(spec):
        time += (touched - 1) * rates.tile_start_ns + max(touched - 2, 0) * model.drain_ns(spec)
    # Each cluster stores the first part of a tile and loads that of another; ping-pong hides one of them behind a main loop.
    pass_ns = 4 * config.cta_tile_m * config.tile_n / rates.partial_bytes_per_ns
    time += pass_ns if model.hides_drain(spec) else 2 * pass_ns
    # Parts in the middle, of tiles longer than a range, end at about the same time and so take turns.
    middle = max(math.ceil(k_tiles / max(share, 1)) - 1, 0)
    time += middle * (rates.turn_ns + 2 * pass_ns)
    time = max(time, shape.batch * model.bytes_moved(spec, shape) / rates.hbm_bytes_per_ns)
    return model.launch_ns(spec) + 1.02 * (time + (model.drain_ns(spec) if model.hides_drain(spec) else 0.0))


def sum_ns(spec: GemmSpec, works: int, sms: int, splits: int) -> float:
    """The second launch, once it runs: pieces in waves, or all partial tiles through the memory that holds them."""
    config, pieces, rates = spec.config, sum_spec(spec, works, sms).config, model.roofline_of(spec.arch)
    tile = config.cta_tile_m * config.tile_n
    elements = works * config.cluster_m * config.cluster_n * tile
    piece = pieces.tile_m * pieces.tile_n
    per_piece = 4 * splits * piece / rates.partial_bytes_per_ns + model.drain_ns(spec) * piece / tile
    per_piece += ROUND_NS * (splits // BATCH + (splits % BATCH).bit_count())  # see `split_k_combine.SumPartials`
    total = 4 * splits * elements
    rate = rates.l2_total_bytes_per_ns if total <= rates.l2_bytes else rates.hbm_bytes_per_ns
    return max(math.ceil(elements / piece / sms) * per_piece, total / rate)
