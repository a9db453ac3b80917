"""What decides a training, besides data and network; flags and sidecars are made from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from libdata.choice import NORMALIZATIONS
from libscores.accounting import ACCOUNTANTS
from libstore.errors import InputError
from libstore.index import no_subset
from libstore.settings import REQUIRED, Settings, setting

OPTIMIZERS = ("rmsprop", "sgd", "adam")
GRAD_SAMPLE_MODES = ("ghost", "hooks")
SEED_STREAMS = ("init", "order", "noise")
PRECISIONS = ("float32", "tf32", "bf16")
_NORMALIZATION_TEXT = "pixels in [0,1], or standardised"
_PRECISION_TEXT = (
    "how training multiplies: float32; tf32, products on a GPU in TF32; bf16, activations in bfloat16. Weights, the "
    "bound on gradients and all that is scored or evaluated stay float32"
)


@dataclass(frozen=True)
class SGDSettings(Settings):
    """Stochastic gradient descent with momentum and a cosine schedule to zero."""

    epochs: int = setting(30, "passes over the training examples", at_least=1)
    batch_size: int = setting(64, "examples of a step", at_least=1)
    lr: float = setting(0.1, "first learning rate; it falls to 0 as a cosine", above=0)
    momentum: float = setting(0.9, "SGD momentum", at_least=0, below=1)
    weight_decay: float = setting(0.0, "L2 coefficient", at_least=0)
    precision: str = setting("float32", _PRECISION_TEXT, choices=PRECISIONS)


SUBSET_TEXT = "examples of the study: all, the first N, spread:N (N at even distances), or an .npy index"


@dataclass(frozen=True)
class EnsembleSettings(Settings):
    """What the runs of an ensemble share."""

    data_subset: str = setting("all", SUBSET_TEXT, check=no_subset, before="subset")
    normalization: str = setting("unit", _NORMALIZATION_TEXT, choices=NORMALIZATIONS)
    ratio: float = setting(0.7, "share of the examples each run trains on", above=0, below=1)
    seed: int = setting(0, "seed of the whole ensemble", at_least=0)


@dataclass(frozen=True)
class RecordSettings(Settings):
    """What to keep of a training's examples, epoch by epoch; the weights are the same with and without."""

    record: bool = setting(
        False, "keep loss and correctness of every training example in every epoch, as its batch is trained on, "
        "and the norm of the weights: 5 bytes an epoch and example, next to no time",
    )  # fmt: skip
    record_input_gradients: bool = setting(
        False, "with these the norm of the gradient of the loss by the input: 4 bytes more, little time"
    )
    record_vog: bool = setting(
        False, "with these the variance of gradients: another pass in every epoch, 8 bytes of memory for every number "
        "of every training input",
    )  # fmt: skip

    @property
    def any(self) -> bool:
        """Whether there is something to keep."""
        return self.record or self.record_input_gradients or self.record_vog

    def describe(self) -> dict[str, bool]:
        """Return what a sidecar says of it."""
        return {"input_gradients": self.record_input_gradients, "vog": self.record_vog}


