"""A `Roof` as a table for a terminal, at most 110 columns wide, and as a dict for JSON."""

from dataclasses import asdict
from typing import Any, Optional

from ..runtime.budget import budget_of
from .lines import Amount, Line, Resource, Roof

COLUMNS = ("", "a clock", "k tile", "clocks", "per tile", "clocks", "tile clk", "of MMA")
ROW = "{:26} {:>10} {:>11} {:>8} {:>11} {:>8} {:>10} {:>7}"


def report(roof: Roof) -> str:
    """Modelled lines, counted ones below each, then what bounds."""
    lines = [*_head(roof), "", ROW.format(*COLUMNS).rstrip()]
    for line in roof.lines:
        lines.append(
            _row(roof, f"{line.resource.label}, {line.resource.unit}", _number(line.rate), line.modelled, line)
        )
        if line.counted is not None:
            lines.append(_row(roof, "  counted", _agreement(roof, line), line.counted, line))
    return "\n".join([*lines, "", *_bounds(roof)])


def _head(roof: Roof) -> list[str]:
    spec, shape, config = roof.spec, roof.shape, roof.spec.config
    dtypes = f"{spec.operands.a.dtype.value} -> {spec.operands.d.dtype.value}{' with C' if spec.operands.c else ''}"
    pair = ", half of a pair's tile" if config.is_pair else ""
    return [
        f"{spec.arch} ({roof.chip.name}): {shape.m} x {shape.n} x {shape.k}, {dtypes}",
        f"{config}, {budget_of(spec).ab_stages} stages",
        f"one CTA: {config.cta_tile_m} x {config.tile_n}{pair}, {roof.k_tiles} k tiles of {config.tile_k}; peak rates of an SM",
    ]


def _row(roof: Roof, label: str, note: str, amount: Amount, line: Line) -> str:
    clocks, mma = amount.over(line.rate), roof.line(Resource.MMA).clocks.total(roof.k_tiles)
    whole = clocks.total(roof.k_tiles)
    cells = [_number(amount.k_tile), _number(clocks.k_tile), _number(amount.tile), _number(clocks.tile), _number(whole)]
    return ROW.format(label, note, *cells, f"{100 * whole / mma:.1f}%" if mma else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _agreement(roof: Roof, line: Line) -> str:
    """Of the counted with the modelled amount."""
    assert line.counted is not None
    modelled, counted = line.modelled.total(roof.k_tiles), line.counted.total(roof.k_tiles)
    if line.modelled == line.counted:
        return "="
    return f"x {counted / modelled:.2f}" if modelled else "not 0"


def _bounds(roof: Roof) -> list[str]:
    main, tile, drain = roof.main_loop_bound, roof.tile_bound, roof.drain_bound
    found = [
        f"main loop: bound by {_name(main)}, {_number(main.clocks.k_tile)} clocks a k tile",
        f"epilogue: {_number(drain.clocks.tile)} clocks of {_name(drain)}",
        f"  {_subtiles(roof)}",
    ]
    if roof.is_drain_hidden:
        clocks = tile.clocks.total(roof.k_tiles)
        found.append(f"tile, beside another's epilogue: bound by {_name(tile)}, {_number(clocks)} clocks")
    else:
        clocks = main.clocks.k_tile * roof.k_tiles + drain.clocks.tile
        found.append(f"tile, main loop and then epilogue: {_number(clocks)} clocks")
    return [*found, f"heuristics, sustained rates: {roof.predicted_ns / 1e3:.1f} us, {roof.tflops:.0f} TFLOP/s"]


def _subtiles(roof: Roof) -> str:
    budget, config, issue = budget_of(roof.spec), roof.spec.config, roof.line(Resource.ISSUE)
    count = config.cta_tile_m * config.tile_n // (budget.slab_m * budget.epi_n)
    each = f"{issue.modelled.tile / count / 4:.0f}"
    counted = "" if issue.counted is None else f", counted {issue.counted.tile / count / 4:.1f}"
    return f"subtiles of {budget.slab_m} x {budget.epi_n}: {count}, {each} instructions of each of 4 warps{counted}"


def _name(line: Line) -> str:
    return line.resource.label


def as_dict(roof: Roof) -> dict[str, Any]:
    """Everything, of types that JSON has."""
    config = roof.spec.config
    return {
        "arch": roof.spec.arch,
        "chip": roof.chip.name,
        "shape": [roof.shape.m, roof.shape.n, roof.shape.k, roof.shape.batch],
        "config": str(config),
        "cta_tile": [config.cta_tile_m, config.tile_n, config.tile_k],
        "k_tiles": roof.k_tiles,
        "lines": [_line_dict(line) for line in roof.lines],
        "main_loop_bound": roof.main_loop_bound.resource.name.lower(),
        "tile_bound": roof.tile_bound.resource.name.lower(),
        "is_drain_hidden": roof.is_drain_hidden,
        "predicted_ns": roof.predicted_ns,
        "predicted_tflops": roof.tflops,
    }


def _line_dict(line: Line) -> dict[str, Any]:
    return {
        "resource": line.resource.name.lower(),
        "unit": line.resource.unit,
        "rate_per_clock": line.rate,
        "modelled": asdict(line.modelled),
        "clocks": asdict(line.clocks),
        "counted": _optional(line.counted),
        "counted_clocks": _optional(line.counted_clocks),
    }


def _optional(amount: Optional[Amount]) -> Optional[dict[str, Any]]:
    return asdict(amount) if amount is not None else None
