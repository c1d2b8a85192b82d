#!/usr/bin/python3
"""Multi-conn: an answered write is seen by all, and a flush on one covers all."""

import sys

from checks import MIB, check, connect, report

writers = [connect(sys.argv[1]) for _ in range(8)]
for step in range(200):
    writer = writers[step % len(writers)]
    offset = (step * 7919 * 512) % (16 * MIB)
    data = step.to_bytes(4, "big") * 256
    writer.pwrite(data, offset)
    for reader in writers:
        check(reader.pread(len(data), offset) == data, f"step {step}")
    if step % 50 == 0:
        writers[(step + 1) % len(writers)].flush()
for handle in writers:
    handle.shutdown()
report()
