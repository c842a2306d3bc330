"""WaveResNet (arXiv 2303.08665)."""

from typing import ClassVar

from gdrd_jax.models.haar import haar_convolution
from gdrd_jax.models.residual import Convolution
from gdrd_jax.models.students.gdrd import GDRDStudent
from gdrd_jax.registry import students


@students.register("wave")
class WaveResNet(GDRDStudent):
    """The student `gdrd` with a Haar transform, of which LL is kept, instead of each stride of 2 (arXiv 2303.08665).

    WaveResNet (VCIP 2023) after its abstract; the block is that of WaveCNet (arXiv 2005.03337), on GDRD's channels. A
    transform has no parameters: 11.09 M at 16x16 and 4.21 M in the head, as `gdrd`. Batch normalization follows each
    LL, so its factor, twice the mean, does not matter.
    """

    convolution: ClassVar[Convolution] = staticmethod(haar_convolution)
