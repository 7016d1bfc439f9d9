"""What the roofline says of a tile is what its compiled kernel does: the same flops and bytes, about as many instructions."""

import pytest

from quack.gemm_config import Dtype
from quack.roofline import Problem, Resource, count, report, roof
from quack.roofline.cli import parse_config
from quack.roofline.count import Launch

ESTIMATED = (Resource.ISSUE,)
BAND = 0.25  # of the estimate: instructions of a plain epilogue

CASES = {
    "sm_90a": ("128x256x64cl2x1", {}),
    "sm_100a": ("256x256x64cl2x1", {}),
    "sm_100a, one CTA, C": ("128x128cl1x1", {"has_c": True}),
    "sm_120a": ("128x128x64pp", {}),
    "sm_120a, cooperative, fp32": ("256x64x32", {"dtype": Dtype.FP16, "out": Dtype.FP32}),
}


@pytest.mark.parametrize("name", CASES)
def test_counted_work_is_the_modelled(name: str):
    tile, options = CASES[name]
    arch = name.partition(",")[0]
    problem = Problem(arch, 512, 512, 256, **options)
    spec, shape = problem.configured(parse_config(tile)(arch))
    found = roof(spec, shape, count(problem, spec))
    compared = 0
    for line in found.lines:
        if line.counted is None:
            assert line.resource is Resource.HBM
        elif line.resource in ESTIMATED:
            assert line.counted.k_tile == 0
            if not problem.has_c:
                assert line.counted.tile == pytest.approx(line.modelled.tile, rel=BAND)
        elif line.resource in CONFLICTING and problem.out is Dtype.FP32:
            assert line.counted.tile >= line.modelled.tile
        else:
            assert line.counted == line.modelled, line.resource
            compared += line.counted.k_tile > 0 or line.counted.tile > 0
    assert compared >= 6
    assert max(map(len, report(found).splitlines())) <= 110


CONFLICTING = (
    Resource.SMEM_CONFLICTS,
    Resource.SMEM,
    Resource.SMEM_ONE_PORT,
)  # fp32 subtiles are stored with bank conflicts


def test_counts_of_few_k_tiles_are_those_of_many():
    """Work is the same for every k tile and every tile, whichever launches tell."""
    problem = Problem("sm_90a", 512, 512, 256)
    spec, _ = problem.configured(parse_config("64x64ppcl1x1")("sm_90a"))
    assert count(problem, spec) == count(problem, spec, (Launch(2, 3), Launch(5, 3), Launch(5, 9)))
