"""Help on a verb that Lightning runs: the options of the model and of the data first, then those of the trainer."""

import re
from argparse import SUPPRESS
from typing import Any

from elang.cli.messages import CLASSES, MODELS, class_at
from elang.cli.options import MODE, Parser, last_value

# Groups of options in order.
_TITLES = {
    "options": "The run",
    "optimizer": "Another optimizer than the model's",
    "lr_scheduler": "Another schedule of the learning rate",
    "trainer": "Lightning's trainer",
}


class OursFirst(Parser):
    """A parser whose help begins with the options of two classes; its own help would not list them."""

    own: tuple[str, dict[str, str], set[str]] | None = None

    def show_first(self, verb: str, paths: dict[str, str], linked: set[str]) -> None:
        """Begin with the classes at the paths of ``--model`` and ``--data``, without ``linked`` options of theirs."""
        self.own = verb, paths, linked
        self.usage, self.description = SUPPRESS, "Options whatever the model and the data:"
        groups: dict[str, Any] = {}
        for group in self._action_groups:
            first = groups.setdefault(_part(group), group)
            if first is not group:
                first._group_actions += group._group_actions
        # The trainer has more options than all others together.
        self._action_groups = [groups[name] for name in _TITLES if name in groups]
        for name, group in groups.items():
            group.title = _TITLES.get(name, group.title)

    def format_help(self, *args: Any) -> str:
        """Help on the classes, and then on everything else."""
        rest: str = super().format_help(*args)
        return rest if self.own is None else f"{_own_help(*self.own)}\n{rest}"


def _part(group: Any) -> str:
    """What the options of a group belong to: ``model``, ``data``, ``trainer``, ..., or the run."""
    names = {action.dest.partition(".")[0] for action in group._group_actions}
    return next((name for name in ("model", "data", *_TITLES) if name in names), "options")


def _own_help(verb: str, paths: dict[str, str], linked: set[str]) -> str:
    model, data = (path.rsplit(".", 1)[-1] for path in paths.values())
    models, others = (" or ".join(names) for names in (MODELS.get(verb, CLASSES["model"][:3]), CLASSES["data"]))
    parser = Parser(
        prog=f"elang {verb}",
        usage=f"elang {verb} [--model {model}] [--model.OPTION VALUE] [--data.OPTION VALUE] [--OPTION VALUE] ...",
        description=(
            f"--model is {models}, --data is {others}. First come the options of {model} and {data}, then those of the "
            "run, and last Lightning's (--trainer.devices; in `fit` --trainer.max_epochs). To see fewer: "
            f"`elang {verb} --model.help {model}` or `elang {verb} --data.help {data}`."
        ),
        add_help=False,
        parser_mode=MODE,
    )
    for part, path in paths.items():
        if (cls := class_at(path)) is not None:
            parser.add_class_arguments(cls, part, skip=linked if part == "model" else set())
            group = parser._action_groups[-1]
            group.title = f"{cls.__name__}: {group.title}"
            # Here a file of options is one of --config.
            group._group_actions = [action for action in group._group_actions if action.dest != part]
    return re.sub(r":(?:class|mod|meth|func|attr):", "", parser.format_help())


def chosen_class(part: str, args: list[str], default: str) -> str:
    """The path of the class that the arguments choose for ``model`` or ``data``, or of the default."""
    chosen = last_value(args, f"--{part}")
    if chosen is None or chosen.startswith("-"):
        return default
    return chosen if "." in chosen else f"elang.{chosen}"


def with_classes(args: list[str], paths: dict[str, str]) -> list[str]:
    """Put the path of a class after a ``--model.help`` or ``--data.help`` that names none."""
    args = list(args)
    for part, path in paths.items():
        after = args.index(f"--{part}.help") + 1 if f"--{part}.help" in args else 0
        if after and (after == len(args) or args[after].startswith("-")):
            args.insert(after, path)
    return args
