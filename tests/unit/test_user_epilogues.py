"""Epilogues and commit policies of users: what is a new kernel and what is not, and what is refused. Nothing is compiled."""

import enum
import functools
import linecache
import math
import pickle
import subprocess
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cutlass.cute as cute
import pytest
import torch

import quack
from quack import ops
from quack.gemm_port import PortKind, PortSource
from quack.runtime.compile import cache_key, resolve
from quack.runtime.dispatch import get_function
from quack.runtime.epilogue import Allocated
from quack.runtime.plan import GemmRequest, describe_request
from quack.runtime.spec import GemmSpec, UnsupportedGemm
from quack.runtime.user_code import content_of
from quack.runtime.user_epilogue import user_call

ROOT = Path(__file__).resolve().parents[2]
M, N, K = 64, 48, 32
SLOPE = 0.5
WEIGHTS = [1.0, 2.0]
BIAS = torch.zeros(N)


class Made(NamedTuple):
    """What a call with a user's epilogue comes to."""

    request: GemmRequest
    outputs: tuple[str, ...]


def call(epilogue: Any = None, commit: Any = None, C: Optional[torch.Tensor] = None, **changes: Any) -> Made:
    A, B, out = torch.zeros(M, K).bfloat16(), torch.zeros(K, N).bfloat16(), torch.zeros(M, N).bfloat16()
    made = user_call({"A": A, "B": B, "out": out, "C": C, **changes}, epilogue, commit)
    return Made(made.form.complete(made.operands, (None, False, None, False, None, 1, None)), made.outputs)


def names(*epilogue: Any) -> tuple[str, ...]:
    return tuple(term.mixin for term in call(epilogue).request.epilogue)


def spec_of(epilogue: Any = None, commit: Any = None) -> GemmSpec:
    with quack.emulator.use("sm90"):
        return replace(describe_request(call(epilogue, commit).request)[1], arch="sm_90a")


def load(text: str, name: str = "cell") -> dict[str, Any]:
    """A notebook cell: no module, the source in linecache."""
    linecache.cache[f"<{name}>"] = (len(text), None, text.splitlines(True), f"<{name}>")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(
        compile("import quack\nfrom quack import ops\nfrom dataclasses import dataclass\n" + text, f"<{name}>", "exec"),
        space,
    )
    return space


# ---- functions --------------------------------------------------------------------------------------------------------


def test_equal_functions_share_one_kernel():
    here = lambda acc: ops.relu(acc) * 2.0  # noqa: E731

    def there(acc):
        return ops.relu(acc) * 2.0

    assert names(here) == names(there) == names(lambda acc: ops.relu(acc) * 2.0)
    assert names(load("f = lambda acc: ops.relu(acc) * 2.0")["f"]) == names(here)


@pytest.mark.parametrize(
    "other",
    [
        lambda acc: ops.relu(acc) * 3.0,
        lambda acc: ops.relu(acc) * 2,
        lambda acc: ops.relu(acc) + 2.0,
        lambda acc: ops.silu(acc) * 2.0,
        lambda acc: ops.relu(acc) * SLOPE,
        lambda acc: ops.relu(acc) * -0.0,
        lambda acc: ops.relu(acc) * 0.0,
    ],
)
def test_different_functions_do_not(other):
    assert names(lambda acc: ops.relu(acc) * 2.0) != names(other)


def test_signed_zero_makes_a_difference():
    assert names(lambda acc: acc * 0.0) != names(lambda acc: acc * -0.0)


def test_a_changed_global_is_noticed(monkeypatch):
    function = lambda acc: acc * SLOPE  # noqa: E731
    first = names(function)
    assert names(function) == first
    monkeypatch.setitem(globals(), "SLOPE", 0.25)
    assert names(function) != first
    monkeypatch.setitem(globals(), "SLOPE", 0.5)
    assert names(function) == first


def test_a_changed_closure_is_noticed():
    slope = 0.5
    function = lambda acc: acc * slope  # noqa: E731
    first = names(function)
    slope = 0.25
    assert names(function) != first


