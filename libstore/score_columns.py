"""What the columns of the score table mean: one row per score, from which the table's description is made."""

from __future__ import annotations

from dataclasses import dataclass

from libstore.scores import CURVATURE, TRACE

ENSEMBLE, AVERAGED, TRAJECTORY, PRIVATE = "ensemble", "one model, averaged", "training trajectory", "private"
MORE, LESS, UNKNOWN = "higher means more exposed", "higher means less exposed", "not known"
_HOLDING = "mean over the networks that trained on the example"
_LINKS = "Ravikumar et al. 2024, arXiv 2402.18726"


@dataclass(frozen=True)
class Meaning:
    """What a column says of an example.

    Attributes:
        definition: In a sentence.
        paper: Where the equation is.
        direction: `MORE`, `LESS` or `UNKNOWN`.
        unit: Of its numbers.
        kind: `ENSEMBLE`, `AVERAGED`, `TRAJECTORY` or `PRIVATE`.
    """

    definition: str
    paper: str
    direction: str
    unit: str
    kind: str


def _averaged(what: str, paper: str, unit: str, direction: str = MORE) -> Meaning:
    return Meaning(f"{what}; {_HOLDING}", paper, direction, unit, AVERAGED)


def _recorded(what: str, paper: str, unit: str) -> Meaning:
    return Meaning(f"{what}; {_HOLDING}", paper, MORE, unit, TRAJECTORY)


_MEMORIZATION = "{value} averaged over the networks that trained on the example, minus the same over those that did not"
_FELDMAN = "Feldman, Zhang 2020, arXiv 2008.03703, section 2"
_CONSISTENCY = "{value} averaged over the networks that did not train on the example (C-score, held out)"
_JIANG = "Jiang et al. 2021, arXiv 2002.03206"
_ADVANTAGE = "{attack}'s answer averaged over the runs that trained on the example, minus the same over the others"
_FOUND = "share of the runs that trained on the example in which {attack} finds it, at 1 % false positives over all"
_LIRA = "Carlini et al. 2022, arXiv 2112.03570, algorithm 1"
_RMIA = "Zarifzadeh et al. 2024, arXiv 2312.03262"
_INFLUENCE = "Feldman, Zhang 2020, arXiv 2008.03703, section 2"
_ATTACKS = {
    "lira": ("LiRA with each example's own variances", _LIRA),
    "lira_shared": ("LiRA with one variance for all examples", _LIRA),
    "rmia": ("RMIA", _RMIA),
}
_CSL = "Ravikumar et al. 2025, Towards Memorization Estimation: Fast, Formal and Free, ICML"
_CSG = "Ravikumar et al. 2026, Memorization Through the Lens of Sample Gradients, ICLR"
_TONEVA = "Toneva et al. 2019, arXiv 1812.05159"
_PAUL = "Paul et al. 2021, arXiv 2107.07075"
MEANINGS = {
    "memorization_correctness": Meaning(
        _MEMORIZATION.format(value="correctness"), _FELDMAN, MORE, "difference of shares", ENSEMBLE
    ),
    "memorization_prob": Meaning(
        _MEMORIZATION.format(value="probability of the true label"), _FELDMAN, MORE, "difference of probabilities",
        ENSEMBLE,
    ),
    "consistency_correctness": Meaning(_CONSISTENCY.format(value="correctness"), _JIANG, LESS, "share", ENSEMBLE),
    "consistency_prob": Meaning(
        _CONSISTENCY.format(value="probability of the true label"), _JIANG, LESS, "probability", ENSEMBLE
    ),
    **{
        name + end: Meaning(text.format(attack=attack), paper, MORE, unit, ENSEMBLE)
        for name, (attack, paper) in _ATTACKS.items()
        for end, text, unit in (("", _ADVANTAGE, "difference of probabilities"), ("_found", _FOUND, "share"))
    },
    "influence_total": Meaning(
        "number of test examples that are right (or the sum of their true labels' probabilities) with the example in "
        "the training set, minus without it", _INFLUENCE, UNKNOWN, "test examples", ENSEMBLE,
    ),
    "influence_largest": Meaning(
        "largest influence on one test example; the largest of many noisy differences: see `chance`, the 95 % point of "
        "the same without influence", _INFLUENCE, MORE, "difference of shares or probabilities", ENSEMBLE,
    ),
    CURVATURE: _averaged(
        "E||H v|| of the Hessian H of the loss by the input, v random signs, by finite differences or exact",
        f"{_LINKS}, section 5.1", "loss per squared input unit",
    ),
    TRACE: _averaged("trace of that Hessian by Hutchinson's estimate", _LINKS, "loss per squared input unit"),
    "loss": _averaged("cross-entropy of the true label", "", "nats"),
    "margin": _averaged("logit of the true label minus the largest other one", "", "logits", LESS),
    "el2n": _averaged("norm of softmax minus one-hot label (EL2N)", f"{_PAUL}, definition 2.3", "probability"),
    "grand": _averaged("norm of the gradient of the loss by the weights (GraNd)", _PAUL, "loss per weight unit"),
    "input_gradient_norm": _averaged("norm of the gradient of the loss by the input", _LINKS, "loss per input unit"),
    "forgetting_events": _recorded(
        "epochs after which the example, right when its batch was trained on, is wrong at the next; as many as there "
        "are epochs if it is never right", _TONEVA, "epochs",
    ),
    "first_learned_epoch": _recorded(
        "first epoch, from 1, in which the example is right; one more than there are if it never is", _TONEVA, "epochs"
    ),
    "csl": _recorded("sum of the example's loss over the epochs (CSL)", _CSL, "nats"),
    "lt_iqr": _recorded(
        "interquartile range of the example's loss over the epochs (LT-IQR)", "arXiv 2411.05743", "nats"
    ),
    "csg": _recorded(
        "sum over the epochs of the norm of the gradient of the example's loss by the input (CSG)", _CSG,
        "loss per input unit",
    ),
    "csg_stopped": _recorded(
        "the same up to the epoch in which the norm of the weights is largest", _CSG, "loss per input unit"
    ),
    "vog": _recorded(
        "deviation over the epochs of the gradient of the label's logit by the input, mean over the input's values "
        "(VoG, not normalised by class)", "Agarwal et al. 2022, arXiv 2008.11600",
        "logit per input unit",
    ),
}  # fmt: skip


