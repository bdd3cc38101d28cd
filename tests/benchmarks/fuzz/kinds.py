"""Kinds of artefacts: which files are damaged, how the artefact is then used, and which of its files have checksums."""

import contextlib
import gzip
import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("make", TESTS / "data" / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


class Refused(Exception):
    """A command answered with a message and exit code 1 or 2."""


@dataclass(frozen=True)
class Kind:
    """`files` are globs of what is damaged, `use` returns a digest of all that a user would see of it."""

    files: tuple[str, ...]
    use: Callable[[Path], str]
    sealed: Callable[[Path], bool] = lambda file: False


def command(line: str) -> str:
    """What a command prints.

    Raises:
        Refused: it refused, or said that something is wrong.
    """
    from scope.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(line.split())
    if code:
        raise Refused(err.getvalue().strip() or out.getvalue().strip())
    return out.getvalue()


def digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode(errors="surrogatepass")).hexdigest()


def _hashes(folder: str, ending: str) -> str:
    return digest(make.hashes(Path(folder), ending))


def _model(file: Path) -> str:
    import torch

    import scope

    model = scope.load_model(str(file.parent))
    with torch.no_grad():
        logits = model(torch.tensor([[2, 30, 31, 32]]))
    turns = model.words.chat([{"role": "user", "content": "I had"}]) if model.words.chat_template else ""
    return digest(
        turns, logits.tolist(), model.to_tokens("I had been").tolist(), model.generate("I had", max_new_tokens=3, seed=0)
    )


def _dictionary(file: Path) -> str:
    return digest(make.outputs(file.parts[0]))


def _recording(file: Path) -> str:
    from scope.activations.errors import HolesWarning
    from scope.activations.read.store import ActivationStore

    command(f"recording show {file.parts[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", HolesWarning)
        try:
            store = ActivationStore.open(file.parts[0])
        except HolesWarning as said:
            raise Refused(str(said)) from None
    rows = [digest(store.raw(site, 0, len(store)).tolist()) for site in store.sites]
    rows += [digest(next(iter(store.shuffled(site, 128, 0))).tolist()) for site in store.sites]
    command(f"recording verify {file.parts[0]}")
    return digest(rows, store.token_ids.tolist(), store.document_names)


def _resumed_recording(file: Path) -> str:
    command(f"{make.HARVEST} --tokens 2000 --shard-rows 256 --out recording_interrupted")
    command("recording verify recording_interrupted")
    return _hashes("recording_interrupted", ".h5")


def _resumed_training(file: Path) -> str:
    command(TRAINING)
    return _hashes("training_interrupted", "sae_weights.safetensors")


def _training(file: Path) -> str:
    command("runs . --json")
    import scope

    sae = scope.load_sae("dictionary", model=scope.load_model("model"))
    return digest(sae.provenance.get("site"), _dictionary(file))


def _pack(file: Path) -> str:
    import scope

    command("export pack --to csv --out export.csv")
    command("export pack --to json --out export.json --latents 0-5")
    pack = scope.Pack.open("pack")
    shown = [
        (f.label, repr(f), f.examples("top", n=2), f.cofiring if hasattr(f, "cofiring") else 0) for f in (pack[3], pack[7])
    ]
    found = (pack.find("the").to_csv(), pack.promotes("the").to_csv(), pack.health, pack.map.tolist())
    return digest(Path("export.csv").read_text(), Path("export.json").read_text(), shown, found)


def _sealed_pack(file: Path) -> bool:
    return file.name in json.loads((Path("pack") / "manifest.json").read_text())["files"]


def _notes(file: Path) -> str:
    import scope

    notes = scope.Pack.open("pack").notes
    before = (notes.starred(), notes.note(5), notes.lists(), notes.guessed(5), notes.label(5) if hasattr(notes, "label") else 0)
    notes.set_star(9, True)
    return digest(before, notes.starred())


def _run(file: Path) -> str:
    from scope.steering.compare.saved_runs import read_saved
    from scope.steering.export.page import as_page
    from scope.steering.export.script import as_notebook, as_python

    saved = read_saved(file)
    runs = getattr(saved, "runs", [saved])
    programs = [as_python(run, ["dictionary"]) + as_notebook(run, ["dictionary"]) for run in runs]
    for run in runs:
        compile(as_python(run, ["dictionary"]), "run.py", "exec")
    return digest(as_page(saved), saved.texts() if len(runs) == 1 else saved.to_frame().to_csv(), programs)


def _corpus(file: Path) -> str:
    out = Path("recorded")
    if out.exists():
        shutil.rmtree(out)
    source = file if file.parent.name == "texts" else file.parent
    command(f"harvest --model model --corpus {source} --site {make.SITE} --context 32 --tokens 300 --out {out}")
    return _hashes("recorded", ".h5")


