"""How fast a large pack is browsed: the store's answers, the table's filters and sorts, and the script time of every page.

    python -m tests.benchmarks.pages [--latents 131072] [--rows 1048576] [--pages] [--browser]

Writes a pack of made-up numbers (only its size matters here) into a temporary folder, times each answer, and prints the
median, the 95th percentile and the memory of the process. `--pages` runs the pages themselves, as the server would;
`--browser` starts the server and opens them in a headless Chromium (pip install -e '.[browser]', and Chromium itself).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from scope.features.face import Pack
from scope.features.pack.format import N_BINS
from scope.features.pack.index import Index, order_of
from scope.features.pack.table import COLUMNS
from scope.features.pack.write import PackArrays, write_pack

N_TOP, N_BANDED, N_RANDOM, HALF = 12, 15, 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--rows", type=int, default=1_048_576)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--pages", action="store_true")
    parser.add_argument("--browser", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "large.pack"
        large_pack(pack, args.latents)
        size = sum(file.stat().st_size for file in pack.iterdir())
        print(f"a pack of {args.latents:,} latents, {size / 1e6:,.0f} MB")
        answers(pack, args.repeat)
        if args.pages:
            pages(pack, args.repeat)
        if args.browser:
            browser(pack, args.repeat)
    rows(args.rows, args.repeat)
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def timed(name: str, call: Callable[[int], object], n: int) -> None:
    seconds = []
    for i in range(n):
        started = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - started)
    report(name, [1000 * s for s in seconds])


def report(name: str, milliseconds: list[float]) -> None:
    first, rest = milliseconds[0], sorted(milliseconds[1:])
    p95 = rest[min(len(rest) - 1, int(0.95 * len(rest)))]
    print(f"{name:42} first {first:8.1f} ms   median {rest[len(rest) // 2]:7.1f}   p95 {p95:7.1f}", flush=True)


def answers(pack: Path, n: int) -> None:
    from scope.app.features import listing
    from scope.app.serve import pack_facts

    from scope.features.exports import tables

    started = time.perf_counter()
    store = Pack.open(pack)
    assert len(store.table) == store.d_sae
    print(f"{'opening, with the table':42} {1000 * (time.perf_counter() - started):8.1f} ms")
    ids = np.random.default_rng(1).integers(0, store.d_sae, n)
    timed("a latent: row, examples, relations", lambda i: whole(store, int(ids[i])), n)
    timed("find a word", lambda i: store.find(store.vocab[500 + i].strip()), n)
    timed("fires on a token", lambda i: store.fires_on(store.vocab[500 + i]), n)
    timed("promotes a token", lambda i: store.promotes(store.vocab[500 + i]), n)
    timed("start here", lambda i: pack_facts.start_here(store), n)
    timed("tiles", lambda i: pack_facts.tiles(store), n)
    everything = np.arange(store.d_sae)
    timed("filters", lambda i: listing.filter_masks(store.index, ["dead", "dense"], (-5.0, -1.0), 0.9), n)
    timed("sort by density", lambda i: listing.ordered(store.index, everything, everything >= 0, "density", bool(i % 2)), n)
    timed("CSV of the whole result", lambda i: tables.csv(store.table), 2)


def whole(store: Pack, latent: int) -> None:
    feature = store[latent]
    assert all(len(part) for part in (feature.row, feature.histogram, feature.neighbours, feature.tokens))
    for group in feature.groups:
        feature.examples(group, 12)


def rows(n: int, repeat: int) -> None:
    """Filters and sorts over a table of `n` rows."""
    from scope.app.features import listing

    table = made_up_table(n, np.random.default_rng(0), [f" w{i}" for i in range(4096)])
    index, everything = Index(table), np.arange(n)
    print(f"a table of {n:,} rows, {table.memory_usage(deep=True).sum() / 1e6:,.0f} MB in memory")

    def narrowed(i: int) -> np.ndarray:
        return listing.combined(listing.filter_masks(index, ["dead", "dense"], (-5.0 - 0.01 * i, -1.0), 0.9), n)

    timed("filter", narrowed, repeat)
    every = everything >= 0
    by = ("density", "max", "out_score")
    timed("sort, by a column not asked for before", lambda i: order_of(index.column(by[i % 3])), repeat)
    timed("sort", lambda i: listing.ordered(index, everything, every, by[i % 3], bool(i % 2)), repeat)
    timed("filter, then sort", lambda i: listing.ordered(index, everything, narrowed(i), "max", False), repeat)


def pages(pack: Path, n: int) -> None:
    """Script time of each page, run as Streamlit runs it, without a browser."""
    import json
    import os

    import streamlit.components.v2.manifest_scanner as scanner
    import streamlit.testing.v1.local_script_runner as runner
    from scope.app.warm_up import warm_up
    from streamlit import config
    from streamlit.runtime.scriptrunner.script_cache import ScriptCache
    from streamlit.testing.v1 import AppTest
    from streamlit.util import calc_hash

    for name in ("runner.magicEnabled", "browser.gatherUsageStats"):
        config.set_option(name, False)  # as `scope app` sets them
    compiled = ScriptCache()  # the server compiles a page once; the tester would each time
    runner.ScriptCache = lambda: compiled
    scanner.scan_component_manifests = list  # the server looks once into every installed package; the tester would at each run
    os.environ["SCOPE_PACKS"] = json.dumps([str(pack)])
    warm_up()  # as `scope app` does before it takes visitors
    rng = np.random.default_rng(2)
    d_sae = Pack.open(pack).d_sae
    main_script = str(Path(__file__).parents[2] / "app" / "main.py")
    names = sorted(page.parent.name for page in Path(main_script).parent.glob("*/page.py"))
    for name, view in [*((name, "") for name in names), ("features", "Scatter"), ("features", "Map")]:
        at = AppTest.from_file(main_script, default_timeout=60)

        def visit(i: int, at=at, name=name, view=view) -> None:
            if view:
                at.query_params["view"] = view
            if name in ("feature", "steer"):
                at.query_params["f"] = str(int(rng.integers(d_sae)))
            at._page_hash = calc_hash("" if name == "overview" else name)
            at.run()
            assert not at.exception, at.exception

        timed(f"page {name} {view}".strip(), visit, n)


IN_PAGE = """
const app = () => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning';
const parts = () => [...document.querySelectorAll('[data-testid^=stBidiComponent]')].map((one) => one.shadowRoot ?? one);
const strips = () => parts().map((one) => one.querySelector('.strips')).find((one) => one) ?? null;
const examples = () => strips()?.querySelectorAll('.tok').length > 20 ? strips().textContent : '';
const begins = (text) => [...document.querySelectorAll('h1, h2')].some((one) => one.innerText.startsWith(text));
const fresh = () => app() && !document.querySelector('[data-stale=true]');
const charts = () => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4;
const when = (...conditions) => new Promise((done) => {
  const times = conditions.map(() => null);
  const look = () => {
    conditions.forEach((condition, n) => { if (times[n] === null && condition()) times[n] = performance.now(); });
    times.includes(null) ? setTimeout(look, 4) : done(times);
  };
  look();
});
"""
"""What a person waits for, as conditions of the page, and when each comes true: looked at every 4 ms within the page, since a
driver that asks from outside asks twice a second."""


@contextmanager
def one_title() -> Iterator[str]:
    """The smallest app that Streamlit can serve: no app of it opens faster. Its address."""
    from tests.browser.conftest import free_port

    with tempfile.TemporaryDirectory() as folder:
        script, port = Path(folder) / "one.py", free_port()
        script.write_text("import streamlit as st\n\nst.title('One title')\n")
        command = [sys.executable, "-m", "streamlit", "run", script, "--server.port", f"{port}", "--server.headless", "true"]
        quiet = ["--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"]
        process = subprocess.Popen([*command, *quiet], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(5)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def browser(pack: Path, n: int) -> None:
    """Opening the app, a deep link and switching latents, from the person's side; then the memory of the server."""
    import re

    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import CHROMIUM, serving

    with serving([pack]) as (address, process), one_title() as floor, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.add_init_script("addEventListener('keydown', () => { window.pressed = performance.now(); }, true)")

        def rest() -> None:
            page.wait_for_timeout(700)

        def visits(path: str, conditions: str, times: int, at: str = address) -> list[list[float]]:
            """Milliseconds from the beginning of each visit until each condition holds."""
            found = []
            for _ in range(times):
                page.goto(f"{at}{path}", wait_until="commit")
                found.append(page.evaluate(f"(async () => {{ {IN_PAGE} return when({conditions}); }})()"))
                rest()
            return found

        report(
            "a Streamlit app of one title", [told for (told,) in visits("/", "() => begins('One title') && app()", 8, floor)]
        )
        text, all_of_it = zip(
            *visits("/", "() => begins('Start here') && app(), () => begins('Start here') && charts()", 8), strict=True
        )
        report("opening the app: text; first is the server's", list(text))
        report("opening the app: with its charts", list(all_of_it))
        alive = Pack.open(pack).table["count"].to_numpy() > 0
        living, rng = np.flatnonzero(alive)[: -4 * n], np.random.default_rng(3)
        links = [
            visits(f"/feature?f={int(rng.choice(living))}", "examples, () => examples() && fresh()", 1)[0] for _ in range(8)
        ]
        report("a deep link to a latent: examples", [examples for examples, _ in links])
        report("a deep link to a latent: all", [everything for _, everything in links])
        switches = []
        while (
            len(switches) < 2 * n
        ):  # J, until the new latent's heading and examples stand, and until nothing is of the old one
            latent = int(re.match(r"#(\d+)", page.locator("h1").first.inner_text())[1]) + 1
            page.evaluate(
                f"""() => {{ {IN_PAGE}
                const before = strips()?.textContent ?? '', at = () => location.search.includes('f={latent}');
                const there = () => begins('#{latent} ') && examples() && examples() !== before;
                window.switched = (async () => {{
                  window.pressed = undefined;
                  const times = await when(() => window.pressed && there(), () => there() && at() && fresh());
                  return times.map((time) => time - window.pressed);
                }})(); }}"""
            )
            page.keyboard.press("j")
            if alive[latent]:  # a dead one has no examples
                switches.append(page.evaluate("window.switched"))
            rest()
        report("the next latent by J: examples", [examples for examples, _ in switches])
        report("the next latent by J: all", [everything for _, everything in switches])
        chromium.close()
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            told = dict(line.split(":", 1) for line in status.read_text().splitlines())
            print(f"memory of the server: now {told['VmRSS'].strip()}, at most {told['VmHWM'].strip()}")


