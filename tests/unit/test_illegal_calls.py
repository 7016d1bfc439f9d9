"""Illegal combinations of adapter, dtype, major and configuration through the public functions: the reason, and nothing done.

What test_bad_input.py already has is not repeated. Outputs hold NaN (bytes 0xFF) before and after, and nothing is launched.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from tests.unit.test_bad_input import BF16, E4M3, FP16, FP32, Row, Tensors, _bad, _unsupported, assert_refused

fn = quack.gemm_tuned.fn
TILE = dict(tile_m=128, tile_n=64, cluster_m=1)


def ints(t: Tensors, *shape: int) -> torch.Tensor:
    return t(*shape, dtype=torch.int32)


def dense(t: Tensors, dtype: torch.dtype = BF16, majors: str = "kk", **changes: Any) -> dict[str, Any]:
    """A (64, 128), B (128, 96), out bf16 (64, 96)."""
    a = t(64, 128, dtype=dtype) if majors[0] == "k" else t(128, 64, dtype=dtype).mT
    b = t(96, 128, dtype=dtype).mT if majors[1] == "k" else t(128, 96, dtype=dtype)
    return {"A": a, "B": b, "out": t(64, 96), **changes}


def ragged_m(t: Tensors, dtype: torch.dtype = BF16, **changes: Any) -> dict[str, Any]:
    """A (64, 128), B (3, 128, 96)."""
    a, b = t(64, 128, dtype=dtype), t(3, 96, 128, dtype=dtype).mT
    return {"A": a, "B": b, "out": t(64, 96), "cu_seqlens_m": ints(t, 4), **changes}


def ragged_k(t: Tensors, dtype: torch.dtype = BF16, **changes: Any) -> dict[str, Any]:
    """A (64, 128) and B (128, 96) with K strided."""
    a, b = t(128, 64, dtype=dtype).mT, t(128, 96, dtype=dtype)
    return {"A": a, "B": b, "out": t(3, 64, 96), "cu_seqlens_k": ints(t, 4), **changes}


def group(t: Tensors, *problems: dict[str, Any], **options: Any) -> None:
    """Each problem as `dense` makes them."""
    quack.gemm_grouped(*([p[name] for p in problems] for name in ("A", "B", "out")), **options)


def pinned(arguments: dict[str, Any], **config: Any) -> None:
    fn(**arguments, config=GemmConfig(**{**TILE, **config}))


def _argument_rows() -> Iterator[Row]:
    yield _bad(
        "add A_idx dense", lambda t: quack.gemm_add(**dense(t, C=t(64, 96), A_idx=ints(t, 64))), "A_idx needs groups"
    )
    both = "cu_seqlens_m and cu_seqlens_k exclude each other"
    yield _bad("add both", lambda t: quack.gemm_add(**ragged_m(t, C=t(64, 96), cu_seqlens_k=ints(t, 4))), both)
    yield _bad("tuned both", lambda t: fn(**ragged_k(t, cu_seqlens_m=ints(t, 4))), both)
    yield _bad("both with A_idx", lambda t: fn(**ragged_k(t, cu_seqlens_m=ints(t, 4), A_idx=ints(t, 128))), both)
    order = "batch_idx_permute orders the problems of a batch.*pass 3-D A and B"
    yield _bad("tuned order without batch", lambda t: fn(**dense(t, batch_idx_permute=ints(t, 1))), order)
    yield _unsupported(
        "concat add C varlen_m",
        lambda t: quack.gemm_add(**ragged_m(t, C=t(64, 96), concat_layout=("C",))),
        "names C, but cu_seqlens_m splits M of C",
    )
    yield _unsupported(
        "concat gathered A",
        lambda t: quack.gemm(**ragged_m(t, A=t(20, 128), A_idx=ints(t, 64), concat_layout=("A",))),
        "names A, but cu_seqlens_m splits M of A",
    )
    yield _unsupported(
        "concat gathered columns B",
        lambda t: quack.gemm(**ragged_k(t, A=t(40, 64).mT, A_idx=ints(t, 128), concat_layout=("B",))),
        "names B, but cu_seqlens_k splits K of B",
    )


def _dtype_rows() -> Iterator[Row]:
    fp8_a, fp8_b = r"fp8 A is not K-major.*A\.contiguous\(\)", r"fp8 B is not K-major.*B\.mT\.contiguous\(\)\.mT"
    for name, majors, pattern in (("A", "mk", fp8_a), ("B", "kn", fp8_b)):
        yield _unsupported(
            f"add fp8 {name}", lambda t, m=majors: quack.gemm_add(**dense(t, E4M3, m, C=t(64, 96))), pattern
        )
        yield _unsupported(
            f"pinned fp8 {name}", lambda t, m=majors: pinned(dense(t, E4M3, m), tile_m=64, pingpong=True), pattern
        )
        # The kernel's A is the caller's B then; the message is the caller's.
        yield _unsupported(
            f"swapped fp8 {name}",
            lambda t, m=majors: pinned(dense(t, E4M3, m), tile_m=64, pingpong=True, swap_ab=True),
            pattern,
        )
        yield _unsupported(f"grouped fp8 {name}", lambda t, m=majors: group(t, dense(t), dense(t, E4M3, m)), pattern)
    yield _unsupported("varlen_m fp8 B", lambda t: quack.gemm(**ragged_m(t, E4M3, B=t(3, 128, 96, dtype=E4M3))), fp8_b)
    no_layout = r"fp8 has no kernel with cu_seqlens_k.*A\.bfloat16\(\), B\.bfloat16\(\)"
    yield _unsupported("varlen_k fp8", lambda t: quack.gemm(**ragged_k(t, E4M3)), no_layout)
    yield _unsupported(
        "varlen_k fp8 K-major",
        lambda t: quack.gemm(**ragged_k(t, A=t(64, 128, dtype=E4M3), B=t(96, 128, dtype=E4M3).mT)),
        no_layout,
    )
    yield _unsupported(
        "gather_k fp8",
        lambda t: quack.gemm(**ragged_k(t, E4M3, A=t(48, 64, dtype=E4M3).mT, A_idx=ints(t, 128))),
        no_layout,
    )
    mixed = "A is bf16 and B is fp16"

    def half(t: Tensors, *shape: int) -> torch.Tensor:
        return t(*shape, dtype=FP16)

    yield _unsupported("add mixed", lambda t: quack.gemm_add(**dense(t, B=half(t, 128, 96), C=t(64, 96))), mixed)
    yield _unsupported("varlen_m mixed", lambda t: quack.gemm(**ragged_m(t, B=half(t, 3, 128, 96))), mixed)
    yield _unsupported("varlen_k mixed", lambda t: quack.gemm(**ragged_k(t, B=half(t, 128, 96))), mixed)
    yield _unsupported("grouped mixed", lambda t: group(t, dense(t), dense(t, B=half(t, 128, 96))), mixed)
    yield _unsupported(
        "swapped mixed", lambda t: pinned(dense(t, B=half(t, 128, 96)), swap_ab=True), "B is fp16 and A is bf16"
    )
    fp32 = r"fp32 B is not K-major.*B with K contiguous, e\.g\. B\.mT\.contiguous\(\)\.mT"
    yield _unsupported("varlen_m fp32", lambda t: quack.gemm(**ragged_m(t, FP32, B=t(3, 128, 96, dtype=FP32))), fp32)
    yield _unsupported(
        "varlen_k fp32",
        lambda t: quack.gemm(**ragged_k(t, FP32)),
        r"fp32 has no kernel with cu_seqlens_k.*A\.bfloat16\(\), B\.bfloat16\(\)",
    )
    yield _unsupported("grouped fp32", lambda t: group(t, dense(t, FP32, "mn")), fp32)
    yield _unsupported(
        "gated fp32",
        lambda t: quack.gemm_gated(t(64, 128, dtype=FP32), t(128, 96, dtype=FP32), activation="swiglu"),
        fp32,
    )


def _config_rows() -> Iterator[Row]:
    swapped, single = "cannot be swapped.*swap_ab=False", "is_persistent=True"
    for name, arguments in (
        ("varlen_m", ragged_m),
        ("varlen_k", ragged_k),
        ("gather_k", lambda t: ragged_k(t, A=t(48, 64).mT, A_idx=ints(t, 128))),
    ):
        yield _unsupported(f"{name} swapped", lambda t, a=arguments: pinned(a(t), swap_ab=True), swapped)
    yield _unsupported("varlen_m single", lambda t: pinned(ragged_m(t), is_persistent=False), "cu_seqlens_m.*" + single)
    yield _unsupported(
        "grouped single",
        lambda t: group(t, dense(t), config=GemmConfig(**TILE, is_persistent=False)),
        "persistent schedule only.*" + single,
    )
    yield _unsupported(
        "gather_k cluster",
        lambda t: pinned(ragged_k(t, A=t(48, 64).mT, A_idx=ints(t, 128)), cluster_n=2),
        "cluster_n=2 multicasts A.*A_idx.*cluster_n=1",
    )
    yield _unsupported(
        "gather_m wide K",
        lambda t: pinned(ragged_m(t, A=t(48, 128), A_idx=ints(t, 64)), tile_m=192, tile_k=128),
        "32 registers.*tile_k=64",
    )
    for name, majors, config in (
        ("B", "kn", dict(tile_n=192, cluster_m=2)),
        ("A", "mk", dict(tile_m=192, cluster_n=2)),
        ("A", "mk", dict(tile_n=192, cluster_m=2, swap_ab=True)),
    ):
        yield _unsupported(
            f"multicast {majors} {config}",
            lambda t, m=majors, c=config: pinned(dense(t, majors=m), **c),
            f"192-wide tile of {name} does not split into 2.*smaller cluster",
        )
    yield _unsupported(
        "C and the largest ping-pong tile",
        lambda t: pinned(dense(t, C=t(64, 96)), tile_n=192, pingpong=True),
        "needs 192 accumulator registers a thread, limit 136.*smaller tile_n",
    )
    yield _unsupported(
        "grouped cluster",
        lambda t: group(t, dense(t), config=GemmConfig(cluster_m=4, cluster_n=2)),
        r"cluster \(4, 2\)",
    )


ROWS = [row for source in (_argument_rows, _dtype_rows, _config_rows) for row in source()]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_refused(row: Row, launches: list[tuple]):
    assert_refused(row, Tensors("cpu", "meta"))
    assert not launches


def test_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_legal_neighbours_are_launched(launches: list[tuple]):
    """The table would prove nothing if the arguments it starts from were refused."""
    t = Tensors("cpu", "meta")
    calls: list[Callable[[], Any]] = [
        lambda: quack.gemm_add(**dense(t, C=t(64, 96))),
        lambda: quack.gemm(**ragged_m(t)),
        lambda: quack.gemm(**ragged_k(t)),
        lambda: quack.gemm(**ragged_m(t, A=t(20, 128), A_idx=ints(t, 64))),
        lambda: quack.gemm(**ragged_k(t, A=t(48, 64).mT, A_idx=ints(t, 128))),
        lambda: quack.gemm(**ragged_m(t, E4M3)),
        lambda: quack.gemm(**ragged_m(t, out=t(96, 64).mT)),
        lambda: pinned(ragged_k(t), is_persistent=False),
        lambda: pinned(dense(t, E4M3), tile_m=64, pingpong=True, swap_ab=True),
        lambda: pinned(dense(t, majors="kn"), tile_n=192),
        lambda: group(t, dense(t), dense(t, majors="mn")),
    ]
    for count, call in enumerate(calls, 1):
        call()
        assert len(launches) >= count
    assert len(launches) == len(calls) + 1  # the two problems of the last differ in their majors


@pytest.mark.parametrize("name, majors", [("A", "mk"), ("B", "kn")])
def test_advice_can_be_followed_literally(name: str, majors: str, launches: list[tuple]):
    arguments = dense(Tensors("cpu", "meta"), E4M3, majors)
    with pytest.raises(UnsupportedGemm) as caught:
        quack.gemm(**arguments)
    expression = str(caught.value.alternative).partition("e.g. ")[2]
    arguments[name] = eval(expression, {name: arguments[name]})
    quack.gemm(**arguments)
    assert len(launches) == 1
