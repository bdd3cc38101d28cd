"""Fetches files of a repository of the Hugging Face hub, or of a mirror that HF_ENDPOINT names, into the hub's cache."""

import errno
import os
from collections.abc import Collection
from pathlib import Path

from scope.errors import ScopeError
from scope.progress import size as in_words


def fetch(
    repo: str,
    files: Collection[str],
    error: type[ScopeError],
    way_out: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    size: int | None = None,
) -> Path:
    """The folder of the repository in the hub's cache, with those of `files` (names or patterns) that it has.

    A download that breaks off is taken up from what came, five times. Where the hub cannot be reached, what was fetched before
    is given.
    `name` is what was asked for, if that is not the repository itself; `size` is that of the files in bytes, where it is known.

    Raises:
        error: whatever the hub, or the way to it, answers but the files; with what would have been fetched, and `way_out`.
        OSError: the disk is full.
    """
    from huggingface_hub import constants, is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = name or repo
    hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if not hub.startswith(("https://", "http://")):
        raise error(f"HF_ENDPOINT is {hub!r}, which is no address. Give it in full, such as https://{hub}.")
    would = "" if name == repo else f"\n  To be fetched: {name} of {hub}{f', {in_words(size)}' if size else ''}, once."
    nothing = f"There is no folder {name} here"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files), endpoint=hub))
    except GatedRepoError:
        raise error(f"{repo} is gated: accept its licence on {hub}/{repo}, then run `hf auth login` or set HF_TOKEN.") from None
    except RevisionNotFoundError:
        raise error(f"{repo} has no branch, tag or commit {revision!r} on {hub}.") from None
    except RepositoryNotFoundError:
        raise error(f"{nothing}, and no such repository on {hub}, or it is private and HF_TOKEN is not set.") from None
    except HFValidationError as problem:
        raise error(f"{nothing}, and the hub takes no such name: {problem}") from None
    except Exception as problem:  # of the hub, of what it sends requests with, of the system
        absent = isinstance(problem, OfflineModeIsEnabled | LocalEntryNotFoundError)
        answered = absent and isinstance(problem.__cause__, HfHubHTTPError)
        if absent and is_offline_mode():
            raise error(
                f"{name} is no folder here, was not fetched before, and the hub is switched off (HF_HUB_OFFLINE).{would}\n"
                f"  Unset HF_HUB_OFFLINE to fetch it, or {way_out}."
            ) from None
        if absent and not answered:
            raise error(
                f"{name} is no folder here, and {hub} cannot be reached.{would}\n"
                f"  Check the network (HF_ENDPOINT names a mirror), or {way_out}."
            ) from None
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        problem = problem.__cause__ if answered else problem
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        late = "timed out" in reason or "Timeout" in type(problem).__name__
        raise error(
            f"{nothing}, and it cannot be fetched from {hub}: {reason}{would}\n"
            "  Where the network broke off, give the same command again: files that came whole are not fetched twice."
            f"{' A slow hub gets more time with HF_HUB_DOWNLOAD_TIMEOUT=60.' if late else ''}\n"
            f"  Or check the network (HF_ENDPOINT names a mirror), or {way_out}."
        ) from None
