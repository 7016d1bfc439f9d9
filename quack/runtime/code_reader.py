"""Reads classes and functions: bytecode, constants, names, defaults, closures and globals, recursively."""

import dataclasses
import dis
import enum
import functools
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_MISSING = object()
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a `class` statement, or might be
_HOST_ONLY = {
    "__repr__", "__str__", "__setattr__", "__delattr__", "__replace__", "__module__", "__qualname__", "__doc__", "__dict__",
    "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__match_args__", "__slots__",
    "__dataclass_params__", "__dataclass_fields__", "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__type_params__", "__classdictcell__", "__abstractmethods__", "_abc_impl", "__getnewargs__",
    "__getstate__", "__setstate__", "_make", "_replace", "_asdict",
}  # fmt: skip
_CONSTRUCTORS = ("__init__", "__post_init__", "__new__")
_MAYBE_GENERATED = (*_CONSTRUCTORS, "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__")
# Of a code object's flags those that say how it is called; not where it was written (CO_NESTED).
_FLAGS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR
_ENTER_GLOBAL, _ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")


class CodeReader:
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
            f"{advice(value)}"
        )

    def public_name(self, value: Any) -> Optional[tuple[str, str]]:
        """(module, name) of what quack, CuTe DSL, Python's library or the interpreter define."""
        if isinstance(value, types.ModuleType):
            return (self.named(value.__name__), "") if _is_public(value.__name__) else None
        if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
            owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
            home = owner.__name__ if isinstance(owner, (type, types.ModuleType)) else value.__module__
            is_of_object = owner is not None and not isinstance(owner, (type, types.ModuleType))
            return None if is_of_object else (str(home), value.__qualname__)
        if isinstance(value, types.FunctionType):  # `functools.wraps` copies the name, but not where the code is from
            module, is_certain = value.__globals__.get("__name__"), value.__closure__ is None
        elif isinstance(value, type):
            module, is_certain = value.__module__, not value.__flags__ & _HEAP_TYPE
        else:
            return None
        name = value.__qualname__
        if "<" in name or not _is_public(module) or not (is_certain or _named(module, name) is value):
            return None
        return self.named(str(module)), name

    def named(self, module: str) -> str:
        if module.partition(".")[0] == "quack":
            self.modules.add(module)
        return module

    # ---- functions ----------------------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType, where: str) -> tuple:
        wrapped = getattr(function, "__wrapped__", None)
        if (
            wrapped is not None and str(function.__globals__.get("__name__")).partition(".")[0] == "cutlass"
        ):  # @cute.jit
            try:
                inspect.getsource(wrapped)
            except (OSError, TypeError):
                raise TypeError(
                    f"{self.what}: {where.lstrip('.') or wrapped.__name__} is decorated with @cute.jit, which reads the source, "
                    "and there is no file with it; write the code into a file or a notebook cell, or leave the decorator away"
                ) from None
            options = tuple((name, repr(v)) for name, v in sorted(vars(function).items()) if type(v) in CONSTANTS)
            captured = [cell.cell_contents for cell in function.__closure__ or ()]
            return "decorated", options, tuple(v for v in captured if type(v) in CONSTANTS), self.key(wrapped, where)
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
            if name in _HOST_ONLY or (name in _MAYBE_GENERATED and not self.is_needed(cls, name)):
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
        """Comparisons that the user wrote; and `__init__` of helper classes, for mixins and plans are made without it."""
        if name not in _CONSTRUCTORS:  # the code that `dataclass` makes is in no file
            return getattr(getattr(cls.__dict__[name], "__code__", None), "co_filename", "<string>") != "<string>"
        is_bound_by_framework = cls is self.root or issubclass(self.root, cls) if isinstance(self.root, type) else False
        return not is_bound_by_framework and not hasattr(cls, "_fields")

    def enumeration(self, cls: type, where: str) -> tuple:
        members = tuple((m.name, self.key(m.value, f"{where}.{m.name}")) for m in cls)  # type: ignore[attr-defined]
        own = {n: f for n, f in cls.__dict__.items() if isinstance(f, types.FunctionType) and not n.startswith("_")}
        return "enum", cls.__name__, members, tuple((n, self.key(f, f"{where}.{n}")) for n, f in sorted(own.items()))


def _is_public(module: Any) -> bool:
    """Whether a module's content follows from versions and sources that are in the key of every object file."""
    top = str(module).partition(".")[0]
    return top in ("quack", "cutlass", "builtins") or (top in sys.stdlib_module_names and _is_of_python(top))


@functools.cache
def _is_of_python(top: str) -> bool:
    """Whether a module with the name of one of Python's library (`test`, `code`) is that one."""
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    library = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    real = [os.path.realpath(place) for place in places if place]
    return all(any(p.startswith(root + os.sep) for root in library) and "site-packages" not in p for p in real)


def _named(module: Any, name: str) -> Any:
    """What a module calls by a qualified name; None if nothing."""
    found = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def is_frozen(cls: Any) -> bool:
    """Whether a dataclass was made with frozen=True."""
    return bool(cls.__dataclass_params__.frozen)


def advice(value: object) -> str:
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
