"""Images in parts, such as train/LABEL/IMAGE and test/LABEL/IMAGE, at any depth."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gdrd_jax.data.faces import Faces, same_name
from gdrd_jax.data.file_tree import check_unique, is_image
from gdrd_jax.data.readers import list_files

TRAIN, TEST = "train", "test"


def place(name: str) -> tuple[str, ...]:
    """Where a file is: its last three names are part, label and image."""
    return PurePosixPath(same_name(name)).parts


def images_of_parts(data: Path, parts: Sequence[str] = (TRAIN, TEST)) -> Faces:
    """The images in PART/LABEL/IMAGE of a folder or archive, for these parts; other files are left out.

    Raises:
      GdrdError: two images have the same part, label and name.
    """
    files = list_files(data)
    chosen = [
        row for row, names in enumerate(map(place, files.names))
        if len(names) >= 3 and names[-3] in parts and is_image(files, row)
    ]  # fmt: skip
    check_unique(files, chosen, lambda name: place(name)[-3:])
    return files.take(chosen)
