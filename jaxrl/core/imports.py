"""Values of a user's own modules, named "module:value"."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from jaxrl.errors import InvalidInput, did_you_mean


def import_value(
    name: str, what: str, noun: str, fits: Callable[[Any], bool], example: str
) -> Any:
    """Import a value of a module, which may lie in the current directory.

    Args:
      name: "module:value".
      what: what it is to be, for messages: "Environment".
      noun: what the module must have: "function".
      fits: whether the value is one.
      example: how one is written.

    Raises:
      InvalidInput: there is no such module or value.
    """
    module_name, _, value_name = name.partition(":")
    if not all(map(str.isidentifier, module_name.split("."))):
        raise InvalidInput(
            f"{what} {name!r}: {module_name!r} is not the name of a module, write "
            f"{example!r}."
        )
    module = import_module(module_name)
    if module is None:
        raise InvalidInput(
            f"{what} {name!r}: there is no module {module_name!r}, neither installed nor "
            f"in the current directory."
        )
    value = getattr(module, value_name, None)
    if not fits(value):
        hint = did_you_mean(value_name, [n for n, x in vars(module).items() if fits(x)])
        raise InvalidInput(
            f"{what} {name!r}: {module_name} has no {noun} {value_name!r}{hint}."
        )
    return value


def import_module(name: str) -> Any:
    """Import a module, which may lie in the current directory; None if there is none.

    A console script, unlike `python -m`, does not have that directory on its path. It
    is added, last, only when the module is not found without it.

    Raises:
      InvalidInput: it is no Python. Other errors raised inside it propagate.
    """
    here = os.getcwd()
    module = _import(name)
    if module is None and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
        module = _import(name)
    return module


def _import(module_name: str) -> Any:
    """The module, or None if there is none. Errors raised inside it propagate."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise
    except SyntaxError as error:
        raise InvalidInput(
            f"the module {module_name!r} cannot be imported: {error}."
        ) from error
