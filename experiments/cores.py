"""The cores of a CPU, each as a device.

XLA gives a product or a loop all cores, and a step of a small recurrence is too short to share: one
core does most of it. Where rows, or runs, are independent they are better dealt out to the cores,
which JAX does once it counts them as devices. A program for one device is the same with or without.
"""

import os
from contextlib import suppress

import jax


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_as_devices() -> None:
    """Each core is a device, or as many are as JAX_NUM_CPU_DEVICES says.

    Where JAX has computed already its devices stay what they are.
    """
    count(usable_cores())


def leave_uncounted() -> None:
    """A CPU is one device after all."""
    count(1)


def count(devices: int) -> None:
    """So many devices are made of the CPU; not where the environment says how many."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
