"""The compile ledger: what ptxas makes of every shipped kernel, kept in ledger.json.

python tests/unit/ledger.py --write [--jobs 2]      rewrite it (after a deliberate change of a kernel or of the toolchain)
"""

import argparse
import functools
import json
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import quack
from quack import capabilities
from quack.activation import Activation, GatedActivation
from quack.arch import ARCHES
from quack.capabilities.axes import COMMITS, base_spec
from quack.capabilities.matrix import USUAL
from quack.gemm_config import Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from quack.gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from quack.heuristics.model import tuning_of, with_tile
from quack.heuristics.sm90 import TILES_16BIT, TILES_FP8_FAST, TILES_FP8_PRECISE
from quack.reduction import Reduction
from quack.runtime.compile import kernel_facts, toolchain
from quack.runtime.legality import legality
from quack.runtime.spec import GATHER_K, GATHER_M, GROUPED, VARLEN_M, GemmSpec
from quack.runtime.split_k import split_spec, sum_spec
from quack.runtime.symmetric import symmetric_spec
from quack.split_k import SplitKMode

PATH = Path(__file__).with_name("ledger.json")
LINEAR = "quack.epilogue.linear:"
# Besides plain GEMMs of block-scaled operands, whose main loop is another.
SCALED_TOO = (
    {"epilogue": "alpha, beta * C"},
    {"epilogue": "gated, preact"},
    {"epilogue": "gated gradient"},
    {"commit": "split-K serial"},
    {"commit": "split-K separate"},
    {"commit": "stream-K"},
    {"adapter": "varlen M"},
    {"adapter": "varlen K"},
    {"adapter": "varlen M", "epilogue": "gated, preact"},
    {"adapter": "varlen M", "commit": "split-K serial", "epilogue": "alpha, beta * C"},
    {"adapter": "varlen K", "commit": "split-K serial"},
    {"adapter": "gathered M"},
    {"adapter": "gathered M", "epilogue": "gated, preact"},
    {"adapter": "grouped"},
    {"adapter": "grouped", "commit": "split-K serial"},
)
STREAMED = (
    "rms",
    "rms with C",
    "norm and swiglu",
    "gelu, preact stored",
)  # epilogues that stream-K is kept with as well


def operands(ab: Dtype = Dtype.BF16, d: Dtype = Dtype.BF16, majors: str = "kkn", **d_changes: Any) -> OperandSpecs:
    """majors: one letter each for A (k or m), B (k or n), D (n or m)."""

    def spec(dtype: Dtype, transposed: bool, inner: bool, **changes: Any) -> OperandSpec:
        return OperandSpec(dtype, 2, transposed, Major.INNER if inner else Major.OUTER, **changes)

    return OperandSpecs(
        spec(ab, False, majors[0] == "k"),
        spec(ab, True, majors[1] == "k"),
        spec(d, False, majors[2] == "n", **d_changes),
    )


def gemm(config: GemmConfig, specs: OperandSpecs, **changes: Any) -> GemmSpec:
    return GemmSpec("sm_90a", specs, config.with_tile_k(specs.a.dtype), **changes)


def full_epilogue() -> tuple[EpilogueOpSpec, ...]:
    """alpha (float) * acc + beta (device) * C + row bias + column bias."""
    host = PortSpec(PortKind.SCALAR, PortSource.HOST)
    device = PortSpec(PortKind.SCALAR, PortSource.DEVICE, Dtype.FP32, 1)
    row = PortSpec(PortKind.ROW_VECTOR, PortSource.DEVICE, Dtype.BF16, 1)
    col = PortSpec(PortKind.COL_VECTOR, PortSource.DEVICE, Dtype.FP32, 2)
    ports = {"ScaleAccumulator": host, "AddScaledC": device, "RowBias": row, "ColBias": col}
    return tuple(EpilogueOpSpec(LINEAR + mixin, (port,)) for mixin, port in ports.items())


@functools.cache
def shipped() -> dict[str, GemmSpec]:
    """Names, which begin with the architecture, and specs."""
    rows = {f"sm_90a {name}": spec for name, spec in hopper().items()}
    for arch in ARCHES.values():
        if arch.has_kernel and arch.name != "sm_90a":
            is_first = arch.name == next(a.name for a in ARCHES.values() if a.execution is arch.execution)
            for name, spec in others(arch.name, is_first):
                if spec not in rows.values():
                    rows[f"{arch.name} {name}"] = spec
    return rows


