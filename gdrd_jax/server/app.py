"""The HTTP interface of a server: its endpoints, their answers, and its page /docs."""

import contextlib
import logging
from collections.abc import AsyncIterator

from gdrd_jax.inference.pretrained import known_as
from gdrd_jax.server import requests
from gdrd_jax.server.errors import answer
from gdrd_jax.server.guard import Guard
from gdrd_jax.server.metrics import Metrics
from gdrd_jax.server.service import Service
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.version import __version__

fastapi = require("fastapi", "server")
pydantic = require("pydantic", "server")
swagger = require("swagger_ui_bundle", "server")
docs = require("fastapi.openapi.docs", "server")
security = require("fastapi.security", "server")
exceptions = require("starlette.exceptions", "server")
staticfiles = require("starlette.staticfiles", "server")
require("python_multipart", "server")  # which Starlette looks for when an upload arrives

LOG = logging.getLogger(__name__)
IMAGES = {"images": True}
PAIR = {"first": False, "second": False}
ABOUT = """Faces of 8 to 32 pixels. Pictures are aligned, square faces of any size, or with `align` photographs of one
person each; they are not kept. Errors are JSON: `code`, which is stable, and `message`."""


class Error(pydantic.BaseModel):
    """Why there is no other answer."""

    code: str
    message: str


class Health(pydantic.BaseModel):
    """What is served."""

    version: str
    recognizer: str
    resolution: int
    gallery: bool


class Embeddings(pydantic.BaseModel):
    """One embedding of unit length for each picture; the dot product of two is their similarity.

    `quality` says how recognizable each face is, from 0 to 1; null if the student has no quality score.
    """

    recognizer: str
    embeddings: list[list[float]]
    quality: list[float] | None


class Verdict(pydantic.BaseModel):
    """Whether two faces are one person's: the similarity reaches the threshold at this false accept rate."""

    same: bool
    similarity: float
    threshold: float
    far: float


class Match(pydantic.BaseModel):
    """A face of the gallery; `accepted` is null without a threshold."""

    id: str
    similarity: float
    accepted: bool | None


class Probe(pydantic.BaseModel):
    """The matches of a picture, the most similar first.

    `decision` is the person of the first match if that is accepted, and null otherwise; `quality` as of embed.
    """

    decision: str | None
    quality: float | None
    matches: list[Match]


class Found(pydantic.BaseModel):
    """A probe for each picture; `threshold` is null if no rate was given."""

    threshold: float | None
    probes: list[Probe]


class Enrolled(pydantic.BaseModel):
    """Faces that are in the gallery now, and how many they replaced."""

    person: str
    faces: int
    replaced: int


class Removed(pydantic.BaseModel):
    """How many faces were removed."""

    removed: int


class People(pydantic.BaseModel):
    """The number of faces of each person."""

    faces: int
    people: dict[str, int]


