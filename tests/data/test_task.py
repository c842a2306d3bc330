import dataclasses
import io
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import make_faces, raises

from gdrd_jax.config import default
from gdrd_jax.data.decoding import decode
from gdrd_jax.data.degradation import Degradation, Views, resize
from gdrd_jax.data.faces import Faces, middle_square
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.random_degradation import RandomDegradation
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import FACES, FaceTask, ObjectTask, Task, of_config
from gdrd_jax.registry import tasks
from gdrd_jax.utils.arrays import to_rgb

RNG = np.random.default_rng(0)
STILL = {"shift": 0.0, "rotate": 0.0, "scale": 0.0, "light": 0.0, "noise": 0.0, "jpeg": 0, "seed": 0}


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def smooth(size, channels):
    base = RNG.integers(256, size=(5, 5, channels)).astype(np.uint8)
    return cv2.resize(base, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels)


def test_faces_are_the_default_task_and_others_are_entries_of_the_registry():
    config = default()
    assert of_config(config) == FACES == FaceTask(112, 3, True, 0, True, "person", "people", "face", "faces")
    config.task.update(name="objects", image_size=28, channels=1, mirror=False)
    assert of_config(config) == ObjectTask(28, 1, False) and of_config(config).labels == "classes"
    assert {"faces", "objects"} <= set(tasks.names())
    for change, fact in (({"channels": 5}, "channels is 5"), ({"image_size": 4}, "image_size is 4")):
        config.task.update(**{"channels": 1, "image_size": 28, **change})
        with raises("entry-setting", "'objects'", fact):
            of_config(config)
    config.task.name = "object"
    with raises("entry-unknown", "'objects'"):
        of_config(config)


def test_a_task_with_fields_of_its_own_is_recorded_without_them():
    @dataclasses.dataclass(frozen=True)
    class Thermal(Task):
        """Of a camera."""

        channels: int = 1
        camera: str = "long wave"

    recorded = Thermal(image_size=80).recorded()
    assert "camera" not in recorded and Task(**recorded) == Task(image_size=80, channels=1)


def test_gray_images_are_read_as_one_channel_and_colors_are_refused():
    gray = RNG.integers(256, size=(20, 30)).astype(np.uint8)
    np.testing.assert_array_equal(decode(png(gray), "x", 1), gray[..., None])
    np.testing.assert_array_equal(decode(png(np.repeat(gray[..., None], 3, axis=2)), "x", 1), gray[..., None])
    as_jpeg = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    np.testing.assert_array_equal(decode(as_jpeg, "x", 1)[..., 0], cv2.imdecode(np.frombuffer(as_jpeg, np.uint8), 0))
    colors = RNG.integers(256, size=(20, 30, 3)).astype(np.uint8)
    for data in (png(colors), cv2.imencode(".jpg", colors)[1].tobytes()):
        with raises("image-channels", "x has colors", "config.task.channels=3"):
            decode(data, "x", 1)


def test_the_fourth_channel_is_read_as_it_is():
    image = RNG.integers(256, size=(20, 30, 4)).astype(np.uint8)
    image[:4, :, 3] = 0  # where transparency would hide the colors
    data = png(image)
    np.testing.assert_array_equal(decode(data, "x", 4), image[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(decode(data, "x"), image[..., 2::-1])
    for other in (png(image[..., :3]), cv2.imencode(".jpg", image[..., :3])[1].tobytes()):
        with raises("image-channels", "x", "4"):
            decode(other, "x", 4)


def test_gray_and_one_more_channel(tmp_path):
    image = RNG.integers(256, size=(20, 30, 2)).astype(np.uint8)
    PIL.Image.fromarray(image, "LA").save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode((tmp_path / "x.png").read_bytes(), "x", 2), image)
    with raises("image-channels", "x has 1 channel"):
        decode(png(image[..., 0]), "x", 2)


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("channels", [2, 4])
def test_colors_of_a_tiff_are_not_multiplied_by_its_transparency(channels, orientation):
    image, file = RNG.integers(256, size=(20, 30, channels)).astype(np.uint8), io.BytesIO()
    PIL.Image.fromarray(image).save(file, "TIFF", tiffinfo={274: orientation})
    wanted = image if orientation == 1 else image[::-1, ::-1]
    np.testing.assert_array_equal(decode(file.getvalue(), "x", channels), wanted)
    colors = wanted[..., :3] if channels == 4 else np.repeat(wanted[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decode(file.getvalue(), "x"), colors)


def test_depth_in_16_bits_is_scaled_by_the_given_maximum():
    depth = RNG.integers(0, 5000, size=(20, 30)).astype(np.uint16)  # millimeters
    depth[0, 0] = 9000
    wanted = np.rint(np.minimum(depth, 4000) * (255 / 4000)).astype(np.uint8)
    np.testing.assert_array_equal(decode(png(depth), "x", 1, 4000)[..., 0], wanted)
    with raises("image-16-bit-range", "x", "config.task.maximum"):
        decode(png(depth), "x", 1)
    pgm = b"P5\n30 20\n65535\n" + depth.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(pgm, "x", 1, 4000)[..., 0], wanted)
    ppm = b"P6\n30 20\n65535\n" + np.repeat(depth[..., None], 3, axis=2).astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(ppm, "x", 3, 4000)[..., 1], wanted)


