"""What the arch kernels share of execution: roles of a CTA whose operands come by TMA through shared memory.

| module | part |
|---|---|
| `cta` | what every role of a CTA knows |
| `transport` | TMA descriptors, shared memory, pipelines and work stream |
| `load`, `gather`, `line_copier` | the warps that fill shared memory |
| `producers` | set-up of a CTA, and which warp produces what |
| `drain` | what a draining warpgroup hands to the epilogue plan |
| `warpgroups` | kernels whose warpgroups multiply into registers and drain these, cooperative and ping-pong |

An arch kernel is one of these classes and its main loop. Nothing here asks which arch it is.
"""
