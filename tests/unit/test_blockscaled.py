"""Block-scaled operands without a kernel: the order of scales, what calls and specs are refused for, budgets, choices."""

import itertools
from dataclasses import replace

import pytest
import torch

import quack
from quack import heuristics
from quack.arch import ARCHES
from quack.block_scales import BLOCK_BYTES, blocks_of, ragged_blocks, scale_blocks
from quack.blockscaled import rescaled
from quack.capabilities.axes import ADAPTERS, INPUTS, base_spec
from quack.capabilities.matrix import USUAL
from quack.gemm_config import BlockScaling, Dtype, GemmConfig, Major
from quack.heuristics.model import hides_drain, tuning_of, with_tile
from quack.runtime.budget import budget_of
from quack.runtime.legality import legality
from quack.runtime.spec import (
    GATHER_K,
    GATHER_M,
    GROUPED,
    STREAM_COMBINE,
    VARLEN_K,
    VARLEN_M,
    GemmShape,
    GemmSpec,
    UnsupportedGemm,
)

E8M0, E4M3, FP4 = torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.float4_e2m1fn_x2
SCALED = [name for name, inputs in INPUTS.items() if inputs.scaling is not None]
CONFIG = GemmConfig(128, 128, cluster_m=1, device_capacity=10)


def spec_of(inputs: str, arch: str = "sm_100a", config: GemmConfig = CONFIG) -> GemmSpec:
    return base_spec(USUAL._replace(arch=arch, inputs=inputs)).configured(config)


