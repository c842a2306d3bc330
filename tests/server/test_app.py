"""The endpoints of a server, what they refuse, and what they count."""

import base64
import dataclasses
import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from conftest import make_faces, raises, save_student

from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.inference.quality import Quality
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import Thresholds
from gdrd_jax.utils.errors import GdrdError

pytest.importorskip("fastapi")
pytest.importorskip("swagger_ui_bundle")
testclient = pytest.importorskip("fastapi.testclient")

from gdrd_jax.server.app import create_app  # noqa: E402
from gdrd_jax.server.limits import Limits  # noqa: E402
from gdrd_jax.server.metrics import Metrics  # noqa: E402
from gdrd_jax.server.service import Service, network  # noqa: E402

THRESHOLDS = Thresholds((0.5, 0.1, 0.001), (0.5, 0.99, 0.999), (1.0, 0.9, 0.2), 40, 80, 780, 40, "made up")
QUALITY = Quality(2.0, 0.5, 0.01, 40, "made up")
KEY = "a-key-of-many-characters"


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    workdir = save_student(tmp_path_factory.mktemp("run"), seed=7)
    return dataclasses.replace(Recognizer.load(workdir), thresholds=THRESHOLDS, quality=QUALITY)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("people"), 4, 3)


@pytest.fixture(scope="module")
def forward(recognizer):
    return network(recognizer)


@pytest.fixture
def start(recognizer, forward, tmp_path, monkeypatch):
    """Starts a server that clients of this process reach; its gallery does not exist yet."""
    monkeypatch.setattr("gdrd_jax.server.service.network", lambda _: forward)
    opened = []

    def started(place=tmp_path / "known", *, key=None, local=True, far=None, fpir=None, one=recognizer, **limits):
        metrics = Metrics()
        service = Service(one, place, limits=Limits(**limits), far=far, fpir=fpir, seen=metrics.batch)
        app = create_app(service, metrics, key=key, local=local)
        client = testclient.TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)
        opened.append(client.__enter__())
        return client

    yield started
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start):
    return start()


def picture(people, person, number):
    return (people / f"p{person}" / f"{number}.png").read_bytes()


def uploads(*pictures, name="images"):
    return [(name, (f"{number}.png", data)) for number, data in enumerate(pictures)]


def text(data):
    return base64.b64encode(data).decode()


def error(response, status, code, *facts):
    """Checks that a response is an error with these facts."""
    found = response.json()
    assert (response.status_code, found["code"]) == (status, code) and set(found) == {"code", "message"}, found
    assert all(str(fact) in found["message"] for fact in facts), found


def enroll_all(client, people):
    for person in range(4):
        files = uploads(*(picture(people, person, number) for number in (0, 1)))
        found = client.post("/v1/enroll", files=files, data={"person": f"p{person}"})
        assert found.json() == {"person": f"p{person}", "faces": 2, "replaced": 0}, found.text


# Endpoints


def test_uploads_and_base64_are_embedded_as_by_the_recognizer(client, recognizer, people):
    pictures = [picture(people, person, 0) for person in range(3)]
    files = [people / f"p{person}" / "0.png" for person in range(3)]
    expected, quality = recognizer.embed(files, quality=True)
    as_upload = client.post("/v1/embed", files=uploads(*pictures)).json()
    as_json = client.post("/v1/embed", json={"images": [*map(text, pictures)], "align": False}).json()
    assert as_upload == as_json and as_upload["recognizer"] == recognizer.fingerprint()
    np.testing.assert_allclose(as_upload["embeddings"], expected, atol=1e-6)
    np.testing.assert_allclose(as_upload["quality"], quality, atol=1e-6)
    alone = client.post("/v1/embed", json={"images": text(pictures[1])}).json()
    np.testing.assert_allclose(alone["embeddings"], expected[1:2], atol=1e-6)


def test_two_faces_are_verified(client, recognizer, people):
    files = [*uploads(picture(people, 0, 0), name="first"), *uploads(picture(people, 0, 1), name="second")]
    expected = recognizer.verify(people / "p0" / "0.png", people / "p0" / "1.png", far=0.1)
    found = client.post("/v1/verify", files=files, data={"far": "0.1"}).json()
    assert found == pytest.approx(vars(expected), abs=1e-6)
    pair = {"first": text(picture(people, 0, 0)), "second": text(picture(people, 2, 0))}
    found = client.post("/v1/verify", json=pair).json()
    assert (found["far"], found["threshold"], found["same"]) == (0.001, 0.999, False)


