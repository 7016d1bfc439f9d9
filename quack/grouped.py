"""Grouped GEMMs: a list of problems, each with an M, N, K and strides of its own, in one launch and without a copy."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import is_
from typing import Any, Optional

import torch

from .gemm_config import GemmConfig
from .gemm_interface import (
    COMPILING,
    Scalar,
    _check_out_dtype,
    _output,
    _split_scalar,
    gemm_ref,
    writes_only,
)
from .runtime.call import scalar_kind, signature_of
from .runtime.debug import is_debugging
from .runtime.device import EMULATED, is_capturing, kernel_key, raw_stream
from .runtime.grouped import (
    GroupedOptions,
    GroupedProgram,
    GroupedTensors,
    Tensors,
    data_ptr,
    prepare_grouped,
    problem_request,
)
from .runtime.user_epilogue import grouped_terms
from .split_k import SplitKMode

MAX_PROGRAMS = 256

_programs: OrderedDict[tuple, GroupedProgram] = OrderedDict()


def gemm_grouped(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    beta: Scalar = 1.0,
    fast_accum: bool = False,
    config: Optional[GemmConfig] = None,
    epilogue: Optional[Any] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
) -> list[torch.Tensor]:
    """out_i = alpha * A_i @ B_i + beta * C_i + bias_i for every i. Returns the outputs, allocated if not given.

    Shapes: A_i (M_i, K_i), B_i (K_i, N_i), C_i and out_i (M_i, N_i), bias_i (N_i,); any extent may be 0. Dtypes, strides
    and errors as of `gemm`; alpha and beta are shared. Nothing is padded or packed: the kernel reads a device table of
    addresses. Problems whose majors or dtypes differ run in a launch for each such kind. out_list[i] may be C_list[i]
    (in place), and outs may be disjoint column slices of one matrix; any other overlap is an error.

    dynamic_scheduler: draw tiles from a counter; without it that is done where the K_i differ. config: run exactly this one.
    split_k, split_k_mode: as of `gemm`, the same number of parts for all problems; None is 1.
    The first call with new addresses writes the table; see `grouped_plan` for calls that repeat.
    epilogue: as in `gemm`, pointwise and with Scalar and Integer ports only, which all problems share.
    """
    if epilogue is not None and torch.compiler.is_compiling():
        eager = torch.compiler.disable(gemm_grouped, reason=COMPILING)
        return eager(
            A_list, B_list, out_list, alpha, out_dtype, dynamic_scheduler, C_list=C_list, bias_list=bias_list, beta=beta,
            fast_accum=fast_accum, config=config, epilogue=epilogue, split_k=split_k, split_k_mode=split_k_mode,
        )  # fmt: skip
    tensors = _collect(A_list, B_list, out_list, C_list, bias_list, out_dtype)
    options = GroupedOptions(
        alpha, beta, fast_accum, config, dynamic_scheduler or None, split_k=split_k, split_k_mode=split_k_mode
    )
    if epilogue is not None and tensors.A:
        options = replace(options, epilogue=grouped_terms(epilogue, problem_request(tensors, options, 0)))
    if torch.compiler.is_compiling():
        _run_opaque(tensors, options)
    elif tensors.A:
        _program(tensors, options).run(tensors, _ports(tensors, options))
    return list(tensors.out)


def gemm_grouped_out(A_list: Tensors, B_list: Tensors, out_list: Tensors, **options: Any) -> None:
    """`gemm_grouped` into given outputs."""
    gemm_grouped(A_list, B_list, out_list, **options)


def gemm_grouped_ref(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    *,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    beta: Scalar = 1.0,
) -> list[torch.Tensor]:
    """`gemm_grouped` in plain torch, computed in fp32: the oracle."""
    outs = []
    for i, (A, B) in enumerate(zip(A_list, B_list, strict=True)):
        bias = None if bias_list is None else bias_list[i]
        result = gemm_ref(A, B, None, bias, alpha, torch.float32)
        if C_list is not None:
            result = result + beta * C_list[i].float()
        dtype = out_dtype or (torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype)
        outs.append(result.to(dtype) if out_list is None else out_list[i].copy_(result))
    return outs


def grouped_plan(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    dynamic_scheduler: bool = False,
    *,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    beta: Scalar = 1.0,
    fast_accum: bool = False,
    config: Optional[GemmConfig] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
) -> "GroupedPlan":
    """`gemm_grouped` prepared for calls that repeat; arguments as there. Launches nothing yet."""
    tensors = _collect(A_list, B_list, out_list, C_list, bias_list, out_dtype)
    options = GroupedOptions(
        alpha, beta, fast_accum, config, dynamic_scheduler or None, split_k=split_k, split_k_mode=split_k_mode
    )
    return GroupedPlan(tensors, options)


class GroupedPlan:
    """Callable: `plan(A_list, B_list)` computes into the outputs that the plan holds, and returns them.

    Other tensors than those planned may be passed if they have the same shapes, strides, dtypes and alignment; out, C and
    bias may be replaced likewise. With tensors at known addresses a call is one launch (of each kind of problem), else the
    tables are written first. Calls can be captured in CUDA graphs; replays see new contents, not new addresses.

    The same tensor objects count as being where they were: after `tensor.data = ...`, `set_` or `resize_` pass them to a new
    plan, or to `gemm_grouped`. QUACK_DEBUG=1, set when the plan is made, has every call compare the addresses.
    """

    def __init__(self, tensors: GroupedTensors, options: GroupedOptions):
        self.options = options
        self._program = _program(tensors, options) if tensors.A else GroupedProgram([], [])
        self._signatures = [signature_of(tensor) for tensor in tensors.flat()]
        self._ports = _ports(tensors, options)
        self._is_debugging = is_debugging()
        self._calls: Optional[list[tuple[Callable[..., None], tuple[Any, ...]]]] = (
            None  # if all is known to be in place
        )
        self._stream = 0  # on which it is
        self._remember(tensors)

    def __call__(
        self,
        A_list: Optional[Tensors] = None,
        B_list: Optional[Tensors] = None,
        out_list: Optional[Tensors] = None,
        *,
        C_list: Optional[Tensors] = None,
        bias_list: Optional[Tensors] = None,
    ) -> list[torch.Tensor]:
        """Run on the current stream."""
        held = self._tensors
        if self._calls is not None and out_list is None and C_list is None and bias_list is None:
            # The path of calls that repeat: keep it short.
            inputs = [*(held.A if A_list is None else A_list), *(held.B if B_list is None else B_list)]
            if (
                len(inputs) == len(self._inputs)
                and all(map(is_, inputs, self._inputs))
                and not (self._is_debugging and list(map(data_ptr, inputs)) != self._pointers)
                and raw_stream(self._device) == self._stream
                and not is_capturing(self._device)
            ):
                for call, arguments in self._calls:
                    call(*arguments)
                return list(held.out)
        given = {"A": A_list, "B": B_list, "out": out_list, "C": C_list, "bias": bias_list}
        tensors = held._replace(**{name: tuple(family) for name, family in given.items() if family is not None})
        self._check(tensors)
        self._remember(tensors)
        bound = self._program.run(tensors, self._ports)
        if tensors.A and not self._program.copies and not is_capturing(self._device):
            self._calls = [(launch.call, launch.arguments(self._ports, tensors)) for launch in bound]
            self._stream = raw_stream(self._device)
        return list(tensors.out)

    def _remember(self, tensors: GroupedTensors) -> None:
        self._tensors = tensors
        self._inputs = [*tensors.A, *tensors.B]
        self._pointers = list(map(data_ptr, self._inputs))
        self._device = tensors.A[0].get_device() if tensors.A else EMULATED
        self._calls = None

    def _check(self, tensors: GroupedTensors) -> None:
        """Same number of tensors as planned, each like the one it replaces."""
        for name, planned, given in zip(GroupedTensors._fields, self._tensors, tensors):
            if (planned is None) != (given is None) or len(planned or ()) != len(given or ()):
                raise ValueError(
                    f"{name}_list has {len(given or ())} tensors, the plan was made for {len(planned or ())}"
                )
        for index, (tensor, signature) in enumerate(zip(tensors.flat(), self._signatures)):
            if signature_of(tensor) != signature:
                names = [f"{n}_list[{i}]" for n, f in zip(GroupedTensors._fields, tensors) for i in range(len(f or ()))]
                raise ValueError(
                    f"{names[index]} is {signature_of(tensor)} (shape, strides, dtype, device, address mod 16), the plan was "
                    f"made for {signature}; make a new plan"
                )


def _collect(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors],
    C_list: Optional[Tensors],
    bias_list: Optional[Tensors],
    out_dtype: Optional[torch.dtype],
) -> GroupedTensors:
    """Lists of equal length, with fresh outputs if none are given."""
    lists = {"A_list": A_list, "B_list": B_list, "out_list": out_list, "C_list": C_list, "bias_list": bias_list}
    families: dict[str, Any] = {}
    for name, tensors in lists.items():
        if tensors is not None and (isinstance(tensors, torch.Tensor) or not isinstance(tensors, Sequence)):
            raise TypeError(f"{name} is a {type(tensors).__name__}, expected a list of tensors")
        families[name] = None if tensors is None else tuple(tensors)
        if tensors is None and name in ("A_list", "B_list"):
            raise TypeError(f"{name} is None, expected a list of tensors")
        if tensors is not None and len(tensors) != len(A_list):
            raise ValueError(f"{name} has {len(tensors)} tensors and A_list has {len(A_list)}: one for each problem")
    for name, family in families.items():
        for index, tensor in enumerate(family or ()):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name}[{index}] is a {type(tensor).__name__}, expected a torch.Tensor")
            wanted = 1 if name == "bias_list" else 2
            if tensor.dim() != wanted:
                raise ValueError(
                    f"{name}[{index}] has {tensor.dim()} dimensions {tuple(tensor.shape)}, expected {wanted}"
                )
            if tensor.device != A_list[0].device:
                raise ValueError(f"A_list[0] is on {A_list[0].device} and {name}[{index}] is on {tensor.device}")
    if out_list is None:
        outs = tuple(_output(a, b, out_dtype) for a, b in zip(A_list, B_list))
    else:
        outs = families["out_list"]
        for out in outs:
            _check_out_dtype(out, out_dtype)
    return GroupedTensors(families["A_list"], families["B_list"], outs, families["C_list"], families["bias_list"])


def _program(tensors: GroupedTensors, options: GroupedOptions) -> GroupedProgram:
    """The program for such tensors, from the cache if there was one."""
    key = (
        *map(signature_of, tensors.flat()), tensors.C is None, tensors.bias is None, scalar_kind(options.alpha),
        scalar_kind(options.beta), options.fast_accum, options.config, options.dynamic,
        tuple(term.signature() for term in options.epilogue),
        options.split_k, options.split_k_mode,
        kernel_key(tensors.A[0]),
    )  # fmt: skip
    program = _programs.get(key)
    if program is None:
        program = prepare_grouped(tensors, options)
        _programs[key] = program
        if len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
    return program


def _ports(tensors: GroupedTensors, options: GroupedOptions) -> Optional[tuple[Any, ...]]:
    """Values of the epilogue ports; the vectors among them only mark their places."""
    return problem_request(tensors, options, 0).port_values() if tensors.A else None


# torch.compile sees one opaque op that mutates the outputs.
@torch.library.custom_op("quack::gemm_grouped_out", mutates_args={"out_list"})
def _grouped_op(
    A_list: list[torch.Tensor],
    B_list: list[torch.Tensor],
    out_list: list[torch.Tensor],
    C_list: list[torch.Tensor],
    bias_list: list[torch.Tensor],
    alpha: float,
    beta: float,
    alpha_tensor: Optional[torch.Tensor],
    beta_tensor: Optional[torch.Tensor],
    fast_accum: bool,
    dynamic: bool,
    split_k: Optional[int],
    split_k_mode: str,
) -> None:
    gemm_grouped(
        A_list,
        B_list,
        out_list,
        alpha if alpha_tensor is None else alpha_tensor,
        dynamic_scheduler=dynamic,
        C_list=C_list or None,
        bias_list=bias_list or None,
        beta=beta if beta_tensor is None else beta_tensor,
        fast_accum=fast_accum,
        split_k=split_k,
        split_k_mode=SplitKMode(split_k_mode),
    )


_grouped_op.register_fake(writes_only)


def _run_opaque(tensors: GroupedTensors, options: GroupedOptions) -> None:
    alpha, alpha_tensor = _split_scalar(options.alpha)
    beta, beta_tensor = _split_scalar(options.beta)
    lists = [list(family or ()) for family in tensors]
    scalars = (alpha, beta, alpha_tensor, beta_tensor)
    split = (options.split_k, options.split_k_mode.value)
    _grouped_op(*lists, *scalars, options.fast_accum, bool(options.dynamic), *split)
