"""How fast a large gallery is built, opened and searched, and how often its best match is the right one.

The embeddings are made up, and spread as EdgeFace-XS's of real faces do: along principal axes of falling variance, 59 %
of it along the first 64 axes and 84 % along the first 128. Five faces each are a person's direction and noise, about
0.6 alike by cosine. Probes are other faces of people of the gallery, and come one at a time. Exact search compares
them with all embeddings in float32. What is opened was just written, so it is in the system's file cache if there is
room; importing faiss is not counted. The first search of a new gallery builds its index, the first one after opening
reads it.

Examples:
  gdrd benchmark gallery --faces 1000000 --dim 512 --out runs/gallery.json
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.galleries.address import Address, PostgresAddress, parse_address
from gdrd_jax.galleries.gallery import Gallery, is_gallery
from gdrd_jax.utils import outputs
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import user_path, write_text

FACES_A_PERSON, NOISE = 5, 0.8
MADE_UP = "made up"  # fingerprint of the galleries made here
DECAY = 72  # axes until the variance has fallen to 1/e
BLOCK = 20_000  # people at once
OPENED = 5  # times


def directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Random `[count, D]` of about unit length, with the spectrum of the module's docstring."""
    variance = np.exp(-np.arange(dim) / DECAY)
    return rng.standard_normal((count, dim), np.float32) * np.float32(np.sqrt(variance / variance.sum()))


def rotation(dim: int) -> np.ndarray:
    """Orthogonal `[D, D]`: so the principal axes are not the embeddings' own."""
    return np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim), np.float32))[0]


def people(block: int, count: int, dim: int) -> np.ndarray:
    """The directions of a block's people, the same at every call."""
    return directions(np.random.default_rng((2, block)), count, dim)


