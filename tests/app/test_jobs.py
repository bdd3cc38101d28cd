"""Jobs wait for their turn with the model, can be given up at any moment, and never keep it from the others."""

from threading import Event

import pytest
from scope.app.serve.jobs import Job
from scope.app.serve.turns import Turns


@pytest.fixture
def turns():
    return Turns()


def held(turns, name="holds") -> tuple[Job, Event]:
    """A job that has the model until the event is set."""
    begun, let_go = Event(), Event()

    def work(job):
        begun.set()
        assert let_go.wait(10)
        return name

    job = Job(name, work, turns).start()
    assert begun.wait(10)
    return job, let_go


def test_a_job_gives_its_result_and_the_model_back(turns):
    job = Job("one", lambda job: 42, turns).start()
    assert job.wait(10)
    assert (job.state, job.result, job.active) == ("done", 42, False)
    assert turns.before(turns.ask()) == 0


def test_jobs_are_served_one_at_a_time_and_know_how_many_are_before_them(turns):
    first, let_go = held(turns)
    second = Job("second", lambda job: 2, turns).start()
    while second.ahead != 1:
        assert not second.wait(0.01)
    assert second.state == "waiting"
    let_go.set()
    assert second.wait(10)
    assert (first.result, second.result) == ("holds", 2)


def test_a_job_that_waits_can_be_cancelled_and_never_runs(turns):
    _, let_go = held(turns)
    ran = []
    second = Job("second", lambda job: ran.append(1), turns).start()
    third = Job("third", lambda job: 3, turns).start()
    second.stop()
    assert second.wait(10)
    assert second.state == "cancelled"
    let_go.set()
    assert third.wait(10)
    assert third.result == 3
    assert not ran


def test_a_job_that_fails_tells_why_and_the_next_is_served(turns):
    def fails(job):
        raise RuntimeError("the machine is on fire")

    bad = Job("bad", fails, turns).start()
    good = Job("good", lambda job: 1, turns).start()
    assert bad.wait(10)
    assert good.wait(10)
    assert bad.state == "failed"
    assert "on fire" in str(bad.error)
    assert good.result == 1


def test_long_work_lets_others_go_first_and_comes_back(turns):
    order, ready, second_waits = [], Event(), Event()

    def long(job):
        order.append("long, part 1")
        ready.set()
        assert second_waits.wait(10)
        job.give_way()
        order.append("long, part 2")

    first = Job("long", long, turns).start()
    assert ready.wait(10)
    second = Job("short", lambda job: order.append("short"), turns).start()
    while second.ahead != 1:
        assert not second.wait(0.01)
    second_waits.set()
    assert first.wait(10)
    assert second.wait(10)
    assert order == ["long, part 1", "short", "long, part 2"]


def test_long_work_that_gave_way_can_be_stopped_while_it_waits(turns):
    ready, go_on, ends = Event(), Event(), Event()

    def long(job):
        ready.set()
        assert go_on.wait(10)
        job.give_way()
        return "kept" if job.stopping else "went on"

    first = Job("long", long, turns).start()
    assert ready.wait(10)
    other = Job("other", lambda job: ends.wait(10), turns).start()
    while other.ahead != 1:
        assert not other.wait(0.01)
    go_on.set()
    while first.state != "waiting":
        assert not first.wait(0.01)
    first.stop()
    assert first.wait(10)
    assert first.result == "kept"
    ends.set()
    assert other.wait(10)


def test_a_job_whose_reader_closed_the_page_ends_and_one_whose_page_is_back_goes_on(turns, monkeypatch):
    now, open_page = [100.0], [True]
    monkeypatch.setattr("scope.app.serve.jobs.time.monotonic", lambda: now[0])
    job = Job("compare", lambda job: None, turns, here=lambda: open_page[0])
    assert not job.stopping
    open_page[0] = False
    now[0] += 5
    assert not job.stopping
    open_page[0] = True
    now[0] += 60
    assert not job.stopping
    open_page[0] = False
    now[0] += 9
    assert not job.stopping
    now[0] += 2
    assert job.stopping
