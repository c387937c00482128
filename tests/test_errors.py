"""`jaxrl.errors`: helpers for messages."""

import pytest

from jaxrl.errors import count_noun, did_you_mean, nearest, one_line, printable

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
