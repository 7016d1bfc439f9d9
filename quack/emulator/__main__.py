"""python -m quack.emulator {run, opcodes, ptx}: see `cli`."""

import os
import sys

from .cli import main

try:
    code = main(sys.argv[1:])
    sys.stdout.flush()
except BrokenPipeError:  # whoever read the output has had enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 1
sys.exit(code)
