"""`gdrd clean`: output of steps that no workdir uses."""

import json

import pytest
from conftest import raises

from gdrd_jax.cli import clean
from gdrd_jax.config import default
from gdrd_jax.pipeline import cleaning, runner
from gdrd_jax.pipeline.workdir import link, read_users
from gdrd_jax.utils.files import locked

HASH = "0123456789ab"


def make_output(outputs, name, size=1000):
    """As a step leaves it: a record and a file of `size` bytes."""
    folder = outputs / name
    (folder / "train").mkdir(parents=True)
    (folder / "step.json").write_text("{}")
    (folder / "train" / "values").write_bytes(bytes(size))
    return folder


def make_workdir(folder, **settings):
    folder.mkdir(parents=True)
    config = default()
    config.update(settings)
    (folder / "config.json").write_text(config.to_json())
    return folder


@pytest.fixture
def workdir(tmp_path):
    """With used and unused output of views and of stage dis."""
    folder = make_workdir(tmp_path / "run")
    for step in ("views", "dis"):
        link(step, make_output(folder / "steps", f"{step}-{HASH}"), folder)
        make_output(folder / "steps", f"{step}-ffffffffffff", 3 * 2**20)
    return folder


def names(workdir, outputs="steps"):
    return sorted(path.name for path in (workdir / outputs).iterdir() if not path.name.startswith("."))


def call(capsys, *words):
    status = clean.main(list(map(str, words)))
    found = capsys.readouterr()
    return status, found.out, found.err


USED, OLD_VIEWS, OLD_DIS = [f"dis-{HASH}", f"views-{HASH}"], "views-ffffffffffff", "dis-ffffffffffff"


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_unused_output_is_listed_with_its_size_and_nothing_is_removed(workdir, capsys, words):
    before = names(workdir)
    status, out, _ = call(capsys, workdir, *words)
    assert status == 0 and names(workdir) == before
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [
        ["3.0", "MiB", str(workdir / "steps" / name)] for name in (OLD_DIS, OLD_VIEWS)
    ]
    assert f"--trained {OLD_DIS}" in lines[0] and "--trained" not in lines[1]
    assert lines[2].startswith("unused: 1 folders, 3.0 MiB") and not any(name in out for name in USED)


def test_unused_output_is_removed_but_nothing_trained_unless_it_is_named(workdir, capsys):
    status, out, _ = call(capsys, workdir, "--yes")
    assert status == 0 and "removed: 1 folders, 3.0 MiB" in out
    assert names(workdir) == sorted([*USED, OLD_DIS])
    for wrong in (f"dis-{HASH}", "dis-fffffffffffe", OLD_VIEWS):  # used, misspelled, not trained and gone
        status, _, error = call(capsys, workdir, "--yes", "--trained", wrong)
        assert status == 2 and wrong in error and OLD_DIS in error and "[clean-trained-unknown]" in error
    assert call(capsys, workdir, "--yes", "--trained", OLD_DIS)[0] == 0 and names(workdir) == USED
    status, out, _ = call(capsys, workdir, "--yes")
    assert status == 0 and "removed: 0 folders" in out and names(workdir) == USED


def test_output_behind_a_link_is_left_alone(workdir, tmp_path, capsys):
    (workdir / "steps").rename(tmp_path / "disk")
    (workdir / "steps").symlink_to(tmp_path / "disk")
    before = names(workdir)
    status, _, error = call(capsys, workdir, "--yes")
    assert status == 2 and "[clean-steps-link]" in error and "config.outputs" in error and names(workdir) == before


def test_what_may_be_trained_counts_as_trained(workdir):
    for name in (f"dis-{HASH}.unknown1", f"views-{HASH}.unknown1", f"assistant-{HASH}"):
        make_output(workdir / "steps", name)
    with cleaning.find_unused(workdir) as unused:
        assert {output.folder.name: output.trained for output in unused} == {
            OLD_DIS: True, f"dis-{HASH}.unknown1": True, f"assistant-{HASH}": True,  # a stage of other settings
            OLD_VIEWS: False, f"views-{HASH}.unknown1": False,
        }  # fmt: skip


def test_a_workdir_in_use_is_refused(workdir, capsys):
    for place in (workdir, workdir / "steps" / OLD_VIEWS):
        with locked(place):
            status, _, error = call(capsys, workdir, "--yes")
            assert status == 2 and str(place) in error and "[folder-in-use]" in error
    assert OLD_VIEWS in names(workdir)


