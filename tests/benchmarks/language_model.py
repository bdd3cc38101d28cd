"""Bits per byte of a model beside zstd, xz and a Kneser-Ney 5-gram, on the same held-out documents.

    python -m tests.benchmarks.language_model --corpus runs/corpus --model runs/pretrain/model

The n-gram sees the whole training set in the model's own tokens. Each compressor gets a domain's held-out documents as one
stream, once alone and once after all training text of that domain, which it may refer back to. Held-out documents are the
first `--per-domain` of each domain after a seeded shuffle. Text repeats itself: a second table leaves out documents more than
half of whose 13-token runs stand in the training set. What does not depend on the model is kept in
runs/benchmarks/baselines.json.
"""

import argparse
import json
import lzma
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tokenizers

from scope.pretrain.evaluate import DocumentBits, by_domain, evaluate_text, mean_bits_per_byte, read_held_out
from tests.benchmarks.kneser_ney import KneserNey


def training_text(corpus: Path, domain: str, tokenizer: tokenizers.Tokenizer, eos: int) -> bytes:
    """The training documents of a domain, decoded and joined by blank lines."""
    stream = np.fromfile(corpus / "train" / f"{domain}.u16", dtype=np.uint16)
    ends = np.flatnonzero(stream == eos)
    documents = np.split(stream, ends + 1)[: len(ends)]
    return "\n\n".join(tokenizer.decode_batch([d[:-1].tolist() for d in documents])).encode()


def zstd_size(text: bytes, prime: bytes = b"") -> int:
    """Bytes after `zstd -19`, with `prime` as what went before."""
    with tempfile.TemporaryDirectory() as folder:
        file, before, out = (Path(folder) / name for name in ("text", "before", "out"))
        file.write_bytes(text)
        before.write_bytes(prime)
        patch = [f"--patch-from={before}", "--long=27"] if prime else []
        subprocess.run(["zstd", "-q", "-19", "--single-thread", "--no-check", *patch, file, "-o", out], check=True)
        return out.stat().st_size


def xz_size(text: bytes, prime: bytes = b"") -> int:
    """Bytes that `text` adds after `prime` under `xz -9`, whose window (64 MiB) holds both."""
    return len(lzma.compress(prime + text, preset=9)) - (len(lzma.compress(prime, preset=9)) if prime else 0)


