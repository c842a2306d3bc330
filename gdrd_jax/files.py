"""Small things every part does with files."""

import hashlib
import json
import os
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Replaces a JSON file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
