"""What decides a training, besides data and network; flags and sidecars are made from these."""

from __future__ import annotations

from dataclasses import dataclass

from libscores.accounting import ACCOUNTANTS
from libstore.errors import InputError
from libstore.settings import REQUIRED, Settings, setting

OPTIMIZERS = ("rmsprop", "sgd", "adam")
GRAD_SAMPLE_MODES = ("ghost", "hooks")


@dataclass(frozen=True)
class SGDSettings(Settings):
    """Stochastic gradient descent with momentum and a cosine schedule to zero."""

    epochs: int = setting(30, "passes over the training examples", at_least=1)
    batch_size: int = setting(64, "examples of a step", at_least=1)
    lr: float = setting(0.1, "first learning rate; it falls to 0 as a cosine", above=0)
    momentum: float = setting(0.9, "SGD momentum", at_least=0, below=1)
    weight_decay: float = setting(0.0, "L2 coefficient", at_least=0)


@dataclass(frozen=True)
class DPSettings(Settings):
    """Private training; the defaults are those of arXiv 2402.18726."""

    epsilon: float = setting(REQUIRED, "privacy budget", above=0)
    delta: float = setting(1e-5, "delta of (epsilon, delta)-differential privacy", above=0, below=1)
    accountant: str = setting("pld", "bound that the noise is calibrated with, once", choices=ACCOUNTANTS)
    epochs: int = setting(20, "expected passes over the training examples", at_least=1)
    batch_size: int = setting(256, "expected batch size B; the sample rate is B/N", at_least=1)
    max_grad_norm: float = setting(1.0, "clipping norm C", above=0)
    optimizer: str = setting("rmsprop", "what takes the noisy gradients", choices=OPTIMIZERS)
    lr: float = setting(1e-3, "learning rate of the first step", above=0)
    momentum: float = setting(0.0, "momentum of sgd and rmsprop", at_least=0, below=1)
    lr_drops: tuple[float, ...] = setting(
        (0.6, 0.8),
        "shares of the steps after which the learning rate drops; without a value, it never does",
        above=0,
        below=1,
        metavar="SHARE",
    )
    lr_drop_factor: float = setting(0.1, "what the learning rate is multiplied by then", above=0, below=1)
    seed: int = setting(0, "seed of initial weights, batches, noise and what is random in the network", at_least=0)
    init_seed: int | None = setting(None, "seed of the initial weights alone (default: that of --seed)", at_least=0)
    order_seed: int | None = setting(None, "seed of the batches alone (default: that of --seed)", at_least=0)
    noise_seed: int | None = setting(None, "seed of the noise alone (default: that of --seed)", at_least=0)
    grad_sample_mode: str = setting(
        "ghost",
        "ghost: clipped sums without per-sample gradients; hooks: Opacus's per-sample gradients (slower)",
        choices=GRAD_SAMPLE_MODES,
    )
    max_physical_batch_size: int = setting(
        512, "examples worked on at once; bounds memory, a larger batch is split with the same result", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum and self.optimizer == "adam":
            raise InputError(f"momentum {self.momentum:g}: adam has none, leave it out")

    def stream(self, name: str) -> int:
        """Return the seed of a stream: "init", "order" or "noise"."""
        own: int | None = getattr(self, f"{name}_seed")
        return self.seed if own is None else own

    def steps(self, n_train: int) -> int:
        """Return the number of steps of the expected passes over so many training examples."""
        return max(1, round(self.epochs * n_train / self.batch_size))


@dataclass(frozen=True)
class PrivacyPlan:
    """A mechanism: what the noise is and how often it is drawn.

    Attributes:
        sample_rate: Probability q of an example to be in a batch.
        steps: Number of steps.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        spent_epsilon: What the accountant says at delta, at most the budget.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    spent_epsilon: float = float("nan")
