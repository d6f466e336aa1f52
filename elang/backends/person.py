"""A person as the last stage of a cascade: the inputs that no model can be trusted with wait for one."""

from typing import NoReturn

from elang.data.examples import Examples
from elang.errors import InputError
from elang.tasks.text_task import TextTask


class Person:
    """Gives no answer here: what reaches a person is put into a queue (`elang predict --queue`).

    What a person's answers cost and are worth is said where a chain is chosen: `elang choose --person`.
    """

    def __init__(self, address: str, task: TextTask) -> None:
        self.address, self.task = address, task

    def answer(self, examples: Examples) -> NoReturn:
        """Refuse to answer."""
        raise InputError(
            "A person answers later, so there are no records of one. `elang curve` and `elang choose` evaluate a "
            "person as a part of a table of answers: --person '{cost: 2, right: 0.98}'."
        )
