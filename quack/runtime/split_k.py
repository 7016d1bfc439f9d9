"""Split-K on the host: rules for its arguments, the specs of its kernels, and the memory where partial sums meet."""

from dataclasses import replace
from typing import Any, NamedTuple, Optional

import torch

from ..gemm_config import GemmConfig
from ..gemm_resources import output_layouts
from ..split_k import SplitKMode
from .budget import budget_of
from .device import EMULATED, Device, is_capturing, raw_stream
from .dispatch import get_function
from .residency import cluster_count
from .spec import PARALLEL_COMBINE, STREAM_COMBINE, GemmShape, GemmSpec, UnsupportedGemm

_COMBINE = "quack.split_k_combine:"
COMBINE = {
    SplitKMode.SERIAL: _COMBINE + "SerialCombine",
    SplitKMode.PARALLEL: PARALLEL_COMBINE,
    SplitKMode.SEPARATE: _COMBINE + "StorePartials",
    SplitKMode.STREAM: STREAM_COMBINE,
}
SUM_PARTIALS = _COMBINE + "SumPartials"
PIECE_COLUMNS = (64, 32, 16)  # widths of what a CTA of the second launch adds up, of one slab
PIECE_ELEMENTS = 64 * 64  # at most: 32 registers a thread
MAX_WORDS = 2**31 - 1  # fp32 of a workspace: its extent is an int32

_memory: dict[tuple[int, int, str], torch.Tensor] = {}


def check_split(split_k: object, mode: object) -> None:
    """split_k: None or an int of at least 1, with STREAM no more than 1."""
    if split_k is not None and type(split_k) is not int:
        raise TypeError(f"split_k is a {type(split_k).__name__}, expected an int, or None to have it chosen")
    if isinstance(split_k, int) and split_k < 1:
        raise ValueError(f"split_k is {split_k}, expected at least 1, or None to have it chosen")
    if not isinstance(mode, SplitKMode):
        names = ", ".join(str(m) for m in SplitKMode)
        raise TypeError(f"split_k_mode is {mode!r}, expected one of {names}")
    if mode is SplitKMode.STREAM and isinstance(split_k, int) and split_k > 1:
        raise ValueError(
            f"split_k is {split_k} with SplitKMode.STREAM, which shares out the work of the last waves evenly, expected None"
        )


def streams(split_k: Optional[int], mode: SplitKMode) -> bool:
    """Whether a call asks for stream-K."""
    return split_k is None and mode is SplitKMode.STREAM


def split_spec(whole: GemmSpec, mode: SplitKMode) -> GemmSpec:
    """The same GEMM with parts of a tile put together in this way; of two launches the first, which stores no output."""
    if mode is SplitKMode.SEPARATE:
        whole = replace(whole, operands=whole.operands._replace(c=None), epilogue=())
    return replace(whole, combine=COMBINE[mode])


