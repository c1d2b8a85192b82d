#!/usr/bin/python3
"""Multi-conn: an answered write is seen by all, and a flush on one covers all."""

import pathlib
import sys
import urllib.parse

from checks import MIB, check, connect, report

uri = sys.argv[1]


def cache_statistics():
    """Where the kernel counts for the cache: a loop device, whose file is beside the socket."""
    (socket,) = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)["socket"]
    cache = pathlib.Path(socket).with_name("cache")
    for backing in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        if backing.read_text().strip() == str(cache):
            return backing.parent.parent / "stat"
    raise AssertionError(f"no loop device has {cache}")


def device_flushes(statistics):
    """Flushes of a device that have ended, by the kernel's own count."""
    return int(statistics.read_text().split()[15])


def writes_are_seen(writers):
    """What one connection has written every other one reads."""
    for step in range(200):
        writer = writers[step % len(writers)]
        offset = (step * 7919 * 512) % (16 * MIB)
        data = step.to_bytes(4, "big") * 256
        writer.pwrite(data, offset)
        for reader in writers:
            check(reader.pread(len(data), offset) == data, f"step {step}")


def flushes_cover_all(writers):
    """A connection that never wrote has something to flush as long as others have."""
    statistics = cache_statistics()
    flusher = connect(uri)
    for step in range(50):
        before = device_flushes(statistics)
        writers[step % len(writers)].pwrite(step.to_bytes(4, "big") * 1024, step * 4096)
        flusher.flush()
        check(device_flushes(statistics) > before, f"flush on one covers all, step {step}")
    flusher.shutdown()


connections = [connect(uri) for _ in range(8)]
writes_are_seen(connections)
flushes_cover_all(connections)
for handle in connections:
    handle.shutdown()
report()
