"""Errors as answers: JSON with the code and the message of a `GdrdError`, and the HTTP status that goes with it."""

from gdrd_jax.server.limits import RETRY_AFTER
from gdrd_jax.utils.errors import GdrdError, require

responses = require("starlette.responses", "server")

STATUS = {
    "api-key": 401, "other-origin": 403, "gallery-person-unknown": 404, "request-slow": 408, "request-too-large": 413,
    "picture-too-large": 413, "pictures-too-many": 413, "media-type": 415, "server-busy": 503, "gallery-busy": 503,
    "gallery-unreachable": 503, "gallery-empty": 409, "gallery-space": 409, "server-without-gallery": 409,
    "threshold-missing": 409, "gallery-k": 422,
}  # fmt: skip
UNUSABLE = 422  # of every other error: the pictures or options cannot be used
BROKEN = 500  # of other errors of the gallery


def status_of(code: str) -> int:
    """The HTTP status of an error's code."""
    return STATUS.get(code, BROKEN if code.startswith(("gallery-", "package-")) else UNUSABLE)


def answer(error: GdrdError):
    """The response for an error."""
    status = status_of(error.code)
    headers = {"Retry-After": str(RETRY_AFTER)} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return responses.JSONResponse({"code": error.code, "message": str(error)}, status, headers)
