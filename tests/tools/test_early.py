"""What the end of a job needs is checked at its beginning, in every tool."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_faces, raises, save_recognizer, save_student

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import make_stand_ins  # noqa: E402

from gdrd_jax.cli import recognize, run_grid, study_taps, train_sr_teacher  # noqa: E402
from gdrd_jax.evaluation.run import evaluate_and_report  # noqa: E402
from gdrd_jax.evaluation.settings import Settings  # noqa: E402
from gdrd_jax.export import exporter  # noqa: E402
from gdrd_jax.inference import preprocess  # noqa: E402
from gdrd_jax.utils import errors  # noqa: E402
from gdrd_jax.utils.errors import GdrdError  # noqa: E402


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_faces(Path("faces"), 4, 3)
    return tmp_path


@pytest.fixture
def missing(monkeypatch):
    """Makes packages missing, by their importable names."""
    real = errors.importlib.import_module

    def hide(*names):
        def import_module(name, *rest, **more):
            if name in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *rest, **more)

        monkeypatch.setattr(errors.importlib, "import_module", import_module)

    return hide


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test as soon as a picture is read or embedded."""

    def worked(*_, **__):
        raise AssertionError("work was begun")

    def forbid(*places):
        for owner, name in places:
            monkeypatch.setattr(owner, name, worked)

    return forbid


@pytest.mark.parametrize("add", [False, True])
def test_a_gallery_needs_faiss_before_any_picture_is_embedded(here, capsys, missing, no_work, add):
    model = save_student(here / "run")
    words = ["enroll", "faces", "--gallery", "known", "--model", str(model)]
    if add:
        assert recognize.main(words) == 0
        words.append("--add")
    missing("faiss")
    no_work((preprocess, "map_images"))
    assert recognize.main(words) == 2
    error = capsys.readouterr().err
    assert "[package-missing]" in error and "'faiss'" in error and "pip install faiss-cpu" in error
    assert (here / "known").exists() == add
    assert recognize.main(["search", "faces", "--gallery", "known", "--model", str(model)]) == 2
    assert ("[package-missing]" if add else "[gallery-missing]") in capsys.readouterr().err


def test_photographs_need_a_detector_before_any_is_read(here, capsys, no_work):
    model = save_student(here / "run")
    no_work((preprocess, "map_images"))
    words = ["embed", "faces", "--out", "x.npz", "--align", "--detector", "none.onnx", "--model", str(model)]
    assert recognize.main(words) == 2 and "none.onnx" in capsys.readouterr().err


def test_an_evaluation_loads_its_models_before_it_reads_all_faces(here, no_work):
    import gdrd_jax.evaluation.run as module

    Path("x.onnx").write_bytes(b"no network")
    no_work((module, "open_protocol"))
    how = Settings("lfw", Path("faces"), ("x.onnx",), ("16",), protocol_settings={"pairs": "pairs.txt"})
    with pytest.raises(GdrdError, match="x.onnx"):
        evaluate_and_report(how, Path("out"))
    assert not Path("out").exists()


def test_an_export_in_8_bits_needs_its_package_first(here, missing):
    missing("onnxruntime.quantization")
    how = exporter.Settings(save_student(here / "run"), "student", ("int8",), Path("faces"), None, None)
    with raises("package-missing", "'onnxruntime.quantization'"):
        exporter.export(how, here / "out")


def test_an_sr_teacher_needs_its_packages_before_the_faces_are_read(here, capsys, missing, no_work):
    import gdrd_jax.data.prepare as prepare

    no_work((prepare, "checked"))
    for package in ("torch", "diffusers", "safetensors"):
        missing(package)
        assert train_sr_teacher.main(["faces", "sr"]) == 2
        error = capsys.readouterr().err
        assert f"{package!r}" in error and error.endswith(" [package-missing]\n")
    assert not Path("sr").exists()


