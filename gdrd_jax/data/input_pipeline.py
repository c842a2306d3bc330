"""What a stage learns from, fed in batches: from the devices' memory where it fits, else from disk by Grain.

Both ways give the same batches for the same seed: a sampler (`data.samplers`) says which rows make up which step.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdrd_jax.data.feature_store import FeatureStore
from gdrd_jax.data.samplers import Rows, Sampler
from gdrd_jax.distributed import sharding
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.tables import size_text

LOG = logging.getLogger(__name__)
# Training needs room too: activations on a GPU; on a CPU everything else.
MEMORY_SHARE = 0.6
READ_AHEAD, READERS = 2, 4  # dispatches that wait to be taken, and threads that read them
Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some rows of feature stores, with their labels.

    Attributes:
      labels: int32 `[N]`; -1 for an unlabeled face.
      stores: by name, `lr` or `small`, and targets, with the same views or with one; also `data.packed.Stored`.
      rows: of the stores, int `[N]`, one for each label.
    """

    labels: np.ndarray
    stores: Mapping[str, FeatureStore]
    rows: np.ndarray

    @property
    def row_bytes(self) -> int:
        """Size of one view of one face."""
        return sum(store.row_bytes for store in self.stores.values())


class Dataset:
    """The faces of one or several subsets, one after the other, whose stores have the same names, views and shapes."""

    def __init__(self, *subsets: Subset):
        self.subsets = subsets
        self.labels = np.concatenate([subset.labels for subset in subsets])
        self._starts = np.cumsum([0, *(len(subset.rows) for subset in subsets)])

    @property
    def views(self) -> int:
        """How many views every face has; a store of one view serves all of them."""
        return max(store.manifest["views"] for store in self.subsets[0].stores.values())

    @property
    def nbytes(self) -> int:
        """Size of everything."""
        views = sum(store.row_bytes * store.manifest["views"] for store in self.subsets[0].stores.values())
        return self.labels.nbytes + views * len(self.labels)

    def load_all(self) -> dict[str, np.ndarray]:
        """`label` `[N]` and for each store `[N, V, ...]`."""
        found = {"label": self.labels}
        for name, store in self.subsets[0].stores.items():
            manifest = store.manifest
            found[name] = np.empty((len(self.labels), manifest["views"], *manifest["shape"]), manifest["dtype"])
            for subset, start in zip(self.subsets, self._starts):
                subset.stores[name].read_all(subset.rows, out=found[name][start : start + len(subset.rows)])
        return found

    def reader(self) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """A function `(rows, views)`, int of any shape, that reads `label` and one view of each, `[*shape, ...]`.

        `view` and `index`, the rows themselves, are among what it gives, too.
        """
        memory = MEMORY_SHARE * _free_memory() / len(self.labels)
        stores = {
            name: [
                subset.stores[name].reader(int(memory * len(subset.rows) * store.row_bytes / subset.row_bytes))
                for subset in self.subsets
            ]
            for name, store in self.subsets[0].stores.items()
        }

        def read(rows: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
            subset_of = np.searchsorted(self._starts, rows, "right") - 1
            found = {"label": self.labels[rows], "view": views, "index": rows}
            for name, read_rows in stores.items():
                manifest = self.subsets[0].stores[name].manifest
                found[name] = np.empty((*rows.shape, *manifest["shape"]), manifest["dtype"])
                for number, subset in enumerate(self.subsets):
                    for view in range(manifest["views"]):
                        here = (subset_of == number) & (views % manifest["views"] == view)
                        if here.any():
                            numbers = rows[here] - self._starts[number]
                            found[name][here] = read_rows[number](view, subset.rows[numbers])
            if "mixup_partner" in found:
                found["mixup_small"] = stores["small"][0](0, found["mixup_partner"])
            return found

        return read


def choose_residency(dataset: Dataset, residency: str, mesh: Mesh, name: str) -> str:
    """ "device" or "host": the requested one, or for "auto" "device" if everything fits; logs which and why.

    Raises:
      GdrdError: "device" was asked for and it does not fit.
    """
    # On a CPU the devices share the memory with what is read from disk before it is given to them.
    copies = 1 + len(mesh.local_devices) if jax.default_backend() == "cpu" else 1
    need, free = dataset.nbytes * copies, _free_bytes(mesh.local_devices[0])
    fits = need <= MEMORY_SHARE * free and dataset.nbytes <= MEMORY_SHARE * _free_memory()
    where = "memory" if jax.default_backend() == "cpu" else "each device"
    size = f"{size_text(need)} of data, {size_text(free)} free in {where}"
    if residency == "device" and not fits:
        raise GdrdError(
            f"{name}: {size}, so not all of it fits; set --config.data.residency=host, or auto", "data-residency"
        )
    chosen = "host" if residency == "host" or not fits else "device"
    if sharding.max_over_processes(chosen == "host"):  # all processes alike
        chosen = "host"
    kept = "kept there" if chosen == "device" else "read from disk by Grain as they are needed"
    LOG.info("%s: %s: %s (data.residency=%s)", name, size, kept, residency)
    return chosen


def load_on_device(dataset: Dataset, mesh: Mesh) -> Arrays:
    """Everything, on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Unlike `device_put`, which would compare what the processes have by sending it around.
    return {name: jax.make_array_from_process_local_data(everywhere, a) for name, a in dataset.load_all().items()}


def batches(
    dataset: Dataset, dispatches: list[range], mesh: Mesh, sampler: Sampler, *, on_device: bool, seed: int, batch: int
) -> Iterator[tuple[range, np.ndarray, Arrays]]:
    """What the steps of each dispatch need.

    Args:
      dataset: see `Dataset`.
      dispatches: ranges of steps.
      mesh: the second axis of everything is shared among its devices.
      sampler: of the rows of `dataset`.
      on_device: give numbers, of what `load_on_device` put on the devices; the contents otherwise.
      seed, batch: see `Sampler`.

    Yields:
      The steps; the rows of their faces, int `[K, B]`; and what the sampler gives, `[K, B]`, or instead of its rows and
      views what `contents` makes of them.
    """
    by_face = NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))
    share = batch // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    read_rows = None if on_device else dataset.reader()

    def read(number: int) -> tuple[np.ndarray, Rows]:
        sampled = sampler(seed, dispatches[number], batch)
        mine = {name: values[:, own] for name, values in sampled.items()}
        return sampled["rows"], contents(mine, read_rows) if read_rows else mine

    numbers = range(len(dispatches))
    for steps, (rows, mine) in zip(dispatches, map(read, numbers) if on_device else _ahead(read, numbers)):
        yield steps, rows, {name: jax.make_array_from_process_local_data(by_face, a) for name, a in mine.items()}


def contents(sampled: Mapping[str, Any], read: Callable[[Any, Any], dict]) -> dict:
    """The contents of the rows and views that a sampler gives, in their place.

    Args:
      sampled: see `Sampler.__call__`.
      read: `(rows, views) -> name to values`.

    Returns:
      What `read` gives for `rows` and `views`; the same of `second_rows` and `second_views`, if there are any, under
      names that begin with `second_`; and whatever else is in `sampled`.
    """
    found = {name: values for name, values in sampled.items() if not name.endswith(("rows", "views"))}
    found |= read(sampled["rows"], sampled["views"])
    if "second_rows" in sampled:
        second = read(sampled["second_rows"], sampled["second_views"])
        found |= {f"second_{name}": values for name, values in second.items()}
    return found


def _ahead(function: Callable[[int], object], numbers: range) -> Iterator:
    try:
        import grain  # takes a second
    except ModuleNotFoundError as error:
        raise GdrdError(
            "the package 'grain', which reads training data from disk, is not installed: python -m pip install grain; "
            "or keep the data in memory with --config.data.residency=device",
            "package-missing",
        ) from error

    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READ_AHEAD)
    return iter(grain.MapDataset.range(len(numbers)).map(function).to_iter_dataset(options))


def _free_bytes(device: jax.Device) -> int:
    if device.platform == "cpu":
        return _free_memory()
    statistics = device.memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"]


def _free_memory() -> int:
    return min([psutil.virtual_memory().available, *memory_limits()])


def memory_limits(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """In bytes, what the control groups (v2) of this process leave it: containers and SLURM have them."""
    if not groups.exists():
        return []
    own = next(
        (line[3:].strip("/") for line in groups.read_text(encoding="utf-8").splitlines() if line.startswith("0::")), ""
    )
    left = []
    for folder in (root / own, *(root / own).parents):
        limit, usage = folder / "memory.max", folder / "memory.stat"
        if (
            folder.is_relative_to(root)
            and limit.exists()
            and (most := limit.read_text(encoding="utf-8").strip()) != "max"
        ):
            # What files are cached in is given up when it is needed.
            used = next(
                int(line[5:]) for line in usage.read_text(encoding="utf-8").splitlines() if line.startswith("anon ")
            )
            left.append(int(most) - used)
    return left
