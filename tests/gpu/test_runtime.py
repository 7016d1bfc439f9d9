"""Streams, graphs, torch.compile, devices, caches, and sizes beyond 32-bit offsets."""

import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quack
import quack.gemm_interface  # registers the custom ops
from quack.gemm_config import GemmConfig
from quack.runtime import dispatch
from tests.reference import relative_error

ROOT = Path(__file__).resolve().parents[2]
BF16_ERROR = 4e-3
STATIC = GemmConfig(128, 128, pingpong=True, cluster_m=1)
SCHEDULES = {
    "static": STATIC,
    "dynamic": replace(STATIC, is_dynamic_persistent=True),
    "dynamic-cluster": replace(STATIC, is_dynamic_persistent=True, cluster_m=2, pingpong=False),
    "single": replace(STATIC, is_persistent=False),
}
SLEEP_CYCLES = 100_000_000  # about 50 ms


def normal(*shape: int, scale: float = 1.0, device: str = "cuda") -> torch.Tensor:
    return (torch.randn(*shape, device=device) * scale).bfloat16()


def assert_close(out: torch.Tensor, *operands: torch.Tensor, limit: float = BF16_ERROR) -> None:
    """out = product of two operands, plus a third if given."""
    exact = operands[0].double() @ operands[1].double()
    if len(operands) > 2:
        exact += operands[2].double()
    error = relative_error(out, exact)
    assert error < limit, f"relative error {error:.2e}"


# ---- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_runs_on_the_current_stream(config: GemmConfig):
    """On any other stream the kernel would read A before the slow side stream has written it."""
    a, b, late = torch.full((1000, 512), float("nan"), device="cuda").bfloat16(), normal(512, 1000), normal(1000, 512)
    out = torch.empty(1000, 1000, device="cuda", dtype=torch.bfloat16)
    quack.gemm_tuned.fn(a, b, out, config=config)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        a.copy_(late)
        quack.gemm_tuned.fn(a, b, out, config=config)
        done = side.record_event()
    torch.cuda.current_stream().wait_event(done)
    copy = out.clone()  # ordered behind the kernel only if the event was recorded behind it
    torch.cuda.synchronize()
    assert_close(copy, late, b)


