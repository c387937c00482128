"""Readers of what strangers send accept a case or refuse it, in time."""

import os
import resource
import time

import pytest

from jaxrl.errors import InvalidInput
from tests.support import hostile

pytestmark = pytest.mark.full
NUMBER = int(os.environ.get("HOSTILE_CASES", "60"))


@pytest.mark.parametrize("name", hostile.READERS)
def test_hostile_cases_are_accepted_or_refused(name):
    """`HOSTILE_CASES=1000` runs the long form."""
    reader, counts = hostile.READERS[name], {"accepted": 0, "refused": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k, case in enumerate(reader.cases(0, NUMBER)):
        started = time.monotonic()
        try:
            reader.read(case)
            counts["accepted"] += 1
        except InvalidInput as error:
            counts["refused"] += 1
            assert len(str(error)) < 2_000 and str(error).strip(), f"case {k}"
        except BaseException as error:
            raise AssertionError(f"case {k} of {name}: {case!r:.300}") from error
        assert time.monotonic() - started < 10, f"case {k} of {name}: {case!r:.300}"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 2 * 2**20, "memory, in KiB"
    assert min(counts.values()) > 0, counts
    print(name, counts, (after - before) // 1024, "MiB")


@pytest.mark.parametrize("name", hostile.READERS)
def test_equal_seeds_give_equal_cases(name):
    reader = hostile.READERS[name]
    first, again = list(reader.cases(3, 4)), list(reader.cases(3, 4))
    assert first == again and first != list(reader.cases(4, 4))
