"""How fast a training step of the student can be at most, layer by layer: arithmetic and memory traffic on paper.

  gdrd benchmark roofline --width 1.0 --batch 96 1024 4096

For each convolution with its batch normalization and ReLU, and for the head: floating point operations of the forward
and the backward pass (three products of the same size), and bytes that must be read and written between kernels, the
step of the optimizer included. A layer takes as long as the slower of the two on a device (published peaks of dense
matrix products in bfloat16 with float32 sums, and of memory). What it leaves out: launching kernels, partial tiles,
drawing degradations, copies between layouts; real rates are lower, and the share that is reached says how much.
"""

import argparse
import dataclasses

from gdrd_jax.cli.common import ArgumentParser
from gdrd_jax.models.students.gdrd import CHANNELS, STRIDES

# FLOP/s and bytes/s by NVIDIA's data sheets: H100 and H200 SXM, and GeForce RTX 3090 (71 with float32 sums).
DEVICES = {"H100": (989e12, 3350e9), "H200": (989e12, 4800e9), "RTX 3090": (71e12, 936e9)}
DIM = 512  # of the embedding


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or a product of matrices.

    Attributes:
      name: of the layer.
      flops: of the forward pass, one image.
      read, written: elements of activations in and out, one image.
      weights: number of parameters.
      normalized: batch normalization and ReLU follow.
    """

    name: str
    flops: int
    read: int
    written: int
    weights: int
    normalized: bool = True

    def seconds(self, batch: int, peak: float, bandwidth: float, size: int) -> tuple[float, float]:
        """Least time of arithmetic, and of memory traffic; `size` is the bytes of an activation."""
        # Forward: the product reads and writes; statistics read; normalization reads and writes. Backward: the
        # statistics' gradients read two, the normalization's read two and write one; both products read two, write one.
        times = (3, 12) if self.normalized else (3, 3)
        activations = times[0] * self.read + times[1] * self.written
        # Gradient written and read, AdamW's two moments and the average read and written, float32.
        weights = 4 * 10 * self.weights
        return 3 * self.flops * batch / peak, (size * activations * batch + weights) / bandwidth


def layers(resolution: int, width: float) -> list[Layer]:
    """The student's, in order."""
    channels = [max(8, round(c * width)) for c in CHANNELS]
    stem, strides = STRIDES[resolution]
    side = resolution // stem

    def convolution(name: str, inputs: int, outputs: int, before: int, stride: int, taps: int = 3) -> Layer:
        after = before // stride
        weights = taps * taps * inputs * outputs
        return Layer(name, 2 * weights * after**2, inputs * before**2, outputs * after**2, weights)

    found, inputs = [convolution("stem", 3, channels[0], resolution, stem)], channels[0]
    for number, (outputs, stride) in enumerate(zip(channels, strides), 1):
        found.append(convolution(f"stage {number}, conv 1", inputs, outputs, side, stride))
        if stride > 1 or inputs != outputs:
            found.append(convolution(f"stage {number}, shortcut", inputs, outputs, side, stride, 1))
        side //= stride
        found += [convolution(f"stage {number}, conv {i}", outputs, outputs, side, 1) for i in (2, 3, 4)]
        inputs = outputs
    features = inputs * side**2
    return [*found, Layer("head", 2 * features * DIM, features, DIM, features * DIM, normalized=False)]


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--resolution", type=int, choices=sorted(STRIDES), default=16)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[96, 1024, 4096])
    return parser.parse_args(argv)


def work(given: argparse.Namespace) -> None:
    """Prints the table."""
    found = layers(given.resolution, given.width)
    total = sum(layer.flops for layer in found)
    weights = sum(layer.weights for layer in found)
    what = f"{given.resolution} pixels, width {given.width:g}"
    print(f"{what}: {total / 1e9:.3f} GFLOP an image forward, {weights / 1e6:.2f} M weights")
    for device, (peak, bandwidth) in DEVICES.items():
        for batch in given.batch:
            parts = [layer.seconds(batch, peak, bandwidth, size=2) for layer in found]
            step = sum(map(max, parts))
            share = 100 * 3 * total * batch / step / peak
            print(f"\n{device}, batch {batch}, bfloat16: at least {1e3 * step:.2f} ms a step, at most", end=" ")
            print(f"{batch / step:,.0f} images/s and {share:.0f} % of the peak")
            for layer, (arithmetic, memory) in zip(found, parts):
                bound = "memory" if memory > arithmetic else "arithmetic"
                print(f"  {layer.name:18} {1e6 * arithmetic:8.1f} us arithmetic {1e6 * memory:8.1f} us memory  {bound}")
