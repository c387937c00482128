"""Errors of the user's code are shown with the user's lines alone."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import spaces
from jaxrl.core import user_code
from jaxrl.errors import InvalidInput


def raised(function, *args):
    with pytest.raises(Exception) as found:
        function(*args)
    return found.value


def theirs(*args):
    raise KeyError("gravity")


def through_ours(*args):
    return jax.tree.map(theirs, [0])


def caused(*args):
    try:
        json.loads("{")
    except ValueError as error:
        raise RuntimeError("no parameters") from error


@pytest.mark.parametrize("function", [theirs, through_ours, caused])
def test_only_the_users_lines_are_shown(function):
    error = raised(function)
    assert user_code.is_users(error)
    text = user_code.describe_error(error)
    files = [line for line in text.splitlines() if line.startswith("  File ")]
    assert files and all("test_user_code.py" in line for line in files)
    assert f"in {function.__name__}" in text
    assert text.splitlines()[-1] in (
        "KeyError: 'gravity'",
        "RuntimeError: no parameters",
    )
    assert user_code.find_line(error).startswith(" (test_user_code.py, line ")


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_a_library_of_another_place_is_no_code_of_the_users(folder, tmp_path):
    file = tmp_path / folder / "library.py"
    file.parent.mkdir()
    file.write_text("def fail():\n    raise KeyError('theirs')\n")
    spec = importlib.util.spec_from_file_location("library", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    error = raised(module.fail)
    assert not user_code.is_users(error.with_traceback(error.__traceback__.tb_next))


def test_an_error_of_jaxrl_or_a_library_is_not_the_users():
    for function in (
        functools.partial(spaces.check, None, "space"),
        functools.partial(json.loads, "{"),
    ):
        error = raised(function)
        # The frame of `raised` is this file's, and not of what it calls.
        error = error.with_traceback(error.__traceback__.tb_next)
        assert not user_code.is_users(error)
        assert user_code.find_line(error) == ""


def test_an_error_on_the_host_is_found_behind_that_of_the_program():
    """JAX raises the text of it; an older one is not taken for it."""

    def fail(x):
        raise InvalidInput("an observation has the value 300.")

    shape = jax.ShapeDtypeStruct((), np.float32)
    remembering = user_code.remember_error(fail)

    def call(function):
        program = jax.jit(lambda x: jax.pure_callback(function, shape, x))
        return raised(lambda: program(jnp.float32(1)).block_until_ready())

    error = call(remembering)
    assert not isinstance(error, InvalidInput)
    assert isinstance(user_code.original(error), InvalidInput)
    other = call(theirs)
    assert user_code.original(other) is other
    bug = ValueError("InvalidInput of something else")
    assert user_code.original(bug) is bug
