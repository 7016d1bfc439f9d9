"""The table of grouped problems: what is where, what the host writes, and what a call costs and refuses."""

from dataclasses import replace

import pytest
import torch

import quack
from quack.capabilities.axes import ADAPTERS, COMMITS, EPILOGUES, Cell, base_spec
from quack.capabilities.matrix import judge
from quack.gemm_config import Dtype, GemmConfig
from quack.gemm_port import PortId, PortKind, PortSource, PortSpec, argument_ports, numbered_ports
from quack.grouped_table import LINE_WORDS, Word, table_layout
from quack.runtime import grouped
from quack.runtime.grouped_partials import NEUTRAL, PartialsLayout, PartialsMemory, Totals
from quack.runtime.spec import GemmShape, UnsupportedGemm
from tests.epilogue_act_cases import ActCase
from tests.grouped_epilogue_cases import SHAPES, SMALL, ActGroup, BackwardGroup, EveryGroup, EveryOperands, ForwardGroup


def spec_of(epilogue: str, arch: str = "sm_90a"):
    return base_spec(Cell(arch, "bf16", "grouped", "default", epilogue))


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_layouts(epilogue: str):
    """Every word belongs to one tensor, every descriptor too, and a launch without C and mixins finds its words in the same places."""
    spec = spec_of(epilogue)
    layout = table_layout(spec.operands, spec.epilogue)
    words = [w for slot in layout.slots.values() for w in (slot.word, slot.pitch) if w is not None]
    assert words == list(range(Word.FIRST_SLOT, Word.FIRST_SLOT + len(words))) and layout.words >= words[-1] + 1
    assert layout.words % LINE_WORDS == 0
    descriptors = [slot.descriptor for slot in layout.slots.values() if slot.descriptor is not None]
    assert descriptors == list(range(layout.descriptors))
    plain = table_layout(spec.operands._replace(c=None), ())
    assert all(layout.slots[key] == slot for key, slot in plain.slots.items())
    for port_id, port in numbered_ports(spec.epilogue):
        assert (port_id in layout.slots) == (port.source is PortSource.TABLE)


def test_any_number_of_ports():
    """Vectors have a word, matrices two, and tiles that are stored by TMA a descriptor."""
    spec = spec_of("further tiles")
    add, store = spec.epilogue
    vector = PortSpec(PortKind.ROW_VECTOR, PortSource.TABLE, Dtype.FP32, 1)
    ops = (*(replace(add, ports=(vector,)) for _ in range(20)), add, store, replace(add, ports=(vector,)))
    layout = table_layout(spec.operands, ops)
    assert layout.slots[PortId(PortKind.ROW_VECTOR, 20)].word == Word.FIRST_SLOT + 6 + 20 + 4
    assert layout.words == 3 * LINE_WORDS and layout.descriptors == 4
    tile = layout.slots[PortId(PortKind.TILE_OUTPUT, 0)]
    assert tile.descriptor == 3 and layout.slots[PortId(PortKind.TILE_INPUT, 0)].descriptor is None
    by_element = replace(store, ports=(replace(store.ports[0], layout=replace(store.ports[0].layout, align=2)),))
    assert table_layout(spec.operands, (by_element,)).descriptors == 3
    assert [port.kind for port in argument_ports(ops)] == [PortKind.TILE_INPUT, PortKind.TILE_OUTPUT]


def test_what_the_host_writes(launches):
    """Addresses, pitches and numbers of every tensor of every problem, rows by falling K."""
    shapes = ((136, 264, 72), (2, 16, 8), (64, 64, 64), (0, 16, 16), (33, 72, 200), (70, 8, 104))
    operands = EveryOperands(EveryGroup(shapes, half=True, config=SMALL), "cpu")
    results = operands.run()
    (launch,) = launches
    a, b, c, d, (table, descriptors, is_new), ports, counter, clusters = launch
    (program,) = grouped._programs.values()
    (own,) = program.launches
    slots = own.table.slots
    order = sorted((i for i, (m, _, _) in enumerate(shapes) if m), key=lambda i: -shapes[i][2])
    assert table.shape == (len(order), own.table.words) and is_new and table.data_ptr() % 128 == 0
    assert descriptors.shape == (len(order) * own.table.descriptors, LINE_WORDS) and descriptors.data_ptr() % 128 == 0
    tensors = {
        "a": operands.A, "b": operands.B, "c": operands.C, "d": operands.outs,
        PortId(PortKind.ROW_VECTOR, 0): operands.r, PortId(PortKind.COL_VECTOR, 0): operands.c,
        PortId(PortKind.TILE_INPUT, 0): operands.t, PortId(PortKind.TILE_OUTPUT, 0): results[1],
        PortId(PortKind.TILE_OUTPUT, 1): operands.half, PortId(PortKind.ROW_PARTIALS, 0): results[2],
        PortId(PortKind.COL_PARTIALS, 0): results[3],
    }  # fmt: skip
    assert slots.keys() == tensors.keys()
    for row, i in zip(table.tolist(), order):
        assert row[: Word.FIRST_SLOT] == [*shapes[i], i]
        for key, family in tensors.items():
            assert row[slots[key].word] == family[i].data_ptr()
            if slots[key].pitch is not None and family[i].shape[0] > 1:
                assert row[slots[key].pitch] == max(family[i].stride())
    template = order[0]
    assert a is operands.A[template] and c is operands.C[template] and d is operands.outs[template]
    assert (
        ports[0] is not operands.scale
        and ports[0].data_ptr() == operands.scale.data_ptr()
        or ports[0] is operands.scale
    )
    assert (
        ports[1] == 3 and ports[2] is operands.t[template] and ports[4] is operands.half[template] and len(ports) == 5
    )


