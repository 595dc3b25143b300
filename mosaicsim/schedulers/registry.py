"""Schedulers by name: the built-in ones and those of the entry-point group ``mosaicsim.schedulers``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import ValidationError

from mosaicsim.errors import ScenarioError, nearest
from mosaicsim.plugins import find_plugins, load_plugin
from mosaicsim.schedulers.base import Scheduler, SchedulerOptions
from mosaicsim.schedulers.data_parallel import DataParallel
from mosaicsim.schedulers.greedy import Greedy
from mosaicsim.schedulers.ilp import Ilp
from mosaicsim.schedulers.oracle import Oracle
from mosaicsim.schedulers.round_robin import RoundRobin
from mosaicsim.schedulers.tail_ilp import TailIlp
from mosaicsim.schedulers.work_stealing import WorkStealing
from mosaicsim.validation import explain

GROUP = "mosaicsim.schedulers"
"""Entry-point group; each entry names a class that satisfies the Scheduler protocol."""

BUILT_IN: dict[str, type[Scheduler]] = {
    policy.name: policy for policy in (RoundRobin, DataParallel, Greedy, Ilp, TailIlp, WorkStealing, Oracle)
}


def available() -> dict[str, type[Scheduler]]:
    """Every scheduler by name, built-in ones first. Raises UserInputError for an unusable plug-in."""
    return BUILT_IN | {entry.name: _load(entry) for entry in _plugins().values()}


def find(name: str) -> type[Scheduler]:
    """Return the scheduler of that name. Raises ScenarioError, with the nearest name, if there is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    plugins = _plugins()
    if name in plugins:
        return _load(plugins[name])
    names = [*BUILT_IN, *sorted(plugins)]
    raise ScenarioError(f"unknown scheduler '{name}'{nearest(name, names)}; accepted: {', '.join(names)}")


def create(name: str, options: Mapping[str, Any] | None = None) -> Scheduler:
    """Make a scheduler from its name and plain options. Raises ScenarioError if either is wrong."""
    policy = find(name)
    return policy(parse_options(policy, options or {}))


def parse_options(policy: type[Scheduler], options: Mapping[str, Any]) -> SchedulerOptions:
    """Validate a policy's options. Raises ScenarioError naming ``schedulers.<name>.<option>``."""
    try:
        return policy.Options.model_validate(dict(options))
    except ValidationError as error:
        raise ScenarioError(f"schedulers.{policy.name}.{explain(error, policy.Options)}") from None


def _plugins() -> dict[str, EntryPoint]:
    return find_plugins("scheduler", GROUP, BUILT_IN)


def _load(entry: EntryPoint) -> type[Scheduler]:
    policy: type[Scheduler] = load_plugin(
        "scheduler", entry, ("name", "summary", "Options", "sees_lengths", "plan")
    )
    return policy
