"""Takes a key that a server repeats out of what it sends, however it is escaped or cut in pieces."""

from itertools import pairwise
from typing import Any

# The parts of a message that come in pieces.
_WRITTEN = ("content", "refusal", "reasoning_content", "reasoning", "arguments")
MASK = "…"


def without(value: Any, secret: str) -> Any:
    """A value of JSON whose texts do not have the secret in them, however it was escaped.

    >>> without({"error": ["wrong: k3y"]}, "k3y")
    {'error': ['wrong: …']}
    """
    if isinstance(value, str):
        return value.replace(secret, MASK) if secret else value
    if isinstance(value, dict):
        return {without(name, secret): without(each, secret) for name, each in value.items()}
    return [without(each, secret) for each in value] if isinstance(value, list) else value


def spelled(logprobs: Any, secret: str) -> bool:
    """Whether the tokens of ``logprobs``, of a choice of a chat or a completion, have the secret together."""
    if not secret or not isinstance(logprobs, dict):
        return False
    tokens = logprobs.get("content") or logprobs.get("tokens") or []
    texts = [each.get("token") if isinstance(each, dict) else each for each in tokens if each]
    return secret in "".join(text for text in texts if isinstance(text, str))


class PieceRedactor:
    """Takes a secret out of the choices of a stream, in whose pieces it may be spread.

    The end of a text that may begin the secret is held until the next piece, or the end of the choice; so are the
    log-probabilities of such a piece.

    >>> redactor = PieceRedactor("k3y")
    >>> pieces = [{"index": 0, "delta": {"content": text}} for text in ("a k", "3", "y b")]
    >>> for piece in pieces:
    ...     redactor.clean(piece)
    >>> [piece["delta"]["content"] for piece in pieces]
    ['a ', '', '… b']
    """

    def __init__(self, secret: str) -> None:
        self.secret = secret
        # What is held, by choice and place in it, and the tokens of log-probabilities by choice.
        self._held: dict[tuple[Any, ...], str] = {}
        self._tokens: dict[int, list[Any]] = {}

    def clean(self, choice: dict[str, Any]) -> None:
        """Clean a piece of a choice, which has ``index`` and ``delta``."""
        if not self.secret:
            return
        index, ended = choice["index"], choice.get("finish_reason") is not None
        cut = self._clean(choice["delta"], (index,))
        if ended:
            for where in [where for where in self._held if where[0] == index]:
                _put(choice["delta"], where[1:], self._held.pop(where))
        tokens = (choice.get("logprobs") or {}).get("content")
        tokens = [*self._tokens.pop(index, []), *(tokens if isinstance(tokens, list) else [])]
        if cut or spelled({"content": tokens}, self.secret):
            tokens = []
        if any(where[0] == index for where in self._held):
            self._tokens[index], tokens = tokens, []
        if tokens or choice.get("logprobs"):
            choice["logprobs"] = {**(choice.get("logprobs") or {}), "content": tokens} if tokens else None

    def _clean(self, value: Any, where: tuple[Any, ...]) -> bool:
        """Clean the texts in a part of a delta; whether the secret was cut out of one."""
        cut, places = False, enumerate(value) if isinstance(value, list) else value.items()
        for name, each in [*places]:
            place = name
            if isinstance(value, list) and isinstance(each, dict) and isinstance(each.get("index"), int):
                place = each["index"]
            if isinstance(each, dict | list):
                cut |= self._clean(each, (*where, place))
            elif name in _WRITTEN and isinstance(each, str):
                text = self._held.pop((*where, place), "") + each
                clean = text.replace(self.secret, MASK)
                cut |= clean != text
                if held := self._begun(clean):
                    self._held[(*where, place)] = clean[-held:]
                value[name] = clean[: len(clean) - held]
        return cut

    def _begun(self, text: str) -> int:
        """How many characters at the end of a text may begin the secret."""
        longest = min(len(text), len(self.secret) - 1)
        return next((size for size in range(longest, 0, -1) if self.secret.startswith(text[-size:])), 0)

    def rest(self) -> list[dict[str, Any]]:
        """What is still held at the end of a stream whose choices did not end, as pieces."""
        choices: dict[int, dict[str, Any]] = {}
        for where, text in self._held.items():
            choice = choices.setdefault(where[0], {"index": where[0], "delta": {}, "finish_reason": None})
            _put(choice["delta"], where[1:], text)
        self._held.clear()
        return [*choices.values()]


def _put(delta: dict[str, Any], where: tuple[Any, ...], text: str) -> None:
    """Add a text at a place of a delta, in whose lists numbers are the ``index`` of an item."""
    part: Any = delta
    for name, following in pairwise(where):
        if isinstance(name, int):
            part.append({"index": name})
            part = part[-1]
        else:
            part = part.setdefault(name, [] if isinstance(following, int) else {})
    part[where[-1]] = (part.get(where[-1]) or "") + text
