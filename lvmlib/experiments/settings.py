"""What decides the numbers of a long run: data, networks, objective, optimizer, and the schedule of its rate."""

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lvmlib import datasets
from lvmlib.bounds import elbo_analytic_kl
from lvmlib.contracts import check_count, check_positive
from lvmlib.gradients import doubly_reparameterized, iwae_pathwise, objective
from lvmlib.models import BernoulliDecoder, GaussianLatentModel, mlp
from lvmlib.proposals import GaussianEncoder
from lvmlib.training import ADAM, Objective

CONSTANT_SHARE = 0.2  # of the run, at the full learning rate; then it falls exponentially
LAST_RATE = 0.02  # of the full learning rate, at the end of the run
WEIGHT_DECAY = 0.01  # in Muon, whose steps have a fixed size: bounds the weights, which would grow with their number
ITERATIONS = 3  # of Newton and Schulz in Muon; its usual five make a step dearer
BIAS_SHARE = 0.1  # of Muon's rate, for Adam on the biases


class SettingsError(ValueError):
    """A setting has a value that is not allowed, or another one than the run that shall go on."""


def _digits(split: str, num_validation: int) -> Tensor:
    x = datasets.digits("test" if split == "test" else "train").x
    held_out = len(x) - num_validation
    return {"train": x[:held_out], "validation": x[held_out:], "test": x}[split]


def _mnist(split: str, num_validation: int) -> Tensor:
    if split == "test":
        return datasets.mnist("test", pixels="static").x
    if split == "validation" and num_validation == 0:
        return torch.empty(0, 784)
    return datasets.mnist(split, pixels="grey" if split == "train" else "static", num_validation=num_validation).x


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set to train on.

    Args:
        images: from a split (train, validation, test) and the number of validation images to images ``(N, D)``.
        x_dim: D.
        grey: whether the training images are grey, and their binary pixels are drawn anew for each epoch.
        defaults: settings that suit it.
    """

    images: Callable[[str, int], Tensor]
    x_dim: int
    grey: bool
    defaults: dict


SOURCES = {
    "digits": Source(_digits, 64, False, {"z_dim": 8, "hidden_dims": (128,), "batch_size": 100, "num_validation": 200}),
    "mnist": Source(
        _mnist, 784, True, {"z_dim": 50, "hidden_dims": (200, 200), "batch_size": 20, "num_validation": 400}
    ),
}


class TrustingModel(GaussianLatentModel):
    """A `GaussianLatentModel` that takes images without looking at them: a run looks at them once, at its start."""

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z), shape ``(K, B)``."""
        return self.likelihood(z).log_prob(x)


# from K, and M of those that are resampled for the backward pass (None: all)
OBJECTIVES: dict[str, Callable[[int, int | None], Objective]] = {
    "elbo": lambda k, m: lambda model, encoder, x: elbo_analytic_kl(model, x, encoder, k),
    "iwae": lambda k, m: objective(iwae_pathwise, k, num_backward=m),
    "dreg": lambda k, m: objective(doubly_reparameterized, k, num_backward=m),
}


class Bfloat16(nn.Sequential):
    """Layers whose products of matrices are done in 16 bits: faster where the processor has instructions for that.

    Numbers of type bfloat16 have 8 significant bits; parameters, their gradients and the output keep 32 bits.

    >>> Bfloat16(nn.Linear(3, 2))(torch.zeros(5, 3)).dtype
    torch.float32
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().forward(x).float()


PRECISIONS: dict[str, type[nn.Sequential]] = {"float32": nn.Sequential, "bfloat16": Bfloat16}


def adam(parameters: Sequence[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Return Adam for all parameters."""
    return [ADAM(list(parameters), lr=rate)]


