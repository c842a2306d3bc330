"""The classification protocol: top-1, top-5 and nearest neighbors among classes of which there are training images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces, labeled
from gdrd_jax.data.prepare import checked
from gdrd_jax.data.readers import open_faces
from gdrd_jax.data.task import ObjectTask
from gdrd_jax.evaluation.closed_set import NEIGHBORS, ClosedSet
from gdrd_jax.evaluation.interface import SHOWN, ReportedProtocol
from gdrd_jax.evaluation.parts import TEST, TRAIN, images_of_parts, place
from gdrd_jax.evaluation.report import GREEN, RED
from gdrd_jax.evaluation.result import Result
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.pictures import grid


@protocols.register("classification")
@dataclasses.dataclass(frozen=True)
class Classification(ClosedSet, ReportedProtocol):
    """CLASS/IMAGE with --test-images, or train/CLASS/IMAGE and test/CLASS/IMAGE, of any size, with the same classes.

    Attributes:
      about: counts and remarks for the report.
    """

    faces: Faces
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    title = "Classification"
    columns = ClosedSet.columns

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          test_images: number of images of each class, the last by name, that are tested, as config.data.test_images;
            0 takes the folders train and test.
          neighbors: number of nearest training images that vote.
          image_size: side in pixels to which the middle square of an image is brought, as config.task.image_size.
          channels: channels of an image, 1 to 4, as config.task.channels.
          maximum: 16-bit sample that becomes 255, as config.task.maximum.
        """

        test_images: int = 0
        neighbors: int = NEIGHBORS
        image_size: int = 64
        channels: int = 3
        maximum: int = 0

        def __post_init__(self) -> None:
            if self.test_images < 0:
                raise ValueError(f"test_images is {self.test_images}; it must be at least 0")
            if self.neighbors < 1:
                raise ValueError(f"neighbors is {self.neighbors}; it must be at least 1")
            self.task()

        def task(self) -> ObjectTask:
            """What the images show."""
            return ObjectTask(image_size=self.image_size, channels=self.channels, maximum=self.maximum)

    @classmethod
    def open(cls, data: Path, config: Any = None, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """Images of any size, so `stretch` changes nothing; see `ReportedProtocol.open`."""
        config = config or cls.Config()
        return cls._of_one(data, config, skip_bad) if config.test_images else cls._of_two(data, config, skip_bad)

    @classmethod
    def _of_one(cls, data: Path, config: Any, skip_bad: bool) -> Self:
        faces = checked(open_faces(data, skip_bad=skip_bad, task=config.task()), skip_bad=skip_bad)
        images = np.bincount(faces.labels, minlength=len(faces.identities))
        few = np.flatnonzero(images <= config.test_images)
        if len(few):
            raise GdrdError(
                f"the class {faces.identities[few[0]]!r} has {images[few[0]]} images, and --test-images "
                f"{config.test_images} of them are to be tested; at least 1 must remain to compare with",
                "class-few-images",
            )
        tested = faces.last_of_each(config.test_images)
        return cls._made(faces, tested, config, [])

    @classmethod
    def _of_two(cls, data: Path, config: Any, skip_bad: bool) -> Self:
        files = images_of_parts(data)
        parts_there = {place(name)[-3] for name in files.names}
        for part in (TRAIN, TEST):
            if part not in parts_there:
                raise GdrdError(
                    f"{data} has no images {part}/CLASS/IMAGE; the layout is train/CLASS/ and test/CLASS/, or CLASS/ "
                    "with --test-images N",
                    "classification-layout",
                )
        faces = checked(files.with_task(config.task()), skip_bad=skip_bad)
        places = [place(name) for name in faces.names]
        of_part = {part: {parts[-2] for parts in places if parts[-3] == part} for part in (TRAIN, TEST)}
        for part, other in ((TEST, TRAIN), (TRAIN, TEST)):
            if missing := sorted(of_part[other] - of_part[part]):
                raise GdrdError(
                    f"{data}: the class {missing[0]!r} has images in {other} and none in {part}; give it some, or "
                    f"remove {other}/{missing[0]}",
                    "class-without-images",
                )
        faces = labeled(faces, (parts[-2] for parts in places))
        return cls._made(faces, np.array([parts[-3] == TEST for parts in places]), config, list(faces.skipped))

    @classmethod
    def _made(cls, faces: Faces, tested: np.ndarray, config: Any, skipped: list) -> Self:
        if len(faces.identities) < 2:
            raise GdrdError(
                f"{faces.root} holds {len(faces.identities)} class; at least 2 are needed", "classification-too-few"
            )
        skipped = skipped or list(faces.skipped)
        about: dict[str, Any] = {"n_skipped": len(skipped), "skipped": skipped, "drawn": "test images"}
        train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
        opened = cls(faces, faces.labels, train, test, config.neighbors, about)
        about["remark"] = opened.remark
        return opened

    def shared_arrays(self) -> dict[str, np.ndarray]:
        """What the predictions of every row belong to."""
        return {
            "names": np.array(self.faces.names), "labels": self.labels, "train": self.train, "test": self.test,
            "truth": self.labels[self.test], "classes": np.array(self.faces.identities),
        }  # fmt: skip

    def picture(self, result: Result, render: Callable[[int], np.ndarray]) -> tuple[np.ndarray, str]:
        """Test images of a wrong class, over a training image of the right and of the wrong class."""
        predicted = result.arrays["predicted"]
        wrong = np.flatnonzero(predicted != self.labels[self.test])
        if not len(wrong):
            return grid([[render(row) for row in self.test[:SHOWN]]]), "Test images; none was classified wrongly."
        wrong = wrong[np.linspace(0, len(wrong) - 1, min(SHOWN, len(wrong))).astype(int)]

        def example(label: int) -> np.ndarray:
            return self.faces[self.train[self.labels[self.train] == label][0]]

        tests = self.test[wrong]
        lines = [
            [render(row) for row in tests],
            [example(self.labels[row]) for row in tests],
            [example(label) for label in predicted[wrong]],
        ]
        frames: list[list[tuple[int, int, int] | None]] = [
            [None] * len(tests),
            [GREEN] * len(tests),
            [RED] * len(tests),
        ]
        return grid(lines, frames), (
            "Test images of which the nearest center is of a wrong class, as the model receives them; below, a "
            "training image of the right class (green) and of the one they were taken for (red)."
        )