def others(arch: str, is_first: bool) -> Iterator[tuple[str, GemmSpec]]:
    """Every tile the heuristics may choose, then the cells of `capabilities` with one coordinate that is not the usual one. Of
    targets that share their kernel class all but the first only show that they compile."""
    usual, known = USUAL._replace(arch=arch), set(capabilities.cells([arch]))
    for inputs in capabilities.AXES["inputs"]:
        cell = usual._replace(inputs=inputs)
        if cell not in known or not capabilities.judge(cell).ok:
            continue
        base = capabilities.judge(cell).kernels[0]
        tuning = tuning_of(arch)
        for tile in tuning.tiles_of(base):
            specs = [with_tile(base, tile, cluster) for cluster in tuning.clusters]
            for spec in [spec for spec in specs if legality(spec).ok][: 1 if is_first else 0]:
                yield f"{inputs} {spec.config}", spec
        if not is_first:
            yield f"{inputs} {base.config}", base
    if not is_first:
        return
    for axis in ("adapter", "commit", "epilogue"):
        for value in capabilities.AXES[axis]:
            for i, spec in enumerate(capabilities.judge(usual._replace(**{axis: value})).kernels):
                yield f"bf16 {value}{' sum' * i} {spec.config}", spec
    for epilogue in capabilities.AXES["epilogue"]:
        (spec,) = capabilities.judge(usual._replace(adapter="grouped", epilogue=epilogue)).kernels
        yield f"bf16 grouped {epilogue} {spec.config}", spec
    for coordinates in SCALED_TOO:
        for i, spec in enumerate(capabilities.judge(usual._replace(inputs="nvfp4", **coordinates)).kernels):
            yield f"nvfp4 {' '.join(coordinates.values())}{' sum' * i} {spec.config}", spec


