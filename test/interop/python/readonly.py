#!/usr/bin/python3
"""A read-only export: reads go on, all that would change it is EPERM."""

import errno
import sys

from checks import check, connect, refused, report

handle = connect(sys.argv[1])
check(handle.is_read_only(), "read-only is advertised")
refused(errno.EPERM, "write", lambda: handle.pwrite(bytes(4096), 0))
refused(errno.EPERM, "trim", lambda: handle.trim(4096, 0))
refused(errno.EPERM, "zero", lambda: handle.zero(4096, 0))
check(handle.pread(4096, 0) == bytes(4096), "reads go on, and the stream is in step")
handle.shutdown()
report()
