"""Every wrong call is refused with the argument and both values, before anything is launched or written.

`ROWS` is also run on a GPU by tests/gpu/test_bad_input_gpu.py. Here CPU tensors stand in for CUDA tensors, and meta
tensors for those of another device.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.runtime import call as calling
from quack.runtime.gather import check_gather
from quack.runtime.operands import overlaps
from quack.runtime.plan import GemmRequest, describe_request
from quack.runtime.spec import UnsupportedGemm

BF16, FP16, FP32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
POISON = 0xFF


@dataclass
class Tensors:
    """Makes the tensors of one row and remembers every output, to see that it stays untouched."""

    device: str
    other_device: str

    def __post_init__(self) -> None:
        self.buffers: list[torch.Tensor] = []

    def __call__(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """An operand; remembered like an output, since no operand may change either."""
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        if tensor.numel():
            tensor.reshape(-1).view(torch.uint8).fill_(POISON)
            self.buffers.append(tensor)
        return tensor

    def elsewhere(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.other_device)

    def assert_untouched(self) -> None:
        assert all((buffer.reshape(-1).view(torch.uint8) == POISON).all() for buffer in self.buffers)


@dataclass(frozen=True)
class Row:
    """`call` must raise `error` (exactly that type) with a message that `pattern` finds."""

    name: str
    call: Callable[[Tensors], Any]
    error: type[Exception]
    pattern: str

    def __str__(self) -> str:
        return self.name


def _bad(name: str, call: Callable[[Tensors], Any], pattern: str, error: type[Exception] = ValueError) -> Row:
    return Row(name.replace(" ", "-"), call, error, pattern)


def _unsupported(name: str, call: Callable[[Tensors], Any], pattern: str) -> Row:
    return _bad(name, call, pattern, UnsupportedGemm)


def _pinned(t: Tensors, dtype: torch.dtype = BF16, **config: Any) -> None:
    quack.gemm_tuned.fn(t(256, 256, dtype=dtype), t(256, 256, dtype=dtype).mT, t(256, 256), config=GemmConfig(**config))


def _windows(t: Tensors, first: int, second: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 64 x 64 views of one buffer, starting at these rows."""
    buffer = t(192, 64)
    return buffer[first : first + 64], buffer[second : second + 64]


def _out_like_a(t: Tensors) -> None:
    a = t(64, 64)
    quack.gemm(a, t(64, 64), out=a)


def _out_like_a_transposed(t: Tensors) -> None:
    a = t(64, 64)
    quack.gemm(a, t(64, 64), out=a.mT)


def _out_shares_a_row(t: Tensors, name: str) -> None:
    operand, out = _windows(t, 0, 63)
    quack.gemm(*((operand, t(64, 64)) if name == "A" else (t(64, 64), operand)), out=out)


def _c_shares_a_row(t: Tensors, call: Callable[..., Any]) -> None:
    c, out = _windows(t, 0, 1)
    call(t(64, 64), t(64, 64), c, out=out)


def _c_is_out_transposed(t: Tensors) -> None:
    out = t(64, 64)
    quack.gemm_add(t(64, 64), t(64, 64), out.mT, out=out)


def _dtype_rows() -> Iterator[Row]:
    for dtype, word in (
        (torch.float64, "float64"),
        (torch.int8, "int8"),
        (torch.int32, "int32"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
    ):
        legal = rf"dtype torch\.{word}.*torch\.bfloat16"
        yield _unsupported(f"A {word}", lambda t, d=dtype: quack.gemm(t(64, 64, dtype=d), t(64, 64)), f"A has {legal}")
        yield _unsupported(f"B {word}", lambda t, d=dtype: quack.gemm(t(64, 64), t(64, 64, dtype=d)), f"B has {legal}")
        yield _unsupported(
            f"out {word}",
            lambda t, d=dtype: quack.gemm(t(64, 64), t(64, 64), out=t(64, 64, dtype=d)),
            f"out has {legal}",
        )
        yield _unsupported(
            f"C {word}", lambda t, d=dtype: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64, dtype=d)), f"C has {legal}"
        )
        yield _unsupported(
            f"bias {word}",
            lambda t, d=dtype: quack.gemm(t(64, 64), t(64, 64), bias=t(64, dtype=d)),
            f"bias has {legal}",
        )
        yield _unsupported(
            f"alpha {word}",
            lambda t, d=dtype: quack.gemm(t(64, 64), t(64, 64), alpha=t(1, dtype=d)),
            f"alpha has {legal}",
        )
    yield _unsupported(
        "both float64",
        lambda t: quack.gemm(t(64, 64, dtype=torch.float64), t(64, 64, dtype=torch.float64)),
        r"A has dtype torch\.float64.*torch\.bfloat16",
    )
    yield _unsupported("bf16 x fp16", lambda t: quack.gemm(t(64, 64), t(64, 64, dtype=FP16)), "A is bf16 and B is fp16")
    yield _unsupported("fp16 x bf16", lambda t: quack.gemm(t(64, 64, dtype=FP16), t(64, 64)), "A is fp16 and B is bf16")
    yield _unsupported(
        "fp8 x bf16", lambda t: quack.gemm(t(64, 64, dtype=E4M3), t(64, 64)), "A is fp8_e4m3 and B is bf16"
    )
    yield _unsupported(
        "fp32 with K strided twice",
        lambda t: quack.gemm(t(64, 64, dtype=FP32).mT, t(64, 64, dtype=FP32)),
        r"fp32 B is not K-major.*but A can go through registers.*B with K contiguous",
    )
    yield _unsupported("bf16 x fp32", lambda t: quack.gemm(t(64, 64), t(64, 64, dtype=FP32)), "A is bf16 and B is fp32")
    yield _unsupported(
        "fp32 x fp8", lambda t: quack.gemm(t(64, 64, dtype=FP32), t(64, 64, dtype=E4M3)), "A is fp32 and B is fp8_e4m3"
    )
    yield _bad(
        "out and out_dtype differ",
        lambda t: quack.gemm(t(64, 64), t(64, 64), out=t(64, 64), out_dtype=FP32),
        r"out has dtype torch\.bfloat16.*out_dtype is torch\.float32",
    )
    yield _bad(
        "gemm_add out and out_dtype differ",
        lambda t: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64), out=t(64, 64), out_dtype=FP16),
        r"out has dtype torch\.bfloat16.*out_dtype is torch\.float16",
    )
    for name, remedy, a, b in (
        ("A", r"A\.contiguous\(\)", lambda t: t(64, 64, dtype=E4M3).mT, lambda t: t(64, 64, dtype=E4M3).mT),
        ("B", r"B\.mT\.contiguous\(\)\.mT", lambda t: t(64, 64, dtype=E4M3), lambda t: t(64, 64, dtype=E4M3)),
    ):
        yield _unsupported(
            f"fp8 {name} not K-major",
            lambda t, a=a, b=b: quack.gemm(a(t), b(t)),
            rf"fp8 {name} is not K-major.*{remedy}",
        )