def test_the_same_closure_code_with_other_values():
    def scaled(by):
        return lambda acc: acc * by

    assert names(scaled(2.0)) == names(scaled(2.0)) != names(scaled(3.0))


def helper(x):
    return x * 2.0


def test_called_functions_count(monkeypatch):
    function = lambda acc: helper(acc)  # noqa: E731
    first = names(function)
    monkeypatch.setattr(helper, "__code__", (lambda x: x * 3.0).__code__)
    assert names(function) != first


def test_functions_in_other_modules_count(monkeypatch):
    module = types.ModuleType("my_helpers")
    module.scale = lambda x: x * 2.0
    monkeypatch.setitem(globals(), "my_helpers", module)
    function = lambda acc: my_helpers.scale(acc)  # noqa: E731, F821
    first = names(function)
    module.scale = lambda x: x * 3.0
    assert names(function) != first
    module.unused = 1
    assert names(function) != first


def test_a_borrowed_name_hides_nothing():
    """`functools.wraps` gives a function the name of another."""

    def wrapped(by):
        @functools.wraps(ops.relu)
        def function(x):
            return x * by

        return function

    def content(by):
        function = wrapped(by)
        return content_of(lambda acc: function(acc)).digest

    assert content(1.0) == content(1.0) != content(2.0)


def test_a_module_named_like_one_of_pythons(tmp_path, monkeypatch):
    """Such as a user's package `test`, which is not the standard library's."""
    (tmp_path / "test").mkdir()
    code = (
        "from quack.runtime.user_code import content_of\n"
        "from test.helpers import scale\n"
        "print(content_of(lambda acc: scale(acc)).digest)\n"
    )
    digests = set()
    for factor in (2, 3):
        (tmp_path / "test" / "helpers.py").write_text(f"def scale(x):\n    return x * {factor}\n")
        env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
        (tmp_path / "test" / "__init__.py").write_text("")
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 2


class Ordered:
    def __init__(self, x):
        self.x = x

    def __lt__(self, other):
        return self.x < other.x


def test_comparisons_of_helpers_count(monkeypatch):
    function = lambda acc: acc if Ordered(1) < Ordered(2) else -acc  # noqa: E731
    first = names(function)
    monkeypatch.setattr(Ordered, "__lt__", lambda self, other: self.x > other.x)
    assert names(function) != first


def test_imported_library_functions_count_by_name():
    from cutlass.cute.arch import fmax

    assert names(lambda acc: fmax(acc, math.exp(1.0)), lambda acc: max(acc, 1.0) if callable(acc) else acc)


def test_recursion_ends():
    def power(x, n):
        return x if n == 1 else x * power(x, n - 1)

    assert names(lambda acc: power(acc, 3)) == names(lambda acc: power(acc, 3))


def test_run_time_values_are_no_part_of_the_kernel():
    softcap = quack.pointwise(lambda acc, cap=1.0: cap * ops.tanh(acc / cap))
    assert names(softcap(cap=30.0)) == names(softcap(50)) == names(softcap())
    specs = [spec_of(softcap(cap)) for cap in (30.0, 50.0, torch.tensor([2.0]))]
    assert specs[0] == specs[1] != specs[2]
    assert specs[2].epilogue[0].ports[0].source is PortSource.DEVICE


