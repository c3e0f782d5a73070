"""The teacher: a slow or frozen copy of a network that gives targets and never receives a gradient.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017 (arXiv 1703.01780), section 2:

    teacher <- decay * teacher + (1 - decay) * student        after every optimizer step

Early in training the student still moves fast, so the decay ramps up as min(decay, 1 - 1/(step + 1)), after the authors' code, with step
counted from 0: the first update copies the student, the n-th makes the teacher the plain mean of n students, until `decay` takes over.
"""
import copy

import torch
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel and torch.compile, in any nesting."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's OptimizedModule
            model = model._orig_mod
        else:
            return model


class Teacher(nn.Module):
    """A copy of `model` that follows it by exponential moving average, or not at all.

    Args:
        model: the student, wrapped or not; it is copied as it stands.
        decay: in [0, 1]; None or 1.0 keeps the copy frozen.
        ramp: use min(decay, 1 - 1/(step + 1)) instead of `decay` from the first update on.

    Batch norm's running statistics are averaged like the weights, its integer counters are copied. The teacher is always in evaluation mode,
    also when it sits inside a module that is set to training, and what it returns carries no gradient. `state_dict` includes the step.

    Raises:
        ValueError: decay outside [0, 1]; an update from a network with other tensors.
    """

    def __init__(self, model: nn.Module, decay: float | None = 0.99, ramp: bool = True):
        super().__init__()
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay}: the teacher's decay lies in [0, 1], for instance 0.99; None freezes the teacher.")
        self.decay = 1.0 if decay is None else float(decay)
        self.ramp = ramp
        self.step = 0
        self.model = copy.deepcopy(unwrap(model)).requires_grad_(False)
        for p in self.model.parameters():
            p.grad = None  # deepcopy brings the student's gradients along
        self.eval()

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """What the copied network returns for these arguments, without gradient."""
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode whatever a surrounding module asks for."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move one step towards `model` (the student, wrapped or not). A frozen teacher stays."""
        if self.decay == 1.0:
            return
        decay = min(self.decay, 1.0 - 1.0 / (self.step + 1)) if self.ramp else self.decay
        student = named_tensors(unwrap(model))
        own = named_tensors(self.model)
        if student.keys() != own.keys():
            odd = sorted(student.keys() ^ own.keys())
            raise ValueError(
                f"the student's tensors are not the teacher's: {len(odd)} names on one side only, first {odd[0]!r}; update from the copied network."
            )
        for name, tensor in own.items():
            source = student[name].to(tensor)
            if tensor.is_floating_point():
                tensor.lerp_(source, 1.0 - decay)
            else:
                tensor.copy_(source)
        self.step += 1

    def get_extra_state(self) -> torch.Tensor:
        """The step as a tensor, so that a checkpoint holds tensors only."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.step = int(state)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, those that state_dict leaves out included."""
    return dict(model.named_parameters()) | dict(model.named_buffers())
