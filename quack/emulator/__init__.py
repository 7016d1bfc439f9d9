"""Runs compiled CuTe DSL kernels, as the PTX that the compiler made, on a machine without a GPU.

Knows nothing of quack's kernels: any TVM-FFI-compiled CuTe DSL function will do. See docs/emulator.md.
"""
