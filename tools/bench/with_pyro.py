"""Pyro, as its tutorials write these models."""

import pyro
import pyro.distributions as dist
import torch
from problem import COMPONENTS, LATENT, RATE, Problem, Row, Task
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from with_torch import networks

VERSION = pyro.__version__
pyro.enable_validation(False)
torch.distributions.Distribution.set_default_validate_args(False)


def task(problem: Problem, row: Row) -> Task:
    """Return how the row is done."""
    pyro.clear_param_store()
    images = torch.from_numpy(problem.images)
    x = images[: row.batch]
    if row.kind.startswith("mixture"):
        return mixture(problem, row, x)
    encoder, decoder = networks(problem)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), torch.ones(LATENT)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            mean, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    several = {"num_particles": row.samples, "vectorize_particles": True, "max_plate_nesting": 1}
    bound = Trace_ELBO() if row.kind == "vae" else RenyiELBO(alpha=0, **several)
    if row.kind == "log p":

        def run(count: int = 1) -> float:
            return -sum(bound.loss(model, guide, image[None]) for image in x) / len(x)

        return Task(run, run, "no built-in; the loss of `RenyiELBO(alpha=0)` for each image")
    svi = SVI(model, guide, Adam({"lr": RATE}), bound)

    def learn(count: int) -> None:
        for index in torch.randperm(count * row.batch).split(row.batch):
            svi.step(images[index])

    note = "`SVI` with `Trace_ELBO`" if row.kind == "vae" else "`SVI` with a vectorized `RenyiELBO(alpha=0)`"
    return Task(learn, lambda: -svi.evaluate_loss(x) / len(x), note)


def mixture(problem: Problem, row: Row, x: torch.Tensor) -> Task:
    """Return how the rows of the mixture are done."""
    start = {"weights": torch.from_numpy(problem.component_weights).log()}
    start["logits"] = torch.from_numpy(problem.component_probs).logit()

    def model(x):
        weights, logits = (pyro.param(name, start[name].clone()) for name in ("weights", "logits"))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=x)

    assert len(start["weights"]) == COMPONENTS
    svi = SVI(model, lambda x: None, Adam({"lr": RATE}), TraceEnum_ELBO(max_plate_nesting=1))

    def evaluate(count: int = 1) -> float:
        for _ in range(count):
            value = -svi.evaluate_loss(x) / len(x)
        return value

    def learn(count: int) -> None:
        for _ in range(count):
            svi.step(x)

    if row.kind == "mixture log p":
        return Task(evaluate, evaluate, "the loss of `TraceEnum_ELBO`")
    return Task(learn, evaluate, "`SVI` with `TraceEnum_ELBO`")
