"""Epilogues and commit policies that users define, as terms of a request."""

import dataclasses
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Optional

import torch

from ..gemm_config import GemmConfig
from ..gemm_port import PortKind
from ..split_k import SplitKMode
from .call import Form, Operands
from .code_reader import is_frozen
from .epilogue import Allocated, Port, Term
from .plan import GemmRequest
from .pointwise import PointwiseEpilogue, PointwiseFactory, pointwise
from .spec import DEFAULT_COMMIT
from .user_code import Content, check_static, content_of, register, typed_repr

PROTOCOL, PLAN = "quack.epilogue.protocol", "quack.gemm_epilogue_plan"
EXPECTED = (
    "an instance of a quack.EpilogueMixin, of quack.pointwise, a function of the accumulator, or a tuple of these"
)
PARTIALS = (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS)
OWN_NAMES = frozenset((
    "A", "B", "out", "C", "bias", "alpha", "beta", "cu_seqlens_m", "cu_seqlens_k", "A_idx", "batch_idx_permute", "sr_seed",
))  # fmt: skip
VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


MAX_FORMS = 1024  # notebooks define the same class again and again
UserOptions = tuple[
    Optional[torch.dtype],  # of out
    bool,  # fast_accum
    Optional[GemmConfig],
    bool,  # dynamic
    Optional[tuple[str, ...]],  # concat_layout
    Optional[int],  # split_k
    Optional[SplitKMode],  # None: as without it
]


class UserMixin:
    """An epilogue without its values. There is one object for what compiles to the same code and has the same ports, so it is known
    by its identity."""

    def __init__(
        self,
        name: str,
        label: str,
        kinds: tuple[tuple[str, PortKind], ...],
        prefix: str,
        optional: frozenset[str] = frozenset(),
        statics: tuple[tuple[str, Any], ...] = (),
        is_pointwise: bool = True,
        needs_c: bool = False,
    ):
        """name: of the mixin, by content, also of its statics. label: for messages. prefix: of the ports' names."""
        self.name, self.label, self.statics = name, label, statics
        self.is_pointwise, self.needs_c = is_pointwise, needs_c
        self.ports = tuple((prefix + n, kind, n in optional) for n, kind in kinds)
        self.outputs = tuple((i, *port) for i, port in enumerate(self.ports) if port[1].is_output)

    def term(self, operands: Operands, request: GemmRequest) -> Term:
        """With its values, checked."""
        ports = tuple(_port(name, kind, operands[name], is_optional, request) for name, kind, is_optional in self.ports)
        if self.is_pointwise and any(kind in PARTIALS for _, kind, _ in self.ports):
            raise TypeError(
                f"{self.label} is declared is_pointwise but reduces rows or columns: leave is_pointwise away"
            )
        if self.needs_c:
            _check_c(self.label, request)
        swapped = self.name if self.is_pointwise else None
        return Term(self.name, ports, self.statics, swapped=swapped, uses_c=self.needs_c)


_mixins: dict[tuple, UserMixin] = {}


def _known(name: str, label: str, kinds: tuple[tuple[str, PortKind], ...], prefix: str, *facts: Any) -> UserMixin:
    """The one `UserMixin` of these. Their name says what the further facts are."""
    key = (name, kinds, prefix)
    mixin = _mixins.get(key)
    if mixin is None:
        if len(_mixins) >= MAX_FORMS:
            _mixins.clear()
        mixin = _mixins[key] = UserMixin(name, label, kinds, prefix, *facts)
    return mixin


class UserCall(NamedTuple):
    """A call with the user's epilogues. outputs: names of its extra outputs in the order in which they are returned; ports: kinds of
    all operands that are the epilogues'."""

    form: Form
    operands: Operands
    outputs: tuple[str, ...]
    ports: dict[str, PortKind]

    def results(self, partials: dict[str, torch.Tensor]) -> Any:
        """D, or (D, extra outputs)."""
        out = self.operands["out"]
        if not self.outputs:
            return out
        return (out, *(partials[n] if n in partials else self.operands[n] for n in self.outputs))