def test_kinds_of_parameters():
    function = lambda acc, s, b: acc * s + b  # noqa: E731
    rows = quack.pointwise(function, s=quack.RowVector, b=quack.TileInput)(torch.zeros(N), torch.zeros(M, N))
    columns = quack.pointwise(function, s=quack.ColVector, b=quack.Scalar)(torch.zeros(M), 1.0)
    assert names(rows) != names(columns)
    assert [port.kind for port in spec_of(rows).epilogue[0].ports] == [PortKind.ROW_VECTOR, PortKind.TILE_INPUT]
    mixin = resolve(names(columns)[0])
    assert list(mixin.port_kinds().values()) == [PortKind.COL_VECTOR, PortKind.SCALAR]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: quack.pointwise(lambda acc, s: acc * s)(torch.zeros(N)), "quack.RowVector"),
        (lambda: quack.pointwise(lambda acc, s: acc * s)("2"), "expected a number"),
        (lambda: quack.pointwise(lambda acc, s: acc * s)(True), "captured"),
        (lambda: quack.pointwise(lambda acc: acc, s=quack.Scalar), "s is no parameter"),
        (lambda: quack.pointwise(lambda acc, s: acc, s=quack.RowPartials), "quack.Scalar, Integer, RowVector"),
        (lambda: quack.pointwise(lambda acc, s: acc, s=float), "expected quack.Scalar"),
        (lambda: quack.pointwise(lambda acc, *s: acc), "not a plain one"),
        (lambda: quack.pointwise(lambda: 1.0), "no parameters"),
        (lambda: quack.pointwise(math.exp), "not a builtin_function_or_method"),
        (lambda: names(lambda acc, s: acc * s), "parameter s without a value"),
        (lambda: names(quack.pointwise(lambda acc, s: acc)), "call it with the values"),
        (lambda: names(lambda acc: acc * WEIGHTS[0]), "WEIGHTS is a list.*write a tuple"),
        (lambda: names(lambda acc: acc + BIAS[0]), "BIAS is a Tensor.*make it a port"),
        (lambda: names(lambda acc: acc * undefined), "undefined, which is not defined"),  # noqa: F821
        (lambda: names(lambda acc: my_object(acc)), "my_object is a partialmethod.*plain function"),  # noqa: F821
        (lambda: names(5), "epilogue is int, expected an instance of a quack.EpilogueMixin"),
        (lambda: names(RowMax), r"epilogue is RowMax.*epilogue=RowMax\(\.\.\.\)"),
    ],
)
def test_errors_of_functions(make, text, monkeypatch):
    class partialmethod:
        def __call__(self, x):
            return x

    monkeypatch.setitem(globals(), "my_object", partialmethod())
    with pytest.raises(TypeError, match=text):
        make()


# ---- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMax(quack.EpilogueMixin):
    row_max: quack.RowPartials

    def begin(self, ctx):
        return ctx.row_state(-math.inf)

    def visit(self, ctx, state, frag):
        return ctx.reduce_rows(state, frag, ctx.within_columns(frag, frag.acc, -math.inf), ops.maximum)

    def end(self, ctx, state):
        ctx.store_rows(self.row_max, ctx.share_rows(state, ops.maximum))


class Mode(enum.Enum):
    ADD = 1
    MULTIPLY = 2


@dataclass(frozen=True)
class Statics(quack.EpilogueMixin):
    scale: quack.Scalar
    value: Any = None
    is_pointwise = True

    def visit(self, ctx, state, frag):
        frag.acc.store(frag.acc.load() * self.value)
        return state


def test_statics_are_keyed_by_value_and_type():
    values = [
        1,
        1.0,
        True,
        2,
        0.0,
        -0.0,
        "1",
        None,
        Mode.ADD,
        Mode.MULTIPLY,
        torch.float16,
        torch.float32,
        (1,),
        (1.0,),
        (),
    ]
    found = [names(Statics(1.0, value))[0] for value in values]
    assert len(set(found)) == len(values)
    assert found == [names(Statics(2.0, value))[0] for value in values]
    specs = [spec_of(Statics(1.0, value)) for value in values]
    assert (
        len(set(specs))
        == len({spec.digest() for spec in specs})
        == len({cache_key(spec) for spec in specs})
        == len(values)
    )
    assert dict(specs[0].epilogue[0].statics) == {"value": 1}


@pytest.mark.parametrize(
    "value, text",
    [
        (torch.zeros(3), "Statics.value is a Tensor.*make it a port: a field annotated quack.RowVector"),
        ([1], "Statics.value is a list.*write a tuple"),
        (((1, [2]),), "Statics.value is a list"),
        (math.exp, "write a plain function, or a method of the class"),
        (object(), "numbers, strings, enums or tuples"),
    ],
)
def test_statics_that_cannot_be_keyed(value, text):
    with pytest.raises(TypeError, match=text):
        names(Statics(1.0, value))