def test_partials_lie_in_few_strips():
    """Those of 64 problems of very different widths: no problem's overlaps another's, and less than half is padding."""
    spec = judge(Cell("sm_90a", "bf16", "grouped", "default", "row reduction")).kernels[0]
    shapes = [GemmShape(1 + 37 * i % 200, 8 + 997 * i * i % 30000, 64) for i in range(64)]
    for swapped in (False, True):
        for kind in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS):
            layout = PartialsLayout()
            layout.skip("x", kind, 64, GemmShape(5, 0, 8))
            finishing = replace(spec, config=replace(spec.config, swap_ab=swapped))
            strips = layout.place("x", kind, finishing, enumerate(shapes))
            assert len(strips) <= 10 and layout.words % 4 == 0
            memory = PartialsMemory(layout, (), torch.empty(0), 65)
            views = memory.lists["x"]
            for i, view in enumerate(views):
                view.fill_(float(i))
            for i, view in enumerate(views[:64]):
                reduced = view.shape[1 if kind is PortKind.ROW_PARTIALS else 0]
                assert view.numel() and reduced and (view == i).all()
            assert 2 * sum(view.numel() for view in views) > layout.words - 4 * len(strips)
            assert views[64].shape == ((5, 0) if kind is PortKind.ROW_PARTIALS else (0, 0))


def test_what_pads_strips_is_neutral():
    spec = judge(Cell("sm_90a", "bf16", "grouped", "default", "row reduction")).kernels[0]
    layout = PartialsLayout()
    layout.skip("x", PortKind.ROW_PARTIALS, 2, GemmShape(3, 0, 8))
    tile = spec.config.tile_n
    layout.place("x", PortKind.ROW_PARTIALS, spec, [(0, GemmShape(4, 3 * tile, 8)), (1, GemmShape(5, 4 * tile, 8))])
    for reduction, neutral in NEUTRAL.items():
        memory = PartialsMemory(layout, (Totals("x", reduction),), torch.empty(0), 3)
        (step,) = memory.steps
        matrix = step[1][0]
        assert matrix.shape == (9, 4) and (matrix[:4, 3] == neutral).all()
        assert [tuple(t.shape) for t in memory.lists["x"]] == [(4,), (5,), (3,)] and (
            memory.lists["x"][2] == neutral
        ).all()


def test_every_family_is_legal_where_it_is_for_a_dense_problem():
    """Stream-K shares out equal problems and block scales have no table; nothing else sets grouped problems apart."""
    assert "grouped" in ADAPTERS
    for arch in ("sm_90a", "sm_100a", "sm_120a"):
        for commit in COMMITS:
            for epilogue in EPILOGUES:
                dense, group = (judge(Cell(arch, "bf16", a, commit, epilogue)).ok for a in ("dense", "grouped"))
                assert group == (dense and commit not in ("stream-K", "symmetric")), (arch, commit, epilogue)


@pytest.mark.parametrize(
    "group, of",
    [
        (ForwardGroup(ActGroup(ActCase("silu", bias=True), SHAPES[:3]), "cpu"), quack.gemm_grouped_act),
        (
            BackwardGroup(ActGroup(ActCase("silu", scale="fp32", reduce=True), SHAPES[:3]), "cpu"),
            quack.gemm_grouped_dact,
        ),
    ],
    ids=["act", "dact"],
)
def test_plans_repeat_with_one_launch_of_each_kind(group, of, launches):
    plan = quack.grouped_plan(**group.arguments(), of=of)
    assert not launches
    first = plan()
    count = len(launches)
    second = plan(group.of("A"), group.of("B"))
    assert len(launches) == 2 * count and launches[0][4][2] == 1 and launches[count][4][2] == 0
    assert launches[0][4][0] is launches[count][4][0]  # the same table
    for x, y in zip(first, second):
        assert x is not y and all(a is b for a, b in zip(x or (), y or ()))


