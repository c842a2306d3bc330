import numpy as np

from gdrd_jax.evaluation import identification as ident

GALLERY = np.eye(3)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_first_of_each_is_the_gallery():
    np.testing.assert_array_equal(ident.first_of_each(np.array([0, 0, 1, 2, 2, 1])), [0, 2, 3])


def test_nearest_orders_by_similarity():
    probe = np.array([[0.1, 0.9, 0.4]])
    np.testing.assert_array_equal(ident.nearest(probe, GALLERY), [[1, 2, 0]])


def test_rank_1_counts_probes_whose_nearest_gallery_face_is_right():
    right = np.concatenate([GALLERY, GALLERY])
    assert ident.rank_1(right, LABELS) == 1.0
    one_wrong = np.concatenate([GALLERY, GALLERY[[0, 1, 1]]])
    assert ident.rank_1(one_wrong, LABELS) == 2 / 3
