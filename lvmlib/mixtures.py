r"""Finite mixtures: z is the number of a component, and the sum over z is short. They can be trained by EM."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Categorical

from lvmlib.contracts import check_finite, check_positive, checked, describe
from lvmlib.laws import BernoulliVector, DiagonalGaussian
from lvmlib.models import LatentVariableModel, check_data


def check_weights(weights: Tensor) -> None:
    """Refuse mixture weights that are negative or do not sum to 1 within 1e-5 (``ValueError``)."""
    check_finite("weights", weights)
    if (weights < 0).any() or abs(weights.sum().item() - 1) > 1e-5:
        raise ValueError(f"weights must be >= 0 and sum to 1 (within 1e-5), got {weights.tolist()}")


class FiniteMixture(LatentVariableModel):
    r"""z is the number of a component, an integer from 0 to C − 1 with event shape ``()``.

    .. math:: p(x) = \sum_{c=0}^{C-1} \pi_c \, p(x \mid z = c)

    Args:
        weights: mixture weights, shape ``(C,)``, ≥ 0, summing to 1; a weight of 0 is legal.
    """

    def __init__(self, weights: Tensor):
        super().__init__()
        check_weights(weights)
        self.weight_logits = nn.Parameter(weights.log())
        self.num_states = self.num_components = len(weights)

    def prior(self) -> Categorical:
        """Return p(z), a Categorical over the C components."""
        return Categorical(logits=self.weight_logits, validate_args=False)

    def states(self, start: int = 0, stop: int | None = None) -> Int[Tensor, "s 1"]:
        """Return the component numbers `start` to `stop` − 1, shape ``(S, 1)``."""
        stop = self.num_states if stop is None else stop
        return torch.arange(start, stop, device=self.weight_logits.device)[:, None]

    def check_values(self, z: Tensor) -> None:
        """Refuse component numbers that are not int64 from 0 to C − 1."""
        if z.dtype != torch.int64:
            raise TypeError(f"z must be torch.int64 component numbers, got {describe(z)}")
        if z.numel() and (z.min() < 0 or z.max() >= self.num_components):
            raise ValueError(f"z must lie in 0..{self.num_components - 1}, got {z.min().item()}..{z.max().item()}")

    def check_m_step(self, x: Tensor, responsibilities: Tensor) -> None:
        """Refuse data, or responsibilities, that do not fit the model."""
        check_data(x, self.likelihood(self.states()))
        if responsibilities.shape[1] != self.num_components:
            raise ValueError(
                f"responsibilities must have shape (B, {self.num_components}), got {tuple(responsibilities.shape)}"
            )

    def m_step(self, x: Tensor, responsibilities: Tensor, pseudo_count: float) -> None:
        """Set the parameters to the maximizer of the expected complete log-likelihood (EM's M-step), in place."""
        raise NotImplementedError

    def log_penalty(self, pseudo_count: float) -> Tensor:
        """Return the log density (up to a constant) of the prior on the parameters that `pseudo_count` stands for."""
        raise NotImplementedError


class GaussianMixture(FiniteMixture):
    r"""Mixture of Gaussians with independent coordinates.

    .. math:: p(x \mid z = c) = \mathcal N(x; \mu_c, \operatorname{diag} \sigma_c^2)

    Args:
        weights: shape ``(C,)``.
        loc: means, shape ``(C, D)``.
        scale: standard deviations, shape ``(C, D)`` or broadcastable to it, > 0.
        learn_scale: whether training may change `scale`. If so the likelihood has no maximum: a component that
            sits on one data point gains without bound as its scale falls (chapter 2).

    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-2.0], [2.0]]), torch.ones(1))
    >>> model.log_joint(torch.zeros(1, 1), model.states()).detach().squeeze()  # log ½ N(0; ±2, 1)
    tensor([-3.6121, -3.6121])
    """

    @checked
    def __init__(
        self,
        weights: Float[Tensor, " c"],
        loc: Float[Tensor, "c d"],
        scale: Float[Tensor, "..."],
        learn_scale: bool = False,
    ):
        super().__init__(weights)
        check_finite("loc", loc)
        check_positive("scale", scale)
        self.loc = nn.Parameter(loc.clone())
        if scale.dim() > 2 or any(a not in (1, b) for a, b in zip(scale.shape[::-1], loc.shape[::-1], strict=False)):
            raise ValueError(f"scale must broadcast to the shape of loc, {tuple(loc.shape)}, got {tuple(scale.shape)}")
        log_scale = scale.expand_as(loc).log().clone()
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_scale)

    def likelihood(self, z: Int[Tensor, "..."]) -> DiagonalGaussian:
        """Return p(x | z) for component numbers z of any shape."""
        self.check_values(z)
        return DiagonalGaussian(self.loc[z], self.log_scale[z].exp())

    @torch.no_grad()
    @checked
    def m_step(
        self, x: Float[Tensor, "b d"], responsibilities: Float[Tensor, "b c"], pseudo_count: float = 0.0
    ) -> None:
        r"""Weighted means (and, with `learn_scale`, variances) of the data; weights are mean responsibilities.

        A component with no data keeps its parameters. No prior is defined here: `pseudo_count` must be 0.

        Raises:
            ValueError: `pseudo_count` is not 0; or `learn_scale` is on and a component's variance would be 0, where
                the likelihood is unbounded. The model is then left as it was.
        """
        self.check_m_step(x, responsibilities)
        if pseudo_count != 0:
            raise ValueError(f"pseudo_count must be 0 for a Gaussian mixture, got {pseudo_count}")
        mass = responsibilities.sum(0)
        used = mass > 0
        shares = (responsibilities / torch.where(used, mass, 1.0))[:, used].T
        loc = shares @ x
        if self.log_scale.requires_grad:
            variance = (shares[:, :, None] * (x - loc[:, None]).square()).sum(1)
            if not (variance > torch.finfo(x.dtype).tiny).all():
                raise ValueError(
                    f"learn_scale: {int((variance <= torch.finfo(x.dtype).tiny).sum())} scales would become 0, because "
                    "a component has collapsed onto one point; the likelihood has no maximum there: fix the scale"
                )
            self.log_scale[used] = variance.log() / 2
        self.loc[used] = loc
        self.weight_logits.copy_((mass / mass.sum()).log())

    def log_penalty(self, pseudo_count: float) -> Tensor:
        """Return 0: no prior on the parameters."""
        return self.loc.new_zeros(())


