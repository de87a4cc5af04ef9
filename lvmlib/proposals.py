"""Proposals q: a callable that takes data x, ``(B, D)``, and returns a Distribution with batch shape ``(B,)``.

Three kinds: the prior, which ignores x; free laws, one per data point; and encoders, which compute the law from x.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from lvmlib.contracts import check_count, describe
from lvmlib.laws import BernoulliVector, DiagonalGaussian, FullGaussian
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


def check_law(model: LatentVariableModel, q: Distribution, num_data: int) -> None:
    """Refuse a q that is not one law per data point over the space of the model's z (``ValueError``)."""
    if q.batch_shape != (num_data,):
        raise ValueError(f"q must have batch shape ({num_data},) to match x, got {tuple(q.batch_shape)}")
    prior = model.prior()
    if q.event_shape != prior.event_shape or q.support.is_discrete != prior.support.is_discrete:
        raise ValueError(
            f"q must be a law over the space of the prior {type(prior).__name__} with event shape "
            f"{tuple(prior.event_shape)}, got {type(q).__name__} with event shape {tuple(q.event_shape)}"
        )
    if isinstance(q, Categorical) and q.logits.shape[-1] != model.num_states:
        raise ValueError(f"q must be a law over the model's {model.num_states} states, got {q.logits.shape[-1]} states")


class FreeProposal(nn.Module):
    """One law per data point, with parameters of its own; it must be called with all N data points, in their order.

    Args:
        num_data: N ≥ 1.
        size: numbers per data point: coordinates of z, or states of a categorical z.
    """

    def __init__(self, num_data: int, size: int):
        super().__init__()
        check_count("num_data", num_data)
        check_count("size", size)
        self.num_data, self.size = num_data, size

    def law(self) -> Distribution:
        """Return the laws, with batch shape ``(N,)``."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "n d"]) -> Distribution:
        """Return the laws; x only says how many data points there are.

        Raises:
            ValueError: x holds another number of data points than N.
        """
        if len(x) != self.num_data:
            raise ValueError(
                f"x must hold the {self.num_data} data points that this proposal is free for, got {len(x)}"
            )
        return self.law()


class FreeGaussian(FreeProposal):
    r"""One Gaussian per data point, :math:`q_i(z) = \mathcal N(z; m_i, L_i L_i^\top)`, started at the standard normal.

    Args:
        num_data: N.
        size: dimension of z.
        full: whether the covariance is full; otherwise it is diagonal.

    >>> FreeGaussian(5, 2)(torch.zeros(5, 7)).mean.shape
    torch.Size([5, 2])
    """

    def __init__(self, num_data: int, size: int, full: bool = False):
        super().__init__(num_data, size)
        self.full = full
        self.loc = nn.Parameter(torch.zeros(num_data, size))
        self.log_scale = nn.Parameter(torch.zeros(num_data, size))
        self.lower = nn.Parameter(torch.zeros(num_data, size, size), requires_grad=full)

    def law(self) -> DiagonalGaussian | FullGaussian:
        """Return the Gaussians, with batch shape ``(N,)``."""
        scale = self.log_scale.exp()
        if not self.full:
            return DiagonalGaussian(self.loc, scale)
        return FullGaussian(self.loc, torch.diag_embed(scale) + self.lower.tril(-1))


class FreeCategorical(FreeProposal):
    """One Categorical per data point over the `size` states of z, started uniform.

    >>> FreeCategorical(5, 3)(torch.zeros(5, 7)).probs.shape
    torch.Size([5, 3])
    """

    def __init__(self, num_data: int, size: int):
        super().__init__(num_data, size)
        self.logits = nn.Parameter(torch.zeros(num_data, size))

    def law(self) -> Categorical:
        """Return the Categoricals, with batch shape ``(N,)``."""
        return Categorical(logits=self.logits, validate_args=False)


class FreeBernoulli(FreeProposal):
    """One vector of `size` independent bits per data point, started at fair coins.

    >>> FreeBernoulli(5, 3)(torch.zeros(5, 7)).mean.shape
    torch.Size([5, 3])
    """

    def __init__(self, num_data: int, size: int):
        super().__init__(num_data, size)
        self.logits = nn.Parameter(torch.zeros(num_data, size))

    def law(self) -> BernoulliVector:
        """Return the laws, with batch shape ``(N,)``."""
        return BernoulliVector(self.logits)


class GaussianEncoder(nn.Module):
    r"""Amortized Gaussian: a network computes mean and log standard deviation from x.

    .. math:: q_\phi(z \mid x) = \mathcal N\big(z; \mu_\phi(x), \operatorname{diag} \sigma_\phi^2(x)\big)

    Args:
        network: maps ``(B, D)`` to ``(B, 2 z_dim)``: first the means, then the log standard deviations.

    Reference:
        Kingma and Welling (2014), arXiv:1312.6114; chapter 5.

    >>> from lvmlib import mlp
    >>> GaussianEncoder(mlp(64, [16], 4))(torch.zeros(5, 64)).mean.shape
    torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "b d"]) -> DiagonalGaussian:
        """Return q(z | x) for each x, batch shape ``(B,)``."""
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        if x.dtype != dtype:
            raise TypeError(f"x must have the encoder's dtype {dtype}, got {x.dtype}; use x.to({dtype})")
        loc_and_log_scale = self.network(x)
        if loc_and_log_scale.shape[-1] % 2:
            raise ValueError(f"network must return 2 z_dim columns, got {describe(loc_and_log_scale)}")
        loc, log_scale = loc_and_log_scale.chunk(2, dim=-1)
        return DiagonalGaussian(loc, log_scale.exp())


def detached(q: Distribution) -> Distribution:
    """Return the same law with its parameters cut off from the gradient; a z drawn from q may still carry one.

    Raises:
        ValueError: q is none of the library's laws.

    >>> q = DiagonalGaussian(torch.zeros(2, requires_grad=True), torch.ones(2))
    >>> detached(q).mean.requires_grad
    False
    """
    if isinstance(q, DiagonalGaussian):
        return DiagonalGaussian(q.base_dist.loc.detach(), q.base_dist.scale.detach())
    if isinstance(q, FullGaussian):
        return FullGaussian(q.loc.detach(), q.scale_tril.detach())
    if isinstance(q, BernoulliVector):
        return BernoulliVector(q.base_dist.logits.detach())
    if isinstance(q, Categorical):
        return Categorical(logits=q.logits.detach(), validate_args=False)
    raise ValueError(f"q must be a Gaussian, BernoulliVector or Categorical law, got {type(q).__name__}")
