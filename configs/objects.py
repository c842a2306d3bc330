"""Low-resolution object recognition, without stage gen.

  gdrd train --config=objects --workdir=runs/objects --config.data.path=FOLDER \
      --config.discriminative.path=NETWORK.onnx

FOLDER has CLASS/IMAGE, images of any size; their middle square is brought to --config.task.image_size. NETWORK.onnx is
any classifier or embedding network; --config.discriminative.output names its embedding. The last
--config.data.test_images images of each class are only tested. docs/tasks.md has two examples with real images.
"""

from gdrd_jax.config import LOSS_DEFAULTS, OUR_LOSSES, default


def get_config():
    config = default()
    config.name = "objects"
    config.task.name = "objects"
    config.data.update(test_people=0, calibration_people=0, test_images=100, mixup_per_face=0.0)
    config.views.count = 1
    config.degradation.update(
        random=True, clean=0.2, shift=8.0, rotate=5.0, scale=0.05, jitter=0.0, light=0.1, low_light=0.0, blur=0.0,
        motion=0.0, noise=0.0, jpeg=0,
    )  # fmt: skip
    config.dis.losses = {**OUR_LOSSES, "cls": {"weight": 0.5}, "nce": {"weight": 0.1, **LOSS_DEFAULTS["nce"]}}
    config.dis.init = "random"
    config.dis.evaluate_every = 0
    return config
