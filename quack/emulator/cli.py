"""The command line of the emulator: run a script emulated, list what is implemented, look through a PTX file."""

import argparse
import json
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import checks, isa, opcodes  # noqa: F401  (isa fills the table of opcodes)
from .asynchrony import Schedule
from .errors import EmulationError
from .observer import Observer
from .program import Execute, Program
from .ptx import Instruction, Kernel, parse
from .runtime.device import DEVICES
from .settings import use
from .stats import Stats
from .trace import Trace

PROGRAM = "python -m quack.emulator"
_RUN_HELP = """\
Runs SCRIPT as `python SCRIPT` would, with every quack call on CPU tensors and every quack.emulator.launch emulated.

Options of `run` may stand before SCRIPT or behind it. What stands behind SCRIPT and is none of them goes to the script, in
order; so does everything behind `--`, which a script needs whose own options have the same names:

  %(prog)s bench.py --size 512 --arch sm90 --stats         the script gets --size 512
  %(prog)s --arch sm90 bench.py -- --stats                 the script gets --stats

The exit code is that of the script; 1 if the emulator found an error, 2 for a wrong command line.
"""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments[:end])
    command: Callable[[argparse.Namespace, list[str]], int] = options.command
    rest = unknown + arguments[end + 1 :]
    if command is not run and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return command(options, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run_options(
        commands.add_parser(
            "run", help="run a Python script emulated", description=_RUN_HELP, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options] SCRIPT [script args...]",
        )
    )  # fmt: skip
    listing = commands.add_parser("opcodes", help="the opcodes that are implemented", allow_abbrev=False)
    listing.add_argument("--markdown", action="store_true", help="as a Markdown table")
    listing.set_defaults(command=list_opcodes)
    survey = commands.add_parser("ptx", help="what PTX files use that is not implemented", allow_abbrev=False)
    survey.add_argument("files", nargs="+", metavar="FILE.ptx", type=Path)
    survey.set_defaults(command=survey_files)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", metavar="SCRIPT", type=_script, help="a Python file")
    parser.add_argument("--arch", choices=tuple(DEVICES), help="what quack compiles for (default: QUACK_EMULATE)")
    parser.add_argument("--schedule", type=_schedule, metavar="S", help="eager (default), latest or random:SEED")
    parser.add_argument(
        "--check", type=_checks, metavar="C", help=f"all, or some of {','.join(check.value for check in checks.Check)}"
    )
    parser.add_argument("--sms", type=_count, metavar="N", help="SMs of the emulated device")
    parser.add_argument("--stats", action="store_true", help="print counts after the run (quack.emulator.stats)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write these counts as JSON")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for Perfetto (quack.emulator.trace)")
    parser.add_argument("--traceback", action="store_true", help="show where in Python an error of the emulator arose")
    parser.set_defaults(command=run)


