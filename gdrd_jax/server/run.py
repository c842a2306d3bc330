"""Runs a server until it is stopped."""

import socket

from gdrd_jax.utils.errors import require

PATIENCE = 30  # seconds in which requests are finished after SIGTERM or Ctrl-C


def run(app, listener: socket.socket) -> None:
    """Answers requests until SIGTERM or Ctrl-C; those that have arrived are finished first.

    Args:
      app: see `server.app.create_app`.
      listener: see `utils.ports.listening`.

    Raises:
      KeyboardInterrupt: it was stopped, see `cli.common.guarded`.
    """
    uvicorn = require("uvicorn", "server")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE
    )
    uvicorn.Server(config).run(sockets=[listener])
