"""The private trainer: what a step computes, draws and adds, how it resumes, and an audit of what it leaks."""

from __future__ import annotations

from libcli import Stopped

import dataclasses
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from opacus.optimizers import DPOptimizerFastGradientClipping
from scipy import stats
from torch import Tensor, nn

from libdata.datasets import load_dataset
from libmodels.checkpoints import ModelSpec, read_checkpoint, to_bytes
from libscores.accounting import calibrate_noise_multiplier
from libstore.errors import InputError
from libstore.store import Output
from libtrain.dp_training import DPTrainer, _NoisySums, kept_plan, seeded_model, train_private
from libtrain.optimizers import eager
from libtrain.per_example import PerExampleGradients
from libtrain.private_study import plan_privacy
from libtrain.settings import GRAD_SAMPLE_MODES, DPSettings, PrivacyPlan, SGDSettings
from libtrain.streams import seeded
from libtrain.training import train_sgd
from libtrain.unfinished import Unfinished

BASE = DPSettings(epsilon=1, batch_size=20, max_grad_norm=0.5, optimizer="sgd", lr=0.5, lr_drops=(), seed=3)
PLAN = PrivacyPlan(sample_rate=20 / 120, steps=6, noise_multiplier=1.0, spent_epsilon=1.0)
SPEC = ModelSpec("smallcnn", 10, 1, "mnist", "standard", {"activation": "tanh"})


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("mnist", "train", DATA, index=np.arange(120), normalization="standard")
    return data.images, data.labels


def make(digits: tuple[Tensor, Tensor], rows: Tensor | None = None, **changes) -> DPTrainer:
    settings, plan = changed(len(digits[1]) if rows is None else len(rows), **changes)
    return DPTrainer(seeded_model(SPEC, settings.seed), *digits, settings, plan, rows)


def changed(n: int, **changes) -> tuple[DPSettings, PrivacyPlan]:
    """Settings and plan with these fields for n training examples."""
    own = {key: changes.pop(key) for key in ("sample_rate", "noise_multiplier") if key in changes}
    settings = dataclasses.replace(BASE, **changes)
    return settings, dataclasses.replace(PLAN, **{"sample_rate": settings.batch_size / n} | own)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam])
def test_noise_and_optimizers_are_those_of_opacus_and_pytorch_bit_for_bit(kind: type[torch.optim.Optimizer]) -> None:
    """Also over two chunks, in channels-last, and continued from a saved state."""
    networks, draws = [], torch.Generator().manual_seed(0)
    chunks = [[torch.randn(shape, generator=draws) for shape in ((6, 3, 5, 5), (6,))] for _ in range(8)]
    for ours in (False, True):
        torch.manual_seed(1)
        model = nn.Conv2d(3, 6, 5).to(memory_format=torch.channels_last)
        generator, parameters = torch.Generator().manual_seed(2), list(model.parameters())
        optimizer = (eager(kind) if ours else kind)(parameters, lr=0.01)
        if ours:
            private = _NoisySums(optimizer, parameters, 0.7 * 1.5, 20, generator)
        else:
            private = DPOptimizerFastGradientClipping(
                optimizer, noise_multiplier=0.7, max_grad_norm=1.5, expected_batch_size=20, generator=generator
            )
        for number, gradients in enumerate(chunks):
            if number == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            if number % 2 == 0:
                private.zero_grad(set_to_none=True)
            private.signal_skip_step(do_skip=number % 2 == 0)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                channels_last = gradient.dim() == 4
                parameter.grad = gradient.to(memory_format=torch.channels_last) if channels_last else gradient.clone()
            private.step()
        networks.append((*(p.detach().clone() for p in parameters), generator.get_state()))
    assert all(map(torch.equal, *networks))


