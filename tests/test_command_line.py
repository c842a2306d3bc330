"""What all tools do with errors, signals and output."""

import contextlib
import io
import sys

import pytest

from gdrd_jax import command_line, files
from gdrd_jax.errors import GdrdError
from gdrd_jax.recognizer import Recognizer
from gdrd_jax.serving import folders
from gdrd_jax.serving.gallery import Match


def stopped():
    raise KeyboardInterrupt


@pytest.mark.parametrize("resumes", [True, False])
def test_only_what_resumes_is_promised_to(resumes, capsys):
    assert command_line.guarded(stopped, resumes=resumes) == 130
    assert ("the same command continues" in capsys.readouterr().err) == resumes


def test_output_may_go_anywhere_and_names_be_of_any_bytes():
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert command_line.guarded(lambda: print("done")) == 0
    assert told.getvalue() == "done\n"
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    with contextlib.redirect_stdout(plain):
        assert command_line.guarded(lambda: print("\udcff", file=sys.stdout, flush=True)) == 0
    assert plain.buffer.getvalue() == b"\\udcff\n"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing_file(tmp_path / "x") as file:
        file.write(b"ne")
        1 / 0  # noqa: B018
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with files.replacing_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "folder").mkdir()
    with pytest.raises(GdrdError, match="could not be written: Is a directory"):
        with files.replacing_file(tmp_path / "folder") as file:
            file.write(b"new")


def test_a_match_whose_metadata_name_no_file_has_no_face():
    for metadata in ({}, {"path": None}, {"path": 3}):
        assert folders.enrolled(Recognizer, Match("x", 0.5, metadata)) is None
