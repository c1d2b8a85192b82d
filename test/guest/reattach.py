#!/usr/bin/python3
"""Keeps a kernel NBD device alive across restarts of its server.

nbd-client's -persist builds the device anew, which a mounted filesystem does not survive. The
kernel itself can hold requests back and send them again over a new connection, if it is asked
over netlink: this sets how long it waits (NBD_ATTR_DEAD_CONN_TIMEOUT), waits for the message that
the connection is dead, and hands over new connections (NBD_CMD_RECONFIGURE) until one lives.

usage: reattach.py INDEX HOST PORT EXPORT WAIT_SECONDS
"""

import socket
import struct
import sys
import time

GENL_ID_CTRL = 16
CTRL_GETFAMILY, CTRL_FAMILY_ID, CTRL_FAMILY_NAME, CTRL_MCAST_GROUPS = 3, 1, 2, 7
CMD_RECONFIGURE, CMD_LINK_DEAD = 3, 4
ATTR_INDEX, ATTR_SOCKETS, ATTR_DEAD_CONN_TIMEOUT = 1, 7, 8
NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR = 1, 4, 2
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NESTED = 0x8000
OPTION_GO, REPLY_ACK = 7, 1


def attribute(kind, payload):
    """One netlink attribute, padded to four bytes."""
    length = 4 + len(payload)
    return struct.pack("HH", length, kind) + payload + b"\0" * (-length % 4)


def attributes(data):
    """The attributes in a message, by kind."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        found[kind & 0x7FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def message(family, command, payload):
    """A generic netlink request that wants to be acknowledged."""
    body = struct.pack("BBH", command, 1, 0) + payload
    return struct.pack("IHHII", 16 + len(body), family, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body


def messages(data):
    """The messages in a datagram: type, command and payload of each."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("IH", data)
        body = data[16:length]
        yield kind, body
        data = data[(length + 3) & ~3 :]


def ask(netlink, family, command, payload):
    """Sends a request; returns the answer's attributes, raises OSError on a refusal."""
    netlink.send(message(family, command, payload))
    answer = {}
    while True:
        for kind, body in messages(netlink.recv(65536)):
            if kind == NLMSG_ERROR:
                code = struct.unpack_from("i", body)[0]
                if code != 0:
                    raise OSError(-code, "netlink request refused")
                return answer
            if kind == family:
                answer = attributes(body[4:])


def open_family():
    """The number of the nbd family and of its only multicast group."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    netlink.bind((0, 0))
    answer = ask(netlink, GENL_ID_CTRL, CTRL_GETFAMILY, attribute(CTRL_FAMILY_NAME, b"nbd\0"))
    groups = attributes(answer[CTRL_MCAST_GROUPS])
    group = struct.unpack("I", attributes(groups[1])[2])[0]
    return netlink, struct.unpack("H", answer[CTRL_FAMILY_ID])[0], group


def exactly(stream, length):
    """Reads exactly this many bytes."""
    data = b""
    while len(data) < length:
        chunk = stream.recv(length - len(data))
        if not chunk:
            raise ConnectionError("the server hung up during the handshake")
        data += chunk
    return data


def connect(host, port, export):
    """A connection in the transmission phase."""
    stream = socket.create_connection((host, port), timeout=5)
    try:
        if exactly(stream, 18)[:16] != b"NBDMAGICIHAVEOPT":
            raise ConnectionError("this is no newstyle NBD server")
        name = export.encode()
        go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        stream.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", OPTION_GO, len(go)) + go)
        while True:
            _, _, kind, length = struct.unpack(">QIII", exactly(stream, 20))
            exactly(stream, length)
            if kind == REPLY_ACK:
                break
            if kind & 0x80000000:
                raise ConnectionError("the export was refused")
        stream.settimeout(None)
        return stream
    except BaseException:
        stream.close()
        raise


def hand_over(netlink, family, index, stream):
    """Gives the kernel a new connection in place of the dead one."""
    item = attribute(1 | NESTED, attribute(1, struct.pack("I", stream.fileno())))
    payload = attribute(ATTR_INDEX, struct.pack("I", index)) + attribute(
        ATTR_SOCKETS | NESTED, item
    )
    ask(netlink, family, CMD_RECONFIGURE, payload)


def main():
    index, host, port, export, wait_seconds = sys.argv[1:]
    index, port = int(index), int(port)
    netlink, family, group = open_family()
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    listener.bind((0, 0))
    listener.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    ask(
        netlink,
        family,
        CMD_RECONFIGURE,
        attribute(ATTR_INDEX, struct.pack("I", index))
        + attribute(ATTR_DEAD_CONN_TIMEOUT, struct.pack("Q", int(wait_seconds))),
    )
    print("watching", flush=True)
    while True:
        for kind, body in messages(listener.recv(65536)):
            dead = attributes(body[4:]).get(ATTR_INDEX)
            if kind != family or body[0] != CMD_LINK_DEAD or dead is None:
                continue
            if struct.unpack("I", dead)[0] != index:
                continue
            print("connection is dead", flush=True)
            while True:
                try:
                    with connect(host, port, export) as stream:
                        hand_over(netlink, family, index, stream)
                    break
                except (OSError, ConnectionError) as error:
                    print("not yet:", error, flush=True)
                    time.sleep(0.2)
            print("reattached", flush=True)


if __name__ == "__main__":
    main()
