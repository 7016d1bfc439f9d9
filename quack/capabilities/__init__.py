"""What works where: every combination of architecture, input dtype, adapter, commit policy and mixin family, as `legality` has it.

python -m quack.capabilities [--format text|markdown|json] [--arch sm_90a ...]
python -m quack.capabilities --compile [--jobs 2]       compile every legal one (`make matrix`)
"""

from .axes import AXES as AXES
from .axes import Cell as Cell
from .matrix import Verdict as Verdict
from .matrix import cells as cells
from .matrix import judge as judge
