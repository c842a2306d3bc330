"""Samplers by name, see `gdrd_jax.registry.samplers`: which images make up which batch.

A sampler is a pure function of seed and step, so that a resumed training sees the same batches, on any number of
devices. A new sampler is one file: a subclass of `Sampler` with `@samplers.register("name")`, see docs/extending.md.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gdrd_jax.data.loader import batch_rows
from gdrd_jax.registry import samplers
from gdrd_jax.utils.errors import GdrdError

# First numbers of the seeds of different draws; `batch_rows` uses 0 and 1.
IDENTITIES, IMAGES, VIEWS, PARTNERS = 2, 3, 4, 5
Rows = dict[str, np.ndarray]


class Sampler:
    """Rows of the batches of a training set.

    Attributes:
      Config: frozen dataclass of the sampler's settings; its docstring documents them, its `__post_init__` raises
        `ValueError` for values out of range.
      gives: what a batch of it has beside the usual, for losses that need it: "second", a second image of each row;
        "balanced", bool `[B]`, the rows that were sampled by identity.

    Args:
      config: a `Config`.
      labels: int32 `[N]`, the identity of each row of the training set, -1 without one.
      views: number of stored views of an image.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    gives: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any, labels: np.ndarray, views: int) -> None:
        self.config, self.labels, self.views = config, labels, views

    @functools.cached_property
    def _by_identity(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return by_identity(self.labels)

    @classmethod
    def check(cls, config: Any, batch: int, images: np.ndarray) -> None:
        """Refuses, before any work, batches that cannot be made.

        Args:
          config: a `Config`.
          batch: images a batch.
          images: int `[K]`, the number of images of each identity.

        Raises:
          GdrdError: there are no such batches.
        """

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        """The batches of some steps.

        Args:
          seed: of the order.
          steps: step numbers.
          batch: images a batch, on all devices together.

        Returns:
          `rows` and `views` int32 `[len(steps), batch]`. With "second" in `gives` also `second_rows`, `second_views`,
          and `has_second`, bool, false where there is no second image and the first stands in its place; with
          "balanced" also `balanced`, bool.
        """
        raise NotImplementedError


@samplers.register("uniform")
class Uniform(Sampler):
    """Each epoch visits every image once, in a random view."""

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        rows, views = batch_rows(seed, steps, batch, len(self.labels), self.views)
        return {"rows": rows, "views": views}


@samplers.register("views")
class TwoViews(Sampler):
    """As `uniform`, with another view of the same image beside each."""

    gives = frozenset({"second"})

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        rows, views = batch_rows(seed, steps, batch, len(self.labels), self.views)
        other = np.zeros_like(views)
        if self.views > 1:
            drawn = [np.random.default_rng([seed, VIEWS, step]).integers(1, self.views, size=batch) for step in steps]
            other = np.array(drawn, np.int32)
        return {
            "rows": rows, "views": views, "second_rows": rows, "second_views": (views + other) % self.views,
            "has_second": np.ones(rows.shape, bool),
        }  # fmt: skip


@samplers.register("pairs")
class Pairs(Sampler):
    """As `uniform`, with another image of the same identity beside each."""

    gives = frozenset({"second"})

    @classmethod
    def check(cls, config: Any, batch: int, images: np.ndarray) -> None:
        if not (images > 1).any():
            raise GdrdError(
                "the sampler 'pairs' needs identities with at least 2 images, and the training set has none",
                "sampler-identities",
            )

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        rows, views = batch_rows(seed, steps, batch, len(self.labels), self.views)
        order, first, images = self._by_identity
        labels = self.labels[rows]
        own, count = self._place[rows], np.where(labels >= 0, images[labels], 1)
        shift = [np.random.default_rng([seed, PARTNERS, step]).random((2, batch)) for step in steps]
        other, view = np.moveaxis(np.array(shift), 1, 0)
        # One of the `count - 1` others, counted from the image itself.
        found = (own + 1 + (other * np.maximum(count - 1, 1)).astype(np.int64)) % count
        partner = np.where(labels >= 0, order[(first[labels] + found) % max(len(order), 1)], rows)
        return {
            "rows": rows, "views": views, "second_rows": partner.astype(np.int32),
            "second_views": (view * self.views).astype(np.int32), "has_second": (count > 1),
        }  # fmt: skip

    @functools.cached_property
    def _place(self) -> np.ndarray:
        """The number of each row among the images of its identity."""
        order, first, _ = self._by_identity
        place = np.zeros(len(self.labels), np.int64)
        place[order] = np.arange(len(order)) - first[self.labels[order]]
        return place


@samplers.register("balanced")
class Balanced(Sampler):
    """Batches of P identities with `images` images each; unlabeled images are left out.

    Each epoch visits every identity once, in random order, but for those that fill no batch; identities with fewer
    images repeat them.
    """

    gives = frozenset({"balanced"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          images: images of each identity in a batch, at least 2.
        """

        images: int = 4

        def __post_init__(self) -> None:
            if self.images < 2:
                raise ValueError("images must be at least 2")

    @classmethod
    def check(cls, config: Any, batch: int, images: np.ndarray) -> None:
        _check_balanced("balanced", batch, config.images, images)

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        rows = balanced_rows(seed, steps, batch // self.config.images, self.config.images, self._by_identity)
        return {"rows": rows, "views": _views(seed, steps, rows, self.views), "balanced": np.ones(rows.shape, bool)}


@samplers.register("half_balanced")
class HalfBalanced(Sampler):
    """A uniform part of each batch, then a part of P identities with `images` images each.

    A batch's `balanced` tells the parts apart, for losses that read it; all others learn from both.
    """

    gives = frozenset({"balanced"})

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          uniform: share of the batch that is sampled uniformly, above 0 and below 1.
          images: images of each identity in the other part, at least 2.
        """

        uniform: float = 0.5
        images: int = 4

        def __post_init__(self) -> None:
            if not 0 < self.uniform < 1:
                raise ValueError("uniform must be above 0 and below 1")
            if self.images < 2:
                raise ValueError("images must be at least 2")

    @classmethod
    def check(cls, config: Any, batch: int, images: np.ndarray) -> None:
        first = round(config.uniform * batch)
        if not 0 < first < batch:
            raise GdrdError(
                f"the sampler 'half_balanced' with uniform={config.uniform:g} leaves one part of a batch of {batch} "
                "empty; change uniform, or the stage's batch",
                "sampler-batch",
            )
        _check_balanced("half_balanced", batch - first, config.images, images)

    def __call__(self, seed: int, steps: range, batch: int) -> Rows:
        first, images = round(self.config.uniform * batch), self.config.images
        uniform, _ = batch_rows(seed, steps, first, len(self.labels), self.views)
        balanced = balanced_rows(seed, steps, (batch - first) // images, images, self._by_identity)
        rows = np.concatenate([uniform, balanced], axis=1)
        flags = np.broadcast_to(np.arange(batch) >= first, rows.shape)
        return {"rows": rows, "views": _views(seed, steps, rows, self.views), "balanced": flags}


def by_identity(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labeled rows in the order of their identities.

    Args:
      labels: int `[N]`, -1 without identity.

    Returns:
      `order` int `[n]`, the rows; `first` and `images` int `[K]`: identity `i` has `order[first[i]:][:images[i]]`.
    """
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    images = np.bincount(labels[order], minlength=1)
    return order, np.cumsum(images) - images, images


def balanced_rows(
    seed: int, steps: range, identities: int, images: int, grouped: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Rows of so many identities, and so many images of each: int32 `[len(steps), identities * images]`.

    Args:
      seed, steps: see `Sampler`.
      identities, images: numbers in a batch, P and M.
      grouped: see `by_identity`.
    """
    order, first, counts = grouped
    known = np.flatnonzero(counts)
    each = len(known) // identities  # batches of an epoch
    rows = np.empty((len(steps), identities, images), np.int32)
    for number, step in enumerate(steps):
        epoch, batch = divmod(step, each)
        for place, identity in enumerate(_permutation(seed, epoch, len(known))[batch * identities :][:identities]):
            person = known[identity]
            own = order[first[person] :][: counts[person]]
            rows[number, place] = own[_images(seed, epoch, int(person), len(own), images)]
    return rows.reshape(len(steps), -1)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, IDENTITIES, epoch]).permutation(count)


def _images(seed: int, epoch: int, person: int, there: int, wanted: int) -> np.ndarray:
    """Which of an identity's images an epoch visits: `wanted` different ones where there are as many."""
    parts = max(there // wanted, 1)  # epochs in which no image comes twice
    order = np.random.default_rng([seed, IMAGES, epoch // parts, person]).permutation(there)
    return np.resize(order[epoch % parts * wanted :][:wanted], wanted)


def _views(seed: int, steps: range, rows: np.ndarray, views: int) -> np.ndarray:
    drawn = [np.random.default_rng([seed, VIEWS, step]).integers(views, size=rows.shape[1]) for step in steps]
    return np.array(drawn, np.int32)


def _check_balanced(name: str, rows: int, images: int, counts: np.ndarray) -> None:
    if rows % images or rows < 2 * images:
        raise GdrdError(
            f"the sampler {name!r} makes {rows} images of a batch from identities with {images} images each; change "
            f"the stage's batch so that this is a multiple of {images}, and at least {2 * images}",
            "sampler-batch",
        )
    known = np.count_nonzero(counts)
    if known < rows // images:
        raise GdrdError(
            f"the sampler {name!r} needs {rows // images} identities a batch, and the training set has {known}; lower "
            "the stage's batch, or raise the sampler's images",
            "sampler-identities",
        )
