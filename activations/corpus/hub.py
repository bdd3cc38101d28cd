"""Streams documents from a data set on the Hugging Face hub."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from scope.activations.corpus.document import Document
from scope.activations.corpus.layouts import RecordFields, document_of
from scope.activations.errors import CorpusError

from scope.typed_json import LARGEST


def open_hub(spec: str, field: str | RecordFields) -> tuple[dict, Callable[[], Iterator[Document]]]:
    """(identity, documents) of owner/name, owner/name:split or owner/name:config:split at its current commit.

    Raises:
        CorpusError: `datasets` is not installed, or the hub refuses the data set; the message says why.
    """
    try:
        from datasets import load_dataset
        from huggingface_hub import dataset_info
    except ImportError:
        raise CorpusError(f"{spec} is no file, and reading it from the hub needs: pip install datasets") from None
    name, *rest = spec.split(":")
    if len(rest) > 2 or not all(rest):
        raise CorpusError(f"{spec} cannot be read as owner/name, owner/name:split or owner/name:config:split.")
    config, split = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    try:
        revision = dataset_info(name).sha
        stream = load_dataset(name, config, split=split, revision=revision, streaming=True)
        features = getattr(stream, "features", None) or {}
        images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
        for column in images:  # its file as it is; pictures are decoded by one rule, elsewhere
            stream = stream.cast_column(column, type(features[column])(decode=False))
    except Exception as error:  # the hub raises many kinds of errors
        raise CorpusError(f"{spec} is no file here, and the hub does not give it: {_why(error, name)}") from None

    def source() -> Iterator[Document]:
        records = iter(stream)
        for number in itertools.count():
            try:
                record = _with_bytes(next(records), images)
            except StopIteration:
                return
            except Exception as error:  # broken connection, damaged file
                raise CorpusError(
                    f"{spec} broke off at record {number:,}: {_why(error, name)}\n  What is recorded is kept; try again later."
                ) from None
            yield replace(document_of(record, field, f"{spec}, record {number}", ""), name=f"{name}:{number}")

    identity = {"kind": "hub", "name": name, "split": split, "revision": revision}
    identity |= {"field": field} if isinstance(field, str) else field.identity
    return identity | ({"config": config} if config else {}), source


def _with_bytes(record: dict[str, Any], images: list[str]) -> dict[str, Any]:
    """A record whose pictures are files of the data set's repository, with their bytes."""
    from datasets.download.streaming_download_manager import xopen

    for column in images:
        picture = record[column] or {}
        if picture.get("bytes") is None and picture.get("path"):
            with xopen(picture["path"], "rb") as file:
                record = record | {column: picture | {"bytes": file.read(LARGEST)}}
    return record


def _why(error: Exception, name: str) -> str:
    """The message of the hub or the network, and the way out where it is known."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    message = " ".join((str(error).strip() or type(error).__name__).split())
    message = message if len(message) <= 300 else message[:297] + "..."
    if isinstance(error, GatedRepoError):
        return f"{name} is gated. Accept its terms at https://huggingface.co/datasets/{name}, then: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no data set {name}, or it is private and you are not logged in (hf auth login)."
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not hub.startswith(("https://", "http://")):
        return f"HF_ENDPOINT is {hub!r}, which is no address. Give it in full, such as https://{hub}."
    if isinstance(error, OfflineModeIsEnabled):
        way_out = "Unset HF_HUB_OFFLINE. Without a network: a file, a folder, docs, or bundled."
        return f"{name} was not fetched before, and the hub is switched off.\n  {way_out}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or kinds & {"ConnectError", "TransportError"}:
        return f"the hub cannot be reached ({message}).\n  Without a network: a file, a folder, docs, or bundled."
    return message