def run_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every run of n ids."""
    wide, found = ids.astype(np.uint64), np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
    for offset in range(n):
        found = found * np.uint64(0x9E3779B97F4A7C15) + wide[offset : offset + len(found)] + np.uint64(1)
    return found


def overlaps(corpus: Path, documents: list[tuple[str, str]], tokenizer: tokenizers.Tokenizer, n: int = 13) -> list[float]:
    """Of each document, the share of its runs of n tokens that occur in the training set."""
    files = sorted((corpus / "train").glob("*.u16"))
    known = np.sort(np.concatenate([run_hashes(np.fromfile(f, dtype=np.uint16), n) for f in files]))
    shares = []
    for _, text in documents:
        runs = run_hashes(np.array(tokenizer.encode(text, add_special_tokens=False).ids), n)
        at = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        shares.append(float((known[at] == runs).mean()) if len(runs) else 0.0)
    return shares


def compressors(
    corpus: Path,
    documents: list[tuple[str, str]],
    tokenizer: tokenizers.Tokenizer,
    eos: int,
    table: dict[str, dict[str, float]],
    keep: Callable[[], None],
) -> dict[str, dict[str, float]]:
    """Compressed bits per byte by compressor and domain, added to `table`; `keep` is called after each domain."""
    done = next(iter(table.values()), {})
    for domain in sorted({d for d, _ in documents} - set(done)):
        text = "\n\n".join(t for d, t in documents if d == domain).encode()
        prime = training_text(corpus, domain, tokenizer, eos)
        for name, size in {
            "zstd -19": zstd_size(text),
            "zstd -19 primed": zstd_size(text, prime),
            "xz -9": xz_size(text),
            "xz -9 primed": xz_size(text, prime),
        }.items():
            table.setdefault(name, {})[domain] = 8 * size / len(text)
        keep()
        print(domain, f"{len(prime) / 1e6:.1f} MB before", {k: round(v[domain], 3) for k, v in table.items()}, flush=True)
    return table


def ngram(
    corpus: Path, documents: list[tuple[str, str]], tokenizer: tokenizers.Tokenizer, eos: int, order: int
) -> list[DocumentBits]:
    """What each document costs a Kneser-Ney model of the whole training set. Its first token is seen after <eos>."""
    edge = [np.full(order, eos, dtype=np.uint16)]
    streams = edge + [np.fromfile(f, dtype=np.uint16) for f in sorted((corpus / "train").glob("*.u16"))]
    started = time.time()
    model = KneserNey(np.concatenate(streams), tokenizer.get_vocab_size(), order)
    print(f"{order}-gram of {sum(map(len, streams)):,} tokens counted in {time.time() - started:.0f} s", flush=True)
    costs = []
    for domain, text in documents:
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        costs.append(DocumentBits(domain, float(model.bits(ids, eos).sum()), len(text.encode()), len(ids)))
    return costs


def baselines(corpus: Path, documents: list[tuple[str, str]], out: Path, order: int, asked: dict) -> dict:
    """Compressors and n-gram on these documents, computed once."""
    file = out / "baselines.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("asked") != asked:
        kept = {"asked": asked}
    tokenizer = tokenizers.Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    eos = tokenizer.token_to_id("<eos>")

    def keep() -> None:
        out.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(kept))
        aside.replace(file)

    if "ngram" not in kept:
        kept["ngram"] = [asdict(c) for c in ngram(corpus, documents, tokenizer, eos, order)]
        keep()
    if "overlap" not in kept:
        kept["overlap"] = overlaps(corpus, documents, tokenizer)
        keep()
    compressors(corpus, documents, tokenizer, eos, kept.setdefault("compressors", {}), keep)
    return kept


def paired(ours: list[DocumentBits], theirs: list[DocumentBits], resamples: int = 2000) -> tuple[float, float, float]:
    """(ratio of mean bits per byte, low, high): documents resampled within domains, the same ones for both."""
    rng = np.random.default_rng(0)
    sums = np.zeros((2, resamples))
    domains = sorted({c.domain for c in ours})
    for domain in domains:
        rows = [i for i, c in enumerate(ours) if c.domain == domain]
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
        sizes = weights @ np.array([ours[i].bytes for i in rows])
        for who, costs in enumerate((ours, theirs)):
            sums[who] += weights @ np.array([costs[i].bits for i in rows]) / sizes / len(domains)
    ratio = mean_bits_per_byte(by_domain(ours)) / mean_bits_per_byte(by_domain(theirs))
    return ratio, *np.quantile(sums[0] / sums[1], [0.025, 0.975])


def print_table(columns: dict[str, dict[str, float]]) -> None:
    domains = list(next(iter(columns.values())))
    print("\nbits per byte".ljust(15) + "".join(name.rjust(18) for name in columns))
    for domain in domains:
        print(domain.ljust(14) + "".join(f"{column[domain]:18.3f}" for column in columns.values()))
    means = [sum(column[d] for d in domains) / len(domains) for column in columns.values()]
    print("mean".ljust(14) + "".join(f"{m:18.3f}" for m in means))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--model", help="checkpoint folder; without it only the baselines are computed")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--per-domain", type=int, default=60)
    parser.add_argument("--order", type=int, default=5)
    args = parser.parse_args(arguments)
    documents = read_held_out(args.corpus, args.per_domain)
    asked = {"corpus": str(args.corpus), "per_domain": args.per_domain, "order": args.order, "documents": len(documents)}
    kept = baselines(args.corpus, documents, args.out, args.order, asked)
    columns = {f"{args.order}-gram": [DocumentBits(**row) for row in kept["ngram"]]}
    if args.model:
        from scope.models.load import load_model

        costs = evaluate_text(load_model(args.model), documents)
        (args.out / "model.json").write_text(json.dumps({"model": args.model, "costs": [asdict(c) for c in costs]}))
        columns = {"model": costs} | columns
    everything = [True] * len(documents)
    print(f"\nAll {len(documents)} documents")
    compare(columns, everything, kept["compressors"])
    fresh = [share <= 0.5 for share in kept["overlap"]]
    print(f"\nThe {sum(fresh)} documents of which at most half stands in the training set")
    compare(columns, fresh, {})


def compare(columns: dict[str, list[DocumentBits]], chosen: list[bool], others: dict[str, dict[str, float]]) -> None:
    """Print the table over the chosen documents, and the model's ratio to the n-gram with its interval."""
    costs = {name: [c for c, yes in zip(column, chosen, strict=True) if yes] for name, column in columns.items()}
    print_table({name: {d: s.bits_per_byte for d, s in by_domain(column).items()} for name, column in costs.items()} | others)
    if len(costs) == 2:
        ours, theirs = costs.values()
        ratio, low, high = paired(ours, theirs)
        bars = by_domain(theirs)
        won = sum(score.bits_per_byte < bars[d].bits_per_byte for d, score in by_domain(ours).items())
        print(f"model over n-gram: {ratio:.3f} (95 %: {low:.3f} to {high:.3f}); lower in {won} of {len(bars)} domains")


if __name__ == "__main__":
    main()
