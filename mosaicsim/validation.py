"""A validation failure in one line: the path, what is wrong with which value, and what is accepted."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from mosaicsim.errors import nearest

_LONGEST_VALUE = 60
_WORDS = (
    (r"valid tuple", "list"),
    (r"tuple should", "list should"),
    (r"valid dictionary( or instance of \w+)?", "mapping of keys"),
    (r" after validation, not \d+", ""),
)
"""What pydantic says, in the words of YAML."""


class StrictModel(BaseModel):
    """What a user writes: no unknown key, no NaN or infinity, no true or false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _accepts_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("expected a number or a text; YAML reads yes, no, on and off as true and false")
        return value


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_accepts_bool(argument) for argument in get_args(annotation))


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
    for jargon, word in _WORDS:
        message = re.sub(jargon, word, message)
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