def test_depth_beside_colors_of_16_bits_has_a_range_of_its_own():
    colors = RNG.integers(256, size=(20, 30, 3)).astype(np.uint16)
    depth = RNG.integers(0, 5000, size=(20, 30, 1)).astype(np.uint16)
    found = decode(png(np.concatenate([colors * 257, depth], axis=2)), "x", 4, 4000)
    np.testing.assert_array_equal(found[..., 2::-1], colors)
    np.testing.assert_array_equal(found[..., 3:], np.rint(np.minimum(depth, 4000) * (255 / 4000)))


def test_objects_are_cropped_to_the_middle_square_and_brought_to_one_size(tmp_path):
    (tmp_path / "cup").mkdir()
    image = smooth(90, 3)[:60]
    cv2.imwrite(str(tmp_path / "cup" / "wide.png"), image[..., ::-1])
    with raises("image-size", "90x60", "112x112"):
        checked(open_faces(tmp_path))
    found = checked(open_faces(tmp_path, task=ObjectTask(image_size=30)))
    np.testing.assert_array_equal(found[0], resize(image[:, 15:75], 30, "area"))
    np.testing.assert_array_equal(middle_square(image), image[:, 15:75])
    with raises("path-missing", "no images at"):
        open_faces(tmp_path / "none", task=ObjectTask())
    with raises("faces-none", "FOLDER/CLASS/IMAGE"):
        open_faces(tmp_path / "cup", pattern="*.tif", task=ObjectTask())


def test_a_list_of_faces_keeps_the_task_and_the_default_is_written_as_before(tmp_path):
    make_faces(tmp_path / "images", 2, 2, size=40)
    faces = checked(open_faces(tmp_path / "images", task=ObjectTask(image_size=20, mirror=False)))
    faces.save(tmp_path / "objects.json")
    again = Faces.load(tmp_path / "objects.json")
    assert again.task == Task(**dataclasses.asdict(faces.task)) and again[3].shape == (20, 20, 3)
    other = checked(faces.with_task(ObjectTask(image_size=24)))
    assert other.fingerprint != faces.fingerprint  # the pixels are others, and so are targets
    assert "task" in json.loads((tmp_path / "objects.json").read_text())
    make_faces(tmp_path / "faces", 2, 2)
    faces = checked(open_faces(tmp_path / "faces"))
    faces.save(tmp_path / "faces.json")
    assert "task" not in json.loads((tmp_path / "faces.json").read_text())
    # Recorded by version 0.4.
    assert faces.fingerprint == dataclasses.replace(faces, task=FACES).fingerprint
    assert Faces.load(tmp_path / "faces.json").task == FACES


def test_the_last_images_of_each_class_are_tested(tmp_path):
    make_faces(tmp_path, 3, 5, size=16)
    faces = checked(open_faces(tmp_path, task=ObjectTask(image_size=16)))
    train, test = faces.split_each(2)
    assert train.names == tuple(f"p{i}/{j}.png" for i in range(3) for j in range(3))
    assert test.names == tuple(f"p{i}/{j}.png" for i in range(3) for j in (3, 4))
    assert train.identities == test.identities == faces.identities and test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    other = faces.split_each(1)
    assert len({train.fingerprint, test.fingerprint, *(part.fingerprint for part in other)}) == 4


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_channel_is_degraded_like_the_channels_of_a_color_image(channels):
    image = smooth(56, 3)
    many = np.concatenate([image, image[..., :1]], axis=2)[..., :channels]
    degradation = Degradation(16, "area", blur=2.0, motion=8.0)
    found = degradation(many, np.random.default_rng(1))
    np.testing.assert_array_equal(
        found[..., : min(channels, 3)], degradation(image, np.random.default_rng(1))[..., :channels]
    )
    views = Views(16, "bicubic", 4, **{**STILL, "shift": 8.0, "rotate": 10.0, "light": 0.2}, blur=0.0, motion=0.0)
    moved, color = views.augment(many, 3, 2), views.augment(image, 3, 2)
    # OpenCV rounds by other instructions where there are two channels.
    np.testing.assert_allclose(moved[..., : min(channels, 3)].astype(int), color[..., :channels], atol=2)
    assert views.degrade(moved, 3, 2).shape == (16, 16, channels)
    assert Degradation(16, "area", jpeg=30)(many, np.random.default_rng(1)).shape == (16, 16, channels)


