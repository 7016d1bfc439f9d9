"""Epilogues and commit policies that users define, as terms of a request."""

import dataclasses
import hashlib
import sys
import types
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

from ..gemm_port import PortKind
from .code_reader import is_frozen
from .epilogue import Allocated, Port, Term
from .plan import GemmRequest
from .pointwise import PointwiseEpilogue, PointwiseFactory, pointwise
from .spec import UnsupportedGemm
from .user_code import Content, check_static, content_of, register, typed_repr

PROTOCOL, PLAN = "quack.epilogue.protocol", "quack.gemm_epilogue_plan"
EXPECTED = (
    "an instance of a quack.EpilogueMixin, of quack.pointwise, a function of the accumulator, or a tuple of these"
)
PARTIALS = (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS)


@dataclass(frozen=True)
class UserCall:
    """A request with the user's terms, and the names of its extra outputs in the order in which they are returned."""

    request: GemmRequest
    outputs: tuple[str, ...]

    def results(self, partials: dict[str, torch.Tensor]) -> Any:
        """D, or (D, extra outputs)."""
        if not self.outputs:
            return self.request.out
        given = {port.name: port.value for term in self.request.epilogue for port in term.ports} | partials
        return (self.request.out, *(given[name] for name in self.outputs))


def user_call(request: GemmRequest, epilogue: Any, commit: Optional[type]) -> UserCall:
    """What `gemm(..., epilogue=, commit=)` computes. Allocates tile outputs that were not given, nothing else."""
    epilogues = epilogue if isinstance(epilogue, tuple) else () if epilogue is None else (epilogue,)
    terms, outputs = [], []
    for i, one in enumerate(epilogues):
        term = _term(one, f"epilogue[{i}]." if len(epilogues) > 1 else "", request)
        terms.append(term)
        outputs += [port.name for port in term.ports if port.kind.is_output and port.value is not None]
    plan = request.plan if commit is None else _plan_name(commit)
    return UserCall(replace(request, epilogue=(*request.epilogue, *terms), plan=plan), tuple(outputs))


def grouped_terms(epilogue: Any, request: GemmRequest) -> tuple[Term, ...]:
    """The terms that all problems of a grouped call share. request: one of them."""
    terms = user_call(request, epilogue, None).request.epilogue
    for term in terms:
        if term.swapped is None:
            raise UnsupportedGemm(
                "a grouped call takes pointwise epilogues only, and this one does not say is_pointwise = True",
                "one call per problem",
            )
        for port in term.ports:
            if port.value is not None and port.kind not in (PortKind.SCALAR, PortKind.INTEGER):
                raise UnsupportedGemm(
                    f"{port.name} is a {port.kind.value}, but the problems of a grouped call share their ports: Scalar, Integer",
                    "one call per problem",
                )
    return terms


def _term(epilogue: Any, prefix: str, request: GemmRequest) -> Term:
    if isinstance(epilogue, types.FunctionType):
        factory = pointwise(epilogue)
        unbound = [n for n, p in factory.signature.parameters.items() if p.default is p.empty]
        if unbound:
            raise TypeError(
                f"the epilogue function has a parameter {unbound[0]} without a value: pass "
                f"quack.pointwise(function)({unbound[0]}=...)"
            )
        epilogue = factory()
    if isinstance(epilogue, PointwiseEpilogue):
        ports = tuple(Port(prefix + n, kind, v) for (n, kind), v in zip(epilogue.kinds, epilogue.values))
        name = epilogue.name()
        return Term(name, ports, swapped=name)
    base = _base(PROTOCOL, "EpilogueMixin")
    if base is None or not isinstance(epilogue, base):
        what = epilogue.__name__ if isinstance(epilogue, type) else type(epilogue).__name__
        hint = f"; call it: epilogue={what}(...)" if isinstance(epilogue, type) else ""
        if isinstance(epilogue, PointwiseFactory):
            hint = "; call it with the values of its parameters, if it has any"
        raise TypeError(f"epilogue is {what}, expected {EXPECTED}{hint}")
    return _mixin_term(epilogue, prefix, request)