def test_specs_are_hashable_picklable_and_stable():
    spec = spec_of((RowMax(), Statics(1.0, Mode.ADD)))
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec and hash(again) == hash(spec) and repr(again) == repr(spec)
    assert resolve(spec.epilogue[0].mixin) is RowMax


TEXT = """
@dataclass(frozen=True)
class Scaled(quack.EpilogueMixin):
    scale: quack.RowVector
    def visit(self, ctx, state, frag):
        frag.update(lambda x, s: x * s + {0}, ctx.values(self.scale, frag))
"""


def test_the_same_name_with_other_content_is_another_class():
    """A notebook cell that runs again."""
    first, same, other = (load(TEXT.format(n), f"cell {i}")["Scaled"] for i, n in enumerate((1.0, 1.0, 2.0)))
    v = torch.zeros(N)
    assert names(first(v)) == names(same(v)) != names(other(v))
    assert resolve(names(other(v))[0]) is other
    assert cache_key(spec_of(first(v))) == cache_key(spec_of(same(v))) != cache_key(spec_of(other(v)))


def test_keys_are_the_same_in_another_process_and_file(tmp_path):
    """The disk cache is shared by all processes; hash seeds and module names must not matter."""
    code = (
        "import torch, quack\n"
        "from quack import ops\n"
        "from dataclasses import dataclass\n" + TEXT.format(1.0) + "from quack.runtime.user_epilogue import user_call\n"
        "r = {'A': torch.zeros(64, 32), 'B': torch.zeros(32, 48), 'out': torch.zeros(64, 48)}\n"
        "f = lambda acc: ops.relu(acc) if 'x' in frozenset({'x', 'y', 'z'}) else acc\n"
        "made = user_call(r, (Scaled(torch.zeros(48)), f), None)\n"
        "print(*(t.mixin for t in made.form.complete(made.operands, (None, False, None, False, None, 1, None)).epilogue))\n"
    )
    path = tmp_path / "script.py"
    path.write_text(code)
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "CUTE_DSL_ARCH": "sm_90a"}
    outputs = {
        subprocess.run(
            [sys.executable, path], env=env | {"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
        ).stdout
        for s in ("1", "2")
    }
    f = lambda acc: ops.relu(acc) if "x" in frozenset({"x", "y", "z"}) else acc  # noqa: E731
    here = names(load(TEXT.format(1.0))["Scaled"](torch.zeros(N)), f)
    assert outputs == {" ".join(here) + "\n"}


def test_bases_attributes_and_monkeypatches_count(monkeypatch):
    class Base(quack.EpilogueMixin):
        factor = 2.0

        def visit(self, ctx, state, frag):
            frag.update(lambda x: self.apply(x))

        def apply(self, x):
            return x * self.factor

    class Plain(Base):
        pass

    class Tripled(Base):
        factor = 3.0

    class Squared(Base):
        def apply(self, x):
            return super().apply(x) * x

    assert len({names(cls())[0] for cls in (Base, Plain, Tripled, Squared)}) == 4
    before = names(Plain())
    monkeypatch.setattr(Base, "factor", 4.0)
    assert names(Plain()) != before
    monkeypatch.setattr(Plain, "end", lambda self, ctx, state: None, raising=False)
    monkeypatch.setattr(Base, "factor", 2.0)
    assert names(Plain()) != before


def test_what_only_the_host_runs_does_not_count():
    checked = load(TEXT.format(1.0) + "    def __post_init__(self):\n        assert self.scale.dim() == 1\n")["Scaled"]
    assert names(checked(torch.zeros(N))) == names(load(TEXT.format(1.0))["Scaled"](torch.zeros(N)))


class Pair(NamedTuple):
    low: float
    high: float = 1.0


@dataclass(frozen=True)
class Affine:
    slope: float

    def __call__(self, x):
        return x * self.slope


DOUBLE = Affine(2.0)


def test_helper_classes_and_values(monkeypatch):
    pair = lambda acc: ops.minimum(acc, Pair(0.0).high)  # noqa: E731
    value = lambda acc: DOUBLE(acc)  # noqa: E731
    partial = functools.partial(helper)
    first = names(pair, value, lambda acc: partial(acc), lambda acc: acc if Mode.ADD.value else -acc)
    monkeypatch.setitem(globals(), "DOUBLE", Affine(3.0))
    second = names(pair, value, lambda acc: partial(acc), lambda acc: acc if Mode.ADD.value else -acc)
    assert [a == b for a, b in zip(first, second)] == [True, False, True, True]


def test_annotations_as_text():
    text = "from __future__ import annotations\n" + (
        "import quack\nfrom quack import RowVector\nfrom typing import Optional\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Text(quack.EpilogueMixin):\n"
        "    a: RowVector\n    b: quack.Scalar\n    n: int\n    c: Optional[quack.TileOutput]\n"
        "    d: quack.ColVector | None = None\n    e: quack.RowPartials\n"
    )
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<text>", "exec", dont_inherit=True), space)
    cls = space["Text"]
    assert list(cls.port_kinds()) == ["a", "b", "c", "d", "e"] and cls.optional_ports() == {"c", "d"}
    term = call(cls(torch.zeros(N), 1.0, 3)).request.epilogue[0]
    assert [p.value is None for p in term.ports] == [False, False, True, True, False]
    assert term.ports[4].value is Allocated.PARTIALS and term.statics == (("n", 3),)


@dataclass(frozen=True)
class Outputs(quack.EpilogueMixin):
    tile: quack.TileOutput
    rows: quack.RowPartials
    maybe: Optional[quack.TileOutput] = None
    maybe_columns: Optional[quack.ColPartials] = None
    needs_c = True


def test_outputs():
    C = torch.zeros(M, N).bfloat16()
    made = call(Outputs(), C=C)
    assert made.outputs == ("tile", "rows")
    tile = made.request.epilogue[0].ports[0].value
    assert tile.shape == (M, N) and tile.dtype is torch.bfloat16
    half = torch.zeros(M, N // 2)
    made = call((RowMax(), Outputs(maybe=half)), C=C)
    assert made.outputs == ("epilogue[0].row_max", "epilogue[1].tile", "epilogue[1].rows", "epilogue[1].maybe")
    halves = [p.is_halved for p in made.request.epilogue[1].ports]
    assert halves == [False, False, True, False]
    assert call(Outputs(maybe=True, maybe_columns=True), C=C).outputs == ("tile", "rows", "maybe", "maybe_columns")
    assert call(lambda acc: acc).outputs == ()


def test_c_is_for_one_reader():
    C = torch.zeros(M, N).bfloat16()
    assert "AddC" not in str(call(Outputs(), C=C).request.terms)
    assert "AddC" in str(call(RowMax(), C=C).request.terms)
    with pytest.raises(ValueError, match="Outputs reads C .needs_c., but the call has none"):
        call(Outputs())
    with pytest.raises(ValueError, match="beta is 2.0, but Outputs reads C itself"):
        call(Outputs(), C=C, beta=2.0)


@dataclass
class Thawed(quack.EpilogueMixin):
    scale: quack.Scalar


class Undecorated(quack.EpilogueMixin):
    scale: quack.Scalar = 1.0


@dataclass(frozen=True)
class Transposable(RowMax):
    is_pointwise = True


@dataclass(frozen=True)
class NamedThing(quack.EpilogueMixin):
    scale: quack.Scalar
    row: quack.RowVector
    index: Optional[quack.Integer] = None
    partials: quack.RowPartials = None


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: Thawed(1.0), TypeError, "Thawed is not a frozen dataclass"),
        (lambda: Undecorated(), TypeError, "Undecorated is not a frozen dataclass"),
        (lambda: Transposable(), TypeError, "is_pointwise but reduces"),
        (lambda: NamedThing("1", BIAS), TypeError, "scale is a str, expected a number"),
        (lambda: NamedThing(None, BIAS), TypeError, "scale is None, expected a number.*Optional"),
        (lambda: NamedThing(1.0, 2.0), TypeError, "row is a float, expected a tensor"),
        (lambda: NamedThing(1.0, BIAS, partials=torch.zeros(3)), TypeError, "partials is allocated by the call"),
        (lambda: NamedThing(1.0, torch.zeros(N + 1)), ValueError, "row"),
        (lambda: NamedThing(1.0, BIAS, -1), ValueError, "index is -1"),
        (lambda: NamedThing(1.0, BIAS, 1.5), ValueError, "index is 1.5"),
    ],
)
def test_errors_of_classes(make, error, text):
    with pytest.raises(error, match=text):
        spec_of(make())


