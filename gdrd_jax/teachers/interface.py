"""The interface of teachers: base classes for the registries `generative_teachers` and `discriminative_teachers`.

Importing such a class must be cheap: whatever runs networks (torch, ONNX Runtime, ...) is imported in `load`, and
`check` and `files` work without it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import digest, sha256

EXACT = "float32"
PRECISIONS = (EXACT, "bfloat16")


@dataclass(frozen=True)
class GenerativeOptions:
    """The section `generative` of a config, with the defaults of the kind of teacher filled in.

    Attributes:
      kind: name in `registry.generative_teachers`.
      path: path of the network's file or folder; None if none is given.
      tap: name of the block or tensor whose output is taken.
      input_size: side in pixels to which a low-resolution face is enlarged for the network; 0 is the network's own.
      precision: one of `PRECISIONS`.
      config: the kind's own settings, a `Config` of its class.
    """

    kind: str
    path: Path | None
    tap: str
    input_size: int
    precision: str
    config: Any


@dataclass(frozen=True)
class DiscriminativeOptions:
    """The section `discriminative` of a config.

    Attributes:
      kind: name in `registry.discriminative_teachers`.
      path: path of the network's file; None if none is given.
      preprocessing: see `teachers.preprocessing.parse_preprocessing`.
      output: name of the output that is the embedding; "" if only one output can be.
      input_size: side in pixels of the images that the network takes; 0 is the network's own.
      precision: one of `PRECISIONS`.
      config: the kind's own settings, a `Config` of its class.
    """

    kind: str
    path: Path | None
    preprocessing: str
    output: str
    input_size: int
    precision: str
    config: Any


def _check_common(section: str, options: Any, takes: frozenset[str], given: dict[str, tuple[object, object]]) -> None:
    """Refuses settings that a kind of teacher would ignore; `given` is name to value and default."""
    for name, (value, default) in given.items():
        if value != default and name not in takes:
            raise GdrdError(
                f"config.{section}.{name} is {value!r}, but teachers of the kind {options.kind!r} "
                f"({options.path or 'without a file'}) do not have this setting; leave it at {default!r}",
                "teacher-option",
            )


def require_file(path: Path | None) -> None:
    """Raises GdrdError unless T_d's file exists."""
    if path is None or not path.is_file():
        raise GdrdError(
            f"config.discriminative.path: there is no file {str(path or '')!r}; give an ONNX face recognizer, weights "
            "of an iresnet, or 'sface' for the recognizer in the extra 'quickstart'",
            "file-missing",
        )


class GenerativeTeacher:
    """T_g: the encoder of a network that restores or generates images; it computes features of low-resolution images.

    A teacher that can also draw a restored image has `super_resolve`, see `SuperResolver`.

    Attributes:
      Config: frozen dataclass of the settings that only this kind has, `generative.settings` in a config. Its docstring
        documents them; its `__post_init__` raises `ValueError` for values out of range.
      default_tap, default_input_size: meaning of "" and 0 in a config.
      takes: which of the settings "input_size" and "precision" it uses; it refuses the others.
      needs_path: whether it is read from a file or folder.
      packages: packages of the extra `teachers` that `load` imports.
      trained_without_path: whether the step `teacher` trains such a network if no path is given.
      taps: names of all taps, in the order of the network; a class attribute if all networks of the kind have the same.
      settings: everything that the features depend on, JSON-serializable, including "tap" and fingerprints of files.
      fingerprint: fingerprint of `settings`.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    default_tap: ClassVar[str] = ""
    default_input_size: ClassVar[int] = 0
    takes: ClassVar[frozenset[str]] = frozenset()
    needs_path: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()
    trained_without_path: ClassVar[bool] = False
    taps: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return digest(self.settings)

    @classmethod
    def check(cls, options: GenerativeOptions) -> None:
        """Finds mistakes in the options before any work.

        Raises:
          GdrdError: there is no such file, the network has no such tap, ...
        """
        given = {"input_size": (options.input_size, cls.default_input_size), "precision": (options.precision, EXACT)}
        _check_common("generative", options, cls.takes, given)
        if cls.needs_path and (options.path is None or not options.path.exists()):
            raise GdrdError(
                f"config.generative.path: there is no {str(options.path or '')!r}; give the file or folder of the "
                f"generative teacher of the kind {options.kind!r}",
                "generative-none",
            )
        taps = getattr(cls, "taps", None)
        if taps and options.tap not in taps:
            raise GdrdError(
                f"config.generative.tap is {options.tap!r}; the kind {options.kind!r} has {', '.join(taps)}",
                "teacher-tap",
            )

    @classmethod
    def files(cls, options: GenerativeOptions) -> dict[str, str]:
        """Names and fingerprints of the network's files, for the record of a run."""
        if options.path is None:
            return {}
        of_folder = options.path.is_dir()
        found = sorted(f for f in options.path.iterdir() if f.is_file()) if of_folder else [options.path]
        return {file.name: sha256(file) for file in found}

    @classmethod
    def recorded(cls, config: Any) -> dict[str, object]:
        """The kind's own settings on which the features depend, for the record of a run.

        If a setting is added to an existing kind, leave it out here at the value that changes nothing, so that stored
        features stay valid.
        """
        return asdict(config)

    @classmethod
    def load(cls, options: GenerativeOptions) -> "GenerativeTeacher":
        """Loads the network.

        Raises:
          GdrdError: the file is not a network of this kind, has no such tap, ...
        """
        raise NotImplementedError

    def features(self, images: np.ndarray) -> np.ndarray:
        """Maps uint8 RGB `[N, R, R, 3]`, any R, to the output of the tap `settings["tap"]`, float32 `[N, C, h, w]`."""
        tap = self.settings["tap"]
        return self.features_at(images, (tap,))[tap]

    def features_at(self, images: np.ndarray, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
        """As `features`, for several taps in one pass. A tap may come after `settings["tap"]` only if it is free."""
        raise NotImplementedError


@runtime_checkable
class SuperResolver(Protocol):
    """A network that super-resolves low-resolution images; some generative teachers can do this, too.

    Attributes:
      method: name in `evaluation.methods.SUPER_RESOLUTION`; the names of its rows in tables end with it.
      low_size: side R, in pixels, of the images that it takes; smaller images are enlarged to it.
      size: side S, in pixels, of the images that it returns.
      fingerprint: fingerprint of the network.
    """

    method: str
    low_size: int
    size: int

    @property
    def fingerprint(self) -> str: ...

    def super_resolve(self, lr: np.ndarray, seed: int) -> np.ndarray:
        """Maps uint8 RGB `[N, R, R, 3]` to uint8 RGB `[N, S, S, 3]`; `seed` is the seed of the noise."""


class DiscriminativeTeacher:
    """T_d: a recognizer that embeds images at full size.

    Attributes:
      Config: frozen dataclass of the settings that only this kind has, `discriminative.settings` in a config, as in
        `GenerativeTeacher`.
      takes: which of the settings "preprocessing", "output", "input_size" and "precision" it uses; it refuses the
        others.
      needs_path: whether it is read from a file.
      packages: packages of the extra `teachers` that `load` imports.
      dim: dimension D of the embedding.
      input_size: side S, in pixels, of the images that it takes.
      preprocessing: the normalization in use, in words; "" if there is no choice.
      warnings: possible reasons for wrong embeddings, one sentence each.
      settings: everything that the embeddings depend on, JSON-serializable, including fingerprints of the files.
      fingerprint: fingerprint of `settings`.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    takes: ClassVar[frozenset[str]] = frozenset()
    needs_path: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()
    dim: int
    input_size: int
    preprocessing: str = ""
    warnings: tuple[str, ...] = ()
    settings: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return digest(self.settings)

    @classmethod
    def check(cls, options: DiscriminativeOptions) -> None:
        """Finds mistakes in the options before any work.

        Raises:
          GdrdError: there is no such file, it has another format, ...
        """
        given = {
            "preprocessing": (options.preprocessing, "auto"), "output": (options.output, ""),
            "input_size": (options.input_size, 0), "precision": (options.precision, EXACT),
        }  # fmt: skip
        if cls.needs_path:
            require_file(options.path)
        _check_common("discriminative", options, cls.takes, given)

    @classmethod
    def fingerprint_of(cls, options: DiscriminativeOptions) -> str:
        """Fingerprint of the network's files, for the record of a run; "" if there are none."""
        return sha256(options.path) if options.path else ""

    @classmethod
    def recorded(cls, config: Any) -> dict[str, object]:
        """As in `GenerativeTeacher`."""
        return asdict(config)

    @classmethod
    def load(cls, options: DiscriminativeOptions) -> "DiscriminativeTeacher":
        """Loads the network.

        Raises:
          GdrdError: the file is not a network of this kind, ...
        """
        raise NotImplementedError

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds uint8 RGB `[N, S, S, 3]`: float32 `[N, D]`, not normalized.

        Images of another size are resized to S with `data.degradation.resize_all` first.
        """
        raise NotImplementedError

    def differentiable(self) -> Callable[[Any], Any]:
        """The frozen network in torch, through which other networks can be trained.

        Returns:
          A function that is differentiable with respect to the images: it maps a float tensor `[N, 3, S, S]`, RGB in
          0..255, on the device of `torch_network.device`, to embeddings `[N, D]`, not normalized.

        Raises:
          GdrdError: torch cannot run it.
        """
        raise no_gradients(type(self).__name__, "torch does not run teachers of this kind")


def no_gradients(name: object, reason: str) -> GdrdError:
    """The error for a teacher through which no network can be trained."""
    return GdrdError(
        f"{name} has no gradients, through which an SR network could be trained ({reason}); give another recognizer",
        "teacher-no-gradients",
    )
