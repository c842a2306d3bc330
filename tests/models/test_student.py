import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import raises
from flax import nnx

from gdrd_jax.models.student import embed, make_student

FACES = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)


def student(**changes):
    settings = {"resolution": 16, "width": 0.0625, "hidden": (16,), "embedding_dim": 8, **changes}
    return make_student(**settings, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_features_have_the_papers_shape_at_every_resolution(resolution):
    faces = jax.ShapeDtypeStruct((2, resolution, resolution, 3), jnp.uint8)
    model = nnx.eval_shape(lambda: student(resolution=resolution, width=1.0, embedding_dim=512))
    model.eval()
    assert nnx.eval_shape(lambda m, x: m.backbone(x), model, faces).shape == (2, 4, 4, 512)
    assert nnx.eval_shape(lambda m, x: m(x), model, faces).shape == (2, 512)


@pytest.mark.parametrize(("head_stages", "shape"), [(0, (4, 4, 32)), (1, (8, 8, 16)), (2, (16, 16, 8))])
def test_stages_move_to_the_head(head_stages, shape):
    model = student(head_stages=head_stages)
    model.eval()
    assert model.backbone(FACES).shape == (4, *shape)
    assert model(FACES).shape == (4, 8)


def test_a_head_learns_from_features_of_any_size():
    features = np.random.default_rng(1).normal(size=(8, 4, 4, 32)).astype(np.float32)

    def normed(scale, shift):
        head = student().head
        head.train()
        return np.asarray(head(scale * features + shift))

    np.testing.assert_allclose(normed(100, 1000), normed(1, 0), atol=1e-3)


def test_features_take_either_sign():
    model = student()
    model.eval()
    features = np.asarray(model.backbone(FACES))
    assert features.min() < 0 < features.max()


def test_embedding_is_unit_long_and_blind_to_mirroring():
    model = student()
    model.eval()
    embeddings = embed(model, FACES)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embeddings, embed(model, FACES[:, :, ::-1]), atol=1e-5)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_bfloat16_computes_with_float32_parameters():
    model = student(dtype="bfloat16")
    model.eval()
    assert nnx.eval_shape(lambda model, faces: model.backbone(faces), model, FACES).dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda model, faces: model(faces), model, FACES).dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("changes", "code", "facts"),
    [
        (
            {"resolution": 20},
            "student-resolution",
            ("resolution is 20", "'gdrd'", "8, 16, 24, 32, 48, 64, 112", "16 or 24"),
        ),
        ({"head_stages": 3}, "entry-setting", ("'gdrd'", "head_stages is 3", "0, 1 or 2")),
        ({"channels": 5}, "student-channels", ("5 channels", "1, 2, 3, 4")),
        ({"depth": 18}, "entry-setting", ("'gdrd'", "'depth'")),
        ({"name": "resnt"}, "entry-unknown", ("'resnt'", "'resnet'")),
        ({"name": "resnet", "hidden": (0,)}, "entry-setting", ("'resnet'", "hidden is (0,)")),
    ],
)
def test_refuses_what_the_architecture_does_not_have(changes, code, facts):
    with raises(code, *facts):
        student(**changes)
