"""Rules generations in Kubernetes: one text for the status that comes back exactly, and what stands where after which crash."""

from __future__ import annotations

import base64
import dataclasses
import json
import lzma
from typing import Any

import pytest

from fleet_model import generations, packed_generations, rules
from fleet_operator import history
from tests.support import operator_objects as objects


def fleet(threshold: float = 60.0, profiles: int = 0) -> Any:
    return objects.fleet(
        rules={"temperature": {"threshold": threshold}},
        profiles=[
            {
                "name": f"group-{number}",
                "match": {
                    "deviceIdRegex": f"{number:03d}" + "x" * 500,
                    "deviceIdPrefix": "p" * 256,
                    "firmware": "f" * 256,
                },
                "rules": {"temperature": {"command": f"command-{number}"}},
            }
            for number in range(profiles)
        ],
    )


def edits(count: int, profiles: int = 0) -> tuple[rules.RulesGeneration, ...]:
    first = generations.first_generation(fleet(0.0, profiles))
    return tuple(
        dataclasses.replace(
            first,
            generation=1 + number,
            effective_ms=1_000 * number,
            default=dataclasses.replace(
                first.default, temperature=dataclasses.replace(first.default.temperature, threshold=number / 7)
            ),
        )
        for number in range(count)
    )


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "profiles"), [(0, 0), (1, 0), (2, 100), (50, 3)])
def test_what_was_packed_comes_back_exactly(count: int, profiles: int) -> None:
    kept = edits(count, profiles)
    assert packed_generations.unpack(packed_generations.pack(kept)) == kept


def test_as_many_edits_as_may_be_kept_have_room() -> None:
    assert len(packed_generations.pack(edits(packed_generations.GENERATIONS_MAX))) < packed_generations.PACKED_MAX // 4


def test_edits_of_the_largest_rules_there_can_be_have_room() -> None:
    one = len(json.dumps(generations.rules_document(edits(1, 100)[0])))
    assert one > 100_000
    assert len(packed_generations.pack(edits(30, 100))) < packed_generations.PACKED_MAX // 4


def test_too_many_are_refused() -> None:
    with pytest.raises(packed_generations.TooManyGenerationsError, match="1001 edits"):
        packed_generations.pack(edits(packed_generations.GENERATIONS_MAX + 1))


def test_what_takes_too_much_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_generations, "PACKED_MAX", 500)
    with pytest.raises(packed_generations.TooManyGenerationsError, match="characters"):
        packed_generations.pack(edits(20))


def packed(value: object) -> str:
    return base64.b64encode(lzma.compress(json.dumps(value).encode())).decode()


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        base64.b64encode(b"not compressed").decode(),
        packed_generations.pack(edits(3))[:-40] + "A" * 40,
        packed({"generation": 1}),
        packed([1]),
        packed([{"generation": 1}]),
        packed([generations.rules_document(each) for each in (edits(3)[0], edits(3)[2])]),
        packed([generations.rules_document(each) for each in reversed(edits(2))]),
        packed([generations.rules_document(dataclasses.replace(each, effective_ms=5)) for each in edits(2)]),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(packed_generations.UnreadableGenerationsError):
        packed_generations.unpack(text)


def test_a_text_that_would_grow_without_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_generations, "UNPACKED_MAX", 1_000)
    with pytest.raises(packed_generations.UnreadableGenerationsError, match="isn't whole"):
        packed_generations.unpack(packed("x" * 1_000_000))


# ── the two places ───────────────────────────────────────────────────────────────────────────────────────────────────


def found(*kept: rules.RulesGeneration) -> dict[str, rules.RulesGeneration]:
    objects_made = [history.revision(each, objects.fleet(), objects.OWNER) for each in kept]
    return history.read_revisions(objects_made)


def test_the_first_generation_judges_everything_before_the_second() -> None:
    made = history.settled(history.published(""), {}, fleet(), 5_000, 0)
    assert [each.effective_ms for each in made.kept] == [0]
    assert made.create == made.kept


