"""Models that are elsewhere, and the keys of servers, which are read from the environment and never shown."""

import os
import re
from dataclasses import replace
from typing import Any

from elang.backends.openai.settings import SCHEME, Settings
from elang.backends.remote import TOKEN_VARIABLE, check_address, token_of_environment
from elang.errors import InputError


def is_api(address: str) -> bool:
    """Whether an address is that of a model behind an API: ``openai:MODEL@URL``, or a YAML file with more."""
    return address.lower().startswith(SCHEME) or address.lower().endswith((".yaml", ".yml"))


def is_elsewhere(address: str, swift_model: str | None) -> bool:
    """Whether the Super is elsewhere; refuses an address that is none, and one without a Swift."""
    if not address.startswith(("http://", "https://")) and not is_api(address):
        return False
    if swift_model is not None and not is_api(address):
        check_address(address, "--super_model")
    if swift_model is None:
        raise InputError(f"'{address}' serves the Super already; give the pair's --swift_model.")
    return True


def upstream_of(address: str, variable: str | None, chats: dict[str, Any] | None) -> Settings | None:
    """How a Super behind an API is asked; ``None`` if it is none. ``chats`` are defaults of a server of chats."""
    if not is_api(address):
        if variable is not None:
            raise InputError("--super_key_variable is for a Super at openai:MODEL@URL. Leave it out.")
        return None
    settings = Settings.of(address, **(chats or {}))
    if variable is not None:
        if chats is None:
            raise InputError("--super_key_variable is for --api openai: name the variable in a YAML file (key).")
        key_in(variable)
        settings = replace(settings, key=variable)
    return settings


def key_in(variable: str | None) -> str | None:
    """The key in an environment variable, which must be set if it is not the usual one. It is never shown."""
    if variable is None:
        return None
    if variable == TOKEN_VARIABLE:
        return token_of_environment()
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable):
        # It may be the key itself.
        raise InputError("--key_variable and --super_key_variable are names of environment variables, not keys.")
    key = os.environ.get(variable)
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        state = "is not set" if key is None else "is empty or not fit for an HTTP header"
        raise InputError(f"The environment variable {variable!r} {state}. Set it to the key.")
    return key
