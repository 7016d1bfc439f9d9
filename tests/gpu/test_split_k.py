"""Split-K on the GPU: the cases of the emulator, determinism over many launches, CUDA graphs and streams."""

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from tests.cases import Case
from tests.split_cases import MODES, Run, SplitCase, cases, stream_cases

DETERMINISTIC = [mode for mode in MODES if mode.is_deterministic]
PINGPONG = GemmConfig(128, 128, pingpong=True)
BIG = [
    SplitCase(Case("split big", 256, 256, 65536, out="fp32", config=PINGPONG), 33),
    SplitCase(Case("split big", 1000, 776, 4104, c="bf16", bias="bf16", config=GemmConfig(128, 256)), 4),
    SplitCase(Case("split big", 2048, 2048, 2048, config=PINGPONG), 3),  # several waves of works
    SplitCase(
        Case(
            "split big", 520, 392, 2000, batch=7, config=GemmConfig(128, 64, pingpong=True, is_dynamic_persistent=True)
        ),
        5,
    ),
    SplitCase(Case("split big", 264, 520, 8192, a="e4m3", b="e4m3", config=GemmConfig(128, 128)), 8),
]
LARGE = GemmConfig(128, 256)
BIG_STREAMS = [  # whole waves behind the streamed tiles, or many parts a tile
    SplitCase(Case("stream big", 2304, 4608, 2048, c="bf16", bias="bf16", config=LARGE)),
    SplitCase(Case("stream big", 3072, 3072, 1096, out="fp32", config=PINGPONG)),
    SplitCase(Case("stream big", 2560, 1280, 4096, c="bf16", config=PINGPONG)),
    SplitCase(Case("stream big", 256, 256, 65536, out="fp32", config=PINGPONG)),
    SplitCase(Case("stream big", 520, 392, 2000, batch=7, config=GemmConfig(128, 64, pingpong=True, cluster_m=1))),
    SplitCase(Case("stream big", 1536, 3000, 4104, bias="bf16", config=GemmConfig(256, 128, cluster_m=1, cluster_n=2))),
    SplitCase(Case("stream big", 2304, 1160, 8192, a="e4m3", b="e4m3", config=GemmConfig(128, 128))),
    SplitCase(Case("stream big", 1160, 2304, 8192, a="e4m3", b="e4m3", fast_accum=True, config=PINGPONG)),
]


def by_value(mode: SplitKMode) -> str:
    return mode.value


@pytest.mark.parametrize("case", [*stream_cases(), *BIG_STREAMS], ids=str)
def test_stream_against_reference(case: SplitCase):
    """Twice, for the first launch must leave its memory as it found it."""
    run = Run(case, SplitKMode.STREAM, "cuda")
    for _ in range(2):
        run.launch()
        run.verify()


@pytest.mark.parametrize("config", [PINGPONG, GemmConfig(128, 128), GemmConfig(64, 128, pingpong=True)], ids=str)
@pytest.mark.parametrize("shape", [(2560, 1280, 1024), (392, 264, 8192), (1160, 1160, 2048)], ids=str)
def test_stream_gives_the_same_bits_a_thousand_times(shape: tuple[int, int, int], config: GemmConfig):
    """Two parts a tile, and many."""
    run = Run(SplitCase(Case("stream", *shape, out="fp32", config=config)), SplitKMode.STREAM, "cuda")
    run.launch()
    run.verify()
    (expected,) = (bits.clone() for bits in run.outputs())
    for _ in range(1000):
        run.launch()
        (bits,) = run.outputs()
        assert torch.equal(bits, expected)


@pytest.mark.parametrize("mode", MODES, ids=by_value)
@pytest.mark.parametrize("case", [*cases(), *BIG], ids=str)
def test_against_reference(case: SplitCase, mode: SplitKMode):
    """Twice, for the first launch must leave its memory as it found it."""
    run = Run(case, mode, "cuda")
    for _ in range(2):
        run.launch()
        run.verify()


@pytest.mark.parametrize("splits", [2, 7, 66])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_deterministic_modes_give_the_same_bits_a_thousand_times(splits: int, dynamic: bool):
    config = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=dynamic)
    case = SplitCase(Case("split", 392, 264, 8192, out="fp32", config=config), splits)
    expected = None
    for mode in DETERMINISTIC:
        run = Run(case, mode, "cuda")
        for _ in range(1000):
            run.launch()
            (bits,) = run.outputs()
            expected = bits.clone() if expected is None else expected
            assert torch.equal(bits, expected), mode


def tensors(m: int = 264, n: int = 200, k: int = 6000) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(m, k, device="cuda").bfloat16(), torch.randn(k, n, device="cuda").bfloat16()


@pytest.mark.parametrize("mode", MODES, ids=by_value)
def test_graph_replays_with_new_contents(mode: SplitKMode):
    """A graph has memory of its own: eager launches on the same stream between replays do not disturb it."""
    A, B = tensors()
    out = torch.empty(A.shape[0], B.shape[1], device="cuda")
    call = dict(out=out, split_k=6, split_k_mode=mode)
    quack.gemm(A, B, **call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm(A, B, **call)
    for seed in range(5):
        A.copy_(torch.randn(A.shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        quack.gemm(A, B, split_k=6, split_k_mode=mode)
        out.fill_(float("nan"))
        graph.replay()
        torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("mode", MODES, ids=by_value)
def test_streams_do_not_share_memory(mode: SplitKMode):
    """Launches that overlap on two streams, each wide enough for the whole device."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [tensors(520, 520, 8192) for _ in streams]
    exact = [a.double() @ b.double() for a, b in inputs]
    torch.cuda.synchronize()
    outs: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for stream, (a, b), found in zip(streams, inputs, outs):
            with torch.cuda.stream(stream):
                found.append(quack.gemm(a, b, out_dtype=torch.float32, split_k=6, split_k_mode=mode))
    torch.cuda.synchronize()
    for found, reference in zip(outs, exact):
        for out in found:
            torch.testing.assert_close(out.double(), reference, rtol=0, atol=1e-2)


def test_stream_is_replayed_and_does_not_share_memory():
    """A CUDA graph with new contents beside eager launches on another stream."""
    A, B = tensors(2560, 1280, 4096)
    other = [t.flip(0).contiguous() for t in tensors(2560, 1280, 4096)]
    out = torch.empty(A.shape[0], B.shape[1], device="cuda")
    call = dict(split_k_mode=SplitKMode.STREAM, out_dtype=torch.float32)
    exact = other[0].double() @ other[1].double()
    quack.gemm(A, B, **call)
    torch.cuda.synchronize()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        quack.gemm(A, B, out=out, **call)
    for seed in range(5):
        A.copy_(torch.randn(A.shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        out.fill_(float("nan"))
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            eager = [quack.gemm(*other, **call) for _ in range(4)]
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=1e-2)
        for result in eager:
            torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-2)
            assert torch.equal(result, eager[0])


def test_the_heuristics_stream_a_mostly_empty_last_wave():
    A, B = tensors(2560, 1280, 4096)
    assert "STREAM" in quack.explain(A, B, torch.float32)
    out = quack.gemm(A, B, out_dtype=torch.float32)
    torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=1e-2)
    again = [quack.gemm(A, B, out_dtype=torch.float32) for _ in range(10)]
    assert all(torch.equal(out, other) for other in again)


def test_the_heuristics_split_deep_products():
    A, B = tensors(256, 256, 65536)
    out = quack.gemm(A, B, out_dtype=torch.float32)
    torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=3e-2)
    again = [quack.gemm(A, B, out_dtype=torch.float32) for _ in range(10)]
    assert all(torch.equal(out, other) for other in again)
