"""What is given on the command line: configuration files found, options checked, misspelt ones suggested."""

import os
import re
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

from elang.errors import InputError, printable
from elang.notices import notice


def checked_arguments(args: list[str]) -> list[str]:
    """Arguments of a verb as the parsers are to see them.

    A negative number in any notation belongs to the option before it: by themselves the parsers take ``-5e-1`` and
    ``-inf`` for options. A configuration under ``configs/`` that is not here is the package's own.

    Raises:
        InputError: If a value is empty, which would often pass for the default.

    >>> checked_arguments(["--threshold", "-5e-1"])
    ['--threshold=-5e-1']
    """
    found: list[str] = []
    given: dict[str, str] = {}
    lists: list[str] = []
    rest = list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--") and option != "-c":
            if not option + equals:
                raise InputError("An argument is empty. Give a value, or leave it out.")
            found.append(option + equals + value)
            continue
        if not equals:
            if not rest or (rest[0].startswith("-") and rest[0] != "-" and not is_number(rest[0])):
                found.append(option)
                continue
            value = rest.pop(0)
        if not value:
            raise InputError(f"{option} has an empty value. Give one, or leave the option out.")
        if option in ("--config", "-c"):
            value = _own_config(value)
        elif option.endswith("+"):
            # What comes behind it is of this element.
            lists.append(option[:-1] + ".")
        elif not option.startswith(tuple(lists)) and given.setdefault(option, value) != value:
            said = f"{option} is given as '{given[option]}' and as '{value}': the last one counts."
            notice("option-given-twice", said)
            given[option] = value
        joined = equals or (value.startswith("-") and value != "-")
        found += [f"{option}={value}"] if joined else [option, value]
    return found


def is_number(value: str) -> bool:
    """Whether an argument is a number: it may begin with a minus sign and is no option."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def _own_config(value: str) -> str:
    """A configuration that was named as in the repository, where there is none: the package's."""
    path = PurePath(value)
    if path.parts[:1] != ("configs",) or ".." in path.parts or os.path.exists(value):
        return value
    package = Path(__file__).parents[1]
    # A checkout has them beside the package.
    beside = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    for place in (package, *beside):
        if (place / path).is_file():
            notice("configuration-of-the-package", f"There is no '{value}' here: the package's own, '{place / path}'.")
            return str(place / path)
    return value


def suggest(parser: Any) -> None:
    """Let a parser name the option that is meant where it does not know one."""
    tell = parser.error

    def error(message: str, *more: Any) -> Any:
        verbs = [one for action in parser._actions for one in getattr(action, "_name_parser_map", {}).values()]
        known = [name for one in (parser, *verbs) for name in one._option_string_actions if name.startswith("--")]
        asked = re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message)
        near = get_close_matches(asked[1], known, 1, 0.75) if asked else []
        return tell(printable(message) + "".join(f". Did you mean '{one}'?" for one in near), *more)

    parser.error = error
