#!/usr/bin/python3
"""Every command, flag and error of the transmission phase, by simple and structured replies."""

import errno
import sys

import nbd
from checks import MIB, check, connect, refused, report

uri = sys.argv[1]


def abilities(handle):
    """What the server advertises."""
    check(handle.can_flush(), "flush")
    check(handle.can_fua(), "fua")
    check(handle.can_trim(), "trim")
    check(handle.can_zero(), "zero")
    check(handle.can_multi_conn(), "multi-conn")
    check(not handle.is_read_only(), "not read-only")
    check(handle.get_block_size(nbd.SIZE_MINIMUM) == 1, "minimum block size")
    check(handle.get_block_size(nbd.SIZE_PREFERRED) == 4096, "preferred block size")
    check(handle.get_block_size(nbd.SIZE_MAXIMUM) >= 32 * MIB, "maximum block size")


def round_trips(handle):
    """Writes of all shapes are read back, from the middle of their neighbours."""
    for offset, length in [
        (0, 1), (1, 511), (511, 2), (4095, 2), (4096, 4096), (5000, 10000),
        (MIB - 1, MIB + 2), (8 * MIB + 7, 5 * MIB + 1), (20 * MIB, 32 * MIB),
    ]:
        pattern = bytes((offset + i * 31) & 0xFF for i in range(997))
        data = (pattern * (length // 997 + 1))[:length]
        before = handle.pread(1, offset - 1) if offset else b""
        after = handle.pread(1, offset + length)
        handle.pwrite(data, offset)
        check(handle.pread(length, offset) == data, f"{length} bytes at {offset}")
        check(not offset or handle.pread(1, offset - 1) == before, f"byte before {offset}")
        check(handle.pread(1, offset + length) == after, f"byte after {offset}+{length}")


def flags(handle):
    """FUA on every command, and the flags of write-zeroes."""
    handle.pwrite(b"x" * 8192, MIB, nbd.CMD_FLAG_FUA)
    check(handle.pread(8192, MIB) == b"x" * 8192, "FUA write")
    handle.zero(4096, MIB, nbd.CMD_FLAG_FUA)
    check(handle.pread(8192, MIB) == bytes(4096) + b"x" * 4096, "zero with FUA")
    handle.zero(1000, MIB + 4100, nbd.CMD_FLAG_NO_HOLE)
    expected = b"x" * 4 + bytes(1000) + b"x" * 3092
    check(handle.pread(4096, MIB + 4096) == expected, "unaligned zero")
    handle.trim(4096, MIB + 4096, nbd.CMD_FLAG_FUA)
    handle.flush()
    handle.zero(40 * MIB + 3, 4 * MIB - 1)
    check(handle.pread(4 * MIB, 8 * MIB) == bytes(4 * MIB), "a long zero")


def nothing_at_all(handle):
    """Requests of length zero succeed and change nothing."""
    check(handle.pread(0, 0) == b"", "empty read")
    handle.pwrite(b"", 100)
    handle.zero(0, 100)
    handle.trim(0, 100)
    check(True, "empty requests")


def errors(handle):
    """Each refusal has its errno, and the stream stays in step."""
    size = handle.get_size()
    marker = b"still in step" + bytes(499)
    handle.pwrite(marker, 3 * MIB)
    for what, expected, request in [
        ("read past the end", errno.EINVAL, lambda: handle.pread(4096, size - 512)),
        ("read far past the end", errno.EINVAL, lambda: handle.pread(512, 1 << 62)),
        ("write past the end", errno.ENOSPC, lambda: handle.pwrite(bytes(4096), size - 512)),
        ("write at the end", errno.ENOSPC, lambda: handle.pwrite(b"x", size)),
        ("zero past the end", errno.ENOSPC, lambda: handle.zero(4096, size - 512)),
        ("trim past the end", errno.EINVAL, lambda: handle.trim(4096, size - 512)),
        ("unknown flag", errno.EINVAL, lambda: handle.pwrite(bytes(512), 0, 1 << 9)),
    ]:
        refused(expected, what, request)
        check(handle.pread(512, 3 * MIB) == marker, f"in step after: {what}")


def chunks(handle):
    """A structured read arrives in chunks that cover it once; with DF in one."""
    data = bytes(i & 0xFF for i in range(256)) * (3 * 4096)
    length = len(data)
    handle.pwrite(data, 2 * MIB + 100)
    seen = []

    def chunk(buffer, offset, status, error):
        seen.append((offset, len(buffer), status))
        check(error.value == 0, "no error in a chunk")

    got = handle.pread_structured(length, 2 * MIB + 100, chunk)
    check(got == data, "structured read")
    seen.sort()
    check(seen[0][0] == 2 * MIB + 100, "the first chunk starts the range")
    for (offset, size, _), (following, _, _) in zip(seen, seen[1:]):
        check(offset + size == following, "chunks neither overlap nor leave gaps")
    check(sum(size for _, size, _ in seen) == length, "chunks cover the range")
    seen.clear()
    got = handle.pread_structured(65536, 2 * MIB, chunk, nbd.CMD_FLAG_DF)
    check(len(seen) == 1 and len(got) == 65536, "DF gives one chunk")


for structured in (True, False):
    connection = connect(uri, structured)
    check(connection.get_structured_replies_negotiated() == structured, "structured replies")
    abilities(connection)
    check(connection.can_df() == structured, "DF comes with structured replies")
    round_trips(connection)
    flags(connection)
    nothing_at_all(connection)
    errors(connection)
    if structured:
        chunks(connection)
    connection.shutdown()
report()