def _device_rows() -> Iterator[Row]:
    here, there = r"(cpu|cuda:\d)", r"(meta|cpu)"

    def both(first: str, second: str) -> str:
        return rf"{first} is on {here} and {second} is on {there}"

    yield _bad(
        "A elsewhere", lambda t: quack.gemm(t.elsewhere(64, 64), t(64, 64)), rf"A is on {there} and B is on {here}"
    )
    yield _bad("B elsewhere", lambda t: quack.gemm(t(64, 64), t.elsewhere(64, 64)), both("A", "B"))
    yield _bad("out elsewhere", lambda t: quack.gemm(t(64, 64), t(64, 64), out=t.elsewhere(64, 64)), both("A", "out"))
    yield _bad("C elsewhere", lambda t: quack.gemm_add(t(64, 64), t(64, 64), t.elsewhere(64, 64)), both("A", "C"))
    yield _bad("bias elsewhere", lambda t: quack.gemm(t(64, 64), t(64, 64), bias=t.elsewhere(64)), both("A", "bias"))
    yield _bad("alpha elsewhere", lambda t: quack.gemm(t(64, 64), t(64, 64), alpha=t.elsewhere(1)), both("A", "alpha"))
    yield _bad(
        "beta elsewhere",
        lambda t: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64), beta=t.elsewhere(1)),
        both("A", "beta"),
    )
    yield _bad(
        "everything elsewhere",
        lambda t: quack.gemm(t.elsewhere(64, 64), t.elsewhere(64, 64)),
        rf"A is on {there}: quack runs on CUDA devices.*A\.cuda\(\)",
    )


def _shape_rows() -> Iterator[Row]:
    dims = "expected 2, or 3 with a batch"
    yield _bad("A 1-D", lambda t: quack.gemm(t(64), t(64, 64)), rf"A has 1 dimensions \(64,\), {dims}")
    yield _bad("B 1-D", lambda t: quack.gemm(t(64, 64), t(64)), rf"B has 1 dimensions \(64,\), {dims}")
    yield _bad(
        "A 4-D", lambda t: quack.gemm(t(2, 2, 64, 64), t(64, 64)), rf"A has 4 dimensions \(2, 2, 64, 64\), {dims}"
    )
    yield _bad("A 0-D", lambda t: quack.gemm(t(), t(64, 64)), rf"A has 0 dimensions \(\), {dims}")
    yield _bad(
        "out 4-D",
        lambda t: quack.gemm(t(64, 64), t(64, 64), out=t(1, 1, 64, 64)),
        r"out has 4 dimensions \(1, 1, 64, 64\)",
    )
    yield _bad("C 1-D", lambda t: quack.gemm_add(t(64, 64), t(64, 64), t(64)), rf"C has 1 dimensions \(64,\), {dims}")
    yield _bad("2-D x 3-D", lambda t: quack.gemm(t(64, 64), t(2, 64, 64)), "A has 2 dimensions and B has 3")
    yield _bad("3-D x 2-D", lambda t: quack.gemm(t(2, 64, 64), t(64, 64)), "A has 3 dimensions and B has 2")
    yield _bad("batch sizes", lambda t: quack.gemm(t(2, 64, 64), t(3, 64, 64)), "A has batch size 2 and B has 3")
    yield _bad("batch of one", lambda t: quack.gemm(t(1, 64, 64), t(3, 64, 64)), "A has batch size 1 and B has 3")
    yield _bad("inner sizes", lambda t: quack.gemm(t(64, 32), t(48, 64)), "A has K = 32, B has K = 48")
    yield _bad("weight not transposed", lambda t: quack.gemm(t(64, 32), t(64, 32)), r"A has K = 32, B has K = 64.*\.mT")
    yield _bad("inner size zero", lambda t: quack.gemm(t(64, 0), t(64, 64)), "A has K = 0, B has K = 64")
    for shape in ((64, 65), (32, 64), (1, 64, 64), (48, 64)):
        yield _bad(
            f"out shape {shape}",
            lambda t, s=shape: quack.gemm(t(64, 32), t(32, 48), out=t(*s)),
            rf"out has shape {re.escape(str(shape))}.*\(64, 48\)",
        )
    yield _bad(
        "out shape batched",
        lambda t: quack.gemm(t(2, 64, 32), t(2, 32, 48), out=t(3, 64, 48)),
        r"out has shape \(3, 64, 48\).*\(2, 64, 48\)",
    )
    for shape in ((64, 64), (1, 48), (48, 64), (64, 1)):  # nothing broadcasts silently
        yield _bad(
            f"C shape {shape}",
            lambda t, s=shape: quack.gemm_add(t(64, 32), t(32, 48), t(*s)),
            rf"C has shape {re.escape(str(shape))}.*\(64, 48\)",
        )
    yield _bad(
        "C shape in the cached path",
        lambda t: [quack.gemm_add(t(64, 32), t(32, 48), t(64, n), out=t(64, 48)) for n in (47, 47)],
        r"C has shape \(64, 47\).*\(64, 48\)",
    )
    for shape in ((63,), (1,), (1, 48), (2, 48)):
        yield _bad(
            f"bias shape {shape}",
            lambda t, s=shape: quack.gemm(t(64, 32), t(32, 48), bias=t(*s)),
            rf"bias has shape {re.escape(str(shape))}, expected \(48,\)",
        )
    yield _bad(
        "bias shape batched",
        lambda t: quack.gemm(t(2, 64, 32), t(2, 32, 48), bias=t(3, 48)),
        r"bias has shape \(3, 48\), expected \(48,\) or \(2, 48\)",
    )