def hopper() -> dict[str, GemmSpec]:
    """Every tile the heuristics may choose, and every kind of operand, epilogue and schedule on the main ones."""
    rows: dict[str, GemmSpec] = {}

    def add(name: str, spec: GemmSpec) -> None:
        rows[f"{name} {spec.config}"] = spec

    def tile(tile_m: int, tile_n: int, pingpong: bool) -> GemmConfig:
        return GemmConfig(tile_m, tile_n, pingpong=pingpong, cluster_m=2 if tile_n >= 32 else 1)

    fp8 = operands(Dtype.E4M3)
    for shape in TILES_16BIT:
        add("bf16 kkn", gemm(tile(*shape), operands()))
    for shape in TILES_FP8_FAST:
        if shape[1] >= 128:
            add("fp8 fast", gemm(tile(*shape), fp8))
    for shape in TILES_FP8_PRECISE:
        add("fp8 precise", gemm(tile(*shape), fp8, fast_accum=False))

    cooperative, pingpong = GemmConfig(128, 256), GemmConfig(128, 128, pingpong=True)
    for config in (cooperative, pingpong, GemmConfig(128, 192, pingpong=True)):
        for majors in ("mnn", "knm", "mkn"):
            # Half of a 192-wide N-major tile of B is no whole number of swizzle atoms: multicast A instead.
            cluster = (1, 2) if config.tile_n == 192 else (2, 1)
            turned = replace(config, cluster_m=cluster[0], cluster_n=cluster[1])
            add(f"bf16 {majors}", gemm(turned, operands(majors=majors)))
        add("fp16 -> fp32", gemm(config, operands(Dtype.FP16, Dtype.FP32)))
        add("bf16 -> fp8", gemm(config, operands(d=Dtype.E4M3)))
        if config.tile_n != 192:  # refused: element stores need registers
            add("bf16 unaligned D", gemm(config, operands(align=2)))
        add("bf16 dynamic", gemm(replace(config, is_dynamic_persistent=True), operands()))
        add("bf16 single", gemm(replace(config, is_persistent=False), operands()))
    halves = OperandSpecs(*(replace(spec, is_concat=True) for spec in operands()[:3]))
    add("bf16 halves", gemm(pingpong, halves))
    batched = OperandSpecs(*(replace(spec, ndim=3) for spec in operands()[:3]))
    add("bf16 permuted", gemm(replace(pingpong, is_dynamic_persistent=True), batched, is_permuted=True))
    for config in (GemmConfig(128, 192), pingpong):
        for d in (Dtype.BF16, Dtype.FP32):
            specs = operands(d=d)
            with_c = specs._replace(c=specs.d)
            add(f"bf16 -> {d.value} all mixins", gemm(config, with_c, epilogue=full_epilogue()))
            unaligned = specs._replace(c=replace(specs.d, align=d.bytes))
            add(f"bf16 -> {d.value} all mixins, unaligned C", gemm(config, unaligned, epilogue=full_epilogue()))
    rows_of_a, columns_of_a = operands(), operands(majors="mnn")
    rows_of_a = rows_of_a._replace(b=replace(rows_of_a.b, ndim=3))
    columns_of_a = columns_of_a._replace(d=replace(columns_of_a.d, ndim=3))
    add("bf16 gathered rows", gemm(GemmConfig(128, 192, pingpong=True, cluster_m=1), rows_of_a, adapter=GATHER_M))
    add("bf16 gathered columns", gemm(cooperative, columns_of_a, adapter=GATHER_K))
    drawn = replace(pingpong, is_dynamic_persistent=True)
    add("bf16 ragged rows", gemm(replace(drawn, cluster_m=1, cluster_n=2), operands(), adapter=VARLEN_M))
    table = PortSpec(PortKind.ROW_VECTOR, PortSource.TABLE, Dtype.BF16, 1)
    bias = (EpilogueOpSpec(LINEAR + "RowBias", (table,)),)
    for config in (replace(drawn, tile_n=192), cooperative):
        add("bf16 grouped", gemm(config, operands(), adapter=GROUPED, epilogue=bias))
    rows |= {f"{name} {spec.config}": spec for name, spec in grouped()}
    ragged = gemm(GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True), rows_of_a, adapter=VARLEN_M)
    everything = gemm(GemmConfig(128, 192), operands()._replace(c=operands().d), epilogue=full_epilogue())
    for mode in SplitKMode:
        for config in (cooperative, pingpong, GemmConfig(64, 128, pingpong=True)):
            add(f"bf16 split {mode.value}", split_spec(gemm(config, operands()), mode))
        if mode is not SplitKMode.STREAM:
            add(f"bf16 split {mode.value} ragged rows", split_spec(ragged, mode))
        if mode is not SplitKMode.SEPARATE:
            add(f"bf16 split {mode.value} all mixins", split_spec(everything, mode))
    for works in (1000, 1):
        add("bf16 sum of parts", sum_spec(everything, works, 132))
    precise = gemm(GemmConfig(128, 176), fp8, fast_accum=False)
    add("fp8 precise split serial", split_spec(precise, SplitKMode.SERIAL))
    add("fp8 precise split stream", split_spec(precise, SplitKMode.STREAM))
    for config in (cooperative, pingpong):
        add("bf16 split stream unaligned D", split_spec(gemm(config, operands(align=2)), SplitKMode.STREAM))
    permuted = replace(gemm(pingpong, batched), is_permuted=True)
    add("bf16 split stream permuted", split_spec(permuted, SplitKMode.STREAM))
    for shape in TILES_16BIT:  # chosen for the shapes of everyday, not for deep products only
        spec = gemm(tile(*shape), operands())
        add("bf16 split stream", split_spec(spec, SplitKMode.STREAM))
        with_c = replace(spec, operands=everything.operands, epilogue=everything.epilogue)
        if legality(split_spec(with_c, SplitKMode.STREAM)).ok:
            add("bf16 split stream all mixins", split_spec(with_c, SplitKMode.STREAM))
    for config in (cooperative, GemmConfig(256, 128), pingpong):
        add("bf16 user's softcap", gemm(config, operands(), epilogue=(users_softcap(),)))
        with_c = operands()._replace(c=operands().d)
        add(
            "bf16 user's softcap and C",
            gemm(config, with_c, epilogue=(EpilogueOpSpec(LINEAR + "AddC", ()), users_softcap())),
        )
    rows |= {f"{name} {spec.config}": spec for name, spec in (*tf32(), *symmetric(), *norms(), *activations())}
    for name, spec in (*norms(), *activations()):
        streamed = split_spec(spec, SplitKMode.STREAM)
        if name in STREAMED and legality(streamed).ok:
            add(f"{name} split stream", streamed)
    return rows


def users_softcap() -> EpilogueOpSpec:
    """What `gemm` makes of a function: a tanh and a division for each element."""
    function = quack.pointwise(lambda acc, cap: cap * quack.ops.tanh(acc / cap))
    return EpilogueOpSpec(function(cap=30.0).name(), (PortSpec(PortKind.SCALAR, PortSource.HOST),))


