"""Reading the YAML files that users write: scenarios, profiles, trace specs."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mosaicsim.errors import UserInputError, nearest

LARGEST_FILE_BYTES = 4_000_000

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(SafeLoader):
    """YAML as everyone expects it: a key given twice is an error, not the last one wins."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is no name", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_mapping(path: Path, what: str, error: type[UserInputError]) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping; ``what`` names such a file, as "scenario".

    Raises ``error``, in one line with the path, and line and column where YAML knows them.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise error(f"{path}: larger than {LARGEST_FILE_BYTES:,} bytes, not a {what} file")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise error(f"{path}: no such {what} file{nearest(path.name, names)}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: cannot be read: not a text file in UTF-8; a {what} is YAML") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise error(f"{path}: {line}not valid YAML: {problem.problem}") from None
    except yaml.YAMLError as problem:
        raise error(f"{path}: not valid YAML: {' '.join(str(problem).split())}") from None
    except RecursionError:
        raise error(f"{path}: not valid YAML: nested too deeply") from None
    if not isinstance(content, dict):
        got = "an empty file" if content is None else f"a {type(content).__name__}"
        raise error(f"{path}: a {what} is a mapping of sections, got {got}")
    return content
