"""The runbooks name what an operator really meets: metrics that exist, words that the worker really says, pages that are there."""

from __future__ import annotations

import pathlib
import re

import pytest

from fleet_worker import metrics

ROOT = pathlib.Path(__file__).parents[2]
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
SAID = {
    "intake stops: ",
    "no room on the disk while ",
    "Make room or enlarge the volume: ",
    "it goes on by itself.",
    "there is room again, intake goes on",
    "the environment has grown to its map size",
    "failed, next try in ",
    "check its name, the region and the permissions",
    "waits for its parent ",
    "no answer from Kinesis for ",
    "Kinesis: ",
    " times",
    " and is tried again: ",
    "records are lost",
    "the stream no longer lists its shard",
    "wasn't read to its end: records are lost",
    "can't be trusted (",
    "was moved aside",
    "fsync failed",
    "its twins have row version",
    "was read to its end, but its shard is open",
    "in partition ",
    "effects wait for Kinesis to take them; reading waits for that",
    "the fleet's edit is refused, the last good rules stay in force: ",
    "that holds from the next start only",
    "edits of the rules are kept already",
    "no room to write it",
    "no checkpoint: ",
    "effects wait, as it is unknown whether it is still ours",
    "its checksum is wrong; what was written isn't what is read",
    "is gone, though the manifest names it; bring it back, if the bucket keeps versions",
    "its manifest is gone, so nobody can tell whose it is",
    "its manifest is lost",
    "this version reads format ",
    " has claimed it at epoch ",
    "; it stops here",
    " and hasn't released it; wait until it has, or let epoch ",
    " is below ",
    "which this start never wrote there: two processes have the same; end one of them",
    "set spec.skipToTime of its TwinPartition",
    "its status isn't taken",
}
"""What the pages quote of the worker's messages, as far as it is fixed text."""


def source() -> str:
    """Every string of the worker, with the breaks between literals that follow one another taken out."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "worker").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def said_in_runbooks() -> str:
    return "\n".join(path.read_text() for path in RUNBOOKS)


@pytest.mark.parametrize("words", sorted(SAID))
def test_what_the_runbooks_quote_is_what_the_worker_says(words: str) -> None:
    assert words.strip() in said_in_runbooks().replace("\n", " ")
    assert words in source()


def test_every_metric_that_the_runbooks_name_exists() -> None:
    named = set(re.findall(r"fleet_twin_[a-z_]+", said_in_runbooks()))
    known = {entry.name for entry in metrics.Metrics().definitions}
    for page in (ROOT / "docs" / "reference").glob("*metrics*.md"):
        known |= set(re.findall(r"^\| `(fleet_twin_[a-z_]+)` \|", page.read_text(), flags=re.MULTILINE))
    known |= {name + suffix for name in known for suffix in ("_bucket", "_sum", "_count")}
    assert len(named) > 10
    assert named - known == set()


def test_every_link_leads_somewhere() -> None:
    pages = [*RUNBOOKS, ROOT / "README.md", ROOT / "docs" / "architecture.md"]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(#[^)]*)?\)", page.read_text()):
            if "://" not in target[0] and not (page.parent / target[0]).exists():
                broken.append(f"{page.name}: {target[0]}")
    assert broken == []


def test_the_readme_and_the_first_page_lead_to_every_runbook() -> None:
    assert "docs/runbooks/README.md" in (ROOT / "README.md").read_text()
    first = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    for page in RUNBOOKS:
        assert page.name == "README.md" or f"({page.name})" in first


def test_headings_that_are_linked_to_exist() -> None:
    for page in RUNBOOKS:
        for target, heading in re.findall(r"\]\(([a-z-]+\.md)#([a-z-]+)\)", page.read_text()):
            headings = re.findall(r"^#+ (.*)$", (page.parent / target).read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "-") for title in headings}
