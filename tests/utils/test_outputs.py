"""No command writes over what another one, or a person, made."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces, raises, save_recognizer, save_student

from gdrd_jax.galleries.gallery import Gallery
from gdrd_jax.utils import outputs

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

RUN = "the workdir of a training run"


def make(folder, kind):
    """What the command of that kind leaves, as small as it goes."""
    folder.mkdir(parents=True)
    files = {
        RUN: {"config.json": {"name": "x", "student": {}, "views": {}}, "metrics.json": {"protocol": "held_out"}},
        "the output of the steps of runs": {"faces-0123456789ab/step.json": {}},
        "an exported student": {"manifest.json": {}, "student.safetensors": {}},
        "a gallery": {"gallery.json": {}},
        "a store of faces": {"faces.json": {}},
        "an SR teacher": {"training.json": {}, "config.json": {"_class_name": "UNet2DModel"}},
        "a study of taps": {"taps.json": {}},
        "an evaluation": {"metrics.json": {"protocol": "mine", "stand_in": None}},
        "a stand-in": {"STAND_IN.txt": {}},
        "a grid of runs": {"table.json": {}},
        "the rows of a grid": {"a-seed7.json": {}, "0123456789abcdef.people.json": {}},
        "a benchmark of an accelerator": {"results.json": {}},
        "somebody's thesis": {"metrics.json": {"accuracy": 99}, "thesis.tex": {}},
    }[kind]
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_a_folder_is_claimed_by_its_own_command_alone(tmp_path, kind):
    if kind == "set aside from a training run":
        make(tmp_path / "run", RUN)
        (tmp_path / "run" / "previous" / "1" / "dis").mkdir(parents=True)
        folder = tmp_path / "run" / "previous" / "1"
    else:
        folder = make(tmp_path / "x", kind)
    assert outputs.kind_of(folder) == kind
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for other in outputs.KINDS:
        if other == kind:
            outputs.claim_folder(folder, other, "--out")
        else:
            with raises("output-not-ours", f"{folder} is {kind}", "--out"):
                outputs.claim_folder(folder, other, "--out")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_of_empty_folders_is_no_grid(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    assert outputs.kind_of(tmp_path / "x") is None
    make(tmp_path / "x" / "b", RUN)
    assert outputs.kind_of(tmp_path / "x") == "a grid of runs"


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_new_and_empty_folders_are_free_and_others_are_not(tmp_path, kind):
    outputs.claim_folder(tmp_path / "new" / "deep", kind, "--out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").touch()  # of an interrupted command
    outputs.claim_folder(tmp_path / "empty", kind, "--out")
    assert not (tmp_path / "new").exists()
    with raises("output-not-ours", tmp_path / "x", "metrics.json", "--out"):
        outputs.claim_folder(make(tmp_path / "x", "somebody's thesis"), kind, "--out")
    with raises("output-is-a-file", tmp_path / "x" / "thesis.tex", "--out"):
        outputs.claim_folder(tmp_path / "x" / "thesis.tex", kind, "--out")


def test_an_evaluation_of_an_earlier_version_or_interrupted_is_one(tmp_path):
    (tmp_path / "x" / "embeddings" / "0123456789abcdef").mkdir(parents=True)
    assert outputs.kind_of(tmp_path / "x") == "an evaluation"
    (tmp_path / "y" / "embeddings" / "mine").mkdir(parents=True)
    assert outputs.kind_of(tmp_path / "y") is None
    folder = make(tmp_path / "z", RUN)
    (folder / "embeddings" / "0123456789abcdef").mkdir(parents=True)  # an earlier version evaluated into a workdir
    assert outputs.kind_of(folder) == RUN


def test_a_grid_that_was_interrupted_in_its_first_run_is_one(tmp_path):
    make(tmp_path / "x" / "a-seed7", RUN)
    (tmp_path / "x" / "b-seed7").mkdir()
    (tmp_path / "x" / "b-seed7" / ".lock").touch()
    assert outputs.kind_of(tmp_path / "x") == "a grid of runs"
    make(tmp_path / "x" / "rows", "the rows of a grid")
    assert outputs.kind_of(tmp_path / "x") == "a grid of runs"
    (tmp_path / "x" / "roc.png").touch()
    assert outputs.kind_of(tmp_path / "x") is None


def test_a_gallery_and_its_command(tmp_path):
    gallery = Gallery(4, "somebody")
    gallery.add(np.eye(4, dtype=np.float32), list("abcd"))
    gallery.save(tmp_path / "known")
    assert outputs.kind_of(tmp_path / "known") == "a gallery"


class TestTools:
    """Each tool that writes, called with a folder or file that is something else's."""

    @pytest.fixture
    def workdir(self, tmp_path):
        return make(save_student(tmp_path / "run") / "x", RUN).parent

    @pytest.fixture
    def call(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        make(Path("theirs"), RUN)
        Path("precious.json").write_text('{"accuracy": 99}')
        Path("precious.png").write_bytes(b"\x89PNG a photograph")
        make_faces(Path("faces"), 3, 2)
        save_recognizer(Path("r.onnx"))

        def called(tool, *words):
            module = __import__(tool)
            before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
            monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, words)])
            start = ["gallery"] if tool == "benchmark_gallery" else []
            status = module.main([*start, *sys.argv[1:]])
            assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
            error = capsys.readouterr().err
            assert status == 2 and len(error.strip().splitlines()) == 1, error
            return error

        return called

    def test_folders(self, call):
        lfw = ("--data", "faces", "--pairs", "pairs.txt")
        for words in (
            ("evaluate", "--protocol", "lfw", *lfw, "--model", "r.onnx", "--out", "theirs"),
            ("train_sr_teacher", "faces", "theirs"),
            ("study_taps", "--train", "faces", *lfw, "--teacher", "x=diffusers:faces", "--out", "theirs"),
            ("prepare_faces", "faces", "theirs"),
            ("run_grid", "--out", "theirs", "--configs", "configs/x.py", "--", "--config.dev.path=faces"),
            ("benchmark_gallery", "--gallery", "theirs"),
        ):
            error = call(*words)
            assert f"theirs is {RUN}" in error and "[output-not-ours]" in error, words

    def test_stand_ins(self, call):
        make(Path("out/uccs"), "a store of faces")
        words = ("--lfw", "faces", "--distractors", "faces", "--ar", "r.onnx", "--out", "out")
        error = call("make_stand_ins", *words)
        assert "uccs is a store of faces" in error and "[output-not-ours]" in error

    def test_a_gallery_of_real_faces_is_not_benchmarked_away(self, call):
        gallery = Gallery(4, "real")
        gallery.add(np.eye(4, dtype=np.float32), list("abcd"))
        gallery.save("known")
        assert "is of another recognizer" in call("benchmark_gallery", "--gallery", "known")

    def test_files(self, call, tmp_path):
        model = save_student(tmp_path / "student")
        for words in (
            ("recognize", "embed", "faces", "--model", model, "--out", "precious.json"),
            ("recognize", "search", "faces", "--model", model, "--gallery", "g", "--pictures", "precious.png"),
            ("benchmark_gallery", "--out", "precious.json"),
            ("benchmark_train", "train", "--alone", "--out", "precious.json"),
        ):
            error = call(*words)
            assert f"precious.{'png' if 'search' in words else 'json'}" in error and "[output-not-ours]" in error, words
        error = call("recognize", "enroll", "faces", "--model", model, "--gallery", "theirs")
        assert f"theirs is {RUN}" in error and "[output-not-ours]" in error


def test_files_of_the_same_command_may_be_written_again(tmp_path):
    from gdrd_jax.inference import folders
    from gdrd_jax.utils.pictures import png

    picture = outputs.marked(png(np.zeros((9, 7, 3), np.uint8)))
    (tmp_path / "x.png").write_bytes(picture)
    import cv2

    assert cv2.imread(str(tmp_path / "x.png")).shape == (9, 7, 3)
    outputs.claim_file(tmp_path / "x.png", outputs.is_picture, "--pictures")
    folders.save(folders.Embedded([Path("a")], np.zeros((1, 2)), []), tmp_path / "x.npz")
    outputs.claim_file(tmp_path / "x.npz", outputs.is_embeddings, "--out")
    (tmp_path / "x.json").write_text('{"command": []}')
    outputs.claim_file(tmp_path / "x.json", outputs.is_report, "--out")
    outputs.claim_file(tmp_path / "new.json", outputs.is_report, "--out")
