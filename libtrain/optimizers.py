"""PyTorch's optimizers without torch._dynamo, which takes as long to import as all the rest of PyTorch."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


@lru_cache
def eager(kind: type[Kind]) -> type[Kind]:
    """Return the optimizer class without what only `torch.compile` looks at; it computes the same.

    Its methods are wrapped for that compiler, and the wrappers import it; what they wrap is taken instead.
    """
    bare = inspect.unwrap(kind.step)

    @torch.no_grad()
    def step(self: Any, closure: Any = None) -> Any:
        return bare(self, closure)

    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": step})
