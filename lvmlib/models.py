r"""Latent variable models: a prior p(z) and a likelihood p(x | z), and what follows from the two.

Shapes: z carries the samples first, ``(K, B, *z_event)``; data are ``(B, D)``; scores are ``(K, B)``.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from lvmlib.contracts import check_count, check_finite, check_positive, checked, describe
from lvmlib.laws import BernoulliVector, DiagonalGaussian, FullGaussian


class LatentVariableModel(nn.Module):
    r"""The generative story: draw z from the prior, then x given z.

    .. math:: p(x, z) = p(z) \, p(x \mid z)

    A subclass defines `prior()` and `likelihood(z)`; the rest follows. Models with finitely many z also define
    `num_states` and `states(start, stop)`, and are then summed exactly by `lvmlib.exact`.
    """

    num_states: int | None = None
    z_shape: tuple[int, ...] = ()

    def prior(self) -> Distribution:
        """Return p(z), with batch shape ``()``."""
        raise NotImplementedError

    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x | z) for each z, with event shape ``(D,)``."""
        raise NotImplementedError

    def check_values(self, z: Tensor) -> None:
        """Refuse values of z that the prior cannot produce."""

    def check_z(self, z: Tensor) -> None:
        """Refuse a z of another shape than ``(K, B, *z_event)``, or with values that the prior cannot produce."""
        if z.dim() != 2 + len(self.z_shape) or tuple(z.shape[2:]) != self.z_shape:
            wanted = ", ".join(["K", "B", *map(str, self.z_shape)])
            raise ValueError(f"z must have shape ({wanted}), got {describe(z)}")
        self.check_values(z)

    def log_prior(self, z: Shaped[Tensor, "k b *z"]) -> Float[Tensor, "k b"]:
        """Return log p(z), shape ``(K, B)``; errors as for `log_likelihood`."""
        self.check_z(z)
        return self.prior().log_prob(z)

    @checked
    def log_likelihood(self, x: Shaped[Tensor, "b d"], z: Shaped[Tensor, "k b_or_1 *z"]) -> Float[Tensor, "k b"]:
        r"""Return log p(x | z).

        Args:
            x: data, shape ``(B, D)``.
            z: shape ``(K, B, *z_event)``: K values for each data point; or ``(S, 1, *z_event)``: every state with
                every data point.

        Returns:
            Shape ``(K, B)`` or ``(S, B)``, in nats per data point.

        Raises:
            TypeError: x has another dtype than the model, or a component number is not an int64.
            ValueError: shapes that do not pair, x not finite, x outside the support of the likelihood, or z outside
                that of the prior.
        """
        self.check_z(z)
        if z.shape[1] not in (1, len(x)):
            raise ValueError(f"z must pair with x: axis 1 of z must be 1 or {len(x)}, got shape {tuple(z.shape)}")
        law = self.likelihood(z)
        check_data(x, law)
        return law.log_prob(x)

    def log_joint(self, x: Shaped[Tensor, "b d"], z: Shaped[Tensor, "k b_or_1 *z"]) -> Float[Tensor, "k b"]:
        """Return log p(x, z) = log p(z) + log p(x | z); arguments and errors as for `log_likelihood`."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    @torch.no_grad()
    def sample(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw from p(x, z) in one pass: z of shape ``(N, *z_event)`` and x of shape ``(N, D)``."""
        check_count("num_samples", num_samples)
        z = self.prior().sample((num_samples,))
        return z, self.likelihood(z).sample()


def check_data(x: Tensor, law: Distribution) -> None:
    """Refuse data that `law` cannot have produced: wrong dtype, wrong number of columns, outside the support.

    Raises:
        TypeError: x is not of the law's floating dtype.
        ValueError: x is empty, has another number of columns, is not finite, or lies outside the support.
    """
    parameter = law.base_dist.logits if isinstance(law, BernoulliVector) else law.mean
    if x.dtype != parameter.dtype:
        raise TypeError(f"x must have the model's dtype {parameter.dtype}, got {x.dtype}; use x.to({parameter.dtype})")
    if x.device != parameter.device:
        raise ValueError(f"x must be on the model's device {parameter.device}, got {x.device}")
    if len(x) == 0 or x.shape[1:] != law.event_shape:
        raise ValueError(f"x must have shape (B, {law.event_shape[0]}) with B >= 1, got {tuple(x.shape)}")
    check_finite("x", x)
    if isinstance(law, BernoulliVector) and not ((x == 0) | (x == 1)).all():
        raise ValueError(
            "x must be 0 or 1 for Bernoulli pixels, got values from "
            f"{x.min().item():g} to {x.max().item():g}; choose: binarize the pixels (lvmlib.datasets.binarize; divide "
            "by 255 first if they go up to 255), or use a Gaussian likelihood (GaussianDecoder)"
        )


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