def stop_at(trainer: DPTrainer, step: int, output: Output, **more) -> None:
    """Train until a signal comes at a step."""
    with pytest.raises(Stopped, match=f"stopped after step {step} of 6"):
        train_private(trainer, Unfinished(output, stopping=lambda: 15 * (trainer.step == step)), **more)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def copy_of(model: nn.Module) -> nn.Module:
    """The same weights without anybody's hooks."""
    copy = SPEC.build()
    copy.load_state_dict(model.state_dict())
    return copy


def clipped_sum(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Tensor:
    """The sum that a step clips, one example at a time with a plain backward pass."""
    total = torch.zeros_like(weights(model))
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        total += gradient * min(1.0, clip / (gradient.norm().item() + 1e-6))
    return total


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
def test_a_step_without_noise_is_the_clipped_sum_over_the_expected_batch_size(digits, mode: str) -> None:
    trainer = make(digits, noise_multiplier=0.0, grad_sample_mode=mode)
    peek = make(digits)
    for _ in range(2):
        before, batch = weights(trainer.model), peek.sample()
        want = clipped_sum(copy_of(trainer.model), digits[0][batch], digits[1][batch], 0.5)
        step = trainer.take_step()
        torch.testing.assert_close((before - weights(trainer.model)) * 20 / 0.5, want, rtol=1e-4, atol=1e-5)
        assert step.size == len(batch) != 20  # the divisor is the expected size, not this one


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
@pytest.mark.parametrize("physical", [1, 7, 16])
def test_split_batches_take_the_same_steps(digits, mode: str, physical: int) -> None:
    whole = make(digits, grad_sample_mode=mode)
    split = make(digits, grad_sample_mode=mode, max_physical_batch_size=physical)
    sizes = []
    for _ in range(3):
        a, b = whole.take_step(), split.take_step()
        sizes.append(a.size)
        assert a.size == b.size and a.correct == b.correct
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(weights(whole.model), weights(split.model), rtol=0, atol=2e-6)
    assert max(sizes) > 16


def test_ghost_and_hooks_take_the_same_steps(digits) -> None:
    ghost, hooks = (make(digits, grad_sample_mode=mode, optimizer="rmsprop", lr=1e-3) for mode in GRAD_SAMPLE_MODES)
    for _ in range(4):
        ghost.take_step(), hooks.take_step()
        torch.testing.assert_close(weights(ghost.model), weights(hooks.model), rtol=0, atol=5e-6)


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
def test_an_empty_batch_takes_its_noisy_step_and_is_counted(digits, mode: str, monkeypatch) -> None:
    trainer = make(digits, grad_sample_mode=mode)
    monkeypatch.setattr(trainer, "sample", lambda: torch.empty(0, dtype=torch.int64))
    before = weights(trainer.model)
    step = trainer.take_step()
    noise = (before - weights(trainer.model)).double().numpy() * 20 / 0.5 / 0.5
    assert (step.size, step.number, trainer.step, trainer.empty_batches) == (0, 1, 1, 1)
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    monkeypatch.undo()
    peek = make(digits, grad_sample_mode=mode)
    trainer.take_step()
    assert trainer.empty_batches == 1 and peek.step == 0


def test_noise_has_the_right_scale_and_is_fresh(digits) -> None:
    """The noise of 12 steps, found as the weights' change minus the clipped sum, is standard normal after scaling."""
    trainer, peek = make(digits, noise_multiplier=2.5), make(digits)
    draws = []
    for _ in range(12):
        before, batch = weights(trainer.model), peek.sample()
        signal = clipped_sum(copy_of(trainer.model), digits[0][batch], digits[1][batch], 0.5)
        trainer.take_step()
        total = (before - weights(trainer.model)).double() * 20 / 0.5
        draws.append(((total - signal) / (2.5 * 0.5)).numpy())
    noise = np.stack(draws)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], noise.size) / noise.size
    assert low < np.mean(noise**2) < high
    assert abs(noise.mean()) * noise.size**0.5 < 4.5
    assert stats.kstest(noise.ravel()[::5], "norm").pvalue > 1e-4
    correlation = np.corrcoef(noise)[np.triu_indices(12, 1)]
    assert np.abs(correlation).max() * noise.shape[1] ** 0.5 < 5


