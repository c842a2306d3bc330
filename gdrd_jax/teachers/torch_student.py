"""The student and both stages' losses in plain PyTorch: what `gdrd benchmark train` races."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gdrd_jax.models.students.gdrd import CHANNELS, STRIDES


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, last):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip
        self.last = last

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return y if self.last else F.relu(y)


class Backbone(nn.Module):
    def __init__(self, width, resolution):
        super().__init__()
        channels = [max(8, round(c * width)) for c in CHANNELS]
        stem, strides = STRIDES[resolution]
        self.stem, self.norm = nn.Conv2d(3, channels[0], 3, stem, 1, bias=False), nn.BatchNorm2d(channels[0])
        blocks, inputs = [], channels[0]
        for number, (outputs, stride) in enumerate(zip(channels, strides)):
            blocks += [Block(inputs, outputs, stride, False), Block(outputs, outputs, 1, number == 2)]
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images):
        x = images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x


class Gen(nn.Module):
    """Eq. 1 with targets of the features' own shape."""

    def __init__(self, width, resolution, mean, std):
        super().__init__()
        self.backbone = Backbone(width, resolution)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, lr, target, label, picks):
        return ((self.backbone(lr).float() - (target.float() - self.mean) / self.std) ** 2).mean()


class Relation(nn.Module):
    def __init__(self, dim, hidden=128):
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)

    def forward(self, anchors, others):
        weight = self.first.weight.T
        return self.second(F.relu((anchors @ weight)[:, None] - (others @ weight)[None] + self.first.bias))


class Dis(nn.Module):
    """Eq. 3 on a frozen backbone; `losses` as `config.PAPER_LOSSES`."""

    def __init__(self, width, resolution, centers, losses):
        super().__init__()
        dim = centers.shape[1]
        self.backbone = Backbone(width, resolution).requires_grad_(False)
        inputs = 16 * max(8, round(CHANNELS[-1] * width))
        self.norm = nn.BatchNorm1d(inputs)
        self.layers = nn.ModuleList([nn.Linear(inputs, 512), nn.Linear(512, dim)])
        self.classifier = nn.Linear(dim, len(centers))
        self.teacher_relation, self.cross_relation = Relation(dim), Relation(dim)
        self.h1, self.h2 = nn.Linear(128, 128), nn.Linear(128, 128)
        self.register_buffer("centers", torch.tensor(centers))
        self.losses = losses

    def forward(self, lr, target, label, picks):
        cls, kd_of, rcd_of = (self.losses[name] for name in ("cls", "kd", "rcd"))
        temperature, tau = kd_of["temperature"], rcd_of["tau"]
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(lr)
        x = self.norm(features.permute(0, 2, 3, 1).flatten(1))
        embedding = self.layers[1](F.relu(self.layers[0](x))).float()
        with torch.autocast(lr.device.type, enabled=False):
            logits, teacher = self.classifier(embedding), F.normalize(target.float(), dim=-1)
            wanted = (kd_of["teacher_scale"] * teacher @ self.centers.T / temperature).log_softmax(-1)
            got = (logits / temperature).log_softmax(-1)
            kd = temperature**2 * (wanted.exp() * (wanted - got)).sum(-1).mean()
            v_t = F.normalize(self.h1(self.teacher_relation(teacher, teacher)), dim=-1)
            v_ts = F.normalize(self.h2(self.cross_relation(teacher, F.normalize(embedding, dim=-1))), dim=-1)
            anchor = torch.arange(len(label), device=lr.device)[:, None]
            positive, negative = (v_t * v_ts).sum(-1) / tau, (v_t * v_ts[anchor, picks]).sum(-1) / tau
            terms = F.softplus(np.log(0.5) - positive) + F.softplus(negative - np.log(0.5))
            count = len(label) * (len(label) - 1)
            rcd = (terms.sum() - terms.diagonal().sum()) / count
            return cls["weight"] * F.cross_entropy(logits, label) + kd_of["weight"] * kd + rcd_of["weight"] * rcd


def load(module: nn.Module, stage) -> None:
    """Copies the weights of our stage."""
    _load(module.backbone, stage.backbone)
    if isinstance(module, Dis):
        critic = stage.criteria["rcd"].critic
        _norm(stage.head.norm, module.norm)
        for ours, theirs in (
            *zip(stage.head.layers, module.layers), (stage.classifier, module.classifier),
            *((getattr(r, f), getattr(getattr(module, n), f)) for n, r in (
                ("teacher_relation", critic.teacher_relation), ("cross_relation", critic.cross_relation),
            ) for f in ("first", "second")),
            (critic.h1, module.h1), (critic.h2, module.h2),
        ):  # fmt: skip
            _copy(theirs.weight, np.asarray(ours.kernel[...]).T)
            _copy(theirs.bias, ours.bias[...])


def _load(theirs: Backbone, ours) -> None:
    def conv(a, b):
        _copy(b.weight, np.asarray(a.kernel[...]).transpose(3, 2, 0, 1))

    conv(ours.stem, theirs.stem)
    _norm(ours.norm, theirs.norm)
    for a, b in zip(ours.blocks, theirs.blocks):
        for i in "12":
            conv(getattr(a, f"conv{i}"), getattr(b, f"conv{i}"))
            _norm(getattr(a, f"norm{i}"), getattr(b, f"norm{i}"))
        if b.shortcut is not None:
            conv(a.shortcut.layers[0], b.shortcut[0])
            _norm(a.shortcut.layers[1], b.shortcut[1])


def _norm(ours, theirs: nn.Module) -> None:
    to = theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var
    for one, value in zip(to, (ours.scale, ours.bias, ours.mean, ours.var)):
        _copy(one, value[...])


@torch.no_grad()
def _copy(to: torch.Tensor, value) -> None:
    to.copy_(torch.tensor(np.array(value)))
