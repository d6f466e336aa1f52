"""The command line. Nothing heavy is imported before the verb is known."""

import json
import re
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from elang._version import __version__
from elang.errors import InputError, input_error_behind, machine_error_behind, printable
from elang.notices import Notice, forget_notices

_HELP = """usage: elang <verb> [options]

Joint inference of a small (Swift) and a large (Super) language model.

verbs:
  demo      fine-tune and evaluate a real pair on real text, in minutes on a CPU
  fit       fine-tune a model: a Super (FinetuneModule) or a Swift (SwiftModule)
  score     run one model over a data set and keep its answers as records
  ask       keep the answers of a Super that is served elsewhere as records
  merge     put the records of parts of a data set together
  sweep     the exact curve of more examples than memory holds, from joint records in many files
  validate  evaluate a pair at every threshold (JointModule), or one model
  test      the same on the test split
  predict   answer texts with a pair, from a file or standard input
  serve     answer texts with a pair over HTTP
  calibrate choose a threshold that keeps a promise on new inputs, with a certificate
  bench     what a pair saves in time, beside what it saves in FLOPs
  report    evaluations as one HTML page, with a slider over all thresholds
  suite     a whole benchmark (glue, superglue) or several tasks: fit, evaluate, one table
  crossfit  answers of Swifts that were trained without the examples, which tell what is hard
  augment   texts like those of a task, for the Super to label and the Swift to learn from

options:
  -h, --help  show this message; `elang <verb> --help` shows a verb's options
  --version   show the version
"""


# Where the function of each verb is that Lightning does not run; it has the verb's name.
_FUNCTIONS = {
    "ask": "elang.ask",
    "augment": "elang.data.augment",
    "bench": "elang.bench",
    "calibrate": "elang.calibrate",
    "demo": "elang.data.demo",
    "merge": "elang.merge",
    "predict": "elang.predict",
    "report": "elang.page",
    "serve": "elang.serve",
    "suite": "elang.suite",
    "sweep": "elang.sweep",
}
# Arguments of which there may be several.
_LISTS = {
    "report": {"joint": "folders that `elang validate` wrote"},
    "sweep": {"joint": "folders that `elang validate` wrote, or their records"},
    "merge": {"records": "files that `elang score` wrote, or folders of such files"},
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default the process's own.

    Returns:
        0, or 2 after bad input, which is explained in one paragraph on standard error.
    """
    if argv is None:
        warnings.formatwarning = _warning_line
    forget_notices()
    args = sys.argv[1:] if argv is None else argv
    verb, rest = (args[0], args[1:]) if args else ("--help", [])
    try:
        if verb in ("-h", "--help"):
            print(_HELP, end="")
        elif verb == "--version":
            print(f"elang {__version__}")
        elif verb in ("fit", "validate", "test", "score"):
            from elang.lightning_cli import run

            run(verb, None if argv is None else rest)
        elif verb == "crossfit":
            _run_crossfit(rest)
        elif verb in _FUNCTIONS:
            _run_function(verb, rest)
        else:
            known = re.findall(r"^  (\w+) ", _HELP, re.MULTILINE)
            near = "".join(f" Did you mean '{one}'?" for one in get_close_matches(verb, known, 1))
            raise InputError(f"There is no verb '{verb}'.{near} Run `elang --help` for the list.")
    except Exception as error:
        bad_input = input_error_behind(error) or machine_error_behind(error)
        if bad_input is None:
            raise
        print(f"elang: error: {printable(str(bad_input))}", file=sys.stderr)
        return 2
    return 0


def _warning_line(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> str:
    """A warning in one line: a user of the command line has no use for the line of code that warns."""
    who = "elang: note" if issubclass(category, Notice) else category.__name__
    return f"{who}: {message}\n"


def with_prompt(args: list[str]) -> list[str]:
    """Give a ``--data.prompt`` as a configuration: by itself ``review: {text}`` would be read as a mapping."""
    options = ("--data.prompt", "--data.init_args.prompt")
    found: list[str] = []
    rest = list(args)
    while rest:
        option, equals, value = rest[0].partition("=")
        # An option behind it is none of its values.
        apart = not equals and len(rest) > 1 and not rest[1].startswith("--")
        if option not in options or not (equals or apart):
            found.append(rest.pop(0))
            continue
        prompt = rest[1] if apart else value
        given = {"data": {"init_args": {"prompt": None if prompt == "null" else prompt}}}
        found += ["--config", json.dumps(given)]
        rest = rest[1 + apart :]
    return found


def with_lists(args: list[str]) -> list[str]:
    """Join the values of options of `elang calibrate` that take several to lists.

    >>> with_lists(["joint", "--score", "entropy", "margin", "--max_regret", "0.02"])
    ['joint', '--score', '["entropy", "margin"]', '--max_regret', '0.02']
    """
    found: list[str] = []
    rest = list(args)
    while rest:
        option = rest.pop(0)
        found.append(option)
        if option not in ("--score", "--max_regret", "--max_drop"):
            continue
        numbers, values = option != "--score", list[str]()
        # Where the folder has not been named yet, it may follow a score.
        while rest and not rest[0].startswith("--") and (_is_number(rest[0]) if numbers else _named(found, values)):
            values.append(rest.pop(0))
        if len(values) > 1:
            found.append(json.dumps([float(value) for value in values] if numbers else values))
        else:
            found += values
    return found


def _named(found: list[str], values: list[str]) -> bool:
    return not values or (len(found) > 1 and not found[0].startswith("-"))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _run_crossfit(args: list[str]) -> None:
    """Take the options of `elang crossfit` out and leave the rest to `elang fit`."""
    from argparse import ArgumentParser

    parser = ArgumentParser(
        prog="elang crossfit",
        description="Train a Swift without each part of the training file, and keep what each says of that part.",
        epilog="All other options are those of `elang fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", default="out_of_fold.parquet", help="the parquet file to write")
    parser.add_argument("--folds", type=int, default=5, help="parts of the training file")
    parser.add_argument("--jobs", type=int, help="Swifts trained at a time; by default as many as there are GPUs")
    own, fit = parser.parse_known_args(args)
    from elang.crossfit import crossfit

    crossfit(fit, own.output, own.folds, own.jobs)


def _run_function(verb: str, args: list[str]) -> None:
    """Parse the arguments of a plain function and call it."""
    from jsonargparse import ArgumentParser

    function: Callable[..., None] = getattr(import_module(_FUNCTIONS[verb]), verb)
    parser = ArgumentParser(prog=f"elang {verb}", description=(function.__doc__ or "").split("\n", 1)[0])
    positional = verb in ("suite", "calibrate", "report", "merge", "sweep")
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file with these options.")
    several = _LISTS.get(verb, {})
    for name, said in several.items():
        parser.add_argument(name, nargs="+", type=str, help=said)
    parser.add_function_arguments(function, as_positional=positional, skip=set(several))
    if verb == "ask":
        parser.set_defaults({"data": {"class_path": "elang.TextClassificationData"}})
    if verb == "calibrate":
        args = with_lists(args)
    found = parser.parse_args(with_prompt(args) if verb == "ask" else args)
    options: dict[str, Any] = vars(parser.instantiate(found)) if verb == "ask" else found.as_dict()
    if not positional:
        options.pop("config", None)
    function(**options)
