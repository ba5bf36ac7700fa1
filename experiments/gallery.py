"""Figures of gradient flow that nobody else draws, each with its finding as title.

certificate  the gradient's slope against the Lyapunov exponent against the exact rate
underflow    where a float32 norm says 0 or inf of a gradient that is there
gram         how the steps' parts of dL/dW_h lie to each other, and what share each has
spectrum     all singular values of ds_T/ds_t over hundreds of nats
lyapunov     the whole Lyapunov spectrum against the forget bias, through training
horizon      how far gradients reach: forget bias, gain and input scale, and libraries' defaults
saliency     what the gradient points at, what the network uses, and what there is to be used

Prediction: forward and reverse mode agree to 0.01 nats per step; plain float32 loses half of a
tanh RNN's curve; forget bias sets the LSTM's horizon until the input's scale drowns it; a
gradient points at tokens that are of no use.

    ./launch.sh gallery                            3 minutes on 2 CPU cores
    ./launch.sh gallery --figures=certificate,underflow      under a minute
    ./launch.sh gallery --figures=gram --cells=rnn,cifg --forget_bias=3
"""

from pathlib import Path

from experiments import flags
from experiments.plates.plate import Config

if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import time
from typing import Any

from tqdm import tqdm

from experiments import figures, run_folder
from experiments.plates import PLATES
from experiments.plates.plate import Arrays


def run(config: Config) -> Path:
    """Measure, save and draw each figure. Returns the run's folder."""
    for name in config.figures:
        PLATES[name].check(config)
    folder = run_folder.create(config.run, "gallery")
    run_folder.write_start(folder, config, {"name": config.data.corpus})
    arrays: Arrays = {}
    results: dict[str, Any] = {"figures": {}}
    started = time.monotonic()
    total = sum(PLATES[name].parts(config) for name in config.figures)
    with tqdm(total=total, unit="part", dynamic_ncols=True) as bar:
        for name in config.figures:
            bar.set_description(name)
            begun = time.monotonic()
            measured = PLATES[name].measure(config, bar.update)
            arrays |= {f"{name}/{key}": value for key, value in measured.items()}
            found = PLATES[name].describe(config, measured)
            results["figures"][name] = {"seconds": time.monotonic() - begun, **found}
            results["seconds"] = time.monotonic() - started
            run_folder.write_arrays(folder / "results.npz", arrays)  # what is done is kept
            run_folder.write_json(folder / "results.json", results)
            draw_plate(folder, config, name, measured)
    for name, found in results["figures"].items():
        print(f"\n{name} ({found['seconds']:.0f} s): {found['finding']}")
    print(f"\nrun: {folder}    figures: {folder / 'figures'}    {results['seconds']:.0f} s")
    return folder


def draw_plate(folder: Path, config: Config, name: str, arrays: Arrays) -> list[Path]:
    """One figure, PNG and SVG."""
    return figures.save(PLATES[name].draw(config, arrays), folder / "figures", name)


def plot(folder: Path) -> list[Path]:
    """Draw every figure of a run from its folder alone."""
    config = run_folder.from_dict(Config, run_folder.read_json(folder / "config.json")["config"])
    arrays = run_folder.read_arrays(folder / "results.npz")
    paths = []
    for name in config.figures:
        own = {
            key.removeprefix(f"{name}/"): value
            for key, value in arrays.items()
            if key.startswith(f"{name}/")
        }
        if own:
            paths += draw_plate(folder, config, name, own)
    return paths


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
