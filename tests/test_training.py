"""The training loop and EM: what they maximize, what they leave behind when something goes wrong."""

import copy
import math

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

from lvmlib import (
    BernoulliDecoder,
    BernoulliMixture,
    BinaryLatentModel,
    DiagonalGaussian,
    FreeBernoulli,
    FreeGaussian,
    GaussianEncoder,
    GaussianLatentModel,
    GaussianMixture,
    LatentVariableModel,
    LinearGaussian,
    NonFiniteError,
    elbo,
    em,
    exact_elbo,
    exact_log_marginal,
    exact_posterior,
    fit,
    fit_proposal,
    iwae_bound,
    mlp,
)
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


def test_each_epoch_visits_every_data_point_once_in_an_order_of_its_own():
    x, seen = torch.arange(20.0)[:, None], []

    def watched(m, encoder, batch):
        seen.extend(batch[:, 0].tolist())
        return squared(m, encoder, batch)

    fit(Location(), watched, x, num_epochs=3, batch_size=6)
    first, second, third = (seen[start : start + 20] for start in (0, 20, 40))
    assert sorted(first) == sorted(second) == sorted(third) == x[:, 0].tolist()
    assert first != second and second != third and first != third


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

    with pytest.raises(NonFiniteError, match=r"objective is NaN or infinite in epoch 4, at data points \["):
        fit(model, breaks, DATA, num_epochs=10, batch_size=5)
    assert model.value.item() == seen[-2]


def test_fit_stops_at_an_infinite_gradient_before_stepping():
    infinite_slope = lambda m, encoder, x: (m.value - m.value.detach()).abs().sqrt() + 0 * x[:, 0]  # noqa: E731
    model = Location()
    with pytest.raises(NonFiniteError, match="gradient"):
        fit(model, infinite_slope, DATA, num_epochs=1, batch_size=5)
    assert model.value.item() == 0.0


class Steep(LatentVariableModel):
    """A model whose likelihood overflows on the data point of value 7."""

    z_shape = (1,)

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def prior(self):
        return DiagonalGaussian(torch.zeros(1), torch.ones(1))

    def likelihood(self, z):
        return DiagonalGaussian(self.loc + 0 * z, torch.ones_like(z))

    def log_likelihood(self, x, z):
        return super().log_likelihood(x, z) - torch.where(x[:, 0] == 7.0, math.inf, 0.0)

    def check_values(self, z):
        pass


def test_a_broken_objective_is_named_by_data_point_and_term_of_log_w():
    x = torch.tensor([[1.0], [2.0], [7.0]])
    encoder = GaussianEncoder(nn.Linear(1, 2))
    message = r"data points \[2\]; not finite there in a fresh draw of z: log_likelihood$"
    with pytest.raises(NonFiniteError, match=message):
        fit(Steep(), lambda m, q, x: elbo(m, x, q), x, encoder=encoder, batch_size=3)


def autoencoder():
    torch.manual_seed(0)
    return GaussianLatentModel(1, BernoulliDecoder(nn.Linear(1, 2))), GaussianEncoder(nn.Linear(2, 2))


def test_log_weights_that_are_not_numbers_are_named_by_step_and_the_state_is_put_back():
    model, encoder = autoencoder()
    state, seen = [], []

    def breaks(model, encoder, x):
        seen.append(0)
        if len(seen) == 3:
            state.extend(parameter.detach().clone() for parameter in before)
            model.decoder.network.weight.data.fill_(math.nan)
        before[:] = [parameter.detach().clone() for parameter in model.parameters()]
        return iwae_bound(model, x, encoder, 2)

    before = []
    message = r"log_w must be finite or -inf, .* in epoch 3; not finite there in a fresh draw of z: log_likelihood$"
    with pytest.raises(NonFiniteError, match=message) as caught:
        fit(model, breaks, torch.eye(2), encoder=encoder, batch_size=2)
    assert isinstance(caught.value.__cause__, ValueError)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), state, strict=True))


def test_scales_that_are_not_numbers_are_named_by_step():
    model, encoder = autoencoder()
    encoder.network.bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="scale must be above 0, got nan, in epoch 1"):
        fit(model, lambda m, q, x: elbo(m, x, q), torch.eye(2), encoder=encoder, batch_size=2)


def test_an_objective_that_changes_the_data_is_refused_as_if_it_had_been_given_the_changed_data():
    model, encoder = autoencoder()
    changes = {"a new tensor": lambda x: x / 2, "in place": lambda x: x.div_(2), "rows": lambda x: x[:, [0, 1]] * 0.5}
    for change in changes.values():
        fit(model, lambda m, q, x: elbo(m, x, q), torch.eye(2), encoder=encoder, batch_size=2, num_epochs=1)
        with pytest.raises(ValueError, match="x must be 0 or 1"):
            fit(model, lambda m, q, x: elbo(m, change(x), q), torch.eye(2), encoder=encoder, batch_size=2)  # noqa: B023


