"""Captions under tables: every device once, whichever form a record has."""

from benchmarks import captions


def test_records_of_every_form_name_their_device_and_version():
    new = {"device": "cpu", "cores": 2, "versions": {"jax": "1.0"}}
    of_processes = {"cores": 2, "versions": {"jax": "1.0"}}
    old = {"device": "gpu", "jax": "0.9"}
    found = captions.device([new, new, old, of_processes])
    assert found == "Device: 2 cores, jax 1.0; cpu, 2 cores, jax 1.0; gpu, jax 0.9."
