"""Command line of `quack.capabilities`."""

import argparse
import sys
from pathlib import Path

from .axes import AXES
from .render import FORMATS, put_into
from .sweep import compile_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quack.capabilities", description="What works where.")
    parser.add_argument("--format", choices=FORMATS, default="text", help="json has every cell, the others a summary")
    parser.add_argument("--arch", nargs="+", choices=AXES["arch"], default=AXES["arch"], metavar="ARCH")
    parser.add_argument("--compile", action="store_true", help="compile every legal cell instead; resumes")
    parser.add_argument("--sample", type=int, help="with --compile: only so many, the same every time")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    parser.add_argument("--results", type=Path, default=Path("build/matrix.json"), help="what has been compiled so far")
    parser.add_argument("--readme", type=Path, help="write the markdown between the markers of this file")
    options = parser.parse_args()
    if options.readme is not None:
        options.readme.write_text(put_into(options.readme.read_text()))
        return 0
    if options.compile:
        return 1 if compile_all(options.arch, options.results, options.jobs, options.sample) else 0
    sys.stdout.write(FORMATS[options.format](options.arch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
