"""Checks of command line arguments that all verbs share, before and after parsing."""

import os
from pathlib import Path, PurePath

from elang.errors import InputError
from elang.files import is_stream
from elang.notices import notice

# Options by an earlier name, of single verbs.
_RENAMED = {"ask": {"--batch": "--batch_size"}, "serve": {"--batch": "--batch_size", "--accelerator": "--device"}}


def renamed(verb: str, args: list[str]) -> list[str]:
    """Take an option by its earlier name, with a notice.

    >>> renamed("ask", ["--batch_size", "4"])
    ['--batch_size', '4']
    """
    known, taken = _RENAMED.get(verb, {}), []
    for arg in args:
        name, equals, value = arg.partition("=")
        if name in known:
            notice("renamed-option", f"{name} of `elang {verb}` is called {known[name]} now, as in the other verbs.")
        taken.append(known.get(name, name) + equals + value)
    return taken


def checked_arguments(args: list[str]) -> list[str]:
    """Prepare the arguments of a verb for the parsers.

    The parsers take ``-5e-1`` and ``-inf`` for options, so a negative number is joined to the option before it. A
    missing configuration under ``configs/`` is replaced by the package's own. An empty value is an InputError, because
    the parsers would often use the default instead.

    >>> checked_arguments(["--threshold", "-5e-1"])
    ['--threshold=-5e-1']
    """
    checked: list[str] = []
    values: dict[str, str] = {}
    appended: list[str] = []
    remaining = list(args)
    while remaining:
        option, equals, value = remaining.pop(0).partition("=")
        if not option.startswith("--") and option != "-c":
            if not option + equals:
                raise InputError("An argument is empty. Give a value, or leave it out.")
            checked.append(option + equals + value)
            continue
        if not equals:
            following = remaining[0] if remaining else "--"
            if following.startswith("-") and following != "-" and not is_number(following):
                checked.append(option)
                continue
            value = remaining.pop(0)
        if not value:
            raise InputError(f"{option} has an empty value. Give one, or leave the option out.")
        if option in ("--config", "-c"):
            value = _packaged_config(value)
        elif option.endswith("+"):
            # Options that follow belong to this list element, so they may repeat.
            appended.append(option[:-1] + ".")
        elif not option.startswith(tuple(appended)) and values.setdefault(option, value) != value:
            message = f"{option} is given as '{values[option]}' and as '{value}': the last one counts."
            notice("option-given-twice", message)
            values[option] = value
        joined = equals or (value.startswith("-") and value != "-")
        checked += [f"{option}={value}"] if joined else [option, value]
    return checked


def is_number(value: str) -> bool:
    """Whether an argument is a number, which may begin with a minus sign, rather than an option."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def note_replaced(output: str) -> None:
    """Give a notice if an output is a file with content, which will be replaced."""
    if output != "-" and not is_stream(output) and os.path.isfile(output) and os.path.getsize(output):
        text = f"'{output}' is there already, and is replaced when this run ends. Give another --output to keep it."
        # A repeated run then gives the same file.
        notice("replaced-file", text, recorded=False)


def check_minimum(minimum: int, **options: int | None) -> None:
    """Raise an InputError for the first option that is less than a minimum; ``None`` stands for a default."""
    for name, value in options.items():
        if value is not None and value < minimum:
            raise InputError(f"--{name} must be at least {minimum}, but it is {value}.")


def _packaged_config(value: str) -> str:
    """Where the configuration ``configs/...`` is in the package, or ``value`` if it exists here."""
    path = PurePath(value)
    if path.parts[:1] != ("configs",) or ".." in path.parts or os.path.exists(value):
        return value
    package = Path(__file__).parents[1]
    # A checkout has the configurations beside the package.
    checkout = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    for folder in (package, *checkout):
        if (folder / path).is_file():
            message = f"There is no '{value}' here: the package's own, '{folder / path}', is used."
            notice("configuration-of-the-package", message)
            return str(folder / path)
    return value