def test_swapping_needs_a_pointwise_form():
    with quack.emulator.use("sm90"):
        assert describe_request(call(RowMax()).request)[2] is None
        assert describe_request(call(Statics(1.0, 1.0)).request)[2] is not None
        assert describe_request(call(lambda acc: acc).request)[2] is not None
        assert describe_request(call(commit=Lower).request)[2] is None


# ---- commit policies and compilation ----------------------------------------------------------------------------------


class Lower(quack.DefaultCommit):
    @cute.jit
    def commit(self, ctx, io, frag, state):
        return state


def test_commit_policies_are_part_of_the_spec():
    class Other(quack.DefaultCommit):
        pass

    specs = [spec_of(commit=commit) for commit in (None, Lower, Other)]
    assert len({cache_key(spec) for spec in specs}) == 3
    assert resolve(specs[1].plan) is Lower


@pytest.mark.parametrize("commit", [5, Lower(), RowMax, "Lower"])
def test_errors_of_commit_policies(commit):
    with pytest.raises(TypeError, match="expected a subclass of quack.EpiloguePlan"):
        call(commit=commit)


def test_jit_without_a_source():
    space: dict[str, Any] = {"__name__": "__main__"}
    text = "import quack, cutlass.cute as cute\nclass C(quack.DefaultCommit):\n    @cute.jit\n    def drain(self, x): pass\n"
    exec(compile(text, "<no source>", "exec"), space)
    with pytest.raises(TypeError, match=r"drain is decorated with @cute.jit.*no file"):
        call(commit=space["C"])