def mlp(in_dim: int, hidden_dims: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a fully connected network with tanh between its layers: smooth, as quadrature over its input needs.

    >>> mlp(2, [16], 64)(torch.zeros(5, 2)).shape
    torch.Size([5, 64])
    """
    sizes = [in_dim, *hidden_dims, out_dim]
    for position, size in enumerate(sizes):
        check_count(f"size {position} of the network", size)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class BernoulliDecoder(nn.Module):
    r"""The conditional law p(x | z) of binary pixels, whose logits a network computes from z.

    Args:
        network: maps ``(..., z_dim)`` to logits ``(..., D)``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Float[Tensor, "... z"]) -> BernoulliVector:
        """Return p(x | z)."""
        return BernoulliVector(self.network(z))


class GaussianDecoder(nn.Module):
    r"""The conditional law p(x | z) = N(network(z), scale²) of real-valued data.

    Args:
        network: maps ``(..., z_dim)`` to means ``(..., D)``.
        scale: standard deviation, the same for all coordinates, > 0.
        learn_scale: whether training may change `scale`.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0, learn_scale: bool = False):
        super().__init__()
        check_positive("scale", scale)
        self.network = network
        dtype = next((p.dtype for p in network.parameters()), None)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=dtype), requires_grad=learn_scale)

    def forward(self, z: Float[Tensor, "... z"]) -> DiagonalGaussian:
        """Return p(x | z)."""
        loc = self.network(z)
        return DiagonalGaussian(loc, self.log_scale.exp().expand_as(loc))


class BinaryLatentModel(LatentVariableModel):
    r"""L Bernoulli latents and a decoder: 2^L values of z.

    .. math:: p(x) = \sum_{z \in \{0, 1\}^L} \prod_l \pi_l^{z_l} (1 - \pi_l)^{1 - z_l} \, p(x \mid z)

    Args:
        z_dim: L.
        decoder: the conditional law p(x | z), such as a `BernoulliDecoder`.
        learn_prior: whether the prior logits are trained; they start at 0, fair coins.

    >>> BinaryLatentModel(3, BernoulliDecoder(mlp(3, [4], 8))).num_states
    8
    """

    def __init__(self, z_dim: int, decoder: nn.Module, learn_prior: bool = False):
        super().__init__()
        check_count("z_dim", z_dim)
        self.z_dim, self.z_shape, self.num_states = z_dim, (z_dim,), 2**z_dim
        self.decoder = decoder
        self.prior_logits = nn.Parameter(torch.zeros(z_dim), requires_grad=learn_prior)

    def prior(self) -> BernoulliVector:
        """Return p(z), L independent bits."""
        return BernoulliVector(self.prior_logits)

    def likelihood(self, z: Float[Tensor, "... z"]) -> Distribution:
        """Return p(x | z)."""
        check_latent(z, self.z_dim)
        return self.decoder(z)

    def check_values(self, z: Tensor) -> None:
        """Refuse latents that are not 0 or 1."""
        if not ((z == 0) | (z == 1)).all():
            raise ValueError(f"z must be 0 or 1, got values from {z.min().item():g} to {z.max().item():g}")

    def states(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "s 1 z"]:
        """Return states `start` to `stop` − 1, shape ``(S, 1, L)``; the bits of the state's number, lowest first."""
        stop = self.num_states if stop is None else stop
        number = torch.arange(start, stop, device=self.prior_logits.device)[:, None, None]
        return ((number >> torch.arange(self.z_dim, device=number.device)) & 1).to(self.prior_logits.dtype)