_forms: dict[tuple, Form] = {}


def user_call(
    operands: Operands,
    epilogue: Any,
    commit: Optional[type],
    terms: tuple[Term, ...] = (),
    add_output: Optional[Callable[..., None]] = None,
) -> UserCall:
    """What `gemm(..., epilogue=, commit=)` computes, and `terms` behind it. add_output: as `Form.outputs`, for out."""
    epilogues = epilogue if isinstance(epilogue, tuple) else () if epilogue is None else (epilogue,)
    mixins, outputs, operands, kinds = [], [], dict(operands), {}
    for i, one in enumerate(epilogues):
        mixin, values = _bare(one, f"epilogue[{i}]." if len(epilogues) > 1 else "")
        mixins.append(mixin)
        outputs += [name for i, name, _, is_optional in mixin.outputs if not is_optional or values[i] is not None]
        for (name, kind, _), value in zip(mixin.ports, values):
            operands[name], kinds[name] = value, kind
    plan = DEFAULT_COMMIT if commit is None else _plan_name(commit)
    seeds = {port.name: port.value for term in terms for port in term.ports}
    key = (*mixins, plan, add_output, *seeds)
    form = _forms.get(key)
    if form is None:
        if len(_forms) >= MAX_FORMS:
            _forms.clear()
        outputs_of = partial(_user_outputs, tuple(mixins), add_output)
        form = _forms[key] = Form(partial(_user_request, tuple(mixins), plan, terms), outputs_of)
    return UserCall(form, operands | seeds, tuple(outputs), kinds)


def _user_outputs(
    mixins: tuple[UserMixin, ...], add_output: Optional[Callable[..., None]], operands: Operands, *options: Any
) -> None:
    if add_output is not None:
        add_output(operands, *options)
    for mixin in mixins:
        for _, name, kind, is_optional in mixin.outputs:
            if kind is PortKind.TILE_OUTPUT and operands[name] is (True if is_optional else None):
                operands[name] = torch.empty_like(operands["out"])


def _user_request(
    mixins: tuple[UserMixin, ...], plan: str, terms: tuple[Term, ...], operands: Operands, *options: Any
) -> GemmRequest:
    """terms: those behind the user's, as they were when the form was made; only their values may be others now."""
    names = {port.name for term in terms for port in term.ports}
    names |= {name for mixin in mixins for name, _, _ in mixin.ports}
    _, fast_accum, config, dynamic, concat_layout, split_k, split_mode = options
    request = GemmRequest(
        **{name: value for name, value in operands.items() if name not in names},
        fast_accum=fast_accum, config=config, dynamic=dynamic, concat_layout=concat_layout, plan=plan,
        split_k=split_k, split_k_mode=split_mode or SplitKMode.SERIAL,
    )  # fmt: skip
    own = tuple(mixin.term(operands, request) for mixin in mixins)
    return replace(request, epilogue=(*own, *terms))


def _bare(epilogue: Any, prefix: str) -> tuple[UserMixin, Sequence[Any]]:
    """An epilogue without its values, and these by port. prefix: of the ports' names."""
    if isinstance(epilogue, types.FunctionType):
        epilogue = _with_defaults(epilogue)
    if isinstance(epilogue, PointwiseEpilogue):
        kinds = epilogue.kinds
        return _known(epilogue.name(), "the function", kinds, prefix or _own_prefix(kinds)), epilogue.values
    base = _base(PROTOCOL, "EpilogueMixin")
    if base is None or not isinstance(epilogue, base):
        what = epilogue.__name__ if isinstance(epilogue, type) else type(epilogue).__name__
        hint = f"; call it: epilogue={what}(...)" if isinstance(epilogue, type) else ""
        if isinstance(epilogue, PointwiseFactory):
            hint = "; call it with the values of its parameters, if it has any"
        raise TypeError(f"epilogue is {what}, expected {EXPECTED}{hint}")
    return _bare_mixin(epilogue, prefix)


