"""Teachers without a network, for tests whose question is not the network: both need no file and no torch.

config.plugins = ("tiny_teachers",)
config.generative.kind = config.discriminative.kind = "tiny"
"""

from dataclasses import dataclass

import numpy as np

from gdrd_jax.data.degradation import resize_all
from gdrd_jax.registry import discriminative_teachers, generative_teachers
from gdrd_jax.teachers import DiscriminativeTeacher, GenerativeTeacher

SIDES = {"whole": 4, "parts": 8}  # tap -> side of its features


@generative_teachers.register("tiny")
class TinyFeatures(GenerativeTeacher):
    """Colors of 4x4 or 8x8 parts of the image, mixed by a random matrix."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          channels: of the features.
          seed: of the random matrix.
        """

        channels: int = 16
        seed: int = 0

        def __post_init__(self):
            if self.channels < 1:
                raise ValueError(f"channels is {self.channels}; it must be at least 1")

    default_tap = "whole"
    needs_path = False
    taps = tuple(SIDES)

    @classmethod
    def load(cls, options):
        return cls(options)

    def __init__(self, options):
        self.settings = {"kind": "tiny", "tap": options.tap, **self.recorded(options.config)}
        self.matrix = np.random.default_rng(options.config.seed).normal(size=(3, options.config.channels))

    def features_at(self, images, taps):
        found = {}
        for tap in taps:
            colors = resize_all(images, SIDES[tap]) / 127.5 - 1
            found[tap] = np.float32(np.tanh(colors @ self.matrix)).transpose(0, 3, 1, 2)
        return found


@discriminative_teachers.register("tiny")
class TinyRecognizer(DiscriminativeTeacher):
    """Colors of 4x4 parts of the image, their mean taken off."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          size: side of the images that it takes, in pixels.
        """

        size: int = 112

    needs_path = False
    dim = 48

    @classmethod
    def load(cls, options):
        return cls(options)

    def __init__(self, options):
        self.input_size = options.config.size
        self.settings = {"kind": "tiny", **self.recorded(options.config)}

    def embed(self, images):
        assert images.shape[1:] == (self.input_size, self.input_size, 3)
        colors = np.float32(resize_all(images, 4)).reshape(len(images), -1)
        return colors - colors.mean(axis=1, keepdims=True)
