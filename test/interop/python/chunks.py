#!/usr/bin/python3
"""Reads a range and says what came: chunks, the end, and what a client of simple replies is told.

chunks.py URI OFFSET LENGTH
"""

import errno
import json
import sys

import nbd

from checks import connect


def kind_of(status):
    return {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}[status]


def main(uri, offset, length):
    chunks = []

    def chunk(data, at, status, error):
        found = {"kind": kind_of(status), "offset": at, "length": len(data)}
        if status == nbd.READ_ERROR:
            found["error"] = errno.errorcode[error.value]
        elif len(data) > 0:
            found["first"], found["last"] = data[0], data[-1]
        chunks.append(found)

    def outcome(request):
        try:
            request()
        except nbd.Error as error:
            return errno.errorcode.get(error.errnum, error.errnum)
        return None

    structured, simple = connect(uri), connect(uri, structured=False)
    whole = outcome(lambda: structured.pread_structured(length, offset, chunk))
    plain = outcome(lambda: simple.pread(length, offset))
    print(json.dumps({"structured": whole, "simple": plain, "chunks": chunks}))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
