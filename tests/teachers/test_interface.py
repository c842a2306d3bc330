"""Teachers through their interface and registry: fakes, since the question is not the network."""

from conftest import tiny_config, use_tiny_teachers

from gdrd_jax.pipeline import runner


def test_registered_teachers_train_a_student_without_torch(faces_folder, tmp_path):
    config = use_tiny_teachers(tiny_config(faces_folder))
    config.discriminative.settings = {"size": 64}
    runner.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "teacher").exists()
