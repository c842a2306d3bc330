"""Where a gallery is: a folder, or a schema of a PostgreSQL database."""

import dataclasses
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path

SCHEMES = ("postgresql", "postgres")
SCHEMA = "gdrd"  # where the URL names none
NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclasses.dataclass(frozen=True)
class PostgresAddress:
    """A gallery in PostgreSQL; as text it has no password.

    Attributes:
      url: as libpq takes it, with the password if the user gave one.
      schema: holds the gallery's tables; several galleries of one database are in several schemas.
    """

    url: str = dataclasses.field(repr=False)
    schema: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        user, at, host = parts.netloc.rpartition("@")
        place = f"{user.partition(':')[0]}{at}{host}"
        hidden = {"password", "passfile", "sslpassword"}
        query = [(key, value) for key, value in parse_qsl(parts.query) if key not in hidden]
        query += [("schema", self.schema)] if self.schema != SCHEMA else []
        return _url(parts.scheme, place, parts.path, query)


Address = Path | PostgresAddress


def parse_address(place: str | os.PathLike | PostgresAddress) -> Address:
    """A gallery's place as a person gives it: a folder, or `postgresql://USER@HOST/DATABASE?schema=NAME`.

    Raises:
      GdrdError: "gallery-url": a URL that cannot be one; the message does not repeat it, since it may have a password.
    """
    if isinstance(place, PostgresAddress):
        return place
    text = os.fspath(place)
    if not text.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
        return user_path(text)
    try:
        parts = urlsplit(text)
        port_is_number = parts.port is None or parts.port > 0
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True))
    except ValueError as error:
        raise _bad_url("it cannot be read") from error
    if not text.startswith(f"{parts.scheme}://") or not port_is_number or parts.netloc.count("@") > 1:
        raise _bad_url("it cannot be read")
    if parts.fragment:
        raise _bad_url("it has a '#'")
    schema = query.pop("schema", SCHEMA)
    if not NAME.fullmatch(schema):
        raise _bad_url(f"schema={schema} is not lowercase letters, digits and underscores")
    return PostgresAddress(_url(parts.scheme, parts.netloc, parts.path, [*query.items()]), schema)


def _url(scheme: str, place: str, path: str, query: list[tuple[str, str]]) -> str:
    end = urlencode(query, quote_via=quote, safe="/")  # libpq does not read + as a space
    return f"{scheme}://{place}{path}{'?' if end else ''}{end}"


def _bad_url(why: str) -> GdrdError:
    return GdrdError(
        f"the URL of the gallery is wrong: {why}; give postgresql://USER@HOST/DATABASE or "
        "postgresql://USER@HOST/DATABASE?schema=NAME, and write characters such as @, :, / and # in a name or password "
        "as %40, %3A, %2F and %23",
        "gallery-url",
    )