def faces(rng: np.random.Generator, owners: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """One face of each owner `[N, D]`, unit length."""
    found = (owners + NOISE * directions(rng, len(owners), len(turn))) @ turn
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def built(count: int, dim: int) -> Gallery:
    """A gallery of `count` faces, in memory."""
    gallery, turn = Gallery(dim, MADE_UP), rotation(dim)
    for block, first in enumerate(range(0, count, FACES_A_PERSON * BLOCK)):
        rng = np.random.default_rng((3, block))
        owners = people(block, BLOCK, dim)
        for number in range(FACES_A_PERSON):
            start = first + number * BLOCK
            size = min(BLOCK, count - start)
            if size > 0:
                ids = [f"person {block * BLOCK + i}" for i in range(size)]
                paths = [{"path": f"faces/{start + i}.jpg"} for i in range(size)]
                gallery.add(faces(rng, owners[:size], turn), ids, paths)
    return gallery


def probes(count: int, total: int, dim: int) -> np.ndarray:
    """Other faces `[count, D]` of as many people of a gallery of `total` faces, evenly from all of it."""
    full, rest = divmod(total, FACES_A_PERSON * BLOCK)
    known = full * BLOCK + min(rest, BLOCK)
    chosen = np.linspace(0, known - 1, count).astype(int)
    owners = np.concatenate([
        people(block, BLOCK, dim)[chosen[chosen // BLOCK == block] % BLOCK] for block in np.unique(chosen // BLOCK)
    ])  # fmt: skip
    return faces(np.random.default_rng(4), owners, rotation(dim))


def exact_best(gallery: Gallery, wanted: np.ndarray) -> np.ndarray:
    """The largest cosine of each probe in the whole gallery, float32 `[P]`."""
    best = np.full(len(wanted), -np.inf, np.float32)
    for _, block in gallery.blocks():
        np.maximum(best, (wanted @ block.T).max(axis=1), out=best)
    return best


def timed(work) -> tuple[float, object]:
    """Seconds, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def sizes(place: Address) -> dict[str, int]:
    """Bytes of each file of a gallery, or of its table and index in PostgreSQL."""
    if not isinstance(place, PostgresAddress):
        return {file.name: file.stat().st_size for file in sorted(place.glob("gallery.*"))}
    from gdrd_jax.galleries.postgresql_connection import connect

    with connect(place) as connection:
        query = "SELECT pg_table_size('face'), coalesce(pg_relation_size(to_regclass('face_embedding')), 0)"
        table, index = connection.execute(query).fetchone()
    return {"table": table, "HNSW index": index}


def measured(args: argparse.Namespace, place: Address) -> dict:
    """One figure a key; times in seconds unless the key says otherwise, sizes in bytes."""
    building, gallery = timed(lambda: built(args.faces, args.dim))
    saving, _ = timed(lambda: gallery.save(place))
    wanted = probes(args.probes, args.faces, args.dim)
    best = exact_best(gallery, wanted)
    indexing, _ = timed(lambda: gallery.search(wanted[:1], 1))
    del gallery  # its memory is the file cache's now
    opening = [timed(lambda: Gallery.load(place, MADE_UP))[0] for _ in range(OPENED)]
    gallery = Gallery.load(place, MADE_UP)
    first, _ = timed(lambda: gallery.search(wanted[:1], 1))
    for probe in wanted:  # brings what is mapped into memory
        gallery.search(probe[None], 1)
    cpu = time.process_time()
    runs = [timed(lambda: gallery.search(probe[None], 1)) for probe in wanted]
    cpu = time.process_time() - cpu
    milliseconds = 1000 * np.array([seconds for seconds, _ in runs])
    found = np.array([result[0][0].similarity for _, result in runs])
    return {
        "faces": args.faces, "dim": args.dim, "probes": args.probes, "building_s": building, "saving_s": saving,
        "indexing_s": indexing, "opening_s": float(np.median(opening)), "first_search_ms": 1000 * first,
        "search_ms_5": float(np.percentile(milliseconds, 5)), "search_ms": float(np.median(milliseconds)),
        "search_ms_95": float(np.percentile(milliseconds, 95)),
        "search_cpu_ms": 1000 * cpu / len(wanted),
        "recall_at_1": float(np.mean(found >= best - 1e-5)),  # equal but for rounding
        "sizes": sizes(place),
    }  # fmt: skip


def table(found: dict) -> str:
    """Markdown."""
    lines = [f"| {found['faces']:,} faces x {found['dim']} | |", "|---|---|"]
    steps = {
        "building in memory": "building_s", "saving": "saving_s", "building the index": "indexing_s",
        "opening, median": "opening_s",
    }  # fmt: skip
    lines += [f"| {name} | {found[key]:.3g} s |" for name, key in steps.items()]
    lines += [
        f"| first search after opening | {found['first_search_ms']:.1f} ms |",
        f"| search of one probe: median (5 %, 95 %) | {found['search_ms']:.1f} ms "
        f"({found['search_ms_5']:.1f}, {found['search_ms_95']:.1f}) |",
        f"| CPU time of one search, mean | {found['search_cpu_ms']:.1f} ms |",
        f"| recall@1 against exact search, {found['probes']} probes | {found['recall_at_1']:.4f} |",
    ]
    return "\n".join(lines + [f"| {name} | {size / 1e6:,.1f} MB |" for name, size in found["sizes"].items()])


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--faces", type=int, default=1_000_000, help="number of faces (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="dimension of an embedding (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=500, help="number of searches (default: %(default)s)")
    parser.add_argument("--gallery", type=parse_address, help="make the gallery here: a folder or a postgresql:// URL")
    parser.add_argument("--out", type=user_path, help="write the figures to this JSON file, too")
    return parser.parse_args(argv)


def work(args: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    if min(args.faces, args.dim, args.probes) < 1:
        raise GdrdError("--faces, --dim or --probes is below 1; give whole numbers from 1 on", "benchmark-numbers")
    require("faiss")
    if args.gallery:
        if isinstance(args.gallery, Path):
            outputs.claim_folder(args.gallery, "a gallery", "--gallery")
        if is_gallery(args.gallery):
            Gallery.load(args.gallery, MADE_UP)  # refuses one of real faces, which would be replaced
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        outputs.claim_file(args.out, outputs.is_report, "--out")
    command = [str(parse_address(word)) if word.startswith("postgres") else word for word in sys.argv]
    print(f"{platform.processor() or platform.machine()}; {' '.join(command)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = measured(args, args.gallery or Path(temporary))
    print(table(found))
    if args.out:
        write_text(args.out, json.dumps({"command": command, **found}, indent=1))
