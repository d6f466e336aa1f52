"""The one error that a user's input can cause."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one paragraph that names the value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """


def input_error_behind(error: BaseException) -> InputError | None:
    """Find the :class:`InputError` that ``error`` is, or that it was raised from (jsonargparse wraps what it calls)."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        seen = seen.__cause__ or seen.__context__
    return seen
