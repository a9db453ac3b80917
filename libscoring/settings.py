"""What decides the scores of a model, besides the model and the data."""

from __future__ import annotations

from dataclasses import dataclass

from libdata.import_paths import is_import_path
from libstore.settings import Settings, setting

BUILT_IN = ("curvature", "loss", "margin", "el2n", "grand", "input_gradient_norm")


def _unknown(scores: str) -> str | None:
    for word in (part.strip() for part in scores.split(",")):
        if word not in BUILT_IN and not is_import_path(word):
            return f"no list of scores: {word!r} is unknown; known: {', '.join(BUILT_IN)}, or an import path"
    return None


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """Which scores, and how they are taken."""

    scores: str = setting(
        "curvature",
        f"scores, with commas between: {', '.join(BUILT_IN)}, or package.module:function or path/to/file.py:function "
        "of (model, x, y, examples) that returns arrays by name; curvature brings the trace of the Hessian",
        metavar="SCORES",
        check=_unknown,
    )
    h: float = setting(1e-3, "step of the finite difference, in units of the input as the model gets it", above=0)
    n_probes: int = setting(10, "random directions per example", at_least=1)
    temp: float = setting(1.0, "temperature that divides the logits in curvature and input_gradient_norm", above=0)
    probe_seed: int = setting(0, "seed of the directions", at_least=0)
    exact: bool = setting(False, "exact Hessian-vector products in place of finite differences (slower; ignores kinks)")
    input_module: str | None = setting(
        None,
        "submodule at whose output the example is perturbed, such as an embedding (default: the input itself)",
        metavar="NAME",
    )

    @property
    def step(self) -> str:
        """What names of files say of the difference: h, or "exact"."""
        return "exact" if self.exact else str(self.h)
