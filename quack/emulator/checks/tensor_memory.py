"""Tensor memory that its CTA has not freed when it exits. Other misuse of allocations is an error at once (`Misuse`)."""

from typing import Any

from ..errors import CheckFailed
from ..observer import Observer


class TensorMemoryLeaks(Observer):
    """Remembers where the allocations were made."""

    def start(self, machine: Any) -> None:
        self.sites: dict[tuple[Any, int], str] = {}

    def tensor_alloc(self, warp: Any, cta: Any, column: int, count: int) -> None:
        self.sites[cta, column] = f"{warp}, PTX line {warp.instruction.line}: {warp.instruction}"

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            held = cta.tensor.allocations if cta.tensor is not None else {}
            for column, count in held.items():
                raise CheckFailed(
                    f"tensor memory leak: CTA ({cta.index.x},{cta.index.y},{cta.index.z}) exits with columns [{column}, "
                    f"{column + count}) allocated, by {self.sites.get((cta, column))}"
                )
            self.sites = {key: site for key, site in self.sites.items() if key[0] is not cta}
