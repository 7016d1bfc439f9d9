"""Rules about registers are those of the kernel that has them: what one arch refuses another compiles without spills."""

from dataclasses import replace

import pytest

from quack.activation import Activation, GatedActivation
from quack.gemm_config import Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from quack.gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from quack.runtime.compile import kernel_facts
from quack.runtime.legality import legality
from quack.runtime.spec import VARLEN_M, GemmSpec
from quack.runtime.split_k import split_spec
from quack.split_k import SplitKMode

BACKWARD = "quack.epilogue.activation_backward:"
BF16, FP32 = Dtype.BF16, Dtype.FP32


def gradient(arch: str, config: GemmConfig, gated: bool = False, elements: str = "", adapter: str = "") -> GemmSpec:
    """Of an activation, with postact, scale and row sums. elements: which of c, d, p(ostact) are accessed by element."""

    def matrix(name: str, dtype: Dtype) -> OperandSpec:
        return OperandSpec(dtype, 2, False, Major.INNER, dtype.bytes if name in elements else 16)

    wide = FP32 if gated else BF16
    ports = (
        PortSpec(PortKind.TILE_OUTPUT, PortSource.DEVICE, layout=matrix("p", BF16)),
        PortSpec(PortKind.COL_VECTOR, PortSource.DEVICE, FP32, 1),
        PortSpec(PortKind.ROW_PARTIALS, PortSource.DEVICE, FP32, 2),
    )
    statics = {"activation": GatedActivation.SWIGLU, "pairs": BF16, "gradient_pairs": BF16} if gated else {}
    statics = statics or {"activation": Activation.GELU_TANH_APPROX}
    op = EpilogueOpSpec(BACKWARD + ("GateBackward" if gated else "ActivateBackward"), ports, tuple(statics.items()))
    a = OperandSpec(BF16, 2, False, Major.INNER)
    b = OperandSpec(BF16, 3 if adapter else 2, True, Major.INNER)
    operands = OperandSpecs(a, b, matrix("d", wide), matrix("c", wide))
    spec = GemmSpec(arch, operands, config, (op,)).configured(config)
    return replace(spec, adapter=adapter) if adapter else spec


TILE, NARROW = GemmConfig(128, 128, cluster_m=1), GemmConfig(128, 64, cluster_m=1)


def test_hopper_keeps_its_own():
    assert "too few registers for the gradient" in str(legality(gradient("sm_90a", TILE)).reason)
    for arch in ("sm_100a", "sm_103a"):
        assert legality(gradient(arch, TILE)).ok and legality(gradient(arch, NARROW)).ok
    for arch in ("sm_120a", "sm_121a"):
        assert legality(gradient(arch, NARROW)).ok


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "spec",
    [
        gradient("sm_100a", TILE),
        gradient("sm_100a", GemmConfig(256, 256, cluster_m=2), gated=True),
        gradient("sm_100a", NARROW, elements="cd"),
        gradient("sm_100a", GemmConfig(128, 192, cluster_m=1), elements="p", adapter=VARLEN_M),
        gradient("sm_100a", GemmConfig(256, 256, cluster_m=2), elements="cdp", adapter=VARLEN_M),
        gradient("sm_120a", NARROW, gated=True, elements="cdp"),
        gradient("sm_100a", TILE, gated=True, elements="cdp", adapter=VARLEN_M),
        gradient("sm_103a", GemmConfig(128, 256, cluster_m=1), gated=True),
        gradient("sm_120a", GemmConfig(64, 128, cluster_m=1)),
    ],
    ids=lambda spec: f"{spec.arch} {spec.config}",
)
def test_what_used_to_be_refused_or_to_spill(spec: GemmSpec):
    assert legality(spec).ok, legality(spec)
    assert kernel_facts(spec)["spill_bytes"] == 0


def test_what_spills_is_refused():
    whole = gradient("sm_120a", NARROW, True, "cd", VARLEN_M)
    assert legality(whole).ok and "ragged rows" in str(legality(split_spec(whole, SplitKMode.SERIAL)).reason)
