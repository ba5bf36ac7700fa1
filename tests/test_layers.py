"""The direction of imports, and what importing the library costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import from ranks before its own, and within its own package or file.
LAYERS = [
    {"lm.task_lengths"},
    {"lm.tables", "lm.log_space", "lm.linalg", "lm.products", "lm.tasks", "lm.mesh"}
    | {"lm.machine", "lm.unfinished"},
    {"lm.cells"},
    {"lm.config"},
    {"lm.data"},
    {"lm.linear_recurrence", "lm.embedding", "lm.alignment", "lm.native"},
    {"lm.scans"},
    {"lm.recurrence"},
    {"lm.regularize", "lm.adaptive_softmax"},
    {"lm.model"},
    {"lm.interop"},
    {"lm.loss", "lm.optim", "lm.monitor"},
    {"lm.adaptive_loss", "lm.sampled_softmax"},
    {"lm.softmax", "lm.remat"},
    {"lm.train", "lm.evaluate", "lm.generate", "lm.gradients"},
    {"lm.neural_cache", "lm.whole_run"},
    {"lm.dynamic_evaluation", "lm.surprisal", "lm.many_runs"},
    {"lm.checkpoint"},
    {"experiments"},
]
FORBIDDEN_IN_LM = {"absl", "matplotlib", "tqdm", "experiments"}


def layer_of(module):
    """(rank, the package or file of LAYERS that the module belongs to), or None."""
    for rank, names in enumerate(LAYERS):
        for name in names:
            if module == name or module.startswith(name + "."):
                return rank, name
    return None


def imports_of(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    for folder in ("lm", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def violations(name, source):
    own = layer_of(name)
    for target in imports_of(source):
        if name.startswith("lm") and target.split(".")[0] in FORBIDDEN_IN_LM:
            yield f"{name} imports {target}, which lm must not"
        other = layer_of(target)
        if own is None or other is None or own[1] == other[1]:
            continue
        if other[0] >= own[0]:
            yield f"{name} imports {target}: an arrow that runs the wrong way"


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_run_one_way(name, path):
    assert name == "lm" or layer_of(name) is not None, f"{name} has no layer: add it to LAYERS"
    assert not list(violations(name, path.read_text(encoding="utf-8")))


def test_a_wrong_arrow_is_seen():
    assert list(violations("lm.cells.new", "from lm.model import apply"))
    assert list(violations("lm.loss", "import matplotlib.pyplot"))
    assert list(violations("lm.recurrence", "from lm import train"))
    assert list(violations("lm.evaluate", "from lm.train import train_step"))
    assert list(violations("lm.cells.cell", "from lm.config import ModelConfig"))
    assert not list(violations("lm.train", "from lm.loss import weighted_nats"))


def test_importing_lm_touches_no_device():
    code = (
        "import lm.train, lm.dynamic_evaluation, lm.generate, lm.gradients.flow, lm.config\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_options_cost_no_import_of_jax():
    code = "import sys, lm.config, experiments.flags; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_option_has_a_line_of_help():
    import dataclasses
    import importlib

    from experiments import EXPERIMENTS

    def check(config):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                check(value)
            else:
                assert field.metadata.get("help"), f"{field.name} has no help"

    for name in EXPERIMENTS:
        check(importlib.import_module(f"experiments.{name}").Config())