def test_people_are_enrolled_found_and_removed(client, people, tmp_path):
    assert client.get("/v1/gallery").json() == {"faces": 0, "people": {}}
    enroll_all(client, people)
    assert client.get("/v1/gallery").json() == {"faces": 8, "people": {f"p{person}": 2 for person in range(4)}}
    assert Gallery.load(tmp_path / "known").counts() == {f"p{person}": 2 for person in range(4)}
    probes = uploads(*(picture(people, person, 2) for person in (3, 1)))
    found = client.post("/v1/search", files=probes, data={"k": "3"}).json()
    assert found["threshold"] is None and [len(probe["matches"]) for probe in found["probes"]] == [3, 3]
    assert [probe["matches"][0]["id"] for probe in found["probes"]] == ["p3", "p1"]
    assert found["probes"][0]["matches"][0]["accepted"] is found["probes"][0]["decision"] is None
    assert 0 < found["probes"][0]["quality"] < 1
    assert client.post("/v1/remove", json={"people": ["p3", "p0"]}).json() == {"removed": 4}
    found = client.post("/v1/search", files=probes).json()
    assert {match["id"] for match in found["probes"][0]["matches"]} == {"p1", "p2"}
    one = uploads(picture(people, 1, 2))
    replaced = client.post("/v1/enroll", files=one, data={"person": "p1", "update": "true"}).json()
    assert replaced == {"person": "p1", "faces": 1, "replaced": 2}
    assert client.get("/v1/gallery").json()["people"] == {"p2": 2, "p1": 1}


def test_matches_are_accepted_by_a_rate_of_the_request_or_the_server(start, people):
    client = start(far=0.1)
    enroll_all(client, people)
    probe = {"images": [text(picture(people, 0, 0))], "k": 8}
    for rate, threshold in (({}, 0.99), ({"far": 0.5}, 0.5)):
        found = client.post("/v1/search", json=probe | rate).json()
        assert found["threshold"] == threshold
        assert all(m["accepted"] == (m["similarity"] >= threshold) for m in found["probes"][0]["matches"])
        assert {m["accepted"] for m in found["probes"][0]["matches"]} == {True, False}
        assert found["probes"][0]["decision"] == "p0"


def test_a_search_decides_by_the_rate_of_strangers_who_find_somebody(client, recognizer, people):
    probe = {"images": [text(picture(people, person, 2)) for person in range(4)], "fpir": 0.3}
    error(client.post("/v1/search", json=probe), 409, "gallery-empty")
    enroll_all(client, people)
    client.post("/v1/remove", json={"people": ["p2", "p3"]})
    found, threshold = client.post("/v1/search", json=probe).json(), recognizer.threshold(fpir=0.3, gallery=4)
    assert found["threshold"] == threshold != recognizer.threshold(0.3)
    for each in found["probes"]:
        best = each["matches"][0]
        assert each["decision"] == (best["id"] if best["similarity"] >= threshold else None)
    assert len({each["decision"] is None for each in found["probes"]}) == 2
    error(client.post("/v1/search", json=probe | {"fpir": 0.001}), 422, "fpir-too-fine", "gallery of 4")
    error(client.post("/v1/search", json=probe | {"far": 0.1}), 422, "threshold-rates")


def test_the_server_has_a_rate_for_searches_without_one(start, recognizer, people):
    client = start(far=0.1, fpir=0.3)
    enroll_all(client, people)
    probe = {"images": [text(picture(people, 0, 0))]}
    of_search = recognizer.threshold(fpir=0.3, gallery=client.get("/v1/gallery").json()["faces"])
    for rate, threshold in (({}, of_search), ({"far": 0.5}, recognizer.threshold(0.5))):
        assert client.post("/v1/search", json=probe | rate).json()["threshold"] == threshold
    pair = {"first": text(picture(people, 0, 0)), "second": text(picture(people, 0, 1))}
    assert client.post("/v1/verify", json=pair).json()["far"] == 0.1
    with raises("fpir-too-fine"):
        start(fpir=0.0001)
    with raises("fpir-without-gallery"):
        start(None, fpir=0.3)