def scales(*shape: int, dtype: torch.dtype = E8M0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(1, 100, shape, generator=generator, dtype=torch.uint8).view(dtype)


# ---- the order of scales ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [E8M0, E4M3], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (130, 5), (3, 257, 9), (2, 40, 64)], ids=str)
def test_blocks_have_the_order_that_tensor_cores_read(shape: tuple[int, ...], dtype: torch.dtype):
    plain = scales(*shape, dtype=dtype)
    blocked = quack.blocked_scales(plain)
    *batch, rows, count = shape
    row_blocks, blocks = -(-rows // 128), -(-count // 4)
    assert blocked.is_contiguous() and blocked.dtype is dtype and blocked.shape == (*batch, row_blocks, blocks, 32, 16)
    expected = torch.zeros(*batch, row_blocks * blocks * BLOCK_BYTES, dtype=torch.uint8)
    for r in range(rows):
        for j in range(count):
            block = r // 128 * blocks + j // 4
            place = block * BLOCK_BYTES + r % 32 * 16 + r % 128 // 32 * 4 + j % 4
            expected[..., place] = plain.view(torch.uint8)[..., r, j]
    assert torch.equal(blocked.view(torch.uint8).flatten(len(batch)), expected)


@pytest.mark.parametrize("shape", [(128, 4), (130, 5), (3, 257, 9)], ids=str)
def test_blocks_are_undone(shape: tuple[int, ...]):
    plain, batch = scales(*shape), shape[0] if len(shape) == 3 else None
    again = quack.plain_scales(quack.blocked_scales(plain.mT.contiguous().mT), shape[-2], shape[-1], batch)
    assert torch.equal(again.view(torch.uint8), plain.view(torch.uint8))


def mixed_call(A: torch.Tensor, dtype: torch.dtype = E8M0) -> None:
    """A (32, 128) of fp4, B (128, 16) of fp8."""
    count = 128 // (32 if dtype is E8M0 else 16)
    A_scale, B_scale = (quack.blocked_scales(scales(rows, count, dtype=dtype)) for rows in (32, 16))
    with quack.emulator.use("sm100", checks=()):
        quack.gemm_blockscaled(A, torch.zeros(16, 128).to(E4M3).mT, A_scale, B_scale)


def test_fp4_beside_fp8_is_aligned_and_has_mx_scales():
    memory = torch.zeros(33 * 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match="A is fp4 beside fp8, at address .*: TMA needs multiples of 32 bytes"):
        mixed_call(memory[16 : 16 + 32 * 64].view(32, 64).view(FP4))
    with pytest.raises(ValueError, match="with strides .80, 1.: TMA needs multiples of 32 bytes"):
        mixed_call(torch.zeros(32, 80, dtype=torch.uint8)[:, :64].view(FP4))
    with pytest.raises(UnsupportedGemm, match="A of fp4_e2m1 beside fp8 and B of fp8_e4m3 with fp8_e4m3 scales for 16"):
        mixed_call(memory[: 32 * 64].view(32, 64).view(FP4), E4M3)


def bytes_of_groups(plain: torch.Tensor, offsets: list[int], dim: int) -> torch.Tensor:
    """The blocks of each group by itself, one group behind the other: what `torch._scaled_grouped_mm` takes."""
    parts = [plain.view(torch.uint8).narrow(dim, i, j - i) for i, j in zip(offsets, offsets[1:])]
    return torch.cat([quack.blocked_scales(part.view(plain.dtype)).view(torch.uint8).flatten() for part in parts])


@pytest.mark.parametrize("sizes", [(100, 37, 0, 260, 5), (0, 0), (128, 256), (1,) * 40], ids=str)
@pytest.mark.parametrize("count", [4, 9])
def test_groups_of_rows_begin_with_blocks_of_their_own(sizes: tuple[int, ...], count: int):
    offsets = [0, *itertools.accumulate(sizes)]
    plain, cu = scales(sum(sizes), count), torch.tensor(offsets, dtype=torch.int32)
    blocked = quack.blocked_scales(plain, cu_seqlens_m=cu)
    expected = bytes_of_groups(plain, offsets, 0)
    got = blocked.view(torch.uint8).flatten()
    assert (
        blocked.is_contiguous() and torch.equal(got[: expected.numel()], expected) and not got[expected.numel() :].any()
    )
    assert len(blocked) == ragged_blocks(sum(sizes), len(sizes), 128)[-1]
    again = quack.plain_scales(blocked, sum(sizes), count, cu_seqlens_m=cu)
    assert torch.equal(again.view(torch.uint8), plain.view(torch.uint8))


@pytest.mark.parametrize("dtype", [E8M0, E4M3], ids=str)
@pytest.mark.parametrize("sizes", [(5, 1, 0, 9, 4), (0, 0), (4, 8), (1,) * 40], ids=str)
@pytest.mark.parametrize("rows", [4, 129])
def test_groups_of_k_begin_with_blocks_of_their_own(sizes: tuple[int, ...], rows: int, dtype: torch.dtype):
    offsets = [0, *itertools.accumulate(sizes)]
    plain = scales(rows, sum(sizes), dtype=dtype)
    cu = torch.tensor(offsets, dtype=torch.int32) * (32 if dtype is E8M0 else 16)
    blocked = quack.blocked_scales(plain, cu_seqlens_k=cu)
    expected = bytes_of_groups(plain, offsets, 1)
    got = blocked.view(torch.uint8).flatten()
    assert (
        blocked.is_contiguous() and torch.equal(got[: expected.numel()], expected) and not got[expected.numel() :].any()
    )
    again = quack.plain_scales(blocked, rows, sum(sizes), cu_seqlens_k=cu)
    assert torch.equal(again.view(torch.uint8), plain.view(torch.uint8))


def test_no_offsets_need_more_blocks():
    for sizes in itertools.product((0, 1, 3, 4, 5, 8), repeat=3):
        needed = sum(-(-size // 4) for size in sizes)
        assert needed in ragged_blocks(sum(sizes), len(sizes), 4), sizes


@pytest.mark.parametrize(
    "scales", [torch.zeros(4), torch.zeros(4, 4), torch.zeros(4, 4).half()], ids=lambda t: str(t.shape)
)
def test_blocked_scales_of_something_else_are_refused(scales: torch.Tensor):
    with pytest.raises(ValueError, match="expected \\(R, S\\) or"):
        quack.blocked_scales(scales)


def test_packed_elements_begin_in_the_low_half():
    codes = torch.arange(16, dtype=torch.uint8).view(1, 16)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).repeat(1, 2)
    ones = quack.blocked_scales(torch.full((1, 1), 127, dtype=torch.uint8).view(E8M0))
    values = rescaled(packed.view(FP4), ones)
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert values[0, :16].tolist() == expected + [-v for v in expected]


def test_the_reference_multiplies_each_block_by_its_scale():
    A = torch.ones(2, 64).to(E4M3)
    a = torch.tensor([[128, 127], [126, 129]], dtype=torch.uint8).view(E8M0)  # 2, 1; 1/2, 4
    b = torch.tensor([[127, 130]], dtype=torch.uint8).view(E8M0)  # 1, 8
    out = quack.gemm_blockscaled_ref(
        A, A[:1].mT, quack.blocked_scales(a), quack.blocked_scales(b), torch.float32, alpha=0.5,
        C=torch.ones(2, 1), beta=3.0, bias=torch.tensor([10.0]),
    )  # fmt: skip
    assert out.tolist() == [[0.5 * (32 * 2 + 32 * 8) + 13], [0.5 * (16 + 32 * 32) + 13]]


# ---- calls ------------------------------------------------------------------------------------------------------------


def call(**changes) -> None:
    """A (32, 64), B (64, 16) of fp8 with MX scales, or what is given instead."""
    operands = {
        "A": torch.zeros(32, 64).to(E4M3),
        "B": torch.zeros(16, 64).to(E4M3).mT,
        "A_scale": quack.blocked_scales(scales(32, 2)),
        "B_scale": quack.blocked_scales(scales(16, 2)),
    }
    with quack.emulator.use("sm100", checks=()):
        quack.gemm_blockscaled(**(operands | changes))


def packed(rows: int, k: int) -> torch.Tensor:
    return torch.zeros(rows, k // 2, dtype=torch.uint8).view(FP4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"A_scale": None}, TypeError, "A_scale is a NoneType"),
        ({"B_scale": [1.0]}, TypeError, "B_scale is a list"),
        ({"A_scale": torch.zeros(512)}, UnsupportedGemm, "A_scale has dtype torch.float32; instead: one of torch.float8_e8m0fnu"),
        ({"A_scale": torch.zeros(512).to(E4M3)}, ValueError, "A_scale has dtype torch.float8_e4m3fn and B_scale has"),
        ({"A_scale": scales(32, 2)}, ValueError, "A_scale has 64 elements, expected 1 x 1 x 1 blocks of 512"),
        ({"B_scale": scales(2, 512)}, ValueError, "B_scale has 1024 elements, expected 1 x 1 x 1 blocks"),
        ({"A_scale": scales(512, 2)[:, 0]}, ValueError, "A_scale is not contiguous"),
        ({"B_scale": scales(513)[1:]}, ValueError, "B_scale is not contiguous or not 16-byte aligned"),
        ({"A": packed(32, 128)}, ValueError, "do not multiply: A has K = 128, B has K = 64"),
        ({"A": packed(32, 64)}, ValueError, "K = 64 is not a positive multiple of 128, what TMA loads of fp4 beside fp8"),
        ({"A": torch.zeros(32, 64).bfloat16()}, UnsupportedGemm, "fp8_e4m3 and B|A of bf16 and B of fp8_e4m3"),
        ({"A": torch.zeros(64, 32).to(E4M3).mT}, UnsupportedGemm, "A is not K-major"),
        ({"A": torch.zeros(32, 48).to(E4M3), "B": torch.zeros(16, 48).to(E4M3).mT}, ValueError, "K = 48 is not a positive multiple"),
        ({"A": torch.zeros(32, 0).to(E4M3), "B": torch.zeros(16, 0).to(E4M3).mT}, ValueError, "K = 0 is not a positive multiple"),
        ({"out_dtype": FP4}, UnsupportedGemm, "out has dtype torch.float4_e2m1fn_x2"),
        ({"bias": torch.zeros(16).to(E8M0)}, UnsupportedGemm, "bias has dtype torch.float8_e8m0fnu"),
        ({"config": replace(CONFIG, tile_n=96)}, UnsupportedGemm, "tile_n=96: .* multiples of 64; instead: tile_n=128"),
        ({"config": replace(CONFIG, tile_k=256)}, UnsupportedGemm, "tile_k=256: .*; instead: tile_k=128"),
        ({"split_k": 0}, ValueError, "split_k"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused(changes: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call(**changes)


def ragged_call(**changes) -> None:
    """A (300, 64) in 3 groups, B (3, 64, 16), of fp8 with MX scales, or what is given instead."""
    offsets = torch.tensor([0, 100, 137, 300], dtype=torch.int32)
    operands = {
        "A": torch.zeros(300, 64).to(E4M3),
        "B": torch.zeros(3, 16, 64).to(E4M3).mT,
        "A_scale": quack.blocked_scales(scales(300, 2), offsets),
        "B_scale": quack.blocked_scales(scales(3, 16, 2)),
        "cu_seqlens_m": offsets,
    }
    with quack.emulator.use("sm100", checks=()):
        quack.gemm_blockscaled(**(operands | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A_scale": scales(2 * 512)}, "A_scale has 1024 elements, expected 1 x .3 to 5. x 1 blocks of 512"),
        (
            {"A_scale": scales(6 * 512)},
            "A_scale has 3072 elements, .* pass quack.blocked_scales.A_scale, and the offsets.",
        ),
        ({"A_scale": scales(3 * 512 + 16)}, "A_scale has 1552 elements"),
        ({"B_scale": scales(512)}, "B_scale has 512 elements, expected 3 x 1 x 1 blocks"),
        ({"cu_seqlens_m": torch.tensor([0, 300], dtype=torch.int32)}, "B has 3 matrices"),
    ],
)
def test_bad_ragged_calls_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ragged_call(**changes)


def sum_call(sizes: tuple[int, ...] = (96, 32, 64), **changes) -> None:
    """A (40, 192) and B (192, 16) in groups along K, of fp8 with MX scales, or what is given instead."""
    offsets = torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32)
    operands = {
        "A": torch.zeros(40, sum(sizes)).to(E4M3),
        "B": torch.zeros(16, sum(sizes)).to(E4M3).mT,
        "A_scale": quack.blocked_scales(scales(40, sum(sizes) // 32), cu_seqlens_k=offsets),
        "B_scale": quack.blocked_scales(scales(16, sum(sizes) // 32), cu_seqlens_k=offsets),
        "cu_seqlens_k": offsets,
    }
    with quack.emulator.use("sm100", checks=()):
        quack.gemm_blockscaled(**(operands | changes))


def test_picking_k_or_copying_rows_is_refused():
    indices = torch.zeros(192, dtype=torch.int32)
    with pytest.raises(UnsupportedGemm, match="A_idx picks single k .* instead: A = A.:, A_idx., scaled after that"):
        sum_call(A_idx=indices)
    with pytest.raises(UnsupportedGemm, match="loaded by TMA only; instead: use_tma_gather=True"):
        ragged_call(
            A_scale=quack.blocked_scales(scales(300, 2)), A_idx=torch.zeros(300, dtype=torch.int32), config=CONFIG
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sizes": (96, 32, 16)}, ValueError, "K = 144 is not a positive multiple of 32, as every group is"),
        ({"A_scale": scales(512)}, ValueError, "A_scale has 512 elements, expected 1 x 1 x .2 to 4. blocks"),
        ({"B_scale": scales(5 * 512)}, ValueError, "B_scale has 2560 elements"),
        ({"A": torch.zeros(192, 40).to(E4M3).mT}, UnsupportedGemm, "A is not K-major, and blocks of scales go along K"),
        (
            {"A": torch.zeros(40, 96, dtype=torch.uint8).view(FP4), "B": torch.zeros(16, 96, dtype=torch.uint8).view(FP4).mT,
             "sizes": (96, 96)},
            ValueError, "A_scale has 512",
        ),
    ],
)  # fmt: skip
def test_bad_calls_with_ragged_k_are_refused(changes: dict, error: type[Exception], message: str):
    if "A" in changes and changes["A"].dtype is FP4:
        changes = changes | {name: scales(512) for name in ("A_scale", "B_scale")}
    with pytest.raises(error, match=message):
        sum_call(**changes)


def test_debug_mode_checks_what_groups_have_of_k(monkeypatch):
    monkeypatch.setenv("QUACK_DEBUG", "1")
    with pytest.raises(ValueError, match="group 1 of cu_seqlens_k has K = 48, which is not a multiple of 32"):
        sum_call((96, 48, 48))
    with pytest.raises(ValueError, match="A_scale has 2 blocks along K, and the groups of cu_seqlens_k have 3"):
        sum_call(A_scale=scales(2 * 512))


def test_debug_mode_counts_the_blocks_of_groups(monkeypatch):
    monkeypatch.setenv("QUACK_DEBUG", "1")
    with pytest.raises(ValueError, match="A_scale has 3 row blocks, and the groups of cu_seqlens_m have 4"):
        ragged_call(A_scale=scales(3 * 512))


def test_one_scale_alone_is_refused():
    with quack.emulator.use("sm100", checks=()), pytest.raises(ValueError, match="B_scale is missing"):
        quack.gemm_act(
            torch.zeros(32, 64).to(E4M3), torch.zeros(16, 64).to(E4M3).mT, A_scale=quack.blocked_scales(scales(32, 2))
        )


def test_fp4_without_scales_is_refused():
    with quack.emulator.use("sm100", checks=()), pytest.raises(UnsupportedGemm, match="fp4_e2m1 inputs have no kernel"):
        quack.gemm(packed(32, 64), packed(16, 64).mT)


def test_an_output_over_its_scales_is_refused():
    memory = torch.zeros(32 * 16 * 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="out overlaps A_scale"):
        call(A_scale=memory[:512].view(E8M0), out=memory.view(torch.bfloat16).view(32, 16))


# ---- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", SCALED)
def test_kernels_are_those_of_tcgen05(inputs: str):
    for name, arch in ARCHES.items():
        config = replace(CONFIG, device_capacity=arch.capability[0])
        verdict = legality(spec_of(inputs, name, config))
        assert verdict.ok == bool(arch.execution.scaled), (name, verdict)
        if not verdict.ok:
            assert f"no kernel on {name}" in verdict.reason and "sm_100a" in verdict.alternative


def test_what_has_no_kernel():
    spec = spec_of("nvfp4")
    a, b, d, _ = spec.operands
    refused = {
        "K-major": replace(spec, operands=spec.operands._replace(b=replace(b, major=Major.OUTER))),
        "loaded by TMA only": replace(spec, adapter=GATHER_M),
        "A_idx picks single k": replace(spec, adapter=GATHER_K),
        "scales for 16 elements": replace(
            spec, operands=spec.operands._replace(a=replace(a, dtype=Dtype.E4M3), b=replace(b, dtype=Dtype.E4M3))
        ),
        "concat_layout": replace(spec, operands=spec.operands._replace(a=replace(a, is_concat=True))),
    }
    for reason, changed in refused.items():
        verdict = legality(changed)
        assert reason in str(verdict.reason) and verdict.alternative, (reason, verdict)
    assert legality(replace(spec, combine=STREAM_COMBINE)).ok and legality(replace(spec, adapter=GROUPED)).ok
    wide = spec_of("mxfp8 x mxfp4", config=replace(CONFIG, use_tma_gather=True))
    assert legality(wide).ok and legality(replace(wide, adapter=GATHER_M)).ok
    swapped = wide.operands._replace(
        a=replace(wide.operands.a, dtype=Dtype.WIDE_E2M1), b=replace(wide.operands.b, dtype=Dtype.E4M3)
    )
    assert legality(replace(wide, operands=swapped)).ok
    assert "spread out fp4" in str(legality(replace(wide, operands=swapped, adapter=GATHER_M)).reason)


@pytest.mark.parametrize("inputs", SCALED)
@pytest.mark.parametrize("adapter", [VARLEN_M, VARLEN_K, GATHER_M], ids=str)
@pytest.mark.parametrize("shape", [(8192, 4096, 4096), (16, 8192, 4096), (300, 72, 544)], ids=str)
def test_choices_for_ragged_problems_are_legal(inputs: str, adapter: str, shape: tuple[int, int, int]):
    cell = next(name for name, known in ADAPTERS.items() if known == adapter)
    base = base_spec(USUAL._replace(arch="sm_100a", inputs=inputs, adapter=cell))
    is_m = adapter != VARLEN_K
    assert legality(heuristics.choose(base, GemmShape(*shape, 8, is_ragged_m=is_m), 148)).ok


@pytest.mark.parametrize("inputs", SCALED)
def test_budgets_fit(inputs: str):
    """Everything the heuristics may choose: tensor memory has room for the scales, shared memory for every stage of them."""
    arch = ARCHES["sm_100a"]
    base = base_spec(USUAL._replace(arch=arch.name, inputs=inputs))
    found = set()
    for tile in tuning_of(arch.name).tiles_of(base):
        for cluster in tuning_of(arch.name).clusters:
            spec = with_tile(base, tile, cluster)
            if not legality(spec).ok:
                continue
            budget, (a, b) = budget_of(spec), scale_blocks(spec.operands, spec.config)
            used = budget.acc_stages * spec.config.tile_n + 4 * (a + b)
            assert used <= budget.tmem_columns <= 512 and budget.tmem_columns.bit_count() == 1
            assert budget.smem_bytes <= arch.execution.smem_bytes and budget.ab_stages >= 2
            assert budget.acc_stages == (1 if spec.config.tile_n == 256 else 2) and hides_drain(spec) == (
                budget.acc_stages == 2
            )
            found.add(spec.config.tile_n)
    assert found == {64, 128, 192, 256}


def test_blocks_of_tiles():
    assert blocks_of(129, 129, BlockScaling.MX) == (2, 2) and blocks_of(128, 64, BlockScaling.NV) == (1, 1)
    for inputs, along_k in (("mxfp8", 1), ("mxfp4", 2), ("nvfp4", 4)):
        for tile_n in (64, 128, 192, 256):
            spec = spec_of(inputs, config=replace(CONFIG, tile_m=256, tile_n=tile_n, cluster_m=2))
            assert scale_blocks(spec.operands, spec.config) == (along_k, along_k * (1 if tile_n <= 128 else 2))


@pytest.mark.parametrize("inputs", SCALED)
@pytest.mark.parametrize("shape", [(4096, 4096, 4096), (16, 8192, 4096), (300, 72, 544)], ids=str)
def test_choices_are_legal(inputs: str, shape: tuple[int, int, int]):
    base = base_spec(USUAL._replace(arch="sm_100a", inputs=inputs))
    assert legality(heuristics.choose(base, GemmShape(*shape), 148)).ok