def test_a_folder_that_is_no_workdir_is_refused(tmp_path, capsys):
    make_output(tmp_path / "steps", OLD_VIEWS)
    status, _, error = call(capsys, tmp_path, "--yes")
    assert status == 2 and str(tmp_path) in error and "[workdir-none]" in error
    assert names(tmp_path) == [OLD_VIEWS]


def test_output_that_another_workdir_uses_stays(workdir, tmp_path, capsys):
    other = make_workdir(tmp_path / "other", outputs=str(workdir / "steps"))
    runner._register(runner.Run.open(other).config, other)
    runner._register(runner.Run.open(other).config, other)
    assert read_users(workdir / "steps") == [other.resolve()]
    link("views", workdir / "steps" / OLD_VIEWS, other)
    make_output(workdir / "steps", "faces-ffffffffffff")
    assert call(capsys, workdir, "--yes")[0] == 0
    assert names(workdir) == sorted([*USED, OLD_DIS, OLD_VIEWS])
    with locked(other):
        status, _, error = call(capsys, workdir, "--yes")
        assert status == 2 and str(other) in error and "[folder-in-use]" in error
    other.rename(tmp_path / "moved")
    status, _, error = call(capsys, workdir, "--yes")
    assert status == 2 and str(other) in error and ".workdirs" in error and "[clean-workdir-missing]" in error
    assert OLD_VIEWS in names(workdir)


def test_a_shared_folder_of_outputs_is_not_touched(workdir, tmp_path, capsys):
    other = make_workdir(tmp_path / "other", outputs=str(workdir / "steps"))
    link("views", workdir / "steps" / f"views-{HASH}", other)
    status, out, _ = call(capsys, other, "--yes")
    assert status == 0 and "removed: 0 folders" in out
    assert len(names(workdir)) == 4


def test_a_folder_that_workdirs_share_loses_what_none_of_them_uses(tmp_path, capsys):
    outputs = tmp_path / "outputs"
    for step, name in (("views", "a"), ("dis", "b")):
        user = make_workdir(tmp_path / name, outputs=str(outputs))
        make_output(outputs, f"{step}-ffffffffffff")
        runner._register(runner.Run.open(user).config, user)
        link(step, make_output(outputs, f"{step}-{HASH}"), user)
    with cleaning.find_unused(outputs) as unused:
        assert {output.folder: output.trained for output in unused} == {
            outputs / OLD_DIS: True, outputs / OLD_VIEWS: False
        }  # fmt: skip
    with locked(tmp_path / "b"):
        assert call(capsys, outputs, "--yes")[0] == 2
    assert call(capsys, outputs, "--yes")[0] == 0
    assert names(tmp_path, "outputs") == sorted([*USED, OLD_DIS])


def test_the_steps_of_a_workdir_that_others_share_can_be_given_themselves(workdir, tmp_path, capsys):
    other = make_workdir(tmp_path / "other")
    (other / "steps").symlink_to(workdir / "steps")  # shares them without `config.outputs`
    runner._register(runner.Run.open(other).config, other)
    link("faces", make_output(other / "steps", f"faces-{HASH}"), other)
    assert call(capsys, workdir / "steps", "--yes")[0] == 0
    assert names(workdir) == sorted([*USED, OLD_DIS, f"faces-{HASH}"])


def test_a_workdir_is_not_entered_into_its_own_list(workdir):
    config = runner.Run.open(workdir).config
    for outputs in ("", str(workdir / "steps")):
        config.outputs = outputs
        runner._register(config, workdir)
    assert not (workdir / "steps" / ".workdirs").exists()


def test_a_link_of_an_earlier_version_is_removed_without_what_it_leads_to(workdir, tmp_path, capsys):
    base = make_output(tmp_path / "base", "gen")
    (workdir / "steps" / f"gen-{HASH}").symlink_to(base)
    assert call(capsys, workdir, "--yes", "--trained", f"gen-{HASH}")[0] == 0
    assert (base / "train" / "values").exists() and f"gen-{HASH}" not in names(workdir)


def test_output_of_which_a_part_was_removed_is_not_complete(workdir, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(cleaning.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), cleaning.find_unused(workdir) as unused:
        cleaning.remove(cleaning.choose(unused, []))
    assert not (workdir / "steps" / OLD_VIEWS / "step.json").exists()


def test_an_unknown_trained_name_has_a_hint(workdir):
    with cleaning.find_unused(workdir) as unused, raises("clean-trained-unknown", "did you mean", OLD_DIS):
        cleaning.choose(unused, ["dis-ffffffffff"])
    assert json.loads((workdir / "config.json").read_text())["name"]
