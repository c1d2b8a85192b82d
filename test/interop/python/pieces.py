#!/usr/bin/python3
"""A reader is woken by the first piece, not the last: what is cached comes before the origin answers.

pieces.py URI GATE: the origin, all bytes of 0xee, answers reads once the file GATE exists.
"""

import pathlib
import sys

import nbd

from checks import check, connect, report

WINDOW = 256 << 10
# Only ever the end of a failing test.
PATIENCE_MS = 20_000

uri, gate = sys.argv[1], pathlib.Path(sys.argv[2])
structured, simple = connect(uri), connect(uri, structured=False)
cached = bytes(range(1, 129)) * (WINDOW // 128)
structured.pwrite(cached, WINDOW)
structured.pwrite(cached, 3 * WINDOW)
structured.flush()

chunks = []


def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))


half = nbd.Buffer(2 * WINDOW)
cookie = structured.aio_pread_structured(half, 0, chunk)
other = nbd.Buffer(2 * WINDOW)
whole = simple.aio_pread(other, 2 * WINDOW)
while not chunks:
    check(structured.poll(PATIENCE_MS) == 1, "the cached half comes by itself")
check(chunks == [(WINDOW, WINDOW, nbd.READ_DATA)], f"the cached half and nothing else: {chunks}")
check(not structured.aio_command_completed(cookie), "the origin has not answered")
# The connection is not held up meanwhile, nor is another one.
check(structured.pread(WINDOW, WINDOW) == cached, "a hit behind it")
check(connect(uri).pread(512, WINDOW) == cached[:512], "a hit beside it")
check(not structured.aio_command_completed(cookie), "the origin still has not answered")

gate.touch()
while not structured.aio_command_completed(cookie):
    check(structured.poll(PATIENCE_MS) == 1, "the rest comes when the origin answers")
check(bytes(half.to_bytearray()) == b"\xee" * WINDOW + cached, "all of it is right")
check(sum(length for _, length, _ in chunks) == 2 * WINDOW, f"every byte once: {chunks}")
while not simple.aio_command_completed(whole):
    check(simple.poll(PATIENCE_MS) == 1, "a simple reply comes as a whole")
check(bytes(other.to_bytearray()) == b"\xee" * WINDOW + cached, "all of that too")
chunks.clear()
structured.pread_structured(2 * WINDOW, 0, chunk)
check(len(chunks) == 1, f"what is there at once is one chunk: {chunks}")
report()
