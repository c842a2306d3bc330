"""The zoo: methods of low-resolution face recognition, all training the same student on the same faces and schedule.

  gdrd grid --out runs/zoo --rows docs/zoo --configs 'zoo:*' --seeds 7 8 --against cosine -- \\
      --config.data.path=train.rec,people.rec --config.discriminative.path=teacher_edgeface_xs.onnx \\
      --config.dev.path=lfw_dev.tar --config.dev.pairs=pairs_dev.txt

docs/zoo.md has all commands, what each method rests on (`gdrd_jax/evaluation/methods.py`), and the results.

The same for all: the student `gdrd` of a quarter of the paper's width, unless the network is the method; labeled faces
alone; 1,500 batches of 96 faces; AdamW with a peak learning rate of 0.008 (lower in the second stages of octuplet and
gdrd). The faces are reduced cleanly, each face and its mirror image, because the paper judges clean faces. A student
that is trained in two stages sees half of the batches in each. An assistant or T_g is trained on top of that; the table
of docs/zoo.md has the assistant's cost.

| name | loss of the student | extra cost over softmax |
|---|---|---|
| cls | softmax | |
| facenet | triplets of 24 identities with 4 faces | no classifier |
| cosface, arcface, magface, adaface | softmax of cosines, with a margin | |
| rpcl_cos, rpcl_arc, rpcl_mag | the same, and a margin for the most similar other identity | |
| cosine | 1 - cosine with T_d's embedding | no classifier: the cheapest |
| cosine_cls | the same, and softmax | |
| kd | softmax, and T_d's softmax at temperature 4 | a second product with all classes |
| rkd | softmax, distances and angles between the faces of a batch | angles of 64^3 triplets |
| sp, pkt, cckd | softmax, and the cosines between the faces of a batch | |
| mk_mmd | softmax, and the discrepancy between two sets of embeddings | |
| crd | softmax, and one face among 16,384 others | banks of 1.5 KB per face |
| ekd_evaluation | ArcFace, and pairs of faces at low false accept rates | |
| arc_distill, ada_distill | ArcFace on T_d's class centers, fixed or moving | |
| ccface | the same with a milder margin, and agreement with the mirror image | both go through the student |
| bridge | softmax, on T_d's embeddings as an adaptor changes them | a second classifier |
| crrcd | Eq. 3 of GDRD | relations of all pairs, 96^2 rows of the critic |
| srw | AdaFace, in which faces are weighted by T_d's confidence | |
| adsram | the same, and attention | T_d's feature maps |
| askd | ArcFace, and attention | T_d's feature maps |
| fskd | CosFace, feature maps and their affinities between two faces | T_d's feature maps, a second image per row |
| ekd_evolutionary | softmax, and a network at 32x32 that learns at the same time | 2.3 times the step |
| octuplet | cosine, then triplets of embeddings of both networks | no classifier |
| fitnet | T_d's feature maps, then as kd | T_d's feature maps |
| takd | as kd, from an assistant at 32x32, which learns from T_d the same way | the assistant's training |
| horkd | softmax, cosine, distances and angles, from T_d and such an assistant | the assistant's training |
| skd | softmax, and the distance to T_d's embeddings of 70 % of the faces | the selection |
| gdrd | Eq. 1, then Eq. 3 behind a frozen backbone | T_g's training and features |
| combined | the losses of wave, in the common network | T_d's feature maps |
| ours | 1 - cosine, and the cosines between the faces of a batch | no classifier |
| resnet34, mobilenet | softmax, in that network | |
| mobilenet_v3_se | ArcFace, in that network | |
| siamese | softmax, and pairs of faces, in a network of three streams | a second image per row |
| wave | ArcFace, cosine, and T_d's feature maps, in a network with wavelets | T_d's feature maps |
| directcaps | CosFace, and the distance to T_d's class centers, in a network of capsules | the routing |

T_d's feature maps are those after its last residual block with at least 4x4 positions; `discriminative.tap` names
others.
"""

from gdrd_jax.config import OUR_LOSSES, PAPER_LOSSES, check_mode, default, stage

