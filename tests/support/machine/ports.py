"""Ports that no other test gets, in this process or another, until this process ends."""

from __future__ import annotations

import socket

BLOCK = 10
"""Ports that are taken together; a server needs five."""
FIRST, LAST = 12_000, 30_000
"""Below those that Linux gives to outgoing connections, which come and go between a look and a start."""
LOCKS = LAST
"""From here on a port stands for each block: who has bound it, has the block."""

_held: list[socket.socket] = []


def free_ports(count: int = 5) -> int:
    """Take ``count`` free ports in a row and return the first.

    Raises:
        AssertionError: none are left.
    """
    size = -(-count // BLOCK)  # in blocks
    for block in range((LAST - FIRST) // BLOCK - size):
        first = FIRST + block * BLOCK
        locks = [_bound(LOCKS + block + number) for number in range(size)]
        if all(locks) and all(_is_free(port) for port in range(first, first + count)):
            _held.extend(lock for lock in locks if lock)
            return first
        for lock in locks:
            if lock:
                lock.close()
    raise AssertionError(f"no {count} free ports in a row from {FIRST} to {LAST}")


def _bound(port: int) -> socket.socket | None:
    """A socket on a port of this machine; None if somebody else has it."""
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        return None
    return bound


def _is_free(port: int) -> bool:
    bound = _bound(port)
    if bound:
        bound.close()
    return bound is not None
