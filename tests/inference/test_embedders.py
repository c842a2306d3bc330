"""One type for every recognizer."""

import dataclasses

import numpy as np
import pytest
from conftest import raises, save_recognizer, save_student

from gdrd_jax.data.degradation import Degradation, resize, resize_all
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import ObjectTask
from gdrd_jax.inference.embedders import (
    Embedder,
    add_flips,
    embed_faces,
    network_embedder,
    open_model,
    pixel_embedder,
    student_embedder,
)
from gdrd_jax.inference.native import NativeRecognizer
from gdrd_jax.inference.preprocess import model_input
from gdrd_jax.inference.recognizer import Recognizer
from gdrd_jax.teachers import load_discriminative

FACES = np.random.default_rng(0).integers(256, size=(5, 16, 16, 3), dtype=np.uint8)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_many_faces_are_resized_as_one_is():
    for size, kernel in ((8, "area"), (8, "bicubic"), (112, "area")):
        expected = np.stack([resize(face, size, kernel) for face in FACES])
        np.testing.assert_array_equal(resize_all(FACES, size, kernel), expected)
        np.testing.assert_array_equal(resize_all(list(FACES), size, kernel), expected)
    assert resize_all(FACES, 16) is FACES


def test_flips_are_added_before_the_length_is_taken_away():
    a, b = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    np.testing.assert_allclose(add_flips(a, b), [[0.6, 0.8]])


def test_pixels_are_the_face_and_its_mirror_image():
    embedder = pixel_embedder("pixels", 16)
    expected = unit((FACES.astype(np.float64) + FACES[:, :, ::-1]).reshape(5, -1))
    np.testing.assert_allclose(embedder.embed(FACES), expected, rtol=1e-6)


def test_a_network_gets_enlarged_faces_and_their_mirror_images(tmp_path):
    network = load_discriminative(save_recognizer(tmp_path / "parts.onnx"))
    embedder, enlarged = network_embedder("n", network), resize_all(FACES, 112)
    assert (embedder.input_size, embedder.fingerprint, embedder.is_student) == (112, network.fingerprint, False)
    expected = unit(network.embed(enlarged) + network.embed(np.ascontiguousarray(enlarged[:, :, ::-1])))
    np.testing.assert_allclose(embedder.embed(FACES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embedder.embed(FACES), embedder.embed(enlarged))


def test_a_student_is_what_the_recognizer_is(tmp_path):
    teacher = save_recognizer(tmp_path / "parts.onnx")
    recognizer = Recognizer.load(save_student(tmp_path / "run", resolution=8, teacher=teacher))
    student, network = student_embedder("s", recognizer), open_model(str(teacher))
    np.testing.assert_array_equal(student.embed(FACES), recognizer.embed(resize_all(FACES, 8, recognizer.kernel)))
    assert student.is_student and student.fingerprint == recognizer.fingerprint()
    assert student.space == network.space == network.fingerprint
    native = NativeRecognizer.load(str(teacher), recognizer, option="--teacher")
    large = resize_all(FACES, 112)
    np.testing.assert_array_equal(native.embed(large), network.embed(large))
    unknown = dataclasses.replace(recognizer, teacher=None)
    assert student_embedder("s", unknown).space == ""


@pytest.mark.parametrize("free", [False, True])
def test_a_recognizer_of_any_input_size_is_a_baseline_and_a_gallery(tmp_path, free):
    path = save_recognizer(tmp_path / "m.onnx", size=160, free=free)
    text = f"{path}:auto:160" if free else str(path)
    model, network = open_model(text), load_discriminative(path, input_size=160)
    large = resize_all(FACES, 160)
    np.testing.assert_array_equal(model.embed(FACES), add_flips(network.embed(large), network.embed(large[:, :, ::-1])))
    assert model.input_size == 160 and model.fingerprint == network.fingerprint
    teacher = {"name": "m", "fingerprint": network.fingerprint}
    student = dataclasses.replace(Recognizer.load(save_student(tmp_path / "run", resolution=8)), teacher=teacher)
    native = NativeRecognizer.load(text, student, option="--teacher")
    face = native.preprocess(resize_all(FACES, 112)[0])
    assert face.shape == (160, 160, 3) and native.dim == network.dim
    np.testing.assert_allclose(native.embed(face[None]), model.embed(face[None]))
    if free:
        with raises("onnx-input-size", path, "FILE:PREPROCESSING:SIZE"):
            open_model(str(path))


def test_an_image_of_the_tasks_size_is_large_enough_for_any_network():
    assert model_input(np.zeros((112, 112, 3), np.uint8), 256, "area").shape == (256, 256, 3)
    with raises("face-too-small", "55x55", "at least 56x56"):
        model_input(np.zeros((55, 55, 3), np.uint8), 256, "area")
    small = np.zeros((28, 28, 3), np.uint8)
    assert model_input(small, 64, "area", task=ObjectTask(image_size=28)).shape == (64, 64, 3)


@pytest.fixture
def faces(faces_folder) -> Faces:
    return checked(open_faces(faces_folder))


def test_stored_faces_are_degraded_as_an_array_of_them_was(faces, tmp_path):
    embedder, degradation = pixel_embedder("pixels", 16), Degradation(16, "area", blur=2.0, noise=9.0)
    low = [degradation.of_named(faces[row], faces.names[row], 3) for row in range(len(faces))]
    stored = embed_faces(embedder, faces, degradation, seed=3, cache=tmp_path)
    np.testing.assert_array_equal(stored, embed_faces(embedder, np.stack(low)))
    assert (stored != embed_faces(embedder, faces, degradation, seed=4, cache=tmp_path)).any()
    for cache in (None, tmp_path):
        clean = embed_faces(embedder, faces, cache=cache)
        np.testing.assert_array_equal(clean, embed_faces(embedder, resize_all(faces, 16)))
    with pytest.raises(ValueError, match="no fingerprint"):  # the next one's would be taken for its own
        embed_faces(dataclasses.replace(embedder, fingerprint=""), faces, cache=tmp_path)


def test_an_array_is_embedded_in_batches():
    sizes = []
    embedder = Embedder("e", 16, lambda faces: sizes.append(len(faces)) or np.ones((len(faces), 2), np.float32))
    assert embed_faces(embedder, np.resize(FACES, (300, 16, 16, 3))).shape == (300, 2) and sizes == [128, 128, 44]
