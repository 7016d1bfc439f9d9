"""What one tile of a GEMM asks of an SM, line by line in clocks, beside what the emulator counts of the compiled kernel.

    python -m quack.roofline --arch sm_100a --shape 8192x8192x4096 [--config 256x256 ...] [--count]

`model_lines` are the heuristics' own figures (`heuristics.work`), `count` runs the kernel. See docs/roofline.md.
"""

from .count import count as count
from .lines import Amount as Amount
from .lines import Line as Line
from .lines import Resource as Resource
from .lines import Roof as Roof
from .lines import roof as roof
from .problem import Problem as Problem
from .report import as_dict as as_dict
from .report import report as report
