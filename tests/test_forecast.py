"""How long work will take is foretold from its first seconds, and asked about before an hour."""

from types import SimpleNamespace

import pytest

from scope.cli import progress
from scope.progress import LATER, Forecast


def test_the_first_unit_is_left_out_and_the_time_left_is_said_once():
    now = [0.0]
    forecast = Forecast(after=8, clock=lambda: now[0])
    times = []
    for done in range(1, 12):
        now[0] = 100 * (done == 1) or 100 + 3 * (done - 1)  # the first takes 100 s, each other one 3 s
        times.append(forecast.update(done, 1001))
    assert [t for t in times if t is not None] == [pytest.approx(3 * (1001 - 4))]
    assert times.index(pytest.approx(3 * 997)) == 3, "after 8 seconds"


def test_another_total_is_another_part_with_a_forecast_of_its_own():
    now = [0.0]
    forecast = Forecast(after=1, clock=lambda: now[0])
    said = []
    for total, seconds in ((10, 1), (50, 2)):
        for done in range(4):
            now[0] += seconds
            said.append(forecast.update(done, total))
    assert [s for s in said if s] == [pytest.approx(9), pytest.approx(98)]


def test_a_forecast_that_was_less_than_half_of_the_truth_is_corrected():
    now = [0.0]
    forecast = Forecast(after=1, clock=lambda: now[0])
    said = []
    for done in range(60):
        now[0] += 1 if done < 5 else 10
        said.append(forecast.update(done, 100))
    said = [s for s in said if s]
    assert said[0] == pytest.approx(99)
    assert len(said) > 1
    assert said[-1] > 2 * 100


def of_clock(monkeypatch, answer, terminal=True):
    """A bar whose clock a test moves, and the questions asked."""
    now, asked = [0.0], []
    monkeypatch.setattr(progress, "Forecast", lambda: Forecast(clock=lambda: now[0]))
    monkeypatch.setattr(progress.sys, "stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    return now, asked


def work(now, seconds, total=1000, numbers=None, **options):
    with progress.progress_bar("Working", **options) as on_progress:
        for done in range(10):
            now[0] += seconds
            on_progress(done, total, numbers or {})


def test_what_takes_more_than_an_hour_is_asked_about_and_a_no_stops_it(monkeypatch, capsys):
    now, asked = of_clock(monkeypatch, "n")
    with pytest.raises(KeyboardInterrupt):
        work(now, 10)
    assert len(asked) == 1
    assert "About 2 h 46 min, measured on its first seconds." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "options", "terminal", "said"),
    [(10, {"yes": True}, True, True), (10, {}, False, True), (1, {}, True, True), (0.05, {}, True, False)],
)
def test_nobody_is_asked_with_yes_without_a_terminal_or_within_the_hour(monkeypatch, capsys, seconds, options, terminal, said):
    now, asked = of_clock(monkeypatch, "n", terminal)
    work(now, seconds, **options)
    assert not asked
    assert ("measured on its first seconds" in capsys.readouterr().out) is said


def test_a_yes_goes_on_and_is_not_asked_again_and_later_parts_count(monkeypatch, capsys):
    now, asked = of_clock(monkeypatch, "")
    work(now, 1, numbers={LATER: 7200.0, "L0": 3.0})
    assert len(asked) == 1
    out = capsys.readouterr().out
    assert "About 2 h 17 min" in out
    assert LATER not in out
