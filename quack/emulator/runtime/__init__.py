"""How a compiled CuTe DSL function reaches the emulator instead of a GPU: a CUDA runtime of our own under its host code."""
