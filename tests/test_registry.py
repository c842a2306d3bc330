"""Entries by name: found, refused with the nearest name, and added by modules outside the package."""

import sys
from dataclasses import dataclass

import pytest
from conftest import raises

from gdrd_jax import registry
from gdrd_jax.losses.interface import Loss
from gdrd_jax.registry import Registry


@pytest.fixture
def animals():
    found = Registry("animal", "gdrd_jax.registry", "builtins.object")  # a builtin module that registers none

    @found.register("lion")
    class Lion:
        @dataclass(frozen=True)
        class Config:
            age: float = 3.0
            name: str = "Leo"
            parents: tuple = ()

            def __post_init__(self):
                if self.age < 0:
                    raise ValueError(f"age is {self.age}; it must be at least 0")

    return found


def test_an_entry_has_its_settings(animals):
    assert animals.names() == ("lion",) and animals["lion"].Config().age == 3.0
    assert animals.settings("lion", {"age": 5}).age == 5 and animals.settings("lion", {}).name == "Leo"
    from_json = animals.settings("lion", {"parents": [["Nala", 4], []]})
    assert from_json.parents == (("Nala", 4), ()) and hash(from_json)


def test_unknown_names_and_wrong_settings_are_refused(animals):
    with raises("entry-unknown", "'loin'", "'lion'"):
        animals["loin"]
    with raises("entry-setting", "'lion'", "'agee'", "'age'"):
        animals.settings("lion", {"agee": 1.0})
    with raises("entry-setting", "'name'", 3, "str"):
        animals.settings("lion", {"name": 3})
    with raises("entry-setting", "'age'", "float"):
        animals.settings("lion", {"age": True})
    with raises("entry-setting", "'lion'", "age is -1"):
        animals.settings("lion", {"age": -1.0})


def test_two_entries_cannot_share_a_name(animals):
    class Lion:
        pass

    with pytest.raises(ValueError, match="'lion' of .* is registered already"):
        animals.register("lion")(Lion)
    animals.register("lion")(animals["lion"])  # a module that is loaded again


def test_a_plugin_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("import no_such_package\n", encoding="utf-8")
    with raises("plugin-import", "'broken_plugin'", "no_such_package"):
        registry.load_plugins(("broken_plugin",))
    with raises("plugin-import", "'not_there'"):
        registry.load_plugins(("not_there",))


def test_an_installed_package_registers_by_an_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "more_losses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more_losses\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[gdrd_jax.plugins]\nmore = more_losses\n", encoding="utf-8")
    (tmp_path / "more_losses.py").write_text(
        "from gdrd_jax.losses import Loss\nfrom gdrd_jax.registry import losses\n\n\n"
        "@losses.register('more')\nclass More(Loss):\n    '''More.'''\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert "more" in registry.losses.names()
    finally:
        registry.losses._entries.pop("more", None)
        sys.modules.pop("more_losses", None)


def test_a_class_that_is_not_registered_has_no_name(animals):
    class Wolf:
        pass

    with raises("entry-unregistered", "Wolf"):
        animals.name_of(Wolf)


def test_an_entry_of_another_kind_is_refused():
    with pytest.raises(
        TypeError, match=r"the loss 'lion' has to be a class derived from gdrd_jax\.losses\.interface\.Loss"
    ):

        @registry.losses.register("lion")
        class Lion:
            pass

    assert "lion" not in registry.losses.names()


def test_settings_that_can_be_changed_are_refused():
    with pytest.raises(TypeError, match=r"Config of the loss 'lion' has to be a @dataclass\(frozen=True\)"):

        @registry.losses.register("lion")
        class Lion(Loss):
            @dataclass
            class Config:
                weight: float = 1.0

    assert "lion" not in registry.losses.names()
