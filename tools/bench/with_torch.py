"""Plain PyTorch, as an expert writes it for speed: no checks, no distributions, nothing kept that could go wrong."""

import itertools
import math

import torch
from problem import HIDDEN, LATENT, PIXELS, RATE, Problem, Row, Task
from torch import Tensor, nn
from torch.nn import functional

VERSION = torch.__version__.split("+")[0]


def network(*sizes: int) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def fill(target: nn.Module, layers: list) -> None:
    """Give the linear layers of a network the weights of the problem."""
    linear = [part for part in target.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for part, (weight, bias) in zip(linear, layers, strict=True):
            part.weight.copy_(torch.from_numpy(weight))
            part.bias.copy_(torch.from_numpy(bias))


def networks(problem: Problem) -> tuple[nn.Sequential, nn.Sequential]:
    """Return encoder and decoder with the given weights."""
    encoder, decoder = network(PIXELS, HIDDEN, HIDDEN, 2 * LATENT), network(LATENT, HIDDEN, HIDDEN, PIXELS)
    fill(encoder, problem.encoder)
    fill(decoder, problem.decoder)
    return encoder, decoder


def task(problem: Problem, row: Row) -> Task:
    """Return how the row is done."""
    images = torch.from_numpy(problem.images)
    x = images[: row.batch]
    if row.kind.startswith("mixture"):
        return mixture(problem, row, x)
    encoder, decoder = networks(problem)
    if row.kind == "log p":

        def run(count: int = 1) -> float:
            return log_p(encoder, decoder, x, row.samples).mean().item()

        return Task(run, run, "a loop over chunks of 1,000 z")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE, fused=True)
    loss = {"vae": vae_loss, "iwae": iwae_loss}[row.kind]

    def learn(count: int) -> None:
        for index in torch.randperm(count * row.batch).split(row.batch):
            optimizer.zero_grad()
            loss(encoder, decoder, images[index], row.samples).backward()
            optimizer.step()

    @torch.no_grad()
    def value() -> float:
        return -loss(encoder, decoder, x, row.samples).item()

    return Task(learn, value, "a loop by hand, fused Adam")


def vae_loss(encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Return minus the ELBO, with the KL in closed form, per image."""
    mean, log_scale = encoder(x).chunk(2, 1)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    cross_entropy = functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
    return (cross_entropy + kl) / len(x)


def iwae_loss(encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Return minus the importance-weighted bound, per image."""
    mean, log_scale = encoder(x).chunk(2, 1)
    log_w = log_weights(decoder, x, mean, log_scale, samples)
    return math.log(samples) - log_w.logsumexp(0).mean()


def log_weights(decoder: nn.Module, x: Tensor, mean: Tensor, log_scale: Tensor, samples: int) -> Tensor:
    """Return log w of as many samples, (K, B); the constants of both Gaussians cancel."""
    noise = torch.randn(samples, *mean.shape)
    z = mean + log_scale.exp() * noise
    logits = decoder(z)
    log_likelihood = (x * logits - functional.softplus(logits)).sum(-1)
    return log_likelihood + 0.5 * (noise.square() - z.square()).sum(-1) + log_scale.sum(-1)


@torch.inference_mode()
def log_p(encoder: nn.Module, decoder: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Return the estimate of log p(x), (B,)."""
    mean, log_scale = encoder(x).chunk(2, 1)
    chunk, total, done = max(1, 1000 // len(x)), torch.full((len(x),), -math.inf), 0
    while done < samples:
        size = min(chunk, samples - done)
        total = torch.logaddexp(total, log_weights(decoder, x, mean, log_scale, size).logsumexp(0))
        done += size
    return total - math.log(samples)


def mixture(problem: Problem, row: Row, x: Tensor) -> Task:
    """Return how the rows of the mixture are done."""
    weights, probs = torch.from_numpy(problem.component_weights), torch.from_numpy(problem.component_probs)
    weight_logits, logits = nn.Parameter(weights.log()), nn.Parameter(probs.logit())
    optimizer = torch.optim.Adam([weight_logits, logits], lr=RATE, fused=True)

    def log_p() -> Tensor:
        log_likelihood = x @ logits.T - functional.softplus(logits).sum(-1)
        return (log_likelihood + weight_logits.log_softmax(0)).logsumexp(1).mean()

    def evaluate(count: int = 1) -> float:
        with torch.inference_mode():
            for _ in range(count):
                value = log_p()
        return value.item()

    def learn(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (-log_p()).backward()
            optimizer.step()

    if row.kind == "mixture log p":
        return Task(evaluate, evaluate, "one matrix product and log-sum-exp")
    return Task(learn, evaluate, "the same, fused Adam")
