"""The training loop and EM: what they maximize, what they leave behind when something goes wrong."""

import math

import pytest
import torch
from torch import nn

from lvmlib import BernoulliMixture, GaussianMixture, NonFiniteError, em, exact_log_marginal, exact_posterior, fit
from lvmlib.datasets import three_gaussians

F64 = torch.float64


class Location(nn.Module):
    """A single parameter, whose best value under squared error is the mean of the data."""

    def __init__(self, start=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([start]))


def squared(model, encoder, x):
    return -(x[:, 0] - model.value).square()


DATA = torch.tensor([[1.0], [2.0], [6.0], [-1.0], [2.0]])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_fit_reaches_the_maximizer_of_a_concave_objective(batch_size):
    torch.manual_seed(0)
    model = Location()
    fit(model, squared, DATA, num_epochs=400, batch_size=batch_size, learning_rate=0.05)
    assert model.value.item() == pytest.approx(2.0, abs=0.25 if batch_size < 5 else 1e-3)


def test_fit_maximizes_rather_than_minimizes():
    model = Location()
    history = fit(model, squared, DATA, num_epochs=50, batch_size=5, learning_rate=0.05)
    assert history["objective"][-1] > history["objective"][0] + 0.5


def test_objective_in_history_is_the_mean_over_data_whatever_the_batch_size():
    constant = lambda model, encoder, x: x[:, 0] + 0 * model.value  # noqa: E731
    for batch_size in (1, 2, 3, 5):
        history = fit(Location(), constant, DATA, num_epochs=2, batch_size=batch_size)
        torch.testing.assert_close(history["objective"], torch.tensor([2.0, 2.0]))


def test_fit_trains_the_encoder_too():
    model, encoder = Location(), Location()
    both = lambda m, e, x: -(x[:, 0] - m.value).square() - (e.value - 3.0).square()  # noqa: E731
    fit(model, both, DATA, encoder=encoder, num_epochs=300, batch_size=5, learning_rate=0.05)
    assert encoder.value.item() == pytest.approx(3.0, abs=1e-2)


def test_evaluate_is_called_before_the_first_epoch_and_on_schedule_without_gradient():
    model, grad_modes = Location(), []

    def evaluate():
        grad_modes.append(torch.is_grad_enabled())
        return model.value.item()

    history = fit(model, squared, DATA, num_epochs=6, batch_size=5, evaluate=evaluate, evaluate_every=3)
    assert history["evaluate_epoch"].tolist() == [0, 3, 6]
    assert grad_modes == [False] * 3
    assert history["evaluate"][0] == 0.0


def test_fit_leaves_the_parameters_of_the_last_finite_step_when_the_objective_breaks():
    model, seen = Location(), []

    def breaks(m, encoder, x):
        seen.append(m.value.item())
        return squared(m, encoder, x) * (math.nan if len(seen) == 4 else 1.0)

    with pytest.raises(NonFiniteError, match=r"objective is NaN or infinite in epoch 3, at data points \["):
        fit(model, breaks, DATA, num_epochs=10, batch_size=5)
    assert model.value.item() == seen[-1]


def test_fit_stops_at_an_infinite_gradient_before_stepping():
    infinite_slope = lambda m, encoder, x: (m.value - m.value.detach()).abs().sqrt() + 0 * x[:, 0]  # noqa: E731
    model = Location()
    with pytest.raises(NonFiniteError, match="gradient"):
        fit(model, infinite_slope, DATA, num_epochs=1, batch_size=5)
    assert model.value.item() == 0.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_epochs": 0}, ValueError, "num_epochs must be at least 1, got 0"),
        ({"num_epochs": 2.5}, TypeError, "num_epochs"),
        ({"batch_size": 6}, ValueError, "batch_size must be from 1 to the number of data points 5, got 6"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be finite and above 0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite and above 0"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every must be at least 1"),
    ],
)
def test_fit_refuses_bad_arguments_by_name(options, error, message):
    with pytest.raises(error, match=message):
        fit(Location(), squared, DATA, **({"batch_size": 5} | options))


def test_fit_refuses_an_objective_that_returns_a_mean():
    with pytest.raises(ValueError, match=r"objective must return shape \(5,\), got \(\)"):
        fit(Location(), lambda m, e, x: squared(m, e, x).mean(), DATA, batch_size=5)


