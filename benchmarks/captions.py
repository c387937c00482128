"""Sentences under the tables of the result files: where the numbers come from."""

from collections.abc import Iterable
from typing import Any


def device(records: Iterable[dict[str, Any]]) -> str:
    """The devices and versions of JAX that these records were measured with."""
    return f"Device: {'; '.join(sorted({_device(record) for record in records}))}."


def _device(record: dict[str, Any]) -> str:
    # The parent of measured processes has none: asking for it would take their memory.
    known = [record["device"]] if "device" in record else []
    cores = [f"{record['cores']} cores"] if "cores" in record else []
    jax = record["jax"] if "jax" in record else record["versions"]["jax"]
    return ", ".join([*known, *cores, f"jax {jax}"])
