"""Debug mode: checks that are too dear for every call, because they wait for the device or walk all arguments."""

import os

SWITCH = "QUACK_DEBUG"


def is_debugging() -> bool:
    """Whether QUACK_DEBUG=1 is set in the environment."""
    return os.environ.get(SWITCH, "0") == "1"
