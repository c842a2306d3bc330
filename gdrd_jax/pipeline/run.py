"""A run: its config, and the faces and feature stores in its workdir, each opened once."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from gdrd_jax.config import Config, of_workdir
from gdrd_jax.data.extract import BlockReader
from gdrd_jax.data.faces import Faces
from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.mixup import MixupFaces
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.launch import SINGLE_PROCESS, ProcessInfo

SPLITS = ("train", "test")  # of the people
REAL = (*SPLITS, "unlabeled")  # not mixup images
NAMED_BEFORE = {"unlabeled": "unlabelled", "mixup": "blended"}  # splits, by versions up to 0.4


@dataclass
class Run:
    """Config, workdir, and the output of its steps.

    Attributes:
      config: see `gdrd_jax.config`.
      workdir: folder with the results, and a link to the output of each step.
      process: this process among those that work on the run together.
      folders: step name to the folder of its output, where it is not `workdir/STEP`.
    """

    config: ConfigDict
    workdir: Path
    process: ProcessInfo = SINGLE_PROCESS
    folders: dict[str, Path] = field(default_factory=dict)
    _opened: dict = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, workdir: Path) -> "Run":
        """The run that a workdir was last used for.

        Raises:
          GdrdError: the folder is no workdir.
        """
        config = of_workdir(workdir)
        if not config:
            raise GdrdError(f"{workdir} is no workdir of gdrd train: it has no config.json", "workdir-none")
        return cls(Config(config), workdir)

    def folder(self, step: str) -> Path:
        """The folder of a step's output."""
        return self.folders.get(step, self.workdir / step)

    def faces(self, split: str) -> Faces | MixupFaces:
        """The faces of a split: one of `REAL`, or "mixup" where the config wants mixup images."""
        return self._once(("faces", split), lambda: self._read_faces(split))

    def _read_faces(self, split: str) -> Faces | MixupFaces:
        path = self.path("faces", split, ".json")
        if split != "mixup":
            return Faces.load(path)
        settings = json.loads(path.read_text(encoding="utf-8"))
        known, _ = self.faces("train").split(settings["without_last"])
        real = known, self.faces("unlabeled")
        return MixupFaces(real, round(settings["each"] * sum(map(len, real))), settings["seed"])

    def reader(self, split: str) -> BlockReader:
        """Reads the faces of a split block by block; all that is computed in one pass shares it."""
        return self._once(("reader", split), lambda: BlockReader(self.faces(split)))

    def store(self, step: str, split: str) -> FeatureStore:
        """The finished feature store that a step made of a split.

        Raises:
          GdrdError: the store is missing, unfinished, or of other faces.
        """
        # The path is resolved for error messages: the folder of a step is a link.
        return self._once(
            (step, split),
            lambda: FeatureStore.open(self.path(step, split).resolve(), faces=self.faces(split).fingerprint),
        )

    def path(self, step: str, split: str, suffix: str = "") -> Path:
        """Where a step's output for a split is or will be; output under a split's earlier name is found, too."""
        path, before = (self.folder(step) / f"{name}{suffix}" for name in (split, NAMED_BEFORE.get(split, split)))
        return before if before.exists() and not path.exists() else path

    def _once(self, key: tuple[str, str], open_it):
        if key not in self._opened:
            self._opened[key] = open_it()
        return self._opened[key]