def test_taps_of_all_teachers_are_checked_before_one_is_measured(here, capsys, no_work, monkeypatch):
    import gdrd_jax.evaluation.lfw as lfw

    class Teacher:
        taps = ("mid",)

        def timesteps(self, wanted):
            return wanted

        def load(self, timestep, tap, input_size):
            if timestep > 999:
                raise GdrdError(f"timestep {timestep}", "teacher-timestep")
            return self

    monkeypatch.setattr(study_taps, "_parse", lambda text: (text, Teacher()))
    no_work((lfw.LFW, "open"))
    words = ["--train", "faces", "--data", "faces", "--pairs", "x", "--teacher", "a", "--out", "out"]
    assert study_taps.main([*words, "--tap", "down9"]) == 2
    error = capsys.readouterr().err
    assert "--tap down9" in error and "mid" in error
    assert study_taps.main([*words, "--timestep", "0", "1000"]) == 2
    assert "timestep 1000" in capsys.readouterr().err
    assert study_taps.main([*words, "--recognizer", "none.onnx"]) == 2
    assert "none.onnx" in capsys.readouterr().err and not Path("out").exists()


def test_stand_ins_are_not_begun_without_all_that_they_are_made_of(here, capsys):
    Path("ar.mat").write_bytes(b"no matrices")
    words = ["--lfw", "faces", "--distractors", "faces", "--ar", "ar.mat", "--out", "out"]
    assert make_stand_ins.main(words) == 2
    assert "ar.mat" in capsys.readouterr().err and not Path("out").exists()


def test_a_page_needs_gradio_and_its_port_first(missing, capsys):
    import socket

    from gdrd_jax.cli import demo

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert demo.main(["--model", "none", "--port", str(port)]) == 2
        error = capsys.readouterr().err
        assert f"port {port} " in error and "--port" in error and error.endswith(" [port-in-use]\n")
    missing("gradio")
    assert demo.main(["--model", "none"]) == 2
    error = capsys.readouterr().err
    assert "'gradio'" in error and error.endswith(" [package-missing]\n")


def test_a_grid_checks_all_combinations_before_the_first_is_trained(here, capfd):
    def grid(*words):
        return run_grid.main(["--out=out", *words]), capfd.readouterr().err

    lines = ["2\t1"] + [f"p{a}\t1\t2\np{a}\t1\tp{a + 1}\t2" for a in (0, 2)]
    Path("pairs.txt").write_text("\n".join(lines))
    make_faces(Path("lfw"), 4, 2)
    for path in list(Path("lfw").glob("*/*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{int(path.stem) + 1:04d}.png"))
    network = save_recognizer(here / "r.onnx")
    words = [
        f"--configs={ROOT / 'configs/ablation.py'}:plain", "--seeds", "1", "--", "--config.data.path=faces",
        "--config.data.test_people=1", "--config.data.calibration_people=0", "--config.until=dis",
        f"--config.discriminative.path={network}", "--config.dev.path=lfw",
    ]  # fmt: skip
    status, error = grid(*words, "--config.dev.pairs=pairs.txt", "--config.student.width={0.0625,wide}")
    assert status == 2 and error.endswith(" [combination-invalid]\n"), error
    assert "combination wide " in error.splitlines()[-1] and "student.width" in error, error
    assert "Traceback" not in error and not Path("out").exists()
    Path("other.txt").write_text("\n".join([lines[0], *lines[:0:-1]]))
    faces = {"first": np.array(list("abcd")), "second": np.array(list("bcda")), "fold": np.array([0, 0, 1, 1])}
    Path("beside").mkdir()
    np.savez("beside/scores.npz", **{"x/scores": np.ones(4)}, same=np.array([True, False] * 2), **faces)
    status, error = grid("--baseline=beside", *words, "--config.dev.pairs=pairs.txt")
    assert status == 2 and error.endswith(" [baseline-pairs]\n"), error
    assert "--baseline" in error and "--config.dev.pairs" in error
    assert not Path("out").exists()


def test_a_grid_opens_its_dev_pairs_first(here):
    Path("pairs.txt").write_text("2\t1\n")
    with pytest.raises(run_grid.GdrdError, match="pairs.txt promises 2 folds"):
        run_grid.open_dev(["--config.dev.path=faces", "--config.dev.pairs=pairs.txt"], {})
