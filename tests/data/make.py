"""Makes small artefacts of every kind with the installed version of scope, for later versions to open and to go on with.

    python tests/data/make.py tests/data/version_X_Y_Z

Run by the Python of a virtual environment into which the version in question is installed; README.md says which one that was.
Almost all is made as a user of that version makes it, by commands. Some of them are killed on the way (`kill -9`), and
`expected.json` holds the hashes to which that same version takes what they left.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

SITE, OTHER = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
PROMPTS = ["I had been", "the house"]

MODEL = "--d-model 32 --n-layers 3 --n-heads 2 --n-kv-heads 1 --d-head 12 --d-mlp 48 --n-ctx 64 --window 16"
PRETRAIN = "pretrain --corpus text.jsonl --corpus-folder corpus --d-vocab 368 --batch 8 --warmup 5"
HARVEST = f"harvest --model model --corpus text.jsonl --site {SITE} --context 32"
TRAIN = f"train recording --site {SITE} --batch-size 64 --d-sae 48 --log-every 20"
PACK = (
    "features dictionary --model model --recording recording --chunk-tokens 256 --score-prompts 2 --score-null 4 --tokens 800"
    " --sizes.top 3 --sizes.bands 2 --sizes.per-band 1 --sizes.random 2 --sizes.near 2 --sizes.window 6 --sizes.tokens 4"
    " --sizes.cofiring 3 --sizes.controls 16"
)
STEER = "steer --sae dictionary --model model --pack pack --max-new-tokens 8 --latent 3"

INTERRUPTED = {
    "recording_interrupted": (
        f"{HARVEST} --tokens 2000 --shard-rows 256 --out recording_interrupted",
        "recording_interrupted/shard*1*.h5",
    ),
    "training_interrupted": (
        f"{TRAIN} --target-l0 4 --revive-after 2000 --steps 300 --save-every 20 --out training_interrupted",
        "training_interrupted/checkpoint.safetensors",
    ),
    "sweep_interrupted": (
        f"{TRAIN} --kind batch_topk --k 2,4 --steps 200 --save-every 20 --out sweep_interrupted",
        "sweep_interrupted/**/checkpoint.safetensors",
    ),
    "pack_interrupted": (f"{PACK} --out pack_interrupted", "*pack_interrupted*/*2*"),
    "pretrain_interrupted": (
        f"{PRETRAIN} --d-model 16 --n-layers 2 --n-heads 2 --n-kv-heads 1 --d-head 6 --d-mlp 24 --n-ctx 24 --window 8"
        " --steps 60 --save-every 10 --out pretrain_interrupted",
        "pretrain_interrupted/checkpoint.pt",
    ),
}
"""folder -> (the command that makes it, the file at which it is killed)."""

DICTIONARIES = ("dictionary", "topk", "batch_topk", "gated", "transcoder", "sae_lens", "gemma_scope")


def scope(command: str, *more: str) -> None:
    print("scope", command, *more, flush=True)
    subprocess.run([sys.executable, "-m", "scope.cli", *command.split(), *more], check=True, stdout=subprocess.DEVNULL)


def interrupt(command: str, at: str) -> None:
    """Kill a command as soon as the file is there."""
    print("kill -9 of: scope", command, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "scope.cli", *command.split()], stdout=subprocess.DEVNULL)
    while not list(Path().glob(at)):
        if process.poll() is not None:
            raise SystemExit(f"It ended before there was {at}.")
        time.sleep(0.0005)
    process.kill()
    process.wait()


def rounding() -> str:
    """A hash of sums and functions that processors round differently: where it is the same, so must everything here be."""
    import torch

    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, width, columns in ((64, 32, 48), (64, 48, 32), (8, 32, 384), (512, 32, 32)):
        a, b = torch.randn(rows, width, generator=generator), torch.randn(width, columns, generator=generator)
        found += [a @ b, a.exp().sum(1), a.softmax(1), a.square().mean(1).rsqrt(), torch.nn.functional.gelu(a @ b), a.T @ a]
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in found)).hexdigest()


def outputs(dictionary: str) -> dict:
    """For the rows of a fixed matrix: which latents are active, and the output."""
    import torch

    import scope

    sae = scope.load_sae(dictionary)
    x = 2 * torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return {"active": [row.nonzero()[:, 0].tolist() for row in sae.encode(x)], "output": sae(x).tolist()}


def hashes(folder: Path, ending: str) -> dict[str, str]:
    """File -> SHA-256, of the files of a folder with that ending."""
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob(f"*{ending}"))}


def text() -> None:
    """The beginnings of some texts that the bundled model wrote."""
    from activations.corpus import open_corpus  # where 0.1.0 has it

    written = (d.text for d in open_corpus("bundled").documents(0) if d.name.startswith("written"))
    Path("text.jsonl").write_text("".join(json.dumps({"text": next(written)[:400]}) + "\n" for _ in range(80)))


def make() -> None:
    """Everything, in the folder of the process."""
    text()
    scope(f"{PRETRAIN} {MODEL} --steps 200 --out pretraining")
    shutil.move("pretraining/model", "model")
    shutil.rmtree("pretraining")
    scope(f"{HARVEST} --site {OTHER} --tokens 900 --out recording")
    scope(f"{TRAIN} --target-l0 6 --steps 1500 --out dictionary")
    for kind, flags in {"topk": "--k 4", "batch_topk": "--k 4", "gated": "--target-l0 4"}.items():
        scope(f"{TRAIN} --kind {kind} {flags} --steps 60 --out {kind}")
        (Path(kind) / "checkpoint.safetensors").unlink(missing_ok=True)
    for name in ("sae_lens", "gemma_scope"):
        scope(f"convert dictionary {name} --to {name}")
    subprocess.run([sys.executable, "-c", TRANSCODER], check=True)
    scope("evaluate dictionary --model model --recording recording --contexts 12 --resamples 40")
    scope(f"{PACK} --out pack")
    subprocess.run([sys.executable, "-c", NOTES], check=True)
    scope("label pack --with tokens --no-test")
    for flags in ("--strength 0.8 --n 2", "--sweep 0.4 0.8 --arms plain steered random"):
        scope(f"{STEER} {flags} --json run.json", "--prompt", *PROMPTS)
        name = hashlib.sha256(Path("run.json").read_bytes()).hexdigest()[:12]  # as the app keeps them
        Path("pack.steering").mkdir(exist_ok=True)
        Path("run.json").rename(f"pack.steering/{name}.json")
    for form in ("json", "csv"):
        scope(f"export pack --to {form} --out export.{form} --latents 0-3")
    for command, at in INTERRUPTED.values():
        interrupt(command, at)
    Path("flags.json").write_text(json.dumps({command: flags(command) for command in COMMANDS}, indent=1) + "\n")
    Path("expected.json").write_text(json.dumps(expected(), indent=1) + "\n")


COMMANDS = "harvest recording train runs evaluate convert features map label export app steer attribute pretrain demo".split()


def flags(command: str) -> list[str]:
    """The flags that the help of a command lists."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    process = [sys.executable, "-m", "scope.cli", command, "--help"]
    text = subprocess.run(process, check=True, capture_output=True, text=True, env=environment).stdout
    return sorted({flag for line in text.splitlines() for flag in re.findall(r"(?:^[│ ]+|, )(--[a-z0-9.-]+)", line)})


