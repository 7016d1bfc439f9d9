"""Which configuration for a symmetric result: half the tiles, or all of them where half saves no wave.

Square tiles only, so the widest is 128 x 128: the largest that one warpgroup holds and that leaves room for two outputs.
A whole product is a candidate where its bits are symmetric as well: the MMA's products commute and it adds those of element
(r, c) in the order of those of (c, r), so B = A^T is enough; rounding and epilogue see equal numbers.
"""

import math
from dataclasses import replace
from typing import Optional

from ..gemm_config import GemmConfig
from ..runtime.legality import legality
from ..runtime.residency import cluster_count
from ..runtime.spec import GemmShape, GemmSpec, UnsupportedGemm
from . import model
from .model import Candidate

STRIP = 8  # CTA tiles
MARGIN = 1.05  # by which half of the tiles must be predicted to win: its stores to both sides were never measured


def candidates(triangular: GemmSpec, shape: GemmShape, sms: int) -> list[Candidate]:
    """Every legal configuration of the triangular kernel, best predicted first."""
    tuning, found = model.tuning_of(triangular.arch), []
    for tile, pingpong in tuning.symmetric_tiles:
        for cluster in tuning.clusters:
            if cluster != (1, 1) and shape.m <= tile:
                continue
            spec = model.with_tile(triangular, (tile, tile, pingpong), cluster)
            spec = replace(spec, config=replace(spec.config, max_swizzle_size=STRIP))
            if legality(spec).ok:
                found.append(Candidate(spec, shape, predict_ns(spec, shape, sms)))
    return sorted(found, key=lambda c: c.predicted_ns)


def choose(
    triangular: GemmSpec, shape: GemmShape, sms: int, whole: Optional[tuple[GemmSpec, GemmSpec]] = None
) -> GemmSpec:
    """The best predicted legal configuration; raises with the reason if none is legal.

    whole: the plain GEMM's (spec, the same with A and B swapped), if the whole product may stand in.
    """
    ranked = candidates(triangular, shape, sms)
    if not ranked:
        tile, pingpong = min(model.tuning_of(triangular.arch).symmetric_tiles)
        legality(model.with_tile(triangular, (tile, tile, pingpong))).require()
        raise UnsupportedGemm("no tile configuration fits this combination of operands")
    best = ranked[0]
    for candidate in model.candidates(whole[0], shape, sms, whole[1])[:1] if whole else ():
        if candidate.predicted_ns < MARGIN * best.predicted_ns:
            best = candidate
    return best.spec


def predict_ns(spec: GemmSpec, shape: GemmShape, sms: int) -> float:
    """Modelled run time of one launch of the triangular kernel; as `model.predict_ns`, but each tile is stored twice."""
    config, rates = spec.config, model.roofline_of(spec.arch)
    waves = math.ceil(works(shape, config) / cluster_count(config, sms))
    tile = model.tile_ns(spec, shape.k, model.rates_of(spec, waves, shape.k))
    mirror = config.tile_m * config.tile_n * spec.operands.d.dtype.bytes / rates.store_bytes_per_ns
    drain = model.drain_ns(spec) + mirror
    if model.hides_drain(spec):
        compute = waves * max(tile, drain) + drain
    else:
        compute = waves * (tile + mirror)
    moved = shape.batch * bytes_moved(spec, shape)
    return model.launch_ns(spec) + max(compute, moved / rates.hbm_bytes_per_ns) + 0.02 * compute


def works(shape: GemmShape, config: GemmConfig) -> int:
    """Of one launch, in clusters; see `triangular_scheduler`."""
    tiles = math.ceil(shape.m / config.tile_m)
    return math.ceil(tiles * (tiles + 1) // 2 / (config.cluster_m * config.cluster_n)) * shape.batch


def bytes_moved(spec: GemmSpec, shape: GemmShape) -> float:
    """Least HBM traffic of one problem: half of C is not read."""
    c = spec.operands.c
    unread = shape.m * shape.n * c.dtype.bytes / 2 if c is not None else 0.0
    return model.bytes_moved(spec, shape) - unread


def explain(triangular: GemmSpec, shape: GemmShape, sms: int, whole: Optional[tuple[GemmSpec, GemmSpec]] = None) -> str:
    """The choice and its runners-up with predicted times."""
    ranked = candidates(triangular, shape, sms)[:4]
    if whole:
        ranked += model.candidates(whole[0], shape, sms, whole[1])[:1]
    lines = []
    for candidate in sorted(ranked, key=lambda c: c.predicted_ns):
        kind = "half" if candidate.spec.plan == triangular.plan else "whole"
        lines.append(f"{candidate.predicted_ns / 1e3:9.1f} us  {kind:5}  {candidate.spec.config}")
    return "\n".join(lines)
