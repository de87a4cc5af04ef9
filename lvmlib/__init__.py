"""Small, tested library of the lecture notes on latent variable models: everything is a function of log w."""

from lvmlib.ais import annealed_log_weights, reverse_annealed_log_weights
from lvmlib.autoregressive import AutoregressiveModel
from lvmlib.bounds import elbo, elbo_analytic_entropy, elbo_analytic_kl, iwae_bound, kl_to_prior, rate_and_distortion
from lvmlib.exact import (
    ExactPosterior,
    exact_elbo,
    exact_expected_log_mean,
    exact_log_marginal,
    exact_posterior,
    posterior_proposal,
)
from lvmlib.gradients import (
    doubly_reparameterized,
    gumbel_softmax,
    iwae_pathwise,
    learned_baseline,
    leave_one_out,
    logistic_noise,
    objective,
    pathwise,
    relax,
    reweighted_wake_sleep,
    score_function,
    sticking_the_landing,
    straight_through,
    vimco,
)
from lvmlib.importance import Draw, draw, log_marginal_estimate, score
from lvmlib.laws import BernoulliVector, DiagonalGaussian, FullGaussian
from lvmlib.mixtures import BernoulliMixture, GaussianMixture
from lvmlib.models import (
    BernoulliDecoder,
    BinaryLatentModel,
    GaussianDecoder,
    GaussianLatentModel,
    LatentVariableModel,
    LinearGaussian,
    mlp,
)
from lvmlib.proposals import (
    FreeBernoulli,
    FreeCategorical,
    FreeGaussian,
    FreeProposal,
    GaussianEncoder,
    detached,
    prior_proposal,
)
from lvmlib.quadrature import Grid, QuadratureError
from lvmlib.training import NonFiniteError, em, fit, fit_proposal
from lvmlib.weights import effective_sample_size, log_mean_exp, normalize_log_weights, pareto_k, resample

__version__ = "0.1.0"

__all__ = [
    "AutoregressiveModel",
    "BernoulliDecoder",
    "BernoulliMixture",
    "BernoulliVector",
    "BinaryLatentModel",
    "DiagonalGaussian",
    "Draw",
    "ExactPosterior",
    "FreeBernoulli",
    "FreeCategorical",
    "FreeGaussian",
    "FreeProposal",
    "FullGaussian",
    "GaussianDecoder",
    "GaussianEncoder",
    "GaussianLatentModel",
    "GaussianMixture",
    "Grid",
    "LatentVariableModel",
    "LinearGaussian",
    "NonFiniteError",
    "QuadratureError",
    "annealed_log_weights",
    "detached",
    "doubly_reparameterized",
    "draw",
    "effective_sample_size",
    "elbo",
    "elbo_analytic_entropy",
    "elbo_analytic_kl",
    "em",
    "exact_elbo",
    "exact_expected_log_mean",
    "exact_log_marginal",
    "exact_posterior",
    "fit",
    "fit_proposal",
    "gumbel_softmax",
    "iwae_bound",
    "iwae_pathwise",
    "kl_to_prior",
    "learned_baseline",
    "leave_one_out",
    "log_marginal_estimate",
    "log_mean_exp",
    "logistic_noise",
    "mlp",
    "normalize_log_weights",
    "objective",
    "pareto_k",
    "pathwise",
    "posterior_proposal",
    "prior_proposal",
    "rate_and_distortion",
    "relax",
    "resample",
    "reverse_annealed_log_weights",
    "reweighted_wake_sleep",
    "score",
    "score_function",
    "sticking_the_landing",
    "straight_through",
    "vimco",
]
