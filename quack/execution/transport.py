"""Where operands are kept on their way: TMA descriptors, shared memory, the pipelines between roles, the stream of works."""

from collections.abc import Callable
from typing import ClassVar, Optional

import cutlass.cute as cute
from cutlass import Float32, Int32, pipeline
from cutlass.cute.nvgpu import cpasync
from cutlass.pipeline import PipelineAsync, PipelineTmaAsync
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as sm90_utils

from ..cute_dtype import CUTE_DTYPE, stored_dtype
from ..dsl.compat import first_stage
from ..gemm_base import GemmBase, Operands, TmaOperand, is_inner_major
from ..gemm_config import Dtype, OperandSpec
from ..gemm_port import PortKind, present_ports, scratch_bytes, tile_layouts
from ..gemm_problem_adapter import Operand
from ..gemm_resources import WORK_RING_STAGES, GemmResources
from ..work_stream import LocalStream, RingStream, WorkRing
from .cta import SmemTensors
from .line_copier import GATHER_WARPS

SMEM_ALIGN = 1024  # bytes; the period of the 128-byte swizzle


class OperandTransport(GemmBase):
    """Operands in shared memory, and what moves them. An arch kernel names the function that counts its `resources`."""

    budget: ClassVar[Callable[..., GemmResources]]

    mma_ctas: int = 1
    """Neighbours along M whose operands one MMA reads: each loads its own rows of A and its part of B's rows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scratch_words = scratch_bytes(self.epilogue_specs, self.config) // 4  # of one draining warpgroup
        self.reads_scratch_last = any(p.kind is PortKind.COL_PARTIALS for p in present_ports(self.epilogue_specs))
        self.resources = self.budget(self.specs, self.config, self.fast_accum, self.epilogue_specs)
        self.tile_output_specs = tile_layouts(self.epilogue_specs, PortKind.TILE_OUTPUT)
        if self.resources.ab_stages < 2:
            raise ValueError(f"{self.config} leaves room for {self.resources.ab_stages} operand stages")

    # ---- host set-up ----------------------------------------------------------------------------------------------
    def smem_layout_a(self):
        return sm90_utils.make_smem_layout_a(
            operand_layout(self.specs.a), self.tile_mnk, self.a_dtype, self.resources.ab_stages
        )

    def smem_layout_b(self):
        return sm90_utils.make_smem_layout_b(
            operand_layout(self.specs.b), self.tile_mnk, self.b_dtype, self.resources.ab_stages
        )

    @property
    def copies_a(self) -> bool:
        """Whether threads copy A, for want of a TMA that picks lines."""
        return self.gathers_a and not self.config.use_tma_gather

    @property
    def b_rows(self) -> int:
        """Rows of B that one CTA keeps."""
        return self.config.tile_n // self.mma_ctas

    def load_op(self, multicast: int):
        """The instruction that loads A and B."""
        return cpasync.CopyBulkTensorTileG2SOp() if multicast == 1 else cpasync.CopyBulkTensorTileG2SMulticastOp()

    def subtile_of(self, spec: OperandSpec) -> tuple[int, int]:
        """(rows, columns) of an operand's part of an epilogue subtile."""
        return self.layout_class.slab_m, self.resources.epi_n // (2 if spec.is_halved else 1)

    def smem_layout_epilogue(self, spec: OperandSpec, stages: int):
        dtype = CUTE_DTYPE[spec.dtype]
        return sm90_utils.make_smem_layout_epi(dtype, operand_layout(spec), self.subtile_of(spec), stages)

    def make_output(self, spec: OperandSpec, tensor: cute.Tensor) -> TmaOperand:
        """TMA store of one epilogue subtile, or plain memory."""
        if not spec.is_tma:
            return TmaOperand(None, tensor)
        layout = cute.slice_(self.smem_layout_epilogue(spec, 1), (None, None, 0))
        described = self.tma_tensor(Operand.D, tensor)
        store = cpasync.CopyBulkTensorTileS2GOp()
        return TmaOperand(*cpasync.make_tiled_tma_atom(store, described, layout, self.subtile_of(spec)))

    def make_gathered(self, mA: cute.Tensor) -> TmaOperand:
        """A whose lines are picked by index: threads copy them from plain memory."""
        return TmaOperand(None, mA)

    def make_operands(self, mA, mB, mC, mD, tiles: dict[PortKind, list]) -> Operands:
        """TMA atoms for everything that TMA can address."""
        tile_m, _, tile_k = self.tile_mnk
        cluster_n, b_ctas = self.config.cluster_n, self.config.cluster_m // self.mma_ctas
        tA, tB = self.tma_tensor(Operand.A, mA), self.tma_tensor(Operand.B, mB)
        if self.gathers_a:
            a = self.make_gathered(mA)
        else:
            a = make_load_operand(
                self.load_op(cluster_n), tA, self.smem_layout_a(), (tile_m, tile_k), cluster_n, self.specs.a
            )
        b = make_load_operand(
            self.load_op(b_ctas), tB, self.smem_layout_b(), (self.b_rows, tile_k), b_ctas, self.specs.b
        )
        c = None
        if self.specs.c is not None:
            c = TmaOperand(None, mC)
            if self.specs.c.is_tma:
                tC = self.tma_tensor(Operand.C, mC)
                load, layout = cpasync.CopyBulkTensorTileG2SOp(), self.smem_layout_epilogue(self.specs.c, 1)
                c = make_load_operand(load, tC, layout, self.subtile_of(self.specs.c), 1)
        d = self.make_output(self.specs.d, mD)
        outputs = [self.make_output(s, t) for s, t in zip(self.tile_output_specs, tiles[PortKind.TILE_OUTPUT])]
        return Operands(a, b, c, d, tuple(tiles[PortKind.TILE_INPUT]), tuple(outputs))

    def allocate_smem(self, allocator) -> SmemTensors:
        """Everything but barriers, in the order and sizes that `resources` counted."""

        def staged(dtype, layout):
            return allocator.allocate_tensor(dtype, layout.outer, SMEM_ALIGN, swizzle=layout.inner)

        a = staged(stored_dtype(self.specs.a.dtype), self.smem_layout_a())
        b = staged(stored_dtype(self.specs.b.dtype), self.smem_layout_b())
        c = scratch = None
        if self.resources.c_stages:
            c = staged(self.c_dtype, self.smem_layout_epilogue(self.specs.c, self.resources.c_stages))
        stages = self.warpgroups * self.resources.d_stages
        outputs = [
            staged(CUTE_DTYPE[spec.dtype], self.smem_layout_epilogue(spec, stages)) if spec.is_tma else None
            for spec in (self.specs.d, *self.tile_output_specs)
        ]
        if self.scratch_words:
            scratch = allocator.allocate_tensor(Float32, cute.make_layout(self.warpgroups * self.scratch_words), 16)
        return SmemTensors(a, b, c, tuple(outputs), scratch)

    @property
    def cluster_layout(self) -> cute.Layout:
        """(CTA of an MMA, MMAs along M, CTAs along N, 1) -> rank in the cluster."""
        cluster_m, cluster_n = self.cluster_mn
        return cute.make_layout((self.mma_ctas, cluster_m // self.mma_ctas, cluster_n, 1))

    @property
    def stage_bytes(self) -> int:
        """That TMA puts into one stage of A and B, for all CTAs of an MMA."""
        tile_m, _, tile_k = self.tile_mnk
        a_bits = 0 if self.copies_a else tile_m * self.a_dtype.width
        return self.mma_ctas * tile_k * (a_bits + self.b_rows * self.b_dtype.width) // 8

    @property
    def copying_warps(self) -> int:
        """That signal a stage of A besides TMA, in all CTAs of an MMA."""
        return GATHER_WARPS * self.mma_ctas if self.copies_a else 0

    def make_ab_pipeline(self, barriers) -> PipelineAsync:
        """A/B ring (multicast over the cluster)."""
        cluster_m, cluster_n = self.cluster_mn
        return PipelineTmaAsync.create(
            num_stages=self.resources.ab_stages,
            producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 1 + self.copying_warps),
            consumer_group=pipeline.CooperativeGroup(
                pipeline.Agent.Thread, 4 * self.sharing * (cluster_m + cluster_n - 1)
            ),
            tx_count=self.stage_bytes,
            barrier_storage=barriers,
            cta_layout_vmnk=self.cluster_layout,
            defer_sync=True,
        )

    def make_c_pipeline(self, barriers) -> Optional[PipelineTmaAsync]:
        """C ring (local to the CTA)."""
        if not self.resources.c_stages:
            return None
        return PipelineTmaAsync.create(
            num_stages=self.resources.c_stages,
            producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),
            consumer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 4),
            tx_count=self.layout_class.slab_m * self.resources.epi_n * self.c_dtype.width // 8,
            barrier_storage=barriers,
            cta_layout_vmnk=cute.make_layout((1, 1, 1, 1)),
            defer_sync=True,
        )

    @property
    def reading_warps(self) -> int:
        """Warps of a CTA that follow the stream of works."""
        loaders = (2 if self.copies_a else 1) if self.multiplies else 0
        return loaders + (1 if self.resources.c_stages else 0) + 4 * self.warpgroups

    def make_work_stream(self, schedule, barriers, slots, cta_m, cta_n):
        """How this CTA's roles learn their works."""
        if not self.scheduler.is_broadcast:
            return LocalStream(self.scheduler, schedule, cta_m, cta_n)
        first = 2 * (self.resources.ab_stages + self.resources.c_stages)
        size = self.cluster_mn[0] * self.cluster_mn[1]
        is_paced = self.scheduler.draws_from_stock and self.multiplies
        ring = WorkRing(barriers + first, slots, WORK_RING_STAGES, size, self.reading_warps, is_paced)
        return RingStream(self.scheduler, schedule, cta_m, cta_n, ring)


def operand_layout(spec: OperandSpec) -> LayoutEnum:
    """CuTe's name for the contiguous mode; ROW_MAJOR means that the inner mode (K, or N for C and D) is contiguous."""
    return LayoutEnum.ROW_MAJOR if is_inner_major(spec) else LayoutEnum.COL_MAJOR


def make_load_operand(
    op, tensor: cute.Tensor, staged_layout, tile: tuple[int, int], multicast: int, spec: Optional[OperandSpec] = None
) -> TmaOperand:
    """TMA load atom for `tile`; with multicast each CTA fetches 1/multicast of the tile and sends it to all."""
    layout, stored = first_stage(staged_layout), None
    if spec is not None and spec.dtype is Dtype.WIDE_E2M1:
        stored = stored_dtype(spec.dtype)
    atom = cpasync.make_tiled_tma_atom(op, tensor, layout, tile, num_multicast=multicast, internal_type=stored)
    return TmaOperand(*atom)


def partition_load(atom, smem: cute.Tensor, gmem: cute.Tensor, cta: Int32, ctas: int):
    """(smem, gmem) as this CTA of the multicast group loads them: (TMA, STAGE), (TMA, REST)."""
    return cpasync.tma_partition(
        atom, cta, cute.make_layout(ctas), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )
