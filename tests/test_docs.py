"""The documentation is whole: links lead somewhere, no picture is left over, and what it says of the code is so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULES = sorted((ROOT / "gdrd_jax").rglob("*.py"))
LONGEST = 120


def name_of(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The lines outside fenced code, with their numbers."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchor_of(heading):
    """The anchor that GitHub and mkdocs make of a heading."""
    text = re.sub(r"[`*_]|\[([^]]*)\]\([^)]*\)", lambda found: found[1] or "", heading.strip())
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip())


def anchors(page):
    return {anchor_of(line.lstrip("#")) for _, line in prose(page) if re.match(r"#+ ", line)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page):
    for number, line in prose(page):
        for target in LINK.findall(line):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{name_of(page)}:{number}: no {target}"
            assert not anchor or anchor in anchors(file), f"{name_of(page)}:{number}: no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short_outside_tables_and_code(page):
    long = [number for number, line in prose(page) if len(line) > LONGEST and not line.lstrip().startswith("|")]
    assert not long, f"{name_of(page)}: lines {long} have more than {LONGEST} characters"


def test_every_picture_and_every_page_is_used():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for _, line in prose(page)
        for target in LINK.findall(line)
    }
    left_over = [name_of(picture) for picture in DOCS.rglob("*.png") if picture.resolve() not in linked]
    assert not left_over
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page.parent.name != "results"]
    assert [page for page in pages if f": {page}\n" not in nav] == []


def test_results_have_the_table_of_the_readme():
    readme = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "| ms per face |" in line
    ]
    rows = (ROOT / "README.md").read_text(encoding="utf-8").partition(readme[0])[2].partition("\n\n")[0]
    assert rows.count("\n") >= 6 and readme[0] + rows in (DOCS / "results.md").read_text(encoding="utf-8")


def folders():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return re.search(r"<!-- folders:.*?-->\n```text\n(.*?)\n```", text, re.DOTALL)[1].replace("\n", " ").split(", ")


def imports(path):
    """The folders and modules of `gdrd_jax` that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gdrd_jax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "gdrd_jax"]
        yield from (name.split(".")[1] for name in names)


def test_folders_import_only_those_before_them():
    order = folders()
    assert {path.name for path in (ROOT / "gdrd_jax").iterdir() if (path / "__init__.py").exists()} <= set(order)
    checked = 0
    for path in MODULES:
        own = path.relative_to(ROOT / "gdrd_jax").parts[0].removesuffix(".py")
        for other in imports(path):
            if own in order and other in order and other != own:
                assert order.index(other) < order.index(own), f"{name_of(path)} imports gdrd_jax.{other}"
                checked += 1
    assert checked > 100


def test_only_teachers_import_torch():
    heavy = {"torch", "diffusers", "onnx2torch"}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert path.parts[-2] == "teachers" or not names & heavy, name_of(path)
