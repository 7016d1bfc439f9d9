"""PTX text to kernels: entry points with parameters, variables, registers and instructions whose names are resolved.

Nothing here knows what an instruction does. Two traps of generated PTX are handled: inline assembly reuses labels and
register names inside `{ }` scopes, and parameters carry `.ptr` annotations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from .errors import UnknownInstruction

TYPE_BITS = {"pred": 1, "b128": 128}
TYPE_BITS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}
TYPE_BITS |= {"f16": 16, "f16x2": 32, "bf16": 16, "bf16x2": 32, "f32": 32, "f64": 64, "f32x2": 64, "tf32": 32}


class Parameter(NamedTuple):
    """A kernel parameter: `offset` and `size` in bytes in the parameter buffer."""

    name: str
    offset: int
    size: int


class Variable(NamedTuple):
    """A `.shared`, `.local`, `.global` or `.const` variable; size 0: the dynamic shared memory."""

    name: str
    space: str
    align: int
    size: int
    init: bytes = b""


@dataclass
class Scope:
    """Names visible inside one pair of braces."""

    registers: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    outer: Optional["Scope"] = None

    def register(self, name: str) -> Optional[int]:
        """The innermost register of this name."""
        return next((s.registers[name] for s in self._outward() if name in s.registers), None)

    def label(self, name: str) -> Optional[int]:
        """The instruction behind the innermost label of this name."""
        return next((s.labels[name] for s in self._outward() if name in s.labels), None)

    def _outward(self) -> Iterator["Scope"]:
        scope: Optional[Scope] = self
        while scope is not None:
            yield scope
            scope = scope.outer


@dataclass(frozen=True)
class Instruction:
    """opcode: full name with modifiers; parts: split at single dots; predicate: (register name, negated)."""

    opcode: str
    operands: tuple[str, ...]
    predicate: Optional[tuple[str, bool]]
    scope: Scope
    line: int
    index: int

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.opcode.split("."))

    def __str__(self) -> str:
        guard = f"@{'!' * self.predicate[1]}{self.predicate[0]} " if self.predicate else ""
        text = f"{guard}{self.opcode} {', '.join(self.operands)}".strip()
        return text if len(text) <= 160 else text[:157] + "..."


@dataclass
class Kernel:
    """One `.entry`. `register_bits[i]` is the declared width of register i."""

    name: str
    target: str
    parameters: dict[str, Parameter]
    parameter_bytes: int
    block: Optional[tuple[int, int, int]]
    cluster: Optional[tuple[int, int, int]]
    variables: dict[str, Variable]
    register_bits: list[int] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    is_block_required: bool = False  # .reqntid: `block` is not only the largest


def literal(text: str) -> Optional[int]:
    """An integer, or the raw bits of a float written as 0f... or 0d...; None if it is neither."""
    text = text.strip()
    if text[:2] in ("0f", "0F", "0d", "0D"):
        digits, base = text[2:], 16
    else:
        digits, base = text.rstrip("Uu"), 0
        if re.fullmatch(r"-?0[0-7]+", digits):
            base = 8
    try:
        return int(digits, base)
    except ValueError:
        return None


def split_operands(text: str) -> list[str]:
    """Split at the commas that are outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return parts + [last] if last else parts


def parse(text: str) -> dict[str, Kernel]:
    """All entry points of a PTX module by name."""
    text = _strip_comments(text)
    found = re.search(r"^\s*\.target\s+(\w+)", text, re.M)
    target = found[1] if found else ""
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", text, re.S))
    module_scope = _module_variables(text[: entries[0].start()] if entries else text)
    kernels = {}
    for entry in entries:
        parameters, size = _parameters(entry[2])
        kernel = Kernel(
            entry[1], target, parameters, size, _dims(entry[3], "reqntid|maxntid"), _dims(entry[3], "reqnctapercluster"),
            dict(module_scope), is_block_required=".reqntid" in entry[3],
        )  # fmt: skip
        _parse_body(kernel, text, entry.end())
        kernels[kernel.name] = kernel
    return kernels