def test_fit_on_an_exact_objective_reaches_the_same_optimum_as_em():
    torch.manual_seed(0)
    x = three_gaussians().sample(200)[1]
    models = [GaussianMixture(torch.full((3,), 1 / 3), x[:3].clone(), torch.tensor(0.8)) for _ in range(2)]
    em(models[0], x, 100)
    fit(models[1], lambda m, e, x: exact_log_marginal(m, x), x, num_epochs=400, batch_size=200, learning_rate=0.05)
    values = [exact_log_marginal(m, x).mean().item() for m in models]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def gaussian_mixture(seed=0, learn_scale=False):
    torch.manual_seed(seed)
    loc = torch.randn(3, 2, dtype=F64)
    return GaussianMixture(torch.full((3,), 1 / 3, dtype=F64), loc, torch.tensor(0.9, dtype=F64), learn_scale)


def bernoulli_mixture(seed=0):
    torch.manual_seed(seed)
    return BernoulliMixture(torch.tensor([0.3, 0.7], dtype=F64), 0.2 + 0.6 * torch.rand(2, 6, dtype=F64))


@pytest.mark.parametrize("learn_scale", [False, True])
def test_em_never_decreases_the_likelihood_of_a_gaussian_mixture(learn_scale):
    torch.manual_seed(1)
    history = em(gaussian_mixture(learn_scale=learn_scale), torch.randn(60, 2, dtype=F64) * 2, 30)
    assert history.diff().min() > -1e-12
    assert history[-1] > history[0] + 0.1


@pytest.mark.parametrize("pseudo_count", [0.1, 1.0, 3.0])
def test_em_never_decreases_the_penalized_likelihood_of_a_bernoulli_mixture(pseudo_count):
    torch.manual_seed(2)
    x = (torch.rand(40, 6, dtype=F64) < 0.3).double()
    history = em(bernoulli_mixture(), x, 30, pseudo_count=pseudo_count)
    assert history.diff().min() > -1e-12
    assert history[-1] > history[0] + 0.01


def test_em_history_is_the_penalized_mean_log_likelihood():
    x = (torch.rand(9, 6, dtype=F64, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    model = bernoulli_mixture()
    history = em(model, x, 2, pseudo_count=0.5)
    probs = model.logits.sigmoid()
    by_hand = exact_log_marginal(model, x).mean() + 0.5 * (probs.log() + (1 - probs).log()).sum() / 9
    assert history[-1].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_gaussian_m_step_is_the_weighted_mean_and_variance_by_loops():
    model = gaussian_mixture(learn_scale=True)
    x = torch.randn(11, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
    r = exact_posterior(model, x).law.probs.detach()
    model.m_step(x, r)
    for c in range(3):
        mass = sum(r[i, c].item() for i in range(11))
        for d in range(2):
            mean = sum(r[i, c].item() * x[i, d].item() for i in range(11)) / mass
            variance = sum(r[i, c].item() * (x[i, d].item() - mean) ** 2 for i in range(11)) / mass
            assert model.loc[c, d].item() == pytest.approx(mean, abs=1e-12)
            assert model.log_scale[c, d].exp().item() == pytest.approx(math.sqrt(variance), abs=1e-10)
        assert model.prior().probs[c].item() == pytest.approx(mass / 11, abs=1e-12)


def test_a_component_without_data_keeps_its_parameters():
    model = gaussian_mixture()
    before = model.loc.detach().clone()
    responsibilities = torch.tensor([[1.0, 0.0, 0.0]] * 4, dtype=F64)
    model.m_step(torch.ones(4, 2, dtype=F64), responsibilities)
    assert torch.equal(model.loc[1:], before[1:])
    assert model.prior().probs.tolist() == [1.0, 0.0, 0.0]


def test_em_without_pseudo_counts_refuses_a_pixel_that_is_never_on():
    x = torch.zeros(5, 6, dtype=F64)
    model = bernoulli_mixture()
    before = model.logits.detach().clone()
    with pytest.raises(ValueError, match="pseudo_count must be > 0 here, got 0.0: 12 pixel means"):
        em(model, x, 3, pseudo_count=0.0)
    assert torch.equal(model.logits, before)


def test_em_leaves_the_state_before_a_step_that_collapses_onto_one_point():
    x = torch.tensor([[0.0, 0.0], [5.0, 5.0], [5.1, 4.9]], dtype=F64)
    model = GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=F64), x[:2].clone(), torch.tensor(0.5, dtype=F64), learn_scale=True
    )
    with pytest.raises(ValueError, match="learn_scale: 2 scales would become 0"):
        em(model, x, 50)
    assert torch.isfinite(exact_log_marginal(model, x)).all()


@pytest.mark.parametrize("pseudo_count", [-1.0, math.nan, math.inf])
def test_em_refuses_a_bad_pseudo_count(pseudo_count):
    with pytest.raises(ValueError, match="pseudo_count must be finite and >= 0"):
        em(bernoulli_mixture(), torch.ones(3, 6, dtype=F64), 1, pseudo_count=pseudo_count)
