"""An ONNX graph under construction."""

import numpy as np


class Graph:
    """Nodes in the order in which they run, and their weights.

    Args:
      onnx: the module, which is an optional package.
    """

    def __init__(self, onnx):
        self.onnx = onnx
        self.nodes, self.weights = [], []

    def add(self, kind: str, *inputs: str | np.ndarray, output: str | None = None, **attributes) -> str:
        """A node on what others computed and on constant arrays; returns the name of what it computes."""
        # In small letters: by a name that begins with "Sub" or "Mul" InsightFace knows that a graph normalizes inside.
        name = output or f"{kind.lower()}{len(self.nodes)}"
        names = [
            given if isinstance(given, str) else self._weight(f"{name}.{i}", given) for i, given in enumerate(inputs)
        ]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def keep(self, results: set[str], first: int) -> None:
        """Drops nodes from number `first` on, and weights, that do not serve any of these results."""
        needed, kept = set(results), []
        for node in reversed(self.nodes[first:]):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        self.nodes[first:] = reversed(kept)
        used = {name for node in self.nodes for name in node.input}
        self.weights = [weight for weight in self.weights if weight.name in used]

    def _weight(self, name: str, value: np.ndarray) -> str:
        self.weights.append(self.onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name
