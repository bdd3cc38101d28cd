"""`scope COMMAND`: finds the command's file, parses its flags, runs it, and turns refusals into a message and exit code 2.

Nothing heavy is imported before a command is chosen, so that `scope --help` answers at once.
"""

import difflib
import errno
import importlib
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

_COURTESY = 3.0  # seconds in which the first process may say the same, and torchrun end all the others

COMMANDS = {
    "demo": "The whole way on the bundled model: harvest, train, evaluate, collect features, steer, open the app.",
    "info": "What is this folder or file, and what to do with it next.",
    "list": "What lies in runs/ or another folder, or which SAEs are published: scope list releases.",
    "harvest": "Record activations of a model on a corpus into HDF5 shards.",
    "recording": "Show, verify, repair or convert a recording.",
    "train": "Train sparse dictionaries on a recording, or straight from a running model.",
    "runs": "Compare trainings: finished, running, stopped.",
    "evaluate": "Score a dictionary beside its nulls.",
    "convert": "Write a dictionary in another format: SAELens, Gemma Scope, or this project's.",
    "features": "Collect everything the browser shows about each latent into a pack.",
    "map": "Lay a pack's directions out on a flat map.",
    "label": "Have a language model say what latents mean, each label tested on unseen text; or import published labels.",
    "export": "Write latents as tables, JSON, cards, or for Neuronpedia and SAEDashboard.",
    "match": "Find for each latent of an SAE the latent of another that does the same, in the same or another model.",
    "lookahead": "Find latents of an infilling model that fire in the middle because of the suffix.",
    "diff": "What did fine-tuning move? A model and its fine-tune by weights, activations and latents.",
    "app": "Open the feature browser.",
    "steer": "Generate with a feature pushed up or down, beside plain text and a random direction.",
    "attribute": "Which latents make the model say one token rather than another.",
    "modalities": "Does a latent of a SigLIP mean a word in pictures and in texts alike?",
    "memory": "What a recurrent model remembers of a text: its state as a sum over tokens.",
    "moderate": "How likely texts violate a policy, by a ShieldGemma, and which latents make it say so.",
    "monitor": "Fit an alarm on a model's activations to labelled texts, score texts with it, hand it over.",
    "datacommons": "Ask a model that asks Data Commons for numbers, or serve a table as Data Commons does.",
    "pages": "Search pages of pictures and PDFs with a ColPali, and say which latents found them.",
    "pretrain": "Train a small Gemma from nothing, as the bundled one was made.",
}


