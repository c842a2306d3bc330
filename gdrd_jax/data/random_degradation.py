"""Random degradations of small faces inside a jitted training step, drawn anew for each use of a face.

`data.degradation` does the same on full-size faces, one by one, with OpenCV. Here crop, blur and reduction along an
axis are a product of small matrices, so that a batch costs a tenth of a small student's training step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gdrd_jax.data import jpeg_in_jax
from gdrd_jax.data.degradation import REFERENCE_SIZE
from gdrd_jax.utils.errors import GdrdError

KERNELS = ("area", "antialiased bicubic", "antialiased bilinear", "bicubic")
LEFT_OUT = 0.2  # share of the degraded faces that a given effect is left out of
MOTION_TAPS = 5
FLIP_KEY, SIDE_LIGHT_KEY = 1, 2  # folded into a face's key
MULTIPLE = 8  # resolutions are multiples of a JPEG block's side


@dataclasses.dataclass(frozen=True)
class RandomDegradation:
    """The strongest degradation of a training face; every strength is drawn uniformly between nothing and its value.

    Args and attributes, pixels being those of a 112x112 image as in `data.degradation`:
      resolution: side of the low-resolution face, a multiple of 8.
      clean: share of the faces that are mirrored and reduced, but not degraded.
      shift: largest displacement of the crop along each axis, in pixels, as a detector misplaces it.
      rotate: largest rotation, in degrees.
      scale: largest relative change of size.
      jitter: largest share of the resolution that a face lacks: it is reduced to fewer pixels and enlarged again.
      light: largest relative change of contrast, of brightness as a share of 255, and of the exponent of gamma.
      low_light: largest share of the light that is taken away before noise is added.
      side_light: largest logarithm of the gain at one side of the face, where the other has the inverse; the side is
        drawn, too. 0.6 makes one side up to 3.3 times as bright as the other.
      blur: standard deviation of a Gaussian blur, in pixels.
      motion: length of a straight motion blur of random direction, in pixels.
      noise: standard deviation of noise after the reduction, of 255; from constant to that of photons.
      jpeg: lowest quality of JPEG compression (1 to 100); 0 does not compress.
      kernels: share of the faces, clean or not, that each of `KERNELS` reduces.
      mirror: whether the mirror image shows the same; otherwise no face is mirrored.

    Raises:
      GdrdError: a strength or a resolution out of range.
    """

    resolution: int
    clean: float = 0.2
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    jitter: float = 0.0
    light: float = 0.0
    low_light: float = 0.0
    side_light: float = 0.0
    blur: float = 0.0
    motion: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    kernels: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)
    mirror: bool = True

    def __post_init__(self):
        if self.resolution < MULTIPLE or self.resolution % MULTIPLE:
            raise GdrdError(
                f"the resolution is {self.resolution}; it must be a multiple of {MULTIPLE}", "degradation-resolution"
            )
        ranges = {
            "clean": (0, 1), "shift": (0, REFERENCE_SIZE / 4), "rotate": (0, 45), "scale": (0, 0.5),
            "jitter": (0, 0.75), "light": (0, 0.75), "low_light": (0, 0.95), "side_light": (0, 2),
            "blur": (0, REFERENCE_SIZE / 4), "motion": (0, REFERENCE_SIZE / 4), "noise": (0, 255), "jpeg": (0, 100),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:  # nor NaN
                raise GdrdError(
                    f"degradation.{name} is {getattr(self, name)}; it can be {least} to {most:g}",
                    "degradation-strength",
                )
        shares = self.kernels
        if len(shares) != len(KERNELS) or not min(shares) >= 0 or not abs(sum(shares) - 1) < 1e-6:
            raise GdrdError(
                f"degradation.kernels is {shares}; give the shares of {', '.join(KERNELS)}, which add up to 1",
                "degradation-kernels",
            )

    def __call__(
        self, faces: jax.Array, mirrored: jax.Array | None, key: jax.Array, first: int | jax.Array = 0
    ) -> jax.Array:
        """Degrades a batch; pure, so that one key gives the same faces again.

        Args:
          faces: uint8 `[B, S, S, C]`, C from 1 to 4, reduced by area; S of three times `resolution` keeps nearly all
            that the full size has.
          mirrored: bool `[B]`, which faces are mirrored; None mirrors half of them at random, if `mirror`.
          key: of this use of the batch.
          first: position of the first face in the batch of all devices, so that their number changes nothing.

        Returns:
          uint8 `[B, resolution, resolution, C]`.
        """
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(first + jnp.arange(len(faces)))
        if mirrored is None and not self.mirror:
            mirrored = jnp.zeros(len(faces), bool)
        if mirrored is None:
            mirrored = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, FLIP_KEY)))(keys)
        return jax.vmap(self._one)(faces, mirrored, keys)

    def _one(self, face: jax.Array, mirrored: jax.Array, key: jax.Array) -> jax.Array:
        """`[S, S, C]` -> `[R, R, C]`."""
        keys = jax.random.split(key, 5)
        size, unit = face.shape[0], face.shape[0] / REFERENCE_SIZE
        degraded, kernel = jax.random.uniform(keys[0], (2,))
        # Of [0, 1), and 0 of an effect that is left out; around 0, for those that have a direction.
        strength = jax.random.uniform(keys[1], (6,), minval=-LEFT_OUT / (1 - LEFT_OUT)).clip(0)
        strength = jnp.where(degraded < self.clean, 0, strength)
        around = jnp.where(degraded < self.clean, 0, jax.random.uniform(keys[2], (9,), minval=-1.0))

        if self.rotate:
            face = _rotated(face, jnp.deg2rad(self.rotate) * around[0])
        # Height or width lacks up to a quarter less than the other.
        less = 0.25 * jnp.stack([around[1], -around[1]]).clip(0)
        lacking = self.jitter * strength[0] * (1 - less)
        small = jnp.round(self.resolution * (1 - lacking))
        center = (size - 1) / 2 + unit * self.shift * around[2:4]
        angle = jnp.pi * around[4]
        motion = unit * self.motion * strength[1] * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        along = (jnp.arange(MOTION_TAPS) + 0.5) / MOTION_TAPS - 0.5
        kernel = jnp.sum(kernel >= np.cumsum(self.kernels)[:-1])
        blurred = _gaussian(size, unit * self.blur * strength[2])
        span = size * (1 + self.scale * around[5])
        rows, columns = (
            _reduction(self.resolution, size, small[axis], center[axis] + motion[axis] * along, span, kernel) @ blurred
            for axis in (0, 1)
        )
        columns = jnp.where(mirrored, columns[..., ::-1], columns)
        low = jnp.einsum("tik,klc->tilc", rows, face.astype(jnp.float32))
        low = jnp.einsum("tilc,tjl->ijc", low, columns) / MOTION_TAPS

        if self.side_light:
            side = jax.random.uniform(jax.random.fold_in(key, SIDE_LIGHT_KEY), (2,))
            gain = jnp.where(degraded < self.clean, 0, self.side_light * side[0])
            low = low * jnp.exp(gain * _ramp(self.resolution, 2 * jnp.pi * side[1]))[..., None]
        if self.light or self.low_light:
            contrast, brightness, gamma = 1 + self.light * around[6], 255 * self.light * around[7], around[8]
            low = ((low - 127.5) * contrast + 127.5 + brightness).clip(0, 255)
            # The cube makes dark faces rare.
            dark = 1 - self.low_light * strength[3] ** 3
            low = 255 * dark * (low / 255 + 1e-6) ** (1 + self.light * gamma)
        if self.noise:
            photons, normal = jax.random.uniform(keys[3]), jax.random.normal(keys[4], low.shape)
            spread = jnp.sqrt((1 - photons) + photons * low.clip(0, 255) / 127.5)
            low = (low + self.noise * strength[4] * spread * normal).clip(0, 255)
        if self.jitter:
            up, across = (_enlargement(self.resolution, small[axis]) for axis in (0, 1))
            low = jnp.einsum("ik,klc,jl->ijc", up, low, across).clip(0, 255)
        if self.jpeg:
            quality = jnp.round(100 - (100 - self.jpeg) * strength[5])
            low = jnp.where(strength[5] > 0, _compressed(low, quality), low)
        return jnp.rint(low.clip(0, 255)).astype(jnp.uint8)


def _compressed(face: jax.Array, quality: jax.Array) -> jax.Array:
    """`[R, R, C]` as JPEG gives it back: RGB as colors, every other channel as a gray image of its own."""
    channels = face.shape[-1]
    first = 3 if channels >= 3 else 0
    parts = [face[..., :first]] if first else []
    parts += [jnp.repeat(face[..., c : c + 1], 3, axis=-1) for c in range(first, channels)]
    coded = [jpeg_in_jax.compress(part, quality) for part in parts]
    return jnp.concatenate([*coded[: first // 3], *(part[..., :1] for part in coded[first // 3 :])], axis=-1)


def _rotated(face: jax.Array, angle: jax.Array) -> jax.Array:
    """Turns uint8 `[S, S, C]` around its center, bilinearly; what comes from outside repeats the border."""
    size = face.shape[0]
    grid = jnp.arange(size) - (size - 1) / 2
    # The barriers keep XLA from computing all this anew for every pixel that it gathers.
    cos, sin = jax.lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))
    y = grid[:, None] * cos + grid * sin + (size - 1) / 2
    x = grid * cos - grid[:, None] * sin + (size - 1) / 2
    y, x = y.clip(0, size - 1), x.clip(0, size - 1)
    top, left = (jnp.floor(p).astype(jnp.int32).clip(0, size - 2) for p in (y, x))
    # One gather of four bytes at each corner is several times faster on a CPU than one of each channel.
    count = face.shape[-1]
    packed = jax.lax.bitcast_convert_type(jnp.pad(face, ((0, 0), (0, 0), (0, 4 - count))), jnp.uint32).reshape(-1)
    packed = jax.lax.optimization_barrier(packed)
    total = 0
    for below in (0, 1):
        for right in (0, 1):
            weight = (1 - jnp.abs(y - top - below)) * (1 - jnp.abs(x - left - right))
            corner = packed[(top + below) * size + left + right]
            channels = jnp.stack([(corner >> shift) & 255 for shift in range(0, 8 * count, 8)], axis=-1)
            total = total + weight[..., None] * channels.astype(jnp.float32)
    return jax.lax.optimization_barrier(total)


def _ramp(size: int, angle: jax.Array) -> jax.Array:
    """`[size, size]`, from -1 to 1 along a direction."""
    along = (jnp.arange(size) - (size - 1) / 2) / ((size - 1) / 2)
    ramp = jnp.sin(angle) * along[:, None] + jnp.cos(angle) * along
    return ramp / (jnp.abs(jnp.sin(angle)) + jnp.abs(jnp.cos(angle)))


def _gaussian(size: int, sigma: jax.Array) -> jax.Array:
    """Matrix `[S, S]` that blurs along an axis."""
    distance = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float32)
    weights = jnp.exp(-(distance**2) / (2 * sigma**2 + 1e-6))
    return weights / weights.sum(axis=1, keepdims=True)


def _reduction(resolution: int, size: int, small: jax.Array, center: jax.Array, span: jax.Array, kernel: jax.Array):
    """Matrices that crop and reduce along an axis.

    Args:
      resolution: number of rows; those from `small` on are of no use.
      size: number of source pixels.
      small: number of pixels that the crop is reduced to.
      center, span: of the crop in source pixels; `[T]` centers give `[T, resolution, size]`.
      kernel: number of the kernel in `KERNELS`.
    """
    step = span / small
    at = center[:, None] + (jnp.arange(resolution) + 0.5 - small / 2) * step
    # Kernels that reach beyond the border are cut off there and scaled up; those outside of it repeat the border.
    distance = jnp.abs(np.arange(size, dtype=np.float32) - at.clip(0, size - 1)[..., None])
    wide = jnp.maximum(step, 1)
    weights = jnp.select([kernel == 0, kernel == 1, kernel == 2], [
        ((step + 1) / 2 - distance).clip(0, jnp.minimum(step, 1)),  # what a pixel shares with the area
        _cubic(distance / wide, -0.5), (1 - distance / wide).clip(0),
    ], _cubic(distance, -0.75))  # fmt: skip
    return weights / weights.sum(axis=-1, keepdims=True)


def _cubic(x: jax.Array, a: float) -> jax.Array:
    """Keys's cubic convolution kernel at distances >= 0: a is -0.5 in Pillow, -0.75 in OpenCV."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _enlargement(resolution: int, small: jax.Array) -> jax.Array:
    """Matrix `[resolution, resolution]` that enlarges the first `small` pixels along an axis, bilinearly."""
    at = ((jnp.arange(resolution) + 0.5) * small / resolution - 0.5).clip(0, small - 1)
    return (1 - jnp.abs(at[:, None] - jnp.arange(resolution))).clip(0)