TRAINING = f"{make.TRAIN} --target-l0 4 --revive-after 2000 --steps 40 --save-every 10 --out training_interrupted"

KINDS = {
    "checkpoints": Kind(("model/*", "sharded/*"), _model),
    "dictionaries": Kind(tuple(f"{name}/*" for name in make.DICTIONARIES), _dictionary),
    "recordings": Kind(("recording/*",), _recording, lambda file: file.suffix in (".h5", ".json", ".jsonl")),
    "unfinished recordings": Kind(
        ("recording_interrupted/*",), _resumed_recording, lambda file: file.suffix in (".h5", ".json", ".jsonl")
    ),
    "unfinished trainings": Kind(
        ("training_interrupted/*",), _resumed_training, lambda file: file.name == "checkpoint.safetensors"
    ),
    "finished trainings": Kind(("dictionary/*.json*",), _training),
    "packs": Kind(("pack/*",), _pack, _sealed_pack),
    "notes": Kind(("pack.notes*/*", "pack/notes*", "pack.notes*"), _notes),
    "steering runs": Kind(("pack.steering/*",), _run, lambda file: not file.name.startswith("sent-")),
    "corpora": Kind(("texts/*", "saved/*"), _corpus),
}


def build(folder: Path) -> None:
    """Small artefacts of every kind, made by the commands of this version, in the current folder `folder`."""
    data = TESTS / "data" / "version_0_1_0"
    shutil.copytree(data / "model", folder / "model")
    shutil.copyfile(data / "text.jsonl", folder / "text.jsonl")
    steps = [
        f"{make.HARVEST} --site {make.OTHER} --tokens 900 --shard-rows 256 --out recording",
        f"{make.TRAIN} --target-l0 6 --steps 150 --out dictionary",
        *(f"{make.TRAIN} --kind {kind} {flags} --steps 30 --out {kind}" for kind, flags in _OTHER_KINDS.items()),
        "convert dictionary sae_lens --to sae_lens",
        "convert dictionary gemma_scope --to gemma_scope",
        "evaluate dictionary --model model --recording recording --contexts 4 --resamples 4",
        f"{make.PACK} --out pack",
        "label pack --with tokens --no-test",
    ]
    for step in steps:
        print("scope", step, flush=True)
        command(step)
    for code in (make.TRANSCODER, make.NOTES.replace("FeatureStore", "Pack")):
        subprocess.run([sys.executable, "-c", code], check=True)
    for flags in ("--strength 0.8 --n 2", "--sweep 0.4 0.8"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "scope.cli",
                *make.STEER.split(),
                *flags.split(),
                "--json",
                "run.json",
                "--prompt",
                *make.PROMPTS,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (folder / "pack.steering").mkdir(exist_ok=True)
        name = hashlib.sha256(Path("run.json").read_bytes()).hexdigest()[:12]
        shutil.copyfile("run.json", f"pack.steering/sent-{name}.json")  # a name that is no hash, so that nothing seals it
        Path("run.json").rename(f"pack.steering/{name}.json")
    make.interrupt(*make.INTERRUPTED["recording_interrupted"])
    make.interrupt(TRAINING, "training_interrupted/checkpoint.safetensors")
    _shard_model()
    _corpora()


_OTHER_KINDS = {"topk": "--k 4", "batch_topk": "--k 4", "gated": "--target-l0 4"}


def _shard_model() -> None:
    """The model once more, in two shards with an index, generation settings and a chat template."""
    from safetensors.torch import load_file, save_file

    shutil.copytree("model", "sharded")
    tensors = load_file("sharded/model.safetensors")
    Path("sharded/model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, f"sharded/{file}", {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    Path("sharded/model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    Path("sharded/generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "do_sample": True}))
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    Path("sharded/tokenizer_config.json").write_text(json.dumps({"chat_template": template, "bos_token": "<bos>"}))


def _corpora() -> None:
    """The texts in every layout that people have."""
    import datasets
    import pandas as pd
    import zstandard

    texts = [json.loads(line)["text"] for line in Path("text.jsonl").read_text().splitlines()]
    folder, lines = Path("texts"), Path("text.jsonl").read_bytes()
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(texts))
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    (folder / "a.json").write_text(json.dumps([{"text": t} for t in texts]))
    (folder / "chat.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": t}]}) + "\n" for t in texts)
    )
    pd.DataFrame({"text": texts}).to_csv(folder / "a.csv")
    pd.DataFrame({"text": texts}).to_parquet(folder / "a.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk("saved")
