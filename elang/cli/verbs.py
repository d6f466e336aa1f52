"""The entry point of the command line, and the verbs. Heavy imports wait until the verb is known."""

import atexit
import os
import re
import sys
import warnings
from collections.abc import Callable, Set
from contextlib import nullcontext, suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import signature
from io import TextIOWrapper
from typing import Any

from elang._version import __version__
from elang.cli.arguments import checked_arguments, renamed
from elang.errors import InputError, input_error_behind, machine_error_behind, printable
from elang.files import check_output_file
from elang.notices import Notice, forget_notices
from elang.terminal import quiet_libraries, reader_left, told_to_users, waiting

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
  choose    the best single model, pair or chain for a budget or a quality, from a table of answers
  monitor   whether a promise still holds, from the log of serve --shadow
  plan      how many examples a promise takes, and what so many can promise
  curve     what validate says of a pair, from a table of answers, without a model
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
# Exit codes as shells report them: after a signal, and after SIGINT and SIGPIPE.
_SIGNAL, _INTERRUPTED, _READER_LEFT = 128, 130, 141
# Verbs that are a function of the same name in a module of the same name; Lightning runs the others.
_FUNCTIONS = (
    *("ask", "augment", "bench", "calibrate", "choose", "curve", "demo", "merge", "monitor", "plan", "predict"),
    *("report", "serve", "suite", "sweep"),
)
_POSITIONAL = ("suite", "calibrate", "choose", "curve", "monitor", "report", "merge", "sweep")
# Positional arguments that take several values.
_LISTS = {
    "report": {"joint": "folders that `elang validate` wrote"},
    "sweep": {"joint": "folders that `elang validate` wrote, or their records"},
    "merge": {"records": "files that `elang score` wrote, or folders of such files"},
}
_DATA = "elang.TextClassificationData"
# Options of a pair that a verb does not have, or has by itself.
_LEFT_OUT = {
    "predict": {"few"},
    "serve": {"device", "batch_size", "tokens", "super_tokens", "compile"},
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line on ``argv``, by default the arguments of the process, and return the exit code.

    It is 0, or what `elang monitor` says; 2 after bad input, which is explained on standard error; 130 after Ctrl-C;
    141 if a reader has gone away.
    """
    if argv is not None:
        return _exit_code(argv)
    warnings.showwarning = _show_warning
    _open_standard_streams()
    try:
        code = _exit_code(sys.argv[1:])
    except SystemExit as end:
        if not isinstance(end.code, int) or end.code <= _SIGNAL:
            raise
        code = end.code
    if code:
        # End at once: Python's own end would wait for a thread that reads, or crash in a library's thread.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    return code


def _exit_code(args: list[str]) -> int:
    """Run a verb, explain an error that its user can fix, and return the exit code of the process."""
    forget_notices()
    quiet_libraries()
    try:
        try:
            with told_to_users():
                code = _run(args) or 0
        finally:
            # Only here can a reader that has left, or a full disk, be told from a fault.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (Exception, SystemExit) as error:
        # Lightning exits with the code 1 after Ctrl-C.
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            return _INTERRUPTED
        message = None if isinstance(error, SystemExit) else input_error_behind(error) or machine_error_behind(error)
        if message is not None:
            # One paragraph, even if a name contains line breaks.
            return _print_error(str(message))
        if reader_left(error):
            return _READER_LEFT
        raise
    return code


def _print_error(message: str) -> int:
    try:
        print(f"elang: error: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    except OSError as error:
        if reader_left(error):
            return _READER_LEFT
        raise
    return 2


def _run(args: list[str]) -> int | None:
    """Run a verb; the exit code, if it is another than 0."""
    verb, options = (args[0], args[1:]) if args else ("--help", [])
    if verb in ("-h", "--help"):
        print(_HELP, end="")
    elif verb == "--version":
        print(f"elang {__version__}")
    elif verb in ("fit", "validate", "test", "score"):
        with _loading(options):
            from elang.cli.lightning import run

        run(verb, checked_arguments(options))
    elif verb == "crossfit":
        _run_crossfit(checked_arguments(options))
    elif verb in _FUNCTIONS:
        return _run_function(verb, checked_arguments(renamed(verb, options)))
    else:
        from elang.cli.messages import did_you_mean

        nearest = did_you_mean(verb, re.findall(r"^  (\w+) ", _HELP, re.MULTILINE))
        raise InputError(f"There is no verb '{verb}'.{nearest} Run `elang --help` for the list.")
    return None


def _loading(options: list[str]) -> Any:
    """Around imports that take seconds; help and configurations are printed without a word."""
    asks = any(re.match(r"-h$|--help$|--print_config|--[\w.]+\.help\b", option) for option in options)
    return nullcontext() if asks else waiting("loading libraries")


def _open_standard_streams() -> None:
    """Replace closed standard streams, and let no character of a name fail on standard output."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Otherwise the next file that is opened would get this number, and what others write to the stream.
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - the process's own
        elif name == "stdout" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning in one line, without the code that warns, whatever formats libraries set on import."""
    source = "elang: note" if issubclass(category, Notice) else category.__name__
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{source}: {printable(str(message))}\n")


def with_values(args: list[str], switches: Set[str]) -> list[str]:
    """Switch an option on that is named without a value.

    >>> with_values(["--verbose", "--output", "x"], {"--verbose"})
    ['--verbose', 'true', '--output', 'x']
    """
    following = [*args[1:], "--"]
    return [
        part
        for word, after in zip(args, following, strict=False)
        for part in ([word, "true"] if word in switches and after.startswith("--") else [word])
    ]


def _run_crossfit(args: list[str]) -> None:
    """Take the options of `elang crossfit` out and leave the others to `elang fit`."""
    from argparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog="elang crossfit",
        description="Train a Swift without each part of the training file, and record its answers to that part.",
        epilog="All other options are those of `elang fit`.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--output", default="out_of_fold.parquet", help="the parquet file to write")
    parser.add_argument("--folds", type=int, default=5, help="parts of the training file")
    parser.add_argument("--jobs", type=int, help="Swifts trained at a time; by default as many as there are GPUs")
    try:
        options, fit = parser.parse_known_args(args)
    except ArgumentError as error:
        raise InputError(
            f"{error.argument_name}: {error.message}. `elang crossfit --help` lists the options."
        ) from error
    with _loading(fit):
        import_module("elang.cli.lightning")
        from elang.cli.crossfit import crossfit

    crossfit(fit, **vars(options))


def _run_function(verb: str, args: list[str]) -> int | None:
    """Parse the arguments of a verb that is a function, and call it."""
    with _loading(args):
        from elang.cli.messages import class_at
        from elang.cli.options import MODE, Parser, given_options, refuse_nulls, with_lists
        from elang.cli.verb_help import chosen_class

        function: Callable[..., int | None] = getattr(import_module(f"elang.cli.{verb}"), verb)
    summary = (function.__doc__ or "").split("\n", 1)[0]
    parser = Parser(prog=f"elang {verb}", description=summary, allow_abbrev=False, parser_mode=MODE)
    positional, lists = verb in _POSITIONAL, _LISTS.get(verb, {})
    if not positional:
        parser.add_argument("--config", action="config", help="YAML file with these options.")
    for name, help_text in lists.items():
        parser.add_argument(name, nargs="+", type=str, help=help_text)
    groups = add_options(parser, function, positional, skip=lists.keys())
    classes = ("data",) if verb == "ask" else ()
    made_by = {"": function} | {part: class_at(chosen_class(part, args, _DATA)) for part in classes}
    args = with_lists(args, made_by, positional)
    if classes:
        parser.set_defaults({"data": {"class_path": _DATA}})
        given_options(parser, args, classes, verbs={})
    switches = {f"--{action.dest}" for action in parser._actions if getattr(action, "_typehint", None) is bool}
    args = with_values(args, switches)
    config = parser.parse_args(args)
    refuse_nulls(config, classes)
    options: dict[str, Any] = vars(parser.instantiate(config))
    files = [] if positional else options.pop("config", None) or []
    if files and isinstance(options.get("output"), str):
        check_output_file(options["output"], [path for path in map(str, files) if os.path.isfile(path)])
    if empty := [name for name, value in options.items() if isinstance(value, str) and not value]:
        raise InputError(f"--{empty[0]} has an empty value. Give one, or leave the option out.")
    for name, group in groups.items():
        names = [field.name for field in fields(group) if field.name not in _left_out(verb, name)]
        options[name] = group(**{name: options.pop(name) for name in names})
    return function(**options)


def add_options(
    parser: Any, function: Callable[..., Any], positional: bool = False, skip: Set[str] = frozenset()
) -> dict[str, Any]:
    """Add a verb's arguments to a parser, a dataclass by its fields; return the dataclasses by argument name."""
    annotations = {name: parameter.annotation for name, parameter in signature(function).parameters.items()}
    groups = {name: annotation for name, annotation in annotations.items() if is_dataclass(annotation)}
    parser.add_function_arguments(function, as_positional=positional, skip={*skip, *groups})
    for name, group in groups.items():
        parser.add_class_arguments(group, skip=_left_out(function.__name__, name))
    return groups


def _left_out(verb: str, group: str) -> set[str]:
    """The options of a pair that a verb does not have, or has in another group, with another default."""
    return _LEFT_OUT.get(verb, set()) if group == "pair" else set()
