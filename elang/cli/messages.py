"""Mistakes in the options of a command, in two sentences instead of jsonargparse's usage and trees of types."""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, isclass, signature
from itertools import pairwise
from typing import Any, get_args

from jsonargparse import ArgumentParser

from elang.errors import InputError, listed, printable
from elang.tables import is_table

CLASSES = {
    "data": ("TextClassificationData", "Seq2SeqData", "TaskData"),
    "model": ("FinetuneModule", "SwiftModule", "JointModule", "ScoreModule"),
}
"""The classes that an option takes, without those of the user's own."""
MODELS = {"fit": CLASSES["model"][:2], "score": CLASSES["model"][3:]}
"""Those of ``--model`` by verb; the other verbs take the first three."""
_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "Iterable": "a list"}
_TYPES |= {"list": "a list", "dict": "a mapping"}
_MOST_LETTERS = 60
_KEY = r'Parser key "([^"\n]+)":'


def explained(message: str, verb: str, names: Iterable[str]) -> str:
    """Explain an error of jsonargparse: the option, its value, what is wrong, and the remedy.

    ``verb`` is the command, such as ``elang fit``, and ``names`` are its options, such as ``--model``.

    >>> explained("unrecognized arguments: --job 2", "elang suite", ["--jobs"])
    "There is no option --job. Did you mean '--jobs'? `elang suite --help` lists the options."
    """
    names = [name for name in names if name.startswith("--")]
    # What follows is the whole value of an outer option.
    inner = message.partition("\n  Given value type")[0]
    option = "--" + ".".join(_keys(inner))
    outer, _, problem = inner.partition("Problem with given class_path '")
    path, lists = problem.partition("'")[0], f"`{verb} --help` lists the options."
    if path:
        lists = f"`{verb} --{'.'.join(_keys(outer))}.help {path.rsplit('.', 1)[-1]}` lists the options."
    unknown = _found(r"Option '(.+?)' is not accepted|unrecognized arguments: --(\S+?)[= ]", inner)
    # Of several types that were tried, another one may take it.
    if path and unknown and unknown not in _accepted(class_at(path) or object):
        return f"{_no_option_of_class(verb, option, path, unknown=unknown)} {lists}"
    if not path and (
        unknown := _found(r"option '(.+?)'$|Option '(.+?)' is not accepted|unrecognized arguments: (.*)", inner)
    ):
        return f"{_no_option(unknown, names)} {lists}"
    if required := _found(r"the following arguments are required: (.+)", inner):
        needed = [f"{option}.{name}" if path else f"--{name}" for name in required.split(", ")]
        if not path and needed[0] not in names:
            return f"{verb} needs an argument, {needed[0][2:].upper()}. `{verb} --help` describes it."
        listed = " and ".join(filter(None, (", ".join(needed[:-1]), needed[-1])))
        return f"{path.rsplit('.', 1)[-1] or verb} needs {listed}. {lists}"
    value = _found(r"(?:Got|Given) value: (.*)", message)
    if base := _found(r"not correspond to a subclass of (\w+)", inner):
        return f"{option} needs a {base}, but it is {_short(value)}. {lists}"
    no_class = r"Expected a dot import path string: (.*)|has no attribute '(.+?)'|No module named '(.+?)'"
    if name := _found(no_class, inner):
        return _no_class(verb, option, path or name, message=message)
    if "Unexpected import path format" in inner and (mapping := _no_mapping(option, value, inner)):
        return mapping
    if types := re.findall(r"Expected an? (?!path but)(.+?)(?=\. Got value|\n|$)", inner.rpartition("Parser key")[2]):
        return f"{_wrong_type(option, value, types)} {lists}"
    if option := _found(r"argument (--\w+).*?: expected one argument", inner):
        which = f"{option}, or one of its options {option}.NAME," if f"{option}.help" in names else option
        return f"{which} has no value. Give one, or leave the option out."
    reason = f"{option} {problem.partition(chr(10) + '    - ')[0]}" if path else re.sub(_KEY, r"--\1:", inner)
    return " ".join(reason.replace("Problems parsing config", "A file of options cannot be read").split())


def refuse_tables(args: Iterable[str]) -> None:
    """Refuse a table where the name of a class is needed: it would be read as a file of options."""
    words = [word for arg in args for word in arg.split("=", 1)]
    for option, value in pairwise(words):
        if option in ("--data", "--model") and is_table(value):
            part, name = option[2:], {"--data": "train", "--model": "super_model"}[option]
            raise InputError(
                f"{option} is the name of a class, such as {CLASSES[part][0]}, but it is the file '{value}'. Give the "
                f"file as {option}.{name}{' or --data.validation' if part == 'data' else ''}."
            )


def parameters_of(made_by: Callable[..., Any]) -> dict[str, Parameter]:
    """The options of a class and of its bases, or of a function that makes the object."""
    classes = reversed(made_by.__mro__) if isclass(made_by) else ()
    calls = [vars(base)["__init__"] for base in classes if "__init__" in vars(base)] or [made_by]
    every = {name: each for call in calls for name, each in signature(call).parameters.items()}
    kinds = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    return {name: each for name, each in every.items() if each.kind not in kinds and name != "self"}


