"""absl flags derived from a frozen dataclass: the only place where flags exist.

A Config's fields, and those of the dataclasses nested in it, become flags of the same names,
with the type, default and help of the field. The parsed command line is an instance of the
Config, so what the dataclasses check is checked for the command line too.

A Config whose class attribute `preset` names a field has, for a value of that flag, the defaults
of `Config.of_preset(value)`: flags that are given override them.

A Config with a field `given` finds in it the names of the flags that were typed.

Every experiment has the flags of `Everywhere` besides its own.

A Config whose class attribute `rest` names a field takes what is no flag into that field: a
tuple of texts item by item, a text as one, joined by spaces.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags

from lm.config import DataConfig, option
from lm.tables import unknown_name

Config = TypeVar("Config")

# Full float32 on every backend, where the default of a GPU or TPU rounds the inputs.
MATMUL_PRECISION = "highest"
WRONG_USE = 2  # exit status of a mistake that the user can mend


@dataclass(frozen=True)
class Everywhere:
    """Options of every experiment: of how it runs, not of what it finds."""

    compilation_cache: bool = option(
        True,
        "keep compiled programs for the next run, at most 1 GB of them: in compiled in the folder "
        "recurrent-lm in $XDG_CACHE_HOME or in ~/.cache, or in --cache_dir",
    )


def fail(program: str, message: str) -> NoReturn:
    """Say what is wrong in one line, and exit with status 2."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(WRONG_USE)


def parse(config_class: type[Config], arguments: list[str], program: str, doc: str) -> Config:
    """A Config from a command line; --help and mistakes end the process.

    Args:
      arguments: without the program's name.
      program: the experiment's name, for messages.
      doc: printed above the flags by --help.
    """
    return parse_all(config_class, arguments, program, doc)[0]


def parse_all(
    config_class: type[Config], arguments: list[str], program: str, doc: str
) -> tuple[Config, Everywhere]:
    """`parse`, with what every experiment has."""
    omit = getattr(config_class, "omit", ())
    rest_field = getattr(config_class, "rest", "")
    preset_field = getattr(config_class, "preset", "")
    defaults = config_class()
    try:
        values, rest = read_flags(defaults, omit, program, arguments)
        if preset_field and values[preset_field].value:
            of_preset = typing.cast(Any, config_class).of_preset
            defaults = of_preset(values[preset_field].value)
            values, rest = read_flags(defaults, omit, program, arguments)
    except flags.UnrecognizedFlagError as error:
        known = dict.fromkeys(sorted(names(defaults, omit) | names(Everywhere(), ())), 0)
        fail(program, unknown_name("flag", error.flagname, known))
    except flags.Error as error:
        fail(program, f"{error}; ./launch.sh {program} --help shows every flag")
    except ValueError as error:
        fail(program, f"{error} (--help shows every flag)")
    if values.help:
        takes = f" [{rest_field}]" if rest_field else ""
        print(f"{doc.strip()}\n\nusage: ./launch.sh {program} [--flag=value ...]{takes}\n")
        print_flags(defaults, "run", omit)
        print_flags(Everywhere(), "every experiment", ())
        sys.exit(0)
    if rest and not rest_field:
        fail(program, f"{rest[0]!r} is no flag; wanted --name=value, as --help shows")
    try:
        config = build(defaults, values)
        if "given" in {field.name for field in dataclasses.fields(typing.cast(Any, config))}:
            config = dataclasses.replace(typing.cast(Any, config), given=typed(values))
        config = take_rest(config, rest_field, rest) if rest else config
        return config, build(Everywhere(), values)
    except ValueError as error:
        fail(program, f"{error} (--help shows every flag)")


def read_flags(
    defaults: Any, omit: tuple[str, ...], program: str, arguments: list[str]
) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command line, and what in it is no flag."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow what is no flag
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    define(values, defaults, omit)
    define(values, Everywhere(), ())
    return values, values([program, *arguments])[1:]


def typed(values: flags.FlagValues) -> tuple[str, ...]:
    """The flags that stood on the command line."""
    return tuple(sorted(name for name in values if values[name].present))


def names(defaults: Any, omit: tuple[str, ...]) -> set[str]:
    """The flags of a Config."""
    values = flags.FlagValues()
    define(values, defaults, omit)
    return set(values)


