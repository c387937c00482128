"""`jaxrl.errors`: helpers for messages."""

import pytest

from jaxrl.errors import (
    InvalidInput,
    count_noun,
    did_you_mean,
    install_command,
    nearest,
    one_line,
    printable,
    shorten_values,
)

NAMES = ("CartPole-v1", "Catch-bsuite", "Breakout-MinAtar", "probe/constant")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("CartPole-v2", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("catch", "Catch-bsuite"),
        ("breakout", "Breakout-MinAtar"),
        ("probe/constnt", "probe/constant"),
        ("Walker2d", None),
        ("", None),
    ],
)
def test_nearest(typed, meant):
    assert nearest(typed, NAMES) == meant


def test_did_you_mean_fits_into_a_sentence():
    assert did_you_mean("CartPole-v2", NAMES) == " (did you mean 'CartPole-v1'?)"
    assert did_you_mean("Walker2d", NAMES) == ""


def test_choices_may_be_an_iterator():
    assert nearest("alpha", iter(["alpah", "beta"])) == "alpah"


@pytest.mark.parametrize(
    ("n", "text"), [(1, "1 seed"), (0, "0 seeds"), (2_000, "2,000 seeds")]
)
def test_count_noun(n, text):
    assert count_noun(n, "seed") == text


def test_what_steers_a_terminal_is_shown():
    assert printable("a\x1b[2Jb\u202ec\ud800\n\té👩‍🚀") == (
        "a\\x1b[2Jb\\u202ec\\ud800\n\té👩‍🚀"
    )
    assert one_line("names '\x1b]0;x\x07'\nof") == "names '\\x1b]0;x\\x07' of"


@pytest.mark.parametrize(
    "value",
    [
        "a" * 20_000,
        "two words " * 2_000,
        "it's " * 4_000,
        list(range(20_000)),
        tuple([0.5, -1e-7] * 9_000),
        {"sizes": [1, 2] * 9_000},
        ["aaaa"] * 1_000,
        ("aaaa", None) * 1_000,
        {"names": [["a b", "c"], {"d": True}] * 1_000},
    ],
)
def test_a_message_repeats_no_more_than_200_characters_of_a_value(value):
    error = InvalidInput(f"env = {value!r}: must be one of 'a', 'b'.")
    said = str(error)
    assert len(said) < 300 and said.startswith("env = ")
    assert said.endswith(": must be one of 'a', 'b'.") and "..." in said


@pytest.mark.parametrize(
    "message",
    [
        "the environment's spaces and its factory's "
        + "are prose " * 40
        + "isn't it's.",
        "there are: " + ", ".join(f"name-{i}" for i in range(200)) + ".",
        "a value (as it is said " + "in prose " * 40 + "[1, 2]) of ['a'] is ('b',).",
        "seeds [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] of 'x': 1, 2 and 3.",
        "the file 'a[1' is odd, " + "and this is why, " * 20 + "so (0) is the end.",
    ],
)
def test_other_words_of_a_message_are_kept(message):
    assert shorten_values(message) == message


def test_an_extra_is_installed_from_an_index_or_in_a_checkout():
    command = install_command("brax")
    assert "'jaxrl[brax]'" in command and "-e '.[brax]'" in command
