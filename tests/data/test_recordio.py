"""RecordIO: what InsightFace writes, what damage does to it, and fuzzing."""

import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from conftest import LABELS, PAYLOADS, raises
from conftest import write_records as write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gdrd_jax.data import recordio
from gdrd_jax.data.faces import JOINT
from gdrd_jax.data.readers import open_faces
from gdrd_jax.utils.errors import GdrdError

RNG = np.random.default_rng(0)
MAGIC = 0xCED7230A


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_images_and_identities_come_back(tmp_path, index, header):
    write(tmp_path / "a.rec", PAYLOADS, LABELS, index=index, header=header)
    faces = open_faces(tmp_path / "a.rec")
    assert len(faces) == 5 and faces.identities == ("0", "1", "7")
    np.testing.assert_array_equal(faces.labels, [0, 0, 0, 1, 2])
    assert [faces.read(i) for i in range(5)] == PAYLOADS
    assert [int(faces[i].mean()) for i in range(5)] == [10, 60, 110, 160, 210]
    assert faces.names[0] == ("1" if header else "0")


def test_the_layout_is_mxnets():
    record = recordio.pack_image(3, 9, b"abc")
    assert record == struct.pack("<II", MAGIC, 27) + struct.pack("<IfQQ", 0, 3.0, 9, 0) + b"abc\0"
    header = recordio.pack_range(6, 8, 0)
    assert header == struct.pack("<II", MAGIC, 32) + struct.pack("<IfQQ2f", 2, 0.0, 0, 0, 6.0, 8.0)


@pytest.mark.parametrize("index", [True, False])
def test_a_payload_with_the_magic_is_split_and_put_together_again(tmp_path, index):
    payloads = [JOINT, b"abcd" + JOINT + JOINT + b"xyz", JOINT + b"q", b"a" + JOINT, b"abcdefgh" * 9]
    write(tmp_path / "a.rec", payloads, [0] * 5, index=index)
    faces = open_faces(tmp_path / "a.rec")
    assert [faces.read(i) for i in range(5)] == payloads
    assert sorted(faces.parts) == [0, 1, 2]  # the magic of the fourth is not at a multiple of four
    assert faces.take([4, 1]).read(1) == payloads[1]


def test_the_first_of_several_labels_is_the_identity(tmp_path):
    labels = struct.pack("<3f", 4, 11, 12)
    (tmp_path / "a.rec").write_bytes(recordio.pack(struct.pack("<IfQQ", 3, 0, 0, 0) + labels + PAYLOADS[0]))
    faces = open_faces(tmp_path / "a.rec")
    assert faces.identities == ("4",) and faces.read(0) == PAYLOADS[0]


def broken(tmp_path, change, *, index=True):
    starts = write(tmp_path / "a.rec", PAYLOADS, LABELS, index=index)
    data = bytearray((tmp_path / "a.rec").read_bytes())
    data = change(data, starts)
    (tmp_path / "a.rec").write_bytes(data)
    return tmp_path / "a.rec"


def flip(where):
    def change(data, starts):
        data[where(starts)] ^= 0x40
        return data

    return change


DAMAGE = {
    "magic": flip(lambda starts: starts[2]),
    "length": flip(lambda starts: starts[2] + 4),
    "flag": flip(lambda starts: starts[2] + 8 + 3),
    "label": flip(lambda starts: starts[2] + 8 + 7),
    "truncated": lambda data, starts: data[: starts[5] + 30],
    "header": flip(lambda starts: 8 + 24 + 2),
}


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_or_skipped_and_listed(tmp_path, damage, index):
    path = broken(tmp_path, DAMAGE[damage], index=index)
    with raises("rec-damaged", path, "--skip-bad"):
        open_faces(path)
    faces = open_faces(path, skip_bad=True)
    assert faces.skipped and all(reason for _, reason in faces.skipped)
    whole = [faces.read(i) for i in range(len(faces)) if faces.read(i) in PAYLOADS]
    assert len(whole) >= 4
    assert len(faces) == 5 if damage == "header" or (damage == "length" and not index) else 4


def test_an_index_of_another_file_is_refused_with_the_remedy(tmp_path):
    write(tmp_path / "a.rec", PAYLOADS, LABELS)
    write(tmp_path / "b.rec", [p + b"x" * 40 for p in PAYLOADS], LABELS)
    (tmp_path / "a.idx").write_text((tmp_path / "b.idx").read_text())
    for skip_bad in (False, True):
        with raises("rec-index-mismatch", tmp_path / "a.idx", tmp_path / "a.rec", "remove"):
            open_faces(tmp_path / "a.rec", skip_bad=skip_bad)
    (tmp_path / "a.idx").unlink()
    assert len(open_faces(tmp_path / "a.rec")) == 5


@pytest.mark.parametrize("text", ["", "1\n", "a\tb\n", "0\t0\n0\t40\n", "0\t0\t0\n", "0\t99999999999999999999\n"])
def test_a_malformed_index_is_named(tmp_path, text):
    write(tmp_path / "a.rec", PAYLOADS, LABELS)
    (tmp_path / "a.idx").write_text(text)
    with raises("rec-index-damaged", "a.idx"):
        open_faces(tmp_path / "a.rec")


