"""What a recording lacks where `scope recording repair` moved shards aside, and how the rest is numbered."""

from pathlib import Path


def without_holes(journal: list[dict]) -> tuple[list[dict], list[dict]]:
    """Entries of the shards that are there, numbered without holes, and what the others held.

    An entry that was renumbered keeps its numbers in the whole recording under "whole".
    """
    if not any("quarantined" in entry for entry in journal):
        return journal, []
    kept, left_out, row, context = [], [], 0, 0
    for entry in journal:
        whole = {"rows": entry["rows"], "contexts": entry["contexts"]}
        if "quarantined" in entry:
            left_out.append({"shard": entry["shard"], **whole, "why": entry["quarantined"]["why"]})
            continue
        rows, contexts = (entry[key][1] - entry[key][0] for key in ("rows", "contexts"))
        kept.append(entry | {"rows": [row, row + rows], "contexts": [context, context + contexts], "whole": whole})
        row, context = row + rows, context + contexts
    return kept, left_out


def told(folder: Path, left_out: list[dict], n_rows: int) -> str:
    """What is left out of a recording of which `n_rows` rows are there, in words; empty for a whole one."""
    if not left_out:
        return ""
    rows = sum(hole["rows"][1] - hole["rows"][0] for hole in left_out)
    shards = ", ".join(str(hole["shard"]) for hole in left_out)
    noun, was, is_, it = ("shard", "was", "is", "it") if len(left_out) == 1 else ("shards", "were", "are", "them")
    return (
        f"{folder} is read without {rows:,} of {n_rows + rows:,} rows: {noun} {shards} {was} damaged and {is_} in quarantine. "
        f"The same `scope harvest` as before makes {it} again."
    )
