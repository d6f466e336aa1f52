"""Jobs whose answers come in parts, from a process of `elang serve` and to the requests that wait for them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


@dataclass(eq=False)
class Stream:
    """A job whose answer comes in parts: ``tell`` gets each, with the place of the item that it belongs to."""

    items: list[Any]
    tell: Callable[[int, Any], None]
    # The places of items that need no answer any more, and what tells the process of one while it works on the job.
    left: set[int] = field(default_factory=set)
    send_left: Callable[[int], None] | None = None
    heard: float = 0.0

    def leave(self, place: int) -> None:
        """Ask for no further parts of an item's answer."""
        self.left.add(place)
        if self.send_left is not None:
            with suppress(OSError):
                self.send_left(place)


class Parts:
    """The way back of a :class:`Stream` in the process: what answers it is called with the items and with this."""

    def __init__(self, connection: "Connection[Any, Any]", number: int, left: set[int]) -> None:
        self.connection, self.number, self.left = connection, number, set(left)

    def __call__(self, place: int, part: dict[str, Any]) -> set[int]:
        """Send a part, if there is one; returns the places of items that need no further ones."""
        if part:
            self.connection.send((place, part))
        while self.connection.poll():
            message: Left = self.connection.recv()
            # It may be of an earlier job.
            if message.number == self.number:
                self.left.add(message.place)
        return self.left


class Items(NamedTuple):
    """The items of a stream as its process gets them."""

    number: int
    items: list[Any]
    left: set[int]


class Left(NamedTuple):
    """Tells a process that an item of a stream needs no further parts."""

    number: int
    place: int
