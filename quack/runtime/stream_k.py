"""Stream-K on the host: how many tiles are streamed, and the memory where their parts meet (`stream_works`)."""

from dataclasses import replace

from ..split_k import SplitKMode
from .budget import budget_of
from .device import Device
from .dispatch import get_function
from .residency import cluster_count
from .spec import GemmSpec, UnsupportedGemm
from .split_k import SplitMemory, SplitPlan, split_spec

MAX_K_TILES = 2**31 - 1  # of all streamed tiles: they are numbered by int32


def streamed_tiles(tiles: int, clusters: int) -> int:
    """How many of a launch's (cluster) tiles are shared out, by whole clusters' worth of the others: none if there is no
    remainder. With one tile a cluster besides, no tile has more than two parts and nobody waits for the first of them; as many
    works are cut, so it is never worse than sharing out the remainder alone."""
    whole, rest = divmod(tiles, clusters)
    if rest == 0:
        return 0
    return rest + clusters if whole else rest


def stream_memory(spec: GemmSpec, clusters: int) -> SplitMemory:
    """A slot for the one tile whose first part ends a cluster's range; at most a padded tile for each SM."""
    config = spec.config
    slots = clusters * config.cluster_m * config.cluster_n
    words = slots * config.cta_tile_m * config.tile_n
    return SplitMemory(words, slots * budget_of(replace(spec, epilogue=())).mma_warpgroups)


class StreamPlan(SplitPlan):
    """The part of a prepared call that is about stream-K. tiles: cluster tiles of the launch; k_tiles: of each."""

    __slots__ = ()

    def __init__(self, whole: GemmSpec, tiles: int, k_tiles: int, device: Device):
        spec = split_spec(whole, SplitKMode.STREAM)
        self.clusters = cluster_count(whole.config, device.sms)
        streamed = streamed_tiles(tiles, self.clusters) if k_tiles else 0
        if streamed * k_tiles + self.clusters > MAX_K_TILES:
            raise UnsupportedGemm(
                f"stream-K numbers the k tiles of all streamed tiles by 32 bits: {streamed} tiles of {k_tiles} are too many",
                "SplitKMode.SERIAL",
            )
        self.numbers = (self.clusters, streamed, k_tiles)
        self.device, self.ctas = device.ordinal, device.sms
        self.memory = stream_memory(spec, self.clusters)
        self.is_zeroed, self.finishing, self.sum_up = False, whole, None
        self.function = get_function(spec, device.is_emulated)
