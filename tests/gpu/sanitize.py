"""A few cases of every list in `tests.families.FAMILIES`, for the sanitizer: adapters, schedules, commit policies, epilogues.

compute-sanitizer --tool memcheck python3 tests/gpu/sanitize.py [--every N] [FAMILY ...]
compute-sanitizer --tool racecheck python3 tests/gpu/sanitize.py [--every N] [FAMILY ...]

Run it once without the sanitizer first: compiling under it is slow.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

from quack.gemm_config import GemmConfig  # noqa: E402
from tests.cases import Case  # noqa: E402
from tests.families import FAMILIES, run_dense  # noqa: E402

SYNCHRONISATION = (
    # Multicast, the C ring, bias in shared memory, TMA stores.
    Case("cooperative cluster", 300, 264, 200, c="bf16", bias="fp32", beta=0.5, config=GemmConfig(128, 128)),
    # Turns between warpgroups, the work ring, the tile counter.
    Case("ping-pong dynamic", 520, 1032, 136,
         config=GemmConfig(64, 64, pingpong=True, is_dynamic_persistent=True, cluster_m=1, cluster_n=2)),
    # Element access, one tile a cluster, aligned copies of the inputs.
    Case("direct stores", 129, 333, 65, bias="bf16", config=GemmConfig(128, 96, is_persistent=False, cluster_m=1)),
    # A through registers.
    Case("tf32, M-major", 200, 136, 104, a="fp32", b="fp32", out="fp32", a_major="m", config=GemmConfig(128, 128)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--every", type=int, default=12, help="case of a family (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if "dense" in arguments.families:
        for case in SYNCHRONISATION:
            run_dense(case, arguments.device)
            print("ok", case, flush=True)
    for name in arguments.families:
        family = FAMILIES[name]
        for case in list(family.cases())[:: arguments.every]:
            torch.manual_seed(0)
            family.run(case, arguments.device)
            print("ok", name, case, flush=True)


if __name__ == "__main__":
    main()