def tf32() -> Iterator[tuple[str, GemmSpec]]:
    """fp32 operands: both K-major, and A M-major, which goes through registers; tiles are the widest that then fit."""
    in_registers = [GemmConfig(128, 256), GemmConfig(256, 128), GemmConfig(192, 96, cluster_m=1)]
    in_registers += [GemmConfig(128, n, pingpong=True) for n in (160, 128, 64)]
    in_registers += [GemmConfig(64, n, pingpong=True) for n in (256, 128, 16)]
    for config in (*in_registers, GemmConfig(128, 192, pingpong=True)):
        config = replace(config, cluster_m=config.cluster_m if config.tile_n >= 32 else 1)
        yield "tf32", gemm(config, operands(Dtype.FP32, Dtype.FP32))
        if config.tile_n != 192:
            yield "tf32 mkn", gemm(config, operands(Dtype.FP32, Dtype.FP32, majors="mkn"))
    for config in (GemmConfig(128, 192), GemmConfig(128, 96, pingpong=True)):
        for majors in ("kkn", "mkn"):
            specs = operands(Dtype.FP32, Dtype.BF16, majors=majors)
            with_c = specs._replace(c=specs.d)
            yield f"tf32 {majors} -> bf16 all mixins", gemm(config, with_c, epilogue=full_epilogue())
            yield f"tf32 {majors} split", split_spec(gemm(config, specs), SplitKMode.SERIAL)
    rows = operands(Dtype.FP32, Dtype.FP32)
    rows = rows._replace(b=replace(rows.b, ndim=3))
    drawn = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True, cluster_m=1)
    yield "tf32 gathered rows", gemm(replace(drawn, tile_n=192), rows, adapter=GATHER_M)
    yield "tf32 ragged rows", gemm(replace(drawn, cluster_n=2), rows, adapter=VARLEN_M)
    for majors in ("kkn", "mkn"):
        yield f"tf32 {majors} grouped", gemm(drawn, operands(Dtype.FP32, Dtype.FP32, majors=majors), adapter=GROUPED)
    add_c = EpilogueOpSpec(LINEAR + "AddC", ())
    specs = operands(Dtype.FP32, Dtype.FP32)
    yield (
        "tf32 symmetric with C",
        symmetric_spec(gemm(replace(drawn, is_dynamic_persistent=False), specs._replace(c=specs.d), epilogue=(add_c,))),
    )


def grouped() -> Iterator[tuple[str, GemmSpec]]:
    """Every family of mixins on tables of addresses, drawn and with parts, on the tiles that large problems get."""
    cell = USUAL._replace(adapter="grouped")
    tiles = ((128, 256, False), (128, 192, True), (128, 128, True))
    for epilogue in capabilities.AXES["epilogue"]:
        base = base_spec(cell._replace(epilogue=epilogue))
        for tile in tiles:
            whole = with_tile(base, tile, (2, 1))
            whole = replace(whole, config=replace(whole.config, is_dynamic_persistent=True))
            if not legality(whole).ok:
                continue
            yield f"bf16 grouped {epilogue}", whole
            for mode in (SplitKMode.SERIAL, SplitKMode.SEPARATE):
                for spec in COMMITS[f"split-K {mode.value}"](whole):
                    if epilogue != "none" and legality(spec).ok and spec.epilogue:
                        yield f"bf16 grouped split {mode.value} {epilogue}", spec


def symmetric() -> Iterator[tuple[str, GemmSpec]]:
    """Square tiles stored twice: by TMA, by element, with C, in fp32."""
    linear = tuple(op for op in full_epilogue() if op.mixin in (LINEAR + "ScaleAccumulator", LINEAR + "AddScaledC"))
    large, small = GemmConfig(128, 128, pingpong=True), GemmConfig(64, 64, pingpong=True)
    for config in (large, small, GemmConfig(128, 128, cluster_m=1, cluster_n=2)):
        yield "symmetric bf16", symmetric_spec(gemm(config, operands()))
        for d, align in ((Dtype.BF16, 16), (Dtype.BF16, 2), (Dtype.FP32, 16), (Dtype.FP32, 4)):
            specs = operands(d=d, align=align)
            with_c = gemm(config, specs._replace(c=specs.d), epilogue=linear)
            yield f"symmetric bf16 -> {d.value} with C" + ", unaligned" * (align < 16), symmetric_spec(with_c)
    yield "symmetric bf16 dynamic", symmetric_spec(gemm(replace(large, is_dynamic_persistent=True), operands()))
    yield "symmetric bf16 single", symmetric_spec(gemm(replace(large, is_persistent=False), operands()))


