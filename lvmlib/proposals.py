r"""Proposals q: a callable that takes data x of shape ``(B, D)`` and returns a Distribution with batch shape ``(B,)``."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution

from lvmlib.exact import exact_posterior
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


def posterior_proposal(model: LatentVariableModel) -> Proposal:
    """Return the best proposal there is, p(z | x), for a mixture or a linear-Gaussian model.

    Raises:
        ValueError: when called, if the exact posterior is not a law over z itself but over grid nodes or bit vectors.
    """

    def proposal(x: Tensor) -> Distribution:
        law, states = exact_posterior(model, x)
        if states is not None and states.dim() > 2:
            raise ValueError(f"model: the posterior of {type(model).__name__} is known only as a table over states")
        return law

    return proposal
