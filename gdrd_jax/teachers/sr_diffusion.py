"""The generative teacher T_g: a diffusion network that super-resolves faces.

A denoiser (diffusers' `UNet2DModel`) conditioned on the enlarged low-resolution face,
whose encoder gives the features. It models the residual between face and enlarged face,
as SRDiff does (arXiv 2104.14951), which short training suits.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import resize
from gdrd_jax.registry import generative_teachers
from gdrd_jax.teachers import torch_network
from gdrd_jax.teachers.interface import GenerativeOptions
from gdrd_jax.teachers.torch_network import FeatureExtractor
from gdrd_jax.utils.errors import GdrdError, first_line, require
from gdrd_jax.utils.files import sha256

# The residual has a standard deviation of about 0.1 in units of [-1, 1]; diffusion wants 1.
RESIDUAL_SCALE = 8.0
LAST_TIMESTEP = 999
SAMPLING_STEPS = 25
# What a UNet2DModel may have; the rest of diffusers' options change how its encoder is to be called.
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
PLAIN = {
    "mid_block_type": "UNetMidBlock2D", "time_embedding_type": "positional", "class_embed_type": None,
    "num_class_embeds": None, "center_input_sample": False,
}  # fmt: skip


def check_folder(path: str | os.PathLike, tap: str) -> int:
    """Number of input channels of the network in a folder; imports nothing heavy.

    Raises:
      GdrdError: `DiffusionEncoder` cannot use it, or it has no such tap.
    """
    path = Path(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind, size, inputs = config["_class_name"], config["sample_size"], config["in_channels"]
        check_tap(tap, len(config["down_block_types"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"config.generative.path: {str(path)!r} is not a folder of a diffusers UNet2DModel (it has no "
            "fitting config.json)",
            "diffusers-folder",
        ) from error
    if kind != "UNet2DModel" or not isinstance(size, int) or inputs not in (3, 6):
        raise GdrdError(
            f"{path / 'config.json'} describes a {kind} of sample_size {size} with {inputs} input channels; "
            "it must be a UNet2DModel with one number as sample_size and 3 or 6 input channels",
            "diffusers-kind",
        )
    unsupported = [
        f"{key} {config[key]!r}" for key, plain in PLAIN.items() if config.get(key, plain) != plain
    ] + [kind for kind in config["down_block_types"] if kind not in BLOCKS]  # fmt: skip
    if unsupported:
        raise GdrdError(
            f"{path / 'config.json'} has {', '.join(unsupported)}, which is not supported", "diffusers-unsupported"
        )
    if inputs == 6 and not (path / "scheduler_config.json").is_file():
        raise GdrdError(
            f"{path} has no scheduler_config.json; save the scheduler in the same folder", "diffusers-scheduler-missing"
        )
    return inputs


def check_tap(tap: str, levels: int) -> None:
    """Raises GdrdError unless a network of so many levels has the tap."""
    if tap not in _taps(levels):
        raise GdrdError(f"config.generative.tap is {tap!r}; this network has {', '.join(_taps(levels))}", "teacher-tap")


def _taps(levels: int) -> tuple[str, ...]:
    return (*(f"down{i}" for i in range(levels)), "mid")


@generative_teachers.register("diffusers")
class DiffusionEncoder(FeatureExtractor):
    """The encoder of a folder of diffusers' `UNet2DModel`, which the step `teacher` or `gdrd train-sr-teacher` makes.

    Run by torch, on a GPU if there is one. A network of 3 input channels is unconditional and is fed with the enlarged
    face; one of 6 is conditional, see `SrDiffusion`. Its taps are "down0", "down1", ... and "mid".

    Attributes:
      size: side of the faces it draws, in pixels; to it a face is enlarged if the input size is 0.

    Raises:
      GdrdError: the folder is not such a network, has no such tap, or bfloat16 changes its features.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
          timestep: of the diffusion, 0 (clean) to 999; -1 is 999 of a conditional network, where all it can know of the
            face is the condition, and 0 of another.
        """

        timestep: int = -1

        def __post_init__(self) -> None:
            if not -1 <= self.timestep <= LAST_TIMESTEP:
                raise ValueError(
                    f"timestep is {self.timestep}; it can be 0 (no noise) to {LAST_TIMESTEP}, or -1 for the network's "
                    "own"
                )

    default_tap = "mid"  # measured in docs/studies/taps.md
    takes = frozenset({"input_size", "precision"})
    packages = ("torch", "diffusers", "safetensors")
    trained_without_path = True
    own_timestep = 0  # what -1 means

    @classmethod
    def check(cls, options: GenerativeOptions) -> None:
        check_folder(options.path, options.tap)

    @classmethod
    def load(cls, options: GenerativeOptions) -> "DiffusionEncoder":
        return (SrDiffusion if check_folder(options.path, options.tap) == 6 else DiffusionEncoder)(options)

    def __init__(self, options: GenerativeOptions):
        path, tap = options.path, options.tap
        self._torch, diffusers = require("torch", "teachers"), require("diffusers", "teachers")
        self._device = torch_network.device()
        try:
            unet = diffusers.UNet2DModel.from_pretrained(path, local_files_only=True, low_cpu_mem_usage=False)
        except Exception as error:  # diffusers, safetensors and torch each raise their own
            raise GdrdError(
                f"{path} cannot be loaded as a UNet2DModel: {first_line(error)}; save it again with save_pretrained",
                "diffusers-unloadable",
            ) from error
        self._unet = unet.to(self._device).eval()
        self._path = path
        self.taps = _taps(len(self._unet.down_blocks))
        self.size = self._unet.config.sample_size
        timestep = options.config.timestep
        self._timestep = self.own_timestep if timestep < 0 else timestep
        self._input_size = options.input_size or self.size
        files = sorted(f for f in path.iterdir() if f.name.startswith(("config.", "diffusion_pytorch_model.")))
        self.settings = {
            "kind": "diffusers", "tap": tap, "input_size": self._input_size, "timestep": self._timestep,
            "precision": options.precision, "sha256": {file.name: sha256(file) for file in files},
        }  # fmt: skip
        self._ready(str(path))

    def _encode(self, lr: np.ndarray, precision: str, taps: tuple[str, ...]) -> dict[str, np.ndarray]:
        with torch_network.precision(precision, self._device):
            x = self._input(enlarged(lr, self._input_size).to(self._device))
            time = self._torch.full((len(x),), self._timestep, device=self._device)
            embedded = self._unet.time_embedding(self._unet.time_proj(time).to(x.dtype))
            x, found = self._unet.conv_in(x), {}
            for tap, block in zip(self.taps, (*self._unet.down_blocks, self._unet.mid_block)):
                x = block(x, embedded)
                x = x[0] if isinstance(x, tuple) else x
                if tap in taps:
                    found[tap] = x.float().cpu().numpy()
                if len(found) == len(taps):
                    break
            return found

    def _input(self, faces):
        """What the network is fed with for enlarged faces, float `[N, 3, H, W]` -> `[N, channels, H, W]`."""
        return faces


class SrDiffusion(DiffusionEncoder):
    """A conditional network of `gdrd_jax.teachers.sr_training`, a `SuperResolver`."""

    own_timestep = LAST_TIMESTEP
    method = "sr_diffusion"

    @property
    def low_size(self) -> int:
        """Its condition is the face enlarged to its own size."""
        return self.size

    def _input(self, faces):
        # The noisy residual at its mean, zero: features without randomness.
        return self._torch.cat([self._torch.zeros_like(faces), faces], dim=1)

    def super_resolve(self, lr: np.ndarray, seed: int) -> np.ndarray:
        """Draws a face for each low-resolution one by DDIM: uint8 `[N, h, w, 3]` -> `[N, size, size, 3]`."""
        from diffusers import DDPMScheduler

        return draw(self._unet, DDPMScheduler.from_pretrained(self._path, local_files_only=True), lr, seed)


def draw(unet, scheduler, lr: np.ndarray, seed: int) -> np.ndarray:
    """Faces that a conditional network makes of low-resolution ones, by DDIM.

    Args:
      unet: diffusers' `UNet2DModel` with 6 input channels.
      scheduler: the one it was trained with.
      lr: uint8 RGB `[N, h, w, 3]`.
      seed: of the noise, which depends on a face, too, but not on those around it.

    Returns:
      uint8 RGB `[N, sample_size, sample_size, 3]`.
    """
    from diffusers import DDIMScheduler

    torch = require("torch", "teachers")
    sampler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False)
    sampler.set_timesteps(SAMPLING_STEPS)
    drawn = []
    for start in range(0, len(lr), torch_network.BATCH):
        faces = lr[start : start + torch_network.BATCH]
        condition = enlarged(faces, unet.config.sample_size).to(unet.device)
        x = torch.from_numpy(_noise(faces, tuple(condition.shape[1:]), seed)).to(unet.device)
        with torch.inference_mode():
            for time in sampler.timesteps:
                predicted = unet(torch.cat([x, condition], dim=1), time).sample
                x = sampler.step(predicted, time, x).prev_sample
        drawn.append(to_uint8(condition + x / RESIDUAL_SCALE))
    return np.concatenate(drawn)


def _noise(lr: np.ndarray, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal numbers, float32 `[N, *shape]`."""
    random = (np.random.default_rng([seed, zlib.crc32(face.tobytes())]) for face in lr)
    return np.stack([one.standard_normal(shape, np.float32) for one in random])


def enlarged(lr: np.ndarray, size: int):
    """uint8 RGB `[N, h, w, 3]` -> torch float32 `[N, 3, size, size]` in [-1, 1], by Pillow's bicubic."""
    return to_tensor(np.stack([resize(face, size, "bicubic") for face in lr]))


def to_tensor(images: np.ndarray):
    """uint8 `[N, H, W, 3]` -> torch float32 `[N, 3, H, W]` in [-1, 1]."""
    torch = require("torch", "teachers")
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def to_uint8(images) -> np.ndarray:
    """Inverse of `to_tensor`, clipped."""
    scaled = ((images.float().cpu().numpy() + 1) * 127.5).round().clip(0, 255)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)