@pytest.mark.parametrize("lost", [2, 7])
def test_an_index_that_lacks_an_entry_is_noticed(tmp_path, lost):
    write(tmp_path / "a.rec", PAYLOADS, LABELS)
    lines = (tmp_path / "a.idx").read_text().splitlines(keepends=True)
    (tmp_path / "a.idx").write_text("".join(lines[:lost] + lines[lost + 1 :]))
    with raises("rec-damaged", tmp_path / "a.rec"):
        open_faces(tmp_path / "a.rec")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "rec-empty"), (b"x", "rec-format"), (b"no RecordIO file at all, but longer than a header", "rec-format"),
    ],
)  # fmt: skip
def test_a_file_without_records_is_named(tmp_path, data, code):
    (tmp_path / "a.rec").write_bytes(data)
    with raises(code, "a.rec"):
        open_faces(tmp_path / "a.rec", skip_bad=True)


@pytest.mark.parametrize("index", [True, False])
def test_half_a_million_records_open_without_their_pixels(tmp_path, index):
    count = 500_000
    record = np.frombuffer(recordio.pack_image(0, 0, bytes(40)), np.uint8)
    records = np.tile(record, (count, 1))
    records[:, 12:16] = np.repeat(np.arange(count // 50, dtype="<f4"), 50).view(np.uint8).reshape(-1, 4)
    (tmp_path / "a.rec").write_bytes(records.tobytes())
    if index:
        np.savetxt(tmp_path / "a.idx", np.stack([np.arange(count), np.arange(count) * records.shape[1]], 1), "%d\t%d")
    faces = open_faces(tmp_path / "a.rec")
    assert len(faces) == count and len(faces.identities) == count // 50 and not faces.parts


VALID = b"".join(
    [recordio.pack_range(4, 5, 0), *(recordio.pack_image(i, i, bytes([i]) * 21) for i in (1, 2)),
     recordio.pack_image(3, 3, b"12345678" + JOINT + b"9"), recordio.pack_range(1, 4, 4)]
)  # fmt: skip
STARTS = [i for i in range(0, len(VALID), 4) if VALID[i : i + 4] == JOINT and VALID[i + 7] >> 5 < 2]
edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, len(VALID) - 1), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.integers(0, len(VALID) - 1), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, len(VALID)), st.integers(0, 40)),
        st.tuples(st.just("insert"), st.integers(0, len(VALID)), st.binary(max_size=9)),
        st.tuples(st.just("repeat"), st.integers(0, len(VALID)), st.integers(1, 60)),
    ),
    min_size=1,
    max_size=5,
)


def edited(data, changes):
    data = bytearray(data)
    for kind, at, value in changes:
        at = min(at, len(data))
        if kind == "set" and at < len(data):
            data[at] = value
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << value
        elif kind == "cut":
            del data[at : at + value]
        elif kind == "insert":
            data[at:at] = value
        elif kind == "repeat":
            data[at:at] = data[at : at + value]
    return bytes(data)


def survives(path, data, index):
    """Reads it both ways; only our own error may come out, and memory stays in proportion to the file."""
    path.write_bytes(data)
    path.with_suffix(".idx").unlink(missing_ok=True)
    if index is not None:
        path.with_suffix(".idx").write_bytes(index)
    for skip_bad in (False, True):
        try:
            faces = open_faces(path, skip_bad=skip_bad)
        except GdrdError:
            continue
        assert len(faces.names) == len(faces.labels) == len(faces.spans) > 0
        assert sum(len(faces.read(i)) for i in range(len(faces))) <= len(data) * (len(faces) if index else 1)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "a.rec"


GOOD_INDEX = "".join(f"{key}\t{start}\n" for key, start in enumerate(STARTS)).encode()
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "400")), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@FUZZ
@given(edits, st.booleans())
@example([("set", 0, 0)], True)
def test_fuzz_damaged_files(fuzzed, changes, with_index):
    survives(fuzzed, edited(VALID, changes), GOOD_INDEX if with_index else None)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=400), st.lists(st.sampled_from([JOINT, b"\0\0\0\0", b"\x18\0\0\x40", b"abcd"])).map(b"".join)
    )
)
def test_fuzz_arbitrary_files(fuzzed, data):
    survives(fuzzed, data, None)


@FUZZ
@given(st.one_of(st.binary(max_size=200), st.text("0123456789\t\n -.e#", max_size=200).map(str.encode)))
def test_fuzz_arbitrary_indices(fuzzed, index):
    survives(fuzzed, VALID, index)


def test_a_length_of_half_a_gigabyte_is_not_allocated(tmp_path):
    data = bytearray(VALID)
    data[STARTS[1] + 4 : STARTS[1] + 8] = struct.pack("<I", (1 << 29) - 1)
    data[8:12] = struct.pack("<I", 0xFFFFFFFF)  # as many labels
    (tmp_path / "a.rec").write_bytes(data)
    tracemalloc.start()
    with raises("rec-damaged", "a.rec"):
        open_faces(tmp_path / "a.rec")
    open_faces(tmp_path / "a.rec", skip_bad=True)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_records_that_share_a_chain_of_parts_take_no_quadratic_time(tmp_path):
    def processor_seconds(heads):
        chain = struct.pack("<II", MAGIC, 2 << 29) * heads
        first = b"".join(struct.pack("<II", MAGIC, 1 << 29 | (8 * (heads - i - 1))) for i in range(heads))
        (tmp_path / "a.rec").write_bytes(first + chain)
        start = time.process_time()
        with raises("rec-format", "a.rec"):
            open_faces(tmp_path / "a.rec", skip_bad=True)
        return time.process_time() - start

    processor_seconds(1000)  # the first call imports modules
    # 16 times as many take 16 times as long, or 256 times if each were followed to its end.
    assert processor_seconds(32_000) < 64 * processor_seconds(2000)
