"""The paper's ablation (its figure 3) and what it is compared with, one mode a config.

  python -m gdrd_jax.main --config=configs/ablation.py:gen_dis --workdir=runs/gen_dis --config.data.path=FACES \
      --config.discriminative.path=ARCFACE.onnx --config.generative.path=SR \
      --config.dev.path=LFW --config.dev.pairs=pairs.txt

| mode | backbone | loss of stage dis |
|---|---|---|
| none | end to end | identities alone |
| sr | the generative teacher's own features | identities alone |
| gen | from stage gen, frozen | identities alone |
| dis | end to end, without stage gen | all |
| gen_dis | from stage gen, frozen: GDRD | all |
| end_to_end | from stage gen, trained on | all |
| plain | end to end, without stage gen | embeddings and their similarities alone |

tools/run_grid.py runs all of them with several seeds and makes one table; docs/results.md has ours.
"""

from gdrd_jax.config import TERMS, default

# Backbone, and the terms of the loss that are kept; None is all.
MODES = {
    "none": ("scratch", ("cls",)),
    "sr": ("teacher", ("cls",)),
    "gen": ("frozen", ("cls",)),
    "dis": ("scratch", None),
    "gen_dis": ("frozen", None),
    "end_to_end": ("tuned", None),
    "plain": ("scratch", ("cos", "sim")),
}


def get_config(mode: str = "gen_dis"):
    if mode not in MODES:
        raise ValueError(f"there is no mode {mode!r}; it can be {', '.join(MODES)}")
    config = default()
    config.name = "ablation"
    config.until = "dis"
    # The dev set is LFW, so nobody is held out of the faces.
    config.data.update(test_people=0, calibration_people=0)
    config.student.width = 0.25
    backbone, terms = MODES[mode]
    config.dis.backbone = backbone
    if mode == "plain":
        config.dis.update(cos=1.0, sim=1.0)
    if terms:
        config.dis.update({term: 0.0 for term in TERMS if term not in terms})
    return config
