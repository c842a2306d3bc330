"""What the keys of a guided-diffusion checkpoint do not say: proven by others, asked for, or refused."""

import numpy as np
import pytest
import torch
from conftest import guided_diffusion, raises
from plain_diffusion import Plain

from gdrd_jax.teachers import load_generative
from gdrd_jax.teachers.sr_diffusion import enlarged

LOW = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)


def features(weights, folder, tap="middle", timestep=9, **settings):
    """What the teacher makes of faces of 32 pixels."""
    torch.save(weights, folder / "g.pth")
    teacher = load_generative("pgdiff", folder / "g.pth", tap=tap, input_size=32, timestep=timestep, **settings)
    return teacher.features(LOW)


def plain(weights, **settings):
    encoder = {key: value for key, value in weights.items() if not key.startswith("out")}
    with torch.inference_mode():
        return Plain(encoder, **settings)(enlarged(LOW, 32), 9).numpy()


DEEP = {"channels": (32, 64, 64), "counts": (1, 2, 1), "attended": (1, 2), "decoder": True}


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("updown, halving", [(True, (2, 5)), (False, ())])
def test_residual_blocks_that_reduce_are_proven_by_the_decoder(tmp_path, updown, halving, scale_shift):
    weights = guided_diffusion(**DEEP, updown=updown, scale_shift=scale_shift)
    found = features(weights, tmp_path)
    assert found.shape == (3, 64, 8, 8)
    np.testing.assert_allclose(found, plain(weights, halving=halving), atol=1e-4)
    assert features(weights, tmp_path, tap="block2").shape == (3, 32, 16, 16)


@pytest.mark.parametrize("heads", [{"heads": 4}, {"head_channels": 16}])
@pytest.mark.parametrize("order", ["legacy", "new"])
def test_how_the_attention_is_split_can_be_said(tmp_path, heads, order, caplog):
    weights = guided_diffusion()
    with caplog.at_level("INFO"):
        found = features(weights, tmp_path, attention_order=order, **heads)
    assert "taken for granted" not in caplog.text
    np.testing.assert_allclose(found, plain(weights, heads=4, new_order=order == "new"), atol=1e-4)
    assert np.abs(found - features(weights, tmp_path)).max() > 1e-3


def test_what_is_assumed_of_the_attention_is_logged_and_in_the_fingerprint(tmp_path, caplog):
    torch.save(guided_diffusion(), tmp_path / "g.pth")
    load = lambda **settings: load_generative("pgdiff", tmp_path / "g.pth", tap="middle", **settings)  # noqa: E731
    with caplog.at_level("INFO"):
        assumed = load()
    assert "taken for granted: heads of 64 channels and the legacy order" in caplog.text
    assert assumed.fingerprint == load(head_channels=64, attention_order="legacy").fingerprint
    others = [load(head_channels=32), load(heads=2), load(attention_order="new"), load(heads=2, attention_order="new")]
    assert len({assumed.fingerprint, *(teacher.fingerprint for teacher in others)}) == 5


def test_an_architecture_that_the_keys_do_not_prove_is_refused(tmp_path):
    good, reducing = (guided_diffusion(**DEEP, updown=updown) for updown in (False, True))

    def refused(code, facts, weights, **settings):
        with raises(code, *facts):
            features(weights, tmp_path, **settings)

    def without(weights, *begins):
        return {key: value for key, value in weights.items() if not key.startswith(begins)}

    def renamed(weights, old, new):
        return {key.replace(old, new): value for key, value in weights.items()}

    refused("unet-halving-unknown", ["output_blocks", "input_blocks.N.0.op"], without(reducing, "output_blocks"))
    assert features(without(good, "output_blocks"), tmp_path).shape == (3, 64, 8, 8)
    fifth, sixth = ["input_blocks.5 and output_blocks.1"], ["input_blocks.6 and output_blocks.0"]
    refused("unet-not-mirrored", fifth, without(good, "output_blocks.1.2.conv"))
    refused("unet-not-mirrored", sixth, renamed(good, "output_blocks.1.2.conv", "output_blocks.0.2.conv"))
    refused("unet-not-mirrored", fifth, renamed(reducing, "input_blocks.5.0", "input_blocks.5.0.op"))
    refused(
        "unet-block-missing", ["input_blocks.5 is missing", "conv_resample=False"], without(good, "input_blocks.5.")
    )
    wide = {**reducing, "output_blocks.1.0.in_layers.2.weight": torch.zeros(64, 96, 3, 3)}
    refused("unet-channels", ["output_blocks.1 takes 96", "64 and 64"], wide)
    missing = "output_blocks.1.0.in_layers.2.weight"
    refused("unet-tensor-missing", [f"{missing} is missing"], without(good, missing))
    refused("unet-class-conditional", ["label_emb"], {**good, "label_emb.weight": torch.zeros(10, 128)})
    refused("unet-unexpected-key", ["zero_convs.0.0.weight"], {**good, "zero_convs.0.0.weight": torch.zeros(1)})
    latent = {f"model.diffusion_model.{key}": value for key, value in good.items()}
    assert features(latent, tmp_path).shape == (3, 64, 8, 8)
    refused(
        "weights-of-another-network", ["a latent diffusion network", "first_stage_model.*"],
        {"state_dict": {**latent, "first_stage_model.x.weight": torch.zeros(1)}},
    )  # fmt: skip
    deep = {**good, "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3, 3)}  # dims=3
    refused("weights-mismatch", ["input_blocks.0 ", "[32, 3, 3, 3, 3] where"], deep)
    refused(
        "weights-mismatch", ["input_blocks.0 ", "[32, 6, 3, 3] where [32, 3, 3, 3]"],
        {**good, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)},
    )  # fmt: skip
    refused("entry-setting", ["head_channels 32, heads 2"], good, heads=2, head_channels=32)
    refused("entry-setting", ["'old'", "legacy or new"], good, attention_order="old")
    refused("unet-attention", ["3 heads: it has 64 channels"], good, heads=3)
    with raises("entry-setting", "'diffusers'", "'heads'", "timestep"):
        load_generative("diffusers", tmp_path, heads=4)
