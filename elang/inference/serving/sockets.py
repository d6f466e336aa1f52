"""The sockets that a server listens on, and how they stop."""

import ctypes
import errno
import os
import socket
import struct
import sys
from contextlib import suppress

from elang.errors import InputError


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address that a host name stands for.

    They listen at once, for two that are only bound can share a port.

    Raises:
        InputError: If the host is none of this machine, or the port is taken.
    """
    try:
        # An empty name would stand for every address.
        found = socket.getaddrinfo(host.strip() or " ", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host '{host}' cannot be resolved ({error}). Give an address of this machine.") from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, address in dict.fromkeys((one[0], one[4]) for one in found):
        try:
            both = host == "::" and socket.has_dualstack_ipv6()
            sockets.append(socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=both))
        except OSError as error:
            failed = error
            # A name may stand for an address of a family that is switched off.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for one in sockets:
        one.close()
    why = os.strerror(failed.errno) if failed and failed.errno else failed
    raise InputError(f"--port {port} of {host} cannot be listened on ({why}). Give another.") from failed


def take_no_more(listening: socket.socket) -> None:
    """Let a socket take no further connections, while those that wait in it can still be accepted.

    To close it would cut these off. Linux drops what a filter of one instruction (return 0) does not let through;
    elsewhere they are cut off.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        with suppress(OSError):
            # SO_ATTACH_FILTER
            listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))
