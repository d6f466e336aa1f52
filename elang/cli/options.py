"""How options and YAML files are parsed: ``no``, ``12:30`` and ``review: {text}`` stay text unless the type differs."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_dumper, set_loader

from elang.cli.arguments import is_number
from elang.cli.messages import CLASSES, explained, parameters_of, refuse_tables
from elang.errors import InputError, input_error_behind
from elang.notices import notice

MODE = "elang"
"""The ``parser_mode`` of our parsers."""
_START = "---\n"
_NULL, _TEXT = (f"tag:yaml.org,2002:{name}" for name in ("null", "str"))


class Parser(ArgumentParser):
    """A parser that explains what is wrong in two sentences."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an InputError; in the parser of a class, whose error is a part of another one, jsonargparse's."""
        if not self.exit_on_error:
            super().error(message, ex)
        if ex is not None and (cause := input_error_behind(ex)):
            raise cause
        verbs = [verb for action in self._actions for verb in getattr(action, "_name_parser_map", {}).items()]
        names = [name for each in (self, *(parser for _, parser in verbs)) for name in each._option_string_actions]
        raise InputError(
            explained(message, " ".join([self.prog.replace(" [options]", ""), *(verb for verb, _ in verbs)]), names)
        ) from ex


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, and notices templates."""

    has_template = False

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping and check its keys."""
        node = super().compose_mapping_node(anchor)
        marks: dict[str, Any] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if first := marks.get(key.value):
                    message = f"'{key.value}' stands twice, in line {first.line + 1} and here; leave one of the two"
                    raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
                marks[key.value] = key.start_mark
            # To YAML, the {text} of a template is a key without a value.
            if node.flow_style and isinstance(value, yaml.ScalarNode) and value.tag == _NULL and not value.value:
                self.has_template = True
        return node


class _AsWritten(_Loader):
    """Reads every unquoted scalar but null as text, and null in a list, too."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_sequence_node(self, anchor: Any) -> Any:
        """Compose a list, in which null is text; as the value of an option it means that there is none."""
        node = super().compose_sequence_node(anchor)
        for element in node.value:
            if element.tag == _NULL and element.value:
                element.tag = _TEXT
        return node


class _AsDumped(_Loader):
    """Reads an unquoted scalar as text unless its value would be dumped the same way: 3 is a number, 1_000 is text."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Build the value of a node."""
        value = super().construct_object(node, deep)
        if not isinstance(node, yaml.ScalarNode) or value is None:
            return value
        same = isinstance(value, bool | int | float) and yaml.safe_dump(value).split("\n")[0] == node.value
        return value if same else node.value


