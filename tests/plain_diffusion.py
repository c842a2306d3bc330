"""guided-diffusion's encoder once more, in plain torch, to compare with."""

import numpy as np
import torch
from torch.nn import functional


class Plain(torch.nn.Module):
    """The encoder of a checkpoint in plain torch, written as guided-diffusion's class is: for comparison only.

    Args:
      weights: key to tensor.
      halving: input blocks that are residual and reduce, by `resblock_updown`.
      heads: of the attention at every level; None is heads of 64 channels.
      new_order: `use_new_attention_order`.
    """

    def __init__(self, weights, halving=(), heads=None, new_order=False):
        super().__init__()
        self.halving, self.heads, self.new_order = halving, heads, new_order
        self.weights = {key: value.contiguous() for key, value in weights.items()}
        self.blocks = len({key.split(".")[1] for key in weights if key.startswith("input_blocks.")})

    def layer(self, function, name, x, **settings):
        return function(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **settings)

    def norm(self, name, x):
        return functional.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def residual(self, name, x, time, halve=False):
        h = functional.silu(self.norm(f"{name}.in_layers.0", x))
        if halve:
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        h = self.layer(functional.conv2d, f"{name}.in_layers.2", h, padding=1)
        embedded = self.layer(functional.linear, f"{name}.emb_layers.1", functional.silu(time))[:, :, None, None]
        if embedded.shape[1] == h.shape[1]:  # without use_scale_shift_norm
            h = functional.silu(self.norm(f"{name}.out_layers.0", h + embedded))
        else:
            scale, shift = embedded.chunk(2, dim=1)
            h = functional.silu(self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        h = self.layer(functional.conv2d, f"{name}.out_layers.3", h, padding=1)
        if f"{name}.skip_connection.weight" in self.weights:
            x = self.layer(functional.conv2d, f"{name}.skip_connection", x)
        return x + h

    def attention(self, name, x):
        n, channels, height, width = x.shape
        flat = x.reshape(n, channels, -1)
        qkv = self.layer(functional.conv1d, f"{name}.qkv", self.norm(f"{name}.norm", flat))
        heads = self.heads or channels // 64
        wide = channels // heads
        if self.new_order:
            q, k, v = (part.reshape(n * heads, wide, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(n * heads, 3 * wide, -1).split(wide, dim=1)
        weight = torch.einsum("bct,bcs->bts", q * wide**-0.25, k * wide**-0.25).softmax(dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(n, channels, -1)
        return (flat + self.layer(functional.conv1d, f"{name}.proj_out", h)).reshape(x.shape)

    def forward(self, x, timestep):
        waves = timestep * torch.exp(-np.log(10_000) * torch.arange(16) / 16)
        time = torch.cat([waves.cos(), waves.sin()])[None].repeat(len(x), 1).float()
        time = self.layer(functional.linear, "time_embed.0", time)
        time = self.layer(functional.linear, "time_embed.2", functional.silu(time))
        for number in range(self.blocks):
            name = f"input_blocks.{number}"
            if f"{name}.0.weight" in self.weights:
                x = self.layer(functional.conv2d, f"{name}.0", x, padding=1)
            elif f"{name}.0.op.weight" in self.weights:
                x = self.layer(functional.conv2d, f"{name}.0.op", x, stride=2, padding=1)
            else:
                x = self.residual(f"{name}.0", x, time, number in self.halving)
                if f"{name}.1.qkv.weight" in self.weights:
                    x = self.attention(f"{name}.1", x)
        x = self.residual("middle_block.0", x, time)
        return self.residual("middle_block.2", self.attention("middle_block.1", x), time)
