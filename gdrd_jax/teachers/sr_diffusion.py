"""The generative teacher T_g: a diffusion network that super-resolves faces.

A denoiser (diffusers' `UNet2DModel`) conditioned on the enlarged low-resolution face,
whose encoder gives the features. It models the residual between face and enlarged face,
as SRDiff does (arXiv 2104.14951), which short training suits.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from gdrd_jax.data.degrade import resize
from gdrd_jax.errors import GdrdError, first_line, require

# The residual has a standard deviation of about 0.1 in units of [-1, 1]; diffusion wants 1.
RESIDUAL_SCALE = 8.0
SAMPLING_STEPS = 25
BATCH = 32


def check_folder(path: Path, tap: str) -> None:
    """Raises GdrdError unless a folder looks like a network that `SrDiffusion` can use; imports nothing heavy."""
    try:
        config = json.loads((path / "config.json").read_text())
        kind, size, inputs = config["_class_name"], config["sample_size"], config["in_channels"]
        check_tap(tap, len(config["down_block_types"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdrdError(
            f"config.generative.path: {str(path)!r} is not a folder of a diffusers UNet2DModel (no fitting config.json)"
        ) from error
    if kind != "UNet2DModel" or not isinstance(size, int) or inputs not in (3, 6):
        raise GdrdError(
            f"{path / 'config.json'} describes a {kind} of sample_size {size} with {inputs} input channels; "
            "it must be a UNet2DModel with one number as sample_size and 3 or 6 input channels"
        )
    if inputs == 6 and not (path / "scheduler_config.json").is_file():
        raise GdrdError(f"{path} has no scheduler_config.json; save the scheduler into the same folder")


def check_tap(tap: str, levels: int) -> None:
    """Raises GdrdError unless a network of so many levels has the tap."""
    taps = [f"down{i}" for i in range(levels)] + ["mid"]
    if tap not in taps:
        raise GdrdError(f"config.generative.tap is {tap!r}; this network has {', '.join(taps)}")


class SrDiffusion:
    """T_g from a folder of `UNet2DModel.save_pretrained`.

    Args:
      path: the folder. 6 input channels mean a conditional network of
        `gdrd_jax.teachers.sr_training`, 3 an unconditional one, fed with the enlarged face.
      tap: "mid" or "down0", "down1", ...: the block whose output is taken.
      timestep: at which the encoder is asked, 0 (clean) to 999.

    Attributes:
      size: side of the faces it draws, in pixels.
      conditional: has 6 input channels, and so `super_resolve`.
      fingerprint: of the weights, tap and timestep.

    Raises:
      GdrdError: the folder is not such a network, or has no such tap.
    """

    def __init__(self, path: Path, *, tap: str, timestep: int):
        check_folder(path, tap)
        self._torch, diffusers = require("torch", "teachers"), require("diffusers", "teachers")
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        try:
            unet = diffusers.UNet2DModel.from_pretrained(path, local_files_only=True, low_cpu_mem_usage=False)
        except Exception as error:  # diffusers, safetensors and torch each raise their own
            raise GdrdError(f"{path} cannot be loaded as a UNet2DModel: {first_line(error)}") from error
        self._unet = unet.to(self._device).eval()
        self._scheduler_class, self._path = diffusers.DDIMScheduler, path
        self.size = self._unet.config.sample_size
        self.conditional = self._unet.config.in_channels == 6
        self._tap, self._timestep = tap, timestep
        digest = hashlib.sha256(f"{tap}:{timestep}".encode())
        for file in sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors", ".bin")):
            digest.update(file.read_bytes())
        self.fingerprint = digest.hexdigest()

    def features(self, lr: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, h, w, 3]` -> float32 `[N, C, h', w']`, the tap's output."""
        with self._torch.inference_mode():
            return np.concatenate([self._encode(lr[i : i + BATCH]) for i in range(0, len(lr), BATCH)])

    def _encode(self, lr: np.ndarray) -> np.ndarray:
        condition = self._enlarged(lr)
        x = condition
        if self.conditional:  # the noisy residual at its mean, zero: features without randomness
            x = self._torch.cat([self._torch.zeros_like(condition), condition], dim=1)
        time = self._torch.full((len(x),), self._timestep, device=self._device)
        embedded = self._unet.time_embedding(self._unet.time_proj(time).to(x.dtype))
        x = self._unet.conv_in(x)
        for number, block in enumerate(self._unet.down_blocks):
            x = block(x, embedded)[0]
            if self._tap == f"down{number}":
                break
        else:
            x = self._unet.mid_block(x, embedded)
        return x.float().cpu().numpy()

    def super_resolve(self, lr: np.ndarray, seed: int) -> np.ndarray:
        """Draws a face for each low-resolution one by DDIM: uint8 `[N, h, w, 3]` -> `[N, size, size, 3]`."""
        torch = self._torch
        scheduler = self._scheduler_class.from_pretrained(
            self._path, timestep_spacing="trailing", clip_sample=False, local_files_only=True
        )
        scheduler.set_timesteps(SAMPLING_STEPS)
        condition = self._enlarged(lr)
        noise = torch.randn(condition.shape, generator=torch.Generator().manual_seed(seed))
        x = noise.to(self._device)
        with torch.inference_mode():
            for time in scheduler.timesteps:
                predicted = self._unet(torch.cat([x, condition], dim=1), time).sample
                x = scheduler.step(predicted, time, x).prev_sample
        return to_uint8(condition + x / RESIDUAL_SCALE)

    def _enlarged(self, lr: np.ndarray):
        return to_tensor(np.stack([resize(face, self.size, "bicubic") for face in lr])).to(self._device)


def to_tensor(images: np.ndarray):
    """uint8 `[N, H, W, 3]` -> torch float32 `[N, 3, H, W]` in [-1, 1]."""
    torch = require("torch", "teachers")
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def to_uint8(images) -> np.ndarray:
    """Inverse of `to_tensor`, clipped."""
    scaled = ((images.float().cpu().numpy() + 1) * 127.5).round().clip(0, 255)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)
