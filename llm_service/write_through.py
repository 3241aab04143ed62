"""Writing to a transport's socket at once, where the event loop would do it later.

uvloop keeps what is written until all that was read in the same turn is taken: of a hundred answers that go on in one
turn the first waits for the other ninety-nine. Here only what the socket does not take is left to the transport.
"""

import asyncio
import os
import sys


def descriptor(transport: asyncio.BaseTransport) -> int | None:
    """Return the file descriptor that `write_through` may write to; None if the transport alone can: TLS, Windows."""
    peer = transport.get_extra_info("socket")
    if sys.platform == "win32" or peer is None or transport.get_extra_info("sslcontext") is not None:
        return None
    number: int = peer.fileno()
    return number


def write_through(transport: asyncio.WriteTransport, number: int | None, data: bytes) -> None:
    """Write all of it, in order behind what waits; `number` is the transport's `descriptor`.

    The transport must not be closing: its descriptor may be another's by then.
    """
    if number is not None and not transport.get_write_buffer_size():
        try:
            written = os.write(number, data)
        except OSError:
            written = 0  # it takes nothing for now, or is broken, which the transport finds out by itself
        if written == len(data):
            return
        data = data[written:]
    transport.write(data)