def _stride_rows() -> Iterator[Row]:
    def every_second(t: Tensors) -> torch.Tensor:
        return t(64, 128)[:, ::2]

    one_must_be_1 = r"with shape \(64, 64\) has strides \(128, 2\): one of the last two must be 1.*{0}\.contiguous\(\)"
    yield _bad("A strides", lambda t: quack.gemm(every_second(t), t(64, 64)), "A " + one_must_be_1.format("A"))
    yield _bad("B strides", lambda t: quack.gemm(t(64, 64), every_second(t)), "B " + one_must_be_1.format("B"))
    yield _bad(
        "out strides",
        lambda t: quack.gemm(t(64, 64), t(64, 64), out=every_second(t)),
        "out " + one_must_be_1.format("out"),
    )
    yield _bad(
        "C strides", lambda t: quack.gemm_add(t(64, 64), t(64, 64), every_second(t)), "C " + one_must_be_1.format("C")
    )
    yield _bad(
        "A batch contiguous",
        lambda t: quack.gemm(t(64, 64, 4).movedim(2, 0), t(4, 64, 64)),
        r"A with shape \(4, 64, 64\) has strides \(1, 256, 4\)",
    )
    yield _bad(
        "bias strides",
        lambda t: quack.gemm(t(64, 64), t(64, 64), bias=t(128)[::2]),
        r"bias has strides \(2,\): the last must be 1.*bias\.contiguous\(\)",
    )
    yield _bad(
        "bias expanded", lambda t: quack.gemm(t(64, 64), t(64, 64), bias=t(1).expand(64)), r"bias has strides \(0,\)"
    )
    yield _bad(
        "out expanded rows",
        lambda t: quack.gemm(t(64, 64), t(64, 64), out=t(1, 64).expand(64, 64)),
        r"out with strides \(0, 1\) is expanded",
    )
    yield _bad(
        "out expanded batch",
        lambda t: quack.gemm(t(3, 64, 64), t(3, 64, 64), out=t(1, 64, 64).expand(3, 64, 64)),
        r"out with strides \(0, 64, 1\) is expanded",
    )


def _alias_rows() -> Iterator[Row]:
    yield _bad("out is A", _out_like_a, "out overlaps A")
    yield _bad("out is A transposed", _out_like_a_transposed, "out overlaps A")
    yield _bad("out shares a row with A", lambda t: _out_shares_a_row(t, "A"), "out overlaps A")
    yield _bad("out shares a row with B", lambda t: _out_shares_a_row(t, "B"), "out overlaps B")
    yield _bad("out is B", lambda t: (lambda b: quack.gemm(t(64, 64), b, out=b))(t(64, 64)), "out overlaps B")
    yield _bad("C shares a row with out", lambda t: _c_shares_a_row(t, quack.gemm_add), "out partly overlaps C")
    yield _bad("C is out transposed", _c_is_out_transposed, "out partly overlaps C")
    yield _bad(
        "add_to_output and C",
        lambda t: quack.gemm_tuned.fn(t(64, 64), t(64, 64), t(64, 64), C=t(64, 64), add_to_output=True),
        "add_to_output and C exclude each other",
    )


def _type_rows() -> Iterator[Row]:
    def wrong(name: str, call: Callable[[Tensors], Any], pattern: str) -> Row:
        return _bad(name, call, pattern, TypeError)

    yield wrong("A a list", lambda t: quack.gemm([[1.0]], t(64, 64)), "A is a list, expected a torch.Tensor")
    yield wrong("B None", lambda t: quack.gemm(t(64, 64), None), "B is a NoneType, expected a torch.Tensor")
    yield wrong(
        "A a list, out given",
        lambda t: quack.gemm([[1.0]], t(64, 64), out=t(64, 64)),
        "A is a list, expected a torch.Tensor",
    )
    yield wrong(
        "out a list", lambda t: quack.gemm(t(64, 64), t(64, 64), out=[[1.0]]), "out is a list, expected a torch.Tensor"
    )
    yield wrong(
        "C a number", lambda t: quack.gemm_add(t(64, 64), t(64, 64), 2.0), "C is a float, expected a torch.Tensor"
    )
    yield wrong(
        "bias a number",
        lambda t: quack.gemm(t(64, 64), t(64, 64), bias=2.0),
        "bias is a float, expected a torch.Tensor",
    )
    for value in ("two", None, 1j, [1.0]):
        kind = type(value).__name__
        yield wrong(
            f"alpha {kind}",
            lambda t, v=value: quack.gemm(t(64, 64), t(64, 64), alpha=v),
            f"alpha is a {kind}, expected a float or a 1-element tensor",
        )
        yield wrong(
            f"beta {kind}",
            lambda t, v=value: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64), beta=v),
            f"beta is a {kind}, expected a float or a 1-element tensor",
        )
    yield _bad(
        "alpha 2 elements", lambda t: quack.gemm(t(64, 64), t(64, 64), alpha=t(2, dtype=FP32)), "alpha has 2 elements"
    )
    yield _bad(
        "beta empty",
        lambda t: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64), beta=t(0, dtype=FP32)),
        "beta has 0 elements",
    )


