"""DP-SGD: training whose result is (epsilon, delta)-differentially private, deterministic and resumable.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv 1607.00133 v2, Algorithm 1, with Poisson
sampling: a step takes every example with probability q = B/N, scales each gradient to a norm of at most C, adds
Gaussian noise of standard deviation noise_multiplier C to the sum and divides by the expected batch size B.

Clipping and noise are Opacus's ("hooks": per-sample gradients in memory) or the same noise on the clipped sum of
libtrain.per_example ("ghost": the same sum, several times faster). A batch without an example still takes its
noisy step. Noise comes from PyTorch's generators: good for research, not cryptographically secure (Opacus's
secure mode needs a package that cannot be installed with this version of PyTorch).
"""

from __future__ import annotations

import libcli as cli

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmodels.checkpoints import ModelSpec
from libscores.curvature import full_precision, has_volumes
from libstore.errors import InputError
from libstore.store import Output
from libtrain.optimizers import eager
from libtrain.per_example import PerExampleGradients
from libtrain.precision import logits_of, multiplying
from libtrain.self_check import (
    FAILURES,
    N_EXAMPLES,
    CallError,
    Chunk,
    batch_statistics,
    check_parameters,
    describe_layer,
    first_line,
    raise_for_cli,
)
from libtrain.settings import DPSettings, PrivacyPlan
from libtrain.streams import INIT, NETWORK, NOISE, ORDER, check_stream, evaluating, seeded, stream_seed
from libtrain.unfinished import Unfinished

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

_PHYSICAL = 512
"""Examples worked on at once where there is no GPU's memory to choose them by."""
_CHECK_EVERY = 50
"""Steps between two looks at the loss: each look waits for a GPU."""


def seeded_model(spec: ModelSpec, seed: int) -> nn.Module:
    """Build a network whose initial weights depend on the seed alone.

    Layers keep the mode they are built in: a backbone with fixed statistics stays in evaluation mode.

    Raises:
        InputError: The network has a layer that mixes examples, such as BatchNorm in training mode, is lazy, or has
            nothing to train.
    """
    with seeded(stream_seed(seed, 0, INIT), torch.device("cpu")):
        model = spec.build()
    check_parameters(model)
    if problem := batch_statistics(model):
        remedy = "; use --norm group" if "norm" in spec.options else ""
        raise InputError(f"{spec.arch}: not for private training: {problem}{remedy}")
    return model


@dataclass(frozen=True)
class Step:
    """What a step did: its number from 1, batch size, and the batch's sums of losses and of correct predictions."""

    number: int
    size: int
    loss: Tensor
    correct: Tensor


