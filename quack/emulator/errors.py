"""What can go wrong in an emulated launch. Every message names the kernel, the warp and the PTX line where that is known."""


class EmulationError(RuntimeError):
    """Base of all errors that the emulator raises."""


class UnknownInstruction(EmulationError):
    """The PTX holds an opcode, a modifier or a directive that the emulator does not implement. It never guesses."""


class IllegalAccess(EmulationError):
    """A memory access outside what the kernel may touch, or not aligned to its size."""


class Misuse(EmulationError):
    """An instruction was executed in a way that the PTX ISA leaves undefined."""


class Deadlock(EmulationError):
    """No warp can run and no asynchronous operation is pending."""


class CheckFailed(EmulationError):
    """A checker found a defect (see `quack.emulator.checks`)."""
