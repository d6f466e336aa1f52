"""How the values of options are read, on the command line and in YAML files: text stays text.

YAML 1.1 reads ``no`` and ``on`` as truth values, ``1_000`` and ``12:30`` as numbers, ``review: {text}`` as a mapping.
Here they stay text, and jsonargparse converts them where the option has another type.
"""

import logging
import re
from collections.abc import Iterable
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_dumper, set_loader

from elang.errors import InputError

MODE = "elang"
"""The ``parser_mode`` of our parsers."""

_START = "---\n"
_NULL, _TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "str"))


class _AsWritten(yaml.SafeLoader):
    """Reads every plain scalar but null as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _AsDumped(yaml.SafeLoader):
    """Reads a plain scalar as text unless its value would be written in the same way: 3 is a number, 1_000 is text."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Build the value of a node."""
        value = super().construct_object(node, deep)
        if not isinstance(node, yaml.ScalarNode) or value is None:
            return value
        same = isinstance(value, bool | int | float) and yaml.safe_dump(value).split("\n")[0] == node.value
        return value if same else node.value


def load_options(text: str, path: Any = None) -> Any:
    """Read the value of an option, or a file of options.

    Args:
        text: What was given.
        path: Where a whole file of options is from; ``None`` for a single value.

    Raises:
        yaml.YAMLError: If it is no YAML.
    """
    # A prompt or a column's name may have a colon in it.
    if path is None and "\n" not in text and not text.lstrip().startswith(("[", "{")):
        value = get_loader("yaml")(text)
        return value if isinstance(value, bool | int | float) else text
    # What jsonargparse writes to read it again has the types that it was given.
    loader = _AsDumped(text) if path is None and text.startswith(_START) else _AsWritten(text)
    try:
        node = loader.get_single_node()
        if path is None and _has_fields(node):
            return text
        _keep_nulls_of_lists(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes(node: Any) -> list[Any]:
    """The nodes below a node."""
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _has_fields(node: Any) -> bool:
    """Whether it is a template, in which ``{text}`` is a field to YAML without a value."""
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        fields = [value for _, value in node.value if isinstance(value, yaml.ScalarNode)]
        if any(value.tag == _NULL and not value.value for value in fields):
            return True
    return any(map(_has_fields, _nodes(node)))


def _keep_nulls_of_lists(node: Any) -> None:
    """A ``null`` in a list is a name there; as the value of an option it says that there is none."""
    for one in _nodes(node):
        if isinstance(node, yaml.SequenceNode) and one.tag == _NULL and one.value:
            one.tag = _TEXT
        _keep_nulls_of_lists(one)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file whose parts are written into files of options again, without another spelling.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no UTF-8.
        yaml.YAMLError: If it is no YAML.
    """
    return yaml.load(Path(path).read_text("utf-8"), _AsDumped)


def _dump(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=False, allow_unicode=True, sort_keys=False, explicit_start=True)


class _Dropped(logging.Handler):
    """Hears from jsonargparse which options it drops where another class is named behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[InputError] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is to be said of it."""
        pattern = r"Due to class_path change from '(.+)' to '(.+)', discarding init_args: (.*?)\.?$"
        if (said := re.match(pattern, record.getMessage())) is None:
            return
        old, new = (name.rsplit(".", 1)[-1] for name in said.groups()[:2])
        self.errors.append(
            InputError(
                f"The options {said[3]} were given for {old}, but {new}, which is named after them, does not have "
                f"them. Leave them out, or do not name {new}."
            )
        )


def own_defaults(parser: ArgumentParser, args: Any, parts: tuple[str, ...], verbs: dict[str, Any]) -> dict[str, Any]:
    """Let a class that is chosen start from its own defaults, not from those that the verb's default class has.

    Args:
        parser: Which will parse the arguments; its defaults are changed.
        args: All arguments.
        parts: Options that are a class with its arguments, as ``model``.
        verbs: The parsers of its verbs, if it has any.

    Returns:
        The arguments of each part's class that were given.

    Raises:
        InputError: If some were given for another class.
    """
    bare: Any = [arg for arg in args if not arg.startswith("--print_config")] if isinstance(args, list) else args
    # Where jsonargparse keeps the parsers of classes it keeps this with them.
    logger, dropped = logging.getLogger(__name__), _Dropped()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    for one in (parser, *verbs.values()):
        one.logger = logger
    logger.addHandler(dropped)
    try:
        found: Any = parser.parse_args(bare, defaults=False, _skip_validation=True)
    finally:
        logger.removeHandler(dropped)
        logger.setLevel(logging.CRITICAL)
    if dropped.errors:
        raise dropped.errors[0]
    if verbs:
        parser, found = verbs[found.subcommand], found[found.subcommand]
    given: dict[str, Any] = {}
    for part in parts:
        chosen = found.get(part) or {}
        given[part] = chosen.get("init_args") or {}
        if "class_path" in chosen:
            parser.set_defaults({part: {"class_path": chosen["class_path"]}})
    return given


def refuse_nulls(config: Any, parts: Iterable[str]) -> None:
    """Take a null for the text where an option of a class is one, and refuse it where there must be another value.

    Raises:
        InputError: Naming the option.
    """
    for part in parts:
        module, _, kind = config[part]["class_path"].rpartition(".")
        known = signature(getattr(import_module(module), kind)).parameters
        values = config[part].get("init_args") or {}
        for name, value in values.items():
            default = known[name].default if name in known else None
            if value is not None or default is None or default is Parameter.empty:
                continue
            if not isinstance(default, str):
                raise InputError(f"--{part}.{name} is null. Give a value, or leave it out: it is then {default!r}.")
            values[name] = "null"


set_loader(MODE, load_options, (yaml.YAMLError,))
set_dumper(MODE, _dump)
