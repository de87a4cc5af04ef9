r"""Every numbered equation of the book, as a function that returns its largest residual.

``python -m tests.equations --write PATH`` runs them all and writes what the page "Every equation, verified" shows.
The models are small and asymmetric, in float64, and every expectation is a sum over all outcomes: no random numbers,
except where fixed parameters are wanted.
"""

import argparse
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal, localcontext

import torch

import lvmlib as lv
from lvmlib import ais
from lvmlib.quadrature import hermite_nodes

F64 = torch.float64


@dataclass(frozen=True)
class Equation:
    """A numbered claim of the book and the function that checks it."""

    tag: str
    claim: str
    functions: tuple[str, ...]
    check: Callable[[], float]
    tolerance: float
    test: str


EQUATIONS: dict[str, Equation] = {}


def equation(tag: str, claim: str, *functions: str, tolerance: float = 1e-10):
    """Register the decorated function as the check of equation `tag`; `functions` are the lvmlib names it executes."""

    def register(check: Callable[[], float]) -> Callable[[], float]:
        if tag in EQUATIONS:
            raise ValueError(f"tag {tag!r} is registered twice")
        names = tuple(f"lvmlib.{name}" for name in functions)
        EQUATIONS[tag] = Equation(tag, claim, names, check, tolerance, f"tests/equations.py::{check.__name__}")
        return check

    return register


def largest(*differences: torch.Tensor) -> float:
    """Return the largest absolute entry of all tensors; NaN if there is one."""
    return torch.cat([difference.detach().double().abs().flatten() for difference in differences]).max().item()


def small_mixture() -> lv.GaussianMixture:
    """Three Gaussians on a line, of unequal weight and width."""
    weights, loc = torch.tensor([0.6, 0.3, 0.1], dtype=F64), torch.tensor([[-3.0], [0.5], [2.0]], dtype=F64)
    return lv.GaussianMixture(weights, loc, torch.tensor([[1.0], [0.7], [1.3]], dtype=F64)).requires_grad_(False)


X = torch.tensor([[2.6], [-1.0]], dtype=F64)
PROPOSAL = torch.tensor([0.2, 0.3, 0.5], dtype=F64)


def mixture_weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log p(x, z) (3, 2) of the library, log w under PROPOSAL (3, 2), and p(x) (2,) from the formula."""
    model = small_mixture()
    log_joint = model.log_joint(X, model.states())
    weights, scales = (0.6, 0.3, 0.1), (1.0, 0.7, 1.3)
    p = sum(w * log_normal(X[:, 0], m.item(), s).exp() for w, m, s in zip(weights, model.loc, scales, strict=True))
    return log_joint, log_joint - PROPOSAL.log()[:, None], p


def all_runs(num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all K-tuples of states, shape (3^K, K), and their probabilities under PROPOSAL."""
    runs = torch.cartesian_prod(*[torch.arange(3)] * num_samples).reshape(-1, num_samples)
    return runs, PROPOSAL[runs].prod(1)


def one_plus_chi2(s: float, sigma: float, shift: float) -> float:
    """The closed form of equation (3.8)."""
    inside = 2 * s**2 - sigma**2
    return s**2 / (sigma * math.sqrt(inside)) * math.exp(shift**2 / inside)


def log_normal(z: torch.Tensor, loc: float | torch.Tensor, scale: float) -> torch.Tensor:
    """Log density of a Gaussian, from its formula and in the dtype of z."""
    return -0.5 * ((z - loc) / scale).square() - math.log(scale * math.sqrt(2 * math.pi))


# Primer


@equation("0.1", "the log-sum-exp may be shifted by any m (decimal arithmetic with 40 digits)", "log_mean_exp")
def eq_0_1() -> float:
    residuals = []
    for numbers in ([-944.0, -945.5, -2000.0], [700.0, 710.0, 699.0], [0.3, -1.0, 0.3]):
        with localcontext() as context:
            context.prec = 40
            exact = float(sum(Decimal(number).exp() for number in numbers).ln())
        a = torch.tensor(numbers, dtype=F64)
        shifts = torch.stack([a.max(), a.max() - 7.0, a.max() + 3.0])
        shifted = shifts + (a[:, None] - shifts).exp().sum(0).log()
        residuals += [shifted - exact, lv.log_mean_exp(a[:, None]) + math.log(3) - exact]
    return largest(*residuals)


def laws_on_a_grid() -> torch.Tensor:
    """All laws of three values whose probabilities are multiples of 1/10, zeros included, shape (66, 3)."""
    counts = [c for c in itertools.product(range(11), repeat=3) if sum(c) == 10]
    return torch.tensor(counts, dtype=F64) / 10


