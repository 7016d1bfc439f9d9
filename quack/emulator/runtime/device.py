"""The device that the emulator pretends to be: what host code can ask about it and what limits a launch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceProperties:
    """One GPU. Bytes of shared memory: `smem_per_block` is what a kernel may opt in to, `smem_per_sm` what an SM has."""

    name: str
    sm_count: int
    compute_capability: tuple[int, int]
    smem_per_block: int
    smem_per_sm: int
    threads_per_sm: int = 2048
    blocks_per_sm: int = 32

    def attributes(self) -> dict[int, int]:
        """cudaDeviceAttr -> value."""
        major, minor = self.compute_capability
        return {
            1: MAX_BLOCK_THREADS,  # MaxThreadsPerBlock
            **dict(zip((2, 3, 4), MAX_BLOCK)),  # MaxBlockDimX, Y, Z
            **dict(zip((5, 6, 7), MAX_GRID)),  # MaxGridDimX, Y, Z
            8: 48 << 10,  # MaxSharedMemoryPerBlock
            10: 32,  # WarpSize
            12: 64 << 10,  # MaxRegistersPerBlock
            16: self.sm_count,  # MultiProcessorCount
            39: self.threads_per_sm,  # MaxThreadsPerMultiProcessor
            75: major,  # ComputeCapabilityMajor
            76: minor,  # ComputeCapabilityMinor
            81: self.smem_per_sm,  # MaxSharedMemoryPerMultiprocessor
            82: 64 << 10,  # MaxRegistersPerMultiprocessor
            95: 1,  # CooperativeLaunch
            97: self.smem_per_block,  # MaxSharedMemoryPerBlockOptin
            106: self.blocks_per_sm,  # MaxBlocksPerMultiprocessor
            111: 1 << 10,  # ReservedSharedMemoryPerBlock
            120: 1,  # ClusterLaunch
        }


MAX_BLOCK_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_CLUSTER = 16  # CTAs, where the kernel allows non-portable sizes: CuTe DSL always does

DEVICES = {
    "sm90": DeviceProperties("H200", 132, (9, 0), 227 << 10, 228 << 10),
    "sm100": DeviceProperties("B200", 148, (10, 0), 227 << 10, 228 << 10),
    "sm120": DeviceProperties("RTX PRO 6000 Blackwell", 188, (12, 0), 99 << 10, 100 << 10, 1536, 24),
}
