"""The compile worker: `python -m quack.runtime.worker` reads (spec, path) pickles on stdin, writes error-or-None pickles.

stdout belongs to the protocol, so whatever CuTe DSL prints goes to stderr.
"""

import os
import pickle
import sys
import traceback

from .compile import write_entry


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            spec, path = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            write_entry(spec, path)
            error = None
        except BaseException:  # noqa: BLE001 - the parent turns it into a CompileError
            error = traceback.format_exc()
        pickle.dump(error, replies)
        replies.flush()


if __name__ == "__main__":
    main()
