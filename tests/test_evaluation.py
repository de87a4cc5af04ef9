"""What a trained autoencoder is worth: the estimates against exact numbers, and what is written down."""

import json
import math

import pytest
import torch

from lvmlib import (
    FullGaussian,
    draw,
    effective_sample_size,
    exact_log_marginal,
    log_mean_exp,
    posterior_proposal,
    score,
)
from lvmlib.experiments import evaluation, runs
from lvmlib.experiments.checkpoints import CheckpointError
from lvmlib.experiments.evaluation import active_units, by_annealing, by_importance_sampling, evaluate
from lvmlib.experiments.runs import Settings, advance, begin
from tests.kills import IMAGES, TINY


@pytest.fixture
def wide(linear_gaussian):
    """The posterior with 1.2 times its standard deviation, as an encoder."""

    def encoder(x):
        q = linear_gaussian.posterior(x)
        return FullGaussian(q.loc, 1.2 * q.scale_tril)

    return encoder


def test_at_the_posterior_estimate_and_elbo_are_the_exact_log_likelihood(linear_gaussian, data):
    x = data(linear_gaussian, 7)
    found = by_importance_sampling(linear_gaussian, posterior_proposal(linear_gaussian), x, 13)
    exact = exact_log_marginal(linear_gaussian, x).detach()
    torch.testing.assert_close(found["log_p"], exact)
    torch.testing.assert_close(found["elbo"], exact)
    torch.testing.assert_close(found["ess"], torch.full_like(exact, 13))


def test_the_estimate_agrees_with_the_exact_log_likelihood(linear_gaussian, data, wide):
    """Hoeffding's inequality for w / p(x) in [0, 1.2²]: off by more than `bound` with a probability below 1e-9."""
    x, num_samples = data(linear_gaussian, 5), 20_000
    ratio = by_importance_sampling(linear_gaussian, wide, x, num_samples)["log_p"] - exact_log_marginal(
        linear_gaussian, x
    )
    bound = 1.2**2 * math.sqrt(math.log(2 * len(x) * 1e9) / (2 * num_samples))
    assert ((ratio.exp() - 1).abs() < bound).all() and bound < 0.04


def test_chunks_and_batches_are_put_together_to_one_set_of_weights(linear_gaussian, data, wide, monkeypatch):
    x = data(linear_gaussian, 5)
    monkeypatch.setattr(evaluation, "ROWS", 8)
    monkeypatch.setattr(evaluation, "IMAGES", 3)
    torch.manual_seed(3)
    found = by_importance_sampling(linear_gaussian, wide, x, 7)
    torch.manual_seed(3)
    parts = []
    for batch, sizes in ((x[:3], (2, 2, 2, 1)), (x[3:], (4, 3))):
        q = wide(batch)
        parts.append(torch.cat([score(linear_gaussian, batch, q, draw(q, size)).log_w for size in sizes]))
    log_w = torch.cat(parts, 1)
    torch.testing.assert_close(found["log_p"], log_mean_exp(log_w).detach())
    torch.testing.assert_close(found["elbo"], log_w.mean(0).detach())
    torch.testing.assert_close(found["ess"], effective_sample_size(log_w).detach())


def test_no_gradient_is_kept(linear_gaussian, data, wide):
    found = by_importance_sampling(linear_gaussian, wide, data(linear_gaussian), 3)
    assert not any(value.requires_grad for value in found.values())


def test_annealing_puts_batches_together(linear_gaussian, data, monkeypatch):
    x = data(linear_gaussian, 5)
    monkeypatch.setattr(evaluation, "AIS_IMAGES", 2)
    found = by_annealing(linear_gaussian, x, 100, 60)
    torch.testing.assert_close(found, exact_log_marginal(linear_gaussian, x).detach(), atol=0.6, rtol=0)


