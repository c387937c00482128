"""What the algorithms of RLHF share."""

from jaxrl.rlhf import (
    policies,
    rloo,
)
from jaxrl.types import counter
from tests.support.language import (
    KEY,
    WRITING,
    close,
)
from tests.support.small import assert_trees_equal


def test_adapters_change_nothing_at_first(gold):
    config = rloo.Config(**WRITING, lora_rank=2)
    trained = policies.init_trained(config, gold, KEY)
    assert set(next(iter(trained.values()))) == {"a", "b"}
    assert_trees_equal(policies.weights(config, gold, trained), gold.teacher.params)


def test_the_step_size_falls_to_0(gold):
    config = rloo.Config(total_steps=100.0, learning_rate=0.5)
    counts = [counter(n) for n in (0, 50, 100)]
    found = [float(policies.step_size(config, n)) for n in counts]
    close(found, [0.5, 0.25, 0.0])
    assert policies.step_size(config.replace(anneal_lr=False), counts[1]) == 0.5
