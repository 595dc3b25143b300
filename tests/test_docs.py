"""The docs are run: every command and Python block, the scenario of docs/scenario.md, every link."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mosaicsim.analysis.study import simulate
from mosaicsim.scenario import load_scenario

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("[!.]*/README.md"))]
SETS_UP = "python3 -m venv"
NEEDS_FILES = "traces/imported"
"""Commands on public data that a reader fetches first: not part of the repository."""


def blocks(language: str) -> list[pytest.param]:  # type: ignore[valid-type]  # ParameterSet is not public
    found = []
    for page in PAGES:
        matches = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for i, block in enumerate(matches):
            if SETS_UP not in block and NEEDS_FILES not in block:
                found.append(pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}"))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a reader has, in a folder where commands may write."""
    for name in ("scenarios", "traces", "plots", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("sh"))
def test_commands(block: str, checkout: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    exec(compile(block, "docs", "exec"), {"__name__": "docs"})


def test_the_documented_scenario_runs(checkout: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(name: .*?)^```", (ROOT / "docs" / "scenario.md").read_text(), re.MULTILINE | re.DOTALL
    )
    path = checkout / "scenarios" / "mixed.yaml"
    path.write_text(block)
    result = simulate(load_scenario(path, ["replicates=1"]))
    assert {r.scheduler for r in result.runs} == {"round_robin", "greedy", "ilp"}
    assert any(r.metrics["calls_cancelled"] for r in result.runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_calls_the_readme_s_test_command() -> None:
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if SETS_UP in line]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_readme_figures_are_those_of_the_reproduction_page() -> None:
    """The README quotes the page that a script prints; a figure changed in one only is a mistake."""
    page = (ROOT / "docs" / "reproduction.md").read_text().replace(",", "")
    table = re.search(
        r"^\| \| paper \| mosaicsim.*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert table
    row = r"^\| [^|]+\| [^|]+\| (\d+(?:\.\d+)?)(?: s|x) \| ([-+][\d.]+) % \|"
    quoted = re.findall(row, table[0], re.MULTILINE)
    assert len(quoted) == 7
    for ours, error in quoted:
        assert re.search(rf"\| {re.escape(ours)} \([^|]*\| {re.escape(error)}% \|", page), (
            f"{ours}, {error} %"
        )