class GaussianLatentModel(LatentVariableModel):
    r"""A standard normal prior and a decoder: the model of a variational autoencoder.

    .. math:: p(x) = \int \mathcal N(z; 0, I) \, p(x \mid z) \, dz

    Args:
        z_dim: dimension of z. For 1 and 2, `lvmlib.exact` integrates it by quadrature.
        decoder: the conditional law p(x | z).

    >>> model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [16], 64)))
    >>> [tuple(part.shape) for part in model.sample(5)]
    [(5, 2), (5, 64)]
    """

    def __init__(self, z_dim: int, decoder: nn.Module):
        super().__init__()
        check_count("z_dim", z_dim)
        self.z_dim, self.z_shape, self.decoder = z_dim, (z_dim,), decoder
        self.register_buffer("prior_loc", torch.zeros(z_dim), persistent=False)

    def prior(self) -> DiagonalGaussian:
        """Return p(z), a standard normal."""
        return DiagonalGaussian(self.prior_loc, torch.ones_like(self.prior_loc))

    def check_values(self, z: Tensor) -> None:
        """Refuse latents of another dtype than the model's."""
        if z.dtype != self.prior_loc.dtype:
            raise TypeError(f"z must have the model's dtype {self.prior_loc.dtype}, got {describe(z)}")

    def likelihood(self, z: Float[Tensor, "... z"]) -> Distribution:
        """Return p(x | z)."""
        check_latent(z, self.z_dim)
        return self.decoder(z)


class LinearGaussian(GaussianLatentModel):
    r"""Probabilistic principal component analysis: the model whose every integral is known.

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathcal N(W z + \mu, \sigma^2 I), \quad
              x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)

    Args:
        weight: W, shape ``(D, z_dim)``.
        bias: μ, shape ``(D,)``.
        scale: σ > 0.

    Reference:
        Tipping and Bishop (1999), section 3; chapter 2.

    >>> LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0).marginal().stddev  # 3² + 4² = 5²
    tensor([5.], grad_fn=<...>)
    """

    @checked
    def __init__(self, weight: Float[Tensor, "d z"], bias: Float[Tensor, " d"], scale: float = 1.0):
        check_finite("weight", weight)
        check_finite("bias", bias)
        x_dim, z_dim = weight.shape
        network = nn.utils.skip_init(nn.Linear, z_dim, x_dim, dtype=weight.dtype)
        network.weight, network.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        super().__init__(z_dim, GaussianDecoder(network, scale))
        self.to(weight.dtype)

    def _weight_bias_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.decoder.network.weight, self.decoder.network.bias, self.decoder.log_scale.exp()

    def marginal(self) -> FullGaussian:
        """Return p(x), in closed form, with batch shape ``()``."""
        weight, bias, scale = self._weight_bias_scale()
        # W Wᵀ + σ² I = Aᵀ A with A = [Wᵀ; σ I]: the triangle of A's QR factors is the Cholesky factor, and A has only
        # the square root of the covariance's condition number
        stacked = torch.cat([weight.T, scale * torch.eye(len(bias), dtype=bias.dtype, device=bias.device)])
        triangle = torch.linalg.qr(stacked).R.T
        return FullGaussian(bias, triangle * triangle.diagonal().sign())

    @checked
    def posterior(self, x: Float[Tensor, "b d"]) -> FullGaussian:
        r"""Return p(z | x), in closed form, with batch shape ``(B,)``.

        .. math:: \mathcal N\big(M^{-1} W^\top (x - \mu), \; \sigma^2 M^{-1}\big), \quad M = W^\top W + \sigma^2 I
        """
        weight, bias, scale = self._weight_bias_scale()
        check_data(x, self.marginal())
        precision = weight.T @ weight / scale.square() + torch.eye(self.z_dim, dtype=x.dtype, device=x.device)
        covariance = torch.linalg.inv(precision)
        loc = (x - bias) @ weight @ covariance.T / scale.square()
        return FullGaussian(loc, torch.linalg.cholesky(covariance).expand(len(x), -1, -1))


def check_latent(z: Tensor, z_dim: int) -> None:
    """Refuse a z whose last axis is not `z_dim` or that is not floating (``ValueError``)."""
    if not z.is_floating_point() or z.dim() < 1 or z.shape[-1] != z_dim:
        raise ValueError(f"z must be floating with last axis {z_dim}, got {describe(z)}")
