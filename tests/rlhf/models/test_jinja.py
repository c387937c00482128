"""The process that renders templates: what becomes of it when it is killed."""

import os
import signal

import pytest

from jaxrl.errors import InvalidInput
from jaxrl.rlhf.models import jinja

TEMPLATE = "{{ messages[0]['content'] }}"


def test_a_process_that_is_killed_is_one_sentence_and_replaced():
    values = {"messages": [{"role": "user", "content": "hello"}]}
    assert jinja.render(TEMPLATE, values) == "hello"
    os.kill(jinja._worker().process.pid, signal.SIGKILL)
    jinja._worker().process.wait()
    with pytest.raises(InvalidInput, match="cannot render"):
        jinja.render(TEMPLATE, values)
    assert jinja.render(TEMPLATE, values) == "hello"