def sum_spec(whole: GemmSpec, works: int, sms: int) -> GemmSpec:
    """The second launch of SEPARATE: the widest pieces of which there are enough for the device. works: as in `split_memory`."""
    tiles, slab_m = whole.config, budget_of(whole).slab_m
    slabs = works * tiles.cluster_m * tiles.cluster_n * tiles.cta_tile_m // slab_m
    is_halved = any(output.is_halved for output in output_layouts(whole.operands, whole.epilogue))
    widths = [
        w
        for w in PIECE_COLUMNS
        if tiles.tile_n % w == 0 and w * slab_m <= PIECE_ELEMENTS and not (is_halved and w % 32)
    ]
    width = next((w for w in widths if slabs * (tiles.tile_n // w) >= sms), widths[-1])
    config = GemmConfig(
        slab_m,
        width,
        tiles.tile_k,
        cluster_m=1,
        swap_ab=tiles.swap_ab,
        use_tma_gather=tiles.use_tma_gather,
        device_capacity=tiles.device_capacity,
    )
    return replace(whole, config=config, combine=SUM_PARTIALS, pieces_of=tiles)


class SplitMemory(NamedTuple):
    """What a launch with split tiles needs: fp32 words of workspace and int32 words of semaphores."""

    workspace: int
    semaphores: int


def cluster_tiles(shape: GemmShape, config: GemmConfig, total_m: Optional[int] = None) -> int:
    """Works of a launch without split-K, at most. total_m: all rows, where groups share them."""
    tile_m, tile_n = config.cta_tile_m * config.cluster_m, config.tile_n * config.cluster_n
    tiles_n = -(-shape.n // tile_n)
    if total_m is not None:  # as in VarlenScheduler.make_params
        return (total_m // tile_m + min(shape.batch, total_m)) * tiles_n
    return -(-shape.m // tile_m) * tiles_n * shape.batch


def split_memory(spec: GemmSpec, works: int, splits: int) -> SplitMemory:
    """works: cluster tiles of the launch."""
    config = spec.config
    slots = works * config.cluster_m * config.cluster_n
    partials = splits if spec.combine == COMBINE[SplitKMode.SEPARATE] else 1
    words = slots * partials * config.cta_tile_m * config.tile_n
    if max(words, works * splits) > MAX_WORDS:
        raise UnsupportedGemm(
            f"split_k={splits} needs a workspace of {words * 4 >> 30} GiB for {slots} tiles, limit 8 GiB", "split_k=1"
        )
    return SplitMemory(words, slots * budget_of(replace(spec, epilogue=())).mma_warpgroups)


class SplitPlan:
    """The part of a prepared call that is about split-K.

    whole: the spec without it. works: cluster tiles, at most. splits: parts of a tile, at most the clusters that the device
    holds: their waiting relies on it (`split_works`), and more parts would only add less each. numbers: what the launch takes
    before the memory. finishing: the spec of the launch that runs the epilogue.
    """

    __slots__ = ("clusters", "ctas", "device", "finishing", "function", "is_zeroed", "memory", "numbers", "sum_up")

    def __init__(self, whole: GemmSpec, mode: SplitKMode, works: int, splits: int, device: Device):
        spec, config = split_spec(whole, mode), whole.config
        self.numbers: tuple[int, ...] = (splits,)
        self.device, self.ctas = device.ordinal, device.sms
        self.memory = split_memory(spec, works, splits)
        self.is_zeroed = mode is SplitKMode.PARALLEL
        self.function = get_function(spec, device.is_emulated)
        self.clusters = cluster_count(config, device.sms)
        self.finishing, self.sum_up = whole, None
        if mode is SplitKMode.SEPARATE:
            self.finishing = sum_spec(whole, works, device.sms)
            self.sum_up = get_function(self.finishing, device.is_emulated)

    def run(
        self, operands: tuple[Any, ...], arguments: Any, ports: Any, counter: Any, sum_arguments: Any = None
    ) -> None:
        """Launch on the current stream. operands: A, B, C, out in kernel terms; arguments: the adapter's own, sum_arguments
        those of a second launch where they differ."""
        kind = "zeroed" if self.is_zeroed else "scratch"
        workspace = memory_of_stream(self.device, kind, self.memory.workspace, torch.float32)
        # SEPARATE has none; under capture zeroed ones would cost a node of the graph.
        words, zeroed = (1, "unused") if self.sum_up is not None else (self.memory.semaphores, "semaphores")
        semaphores = memory_of_stream(self.device, zeroed, words, torch.int32)
        split = (*self.numbers, workspace, semaphores)
        own = (*(arguments or ()), *split)
        if self.sum_up is None:
            self.function(*operands, own, ports, counter, self.clusters)
            return
        a, b, _, d = operands
        self.function(a, b, None, d, own, None, counter, self.clusters)
        self.sum_up(*operands, (*(sum_arguments or arguments or ()), *split), ports, None, self.ctas)


def memory_of_stream(device: int, kind: str, words: int, dtype: torch.dtype) -> torch.Tensor:
    """At least so many words for launches on the current stream, which follow one another. "zeroed" and "semaphores" are zero
    before and, as kernels clean up, after every launch; of "scratch" and "unused" nothing is known.

    Kept per stream and grown on demand. A CUDA graph that is being captured gets memory of its own, zeroed by every replay, so
    replays cannot meet launches on the capturing stream.
    """
    where = torch.device("cpu") if device == EMULATED else torch.device("cuda", device)

    def allocate() -> torch.Tensor:
        if kind in ("zeroed", "semaphores"):
            return torch.zeros(words, dtype=dtype, device=where)
        memory = torch.empty(words, dtype=dtype, device=where)
        return memory.fill_(float("nan")) if device == EMULATED and dtype.is_floating_point else memory

    if is_capturing(device):
        return allocate()
    key = (device, raw_stream(device), kind)
    memory = _memory.get(key)
    if memory is None or memory.numel() < words:
        memory = _memory[key] = allocate()
    return memory