def create_app(service: Service, metrics: Metrics, *, key: str | None = None, local: bool = True):
    """The ASGI application of a server.

    Args:
      service: does the work.
      metrics: shown at /metrics.
      key, local: see `Guard`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = fastapi.FastAPI(
        title="gdrd_jax", version=__version__, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
    )  # fmt: skip
    app.openapi_version = "3.0.3"  # which the page shows
    bearer = security.HTTPBearer(auto_error=False)  # for the page's button; the guard checks the key
    v1 = fastapi.APIRouter(prefix="/v1", dependencies=[fastapi.Depends(bearer)] if key else [])
    recognizer = service.recognizer.fingerprint()

    @app.get("/health", tags=["server"])
    async def health() -> Health:
        """Is the server up, and which recognizer does it have?"""
        gallery = service.people.place is not None
        return Health(
            version=__version__, recognizer=known_as(recognizer), resolution=service.recognizer.resolution,
            gallery=gallery,
        )  # fmt: skip

    @v1.post("/embed", tags=["faces"], openapi_extra=requests.described(requests.Options, IMAGES))
    async def embed(request: fastapi.Request) -> Embeddings:
        """Embed faces."""
        call = await requests.read(request, requests.Options, IMAGES, service.limits)
        found = await service.embed(call.pictures["images"], align=call.options.align)
        quality = None if found.quality is None else found.quality.tolist()
        return Embeddings(recognizer=recognizer, embeddings=found.embeddings.tolist(), quality=quality)

    @v1.post("/verify", tags=["faces"], openapi_extra=requests.described(requests.VerifyOptions, PAIR))
    async def verify(request: fastapi.Request) -> Verdict:
        """Are two faces one person's?"""
        call = await requests.read(request, requests.VerifyOptions, PAIR, service.limits)
        pair = [call.pictures[name][0] for name in PAIR]
        found = await service.verify(*pair, align=call.options.align, far=call.options.far)
        return Verdict(**vars(found))

    @v1.post("/enroll", tags=["gallery"], openapi_extra=requests.described(requests.EnrollOptions, IMAGES))
    async def enroll(request: fastapi.Request) -> Enrolled:
        """Add faces of a person to the gallery. They are on disk when this is answered."""
        call = await requests.read(request, requests.EnrollOptions, IMAGES, service.limits)
        pictures, options = call.pictures["images"], call.options
        replaced = await service.enroll(options.person, pictures, align=options.align, update=options.update)
        return Enrolled(person=options.person, faces=len(pictures), replaced=replaced)

    @v1.post("/search", tags=["gallery"], openapi_extra=requests.described(requests.SearchOptions, IMAGES))
    async def search(request: fastapi.Request) -> Found:
        """Who of the gallery are these?"""
        call = await requests.read(request, requests.SearchOptions, IMAGES, service.limits)
        options = call.options
        lines, threshold, quality = await service.search(
            call.pictures["images"], align=options.align, k=options.k, far=options.far, fpir=options.fpir
        )
        probes = [
            Probe(
                decision=next((match.person for match in line if match.accepted), None),
                quality=None if quality is None else quality[number],
                matches=[Match(id=m.person, similarity=m.similarity, accepted=m.accepted) for m in line],
            )
            for number, line in enumerate(lines)
        ]
        return Found(threshold=threshold, probes=probes)

    @v1.post("/remove", tags=["gallery"], openapi_extra=requests.described(requests.RemoveOptions, {}))
    async def remove(request: fastapi.Request) -> Removed:
        """Remove people from the gallery, with all their faces; all of them or none."""
        call = await requests.read(request, requests.RemoveOptions, {}, service.limits)
        return Removed(removed=await service.remove(call.options.people))

    @v1.get("/gallery", tags=["gallery"])
    async def gallery() -> People:
        """Who is in the gallery, with how many faces?"""
        counts = await service.counts()
        return People(faces=sum(counts.values()), people=counts)

    @app.get("/metrics", include_in_schema=False)
    def show_metrics():
        return fastapi.Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def page():
        return docs.get_swagger_ui_html(
            openapi_url="/openapi.json", title="gdrd_jax", swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css", swagger_favicon_url="/docs/favicon-32x32.png",
        )  # fmt: skip

    app.mount("/docs", staticfiles.StaticFiles(directory=swagger.swagger_ui_path))
    app.include_router(v1)
    _answer_errors(app)
    if service.people.place is not None:
        metrics.gallery(service.people.count)
    app.add_middleware(Guard, key=key, local=local, limits=service.limits, metrics=metrics)
    return app


def _answer_errors(app) -> None:
    """Makes the answer of every error JSON with a code."""

    @app.exception_handler(GdrdError)
    async def of_gdrd(_, error: GdrdError):
        return answer(error)

    @app.exception_handler(exceptions.HTTPException)
    async def of_http(_, error: exceptions.HTTPException):
        code = "-".join(str(error.detail).lower().split())  # such as "not-found"
        return fastapi.responses.JSONResponse({"code": code, "message": str(error.detail)}, error.status_code)

    @app.exception_handler(Exception)
    async def of_bugs(_, error: Exception):
        LOG.error("a request failed", exc_info=error)
        message = "the server failed; its log has the reason"
        return fastapi.responses.JSONResponse({"code": "internal", "message": message}, 500)