def test_data_are_looked_at_again_once_they_are_written_to():
    (model, encoder), x = autoencoder(), torch.eye(2)
    elbo(model, x, encoder)
    x[0, 0] = 0.5
    for again in (x, copy.deepcopy(x)):
        with pytest.raises(ValueError, match="x must be 0 or 1"):
            elbo(model, again, encoder)


def test_data_that_the_model_cannot_have_produced_are_no_breakdown_of_the_training():
    model, encoder = autoencoder()
    with pytest.raises(ValueError, match="x must be 0 or 1") as caught:
        fit(model, lambda m, q, x: elbo(m, x, q), torch.eye(2) / 2, encoder=encoder, batch_size=2)
    assert not isinstance(caught.value, NonFiniteError)


def test_a_broken_gradient_is_named_by_parameter():
    infinite_slope = lambda m, e, x: (m.value - m.value.detach()).abs().sqrt() + 0 * x[:, 0]  # noqa: E731
    with pytest.raises(NonFiniteError, match=r"the gradient of model\.value is NaN or infinite in epoch 1"):
        fit(Location(), infinite_slope, DATA, batch_size=5)


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_fit_goes_back_when_a_step_makes_a_parameter_infinite(num_epochs):
    model = Location(start=1e30)
    steep = lambda m, e, x: m.value * 1e30 + 0 * x[:, 0]  # noqa: E731
    with pytest.raises(NonFiniteError):
        fit(model, steep, DATA, num_epochs=num_epochs, batch_size=5, optimizer=torch.optim.SGD, learning_rate=1e30)
    assert model.value.item() == pytest.approx(1e30)


def test_fit_puts_the_last_good_state_back_whatever_the_objective_raises():
    model, seen = Location(), []

    def raises(m, encoder, x):
        seen.append(m.value.item())
        if len(seen) == 3:
            raise RuntimeError("out of ideas")
        return squared(m, encoder, x)

    with pytest.raises(RuntimeError, match="out of ideas"):
        fit(model, raises, DATA, num_epochs=10, batch_size=5)
    assert model.value.item() == seen[1] != seen[2]


def test_optimizer_and_schedule_decide_the_step():
    model, gradient = Location(), 2 * 10.0 / 5  # of the mean of −(x − v)² at v = 0
    options = {"optimizer": torch.optim.SGD, "schedule": lambda share: 1.0 - share, "learning_rate": 0.1}
    fit(model, squared, DATA, num_epochs=2, batch_size=5, **options)
    first = 0.1 * gradient
    second = first + 0.05 * 2 * (10.0 / 5 - first)
    assert model.value.item() == pytest.approx(second, rel=1e-6)


TRAIN, HELD_OUT = torch.tensor([[4.0], [4.0]]), torch.tensor([[1.0], [1.0], [1.0]])


def test_the_state_that_is_best_on_the_validation_data_remains():
    model = Location()
    history = fit(model, squared, TRAIN, num_epochs=60, batch_size=2, learning_rate=0.1, validation=HELD_OUT)
    best = history["validation"].argmax().item()
    assert history["best_epoch"] == history["evaluate_epoch"][best] and 0 < best < 60
    assert -((model.value.item() - 1.0) ** 2) == pytest.approx(history["validation"].max().item(), abs=1e-6)
    assert history["validation"][-1] < history["validation"].max() - 1


def test_the_state_is_chosen_by_the_criterion_where_one_is_given():
    model, near_two = Location(), lambda m, e, x: -(m.value - 2.0).abs() + 0 * x[:, 0]
    options = {"num_epochs": 60, "batch_size": 2, "learning_rate": 0.1}
    history = fit(model, squared, TRAIN, validation=HELD_OUT, criterion=near_two, **options)
    assert abs(model.value.item() - 2.0) < 0.1
    assert history["validation"].max().item() == pytest.approx(-abs(model.value.item() - 2.0), abs=1e-6)


def test_patience_stops_after_so_many_validations_without_a_new_best():
    options = {"num_epochs": 60, "batch_size": 2, "learning_rate": 0.1, "validation": HELD_OUT}
    history = fit(Location(), squared, TRAIN, evaluate_every=2, patience=3, **options)
    assert history["evaluate_epoch"][-1] == history["best_epoch"] + 6
    assert len(history["objective"]) == history["evaluate_epoch"][-1]


def test_validation_takes_no_random_numbers_from_the_training_and_repeats_its_own():
    noise = []

    def noisy(m, encoder, x):
        noise.append((len(x), torch.randn(1).item()))
        return squared(m, encoder, x)

    values = {}
    for validation in (None, HELD_OUT[:1]):
        torch.manual_seed(3)
        noise.clear()
        fit(Location(), noisy, TRAIN, num_epochs=4, batch_size=2, validation=validation)
        values[validation is None] = list(noise)
    assert [pair for pair in values[False] if pair[0] == 2] == values[True]
    assert len({draw for size, draw in values[False] if size == 1}) == 1


