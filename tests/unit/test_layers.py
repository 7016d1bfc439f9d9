"""Imports go strictly downward (DESIGN.md, "Layers"), and importing quack costs nothing.

Most of this reads source text, so it also holds for modules that cannot be imported on this machine.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Longest matching entry wins; an entry covers its submodules, except for the root package itself.
LAYERS = {
    "quack.dsl": 0,
    "quack.arch": 1,
    "quack.gemm_work": 1,
    "quack.gemm_config": 1,
    "quack.gemm_port": 1,
    "quack.gemm_resources": 1,
    "quack.block_scales": 1,
    "quack.split_k": 1,
    "quack.cute_dtype": 1,
    "quack.activation": 1,
    "quack.cute_activation": 1,
    "quack.ops": 1,
    "quack.rounding": 1,
    "quack.reduction": 1,
    "quack.gemm_problem_adapter": 2,
    "quack.tile_scheduler": 2,
    "quack.triangular_scheduler": 2,
    "quack.work_stream": 2,
    "quack.draws": 1,
    "quack.varlen_adapter": 2,
    "quack.search_scheduler": 2,
    "quack.grouped_table": 1,
    "quack.grouped_adapter": 2,
    "quack.gather_adapter": 2,
    "quack.problem_order": 2,
    "quack.symmetric_adapter": 2,
    "quack.split_works": 2,
    "quack.stream_works": 2,
    "quack.split_pieces": 2,
    "quack.split_k_combine": 2,
    "quack.epilogue": 2,
    "quack.epilogue.accumulators": 1,
    "quack.epilogue.fragment_layout": 1,
    "quack.epilogue.tables": 1,
    "quack.gemm_base": 3,
    "quack.gemm_epilogue_plan": 3,
    "quack.symmetric_commit": 3,
    "quack.compose": 3,
    "quack.kernels": 4,
    "quack.execution": 3.5,  # above the plain modules of L3, below the arch kernels
    "quack.sm90": 4,
    "quack.sm100": 4,
    "quack.sm120": 4,
    "quack.kda.sm90": 4,
    "quack.kda.sm100": 4,
    "quack.decode.sm90": 4,
    "quack.runtime": 5,
    "quack.heuristics": 5,
    "quack.autotune": 5,
    "quack.activation_ref": 6,
    "quack.gemm_interface": 6,
    "quack.grouped": 6,
    "quack.grouped_activation": 6,
    "quack.grouped_reduction": 6,
    "quack.gemm_activation": 6,
    "quack.gemm_backward": 6,
    "quack.gemm_forward": 6,
    "quack.gemm_norm": 6,
    "quack.gemm_operands": 6,
    "quack.gemm_reduction": 6,
    "quack.rms_final_reduce": 6,
    "quack.gemm_symmetry": 6,
    "quack.blockscaled": 6,
    "quack.ragged_scales": 6,
    "quack.capabilities": 6,
    "quack.roofline": 6,
    "quack.linear": 6,
    "quack.mlp": 6,
    "quack.kda": 6,
    "quack.decode": 6,
    "quack": 6,
    "quack.emulator": None,  # beside the layers: knows nothing of quack
}
ARCHES = {"sm90", "sm100", "sm120"}
# `import quack` must stay free of CuTe DSL, so these load the CuTe side when it is first needed.
LAZY_IMPORTERS = {"quack", "quack.runtime.compile", "quack.runtime.dispatch"}
CUTLASS_USER_ABOVE_L4 = "quack.runtime.compile"
UPSTREAM_PATCHES = "quack.dsl.compat"
EMULATOR_USERS = ("quack.runtime.device", "quack.roofline")  # calls on CPU tensors, and counts


class Import(NamedTuple):
    target: str
    line: int
    in_function: bool


def entry_of(module: str) -> Optional[str]:
    """The LAYERS entry that covers `module`, or None."""
    covering = [e for e in LAYERS if module == e or (e != "quack" and module.startswith(e + "."))]
    return max(covering, key=len, default=None)


def modules_on_disk() -> dict[str, Path]:
    paths = sorted((ROOT / "quack").rglob("*.py"))
    dotted = (".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths)
    return dict(zip(dotted, paths))


MODULES = modules_on_disk()
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    """Every import in the file; `from package import submodule` names the submodule."""
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if module in PACKAGES else module.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in MODULES or entry_of(name) == name else base for name in names]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(target, node.lineno, id(node) in inside)


def own_import_fault(module: str, imported: Import) -> Optional[str]:
    source, target = entry_of(module), entry_of(imported.target)
    if target is None:
        return f"imports {imported.target}, which has no layer in LAYERS"
    if imported.in_function and module not in LAZY_IMPORTERS:
        return f"imports {imported.target} inside a function"
    if ARCHES & set(module.split(".")) and ARCHES & set(imported.target.split(".")) - set(module.split(".")):
        return f"is made for one architecture and imports another's {imported.target}"
    if "quack.emulator" in (source, target):
        known = source == target or (target == "quack.emulator" and {module, source} & set(EMULATOR_USERS))
        return None if known else f"imports {imported.target}: only {' and '.join(EMULATOR_USERS)} know the emulator"
    below = LAYERS[target] < LAYERS[source]
    beside = LAYERS[target] == LAYERS[source] and share_a_shelf(source, target)
    if not (below or beside):
        return f"(L{LAYERS[source]}) imports {imported.target} (L{LAYERS[target]})"
    return None


def share_a_shelf(source: str, target: str) -> bool:
    """Entries of one layer that may import each other; test_no_import_cycles keeps order among them.

    One folder's modules, the root's plain modules, and everything on the host (L5, L6).
    Not: an epilogue and a scheduler, or a GEMM kernel and a KDA kernel.
    """
    plain_modules = not {source, target} & PACKAGES
    return source == target or plain_modules or LAYERS[source] >= 5


def foreign_import_fault(module: str, imported: Import) -> Optional[str]:
    layer, top = LAYERS[entry_of(module)], imported.target.split(".")[0]
    if top == "torch" and (layer is None or layer < 5):
        return "imports torch, which belongs to L5 and L6"
    if top == "cutlass" and (layer is None or layer > 4) and module != CUTLASS_USER_ABOVE_L4:
        return f"imports {imported.target}, which belongs to L0-L4 and {CUTLASS_USER_ABOVE_L4}"
    return None


def patch_faults(module: str, tree: ast.Module) -> Iterator[str]:
    """Assignments to attributes of imported names, plain or by setattr."""
    if module == UPSTREAM_PATCHES:
        return
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    imported = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    for node in ast.walk(tree):
        patched = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and node.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            patched = node.args[0]
        while isinstance(patched, ast.Attribute):
            patched = patched.value
        if isinstance(patched, ast.Name) and patched.id in imported:
            yield f"{module}:{node.lineno} assigns to an attribute of the imported {patched.id}"


def faults(module: str, text: str) -> list[str]:
    if entry_of(module) is None:
        return [f"{module} has no layer: add it to LAYERS, or put it where one is"]
    tree, found = ast.parse(text), []
    for imported in imports_of(module, tree):
        own = imported.target.split(".")[0] == "quack"
        fault = (own_import_fault if own else foreign_import_fault)(module, imported)
        if fault:
            found.append(f"{module}:{imported.line} {fault}")
    return [*found, *patch_faults(module, tree)]


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_its_layer(module):
    found = faults(module, MODULES[module].read_text())
    assert not found, "\n".join(found)


def test_no_import_cycles():
    edges = {}
    for name, path in MODULES.items():
        imports = imports_of(name, ast.parse(path.read_text()))
        edges[name] = {i.target for i in imports if not i.in_function} & set(MODULES)
    while leaves := {name for name, targets in edges.items() if not targets - {name}}:
        edges = {name: targets - leaves for name, targets in edges.items() if name not in leaves}
    assert not edges, f"import cycle among or below {sorted(edges)}"


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("quack.newcomer", "", "no layer"),
        ("quack.gemm_config", "from .newcomer import X", "no layer"),
        ("quack.gemm_work", "from . import tile_scheduler", "(L1) imports quack.tile_scheduler (L2)"),
        ("quack.tile_scheduler", "from quack.gemm_base import X", "(L2) imports quack.gemm_base (L3)"),
        ("quack.tile_scheduler", "from .epilogue import X", "(L2) imports quack.epilogue (L2)"),
        ("quack.sm90.gemm", "from ..runtime import spec", "(L4) imports quack.runtime"),
        ("quack.sm90.gemm", "from ..sm100.gemm import X", "another's"),
        ("quack.heuristics.sm90", "import quack.sm100.gemm", "another's"),
        ("quack.gemm_base", "def f():\n    from .gemm_work import X", "inside a function"),
        ("quack.gemm_base", "import torch.nn", "imports torch"),
        ("quack.emulator.machine", "import torch", "imports torch"),
        ("quack.emulator.machine", "from ..gemm_config import X", "the emulator"),
        ("quack.runtime.dispatch", "from ..emulator import X", "the emulator"),
        ("quack.runtime.dispatch", "def f():\n    import cutlass.cute as cute", "imports cutlass"),
        ("quack.runtime.spec", "import torch\ntorch.backends.x = 1", "imported torch"),
        ("quack.dsl.copy", "from cutlass import cute\nsetattr(cute.X, 'y', 1)", "imported cute"),
    ],
)
def test_faults_are_found(module, text, fault):
    assert any(fault in found for found in faults(module, text)), faults(module, text)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("quack.sm90.gemm", "from . import resources\nfrom .. import tile_scheduler\nimport cutlass"),
        ("quack.linear", "import torch\nfrom .gemm_interface import gemm"),
        ("quack.runtime.compile", "def f():\n    import cutlass\n    from ..sm90.gemm import X"),
        ("quack.runtime.device", "from ..emulator import X"),
        ("quack.dsl.compat", "import cutlass\ncutlass.x = 1"),
        ("quack.kda", "from .sm90 import chunk"),
        ("quack", "def __getattr__(name):\n    from . import gemm_interface"),
    ],
)
def test_legal_imports_pass(module, text):
    assert not faults(module, text)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_quack_loads_no_cute_dsl_and_no_cuda_context():
    run_python(
        "import sys, quack\n"
        "assert quack.__file__, 'quack/__init__.py is missing'\n"
        "loaded = [m for m in sys.modules if m.split('.')[0] == 'cutlass']\n"
        "assert not loaded, loaded\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()"
    )


def test_importing_quack_is_quick():
    timed = "import time, torch; t = time.perf_counter(); import quack; print(time.perf_counter() - t)"
    assert min(float(run_python(timed)) for _ in range(3)) < 0.3