STEPS = 1500
BATCH = 96
SCHEDULE = {"batch": BATCH, "learning_rate": 0.008, "evaluate_every": 0}
WIDTH = 0.25
CLS = {"cls": {"weight": 1.0}}
COSINE = {"embedding_cosine": {"weight": 1.0}}
# The weight of cosines beside a softmax, for which no source has one: the gradient of one minus a cosine is then about
# as large as the softmax's at first; with a weight of 1 it is a thirtieth of that. Squared distances have half of this
# weight, because their gradient is twice as large.
COSINE_WEIGHT = 30.0
DISTANCE_WEIGHT = COSINE_WEIGHT / 2
WEIGHTED_COSINE = {"embedding_cosine": {"weight": COSINE_WEIGHT}}
# T_d's cosines become logits by a scale of 64: at 32 its softmax at temperature 4 is nearly uniform over 11,369 people.
KD = {"temperature": 4.0, "teacher_scale": 64.0}
LOGITS = {**CLS, "kd": {"weight": 1.0, **KD}}
EQ_3 = {**PAPER_LOSSES, "kd": {"weight": 0.25, **KD}}
# RepDistiller's weight of 3,000 for batches of 64 is 47 times the squared distance of a row of similarities; the loss
# here is the mean over the BATCH - 1 pairs of such a row.
SIMILARITIES = {"similarity_preserving": {"weight": 47.0 * (BATCH - 1), "normalize_rows": True}}
RAMP = STEPS // 10  # steps over which margins rise: full ones can stall a randomly initialized classifier


def _margin(loss, **settings):
    return {loss: {"weight": 1.0, "ramp": RAMP, **settings}}


# For low resolution the authors of F-SKD take CosFace.
MARGIN = _margin("cosface")
# The exact gradient drives the weights of all classes away from all embeddings: where the angle is near pi, the margin
# costs less. MobileNetV3-SE ends there (own_cosine -0.91), with the gradient of InsightFace's code it does not.
ARCFACE = _margin("arcface", gradient="straight")
# Scale and update are the defaults of the AdaFace in F-SKD's code, which is for low resolution. The student does not
# end in batch normalization, so norms are of standardized embeddings.
ADAFACE = {"scale": 32.0, "standardize": True, "update": 1.0}
WAVE = {**ARCFACE, **WEIGHTED_COSINE, "wavelet": {"weight": COSINE_WEIGHT}}
REWEIGHTED = _margin("reweighted_adaface", **ADAFACE)

# Losses of methods that change nothing else.
LOSSES = {
    "cls": CLS,
    "facenet": {"triplet": {"weight": 1.0}},
    "cosface": MARGIN,
    "arcface": ARCFACE,
    "magface": _margin("magface"),
    "adaface": _margin("adaface", **ADAFACE),
    "rpcl_cos": _margin("rpcl"),
    "rpcl_arc": _margin("rpcl", base="arc", margin=0.5, threshold=0.8, easy_margin=False, gradient="straight"),
    "rpcl_mag": _margin("rpcl", base="mag", rival_margin=0.225),
    "cosine": COSINE,
    "cosine_cls": {**CLS, **WEIGHTED_COSINE},
    "kd": LOGITS,
    "rkd": {**CLS, "rkd": {"weight": 1.0}},
    "sp": {**CLS, **SIMILARITIES},
    "pkt": {**CLS, "pkt": {"weight": 1.0}},
    "cckd": {**CLS, "cckd": {"weight": 1.0}},
    "mk_mmd": {**CLS, "mk_mmd": {"weight": 1.0}},
    "crd": {**CLS, "crd": {"weight": 0.8}},
    "ekd_evaluation": {**_margin("arcface", scale=64.0, margin=0.4), "ekd_evaluation": {"weight": 1.0}},
    "arc_distill": _margin("arc_distill"),
    "ada_distill": _margin("ada_distill"),
    "ccface": _margin("ccface"),
    "bridge": {"bridge": {"weight": 1.0, "distance": DISTANCE_WEIGHT}},
    "crrcd": EQ_3,
    "srw": REWEIGHTED,
    "adsram": {**REWEIGHTED, "reweighted_attention": {"weight": COSINE_WEIGHT}},
    "askd": {**ARCFACE, "attention": {"weight": COSINE_WEIGHT}},
    "fskd": {**MARGIN, "feature_similarity": {"weight": 1.0}},
    "ekd_evolutionary": {**CLS, "ekd_evolutionary": {"weight": 1.0, "width": WIDTH}},
    "ours": OUR_LOSSES,
    "resnet34": CLS,
    "mobilenet": CLS,
    "mobilenet_v3_se": ARCFACE,
    "siamese": {**CLS, "contrastive_pairs": {"weight": 1.0, "margin": 1.414}},
    "wave": WAVE,
    "combined": WAVE,
    "directcaps": {**MARGIN, "center_distance": {"weight": DISTANCE_WEIGHT}},
}
# How batches are made, where not uniformly.
SAMPLERS = {
    "facenet": "balanced", "ccface": "views", "fskd": "pairs", "siamese": "pairs",
    # Uniform batches have three pairs of one person among 4,560.
    **dict.fromkeys(("ekd_evaluation", "rkd", "pkt", "cckd", "horkd"), "half_balanced"),
}  # fmt: skip
# Students of their own.
NETWORKS = {
    "resnet34": {"name": "resnet", "settings": {"depth": 34}},
    **{name: {"name": name} for name in ("mobilenet", "mobilenet_v3_se", "siamese", "wave", "directcaps")},
}


