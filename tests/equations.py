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