def made_up_table(n: int, rng: np.random.Generator, words: list[str]) -> pd.DataFrame:
    """Columns of the right kinds and of usual ranges."""
    count = np.floor(10 ** rng.uniform(-1, 5, n)).astype(np.int64)
    largest = np.where(count > 0, rng.lognormal(1, 1, n), 0.0)
    tops = np.array(words, object)[rng.integers(len(words), size=n)]
    nearest = rng.integers(0, n, n)
    lists = np.array(words, object)[rng.integers(len(words), size=(n, 10))]
    kinds = np.array(["", "dense", "rare", "single-token", "duplicate", "rare,single-token", "output"], object)
    columns = {
        "count": count,
        "density": count / 3_000_000,
        "top_token": tops,
        "top_token_share": rng.random(n),
        "promotes": list(lists),
        "suppresses": list(lists[:, ::-1]),
        "n_tokens": rng.integers(1, 500, n),
        "n_tokens_half": rng.integers(1, 50, n),
        "nearest": nearest,
        "label": [f"fires on{word}" for word in tops],
        "label_source": ["token statistics"] * n,
        "flags": np.where(count == 0, "dead", kinds[rng.integers(len(kinds), size=n)]),
    }
    for name in COLUMNS:
        if name not in columns:
            columns[name] = largest * rng.random(n) if name in ("max", "mean", "p50", "p90", "p99") else rng.random(n)
    return pd.DataFrame(columns)[list(COLUMNS)]