def test_shifts_and_blur_grow_with_the_image():
    views = Views(16, "area", 4, **{**STILL, "shift": 8.0}, blur=0.0, motion=0.0)
    large = smooth(112, 3)
    small = resize(large, 56, "area")
    moved = resize(views.augment(large, 0, 2), 56, "area")
    near = np.abs(views.augment(small, 0, 2).astype(int) - moved)[8:-8, 8:-8].mean()
    assert near < 2 < np.abs(small.astype(int) - moved)[8:-8, 8:-8].mean()


def test_without_the_mirror_image_every_later_view_is_random():
    views = Views(16, "area", 4, **{**STILL, "shift": 8.0}, blur=0.0, motion=0.0, mirror=False)
    image = smooth(112, 3)
    np.testing.assert_array_equal(views.augment(image, 5, 0), image)
    same = dataclasses.replace(views, mirror=True)
    np.testing.assert_array_equal(same.augment(image, 5, 1), image[:, ::-1])
    for view in (1, 2, 3):
        moved = views.augment(image, 5, view).astype(int)
        assert np.abs(moved - image).mean() < np.abs(moved - image[:, ::-1].astype(int)).mean()
        assert np.abs(moved - image).mean() > 1
    assert "mirror" not in same.settings() and views.settings()["mirror"] is False
    assert (views.exact, same.exact) == (1, 2)


@pytest.mark.parametrize("channels", [1, 4])
def test_random_degradation_of_other_channels_and_without_the_mirror_image(channels):
    image = smooth(24, 4)
    image[..., 3] = image[..., 0]
    batch = jnp.asarray(np.stack([image[..., :channels]] * 8))
    still = RandomDegradation(8, mirror=False, kernels=(1.0, 0.0, 0.0, 0.0))
    wanted = resize(image[..., :channels], 8, "area")
    found = np.asarray(jax.jit(still)(batch, None, jax.random.key(0)))
    assert np.abs(found.astype(int) - wanted).max() <= 1
    mirrored = jax.jit(RandomDegradation(8, kernels=(1.0, 0.0, 0.0, 0.0)))(batch, None, jax.random.key(0))
    mirrored = np.asarray(mirrored)
    assert (np.abs(mirrored.astype(int) - wanted[:, ::-1]).max(axis=(1, 2, 3)) <= 1).any()
    strong = RandomDegradation(8, clean=0.0, shift=8.0, rotate=20.0, light=0.2, blur=4.0, jpeg=30, mirror=False)
    degraded = np.asarray(jax.jit(strong)(batch, None, jax.random.key(1)))
    assert degraded.shape == (8, 8, 8, channels) and degraded.dtype == np.uint8
    if channels == 4:  # equal channels stay nearly equal: they are moved alike; colors are compressed otherwise
        without = dataclasses.replace(strong, jpeg=0, noise=0.0)
        degraded = np.asarray(jax.jit(without)(batch, None, jax.random.key(1)))
        np.testing.assert_array_equal(degraded[..., 0], degraded[..., 3])


def test_mixup_images_are_not_mirrored_where_the_mirror_image_shows_something_else(tmp_path):
    make_faces(tmp_path, 2, 1, size=16)
    both = checked(open_faces(tmp_path, task=ObjectTask(image_size=16)))
    upright = checked(open_faces(tmp_path, task=ObjectTask(image_size=16, mirror=False)))
    mixed = [MixupFaces((faces,), 6, 0) for faces in (both, upright)]
    assert mixed[0].fingerprint != mixed[1].fingerprint
    a, b = upright[0].astype(float), upright[1].astype(float)

    def unexplained(image):
        share = np.linspace(0.3, 0.7, 201)[:, None, None, None]
        return np.abs(share * a + (1 - share) * b - image).mean(axis=(1, 2, 3)).min()

    assert max(unexplained(mixed[1][i]) for i in range(6)) < 1 < max(unexplained(mixed[0][i]) for i in range(6))


def test_teachers_see_gray_images_as_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    depth = RNG.integers(0, 4000, size=(16, 16)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a" / "0.png"), depth)
    task = ObjectTask(image_size=16, channels=1, maximum=4000)
    faces = open_faces(tmp_path, task=task)
    np.testing.assert_array_equal(faces.in_colors()[0], np.repeat(faces[0], 3, axis=2))
    image = RNG.integers(256, size=(16, 16, 4)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a" / "0.png"), image)
    faces = open_faces(tmp_path, task=ObjectTask(image_size=16, channels=4, maximum=4000))
    np.testing.assert_array_equal(faces.in_colors()[0], faces[0][..., :3])
    for channels in (1, 2, 3, 4):
        wanted = image[..., :3] if channels > 2 else np.repeat(image[..., :1], 3, axis=2)
        np.testing.assert_array_equal(to_rgb(image[..., :channels]), wanted)
