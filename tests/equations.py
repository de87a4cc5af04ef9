r"""Every numbered equation of the book, as a function that returns its largest residual.

``python -m tests.equations --write PATH`` runs them all and writes what the page "Every equation, verified" shows.
The models are small and asymmetric, in float64, and every expectation is a sum over all outcomes: no random numbers,
except where fixed parameters are wanted.
"""

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

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
    """Return log p(x, z) (3, 2), log w under PROPOSAL (3, 2) and p(x) (2,), the last by a plain sum."""
    model = small_mixture()
    log_joint = model.log_joint(X, model.states())
    return log_joint, log_joint - PROPOSAL.log()[:, None], log_joint.exp().sum(0)


def all_runs(num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all K-tuples of states, shape (3^K, K), and their probabilities under PROPOSAL."""
    runs = torch.cartesian_prod(*[torch.arange(3)] * num_samples).reshape(-1, num_samples)
    return runs, PROPOSAL[runs].prod(1)


def one_plus_chi2(s: float, sigma: float, shift: float) -> float:
    """The closed form of equation (3.8)."""
    inside = 2 * s**2 - sigma**2
    return s**2 / (sigma * math.sqrt(inside)) * math.exp(shift**2 / inside)


def log_normal(z: torch.Tensor, loc: float, scale: float) -> torch.Tensor:
    """Log density of a Gaussian, from its formula and in the dtype of z."""
    return -0.5 * ((z - loc) / scale).square() - math.log(scale * math.sqrt(2 * math.pi))


# Chapter 3 · Importance sampling


@equation(
    "3.1", "p(x) is the expectation of the weights under any proposal", "score", "Draw.log_w", "exact_log_marginal"
)
def eq_3_1() -> float:
    model, q = small_mixture(), torch.distributions.Categorical(probs=PROPOSAL.expand(2, 3))
    states = torch.arange(3)[:, None].expand(3, 2)
    log_w = lv.score(model, X, q, states).log_w
    return largest(PROPOSAL @ log_w.exp() - lv.exact_log_marginal(model, X).exp())


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
    "3.6",
    "K times the bias of log p̂ tends to χ²/2 (K = 200,000, two states)",
    "exact_expected_log_mean",
    tolerance=1e-4,
)
def eq_3_6() -> float:
    q, w = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    p, num_samples = q @ w, 200_000
    chi2 = q @ w.square() / p.square() - 1
    bias = p.log() - lv.exact_expected_log_mean(w.log(), q.log(), num_samples)
    return largest(num_samples * bias - chi2 / 2)


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
    for s, grows in ((0.70, True), (0.72, False)):
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
