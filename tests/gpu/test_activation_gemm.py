"""GEMMs with an activation in the epilogue, on the GPU."""

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from tests.epilogue_act_cases import DYNAMIC, PINGPONG, WIDE, ActCase, Backward, Forward, backward_cases, forward_cases

TILES = (PINGPONG, DYNAMIC, WIDE, GemmConfig(128, 192, pingpong=True), GemmConfig(256, 128))
EXPERTS = (1000, 0, 4096, 1, 777, 2048)
BIG = [
    ActCase(name, store, m=2048, n=1552, k=1032, bias=True, config=config)
    for name in ("gelu_tanh_approx", "swiglu")
    for store in (True, False)
    for config in (None, *(tile for tile in TILES if tile.tile_n != 192 or name == "swiglu"))
] + [
    ActCase("swiglu", m=4000, n=1554, k=520, odd=True),
    ActCase("swiglu", sizes=EXPERTS, n=1536, k=520),
    ActCase("swiglu", False, sizes=EXPERTS, pool=3000, n=1536, k=520),
]
BIG_BACKWARD = [
    ActCase(name, m=2048, n=1552, k=1032, scale="fp32", reduce=config is None or not config.pingpong, config=config)
    for name in ("gelu_tanh_approx", "swiglu")
    for config in (None, *(tile for tile in TILES if tile.tile_n != 192))
] + [
    # Many tiles with little to multiply: ping-pong warpgroups drain one behind the other.
    ActCase("swiglu", m=8192, n=4096, k=64, config=DYNAMIC),
    ActCase("gelu_tanh_approx", m=8192, n=4096, k=64, c="fp32", out="fp32", config=PINGPONG),
    ActCase("swiglu", sizes=EXPERTS, pool=3000, n=1536, k=520, scale="fp32", reduce=True),
]


@pytest.mark.parametrize("case", forward_cases() + BIG, ids=str)
def test_forward(case: ActCase):
    t = Forward(case, "cuda")
    t.run()
    torch.cuda.synchronize()
    t.verify()


@pytest.mark.parametrize("case", backward_cases() + BIG_BACKWARD, ids=str)
def test_backward(case: ActCase):
    t = Backward(case, "cuda")
    t.run()
    torch.cuda.synchronize()
    t.verify()


@pytest.mark.parametrize("name", ["silu", "swiglu"])
def test_gradient_in_place(name: str):
    t = Backward(ActCase(name, m=1000, n=520), "cuda", in_place=True)
    t.run()
    torch.cuda.synchronize()
    t.verify()


@pytest.mark.parametrize("name", ["gelu_tanh_approx", "swiglu"])
def test_compiled(name: str):
    """torch.compile, the default backend, with and without stored pre-activation, forward and backward."""

    def layer(a, b, x, scale):
        preact, postact = quack.gemm_act(a, b, activation=name)
        _, alone = quack.gemm_act(a, b, activation=name, store_preact=False)
        return preact, postact, alone, *quack.gemm_dact(a, b, x, name, colvec_scale=scale, colvec_reduce=True)

    columns = 512 if name == "swiglu" else 256
    a, b = torch.randn(300, 136, device="cuda").bfloat16(), torch.randn(256, 136, device="cuda").bfloat16().mT
    x, scale = torch.randn(300, columns, device="cuda").bfloat16(), torch.rand(300, device="cuda")
    for got, expected in zip(torch.compile(layer, fullgraph=True)(a, b, x, scale), layer(a, b, x, scale)):
        assert torch.equal(got, expected)