def test_sampling_is_poisson_at_exactly_the_rate(digits, tmp_path: Path) -> None:
    rows = torch.arange(0, 120, 2)
    plan = plan_privacy(dataclasses.replace(BASE, batch_size=7, accountant="rdp"), len(rows), tmp_path)
    assert plan.sample_rate == 7 / 60
    trainer = make(digits, rows, batch_size=7, sample_rate=plan.sample_rate)
    counts, sizes = np.zeros(120), []
    for _ in range(4000):
        batch = trainer.sample()
        counts[batch] += 1
        sizes.append(len(batch))
    assert not counts[1::2].any()
    inside = counts[::2]
    assert stats.chisquare(inside, np.full(60, inside.mean())).pvalue > 1e-4
    assert stats.binomtest(int(counts.sum()), 4000 * 60, 7 / 60).pvalue > 1e-4
    variance = np.var(sizes, ddof=1)
    assert stats.chi2.cdf(variance * 3999 / (60 * 7 / 60 * (1 - 7 / 60)), 3999) == pytest.approx(0.5, abs=0.4999)


def test_streams_are_separate(digits) -> None:
    a, b = make(digits), make(digits, torch.arange(100), batch_size=15, noise_multiplier=0.1, optimizer="adam", lr=0.1)
    torch.testing.assert_close(weights(a.model), weights(b.model), rtol=0, atol=0)
    a.take_step(), b.take_step()
    kept = make(digits, torch.arange(100), sample_rate=PLAN.sample_rate)
    torch.manual_seed(99)
    full = make(digits)
    for _ in range(20):  # removing examples does not change the draws of the others, at one rate
        batch = full.sample()
        torch.testing.assert_close(kept.sample(), batch[batch < 100])
    other = make(digits, seed=4)
    assert not torch.equal(weights(other.model), weights(make(digits).model))
    assert [len(other.sample()) for _ in range(9)] != [len(full.sample()) for _ in range(9)]


def test_global_random_state_is_neither_used_nor_changed(digits) -> None:
    torch.manual_seed(1)
    first = make(digits)
    first.take_step()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = make(digits)
    second.take_step()
    assert torch.equal(weights(first.model), weights(second.model))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