def kl_table(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """KL(q‖p) of every law in q with every law in p, by the definition."""
    q, p = q[:, None], p[None]
    return torch.where(q > 0, q * (q.log() - p.log()), 0.0).sum(-1)


@equation("0.2", "E log W ≤ log E W, equal only for constant W (66 laws, three values)")
def eq_0_2() -> float:
    laws, residuals = laws_on_a_grid(), []
    for values in ((1.0, 9.0, 0.2), (3.0, 3.1, 1e-6), (2.0, 2.0, 2.0)):
        w = torch.tensor(values, dtype=F64)
        gap = (laws @ w).log() - laws @ w.log()
        constant = (laws @ w.square() - (laws @ w).square()) < 1e-12
        residuals += [gap.clamp(max=0.0), gap[constant], (gap[~constant] <= 0).double()]
    return largest(*residuals)


@equation("0.3", "KL ≥ 0, and 0 only for equal laws (all pairs of 66 laws)")
def eq_0_3() -> float:
    laws = laws_on_a_grid()
    kl = kl_table(laws, laws)
    same = torch.eye(len(laws), dtype=torch.bool)
    return largest(kl.clamp(max=0.0), kl[same], (kl[~same] <= 0).double())


@equation("0.4", "KL between two Gaussians in closed form (quadrature)", "DiagonalGaussian")
def eq_0_4() -> float:
    z = torch.linspace(-60, 60, 60_001, dtype=F64)[:, None]
    residuals = []
    for m, s, mu, sigma in ((0.5, 0.8, -1.0, 2.0), (1.0, 3.0, 0.0, 1.5), (0.0, 0.4, 0.0, 0.5)):
        closed = math.log(sigma / s) + (s**2 + (m - mu) ** 2) / (2 * sigma**2) - 0.5
        q = lv.DiagonalGaussian(torch.tensor([m], dtype=F64), torch.tensor([s], dtype=F64))
        p = lv.DiagonalGaussian(torch.tensor([mu], dtype=F64), torch.tensor([sigma], dtype=F64))
        log_q, log_p = q.log_prob(z), p.log_prob(z)
        integral = (log_q.exp() * (log_q - log_p)).sum() * (z[1, 0] - z[0, 0])
        residuals += [integral - closed, torch.distributions.kl_divergence(q, p) - closed]
    return largest(*residuals)


@equation("0.5", "the gradient of a log-sum-exp is the softmax (autograd, differences)", "log_mean_exp", tolerance=1e-9)
def eq_0_5() -> float:
    a = torch.tensor([0.3, -1.0, 2.0, -0.4], dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(lv.log_mean_exp(a[:, None]).sum(), a)
    softmax = a.detach().exp() / a.detach().exp().sum()
    steps = 1e-4 * torch.eye(4, dtype=F64)

    def log_sum_exp(b: torch.Tensor) -> torch.Tensor:
        return b.exp().sum(-1).log()

    # fourth-order central differences: error of order 1e-16 from the formula, 1e-12 from rounding
    near, far = (log_sum_exp(a.detach() + k * steps) - log_sum_exp(a.detach() - k * steps) for k in (1, 2))
    return largest(gradient - softmax, (8 * near - far) / 12e-4 - softmax)


# Chapter 1 · Why latent variable models?


def binary_vectors(length: int) -> torch.Tensor:
    """Return all binary vectors, shape (2^length, length)."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * length).reshape(-1, length)


def bernoulli_mixture() -> lv.BernoulliMixture:
    """Three types of image with five pixels, in float64."""
    torch.manual_seed(0)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    return lv.BernoulliMixture(weights, 0.1 + 0.8 * torch.rand(3, 5, dtype=F64)).requires_grad_(False)


@equation("1.1", "the masked network's law is the product of its conditionals", "AutoregressiveModel.log_prob")
def eq_1_1() -> float:
    torch.manual_seed(0)
    model, x = lv.AutoregressiveModel(5, 7).double().requires_grad_(False), binary_vectors(5)
    p = model.log_prob(x).exp()
    residuals = [p.sum() - 1]
    for d in range(5):
        same_past = (x[:, None, :d] == x[None, :, :d]).all(-1).double()
        conditional = (same_past @ (p * x[:, d])) / (same_past @ p)
        residuals.append(conditional - model(x).mean[:, d])
    return largest(*[residual.reshape(-1) for residual in residuals])


@equation("1.2", "p(x) is the prior-weighted sum of products over pixels", "exact_log_marginal")
def eq_1_2() -> float:
    model, x = bernoulli_mixture(), binary_vectors(5)
    weights, means = model.weight_logits.softmax(0), model.logits.sigmoid()
    total = sum(weights[c] * (means[c] ** x * (1 - means[c]) ** (1 - x)).prod(1) for c in range(3))
    return largest(lv.exact_log_marginal(model, x).exp() - total)


@equation("1.3", "pixels are independent given z, for every pair and every z", "LatentVariableModel.log_likelihood")
def eq_1_3() -> float:
    model, x = bernoulli_mixture(), binary_vectors(5)
    given_z = model.log_likelihood(x, model.states()).exp()  # p(x | z) of all 32 images, (3, 32)
    both = torch.einsum("cn,ni,nj->cij", given_z, x, x)
    on = given_z @ x
    pairs = ~torch.eye(5, dtype=torch.bool)
    return largest((both - on[:, :, None] * on[:, None, :])[:, pairs])


# Chapter 2 · Training by likelihood


@equation("2.1", "the gradient of log p(x) is the posterior mean of the gradient of log p(x, z)", "exact_log_marginal")
def eq_2_1() -> float:
    model = small_mixture()
    model.loc.requires_grad_(True)
    (left,) = torch.autograd.grad(lv.exact_log_marginal(model, X).sum(), [model.loc])
    posterior = lv.exact_posterior(model, X).law.probs.detach()
    (right,) = torch.autograd.grad((posterior.T * model.log_joint(X, model.states())).sum(), [model.loc])
    return largest(left - right)


@equation("2.2", "EM's lower bound on the gain of log p(x) (largest violation)", "exact_posterior", "em")
def eq_2_2() -> float:
    old, violations = small_mixture(), []
    r = lv.exact_posterior(old, X).law.probs.T
    old_joint = old.log_joint(X, old.states())
    for seed in range(20):
        torch.manual_seed(seed)
        new = small_mixture()
        new.loc += torch.randn(3, 1, dtype=F64)
        new.weight_logits += torch.randn(3, dtype=F64)
        new_joint = new.log_joint(X, new.states())
        gain = lv.exact_log_marginal(new, X) - lv.exact_log_marginal(old, X)
        identity = (r * (new_joint - old_joint).exp()).sum(0).log()  # the first line
        bound = (r * (new_joint - old_joint)).sum(0)  # the second line
        violations += [gain - identity, (bound - gain).clamp_min(0.0)]
    history = lv.em(small_mixture(), X, 20)
    # the M-step maximizes the second line: the gradient of E_r[log p(x, z)] is zero after it
    new = small_mixture()
    new.m_step(X, r.T)
    new.requires_grad_(True)
    objective = (r * new.log_joint(X, new.states())).sum()
    gradients = torch.autograd.grad(objective, [new.loc, new.weight_logits])
    rises = torch.tensor(float(history[1] <= history[0]))
    return largest(*violations, (-history.diff()).clamp_min(0.0), *gradients, rises[None])


@equation("2.3", "the M-step with pseudo-counts maximizes the penalized objective", "BernoulliMixture.m_step")
def eq_2_3() -> float:
    model, x = bernoulli_mixture(), binary_vectors(5)[[1, 5, 7, 22, 30, 31]]
    r = lv.exact_posterior(model, x).law.probs
    model.m_step(x, r, 0.5)
    model.logits.requires_grad_(True)
    objective = (r.T * model.log_likelihood(x, model.states())).sum() + model.log_penalty(0.5)
    (gradient,) = torch.autograd.grad(objective, [model.logits])  # zero at the maximum of a concave function
    by_hand = (0.5 + r.T @ x) / (1.0 + r.sum(0)[:, None])
    return largest(gradient, model.logits.sigmoid() - by_hand, model.prior().probs - r.mean(0))


@equation(
    "2.4", "the linear-Gaussian marginal against quadrature", "LinearGaussian.marginal", "exact_log_marginal", "Grid"
)
def eq_2_4() -> float:
    weight = torch.tensor([[1.0, 0.5], [0.0, 1.2], [0.7, -1.0]], dtype=F64)
    model = lv.LinearGaussian(weight, torch.tensor([0.1, -0.2, 0.3], dtype=F64), 0.6)
    x = torch.tensor([[0.3, -2.0, 1.0], [2.0, 0.0, 1.0]], dtype=F64)
    return largest(lv.exact_log_marginal(model, x) - lv.exact_log_marginal(model, x, grid=lv.Grid(161, 9.0)))


@equation("2.5", "E log p̂_K rises with K and stays below log p(x) (largest violation)", "exact_expected_log_mean")
def eq_2_5() -> float:
    _, log_w, p = mixture_weights()
    violations = []
    for column in range(2):
        expected = [lv.exact_expected_log_mean(log_w[:, column], PROPOSAL.log(), k) for k in range(1, 30)]
        expected = torch.stack([*expected, p[column].log()])
        violations.append((-expected.diff()).clamp_min(0.0))
    # the values themselves, against the sum over all runs
    runs, probability = all_runs(3)
    by_runs = probability @ log_w[runs, 0].exp().mean(1).log()
    return largest(*violations, by_runs - lv.exact_expected_log_mean(log_w[:, 0], PROPOSAL.log(), 3))


@equation(
    "2.6", "C separated causes: relative variance C − 1, and 10 % error with 100 (C − 1) samples", "GaussianMixture"
)
def eq_2_6() -> float:
    residuals = []
    for c in (2, 5, 17):
        loc = 100.0 * torch.arange(c, dtype=F64)[:, None]
        model = lv.GaussianMixture(torch.full((c,), 1 / c, dtype=F64), loc, torch.ones(1, dtype=F64))
        w = model.log_likelihood(torch.full((1, 1), 0.3, dtype=F64), model.states())[:, 0].exp()
        variance = w.square().mean() - w.mean().square()
        residuals.append((variance / w.mean().square() - (c - 1)).reshape(1))
        # with K = 100 (C − 1) the standard error is a tenth of p(x)
        residuals.append(((variance / (100 * (c - 1))).sqrt() / w.mean() - 0.1).reshape(1))
    return largest(*residuals)


@equation("2.7", "second moment of a Gaussian likelihood under the prior (quadrature)")
def eq_2_7() -> float:
    z = torch.linspace(-12, 12, 40_001, dtype=F64)
    residuals = []
    for x, s in ((0.0, 0.3), (1.3, 0.8)):
        integral = (log_normal(z, 0.0, 1.0) + 2 * log_normal(torch.tensor(x, dtype=F64), z, s)).exp().sum() * (
            z[1] - z[0]
        )
        closed = log_normal(torch.tensor(x, dtype=F64), 0.0, math.sqrt(1 + s**2 / 2)).exp() / (
            2 * s * math.sqrt(math.pi)
        )
        residuals.append((integral - closed).reshape(1))
    return largest(*residuals)


# Chapter 3 · Importance sampling


@equation(
    "3.1", "p(x) is the expectation of the weights under any proposal", "score", "Draw.log_w", "exact_log_marginal"
)
def eq_3_1() -> float:
    model, q = small_mixture(), torch.distributions.Categorical(probs=PROPOSAL.expand(2, 3))
    states = torch.arange(3)[:, None].expand(3, 2)
    log_w = lv.score(model, X, q, states).log_w
    _, _, p = mixture_weights()
    return largest(PROPOSAL @ log_w.exp() - p, lv.exact_log_marginal(model, X).exp() - p)


@equation("3.2", "the estimate of p(x) is unbiased (all runs, K = 1, 2, 3)", "log_mean_exp")
def eq_3_2() -> float:
    _, log_w, p = mixture_weights()
    residuals = []
    for num_samples in (1, 2, 3):
        runs, probability = all_runs(num_samples)
        estimates = torch.stack([lv.log_mean_exp(log_w[run]) for run in runs]).exp()
        residuals.append(probability @ estimates - p)
    return largest(*residuals)


@equation("3.3", "with the posterior as proposal every weight is p(x)", "posterior_proposal", "draw", "score")
def eq_3_3() -> float:
    linear = lv.LinearGaussian(
        torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]], dtype=F64), torch.ones(3, dtype=F64), 0.7
    )
    x = torch.tensor([[0.3, -2.0, 1.0], [5.0, 0.0, 1.0]], dtype=F64)
    residuals = []
    for model, data in ((small_mixture(), X), (linear, x)):
        q = lv.posterior_proposal(model)(data)
        residuals.append(lv.score(model, data, q, lv.draw(q, 7)).log_w - lv.exact_log_marginal(model, data))
    return largest(*residuals)


@equation("3.4", "the variance of the estimate is Var(w)/K (all runs, K = 1, 2, 3)", "log_mean_exp")
def eq_3_4() -> float:
    _, log_w, p = mixture_weights()
    variance = PROPOSAL @ log_w.exp().square() - p.square()
    residuals = []
    for num_samples in (1, 2, 3):
        runs, probability = all_runs(num_samples)
        estimates = torch.stack([lv.log_mean_exp(log_w[run]) for run in runs]).exp()
        residuals.append(probability @ (estimates - p).square() - variance / num_samples)
    return largest(*residuals)


@equation("3.5", "the relative variance of the weights is the chi-squared divergence", "exact_posterior")
def eq_3_5() -> float:
    _, log_w, p = mixture_weights()
    posterior = lv.exact_posterior(small_mixture(), X).law.probs.T
    chi2 = PROPOSAL @ (posterior / PROPOSAL[:, None] - 1).square()
    return largest((PROPOSAL @ log_w.exp().square() - p.square()) / p.square() - chi2)


@equation(
    "3.6", "bias of log p̂: χ²/2K, and the remainder as K⁻² (two states)", "exact_expected_log_mean", tolerance=1e-2
)
def eq_3_6() -> float:
    q, w = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    p = q @ w
    chi2, third = (q @ (w / p - 1) ** power for power in (2, 3))
    residuals = []
    for num_samples in (2_000, 20_000):
        bias = p.log() - lv.exact_expected_log_mean(w.log(), q.log(), num_samples)
        residuals.append((num_samples * bias - chi2 / 2).reshape(1))  # of order 1/K
        # the next term of the expansion: K² times the remainder tends to −E[(w/p − 1)³]/3 + 3χ⁴/4
        residuals.append((num_samples**2 * (bias - chi2 / (2 * num_samples)) + third / 3 - 3 * chi2**2 / 4).reshape(1))
    return largest(*residuals)


@equation("3.7", "ESS/K of draws in exact proportion to q is 1/(1 + χ²)", "effective_sample_size")
def eq_3_7() -> float:
    _, log_w, p = mixture_weights()
    draws = torch.arange(3).repeat_interleave(torch.tensor([2, 3, 5]))  # ten draws, in the proportions of PROPOSAL
    one_plus = PROPOSAL @ log_w.exp().square() / p.square()
    return largest(lv.effective_sample_size(log_w[draws]) / 10 - 1 / one_plus)


@equation("3.8", "1 + χ² of a Gaussian proposal in closed form; infinite for s ≤ σ/√2 (quadrature)", tolerance=1e-9)
def eq_3_8() -> float:
    residuals = []
    for s, sigma, shift in ((1.5, 1.0, 0.7), (0.8, 1.0, 0.3), (3.0, 2.0, -1.0)):
        z = torch.linspace(-80, 80, 400_001, dtype=F64)
        integral = (2 * log_normal(z, 0.0, sigma) - log_normal(z, shift, s)).exp().sum() * (z[1] - z[0])
        residuals.append(integral - one_plus_chi2(s, sigma, shift))
    # beyond the threshold the integrand grows towards the tail, below it the integrand falls
    tail = torch.tensor([50.0, 100.0], dtype=F64)
    for s, grows in ((0.70, True), (math.sqrt(0.5) - 1e-9, True), (math.sqrt(0.5) + 1e-9, False), (0.72, False)):
        log_term = 2 * log_normal(tail, 0.0, 1.0) - log_normal(tail, 0.0, s)
        residuals.append(torch.tensor(float((log_term[1] > log_term[0]).item() != grows)))
    return largest(*residuals)


@equation("3.9", "the weights of a narrow Gaussian proposal have tail index 1 − s²/σ²", tolerance=1e-5)
def eq_3_9() -> float:
    residuals = []
    for s, sigma in ((0.4, 1.0), (1.3, 2.0)):
        rate = 1 / (2 * s**2) - 1 / (2 * sigma**2)  # log w = rate · z² + constant, increasing in |z|
        z = s * torch.tensor([1000.0, 1001.0], dtype=F64)
        log_tail = torch.special.log_ndtr(-z / s)  # log P(w > t), up to log 2
        slope = (log_tail[1] - log_tail[0]) / (rate * (z[1] ** 2 - z[0] ** 2))
        residuals.append(-1 / slope - (1 - s**2 / sigma**2))
    return largest(*residuals)


@equation("3.10", "1 + χ² multiplies over independent coordinates")
def eq_3_10() -> float:
    _, log_w, p = mixture_weights()
    w, p = log_w[:, 0].exp(), p[0]
    one = (PROPOSAL @ w.square()) / p.square()
    runs, probability = all_runs(4)  # four independent coordinates
    return largest(probability @ w[runs].prod(1).square() / p**8 - one**4)


# Chapter 4 · The variational approach


def some_laws() -> torch.Tensor:
    """Ten laws over three values, shape (10, 3), none of them special."""
    torch.manual_seed(0)
    return torch.rand(10, 3, dtype=F64).softmax(1)


def categorical_kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """KL(q‖p) over the last axis, by the definition."""
    return (q * (q.log() - p.log())).sum(-1)


@equation(
    "4.1", "the three lines of the KL derivation are one number (ten laws q)", "exact_posterior", "exact_log_marginal"
)
def eq_4_1() -> float:
    model = small_mixture()
    log_joint, _, p = mixture_weights()
    posterior = lv.exact_posterior(model, X).law.probs
    residuals = []
    for q in some_laws():
        for i in range(2):
            first = categorical_kl(q, posterior[i])
            second = (q * (q / (log_joint[:, i].exp() / p[i])).log()).sum()
            third = (q * (q.log() - log_joint[:, i])).sum() + lv.exact_log_marginal(model, X)[i]
            residuals += [(first - second).reshape(1), (first - third).reshape(1)]
    return largest(*residuals)


@equation("4.2", "log p(x) = ELBO + KL, and the KL is not negative", "exact_elbo", "exact_log_marginal")
def eq_4_2() -> float:
    model, residuals = small_mixture(), []
    posterior, (_, _, p) = lv.exact_posterior(model, X).law.probs, mixture_weights()
    for q in some_laws():
        bound = lv.exact_elbo(model, X, torch.distributions.Categorical(probs=q.expand(2, 3)))
        residuals += [p.log() - bound - categorical_kl(q, posterior), (bound - p.log()).clamp_min(0.0)]
    return largest(*residuals)


@equation("4.3", "the ELBO's maximum over all q is log p(x), at the posterior", "exact_elbo", "posterior_proposal")
def eq_4_3() -> float:
    model, (_, _, p) = small_mixture(), mixture_weights()
    q = lv.posterior_proposal(model)(X)
    logits = q.logits.clone().requires_grad_(True)
    bound = lv.exact_elbo(model, X, torch.distributions.Categorical(logits=logits))
    (gradient,) = torch.autograd.grad(bound.sum(), [logits])
    return largest(bound - p.log(), gradient)


@equation(
    "4.4", "the Gaussian of least forward KL has the posterior's mean and variance", "exact_posterior", tolerance=1e-8
)
def eq_4_4() -> float:
    posterior = lv.exact_posterior(small_mixture(), X).law.probs[0]
    z = torch.tensor([-1.0, 0.4, 2.5], dtype=F64)  # three values with the posterior's probabilities
    mean = posterior @ z
    loc, log_scale = (
        mean.clone().requires_grad_(True),
        (posterior @ (z - mean).square()).log().div(2).requires_grad_(True),
    )
    cross_entropy = -(posterior * (-0.5 * ((z - loc) / log_scale.exp()).square() - log_scale)).sum()
    gradients = torch.autograd.grad(cross_entropy, [loc, log_scale], create_graph=True)
    curvature = [
        torch.autograd.grad(g, p, retain_graph=True)[0] for g, p in zip(gradients, (loc, log_scale), strict=True)
    ]
    not_a_minimum = torch.tensor(float(min(c.item() for c in curvature) <= 0))
    return largest(*[g.reshape(1) for g in gradients], not_a_minimum.reshape(1))


@equation(
    "4.5", "a law that covers one of two equal humps is log 2 away (two far Gaussians, quadrature)", tolerance=1e-9
)
def eq_4_5() -> float:
    z = torch.linspace(-40, 40, 40_001, dtype=F64)
    one, other = log_normal(z, -10.0, 0.7), log_normal(z, 10.0, 1.3)
    log_p = torch.logaddexp(one, other) - math.log(2)
    kl = (one.exp() * (one - log_p)).sum() * (z[1] - z[0])
    return largest(kl.reshape(1) - math.log(2))


@equation("4.6", "mean, variances and gap of the best diagonal Gaussian", "exact_elbo", "LinearGaussian.posterior")
def eq_4_6() -> float:
    weight = torch.tensor([[1.0, 0.9], [0.9, 1.0], [0.2, -0.4]], dtype=F64)
    model = lv.LinearGaussian(weight, torch.zeros(3, dtype=F64), 0.5).requires_grad_(False)
    x = torch.tensor([[1.0, 0.5, 0.2], [-1.0, 0.3, 2.0]], dtype=F64)
    exact = model.posterior(x)
    precision = torch.linalg.inv(exact.covariance_matrix[0])
    loc = exact.mean.clone().requires_grad_(True)
    log_scale = (-precision.diagonal().log() / 2).expand(2, 2).clone().requires_grad_(True)
    bound = lv.exact_elbo(model, x, lv.DiagonalGaussian(loc, log_scale.exp()))
    gradients = torch.autograd.grad(bound.sum(), [loc, log_scale])
    gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
    return largest(*gradients, lv.exact_log_marginal(model, x) - bound - gap)


@equation("4.7", "gap −½ log(1 − ρ²), and infinite variance of the weights from |ρ| = ½ on")
def eq_4_7() -> float:
    residuals = []
    for rho in (-0.9, -0.5001, -0.4999, 0.3, 0.4999, 0.5001, 0.8):
        precision = torch.linalg.inv(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=F64))
        gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
        residuals.append((gap + math.log(1 - rho**2) / 2).reshape(1))
        # the integrand p²/q falls in every direction exactly if 2Λ − diag Λ is positive definite
        falls = torch.linalg.eigvalsh(2 * precision - precision.diagonal().diag()).min() > 0
        residuals.append(torch.tensor([float(falls.item() != (abs(rho) < 0.5))]))
    return largest(*residuals)


# Chapter 5 · Amortization


def linear_case() -> tuple[lv.LinearGaussian, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a linear-Gaussian model, data (5, 3), and W, μ and σ of the model, all in float64."""
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 2, dtype=F64), torch.randn(3, dtype=F64)
    return lv.LinearGaussian(weight, bias, 0.6).requires_grad_(False), torch.randn(5, 3, dtype=F64), weight, bias, 0.6


@equation("5.1", "the summed KL is the summed log p(x) minus the summed ELBO (mixture, two points)", "exact_elbo")
def eq_5_1() -> float:
    model, (_, _, p) = small_mixture(), mixture_weights()
    q = torch.stack([some_laws()[0], some_laws()[1]])  # a law per data point, as an encoder would give
    bound = lv.exact_elbo(model, X, torch.distributions.Categorical(probs=q))
    kl = categorical_kl(q, lv.exact_posterior(model, X).law.probs)
    return largest((kl.sum() - p.log().sum() + bound.sum()).reshape(1))


@equation(
    "5.2", "the two gaps add up, and neither is negative (closed-form Gaussian KL)", "exact_elbo", "GaussianEncoder"
)
def eq_5_2() -> float:
    model, x, *_ = linear_case()
    encoder = lv.GaussianEncoder(torch.nn.Linear(3, 4)).double().requires_grad_(False)
    exact = model.posterior(x)
    best = lv.DiagonalGaussian(exact.mean, torch.linalg.inv(exact.covariance_matrix).diagonal(dim1=1, dim2=2) ** -0.5)
    log_p, best_bound, bound = (
        lv.exact_log_marginal(model, x),
        *(lv.exact_elbo(model, x, q) for q in (best, encoder(x))),
    )
    residuals = []
    for q, gap in ((best, log_p - best_bound), (encoder(x), log_p - bound)):
        full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
        kl = torch.distributions.kl_divergence(
            full, torch.distributions.MultivariateNormal(exact.mean, exact.covariance_matrix)
        )
        residuals.append(gap - kl)
    return largest(*residuals, (best_bound - bound).clamp(max=0.0), (log_p - best_bound).clamp(max=0.0))


@equation(
    "5.3",
    "a linear encoder attains the best diagonal Gaussian of a linear-Gaussian model",
    "GaussianEncoder",
    "exact_elbo",
)
def eq_5_3() -> float:
    model, x, weight, bias, scale = linear_case()
    m = weight.T @ weight + scale**2 * torch.eye(2, dtype=F64)
    network = torch.nn.Linear(3, 4).double()
    to_mean = torch.linalg.solve(m, weight.T)
    network.weight.data = torch.cat([to_mean, torch.zeros(2, 3, dtype=F64)])
    network.bias.data = torch.cat([-to_mean @ bias, (scale**2 / m.diagonal()).log() / 2])
    q = lv.GaussianEncoder(network)(x)
    loc, log_scale = q.mean.detach().requires_grad_(True), q.stddev.log().detach().requires_grad_(True)
    bound = lv.exact_elbo(model, x, lv.DiagonalGaussian(loc, log_scale.exp()))
    return largest(*torch.autograd.grad(bound.sum(), [loc, log_scale]))  # the ELBO is concave in both


# Chapter 6


def bits_case() -> tuple[lv.BinaryLatentModel, torch.Tensor, torch.Tensor]:
    """Return a model with three binary latents and a learned prior, data (4, 5), and logits of a factorized q."""
    torch.manual_seed(6)
    model = lv.BinaryLatentModel(3, lv.BernoulliDecoder(lv.mlp(3, [4], 5)), learn_prior=True).double()
    model.prior_logits.data = torch.randn(3, dtype=F64)
    return model, (torch.rand(4, 5) < 0.5).double(), torch.randn(4, 3, dtype=F64)


def log_prob_of_bits(logits: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Log probability of independent bits from the formula, (S, B)."""
    return (bits * logits.sigmoid().log() + (1 - bits) * (1 - logits.sigmoid()).log()).sum(-1)


@equation("6.1", "Jensen: E log w ≤ log E w = log p(x) (sums over eight states)", "exact_log_marginal", "exact_elbo")
def eq_6_1() -> float:
    model, x, logits = bits_case()
    log_q = log_prob_of_bits(logits, model.states())
    log_w = model.log_joint(x, model.states()) - log_q
    mean_w, bound = (log_q + log_w).logsumexp(0), (log_q.exp() * log_w).sum(0)
    return largest(
        mean_w - lv.exact_log_marginal(model, x),
        bound - lv.exact_elbo(model, x, lv.BernoulliVector(logits)),
        (bound - mean_w).clamp(min=0.0),
    )


@equation("6.2", "log p(x) − VLB is the divergence to the posterior (sums over eight states)", "exact_posterior")
def eq_6_2() -> float:
    model, x, logits = bits_case()
    log_q, posterior = log_prob_of_bits(logits, model.states()), lv.exact_posterior(model, x).law.probs.T
    kl = (log_q.exp() * (log_q - posterior.log())).sum(0)
    bound = lv.exact_elbo(model, x, lv.BernoulliVector(logits))
    return largest(lv.exact_log_marginal(model, x) - bound - kl)


@equation("6.3", "the three faces of the VLB have one expectation (sums, and quadrature)", "kl_to_prior", "exact_elbo")
def eq_6_3() -> float:
    model, x, logits = bits_case()
    q, states = lv.BernoulliVector(logits), model.states()
    share = log_prob_of_bits(logits, states).exp()
    residuals = [
        (share * model.log_likelihood(x, states)).sum(0) - lv.kl_to_prior(q, model) - lv.exact_elbo(model, x, q),
        (share * model.log_joint(x, states)).sum(0) + q.entropy() - lv.exact_elbo(model, x, q),
    ]
    linear, x, *_ = linear_case()
    q = lv.DiagonalGaussian(torch.randn(5, 2, dtype=F64), torch.rand(5, 2, dtype=F64) + 0.3)
    noise, log_share = hermite_nodes(30, 2)
    z = q.transport(noise.expand(-1, 5, -1))
    likelihood, joint = (log_share.exp() @ values for values in (linear.log_likelihood(x, z), linear.log_joint(x, z)))
    bound = lv.exact_elbo(linear, x, q)
    return largest(*residuals, likelihood - lv.kl_to_prior(q, linear) - bound, joint + q.entropy() - bound)


@equation("6.4", "at the posterior log w has no variance, log p(x, z) has d/2 (quadrature)", "score", "LinearGaussian")
def eq_6_4() -> float:
    model, x, *_ = linear_case()
    noise, log_share = hermite_nodes(30, 2)
    q = model.posterior(x)
    sample = lv.score(model, x, q, q.transport(noise.expand(-1, 5, -1)))
    share, residuals = log_share.exp(), []
    for values, variance in ((sample.log_w, 0.0), (sample.log_prior + sample.log_likelihood, 1.0), (sample.log_q, 1.0)):
        residuals.append(share @ (values - share @ values).square() - variance)
    return largest(*residuals)


@equation("6.5", "the VLB's gradient in θ is the q-average of the gradient of log p(x, z)", "exact_elbo")
def eq_6_5() -> float:
    model, x, logits = bits_case()
    theta = [p for p in model.parameters() if p.requires_grad]
    left = torch.autograd.grad(lv.exact_elbo(model, x, lv.BernoulliVector(logits)).sum(), theta)
    shares = log_prob_of_bits(logits, model.states()).exp()
    right = [torch.zeros_like(p) for p in theta]
    for s in range(8):  # one gradient per state and data point, then the average
        for b in range(4):
            z = model.states()[s : s + 1]
            parts = torch.autograd.grad(model.log_joint(x[b : b + 1], z).sum(), theta)
            right = [total + shares[s, b] * part for total, part in zip(right, parts, strict=True)]
    return largest(*(a - b for a, b in zip(left, right, strict=True)))


@equation(
    "6.6", "the reparameterized gradient in φ against the integral over z on a grid", "DiagonalGaussian.transport"
)
def eq_6_6() -> float:
    torch.manual_seed(7)
    model = lv.GaussianLatentModel(1, lv.BernoulliDecoder(lv.mlp(1, [5], 6))).double().requires_grad_(False)
    x = model.sample(1)[1]
    residuals = []
    for mean, log_scale in ((0.5, -0.7), (-1.2, 0.1)):
        phi = torch.tensor([mean, log_scale], dtype=F64, requires_grad=True)
        z = torch.linspace(-14, 14, 4001, dtype=F64)
        log_q = -0.5 * ((z - phi[0]) / phi[1].exp()).square() - phi[1] - 0.5 * math.log(2 * math.pi)
        log_w = model.log_joint(x, z[:, None, None])[:, 0] - log_q
        truth = torch.autograd.grad((log_q.exp() * log_w).sum() * (z[1] - z[0]), phi)[0]
        noise, log_share = hermite_nodes(120, 1)
        q = lv.DiagonalGaussian(phi[:1][None], phi[1:].exp()[None])
        along_path = log_share.exp() @ lv.score(model, x, q, q.transport(noise)).log_w[:, 0]
        residuals.append(truth - torch.autograd.grad(along_path, phi)[0])
    return largest(*residuals)


@equation("6.7", "the VLB's gradient in θ is that of log p(x) minus that of the divergence", "exact_elbo")
def eq_6_7() -> float:
    model, x, logits = bits_case()
    theta = [p for p in model.parameters() if p.requires_grad]
    log_q = log_prob_of_bits(logits, model.states())
    log_joint = model.log_joint(x, model.states())
    kl = (log_q.exp() * (log_q - log_joint + log_joint.logsumexp(0))).sum()
    bound = lv.exact_elbo(model, x, lv.BernoulliVector(logits)).sum()
    values = (bound, lv.exact_log_marginal(model, x).sum(), kl)
    left, likelihood, divergence = (torch.autograd.grad(value, theta, retain_graph=True) for value in values)
    return largest(*(a - b + c for a, b, c in zip(left, likelihood, divergence, strict=True)))


@equation("6.8", "a rotated W leaves p(x) and makes the best diagonal Gaussian exact", "LinearGaussian", "exact_elbo")
def eq_6_8() -> float:
    model, x, weight, bias, scale = linear_case()
    rotation = torch.linalg.eigh(weight.T @ weight).eigenvectors
    turned = lv.LinearGaussian(weight @ rotation, bias, scale).requires_grad_(False)
    law = turned.posterior(x)
    best = lv.DiagonalGaussian(law.mean, law.precision_matrix.diagonal(dim1=1, dim2=2).rsqrt())
    log_p = lv.exact_log_marginal(model, x)
    return largest(lv.exact_log_marginal(turned, x) - log_p, lv.exact_elbo(turned, x, best) - log_p)


@equation("6.9", "the gain of one linear cause, and its sign at the threshold λ₁ = σ²", "LinearGaussian.marginal")
def eq_6_9() -> float:
    torch.manual_seed(8)
    square = torch.randn(3, 3, dtype=F64)
    covariance = square @ square.T
    eigenvalues, directions = torch.linalg.eigh(covariance)
    zero, residuals = torch.zeros(3, dtype=F64), []

    def expected(weight: torch.Tensor, scale: float) -> torch.Tensor:  # E log N(x; 0, C) has only x xᵀ in it
        c = lv.LinearGaussian(weight, zero, scale).marginal().covariance_matrix
        return -0.5 * (c.logdet() + torch.trace(torch.linalg.solve(c, covariance)) + 3 * math.log(2 * math.pi))

    for factor in (1.0, 1.3, 0.8):  # σ² / λ₁
        scale = (factor * eigenvalues[-1]).sqrt().item()
        gains = []
        for r in (0.05, 0.3, 1.0, 3.0):
            for u in [*directions.T, torch.nn.functional.normalize(torch.randn(3, dtype=F64), dim=0)]:
                total = scale**2 + r**2
                formula = 0.5 * (r**2 * (u @ covariance @ u) / (scale**2 * total) - math.log(total / scale**2))
                gain = expected(r * u[:, None], scale) - expected(torch.zeros(3, 1, dtype=F64), scale)
                residuals.append(gain - formula)
                gains.append(gain)
        best = torch.stack(gains).max()
        residuals.append(best.clamp(min=0.0) if factor >= 1 else (best <= 0).double())
    return largest(*(residual.reshape(1) for residual in residuals))


# Chapter 7


def score_of_bits(logits: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Return the derivatives of the log probability of independent bits in their logits, z − σ(ℓ), (S, B, L)."""
    return bits - logits.sigmoid()


def bits_log_w() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return probabilities (8, 4), log w (8, 4) and scores (8, 4, 3) of all states, and the exact gradient (4, 3)."""
    model, x, logits = bits_case()
    log_q = log_prob_of_bits(logits, model.states())
    phi = logits.clone().requires_grad_()
    truth = torch.autograd.grad(lv.exact_elbo(model, x, lv.BernoulliVector(phi)).sum(), phi)[0]
    log_w = (model.log_joint(x, model.states()) - log_q).detach()
    return log_q.exp(), log_w, score_of_bits(logits, model.states()), truth


@equation("7.1", "the VLB's gradient in φ is the average of log w times the score (all states)", "score_function")
def eq_7_1() -> float:
    share, log_w, scores, truth = bits_log_w()
    model, x, logits = bits_case()
    by_library = torch.zeros_like(truth)
    for s in range(8):  # the surrogate's own gradient, one state at a time
        phi = logits.clone().requires_grad_()
        z = model.states()[s : s + 1].expand(-1, 4, -1)
        value = lv.score_function(model, x, lv.BernoulliVector(phi), z).sum()
        by_library += share[s][:, None] * torch.autograd.grad(value, phi)[0]
    return largest((share[..., None] * log_w[..., None] * scores).sum(0) - truth, by_library - truth)


@equation("7.2", "no baseline changes the mean of the score-function gradient", "exact_elbo")
def eq_7_2() -> float:
    share, log_w, scores, truth = bits_log_w()
    means = [((share * (log_w - b))[..., None] * scores).sum(0) - truth for b in (-30.0, 0.0, 7.5, log_w[0])]
    return largest(*means)


@equation("7.3", "the baseline of least variance, as the vertex of a parabola (autograd)")
def eq_7_3() -> float:
    share, log_w, scores, truth = bits_log_w()
    best = (share[..., None] * log_w[..., None] * scores**2).sum(0) / (share[..., None] * scores**2).sum(0)
    b = best.clone().requires_grad_()
    variance = (share[..., None] * ((log_w[..., None] - b) * scores - truth) ** 2).sum(0)
    (slope,) = torch.autograd.grad(variance.sum(), b)
    worse = (share[..., None] * ((log_w[..., None] - best - 0.3) * scores - truth) ** 2).sum(0)
    return largest(slope, (variance - worse).clamp(min=0.0))


@equation("7.4", "leave-one-out: its two forms, and its mean (all pairs and triples of states)", "leave_one_out")
def eq_7_4() -> float:
    share, log_w, scores, truth = bits_log_w()
    residuals = []
    for k in (2, 3):
        runs = torch.cartesian_prod(*[torch.arange(8)] * k)  # (8^K, K)
        values = log_w[runs]  # (8^K, K, 4)
        others = torch.stack([values[:, [j for j in range(k) if j != i]].mean(1) for i in range(k)], 1)
        residuals.append(values - others - k / (k - 1) * (values - values.mean(1, keepdim=True)))
        estimate = ((values - others)[..., None] * scores[runs]).mean(1)
        residuals.append((share[runs].prod(1)[..., None] * estimate).sum(0) - truth)
    model, x, logits = bits_case()
    phi = logits.clone().requires_grad_()
    pair = model.states()[[5, 2], 0][:, None].expand(-1, 4, -1)
    value = lv.leave_one_out(model, x, lv.BernoulliVector(phi), pair).sum()
    signal = log_w[5] - log_w[2]
    by_hand = (signal[:, None] * scores[5] - signal[:, None] * scores[2]) / 2
    return largest(*residuals, torch.autograd.grad(value, phi)[0] - by_hand)


def gaussian_gradients(surrogate, mean: float, scale: float, num_samples: int = 1, **options):
    """Return shares, gradients in (m, log s) of all noise tuples, log p(x), and the posterior's mean and scale."""
    model = lv.LinearGaussian(torch.tensor([[1.2], [-0.5]], dtype=F64), torch.tensor([0.1, 0.2], dtype=F64), 0.6)
    model, x = model.requires_grad_(False), torch.tensor([[1.4, 0.3]], dtype=F64)
    noise, log_share = hermite_nodes(24, num_samples)
    phi = torch.tensor([mean, math.log(scale)], dtype=F64).expand(len(noise), 2).clone().requires_grad_()
    q = lv.DiagonalGaussian(phi[:, :1], phi[:, 1:].exp())
    value = surrogate(model, x.expand(len(noise), -1), q, q.transport(noise.permute(2, 0, 1)), **options).sum()
    law = model.posterior(x)
    truth = model, x, law.mean.item(), law.stddev.item()
    return log_share.exp(), torch.autograd.grad(value, phi)[0], truth


@equation("7.5", "the path alone has the VLB's gradient (quadrature)", "sticking_the_landing", "exact_elbo")
def eq_7_5() -> float:
    residuals = []
    for mean, scale in ((-1.5, 0.3), (0.4, 1.1)):
        share, gradients, (model, x, *_) = gaussian_gradients(lv.sticking_the_landing, mean, scale)
        phi = torch.tensor([mean, math.log(scale)], dtype=F64, requires_grad=True)
        bound = lv.exact_elbo(model, x, lv.DiagonalGaussian(phi[:1][None], phi[1:].exp()[None])).sum()
        residuals.append(share @ gradients - torch.autograd.grad(bound, phi)[0])
    return largest(*residuals)


@equation(
    "7.6", "variances in m at the posterior (quadrature)", "pathwise", "score_function", "leave_one_out", tolerance=1e-9
)
def eq_7_6() -> float:
    *_, (model, x, mean, scale) = gaussian_gradients(lv.pathwise, 0.0, 1.0)
    log_p, residuals = lv.exact_log_marginal(model, x).item(), []
    for surrogate, k, options, variance in (
        (lv.pathwise, 1, {}, scale**-2),
        (lv.score_function, 1, {"baseline": log_p - 0.7}, 0.49 / scale**2),
        (lv.score_function, 1, {}, log_p**2 / scale**2),
        (lv.sticking_the_landing, 1, {}, 0.0),
        (lv.leave_one_out, 2, {}, 0.0),
    ):
        share, gradients, _ = gaussian_gradients(surrogate, mean, scale, k, **options)
        residuals.append(share @ (gradients[:, :1] - share @ gradients[:, :1]) ** 2 - variance)
    return largest(*residuals)


@equation("7.7", "variances in m of the two path estimators for any m and s (quadrature)", "pathwise", tolerance=1e-9)
def eq_7_7() -> float:
    *_, (_, _, _, sigma) = gaussian_gradients(lv.pathwise, 0.0, 1.0)
    residuals = []
    for mean, scale in ((-1.5, 0.5 * sigma), (0.4, 0.8 * sigma), (3.0, 2 * sigma)):
        variances = []
        for surrogate in (lv.pathwise, lv.sticking_the_landing):
            share, gradients, _ = gaussian_gradients(surrogate, mean, scale)
            variances.append(share @ (gradients[:, 0] - share @ gradients[:, 0]) ** 2)
        formulas = scale**2 / sigma**4, (1 / scale - scale / sigma**2) ** 2
        residuals += [(a - b).reshape(1) for a, b in zip(variances, formulas, strict=True)]
        claim = (variances[1] > variances[0]).item() == (scale < sigma / math.sqrt(2))
        residuals.append(torch.tensor([0.0 if claim else 1.0]))
    return largest(*residuals)


def logistic_quantiles(number: int) -> torch.Tensor:
    """Return midpoint nodes of the standard logistic law, (number, 1, 1)."""
    return ((torch.arange(number, dtype=F64) + 0.5) / number).logit()[:, None, None]


@equation(
    "7.8", "a relaxed bit is above ½ with the bit's own probability (logistic quantiles)", "relax", tolerance=1e-4
)
def eq_7_8() -> float:
    noise, residuals = logistic_quantiles(20_000), []
    for logit in (-2.0, 0.3, 1.5):
        q = lv.BernoulliVector(torch.full((1, 1), logit, dtype=F64))
        for temperature in (0.1, 1.0, 5.0):
            share = (lv.relax(q, noise, temperature) > 0.5).double().mean()
            residuals.append((share - q.mean.squeeze()).reshape(1))
    return largest(*residuals)


@equation("7.9", "the mean of a relaxed bit at τ = 1 (quantiles of the noise)", "relax", tolerance=1e-7)
def eq_7_9() -> float:
    noise, residuals = logistic_quantiles(100_000), []
    for logit in (-2.0, 0.4, 1.5):
        q = lv.BernoulliVector(torch.full((1, 1), logit, dtype=F64))
        r = math.exp(-logit)
        formula = 1 / (1 - r) + r * math.log(r) / (1 - r) ** 2
        residuals.append((lv.relax(q, noise, 1.0).mean() - formula).reshape(1))
    return largest(*residuals)


# Chapter 8


def three_states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log p(x, z) of three states, logits of q, and log p(x), for the first data point."""
    log_joint, _, p = mixture_weights()
    return log_joint[:, 0], PROPOSAL.log(), p[0].log()


@equation("8.1", "the chain of bounds rises with K and stays below log p(x)", "exact_expected_log_mean")
def eq_8_1() -> float:
    log_joint, log_q, log_p = three_states()
    bounds = torch.stack([lv.exact_expected_log_mean(log_joint - log_q, log_q, k) for k in range(1, 41)])
    first = (log_q.exp() * (log_joint - log_q)).sum()
    return largest((bounds[0] - first).reshape(1), bounds.diff().clamp(max=0.0), (bounds - log_p).clamp(min=0.0))


def law_of_the_pick(log_w: torch.Tensor, log_q: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Return the law of a draw picked by weight among K, by summing over all K-tuples of states."""
    runs = torch.cartesian_prod(*[torch.arange(len(log_q))] * num_samples).reshape(-1, num_samples)
    share, weights = log_q[runs].sum(1).exp(), log_w[runs].softmax(1)
    law = torch.zeros_like(log_q)
    for position in range(num_samples):
        law = law.index_add(0, runs[:, position], share * weights[:, position])
    return law


@equation("8.2", "L_K ≤ ELBO(q_K) ≤ log p(x), and q_K from its formula (all tuples)", "exact_expected_log_mean")
def eq_8_2() -> float:
    log_joint, log_q, log_p = three_states()
    log_w, residuals = log_joint - log_q, []
    for k in (2, 3, 5):
        law = law_of_the_pick(log_w, log_q, k)
        others = torch.cartesian_prod(*[torch.arange(3)] * (k - 1)).reshape(-1, k - 1)
        share, sums = log_q[others].sum(1).exp(), log_w[others].exp().sum(1)
        formula = log_joint.exp() * (share / ((log_w.exp()[:, None] + sums) / k)).sum(1)
        elbo = (law * (log_joint - law.log())).sum()
        bound = lv.exact_expected_log_mean(log_w, log_q, k)
        residuals += [law - formula, (bound - elbo).clamp(min=0.0).reshape(1), (elbo - log_p).clamp(min=0.0).reshape(1)]
    return largest(*residuals)


def bound_of_two(surrogate) -> float:
    """Compare a surrogate's mean gradient for K = 2 with that of the double integral over z, of a neural model."""
    torch.manual_seed(9)
    model = lv.GaussianLatentModel(1, lv.BernoulliDecoder(lv.mlp(1, [4], 5))).double().requires_grad_(False)
    x = model.sample(1)[1]
    phi = torch.tensor([0.6, -0.4], dtype=F64, requires_grad=True)
    z = torch.linspace(-8, 9, 1201, dtype=F64)
    log_q = -0.5 * ((z - phi[0]) / phi[1].exp()).square() - phi[1] - 0.5 * math.log(2 * math.pi)
    log_w = model.log_joint(x, z[:, None, None])[:, 0] - log_q
    pairs = torch.logaddexp(log_w[:, None], log_w) - math.log(2)
    integral = log_q.exp() @ pairs @ log_q.exp() * (z[1] - z[0]) ** 2
    truth = torch.autograd.grad(integral, phi)[0]
    noise, log_share = hermite_nodes(80, 2)
    copies = phi.detach().expand(len(noise), 2).clone().requires_grad_()
    q = lv.DiagonalGaussian(copies[:, :1], copies[:, 1:].exp())
    value = surrogate(model, x.expand(len(noise), -1), q, q.transport(noise.permute(2, 0, 1))).sum()
    return largest(log_share.exp() @ torch.autograd.grad(value, copies)[0] - truth)


@equation("8.3", "the weighted gradient of IWAE against a double integral, K = 2", "iwae_pathwise", tolerance=1e-8)
def eq_8_3() -> float:
    return bound_of_two(lv.iwae_pathwise)


@equation("8.4", "K times the gradient in φ tends to −½ of that of χ² (relative, K = 400)", tolerance=2e-2)
def eq_8_4() -> float:
    joint, residuals = torch.tensor([0.12, 0.25], dtype=F64), []
    for k in (200, 400):
        phi = torch.tensor([0.3, 0.0], dtype=F64, requires_grad=True)
        log_q = phi.log_softmax(0)
        counts = torch.stack([torch.arange(k + 1.0, dtype=F64), k - torch.arange(k + 1.0, dtype=F64)], 1)
        log_share = math.lgamma(k + 1) - torch.lgamma(counts + 1).sum(1) + counts @ log_q
        bound = (log_share.exp() * (counts @ (joint.log() - log_q).exp() / k).log()).sum()
        chi2 = (joint**2 / log_q.exp()).sum() / joint.sum() ** 2 - 1
        left, right = (torch.autograd.grad(value, phi, retain_graph=True)[0] for value in (k * bound, -chi2 / 2))
        residuals.append(((left - right)[0] / right[0]).abs().item())
    halved = residuals[1] / residuals[0] - 0.5  # a remainder of order 1/K
    return max(residuals[1], abs(halved))


@equation("8.5", "DReG against a double integral, K = 2", "doubly_reparameterized", tolerance=1e-8)
def eq_8_5() -> float:
    return bound_of_two(lv.doubly_reparameterized)


@equation(
    "8.6",
    "wake–sleep tends to the gradient of the forward KL, as 1/K (two states)",
    "reweighted_wake_sleep",
    tolerance=2e-2,
)
def eq_8_6() -> float:
    log_joint = torch.tensor([0.12, 0.25], dtype=F64).log()
    posterior = log_joint.softmax(0)
    phi = torch.tensor([0.3, 0.0], dtype=F64, requires_grad=True)
    kl = (posterior * (posterior.log() - phi.log_softmax(0))).sum()
    truth = -torch.autograd.grad(kl, phi)[0]
    scores = torch.eye(2, dtype=F64) - phi.detach().softmax(0)
    log_q = phi.detach().log_softmax(0)
    biases = []
    for k in (200, 400):
        counts = torch.stack([torch.arange(k + 1.0, dtype=F64), k - torch.arange(k + 1.0, dtype=F64)], 1)
        log_share = math.lgamma(k + 1) - torch.lgamma(counts + 1).sum(1) + counts @ log_q
        weights = counts * (log_joint - log_q).exp()
        mean = log_share.exp() @ (weights / weights.sum(1, keepdim=True)) @ scores
        biases.append((mean - truth)[0].item())
    identity = largest(posterior @ scores - truth)
    return max(1e6 * identity, abs(biases[1]), abs(biases[1] / biases[0] - 0.5))


@equation(
    "8.7",
    "means over all uniform numbers, against the sum over all samples: picks, IWAE's and DReG's gradients",
    "resample",
    "iwae_pathwise",
    "doubly_reparameterized",
    tolerance=1e-3,
)
def eq_8_7() -> float:
    torch.manual_seed(9)
    model = lv.GaussianLatentModel(1, lv.BernoulliDecoder(lv.mlp(1, [4], 5))).double().requires_grad_(False)
    x, copies = model.sample(1)[1], 20_000
    log_w = torch.tensor([-math.inf, 0.4, 1.1, -2.0], dtype=F64)[:, None]
    every = (torch.arange(copies, dtype=F64)[:, None] + 0.5) / copies  # in place of one random number per data point
    noise, residuals, random_numbers = torch.tensor([-1.1, 0.3, 1.4, 0.9], dtype=F64), [], torch.rand_like
    torch.rand_like = lambda like: every
    try:
        for m in (1, 3):
            index = lv.resample(log_w.expand(-1, copies), m)
            shares = (index[..., None] == torch.arange(4)).double().mean((0, 1))
            residuals.append(shares - lv.normalize_log_weights(log_w)[:, 0])
            for surrogate in (lv.iwae_pathwise, lv.doubly_reparameterized):
                phi = torch.tensor([[0.6, -0.4]], dtype=F64, requires_grad=True)
                both = []
                for number, options in ((1, {}), (copies, {"num_backward": m})):
                    law = lv.DiagonalGaussian(phi[:, :1].expand(number, 1), phi[:, 1:].exp().expand(number, 1))
                    z = law.transport(noise[:, None, None].expand(-1, number, 1))
                    value = surrogate(model, x.expand(number, -1), law, z, **options).mean()
                    both.append(torch.autograd.grad(value, phi)[0])
                residuals.append(both[1] - both[0])
    finally:
        torch.rand_like = random_numbers
    return largest(*residuals)


# Chapter 9


def bits_and_encoder() -> tuple[lv.BinaryLatentModel, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a model of two bits, all eight x (8, 3), a law of x (8,), and log q(z | x) of all states (4, 8)."""
    torch.manual_seed(14)
    model = lv.BinaryLatentModel(2, lv.BernoulliDecoder(lv.mlp(2, [4], 3)), learn_prior=True).double()
    model.prior_logits.data = torch.tensor([0.7, -1.1], dtype=F64)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
    law = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.02, 0.13, 0.15, 0.05], dtype=F64)
    logits = torch.randn(8, 2, dtype=F64)
    return model.requires_grad_(False), x, law, log_prob_of_bits(logits, model.states())


@equation("9.1", "D + R − H − two divergences is 0, over all x and z", "rate_and_distortion")
def eq_9_1() -> float:
    model, x, law, log_q = bits_and_encoder()
    log_joint = model.log_joint(x, model.states())
    log_p = log_joint.logsumexp(0)
    to_posterior = (log_q.exp() * (log_q - (log_joint - log_p))).sum(0)
    right = -law @ law.log() + law @ (law.log() - log_p) + law @ to_posterior
    torch.manual_seed(14)
    q = lambda x: lv.BernoulliVector(logits_of(log_q, model.states()))  # noqa: E731
    rate = lv.rate_and_distortion(model, x, q)[0]
    distortion = -(log_q.exp() * model.log_likelihood(x, model.states())).sum(0)
    floor = -law @ law.log()
    return largest((law @ (rate + distortion) - right).reshape(1), (floor - right).clamp(min=0.0).reshape(1))


def logits_of(log_q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, L) of independent bits from their table of log-probabilities (S, B)."""
    on = torch.einsum("sb,sl->bl", log_q.exp(), states[:, 0])
    return on.logit()


@equation("9.2", "the one-bit autoencoder, against sums over both bits", "kl_to_prior")
def eq_9_2() -> float:
    residuals = []
    for epsilon, delta in ((0.1, 0.1), (0.3, 0.05), (0.5, 0.5), (0.02, 0.4)):
        flip = lambda e: torch.tensor([[1 - e, e], [e, 1 - e]], dtype=F64)  # noqa: E731
        q, p = flip(epsilon), flip(delta)
        rate = (q * (q / 0.5).log()).sum(1).mean()
        distortion = -(q * p.T.log()).sum(1).mean()
        h = -(q[0] * q[0].log()).sum()
        kl = (q[0] * (q[0] / p[0]).log()).sum()
        model = lv.BinaryLatentModel(1, lv.BernoulliDecoder(torch.nn.Identity())).double()
        law = lv.BernoulliVector(torch.tensor([[epsilon]], dtype=F64).logit())
        residuals += [rate - (math.log(2) - h), rate + distortion - math.log(2) - kl]
        residuals.append(lv.kl_to_prior(law, model)[0] - rate)
    return largest(*(residual.reshape(1) for residual in residuals))


def linear_autoencoder(
    eigenvalues: list[float], r: torch.Tensor, m: torch.Tensor, s: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return average rate, distortion and squared error of an autoencoder along principal directions, by the library.

    The data have the covariance diag(eigenvalues) exactly; averages over q are by quadrature, exact for squares.
    """
    size = len(eigenvalues)
    x = torch.cat([torch.eye(size, dtype=F64), -torch.eye(size, dtype=F64)]) * math.sqrt(size)
    x = x * torch.tensor(eigenvalues, dtype=F64).sqrt()
    q = lv.DiagonalGaussian(x * m, s.expand_as(x))
    z = q.transport(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * size).reshape(-1, 1, size))
    log_likelihood = log_normal(x, z * r, sigma).sum(-1)
    prior = lv.LinearGaussian(torch.eye(size, dtype=F64), torch.zeros(size, dtype=F64))
    return lv.kl_to_prior(q, prior).mean(), -log_likelihood.mean(), (x - z * r).square().sum(-1).mean()


def best_linear(r: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slope and the width of the best encoder of a column of length r, from the text."""
    return r / (r.square() + tau), (tau / (r.square() + tau)).sqrt()


@equation("9.3", "D + βR of the best linear encoder, and no gradient in its slope and width", "kl_to_prior")
def eq_9_3() -> float:
    residuals = []
    for eigenvalue, sigma, beta in ((0.7, 0.5, 1.0), (0.2, 0.4, 3.0), (1.5, 0.9, 0.3)):
        tau = beta * sigma**2
        for length in (0.0, 0.3, 1.2):
            r = torch.tensor([length], dtype=F64)
            m, s = (part.clone().requires_grad_() for part in best_linear(r, tau))
            rate, distortion, _ = linear_autoencoder([eigenvalue], r, m, s, sigma)
            value = distortion + beta * rate
            formula = 0.5 * beta * (eigenvalue / (length**2 + tau) + math.log((length**2 + tau) / tau))
            constant = 0.5 * math.log(2 * math.pi * sigma**2)
            residuals += [*torch.autograd.grad(value, (m, s), retain_graph=True), (value - formula - constant)[None]]
    return largest(*residuals)


@equation("9.4", "rate and squared error of the best linear autoencoder are those of water-filling", "kl_to_prior")
def eq_9_4() -> float:
    eigenvalues, residuals = [1.3, 0.6, 0.25], []
    for sigma, beta in ((0.3, 1.0), (0.7, 1.0), (0.5, 2.0), (1.5, 1.0)):
        tau = beta * sigma**2
        r = (torch.tensor(eigenvalues, dtype=F64) - tau).clamp(min=0.0).sqrt().requires_grad_()
        rate, distortion, error = linear_autoencoder(eigenvalues, r, *best_linear(r, tau), sigma)
        slope = torch.autograd.grad(distortion + beta * rate, r, retain_graph=True)[0]
        formula = sum(0.5 * math.log(max(1.0, eigenvalue / tau)) for eigenvalue in eigenvalues)
        left = sum(min(eigenvalue, tau) for eigenvalue in eigenvalues)
        residuals += [(rate - formula)[None], (error - left)[None], slope]
    return largest(*residuals)


@equation("9.5", "second derivatives at the collapsed state, by automatic differentiation", "kl_to_prior")
def eq_9_5() -> float:
    residuals = []
    for eigenvalue, sigma, beta in ((0.7, 0.5, 1.0), (0.2, 0.6, 1.0), (0.5, 0.5, 2.5)):

        def objective(point: torch.Tensor, setting=(eigenvalue, sigma, beta)) -> torch.Tensor:
            eigenvalue, sigma, beta = setting
            rate, distortion, _ = linear_autoencoder([eigenvalue], point[:1], point[1:], torch.ones(1), sigma)
            return distortion + beta * rate

        hessian = torch.autograd.functional.hessian(objective, torch.zeros(2, dtype=F64))
        wanted = torch.tensor(
            [[1 / sigma**2, -eigenvalue / sigma**2], [-eigenvalue / sigma**2, beta * eigenvalue]], dtype=F64
        )
        determinant = eigenvalue / sigma**4 * (beta * sigma**2 - eigenvalue)
        residuals += [(hessian - wanted).flatten(), (torch.linalg.det(hessian) - determinant)[None]]
    return largest(*residuals)


@equation("9.6", "the rate is information plus marginal divergence, and the information is at most H", "kl_to_prior")
def eq_9_6() -> float:
    model, _, law, log_q = bits_and_encoder()
    log_prior = model.log_prior(model.states())[:, 0]
    joint = law * log_q.exp()  # (states, x)
    aggregated = joint.sum(1)
    information = (joint * (joint / (aggregated[:, None] * law)).log()).sum()
    wasted = (aggregated * (aggregated.log() - log_prior)).sum()
    rate = law @ lv.kl_to_prior(lv.BernoulliVector(logits_of(log_q, model.states())), model)
    excess = (information + law @ law.log()).clamp(min=0.0)
    return largest((rate - information - wasted)[None], excess[None], (-information).clamp(min=0.0)[None])


@equation("9.7", "slopes between the minima for neighbouring β, over 20,000 linear autoencoders of one coordinate")
def eq_9_7() -> float:
    torch.manual_seed(15)
    r, m, s = (torch.rand(3, 20_000, dtype=F64) * torch.tensor([[1.0], [1.5], [1.0]], dtype=F64)).unbind()
    eigenvalue, sigma = 0.7, 0.4
    rate = 0.5 * (m.square() * eigenvalue + s.square() - 1) - s.log()
    distortion = (eigenvalue * (1 - r * m).square() + (r * s).square()) / (2 * sigma**2)
    minima = {beta: (distortion + beta * rate).argmin() for beta in (0.1, 0.3, 0.7, 1.0, 1.5, 3.0, 6.0)}
    residuals = []
    for (low, one), (high, two) in itertools.pairwise(minima.items()):
        fall, rise = rate[one] - rate[two], distortion[two] - distortion[one]
        residuals += [(low * fall - rise).clamp(min=0.0), (rise - high * fall).clamp(min=0.0)]
        residuals.append((one == two).double())  # the minima differ
    return largest(*(residual[None] for residual in residuals))


# Chapter 10


def reported(num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of log p̂_K of two data points, over all K-tuples of states, each (2,)."""
    _, log_w, _ = mixture_weights()
    runs, share = all_runs(num_samples)
    values = log_w[runs].logsumexp(1) - math.log(num_samples)  # (runs, data points)
    mean = share @ values
    return mean, share @ (values - mean).square()


@equation("10.1", "mean and variance of the reported mean of two images, over all images and draws", "log_mean_exp")
def eq_10_1() -> float:
    law = torch.tensor([0.3, 0.7], dtype=F64)  # of the images: the two data points
    mean, variance = reported(3)
    parts = (law @ (mean - law @ mean).square() + law @ variance) / 2
    _, log_w, _ = mixture_weights()
    runs, share = all_runs(3)
    values = torch.stack([lv.log_mean_exp(log_w[runs, i].T) for i in range(2)])  # (images, runs)
    value, weight = values.flatten(), (law[:, None] * share).flatten()  # one image with its draws
    means = (value[:, None] + value) / 2
    weights = weight[:, None] * weight
    overall = (weights * means).sum()
    spread = (weights * (means - overall).square()).sum()
    return largest((spread - parts).reshape(1), (overall - law @ mean).reshape(1))


@equation(
    "10.2", "bias, half the variance, and χ²/2K agree, with a remainder of order 1/K (two states)", tolerance=3e-2
)
def eq_10_2() -> float:
    joint, q = torch.tensor([0.12, 0.25], dtype=F64), torch.tensor([0.55, 0.45], dtype=F64)
    log_p, chi2 = joint.sum().log(), (joint**2 / q).sum() / joint.sum() ** 2 - 1
    residuals = []
    for k in (200, 400):
        drawn = torch.arange(k + 1.0, dtype=F64)
        counts = torch.stack([drawn, k - drawn], 1)
        log_share = math.lgamma(k + 1) - torch.lgamma(counts + 1).sum(1) + counts @ q.log()
        share, weights = log_share.exp(), joint / q
        value = (counts @ weights / k).log()
        mean = share @ value
        half_variance = (share @ (value - mean).square()) / 2
        ess = (counts @ weights).square() / (counts @ weights.square())
        told = share @ ((1 / ess - 1 / k) / 2)
        law = chi2 / (2 * k)
        residuals.append(largest(torch.stack([log_p - mean, half_variance, told]) / law - 1))
    return max(residuals[1], abs(residuals[1] / residuals[0] - 0.5))


@equation("10.3", "variance of a paired difference, two models on two of three images (sums)", "exact_log_marginal")
def eq_10_3() -> float:
    x = torch.tensor([[2.6], [-1.0], [0.4]], dtype=F64)
    one, law = lv.exact_log_marginal(small_mixture(), x), torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    other = log_normal(x[:, 0], 0.4, 2.0)
    covariance = torch.cov(torch.stack([one, other]), correction=0, aweights=law)
    right = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / 2
    pairs, weights = (((one - other)[:, None] + (one - other)) / 2), law[:, None] * law
    left = (weights * (pairs - (weights * pairs).sum()).square()).sum()
    return largest((left - right).reshape(1))


def all_chains() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log w of all paths of three states, their laws forward and back, and log p(x); Metropolis moves."""
    model, x = small_mixture(), X[:1]
    log_likelihood = model.log_likelihood(x, model.states())[:, 0]
    exponents = ais.path(3)
    laws = [(model.prior().logits.log_softmax(0) + beta * log_likelihood).softmax(0) for beta in exponents]
    moves = []
    for law in laws[1:-1]:
        jump = (law[None, :] / law[:, None]).clamp(max=1.0) / 3
        moves.append(jump - torch.diag(jump.diagonal()) + torch.diag(1 - (jump.sum(1) - jump.diagonal())))
    a, b, c = torch.cartesian_prod(*[torch.arange(3)] * 3).T
    log_w = torch.stack([log_likelihood[z] for z in (a, b, c)], 1) @ exponents.diff()
    forward = laws[0][a] * moves[0][a, b] * moves[1][b, c]
    back = laws[-1][c] * moves[1][c, b] * moves[0][b, a]
    return log_w, forward, back, lv.exact_log_marginal(model, x)[0]


@equation("10.4", "the mean weight of annealed chains is p(x) (all paths of three states)", "ais.path")
def eq_10_4() -> float:
    log_w, forward, _, log_p = all_chains()
    return largest((forward @ log_w.exp() - log_p.exp()).reshape(1), (forward.sum() - 1).reshape(1))


@equation("10.5", "chains forward and back hold log p(x) between them, by their divergences (all paths)", "ais.path")
def eq_10_5() -> float:
    log_w, forward, back, log_p = all_chains()
    low = log_p - forward @ (forward.log() - back.log())
    high = log_p + back @ (back.log() - forward.log())
    inverse = back @ (-log_w).exp() - (-log_p).exp()
    order = torch.stack([low - log_p, log_p - high]).clamp(min=0.0)
    return largest(torch.stack([forward @ log_w - low, back @ log_w - high, inverse]), order)


@equation("10.6", "log p(x) is at most the best log p(x|z) (a mixture, and quadrature)", "exact_log_marginal")
def eq_10_6() -> float:
    mixture, (model, x, _, _, _) = small_mixture(), linear_case()
    best = mixture.log_likelihood(X, mixture.states()).amax(0)
    z = lv.Grid(num_nodes=41).nodes(2)
    on_grid = model.log_likelihood(x, z).amax(0)
    over = torch.cat([lv.exact_log_marginal(mixture, X) - best, lv.exact_log_marginal(model, x) - on_grid])
    return largest(over.clamp(min=0.0))


@equation("10.7", "the logarithm of the mean of p(x) over images against the mean logarithm and the best image")
def eq_10_7() -> float:
    residuals = []
    for values in ([-90.0, -70.0, -110.0, -71.0], [-3.0, -3.0], [-5.0]):
        log_p = torch.tensor(values, dtype=F64)
        middle = log_p.exp().mean().log()
        low = torch.stack([log_p.mean(), log_p.max() - math.log(len(log_p))])
        residuals += [(low - middle).clamp(min=0.0), (middle - log_p.max()).clamp(min=0.0).reshape(1)]
    return largest(*residuals)


@equation("10.8", "the expected best of two and of three standard normal numbers (quadrature)")
def eq_10_8() -> float:
    z = torch.linspace(-9, 9, 4001, dtype=F64)
    density, below = log_normal(z, 0.0, 1.0).exp(), (1 + torch.erf(z / math.sqrt(2))) / 2
    best = [(z * s * density * below ** (s - 1)).sum() * (z[1] - z[0]) for s in (2, 3)]
    told = torch.tensor([1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi)], dtype=F64)
    return largest(torch.stack(best) - told)


# Chapter 11


@equation(
    "11.1", "the closed-form KL in the weights passes log p(x) on the way from the prior (sums)", "exact_log_marginal"
)
def eq_11_1() -> float:
    model = small_mixture()
    log_likelihood, prior = model.log_likelihood(X, model.states()), model.prior().probs[:, None]

    def psi(t: torch.Tensor) -> torch.Tensor:
        return (prior.log() + t * log_likelihood).logsumexp(0)

    log_p, residuals = lv.exact_log_marginal(model, X), []
    for power in (0.0, 0.05, 0.4, 1.0):
        t = torch.full((2,), power, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(psi(t).sum(), t)
        q = (prior.log() + power * log_likelihood).softmax(0)
        kl = (q * (q.log() - prior.log())).sum(0)
        left = (q.log() + log_likelihood).logsumexp(0) - kl
        right = (psi(1 + t) - t * slope).detach()
        residuals.append(left - right)
        if power == 0.0:
            residuals.append(left - log_p)
        if power == 0.05:
            residuals.append((log_p - left + 1e-3).clamp(min=0.0))  # above log p(x)
    return largest(*residuals)


@equation("11.2", "log-mean-exp of the batch's sums is at most the sum of the data points' (all pairs of runs)")
def eq_11_2() -> float:
    _, log_w, _ = mixture_weights()
    residuals = []
    for k in (1, 2, 3):
        runs, share = all_runs(k)
        one, two = log_w[runs, 0], log_w[runs, 1]  # (runs, K) of each data point
        together = (one[:, None] + two[None]).logsumexp(-1) - math.log(k)
        left = share @ together @ share
        right = sum(share @ (a.logsumexp(-1) - math.log(k)) for a in (one, two))
        residuals.append((left - right).clamp(min=0.0) if k > 1 else left - right)
        residuals.append(torch.tensor(float(k > 1 and not left < right - 1e-3), dtype=F64))
    return largest(*(residual.reshape(1) for residual in residuals))


@equation("11.3", "what the mean of q adds to the reconstruction of a linear decoder (quadrature)", "LinearGaussian")
def eq_11_3() -> float:
    model, x, weight, _, scale = linear_case()
    noise, log_share = hermite_nodes(8, 2)
    q = lv.DiagonalGaussian(torch.tensor([[0.3, -1.0]], dtype=F64), torch.tensor([[0.5, 1.3]], dtype=F64))
    q = q.expand((len(x),))
    z = q.transport(noise.expand(-1, len(x), -1))
    difference = model.log_likelihood(x, q.mean[None])[0] - log_share.exp() @ model.log_likelihood(x, z)
    return largest(difference - (q.stddev.square() @ weight.square().sum(0)) / (2 * scale**2))


def run_all() -> list[dict]:
    """Run every check; return one row per equation, in the order of the book."""
    rows = []
    for item in sorted(EQUATIONS.values(), key=lambda e: [int(part) for part in e.tag.split(".")]):
        start = time.perf_counter()
        residual = item.check()
        row = asdict(item) | {"residual": residual, "seconds": round(time.perf_counter() - start, 3)}
        del row["check"]
        rows.append(row)
    return rows


def main() -> int:
    """Write the table as JSON; return 1 if some residual is above its tolerance."""
    parser = argparse.ArgumentParser(description="Run the check of every numbered equation.")
    parser.add_argument("--write", type=pathlib.Path, default=pathlib.Path("_build/equations.json"))
    path = parser.parse_args().write
    rows = run_all()
    failed = [row for row in rows if not row["residual"] <= row["tolerance"]]
    for row in failed:
        print(f"equation ({row['tag']}): residual {row['residual']:.2g} above {row['tolerance']:.0e}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"equations: {len(rows)} checked, {len(failed)} failed, written to {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