def test_validation_mean_does_not_depend_on_the_batch_size():
    x = torch.tensor([[1.0], [2.0], [6.0], [-1.0], [2.0]])
    values = [
        fit(Location(), squared, x, num_epochs=1, batch_size=size, validation=x)["validation"][0] for size in (1, 2, 5)
    ]
    assert values[0] == pytest.approx(values[1].item()) == pytest.approx(values[2].item())


def test_the_bar_of_a_terminal_shows_the_objective_on_standard_error(capsys):
    fit(Location(), squared, DATA, num_epochs=3, batch_size=5, progress=True)
    told = capsys.readouterr()
    assert told.out == "" and "3/3" in told.err and "nats" in told.err.rpartition("\r")[2]


def test_the_bar_of_a_notebook_leaves_one_line_on_the_page():
    code = (
        "import torch\nfrom lvmlib import LinearGaussian, exact_log_marginal, fit\n"
        "model = LinearGaussian(torch.zeros(2, 1), torch.zeros(2))\n"
        "objective = lambda model, encoder, x: exact_log_marginal(model, x)\n"
        "fit(model, objective, torch.randn(9, 2), num_epochs=30, batch_size=3, progress=True);"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    outputs = NotebookClient(notebook, timeout=60, kernel_name="python3").execute().cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data"]
    line = outputs[0].data["text/plain"]
    assert "30/30" in line and "nats" in line and "\n" not in line and "\r" not in line


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
        ({"patience": 2}, ValueError, "patience needs validation"),
        ({"patience": 0, "validation": DATA}, ValueError, "patience must be at least 1, got 0"),
        ({"validation": DATA[:0]}, ValueError, r"validation must have shape \(M, 1\) with M >= 1, got \(0, 1\)"),
        ({"validation": torch.ones(3, 2)}, ValueError, r"validation must .*, got \(3, 2\)"),
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


# free proposals


def test_fit_proposal_reaches_the_posterior_of_each_data_point():
    model = LinearGaussian(torch.tensor([[3.0], [-1.0]], dtype=F64), torch.zeros(2, dtype=F64), 2.0)
    x, q = torch.tensor([[5.0, 1.0], [-2.0, 0.0], [0.0, 4.0]], dtype=F64), FreeGaussian(3, 1).double()
    history = fit_proposal(model, q, x, lambda m, q, x: exact_elbo(m, x, q(x)), num_steps=400)
    torch.testing.assert_close(history[-1], exact_log_marginal(model, x).detach(), rtol=0, atol=1e-6)


def logit(model, q, x):
    return 1.0 * q.logits[:, 0]


def test_history_of_fit_proposal_runs_from_the_start_to_the_state_left_behind():
    q, x = FreeBernoulli(3, 1).double(), torch.zeros(3, 2, dtype=F64)
    history = fit_proposal(nn.Module(), q, x, logit, num_steps=4)
    assert history.shape == (5, 3)
    assert torch.equal(history[0], torch.zeros(3, dtype=F64)) and torch.equal(history[-1], q.logits[:, 0].detach())


def test_learning_rate_of_fit_proposal_falls_to_zero_over_the_second_half():
    q, x = FreeBernoulli(3, 1).double(), torch.zeros(3, 2, dtype=F64)
    history = fit_proposal(nn.Module(), q, x, logit, num_steps=8, learning_rate=0.1)
    # a gradient that is 1 at every step makes each of Adam's steps as large as the learning rate
    expected = 0.1 * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25], dtype=F64)
    torch.testing.assert_close(history.diff(dim=0), expected[:, None].expand(8, 3), rtol=1e-6, atol=0)


def test_fit_proposal_puts_the_last_good_state_back_when_the_objective_breaks():
    q, x, seen = FreeBernoulli(3, 1).double(), torch.zeros(3, 2, dtype=F64), []

    def breaks(model, q, x):
        seen.append(q.logits.detach().clone())
        return logit(model, q, x) * (math.nan if len(seen) == 4 else 1.0)

    with pytest.raises(NonFiniteError, match=r"objective is NaN or infinite in step 3, at data points \[0, 1, 2\]"):
        fit_proposal(nn.Module(), q, x, breaks, num_steps=10)
    assert torch.equal(q.logits, seen[2]) and not torch.equal(seen[2], seen[3])


# EM


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


def test_history_of_free_proposals_is_not_changed_by_later_steps():
    free = FreeBernoulli(2, 1)
    model = BinaryLatentModel(1, BernoulliDecoder(mlp(1, [], 3)))
    view = lambda model, proposal, x: proposal(x).base_dist.logits[:, 0]  # noqa: E731
    history = fit_proposal(model, free, torch.ones(2, 3), view, num_steps=4)
    assert (history.diff(dim=0) > 0).all()
