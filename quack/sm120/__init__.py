"""GEMM by mma.sync: GeForce Blackwell (sm_120a, sm_121a)."""
