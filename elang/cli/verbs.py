"""The entry of the command line and its verbs. Nothing heavy is imported before the verb is known."""

import atexit
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from io import TextIOWrapper
from typing import Any

from elang._version import __version__
from elang.cli.arguments import checked_arguments, is_number, suggest
from elang.errors import InputError, input_error_behind, machine_error_behind, printable
from elang.files import check_output_file
from elang.notices import Notice, forget_notices
from elang.terminal import reader_left

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
# As shells say it of a process that SIGINT or SIGPIPE ended.
_SIGNAL, _INTERRUPTED, _READER_LEFT = 128, 130, 141
# Where the function of each verb is that Lightning does not run; it has the verb's name.
_FUNCTIONS = ("ask", "augment", "bench", "calibrate", "demo", "merge", "predict", "report", "serve", "suite", "sweep")
# Arguments of which there may be several.
_LISTS = {
    "report": {"joint": "folders that `elang validate` wrote"},
    "sweep": {"joint": "folders that `elang validate` wrote, or their records"},
    "merge": {"records": "files that `elang score` wrote, or folders of such files"},
}
# Options of a pair that a verb does not have.
_LEFT_OUT = {
    "predict": {"few"},
    "bench": {"threshold", "thresholds", "batch_size"},
    "serve": {"device", "batch_size", "tokens", "super_tokens", "compile"},
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default the process's own.

    Returns:
        0; 2 after bad input, which is explained in one paragraph on standard error; 130 after Ctrl-C, and 141 where the
        reader of an output has gone away, as other tools do.
    """
    if argv is not None:
        return _answered(argv)
    warnings.showwarning = _show_warning
    _standard_streams()
    try:
        code = _answered(sys.argv[1:])
    except SystemExit as end:
        if not isinstance(end.code, int) or end.code <= _SIGNAL:
            raise
        code = end.code
    if code:
        _leave(code)
    return code


def _answered(args: list[str]) -> int:
    """Run a verb; the code of the process."""
    forget_notices()
    try:
        try:
            code = _run(args)
        except SystemExit:
            sys.stdout.flush()
            raise
        if not code:
            # Here, where a reader that has gone away, or a full disk, is told from a fault.
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            # Lightning's own end after Ctrl-C has the code 1.
            return _INTERRUPTED
        if reader_left(error):
            return _READER_LEFT
        if isinstance(error, OSError) and (said := machine_error_behind(error)):
            _tell(said)
            return 2
        raise


def _leave(code: int) -> None:
    """End at once: a thread that reads, or is in a library's code, would wait or crash at Python's own end."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _run(args: list[str]) -> int:
    """Run a verb, and explain bad input."""
    verb, rest = (args[0], args[1:]) if args else ("--help", [])
    try:
        if verb in ("-h", "--help"):
            print(_HELP, end="")
        elif verb == "--version":
            print(f"elang {__version__}")
        elif verb in ("fit", "validate", "test", "score"):
            from elang.cli.lightning import run

            run(verb, checked_arguments(rest))
        elif verb == "crossfit":
            _run_crossfit(checked_arguments(rest))
        elif verb in _FUNCTIONS:
            _run_function(verb, checked_arguments(rest))
        else:
            known = re.findall(r"^  (\w+) ", _HELP, re.MULTILINE)
            near = "".join(f" Did you mean '{one}'?" for one in get_close_matches(verb, known, 1))
            raise InputError(f"There is no verb '{verb}'.{near} Run `elang --help` for the list.")
    except Exception as error:
        bad_input = input_error_behind(error)
        said = machine_error_behind(error) if bad_input is None else str(bad_input)
        if said is None:
            raise
        _tell(said)
        return 2
    return 0


def _tell(error: str) -> None:
    """Explain bad input: in one paragraph, also of names that hold line breaks."""
    print(f"elang: error: {printable(' '.join(error.splitlines()))}", file=sys.stderr)


def _standard_streams() -> None:
    """Make standard streams that never fail by what a name holds, also where they are closed."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Else a file that is opened later would have its number, and get what others write to that.
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - the process's own
        elif name == "stdout" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning in one line: a user of the command line has no use for the line of code that warns.

    Libraries put formats of their own in place of the usual one as they are imported; this is not one of them.
    """
    who = "elang: note" if issubclass(category, Notice) else category.__name__
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{who}: {printable(str(message))}\n")


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
        while rest and not rest[0].startswith("--") and (is_number(rest[0]) if numbers else _named(found, values)):
            values.append(rest.pop(0))
        if len(values) > 1:
            found.append(json.dumps([float(value) for value in values] if numbers else values))
        else:
            found += values
    return found


def _named(found: list[str], values: list[str]) -> bool:
    return not values or (len(found) > 1 and not found[0].startswith("-"))


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
    from elang.cli.crossfit import crossfit

    crossfit(fit, own.output, own.folds, own.jobs)


def _run_function(verb: str, args: list[str]) -> None:
    """Parse the arguments of a plain function and call it."""
    from jsonargparse import ArgumentParser

    from elang.cli.options import MODE, own_defaults, refuse_nulls

    function: Callable[..., None] = getattr(import_module(f"elang.cli.{verb}"), verb)
    said = (function.__doc__ or "").split("\n", 1)[0]
    parser = ArgumentParser(prog=f"elang {verb}", description=said, allow_abbrev=False, parser_mode=MODE)
    suggest(parser)
    positional = verb in ("suite", "calibrate", "report", "merge", "sweep")
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file with these options.")
    several = _LISTS.get(verb, {})
    for name, said in several.items():
        parser.add_argument(name, nargs="+", type=str, help=said)
    groups = add_options(parser, function, positional, set(several))
    if verb == "ask":
        parser.set_defaults({"data": {"class_path": "elang.TextClassificationData"}})
        own_defaults(parser, args, ("data",), {})
    if verb == "calibrate":
        args = with_lists(args)
    found = parser.parse_args(args)
    if verb == "ask":
        refuse_nulls(found, ("data",))
    options: dict[str, Any] = vars(parser.instantiate(found)) if verb == "ask" else found.as_dict()
    configs = [] if positional else options.pop("config", None) or []
    if configs and isinstance(options.get("output"), str):
        check_output_file(options["output"], [one for one in map(str, configs) if os.path.isfile(one)])
    if empty := [name for name, value in options.items() if isinstance(value, str) and not value]:
        raise InputError(f"--{empty[0]} has an empty value. Give one, or leave the option out.")
    for name, group in groups.items():
        options[name] = group(**{one.name: options.pop(one.name) for one in fields(group) if one.name in options})
    function(**options)


def add_options(
    parser: Any, function: Callable[..., None], positional: bool = False, skip: Set[str] = frozenset()
) -> dict[str, Any]:
    """Add a verb's arguments to a parser, and the fields of those that are dataclasses in their place.

    Returns:
        The dataclasses, by the names of the arguments.
    """
    groups = {name: one.annotation for name, one in signature(function).parameters.items()}
    groups = {name: group for name, group in groups.items() if is_dataclass(group)}
    parser.add_function_arguments(function, as_positional=positional, skip={*skip, *groups})
    for group in groups.values():
        left_out = _LEFT_OUT.get(function.__name__, set()) & {one.name for one in fields(group)}
        parser.add_class_arguments(group, skip=left_out)
    return groups
