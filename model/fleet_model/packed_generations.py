"""All rules generations that a fleet keeps, as one text for the fleet's own status: workers may read no other object.

A replay needs every generation since the oldest record that it may meet, so the list is whole or of no use; what makes it small is that
an edit changes little: a thousand generations that differ by a number take a few kilobytes. The text is compressed JSON (LZMA, whose
window holds several of the largest generations there can be) in base64. It refuses what is too large or anything but such a list,
and never expands without bound.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import lzma
from collections.abc import Sequence

from fleet_model import generations, rules, sections

PACKED_MAX = 262_144
"""Characters of the text. A status of this size is written at an edit only; etcd takes objects of 1.5 MiB."""

GENERATIONS_MAX = 1_000
UNPACKED_MAX = 256 * 2**20
"""Bytes of JSON: more than GENERATIONS_MAX of the largest."""

_PRESET = 2
"""A window of 2 MiB: the generation before lies within it. Compressing takes 17 MiB of memory."""


class TooManyGenerationsError(ValueError):
    """The list can't be kept: an edit has to wait until older ones judge nothing any more."""


class UnreadableGenerationsError(ValueError):
    """The text is no list of generations."""


def pack(kept: Sequence[rules.RulesGeneration]) -> str:
    """kept: by number. Raises TooManyGenerationsError."""
    if len(kept) > GENERATIONS_MAX:
        raise TooManyGenerationsError(
            f"{len(kept)} edits of the rules are kept, at most {GENERATIONS_MAX} can be, and the stream still retains records of "
            "each; edit the rules less often"
        )
    documents = [generations.rules_document(generation) for generation in kept]
    text = json.dumps(documents, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    packed = base64.b64encode(lzma.compress(text.encode(), preset=_PRESET)).decode()
    if len(packed) > PACKED_MAX:
        raise TooManyGenerationsError(
            f"the {len(kept)} edits of the rules that are kept take {len(packed)} characters, at most {PACKED_MAX} can be kept, and the "
            "stream still retains records of each; edit the rules less often, or use fewer or simpler profiles"
        )
    return packed


def unpack(packed: str) -> tuple[rules.RulesGeneration, ...]:
    """What was packed, exactly. Raises UnreadableGenerationsError."""
    try:
        opened = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=64 * 2**20)
        text = opened.decompress(base64.b64decode(packed, validate=True), max_length=UNPACKED_MAX)
        if not opened.eof:
            raise UnreadableGenerationsError("the list of rules generations isn't whole")
        documents = json.loads(text)
        if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
            raise UnreadableGenerationsError("the list of rules generations is no list")
        kept = tuple(generations.parse_rules_document(document) for document in documents)
    except (binascii.Error, lzma.LZMAError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UnreadableGenerationsError(f"the list of rules generations can't be read: {error}") from error
    except sections.InvalidFleetError as error:
        raise UnreadableGenerationsError(f"a rules generation can't be read: {error}") from error
    for before, after in itertools.pairwise(kept):
        if after.generation != before.generation + 1 or after.effective_ms <= before.effective_ms:
            raise UnreadableGenerationsError(f"rules generation {after.generation} doesn't follow {before.generation}")
    return kept
