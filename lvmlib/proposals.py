"""Proposals q: a callable that takes data x, ``(B, D)``, and returns a Distribution with batch shape ``(B,)``."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from lvmlib.models import LatentVariableModel

Proposal = Callable[[Tensor], Distribution]


def prior_proposal(model: LatentVariableModel) -> Proposal:
    """Return the proposal that ignores x and samples from the prior p(z).

    >>> import torch
    >>> from lvmlib import GaussianMixture
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(1))
    >>> prior_proposal(model)(torch.zeros(7, 1)).batch_shape
    torch.Size([7])
    """
    return lambda x: model.prior().expand((len(x),))
