"""One kernel around tcgen05 instructions: fill shared and tensor memory, run the instructions, dump tensor memory."""

from typing import Optional

import numpy as np

from tests.unit.emulator.ptx_kernels import run_kernel

COLUMNS = 512
IMAGE = 2048  # where `image` is placed in the shared window: 1 KiB of the system, 1 KiB for barrier and address


def run_tensor_kernel(
    cells: np.ndarray,
    *,
    image: Optional[np.ndarray] = None,
    thread_code: str = "",
    warp_code: str = "",
    data: Optional[np.ndarray] = None,
    schedule: str = "eager",
) -> np.ndarray:
    """Tensor memory after the kernel, (CTAs, 128, 512) uint32.

    cells: the same before; one CTA or a pair, which then uses .cta_group::2. image: (CTAs, bytes) uint8 of shared memory.
    thread_code: run by thread 0 of the first CTA, followed by a commit that everybody waits for. warp_code: then run by
    all four warps, with %base: address of the warp's lanes; %r4: number of the warp; %thread: thread of all CTAs; %in2: `data`.
    """
    ctas = len(cells)
    group = f"cta_group::{ctas}"
    image = np.zeros((ctas, 16), np.uint8) if image is None else np.ascontiguousarray(image)
    image = np.pad(image, ((0, 0), (0, -image.shape[1] % 16)))
    data = np.zeros(16, np.uint32) if data is None else data
    cells = cells.copy()
    target = "[%r0], %rs0" if ctas == 2 else "[%r0]"
    multicast = ".multicast::cluster" if ctas == 2 else ""
    values = [f"%v{i}" for i in range(32)]
    quads = [", ".join(values[i : i + 4]) for i in range(0, 32, 4)]
    fill, dump = [], []
    for column in range(0, COLUMNS, 32):
        fill += [f"ld.global.v4.b32 {{{q}}}, [%rd2+{4 * column + 16 * i}];" for i, q in enumerate(quads)]
        fill += [
            f"add.u32 %r6, %base, {column};",
            f"tcgen05.st.sync.aligned.32x32b.x32.b32 [%r6], {{{', '.join(values)}}};",
        ]
        dump += [
            f"add.u32 %r6, %base, {column};",
            f"tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{', '.join(values)}}}, [%r6];",
        ]
        dump += [f"st.global.v4.b32 [%rd2+{4 * column + 16 * i}], {{{q}}};" for i, q in enumerate(quads)]
    body = f"""
.reg .b32 %v<128>;
.reg .b32 %base;
.reg .b32 %taddr;
.reg .b32 %thread;
mov.u32 %r0, smem;
mov.u32 %r1, %cluster_ctarank;
mad.lo.u32 %thread, %r1, 128, %lane;
shr.u32 %r4, %lane, 5;
mad.wide.u32 %rd0, %r1, {image.shape[1]}, %in0;
mul.lo.u32 %r2, %lane, 16;
COPY:
setp.ge.u32 %p1, %r2, {image.shape[1]};
@%p1 bra COPIED;
cvt.u64.u32 %rd1, %r2;
add.u64 %rd1, %rd1, %rd0;
ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%rd1];
add.u32 %r3, %r0, %r2;
st.shared.v4.b32 [%r3+1024], {{%v0, %v1, %v2, %v3}};
add.u32 %r2, %r2, 2048;
bra COPY;
COPIED:
setp.eq.u32 %p0, %lane, 0;
@%p0 mbarrier.init.shared::cta.b64 [%r0], 1;
setp.eq.u32 %p2, %r4, 0;
@%p2 tcgen05.alloc.{group}.sync.aligned.shared::cta.b32 [%r0+8], {COLUMNS};
@%p2 tcgen05.relinquish_alloc_permit.{group}.sync.aligned;
bar.sync 0;
ld.shared.b32 %taddr, [%r0+8];
shl.b32 %base, %r4, 21;
add.u32 %base, %base, %taddr;
mad.wide.u32 %rd2, %thread, {4 * COLUMNS}, %in1;
{chr(10).join(fill)}
tcgen05.wait::st.sync.aligned;
fence.proxy.async;
tcgen05.fence::before_thread_sync;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
tcgen05.fence::after_thread_sync;
setp.ne.u32 %p3, %thread, 0;
@%p3 bra WAIT;
{thread_code}
mov.b16 %rs0, 3;
tcgen05.commit.{group}.mbarrier::arrive::one.shared::cluster{multicast}.b64 {target};
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r0], 0;
@!%p4 bra WAIT;
bar.sync 0;
tcgen05.fence::after_thread_sync;
{{
{warp_code}
}}
{chr(10).join(dump)}
tcgen05.wait::ld.sync.aligned;
tcgen05.fence::before_thread_sync;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
@%p2 tcgen05.dealloc.{group}.sync.aligned.b32 %taddr, {COLUMNS};
"""
    run_kernel(
        body,
        image,
        cells,
        data,
        shared=1024 + image.shape[1],
        threads=128,
        schedule=schedule,
        grid=ctas,
        cluster=ctas,
    )
    return cells
