"""`quack.emulator.launch` takes functions however they were compiled and called, and QUACK_EMULATE needs no code."""

import os
import subprocess
import sys

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass.cute import runtime as cute_runtime
from cutlass.cute.nvgpu import OperandMajorMode

import quack
from tests.emulated.conformance import fake
from tests.emulated.kernels import WgmmaTile

K = OperandMajorMode.K
KERNEL = WgmmaTile(64, 64, cutlass.BFloat16, cutlass.BFloat16, K, K)


def tensors() -> list[torch.Tensor]:
    return [torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16(), torch.full((64, 64), float("nan"))]


def assert_product(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor) -> None:
    torch.testing.assert_close(d, a.float() @ b.float().T, rtol=1e-4, atol=1e-4)


def test_stream_of_the_environment():
    t = tensors()
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    options = quack.emulator.compile_options("sm90")
    report = quack.emulator.launch(cute.compile(KERNEL, *map(fake, t), stream, options=options), *t)
    assert_product(*t)
    assert report.arch == "sm90" and report.instructions == report.kernels[0].instructions > 0
    assert report.kernels[0].grid == (1, 1, 1) and report.kernels[0].block == (128, 1, 1)


def test_stream_as_an_argument_and_cpu_tensors_as_examples():
    """What programs do that know no fake tensors."""
    t = tensors()
    examples = [cute_runtime.from_dlpack(x) for x in t]
    stream = cute_runtime.make_fake_stream()
    compiled = cute.compile(KERNEL, *examples, stream, options=quack.emulator.compile_options("sm90"))
    quack.emulator.launch(compiled, *t, None)
    assert_product(*t)


def test_without_ptx_the_error_names_the_option():
    t = tensors()
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    compiled = cute.compile(KERNEL, *map(fake, t), stream, options="--enable-tvm-ffi --gpu-arch sm_90a")
    with pytest.raises(quack.emulator.EmulationError, match="--keep-ptx --dump-dir"):
        quack.emulator.launch(compiled, *t)


def test_memory_that_was_not_passed_is_out_of_bounds():
    a, b, d = tensors()
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    compiled = cute.compile(KERNEL, *map(fake, (a, b, d)), stream, options=quack.emulator.compile_options("sm90"))
    whole = torch.zeros(65, 64)
    short = whole[:64].as_strided((64, 64), (64, 1))
    quack.emulator.launch(compiled, a, b, short)
    assert not whole[64].any()
    with pytest.raises(ValueError, match="expected to be 64|Mismatched"):
        quack.emulator.launch(compiled, a[:63], b, d)


def test_the_environment_switches_quack_on():
    code = "import torch, quack; a = torch.eye(64).bfloat16(); print(torch.equal(quack.gemm(a, a), a))"
    env = {**os.environ, "QUACK_EMULATE": "sm90", "QUACK_EMULATE_SCHEDULE": "latest", "QUACK_EMULATE_SMS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arch": "sm80"}, "sm90, sm100, sm120"),
        ({"schedule": "fast"}, "eager, latest or random:SEED"),
        ({"schedule": "random:x"}, "eager, latest or random:SEED"),
        ({"checks": ("race",)}, "races"),
        ({"sms": 0}, "at least 1"),
    ],
)
def test_unknown_settings_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message), quack.emulator.use(**options):
        pass


def test_settings_nest():
    with quack.emulator.use("sm90", schedule="latest", sms=4):
        with quack.emulator.use(checks=("races",)) as inner:
            assert (inner.arch, str(inner.schedule), inner.sms, inner.checks) == ("sm90", "latest", 4, ("races",))
        assert quack.emulator.current().checks == ()
    assert quack.emulator.current().arch is None