class BernoulliMixture(FiniteMixture):
    r"""Mixture of products of Bernoulli pixels.

    .. math:: p(x \mid z = c) = \prod_d m_{cd}^{x_d} (1 - m_{cd})^{1 - x_d}

    Args:
        weights: shape ``(C,)``.
        probs: pixel means m, shape ``(C, D)``, strictly between 0 and 1.

    >>> model = BernoulliMixture(torch.tensor([1.0]), torch.tensor([[0.25, 0.5]]))
    >>> model.log_joint(torch.tensor([[1.0, 1.0]]), model.states()).exp().detach()
    tensor([[0.1250]])
    """

    @checked
    def __init__(self, weights: Float[Tensor, " c"], probs: Float[Tensor, "c d"]):
        super().__init__(weights)
        if not ((probs > 0) & (probs < 1)).all():
            raise ValueError(
                "probs must lie strictly between 0 and 1 (a probability of 0 gives some images log-likelihood -inf), "
                f"got values from {probs.min().item():g} to {probs.max().item():g}"
            )
        self.logits = nn.Parameter(probs.logit())

    def likelihood(self, z: Int[Tensor, "..."]) -> BernoulliVector:
        """Return p(x | z) for component numbers z of any shape."""
        self.check_values(z)
        return BernoulliVector(self.logits[z])

    @torch.no_grad()
    @checked
    def m_step(
        self, x: Float[Tensor, "b d"], responsibilities: Float[Tensor, "b c"], pseudo_count: float = 0.0
    ) -> None:
        r"""Weighted pixel means, with `pseudo_count` imagined images of each kind (on, off) added per pixel.

        .. math:: m_{cd} = \frac{a + \sum_b r_{bc} x_{bd}}{2a + \sum_b r_{bc}}

        It maximizes the expected complete log-likelihood plus the log density of a Beta(1 + a, 1 + a) prior.

        Raises:
            ValueError: `pseudo_count` is negative; or 0 while some pixel has mean 0 or 1 in some component.
        """
        self.check_m_step(x, responsibilities)
        if not (math.isfinite(pseudo_count) and pseudo_count >= 0):
            raise ValueError(f"pseudo_count must be finite and >= 0, got {pseudo_count}")
        mass = responsibilities.sum(0)
        on, off = responsibilities.T @ x + pseudo_count, responsibilities.T @ (1 - x) + pseudo_count
        if not ((on > 0) & (off > 0)).all():
            raise ValueError(
                f"pseudo_count must be > 0 here, got {pseudo_count}: {int(((on <= 0) | (off <= 0)).sum())} pixel means "
                "would be exactly 0 or 1, where the log-likelihood of other images is -inf"
            )
        self.weight_logits.copy_((mass / mass.sum()).log())
        self.logits.copy_(on.log() - off.log())

    def log_penalty(self, pseudo_count: float) -> Tensor:
        """Return the log density, up to a constant, of independent Beta(1 + a, 1 + a) priors on the pixel means."""
        log_on, log_off = -nn.functional.softplus(-self.logits), -nn.functional.softplus(self.logits)
        return pseudo_count * (log_on + log_off).sum()