def main(argv: list[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Exit code: 0 done, 1 what was asked does not hold (a replay whose texts differ), 2 refused, 130 stopped with Ctrl-C."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        import scope

        print(f"scope {scope.__version__}")
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold bytes that are no UTF-8, and a terminal may speak ASCII
            stream.reconfigure(errors="backslashreplace")
    name, *rest = argv
    name = _ALIASES.get(name, name)
    if name not in COMMANDS:
        print(f"scope has no command {name!r}.{_nearest(name)}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        with _warnings_as_notes():
            code = _parse(name, _current(rest))()
    except KeyboardInterrupt:
        if _speaks():
            print("\nStopped. What was finished is kept; the same command continues from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as with `| head`
        return 0
    except Exception as error:
        message = _refusal(error)
        if message is None:
            raise
        if not _speaks():
            time.sleep(_COURTESY)
            name = f"{name} (rank {os.environ['RANK']})"
        print(f"scope {name}: {message}", file=sys.stderr)
        return 2
    return code or 0


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Within the block, our own warnings are a line on stderr, without the source line that gave them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.startswith("scope."):
                print(f"note: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = note
        yield


def _speaks() -> bool:
    """Whether this is the only process or, under torchrun, the first."""
    return os.environ.get("RANK", "0") == "0"


_ALIASES = {"labels": "label"}
"""Another spelling of a command, which runs it: scope labels import."""

_PARTS = {("label", "import"): "import_labels"}
"""A command of two words -> its file."""

_OTHER_WORDS = {
    "record": "harvest",
    "collect": "features",
    "browse": "app",
    "open": "app",
    "ui": "app",
    "generate": "steer",
    "eval": "evaluate",
    "ls": "list",
    "show": "info",
    "status": "runs",
    "explain": "attribute",
}
"""What people type -> the command that does it."""


def _nearest(name: str) -> str:
    """ " Did you mean ...?" with the command that is most like a name, or ""."""
    meant = _OTHER_WORDS.get(name) or next(iter(difflib.get_close_matches(name, COMMANDS, 1)), None)
    if meant is None and (os.sep in name or os.path.exists(name)):
        meant = f"info {name}"
    return f" Did you mean {meant}?" if meant else ""


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: scope COMMAND [flags]\n\nSee what a Gemma is thinking: record activations, train sparse dictionaries,\n"
        f"browse their features, steer generations.\n\n{rows}\n\n`scope COMMAND --help` explains a command's flags."
    )


def _parse(name: str, argv: list[str]):
    from scope.cli.freed_memory import keep_freed_memory

    keep_freed_memory()
    import tyro

    from scope.cli.flags import PARSERS

    file, name = name, f"scope {name}"
    if (file, *argv[:1]) in _PARTS:
        file, name, argv = _PARTS[file, argv[0]], f"{name} {argv[0]}", argv[1:]
    module = importlib.import_module(f"scope.cli.{file}")
    form = module.flags(argv) if hasattr(module, "flags") else module.Command
    try:
        given = tyro.cli(form, prog=name, args=argv, registry=PARSERS)
    except SystemExit as refused:
        if refused.code == 2:
            with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):
                tyro.cli(form, prog=name, args=["--help"], registry=PARSERS)
            _hint_at_flags(argv, text.getvalue())
        raise
    return lambda: _announce(given) or (module.run(given) if hasattr(module, "flags") else given.run())


_OTHER_FLAGS = {
    "--tokens": ("--contexts", "--max-new-tokens"),
    "--n-tokens": ("--tokens", "--contexts"),
    "--training-tokens": ("--tokens", "--steps"),
    "--max-tokens": ("--max-new-tokens", "--tokens"),
    "--layer": ("--site", "--sites"),
    "--layers": ("--sites", "--site"),
    "--hook-name": ("--site", "--sites"),
    "--hook-point": ("--site", "--sites"),
    "--l0": ("--target-l0",),
    "--l1": ("--l0-weight",),
    "--l1-coefficient": ("--l0-weight",),
    "--sparsity": ("--target-l0",),
    "--learning-rate": ("--lr",),
    "--epochs": ("--steps",),
    "--batch": ("--batch-size", "--batch-contexts"),
    "--width": ("--d-sae",),
    "--dict-size": ("--d-sae",),
    "--expansion-factor": ("--d-sae",),
    "--activation": ("--kind",),
    "--architecture": ("--kind",),
    "--alpha": ("--strength",),
    "--coefficient": ("--strength",),
    "--multiplier": ("--strength",),
    "--scale": ("--strength",),
    "--feature": ("--latent",),
    "--features": ("--latent", "--latents"),
    "--latents": ("--latent",),
    "--dictionary": ("--sae",),
    "--dataset": ("--corpus",),
    "--data": ("--corpus", "--recording"),
    "--text": ("--prompt", "--corpus"),
    "--ctx-len": ("--context",),
    "--seq-len": ("--context",),
    "--context-size": ("--context",),
    "--n-ctx": ("--context",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--save-path": ("--out",),
}
"""A flag that other tools have -> ours for the same thing, the likeliest first."""


def _hint_at_flags(argv: list[str], flags: str) -> None:
    """Name on stderr the flag of a command, whose help is `flags`, for each that was written in the words of another tool."""
    known = set(re.findall(r"--[a-z0-9-]+", flags))
    for flag in dict.fromkeys(arg.partition("=")[0] for arg in argv):
        ours = next((other for other in _OTHER_FLAGS.get(flag, ()) if other in known), None)
        if ours and flag not in known:
            print(f"Here, give {ours} instead of {flag}.", file=sys.stderr)


def _announce(settings: Any) -> None:
    """Say on stderr, before anything else, which model runs where and in which precision.

    Raises:
        ConfigError: a device that is not there, or an unknown precision.
    """
    if hasattr(settings, "device") and _speaks():
        from scope.workflows.settings import in_words

        print(in_words(settings), file=sys.stderr)


def _current(argv: list[str]) -> list[str]:
    """The flags under today's names; an old one is named on stderr."""
    from scope.renamed import FLAGS

    flags = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        if flag in FLAGS:
            print(f"note: {flag} is now {FLAGS[flag]}; the old name goes with the next version.", file=sys.stderr)
        flags.append(FLAGS.get(flag, flag) + equals + value)
    return flags


def _refusal(error: Exception) -> str | None:
    """The message for the person, or None where it is our own fault and the traceback should show."""
    from scope.errors import ScopeError

    if isinstance(error, ScopeError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"The disk is full ({error}). What was finished is kept: free some space and give the same command again."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"This place cannot be written or read: {error}. Give another --out, or change its permissions."
        if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
            return f"{error.filename} is in the way: there is a file where a folder is needed. Give another path."
        if isinstance(error, IsADirectoryError) and error.filename:
            return f"{error.filename} is a folder, and a file is needed. Give another path."
    return None


if __name__ == "__main__":
    main()