def test_waits_for_an_event_on_the_current_stream():
    a, b, late = normal(512, 512), normal(512, 512), normal(512, 512)
    out = quack.gemm(a, b)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES)
    a.copy_(late)
    written = torch.cuda.current_stream().record_event()
    with torch.cuda.stream(side):
        side.wait_event(written)
        quack.gemm(a, b, out=out)
    torch.cuda.synchronize()
    assert_close(out, late, b)


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_two_streams_at_once(config: GemmConfig):
    """The dynamic scheduler's counters must not be shared between launches that overlap."""
    a, b = [normal(700, 256) for _ in range(2)], [normal(256, 2000) for _ in range(2)]
    outs = [[torch.full((700, 2000), float("nan"), device="cuda").bfloat16() for _ in range(20)] for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    quack.gemm_tuned.fn(a[0], b[0], outs[0][0], config=config)
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP_CYCLES // 10)
    for i in range(20):
        for s, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                quack.gemm_tuned.fn(a[s], b[s], outs[s][i], config=config)
    torch.cuda.synchronize()
    for s in range(2):
        assert_close(outs[s][0], a[s], b[s])
        assert all(torch.equal(outs[s][0], other) for other in outs[s][1:])


def test_unaligned_operands_are_copied_on_the_current_stream():
    a, b = normal(333, 129), normal(129, 257)
    expected = quack.gemm(a, b)
    late, held = a.clone(), a
    held.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(SLEEP_CYCLES)
        held.copy_(late)
        out = quack.gemm(held, b)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


# ---- CUDA graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_graph_replays_with_new_contents(config: GemmConfig):
    """Two dependent GEMMs, several waves each, 50 replays: the counters are back at zero every time."""
    a, b = normal(2000, 256), normal(256, 1000, scale=1 / 16)
    middle, out = (torch.empty(2000, n, device="cuda", dtype=torch.bfloat16) for n in (1000, 256))

    def work() -> None:
        quack.gemm_tuned.fn(a, b, middle, config=config)
        quack.gemm_tuned.fn(middle, b.mT, out, C=a, config=config)

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(50):
        a.normal_()
        middle.fill_(float("nan"))
        out.fill_(float("nan"))
        graph.replay()
        replayed = out.clone()
        work()
        assert torch.equal(replayed, out)
    assert_close(middle, a, b)
    assert_close(out, middle, b.mT, a)


def test_graph_by_the_public_dynamic_flag():
    a, b = normal(1500, 512), normal(512, 1500)
    out = quack.gemm(a, b, dynamic_scheduler=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm(a, b, out=out, dynamic_scheduler=True)
    for _ in range(5):
        a.normal_()
        out.fill_(float("nan"))
        graph.replay()
    assert_close(out, a, b)


def test_graph_of_unaligned_operands():
    """The aligned copies belong to the graph: they must follow the new contents."""
    a, b = normal(333, 129), normal(129, 257)
    out = quack.gemm(a, b)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm(a, b, out=out)
    for _ in range(3):
        a.normal_()
        graph.replay()
        assert_close(out, a, b)


# ---- torch.compile ----------------------------------------------------------------------------------------------------


def _chain(a, w1, w2, c, z, alpha):
    x = quack.gemm(a, w1.mT, alpha=alpha)
    y = quack.gemm_add(x * 2, w2, c, beta=0.5)
    quack.gemm_add_inplace(a, w1.mT, z, beta=2.0)
    return y + 1, z


def _run_chain(function, batch: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(batch)
    tensors = normal(batch, 128), normal(256, 128, scale=0.1), normal(256, 192, scale=0.1), normal(batch, 192)
    return function(*tensors, normal(batch, 256), torch.tensor([0.5], device="cuda"))


def _compare_chain(compiled, batch: int = 200) -> None:
    for got, expected in zip(_run_chain(compiled, batch), _run_chain(_chain, batch)):
        # Fused pointwise operations may round differently from eager ones, once per step.
        torch.testing.assert_close(got.float(), expected.float(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(backend: str):
    torch._dynamo.reset()
    _compare_chain(torch.compile(_chain, fullgraph=True, backend=backend))


@pytest.mark.hang_guard(400)
def test_torch_compile_inductor():
    """Inductor generates Triton and C++ wrappers, which need compilers that an offline machine may lack. That says
    nothing about quack, so the same graph then goes through inductor's decompositions and partitioner without code
    generation; the test never skips, and a warning says which of the two ran.
    """
    torch._dynamo.reset()
    try:
        _compare_chain(torch.compile(_chain, fullgraph=True))
    except Exception as error:  # noqa: BLE001 - toolchain errors have no common type
        words = ("compiler", "gcc", "g++", "triton", "python.h", "libcuda")
        if isinstance(error, AssertionError) or not any(word in str(error).lower() for word in words):
            raise
        warnings.warn(f"inductor has no toolchain here: {str(error)[:200]}", stacklevel=1)
        torch._dynamo.reset()
        _compare_chain(torch.compile(_chain, fullgraph=True, backend="aot_eager_decomp_partition"))


def test_torch_compile_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(_chain, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (200, 72, 1000):
        _compare_chain(compiled, batch)


def test_custom_op_passes_opcheck():
    a, b = normal(64, 64), normal(64, 64)
    out, alpha = torch.empty_like(a), torch.tensor([2.0], device="cuda")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.quack.gemm_out.default, (a, b, out), test_utils=checks)
    torch.library.opcheck(
        torch.ops.quack.gemm_out.default, (a, b, out, b, None, 1.0, 0.5, alpha, None), test_utils=checks
    )
    torch.library.opcheck(torch.ops.quack.gemm_add_inplace.default, (a, b, out.zero_()), test_utils=checks)


# ---- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_other_device_than_the_current_one(config: GemmConfig):
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        a, b = normal(520, 264, device=device), normal(264, 1000, device=device)
        out = torch.empty(520, 1000, device=device, dtype=torch.bfloat16)
        with torch.cuda.device(0):
            quack.gemm_tuned.fn(a, b, out, config=config)
            assert torch.cuda.current_device() == 0
        torch.cuda.synchronize(device)
        assert_close(out, a, b)
        side = torch.cuda.Stream(device)
        with torch.cuda.stream(side):
            torch.cuda._sleep(SLEEP_CYCLES)
            a.normal_()
            quack.gemm_tuned.fn(a, b, out, config=config)
        torch.cuda.synchronize(device)
        assert_close(out, a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_in_one_call_are_refused():
    with pytest.raises(ValueError, match=r"A is on cuda:0 and B is on cuda:1"):
        quack.gemm(normal(64, 64, device="cuda:0"), normal(64, 64, device="cuda:1"))


# ---- compiled functions -----------------------------------------------------------------------------------------------


def test_new_shapes_do_not_recompile():
    config = GemmConfig(128, 112, pingpong=True, cluster_m=1, max_swizzle_size=5)  # used by no other test
    draw = random.Random(0)
    before = len(dispatch._functions)
    for _ in range(20):
        m, n, k = (8 * draw.randint(1, 150) for _ in range(3))
        a, b = normal(m, k), normal(n, k).mT
        out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        quack.gemm_tuned.fn(a, b, out, config=config)
        assert_close(out, a, b)
    assert len(dispatch._functions) == before + 1


def test_scalar_values_do_not_recompile():
    a = normal(64, 64)
    quack.gemm(a, a, alpha=2.0)
    before = len(dispatch._functions)
    for alpha in (3.0, -1.5, 7, True + 1):
        out = quack.gemm(a, a, alpha=alpha)
        assert_close(out, a * alpha, a, limit=8e-3)
    assert len(dispatch._functions) == before


_TIME_LOADS = """
import sys, time
from dataclasses import replace
from quack.runtime.compile import example_spec
from quack.runtime.dispatch import get_function
for tile_n in (128, 64):
    spec = example_spec()
    start = time.perf_counter()
    get_function(replace(spec, config=replace(spec.config, tile_n=tile_n)))
    print(time.perf_counter() - start, 'cutlass' in sys.modules)
"""


@pytest.mark.hang_guard(300)
def test_disk_cache_serves_the_next_process(tmp_path, record_property):
    """The first load of a process imports CuTe DSL; the second is what one more kernel costs."""

    def seconds() -> list[float]:
        env = dict(os.environ, QUACK_CACHE_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
        done = subprocess.run(
            [sys.executable, "-c", _TIME_LOADS], env=env, capture_output=True, text=True, timeout=250, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return [float(line.split()[0]) for line in done.stdout.splitlines()]

    cold = seconds()
    objects = sorted(tmp_path.rglob("*.o"))
    stamps = [path.stat().st_mtime_ns for path in objects]
    warm = seconds()
    assert len(objects) == 2
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.o"))] == stamps, "compiled again"
    assert not list(tmp_path.rglob(".build-*")), "a build directory was left behind"
    record_property("cold_s", cold)
    record_property("warm_s", warm)
    print(f"cold {cold}, warm {warm} s (import and first kernel, second kernel)")
    assert warm[1] < 0.1, f"loading a cached kernel took {warm[1] * 1e3:.0f} ms"


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_fifty_runs_have_equal_bits(config: GemmConfig):
    a, b, c = normal(1111, 640), normal(640, 1304), normal(1111, 1304)
    outs = [torch.full((1111, 1304), float("nan"), device="cuda").bfloat16() for _ in range(50)]
    for out in outs:
        quack.gemm_tuned.fn(a, b, out, C=c, beta=0.5, config=config)
    assert_close(outs[0], a, b, c * 0.5)
    assert all(torch.equal(outs[0], out) for out in outs[1:])


# ---- programmatic dependent launch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_chain_of_dependent_launches(config: GemmConfig):
    """Each GEMM reads what the one before wrote, through two buffers that alternate: an early read or an early write
    shows at once. Small, so that launches overlap."""
    n, steps = 256, 20
    start, weights = normal(n, n), [normal(n, n, scale=n**-0.5) for _ in range(steps)]
    buffers = [torch.empty(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2)]

    def chain(wait: bool) -> torch.Tensor:
        for buffer in buffers:
            buffer.fill_(float("nan"))
        x = start
        for i, weight in enumerate(weights):
            quack.gemm_tuned.fn(x, weight, buffers[i % 2], C=start, beta=0.1, config=config)
            x = buffers[i % 2]
            if wait:
                torch.cuda.synchronize()
        return x.clone()

    one_by_one = chain(wait=True)
    for _ in range(20):
        assert torch.equal(chain(wait=False), one_by_one)
    expected = start.float()
    for weight in weights:
        expected = (expected.double() @ weight.double() + 0.1 * start.double()).bfloat16().float()
    assert relative_error(one_by_one, expected.double()) < 2e-2


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_chain_with_torch_kernels_between(config: GemmConfig):
    """Kernels launched without PDL before and after ours."""
    a, b = normal(512, 512), normal(512, 512, scale=0.05)
    out = torch.empty_like(a)
    for i in range(50):
        a.fill_(float(i % 7 + 1))
        quack.gemm_tuned.fn(a, b, out, config=config)
        twice = out + out
        out.fill_(float("nan"))
    exact = a.double() @ b.double() * 2
    assert relative_error(twice, exact) < 2 * BF16_ERROR


# ---- beyond 2^31 elements ---------------------------------------------------------------------------------------------


def assert_rows(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Blocks of rows at both ends and around the 2^31st element, and no NaN anywhere."""
    m, n = out.shape
    across = (1 << 31) // n
    for first in (0, max(0, across - 64), m - 128):
        assert_close(out[first : first + 128], a[first : first + 128], b)
    for chunk in out.split(4096):
        assert torch.isfinite(chunk.sum(dtype=torch.float32))


@pytest.mark.parametrize(("m", "n"), [(65544, 33000), (65543, 33001)], ids=["tma", "direct"])
def test_output_beyond_2_31_elements(m: int, n: int):
    a, b = normal(m, 64), normal(64, n)
    out = torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
    assert out.numel() > 1 << 31
    quack.gemm(a, b, out=out)
    assert_rows(out, a, b)


def test_output_and_c_far_apart_in_memory():
    """A few rows whose stride puts them 2^31 elements apart; unaligned, so by element."""
    m, n, pitch = 130, 264, 16_909_321
    storage = torch.full(((m - 1) * pitch + n,), float("nan"), device="cuda", dtype=torch.bfloat16)
    assert storage.numel() > 1 << 31
    out = storage.as_strided((m, n), (pitch, 1))
    out.copy_(normal(m, n))
    c = out.clone()
    a, b = normal(m, 64), normal(64, n)
    quack.gemm_add_inplace(a, b, out)
    assert_close(out, a, b, c)
    assert torch.isnan(storage[n:pitch]).all() and torch.isnan(storage[-pitch:-n]).all()


def test_batch_beyond_2_31_elements():
    a, b = normal(1, 1000, 64), normal(2100, 64, 1032)
    out = torch.full((2100, 1000, 1032), float("nan"), device="cuda", dtype=torch.bfloat16)
    assert out.numel() > 1 << 31
    quack.gemm(a.expand(2100, -1, -1), b, out=out)
    for i in (0, 2080, 2081, 2082, 2099):
        assert_close(out[i], a[0], b[i])
    for chunk in out.split(64):
        assert torch.isfinite(chunk.sum(dtype=torch.float32))


def test_input_beyond_2_31_elements():
    m, k = 65600, 32776
    a = torch.empty(m, k, device="cuda", dtype=torch.bfloat16)
    assert a.numel() > 1 << 31
    for chunk in a.split(4096):
        chunk.normal_()
    b = normal(k, 64)
    out = quack.gemm(a, b)
    for first in (0, (1 << 31) // k - 64, m - 128):
        assert_close(out[first : first + 128], a[first : first + 128], b)
