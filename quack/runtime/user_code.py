"""Classes and functions that users hand to a GEMM, known by their content.

A kernel is cached by what decides its code. Of quack's own classes that is a name and the hash of quack's sources; a user's
class may live in a notebook, in `__main__` or in a function, and its name may mean something else a minute later. So it is
read: bytecode, constants, names, defaults, closure, the globals it refers to, recursively, and for a class its bases, ports
and attributes. Code from quack, CuTe DSL and the standard library counts by name, since their versions are in the key of
the object file. Equal content shares one kernel, wherever it was written; a global that changed makes another.

What cannot be read so (a tensor, a list, an object) is a TypeError that says where it is and what to write instead.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

import torch

from .spec import USER_CODE

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
MAX_KNOWN = 1024  # notebooks define the same class again and again
_MISSING = object()
# Made by the interpreter or by `dataclass`; the host's alone, since kernels build mixins without calling `__init__`.
_HOST_ONLY = {
    "__init__", "__post_init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__lt__", "__le__", "__gt__",
    "__ge__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__match_args__",
    "__dataclass_params__", "__dataclass_fields__", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__slots__",
    "__parameters__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__classdictcell__", "__replace__",
    "__getnewargs__", "__new__", "_make", "_replace", "_asdict", "__abstractmethods__", "_abc_impl",
    "__getstate__", "__setstate__", "__type_params__",
}  # fmt: skip
# Of a code object's flags those that say how it is called; not where it was written (CO_NESTED).
_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)
_ENTER_GLOBAL, _ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")


class Content(NamedTuple):
    """digest: of everything that was read. modules: quack's among it, whose sources belong to the key of the object file."""

    digest: str
    modules: tuple[str, ...]


class _Reading(NamedTuple):
    """A content, and what to look at to see whether it still holds: (getter, value that it returned)."""

    content: Content
    watched: tuple[tuple[Callable[[], object], object], ...]


_readings: dict[object, _Reading] = {}
_code: dict[str, tuple[Callable[[], type], Content]] = {}


# ---- names ------------------------------------------------------------------------------------------------------------


def register(label: str, content: Content, load: Callable[[], type]) -> str:
    """A name for `GemmSpec`. load: the class, in this process, when a kernel is compiled."""
    name = f"{USER_CODE}{label}#{content.digest}"
    _code[name] = (
        load,
        content,
    )  # the last one: an older object of equal content may refer to globals that changed since
    return name


def user_class(name: str) -> type:
    """The class that was registered."""
    return _registered(name)[0]()


def user_modules(name: str) -> tuple[str, ...]:
    """quack's modules that the class uses."""
    return _registered(name)[1].modules


def _registered(name: str) -> tuple[Callable[[], type], Content]:
    if name not in _code:
        raise LookupError(
            f"{name} was defined in another process: make the call there, or define it here and call again"
        )
    return _code[name]


# ---- contents ---------------------------------------------------------------------------------------------------------


def content_of(code: Any, *, is_parameterised: bool = False) -> Content:
    """The content of a class or function. is_parameterised: its defaults are values of a call, not part of the code."""
    known = (_key_of(code), is_parameterised)
    reading = _readings.get(known)
    if reading is None or any(get() is not value for get, value in reading.watched):
        reader = _Reader(code, is_parameterised)
        key = (sys.implementation.cache_tag, reader.key(code, ""))
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        reading = _Reading(Content(digest, tuple(sorted(reader.modules))), tuple(reader.watched))
        if len(_readings) >= MAX_KNOWN:
            _readings.clear()
        _readings[known] = reading
    return reading.content


def _key_of(code: Any) -> object:
    """A lambda in a loop is a new function each time, but the same code in the same module."""
    if isinstance(code, types.FunctionType) and code.__closure__ is None:
        if code.__defaults__ is None and code.__kwdefaults__ is None and not hasattr(code, "__wrapped__"):
            return code.__code__, id(code.__globals__)
    return code


def check_static(where: str, value: Any) -> None:
    """Statics of a mixin: constants, enums, dtypes and tuples of these."""
    if isinstance(value, tuple):
        for item in value:
            check_static(where, item)
    elif type(value) not in CONSTANTS and not isinstance(value, (enum.Enum, torch.dtype)):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a field that is no port is compiled into the kernel, so it is a number, "
            f"string, bool, None, enum, torch.dtype or a tuple of these; {_advice(value)}"
        )


def is_frozen(cls: Any) -> bool:
    """Whether a dataclass was made with frozen=True."""
    return bool(cls.__dataclass_params__.frozen)


def typed_repr(value: Any) -> str:
    """Tells 1, 1.0 and True apart, which are equal, and 0.0 and -0.0."""
    if isinstance(value, tuple):
        return f"({', '.join(map(typed_repr, value))})"
    if isinstance(value, enum.Enum):
        return f"{content_of(type(value)).digest}:{value!r}"
    return f"{type(value).__name__}:{value!r}"