def muon(parameters: Sequence[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the weight matrices, and Adam, at a tenth of its rate, for the biases.

    Muon's step is the momentum of a matrix with all its singular values made about equal. It costs a few products of
    matrices of the layer's size, whatever the batch size and K, so it pays where a step is expensive.

    Reference:
        Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks.

    >>> [type(part).__name__ for part in muon(list(nn.Linear(3, 2).parameters()), 0.02)]
    ['Muon', 'Adam']
    """
    matrices = [parameter for parameter in parameters if parameter.dim() == 2]
    biases = [parameter for parameter in parameters if parameter.dim() != 2]
    first = torch.optim.Muon(matrices, lr=rate, weight_decay=WEIGHT_DECAY, ns_steps=ITERATIONS)
    return [first, ADAM(biases, lr=BIAS_SHARE * rate)]


OPTIMIZERS = {"adam": adam, "muon": muon}
USUAL_RATE = {"adam": 1e-3, "muon": 0.01}


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a name that is not allowed (`SettingsError`), and say the nearest one that is."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value).lower(), allowed, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{name} must be {' or '.join(allowed)}, got {value!r}{hint}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run.

    Args:
        data: a key of `SOURCES`.
        objective: a key of `OBJECTIVES`.
        num_samples: K of the objective.
        z_dim: dimension of z.
        hidden_dims: sizes of the encoder's hidden layers; the decoder has them in the reverse order.
        batch_size: images per step.
        optimizer: a key of `OPTIMIZERS`.
        learning_rate: until 0.2 of the run; then it falls exponentially to a fiftieth.
        seed: of torch's generator.
        num_epochs: length of the run; or
        time_limit: length of the run, in seconds of training. No two such runs are equal, because what was done in the
            time is not; but one that was killed still goes on from where it was saved.
        num_validation: training images that are held out, to watch; 0 for none.
        validate_every: in epochs.
        start: fingerprint of the parameters that a warm start begins with.
        num_backward: of the samples of `iwae` or `dreg`, resampled by their weights, get a backward pass; None for all.
        precision: of the products of matrices in training, a key of `PRECISIONS`; evaluation is in float32.

    Raises:
        SettingsError: a value that is not allowed.
    """

    data: str
    objective: str
    num_samples: int
    z_dim: int
    hidden_dims: tuple[int, ...]
    batch_size: int
    optimizer: str
    learning_rate: float
    seed: int
    num_epochs: int | None
    time_limit: float | None
    num_validation: int
    validate_every: int
    start: str | None = None
    num_backward: int | None = None
    precision: str = "float32"

    def __post_init__(self):
        choice("data", self.data, list(SOURCES))
        choice("objective", self.objective, list(OBJECTIVES))
        choice("optimizer", self.optimizer, list(OPTIMIZERS))
        choice("precision", self.precision, list(PRECISIONS))
        if (self.num_epochs is None) == (self.time_limit is None):
            raise SettingsError("either num_epochs or time_limit must be given")
        if self.objective == "elbo" and self.num_backward is not None:
            raise SettingsError(
                f"num_backward (--backward-samples) cannot go with elbo: samples weigh alike; got {self.num_backward}"
            )
        counts = ("num_samples", "z_dim", "batch_size", "validate_every", "num_epochs", "num_backward")
        try:
            for name in counts:
                if name not in ("num_epochs", "num_backward") or getattr(self, name) is not None:
                    check_count(name, getattr(self, name))
            for size in self.hidden_dims:
                check_count("hidden_dims", size)
            check_count("seed", self.seed, minimum=0)
            check_count("num_validation", self.num_validation, minimum=0)
            check_positive("learning_rate", self.learning_rate)
            check_positive("time_limit", 1.0 if self.time_limit is None else self.time_limit)
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error

    @classmethod
    def of(cls, data: str = "digits", **given) -> "Settings":
        """Return the settings that suit a data set, except for those that are given.

        >>> Settings.of("mnist", objective="iwae", num_samples=5).hidden_dims
        (200, 200)
        """
        choice("data", data, list(SOURCES))
        usual = {"objective": "elbo", "num_samples": 1, "optimizer": "adam", "seed": 0, "validate_every": 5}
        usual |= {"learning_rate": USUAL_RATE.get(given.get("optimizer", "adam"), 1e-3)}
        length = {"num_epochs": None if given.get("time_limit") else 300, "time_limit": None}
        return cls(**{"data": data} | usual | length | SOURCES[data].defaults | given)


def networks(
    settings: Settings, mean: Tensor | None = None, *, training: bool = False
) -> tuple[GaussianLatentModel, GaussianEncoder]:
    """Return an untrained model and encoder: Glorot's uniform weights, and biases of 0.

    Args:
        settings: give the sizes.
        mean: of the training images, shape ``(D,)``; the decoder then starts at their logits.
        training: whether the model trusts its images, and the networks have the precision of the settings.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519, and its code.
    """
    x_dim, z_dim, hidden = SOURCES[settings.data].x_dim, settings.z_dim, list(settings.hidden_dims)
    kind, layers = (TrustingModel, PRECISIONS[settings.precision]) if training else (GaussianLatentModel, nn.Sequential)
    model = kind(z_dim, BernoulliDecoder(layers(*mlp(z_dim, hidden[::-1], x_dim))))
    encoder = GaussianEncoder(layers(*mlp(x_dim, hidden, 2 * z_dim)))
    for layer in [*model.modules(), *encoder.modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if mean is not None:
        with torch.no_grad():
            model.decoder.network[-1].bias.copy_(mean.clamp(0.001, 0.999).logit())
    return model, encoder


def decay(share: float) -> float:
    """Return the learning rate's factor after a share of the run: 1 until 0.2, then exponentially down to 0.02.

    >>> [round(decay(share), 3) for share in (0.0, 0.2, 0.6, 1.0)]
    [1.0, 1.0, 0.141, 0.02]
    """
    return LAST_RATE ** (max(0.0, share - CONSTANT_SHARE) / (1 - CONSTANT_SHARE))


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: their names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
