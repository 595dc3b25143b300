"""Third-party schedulers and the verb that lists them all."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner

from mosaicsim import plugins
from mosaicsim.cli.schedulers import schedulers
from mosaicsim.errors import UserInputError
from mosaicsim.schedulers import registry
from mosaicsim.schedulers.round_robin import RoundRobin


class Mine(RoundRobin):
    name = "mine"


def install(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, registry.GROUP) for name, value in entries]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == registry.GROUP else [])


def test_a_plugin_is_found_and_made(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("mine", f"{__name__}:Mine"))
    assert registry.available()["mine"] is Mine
    assert isinstance(registry.create("mine"), Mine)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("ilp", f"{__name__}:Mine"), "takes a name already in use"),
        (("mine", "no_such_module:Mine"), r"'mine' \(no_such_module:Mine\) cannot be loaded: No module"),
        (("mine", "json:JSONDecoder"), "lacks name, summary, Options, sees_lengths, plan"),
    ],
)
def test_a_bad_plugin_is_named(monkeypatch: pytest.MonkeyPatch, entry: tuple[str, str], said: str) -> None:
    install(monkeypatch, entry)
    with pytest.raises(UserInputError, match=said):
        registry.available()


def test_the_verb_lists_every_option_with_type_default_and_meaning() -> None:
    text = CliRunner().invoke(schedulers, []).output
    assert "max_models_per_worker  integer >= 1, default 2: K" in text
    assert "mode  'lpt' or 'list', default \"list\"" in text
    assert "(not realisable)  [sees true lengths]" in text


def test_the_verb_prints_json() -> None:
    listing = json.loads(CliRunner().invoke(schedulers, ["--json"]).output)["schedulers"]
    assert [entry["name"] for entry in listing] == list(registry.BUILT_IN)
    assert all(option["meaning"] for entry in listing for option in entry["options"])
