"""The gate: the compiled programs do not grow. No clock and no accelerator needed."""

import json

import pytest

from jaxrl import DQN, make
from jaxrl.training import loop, population
from tests.support.runs import run_python
from tests.support.small import tiny
from tools import program

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def figures():
    """All programs by name, compiled as those that are recorded, in another process."""
    flags = " ".join(program.COMPILER_FLAGS)
    lines = run_python("from tools import program; program.main([])", XLA_FLAGS=flags)
    return json.loads("".join(lines))[program.VERSION]


@pytest.fixture(params=list(program.PROGRAMS))
def measured(figures, request):
    return request.param, figures[request.param]


def test_no_more_operations_in_the_loops_than_recorded(measured):
    name, now = measured
    before = program.recorded()
    if before is None:
        print(f"jaxlib {program.VERSION} is not in {program.FILE.name}: {name} {now}")
        return
    assert not (risen := program.rises(name, before[name], now)), "\n".join(risen)


def test_nothing_is_sorted(measured):
    """A GRU's few sequences are: they are too few to shuffle otherwise."""
    name, now = measured
    assert now["sorts"] == (name == "ppo-gru")


def test_no_copy_of_the_replay_memory(measured):
    assert measured[1]["replay_copies"] == 0


def test_one_program_serves_every_chunk():
    env, config = make("probe/action"), tiny(DQN)
    before = population.run_population._cache_size()
    loop.train(DQN, config, env, iterations=5, num_chunks=3)
    loop.train(DQN, config.replace(learning_rate=0.5), env, iterations=4)
    assert population.run_population._cache_size() == before + 1


PROGRAM = """\
%body.1 (p: (s32[], f32[60000,4])) -> (s32[], f32[60000,4]) {
  %p = (s32[], f32[60000,4]) parameter(0)
  %x = f32[60000,4]{1,0} get-tuple-element(%p), index=1
  %copy.3 = f32[60000,4]{1,0} copy(%x)
  %sort.1 = (f32[8]{0}, s32[8]{0}) sort(%a, %b), dimensions={0}
  ROOT %t = (s32[], f32[60000,4]) tuple(%i, %copy.3)
}

ENTRY %main (a: s32[]) -> s32[] {
  %copy.9 = f32[60000,4]{1,0} copy(%y)
  %w = (s32[], f32[60000,4]) while(%t), condition=%cond, body=%body.1
}
"""


def test_the_gate_can_fail():
    """It sees what it looks for, and says what rose."""
    assert program.loop_operations(PROGRAM) == 2
    assert program.replay_copies(PROGRAM, 50_000) == 1
    assert program.replay_copies(PROGRAM, 500_000) == 0
    before = {"loop_operations": 1, "bytes_out": 80}
    now = {"loop_operations": 2, "bytes_out": 80}
    assert len(program.rises("ppo", before, now)) == 1
    assert "rose from 1 to 2" in program.rises("ppo", before, now)[0]
    assert program.rises("ppo", now, before) == []