def _split_rows() -> Iterator[Row]:
    def calls(t: Tensors, options: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "gemm", lambda: quack.gemm(t(64, 64), t(64, 64), **options)
        yield "gemm_add", lambda: quack.gemm_add(t(64, 64), t(64, 64), t(64, 64), **options)
        yield "gemm_tuned", lambda: quack.gemm_tuned.fn(t(64, 64), t(64, 64), t(64, 64), **options)
        yield "gemm_grouped", lambda: quack.gemm_grouped([t(64, 64)], [t(64, 64)], **options)

    def call(t: Tensors, name: str, options: dict[str, Any]) -> object:
        return dict(calls(t, options))[name]()

    serial = {"split_k": 2, "split_k_mode": "serial"}
    for name in ("gemm", "gemm_add", "gemm_tuned", "gemm_grouped"):
        for value in (0, -1):
            yield _bad(
                f"{name} split_k {value}", lambda t, n=name, v=value: call(t, n, {"split_k": v}), f"split_k is {value}"
            )
        for wrong in (2.0, "2", True):
            yield _bad(
                f"{name} split_k {wrong!r}",
                lambda t, n=name, v=wrong: call(t, n, {"split_k": v}),
                f"split_k is a {type(wrong).__name__}, expected an int",
                TypeError,
            )
        yield _bad(
            f"{name} split_k_mode",
            lambda t, n=name: call(t, n, serial),
            "split_k_mode is 'serial', expected one of SplitKMode.SERIAL",
            TypeError,
        )
        yield _bad(
            f"{name} split_k with STREAM",
            lambda t, n=name: call(t, n, {"split_k": 2, "split_k_mode": SplitKMode.STREAM}),
            "split_k is 2 with SplitKMode.STREAM.*expected None",
        )
    stream, cooperative = {"split_k_mode": SplitKMode.STREAM}, GemmConfig(64, 64, cluster_m=1)
    offsets = torch.tensor([0, 64], dtype=torch.int32)
    for name, refused in {
        "varlen_m": lambda t: quack.gemm(t(64, 64), t(1, 64, 64), cu_seqlens_m=offsets.to(t(1, 1).device), **stream),
        "varlen_k": lambda t: quack.gemm(t(64, 64).mT, t(64, 64), cu_seqlens_k=offsets.to(t(1, 1).device), **stream),
        "grouped": lambda t: quack.gemm_grouped([t(64, 64)], [t(64, 64)], **stream),
        "grouped, pinned": lambda t: quack.gemm_grouped([t(64, 64)], [t(64, 64)], config=cooperative, **stream),
    }.items():
        yield _unsupported(
            f"stream-K {name}",
            refused,
            "STREAM shares out the k tiles of equal problems.*SplitKMode.SERIAL with split_k=2",
        )
    for name, options in {"pinned": {"config": replace(cooperative, is_dynamic_persistent=True)}, "asked": {}}.items():
        yield _unsupported(
            f"stream-K dynamic, {name}",
            lambda t, o=options: quack.gemm_tuned.fn(
                t(64, 64), t(64, 64), t(64, 64), dynamic_scheduler=True, **o, **stream
            ),
            "STREAM gives every cluster the same work.*is_dynamic_persistent=False",
        )
    yield _unsupported(
        "split_k not persistent",
        lambda t: quack.gemm_tuned.fn(
            t(64, 64), t(64, 64), t(64, 64), split_k=2, config=GemmConfig(64, 64, cluster_m=1, is_persistent=False)
        ),
        "split-K needs clusters that persist.*is_persistent=True",
    )


def _concat_rows() -> Iterator[Row]:
    def call(t: Tensors, *names: Any, **changes: Any) -> object:
        """64 x 64 operands unless changed."""
        arguments = {"A": t(64, 64), "B": t(64, 64), **changes}
        return quack.gemm(**arguments, concat_layout=names)

    def varlen(t: Tensors, name: str, **changes: Any) -> None:
        offsets = t(4, dtype=torch.int32)
        arguments = {"A": t(64, 32), "B": t(3, 32, 48), "out": t(64, 48), "cu_seqlens_m": offsets, **changes}
        quack.gemm_tuned.fn(**arguments, concat_layout=(name,))

    yield _bad("concat unknown", lambda t: call(t, "D"), "concat_layout has 'D', expected names out of")
    yield _bad("concat case", lambda t: call(t, "a"), "concat_layout has 'a'")
    for value in ("B", 3, True):
        yield _bad(
            f"concat {value!r}",
            lambda t, v=value: quack.gemm(t(64, 64), t(64, 64), concat_layout=v),
            f"concat_layout is {value!r}, expected a tuple",
            TypeError,
        )
    yield _bad("concat odd A", lambda t: call(t, "A", A=t(63, 64)), r"names A, whose dimension 0.*\(63, 64\)")
    yield _bad("concat odd A M-major", lambda t: call(t, "A", A=t(63, 64).mT, B=t(63, 64)), r"names A.*dimension 1")
    yield _bad("concat odd B", lambda t: call(t, "B", B=t(63, 64).mT), r"names B.*dimension 1.*\(64, 63\)")
    yield _bad("concat odd out", lambda t: call(t, "out", A=t(63, 64)), r"names out.*dimension 0.*\(63, 64\)")
    yield _bad("concat odd bias", lambda t: call(t, "bias", B=t(64, 63), bias=t(63)), "two halves of N = 63")
    yield _bad(
        "concat odd C",
        lambda t: quack.gemm_add(t(63, 64), t(64, 64), t(63, 64), concat_layout=("C",)),
        r"names C.*dimension 0.*\(63, 64\)",
    )
    for name in ("C", "out"):
        yield _bad(
            f"concat {name} in place",
            lambda t, n=name: (lambda c: quack.gemm_add(t(64, 64), t(64, 64), c, out=c, concat_layout=(n,)))(t(64, 64)),
            "names one of C and out, which are the same tensor",
        )
    yield _bad(
        "concat strided A",
        lambda t: call(t, "A", A=t(64, 128)[:, ::2]),
        "A with shape .* has strides .*: one of the last two must be 1",
    )
    for name, changes in (("A", {}), ("out", {}), ("C", {"C": (64, 48)})):
        yield _unsupported(
            f"concat varlen_m {name}",
            lambda t, n=name, c=changes: varlen(t, n, **{k: t(*shape) for k, shape in c.items()}),
            f"names {name}, but cu_seqlens_m splits M of {name}.*instead: {name} in logical order",
        )
    for name in ("A", "B"):
        yield _unsupported(
            f"concat varlen_k {name}",
            lambda t, n=name: quack.gemm(
                t(40, 64).mT, t(40, 48), cu_seqlens_k=t(4, dtype=torch.int32), concat_layout=(n,)
            ),
            f"names {name}, but cu_seqlens_k splits K of {name}",
        )


def _order_rows() -> Iterator[Row]:
    def call(t: Tensors, permutation: object, batch: tuple[int, ...] = (3,)) -> object:
        return quack.gemm(t(*batch, 64, 32), t(*batch, 32, 48), batch_idx_permute=permutation)

    def order(t: Tensors, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return t(*shape, dtype=dtype)

    yield _bad("order without batch", lambda t: call(t, order(t, 1), ()), r"A \(64, 32\) is one: pass 3-D A and B")
    yield _bad("order length", lambda t: call(t, order(t, 4)), r"shape \(4,\).*expected a contiguous \(3,\)")
    yield _bad("order 2-D", lambda t: call(t, order(t, 3, 1)), r"shape \(3, 1\).*expected a contiguous \(3,\)")
    yield _bad("order strided", lambda t: call(t, order(t, 6)[::2]), r"strides \(2,\).*expected a contiguous \(3,\)")
    yield _bad("order int64", lambda t: call(t, order(t, 3, dtype=torch.int64)), "dtype torch.int64", TypeError)
    yield _bad("order list", lambda t: call(t, [2, 1, 0]), "batch_idx_permute is a list", TypeError)
    yield _bad("order elsewhere", lambda t: call(t, t.elsewhere(3, dtype=torch.int32)), "one device")
    yield _bad(
        "order groups",
        lambda t: quack.gemm(
            t(64, 32), t(3, 32, 48), cu_seqlens_m=t(4, dtype=torch.int32), batch_idx_permute=order(t, 64)
        ),
        r"shape \(64,\).*expected a contiguous \(3,\)",
    )


def _varlen_rows() -> Iterator[Row]:
    def offsets(t: Tensors, groups: int = 3) -> torch.Tensor:
        return t(groups + 1, dtype=torch.int32)

    def m_call(t: Tensors, **changes: object) -> object:
        """A (64, 32), B (3, 32, 48) unless changed."""
        arguments = {"A": t(64, 32), "B": t(3, 32, 48), "out": t(64, 48), "cu_seqlens_m": offsets(t), **changes}
        return quack.gemm(**arguments)

    def k_call(t: Tensors, **changes: object) -> object:
        """A (64, 40), B (40, 48) with K strided unless changed."""
        arguments = {"A": t(40, 64).mT, "B": t(40, 48), "out": t(3, 64, 48), "cu_seqlens_k": offsets(t), **changes}
        return quack.gemm(**arguments)

    yield _bad("varlen both", lambda t: m_call(t, cu_seqlens_k=offsets(t)), "cu_seqlens_m and cu_seqlens_k exclude")
    yield _bad("varlen_m A 3-D", lambda t: m_call(t, A=t(3, 64, 32)), "A has 3 dimensions, expected 2")
    yield _bad("varlen_m B 2-D", lambda t: m_call(t, B=t(32, 48)), "B has 2 dimensions, expected 3")
    yield _bad("varlen_m groups", lambda t: m_call(t, cu_seqlens_m=offsets(t, 4)), "5 elements for 4 groups, B has 3")
    yield _bad("varlen_m K", lambda t: m_call(t, B=t(3, 40, 48)), r"A \(64, 32\) and B \(3, 40, 48\) do not multiply")
    yield _bad("varlen_m out", lambda t: m_call(t, out=t(3, 64, 48)), "out has 3 dimensions, expected 2")
    yield _bad(
        "varlen_m out shape", lambda t: m_call(t, out=t(64, 40)), r"out has shape \(64, 40\), expected \(64, 48\)"
    )
    yield _bad("varlen_m bias", lambda t: m_call(t, bias=t(2, 48)), r"bias has shape \(2, 48\).*\(3, 48\)")
    yield _bad("varlen_m offsets 2-D", lambda t: m_call(t, cu_seqlens_m=t(4, 1, dtype=torch.int32)), r"\(G \+ 1,\)")
    yield _bad("varlen_m offsets empty", lambda t: m_call(t, cu_seqlens_m=t(0, dtype=torch.int32)), r"\(G \+ 1,\)")
    yield _bad(
        "varlen_m offsets int64",
        lambda t: m_call(t, cu_seqlens_m=t(4, dtype=torch.int64)),
        "torch.int64.*int32",
        TypeError,
    )
    yield _bad(
        "varlen_m offsets list", lambda t: m_call(t, cu_seqlens_m=[0, 1, 2, 3]), "cu_seqlens_m is a list", TypeError
    )
    yield _bad("varlen_m elsewhere", lambda t: m_call(t, cu_seqlens_m=t.elsewhere(4, dtype=torch.int32)), "one device")
    yield _unsupported("varlen_m A M-major", lambda t: m_call(t, A=t(32, 64).mT), "A is M-major.*A with K contiguous")
    yield _bad(
        "varlen_k list, no out", lambda t: k_call(t, out=None, cu_seqlens_k=[0, 1, 2, 3]), "is a list", TypeError
    )
    yield _bad(
        "varlen_k empty, no out", lambda t: k_call(t, out=None, cu_seqlens_k=t(0, dtype=torch.int32)), r"\(G \+ 1,\)"
    )
    yield _bad("varlen_k K", lambda t: k_call(t, B=t(32, 48)), r"A \(64, 40\) and B \(32, 48\) do not multiply")
    yield _bad("varlen_k out", lambda t: k_call(t, out=t(2, 64, 48)), r"out has shape \(2, 64, 48\), expected \(3,")
    yield _bad("varlen_k B 3-D", lambda t: k_call(t, B=t(3, 40, 48)), "B has 3 dimensions, expected 2")
    yield _unsupported("varlen_k A K-major", lambda t: k_call(t, A=t(64, 40)), "A is K-major.*A with M contiguous")
    yield _unsupported("varlen_k B K-major", lambda t: k_call(t, B=t(48, 40).mT), "B is K-major.*B with N contiguous")


def _gather_rows() -> Iterator[Row]:
    def ints(t: Tensors, *shape: int) -> torch.Tensor:
        return t(*shape, dtype=torch.int32)

    def m_call(t: Tensors, **changes: object) -> object:
        """A (20, 32) of which 64 rows are picked, B (3, 32, 48)."""
        arguments = {"A": t(20, 32), "B": t(3, 32, 48), "out": t(64, 48), "A_idx": ints(t, 64), **changes}
        return quack.gemm(**{"cu_seqlens_m": ints(t, 4), **arguments})

    def k_call(t: Tensors, **changes: object) -> object:
        """A (64, 20) of which 40 columns are picked, B (40, 48)."""
        arguments = {"A": t(20, 64).mT, "B": t(40, 48), "out": t(3, 64, 48), "A_idx": ints(t, 40), **changes}
        return quack.gemm(**{"cu_seqlens_k": ints(t, 4), **arguments})

    yield _bad("gather dense", lambda t: m_call(t, B=t(32, 48), cu_seqlens_m=None), "A_idx needs groups.*A_idx]")
    yield _bad(
        "gather dense tuned",
        lambda t: quack.gemm_tuned.fn(t(64, 64), t(64, 64), t(64, 64), A_idx=ints(t, 64)),
        "A_idx needs groups.*cu_seqlens_m or cu_seqlens_k",
    )
    for name, call, total in (("m", m_call, 64), ("k", k_call, 40)):
        yield _bad(f"gather_{name} list", lambda t, c=call: c(t, A_idx=[0], out=None), "A_idx is a list", TypeError)
        yield _bad(
            f"gather_{name} int64",
            lambda t, c=call, n=total: c(t, A_idx=t(n, dtype=torch.int64)),
            "A_idx has dtype torch.int64, expected torch.int32",
            TypeError,
        )
        shape = rf"A_idx has shape \({total}, 1\).*contiguous \(total_{name},\)"
        yield _bad(f"gather_{name} 2-D", lambda t, c=call, n=total: c(t, A_idx=ints(t, n, 1), out=None), shape)
        yield _bad(
            f"gather_{name} strided", lambda t, c=call, n=total: c(t, A_idx=ints(t, 2 * n)[::2]), r"strides \(2,"
        )
        yield _bad(
            f"gather_{name} elsewhere",
            lambda t, c=call, n=total: c(t, A_idx=t.elsewhere(n, dtype=torch.int32)),
            "A is on .* and A_idx is on .*one device",
        )
    yield _bad("gather_m out", lambda t: m_call(t, A_idx=ints(t, 60)), r"out has shape \(64, 48\), expected \(60, 48\)")
    yield _bad(
        "gather_k B", lambda t: k_call(t, A_idx=ints(t, 41)), r"A_idx has 41 elements and B has shape \(40, 48\)"
    )
    yield _bad(
        "gather_m out is A_idx",
        lambda t: (lambda x: m_call(t, out=x.view(FP32).view(64, 48), A_idx=x[:64]))(ints(t, 64 * 48)),
        "out overlaps A_idx",
    )
    yield _unsupported(
        "gather_m A M-major", lambda t: m_call(t, A=t(32, 20).mT), "A is M-major.*A_idx.*A with K contig"
    )
    yield _unsupported("gather_k A K-major", lambda t: k_call(t, A=t(64, 20)), "A is K-major.*A with M contiguous")
    for changes, pattern in (
        (dict(cluster_m=1, cluster_n=2), "cluster_n=2 multicasts A.*A_idx.*cluster_n=1"),
        (dict(swap_ab=True), "cannot be swapped.*swap_ab=False"),
    ):
        yield _unsupported(
            f"gather_m {changes}",
            lambda t, c=changes: quack.gemm_tuned.fn(
                t(20, 32), t(3, 32, 48), t(64, 48), cu_seqlens_m=ints(t, 4), A_idx=ints(t, 64), config=GemmConfig(**c)
            ),
            pattern,
        )


def _config_rows() -> Iterator[Row]:
    yield _unsupported(
        "tile_m 100", lambda t: _pinned(t, tile_m=100), r"tile_m=100 .*\(64, 128, 192, 256\).*tile_m=128"
    )
    yield _unsupported("tile_m 0", lambda t: _pinned(t, tile_m=0), "tile_m=0 .*tile_m=64")
    for tile_n in (24, 0, 8, 272):
        yield _unsupported(
            f"tile_n {tile_n}", lambda t, n=tile_n: _pinned(t, tile_n=n), f"tile_n={tile_n} .*16..256.*tile_n=128"
        )
    for tile_k in (32, 96, 256):
        yield _unsupported(
            f"tile_k {tile_k}",
            lambda t, k=tile_k: _pinned(t, tile_k=k),
            rf"tile_k={tile_k} is {2 * tile_k} bytes.*\(128, 256\).*tile_k=64",
        )
    yield _unsupported(
        "ping-pong 256",
        lambda t: _pinned(t, tile_m=256, tile_n=64, pingpong=True),
        "ping-pong with tile_m=256.*128 rows.*tile_m=128",
    )
    for m, n in ((3, 1), (1, 3), (4, 2), (8, 1), (0, 1)):
        yield _unsupported(
            f"cluster {m} {n}",
            lambda t, m=m, n=n: _pinned(t, cluster_m=m, cluster_n=n),
            rf"cluster \({m}, {n}\) .*\(1, 2, 4\).*at most 4 CTAs.*\(2, 1\)",
        )
    yield _unsupported(
        "dynamic without persistent",
        lambda t: _pinned(t, is_dynamic_persistent=True, is_persistent=False),
        "is_dynamic_persistent needs is_persistent=True",
    )
    yield _unsupported("swizzle 0", lambda t: _pinned(t, max_swizzle_size=0), "max_swizzle_size=0.*max_swizzle_size=8")
    yield _unsupported(
        "smem overflow",
        lambda t: _pinned(t, tile_m=256, tile_n=192, tile_k=128, cluster_m=1),
        "256x192x128 .*1 operand stages, at least 2.*smaller tile",
    )
    yield _unsupported(
        "register overflow",
        lambda t: _pinned(t, tile_m=256, tile_n=256, cluster_m=1),
        r"256x256.* needs 256 accumulator registers a thread, limit 192.*smaller tile_n",
    )
    yield _unsupported(
        "ping-pong register overflow",
        lambda t: _pinned(t, tile_m=128, tile_n=256, pingpong=True, cluster_m=1),
        "needs 256 accumulator registers a thread, limit",
    )
    yield _unsupported(
        "three warpgroups register overflow",
        lambda t: _pinned(t, tile_m=192, tile_n=256, cluster_m=1),
        "needs 128 accumulator registers a thread, limit 64",
    )
    yield _unsupported(
        "multicast slice",
        lambda t: _pinned(t, tile_m=128, tile_n=16, cluster_m=4),
        "16-wide tile of B does not split into 4.*smaller cluster",
    )
    yield _unsupported(
        "pinned fp32",
        lambda t: quack.gemm_tuned.fn(t(64, 64, dtype=FP32), t(64, 64, dtype=FP32), t(64, 64), config=GemmConfig()),
        "fp32 B is not K-major.*B with K contiguous",
    )


ROWS = [
    row
    for source in (
        _dtype_rows, _device_rows, _shape_rows, _stride_rows, _alias_rows, _type_rows, _split_rows,
        _varlen_rows,
        _gather_rows, _concat_rows, _order_rows, _config_rows,
    )
    for row in source()
]  # fmt: skip


def assert_refused(row: Row, t: Tensors) -> None:
    """The right error, a useful message, and no operand touched."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is compared exactly below
        row.call(t)
    error = caught.value
    assert type(error) is row.error, f"{type(error).__name__}: {error}"
    assert re.search(row.pattern, str(error), re.S), str(error)
    if isinstance(error, UnsupportedGemm):
        assert error.reason and error.reason in str(error)
        assert error.alternative and error.alternative in str(error)
    t.assert_untouched()


# ---- on CPU tensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_refused(row: Row, launches: list[tuple]):
    assert_refused(row, Tensors("cpu", "meta"))
    assert not launches


def test_row_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_good_call_is_launched(launches: list[tuple]):
    """The table would prove nothing if every call were refused."""
    t = Tensors("cpu", "meta")
    out = t(64, 48)
    quack.gemm(t(64, 32), t(32, 48), out=out)
    quack.gemm_add(t(64, 32), t(32, 48), out, out=out, alpha=t(1, dtype=FP32), beta=2)
    quack.gemm_tuned.fn(t(256, 256), t(256, 256).mT, t(256, 256), config=GemmConfig())
    assert len(launches) == 3


def test_cpu_tensors_get_a_clear_error():
    a = torch.zeros(64, 64, dtype=BF16)
    with pytest.raises(
        ValueError, match=r"A is on cpu: quack runs on CUDA devices; pass A\.cuda\(\), or set QUACK_EMULATE"
    ):
        quack.gemm(a, a)
    with pytest.raises(ValueError, match="A is on cpu"):
        describe_request(GemmRequest(a, a, torch.zeros_like(a)))


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_cached_plan_still_refuses_aliasing(name: str, launches: list[tuple]):
    """The key of a plan has no addresses, so this is checked in every call."""
    t = Tensors("cpu", "meta")
    a, b = t(64, 64), t(64, 64)
    quack.gemm(a, b, out=t(64, 64))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"out overlaps A or B|out overlaps {name}"):
            quack.gemm(a, b, out=a if name == "A" else b)
    assert len(launches) == 1 and len(calling._calls) == 1


def test_a_cached_plan_still_refuses_partial_overlap_with_c(launches: list[tuple]):
    t = Tensors("cpu", "meta")
    a, b, c = t(64, 64), t(64, 64), t(128, 64)
    quack.gemm_add(a, b, c[:64], out=t(64, 64))
    with pytest.raises(ValueError, match="out partly overlaps C"):
        quack.gemm_add(a, b, c[:64], out=c[8:72])
    quack.gemm_add(a, b, c[:64], out=c[:64])
    assert len(launches) == 2


def test_empty_outputs_launch_nothing(launches: list[tuple]):
    t = Tensors("cpu", "meta")
    assert quack.gemm(t(0, 64), t(64, 48)).shape == (0, 48)
    assert quack.gemm(t(64, 32), t(32, 0)).shape == (64, 0)
    assert quack.gemm(t(0, 64, 32), t(0, 32, 48)).shape == (0, 64, 48)
    assert not launches


def _c_of_other_width_at_the_same_address(t: Tensors) -> None:
    buffer = t(4 * 64 * 64, dtype=torch.uint8)
    c, out = buffer.view(FP32).view(64, 64), buffer[: 2 * 64 * 64].view(BF16).view(64, 64)
    quack.gemm_add(t(64, 64), t(64, 64), c, out=out)


MORE_ROWS = [
    _bad("bias a list", lambda t: quack.gemm(t(64, 64), t(64, 64), bias=[0.0] * 64), "bias is a list", TypeError),
    _bad("C a list", lambda t: quack.gemm_add(t(64, 64), t(64, 64), [[0.0]]), "C is a list", TypeError),
    _bad("C None", lambda t: quack.gemm_add(t(64, 64), t(64, 64), None), "C is a NoneType", TypeError),
    _bad(
        "C of another shape with beta 0",
        lambda t: quack.gemm_add(t(64, 64), t(64, 64), t(8, 8), beta=0.0),
        r"C has shape \(8, 8\)",
    ),
    _bad(
        "config a string",
        lambda t: quack.gemm_tuned.fn(t(64, 64), t(64, 64), t(64, 64), config="128x256"),
        "config is a str",
        TypeError,
    ),
    _bad(
        "out rows overlap",
        lambda t: quack.gemm(t(64, 64), t(64, 64), out=t(64 * 64).as_strided((64, 64), (32, 1))),
        r"out with strides \(32, 1\)",
    ),
    _bad("C another width, same address", _c_of_other_width_at_the_same_address, "out partly overlaps C"),
    _bad(
        "out is bias",
        lambda t: (lambda out: quack.gemm(t(64, 64), t(64, 64), out=out, bias=out[0]))(t(64, 64)),
        "out overlaps bias",
    ),
    _bad(
        "out is alpha",
        lambda t: (lambda out: quack.gemm(t(64, 64), t(64, 64), out=out, alpha=out[0, :1]))(t(64, 64)),
        "out overlaps alpha",
    ),
    _unsupported("use_tma_gather", lambda t: _pinned(t, use_tma_gather=True), "use_tma_gather"),
    _unsupported("device_capacity", lambda t: _pinned(t, device_capacity=10), "device_capacity=10"),
]


@pytest.mark.parametrize("row", MORE_ROWS, ids=str)
def test_refused_too(row: Row, launches: list[tuple]):
    assert_refused(row, Tensors("cpu", "meta"))
    assert not launches


def test_disjoint_columns_of_one_buffer_do_not_overlap_elementwise():
    """`overlaps` compares address ranges only. Documents what that costs: such views are refused."""
    buffer = torch.zeros(64, 128, dtype=BF16)
    assert overlaps(buffer[:, :64], buffer[:, 64:])
    assert not overlaps(buffer[:32], buffer[32:])


def test_debug_mode_names_the_first_bad_index(launches: list[tuple], monkeypatch):
    t = Tensors("cpu", "meta")
    offsets = torch.tensor([0, 3, 6], dtype=torch.int32)
    rows = torch.tensor([0, 19, 5, 20, -1, 3], dtype=torch.int32)

    def m_call(values: torch.Tensor) -> None:
        quack.gemm(t(20, 32), t(2, 32, 48), out=t(6, 48), cu_seqlens_m=offsets, A_idx=values)

    def k_call(values: torch.Tensor) -> None:
        quack.gemm(t(20, 64).mT, t(6, 48), out=t(2, 64, 48), cu_seqlens_k=offsets, A_idx=values)

    for call in (m_call, k_call):
        call(rows)  # nobody looks
    monkeypatch.setenv("QUACK_DEBUG", "1")
    for call in (m_call, k_call):  # plans are cached by now
        with pytest.raises(IndexError, match=r"A_idx\[3\] is 20, A has shape .*: expected 0 <= index < 20"):
            call(rows)
        with pytest.raises(IndexError, match=r"A_idx\[4\] is -1"):
            call(rows.where(rows < 20, 0))
        call(rows.clamp(0, 19))
    assert len(launches) == 4
    t.assert_untouched()


def test_gather_refuses_a_pitch_beyond_31_bits():
    too_wide, widest = (
        torch.empty_strided((2, 32), (pitch, 1), dtype=BF16, device="meta") for pitch in (1 << 30, (1 << 30) - 8)
    )
    indices = torch.empty(4, dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match=r"A has strides \(1073741824, 1\).*below 2147483648 bytes"):
        check_gather(too_wide, indices, "cu_seqlens_m")
    assert check_gather(widest, indices, "cu_seqlens_m") == 4


def test_fp8_with_one_k(launches: list[tuple]):
    """K = 1: a contiguous (M, 1) tensor is K-major and M-major at once, so fp8 must not be refused."""
    t = Tensors("cpu", "meta")
    quack.gemm(t(64, 1, dtype=E4M3), t(48, 1, dtype=E4M3).mT)
    assert len(launches) == 1


def test_concat_names_of_absent_operands_mean_nothing(launches: list[tuple]):
    t = Tensors("cpu", "meta")
    quack.gemm(t(64, 64), t(64, 64), concat_layout=("C", "bias"))
    quack.gemm(t(63, 64), t(64, 64), concat_layout=())
    quack.gemm(t(64, 64), t(64, 64), concat_layout=["B", "B"])
    assert len(launches) == 3


@pytest.mark.parametrize("values", [(0, 1, 1), (0, 1, 3), (-1, 0, 1)])
def test_a_permutation_is_checked_when_debugging(
    values: tuple[int, ...], launches: list[tuple], monkeypatch: pytest.MonkeyPatch
):
    """In every call: the key of a plan has no values."""
    t = Tensors("cpu", "meta")
    a, b, out, order = t(3, 64, 64), t(3, 64, 64), t(3, 64, 64), torch.tensor(values, dtype=torch.int32)
    monkeypatch.setenv("QUACK_DEBUG", "1")
    quack.gemm(a, b, out=out, batch_idx_permute=torch.tensor([2, 0, 1], dtype=torch.int32))
    with pytest.raises(ValueError, match=rf"batch_idx_permute \[{values[0]}, .* not a permutation of 0 .. 2"):
        quack.gemm(a, b, out=out, batch_idx_permute=order)
    assert len(launches) == 1
    monkeypatch.delenv("QUACK_DEBUG")
    quack.gemm(a, b, out=out, batch_idx_permute=order)
    assert len(launches) == 2