def expected() -> dict:
    """What this version makes of what was left unfinished. The folder is as before afterwards."""
    work, before = Path.cwd(), Path.cwd().with_name("before")
    shutil.copytree(work, before)
    commands = {name: command for name, (command, _) in INTERRUPTED.items()}
    commands["recording"] = f"{HARVEST} --site {OTHER} --tokens 1300 --out recording"
    for name, command in commands.items():
        if name != "pack_interrupted":  # comes to what the whole pack holds
            scope(command)
    found = {
        "scope": version("scope-workbench"),
        "torch": version("torch"),
        "rounding": rounding(),
        "outputs": {name: outputs(name) for name in DICTIONARIES},
        "commands": commands,
        "files": {name: hashes(Path(name), ENDINGS.get(name, "sae_weights.safetensors")) for name in commands},
    }
    os.chdir(before)
    shutil.rmtree(work)
    before.rename(work)
    return found


ENDINGS = {"recording": ".h5", "recording_interrupted": ".h5", "pretrain_interrupted": "model.safetensors"}
"""The files that `expected.json` holds the hashes of, where these are not an SAE's weights."""
NOTES = """
from scope import FeatureStore  # the name of 0.1.0
notes = FeatureStore.open("pack").notes
notes.set_label(5, "things that float", "you")
notes.set_note(5, "seen beside rivers")
notes.set_star(5, True)
notes.set_star(2, True)
notes.add_to_list("water", [5, 7])
notes.add_guess(5, 3, 4)
"""
TRANSCODER = f"""
import torch
from scope.sae.files import save_sae
from scope.sae.kinds import make_sae
from scope.sae.transcoder import TranscoderConfig
torch.manual_seed(0)
sae = make_sae(TranscoderConfig(d_in=32, d_sae=40, site_out={OTHER!r}), "blocks.1.ln2.hook_normalized")
for p in sae.parameters():
    torch.nn.init.normal_(p, std=0.2)
save_sae(sae, "transcoder")
"""

if __name__ == "__main__":
    out = Path(sys.argv[1]).absolute()
    work = Path("/tmp/scope") / out.name  # models are recorded with their whole paths; this one says nothing of the machine
    work.mkdir(parents=True)
    os.chdir(work)
    make()
    shutil.copytree(work, out, dirs_exist_ok=True)
    shutil.rmtree(work)
