"""The optimizers of a training loop, bare, and whether they train the model."""

from __future__ import annotations

import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.schedules_of import unwrapped_optimizer


def optimizers_of(given: object) -> list[torch.optim.Optimizer]:
    """One optimizer or several, bare, each once."""
    optimizers: list[torch.optim.Optimizer] = []
    for one in given if isinstance(given, list | tuple) else [given]:
        bare = unwrapped_optimizer(one)
        if not isinstance(bare, torch.optim.Optimizer):
            raise InputError(f"optimizer is a torch.optim.Optimizer, or a list of such; got {type(bare).__name__}")
        if all(bare is not other for other in optimizers):
            optimizers.append(bare)
    if not optimizers:
        raise InputError("optimizer is an empty list: no updates would be seen")
    return optimizers


def check_optimizers(optimizers: list[torch.optim.Optimizer], model: torch.nn.Module) -> None:
    """Raise InputError where the optimizers train another model.

    A copy that nothing trains (an average of weights) is recorded beside any optimizer.
    """
    own = {id(one) for one in model.parameters()}
    trained = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    average = any(type(one).__name__ == "AveragedModel" for one in model.modules())
    if not own & trained and not average and any(one.requires_grad for one in model.parameters()):
        raise InputError("the optimizer trains none of this model's parameters: it was made for another model, or before the "
                         "model's parameters were replaced. Make it of model.parameters()")
