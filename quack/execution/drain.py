"""What a draining warpgroup hands to the epilogue plan: context, transport of C and the outputs."""

from functools import partial
from typing import Any, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from ..cute_dtype import CUTE_DTYPE
from ..dsl.barrier import WARPGROUP_THREADS, sync_warpgroup
from ..epilogue.protocol import EpilogueContext, EpilogueMixin, bind_epilogue, bound_ports
from ..gemm_base import TmaOperand
from ..gemm_config import OperandSpec
from ..gemm_epilogue_plan import EpilogueIO, EpilogueState, TileStore, run_epilogue_plan
from ..gemm_port import PortId, PortKind
from ..gemm_problem_adapter import Matrix, Operand
from ..gemm_work import WorkDesc
from ..split_k_combine import PartialTile
from .cta import CtaContext
from .gather import GatherRoles


class DrainRole(GatherRoles):
    """`team` is the draining warpgroup's, with `sums` (its `Accumulators` of the tile at hand), `layout` (the `FragmentLayout`
    of a slab of them), mixins, index and share; see `warpgroups.MmaTeam`."""

    @property
    def output_specs(self) -> list[tuple[Matrix, OperandSpec]]:
        """D and the mixins' tile outputs."""
        tiles = [(PortId(PortKind.TILE_OUTPUT, i), spec) for i, spec in enumerate(self.tile_output_specs)]
        return [(Operand.D, self.specs.d), *tiles]

    def bind_mixins(self, cta: CtaContext, arguments: Optional[tuple]) -> tuple[EpilogueMixin, ...]:
        """The mixins with what their ports hold, once per kernel. arguments: the kernel's, of ports that are no tiles."""
        table_of = partial(self.port_table, cta.problem)
        return bind_epilogue(self.epilogue_specs, self.epilogue, self.config, arguments, table_of)

    def begin_work(
        self, cta: CtaContext, team: Any, work: WorkDesc, held: Int32
    ) -> tuple[EpilogueContext, list, Int32]:
        """What needs no accumulators: (context, the mixins' states, the problem now held, see `ProblemAdapter.acquire`)."""
        ctx = self.make_context(cta, team, work)
        by_tma = tuple(which for which, spec in self.output_specs if spec.is_tma)
        if by_tma:
            held = self.acquire(cta.problem, by_tma, work, held)
        for mixin in team.mixins:
            for port in bound_ports(mixin):
                ctx.stage(port)
        return ctx, [mixin.begin(ctx) for mixin in team.mixins], held

    @cute.jit
    def finish_tile(
        self,
        cta: CtaContext,
        team: Any,
        work: WorkDesc,
        mixins: cutlass.Constexpr[tuple],
        state: EpilogueState,
    ) -> EpilogueState:
        """The epilogue of one tile, whose accumulators are complete. mixins: (context, states)."""
        ctx, mixin_states = mixins
        io = self.make_epilogue_io(cta, team, work)
        state = run_epilogue_plan(self, ctx, team.mixins, mixin_states, io, team.sums, state)
        if cutlass.const_expr(self.scratch_words > 0 and (self.reads_scratch_last or not io.has_tma_output)):
            sync_warpgroup(team.index)  # scratch is read until here; TMA stores end with this barrier anyway
        elif cutlass.const_expr(self.combines):
            # Where stores by element (D, partials) end an epilogue that not all works run, ptxas serialises ping-pong wgmma.
            sync_warpgroup(team.index)
        return state

    def partial_tile(self, cta: CtaContext, team: Any, work: WorkDesc) -> PartialTile:
        """What this warpgroup has of the tile, after the main loop of one of its works."""
        thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        return PartialTile(team.sums, work, cta.works.params, thread, team.index, team.share, self.sharing)

    def make_context(self, cta: CtaContext, team: Any, work: WorkDesc) -> EpilogueContext:
        """What the mixins may know of this work."""
        thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        shape = self.problem_shape(cta.problem, work)
        scratch = None
        if self.scratch_words:
            first = cta.smem.scratch.iterator + team.index * self.scratch_words
            scratch = cute.make_tensor(first, cute.make_layout(self.scratch_words))
        return EpilogueContext(
            problem=self.problem_number(cta.problem, work),
            table_row=work.problem,
            row=work.tile_m * self.config.cta_tile_m,
            col=work.tile_n * self.config.tile_n,
            rows=shape.m,
            cols=shape.n,
            first_row=work.start,
            tile_m=work.tile_m,
            tile_n=work.tile_n,
            warpgroup=team.index,
            share=team.share,
            shares=self.sharing,
            thread=thread,
            slab_rows=tuple((r * self.sharing + team.share) * team.layout.slab_m for r in range(self.resources.slabs)),
            config=self.config,
            layout=team.layout,
            scratch=scratch,
            inputs=tuple(
                self.operand(cta.problem, PortId(PortKind.TILE_INPUT, i), tensor, work)
                for i, tensor in enumerate(cta.operands.tile_inputs)
            ),
        )

    def make_epilogue_io(self, cta: CtaContext, team: Any, work: WorkDesc) -> EpilogueIO:
        """Transport of this work's C and outputs for one warpgroup."""
        c, copy_c = cta.operands.c, None
        if cta.smem.c is not None:
            copy_c = team.layout.load_copy(self.specs.c, self.resources.epi_n)
        operands = (cta.operands.d, *cta.operands.tile_outputs)
        outputs = zip(self.output_specs, operands, cta.smem.outputs)
        return EpilogueIO(
            c=None if c is None else self.operand(cta.problem, Operand.C, c.tensor, work),
            c_atom=None if c is None else c.atom,
            sC=cta.smem.c,
            copy_c=copy_c,
            c_pipeline=cta.c,
            c_step=self.sharing,
            outputs=tuple(self.make_tile_store(cta, team, work, *output) for output in outputs),
            stages=self.resources.d_stages,
            first_stage=team.index * self.resources.d_stages,
            warpgroup=team.index,
            is_store_warp=cute.arch.make_warp_uniform(cute.arch.warp_idx()) % 4 == 0,
            epi_n=self.resources.epi_n,
        )

    def make_tile_store(
        self, cta: CtaContext, team: Any, work: WorkDesc, output: tuple[Matrix, OperandSpec], operand: TmaOperand, smem
    ) -> TileStore:
        """Transport of one output of this work for one warpgroup."""
        which, spec = output
        _, columns = self.subtile_of(spec)
        return TileStore(
            tensor=self.operand(cta.problem, which, operand.tensor, work),
            atom=operand.atom,
            descriptor=None if operand.atom is None else self.descriptor(cta.problem, which, work),
            smem=smem,
            copy=None if operand.atom is None else team.layout.store_copy(spec, columns),
            dtype=CUTE_DTYPE[spec.dtype],
            columns=columns,
            is_halved=spec.is_halved,
        )
