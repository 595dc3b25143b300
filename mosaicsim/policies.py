"""Policies as the user writes them: a name, or one ``name: {options}`` pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from mosaicsim.errors import ScenarioError, nearest
from mosaicsim.validation import explain


class PolicyKind(Enum):
    """What kinds of policies a scenario names."""

    SCHEDULER = "scheduler"
    GATE = "gate"
    ROUTER = "router"

    @cache
    def available(self) -> dict[str, type[Any]]:
        """Classes of this kind by name, third parties' included."""
        if self is PolicyKind.SCHEDULER:
            from mosaicsim.schedulers.registry import available as schedulers

            return dict(schedulers())
        if self is PolicyKind.GATE:
            from mosaicsim.aggregation.registry import available as gates

            return gates()
        from mosaicsim.workload.routing import ROUTERS

        return dict(ROUTERS)

    def option_models(self) -> dict[str, type[BaseModel]]:
        """The options model of each policy of this kind."""
        return {name: policy.Options for name, policy in self.available().items()}


@dataclass(frozen=True)
class Policy:
    """A policy chosen in a scenario, its options validated."""

    kind: PolicyKind
    name: str
    options: BaseModel

    def create(self) -> Any:
        """Make the scheduler, gate or router."""
        return self.kind.available()[self.name](self.options)

    @property
    def label(self) -> str:
        """The user's name for this entry, else the gate's own label, else the policy's name."""
        given = getattr(self.options, "label", None)
        if given or self.kind is not PolicyKind.GATE:
            return str(given or self.name)
        return str(self.create().label)

    def as_yaml(self) -> dict[str, Any]:
        """The entry with every option written out."""
        return {self.name: self.options.model_dump(mode="json")}


def parse_policies(
    kind: PolicyKind, field: str, entries: Iterable[Any], where: str, *, numbered: bool = True
) -> list[Policy]:
    """Validate policies. Raises ScenarioError naming ``where``, the path, and what is accepted.

    Two entries may share a policy if their labels differ.
    """
    policies = []
    for i, entry in enumerate(entries):
        path = f"{field}.{i}" if numbered else field
        policies.append(_parse(kind, path, entry, where))
    labels = [p.label for p in policies]
    for i, (policy, label) in enumerate(zip(policies, labels, strict=True)):
        if label != policy.name and label in kind.available():
            raise ScenarioError(
                f"{where}: {field}.{i}.{policy.name}.label: '{label}' is another {kind.value}'s name"
            )
        if label in labels[:i]:
            raise ScenarioError(f"{where}: {field}.{i}: '{label}' is there twice; give one of them a label")
    return policies


def _parse(kind: PolicyKind, path: str, entry: Any, where: str) -> Policy:
    if not isinstance(entry, (str, dict)) or (isinstance(entry, dict) and len(entry) != 1):
        hint = "; are the options indented below the name?" if isinstance(entry, dict) else ""
        raise ScenarioError(
            f"{where}: {path}: expected a name or one `name: {{options}}`, got {entry!r}{hint}"
        )
    name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
    models = kind.option_models()
    if name not in models:
        hint, accepted = nearest(str(name), models), ", ".join(models)
        raise ScenarioError(f"{where}: {path}: unknown {kind.value} {name!r}{hint}; accepted: {accepted}")
    if not isinstance(options, dict | None):
        raise ScenarioError(f"{where}: {path}.{name}: expected options as a mapping, got {options!r}")
    try:
        return Policy(kind, name, models[name].model_validate(options or {}))
    except ValidationError as error:
        raise ScenarioError(f"{where}: {path}.{name}.{explain(error, models[name])}") from None
