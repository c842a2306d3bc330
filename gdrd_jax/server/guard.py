"""Who may use a server, and what is counted: the layer around all endpoints."""

import hmac
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gdrd_jax.server.errors import answer
from gdrd_jax.server.limits import Limits
from gdrd_jax.server.metrics import Metrics
from gdrd_jax.utils.errors import GdrdError, no_file

VARIABLE = "GDRD_API_KEY"
SHORTEST = 16  # characters of a key
API = "/v1/"
PRIVATE = (API, "/metrics")  # what needs the key; the rest shows no data


def read_key(file: Path | None) -> str | None:
    """The API key: a file's content, or else that of the environment variable GDRD_API_KEY; None if there is neither.

    Raises:
      GdrdError: "api-key-short", or the file is missing.
    """
    if file is not None:
        if not file.is_file():
            raise no_file(file)
        key, where = file.read_text(encoding="utf-8").strip(), str(file)
    else:
        key, where = os.environ.get(VARIABLE, "").strip(), VARIABLE
        if not key:
            return None
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise GdrdError(
            f"the API key in {where} is not {SHORTEST} or more printable ASCII characters without spaces; make one "
            "with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            "api-key-short",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether a name or address is this computer's own, which no other reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, key: str | None, *, anyone: bool) -> None:
    """Checks that a server without a key cannot be reached from elsewhere, unless that is wanted.

    Raises:
      GdrdError: "server-open".
    """
    if key is None and not anyone and not is_loopback(host):
        raise GdrdError(
            f"--host {host} can be reached by others, who could read and change the gallery; give an API key "
            f"(--api-key-file FILE, or the environment variable {VARIABLE}), or --allow-anyone",
            "server-open",
        )


class Guard:
    """ASGI middleware: the key, the origin, the number of requests at once, and metrics.

    Args:
      app: ASGI application.
      key: that requests must have as `Authorization: Bearer KEY`; None lets everyone in.
      local: the server is for this computer alone, so requests that other web sites make in its browsers are refused.
      limits: on the number of requests.
      metrics: counts requests.
    """

    def __init__(self, app: Callable, *, key: str | None, local: bool, limits: Limits, metrics: Metrics):
        self._app, self._local, self._limits, self._metrics = app, local, limits, metrics
        self._expected = None if key is None else f"Bearer {key}".encode()
        self._active = 0

    async def __call__(self, scope: dict, receive: Callable, send: Callable[[dict], Awaitable[None]]) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._handle(scope, receive, watched)
        finally:
            self._metrics.request(scope["path"], status, time.perf_counter() - start)

    async def _handle(self, scope: dict, receive: Callable, send: Callable) -> None:
        try:
            self._check(scope["path"], dict(scope["headers"]))
        except GdrdError as error:
            await answer(error)(scope, receive, send)
            return
        self._active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._active -= 1

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if not path.startswith(PRIVATE):
            return
        if self._expected is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise GdrdError("the API key is missing or wrong; send it as Authorization: Bearer KEY", "api-key")
        if self._local and self._expected is None:
            _check_origin(headers)
        if path.startswith(API) and self._active >= self._limits.requests:
            raise GdrdError(
                f"the server works on {self._active} requests already; try again in a moment", "server-busy"
            )


def _check_origin(headers: dict[bytes, bytes]) -> None:
    """Refuses requests that a browser makes for another web site, also one whose name was changed to this computer."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin: Any = headers.get(b"origin")
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name) or (origin is not None and urlsplit(origin.decode("latin-1")).netloc != host):
        raise GdrdError(
            "the request comes from another web site; a server without an API key answers this computer's own only",
            "other-origin",
        )