def large_pack(out: Path, d_sae: int, n_ctx: int = 256, seed: int = 0) -> None:
    """A pack of `d_sae` latents whose numbers mean nothing and whose sizes are usual."""
    rng = np.random.default_rng(seed)
    words = [f" w{i}" for i in range(8192)]
    n_contexts = 4096
    contexts = rng.integers(4, len(words), (n_contexts, n_ctx), dtype=np.int32)
    places = N_TOP + N_BANDED + N_RANDOM
    group = np.repeat(np.array([1, 2, 3], np.uint8), [N_TOP, N_BANDED, N_RANDOM])
    band = np.where(group == 2, np.arange(places) % 5, 255).astype(np.uint8)
    value = -np.sort(-rng.lognormal(1, 1, (d_sae, places)).astype(np.float32), axis=1)
    acts = np.lib.format.open_memmap(out.parent / "acts.npy", "w+", np.float32, (d_sae, places, 2 * HALF + 1))
    for start in range(0, d_sae, 8192):
        part = acts[start : start + 8192]
        part[:] = np.where(rng.random(part.shape) < 0.06, rng.random(part.shape, np.float32), 0)
        part[:, :, HALF] = value[start : start + 8192]
    examples = {
        "position": rng.integers(0, n_contexts * n_ctx, (d_sae, places)),
        "group": np.broadcast_to(group, (d_sae, places)),
        "band": np.broadcast_to(band, (d_sae, places)),
        "value": value,
        "acts": acts,
        "histogram": rng.poisson(3, (d_sae, N_BINS)).astype(np.uint32),
        "band_edges": np.sort(rng.random((d_sae, 6)).astype(np.float32), axis=1),
        "band_count": rng.integers(1, 500, (d_sae, 5)),
        "band_mass": rng.random((d_sae, 5)),
    }

    def ids(width: int, high: int) -> np.ndarray:
        return rng.integers(0, high, (d_sae, width), dtype=np.int32)

    def falling(width: int) -> np.ndarray:
        return -np.sort(-rng.random((d_sae, width), np.float32), axis=1)

    relations = {
        "neighbour_id": ids(10, d_sae),
        "neighbour_cos": falling(10),
        "cofiring_id": ids(10, d_sae),
        "cofiring_p": falling(10),
        "cofiring_lift": falling(10) * 100,
        "token_id": ids(32, len(words)),
        "token_count": -np.sort(-rng.integers(1, 1000, (d_sae, 32)), axis=1),
        "token_sum": rng.random((d_sae, 32)) * 1000,
        **{f"{name}_id": ids(10, len(words)) for name in ("promoted", "suppressed", "measured")},
        **{f"{name}_logit": falling(10) for name in ("promoted", "suppressed")},
        "measured_rise": falling(10) * 0.1,
    }
    manifest = {
        "site": "blocks.2.hook_resid_post",
        "model": {"model": "made-up", "revision": None, "weights_sha256": "none", "tokenizer_sha256": "none"},
        "dictionary": {"weights_sha256": "none", "site": "blocks.2.hook_resid_post"},
        "corpus": {"name": "made-up numbers", "seed": seed},
        "n_tokens": 3_000_000,
        "n_contexts": n_contexts,
        "n_ctx": n_ctx,
        "pad": 0,
        "window": HALF,
        "histogram": {"low": 900, "bins": N_BINS},
        "norm_median": 10.0,
        "excluded": "<bos>, control tokens and padding: latents are not counted there",
        "flags": {"dense": 0.1, "rare": 10, "single_token": 0.8, "duplicate": 0.9},
        "output_score": {"strength": 0.5, "null_mean": 0.001, "null_p95": 0.01, "prompts": 2},
        "map": {
            "method": "pca",
            "explained": [0.01, 0.01],
            "explained_by_chance": [0.01, 0.01],
            "kept": 0,
            "kept_by_chance": 0,
        },
        "made": {"scope": "benchmark", "date": "2026-01-01"},
    }
    write_pack(
        out,
        PackArrays(
            table=made_up_table(d_sae, rng, words),
            examples=examples,
            relations=relations,
            token_totals=np.bincount(contexts.ravel(), minlength=len(words)),
            contexts=contexts,
            documents=np.zeros_like(contexts),
            document_names=["made-up.txt"],
            vocab=words,
            manifest=manifest,
            map=rng.normal(size=(d_sae, 2)).astype(np.float32),
        ),
    )
    (out.parent / "acts.npy").unlink()


if __name__ == "__main__":
    main()
