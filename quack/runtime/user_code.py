"""Classes and functions that users hand to a GEMM, known by their content.

A kernel is cached by what decides its code. Of quack's own classes that is a name and the hash of quack's sources; a user's
class may live in a notebook, in `__main__` or in a function, and its name may mean something else a minute later. So it is
read: bytecode, constants, names, defaults, closure, the globals it refers to, recursively, and for a class its bases, ports
and attributes. Code from quack, CuTe DSL and the standard library counts by name, since their versions are in the key of
the object file. Equal content shares one kernel, wherever it was written; a global that changed makes another.

What cannot be read so (a tensor, a list, an object) is a TypeError that says where it is and what to write instead.
"""

import enum
import hashlib
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .code_reader import CONSTANTS, CodeReader, advice
from .spec import USER_CODE

MAX_KNOWN = 1024  # notebooks define the same class again and again


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
    # The last one: an older object of equal content may refer to globals that have changed since.
    _code[name] = load, content
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
        reader = CodeReader(code, is_parameterised)
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
            f"string, bool, None, enum, torch.dtype or a tuple of these; {advice(value)}"
        )


def typed_repr(value: Any) -> str:
    """Tells 1, 1.0 and True apart, which are equal, and 0.0 and -0.0."""
    if isinstance(value, tuple):
        return f"({', '.join(map(typed_repr, value))})"
    if isinstance(value, enum.Enum):
        return f"{content_of(type(value)).digest}:{value!r}"
    return f"{type(value).__name__}:{value!r}"