def load_options(text: str, path: Any = None) -> Any:
    """Parse the value of an option or, with a ``path``, the content of a file of options."""
    # A prompt or a column name may contain a colon.
    if path is None and "\n" not in text and not text.lstrip().startswith(("[", "{")):
        value = get_loader("yaml")(text)
        return value if isinstance(value, bool | int | float) else text
    # jsonargparse reads its own dumps again, in which each value has its type already.
    return _load(text, _AsDumped if path is None and text.startswith(_START) else _AsWritten, path)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file whose parts are written into files of options again, spelled as they are."""
    return _load(Path(path).read_text("utf-8"), _AsDumped, path)


def _load(text: str, loader_class: type[_Loader], path: str | Path | None) -> Any:
    loader = loader_class(text)
    loader.name = loader.name if path is None else str(path)
    try:
        root = loader.get_single_node()
        if path is None and loader.has_template:
            return text
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _dump(values: Any) -> str:
    return yaml.safe_dump(values, default_flow_style=False, allow_unicode=True, sort_keys=False, explicit_start=True)


def given_options(parser: ArgumentParser, args: Any, parts: tuple[str, ...], verbs: dict[str, Any]) -> dict[str, Any]:
    """Find the arguments that were given for the class of each part, such as ``model``, and check that it has them.

    The defaults of the parser, or of the one in ``verbs`` that is asked for, become those of the chosen classes.
    """
    if isinstance(args, list):
        refuse_tables(args)
        args = [arg for arg in args if not arg.startswith("--print_config")]
    errors: list[InputError] = []

    def collect(record: logging.LogRecord) -> bool:
        pattern = r"Due to class_path change from '(.+)' to '(.+)', discarding init_args: (.*?)\.?$"
        if match := re.match(pattern, record.getMessage()):
            old, new = (name.rsplit(".", 1)[-1] for name in match.groups()[:2])
            message = f"The options {match[3]} were given for {old}, but {new}, named after them, does not have them."
            errors.append(InputError(f"{message} Leave them out, or do not name {new}."))
        return False

    # jsonargparse caches the parsers of classes with this logger, and only logs which options it discards.
    logger = logging.getLogger(__name__)
    for each in (parser, *verbs.values()):
        each.logger = logger
    logger.setLevel(logging.DEBUG)
    logger.addFilter(collect)
    try:
        config: Any = parser.parse_args(args, defaults=False, _skip_validation=True)
    finally:
        logger.removeFilter(collect)
        logger.setLevel(logging.CRITICAL)
    if errors:
        raise errors[0]
    if verbs:
        parser, config = verbs[config.subcommand], config[config.subcommand]
    given: dict[str, Any] = {}
    for part in parts:
        chosen = config.get(part) or {}
        given[part] = chosen.get("init_args") or {}
        if "class_path" in chosen:
            parser.set_defaults({part: {"class_path": chosen["class_path"]}})
    return given


def _list_options(made_by: Mapping[str, Callable[..., Any] | None]) -> dict[str, bool]:
    """The options that take a list of texts or numbers, and whether these are numbers."""
    lists: dict[str, bool] = {}
    for part, owner in made_by.items():
        for name, parameter in parameters_of(owner).items() if owner is not None else ():
            for hint in (parameter.annotation, *get_args(parameter.annotation)):
                items = get_args(hint) if get_origin(hint) is list else ()
                if items and (items[0] in (str, int, float) or get_origin(items[0]) is Literal):
                    lists["--" + ".".join(filter(None, (part, name)))] = items[0] in (int, float)
    return lists


def with_lists(
    args: list[str], made_by: Mapping[str, Callable[..., Any] | None], positional: bool = False
) -> list[str]:
    """Join several values of an option that takes a list to one, in YAML.

    ``made_by`` has the class of each part, such as ``data``, or a function by an empty name. Where there are
    ``positional`` arguments, these may follow the texts of an option, unless they come first.

    >>> def sweep(joint: str, score: list[str] | str, points: int) -> None: ...
    >>> with_lists(["joint", "--score", "entropy", "margin", "--points", "9"], {"": sweep}, True)
    ['joint', '--score', '["entropy", "margin"]', '--points', '9']
    """
    lists = _list_options(made_by)
    joined: list[str] = []
    remaining = list(args)
    while remaining:
        option = remaining.pop(0)
        joined.append(option)
        if option not in lists:
            continue
        takes_all = not positional or not joined[0].startswith("-")
        values: list[str] = []
        while remaining and not remaining[0].startswith("--"):
            if not (is_number(remaining[0]) if lists[option] else takes_all or not values):
                break
            values.append(remaining.pop(0))
        if len(values) > 1:
            values = [f"[{', '.join(values)}]" if lists[option] else json.dumps(values, ensure_ascii=False)]
        joined += values
    return joined


def last_value(args: list[str], *options: str) -> str | None:
    """The value of an option, the last one if it is given several times; ``None`` if it is not given.

    >>> last_value(["--ckpt_path=a.ckpt", "--ckpt_path", "epoch=1.ckpt"], "--ckpt_path")
    'epoch=1.ckpt'
    """
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("-") else [arg])]
    return next((value for option, value in reversed([*pairwise(words)]) if option in options), None)


def with_checkpoint(args: list[str], about: dict[str, Any], model: str | None) -> list[str]:
    """Put the class, model and data of a checkpoint before the arguments of a verb that name none of their own.

    ``about`` is what the checkpoint tells of them, ``model`` what its training began with.
    """
    path = last_value(args, "--config", "-c")
    config = Path(path).read_text("utf-8", "replace") if path and Path(path).is_file() else ""
    given: dict[str, set[str]] = {}
    for part in CLASSES:
        given[part] = {arg.partition("=")[0] for arg in args if re.match(rf"--{part}\b", arg)}
        given[part] |= {"--config"} if re.search(rf"^ *{part} *:", config, re.MULTILINE) else set()
    before: list[str] = []
    name, data = about["class"], about.get("data")
    chosen = (last_value(args, "--model") or name).rsplit(".", 1)[-1]
    if model and chosen == name and name in CLASSES["model"]:
        known = {f"--model.{option}" for option in parameters_of(getattr(import_module("elang"), name))}
        if given["model"] <= {"--model", *known}:
            before += [f"--model={name}", f"--model.model={model}"]
    if data and not given["data"]:
        options = {option: v if isinstance(v, str) else json.dumps(v) for option, v in data["init_args"].items()}
        values = [f"--data.{option}={value}" for option, value in options.items()]
        before += [f"--data={data['class_path']}", *values]
        notice("checkpoint-options", f"No data are given, so they are those of the checkpoint: {' '.join(values)}")
    return [*before, *args]


def refuse_nulls(config: Any, parts: Iterable[str]) -> None:
    """Read null as the word "null" where an option of a class is text, and refuse it where a value is needed."""
    for part in parts:
        module, _, name = config[part]["class_path"].rpartition(".")
        parameters = parameters_of(getattr(import_module(module), name))
        values = config[part].get("init_args") or {}
        for option, value in values.items():
            default = parameters[option].default if option in parameters else None
            if value is not None or default is None or default is Parameter.empty:
                continue
            if not isinstance(default, str):
                raise InputError(f"--{part}.{option} is null. Give a value, or leave it out: it is then {default!r}.")
            values[option] = "null"


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a part of the configuration except the output's name; those that are paths may be inputs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from texts_in(element)
    elif isinstance(value, (dict, Namespace)):
        for name, element in value.items():
            if name != "output":
                yield from texts_in(element)


set_loader(MODE, load_options, (yaml.YAMLError,))
set_dumper(MODE, _dump)
