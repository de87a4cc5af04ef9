"""Vector-valued laws that models and proposals share: torch Distributions with their event axis inside.

A law that can be reparameterized has `transport(noise)`: the only place where noise becomes a sample.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal
from torch.nn.functional import logsigmoid, softplus

from lvmlib.weights import NonFiniteError


class BernoulliVector(Independent):
    r"""D binary pixels, independent given their logits; event shape ``(D,)``.

    .. math:: \log p(x) = \sum_d x_d \log \sigma(\ell_d) + (1 - x_d) \log \sigma(-\ell_d)

    All terms have one sign, so nothing cancels: the relative error is that of rounding at any logit.

    Args:
        logits: shape ``(..., D)``.

    >>> BernoulliVector(torch.zeros(2, 3)).log_prob(torch.ones(3))  # three fair coins
    tensor([-2.0794, -2.0794])
    """

    def __init__(self, logits: Tensor):
        super().__init__(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of x, whose entries must be 0 or 1 (checked where models take data, not here)."""
        logits = self.base_dist.logits
        if logits.dim() == 3 and logits.shape[1] == 1 and x.dim() == 2:
            # every state with every data point is two matrix products: S·B numbers in memory instead of S·B·D
            return logsigmoid(logits[:, 0]) @ x.mT + logsigmoid(-logits[:, 0]) @ (1 - x).mT
        # log σ(t) = −softplus(−t), which takes three quarters of the time of `logsigmoid` on large arrays; above the
        # threshold softplus(t) is t, to the last digit of a float64
        return -softplus((1 - 2 * x) * logits, threshold=40.0).sum(-1)

    def log_probs(self) -> Tensor:
        """Return the log probabilities of each pixel being on and off, shape ``(..., D, 2)``."""
        logits = self.base_dist.logits
        return torch.stack([logsigmoid(logits), logsigmoid(-logits)], -1)

    def entropy(self) -> Tensor:
        """Return the entropy in nats; right at infinite logits too."""
        log_p = self.log_probs()
        possible = log_p > -torch.inf
        return -torch.where(possible, log_p.exp() * torch.where(possible, log_p, 0.0), 0.0).sum((-1, -2))

    def expand(self, batch_shape, _instance=None):
        """Return the same law with a larger batch shape."""
        return BernoulliVector(self.base_dist.logits.expand(*batch_shape, *self.event_shape))


class DiagonalGaussian(Independent):
    r"""Gaussian with independent coordinates; event shape ``(D,)``.

    Args:
        loc: mean, shape ``(..., D)``.
        scale: standard deviation, same shape, above 0.

    Raises:
        ValueError: another shape of `scale`, or an entry that is not above 0.

    >>> q = DiagonalGaussian(torch.zeros(2), torch.ones(2))
    >>> q.transport(torch.tensor([1.0, -1.0]))
    tensor([ 1., -1.])
    """

    def __init__(self, loc: Tensor, scale: Tensor):
        if scale.shape != loc.shape:
            raise ValueError(f"scale must have the shape of loc, {tuple(loc.shape)}, got {tuple(scale.shape)}")
        if not (scale > 0).all():
            kind = NonFiniteError if scale.isnan().any() else ValueError
            raise kind(f"scale must be above 0, got {scale.min().item()}")
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density, shape ``(..., *batch)``; the terms that do not depend on z are summed but once."""
        loc, scale = self.base_dist.loc, self.base_dist.scale
        constant = scale.log().sum(-1) + 0.5 * math.log(2 * math.pi) * loc.shape[-1]
        return -0.5 * ((z - loc) / scale).square().sum(-1) - constant

    def transport(self, noise: Tensor) -> Tensor:
        """Return loc + scale · noise: a sample, if `noise` is standard normal of shape ``(..., *batch, D)``."""
        return self.base_dist.loc + self.base_dist.scale * noise

    def expand(self, batch_shape, _instance=None):
        """Return the same law with a larger batch shape."""
        shape = (*batch_shape, *self.event_shape)
        return DiagonalGaussian(self.base_dist.loc.expand(shape), self.base_dist.scale.expand(shape))


class FullGaussian(MultivariateNormal):
    r"""Gaussian with a full covariance matrix; event shape ``(D,)``.

    Args:
        loc: mean, shape ``(..., D)``.
        scale_tril: Cholesky factor of the covariance, shape ``(..., D, D)``.

    Raises:
        ValueError: a diagonal entry of `scale_tril` is not above 0: the covariance would be singular.

    >>> q = FullGaussian(torch.zeros(2), torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    >>> q.transport(torch.tensor([1.0, 0.0]))
    tensor([2., 1.])
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor):
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
        if not (diagonal > 0).all():
            raise ValueError(f"scale_tril must have a diagonal above 0, got {diagonal.min().item()}")
        super().__init__(loc, scale_tril=scale_tril, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """Return the same law with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        return FullGaussian(self.loc.expand(shape), self.scale_tril.expand(*shape, *self.event_shape))

    def transport(self, noise: Tensor) -> Tensor:
        """Return loc + L · noise: a sample, if `noise` is standard normal of shape ``(..., *batch, D)``."""
        return self.loc + (self._unbroadcasted_scale_tril @ noise[..., None])[..., 0]
