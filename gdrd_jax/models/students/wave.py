"""WaveResNet (arXiv 2303.08665)."""

from typing import ClassVar

from gdrd_jax.models.haar import low_frequencies
from gdrd_jax.models.residual import Downsampling
from gdrd_jax.models.students.gdrd import GDRDStudent
from gdrd_jax.registry import students


@students.register("wave")
class WaveResNet(GDRDStudent):
    """The student `gdrd` with a Haar transform, of which LL is kept, instead of each stride of 2 (arXiv 2303.08665).

    WaveResNet (VCIP 2023) after its abstract; the block is that of WaveCNet (arXiv 2005.03337), convolution - batch
    normalization - ReLU - LL - convolution, on GDRD's channels. A transform has no parameters: 11.09 M in the
    backbone at 16x16 and 4.21 M in the head, as `gdrd`.
    """

    downsampling: ClassVar[Downsampling | None] = staticmethod(low_frequencies)