def _takd(config):
    config.stages = {"assistant": _stage(input="hr_small", steps=STEPS, losses=LOGITS)}
    # An assistant's embeddings are farther from its class centers than T_d's, which needs a larger scale.
    config.dis.teacher, config.dis.losses = "assistant", {**CLS, "kd": {"weight": 1.0, **KD, "teacher_scale": 128.0}}


def _horkd(config):
    # Half of the weights that the terms have from one teacher, for each of two.
    cosine, relations = {"weight": COSINE_WEIGHT / 2}, {"weight": 5.0, "images": 32}
    orders = {**WEIGHTED_COSINE, "rkd": {"weight": 10.0, "images": 32}}
    sampler = {"name": SAMPLERS["horkd"]}
    config.stages = {"assistant": _stage(input="hr_small", steps=STEPS, losses={**CLS, **orders}, sampler=sampler)}
    config.dis.assistant = "assistant"
    config.dis.losses = {
        **CLS,
        "embedding_cosine": cosine,
        "rkd": relations,
        "assistant_cosine": cosine,
        "assistant_rkd": relations,
    }


def _octuplet(config):
    # The authors begin with a network that recognizes faces; triplets with T_d's embeddings need one in T_d's space.
    config.stages = {"first": _stage(steps=STEPS // 2, losses=COSINE)}
    # At the common rate the embeddings collapse to one point, where the loss is smaller than at the beginning.
    config.dis.update(init="first", steps=STEPS // 2, sampler={"name": "balanced"}, learning_rate=0.0008)
    config.dis.losses = {"octuplet": {"weight": 1.0}}


def _fitnet(config):
    config.stages = {"hint": _stage(steps=STEPS // 2, losses={"hint": {"weight": 1.0}})}
    config.dis.update(init="hint", steps=STEPS // 2)
    config.dis.losses = LOGITS


def _skd(config):
    config.dis.losses = {**CLS, "selected_distance": {"weight": DISTANCE_WEIGHT}}
    config.dis.selection = {"name": "sparse_graph", "keep": 0.7}


def _gdrd(config):
    config.gen.steps = STEPS // 2
    # Behind a frozen backbone the head needs a hidden layer, or it could do no more than a linear map, and a lower
    # rate, or the layer's units die.
    config.student.hidden = (512,)
    config.dis.update(init="gen", freeze=("backbone",), steps=STEPS // 2, learning_rate=0.002)
    config.dis.losses = EQ_3


# Methods that change more than the losses of stage dis.
RECIPES = {
    "octuplet": _octuplet, "fitnet": _fitnet, "takd": _takd, "horkd": _horkd, "skd": _skd, "gdrd": _gdrd,
}  # fmt: skip


def _stage(**changes):
    """A stage before stage dis, on the schedule of all."""
    return stage(**SCHEDULE, init="random", use_unlabeled=False, **changes)


MODES = (*LOSSES, *RECIPES)


def get_config(name: str = "cosine"):
    check_mode("method", name, MODES)
    config = default()
    config.name = "zoo"
    config.until = "dis"
    # The dev set is LFW, so no people are held out of the faces.
    config.data.update(test_people=0, calibration_people=0, mixup_per_face=0.0)
    config.views.count = 2
    config.sr.update(channels=(32, 64, 96, 128), steps=1500, batch=16, learning_rate=5e-4, ema=0.998)
    config.student.width = WIDTH
    for section in (config.gen, config.dis):
        section.update(steps=STEPS, **SCHEDULE)
    config.dis.update(init="random", use_unlabeled=False)
    if name in RECIPES:
        RECIPES[name](config)
    else:
        config.dis.losses = LOSSES[name]
    if name in SAMPLERS:
        config.dis.sampler = {"name": SAMPLERS[name]}
    config.student.update(NETWORKS.get(name, {}))
    return config
