import json
import socket
import urllib.request

import numpy as np
import pytest
import tensorstore as ts
from conftest import raises

from gdrd_jax.data import object_store
from gdrd_jax.data.feature_store import CHUNK_ROWS, FeatureStore

ROWS = CHUNK_ROWS + 10
VALUES = np.float16(np.random.default_rng(0).normal(size=(2, ROWS, 3)))


def create(path, url, **changes):
    settings = {"rows": ROWS, "views": 2, "shape": (3,), "dtype": "float16", "provenance": {"teacher": "a"}, **changes}
    return FeatureStore.create(path, arrays=f"{url}/discriminative/train", **settings)


def write(store, chunks):
    for view, rows in chunks:
        store.write(view, rows, VALUES[view, rows.start : rows.stop])


def test_arrays_are_written_to_a_bucket_and_read_again(bucket, tmp_path):
    store = create(tmp_path / "c", bucket)
    pieces = list(store.chunks())
    write(store, pieces[:1])
    assert store.has(*pieces[0]) and not store.has(*pieces[1])
    assert create(tmp_path / "c", bucket).missing() == pieces[1:]
    with raises("targets-unfinished", "3 of 4 pieces"):
        FeatureStore.open(tmp_path / "c")
    write(store, pieces[1:])
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["manifest.json"]
    again = FeatureStore.open(tmp_path / "c")
    np.testing.assert_array_equal(again.read_all(), VALUES.transpose(1, 0, 2))
    np.testing.assert_array_equal(again.reader(10_000)(1, np.array([260, 3])), VALUES[1, [260, 3]])


def test_caches_of_the_same_things_share_their_arrays(bucket, tmp_path):
    write(first := create(tmp_path / "a", bucket), first.chunks())
    assert create(tmp_path / "b", bucket).missing() == []
    assert len(create(tmp_path / "c", bucket, provenance={"teacher": "b"}).missing()) == 4


def test_a_damaged_object_is_noticed(bucket, tmp_path):
    write(store := create(tmp_path / "c", bucket), FeatureStore.chunks(store))
    folder = ts.KvStore.open(object_store.kvstore(store._place(1))).result()
    damaged = bytearray(folder.read("0.0").result().value)
    damaged[5] ^= 1
    folder.write("0.0", bytes(damaged)).result()
    with raises("targets-unreadable", "view1", "igest"):
        store.read(1)
    np.testing.assert_array_equal(store.read(0), VALUES[0])


def test_a_bucket_that_is_not_there_is_named_first(bucket):
    for _ in range(2):
        object_store.check(f"{bucket}/a")
        assert object_store.keys(bucket) == {"a/gdrd_jax"}
    with raises("object-store-unusable", f"{bucket}-2"):
        object_store.check(f"{bucket}-2")


@pytest.mark.parametrize("url", ["http://host/faces", "gs://", "s3:///path", "faces"])
def test_other_urls_are_refused(url):
    with raises("object-store-url", repr(url), "gs://BUCKET/PATH"):
        object_store.kvstore(url)


def test_a_store_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(object_store, "SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{silent.getsockname()[1]}")
        with raises("object-store-timeout", "gs://silent", "1 seconds"):
            object_store.check("gs://silent")


def test_s3_is_described_with_the_endpoint_of_its_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert object_store.kvstore("s3://faces/a//") == {
        "driver": "s3", "bucket": "faces", "path": "a/", "endpoint": "http://localhost:9000",
    }  # fmt: skip
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert object_store.kvstore("s3://faces") == {"driver": "s3", "bucket": "faces", "path": ""}


def test_arrays_are_written_to_a_server_of_s3(tmp_path, monkeypatch):
    server = pytest.importorskip("moto.server", reason="moto[server], which plays S3, is not installed")
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/faces", method="PUT")).close()
        write(store := create(tmp_path / "c", "s3://faces"), store.chunks())
        np.testing.assert_array_equal(FeatureStore.open(tmp_path / "c").read(1), VALUES[1])
        assert json.loads((tmp_path / "c" / "manifest.json").read_text())["arrays"] == "s3://faces/discriminative/train"
    finally:
        s3.stop()
