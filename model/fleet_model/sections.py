"""Reads a document (plain mappings, lists and values) field by field and tells every mistake at once, each with its path.

A `Section` is one mapping of the document. Each reader returns a usable value whatever it finds, so reading goes on
to the next mistake; `Mistakes.raise_any` ends it. Nothing is coerced: a boolean is no number, a number no text, and
NaN is refused. null means absent, as it does in Kubernetes. This module knows no field of the fleet; `parse` does.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fleet_model import durations

MISTAKES_MAX = 100
"""More are counted, not told: nobody reads them, and a large file of nonsense must stay cheap."""

SHOWN_LENGTH_MAX = 60

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
"""A field's name that a path can hold without quotes."""

Choice = TypeVar("Choice", bound=str)


@dataclasses.dataclass(frozen=True, slots=True)
class Mistake:
    """path: the field, `spec.profiles[1].match.deviceIdRegex`; "" is the document. message: what is wrong and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidFleetError(ValueError):
    """A fleet's document isn't valid. mistakes: at least one, in the document's order of reading."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


class Mistakes:
    """Collects mistakes, at most MISTAKES_MAX of them."""

    def __init__(self) -> None:
        self._told: list[Mistake] = []
        self._untold = 0

    def add(self, path: str, message: str) -> None:
        if len(self._told) < MISTAKES_MAX:
            self._told.append(Mistake(path, message))
        else:
            self._untold += 1

    @property
    def is_full(self) -> bool:
        """Whether further mistakes are only counted, so that their messages need no effort."""
        return len(self._told) >= MISTAKES_MAX

    def raise_any(self) -> None:
        """Raises InvalidFleetError when there is a mistake."""
        if self._untold:
            self._told.append(Mistake("", f"{self._untold} more mistakes are not shown; mend these first"))
        if self._told:
            raise InvalidFleetError(tuple(self._told))


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What a text must look like: the whole of it matches `pattern`, it has at most `longest` characters.
    remedy: says so in words, after "must be"."""

    pattern: re.Pattern[str]
    remedy: str
    longest: int


def form(pattern: str, remedy: str, longest: int) -> Form:
    """longest is checked before the pattern is tried, so a pattern never meets an endless text."""
    return Form(re.compile(pattern, re.DOTALL), remedy, longest)


class Section:
    """One mapping of the document. Fields are read by name; `finish` tells those nobody asked for."""

    def __init__(self, value: object, path: str, mistakes: Mistakes) -> None:
        self.path = path
        self.mistakes = mistakes
        self.is_readable = value is None or isinstance(value, Mapping)
        """False: it is no mapping, which is told; that its fields are missing then goes without saying."""
        self._known: list[str] = []
        self._fields: Mapping[object, object] = {}
        if isinstance(value, Mapping):
            self._fields = value
        elif not self.is_readable:
            mistakes.add(path, f"must be a mapping of fields, not {shown(value)}")

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def mistake(self, name: str, message: str) -> None:
        self.mistakes.add(self.at(name), message)

    def has(self, name: str) -> bool:
        """Whether the field is written at all, be it null."""
        return name in self._fields

    def value(self, name: str) -> object | None:
        """The field as it is; None when it is absent or null."""
        if name not in self._known:
            self._known.append(name)
        return self._fields.get(name)

    def accept(self, *names: str) -> None:
        """Fields that may be there and are not ours to judge."""
        self._known.extend(names)

    def section(self, name: str) -> Section:
        """A mapping inside; an empty one when it is absent."""
        inside = Section(self.value(name), self.at(name), self.mistakes)
        inside.is_readable = inside.is_readable and self.is_readable
        return inside

    def sections(self, name: str, items_max: int) -> list[Section]:
        """A list of mappings inside, of which the first items_max are read."""
        value = self.value(name)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            self.mistake(name, f"must be a list, not {shown(value)}")
            return []
        if len(value) > items_max:
            self.mistake(name, f"has {len(value)} entries; at most {items_max} are allowed")
        entries = []
        for index, entry in enumerate(value[:items_max]):
            path = f"{self.at(name)}[{index}]"
            if entry is None:
                self.mistakes.add(path, "is empty; give it its fields or remove it")
            else:
                entries.append(Section(entry, path, self.mistakes))
        return entries

    def boolean(self, name: str, default: bool) -> bool:
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.mistake(name, f"must be true or false, not {shown(value)}")
        return default

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        """A whole number; 3.0 is one, as in JSON."""
        value = self.value(name)
        if value is None:
            return default
        bounds = f"must be a whole number from {lowest} to {highest}"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            self.mistake(name, f"{bounds}, not {shown(value)}")
            return default
        return value

    def number(self, name: str, default: float, lowest: float, highest: float, unit: str) -> float:
        """A finite number within the bounds, as a float."""
        value = self.value(name)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Comparing refuses NaN, and judges an integer of any size without making a float of it.
        if not is_number or not lowest <= value <= highest:  # type: ignore[operator]
            self.mistake(name, f"must be a number from {lowest:.12g} to {highest:.12g} ({unit}), not {shown(value)}")
            return default
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str, required: Form) -> str | None:
        """A text of the form; None when it is absent or wrong."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, str) and is_unicode(value):
            if len(value) > required.longest:
                self.mistake(name, f"has {len(value)} characters; must be {required.remedy}")
                return None
            if required.pattern.fullmatch(value) is not None:
                return value
        self.mistake(name, f"must be {required.remedy}, not {shown(value)}")
        return None

    def required_text(self, name: str, required: Form) -> str:
        """As `text`; absence is a mistake, too."""
        if self.value(name) is None:
            if self.is_readable:
                self.mistake(name, f"is missing; it must be {required.remedy}")
            return ""
        return self.text(name, required) or ""

    def choice(self, name: str, default: Choice, choices: Iterable[Choice]) -> Choice:
        value = self.value(name)
        if value is None:
            return default
        allowed = list(choices)
        if isinstance(value, str):
            for candidate in allowed:
                if value == candidate:
                    return candidate
        nearest = closest(value, allowed) if isinstance(value, str) else None
        hint = f"; did you mean {nearest}?" if nearest else ""
        self.mistake(name, f"must be {' or '.join(allowed)}, not {shown(value)}{hint}")
        return default

    def duration_ms(self, name: str, default: int, lowest: int, highest: int, zero: str = "") -> int:
        """Milliseconds of a Go duration within the bounds. zero: what 0 means where it is allowed besides them."""
        value = self.value(name)
        if value is None:
            return default
        also = f', or "0s" ({zero})' if zero else ""
        bounds = f"must be a duration from {durations.text_of_ms(lowest)} to {durations.text_of_ms(highest)}{also}"
        if isinstance(value, str):
            try:
                duration_ms = durations.parse_ms(value)
            except ValueError:
                duration_ms = -1
            if lowest <= duration_ms <= highest or (zero and duration_ms == 0):
                return duration_ms
        self.mistake(name, f'{bounds}, written like "90s", "5m" or "1h30m", not {shown(value)}')
        return default

    def size_bytes(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Bytes of a Kubernetes quantity within the bounds."""
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, str):
            try:
                size_bytes = durations.parse_bytes(value)
            except ValueError:
                size_bytes = -1
            if lowest <= size_bytes <= highest:
                return size_bytes
        bounds = f"from {durations.text_of_bytes(lowest)} to {durations.text_of_bytes(highest)}"
        self.mistake(name, f'must be a size {bounds}, written like "10Gi" or "500M", not {shown(value)}')
        return default

    def finish(self) -> None:
        """Tells every field that nothing asked for."""
        for name in self._fields:
            if not isinstance(name, str):
                self.mistakes.add(self.path, f"a field's name must be text, not {shown(name)}; put it in quotes")
            elif name not in self._known:
                nearest = None if self.mistakes.is_full else closest(name, self._known)
                hint = f"did you mean {nearest}?" if nearest else f"the fields here are {', '.join(self._known)}"
                self.mistake(name if _PLAIN_NAME.fullmatch(name) else shown(name), f"unknown field; {hint}")


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant: spelling, letter case and _ or - aside."""
    if len(name) > SHOWN_LENGTH_MAX:
        return None
    plain = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, n=1)
    return plain[found[0]] if found else None


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, whatever it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        short = value if len(value) <= SHOWN_LENGTH_MAX else value[: SHOWN_LENGTH_MAX - 1] + "…"
        return '"' + "".join(sign if sign.isprintable() else "�" for sign in short) + '"'
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "infinity", -math.inf: "-infinity"}.get(value, "NaN")
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a {type(value).__name__}"


def is_unicode(text: str) -> bool:
    """Whether the text has a UTF-8 form: a lone surrogate has none, and could be neither stored nor sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
