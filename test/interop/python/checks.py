"""Counting checks; the first one that does not hold ends the script."""

import errno

import nbd

MIB = 1 << 20
passed = 0


def check(holds, what):
    """Counts a check that holds, raises for one that does not."""
    global passed
    if not holds:
        raise AssertionError(what)
    passed += 1


def refused(expected, what, request):
    """Checks that a request is answered with this errno, and that the connection lives on."""
    try:
        request()
    except nbd.Error as error:
        name = errno.errorcode.get(error.errnum, error.errnum)
        check(error.errnum == expected, f"{what}: {name} instead of {errno.errorcode[expected]}")
        return
    raise AssertionError(f"{what} was not refused")


def connect(uri, structured=True):
    """A connection that leaves all judging to the server."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(structured)
    handle.connect_uri(uri)
    return handle


def report():
    """The last line of every script."""
    print(f"{passed} checks passed")
