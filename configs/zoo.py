"""The zoo: methods of low-resolution face recognition, each trained on the same faces, in the same student, as long.

  gdrd grid --out runs/zoo --rows docs/zoo --configs 'zoo:{cls,kd,cosine,cosine_cls,sp,crrcd}' --seeds 7 8 \\
      --against cosine -- --config.data.path=train.rec,people.rec --config.discriminative.path=w600k_mbf.onnx \\
      --config.dev.path=lfw_dev.tar --config.dev.pairs=pairs_dev.txt

docs/zoo.md has all commands, what each method rests on (`gdrd_jax/evaluation/methods.py`), and the results.

The same for all: the student `gdrd` of a quarter of the paper's width, unless the network is the method; labeled faces
alone; 1,500 batches of 96 faces; AdamW with the rates of configs/ablation.py. The faces are reduced cleanly, in stored
views (each face and its mirror image): the paper judges clean faces, and stored maps of T_d belong to stored views. A
student that is trained in two stages sees half of the batches in each. What teaches it (T_g, an assistant) is trained
on top of that, and the table has its cost.

| name | loss of the student | cost beside a softmax's |
|---|---|---|
| cls | softmax | |
| cosine | 1 - cosine with T_d's embedding | no classifier: the cheapest |
| cosine_cls | the same, and softmax | |
| kd | softmax, and T_d's softmax at temperature 4 | a second product with all classes |
| sp | softmax, and the cosines between the faces of a batch | |
| crrcd | Eq. 3 of GDRD | relations of all pairs, 96^2 rows of the critic |
| takd | as kd, and cosine, from an assistant at 32x32, which learns so from T_d | the assistant's training |
| skd | softmax, then softmax and the distance to T_d's embeddings of 70 % of the faces | the selection |
| gdrd | Eq. 1, then Eq. 3 behind a frozen backbone | T_g's training and features |
| ours | 1 - cosine, and the cosines between the faces of a batch | no classifier |
"""

from gdrd_jax.config import OUR_LOSSES, PAPER_LOSSES, default, stage

STEPS = 1500
BATCH = 96
CLS = {"cls": {"weight": 1.0}}
COSINE = {"embedding_cosine": {"weight": 1.0}}
# T_d's cosines become logits by a scale of 64: at 32 its softmax at temperature 4 is nearly uniform over 11,369 people.
KD = {"temperature": 4.0, "teacher_scale": 64.0}
LOGITS = {**CLS, "kd": {"weight": 1.0, **KD}}
EQ_3 = {**PAPER_LOSSES, "kd": {"weight": 0.25, **KD}}
# RepDistiller's weight of 3,000 for batches of 64 is 47 times the squared distance of a row of similarities; the loss
# here is the mean over the BATCH - 1 pairs of such a row.
SIMILARITIES = {"similarity_preserving": {"weight": 47.0 * (BATCH - 1)}}
RAMP = STEPS // 10  # steps in which margins rise from 0: at once, they can stall a classifier that begins at random


def _margin(loss, **settings):
    return {loss: {"weight": 1.0, "ramp": RAMP, **settings}}


# Losses of methods that change nothing else.
LOSSES = {
    "cls": CLS,
    "cosface": _margin("cosface"),
    "arcface": _margin("arcface"),
    "magface": _margin("magface"),
    "adaface": _margin("adaface"),
    "rpcl_cos": _margin("rpcl"),
    "rpcl_arc": _margin("rpcl", base="arc", margin=0.5),
    "rpcl_mag": _margin("rpcl", base="mag", rival_margin=0.225),
    "cosine": COSINE,
    "cosine_cls": {**CLS, **COSINE},
    "kd": LOGITS,
    "rkd": {**CLS, "rkd": {"weight": 1.0}},
    "sp": {**CLS, **SIMILARITIES},
    "pkt": {**CLS, "pkt": {"weight": 1.0}},
    "cckd": {**CLS, "cckd": {"weight": 1.0}},
    "mk_mmd": {**CLS, "mk_mmd": {"weight": 1.0}},
    "crd": {**CLS, "crd": {"weight": 0.8}},
    "arc_distill": _margin("arc_distill"),
    "ada_distill": _margin("ada_distill"),
    "crrcd": EQ_3,
    "ours": OUR_LOSSES,
}


def _takd(config):
    losses = {**LOGITS, **COSINE}
    config.stages = {"assistant": _stage(input="hr_small", steps=STEPS, losses=losses)}
    config.dis.update(teacher="assistant", losses=losses)


def _skd(config):
    config.stages = {"first": _stage(steps=STEPS // 2, losses=CLS)}
    config.dis.update(init="first", steps=STEPS // 2, losses={**CLS, "selected_distance": {"weight": 1.0}})
    config.dis.selection = {"name": "sparse_graph", "keep": 0.7}


def _gdrd(config):
    config.gen.steps = STEPS // 2
    # Behind a frozen backbone the head needs a hidden layer, or it could do no more than a linear map, and a lower
    # rate, or the layer's units die.
    config.student.hidden = (512,)
    config.dis.update(init="gen", freeze=("backbone",), steps=STEPS // 2, learning_rate=0.002, losses=EQ_3)


# Methods that change more than the losses of stage dis.
RECIPES = {"takd": _takd, "skd": _skd, "gdrd": _gdrd}


def _stage(**changes):
    """A stage before stage dis, on the schedule of all."""
    common = {"batch": BATCH, "learning_rate": 0.008, "evaluate_every": 0, "init": "random", "use_unlabeled": False}
    return stage(**common, **changes)


def get_config(name: str = "cosine"):
    known = {**LOSSES, **RECIPES}
    if name not in known:
        raise ValueError(f"there is no method {name!r}; it can be {', '.join(known)}")
    config = default()
    config.name = "zoo"
    config.until = "dis"
    # The dev set is LFW, so no people are held out of the faces.
    config.data.update(test_people=0, calibration_people=0, mixup_per_face=0.0)
    config.views.count = 2
    config.sr.update(channels=(32, 64, 96, 128), steps=1500, batch=16, learning_rate=5e-4, ema=0.998)
    config.student.width = 0.25
    for section in (config.gen, config.dis):
        section.update(steps=STEPS, batch=BATCH, learning_rate=0.008, evaluate_every=0)
    config.dis.update(init="random", use_unlabeled=False)
    if name in RECIPES:
        RECIPES[name](config)
    else:
        config.dis.losses = LOSSES[name]
    return config