def test_another_process_has_to_define_it():
    spec = spec_of(lambda acc: acc * 7.0)
    text = repr(pickle.dumps(spec))
    code = f"import pickle\nfrom quack.runtime.compile import cache_key\ncache_key(pickle.loads({text}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "LookupError" in done.stderr and "was defined in another process" in done.stderr


def test_sources_of_what_is_used_belong_to_the_key():
    assert "quack.cute_activation" in content_of(lambda acc: ops.silu(acc)).modules
    assert "quack.ops" in content_of(lambda acc: quack.ops.tanh(acc)).modules


def test_grouped_calls_take_lists_on_ports():
    A, B = [torch.zeros(M, K).bfloat16()] * 2, [torch.zeros(K, N).bfloat16()] * 2
    add = quack.pointwise(lambda acc, b: acc + b, b=quack.RowVector)
    with quack.emulator.use("sm90"):
        with pytest.raises(TypeError, match="b is a Tensor, expected a list of tensors"):
            quack.gemm_grouped(A, B, epilogue=add(BIAS))
        with pytest.raises(ValueError, match="b has 1 tensors and A_list has 2"):
            quack.gemm_grouped(A, B, epilogue=add([BIAS]))
        with pytest.raises(ValueError, match=r"b\[1\] has 2 dimensions"):
            quack.gemm_grouped(A, B, epilogue=add([BIAS, BIAS[None]]))
        with pytest.raises(ValueError, match=r"problem 1: b has shape .*expected \(\d+,\)"):
            quack.gemm_grouped(A, B, epilogue=add([BIAS, BIAS[:-1]]))
        with pytest.raises(UnsupportedGemm, match="no form for D.T"):
            quack.gemm_grouped(A, B, epilogue=RowMax(), config=quack.GemmConfig(64, 64, swap_ab=True))


def test_tiles_that_might_spill_are_refused():
    """Measured: 128 x 192 ping-pong spills with a tanh of a division per element."""
    config = quack.GemmConfig(128, 192, pingpong=True, cluster_m=1)
    spec = replace(spec_of(lambda acc: acc), config=config)
    with pytest.raises(UnsupportedGemm, match="accumulator registers"):
        get_function(spec)
