"""A grouped call as its function states it: which form every problem has, and the lists of operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import torch

from ..gemm_config import GemmConfig
from ..split_k import SplitKMode
from .call import Form, scalar_kind, signature_of
from .device import kernel_key
from .grouped_partials import PartialsMemory, Totals

Tensors = Sequence[torch.Tensor]
Families = dict[str, tuple[torch.Tensor, ...]]  # by operand, a tensor for each problem
Results = Union[str, tuple[Optional[str], ...]]  # operands and partials that a call returns, as a list each


SCALES = ("A_scale_list", "B_scale_list")  # of any shape


@dataclass(frozen=True)
class LaunchOptions:
    """What is decided for all problems of a launch; as in `GemmRequest`."""

    config: Optional[GemmConfig] = None
    dynamic: Optional[bool] = None  # None: if the problems differ in K
    split_k: Optional[int] = None  # None: 1
    split_k_mode: SplitKMode = SplitKMode.SERIAL


class GroupedCall(NamedTuple):
    """form, options: of each problem, alone. lists: operands of which every problem has its own; shared: the others, None where
    there is none. names: operands by the names of the caller's lists. totals: partials that the call combines."""

    form: Form
    options: tuple
    lists: Families
    shared: dict[str, Any]
    names: dict[str, str]
    launch: LaunchOptions
    results: Results
    totals: tuple[Totals, ...] = ()

    @property
    def problems(self) -> int:
        """How many."""
        return len(self.lists["A"])

    def operands(self, problem: int) -> dict[str, Any]:
        """Those of one problem, as its form takes them."""
        return {name: tensors[problem] for name, tensors in self.lists.items()} | self.shared

    def key(self) -> tuple:
        """Everything that a program depends on."""
        lists = [(name, *map(signature_of, tensors)) for name, tensors in self.lists.items()]
        shared = [(name, scalar_kind(value)) for name, value in self.shared.items()]
        return self.form, self.options, self.launch, *lists, *shared, kernel_key(self.lists["A"][0])

    def returned(self, families: Families, memory: Optional[PartialsMemory]) -> Any:
        """What the caller gets."""

        def one(name: Optional[str]) -> Optional[list[torch.Tensor]]:
            if name is None:
                return None
            if memory is not None and name in memory.lists:
                return list(memory.lists[name])
            return list(families.get(name, ()))

        return one(self.results) if isinstance(self.results, str) else tuple([one(name) for name in self.results])


def checked_lists(given: dict[str, Optional[Tensors]], vectors: tuple[str, ...] = ()) -> Families:
    """Lists that are given, one tensor for each of A_list; by the names of the caller. vectors: those of one dimension."""
    count, device = None, None
    lists: Families = {}
    for name, tensors in given.items():
        if tensors is None and name not in ("A_list", "B_list"):
            continue
        if tensors is None or isinstance(tensors, torch.Tensor) or not isinstance(tensors, Sequence):
            what = "None" if tensors is None else f"a {type(tensors).__name__}"
            raise TypeError(f"{name} is {what}, expected a list of tensors")
        count = len(tensors) if count is None else count
        if len(tensors) != count:
            raise ValueError(f"{name} has {len(tensors)} tensors and A_list has {count}: one for each problem")
        lists[name] = tuple(tensors)
    for name, family in lists.items():
        for index, tensor in enumerate(family):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name}[{index}] is a {type(tensor).__name__}, expected a torch.Tensor")
            wanted = 1 if name in vectors else 2
            if tensor.dim() != wanted and name not in SCALES:
                raise ValueError(
                    f"{name}[{index}] has {tensor.dim()} dimensions {tuple(tensor.shape)}, expected {wanted}"
                )
            device = tensor.device if device is None else device
            if tensor.device != device:
                raise ValueError(f"A_list[0] is on {device} and {name}[{index}] is on {tensor.device}")
    return lists


def grouped_call(
    form: Form,
    options: tuple,
    given: dict[str, tuple[str, Optional[Tensors]]],
    shared: dict[str, Any],
    launch: LaunchOptions,
    results: Results,
    totals: tuple[Totals, ...] = (),
    vectors: tuple[str, ...] = (),
) -> GroupedCall:
    """given: (operand, tensors or None) by the names of the caller's lists, A_list first. shared: the other operands."""
    lists = checked_lists({name: tensors for name, (_, tensors) in given.items()}, vectors)
    names = {name: operand for name, (operand, _) in given.items()}
    absent = {operand: None for name, operand in names.items() if name not in lists}
    families = {names[name]: tensors for name, tensors in lists.items()}
    return GroupedCall(form, options, families, absent | shared, names, launch, results, totals)


def with_scale_lists(
    given: dict[str, tuple[str, Optional[Tensors]]], A_scale_list: Optional[Tensors], B_scale_list: Optional[Tensors]
) -> dict[str, tuple[str, Optional[Tensors]]]:
    """`given` of `grouped_call`, and the scales of block-scaled A and B if there are any."""
    if A_scale_list is not None or B_scale_list is not None:
        given |= {"A_scale_list": ("A_scale", A_scale_list), "B_scale_list": ("B_scale", B_scale_list)}
    return given
