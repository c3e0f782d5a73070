"""Parts that several backbones share: where stride turns into dilation, frozen batch norm, parameter counting."""
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class StagePlan(NamedTuple):
    """How one stage reaches its resolution. All three numbers belong to its 3x3 convolutions."""

    stride: int  # stride of the first one
    first_rate: int  # dilation of the first one
    rate: int  # dilation of all that follow


def dilation_plan(strides: tuple[int, ...], entry_stride: int, output_stride: int, convention: str = "torchvision") -> list[StagePlan]:
    """Replace strides beyond `output_stride` by dilation (DeepLab v1, arXiv 1412.7062, section 3.1; v3, arXiv 1706.05587, section 3.1).

    Args:
        strides: the nominal stride of each stage, e.g. (1, 2, 2, 2) for a ResNet.
        entry_stride: stride already reached when the first stage begins (the stem).
        output_stride: the coarsest stride wanted, in pixels of the input.
        convention: "torchvision": the convolution that loses its stride keeps the rate that was in force before it, everything after it is
            dilated. This is the exact "hole" algorithm: on the positions of the strided network the outputs are the same numbers.
            "deeplab": the convolution that loses its stride is already dilated, as in most public DeepLab code. Same weights, other function.

    Raises:
        ValueError: for an unknown convention or an output stride that is not reached by the stages.
    """
    if convention not in ("torchvision", "deeplab"):
        raise ValueError(f"convention={convention!r}: choose 'torchvision' (exact) or 'deeplab' (first convolution already dilated).")
    reachable, total = [], entry_stride
    for stride in strides:
        total *= stride
        reachable.append(total)
    if output_stride not in reachable:
        raise ValueError(f"output_stride={output_stride}: this network can stop at stride {sorted(set(reachable))}.")
    plans, reached, rate = [], entry_stride, 1
    for stride in strides:
        before = rate
        if reached * stride > output_stride:
            rate, stride = rate * stride, 1
        reached *= stride
        plans.append(StagePlan(stride, before if convention == "torchvision" else rate, rate))
    return plans


class FrozenBatchNorm(nn.Module):
    """Batch norm that always uses its stored statistics and whose scale and shift are never trained.

    All five tensors are buffers under the names of `nn.BatchNorm2d`, so that checkpoints fit both ways while `.train()`, optimizers,
    weight decay and SyncBatchNorm conversion all leave them alone.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)  # [B, C, h, w]


def freeze_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside `model` by a `FrozenBatchNorm` with the same numbers, in place; returns `model`.

    The usual choice when a batch is too small for its own statistics (DeepLab v2 official code; DeepLab v3, section 4.1, last phase).
    """
    if isinstance(model, nn.BatchNorm2d):
        raise TypeError("freeze_batch_norm replaces layers inside a network: pass the network, not the BatchNorm2d layer itself.")
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(child.num_features, child.eps).to(child.running_mean)
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen)
        else:
            freeze_batch_norm(child)
    return model


def init_convolutions(model: nn.Module) -> None:
    """He et al. (arXiv 1502.01852) by fan-out, the initialisation under which torchvision trains its convolutional networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameter elements; with `trainable`, only those that receive a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
