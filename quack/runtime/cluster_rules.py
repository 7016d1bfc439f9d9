"""Rules for clusters of two shapes in one launch (`GemmConfig.fallback_cluster`); `legality` applies them. Pure Python."""

from collections.abc import Iterator

from ..arch import Arch
from .spec import SYMMETRIC, GemmSpec

NONE = "fallback_cluster=None"


def fallback_refusals(spec: GemmSpec, arch: Arch) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, fallback = spec.config, spec.config.fallback_cluster
    if fallback is None:
        return
    cluster = (config.cluster_m, config.cluster_n)
    if not arch.execution.has_preferred_clusters:
        yield f"{arch.name} launches clusters of one shape only", NONE
    if fallback not in arch.execution.clusters or fallback == cluster or any(c % f for c, f in zip(cluster, fallback)):
        yield f"fallback_cluster={fallback} is no smaller cluster that divides {cluster}", NONE
    if config.is_pair and fallback[0] % 2:
        yield (
            f"tile_m={config.tile_m} is shared by two CTAs, and fallback_cluster={fallback} has an odd number along M",
            "fallback_cluster=(2, 1)",
        )
    if spec.combine is not None:
        yield (
            "parts of a tile wait for each other, so clusters have to start in order, which is not known of two shapes",
            NONE,
        )
    if spec.adapter == SYMMETRIC:
        yield "mirrored pairs of tiles are shared out among the CTAs of clusters of one shape", NONE
    if config.is_dynamic_persistent and not spec.cancels and spec.combine is None:
        yield "works are drawn from a counter, which gives whole clusters of tiles", NONE
