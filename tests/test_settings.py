"""Settings of long runs: the schedule of the learning rate, and which optimizer moves which parameter."""

import pytest
import torch
from torch import nn

from lvmlib.experiments.settings import OPTIMIZERS, Settings, SettingsError, decay, networks


def test_the_rate_is_constant_for_a_fifth_of_the_run_and_then_falls_exponentially_to_a_fiftieth():
    assert decay(0.0) == decay(0.2) == 1.0 and decay(1.0) == pytest.approx(0.02)
    assert decay(0.5) < decay(0.4) and decay(0.5) / decay(0.4) == pytest.approx(decay(0.9) / decay(0.8))


def test_muon_moves_matrices_by_about_its_rate_and_adam_moves_biases_by_a_tenth_of_it():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    layer(torch.randn(50, 6)).square().sum().backward()
    for optimizer in OPTIMIZERS["muon"](list(layer.parameters()), 0.01):
        optimizer.step()
    moved = {name: value.detach() - before[name] for name, value in layer.named_parameters()}
    sizes = torch.linalg.svdvals(moved["weight"]) / 0.01
    assert sizes.min() > 0.3 and sizes.max() < 1.5  # all singular values, whatever those of the gradient
    assert moved["bias"].abs().tolist() == pytest.approx([0.001] * 4, rel=1e-3)


def test_each_optimizer_has_its_usual_rate_unless_another_is_given():
    rates = [Settings.of("digits", optimizer=name).learning_rate for name in OPTIMIZERS]
    assert rates == [0.001, 0.01] and Settings.of("digits", optimizer="muon", learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(SettingsError, match="optimizer must be adam or muon, got 'mun'; did you mean muon"):
        Settings.of("digits", optimizer="mun")
    with pytest.raises(SettingsError, match="num_validation must be at least 0"):
        Settings.of("digits", num_validation=-1)


def test_networks_start_at_the_mean_image():
    mean = torch.linspace(0.1, 0.9, 64)
    model, _ = networks(Settings.of("digits"), mean)
    assert torch.allclose(model.decoder.network[-1].bias.sigmoid(), mean)


def test_products_in_16_bits_change_the_training_a_little_and_nothing_else():
    exact, rough = (networks(Settings.of("digits", precision=name), training=True) for name in ("float32", "bfloat16"))
    for one, other in zip(exact, rough, strict=True):
        other.load_state_dict(one.state_dict())
    x = (torch.rand(50, 64) < 0.3).float()
    gradients = []
    for model, encoder in (exact, rough):
        law = encoder(x)
        value = model.log_likelihood(x, law.mean[None])
        assert value.dtype == law.stddev.dtype == torch.float32
        value.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for net in (model, encoder) for p in net.parameters()][:-1]))
        assert gradients[-1].dtype == torch.float32
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 1e-4 < difference < 0.05  # 8 significant bits
    plain = networks(Settings.of("digits", precision="bfloat16"))
    assert [type(net).__name__ for net in (plain[0].decoder.network, plain[1].network)] == ["Sequential", "Sequential"]


def test_settings_of_the_backward_pass_and_the_precision_are_checked():
    with pytest.raises(SettingsError, match="num_backward must be at least 1, got 0"):
        Settings.of("digits", objective="iwae", num_samples=5, num_backward=0)
    with pytest.raises(SettingsError, match="num_backward .* cannot go with elbo: .* got 3"):
        Settings.of("digits", num_samples=5, num_backward=3)
    with pytest.raises(SettingsError, match="precision must be float32 or bfloat16, got 'bf16'; did you mean bfloat16"):
        Settings.of("digits", precision="bf16")
