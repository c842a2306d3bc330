"""`.bin` files: read without ever loading the pickle."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import simplejpeg
from conftest import raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdrd_jax.data.insightface_bin import read_bin
from gdrd_jax.utils.errors import GdrdError

IMAGES = [
    simplejpeg.encode_jpeg(np.full((112, 112, 3), v, np.uint8), quality=90, colorspace="RGB") for v in range(0, 240, 40)
]
SAME = [True, False, True]


def save(tmp_path, content, protocol=4):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", [tuple, list])
def test_pairs_come_back(tmp_path, protocol, container):
    faces, same = read_bin(save(tmp_path, container((IMAGES, SAME)), protocol))
    assert [faces.read(i) for i in range(6)] == IMAGES
    np.testing.assert_array_equal(same, SAME)
    assert same.dtype == bool and int(faces[2].mean()) == 80 and faces.names[3] == "pair 1 b"


def test_one_image_in_several_pairs(tmp_path):
    faces, _ = read_bin(save(tmp_path, ([IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[2]], [True, False])))
    assert faces.read(2) == IMAGES[0]


def test_what_python_2_wrote(tmp_path):
    """Protocol 2 of Python 2: strings are BINSTRING, and as in protocol 0 a boolean may be I01."""

    def string(data):
        return b"T" + len(data).to_bytes(4, "little") + data

    path = tmp_path / "a.bin"
    path.write_bytes(b"\x80\x02](" + string(IMAGES[0]) + string(IMAGES[1]) + b"eq\x01](I01\ne\x86q\x02.")
    faces, same = read_bin(path)
    assert [faces.read(0), faces.read(1)] == IMAGES[:2] and same.tolist() == [True]


def test_what_python_2_wrote_in_protocol_0(tmp_path):
    """Python 2's default: bytes as a quoted string with escapes, in either kind of quotes."""

    def string(data):  # Python 2's repr
        text = repr(data)[1:]
        return b"S" + text.encode() + b"\np1\na"

    images = [IMAGES[0], IMAGES[1], b"\xff\xd8it's", b"\xff\xd8'\\\n\"\0\x80"]
    body = b"".join(map(string, images))
    path = tmp_path / "a.bin"
    path.write_bytes(b"((lp0\n" + body + b"(lp5\nI01\naI00\natp6\n.")
    faces, same = read_bin(path)
    assert [faces.read(i) for i in range(4)] == images and same.tolist() == [True, False]
    assert faces.take([2, 1]).read(0) == images[2] and int(faces.take([1])[0].mean()) == 40


def test_labels_may_be_the_numbers_0_and_1(tmp_path):
    assert read_bin(save(tmp_path, (IMAGES, [1, 0, 1])))[1].tolist() == SAME
    with raises("bin-content"):
        read_bin(save(tmp_path, (IMAGES, [1, 0, 2])))


@pytest.mark.parametrize("call", [b"c_codecs\nencode\n(Vx\nVrot13\ntR", b"c__builtin__\nbytes\n(I9\ntR"])
def test_calls_that_mean_more_than_bytes_are_refused(tmp_path, call):
    (tmp_path / "a.bin").write_bytes(b"((l" + call + b"a(lI01\nat.")
    with raises("bin-unsafe", "a.bin", "REDUCE"):
        read_bin(tmp_path / "a.bin")


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [Evil(), (IMAGES, [Evil()]), ([np.zeros(3)] * 2, [True])])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_wants_to_call_something_is_refused_and_not_run(tmp_path, monkeypatch, content, protocol):
    monkeypatch.chdir(tmp_path)
    with raises("bin-unsafe", ".bin"):
        read_bin(save(tmp_path, content, protocol))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        [],
        (IMAGES, SAME[:2]),
        (IMAGES[:5], SAME),
        ([], []),
        (SAME, SAME),
        (IMAGES, IMAGES),
        True,
        (IMAGES, SAME, []),
        b"x",
    ],
)
def test_another_content_is_refused(tmp_path, content):
    with raises("bin-content"):
        read_bin(save(tmp_path, content))


def test_damaged_and_missing_files_are_named(tmp_path):
    whole = save(tmp_path, (IMAGES, SAME)).read_bytes()
    for cut in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "lfw.bin").write_bytes(whole[:cut])
        with raises("bin-damaged", "lfw.bin"):
            read_bin(tmp_path / "lfw.bin")
    with raises("file-missing", "nowhere.bin"):
        read_bin(tmp_path / "nowhere.bin")


SMALL = pickle.dumps(([bytes([i]) * 30 for i in range(4)], [True, False]), protocol=4)
OPCODES = [b"\x80\x04", b"]", b"(", b"e", b"a", b"\x88", b"\x89", b"\x86", b"\x85", b"t", b"l", b"\x94", b"h\x00", b")"]
OPCODES += [b"C\x02ab", b"B\xff\xff\xff\xff", b"\x8e" + b"\xff" * 7 + b"\x7f", b"r\xff\xff\xff\xff", b".", b"c", b"R"]
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "400")), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def survives(folder, data):
    (folder / "a.bin").write_bytes(data)
    try:
        faces, same = read_bin(folder / "a.bin")
    except GdrdError:
        return
    assert len(faces) == 2 * len(same) > 0
    for i in range(len(faces)):
        assert len(faces.read(i)) <= len(data)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 99)
)
def test_fuzz_damaged_files(tmp_path, changes, cut):
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    survives(tmp_path, bytes(data[: len(data) - (cut if cut > 50 else 0)]))


@FUZZ
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(OPCODES), max_size=60).map(b"".join)))
def test_fuzz_arbitrary_files(tmp_path, data):
    survives(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"B\xff\xff\xff\xff" + b"x" * 10, "bin-damaged"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f" + b"x", "bin-damaged"),
        (b"]r\xff\xff\xff\xff.", "bin-content"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"].", "bin-content"),
        (b"(" * 200_000 + b"l" * 100_000, "bin-damaged"),
    ],
)
def test_sizes_that_a_file_claims_are_not_allocated(tmp_path, data, code):
    (tmp_path / "a.bin").write_bytes(data)
    tracemalloc.start()
    with raises(code, "a.bin"):
        read_bin(tmp_path / "a.bin")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