def test_without_the_streams_clock_nothing_new_is_stamped() -> None:
    assert history.settled(history.published(""), {}, None, 0, 0).kept == ()
    first = edits(1)
    assert history.settled(history.published(packed_generations.pack(first)), found(*first), None, 0, 0).kept == first


@pytest.mark.parametrize(
    ("told", "kept", "create"),
    [
        pytest.param((1, 2), (1, 2), (), id="both have it"),
        pytest.param((1, 2), (1,), (2,), id="killed after it was published"),
        pytest.param((), (1, 2), (), id="the status is lost"),
        pytest.param((2,), (1, 2), (), id="killed before the oldest was deleted"),
        pytest.param((1, 2), (), (1, 2), id="the revisions are lost"),
    ],
)
def test_what_stands_in_one_place_is_put_into_the_other(
    told: tuple[int, ...], kept: tuple[int, ...], create: tuple[int, ...]
) -> None:
    every = {each.generation: each for each in edits(2)}
    text = packed_generations.pack([every[number] for number in told]) if told else ""
    made = history.settled(history.published(text), found(*(every[number] for number in kept)), None, 0, 0)
    assert [each.generation for each in made.kept] == list(told or kept)
    assert tuple(each.generation for each in made.create) == create
    assert history.published(made.packed).kept == made.kept
    assert made.delete == (("trucks-rules-0000000001",) if told == (2,) else ())


def test_at_rest_the_text_stays_as_it_is_byte_for_byte() -> None:
    kept = edits(3)
    text = base64.b64encode(
        lzma.compress(lzma.decompress(base64.b64decode(packed_generations.pack(kept))), preset=6)
    ).decode()
    assert text != packed_generations.pack(kept)  # as another version of the library may write it
    assert history.settled(history.published(text), found(*kept), None, 0, 0).packed == text


def test_generations_that_judge_no_record_any_more_go_with_the_next_edit() -> None:
    kept = edits(4)
    made = history.settled(history.published(packed_generations.pack(kept)), found(*kept), fleet(99.0), 9_000, 2_500)
    assert [each.generation for each in made.kept] == [3, 4, 5]
    assert made.delete == ("trucks-rules-0000000001", "trucks-rules-0000000002")


def test_an_edit_for_which_there_is_no_room_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = edits(3)
    text = packed_generations.pack(kept)
    monkeypatch.setattr(packed_generations, "GENERATIONS_MAX", 3)
    made = history.settled(history.published(text), found(*kept), fleet(99.0), 9_000, 0)
    assert (made.kept, made.packed, made.create, made.delete) == (kept, text, (), ())
    assert "edit the rules less often" in made.refused


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        pytest.param(edits(2), (dataclasses.replace(edits(2)[1], effective_ms=1_001),), id="two that differ"),
        pytest.param(edits(1), (edits(3)[2],), id="one is missing between them"),
    ],
)
def test_what_contradicts_itself_is_no_history(
    told: tuple[rules.RulesGeneration, ...], kept: tuple[rules.RulesGeneration, ...]
) -> None:
    with pytest.raises(history.BrokenHistoryError):
        history.settled(history.published(packed_generations.pack(told)), found(*kept), None, 0, 0)


def test_a_revision_that_was_edited_by_hand_is_told_by_its_name() -> None:
    with pytest.raises(history.BrokenHistoryError, match="ControllerRevision x"):
        history.read_revisions([{"metadata": {"name": "x"}, "data": {"generation": "one"}}])


def test_a_revision_is_kept_as_anybody_can_read_it() -> None:
    made = history.revision(edits(1)[0], objects.fleet(), objects.OWNER)
    assert (made["kind"], made["revision"], made["metadata"]["name"]) == (
        "ControllerRevision",
        1,
        "trucks-rules-0000000001",
    )
    assert made["data"]["default"]["temperature"]["threshold"] == 0.0