def _own_prefix(kinds: tuple[tuple[str, PortKind], ...]) -> str:
    """Of the ports of the only epilogue: none, unless one is called like something else that the call has."""
    return "epilogue." if any([name in OWN_NAMES for name, _ in kinds]) else ""


def _with_defaults(function: types.FunctionType) -> PointwiseEpilogue:
    """A function of the accumulator whose further parameters have defaults."""
    code = function.__code__
    if code.co_argcount == 1 and not (code.co_kwonlyargcount or code.co_flags & VARIADIC or function.__dict__):
        return PointwiseEpilogue(function, (), ())
    factory = pointwise(function)
    unbound = [n for n, p in factory.signature.parameters.items() if p.default is p.empty]
    if unbound:
        raise TypeError(
            f"the epilogue function has a parameter {unbound[0]} without a value: pass "
            f"quack.pointwise(function)({unbound[0]}=...)"
        )
    return factory()


class _Fields(NamedTuple):
    """What the class of a mixin says about its fields."""

    names: frozenset[str]
    kinds: tuple[tuple[str, PortKind], ...]
    optional: frozenset[str]
    statics: tuple[str, ...]
    prefix: str
    is_frozen: bool


@functools.lru_cache(maxsize=MAX_FORMS)
def _fields(cls: Any, digest: str) -> _Fields:
    """digest: of the class's content, by which a class that has changed since is another."""
    kinds = cls.port_kinds()
    ports = tuple(kinds.items())
    names = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    frozen = kinds.keys() <= set(names) and (not names or is_frozen(cls))
    statics = tuple(name for name in names if name not in kinds)
    return _Fields(frozenset(names), ports, cls.optional_ports(), statics, _own_prefix(ports), frozen)


def _bare_mixin(mixin: Any, prefix: str) -> tuple[UserMixin, Sequence[Any]]:
    cls = type(mixin)
    content = content_of(cls)
    fields = _fields(cls, content.digest)  # type: ignore[arg-type]  # mypy: a metaclass might not be hashable
    if not fields.is_frozen or not fields.names.issuperset(getattr(mixin, "__dict__", ())):
        raise TypeError(f"{cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above the class")
    statics = tuple([(name, getattr(mixin, name)) for name in fields.statics])
    for name, value in statics:
        check_static(f"{cls.__name__}.{name}", value)
    facts = (fields.optional, statics, cls.is_pointwise, cls.needs_c)
    name = _mixin_name(cls, content, statics)
    bare = _known(name, cls.__name__, fields.kinds, prefix or fields.prefix, *facts)
    return bare, [getattr(mixin, port) for port, _ in fields.kinds]


def _mixin_name(cls: type, content: Content, statics: tuple[tuple[str, Any], ...]) -> str:
    """By content. Equal statics of different types are told apart by the name, since they compare equal."""
    if statics:
        digest = hashlib.sha256((content.digest + typed_repr(statics)).encode()).hexdigest()[:32]
        content = Content(digest, content.modules)
    return register(cls.__name__, content, lambda: cls)


def _check_c(label: str, request: GemmRequest) -> None:
    if request.C is None:
        raise ValueError(f"{label} reads C (needs_c), but the call has none: use gemm_add(A, B, C, epilogue=...)")
    if isinstance(request.beta, torch.Tensor) or request.beta != 1.0:
        raise ValueError(
            f"beta is {request.beta}, but {label} reads C itself (needs_c) and nothing adds it: leave beta at 1.0 and "
            "give the class a Scalar port"
        )


def _port(name: str, kind: PortKind, value: Any, is_optional: bool, request: GemmRequest) -> Port:
    is_wanted = value is True if is_optional else value is None  # an output that the call allocates
    if kind in PARTIALS:
        if value is not None and not is_wanted:
            allow = "None, or True to get it" if is_optional else "None"
            raise TypeError(f"{name} is allocated by the call, whose tile decides its shape: leave it {allow}")
        return Port(name, kind, Allocated.PARTIALS if is_wanted else None)
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