def take_rest(config: Config, name: str, rest: list[str]) -> Config:
    """`config` with the arguments that are no flags in the field `name`."""
    several = isinstance(getattr(config, name), tuple)
    taken = {name: tuple(rest) if several else " ".join(rest)}
    return dataclasses.replace(typing.cast(Any, config), **taken)


def define(values: flags.FlagValues, defaults: Any, omit: tuple[str, ...]) -> None:
    """One absl flag for each field of a Config, nested dataclasses included.

    Args:
      defaults: an instance; its values are the defaults of the flags.
      omit: fields that stay at their defaults and get no flag.
    """
    types = typing.get_type_hints(type(defaults))
    makers: dict[Any, Callable[..., Any]] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(defaults):
        kind, default = types[field.name], getattr(defaults, field.name)
        if field.name in omit:
            continue
        if dataclasses.is_dataclass(kind):
            define(values, default, omit)
        elif isinstance(default, tuple):
            text = ",".join(map(str, default))
            flags.DEFINE_list(field.name, text, field.metadata["help"], flag_values=values)
        else:
            makers[kind](field.name, default, field.metadata["help"], flag_values=values)


def build(defaults: Config, values: flags.FlagValues) -> Config:
    """`defaults` with what the parsed flags say.

    Raises:
      ValueError: a list item of the wrong type, or what the dataclass itself refuses.
    """
    types = typing.get_type_hints(type(defaults))
    given: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, defaults)):
        kind, default = types[field.name], getattr(defaults, field.name)
        if dataclasses.is_dataclass(kind):
            given[field.name] = build(default, values)
        elif field.name not in values:
            continue
        elif isinstance(default, tuple):
            item = typing.get_args(kind)[0]
            texts = values[field.name].value or []
            given[field.name] = tuple(convert(field.name, text, item) for text in texts)
        else:
            given[field.name] = values[field.name].value
    return dataclasses.replace(typing.cast(Any, defaults), **given)


def convert(name: str, text: str, kind: type) -> Any:
    """One item of a list flag."""
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} holds {text!r}; wanted {kind.__name__}s, as 1,2,3") from None


def print_flags(defaults: Any, title: str, omit: tuple[str, ...]) -> None:
    """Every flag with its type, default, help and choices, a section for each dataclass."""
    types = typing.get_type_hints(type(defaults))
    nested = []
    print(f"{title}:")
    for field in dataclasses.fields(defaults):
        kind, default = types[field.name], getattr(defaults, field.name)
        if field.name in omit:
            continue
        if dataclasses.is_dataclass(kind):
            nested.append((default, field.name))
            continue
        name = getattr(kind, "__name__", "str")
        if isinstance(default, tuple):
            name = f"{typing.get_args(kind)[0].__name__}, comma-separated"
            default = ",".join(map(str, default))
        print(f"  --{field.name}={default}  ({name})\n      {field.metadata['help']}")
        choices = list(filter(None, field.metadata.get("choices") or ()))
        if choices:
            print(f"      one of: {', '.join(choices)}")
    print()
    for inner, name in nested:
        print_flags(inner, name, omit)


def main(config_class: type[Config], run: Callable[[Config], object], doc: str | None) -> None:
    """Parse the command line, run the experiment, and turn a user's mistake into one line."""
    program = program_name()
    config, everywhere = parse_all(config_class, sys.argv[1:], program, doc or "")
    import jax  # not before: --help answers without it

    from experiments.compiled import keep_compiled
    from experiments.cores import count_as_devices
    from lm.data.corpus import cache_folder

    count_as_devices()
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION)
    if everywhere.compilation_cache:
        keep_compiled(cache_folder(getattr(config, "data", DataConfig())))
    try:
        run(config)
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("LM_TRACEBACK"):
            raise
        fail(program, describe_error(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            raise
        fail(program, f"out of memory ({str(error)[:120]}); lower the sizes or the batch")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def describe_error(error: Exception) -> str:
    """One line about what went wrong; of a file, its name as the user knows it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        path = str(error.filename).removesuffix(".partial")
        return f"{path}: {error.strerror}; wanted a path that can be read or written"
    return str(error)


def answer_help(config_class: type, doc: str | None) -> None:
    """Parse before the heavy imports, so that --help and typos are answered at once."""
    parse(config_class, sys.argv[1:], program_name(), doc or "")


def program_name() -> str:
    """The experiment's name, from `python -m experiments.NAME`."""
    return Path(sys.argv[0]).stem
