"""Networks by name: a row of the built-in table, or any callable that an import path names."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

from libdata.import_paths import call, is_import_path, kind_of, load_callable
from libmodels import ARCHITECTURES
from libstore.errors import InputError
from libstore.settings import Settings, setting

_UNKNOWN = f"unknown; known: {', '.join(ARCHITECTURES)}, or an import path such as my_nets.py:build"
Option = str | int | float | bool | None


@dataclass(frozen=True)
class NetworkChoice(Settings):
    """What a user says of a network."""

    arch: str = setting(
        "smallcnn",
        f"network: {', '.join(ARCHITECTURES)}, or package.module:callable or path/to/file.py:callable, "
        "called with num_classes and, where it has that parameter, in_channels",
        metavar="NETWORK",
        check=lambda name: None if name in ARCHITECTURES or ":" in name else _UNKNOWN,
    )
    arch_name: str | None = setting(None, "name of the network on disk (default: its own)", metavar="NAME")
    arch_options: tuple[str, ...] = setting((), "options of the network", metavar="KEY=VALUE")


@dataclass(frozen=True)
class Network:
    """A way to build a network.

    Attributes:
        name: Its name on disk.
        callable: Called with num_classes, perhaps in_channels, and the options.
        options: Keyword arguments.
        image_size: Height and width that images are resized to, None for any.
        source: Digest of the code of a network that is not built in, None for a built-in one.
        text: What the user named it by, for messages.
        built_in: Its key in the built-in table, None for a network from outside.
    """

    name: str
    callable: Callable[..., Any] = field(compare=False)
    options: Mapping[str, Option] = field(default_factory=dict)
    image_size: int | None = None
    source: str | None = None
    text: str = ""
    built_in: str | None = None

    def build(self, num_classes: int, in_channels: int) -> nn.Module:
        """Return a freshly initialised network, drawn from the global generator.

        Raises:
            InputError: The callable raises or returns something that is not a module.
        """
        arguments = dict(self.options) | {"num_classes": num_classes}
        if self.built_in or "in_channels" in _parameters(self.callable):
            arguments["in_channels"] = in_channels
        from torch import nn

        model = call(self.callable, self.text or self.name, **arguments)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"{self.text}: expected a callable that returns a torch module, it returned {kind_of(model)}"
            )
        return model


def find_network(
    choice: NetworkChoice, options: Mapping[str, Option] | None = None, *, private: bool = False
) -> Network:
    """Return the network that a user's choice names.

    Args:
        choice: The choice.
        options: Options beside those of the choice.
        private: The network is for private training, which has defaults of its own.

    Raises:
        InputError: The name is unknown, the import path leads nowhere, or an option is unknown.
    """
    chosen = parse_options(choice.arch_options) | dict(options or {})
    if choice.arch in ARCHITECTURES:
        defaults = ARCHITECTURES[choice.arch].private if private else {}
        return built_in(choice.arch, {**defaults, **chosen}, choice.arch_name)
    if not is_import_path(choice.arch):
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"--arch {choice.arch}: unknown; known: {known}, or an import path such as my_nets.py:build")
    function, name = load_callable(choice.arch)
    return Network(choice.arch_name or name, function, chosen, None, source_digest(function), choice.arch)


def built_in(name: str, options: Mapping[str, Option] | None = None, name_on_disk: str | None = None) -> Network:
    """Return a network of the built-in table; options not given take their defaults.

    Raises:
        InputError: The name, an option or its value is unknown.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    row = ARCHITECTURES[name]
    chosen: dict[str, Option] = {key: values[0] for key, values in row.options.items()}
    for key, value in (options or {}).items():
        if key not in row.options:
            has = ", ".join(row.options) or "none"
            raise InputError(f"--{key} {value}: network {name!r} has no such option; it has: {has}")
        if value not in row.options[key]:
            raise InputError(f"{name}: {key}={value} is unknown; known: {', '.join(row.options[key])}")
        chosen[key] = value
    return Network(name_on_disk or name, row.build, chosen, row.image_size, None, name, name)


def parse_options(words: Sequence[str]) -> dict[str, Option]:
    """Read key=value words; a value that is a Python number, True, False or None is taken as that.

    Raises:
        InputError: A word has another form, or a key comes twice.
    """
    options: dict[str, Option] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key.isidentifier()):
            raise InputError(f"--arch_options {word}: expected KEY=VALUE")
        if key in options:
            raise InputError(f"--arch_options {word}: {key} is given twice")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        options[key] = value if isinstance(value, Option) else text
    return options


def source_digest(function: Callable[..., Any]) -> str:
    """Return a digest of what defines a callable, as its module spells it: comments and docstrings do not count.

    What it uses of the same module counts, however indirectly; what it imports from elsewhere does not.
    """
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", type(function).__qualname__).partition(".")[0]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.getmodule(function) or function)))
    except (OSError, TypeError, SyntaxError):
        return "no source"
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for defined in _defined(statement):
            definitions.setdefault(defined, []).append(statement)
    wanted, seen = [name], set()
    while wanted:
        one = wanted.pop()
        if one in definitions and one not in seen:
            seen.add(one)
            wanted += [n.id for s in definitions[one] for n in ast.walk(s) if isinstance(n, ast.Name)]
    used = [s for s in tree.body if seen & set(_defined(s))] or tree.body
    return hashlib.sha256("\n".join(ast.unparse(_without_docstrings(s)) for s in used).encode()).hexdigest()


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[index]
    return statement


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def check_output(model: nn.Module, inputs: torch.Tensor, num_classes: int, name: str) -> None:
    """Refuse a network whose output for a batch is not one row of `num_classes` logits for each example.

    Raises:
        InputError: It is not, or the network fails on the batch.
    """
    import torch

    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: fails on a batch of shape {tuple(inputs.shape)}: {reason}") from error
    finally:
        for module, mode in training:
            module.training = mode
    if not isinstance(output, torch.Tensor) or output.shape != (len(inputs), num_classes):
        raise InputError(
            f"{name}: expected logits of shape ({len(inputs)}, {num_classes}) for a batch of {len(inputs)}, "
            f"it returns {kind_of(output)}"
        )
