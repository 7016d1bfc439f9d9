"""Which configuration for which shape, by a model that knows every architecture of `quack.arch`."""

from .model import Candidate as Candidate
from .model import candidates as candidates
from .model import choose as choose
from .model import choose_grouped as choose_grouped
from .model import default_config as default_config
from .model import explain as explain
from .model import predict_ns as predict_ns
