"""Folders of Google Cloud Storage and of S3 for the arrays of `data.feature_store.FeatureStore`, through TensorStore.

Credentials are found as their own tools find them: `GOOGLE_APPLICATION_CREDENTIALS` or `gcloud auth
application-default login`; `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or `~/.aws`. `AWS_ENDPOINT_URL` names a
server that speaks the protocol of S3, such as MinIO.
"""

import os

import tensorstore as ts

from gdrd_jax.utils.errors import GdrdError, first_line

DRIVERS = {"gs": "gcs", "s3": "s3"}  # by the scheme of a URL
MARK = "gdrd_jax"
SECONDS = 20.0  # after which a store that does not answer is given up


def kvstore(url: str) -> dict:
    """TensorStore's description of the folder at `gs://BUCKET/PATH` or `s3://BUCKET/PATH`.

    Raises:
      GdrdError: the URL has another form.
    """
    scheme, _, place = url.partition("://")
    bucket, _, path = place.partition("/")
    if scheme not in DRIVERS or not bucket:
        raise GdrdError(
            f"{url!r} is not a folder of an object store; give gs://BUCKET/PATH or s3://BUCKET/PATH", "object-store-url"
        )
    path = path.strip("/")
    spec = {"driver": DRIVERS[scheme], "bucket": bucket, "path": f"{path}/" if path else ""}
    if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = os.environ["AWS_ENDPOINT_URL"]
    return spec


def keys(url: str, only: str | None = None) -> set[str]:
    """Names of the objects below a folder, or of none but `only`, if it exists.

    Raises:
      GdrdError: the store refuses.
    """
    among = ts.KvStore.KeyRange() if only is None else ts.KvStore.KeyRange(only, f"{only}\0")
    try:
        return {name.decode() for name in _opened(url).list(among).result()}
    except ValueError as error:  # TensorStore's, of whatever kind
        raise GdrdError(f"{url} cannot be read: {first_line(error)[:300]}", "object-store-read") from error


def check(url: str) -> None:
    """Makes sure, before long work, that a folder can be used; a new one gets an object `gdrd_jax`.

    Raises:
      GdrdError: it can neither be read nor written, or does not answer.
    """
    try:
        folder = _opened(url)
        if folder.read(MARK).result(timeout=SECONDS).state == "missing":  # or there is no such bucket
            folder.write(MARK, b"").result(timeout=SECONDS)
    except TimeoutError as error:
        raise GdrdError(
            f"{url} did not answer within {SECONDS:.0f} seconds; check the network and the URL", "object-store-timeout"
        ) from error
    except ValueError as error:
        raise GdrdError(
            f"{url} cannot be used: {first_line(error)[:300]}; check the bucket and your credentials",
            "object-store-unusable",
        ) from error


def _opened(url: str) -> ts.KvStore:
    return ts.KvStore.open(kvstore(url)).result()