def test_a_gallery_of_the_teacher_is_searched_but_not_extended(start, recognizer, people, tmp_path):
    teacher = "7" * 64
    values = np.eye(recognizer.dim, dtype=np.float32)[:2]
    known = Gallery(recognizer.dim, teacher)
    known.add(values, ["ann", "bob"])
    known.save(tmp_path / "native")
    one = dataclasses.replace(
        recognizer, teacher={"name": "t", "fingerprint": teacher},
        native_thresholds=dataclasses.replace(THRESHOLDS, values=(0.1, 0.2, 0.3)),
    )  # fmt: skip
    client = start(tmp_path / "native", one=one)
    found = client.post("/v1/search", json={"images": text(picture(people, 0, 0)), "far": 0.1}).json()
    assert found["threshold"] == 0.2 and {m["id"] for m in found["probes"][0]["matches"]} == {"ann", "bob"}
    error(client.post("/v1/enroll", json={"images": text(picture(people, 0, 0)), "person": "x"}), 409, "gallery-space")


def test_the_page_and_the_description_need_no_other_server(client):
    page = client.get("/docs").text
    assert "http://" not in page.replace("http://localhost", "") and "https://" not in page
    for file in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"/docs/{file}" in page and client.get(f"/docs/{file}").status_code == 200
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/health", *(f"/v1/{name}" for name in ("embed", "verify", "enroll", "search", "remove", "gallery"))
    }  # fmt: skip
    content = described["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert set(content["application/json"]["schema"]["properties"]) == {"images", "align", "k", "far", "fpir"}


def test_health_names_what_is_served(client, start):
    assert client.get("/health").json()["gallery"] and client.get("/health").json()["resolution"] == 16
    assert not start(None).get("/health").json()["gallery"]


# Batches


def test_requests_that_arrive_together_are_embedded_together(client, recognizer, people, forward, monkeypatch):
    pictures = [picture(people, person, number) for person in range(4) for number in range(3)]
    expected = recognizer.embed(sorted(people.rglob("*.png")))
    barrier = threading.Barrier(len(pictures))

    def call(data):
        barrier.wait()
        return client.post("/v1/embed", files=uploads(data)).json()["embeddings"][0]

    with ThreadPoolExecutor(len(pictures)) as pool:
        found = list(pool.map(call, pictures))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    counts = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(counts["gdrd_batch_faces_sum"]) == 12 and float(counts["gdrd_batch_faces_count"]) < 12


def test_metrics_count_requests_batches_and_faces(client, people):
    enroll_all(client, people)
    client.get("/v1/nothing")
    client.post("/v1/embed", json={})
    lines = client.get("/metrics").text.splitlines()
    assert 'gdrd_requests_total{endpoint="/v1/enroll",status="200"} 4.0' in lines
    assert 'gdrd_requests_total{endpoint="other",status="404"} 1.0' in lines
    assert 'gdrd_requests_total{endpoint="/v1/embed",status="422"} 1.0' in lines
    assert 'gdrd_request_seconds_count{endpoint="/v1/enroll"} 4.0' in lines
    assert "gdrd_batch_faces_sum 8.0" in lines and "gdrd_gallery_faces 8.0" in lines


# What is refused


def encoded(height, width):
    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def test_pictures_that_cannot_be_used_are_named(client, people):
    good = picture(people, 0, 0)
    cases = [
        (b"not a picture", "image-unreadable", "picture 1"), (encoded(3, 3), "face-too-small", "picture 1", "3x3"),
        (encoded(90, 120), "face-not-square", "picture 1", "120x90"), (b"", "image-unreadable", "picture 1"),
        (cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()[:-40], "image-unreadable", "picture 1"),
    ]  # fmt: skip
    for data, code, *facts in cases:
        error(client.post("/v1/embed", json={"images": [text(good), text(data)]}), 422, code, *facts)
        error(client.post("/v1/enroll", files=uploads(good, data), data={"person": "x"}), 422, code, *facts)
    assert client.get("/v1/gallery").json()["faces"] == 0  # all or none
    assert "the picture" in client.post("/v1/embed", files=uploads(encoded(3, 3))).json()["message"]


def test_a_decompression_bomb_is_not_decoded(start, people, monkeypatch):
    client = start(megapixels=0.02)
    decoded = []
    monkeypatch.setattr("gdrd_jax.server.service.decode", lambda *given: decoded.append(given))
    error(client.post("/v1/embed", files=uploads(encoded(150, 150))), 413, "picture-too-large", "0.02")
    header = encoded(8, 8)
    claimed = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + header[24:29]  # 3.6 gigapixels
    huge = header[:12] + claimed + zlib.crc32(claimed).to_bytes(4, "big") + header[33:]
    error(client.post("/v1/embed", files=uploads(huge)), 413, "picture-too-large")
    assert not decoded


def test_too_much_at_once_is_refused(start, people):
    client = start(megabytes=0.05, pictures=2)
    good = picture(people, 0, 0)
    large = {"images": "A" * 60_000}
    error(client.post("/v1/embed", json=large), 413, "request-too-large", "0.05")
    parts = (chunk for chunk in [b'{"images": "'] + [b"A" * 10_000] * 6)  # no Content-Length
    error(
        client.post("/v1/embed", content=parts, headers={"Content-Type": "application/json"}), 413, "request-too-large"
    )
    error(client.post("/v1/embed", files=uploads(b"A" * 60_000)), 413, "request-too-large")
    for count in (3, 4):
        error(client.post("/v1/embed", files=uploads(*[b"A"] * count)), 413, "pictures-too-many", 2)
        error(client.post("/v1/embed", json={"images": [text(b"A")] * count}), 413, "pictures-too-many", count)
    error(client.post("/v1/embed", json={"images": []}), 422, "pictures-missing")
    assert client.post("/v1/embed", json={"images": [text(good)]}).status_code == 200


def test_more_requests_than_allowed_are_put_off(start, people, monkeypatch):
    client, entered, leave = start(requests=1), threading.Event(), threading.Event()
    good = uploads(picture(people, 0, 0))
    prepared = Service._prepared

    def slow(*arguments):
        entered.set()
        assert leave.wait(60)
        return prepared(*arguments)

    monkeypatch.setattr(Service, "_prepared", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/embed", files=good)
        assert entered.wait(60)
        refused = client.post("/v1/embed", files=good)
        error(refused, 503, "server-busy", 1)
        assert refused.headers["Retry-After"] == "1" and client.get("/health").status_code == 200
        leave.set()
        assert waiting.result().status_code == 200
    assert client.post("/v1/embed", files=good).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "facts"),
    [
        ("search", {"images": [], "k": 0}, ["k", "1"]), ("search", {"images": [], "k": 101}, ["k", "100"]),
        ("search", {"images": [], "k": "many"}, ["k"]), ("search", {"images": [], "colour": 1}, ["colour"]),
        ("search", {"images": 7}, ["images", "base64"]), ("search", {"images": ["%%%"]}, ["images", "base64"]),
        ("search", {"images": [], "far": 0}, ["far", "0"]), ("verify", {"first": "", "far": 0.1}, ["second"]),
        ("verify", {"first": "", "second": "", "far": 2}, ["far"]), ("enroll", {"images": []}, ["person"]),
        ("enroll", {"images": [], "person": ""}, ["person"]), ("embed", [1], ["JSON"]), ("embed", "{", ["JSON"]),
        ("remove", {"people": []}, ["people"]), ("remove", {"people": "ann"}, ["people"]), ("remove", {}, ["people"]),
    ],
)  # fmt: skip
def test_wrong_options_are_named(client, path, body, facts):
    headers = {"Content-Type": "application/json"}
    content = body if isinstance(body, str) else json.dumps(body)
    error(client.post(f"/v1/{path}", content=content, headers=headers), 422, "request-invalid", *facts)