def _mixin_term(mixin: Any, prefix: str, request: GemmRequest) -> Term:
    cls = type(mixin)
    kinds, optional = cls.port_kinds(), cls.optional_ports()
    fields = dataclasses.fields(mixin) if dataclasses.is_dataclass(mixin) else ()
    if {*kinds, *getattr(mixin, "__dict__", ())} - {f.name for f in fields} or (fields and not is_frozen(cls)):
        raise TypeError(f"{cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above the class")
    ports = tuple(
        _port(prefix + name, kind, getattr(mixin, name), name in optional, request) for name, kind in kinds.items()
    )
    statics = tuple((f.name, getattr(mixin, f.name)) for f in fields if f.name not in kinds)
    for name, value in statics:
        check_static(f"{cls.__name__}.{name}", value)
    if cls.is_pointwise and any(kind in PARTIALS for kind in kinds.values()):
        raise TypeError(f"{cls.__name__} is declared is_pointwise but reduces rows or columns: leave is_pointwise away")
    if cls.needs_c:
        _check_c(cls, request)
    name = _mixin_name(cls, statics)
    return Term(name, ports, statics, swapped=name if cls.is_pointwise else None, uses_c=cls.needs_c)


def _mixin_name(cls: type, statics: tuple[tuple[str, Any], ...]) -> str:
    """By content. Equal statics of different types are told apart by the name, since they compare equal."""
    content = content_of(cls)
    if statics:
        digest = hashlib.sha256((content.digest + typed_repr(statics)).encode()).hexdigest()[:32]
        content = Content(digest, content.modules)
    return register(cls.__name__, content, lambda: cls)


def _check_c(cls: type, request: GemmRequest) -> None:
    if request.C is None:
        raise ValueError(
            f"{cls.__name__} reads C (needs_c), but the call has none: use gemm_add(A, B, C, epilogue=...)"
        )
    if isinstance(request.beta, torch.Tensor) or request.beta != 1.0:
        raise ValueError(
            f"beta is {request.beta}, but {cls.__name__} reads C itself (needs_c) and nothing adds it: leave beta at 1.0 and "
            "give the class a Scalar port"
        )


def _port(name: str, kind: PortKind, value: Any, is_optional: bool, request: GemmRequest) -> Port:
    is_wanted = value is True if is_optional else value is None  # an output that the call allocates
    if kind in PARTIALS:
        if value is not None and not is_wanted:
            allow = "None, or True to get it" if is_optional else "None"
            raise TypeError(f"{name} is allocated by the call, whose tile decides its shape: leave it {allow}")
        return Port(name, kind, Allocated.PARTIALS if is_wanted else None)
    if kind is PortKind.TILE_OUTPUT and is_wanted:
        value = torch.empty_like(request.out)
    if value is None and not is_optional:
        raise TypeError(f"{name} is None, expected a {_expected(kind)}; annotate it Optional[...] to allow None")
    if kind in (PortKind.SCALAR, PortKind.INTEGER):
        if isinstance(value, bool) or not isinstance(value, (int, float, torch.Tensor, type(None))):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a {_expected(kind)}")
    elif value is not None and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a {_expected(kind)}")
    halved = kind is PortKind.TILE_OUTPUT and value is not None and 2 * value.shape[-1] == request.B.shape[-1] != 0
    return Port(name, kind, value, is_halved=halved)


def _expected(kind: PortKind) -> str:
    return {
        PortKind.SCALAR: "number or one-element tensor",
        PortKind.INTEGER: "int",
        PortKind.ROW_VECTOR: "tensor (N,) or (L, N)",
        PortKind.COL_VECTOR: "tensor (M,) or (L, M)",
    }.get(kind, "tensor of the shape of out")


def _plan_name(commit: Any) -> str:
    base = _base(PLAN, "EpiloguePlan")
    if base is None or not isinstance(commit, type) or not issubclass(commit, base):
        what = commit.__name__ if isinstance(commit, type) else f"a {type(commit).__name__}"
        raise TypeError(f"commit is {what}, expected a subclass of quack.EpiloguePlan (the class itself)")
    return register(commit.__name__, content_of(commit), lambda: commit)


def _base(module: str, name: str) -> Optional[type]:
    """A class of the device side; None before anything imported it, for then nothing derives from it."""
    return getattr(sys.modules.get(module), name, None)