def norms() -> Iterator[tuple[str, GemmSpec]]:
    """Reductions, scales, stochastic rounding and further tiles, on the tiles that large problems get."""
    epilogue = "quack.epilogue."
    partials = {kind: PortSpec(kind, PortSource.DEVICE, Dtype.FP32, 2) for kind in PortKind}
    vector = {kind: PortSpec(kind, PortSource.DEVICE, Dtype.FP32, 1) for kind in PortKind}
    absent = {kind: PortSpec(kind, PortSource.ABSENT) for kind in PortKind}
    tiles = {kind: PortSpec(kind, PortSource.DEVICE, layout=operands().d) for kind in PortKind}
    seed = PortSpec(PortKind.INTEGER, PortSource.HOST)

    def row(reduction: Reduction) -> EpilogueOpSpec:
        return EpilogueOpSpec(
            f"{epilogue}reduction:RowReduce", (partials[PortKind.ROW_PARTIALS],), (("reduction", reduction),)
        )

    add_c = EpilogueOpSpec(LINEAR + "AddC", ())
    weight = EpilogueOpSpec(f"{epilogue}scale:ScaleColumns", (vector[PortKind.ROW_VECTOR],))
    rstd = EpilogueOpSpec(f"{epilogue}scale:ScaleRows", (vector[PortKind.COL_VECTOR],))
    col = EpilogueOpSpec(
        f"{epilogue}reduction:ColReduce", (partials[PortKind.COL_PARTIALS],), (("reduction", Reduction.SUM),)
    )
    log_sum_exp = EpilogueOpSpec(f"{epilogue}reduction:RowLogSumExp", (partials[PortKind.ROW_PARTIALS],))
    rounding = EpilogueOpSpec(f"{epilogue}rounding:RoundStochastically", (seed,))
    turned = EpilogueOpSpec(f"{epilogue}rounding:RoundStochasticallyTransposed", (seed,))
    add = EpilogueOpSpec(f"{epilogue}tile:AddTile", (tiles[PortKind.TILE_INPUT], absent[PortKind.SCALAR]))
    store = EpilogueOpSpec(f"{epilogue}tile:StoreTile", (tiles[PortKind.TILE_OUTPUT],))
    act, gate = (
        EpilogueOpSpec(f"{epilogue}activation:{mixin}", (absent[PortKind.TILE_OUTPUT],), (("activation", kind),))
        for mixin, kind in (("Activate", Activation.GELU_TANH_APPROX), ("Gate", GatedActivation.SWIGLU))
    )
    plain, halved = operands(), operands(is_halved=True)
    with_c = plain._replace(c=plain.d)
    rms = (row(Reduction.SUM_OF_SQUARES), weight)
    wide, narrow = (GemmConfig(128, 192, pingpong=True, cluster_m=1, cluster_n=2), GemmConfig(128, 128, pingpong=True))
    large = (GemmConfig(128, 256), GemmConfig(256, 128), narrow)
    for config in (*large, wide):
        yield "rms", gemm(config, plain, epilogue=rms)
        yield "row max", gemm(config, plain, epilogue=(row(Reduction.MAX),))
        yield "column sum", gemm(config, plain, epilogue=(col,))
        yield "norm and gelu", gemm(config, plain, epilogue=(rstd, act))
        yield "norm and swiglu", gemm(config, halved, epilogue=(rstd, gate))
        yield "one more output", gemm(config, plain, epilogue=(store,))
    for config in large:
        yield "rms with C", gemm(config, with_c, epilogue=(add_c, *rms))
        yield "row and column sums", gemm(config, plain, epilogue=(row(Reduction.SUM), col))
        yield "row log-sum-exp", gemm(config, plain, epilogue=(log_sum_exp,))
        yield "stochastic rounding", gemm(config, plain, epilogue=(rounding,))
        yield "one more input", gemm(config, plain, epilogue=(add,))
    yield (
        "stochastic rounding, swapped",
        gemm(GemmConfig(128, 64, pingpong=True, swap_ab=True), plain, epilogue=(turned,)),
    )
    everything = (add_c, weight, row(Reduction.SUM_OF_SQUARES), col, rounding)
    yield "C, scale, reductions, rounding", gemm(GemmConfig(64, 128, pingpong=True), with_c, epilogue=everything)


