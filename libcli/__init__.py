"""What every script's command line shares: its parser, common flags, value checks and how it ends.

Scripts import this before anything slow, so that a Ctrl-C while libraries load is one line. What imports PyTorch is
imported by their `main`, once the flags are accepted: --help and refused flags need none of it.
"""

from __future__ import annotations

from libcli.interrupts import end_by, interrupted, say

import argparse
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from libstore.config import DEFAULT_CONFIG
from libstore.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

Namespace = argparse.Namespace
Job = TypeVar("Job")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show every default, unless the help text names it, and what is required; keep the lines of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help and "default" in action.help:
            return action.help
        if action.required and action.option_strings:
            return f"{action.help} (required)"
        return super()._get_help_string(action)


def _underscored(flag: str) -> str:
    return flag[:2] + flag[2:].replace("-", "_")


class Parser(argparse.ArgumentParser):
    """An argument parser that shows every default and reports an error in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Formatter, allow_abbrev=False)
        self.add_argument("--config", default=str(DEFAULT_CONFIG), help="JSON file that holds every path")
        self.old_spellings: dict[str, str] = {}
        """What a flag was called before, and its name."""
        self.remark: Callable[[Namespace], None] = lambda flags: None
        """Says what there is to say of accepted flags where nothing but them is looked at."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the flags; where the generators of job lines set FLAGS_ONLY, exit once they are accepted.

        --a-flag is read as --a_flag, however the flag is written, and so are old spellings.
        """
        words = list(sys.argv[1:] if args is None else args)
        flags = {_underscored(word.split("=", 1)[0]) for word in words}
        for before, now in self.old_spellings.items():
            if {before, now} <= flags:
                self.error(f"{before} is the old spelling of {now}: give one of the two")
        found = super().parse_args(map(self._spelled, words), namespace)
        if os.environ.get("FLAGS_ONLY"):
            self.remark(found)
            self.exit()
        return found

    def _spelled(self, word: str) -> str:
        flag, *value = word.split("=", 1)
        name = _underscored(flag)
        name = self.old_spellings.get(name, name)
        is_known = flag.startswith("--") and name in self._option_string_actions
        return "=".join([name, *value]) if is_known else word

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def number(kind: type, *, above: float = -math.inf, below: float = math.inf, at_least: float = -math.inf) -> Callable:
    """Return an argparse type: a finite int or float with above < value < below and value >= at_least."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not (math.isfinite(value) and above < value < below and value >= at_least):
            bounds = [f"> {above:g}"] if above > -math.inf else []
            bounds += [f"< {below:g}"] if below < math.inf else []
            bounds += [f">= {at_least:g}"] if at_least > -math.inf else []
            raise argparse.ArgumentTypeError(f"{text} is out of range, must be {' and '.join(bounds) or 'finite'}")
        return value

    return parse


positive_int = number(int, at_least=1)
non_negative_int = number(int, at_least=0)
positive_float = number(float, above=0)
fraction = number(float, above=0, below=1)


def file_name(text: str) -> str:
    """Return part of a file's name; an argparse type."""
    if not re.fullmatch(r"[\w.=+-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} holds more than letters, digits and _ . = + -")
    return text


def add_save_every(parser: Parser) -> None:
    """Add --save_every."""
    text = "seconds between saved states"
    parser.add_argument("--save_every", type=number(float, at_least=0), default=60.0, help=text)


