"""Galleries in PostgreSQL: addresses, errors, the HNSW index, rights, and what a removal leaves."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_faces, raises, save_student
from known_faces import DIM, FACES, check_equal, check_exact, embeddings, made, names, numbered, shown, unit

from gdrd_jax.benchmarks import gallery as benchmark
from gdrd_jax.cli import recognize
from gdrd_jax.galleries import faiss_index
from gdrd_jax.galleries.address import PostgresAddress, parse_address
from gdrd_jax.galleries.gallery import Gallery

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def saved(schema):
    numbered(embeddings()).save(schema)
    return schema


@pytest.fixture
def sql(postgresql, schema):
    """Runs a command of an administrator in the gallery's schema."""
    name = parse_address(schema).schema
    with psycopg.connect(postgresql, autocommit=True, options=f"-c search_path={name},public") as connection:
        yield lambda command, *values: connection.execute(command, values or None)


@pytest.fixture
def indexed(schema, monkeypatch):
    """A gallery of 600 faces, with an index."""
    monkeypatch.setattr(faiss_index, "EXACT", 500)
    numbered(embeddings(600)).save(schema)
    gallery = Gallery.load(schema)
    gallery.search(embeddings(1))
    return gallery


# Addresses


@pytest.mark.parametrize(
    ("text", "text_shown", "schema"),
    [
        ("postgresql://ann:secret@db/faces", "postgresql://ann@db/faces", "gdrd"),
        ("postgres://db:5433/faces?schema=known", "postgres://db:5433/faces?schema=known", "known"),
        ("postgresql:///faces?host=/run/pg&password=secret", "postgresql:///faces?host=/run/pg", "gdrd"),
        ("postgresql://ann:s%40cret@[::1]/a?sslmode=require", "postgresql://ann@[::1]/a?sslmode=require", "gdrd"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_its_password(text, text_shown, schema):
    address = parse_address(text)
    assert (str(address), address.schema) == (text_shown, schema)
    assert "ecret" not in repr(address) + str(address) and parse_address(address) is address
    assert text.partition("?")[0] in address.url and "schema" not in address.url


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:faces", "postgresql:/ann:secret@db/faces", "postgresql://ann:se@cret@db/faces",
        "postgresql://ann:se#cret@db/faces", "postgresql://ann@db:secret/faces", "postgresql://db/faces?secret",
        "postgresql://db/faces?schema=A-B", "postgresql://db/faces?schema=",
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused_and_not_repeated(text):
    with raises("gallery-url", "%40") as caught:
        parse_address(text)
    assert "cret" not in str(caught.value)


def test_an_unknown_parameter_is_refused(postgresql):
    with raises("gallery-url", "postgresql://") as caught:
        Gallery.load(f"{postgresql}&password=secret&colour=blue")
    assert "secret" not in str(caught.value)


def test_without_psycopg_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for module in ("postgresql_place", "postgresql", "postgresql_schema", "postgresql_connection"):
        monkeypatch.delitem(sys.modules, f"gdrd_jax.galleries.{module}", raising=False)
        monkeypatch.delattr(sys.modules["gdrd_jax.galleries"], module, raising=False)
    with raises("package-missing", "psycopg", "gdrd_jax[postgres]"):
        Gallery.load("postgresql://db/faces")


# What is refused


@pytest.mark.parametrize("url", ["postgresql://ann:secret@127.0.0.1:1/faces", "postgresql:///faces?host=/nowhere"])
def test_a_server_that_cannot_be_reached_is_named(url):
    with raises("gallery-unreachable", shown(url)) as caught:
        Gallery.load(url)
    assert "secret" not in str(caught.value)


def test_a_missing_database_or_extension_is_named(postgresql, sql):
    with raises("gallery-unreachable", "nothing_here"):
        Gallery.load(postgresql.replace("/postgres?", "/nothing_here?"))
    sql("CREATE DATABASE plain")
    plain = postgresql.replace("/postgres?", "/plain?")
    for use in (lambda: Gallery.load(plain), lambda: made().save(plain)):
        with raises("gallery-extension", shown(plain), "CREATE EXTENSION vector", "0.8"):
            use()


def test_tables_of_others_and_later_formats_are_refused(schema, sql):
    sql(f"CREATE SCHEMA {parse_address(schema).schema}")
    sql("CREATE TABLE face (id integer)")
    with raises("gallery-missing", shown(schema)):
        Gallery.load(schema)
    with raises("gallery-format", shown(schema)):
        made().save(schema)
    sql("DROP TABLE face")
    made().save(schema)
    sql("UPDATE gallery SET format = 2")
    with raises("gallery-format", shown(schema), 2, 1):
        Gallery.load(schema)
    sql("DELETE FROM gallery")
    with raises("gallery-damaged", shown(schema)):
        Gallery.load(schema)


def test_other_contents_are_noticed(saved, sql):
    gallery = Gallery.load(saved)
    sql("UPDATE face SET metadata = '7' WHERE id = 1")
    with raises("gallery-damaged", shown(saved), "metadata"):
        gallery.search(embeddings(1))
    sql("UPDATE face SET embedding = (SELECT array_agg(0) FROM generate_series(1, 16))::vector WHERE id = 2")
    with raises("gallery-damaged", shown(saved), "unit length"):
        list(gallery.blocks())
    with raises("gallery-shape", "[N, 16]"):
        gallery.add(embeddings(1, 8), ["ann"])


def test_one_waits_no_longer_than_the_timeout(saved, postgresql, sql):
    gallery = Gallery.load(saved)
    gallery.add(embeddings(1), ["new"])
    gallery._faces._idle[-1].execute("SET lock_timeout = '50ms'")
    with psycopg.connect(postgresql) as other:
        other.execute(f"LOCK TABLE {parse_address(saved).schema}.gallery IN SHARE ROW EXCLUSIVE MODE")
        assert len(gallery.search(embeddings(1))[0]) == 5  # it can be read meanwhile
        with raises("gallery-busy", shown(saved)):
            gallery.add(embeddings(1), ["new"])
    gallery.add(embeddings(1), ["new"])
    assert len(gallery) == FACES + 2


# Users and servers


def test_a_user_with_the_right_to_read_searches_and_changes_nothing(indexed, schema, postgresql, sql, caplog):
    name = parse_address(schema).schema
    sql(f"CREATE ROLE {name} LOGIN")
    sql(f"GRANT USAGE ON SCHEMA {name} TO {name}")
    sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {name}")
    sql("DROP INDEX face_embedding")
    reader = Gallery.load(schema.replace("postgres:@", f"{name}@"))
    check_exact(reader, embeddings(600), 3)
    assert "compares all faces" in caplog.text
    for change in (lambda: reader.add(embeddings(1), ["new"]), lambda: reader.remove("p1")):
        with raises("gallery-not-written", name):
            change()
    sql(f"GRANT INSERT, DELETE ON face TO {name}")
    sql(f"GRANT UPDATE ON gallery TO {name}")
    reader.add(embeddings(1, seed=3), ["new"])
    with raises("gallery-not-purged", "face"):
        reader.remove("p1")
    assert len(reader) == 598 and not indexed._faces.is_purged()
    Gallery.load(schema)  # the owner finishes it
    assert indexed._faces.is_purged()


def test_a_password_is_checked_and_not_printed(saved, postgresql, sql):
    sql("CREATE ROLE ann LOGIN SUPERUSER PASSWORD 'right one'")
    rules = sql("SHOW hba_file").fetchone()[0]
    with open(rules) as file:
        before = file.read()
    with open(rules, "w") as file:
        file.write("local all ann scram-sha-256\n" + before)
    sql("SELECT pg_reload_conf()")
    assert len(Gallery.load(saved.replace("postgres:@", "ann:right%20one@"))) == FACES
    with raises("gallery-unreachable", "ann") as caught:
        Gallery.load(saved.replace("postgres:@", "ann:wrong%20one@"))
    assert "wrong" not in str(caught.value)


def test_connections_that_the_server_closed_are_opened_again(saved, sql):
    gallery = Gallery.load(saved)
    check_exact(gallery, embeddings(), 3)
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gdrd'")
    check_exact(gallery, embeddings(), 3)
    gallery.add(embeddings(1), ["new"])
    assert len(gallery) == FACES + 1


def test_two_that_update_a_person_at_once_leave_the_faces_of_one(saved):
    barrier = threading.Barrier(4)

    def update(number):
        gallery = Gallery.load(saved)
        barrier.wait()
        for _ in range(5):
            gallery.update(embeddings(3, seed=number), ["p3"] * 3, [{"by": number}] * 3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(update, range(4)))
    gallery = Gallery.load(saved)
    assert len(gallery) == FACES and gallery.counts()["p3"] == 3
    owners = [m.metadata.get("by") for m in gallery.search(embeddings(1), FACES)[0] if m.id == "p3"]
    assert len(set(owners)) == 1


def test_two_that_make_a_gallery_at_once_make_one(schema):
    def save(name):
        try:
            made(ids=[name] * FACES).save(schema, new=True)
        except Exception as error:
            return error.code
        return name

    with ThreadPoolExecutor(4) as pool:
        found = sorted(pool.map(save, "abcd"))
    assert found[1:] == ["gallery-exists"] * 3 and Gallery.load(schema).people() == found[:1]


def test_a_gallery_moves_between_a_folder_and_a_database(saved, schema, tmp_path):
    there = Gallery.load(saved)
    there.save(tmp_path / "g")
    here = Gallery.load(tmp_path / "g")
    assert here.people() == there.people() and len(there) == FACES
    check_equal(here.search(embeddings(), 3), numbered(embeddings()).search(embeddings(), 3))
    here.add(embeddings(1, seed=5), ["\udcff\\u0041\0"], [{"path": "a\\b"}])
    here.save(f"{schema}_b")
    moved = Gallery.load(f"{schema}_b").search(embeddings(1, seed=5), 1)[0][0]
    assert (moved.id, moved.metadata) == ("\udcff\\u0041\0", {"path": "a\\b"}) and len(Gallery.load(saved)) == FACES


# The index


def test_a_large_gallery_is_searched_by_an_index(indexed, schema, sql):
    values = embeddings(600)
    probes = unit(values[::7] + 0.1 * embeddings(86, seed=4))
    check_exact(indexed, values, 3, probes)
    assert sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'face_embedding'::regclass").fetchone()[0]
    assert sql("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'face_embedding'").fetchone() is not None
    made(embeddings(300, seed=8)).save(schema + "_small")
    Gallery.load(schema + "_small").search(values[:1])
    small = parse_address(schema + "_small").schema
    assert sql("SELECT to_regclass(%s)", f"{small}.face_embedding").fetchone()[0] is None


def test_faces_that_are_added_and_removed_are_in_the_index_at_once(indexed, schema):
    values, fresh = embeddings(600), embeddings(9, seed=3)
    indexed.add(fresh, ["new"] * 9, [{"row": row} for row in range(600, 609)])
    assert [line[0].id for line in Gallery.load(schema).search(fresh, 1)] == ["new"] * 9
    indexed.remove(*(f"p{i}" for i in range(190)))
    everything = np.concatenate([values, fresh])
    found = indexed.search(values[:5], 39)
    rows = {row for line in found for row in [match.metadata["row"] for match in line]}
    assert rows == set(range(570, 609)) and [len(line) for line in found] == [39] * 5
    similarities = [match.similarity for match in found[0]]
    np.testing.assert_allclose(similarities, np.sort(everything[570:] @ values[0])[::-1], atol=1e-6)


def test_the_index_is_built_once_and_again_if_a_build_was_killed(schema, monkeypatch, sql):
    monkeypatch.setattr(faiss_index, "EXACT", 500)
    numbered(embeddings(600)).save(schema)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Gallery.load(schema).search(embeddings(1), 1)[0][0].id, range(4)))
    assert found == ["p0"] * 4
    sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'face_embedding'::regclass")
    check_exact(Gallery.load(schema), embeddings(600), 3)
    assert sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'face_embedding'::regclass").fetchone()[0]


def files_of(sql, table, folder):
    """The bytes of a table or an index, on disk."""
    sql("CHECKPOINT")
    path = folder / sql("SELECT pg_relation_filepath(%s::regclass)", table).fetchone()[0]
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_what_a_removal_leaves_in_the_files(indexed, sql):
    from pathlib import Path

    folder, value = Path(sql("SHOW data_directory").fetchone()[0]), embeddings(600)[90]
    half, single = np.float16(value).tobytes(), value.astype("<f4").tobytes()
    assert half in files_of(sql, "face_embedding", folder) and single in files_of(sql, "face", folder)
    assert indexed.remove("p30") == 3
    assert half not in files_of(sql, "face_embedding", folder)
    assert sql("SELECT count(*) FROM face WHERE person = 'p30'").fetchone()[0] == 0
    sql("VACUUM FULL face")  # what the documentation recommends
    assert single not in files_of(sql, "face", folder) and b"p30" not in files_of(sql, "face", folder)
    assert embeddings(600)[93].astype("<f4").tobytes() in files_of(sql, "face", folder)
    assert names(600)[93] in indexed.people() and DIM == indexed.dim


def test_an_address_is_a_place(schema, saved):
    assert isinstance(parse_address(schema), PostgresAddress) and len(Gallery.load(parse_address(schema))) == FACES


# The commands


def test_the_commands_take_a_url(postgresql, schema, tmp_path, capsys):
    people, secret = make_faces(tmp_path / "people", 2, 2), schema.replace("postgres:@", "postgres:secret@")
    model = ["--model", str(save_student(tmp_path / "run"))]

    def call(*words):
        status = recognize.main([str(word) for word in words])
        printed = capsys.readouterr()
        assert "secret" not in printed.out + printed.err
        return status, printed.out, printed.err

    assert call("enroll", people, "--gallery", secret, *model)[:2] == (
        0, f"{shown(schema)}: 4 faces of 2 people, 4 of them new\n",
    )  # fmt: skip
    assert "[gallery-exists]" in call("enroll", people, "--gallery", secret, *model)[2]
    assert call("enroll", people, "--gallery", secret, "--update", *model)[0] == 0
    status, out, _ = call("search", people / "p1" / "0.png", "--gallery", secret, "-k", 1, "--json", *model)
    assert status == 0 and json.loads(out)["probes"][0]["matches"][0]["id"] == "p1"
    assert json.loads(call("gallery", secret, "--json")[1])["people"] == {"p0": 2, "p1": 2}
    assert json.loads(call("remove", "p1", "--gallery", secret, "--json")[1])["gallery"] == shown(schema)
    assert "[gallery-person-unknown]" in call("remove", "p1", "--gallery", secret)[2]
    assert "[gallery-url]" in call("gallery", "postgresql://ann:secret@db:x/faces")[2]
    assert "[gallery-unreachable]" in call("gallery", "postgresql://ann:secret@127.0.0.1:1/faces")[2]


def test_the_benchmark_takes_a_url(schema, monkeypatch, capsys):
    monkeypatch.setattr(faiss_index, "EXACT", 500)
    monkeypatch.setattr(sys, "argv", ["gdrd benchmark gallery", "--gallery", schema.replace("postgres:@", "a:secret@")])
    benchmark.work(benchmark.arguments(["--faces", "600", "--dim", "64", "--probes", "20", "--gallery", schema]))
    printed = capsys.readouterr().out
    assert "secret" not in printed and "| recall@1 against exact search, 20 probes | 1.0000 |" in printed
    assert "| HNSW index | 0." in printed
