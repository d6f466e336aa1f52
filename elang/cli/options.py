"""How the values of options are read, on the command line and in YAML files: text stays text.

YAML 1.1 reads ``no`` and ``on`` as truth values, ``1_000`` and ``12:30`` as numbers, ``review: {text}`` as a mapping.
Here they stay text, and jsonargparse converts them where the option has another type.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_dumper, set_loader

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
        yaml.YAMLError: If it is no YAML, or has a name twice.
    """
    # A prompt or a column's name may have a colon in it.
    if path is None and "\n" not in text and not text.lstrip().startswith(("[", "{")):
        value = get_loader("yaml")(text)
        return value if isinstance(value, bool | int | float) else text
    # What jsonargparse writes to read it again has the types that it was given.
    loader = _AsDumped(text) if path is None and text.startswith(_START) else _AsWritten(text)
    loader.name = loader.name if path is None else str(path)
    try:
        node = loader.get_single_node()
        nodes = _checked_nodes(node)
        if path is None and any(map(_has_fields, nodes)):
            return text
        _keep_nulls_of_lists(nodes)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _checked_nodes(root: Any) -> list[Any]:
    """All nodes of a document, each once however many aliases there are of it.

    Raises:
        yaml.YAMLError: If a mapping has a name twice, of which YAML would take the last.
    """
    found = {id(root): root} if root is not None else {}
    todo = list(found.values())
    while todo:
        node = todo.pop()
        below = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            below = [one for pair in node.value for one in pair]
            names: dict[str, Any] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
                if first := names.get(key.value):
                    said = f"'{key.value}' stands twice, in line {first.line + 1} and here; leave one of the two"
                    raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
                names[key.value] = key.start_mark
        todo += [one for one in below if id(one) not in found]
        found |= {id(one): one for one in below}
    return list(found.values())


def _has_fields(node: Any) -> bool:
    """Whether it is of a template, in which ``{text}`` is a field to YAML without a value."""
    if not isinstance(node, yaml.MappingNode) or not node.flow_style:
        return False
    fields = [value for _, value in node.value if isinstance(value, yaml.ScalarNode)]
    return any(value.tag == _NULL and not value.value for value in fields)


def _keep_nulls_of_lists(nodes: list[Any]) -> None:
    """A ``null`` in a list is a name there; as the value of an option it says that there is none."""
    for node in nodes:
        for one in node.value if isinstance(node, yaml.SequenceNode) else []:
            if one.tag == _NULL and one.value:
                one.tag = _TEXT


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file whose parts are written into files of options again, without another spelling.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no UTF-8.
        yaml.YAMLError: If it is no YAML, or has a name twice.
    """
    loader = _AsDumped(Path(path).read_text("utf-8"))
    loader.name = str(path)
    try:
        node = loader.get_single_node()
        _checked_nodes(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


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
        bases = reversed(getattr(import_module(module), kind).__mro__)
        known = {name: option for base in bases for name, option in signature(base.__init__).parameters.items()}
        values = config[part].get("init_args") or {}
        for name, value in values.items():
            default = known[name].default if name in known else None
            if value is not None or default is None or default is Parameter.empty:
                continue
            if not isinstance(default, str):
                raise InputError(f"--{part}.{name} is null. Give a value, or leave it out: it is then {default!r}.")
            values[name] = "null"


def texts_in(value: Any) -> Iterator[str]:
    """All texts of a part of the configuration, but for the output's name: those that are paths may be inputs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, (dict, Namespace)):
        for name, one in value.items():
            if name != "output":
                yield from texts_in(one)


set_loader(MODE, load_options, (yaml.YAMLError,))
set_dumper(MODE, _dump)
