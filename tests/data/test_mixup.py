"""Mixup images of two faces."""

import dataclasses

import numpy as np
from conftest import make_faces

from gdrd_jax.data.degradation import Views
from gdrd_jax.data.extract import BlockReader, view_loader
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces


def test_a_mixup_image_is_two_different_faces_by_their_shares(tmp_path):
    faces = checked(open_faces(make_faces(tmp_path / "faces", 4, 2)))
    sources = faces.take(range(3)), faces.take(range(3, 8))
    plain = [faces[i].astype(float) for i in range(8)]
    both = [*plain, *(face[:, ::-1] for face in plain)]
    mixed, used = MixupFaces(sources, 30, seed=7), set()
    for i in range(len(mixed)):
        face = mixed[i]
        assert face.dtype == np.uint8 and face.shape == (112, 112, 3)
        of = np.linalg.lstsq(np.stack([one.ravel() for one in both], 1), face.ravel().astype(float), rcond=None)[0]
        pair = np.sort(np.argsort(of)[-2:])
        shares = of[pair]
        np.testing.assert_allclose(shares.sum(), 1, atol=0.02)
        assert shares.min() > 0.28 and np.abs(np.delete(of, pair)).max() < 0.02
        assert pair[0] % 8 != pair[1] % 8
        used |= set(pair.tolist())
    assert len(used) > 12  # of all faces, and of their mirror images


def test_a_mixup_image_depends_on_the_seed_and_its_number_alone(tmp_path):
    faces = checked(open_faces(make_faces(tmp_path / "a", 2, 3)))
    mixed = MixupFaces((faces, faces.take([])), 4, seed=1)
    np.testing.assert_array_equal(mixed[3], MixupFaces((faces, faces.take([])), 9, seed=1)[3])
    assert (mixed[3] != dataclasses.replace(mixed, seed=2)[3]).any()
    changes = {}, {"seed": 2}, {"count": 5}, {"first": 4}
    assert len({dataclasses.replace(mixed, **change).fingerprint for change in changes}) == 4


def test_each_view_has_mixup_images_of_its_own(tmp_path):
    faces = checked(open_faces(make_faces(tmp_path / "a", 2, 3)))
    mixed = MixupFaces((faces,), 5, seed=1)
    more = MixupFaces((faces,), 10, seed=1)
    np.testing.assert_array_equal(mixed.of_view(0)[3], mixed[3])
    views = Views.plain(16, "area")
    seen = view_loader(BlockReader(mixed), views, low=False)(1, [2, 4])
    np.testing.assert_array_equal(seen, np.stack([more[7], more[9]])[:, :, ::-1])
