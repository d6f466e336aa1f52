"""The messages of a chat: what models here read of them, and what a Super elsewhere is sent."""

from __future__ import annotations

from typing import Any

from elang.backends.chat_decoding import Chat
from elang.inference.serving.schema import ApiError
from elang.tasks.text_task import TextTask

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def framed(chat: Chat, task: TextTask) -> list[dict[str, Any]]:
    """The messages of a conversation as the task puts them: with its examples, and the last turn in its prompt."""
    system = task.system if chat.system is None else chat.system
    turns = [
        (role, text) for pair in task.example_pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    turns = [*([("system", system)] if system else []), *turns, *chat.turns]
    turns.append(("user", task.prompt_text(chat.texts)))
    return [{"role": role, "content": text} for role, text in turns]


def read_conversation(
    messages: Any, task: TextTask
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], str | None, str]:
    """The last turn's texts, the turns before it, the system text, and what no model here takes."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message.", "messages")
    said: list[tuple[str, list[str]]] = []
    beyond = ""
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ApiError(400, f"{where} needs a role: {', '.join(_ROLES[:5])}.", f"{where}.role")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if parts is None and role == "assistant":
            parts = []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ApiError(400, f"{where} needs a content: a text, or parts.", f"{where}.content")
        others = [str(part.get("type"))[:40] for part in parts if part.get("type") != "text"]
        if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
            beyond = beyond or "messages of tools"
        elif others:
            beyond = beyond or f"a part of the type {others[0]!a}"
        elif message.get("name") is not None:
            beyond = beyond or "names of speakers"
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        if not all(isinstance(text, str) for text in texts):
            raise ApiError(400, f"{where} has a part without its text.", f"{where}.content")
        said.append(("system" if role == "developer" else role, [str(text) for text in texts]))
    system = "\n\n".join("\n".join(texts) for role, texts in said if role == "system") or None
    turns = [(role, "\n".join(texts)) for role, texts in said[:-1] if role != "system"]
    role, texts = said[-1]
    if role != "user":
        beyond = beyond or f"a last message of the {role}"
    elif len(task.fields) == 1:
        texts = ["\n".join(texts)]
    first = next((number for number, (role, _) in enumerate(said) if role != "system"), len(said))
    if any(role == "system" for role, _ in said[first:]):
        beyond = beyond or "a system message that is not the first"
    return tuple(texts), tuple(turns), system, beyond
