"""Three small GEMMs for the sanitizer; between them they use every synchronisation of the kernel.

compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py
compute-sanitizer --tool racecheck python3 tests/gpu/sanitize.py

Run it once without the sanitizer first: compiling under it is slow.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from quack.gemm_config import GemmConfig  # noqa: E402
from quack.gemm_interface import gemm_tuned  # noqa: E402
from tests.cases import Case, operands  # noqa: E402
from tests.reference import check, reference  # noqa: E402

CASES = (
    # Multicast, the C ring, bias in shared memory, TMA stores.
    Case("cooperative cluster", 300, 264, 200, c="bf16", bias="fp32", beta=0.5, config=GemmConfig(128, 128)),
    # Turns between warpgroups, the work ring, the tile counter.
    Case("ping-pong dynamic", 520, 1032, 136,
         config=GemmConfig(64, 64, pingpong=True, is_dynamic_persistent=True, cluster_m=1, cluster_n=2)),
    # Element access, one tile a cluster, aligned copies of the inputs.
    Case("direct stores", 129, 333, 65, bias="bf16", config=GemmConfig(128, 96, is_persistent=False, cluster_m=1)),
)  # fmt: skip


def main() -> None:
    for case in CASES:
        t = operands(case)
        gemm_tuned.fn(t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, alpha=t.alpha, beta=t.beta, config=case.config)
        torch.cuda.synchronize()
        check(case, t.out.tensor, reference(case, t, t.C))
        print("ok", case)


if __name__ == "__main__":
    main()