class Dropping(nn.Module):
    """Draws from PyTorch's, NumPy's and Python's global streams, and remembers the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(784, 16), nn.Dropout(0.5), nn.Linear(16, 10)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.a(x.flatten(1))))
        self.masks.append(h.detach() == 0)
        return self.b(h * (1 + random.random() + np.random.rand()) if self.training else F.dropout(h))  # noqa: NPY002


def dropping(digits: tuple[Tensor, Tensor], **changes) -> DPTrainer:
    settings, plan = changed(len(digits[1]), **changes)
    with seeded(settings.seed, torch.device("cpu")):
        model = Dropping()
    return DPTrainer(model, *digits, settings, plan)


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
def test_what_a_network_draws_is_the_runs_own(digits, tmp_path: Path, mode: str) -> None:
    undisturbed = dropping(digits, grad_sample_mode=mode)
    train_private(undisturbed, Unfinished(Output(tmp_path / "undisturbed.pt", {})))
    torch.manual_seed(7), random.seed(7)
    before = torch.get_rng_state(), random.getstate()
    state = Output(tmp_path / "state.pt", {})
    stop_at(dropping(digits, grad_sample_mode=mode), 3, state)
    resumed = dropping(digits, grad_sample_mode=mode)
    rows = torch.arange(9)
    norms = []
    train_private(resumed, Unfinished(state), at=(4,), on_step=lambda t: norms.extend([t.gradient_norms(rows)] * 2))
    assert to_bytes(resumed.state()) == to_bytes(undisturbed.state())
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert torch.equal(norms[0], norms[1])
    forget_stream(state)
    with pytest.raises(InputError, match=r"state\.pt.*remove it to start anew"):
        train_private(dropping(digits, grad_sample_mode=mode), Unfinished(state))


def forget_stream(state: Output) -> None:
    """Make a state one of before what a network draws had a stream of its own."""
    old = read_checkpoint(state.path)
    del old["trainer"]["network_stream"]
    state.save(to_bytes(old), {})


@pytest.mark.parametrize("mode", GRAD_SAMPLE_MODES)
def test_every_seed_and_step_draws_masks_of_its_own(digits, mode: str) -> None:
    masks = []
    for seed in (0, 1):
        trainer = dropping(digits, seed=seed, batch_size=120, grad_sample_mode=mode)
        trainer.model.masks.clear()
        trainer.take_step(), trainer.take_step()
        masks += trainer.model.masks
    assert len(masks) == 4 and all(mask.shape == (120, 16) for mask in masks)
    for i in range(4):
        for j in range(i):
            assert 0.4 < (masks[i] == masks[j]).float().mean() < 0.6


def test_a_state_of_before_is_continued_where_nothing_is_drawn(digits, tmp_path: Path) -> None:
    undisturbed, resumed = make(digits), make(digits)
    state = Output(tmp_path / "state.pt", {})
    train_private(undisturbed, Unfinished(Output(tmp_path / "undisturbed.pt", {})))
    stop_at(make(digits), 3, state)
    forget_stream(state)
    train_private(resumed, Unfinished(state))
    assert torch.equal(weights(resumed.model), weights(undisturbed.model))


@pytest.mark.parametrize("drop", [True, False])
def test_plain_training_goes_on_to_the_same_weights(digits, tmp_path: Path, drop: bool) -> None:
    x, y = digits
    settings = SGDSettings(epochs=3, batch_size=50, lr=0.05, momentum=0.9, weight_decay=0.0)

    def train(name: str, seed: int = 0, stop_after: int = 9) -> tuple[nn.Module, Output]:
        with seeded(5, torch.device("cpu")):
            model = Dropping() if drop else SPEC.build()
        state, done = Output(tmp_path / name, {}), []
        unfinished = Unfinished(state, stopping=lambda: 15 * (len(done) > stop_after))
        with nullcontext() if stop_after > 2 else pytest.raises(Stopped, match=f"after epoch {stop_after} of 3"):
            train_sgd(model, x, y, settings, seed=seed, run=1, unfinished=unfinished, on_epoch=done.append)
        return model, state

    torch.manual_seed(1)
    undisturbed, _ = train("undisturbed.pt")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _, state = train("state.pt", stop_after=2)
    resumed, _ = train("state.pt")
    assert torch.equal(weights(resumed), weights(undisturbed)) and torch.equal(torch.get_rng_state(), before)
    old = read_checkpoint(state.path)
    del old["network_stream"]
    state.save(to_bytes(old), {})
    if drop:
        assert not torch.equal(undisturbed.masks[-1][:20], undisturbed.masks[-4][:20])  # of the epoch before
        assert not torch.equal(undisturbed.masks[-1], train("other.pt", seed=1)[0].masks[-1])
        with pytest.raises(InputError, match="remove it to start anew"):
            train("state.pt")
    else:
        assert torch.equal(weights(train("state.pt")[0]), weights(undisturbed))


@pytest.mark.parametrize("padding", [None, 0])
def test_hooks_and_ghost_agree_on_tokens(padding: int | None, capsys) -> None:
    x, y = torch.randint(1, 6, (40, 5), generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    x[1, 2:] = 0  # not among the examples that the first check looks at
    after = []
    for mode in GRAD_SAMPLE_MODES:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 4, padding_idx=padding), nn.Flatten(), nn.Linear(20, 3))
        settings = DPSettings(1, batch_size=40, optimizer="sgd", lr=1.0, lr_drops=(), grad_sample_mode=mode)
        trainer = DPTrainer(model, x, y, settings, PrivacyPlan(1.0, 1, 0.0))
        trainer.take_step()
        after.append(weights(model))
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-6)
    assert ("padding, which Opacus counts in" in capsys.readouterr().err) == (padding is not None)


def test_learning_rate_drops_at_the_steps_named(digits) -> None:
    trainer = make(digits, lr_drops=(1 / 3, 2 / 3), lr_drop_factor=0.1, lr=1.0)
    rates = []
    for _ in range(6):
        trainer.take_step()
        rates.append(trainer.state()["optimizer"]["param_groups"][0]["lr"])
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("mode", "optimizer", "momentum"),
    [("ghost", "rmsprop", 0.0), ("ghost", "rmsprop", 0.5), ("ghost", "adam", 0.0), ("hooks", "sgd", 0.9)],
)
def test_a_state_continues_bit_for_bit(digits, tmp_path: Path, mode: str, optimizer: str, momentum: float) -> None:
    changes = {"grad_sample_mode": mode, "optimizer": optimizer, "momentum": momentum, "lr": 0.01, "lr_drops": (0.6,)}
    undisturbed = make(digits, **changes)
    state = Output(tmp_path / "state.pt", {"a": 1})
    train_private(undisturbed, Unfinished(state))
    assert not state.path.exists() and kept_plan(state) is None
    steps: list[int] = []
    stop_at(make(digits, **changes), 3, state, report=lambda s: steps.append(s.number))
    assert steps == [1, 2, 3] and kept_plan(state) == PLAN
    resumed = make(digits, **changes)
    train_private(resumed, Unfinished(state), report=lambda s: steps.append(s.number))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert to_bytes(undisturbed.state()) == to_bytes(resumed.state())
    with pytest.raises(InputError, match="a: 1 there, 2 asked for"):
        kept_plan(Output(tmp_path / "state.pt", {"a": 2}))
    with pytest.raises(InputError, match="state.pt: another process left it, of another noise"):
        train_private(make(digits, noise_multiplier=2.0, **changes), Unfinished(state))


def test_callbacks_come_at_the_named_steps_and_read_without_disturbing(digits, tmp_path: Path) -> None:
    state = Output(tmp_path / "state.pt", {})
    for mode in GRAD_SAMPLE_MODES:
        plain, watched = make(digits, grad_sample_mode=mode), make(digits, grad_sample_mode=mode)
        train_private(plain, Unfinished(state))
        seen: dict[int, Tensor] = {}
        rows = torch.tensor([5, 0, 40])

        def look(trainer: DPTrainer, seen: dict = seen, rows: Tensor = rows) -> None:
            seen[trainer.step] = trainer.gradient_norms(rows, batch_size=2)
            want = PerExampleGradients(copy_of(trainer.model)).norms(digits[0][rows], digits[1][rows])
            torch.testing.assert_close(seen[trainer.step], want, rtol=1e-5, atol=0)

        train_private(watched, Unfinished(state), at=(0, 2, 6), on_step=look)
        assert sorted(seen) == [0, 2, 6]
        want = sum(
            clipped_sum(copy_of(watched.model), *(d[i : i + 1] for d in digits[:2]), BASE.max_grad_norm)
            for i in (5, 0, 40)
        )
        torch.testing.assert_close(watched.clipped_sum(rows), want, rtol=1e-4, atol=1e-6)
        assert not watched.clipped_sum(rows[:0]).any()
        assert torch.equal(weights(plain.model), weights(watched.model))
        first = clipped_sum(seeded_model(SPEC, 3), digits[0][5:6], digits[1][5:6], 1e9).norm()
        torch.testing.assert_close(seen[0][0], first, rtol=1e-5, atol=0)


def test_callbacks_are_repeated_from_the_saved_state_on(digits, tmp_path: Path) -> None:
    state, seen = Output(tmp_path / "state.pt", {}), []

    def note(trainer: DPTrainer) -> None:
        seen.append((trainer.step, weights(trainer.model)))

    stop_at(make(digits), 4, state, at=range(7), on_step=note)
    train_private(make(digits), Unfinished(state), at=range(7), on_step=note)
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4, 4, 5, 6]
    assert torch.equal(seen[4][1], seen[5][1])


def test_networks_that_mix_examples_and_batches_over_n_are_refused(digits) -> None:
    spec = ModelSpec("resnet18", 10, 1, "mnist", "standard", {"norm": "batch"})
    with pytest.raises(InputError, match="resnet18.*BatchNorm.*--norm group"):
        seeded_model(spec, 0)
    with pytest.raises(InputError, match="--batch_size 20: there are 19"):
        make(digits, torch.arange(19))


def test_weights_that_are_not_finite_are_an_error(digits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite after 6 steps; lower --lr"):
        train_private(make(digits, lr=3e38, momentum=0.99), Unfinished(Output(tmp_path / "state.pt", {})))


def audit(noise_multiplier: float, runs: int, delta: float, digits: tuple[Tensor, Tensor], steps: int) -> float:
    """Train a family with and without one image and bound epsilon from below, with 95 % confidence.

    The attacker knows everything but the presence of one marked image and looks at the weights' change along its
    gradient. Half of the runs choose the threshold; the other half give exact (Clopper-Pearson) bounds on the
    attack's error rates, and (epsilon, delta)-differential privacy bounds those.
    """
    x, y = digits[0][:60].clone(), digits[1][:60]
    x[59] = 0.0
    x[59, 0, 0, 0] = 30.0  # a pixel that no digit uses: nobody else moves the weights this way
    scores: dict[bool, list[float]] = {True: [], False: []}
    torch.manual_seed(0)
    initial = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    gradient = torch.autograd.grad(F.cross_entropy(initial(x[59:]), y[59:]), list(initial.parameters()))
    direction = torch.cat([g.flatten() for g in gradient])
    start = weights(initial)
    for run in range(runs):
        for present in (True, False):
            model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
            model.load_state_dict(initial.state_dict())
            # The canary's absence leaves the sampling rate as it is: neighbours differ in one example only.
            settings = DPSettings(1, batch_size=30, optimizer="sgd", lr=1e-3, lr_drops=(), seed=2 * run + present)
            plan = PrivacyPlan(0.5, steps, noise_multiplier)
            trainer = DPTrainer(model, x, y, settings, plan, torch.arange(60 if present else 59))
            for _ in range(steps):
                trainer.take_step()
            scores[present].append(float((start - weights(model)) @ direction))
    inside, outside = (np.array(scores[present]) for present in (True, False))
    half = runs // 2
    best = 0.0, 0.0
    for threshold in np.quantile(outside[:half], np.linspace(0.5, 0.995, 60)):
        hits, alarms = (inside[:half] > threshold).mean(), (outside[:half] > threshold).mean()
        best = max(best, (np.log(max(hits - delta, 1e-9) / (alarms + 3 / half)), float(threshold)))
    hits, alarms = ((values[half:] > best[1]).sum() for values in (inside, outside))
    n = runs - half
    least = stats.beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    most = stats.beta.ppf(0.975, alarms + 1, n - alarms)
    return float(np.log(max(least - delta, 1e-12) / most))


def test_audit_finds_less_than_the_claimed_epsilon_and_catches_too_little_noise(digits) -> None:
    claimed, delta, steps = 2.0, 1e-3, 4
    noise, spent = calibrate_noise_multiplier(claimed, delta, 0.5, steps)
    found = audit(noise, 400, delta, digits, steps)
    assert 0.2 < found <= spent <= claimed
    assert audit(noise / 3, 400, delta, digits, steps) > claimed  # the audit can fail
