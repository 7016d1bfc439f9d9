"""Where a CTA is, and which CTAs share what it loads, in clusters of one shape or of two.

With `GemmConfig.fallback_cluster` a launch has clusters of two shapes: the configuration's, and where the SMs that are left do not
hold one of these, smaller ones. A work stays one preferred cluster of tiles. A CTA's tile follows from its place in that, which
blockIdx tells: clusters of either shape begin where CTAs of the grid do. What CTAs do for each other follows the shape of the cluster
that runs, which the device alone knows:

| | one shape | two shapes |
|---|---|---|
| a multicast | 1 / CTAs of a tile, one box of TMA | the same box, in a smaller cluster as many more of them |
| masks, arrivals at `ab.empty`, readers of the ring | static | one of two numbers |
| a cluster's next work, drawn by cancelling | the work | the work, and the corner of the part of it |
| the same by a stride | of the grid, in works | the same: it keeps its corner |
"""

from typing import NamedTuple, Optional, Union

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32
from cutlass.cute.nvgpu import cpasync
from cutlass.pipeline import PipelineState

from ..gemm_base import GemmBase, TmaOperand
from ..work_stream import Corner


class CtaPlace(NamedTuple):
    """m, n: of a CTA in its cluster, which has `size` CTAs. corner: of the cluster in a work, None if it is all of one;
    is_preferred: whether it is, None if there is nothing else."""

    m: Int32
    n: Int32
    size: Union[int, Int32]
    corner: Optional[Corner] = None
    is_preferred: Optional[Boolean] = None


class Share(NamedTuple):
    """One box of what a CTA loads of a tile: (TMA, STAGE) and (TMA, k tiles)."""

    smem: cute.Tensor
    gmem: cute.Tensor


class ClusterRoles(GemmBase):
    """What depends on the shape of the cluster."""

    mma_ctas: int = 1
    """Neighbours along M whose operands one MMA reads: each loads its own rows of A and its part of B's rows."""

    @cute.jit
    def locate(self) -> CtaPlace:
        """All threads."""
        cluster_m, cluster_n = self.cluster_mn
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        if cutlass.const_expr(self.config.fallback_cluster is None):
            m, n, _ = cute.make_layout((cluster_m, cluster_n, 1)).get_flat_coord(rank)
            return CtaPlace(m, n, cluster_m * cluster_n)
        width, _, _ = cute.arch.block_in_cluster_dim()
        m, n = rank % width, rank // width
        x, y, _ = cute.arch.block_idx()
        size = cute.arch.cluster_size()
        return CtaPlace(m, n, size, Corner(x % cluster_m - m, y - n), size == cluster_m * cluster_n)

    @property
    def cluster_layout(self) -> cute.Layout:
        """(CTA of an MMA, MMAs along M, CTAs along N, 1) -> rank in the cluster."""
        return self.layout_of(self.cluster_mn)

    def layout_of(self, cluster_mn: tuple[int, int]) -> cute.Layout:
        cluster_m, cluster_n = cluster_mn
        return cute.make_layout((self.mma_ctas, cluster_m // self.mma_ctas, cluster_n, 1))

    @property
    def boxes(self) -> tuple[int, int]:
        """Of A and of B, that a CTA of the smaller clusters loads where one of the others loads one."""
        if self.config.fallback_cluster is None:
            return 1, 1
        return tuple(whole // part for whole, part in zip(self.cluster_mn[::-1], self.config.fallback_cluster[::-1]))

    @cute.jit
    def multicast_masks(self, place: CtaPlace) -> tuple:
        """Int16s: the CTAs that take what this one loads of A and of B; None: itself alone."""
        masks = self.masks_in(place, self.cluster_mn)
        if cutlass.const_expr(self.config.fallback_cluster is not None):
            smaller = self.masks_in(place, self.config.fallback_cluster)
            masks = tuple(either(place, a, b) for a, b in zip(masks, smaller))
        cluster_m, cluster_n = self.cluster_mn
        return (masks[0] if cluster_n > 1 else None), (masks[1] if cluster_m > self.mma_ctas else None)

    def masks_in(self, place: CtaPlace, cluster_mn: tuple[int, int]) -> tuple:
        """The same in a cluster of this shape, itself alone being a mask too."""
        coordinate = (place.m % self.mma_ctas, place.m // self.mma_ctas, place.n, 0)
        return tuple(cute.make_layout_image_mask(self.layout_of(cluster_mn), coordinate, mode=mode) for mode in (2, 1))

    def shares(
        self, place: CtaPlace, atom, tensors: tuple[cute.Tensor, cute.Tensor], at: Int32, count: int, boxes: int
    ) -> tuple[Share, ...]:
        """What this CTA loads of a tile that is made of `count` boxes, as the `at`-th of those that multicast it to each other. A
        CTA of a preferred cluster loads the first share only. tensors: of shared memory and of global memory."""
        smem, gmem = tensors
        first = at if boxes == 1 else either(place, at, at * boxes)
        places = [first, *(first + i for i in range(1, boxes))]
        return tuple(Share(*partition_load(atom, smem, gmem, box, count)) for box in places)

    @cute.jit
    def copy_shares(
        self,
        place: CtaPlace,
        operand: TmaOperand,
        shares: tuple,
        k_tile: Int32,
        to: tuple[PipelineState, cute.Pointer],
        mask,
        descriptor=None,
    ):
        """Load them. to: the stage and its barrier."""
        state, full = to
        for i in cutlass.range_constexpr(len(shares)):
            source, target = shares[i].gmem[None, k_tile], shares[i].smem[None, state.index]
            if cutlass.const_expr(i == 0):
                cute.copy(operand.atom, source, target, tma_bar_ptr=full, mcast_mask=mask, tma_desc_ptr=descriptor)
            elif not place.is_preferred:
                cute.copy(operand.atom, source, target, tma_bar_ptr=full, mcast_mask=mask, tma_desc_ptr=descriptor)


@cute.jit
def either(place: CtaPlace, preferred: Int32, smaller: Int32):
    """The number that holds in the cluster that runs."""
    return preferred if place.is_preferred else smaller


def partition_load(atom, smem: cute.Tensor, gmem: cute.Tensor, cta: Int32, ctas: int):
    """(smem, gmem) as this CTA of the multicast group loads them: (TMA, STAGE), (TMA, REST)."""
    return cpasync.tma_partition(
        atom, cta, cute.make_layout(ctas), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )
