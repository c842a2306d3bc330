"""What a step of the pipeline is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from gdrd_jax.data.extract import Extraction
    from gdrd_jax.pipeline.run import Run


def _nothing(config: ConfigDict) -> None:
    """The check of a step that nothing can be wrong with."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: settings and files that its output depends on, and the function that makes it.

    Attributes:
      name: the step's name, which begins the name of the folder of its output.
      run: function of a `Run` that writes the output into `run.folder(name)`. It may return a fingerprint of the
        output; otherwise the fingerprint of the step's origin identifies it. None for a step with `extractions`.
      settings: dotted names of the settings that the output depends on; a section stands for all settings in it.
      after: function of the config, the names of the steps whose output this one reads.
      files: function of the config, name to fingerprint of the files from outside that the step reads.
      check: function of the config that raises `GdrdError` for mistakes that concern this step alone.
      neutral: settings newer than version 0.4.0 and the values at which they change nothing: recorded only if they
        have another value, so that earlier output stays valid.
      adjust: function of the config and the recorded settings (nested under the names in `settings`) that corrects
        these in place: drops what has no effect, or replaces a value by the one that counts.
      extractions: function of a `Run`, split name to the `Extraction` that fills the split's store. Steps that do not
        need each other's output are done in one pass, which reads each face once.
      publishes: names of files that are copied from the step's folder into the workdir.
      shared: several processes can do the step together.
      trains: the output is a trained network.
      batched: it is a stage with a batch size, and the batch is divided among JAX's devices.
      format_version: version of the output's format. Raise it when a new version of this program cannot use, or would
        not write, the same output from the same origin; the program's own version does not count.
    """

    name: str
    run: Callable[["Run"], str | None] | None
    settings: tuple[str, ...]
    after: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
    files: Callable[[ConfigDict], dict[str, str]] = lambda config: {}
    check: Callable[[ConfigDict], None] = _nothing
    neutral: dict[str, object] = field(default_factory=dict)
    adjust: Callable[[ConfigDict, dict], None] = lambda config, settings: None
    extractions: Callable[["Run"], dict[str, "Extraction"]] | None = None
    publishes: tuple[str, ...] = ()
    shared: bool = False
    trains: bool = False
    batched: bool = False
    format_version: int = 1