@dataclass(frozen=True)
class StudySettings(Settings):
    """Which examples a private training is about, and which of them it sees."""

    normalization: str = setting("standard", _NORMALIZATION_TEXT, choices=NORMALIZATIONS)
    data_subset: str = setting("all", SUBSET_TEXT, check=no_subset)
    train_subset: str | None = setting(
        None, ".npy index of the examples to train on, among those of the study (default: all of them)",
        check=no_subset, before="subset",
    )  # fmt: skip
    allow_large_delta: bool = setting(False, "accept a delta of 1/N or more, N the training examples")


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
        512,
        "examples worked on at once; bounds memory, a larger batch is split with the same result to rounding. auto: "
        "what a GPU's free memory holds when the training starts (512 on a CPU and with --deterministic)",
        at_least=0,
        words={"auto": 0},
    )
    precision: str = setting("float32", _PRECISION_TEXT, choices=PRECISIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum and self.optimizer == "adam":
            raise InputError(f"--momentum {self.momentum:g}: adam has none, leave it out")
        if self.precision == "bf16" and self.grad_sample_mode == "hooks":
            raise InputError("--precision bf16: --grad_sample_mode hooks would take norms in bfloat16; take ghost")

    def stream(self, name: str) -> int:
        """Return the seed of one of `SEED_STREAMS`."""
        own: int | None = getattr(self, f"{name}_seed")
        return self.seed if own is None else own

    def steps(self, n_train: int) -> int:
        """Return the number of steps of the expected passes over so many training examples."""
        return max(1, round(self.epochs * n_train / self.batch_size))

    def describe(self) -> dict[str, Any]:
        """Return the settings as a sidecar groups them: privacy, optimization, seed and seeds."""
        plain = self.as_dict()
        privacy = {key: plain.pop(key) for key in ("epsilon", "delta", "accountant", "max_grad_norm", "batch_size")}
        for stream in SEED_STREAMS:
            del plain[f"{stream}_seed"]
        seeds = {stream: self.stream(stream) for stream in SEED_STREAMS}
        return {"privacy": privacy, "seed": plain.pop("seed"), "seeds": seeds, "optimization": plain}


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

    def record(self, settings: DPSettings) -> dict[str, Any]:
        """Return budget and mechanism, as they are kept beside the weights."""
        budget = {key: getattr(settings, key) for key in ("epsilon", "delta", "accountant", "max_grad_norm")}
        return budget | asdict(self)

    @staticmethod
    def of_record(record: dict[str, Any]) -> PrivacyPlan:
        """Return the plan that `record` told of."""
        return PrivacyPlan(*(record[key] for key in ("sample_rate", "steps", "noise_multiplier", "spent_epsilon")))


@dataclass(frozen=True)
class MeasureSettings(Settings):
    """Which points are measured at which stages of a training."""

    points: str = setting(
        "1000", "points to measure: the first N, a range A-B, a file, 0 for the sample only, or removed: those left out"
    )
    points_sample: int = setting(0, "measure K random others as well", at_least=0, metavar="K")
    points_seed: int = setting(0, "seed of --points_sample", at_least=0, metavar="S")
    remove_points: str | None = setting(None, "points to leave out of the training (default: none)", metavar="FILE")
    stages: int = setting(41, "measure at i/(STAGES-1) of the training", at_least=2)
    stage: float | None = setting(
        None, "measure at this one share only, from its checkpoint (default: all)",
        at_least=0, at_most=1, metavar="SHARE",
    )  # fmt: skip
    save_freq: int = setting(100, "steps between checkpoints", at_least=1)
    test_examples: int | None = setting(
        None, "take the test accuracy of the stages on the first T test examples; at the end of the training it is "
        "always on all (default: all)", at_least=1, metavar="T",
    )  # fmt: skip
    checkpoints: str | None = setting(
        None, "measure under the checkpoints of another program in this folder, files whose names end in their step, "
        "and do not train (default: train)", metavar="FOLDER",
    )  # fmt: skip

    @property
    def shares(self) -> list[float]:
        """The shares of the training at which to measure."""
        return [i / (self.stages - 1) for i in range(self.stages)] if self.stage is None else [self.stage]

    def kept_steps(self, total: int) -> list[int]:
        """Return the steps at which a training of so many keeps its weights: every so many, and the last."""
        return [*range(0, total, self.save_freq), total]

    def stage_steps(self, total: int, kept: Sequence[int]) -> list[int]:
        """Return the kept step next to each stage of a training, the earlier one on a tie, without repeats."""
        wanted = (share * total for share in self.shares)
        return sorted({min(kept, key=lambda step: (abs(step - share), step)) for share in wanted})

    def fewer_stages(self, total: int, kept: Sequence[int]) -> str:
        """Return what to say where these kept steps give fewer stages than asked for; nothing where they do not."""
        found, asked = len(self.stage_steps(total, kept)), len(self.shares)
        if found == asked:
            return ""
        return f"{found} stages in place of {asked}, for {len(kept)} checkpoints of {total} steps; see --save_freq"


@dataclass(frozen=True)
class MeanRuleSettings(Settings):
    """How one step of the mean rule is measured."""

    alpha: int = setting(8, "Rényi order", at_least=2)
    batches: int = setting(64, "batches to sample at a stage", at_least=2)
    tuples: int = setting(16, "tuples of batches for each number of hits", at_least=1)
    batch_seed: int = setting(0, "seed of batches and tuples", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches <= self.alpha:
            raise InputError(f"--batches {self.batches}: order {self.alpha} takes more than {self.alpha} batches")
