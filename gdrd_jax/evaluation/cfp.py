"""CFP: is a face seen from the front and one from the side (FP), or another from the front (FF), of one person?

Sengupta et al., Frontal to profile face verification in the wild, WACV 2016 (http://www.cfpw.io). The lists as
cfp-dataset.zip has them: Protocol/Pair_list_F.txt and Pair_list_P.txt number the images ("1
../Data/Images/001/frontal/01.jpg"), and Protocol/Split/{FF,FP}/{01..10}/{same,diff}.txt have a pair a line ("1,3"): a
number of Pair_list_F and one of Pair_list_P, or of Pair_list_F again.
"""

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Self

from gdrd_jax.data.readers import list_files
from gdrd_jax.evaluation.lfw import PairList
from gdrd_jax.evaluation.pair_files import Pair, image_name
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import read_lines, user_path

SPLITS = ("FP", "FF")
KINDS = {"same.txt": True, "diff.txt": False}


@protocols.register("cfp")
class CFP(PairList):
    """Data/Images/001/{frontal,profile}/01.jpg of cfp-dataset, aligned, with its folder Protocol.

    InsightFace's cfp_fp.bin, of the same pairs, is read by --protocol bin.
    """

    title = "CFP"

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          split: FP, frontal against profile, or FF, frontal against frontal.
          lists: the folder Protocol; by default that of --data.
        """

        split: str = "FP"
        lists: str = ""

        def __post_init__(self) -> None:
            if self.split not in SPLITS:
                raise ValueError(f"split is {self.split!r}; it can be {' or '.join(SPLITS)}")

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Images anywhere under a folder, in a tar or a store; see `ReportedProtocol.open`."""
        lists = user_path(config.lists) if config.lists else data / "Protocol"
        listed, where = read_split(lists, config.split), lists / "Split" / config.split
        return cls.of_listed(list_files(data), listed, where, stretch=stretch, skip_bad=skip_bad)


def read_split(lists: Path, split: str) -> list[Pair]:
    """The pairs of all folds.

    Args:
      lists: the folder Protocol.
      split: "FP" or "FF".

    Raises:
      GdrdError: a list is missing or malformed (with the number of the line), or a number is that of no image.
    """
    frontal = _images(lists / "Pair_list_F.txt")
    other = _images(lists / "Pair_list_P.txt") if split == "FP" else frontal
    folder = lists / "Split" / split
    folds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folds:
        raise GdrdError(
            f"there are no folds {folder / '01'} and so on; give the folder Protocol of cfp-dataset as --lists",
            "cfp-lists",
        )
    pairs = []
    for fold, path in enumerate(folds):
        for name, same in KINDS.items():
            for number, line in _lines(path / name):
                first, second = _two(path / name, number, line)
                images = _named(path / name, number, first, frontal), _named(path / name, number, second, other)
                people = images[0].partition("/")[0], images[1].partition("/")[0]
                if (people[0] == people[1]) != same:
                    raise GdrdError(
                        f"{path / name}, line {number}: {images[0]} and {images[1]} are of "
                        f"{'two people' if same else 'one person'}",
                        "cfp-line",
                    )
                pairs.append(Pair(images, people, same, fold))
    return pairs


def _images(path: Path) -> list[str]:
    """Names of the images "001/frontal/01", in the order of their numbers."""
    found: list[str] = []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(found) + 1) or len(PurePosixPath(fields[1]).parts) < 3:
            raise GdrdError(
                f"{path}, line {number}: {line!r} is not `{len(found) + 1} ../Data/Images/PERSON/KIND/IMAGE`",
                "cfp-line",
            )
        found.append("/".join(PurePosixPath(image_name(fields[1])).parts[-3:]))
    return found


def _two(path: Path, number: int, line: str) -> tuple[str, str]:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        raise GdrdError(f"{path}, line {number}: {line!r} is not a pair `NUMBER,NUMBER`", "cfp-line")
    return fields[0], fields[1]


def _named(path: Path, number: int, text: str, images: list[str]) -> str:
    if not 1 <= int(text) <= len(images):
        raise GdrdError(
            f"{path}, line {number}: there is no image {text}; the list has 1 to {len(images)}", "cfp-number"
        )
    return images[int(text) - 1]


def _lines(path: Path) -> list[tuple[int, str]]:
    return [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
