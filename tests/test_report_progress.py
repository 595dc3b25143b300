"""Progress: on stderr, for people only."""

from __future__ import annotations

import pytest

from mosaicsim.report.progress import show_progress


def work(enabled: bool = True) -> None:
    with show_progress(enabled=enabled) as report:
        for done in range(3):
            report(done, 3, f"step {done}")
        report(3, 3, "done")


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_it_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    work()
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    work(enabled=False)
    assert capsys.readouterr() == ("", "")
