"""`python -m experiments` lists the experiments."""

import sys

from experiments import EXPERIMENTS
from lm.tables import unknown_name


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "help"
    if name in EXPERIMENTS:
        print(EXPERIMENTS[name])
        return 0
    if name not in ("help", "-h", "--help"):
        print(unknown_name("experiment", name, {**EXPERIMENTS, "test": ""}), file=sys.stderr)
        return 2
    print("usage: ./launch.sh EXPERIMENT [--flag=value ...]; all flags: --help\n")
    for name, line in EXPERIMENTS.items():
        print(f"  {name:16}{line}")
    print(f"  {'test':16}lint, types and the test suite")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