def test_plans_refuse_other_tensors(launches):
    group = ForwardGroup(ActGroup(ActCase("silu", bias=True), SHAPES[:3]), "cpu")
    plan = quack.grouped_plan(**group.arguments(), of=quack.gemm_grouped_act)
    wide = [torch.zeros(t.shape[0] + 1) for t in group.of("bias")]
    with pytest.raises(ValueError, match=r"bias_list\[0\] is .*make a new plan"):
        plan(bias_list=wide)
    with pytest.raises(ValueError, match="bias_list has 2 tensors, the plan was made for 3"):
        plan(bias_list=group.of("bias")[:2])
    with pytest.raises(ValueError, match="C_list has 3 tensors, the plan was made for 0"):
        plan(C_list=group.of("preact"))
    with pytest.raises(TypeError, match="of is .*expected one of gemm_grouped"):
        quack.grouped_plan(**group.arguments(), of=quack.gemm_act)


def rows(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(*shape).bfloat16() for shape in shapes]


@pytest.mark.parametrize(
    "call, match, error",
    [
        (lambda A, B: quack.gemm_grouped_act(A, B, activation="sine"), "activation is 'sine'", ValueError),
        (
            lambda A, B: quack.gemm_grouped_act(A, B, preact_out_list=rows((8, 16), (8, 8)), store_preact=False),
            "preact_out_list is given and store_preact is False",
            ValueError,
        ),
        (
            lambda A, B: quack.gemm_grouped_act(A, B, postact_out_list=rows((8, 16), (8, 9))),
            r"problem 1: postact_out has shape \(8, 9\), expected \(8, 8\)",
            ValueError,
        ),
        (lambda A, B: quack.gemm_grouped_act(A, B, bias_list=rows((16,))), "bias_list has 1 tensors", ValueError),
        (lambda A, B: quack.gemm_grouped_gated(A, B, activation="silu"), "silu", ValueError),
        (
            lambda A, B: quack.gemm_grouped_dact(A, B, None),
            "PreAct_list is None, expected a list of tensors",
            TypeError,
        ),
        (
            lambda A, B: quack.gemm_grouped_dact(A, B, rows((8, 16), (8, 16))),
            r"problem 1: PreAct has shape \(8, 16\), expected \(8, 8\)",
            ValueError,
        ),
        (
            lambda A, B: quack.gemm_grouped_dgated(A, B, [x.float() for x in rows((8, 32), (8, 16))]),
            "problem 0: PreAct has dtype torch.float32.*pairs of 16-bit numbers",
            UnsupportedGemm,
        ),
        (
            lambda A, B: quack.gemm_grouped_dact(A, B, rows((8, 16), (8, 8)), colvec_scale_list=rows((8,), (9,))),
            r"problem 1: colvec_scale has shape \(9,\), expected \(8,\)",
            ValueError,
        ),
        (
            lambda A, B: quack.gemm_grouped_gated(A, B, config=GemmConfig(64, 64, swap_ab=True)),
            "no form for D.T.*swap_ab=False",
            UnsupportedGemm,
        ),
        (lambda A, B: quack.gemm_grouped_reduce(A, B, row="median"), "reduction is 'median'", ValueError),
        (
            lambda A, B: quack.gemm_grouped_act(A, B, postact_out_list=2 * rows((8, 16))),
            "postact_out",
            ValueError,
        ),
        (
            lambda A, B: quack.gemm_grouped(A, B, rounding_mode=quack.RoundingMode.RS, out_dtype=torch.float32),
            "rounds to bf16, and out has dtype torch.float32",
            UnsupportedGemm,
        ),
    ],
)
def test_refusals(call, match: str, error: type[Exception], launches):
    A, B = rows((8, 8), (8, 8)), [t.mT for t in rows((16, 8), (8, 8))]
    with pytest.raises(error, match=match):
        call(A, B)
    assert not launches


def test_outputs_may_not_overlap(launches):
    """Also those of mixins, with each other and with inputs."""
    A, B = rows((8, 8), (8, 8)), [t.mT for t in rows((16, 8), (16, 8))]
    shared = torch.zeros(8, 16).bfloat16()
    with pytest.raises(ValueError, match=r"postact_out_list\[\d\] overlaps postact_out_list\[\d\] in memory"):
        quack.gemm_grouped_act(A, B, postact_out_list=[shared, shared])
    C = rows((8, 16), (8, 16))
    with pytest.raises(ValueError, match=r"postact_out_list\[1\] overlaps C_list\[0\] in memory"):
        quack.gemm_grouped_act(A, B, C, postact_out_list=[shared, C[0]])
    quack.gemm_grouped_act(A, B, C, preact_out_list=C)
    assert len(launches) == 1
