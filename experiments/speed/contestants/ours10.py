"""Ours with ten steps a dispatch: what the host's part of a step costs."""

from experiments.speed.contestants import ours
from experiments.speed.contestants.program import Arrays, JaxProgram
from experiments.speed.work import Work

STEPS = 10


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """Ten training steps, by lax.scan."""
    return ours.make_step(work, weights, STEPS)