def _accepted(cls: type) -> list[str]:
    """The options that may be given for a class: :func:`parameters_of` but those that a subclass sets by itself."""
    known = list(parameters_of(cls))
    try:
        taken = ArgumentParser().add_class_arguments(cls, fail_untyped=False)
    except Exception:  # of a class of somebody else, whose signature may be anything
        return known
    return [name for name in known if name in taken]


def _keys(message: str) -> list[str]:
    """The names that lead to a value, each indented more than the one before; alternatives repeat them."""
    keys: list[str] = []
    deepest = -1
    for indent, key in re.findall(r'^(.*)Parser key "([^"\n]+)":', message, re.MULTILINE):
        if len(indent) > deepest:
            keys.append(key)
            deepest = len(indent)
    return keys


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return next(filter(None, match.groups()), "") if match else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question, or nothing."""
    return "".join(f" Did you mean '{match}'?" for match in get_close_matches(name, list(known), n=1, cutoff=0.6))


def _short(value: str) -> str:
    text = " ".join(printable(value).split())
    return repr(text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "...")


def _no_option(unknown: str, names: list[str]) -> str:
    """Of a verb: ``unknown`` is an argument and what follows, or a name in a file of options."""
    word = unknown.split()[0].partition("=")[0]
    meant = did_you_mean(word if word.startswith("--") else f"--{word}", names)
    if word.startswith("--") or meant or "." in word:
        return f"There is no option {word}.{meant}"
    return f"{_short(unknown)} belongs to no option: a value with spaces needs quotes."


def _no_option_of_class(verb: str, option: str, path: str, *, unknown: str) -> str:
    """Of the class of a model, data module, callback and so on: another class may have it."""
    cls = _settings_of(class_at(path), option.rpartition(".")[2]) or class_at(path)
    part, name = option[2:], cls.__name__ if cls else path.rsplit(".", 1)[-1]
    text = f"{name} has no option {option}.{unknown}."
    classes = MODELS.get(verb.split()[-1], CLASSES["model"][:3]) if part == "model" else CLASSES.get(part, ())
    others = [other for other in classes if other != name]
    having = [other for other in others if unknown in _accepted(class_at(f"elang.{other}") or object)]
    if having:
        have = f"{' and '.join(having)} {'have' if having[1:] else 'has'} it"
        return f"{text} {have}: put {option} {having[0]} before it."
    known = _accepted(cls) if cls else []
    nearest = [each for each in known if unknown.startswith(f"{each}_")] or get_close_matches(unknown, known, n=1)
    return text + "".join(f" Did you mean '{option}.{match}'?" for match in nearest)


def _settings_of(cls: type | None, name: str) -> type | None:
    """The dataclass whose fields are options of an option of a class, if it is one."""
    hint = parameters_of(cls)[name].annotation if cls and name in parameters_of(cls) else None
    return next((each for each in (hint, *get_args(hint)) if isclass(each) and is_dataclass(each)), None)


def _no_class(verb: str, option: str, name: str, *, message: str) -> str:
    classes = list(CLASSES.get(option[2:], ()))
    lists = f"{option} takes {', '.join(classes)}, or a class of your own by its path."
    if not classes:
        bases = [class_at(path) for path in re.findall(r"[\w.]+", _found(r"Subtypes: \[(.*)\]", message))]
        classes = sorted({each.__name__ for base in bases if base for each in _subclasses(base)})
        lists = f"It takes the name of a class, or its path. `{verb} --help` lists the options."
    elif option == "--model":
        lists += " A model's name or folder is --model.model."
    return f"There is no class {_short(name)} for {option}.{did_you_mean(name.rsplit('.', 1)[-1], classes)} {lists}"


def class_at(path: str) -> type | None:
    """The class at a dotted path, if there is one."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and found is not object else None


def _subclasses(cls: Any) -> list[type]:
    return [each for child in cls.__subclasses__() for each in (child, *_subclasses(child))]


def _no_mapping(option: str, value: str, message: str) -> str:
    """Of an option that takes the fields of a dataclass; empty if it is another one."""
    settings = class_at(_found(r"Subtypes: \[<class '([\w.]+)'", message.rpartition("Does not validate")[2]))
    if settings is None or not is_dataclass(settings):
        return ""
    names = [field.name for field in fields(settings)]
    wanted = f'a mapping of {listed(names)}, as "{{{names[0]}: 1}}"'
    return f"{option} must be {wanted}, but it is {_short(value)}."


def _wrong_type(option: str, value: str, types: list[str]) -> str:
    choices = [word for each in types if "Literal[" in each for word in re.findall(r"'([^']*)'|(\d+)", each)]
    words = list(dict.fromkeys(text or number for text, number in choices))
    plain = [re.sub(r"<class '(.*)'>", r"\1", each).split("[")[0].rsplit(".", 1)[-1] for each in types]
    names = dict.fromkeys(_TYPES.get(each, f"a {each}") for each in plain if each not in ("NoneType", "Literal"))
    wanted = [*([f"one of {', '.join(map(repr, words))}"] if words else []), *names]
    return f"{option} must be {' or '.join(wanted)}, but it is {_short(value)}.{did_you_mean(value, words)}"
