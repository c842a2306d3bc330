"""Normalization of the pixels that a network is fed with."""

import logging

import numpy as np

from gdrd_jax.utils.errors import GdrdError

LOG = logging.getLogger(__name__)
# Mean and standard deviation of x, RGB in 0..255; the network is fed with (x - mean) / std.
PREPROCESSING = {
    "unit": "0/255",
    "arcface": "127.5/127.5",
    "imagenet": "123.675,116.28,103.53/58.395,57.12,57.375",
    "in_graph": "0/1",  # the graph normalizes
}
IN_GRAPH_BEFORE = "inside"  # versions up to 0.4; accepted until 0.6
CHOICES = f"{', '.join(PREPROCESSING)}, or MEAN/STD"


def parse_preprocessing(text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation, float32 `[1]` or `[3]`; None for "auto".

    Args:
      text: "auto", a name in `PREPROCESSING`, or "MEAN/STD", each one number or three, R,G,B. "inside", the earlier
        name of "in_graph", is accepted, too.

    Raises:
      GdrdError: none of these.
    """
    if text == "auto":
        return None
    name = "in_graph" if text == IN_GRAPH_BEFORE else text
    try:
        mean, std = (np.array(part.split(","), np.float32) for part in PREPROCESSING.get(name, name).split("/"))
        if mean.size in (1, 3) and std.size in (1, 3) and np.isfinite(mean).all() and (std > 0).all():
            return mean, std
    except ValueError:
        pass
    raise GdrdError(
        f"unknown preprocessing {text!r}; choose auto, {CHOICES} such as 127.5/128 or "
        "123.7,116.3,103.5/58.4,57.1,57.4 (R,G,B)",
        "preprocessing-unknown",
    )


def current_preprocessing(text: str) -> str:
    """The name of today for a preprocessing; logs a warning for an earlier one."""
    if text != IN_GRAPH_BEFORE:
        return text
    LOG.warning("the preprocessing 'inside' is now called 'in_graph'; the earlier name will be refused from 0.6 on")
    return "in_graph"
