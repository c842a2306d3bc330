import numpy as np
import pytest
from conftest import raises
from hypothesis import given
from hypothesis import strategies as st

from gdrd_jax.data.loader import batch_rows
from gdrd_jax.registry import samplers

# Identity k has k + 1 images, 0 to 7; 5 images have none. Shuffled.
LABELS = np.random.default_rng(0).permutation(
    np.concatenate([np.full(5, -1), *(np.full(k + 1, k) for k in range(8))])
).astype(np.int32)  # fmt: skip
VIEWS = 3


def make(name, labels=LABELS, views=VIEWS, **settings):
    return samplers[name](samplers.settings(name, settings), labels, views)


@pytest.mark.parametrize("name", samplers.names())
@given(start=st.integers(0, 60), count=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_batch_depends_on_seed_and_step_alone(name, start, count, seed):
    sampler = make(name)
    all_steps = sampler(seed, range(0, start + count), 16)
    again = make(name)(seed, range(start, start + count), 16)
    assert again.keys() == all_steps.keys()
    for key, value in again.items():
        assert value.shape == (count, 16)
        np.testing.assert_array_equal(value, all_steps[key][start:], err_msg=key)


@pytest.mark.parametrize("name", samplers.names())
def test_rows_and_views_are_in_range_and_seeds_differ(name):
    found = make(name)(1, range(200), 16)
    for key in ("rows", "second_rows"):
        if key in found:
            assert found[key].dtype == np.int32 and set(np.unique(found[key])) <= set(range(len(LABELS)))
    assert set(np.unique(found["views"])) == set(range(VIEWS))
    assert not np.array_equal(found["rows"], make(name)(2, range(200), 16)["rows"])
    assert ("second" in samplers[name].gives) == ("second_rows" in found)
    assert ("balanced" in samplers[name].gives) == ("balanced" in found)


@pytest.mark.parametrize("name", ["uniform", "pairs", "views"])
def test_first_images_are_those_of_every_epoch(name):
    rows, views = batch_rows(3, range(5, 9), 16, len(LABELS), VIEWS)
    found = make(name)(3, range(5, 9), 16)
    np.testing.assert_array_equal(found["rows"], rows)
    np.testing.assert_array_equal(found["views"], views)


def test_pairs_are_two_images_of_an_identity_where_there_are_two():
    found = make("pairs")(0, range(3000), 16)
    rows, second, paired = (found[key].ravel() for key in ("rows", "second_rows", "has_second"))
    images = np.bincount(LABELS[LABELS >= 0])
    single = (LABELS[rows] < 0) | (images[LABELS[rows]] == 1)
    np.testing.assert_array_equal(paired, ~single)
    np.testing.assert_array_equal(second[single], rows[single])
    np.testing.assert_array_equal(LABELS[second], LABELS[rows])
    assert (second[paired] != rows[paired]).all()
    # All others of an image are its partner equally often.
    of_largest = paired & (rows == np.flatnonzero(LABELS == 7)[2])
    partners, times = np.unique(second[of_largest], return_counts=True)
    assert len(partners) == 7 and times.min() > 0.7 * times.mean()
    assert set(found["second_views"].ravel()) == set(range(VIEWS))


def test_two_views_are_different_views_of_an_image():
    found = make("views")(0, range(100), 16)
    np.testing.assert_array_equal(found["rows"], found["second_rows"])
    assert (found["views"] != found["second_views"]).all() and found["has_second"].all()
    assert set(found["second_views"].ravel()) == set(range(VIEWS))
    alone = make("views", views=1)(0, range(10), 16)  # which is degraded anew for each use
    assert not alone["views"].any() and not alone["second_views"].any()


@pytest.mark.parametrize("images", [2, 4])
def test_a_balanced_batch_has_identities_with_as_many_images(images):
    found = make("balanced", images=images)(0, range(60), 16)
    groups = LABELS[found["rows"]].reshape(60, 16 // images, images)
    assert (groups == groups[..., :1]).all() and (groups >= 0).all() and found["balanced"].all()
    assert all(len(set(batch[:, 0])) == 16 // images for batch in groups)
    counts = np.bincount(LABELS[LABELS >= 0])
    rows = found["rows"].reshape(-1, images)
    for group, label in zip(rows, groups[..., 0].ravel()):
        assert len(set(group)) == min(images, counts[label])  # fewer images repeat, others do not


def test_each_epoch_visits_every_identity_once_and_every_image_in_turn():
    found = make("balanced", images=2)(0, range(400), 16)["rows"]  # 8 identities: an epoch is one batch
    labels = LABELS[found].reshape(400, 8, 2)[..., 0]
    assert all(sorted(epoch) == list(range(8)) for epoch in labels)
    assert len({tuple(epoch) for epoch in labels}) > 300
    # Identity 7 has 8 images, so 4 epochs visit each of them once.
    own = [row for epoch in found.reshape(400, 8, 2) for row in epoch[LABELS[epoch[:, 0]] == 7].ravel()]
    assert all(len(set(own[i : i + 8])) == 8 for i in range(0, 800, 8))


def test_identities_that_fill_no_batch_change_with_the_epoch():
    labels = np.repeat(np.arange(7), 4).astype(np.int32)
    found = make("balanced", labels, images=4)(0, range(30), 8)["rows"]
    epochs = labels[found].reshape(10, 3 * 2, 4)[..., 0]  # 3 batches of 2 of the 7
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len(set(epochs.ravel())) == 7


def test_half_a_batch_is_uniform():
    found = make("half_balanced", uniform=0.25, images=4)(0, range(50), 16)
    np.testing.assert_array_equal(found["balanced"], np.broadcast_to(np.arange(16) >= 4, (50, 16)))
    uniform, _ = batch_rows(0, range(50), 4, len(LABELS), VIEWS)
    np.testing.assert_array_equal(found["rows"][:, :4], uniform)
    np.testing.assert_array_equal(
        found["rows"][:, 4:], make("balanced", images=4)(0, range(50), 12)["rows"]
    )  # fmt: skip


@pytest.mark.parametrize(
    "name, settings, batch, images, code, fact",
    [
        ("balanced", {"images": 5}, 16, [9] * 8, "sampler-batch", "multiple of 5"),
        ("balanced", {"images": 4}, 4, [9] * 8, "sampler-batch", "at least 8"),
        ("balanced", {"images": 4}, 40, [9] * 8, "sampler-identities", "10 identities"),
        ("balanced", {"images": 4}, 40, [9, 0] * 8, "sampler-identities", "has 8"),
        ("half_balanced", {"uniform": 0.01}, 16, [9] * 8, "sampler-batch", "batch of 16"),
        ("half_balanced", {}, 18, [9] * 8, "sampler-batch", "multiple of 4"),
        ("pairs", {}, 16, [1] * 8, "sampler-identities", "at least 2 images"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(name, settings, batch, images, code, fact):
    with raises(code, repr(name), fact):
        samplers[name].check(samplers.settings(name, settings), batch, np.array(images))


def test_wrong_settings_are_refused():
    for settings in ({"images": 1}, {"uniform": 1.0}, {"image": 4}):
        with raises("entry-setting", "'half_balanced'"):
            samplers.settings("half_balanced", settings)
    with raises("entry-unknown", "'balance'", "balanced"):
        samplers["balance"]
