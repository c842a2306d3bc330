"""Every error has a code that programs can match, wherever it is raised."""

import ast
import functools
import pickle
import re
from pathlib import Path

import pytest
from conftest import raises

from gdrd_jax.data.prepare import NoFace, UnusableImage
from gdrd_jax.utils.errors import GdrdError, first_line, missing, require

PACKAGE = Path(__file__).parents[2] / "gdrd_jax"
CODE = re.compile("[a-z0-9]+(-[a-z0-9]+)+")


@functools.cache
def sources():
    """Path relative to the package, and syntax tree, of every module."""
    return [
        (path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def kinds_of_error():
    """Names of `GdrdError` and of all classes that derive from it."""
    found, before = {"GdrdError"}, set()
    while found != before:
        before = set(found)
        for _, tree in sources():
            classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
            found |= {node.name for node in classes if any(ast.unparse(base) in found for base in node.bases)}
    return found


def name_of(function):
    return getattr(function, "id", getattr(function, "attr", None))


def calls_without_code(tree, kinds):
    """`line: call` of each error that is made without a code of its own or that of another error."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or name_of(node.func) not in kinds:
            continue
        given = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
        literal = [code.value for code in given if isinstance(code, ast.Constant)]
        passed_on = [code for code in given if isinstance(code, ast.Attribute) and code.attr == "code"]
        if not passed_on and not (literal and CODE.fullmatch(literal[0])):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_every_error_has_a_code():
    kinds = kinds_of_error()
    assert {"GdrdError", "UnusableImage", "NoFace"} <= kinds
    found = [f"{name}:{call}" for name, tree in sources() for call in calls_without_code(tree, kinds)]
    assert len(sources()) > 100 and found == []


@pytest.mark.parametrize(
    ("call", "fine"),
    [
        ('GdrdError("x", "rec-empty")', True),
        ('GdrdError("x", code="rec-empty")', True),
        ("NoFace(str(error), error.code)", True),
        ('errors.GdrdError("x")', False),
        ('GdrdError("x", "empty")', False),
        ('GdrdError("x", "Rec-empty")', False),
        ('GdrdError("x", "rec_empty")', False),
        ('GdrdError("x", code)', False),
        ('GdrdError("x", f"rec-{what}")', False),
        ('ValueError("x")', True),
    ],
)
def test_a_call_without_a_code_is_found(call, fine):
    assert (list(calls_without_code(ast.parse(call), {"GdrdError", "NoFace"})) == []) == fine


@pytest.mark.parametrize("kind", [GdrdError, UnusableImage, NoFace])
def test_an_error_is_its_message_and_keeps_its_code_between_processes(kind):
    error = kind("a.jpg is empty; replace it", "image-unreadable")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert type(each) is kind and isinstance(each, GdrdError)
        assert str(each) == "a.jpg is empty; replace it" and each.code == "image-unreadable"


def test_a_missing_package_is_named_with_its_extra():
    assert str(missing("torch", "teachers")).endswith('python -m pip install "gdrd_jax[teachers]"')
    with raises("package-missing", "'no_such_package'", 'pip install "gdrd_jax[export]"'):
        require("no_such_package.of_ours", "export")
    assert require("json.decoder", "export").JSONDecoder


def test_the_first_line_of_another_error_is_part_of_a_sentence():
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"
