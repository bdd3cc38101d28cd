"""Jobs wait for their turn with the model, can be given up at any moment, and never keep it from the others."""

import threading
import time
from threading import Event

import pytest
from scope.app.serve.jobs import Job, ModelQueue


@pytest.fixture
def queue():
    return ModelQueue()


def held(queue, name="holds") -> tuple[Job, Event]:
    """A job that has the model until the event is set."""
    begun, let_go = Event(), Event()

    def work(job):
        begun.set()
        assert let_go.wait(10)
        return name

    job = Job(name, work, queue).start()
    assert begun.wait(10)
    return job, let_go


def test_a_job_gives_its_result_and_the_model_back(queue):
    job = Job("one", lambda job: 42, queue).start()
    assert job.wait(10)
    assert (job.state, job.result, job.active) == ("done", 42, False)
    assert queue.ahead(queue.join()) == 0


def test_jobs_are_served_one_at_a_time_and_know_how_many_are_before_them(queue):
    first, let_go = held(queue)
    second = Job("second", lambda job: 2, queue).start()
    while second.ahead != 1:
        assert not second.wait(0.01)
    assert second.state == "waiting"
    let_go.set()
    assert second.wait(10)
    assert (first.result, second.result) == ("holds", 2)


def test_a_job_that_waits_can_be_cancelled_and_never_runs(queue):
    _, let_go = held(queue)
    ran = []
    second = Job("second", lambda job: ran.append(1), queue).start()
    third = Job("third", lambda job: 3, queue).start()
    second.stop()
    assert second.wait(10)
    assert second.state == "cancelled"
    let_go.set()
    assert third.wait(10)
    assert third.result == 3
    assert not ran


def test_a_job_that_fails_tells_why_and_the_next_is_served(queue):
    def fails(job):
        raise RuntimeError("the machine is on fire")

    bad = Job("bad", fails, queue).start()
    good = Job("good", lambda job: 1, queue).start()
    assert bad.wait(10)
    assert good.wait(10)
    assert bad.state == "failed"
    assert "on fire" in str(bad.error)
    assert good.result == 1


def test_long_work_lets_others_go_first_and_comes_back(queue):
    order, ready, second_waits = [], Event(), Event()

    def long(job):
        order.append("long, part 1")
        ready.set()
        assert second_waits.wait(10)
        job.let_others_go_first()
        order.append("long, part 2")

    first = Job("long", long, queue).start()
    assert ready.wait(10)
    second = Job("short", lambda job: order.append("short"), queue).start()
    while second.ahead != 1:
        assert not second.wait(0.01)
    second_waits.set()
    assert first.wait(10)
    assert second.wait(10)
    assert order == ["long, part 1", "short", "long, part 2"]


def test_long_work_that_gave_way_can_be_stopped_while_it_waits(queue):
    ready, go_on, ends = Event(), Event(), Event()

    def long(job):
        ready.set()
        assert go_on.wait(10)
        job.let_others_go_first()
        return "kept" if job.stopping else "went on"

    first = Job("long", long, queue).start()
    assert ready.wait(10)
    other = Job("other", lambda job: ends.wait(10), queue).start()
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


def test_a_job_whose_reader_closed_the_page_ends_and_one_whose_page_is_back_goes_on(queue, monkeypatch):
    now, open_page = [100.0], [True]
    monkeypatch.setattr("scope.app.serve.jobs.time.monotonic", lambda: now[0])
    job = Job("compare", lambda job: None, queue, reader_present=lambda: open_page[0])
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


def test_turns_come_in_the_order_of_asking_and_a_place_can_be_given_up():
    queue = ModelQueue()
    tickets = []
    threads = [threading.Thread(target=lambda: tickets.append(queue.join())) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert [queue.ahead(t) for t in tickets] == [0, 1, 2]
    queue.leave(tickets[1])
    assert queue.ahead(tickets[2]) == 1
    queue.leave(tickets[0])
    assert queue.ahead(tickets[2]) == 0


def test_a_thread_takes_a_turn_within_its_own_turn():
    queue = ModelQueue()
    outer = queue.join()
    inner = queue.join()
    assert queue.ahead(inner) == 0
    queue.leave(inner)
    assert queue.ahead(outer) == 0


def test_it_serves_as_a_lock_for_work_in_other_threads():
    queue, order = ModelQueue(), []

    def work(name):
        assert queue.acquire()
        order.append(name)
        time.sleep(0.05)
        order.append(name)
        queue.release()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert order[::2] == order[1::2]


def test_waiting_ends_with_the_time_that_was_given_and_nobody_releases_what_he_has_not():
    queue = ModelQueue()
    held = threading.Thread(target=queue.acquire)
    held.start()
    held.join()
    assert not queue.acquire(timeout=0.01)
    with pytest.raises(RuntimeError, match="does not have"):
        queue.release()
