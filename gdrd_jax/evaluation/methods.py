"""The methods of the zoo (docs/zoo.md) by name: what each is called, where it was published, and what ours rests on.

`configs/zoo.py` trains the method of the same name. A method of which only an abstract or a title could be read, or
whose terms had to be replaced by others, is marked as our reading wherever it is shown.
"""

from dataclasses import dataclass
from typing import Literal

Grounding = Literal["authors' code", "others' code", "the paper", "our reading", "this project"]


@dataclass(frozen=True)
class Method:
    """A method by which students are trained, or one that needs no student.

    Attributes:
      name: in tables.
      source: where it was published.
      grounding: what its formulas and settings here were taken from. "authors' code" and "others' code" are public
        implementations, "the paper" is GDRD's (arXiv 2409.06371); "our reading" is made from an abstract or a title, or
        has other terms in the place of those of the authors' code.
      reported: under which name `evaluation.paper_tables` has it; "" is its own.
      code: repository on GitHub that was read for it; "" is none.
    """

    name: str
    source: str
    grounding: Grounding
    reported: str = ""
    code: str = ""

    @property
    def title(self) -> str:
        """The name, and that it is our reading, if it is."""
        return f"{self.name} (our reading)" if self.grounding == "our reading" else self.name


# These methods train no student: a recognizer is fed with the faces that an SR network makes of small ones.
SUPER_RESOLUTION: dict[str, Method] = {
    "sr_diffusion": Method("SR diffusion", "after SRDiff, arXiv 2104.14951", "this project"),
    "iasr": Method("IASR", "SPL 2020", "our reading"),
}


INSIGHTFACE, FACEX_ZOO = "deepinsight/insightface", "JDAI-CV/FaceX-Zoo"
REP_DISTILLER, ADA_DISTILL = "HobbitLong/RepDistiller", "fdbtrs/AdaDistill"
RPCL = "CMACH508/RPCL_LowResolutionFaceRecognition"


def _rpcl(base: str) -> Method:
    return Method(f"RPCL-{base}", "Neural Networks 2022, arXiv 2108.01286", "authors' code", "rpcl", RPCL)


METHODS: dict[str, Method] = {
    # Without a teacher.
    "cls": Method("Softmax", "GDRD's ablation, without distillation", "the paper", "none"),
    "facenet": Method("FaceNet", "CVPR 2015, arXiv 1503.03832", "others' code", code="davidsandberg/facenet"),
    "cosface": Method("CosFace", "CVPR 2018, arXiv 1801.09414", "others' code", code=INSIGHTFACE),
    "arcface": Method("ArcFace", "CVPR 2019, arXiv 1801.07698", "authors' code", code=INSIGHTFACE),
    "magface": Method("MagFace", "CVPR 2021, arXiv 2103.06627", "authors' code", code="IrvingMeng/MagFace"),
    "adaface": Method("AdaFace", "CVPR 2022, arXiv 2204.00964", "authors' code", code="mk-minchul/AdaFace"),
    "rpcl_cos": _rpcl("CosFace"),
    "rpcl_arc": _rpcl("ArcFace"),
    "rpcl_mag": _rpcl("MagFace"),
    "siamese": Method("SiameseFace", "ICIIP 2023", "our reading"),
    "mobilenet_v3_se": Method("MobileNetV3-SE", "ICCECE 2024", "our reading"),
    "directcaps": Method("DirectCapsNet", "ICCV 2019, arXiv 1908.10027", "our reading"),
    "resnet34": Method("ResNet-34", "CVPR 2016, arXiv 1512.03385", "our reading"),
    "mobilenet": Method("MobileNet", "arXiv 1704.04861", "our reading"),
    # Distillation from T_d's embeddings.
    "cosine": Method("Cosine", "FitNet, arXiv 1412.6550, applied to embeddings", "others' code", code=FACEX_ZOO),
    "cosine_cls": Method("Cosine and softmax", "as `cosine`, with softmax", "others' code", code=FACEX_ZOO),
    "kd": Method("KD", "arXiv 1503.02531", "others' code", code=REP_DISTILLER),
    "rkd": Method("RKD", "CVPR 2019, arXiv 1904.05068", "others' code", code=REP_DISTILLER),
    "sp": Method("SP", "ICCV 2019, arXiv 1907.09682", "others' code", code=REP_DISTILLER),
    "pkt": Method("PKT", "ECCV 2018, arXiv 1803.10837", "others' code", code=REP_DISTILLER),
    "cckd": Method("CCKD (kernel)", "ICCV 2019, arXiv 1904.01802", "others' code", code=FACEX_ZOO),
    "mk_mmd": Method("MK-MMD", "ICML 2015, arXiv 1502.02791", "others' code", code="thuml/Transfer-Learning-Library"),
    "crd": Method("CRD", "ICLR 2020, arXiv 1910.10699", "authors' code", code=REP_DISTILLER),
    "ekd_evaluation": Method(
        "EKD, evaluation-oriented", "CVPR 2022, arXiv 2206.02325", "authors' code", code="Tencent/TFace"
    ),
    "octuplet": Method("Octuplet", "FG 2023, arXiv 2207.06726", "our reading", code="Martlgap/octuplet-loss"),
    "arc_distill": Method("ArcDistill", "ECCV 2024, arXiv 2407.01332", "our reading", code=ADA_DISTILL),
    "ada_distill": Method("AdaDistill", "ECCV 2024, arXiv 2407.01332", "authors' code", code=ADA_DISTILL),
    "ccface": Method("CCFace", "IJCB 2023, arXiv 2308.09230", "our reading"),
    "crrcd": Method("CRRCD", "TCSVT 2024, arXiv 2409.02555", "the paper"),
    # In several stages, or from other things than T_d's embeddings.
    "skd": Method("SKD", "TIP 2019, arXiv 1811.09998", "our reading"),
    "bridge": Method("BridgeDistill", "TIP 2020, arXiv 2409.11786", "our reading"),
    "takd": Method(
        "TAKD", "AAAI 2020, arXiv 1902.03393", "our reading", code="imirzadeh/Teacher-Assistant-Knowledge-Distillation"
    ),
    "horkd": Method("HORKD", "AAAI 2020, arXiv 2409.05384", "our reading"),
    "fitnet": Method("FitNet", "ICLR 2015, arXiv 1412.6550", "others' code", code=REP_DISTILLER),
    "fskd": Method("F-SKD", "arXiv 2303.04681", "our reading", code="gist-ailab/feature-similarity-KD"),
    "askd": Method("A-SKD", "ECCV 2022, arXiv 2209.14498", "our reading", code="gist-ailab/teaching-where-to-look"),
    "adsram": Method("ADSRAM", "PRML 2023", "our reading"),
    "srw": Method("SRW", "PRML 2023", "our reading"),
    "wave": Method("WaveResNet", "VCIP 2023, arXiv 2303.08665", "our reading", code="LiQiufu/WaveCNet"),
    "ekd_evolutionary": Method("EKD, evolutionary", "TCSVT 2022, arXiv 2103.13811", "our reading"),
    "gdrd": Method("GDRD", "arXiv 2409.06371", "the paper"),
    "ours": Method("Cosine and similarities", "the default of this project", "this project"),
    "combined": Method("Cosine, ArcFace and feature maps", "this page, from WaveResNet's losses", "this project"),
}
