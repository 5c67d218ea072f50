"""Many members' answers pooled as they come, in memory that does not grow with their number.

Depeweg et al., ICML 2018: total doubt H(mean p) is the mean of the members' own (aleatoric) and the rest, the mutual
information of answer and member (epistemic). Natural logarithms throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.tensors import tensor_of

Space = Literal["probability", "logit"]


@dataclass(frozen=True, slots=True, eq=False)
class Doubt:
    """A batch of n items; `...` is nothing for whole items and (H, W) for maps. Float64 tensors."""

    log_probabilities: torch.Tensor
    """(n, classes, ...), of the pool."""
    aleatoric: torch.Tensor
    """(n, ...): mean entropy of the members."""
    disagreement: torch.Tensor
    """(n, ...): share of the members whose first choice is not the pool's."""
    variation_ratio: torch.Tensor
    """(n, ...): share of the members that did not vote for the class with most votes."""


class Pool:
    """Members' log-probabilities in, a pooled distribution and its doubt out.

    `space`: "probability" takes the mean of probabilities, "logit" the softmax of the mean of log-probabilities (the
    same as of logits: a constant a member adds cancels). They may differ in their first choice.
    """

    def __init__(self, space: Space = "probability"):
        check_space(space)
        self.space: Space = space
        self.pooled, self.own = Moments(), Moments()
        self.votes: torch.Tensor | None = None
        self.count, self.weight = 0, 0.0

    def update(self, log_p: torch.Tensor, weights: np.ndarray | None = None) -> None:
        """Some members, log_p (m, n, classes, ...), and their weights (m,)."""
        m = len(log_p)
        p = log_p.exp()
        self.pooled.update(p if self.space == "probability" else log_p.clamp(min=LOWEST), self.count, weights)
        self.own.update(entropy(p, log_p, 2), self.count, weights)
        w = torch.ones(m, dtype=p.dtype) if weights is None else tensor_of(np.asarray(weights)).to(p.dtype)
        first = log_p.argmax(2)
        if self.votes is None:
            self.votes = torch.zeros(log_p.shape[1:], dtype=p.dtype, device=p.device)
        for row, weight in zip(first, w.tolist(), strict=True):
            self.votes.scatter_add_(1, row[:, None], torch.full_like(self.votes[:, :1], weight))
        self.count += m
        self.weight += float(w.sum())

    def merge(self, later: Pool) -> None:
        """Members that come after mine, of the same items; either side may be empty."""
        if later.votes is None:
            return
        self.pooled.merge(later.pooled)
        self.own.merge(later.own)
        self.votes = later.votes.clone() if self.votes is None else self.votes + later.votes
        self.count += later.count
        self.weight += later.weight

    def on_cpu(self) -> Pool:
        """A copy in memory of the CPU, to be sent to another process."""
        pool = Pool(self.space)
        pool.pooled, pool.own = on_cpu(self.pooled), on_cpu(self.own)
        pool.votes = None if self.votes is None else self.votes.cpu()
        pool.count, pool.weight = self.count, self.weight
        return pool

    def result(self) -> Doubt:
        """Raises InputError where no member was given."""
        if self.votes is None:
            raise InputError("nothing was pooled: an ensemble needs at least one member")
        mean = self.pooled.result().mean
        log_p = mean.clamp(min=TINY).log() if self.space == "probability" else mean - mean.logsumexp(1, keepdim=True)
        votes = self.votes / self.weight
        for_it = votes.gather(1, log_p.argmax(1, keepdim=True))[:, 0]
        return Doubt(log_p, self.own.result().mean, (1 - for_it).clamp(min=0), (1 - votes.amax(1)).clamp(min=0))


def on_cpu(moments: Moments) -> Moments:
    """A copy in memory of the CPU."""
    state = moments.state()
    return Moments().restored({name: one.cpu() if isinstance(one, torch.Tensor) else one for name, one in state.items()})


TINY = float(np.finfo(np.float64).tiny)
LOWEST = float(np.log(TINY))


def check_space(space: object) -> Space:
    """The space of that name. Raises InputError for anything but the two there are."""
    if space == "probability" or space == "logit":
        return space
    raise InputError(f'space is "probability" (mean of probabilities) or "logit" (softmax of mean logits); got {space!r}')


def entropy(p: torch.Tensor, log_p: torch.Tensor, dim: int) -> torch.Tensor:
    """-sum p log p along `dim`, with 0 log 0 = 0."""
    return -(p * log_p.clamp(min=LOWEST)).sum(dim)


def entropy_of(probabilities: np.ndarray, axis: int = 1) -> np.ndarray:
    """The same of a numpy array of probabilities."""
    p = as_array(probabilities, "probabilities")
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=axis)
