"""Every fence, wait, arrival and byte count of a real kernel is there for a reason: without it, some checker complains.

The PTX of quack's own GEMM for sm_90a is changed in one line at a time, and run on a problem where stages are reused.
"""

import functools
import re
from collections.abc import Callable

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from tests.mutants import Subject, mutants

CONFIGS = {
    "cooperative, cluster 2x1": GemmConfig(128, 256, cluster_m=2),
    "pingpong with C": GemmConfig(128, 64, cluster_m=1, pingpong=True),
    "gathered": GemmConfig(128, 256, cluster_m=1),
}
SHAPES = {
    "cooperative, cluster 2x1": (256, 512, 192),
    "pingpong with C": (256, 256, 128),
    "gathered": (256, 256, 340),
}
WAITS = {"cooperative, cluster 2x1": 4, "pingpong with C": 7, "gathered": 4}  # that are needed

# What to look for in a line, and what to put there.
MUTATIONS: dict[str, tuple[str, Callable[[re.Match[str]], str]]] = {
    "no fence": (r"(@\S+\s+)?(fence\.proxy\.async|fence\.mbarrier_init|wgmma\.fence).*", lambda m: ""),
    "no barrier": (r"(@\S+\s+)?(bar\.sync|barrier\.cluster\.wait).*", lambda m: ""),
    "no group": (r"(@\S+\s+)?(wgmma|cp\.async\.bulk)\.commit_group.*", lambda m: ""),
    "no wait for a group": (r"(@\S+\s+)?(wgmma|cp\.async\.bulk)\.wait_group.*", lambda m: ""),
    "wait for fewer groups": (r"(.*\.wait_group\S*\s+)(\d+);", lambda m: f"{m[1]}{int(m[2]) + 1};"),
    "no arrival": (r"(@\S+\s+)?(cp\.async\.)?mbarrier\.arrive.*", lambda m: ""),
    "more bytes": (r"(mbarrier\.arrive\.expect_tx.*), (%\w+);", lambda m: _plus(m, 16)),
    "fewer bytes": (r"(mbarrier\.arrive\.expect_tx.*), (%\w+);", lambda m: _plus(m, -16)),
    "more arrivals": (r"(mbarrier\.init.*), (%\w+);", lambda m: _plus(m, 1)),
    "fewer registers given back": (r"setmaxnreg\.dec.*", lambda m: ""),
}
WAIT = r"mbarrier\.try_wait\S*\s+([%\w]+),.*"


def _plus(found: re.Match[str], amount: int) -> str:
    return f"{{ .reg .b32 changed; add.s32 changed, {found[2]}, {amount}; {found[1]}, changed; }}"


class Gemm(Subject):
    """One GEMM that runs with changed PTX."""

    def __init__(self, name: str) -> None:
        super().__init__(self.multiply)
        self.config = CONFIGS[name]
        m, n, k = SHAPES[name]
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.out = (
            torch.randn(*shape, generator=generator).bfloat16() for shape in ((m, k), (k, n), (m, n))
        )
        self.c = torch.randn(m, n, generator=generator).bfloat16() if "C" in name else None
        self.expected = self.a.double() @ self.b.double() + (self.c.double() if self.c is not None else 0)
        self.ragged: dict[str, torch.Tensor] = {}
        if name == "gathered":  # the columns of A in reverse order, in a short group and a long one
            columns, cut = torch.arange(k - 1, -1, -1), 40
            self.a = self.a.T.contiguous().T
            self.ragged = {"cu_seqlens_k": torch.tensor([0, cut, k]).int(), "A_idx": columns.int()}
            parts = slice(0, cut), slice(cut, k)
            self.expected = torch.stack([self.a.double()[:, columns[part]] @ self.b.double()[part] for part in parts])
            self.out = torch.zeros(2, m, n).bfloat16()

    def multiply(self, schedule: str = "eager") -> None:
        with quack.emulator.use("sm90", schedule=schedule, checks=("all", "refills"), sms=2):
            quack.gemm_tuned.fn(self.a, self.b, self.out, C=self.c, config=self.config, **self.ragged)


@functools.cache
def subject(name: str) -> Gemm:
    return Gemm(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernel_is_silent(name: str, monkeypatch: pytest.MonkeyPatch):
    it = subject(name)
    for schedule in ("eager", "latest", "random:1"):
        it.run(monkeypatch, schedule)
        torch.testing.assert_close(it.out.double(), it.expected, atol=0.15, rtol=0.01)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_mutant_is_caught(name: str, mutation: str, monkeypatch: pytest.MonkeyPatch):
    it = subject(name)
    if not it.ptx:
        it.run(monkeypatch)
    changed = list(mutants(it.ptx, *MUTATIONS[mutation]))
    if mutation == "more arrivals":  # one barrier of each ring is enough
        changed = changed[::4]
    assert changed
    assert [line for line, ptx in changed if it.survives(monkeypatch, ptx)] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_waits_that_are_left_out_are_caught(name: str, monkeypatch: pytest.MonkeyPatch):
    """All but those at the end of a producer, of which a cluster needs the last and a single CTA none."""
    it = subject(name)
    if not it.ptx:
        it.run(monkeypatch)
    changed = list(mutants(it.ptx, WAIT, lambda m: f"setp.eq.b32 {m[1]}, 0, 0;"))
    survivors = [line for line, ptx in changed if it.survives(monkeypatch, ptx)]
    assert len(changed) - len(survivors) == WAITS[name]
