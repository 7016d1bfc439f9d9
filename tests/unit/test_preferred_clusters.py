"""Clusters of two shapes: what is legal, and what the heuristics make of larger clusters."""

from dataclasses import replace

import pytest

from quack.gemm_config import Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from quack.heuristics import model, split_k
from quack.runtime.legality import legality
from quack.runtime.residency import cluster_count
from quack.runtime.spec import GemmShape, GemmSpec
from quack.runtime.split_k import split_spec
from quack.runtime.symmetric import symmetric_spec
from quack.split_k import SplitKMode

PAIR = GemmConfig(256, 128, cluster_m=4, fallback_cluster=(2, 1))
ONE = GemmConfig(128, 128, cluster_m=2, cluster_n=2, fallback_cluster=(1, 2))


def spec_of(config: GemmConfig, arch: str = "sm_100a") -> GemmSpec:
    a, b, d = (OperandSpec(Dtype.BF16, 2, transposed, Major.INNER) for transposed in (False, True, False))
    return GemmSpec(arch, OperandSpecs(a, b, d), config).configured(config)


@pytest.mark.parametrize(
    "config",
    [
        PAIR,
        ONE,
        replace(ONE, fallback_cluster=(1, 1)),
        replace(ONE, is_dynamic_persistent=True),
        replace(PAIR, is_persistent=False),
    ],
    ids=str,
)
def test_legal(config: GemmConfig):
    for arch in ("sm_100a", "sm_103a"):
        assert legality(spec_of(config, arch)).ok, legality(spec_of(config, arch))
    assert "/" in str(config) and "/" not in str(replace(config, fallback_cluster=None))


@pytest.mark.parametrize(
    "config, reason",
    [
        (replace(PAIR, fallback_cluster=(1, 1)), "odd number along M"),
        (replace(PAIR, fallback_cluster=(4, 1)), "no smaller cluster that divides"),
        (replace(PAIR, fallback_cluster=(1, 2)), "no smaller cluster that divides"),
        (replace(ONE, fallback_cluster=(4, 1)), "no smaller cluster that divides"),
        (replace(ONE, fallback_cluster=(3, 1)), "no smaller cluster that divides"),
    ],
    ids=str,
)
def test_refused(config: GemmConfig, reason: str):
    verdict = legality(spec_of(config))
    assert reason in str(verdict.reason)
    assert verdict.alternative is not None


def test_other_kernels_launch_one_shape():
    for arch, cluster_m in (("sm_90a", 2), ("sm_120a", 1)):
        config = GemmConfig(128, 128, cluster_m=cluster_m, fallback_cluster=(1, 1))
        assert "clusters of one shape only" in str(legality(spec_of(config, arch)).reason)


def test_what_waits_or_pairs_needs_one_shape():
    for mode in SplitKMode:
        assert legality(split_spec(spec_of(replace(PAIR, fallback_cluster=None)), mode)).ok
        assert "start in order" in str(legality(split_spec(spec_of(PAIR), mode)).reason)
    config = GemmConfig(128, 128, cluster_m=2, fallback_cluster=(1, 1))
    assert legality(symmetric_spec(spec_of(replace(config, fallback_cluster=None)))).ok
    assert "mirrored pairs" in str(legality(symmetric_spec(spec_of(config))).reason)
    drawn_from_counter = replace(spec_of(replace(PAIR, is_dynamic_persistent=True)), target="sm_103a")
    assert not drawn_from_counter.cancels and not legality(drawn_from_counter).ok


def test_the_heuristics_leave_no_sm_idle():
    found = 0
    for m, n, k in ((8192, 8192, 8192), (4096, 4096, 4096), (8192, 1024, 512), (1024, 8192, 2048), (200, 200, 200)):
        shape = GemmShape(m, n, k)
        for chosen in (
            model.choose(spec_of(GemmConfig()), shape, 148),
            split_k.choose(spec_of(GemmConfig()), shape, 148).spec,
        ):
            config = chosen.config
            assert (config.fallback_cluster is not None) == (config.cluster_m * config.cluster_n > 2)
            found += config.fallback_cluster is not None
            assert legality(chosen).ok
    assert found
    whole = model.with_fallback(spec_of(replace(PAIR, fallback_cluster=None))).config
    assert whole.fallback_cluster == (2, 1) and cluster_count(whole, 148) == 37
    assert cluster_count(replace(whole, fallback_cluster=None), 148) < 37


def test_split_parts_have_clusters_of_one_shape():
    chosen = split_k.choose_for(spec_of(GemmConfig()), GemmShape(512, 512, 65536), 148, None, 8, SplitKMode.SERIAL)
    assert chosen.config.fallback_cluster is None and legality(split_spec(chosen, SplitKMode.SERIAL)).ok
