"""The discriminative teacher T_d as weights of InsightFace's iresnet (arcface_torch's `backbone.pth` and kin)."""

import math
import os
from pathlib import Path

import numpy as np

from gdrd_jax.registry import discriminative_teachers
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.arcface import BATCH
from gdrd_jax.teachers.checkpoint import SHOWN, check_weights, load, read_state_dict
from gdrd_jax.teachers.interface import DiscriminativeOptions, DiscriminativeTeacher
from gdrd_jax.teachers.preprocessing import current_preprocessing, parse_preprocessing
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.files import sha256

DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (3, 4, 14, 3): 50, (3, 13, 30, 3): 100, (6, 26, 60, 6): 200}
WIDTHS = (64, 128, 256, 512)
FIRST_BLOCK = "layer1.0."  # keys of every iresnet begin with it
REDUCTION = 16  # of a face's side, to the last feature map


@discriminative_teachers.register("iresnet")
class IResNet(DiscriminativeTeacher):
    """Weights of InsightFace's iresnet18 to 200, rebuilt from a state_dict alone and run by torch, on a GPU if any.

    Args:
      path: the weights; depth, embedding dimension and input size are read from them.
      preprocessing: see `teachers.preprocessing.parse_preprocessing`; "auto" is "arcface".
      precision: "float32" or "bfloat16".

    Attributes:
      dim: of the embedding.
      preprocessing: the one in use, "auto" resolved.
      settings: the file's sha256, the preprocessing and the precision.

    Raises:
      GdrdError: no such file, another architecture, naming the first keys that do not fit, or bfloat16 changes
        its embeddings.
    """

    takes = frozenset({"preprocessing", "precision"})
    packages = ("torch",)

    @classmethod
    def check(cls, options: DiscriminativeOptions) -> None:
        super().check(options)
        parse_preprocessing(options.preprocessing)
        check_weights(options.path)

    @classmethod
    def load(cls, options: DiscriminativeOptions) -> "IResNet":
        return cls(options.path, preprocessing=options.preprocessing, precision=options.precision)

    def __init__(self, path: str | os.PathLike, *, preprocessing: str = "auto", precision: str = "float32"):
        path = Path(path)
        self.preprocessing = "arcface" if preprocessing == "auto" else current_preprocessing(preprocessing)
        self._mean, self._std = parse_preprocessing(self.preprocessing)
        self._torch = require("torch", "teachers")
        self._device, self._precision = torch_network.device(), precision
        self._network = build(read_state_dict(path, FIRST_BLOCK), str(path)).to(self._device)
        self.dim, self.input_size = self._network.fc.out_features, REDUCTION * self._network.last
        self.settings = {
            "mean": self._mean.tolist(), "std": self._std.tolist(), "precision": precision, "sha256": sha256(path)
        }  # fmt: skip
        torch_network.check_precision(
            precision, lambda kind: self._run(torch_network.trial(self.input_size), kind), str(path)
        )

    def embed(self, faces: np.ndarray) -> np.ndarray:
        return torch_network.in_batches(lambda some: self._run(some, self._precision), faces, BATCH)

    def differentiable(self):
        network = self._network.requires_grad_(False)
        mean, std = (
            self._torch.as_tensor(value, device=self._device).reshape(-1, 1, 1) for value in (self._mean, self._std)
        )
        return lambda faces: network((faces - mean) / std)

    def _run(self, faces: np.ndarray, precision: str) -> np.ndarray:
        x = ((faces.astype(np.float32) - self._mean) / self._std).transpose(0, 3, 1, 2)
        with torch_network.precision(precision, self._device):
            x = self._torch.from_numpy(np.ascontiguousarray(x)).to(self._device)
            return self._network(x).float().cpu().numpy()


def build(weights: dict, where: str):
    """The network of a state_dict, in evaluation mode: float `[N, 3, S, S]` -> `[N, D]`; S is 16 times its `last`.

    Args:
      weights: key to tensor.
      where: named in errors.

    Raises:
      GdrdError: keys or shapes do not fit.
    """
    depths = tuple(len({key.split(".")[1] for key in weights if key.startswith(f"layer{i}.")}) for i in range(1, 5))
    if depths not in DEPTHS or "fc.weight" not in weights:
        if any(depths):
            reason = f"its four layers have {', '.join(map(str, depths))} blocks"
            reason += "" if "fc.weight" in weights else " and fc.weight is missing"
        else:
            reason = f"it has no layer1 to layer4; its first keys are {', '.join(list(weights)[:SHOWN])}"
        raise GdrdError(
            f"{where} is none of iresnet{', iresnet'.join(map(str, DEPTHS.values()))}: {reason}; give other networks "
            "as ONNX files",
            "iresnet-unknown",
        )
    torch = require("torch", "teachers")
    # Some files lack the number of batches that a BatchNorm has seen; it serves training only.
    counts = {key.replace("running_mean", "num_batches_tracked") for key in weights if key.endswith("running_mean")}
    weights = {**{key: torch.tensor(0) for key in counts}, **weights}
    dim, inputs = len(weights["fc.weight"]), weights["fc.weight"][0].numel()
    last = math.isqrt(inputs // WIDTHS[-1])
    last = last if inputs == WIDTHS[-1] * last**2 else 7  # that of 112x112 faces; `load` names what does not fit
    return load(_network(depths, dim, last), weights, where).eval()


def _network(depths: tuple[int, ...], dim: int, last: int):
    nn = require("torch.nn", "teachers")

    class Block(nn.Module):
        """Two 3x3 convolutions, a BatchNorm before the first, no activation after the sum."""

        def __init__(self, before: int, width: int, stride: int):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, width, 3, 1, 1, bias=False)
            self.bn2, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
            self.conv2, self.bn3 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.downsample = nn.Identity()
            if stride > 1:
                self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x):
            return self.downsample(x) + self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0])
            self.prelu = nn.PReLU(WIDTHS[0])
            before = WIDTHS[0]
            for number, (depth, width) in enumerate(zip(depths, WIDTHS), 1):
                blocks = [Block(before, width, 2), *(Block(width, width, 1) for _ in range(depth - 1))]
                self.add_module(f"layer{number}", nn.Sequential(*blocks))
                before = width
            self.last = last
            self.bn2, self.fc = nn.BatchNorm2d(before), nn.Linear(before * last**2, dim)
            self.features = nn.BatchNorm1d(dim)

        def forward(self, x):
            x = self.prelu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.features(self.fc(self.bn2(x).flatten(1)))

    return Network()