def add_device(parser: Parser) -> None:
    """Add --device and --deterministic; run_jobs.sh --gpus sets another default."""
    default = os.environ.get("RUN_DEVICE") or "auto"
    parser.add_argument("--device", default=default, help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    text = "the same bytes every time on a GPU too, if slower; CPUs do so anyway"
    parser.add_argument("--deterministic", action="store_true", help=text)


def add_overwrite(parser: Parser) -> None:
    """Add --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace results made with other settings")


def add_workers(parser: Parser) -> None:
    """Add --workers."""
    default = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=positive_int, default=default, help="threads that read and decode images")


def add_keep_converted(parser: Parser) -> None:
    """Add --keep_converted."""
    text = "keep released checkpoints as PyTorch files under converted_dir; scoring them again needs no TensorFlow"
    parser.add_argument("--keep_converted", action="store_true", help=text)


def add_run_range(parser: Parser, stop: int | None) -> None:
    """Add --start_run and --stop_run."""
    parser.add_argument("--start_run", type=non_negative_int, default=0, help="first run")
    text = "run to stop before, left out itself, unlike ImageNet's --stop_idx"
    text += " (default: after the last one there)" if stop is None else ""
    parser.add_argument("--stop_run", type=non_negative_int, default=stop, help=text)


def add_architecture_options(parser: Parser, architectures: Mapping[str, Any], *, private: bool = False) -> None:
    """Add a flag for every option that some architecture has; `private` shows its defaults there."""
    for name in sorted({name for architecture in architectures.values() for name in architecture.options}):
        having = {arch: row.options[name] for arch, row in architectures.items() if name in row.options}
        values = sorted({value for row in having.values() for value in row})
        default = {
            arch: (architectures[arch].private if private else {}).get(name, row[0]) for arch, row in having.items()
        }
        text = "; ".join(f"{arch}: {' or '.join(row)}, {default[arch]} by default" for arch, row in having.items())
        parser.add_argument(f"--{name}", choices=values, default=argparse.SUPPRESS, help=text)


def architecture_options(args: Namespace, architectures: Mapping[str, Any]) -> dict[str, str]:
    """Return the architecture options that were given on the command line."""
    names = {name for architecture in architectures.values() for name in architecture.options}
    return {name: value for name, value in vars(args).items() if name in names}


REPORT_EVERY = 30.0
"""Seconds between two lines of progress in a log."""


def progress(total: int, description: str, unit: str) -> tqdm:
    """Return a bar that redraws on a terminal, or writes a line every `REPORT_EVERY` s where stderr is a log."""
    from tqdm import tqdm

    class LogLines(tqdm):
        """A progress report for logs: whole lines, nothing redrawn."""

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            line = str(self) if msg is None else msg
            if line:
                print(line, file=self.fp, flush=True)

    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, unit=unit, leave=False)
    form = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} spent, {remaining} left"
    pause = {"mininterval": REPORT_EVERY, "delay": REPORT_EVERY}
    return LogLines(total=total, desc=description, unit=unit, leave=False, bar_format=form, **pause)


class Stopped(Exception):
    """Work was left in good order after a signal; scripts print the message and end by the signal `signum`."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Take SIGTERM and Ctrl-C as a wish to stop: yield a function that returns the signal received, else 0.

    A second signal interrupts at once. A Ctrl-C that was ignored from the start, as in what a shell script runs in the
    background, stays ignored: that script tells its jobs to stop.
    """
    received: list[int] = []

    def note(signum: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)

    heard = [signum for signum in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, note) for signum in heard}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def one_after_another(work: Callable[[Job], int], jobs: Sequence[Job]) -> None:
    """Do jobs in turn.

    Args:
        work: Does one; returns the signal that asked it to stop when it was all but done, else 0.
        jobs: What it takes.

    Raises:
        Stopped: It returned a signal, and there are jobs left.
    """
    for done, job in enumerate(jobs, 1):
        signum = work(job)
        if signum and done < len(jobs):
            raise Stopped(signum, f"stopped, {done} of {len(jobs)} done; run the same command again to go on")


def warn(message: str) -> None:
    """Print a line on stderr about something that is left out."""
    say(message)


@cache
def warn_once(message: str) -> None:
    """Print a line on stderr, the first time in this process."""
    warn(message)


def run(main: Callable[[], object]) -> NoReturn:
    """Call a script's `main` and end: status 0 done, 2 input or system error (one line), or by the signal that came."""
    early = signal.getsignal(signal.SIGINT) == interrupted
    if early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or log cannot show must not end the work
            stream.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _stop_at_once)
    try:
        main()
    except InputError as error:
        _say_and_exit(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say_and_exit(f"error: {where}{error.strerror or error}", 2)
    except MemoryError as error:
        _say_and_exit(f"error: out of memory: {error or 'the system has no more'}", 2)
    except Stopped as stop:
        end_by(stop.signum, str(stop))
    except KeyboardInterrupt:
        interrupted()
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's; this module does without PyTorch
            flags = "--batch_size or --max_physical_batch_size"
            _say_and_exit(f"error: the GPU is out of memory, try a smaller {flags}: {reason}", 2)
        if "does not have a deterministic implementation" in reason:
            _say_and_exit(f"error: not with --deterministic on this device: {reason}", 2)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if early:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done; no traceback while Python leaves
    sys.exit(0)


def _stop_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    message = "stopped; run the same command again to go on"
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":  # a library may catch what is raised there
            end_by(signum, message)
        frame = frame.f_back
    raise Stopped(signum, message)


def _say_and_exit(message: str, status: int) -> NoReturn:
    say(message)
    sys.exit(status)