def test_wrong_uploads_are_named(client, people):
    good = picture(people, 0, 0)
    error(client.post("/v1/embed", files=uploads(good, name="picture")), 422, "request-invalid", "'picture'", "images")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    error(client.post("/v1/embed", content=b"--y\r\n", headers=broken), 422, "request-invalid")
    error(
        client.post("/v1/embed", content=b"", headers={"Content-Type": "multipart/form-data"}), 422, "request-invalid"
    )
    error(client.post("/v1/embed", content=good, headers={"Content-Type": "image/png"}), 415, "media-type", "image/png")
    error(client.post("/v1/embed"), 415, "media-type")
    error(client.post("/v1/remove", files=uploads(good)), 415, "media-type", "application/json")
    assert client.post("/v1/embed", files=uploads(good), data={"align": ""}).status_code == 200
    files = [*uploads(good, good, name="first"), *uploads(good, name="second")]
    error(client.post("/v1/verify", files=files), 422, "request-invalid", "first")


def test_paths_and_methods_that_are_not_there_are_json_too(client):
    error(client.get("/v1/nothing"), 404, "not-found")
    error(client.get("/v1/embed"), 405, "method-not-allowed")


def test_errors_of_galleries_have_their_status(client, start, people, monkeypatch):
    probe = {"images": text(picture(people, 0, 0))}
    error(client.post("/v1/search", json=probe), 409, "gallery-empty")
    error(client.post("/v1/remove", json={"people": ["ann"]}), 404, "gallery-person-unknown", "ann")
    enroll_all(client, people)
    error(client.post("/v1/remove", json={"people": ["p1", "p9"]}), 404, "gallery-person-unknown", "p9")
    assert client.get("/v1/gallery").json()["faces"] == 8
    error(client.post("/v1/search", json=probe | {"far": 1e-5}), 422, "far-too-fine")
    none = start(None)
    for path, body in (("search", probe), ("enroll", probe | {"person": "x"}), ("remove", {"people": ["x"]})):
        error(none.post(f"/v1/{path}", json=body), 409, "server-without-gallery", "--gallery")

    def fail(code):
        def search(*_):
            raise GdrdError("the database is gone", code) if code else ValueError("a secret")

        monkeypatch.setattr(Gallery, "search", search)
        return client.post("/v1/search", json=probe)

    for code, status in (("gallery-unreachable", 503), ("gallery-busy", 503), ("gallery-damaged", 500)):
        error(fail(code), status, code, "gone")
    monkeypatch.setattr(Gallery, "__len__", Gallery.search)  # which fails
    assert "gdrd_gallery_faces NaN" in client.get("/metrics").text
    found = fail(None)
    error(found, 500, "internal")
    assert "secret" not in found.text