def test_a_unit_is_active_if_its_posterior_mean_varies_over_the_images():
    from lvmlib import DiagonalGaussian

    x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    encoder = lambda x: DiagonalGaussian(torch.cat([x, 0.09 * x[:, 1:], 5.0 + 0 * x], 1), torch.ones(len(x), 5))  # noqa: E731
    assert active_units(encoder, x) == 1  # variances 0, 1, 0.0081, 0, 0
    assert active_units(encoder, 1.2 * x) == 2


def test_mean_and_standard_error_by_hand():
    assert evaluation.mean_and_error(torch.tensor([-90.0, -94.0, -92.0])) == [-92.0, round(2 / 3**0.5, 4)]
    assert evaluation.mean_and_error(torch.tensor([-90.0])) == [-90.0, 0.0]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setitem(runs.SOURCES, "tiny", TINY)
    settings = Settings.of("tiny", num_epochs=30, batch_size=7, hidden_dims=(6,), z_dim=2, learning_rate=0.01)
    advance(begin(settings, tmp_path / "run"))
    return tmp_path / "run"


SMALL = {"num_samples": 50, "ais_images": 3, "ais_chains": 4, "ais_steps": 10}


def test_a_result_holds_every_number_and_where_it_comes_from(trained):
    result = evaluate(trained, command="some command", **SMALL)
    assert json.loads((trained / runs.EVALUATION).read_text()) == result
    assert result["command"] == "some command" and result["torch"] and result["seconds"] >= 0
    assert result["averaged_sha256"] == json.loads((trained / runs.RESULT).read_text())["averaged_sha256"]
    assert result["data_sha256"] == runs.fingerprint({"test": IMAGES["test"]})
    assert len(result["per_image"]) == result["num_images"] == 8
    assert sum(result["per_image"]) / 8 == pytest.approx(result["log_likelihood"][0], abs=1e-3)
    assert result["elbo"][0] < result["log_likelihood"][0] < 0 < result["log_likelihood"][1]
    assert 1 <= result["effective_samples"][1] <= result["effective_samples"][0] <= 50
    assert 0 <= result["active_units"] <= result["z_dim"] == 2
    assert result["ais"]["num_images"] == 3 and abs(result["ais"]["minus_importance_sampling"][0]) < 3


def test_the_averaged_parameters_are_measured(trained):
    result = evaluate(trained, **SMALL)
    _, model, encoder, content = runs.load_trained(trained)
    named = {f"model.{name}": value for name, value in model.named_parameters()}
    named |= {f"encoder.{name}": value for name, value in encoder.named_parameters()}
    assert runs.fingerprint(named) == runs.fingerprint(content["averaged"]) != runs.fingerprint(content["parameters"])
    torch.manual_seed(0)
    found = by_importance_sampling(model, encoder, IMAGES["test"], 50)["log_p"]
    assert result["per_image"] == [round(value, 3) for value in found.tolist()]


def test_an_evaluation_repeats_itself_and_leaves_the_random_state(trained):
    before = torch.get_rng_state()
    first, second, other = (evaluate(trained, seed=seed, **SMALL)["per_image"] for seed in (1, 1, 2))
    assert first == second != other and torch.equal(torch.get_rng_state(), before)


def test_part_of_the_images_is_spread_evenly_and_ais_can_be_left_out(trained):
    result = evaluate(trained, num_images=3, **(SMALL | {"ais_images": 0}))
    assert result["data_sha256"] == runs.fingerprint({"test": IMAGES["test"][[0, 4, 7]]}) and "ais" not in result
    with pytest.raises(ValueError, match="num_images must be at most 8, got 9"):
        evaluate(trained, num_images=9, **SMALL)


def test_a_checkpoint_file_can_be_measured_and_another_file_written(trained, tmp_path):
    result = evaluate(trained / runs.CHECKPOINT, output=tmp_path / "other.json", **SMALL)
    assert json.loads((tmp_path / "other.json").read_text()) == result and not (trained / runs.EVALUATION).exists()


def test_a_damaged_checkpoint_is_refused_unless_falling_back_is_asked_for(trained):
    path = trained / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not complete"):
        evaluate(trained, **SMALL)
    assert evaluate(trained, fall_back=True, **SMALL)["step"] == 0
    assert path.exists()