def _advice(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return (
            "make it a port: a field annotated quack.RowVector, ColVector, TileInput or Scalar (with quack.pointwise, a "
            "parameter)"
        )
    if isinstance(value, (list, set, bytearray)):
        return "write a tuple"
    if isinstance(value, types.ModuleType):
        return "write module.name at the place of use"
    if callable(value) and not isinstance(value, type):
        return "write a plain function, or a method of the class"
    return "take what the kernel needs out of it, as numbers, strings, enums or tuples"


class _Reader:
    """Turns an object into nested tuples of constants: the same for the same content, in any process."""

    def __init__(self, code: Any, is_parameterised: bool):
        self.what = getattr(code, "__name__", repr(code))
        self.root, self.is_parameterised = code, is_parameterised
        self.seen: dict[int, int] = {}
        self.alive: list[object] = []  # so that ids stay unique
        self.modules: set[str] = set()
        self.watched: list[tuple[Callable[[], object], object]] = []

    def key(self, value: Any, where: str) -> tuple:
        """where: a path from the root, for messages."""
        if type(value) in CONSTANTS:
            return type(value).__name__, repr(value)
        if isinstance(value, tuple) and type(value) is tuple:
            return ("tuple", *(self.key(item, f"{where}[{i}]") for i, item in enumerate(value)))
        if type(value) is frozenset:
            return ("frozenset", *sorted(self.key(item, where) for item in value))
        if isinstance(value, enum.Enum):
            return "member", self.key(type(value), where), value.name
        if isinstance(value, torch.dtype):
            return "dtype", str(value)
        if isinstance(value, types.CodeType):
            return self.code(value, where)
        if id(value) in self.seen:
            return "again", self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        return self.object(value, where)

    def object(self, value: Any, where: str) -> tuple:
        """Anything with an identity."""
        name = self.public_name(value)
        if name is not None:
            return "named", *name
        if isinstance(value, types.FunctionType):
            return self.function(value, where)
        if isinstance(value, type):
            return self.enumeration(value, where) if issubclass(value, enum.Enum) else self.cls(value, where)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value).__name__, self.key(value.__func__, where)
        if isinstance(value, property):
            return "property", self.key(value.fget, where)
        if isinstance(value, functools.partial):
            keywords = tuple((name, self.key(v, f"{where}({name}=)")) for name, v in sorted(value.keywords.items()))
            return "partial", self.key(value.func, where), self.key(value.args, where), keywords
        if dataclasses.is_dataclass(value) and is_frozen(type(value)):
            fields = tuple(
                (f.name, self.key(getattr(value, f.name), f"{where}.{f.name}")) for f in dataclasses.fields(value)
            )
            return "value", self.key(type(value), where), fields
        raise TypeError(
            f"{self.what}: {where.lstrip('.')} is a {type(value).__name__}, of which no kernel can be compiled or found again; "
            f"{_advice(value)}"
        )

    def public_name(self, value: Any) -> Optional[tuple[str, str]]:
        """(module, name) of what quack, CuTe DSL, Python's library or the interpreter define."""
        if isinstance(value, types.ModuleType):
            return (self.named(value.__name__), "") if _is_public(value.__name__) else None
        if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
            owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
            home = owner.__name__ if isinstance(owner, (type, types.ModuleType)) else value.__module__
            return (
                (str(home), value.__qualname__)
                if owner is None or isinstance(owner, (type, types.ModuleType))
                else None
            )
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
        if not isinstance(value, (type, types.FunctionType)) or "<" in name or not _is_public(module):
            return None
        return self.named(str(module)), name

    def named(self, module: str) -> str:
        if module.partition(".")[0] == "quack":
            self.modules.add(module)
        return module

    # ---- functions ----------------------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType, where: str) -> tuple:
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None and _is_public(function.__globals__.get("__name__")):  # @cute.jit, functools.wraps
            try:
                inspect.getsource(wrapped)
            except (OSError, TypeError):
                raise TypeError(
                    f"{self.what}: {where.lstrip('.') or wrapped.__name__} is decorated with @cute.jit, which reads the source, "
                    "and there is no file with it; write the code into a file or a notebook cell, or leave the decorator away"
                ) from None
            return "decorated", function.__globals__["__name__"], self.key(wrapped, where)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if function is not self.root:
                self.watch(functools.partial(getattr, function, name))
        names = function.__code__.co_freevars
        cells = {
            name: self.watch(functools.partial(getattr, cell, "cell_contents", _MISSING))
            for name, cell in zip(names, function.__closure__ or ())
        }
        references = tuple(self.references(function.__code__, function.__globals__, cells, where))
        defaults: tuple = ()
        if not (function is self.root and self.is_parameterised):
            named = sorted((function.__kwdefaults__ or {}).items())
            defaults = (
                self.key(function.__defaults__, f"{where} default"),
                *((name, self.key(value, f"{where} default of {name}")) for name, value in named),
            )
        return "function", self.code(function.__code__, where), references, defaults

    def code(self, code: types.CodeType, where: str) -> tuple:
        arguments = code.co_argcount + code.co_kwonlyargcount
        return (
            "code", code.co_code, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS,
            code.co_varnames[:arguments], code.co_names, tuple(self.key(c, where) for c in code.co_consts),
            getattr(code, "co_exceptiontable", b""),
        )  # fmt: skip

    def references(
        self, code: types.CodeType, space: dict[str, Any], cells: dict[str, Any], where: str
    ) -> Iterator[tuple]:
        """Everything outside of it that the code, or a function in it, refers to."""
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "PRECALL")]
        own = set(code.co_varnames) | set(code.co_cellvars)
        for i, step in enumerate(steps):
            name = step.argval
            if step.opname == "IMPORT_NAME":
                if not _is_public(name):
                    raise TypeError(f"{self.what}: {where.lstrip('.')} imports {name} when it runs; import it outside")
                yield "import", self.named(name)
            elif step.opname in _ENTER_GLOBAL:
                yield name, self.reference(self.lookup(space, name), steps[i + 1 :], f"{where}.{name}")
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells and name not in own:
                if cells[name] is _MISSING:
                    raise TypeError(f"{self.what}: {where.lstrip('.')} uses {name} before it is assigned")
                yield name, self.reference(cells[name], steps[i + 1 :], f"{where}.{name}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = {name: value for name, value in cells.items() if name not in own}
                yield from self.references(constant, space, inner, where)

    def lookup(self, space: dict[str, Any], name: str) -> Any:
        value = self.watch(functools.partial(space.get, name, _MISSING))
        if value is not _MISSING:
            return value
        builtins = sys.modules["builtins"]
        if not hasattr(builtins, name):
            raise TypeError(f"{self.what} uses the name {name}, which is not defined")
        return self.watch(functools.partial(getattr, builtins, name, _MISSING))

    def reference(self, value: Any, following: list[dis.Instruction], where: str) -> tuple:
        """A global or captured value; of a module only the attribute that is used."""
        for step in following:
            if not isinstance(value, types.ModuleType) or step.opname not in _ATTRIBUTE:
                break
            module, name = value.__name__, step.argval
            if not hasattr(value, name):
                raise TypeError(f"{self.what}: module {module} has no attribute {name}")
            if _is_public(module):
                value = getattr(value, name)
                if not isinstance(value, types.ModuleType):
                    home = getattr(value, "__module__", None)  # `quack` exports what its modules define
                    self.named(home if isinstance(home, str) and _is_public(home) else module)
                    return "attribute", module, name
            else:
                value = self.watch(functools.partial(getattr, value, name, _MISSING))
            where = f"{where}.{name}"
        return self.key(value, where)

    def watch(self, get: Callable[[], Any]) -> Any:
        value = get()
        self.watched.append((get, value))
        return value

    # ---- classes ------------------------------------------------------------------------------------------------------

    def cls(self, cls: Any, where: str) -> tuple:
        """Bases and attributes. What only the host runs is left out of mixins and plans."""
        bases = tuple(self.key(base, f"{where}({base.__name__})") for base in cls.__bases__)
        fields: tuple = tuple(getattr(cls, "__annotations__", {}))
        if hasattr(cls, "port_kinds"):
            fields = tuple((name, kind.name, name in cls.optional_ports()) for name, kind in cls.port_kinds().items())
        self.watch(functools.partial(len, cls.__dict__))
        attributes = []
        for name in sorted(cls.__dict__):
            if name in _HOST_ONLY and not self.is_needed(cls, name):
                continue
            value = self.watch(functools.partial(cls.__dict__.get, name))
            if name == "_field_defaults":
                value = tuple(value.items())
            if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                continue
            if isinstance(value, dataclasses.Field) or type(value).__name__ == "_tuplegetter":
                continue
            attributes.append((name, self.key(value, f"{where}.{name}")))
        return "class", cls.__name__, bases, fields, tuple(attributes)

    def is_needed(self, cls: type, name: str) -> bool:
        """Helper classes are made on the device, by their `__init__`; mixins and plans are not."""
        if name not in ("__init__", "__post_init__", "__new__"):
            return False
        is_bound_by_framework = cls is self.root or issubclass(self.root, cls) if isinstance(self.root, type) else False
        return not is_bound_by_framework and not hasattr(cls, "_fields")

    def enumeration(self, cls: type, where: str) -> tuple:
        members = tuple((m.name, self.key(m.value, f"{where}.{m.name}")) for m in cls)  # type: ignore[attr-defined]
        own = {n: f for n, f in cls.__dict__.items() if isinstance(f, types.FunctionType) and not n.startswith("_")}
        return "enum", cls.__name__, members, tuple((n, self.key(f, f"{where}.{n}")) for n, f in sorted(own.items()))


def _is_public(module: Any) -> bool:
    """Whether a module's content follows from versions and sources that are in the key of every object file."""
    top = str(module).partition(".")[0]
    return top in ("quack", "cutlass", "builtins") or top in sys.stdlib_module_names
