"""A validation failure in one line: the path, what is wrong with which value, and what is accepted."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mosaicsim.errors import nearest

_LONGEST_VALUE = 60


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint of ``error`` about ``model``, and how many more there are."""
    # a misspelt key explains the missing one
    complaints = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    first = complaints[0]
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    if first["type"] == "extra_forbidden":
        accepted = _fields_at(model, first["loc"][:-1])
        hint = nearest(str(first["loc"][-1]), accepted)
        return f"{path}: unknown key{hint}; accepted: {', '.join(accepted)}{more}"
    if first["type"] == "missing":
        return f"{path}: required, but missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}{_got(first)}{more}"


def _got(complaint: Any) -> str:
    """The value that was given, unless the message is about a whole section."""
    value = complaint["input"]
    if isinstance(value, (dict, BaseModel)):
        return ""
    text = repr(value)
    return f", got {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names accepted by the section at ``loc``."""
    here: Any = model
    for part in loc:
        if isinstance(part, int) or not _is_model(here) or part not in here.model_fields:
            continue
        here = _model_in(here.model_fields[part].annotation) or here
    return [field.alias or name for name, field in here.model_fields.items()]


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as ``tuple[Host, ...]`` or ``Skew | None``."""
    if _is_model(annotation):
        found: type[BaseModel] = annotation
        return found
    for argument in get_args(annotation):
        inner = _model_in(argument)
        if inner is not None:
            return inner
    return None
