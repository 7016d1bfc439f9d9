"""What the heuristics choose for an H200: kept in golden_choices.json, so that a refactoring cannot change it unseen.

python tests/unit/golden_choices.py --write     rewrite it (after a deliberate change of the model or its numbers)
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quack import heuristics
from quack.gemm_config import Dtype, GemmConfig, OperandSpecs
from quack.heuristics import split_k, symmetric
from quack.runtime.plan import _swap
from quack.runtime.spec import GATHER_M, GROUPED, VARLEN_K, VARLEN_M, GemmShape, GemmSpec
from quack.runtime.symmetric import symmetric_spec
from tests.unit.ledger import full_epilogue, gemm, operands

PATH = Path(__file__).with_name("golden_choices.json")
SMS = 132
SHAPES = (
    (8192, 8192, 8192), (4096, 4096, 4096), (2048, 2048, 2048), (1024, 1024, 1024), (512, 512, 512), (64, 64, 64),
    (16, 8192, 8192), (128, 8192, 8192), (1, 4096, 11008), (8192, 16, 8192), (256, 256, 65536), (128, 128, 16384),
    (8192, 14336, 4096), (8192, 4096, 14336), (16384, 4096, 4096), (8192, 50257, 768), (300, 700, 300), (64, 64, 0),
    (1536, 2304, 768), (33, 77, 5),
)  # fmt: skip
DRAWN = 20


def shapes() -> list[GemmShape]:
    """Forty: those that people run, and others drawn at random."""
    rng = random.Random(40)
    drawn = [(*(int(2 ** rng.uniform(3, 14)) for _ in range(3)), rng.choice((1, 1, 7))) for _ in range(DRAWN)]
    return [GemmShape(*shape) for shape in (*SHAPES, *drawn)]


def kinds() -> dict[str, OperandSpecs]:
    plain = operands()
    return {
        "bf16": plain,
        "bf16 mnn": operands(majors="mnn"),
        "fp16 -> fp32 with C": operands(Dtype.FP16, Dtype.FP32)._replace(c=operands(Dtype.FP16, Dtype.FP32).d),
        "fp8": operands(Dtype.E4M3),
        "unaligned": operands(align=2),
    }


def choices() -> Iterator[tuple[str, str]]:
    """(name, choice) of every kind of call."""
    for kind, specs in kinds().items():
        for fast_accum in (True, False) if kind == "fp8" else (True,):
            epilogue = full_epilogue() if specs.c is not None else ()
            base = gemm(GemmConfig(), specs, fast_accum=fast_accum, epilogue=epilogue)
            for shape in shapes():
                chosen = split_k.choose(base, shape, SMS, _swap(base))
                precise = "" if fast_accum else " precise"
                yield f"{kind}{precise} {named(shape)}", f"{text(chosen.spec)} x{chosen.splits} {chosen.mode.value}"
    base = gemm(GemmConfig(), operands())
    for shape in shapes():
        ragged = replace(shape, batch=8, is_ragged_m=True)
        for adapter in (VARLEN_M, GATHER_M):
            yield label(adapter, shape), text(heuristics.choose(replace(base, adapter=adapter), ragged, SMS))
        strided = gemm(GemmConfig(), operands(majors="mnn"), adapter=VARLEN_K)
        yield label(VARLEN_K, shape), text(heuristics.choose(strided, replace(shape, batch=8), SMS))
        square = GemmShape(shape.m, shape.m, shape.k, shape.batch)
        for whole in (None, (base, replace(base, operands=operands(majors="knn")))):
            chosen = symmetric.choose(symmetric_spec(base), square, SMS, whole)
            yield f"symmetric{' or whole' * bool(whole)} {named(square)}", text(chosen)
    grouped, several = replace(base, adapter=GROUPED), shapes()
    for first in range(0, len(several), 4):
        group = several[first : first + 4]
        name = " ".join(map(named, group))
        yield f"grouped {name}", text(heuristics.choose_grouped(grouped, group, SMS, _swap(grouped)))


def named(shape: GemmShape) -> str:
    return "x".join(map(str, (shape.m, shape.n, shape.k, shape.batch)))


def label(adapter: str, shape: GemmShape) -> str:
    return f"{adapter.partition(':')[2]} {named(shape)}"


def text(spec: GemmSpec) -> str:
    return f"{spec.plan.partition(':')[2]} {spec.config}"


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    found = dict(choices())
    PATH.write_text(json.dumps(found, indent=0) + "\n")
    print(f"{len(found)} choices -> {PATH}")


if __name__ == "__main__":
    main()