def of_score(score: str, step: str = "") -> tuple[str, Meaning]:
    """Return name and meaning of the column of a score that was averaged over models.

    Args:
        score: What the score is called; one of the user's own is as its maker says.
        step: Step of a finite difference or "exact"; the default step is not part of the name.
    """
    meaning = MEANINGS.get(score) or _averaged(f"score {score} of the user's own", "", "", UNKNOWN)
    return (score if step in ("", "0.001") else f"{score}_{step}"), meaning


def at_epsilon(score: str, epsilon: float) -> tuple[str, Meaning]:
    """Return name and meaning of a column about private models of one epsilon."""
    where = f"private models of epsilon {epsilon:g}"
    meanings = {
        "curvature": (f"mean curvature over the {where} that trained on the example", "loss per squared input unit"),
        "loss": (f"mean cross-entropy over the {where} that trained on the example", "nats"),
        "memorization": (
            f"true-label probability, mean over the {where} that trained on the example minus mean over the others",
            "difference of probabilities",
        ),
    }
    definition, unit = meanings[score]
    return f"private_{score}_eps_{epsilon:g}", Meaning(definition, f"{_LINKS}, section 5", MORE, unit, PRIVATE)


EPSILON_SENSITIVITY = Meaning(
    "least-squares slope of the true label's log-odds on ln epsilon, mean over the seeds of private models that "
    "trained on the example: how much the example gains from a larger budget", "", UNKNOWN,
    "log-odds per e-fold of epsilon", PRIVATE,
)  # fmt: skip
_THUDI = "Thudi et al. 2024, arXiv 2307.00310"
_INDIVIDUAL = "Feldman, Zrnic 2021, arXiv 2008.11193; Yu et al. 2022, arXiv 2206.02617"
_EPSILON = "epsilon of DP-SGD's accounting with the example's own gradient norms, "
INSTANCE = {
    "instance_epsilon_realised": (
        ("epsilon realised mean, loss distributions", "epsilon realised mean"), "mean over runs of what each run spent",
        _INDIVIDUAL,
    ),
    "instance_epsilon_largest": (
        ("epsilon largest of R runs",), "composition in expectation, the largest of R runs (grows with R)", _THUDI
    ),
}  # fmt: skip
"""Per-instance columns: the columns of a totals file in order of preference, what they are, and where from."""
DIRECTIONS = {
    "": ("", "training with the example against without it (one direction)"),
    "_without": (", without || with", "training without the example against with it"),
    "_both": (", larger", "the larger of both directions"),
}


def instance(column: str, direction: str) -> Meaning:
    """Return the meaning of a per-instance column in one of `DIRECTIONS`."""
    _, what, paper = INSTANCE[column]
    return Meaning(f"{_EPSILON}{what}; {DIRECTIONS[direction][1]}; an estimate", paper, MORE, "epsilon", PRIVATE)
