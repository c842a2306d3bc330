"""What a client sends: pictures and options, as an upload (multipart/form-data) or as JSON with base64."""

import base64
import binascii
import json
from typing import Any, Generic, TypeVar

from gdrd_jax.server.limits import Limits
from gdrd_jax.utils.errors import GdrdError, require

pydantic = require("pydantic", "server")
formparsers = require("starlette.formparsers", "server")

UPLOAD, JSON = "multipart/form-data", "application/json"
FIELDS = 16  # options of a request, at most
FAR = pydantic.Field(None, gt=0, le=0.5, description="false accept rate of one comparison; the server's by default")


class Options(pydantic.BaseModel):
    """Options of every request with pictures."""

    model_config = pydantic.ConfigDict(extra="forbid")
    align: bool = pydantic.Field(False, description="the pictures are photographs: find the face and align it")


class VerifyOptions(Options):
    """Options of `verify`."""

    far: float | None = FAR


class SearchOptions(Options):
    """Options of `search`."""

    k: int = pydantic.Field(5, ge=1, le=100, description="how many matches for each picture")
    far: float | None = FAR
    fpir: float | None = pydantic.Field(
        None, gt=0, le=0.5, description="instead of far: share of the searches for strangers that may find somebody"
    )


class EnrollOptions(Options):
    """Options of `enroll`."""

    person: str = pydantic.Field(min_length=1, max_length=255, description="whose faces these are")
    update: bool = pydantic.Field(False, description="replace the faces that the person has")


class RemoveOptions(pydantic.BaseModel):
    """What `remove` takes."""

    model_config = pydantic.ConfigDict(extra="forbid")
    people: list[str] = pydantic.Field(min_length=1, description="remove all faces of these people, or none")


OptionsType = TypeVar("OptionsType", bound=pydantic.BaseModel)


class Call(Generic[OptionsType]):
    """A request that has been read.

    Attributes:
      options: of the request.
      pictures: contents of image files, by field.
    """

    def __init__(self, options: OptionsType, pictures: dict[str, list[bytes]]):
        self.options, self.pictures = options, pictures


async def read(request: Any, kind: type[OptionsType], fields: dict[str, bool], limits: Limits) -> Call[OptionsType]:
    """Reads a request; nothing of it is written to disk.

    Args:
      request: Starlette's.
      kind: model of its options.
      fields: those that hold pictures, and whether they hold several.
      limits: on its size.

    Raises:
      GdrdError: "media-type", "request-invalid", or as `Limits.body`.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = limits.body(request.stream(), request.headers.get("content-length"))
    if media == UPLOAD and fields:
        options, pictures = await _upload(request.headers, body, fields, limits)
    elif media == JSON:
        options, pictures = _json(b"".join([chunk async for chunk in body]), fields)
    else:
        accepted = f"{UPLOAD} or {JSON}" if fields else JSON
        raise GdrdError(f"the request's Content-Type is {media or 'missing'}; send {accepted}", "media-type")
    for name, several in fields.items():
        if not several and len(pictures[name]) != 1:
            raise GdrdError(f"{name}: give one picture", "request-invalid")
    try:
        return Call(kind.model_validate(options), pictures)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise GdrdError(f"{where}: {first['msg'].lower()}; /docs explains the request", "request-invalid") from error


class _InMemory(formparsers.MultiPartParser):
    """A parser that never spools uploads to a temporary file; `Limits.body` limits them."""

    spool_max_size = 0  # SpooledTemporaryFile's "unlimited"


async def _upload(headers: Any, body: Any, fields: dict[str, bool], limits: Limits) -> tuple[dict, dict]:
    try:
        parser = _InMemory(headers, body, max_files=limits.pictures + 1, max_fields=FIELDS)
        form = await parser.parse()
    except formparsers.MultiPartException as error:
        if "Too many files" in error.message:
            limits.check_pictures(limits.pictures + 1)
        raise GdrdError(f"the upload cannot be read: {error.message}", "request-invalid") from error
    options: dict[str, str] = {}
    pictures: dict[str, list[bytes]] = {name: [] for name in fields}
    for name, value in form.multi_items():
        if isinstance(value, str):
            if value:  # forms send fields that were left empty, too
                options[name] = value
        elif name in pictures:
            pictures[name].append(await value.read())
        else:
            raise GdrdError(f"there is no field {name!r} for pictures; use {', '.join(fields)}", "request-invalid")
    return options, pictures


def _json(body: bytes, fields: dict[str, bool]) -> tuple[dict, dict]:
    try:
        options = json.loads(body)
    except ValueError as error:  # also of text that is not UTF-8
        raise GdrdError("the request is not valid JSON", "request-invalid") from error
    if not isinstance(options, dict):
        raise GdrdError("the request is not a JSON object", "request-invalid")
    pictures = {}
    for name, several in fields.items():
        given = options.pop(name, [])
        texts = given if several and isinstance(given, list) else [given]
        try:
            pictures[name] = [base64.b64decode(text, validate=True) for text in texts]
        except (TypeError, ValueError, binascii.Error) as error:
            raise GdrdError(f"{name}: give the contents of image files in base64", "request-invalid") from error
    return options, pictures


def described(kind: type[Any], fields: dict[str, bool]) -> dict:
    """The part of the OpenAPI description that is about a request."""
    options, content = kind.model_json_schema(), {}
    for option in options["properties"].values():  # "or null" has no word in OpenAPI 3.0
        option |= option.pop("anyOf", [{}])[0]
        if option.get("default") is None:
            option.pop("default", None)
    for media in (UPLOAD, JSON) if fields else (JSON,):
        one = {"type": "string", "format": "binary" if media == UPLOAD else "byte"}
        pictures = {name: {"type": "array", "items": one} if several else one for name, several in fields.items()}
        schema = {
            "type": "object", "properties": pictures | options["properties"],
            "required": [*fields, *options.get("required", [])],
        }  # fmt: skip
        content[media] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}
