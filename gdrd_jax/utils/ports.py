"""Ports that servers listen at."""

import socket

from gdrd_jax.utils.errors import GdrdError


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Args:
      host: name or address of one of this computer's.
      port: 0 to 65535; 0 takes a free one.

    Raises:
      GdrdError: "port-in-use", "host-unknown", or "flag-value": no port.
    """
    if not 0 <= port < 2**16:
        raise GdrdError(f"--port {port}: a port is a number from 0 to {2**16 - 1}", "flag-value")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise GdrdError(f"--host {host}: this name is unknown; give a name or an address", "host-unknown") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise port_error(host, port) from error
    return listener


def port_error(host: str, port: int) -> GdrdError:
    """The error for a port at which a server cannot listen."""
    return GdrdError(f"port {port} of {host} is in use, or not allowed; choose another with --port", "port-in-use")
