"""The queue for the model."""

import threading
import time

import pytest
from scope.app.serve.turns import Turns


def test_turns_come_in_the_order_of_asking_and_a_place_can_be_given_up():
    turns = Turns()
    tickets = []
    threads = [threading.Thread(target=lambda: tickets.append(turns.ask())) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert [turns.before(t) for t in tickets] == [0, 1, 2]
    turns.leave(tickets[1])
    assert turns.before(tickets[2]) == 1
    turns.leave(tickets[0])
    assert turns.before(tickets[2]) == 0


def test_a_thread_takes_a_turn_within_its_own_turn():
    turns = Turns()
    outer = turns.ask()
    inner = turns.ask()
    assert turns.before(inner) == 0
    turns.leave(inner)
    assert turns.before(outer) == 0


def test_it_serves_as_a_lock_for_work_in_other_threads():
    turns, order = Turns(), []

    def work(name):
        assert turns.acquire()
        order.append(name)
        time.sleep(0.05)
        order.append(name)
        turns.release()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert order[::2] == order[1::2]


def test_waiting_ends_with_the_time_that_was_given_and_nobody_releases_what_he_has_not():
    turns = Turns()
    held = threading.Thread(target=turns.acquire)
    held.start()
    held.join()
    assert not turns.acquire(timeout=0.01)
    with pytest.raises(RuntimeError, match="does not have"):
        turns.release()