def activations() -> Iterator[tuple[str, GemmSpec]]:
    """Postact alone and beside preact, and gradients with everything, on the tiles that large problems get."""
    plain, halved, words = operands(), operands(is_halved=True), operands(d=Dtype.FP32)
    tile = {kind: PortSpec(kind, PortSource.DEVICE, layout=plain.d) for kind in PortKind}[PortKind.TILE_OUTPUT]
    absent = {kind: PortSpec(kind, PortSource.ABSENT) for kind in PortKind}
    row = PortSpec(PortKind.ROW_VECTOR, PortSource.DEVICE, Dtype.BF16, 1)
    scale = PortSpec(PortKind.COL_VECTOR, PortSource.DEVICE, Dtype.FP32, 1)
    sums = PortSpec(PortKind.ROW_PARTIALS, PortSource.DEVICE, Dtype.FP32, 2)
    bias = EpilogueOpSpec(LINEAR + "RowBias", (row,))
    large = (GemmConfig(128, 256), GemmConfig(256, 128), GemmConfig(128, 128, pingpong=True))
    wide = (GemmConfig(128, 160, pingpong=True), GemmConfig(128, 192, pingpong=True))

    def forward(mixin: str, kind: Any, port: PortSpec) -> EpilogueOpSpec:
        return EpilogueOpSpec(f"quack.epilogue.activation:{mixin}", (port,), (("activation", kind),))

    def backward(mixin: str, *ports: PortSpec, **statics: Any) -> tuple[EpilogueOpSpec, ...]:
        return (EpilogueOpSpec(f"quack.epilogue.activation_backward:{mixin}", ports, tuple(statics.items())),)

    for config in (*large, *wide):
        gelu, swiglu = Activation.GELU_TANH_APPROX, GatedActivation.SWIGLU
        half = replace(tile, layout=halved.d)
        yield "gelu", gemm(config, plain, epilogue=(bias, forward("Activate", gelu, absent[PortKind.TILE_OUTPUT])))
        yield "swiglu", gemm(config, halved, epilogue=(bias, forward("Gate", swiglu, absent[PortKind.TILE_OUTPUT])))
        yield "swiglu, preact stored", gemm(config, plain, epilogue=(bias, forward("Gate", swiglu, half)))
        first = () if config in wide else (bias,)  # with it, refused
        yield "gelu, preact stored", gemm(config, plain, epilogue=(*first, forward("Activate", gelu, tile)))
        if config in wide:
            continue
        pairs = {"activation": swiglu, "pairs": Dtype.BF16, "gradient_pairs": Dtype.BF16}
        ports = [(tile, absent[PortKind.COL_VECTOR], absent[PortKind.ROW_PARTIALS])]
        ports += [] if config.pingpong else [(tile, scale, sums)]
        for port in ports:
            name = "gradient and reduction" if port[2] is sums else "gradient"
            of_gelu, of_swiglu = (
                backward("ActivateBackward", *port, activation=gelu),
                backward("GateBackward", *port, **pairs),
            )
            yield f"gelu {name}", gemm(config, plain._replace(c=plain.d), epilogue=of_gelu)
            yield f"swiglu {name}", gemm(config, words._replace(c=words.d), epilogue=of_swiglu)


def facts(spec: GemmSpec) -> dict[str, int]:
    """What the ledger keeps: no times."""
    return {name: value for name, value in kernel_facts(spec).items() if name != "compile_s"}


def facts_of(name: str) -> dict[str, int]:
    """In a process of the pool: what users define is known by name in the process that made it only."""
    return facts(shipped()[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--only", default="", metavar="REGEX", help="keep what is written of names that do not match")
    options = parser.parse_args()
    names = sorted(shipped())
    kept = json.loads(PATH.read_text())["kernels"] if options.only else {}
    changed = [name for name in names if name not in kept or re.search(options.only, name)]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = {name: kept.get(name) for name in names} | dict(zip(changed, pool.map(facts_of, changed)))
    lines = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    kernels = ",\n".join(lines)
    PATH.write_text(f'{{\n  "toolchain": {json.dumps(toolchain())},\n  "kernels": {{\n{kernels}\n  }}\n}}\n')
    for name, row in rows.items():
        if row["spill_bytes"] or row["wgmma_serialized"]:
            print(f"bad: {name}: {row}")
    print(f"{len(rows)} kernels -> {PATH}")


if __name__ == "__main__":
    main()
