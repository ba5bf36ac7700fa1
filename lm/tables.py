"""An explicit table of names whose entries are imported when they are looked up.

Listing what exists (`--help`, an error that names the choices) must not cost the import of
JAX; building the thing may.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class LazyTable(Mapping[str, Entry], Generic[Entry]):
    """Maps a name to an object given as (module, attribute).

    Args:
      noun: what an entry is called in an error message ("cell").
      entries: name -> (module, attribute in that module).
    """

    def __init__(self, noun: str, entries: dict[str, tuple[str, str]]):
        self._noun = noun
        self._entries = entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(unknown_name(self._noun, name, self._entries))
        module, attribute = self._entries[name]
        entry: Entry = getattr(importlib.import_module(module), attribute)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def unknown_name(noun: str, name: str, known: Mapping[str, object]) -> str:
    """The one line that answers a name that is not in a table."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    names = ", ".join(filter(None, known))
    return f"{noun} is {name!r}, which is unknown; {hint}wanted one of: {names}"
