"""The figures of GDRD's paper (arXiv 2409.06371): tables I to IV, figure 3 and the resolutions of its section III-D.

All are in percent, of very low-resolution faces, and of students that were trained on WebFace (494,414 faces) by their
authors or by the paper's. Read `NOTES` before comparing anything with them: the tables mix settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

OWN = "gdrd"
NOTES = (
    "Table I takes FaceNet, CosFace, ArcFace, MagFace and SKD from table 7 of the RPCL paper (arXiv 2108.01286), which "
    "trains ResNet-18 on reduced faces. These rows are recognizers trained at low resolution, not recognizers of good "
    "faces that are shown small ones, as GDRD's text says of ArcFace.",
    "RPCL's 94.98 is the mean of that table's three variants, 95.13 (CosFace), 94.70 (ArcFace) and 95.12 (MagFace). "
    "Table II says that RPCL is of TCSVT 2022; it is of Neural Networks 2022.",
    "SKD's student has 0.15 MB, and BridgeDistill's 0.21 M parameters: far smaller networks than the others'.",
    "EKD is the evolutionary one (arXiv 2103.13811). The evaluation-oriented EKD of CVPR 2022 is another method.",
    "Mkmmd cites the paper on teacher assistants (arXiv 1902.03393), in which there is no MMD; where the figures come "
    "from is not known.",
    "CRRCD's 95.25 in table I and the paper's own ablation without stage gen (figure 3) are the same figure.",
    "On UCCS a softmax layer is trained on frozen features of 180 people, and MagFace's 33.14 is a failure of that "
    "transfer. DirectCapsNet's figure is of its own protocol, 16x16 faces against 80x80 ones.",
    "On TinyFace the paper's students were fine-tuned on TinyFace's training faces.",
)  # fmt: skip
UCCS_SIZES = {8: 86.17, 16: 97.56, 32: 98.73}  # section III-D


@dataclass(frozen=True)
class Reported:
    """A row of the paper.

    Attributes:
      method: what it is called here, see `evaluation.methods`, or a mode of the ablation.
      name: what the paper calls it.
      table: "I" to "IV", "figure 3" or "III-D".
      published: where, as the paper has it; "" for its own rows.
      citation: number in the paper's list of references, 0 for its own rows.
      figures: metric of the protocol to percent.
      resolution: side of the faces in pixels.
    """

    method: str
    name: str
    table: str
    published: str
    citation: int
    figures: Mapping[str, float] = field(default_factory=dict)
    resolution: int = 16


def _rows(table: str, metrics: tuple[str, ...], *rows: tuple) -> tuple[Reported, ...]:
    return tuple(
        Reported(method, name, table, published, citation, dict(zip(metrics, figures, strict=True)))
        for method, name, published, citation, *figures in rows
    )


def _own(table: str, name: str, metric: str, figures: Mapping[str, float], resolution: int = 16) -> list[Reported]:
    return [Reported(method, name, table, "", 0, {metric: value}, resolution) for method, value in figures.items()]


LFW = (
    *_rows(
        "I", ("accuracy",),
        ("facenet", "FaceNet", "CVPR 2015", 3, 90.25), ("cosface", "CosFace", "CVPR 2018", 4, 93.80),
        ("arcface", "ArcFace", "CVPR 2019", 5, 92.30), ("magface", "MagFace", "CVPR 2021", 27, 94.97),
        ("siamese", "SiameseFace", "ICIIP 2023", 28, 92.41),
        ("mobilenet_v3_se", "MobilenetV3-SE", "ICCECE 2024", 29, 92.86),
        ("skd", "SKD", "TIP 2019", 9, 85.87), ("horkd", "HORKD", "AAAI 2020", 13, 90.03),
        ("ekd_evolutionary", "EKD", "TCSVT 2022", 30, 91.71), ("rpcl", "RPCL", "NN 2022", 31, 94.98),
        ("wave", "WaveResNet", "VCIP 2023", 32, 93.94), ("crd", "CRD", "CEI 2023", 33, 94.62),
        ("adsram", "ADSRAM", "PRML 2023", 34, 93.08), ("ccface", "CCFace", "IJCB 2023", 35, 92.87),
        ("crrcd", "CRRCD", "TCSVT 2024", 14, 95.25), (OWN, "Our GDRD", "", 0, 96.13),
    ),
    *_own("figure 3", "ablation", "accuracy", {
        "none": 92.61, "sr": 93.30, "gen": 93.87, "dis": 95.25, "gen_dis": 96.13,
    }),
)  # fmt: skip
UCCS = (
    *_rows(
        "II", ("accuracy",),
        ("cosface", "CosFace", "CVPR 2018", 4, 91.83), ("arcface", "ArcFace", "CVPR 2019", 5, 88.73),
        ("magface", "MagFace", "CVPR 2021", 27, 33.14), ("directcaps", "DirectCapsNet", "ICCV 2019", 36, 95.81),
        ("iasr", "IASR", "SPL 2020", 37, 89.73), ("skd", "SKD", "TIP 2019", 9, 67.25),
        ("horkd", "HORKD", "AAAI 2020", 13, 92.11), ("ekd_evolutionary", "EKD", "TCSVT 2022", 30, 93.85),
        ("rpcl", "RPCL", "TCSVT 2022", 31, 95.13), ("crrcd", "CRRCD", "TCSVT 2024", 14, 97.27),
        (OWN, "Our GDRD", "", 0, UCCS_SIZES[16]),
    ),
    *(row for side in (8, 32) for row in _own("III-D", "Our GDRD", "accuracy", {OWN: UCCS_SIZES[side]}, side)),
)  # fmt: skip
TINYFACE = _rows(
    "III", ("rank_1", "rank_5", "rank_10"),
    ("tinyface_baseline", "Baseline", "ACCV 2018", 25, 31.21, 47.25, 48.21),
    ("skd", "SKD", "TIP 2019", 9, 47.91, 56.55, 58.92), ("mk_mmd", "Mkmmd", "AAAI 2020", 39, 45.49, 54.61, 58.27),
    ("horkd", "HORKD", "AAAI 2020", 13, 45.49, 54.80, 58.26), ("srw", "SRW", "PRML 2023", 34, 49.25, 58.49, 61.23),
    ("crd", "CRD", "CEI 2023", 33, 49.00, 57.12, 60.73), ("ccface", "CCFace", "IJCB 2023", 35, 48.03, 56.38, 59.17),
    ("crrcd", "CRRCD", "TCSVT 2024", 14, 49.47, 58.98, 61.50), (OWN, "Our GDRD", "", 0, 49.83, 59.14, 61.97),
)  # fmt: skip
AR = _rows(
    "IV", ("rank_1_illumination", "rank_1_eyes", "rank_1_mouth"),
    ("resnet34", "ResNet34", "CVPR 2016", 40, 75.32, 70.03, 55.14),
    ("mobilenet", "MoblieNet", "arXiv 2017", 41, 73.42, 67.32, 51.21),
    ("iasr", "IASR", "SPL 2020", 37, 78.23, 75.48, 60.16), ("skd", "SKD", "TIP 2019", 9, 73.70, 65.37, 54.67),
    ("ekd_evolutionary", "EKD", "TCSVT 2022", 30, 88.16, 80.72, 70.83),
    ("ccface", "CCFace", "IJCB 2023", 35, 87.52, 81.34, 70.29), (OWN, "Our GDRD", "", 0, 89.47, 84.33, 72.91),
)  # fmt: skip
TABLES: Mapping[str, tuple[Reported, ...]] = {"lfw": LFW, "uccs": UCCS, "tinyface": TINYFACE, "ar": AR}


def figures(protocol: str, method: str = OWN, resolution: int = 16) -> Mapping[str, float]:
    """What the paper reports of a method: metric of the protocol to percent, empty where it reports nothing.

    Args:
      protocol: a name in `registry.protocols`.
      method: as `Reported.method`.
      resolution: side of the faces in pixels.
    """
    rows = TABLES.get(protocol, ())
    found = (row.figures for row in rows if (row.method, row.resolution) == (method, resolution))
    return next(found, {})