def test_a_student_without_thresholds_searches_but_does_not_verify(start, recognizer, people):
    one = dataclasses.replace(recognizer, thresholds=None, quality=None)
    client = start(one=one)
    pair = {"first": text(picture(people, 0, 0)), "second": text(picture(people, 0, 1))}
    error(client.post("/v1/verify", json=pair), 409, "threshold-missing")
    enroll_all(client, people)
    found = client.post("/v1/search", json={"images": text(picture(people, 0, 0))}).json()
    assert found["threshold"] is found["probes"][0]["quality"] is None
    with raises("threshold-missing"):
        start(one=one, far=0.1)


# Who may use it


def test_with_a_key_nothing_is_answered_without_it(start, people):
    client = start(key=KEY)
    probe = {"images": text(picture(people, 0, 0))}
    for headers in (
        {},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer ümlaut"},
    ):
        sent = {name: value.encode() for name, value in headers.items()}
        refused = client.post("/v1/embed", json=probe, headers=sent)
        error(refused, 401, "api-key")
        assert refused.headers["WWW-Authenticate"] == "Bearer" and KEY not in refused.text
        error(client.get("/metrics", headers=sent), 401, "api-key")
    right = {"Authorization": f"Bearer {KEY}"}
    assert client.post("/v1/embed", json=probe, headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200
    assert client.get("/health").status_code == client.get("/docs").status_code == 200
    assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]


def test_without_a_key_other_web_sites_are_not_answered(start, people):
    client, probe = start(), {"images": text(picture(people, 0, 0))}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example:8000"}, {"Origin": "null"}):
        error(client.post("/v1/embed", json=probe, headers=headers), 403, "other-origin")
    for headers in ({"Origin": "http://localhost:8000"}, {"Host": "127.0.0.1:8000"}, {"Host": "[::1]:8000"}):
        assert client.post("/v1/embed", json=probe, headers=headers).status_code == 200
    assert start(local=False).post("/v1/embed", json=probe, headers={"Host": "faces.lan"}).status_code == 200


def test_options_are_described_in_the_words_of_openapi_30(client):
    content = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    options = content["multipart/form-data"]["schema"]["properties"]
    assert options["far"]["type"] == "number" and "default" not in options["far"]
    assert (options["k"]["default"], options["k"]["maximum"], options["align"]["default"]) == (5, 100, False)
    assert options["images"] == {"type": "array", "items": {"type": "string", "format": "binary"}}
