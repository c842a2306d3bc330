"""Stage dis: the student, its backbone from stage gen, learns from the face recognizer.

  gdrd train --config=stage_dis --workdir=runs/mine --config.data.path=FACES \
      --config.discriminative.path=ARCFACE.onnx

FACES and every other setting as in configs/stage_gen.py, which this continues (and runs first if it was
not). ARCFACE.onnx is a recognizer such as InsightFace's w600k_r50.onnx: [N, 3, 112, 112] RGB,
(x - 127.5) / 127.5. The last --config.data.test_people people are kept for the report.
"""

from gdrd_jax.config import default


def get_config():
    config = default()
    config.until = "report"
    return config
