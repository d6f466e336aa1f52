"""What a data module was made with, from which the command line makes it again."""

import os
from inspect import Parameter, signature
from typing import Any

from lightning.pytorch import LightningDataModule


class KeepsArguments(LightningDataModule):
    """A data module that knows its arguments.

    They are not Lightning's hyperparameters: these go into checkpoints as they are, which a ``Path`` makes unreadable
    (only tensors and plain values are ever loaded) and a function impossible to write.
    """

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the arguments of ``__init__``, not those of ``__new__``."""
        super().__init_subclass__(**options)
        shown = signature(cls.__init__)
        cls.__signature__ = shown.replace(parameters=[*shown.parameters.values()][1:])  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **options: Any) -> "KeepsArguments":
        """Keep the arguments."""
        made = super().__new__(cls)
        made._given = args, options
        return made

    def made_with(self) -> dict[str, Any] | None:
        """The class path and arguments; ``None`` where some are no plain values, or the class cannot be imported."""
        cls = type(self)
        path = f"{cls.__module__}.{cls.__qualname__}"
        given = signature(cls).bind(*self._given[0], **self._given[1])
        given.apply_defaults()
        options: dict[str, Any] = {}
        for name, value in given.arguments.items():
            form = given.signature.parameters[name].kind
            options |= value if form is Parameter.VAR_KEYWORD else {name: value}
            if form is Parameter.VAR_POSITIONAL and value:
                return None
        options = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in options.items()}
        options = {name: value for name, value in options.items() if value is not None and value != ()}
        if "<locals>" in path or cls.__module__ == "__main__" or not all(map(_is_plain, options.values())):
            return None
        return {"class_path": path, "init_args": options}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or type(value) in (str, int, float, bool)
