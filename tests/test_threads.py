"""Threads that wait for each other soon sleep, unless the user said otherwise."""

import os
import subprocess
import sys

from scope import threads
from scope.sae import base
from scope.training.adam import Adam
from tests.sae.test_engine import WAYS, engine_of, prepared


def settings_after(monkeypatch, environment: dict[str, str]) -> dict[str, str]:
    monkeypatch.setattr(os, "environ", dict(environment))
    threads.sleep_while_waiting()
    return dict(os.environ)


def test_importing_scope_says_how_long_threads_spin_before_torch_is_loaded():
    program = "import os, sys, scope; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k not in {*threads.SETTINGS, "OMP_WAIT_POLICY"}}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [threads.SETTINGS["GOMP_SPINCOUNT"], "False"]


def test_what_the_user_set_stays(monkeypatch):
    assert settings_after(monkeypatch, {"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert settings_after(monkeypatch, {"OMP_WAIT_POLICY": "active"}) == {"OMP_WAIT_POLICY": "active"}
    assert settings_after(monkeypatch, {}) == threads.SETTINGS


def test_a_step_in_few_large_blocks_of_rows_ends_in_the_bits_of_one_in_many_small(monkeypatch):
    for way in WAYS:
        ended = []
        for cached in (0, 2**30):  # blocks of 256 rows, or all at once
            monkeypatch.setattr(base, "_CACHED", cached)
            objective, x = prepared(40, 1000, 8.0, 0.05)
            named = dict(objective.sae.float().named_parameters())
            engine, adam = engine_of(objective, way), Adam(named, dict.fromkeys(named, 1e-3), (0.9, 0.999))
            for _ in range(2):
                batch = engine.gradients(x.float())
                objective.before_step()
                adam.step(1.0)
                objective.after_step(batch.l0, 0.5)
            ended.append({name: p.detach().clone() for name, p in named.items()})
        assert all(few.equal(many) for few, many in zip(*(e.values() for e in ended), strict=True)), way