def _strip_comments(text: str) -> str:
    """Comments, and .loc and .file, which end with their line. Line numbers stay."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*|^[ \t]*\.(loc|file)\b[^\n]*", "", text, flags=re.M)


def _dims(text: str, directives: str) -> Optional[tuple[int, int, int]]:
    found = re.search(rf"\.(?:{directives})\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", text)
    return (int(found[1]), int(found[2] or 1), int(found[3] or 1)) if found else None


def _parameters(text: str) -> tuple[dict[str, Parameter], int]:
    parameters, offset = {}, 0
    for declaration in split_operands(text):
        plain = re.sub(r"\.ptr\b(\s+\.(global|shared|const|local|param))?(\s+\.align\s+\d+)?", "", declaration)
        found = re.match(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", plain)
        if not found or found[2] not in TYPE_BITS:
            raise UnknownInstruction(f"parameter declaration {declaration!r}")
        element = TYPE_BITS[found[2]] // 8
        align, size = int(found[1] or element), element * int(found[4] or 1)
        offset = -(-offset // align) * align
        parameters[found[3]] = Parameter(found[3], offset, size)
        offset += size
    return parameters, offset


_VARIABLE = re.compile(
    r"\.(shared|local|global|const)\s+(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([\w$]+)(?:\[(\d*)\])?(?:\s*=\s*(.*))?$",
    re.S,
)


def _variable(statement: str) -> Optional[Variable]:
    found = _VARIABLE.search(statement.strip())
    if not found:
        return None
    element = TYPE_BITS[found[3]] // 8
    count = 1 if found[5] is None else int(found[5] or 0)
    init = b""
    if found[6]:
        values = []
        for text in split_operands(found[6].strip().strip("{}")):
            value = literal(text)
            if value is None:
                raise UnknownInstruction(f"initial value of {found[4]} = {found[6]}")
            values.append(value)
        init = b"".join((v & ((1 << 8 * element) - 1)).to_bytes(element, "little") for v in values)
    return Variable(found[4], found[1], int(found[2] or element), element * count, init)


def _module_variables(text: str) -> dict[str, Variable]:
    variables = (_variable(statement) for statement in text.split(";"))
    return {v.name: v for v in variables if v is not None}


def _statements(text: str, start: int) -> Iterator[tuple[str, str, int]]:
    """('open' | 'close' | 'label' | 'statement', text, line) up to the brace that closes the body at `start`."""
    line = text.count("\n", 0, start) + 1
    depth, position, pending, pending_line = 1, start, "", line
    for token in re.compile(r"[;{}:\n]").finditer(text, start):
        piece, char = text[position : token.start()], token[0]
        position = token.end()
        if not pending.strip() and piece.strip():
            pending_line = line
        pending += piece
        blank = not pending.strip()
        if char == "\n":
            line += 1
            pending += " "
        elif char == "{" and (blank or pending.lstrip().startswith(".pragma")):
            depth += 1
            yield "open", "", line
            pending = ""
        elif char == "}" and blank:
            depth -= 1
            yield "close", "", line
            if depth == 0:
                return
        elif char == ";":
            if not blank:
                yield "statement", pending.strip(), pending_line
            pending = ""
        elif char == ":" and re.fullmatch(r"\s*[\w$]+\s*", pending) and text[position : position + 1] != ":":
            yield "label", pending.strip(), pending_line
            pending = ""
        else:
            pending += char


def _parse_body(kernel: Kernel, text: str, start: int) -> None:
    scope = Scope()
    for kind, statement, line in _statements(text, start):
        if kind == "open":
            scope = Scope(outer=scope)
        elif kind == "close":
            scope = scope.outer or scope
        elif kind == "label":
            scope.labels[statement] = len(kernel.instructions)
        elif statement.startswith(".reg"):
            _declare_registers(kernel, scope, statement, line)
        elif statement.startswith((".local", ".shared")):
            variable = _variable(statement)
            if variable is None:
                raise UnknownInstruction(f"PTX line {line}: {statement}")
            kernel.variables[variable.name] = variable
        elif statement.startswith("."):
            if not statement.startswith((".loc", ".pragma", ".file", ".section")):
                raise UnknownInstruction(f"PTX line {line}: directive {statement}")
        else:
            kernel.instructions.append(_instruction(statement, scope, line, len(kernel.instructions)))


def _declare_registers(kernel: Kernel, scope: Scope, statement: str, line: int) -> None:
    found = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S)
    if not found or found[1] not in TYPE_BITS:
        raise UnknownInstruction(f"PTX line {line}: register declaration {statement!r}")
    for name in found[2].split(","):
        ranged = re.match(r"\s*(.*?)<(\d+)>\s*$", name)
        names = [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name.strip()]
        for each in names:
            scope.registers[each] = len(kernel.register_bits)
            kernel.register_bits.append(TYPE_BITS[found[1]])


def _instruction(statement: str, scope: Scope, line: int, index: int) -> Instruction:
    guard = re.match(r"@(!?)\s*([%\w$]+)\s+", statement)
    body = statement[guard.end() :] if guard else statement
    opcode, _, rest = body.replace("\t", " ").partition(" ")
    predicate = (guard[2], guard[1] == "!") if guard else None
    return Instruction(opcode, tuple(split_operands(rest)), predicate, scope, line, index)
