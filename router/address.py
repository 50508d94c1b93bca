"""Where the service listens, and how to reach it there."""

import contextlib
import errno
import socket
from collections.abc import Iterator

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound
"""Addresses to listen on that nobody can connect to, and what reaches the service instead."""

_ADVICE = {
    errno.EADDRINUSE: "Stop what uses it, or choose another port with --port or server.port",
    errno.EACCES: "Ports below 1024 need privileges; choose another with --port or server.port",
}
_OTHER_HOST = (
    "Choose an address that this machine has, such as 127.0.0.1, with --host or server.host"
)


class CannotListen(Exception):
    """The address cannot be had; the message says why and what to do."""


def url(host: str, port: int) -> str:
    """Return the URL at which a service on this machine is reached that listens on `host`."""
    return f"http://{_joined(_EVERYWHERE.get(host, host), port)}"


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Hold a socket that listens on `host` and `port`; 0 takes any free port.

    Raises CannotListen when they cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError):  # ValueError: such a name cannot even be looked up
        raise CannotListen(
            f"server.host {host!r} is neither an address nor a name that is known here. "
            f"{_OTHER_HOST}"
        ) from None
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # else a second server could bind it too, and fail much later
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {_joined(host, port)}: {error.strerror}. "
                f"{_ADVICE.get(error.errno or 0, _OTHER_HOST)}"
            ) from None
        yield listener


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