class DPTrainer:
    """One private training run; `step` counts the steps taken.

    Args:
        model: Network from `seeded_model`, on the device of the data; trained in place, in the mode it is in.
        images: Inputs of all examples, shape (M, ...), on one device.
        labels: Classes, int64, shape (M,), on the same device.
        settings: The settings; the budget among them is not looked at.
        plan: Sample rate, number of steps and noise.
        train_on: Rows of the N examples to train on, int64, shape (N,); all by default. A row's draws do not
            depend on which other rows are trained on.

    Raises:
        InputError: The batch size is over N, or the network has no per-example gradients (`PerExampleGradients`).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: DPSettings,
        plan: PrivacyPlan,
        train_on: Tensor | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.settings, self.plan = model, images, labels, settings, plan
        self._train_on = torch.arange(len(labels)) if train_on is None else train_on.cpu()
        if not 1 <= settings.batch_size <= len(self._train_on):
            raise InputError(f"--batch_size {settings.batch_size}: there are {len(self._train_on)} training examples")
        self.step = self.empty_batches = 0
        self._sampler = torch.Generator().manual_seed(stream_seed(settings.stream("order"), 0, ORDER))
        self._noise = torch.Generator(images.device).manual_seed(stream_seed(settings.stream("noise"), 0, NOISE))
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gradients = PerExampleGradients(model, settings.precision)
        self._hooked: GradSampleModule | None = None
        self._check()
        self._optimizer = _optimizer(model, settings)
        self._private: DPOptimizer | _NoisySums
        if self._hooked:
            from opacus.optimizers import DPOptimizer

            self._private = DPOptimizer(
                self._optimizer,
                noise_multiplier=plan.noise_multiplier,
                max_grad_norm=settings.max_grad_norm,
                expected_batch_size=settings.batch_size,
                generator=self._noise,
            )
        else:
            deviation = plan.noise_multiplier * settings.max_grad_norm
            self._private = _NoisySums(self._optimizer, self._parameters, deviation, settings.batch_size, self._noise)
        self._physical = settings.max_physical_batch_size or self._fitting()

    def _check(self) -> None:
        """Choose the layout and the way to gradients by the initial weights, so that a resumed run chooses alike."""
        # Channels-last is faster, but Opacus's own gradients of convolutions are wrong in it, without a word, and a
        # network may ask for views that it does not allow.
        ghost = self.settings.grad_sample_mode == "ghost"
        fast = ghost and self.images.dim() == 4 and not has_volumes(self.model)
        self._layout = torch.channels_last if fast else torch.contiguous_format
        spread = torch.linspace(0, len(self._train_on) - 1, min(N_EXAMPLES, len(self._train_on))).long()
        self._first = self._train_on[spread].to(self.images.device)
        try:
            self.model.to(memory_format=self._layout)
            first = self._gradients.check(*self._examples(self._first))
        except CallError:
            if not fast:
                raise
            self._layout = torch.contiguous_format
            self.model.to(memory_format=self._layout)
            first = self._gradients.check(*self._examples(self._first))
        self.draws = first.draws
        if not ghost:
            from opacus.grad_sample import GradSampleModule

            try:
                for name, layer in self.model.named_modules():
                    if getattr(layer, "padding_idx", None) is not None:  # the first examples may be without padding
                        raise ValueError(f"{describe_layer(self.model, name)} has padding, which Opacus counts in")
                self._hooked = GradSampleModule(self.model, loss_reduction="sum")
                problem = first.difference(self._by_hooks, replays=True)
            except (*FAILURES, NotImplementedError) as error:
                raise_for_cli(error)
                problem = first_line(error)
            self._clear()
            if problem:
                cli.warn(
                    f"--grad_sample_mode hooks is not for this network, so gradients are those of ghost: {problem}"
                )
                _remove_hooks(self.model)
                self._hooked = None

    def _by_hooks(self, images: Tensor, labels: Tensor) -> Iterator[Chunk]:
        self._clear()
        losses, logits = self._backward(images, labels)
        samples: dict[Tensor, Tensor] = {p: getattr(p, "grad_sample") for p in self._parameters}  # noqa: B009
        squares = torch.stack([sample.flatten(1).square().sum(1) for sample in samples.values()])

        def weighted_sums(factor: Tensor) -> dict[Tensor, Tensor]:
            return {p: torch.einsum("n,n...->...", factor, sample) for p, sample in samples.items()}

        yield squares.sum(0).sqrt(), weighted_sums, losses.detach(), logits.detach()

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave per-example gradients where Opacus puts them; return losses and logits."""
        assert self._hooked
        with multiplying(self.settings.precision), _inputs_without_gradients():
            logits = logits_of(self._hooked, images, self.settings.precision)
            losses = F.cross_entropy(logits, labels, reduction="none")
            losses.sum().backward()
        return losses, logits

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw the rows of the next batch, or of one more from another generator.

        The uniforms are float64, so that the rate is q to 2^-53.
        """
        uniform = torch.rand(len(self.labels), generator=generator or self._sampler, dtype=torch.float64)
        return self._train_on[uniform[self._train_on] < self.plan.sample_rate]

    def take_step(self) -> Step:
        """Draw a batch and take a noisy step on it, also if it is empty."""
        settings = self.settings
        drops = sum(self.step >= round(share * self.plan.steps) for share in settings.lr_drops)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.lr * settings.lr_drop_factor**drops
        batch = self.sample()
        self._private.zero_grad(set_to_none=True)
        loss, correct = torch.zeros(2, device=self.images.device, dtype=torch.float64).unbind()
        chunks = self._here(batch).split(self._physical) if len(batch) else (None,)
        with seeded(stream_seed(settings.seed, 0, NETWORK, self.step), self.images.device), full_precision():
            for number, rows in enumerate(chunks, 1):
                # What is given is added up until a step is not skipped, then noise is added once.
                self._private.signal_skip_step(do_skip=number < len(chunks))
                if rows is None:
                    self._put_empty()
                else:
                    chunk_loss, chunk_correct = self._put_gradients(*self._examples(rows))
                    loss += chunk_loss
                    correct += chunk_correct
                self._private.step()
        self.step += 1
        self.empty_batches += not len(batch)
        return Step(self.step, len(batch), loss, correct)

    def _here(self, rows: Tensor) -> Tensor:
        """Send rows to the device; from pinned memory, so that the CPU does not wait for what the GPU has to do."""
        if self.images.device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()
        return rows.to(self.images.device, non_blocking=True)

    def _fitting(self) -> int:
        """Return how many examples to work on at once: a power of two that takes at most 0.7 of a GPU's free memory.

        Found from the memory that 8 and 32 examples take, and tried out; halved until it fits.
        """
        device = self.images.device
        if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
            return _PHYSICAL

        def taken(n: int) -> int:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            rows = self._train_on[torch.arange(n) % len(self._train_on)]
            with seeded(0, device), full_precision():
                self._put_gradients(*self._examples(self._here(rows)))
            self._clear()
            return torch.cuda.max_memory_allocated(device) - before

        each = max(1, (taken(32) - taken(8)) // 24)
        free = torch.cuda.mem_get_info(device)[0]
        size = int(2 ** min(13, max(0, math.floor(math.log2(max(1, 0.7 * free / each))))))
        while size > 1:
            try:
                taken(size)
                break
            except torch.OutOfMemoryError:
                size //= 2
        torch.cuda.empty_cache()
        return size

    def _examples(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        # A clone: PyTorch takes one-channel images to be in either layout, and their strides decide the next layer's.
        return self.images[rows].clone(memory_format=self._layout), self.labels[rows]

    def _put_gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave a chunk's gradients where the private optimizer looks for them."""
        if self._hooked:
            with self._without_hooks():
                self._gradients.check_mode(images, labels)
            self._private.zero_grad(set_to_none=True)
            losses, logits = self._backward(images, labels)
        else:
            sums, losses, logits = self._gradients.clipped_sum(images, labels, self.settings.max_grad_norm)
            for parameter in self._parameters:
                parameter.grad = sums[parameter]
        return losses.detach().sum(), (logits.argmax(1) == labels).sum()

    def _put_empty(self) -> None:
        for parameter in self._parameters:
            if self._hooked:
                setattr(parameter, "grad_sample", parameter.new_zeros((0, *parameter.shape)))  # noqa: B010
            else:
                parameter.grad = torch.zeros_like(parameter)

    def clipped_sum(self, rows: Tensor) -> Tensor:
        """Return the sum of the rows' clipped gradients under the present weights, shape (d,), on the CPU.

        The training is not disturbed; no row gives zeros.
        """
        total = torch.zeros(sum(p.numel() for p in self._parameters))
        with self._measuring():
            for part in self._here(rows).split(self._physical) if len(rows) else ():
                sums, _, _ = self._gradients.clipped_sum(*self._examples(part), self.settings.max_grad_norm)
                total += torch.cat([sums[p].flatten() for p in self._parameters]).cpu()
        return total

    def gradient_norms(self, rows: Tensor, batch_size: int = 256) -> Tensor:
        """Return each row's gradient norm before clipping under the present weights, shape (len(rows),), on the CPU.

        The training is not disturbed.
        """
        rows = self._here(rows)
        with self._measuring():
            chunks = [self._gradients.norms(*self._examples(part)) for part in rows.split(batch_size)]
        return torch.cat(chunks).cpu()

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Evaluation mode, with random numbers that depend on the seed and the step alone."""
        own = seeded(stream_seed(self.settings.seed, 0, NETWORK, self.step, 1), self.images.device)
        with self._without_hooks(), evaluating(self.model), own:
            self._gradients.check_mode(*self._examples(self._first))
            yield

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        if self._hooked:
            self._hooked.disable_hooks()
        try:
            with _inputs_without_gradients():
                yield
        finally:
            if self._hooked:
                self._hooked.enable_hooks()

    def state(self) -> dict[str, Any]:
        """Return everything that the remaining steps depend on, as tensors and plain values."""
        return {
            "step": self.step,
            "empty_batches": self.empty_batches,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.get_state(),
            "noise": self._noise.get_state(),
            "physical": self._physical,
            "network_stream": NETWORK,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where another trainer with the same arguments was."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._sampler.set_state(state["sampler"])
        self._noise.set_state(state["noise"])
        self.step, self.empty_batches = state["step"], state["empty_batches"]
        self._physical = state.get("physical", self._physical)


@contextmanager
def _inputs_without_gradients() -> Iterator[None]:
    """Silence PyTorch's warning that Opacus's hooks see a first layer whose input asks for no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _remove_hooks(model: nn.Module) -> None:
    """Take back what Opacus put on a network, also where it stopped half-way."""
    for handle in model.__dict__.pop("autograd_grad_sample_hooks", ()):
        handle.remove()
    for layer in model.modules():
        for name in ("activations", "max_batch_len", "ft_compute_sample_grad"):
            layer.__dict__.pop(name, None)
    for parameter in model.parameters():
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(parameter, name):
                delattr(parameter, name)


