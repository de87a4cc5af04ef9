"""pythae: its models and losses, in a loop by hand, which is faster than its trainer."""

import importlib.metadata

import torch
from problem import HIDDEN, LATENT, PIXELS, RATE, Problem, Row, Task
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from with_torch import fill, network

VERSION = importlib.metadata.version("pythae")


class Encoder(BaseEncoder):
    """The encoder; pythae wants the logarithm of the variance."""

    def __init__(self):
        super().__init__()
        self.network = network(PIXELS, HIDDEN, HIDDEN, 2 * LATENT)

    def forward(self, x):
        mean, log_scale = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """The decoder; pythae wants probabilities."""

    def __init__(self):
        super().__init__()
        self.network = network(LATENT, HIDDEN, HIDDEN, PIXELS)

    def forward(self, z):
        return ModelOutput(reconstruction=self.network(z).sigmoid())


def task(problem: Problem, row: Row) -> Task | None:
    """Return how the row is done; None where pythae has no such model."""
    if row.kind.startswith("mixture"):
        return None
    images = torch.from_numpy(problem.images)
    x = images[: row.batch]
    sizes = {"input_dim": (PIXELS,), "latent_dim": LATENT, "reconstruction_loss": "bce"}
    if row.kind == "iwae":
        model = IWAE(IWAEConfig(number_samples=row.samples, **sizes), Encoder(), Decoder())
    else:
        model = VAE(VAEConfig(**sizes), Encoder(), Decoder())
    fill(model.encoder, problem.encoder)
    fill(model.decoder, problem.decoder)

    @torch.no_grad()
    def log_p(count: int = 1) -> float:
        return model.get_nll(x, n_samples=row.samples, batch_size=min(row.samples, 500))

    if row.kind == "log p":
        return Task(log_p, log_p, "`get_nll`, batch_size=500")
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def learn(count: int) -> None:
        for index in torch.randperm(count * row.batch).split(row.batch):
            optimizer.zero_grad()
            model({"data": images[index]}).loss.backward()
            optimizer.step()

    @torch.no_grad()
    def bound() -> float:
        return -model({"data": x}).loss.item()

    # the value of IWAE's loss is not the bound, only its gradient is; `get_nll` with K samples is the bound
    value = log_p if row.kind == "iwae" else bound
    return Task(learn, value, f"`{type(model).__name__}`, a loop by hand, fused Adam")
