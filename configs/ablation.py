"""The paper's ablation (its figure 3) and what it is compared with, one mode a config.

  gdrd train --config=ablation:gen_dis --workdir=runs/gen_dis --config.data.path=FACES \
      --config.discriminative.path=ARCFACE.onnx --config.generative.path=SR \
      --config.dev.path=LFW --config.dev.pairs=pairs.txt

| mode | backbone | loss of stage dis |
|---|---|---|
| none | end to end | identities alone |
| sr | the generative teacher's own features | identities alone |
| gen | from stage gen, frozen | identities alone |
| dis | end to end, without stage gen | the paper's (Eq. 3) |
| gen_dis | from stage gen, frozen: GDRD | the paper's |
| end_to_end | from stage gen, trained on | the paper's |
| plain | end to end, without stage gen | ours: embeddings and their similarities |
| frozen | from stage gen, frozen | ours |
| ours | from stage gen, trained on: what the other configs do | ours |

The head is one linear layer, behind a frozen backbone two, which need a lower rate. The paper's modes, down to
end_to_end, learn in stage dis from labeled faces alone, as the paper did; ours also from unlabeled faces and mixup
images. Everything else is the same.
gdrd grid runs all of them with several seeds and makes one table; docs/studies/ablation.md has ours.
"""

from gdrd_jax.config import OUR_LOSSES, PAPER_LOSSES, check_mode, default

IDENTITIES = {"cls": {"weight": 1.0}}
# Backbone and losses.
SCRATCH = {"init": "random", "freeze": ()}
FROZEN = {"init": "gen", "freeze": ("backbone",)}
TUNED = {"init": "gen", "freeze": ()}
MODES = {
    "none": (SCRATCH, IDENTITIES),
    "sr": (SCRATCH, IDENTITIES),
    "gen": (FROZEN, IDENTITIES),
    "dis": (SCRATCH, PAPER_LOSSES),
    "gen_dis": (FROZEN, PAPER_LOSSES),
    "end_to_end": (TUNED, PAPER_LOSSES),
    "plain": (SCRATCH, OUR_LOSSES),
    "frozen": (FROZEN, OUR_LOSSES),
    "ours": (TUNED, OUR_LOSSES),
}


def get_config(mode: str = "ours"):
    check_mode("mode", mode, MODES)
    config = default()
    config.name = "ablation"
    config.until = "dis"
    # The dev set is LFW, so no people are held out of the faces.
    config.data.update(test_people=0, calibration_people=0)
    config.student.width = 0.25
    for stage in (config.gen, config.dis):
        stage.learning_rate = 0.008  # narrower layers take longer steps
    backbone, losses = MODES[mode]
    if mode == "sr":
        config.student.name = "teacher_features"
    if mode == "sr" or backbone["freeze"]:
        config.student.hidden = (512,)  # or nothing that is trained could do more than a linear map
        config.dis.learning_rate = 0.002  # at 0.008 its units die
    config.dis.losses = losses
    config.dis.update(**backbone, use_unlabeled=losses is OUR_LOSSES)
    return config