class _NoisySums:
    """Adds noise to sums of clipped gradients as Opacus's DPOptimizerFastGradientClipping does, bit for bit.

    Opacus itself takes half as long to import as PyTorch.

    Args:
        optimizer: Takes the noisy gradients.
        parameters: The parameters, in the order in which noise is drawn.
        deviation: Standard deviation of the noise.
        batch_size: Expected batch size, which the noisy sum is divided by.
        generator: Draws the noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        deviation: float,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self._optimizer, self._parameters, self._generator = optimizer, parameters, generator
        self._deviation, self._batch_size = deviation, batch_size
        self._sums: list[Tensor] = []
        self._skip = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and the sums of a step that was taken."""
        self._optimizer.zero_grad(set_to_none)

    def signal_skip_step(self, do_skip: bool = True) -> None:
        """Say whether the next call of `step` is to add up only."""
        self._skip = do_skip

    @torch.no_grad()
    def step(self) -> None:
        """Add up what is in `grad`; unless this is to be skipped, add noise and take the step."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._sums = [s.add_(g) for s, g in zip(self._sums, gradients, strict=True)] if self._sums else gradients
        if self._skip:
            return
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            if self._deviation:
                kind: dict[str, Any] = {"device": total.device, "dtype": total.dtype}
                total = total + torch.normal(0, self._deviation, total.shape, generator=self._generator, **kind)
            parameter.grad = total / self._batch_size
        self._sums = []
        self._optimizer.step()


def _optimizer(model: nn.Module, settings: DPSettings) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "rmsprop":
        return eager(torch.optim.RMSprop)(parameters, lr=settings.lr, momentum=settings.momentum)
    if settings.optimizer == "sgd":
        return eager(torch.optim.SGD)(parameters, lr=settings.lr, momentum=settings.momentum)
    return eager(torch.optim.Adam)(parameters, lr=settings.lr)


def train_private(
    trainer: DPTrainer,
    unfinished: Unfinished,
    *,
    at: Collection[int] = (),
    on_step: Callable[[DPTrainer], object] | None = None,
    report: Callable[[Step], object] | None = None,
) -> None:
    """Take the steps that are left; a killed or stopped call, made again, ends in the same weights bit for bit.

    Args:
        trainer: The training.
        unfinished: Its state, asked for before every step; what it holds is gone on with.
        at: Numbers of finished steps at which `on_step` is called: 0 is before the first, `steps` the end.
        on_step: Called with the trainer, which it may read but not change. After a kill, calls since the last
            saved state, and the one at that state, are made again with the same weights.
        report: Called after every step.

    Raises:
        Stopped: It was asked to stop; the state is saved.
        InputError: The loss is not finite at some step, or a weight at the end, or the state is of another plan.
    """
    where, plan = unfinished.output.path, trainer.plan
    if kept := unfinished.read():
        if "privacy" in kept and PrivacyPlan.of_record(kept["privacy"]) != plan:
            raise InputError(f"{where}: another process left it, of another noise; run the same command again")
        check_stream(trainer.draws, kept["trainer"], where)
        trainer.load_state(kept["trainer"])
    while True:
        if on_step and trainer.step in at:
            on_step(trainer)
        if trainer.step == plan.steps:
            break
        unfinished.pause(
            lambda: {"privacy": plan.record(trainer.settings), "trainer": trainer.state()},
            f"step {trainer.step} of {plan.steps}",
        )
        step = trainer.take_step()
        if step.number % _CHECK_EVERY == 0 and not torch.isfinite(step.loss):
            raise InputError(f"{where.parent}: the loss is not finite at step {step.number}; lower --lr")
        if report:
            report(step)
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters()):
        raise InputError(f"{where.parent}: the weights are not finite after {trainer.step} steps; lower --lr")


def kept_plan(state: Output) -> PrivacyPlan | None:
    """Return the plan of an unfinished training, or None; raises InputError as `Unfinished.read`."""
    kept = Unfinished(state).read()
    return PrivacyPlan.of_record(kept["privacy"]) if kept else None