def _script(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return text


def _schedule(text: str) -> str:
    return _or_usage(lambda: str(Schedule.parse(text)))


def _checks(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    _or_usage(lambda: checks.parse(names))
    return names


def _or_usage(make: Callable[[], Any]) -> Any:
    """The messages of ValueErrors for argparse."""
    try:
        return make()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _complain(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


# ---- run --------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, script_arguments: list[str]) -> int:
    """Run the script; then print and write what was counted, after an error, too."""
    stats = Stats() if options.stats or options.json else None
    trace = Trace() if options.trace else None
    observers: list[Observer] = [observer for observer in (stats, trace) if observer is not None]
    with use(options.arch, schedule=options.schedule, checks=options.check, sms=options.sms, observers=observers):
        code = _run_script(options.script, script_arguments, options.traceback)
    sys.stdout.flush()
    if stats is not None and options.stats:
        print(stats.report())
    if stats is not None and options.json:
        options.json.write_text(json.dumps(stats.as_dict(), indent=1))
    if trace is not None:
        trace.save(options.trace)
        if trace.dropped:
            _complain(f"{options.trace}: {trace.dropped:,} spans were left out")
    return code


def _run_script(script: str, arguments: list[str], full: bool) -> int:
    """As `python script arguments...`; returns the exit code. full: with the whole traceback."""
    before = list(sys.argv), list(sys.path)
    sys.argv[:] = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        return _exit_code(stop)
    except EmulationError as error:
        if full:
            traceback.print_exception(error)
        else:
            _complain(f"{type(error).__name__}: {error}")
        return 1
    except Exception as error:
        traceback.print_exception(error if full else _without_our_frames(error, script))
        return 1
    finally:
        sys.argv[:], sys.path[:] = before
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _without_our_frames(error: Exception, script: str) -> Exception:
    """The error with a traceback that begins in the script."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != script:
        frames = frames.tb_next
    return error.with_traceback(frames)


# ---- opcodes ----------------------------------------------------------------------------------------------------------


def list_opcodes(options: argparse.Namespace, _: list[str]) -> int:
    """Print the table of opcodes, by families."""
    families: dict[str, list[opcodes.Opcode]] = {}
    for entry in opcodes.TABLE.values():
        families.setdefault(entry.build.__module__.rpartition(".")[2], []).append(entry)
    for family, entries in families.items():
        rows = [(e.name, e.section, (e.build.__doc__ or "").strip().partition("\n")[0]) for e in entries]
        print(_markdown(family, rows) if options.markdown else _text(family, rows), end="\n\n")
    print(f"{len(opcodes.TABLE)} opcodes; the numbers are sections of the PTX ISA 9.0")
    return 0


Row = tuple[str, str, str]


def _markdown(family: str, rows: Sequence[Row]) -> str:
    lines = [f"### {family}", "", "| opcode | PTX ISA | forms |", "|---|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {section} | {_escaped(text)} |" for name, section, text in rows])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _text(family: str, rows: Sequence[Row]) -> str:
    name_width, section_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join([family, *(f"  {n:{name_width}}  {s:{section_width}}  {text}" for n, s, text in rows)])


# ---- ptx --------------------------------------------------------------------------------------------------------------


class _Survey(Program):
    """A program that collects the instructions that cannot be built, by opcode and reason."""

    def __init__(self, kernel: Kernel) -> None:
        self.failures: dict[tuple[str, str], list[Instruction]] = {}
        super().__init__(kernel)

    def _build(self, instruction: Instruction) -> Execute:
        try:
            return super()._build(instruction)
        except Exception as error:
            reason = str(error) if isinstance(error, EmulationError) else f"{type(error).__name__}: {error}"
            reason = reason.removeprefix(f"PTX line {instruction.line}: {instruction}: ")
            self.failures.setdefault((instruction.opcode, reason), []).append(instruction)
            return lambda w: None


def survey_files(options: argparse.Namespace, _: list[str]) -> int:
    """Print for every kernel of some PTX files what is not implemented; 1 if there is anything."""
    codes = [_survey_file(path) for path in options.files]
    return max(codes)


def _survey_file(path: Path) -> int:
    try:
        kernels = parse(path.read_text())
    except (OSError, UnicodeDecodeError, EmulationError) as error:
        _complain(f"{path}: {error}")
        return 1
    if not kernels:
        _complain(f"{path}: no kernel (.entry) in it")
    return max([_survey_kernel(path, kernel) for kernel in kernels.values()], default=1)


def _survey_kernel(path: Path, kernel: Kernel) -> int:
    failures = _Survey(kernel).failures
    count = sum(len(instructions) for instructions in failures.values())
    print(f"{path}: {kernel.name} ({kernel.target})")
    print(f"  {len(kernel.instructions):,} instructions, ", end="")
    print(f"{len({i.opcode for i in kernel.instructions}):,} different opcodes, ", end="")
    print(f"{count:,} instructions not implemented:" if count else "all implemented")
    for (_, reason), instructions in failures.items():
        lines = ", ".join(str(i.line) for i in instructions[:8]) + ", ..." * (len(instructions) > 8)
        print(f"  {instructions[0]}\n    {reason}\n    line{'s' * (len(instructions) > 1)} {lines}")
    return 1 if failures else 0
