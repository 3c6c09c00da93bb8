"""Reads `spec.rules` and `spec.profiles` of a fleet's document: fields, defaults and bounds of every rule.

A profile's rules are laid field by field over the fleet's default, so a profile names only what differs. A field that
is null is absent and inherits; only `command` may be null to say "none". The meaning of each field is in `rules`.
"""

from __future__ import annotations

from fleet_model import patterns, rules, sections

PROFILES_MAX = 100
REGEX_LENGTH_MAX = 512
READING_MAX = 1e9
"""Telemetry's own bound: a reading beyond it is a dead letter, so a threshold beyond it could never be met."""
DROP_PER_HOUR_MAX = 10_000.0

SECOND_MS = 1_000
HOUR_MS = 3_600_000
MONTH_MS = 30 * 24 * HOUR_MS

DNS_LABEL = sections.form(
    r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?",
    "a DNS label: at most 63 lower-case letters, digits and hyphens, a letter or digit first and last",
    63,
)
COMMAND = sections.form(
    r"[!-~](?:[ -~]*[!-~])?",
    'a command of at most 128 printable ASCII characters, no space first or last, or "" for none',
    128,
)
DEVICE_ID_PREFIX = sections.form(r".+", "the beginning of a device id, 1 to 256 characters", 256)
DEVICE_ID_REGEX = sections.form(
    r".+",
    f"a regular expression of 1 to {REGEX_LENGTH_MAX} characters that matches the whole device id",
    REGEX_LENGTH_MAX,
)
FIRMWARE = sections.form(r".+", "a firmware version, 1 to 256 characters", 256)


def read_rules(section: sections.Section, base: rules.Rules) -> rules.Rules:
    """The rules written in the section, each missing field taken from base."""
    temperature = _read_temperature(section.section("temperature"), base.temperature)
    battery = _read_battery(section.section("battery"), base.battery)
    offline = _read_offline(section.section("offline"), base.offline)
    section.finish()
    return rules.Rules(temperature, battery, offline)


def read_profiles(spec_section: sections.Section, base: rules.Rules) -> tuple[rules.Profile, ...]:
    profiles: list[rules.Profile] = []
    first_use: dict[str, str] = {}
    for section in spec_section.sections("profiles", PROFILES_MAX):
        name = section.required_text("name", DNS_LABEL)
        if name and first_use.setdefault(name, section.path) != section.path:
            section.mistake("name", f"{sections.shown(name)} is the name of {first_use[name]} already; choose another")
        match = _read_match(section.section("match"))
        profiles.append(rules.Profile(name, match, read_rules(section.section("rules"), base)))
        section.finish()
    return tuple(profiles)


def _read_match(section: sections.Section) -> rules.Match:
    fields = ("deviceIdPrefix", "deviceIdRegex", "firmware")
    if all(section.value(field) is None for field in fields) and section.is_readable:
        section.mistakes.add(section.path, f"matches no device; give at least one of {', '.join(fields)}")
    prefix = section.text("deviceIdPrefix", DEVICE_ID_PREFIX)
    regex = section.text("deviceIdRegex", DEVICE_ID_REGEX)
    if regex is not None:
        try:
            patterns.check(regex)
        except patterns.BadPatternError as error:
            section.mistake(
                "deviceIdRegex",
                f"is no regular expression that RE2 takes: {error}; mend it (RE2 has no look-around and no back-references)",
            )
    firmware = section.text("firmware", FIRMWARE)
    section.finish()
    return rules.Match(prefix, regex, firmware)


def _read_temperature(section: sections.Section, base: rules.TemperatureRule) -> rules.TemperatureRule:
    rule = rules.TemperatureRule(
        enabled=section.boolean("enabled", base.enabled),
        threshold=section.number("threshold", base.threshold, -READING_MAX, READING_MAX, "°C"),
        consecutive_samples=section.integer("consecutiveSamples", base.consecutive_samples, 1, 255),
        repeat_interval_ms=_read_repeat(section, base.repeat_interval_ms, "each time the run completes"),
        hysteresis=section.number("hysteresis", base.hysteresis, 0.0, READING_MAX, "°C"),
        severity=_read_severity(section, base.severity),
        command=_read_command(section, base.command),
        resolved_notice=section.boolean("resolvedNotice", base.resolved_notice),
    )
    section.finish()
    return rule


def _read_battery(section: sections.Section, base: rules.BatteryRule) -> rules.BatteryRule:
    rule = rules.BatteryRule(
        enabled=section.boolean("enabled", base.enabled),
        max_drop_per_hour=section.number("maxDropPerHour", base.max_drop_per_hour, 0.0, DROP_PER_HOUR_MAX, "%/h"),
        idle_below_cpu_load=section.number("idleBelowCpuLoad", base.idle_below_cpu_load, 0.0, 1.0, "1 is full load"),
        min_observation_ms=section.duration_ms("minObservation", base.min_observation_ms, 10 * SECOND_MS, HOUR_MS),
        repeat_interval_ms=_read_repeat(section, base.repeat_interval_ms, "never again"),
        hysteresis=section.number("hysteresis", base.hysteresis, 0.0, DROP_PER_HOUR_MAX, "%/h"),
        severity=_read_severity(section, base.severity),
        command=_read_command(section, base.command),
        resolved_notice=section.boolean("resolvedNotice", base.resolved_notice),
    )
    if rule.hysteresis > rule.max_drop_per_hour:
        # A drop is never below 0, so such an alert would stay open for ever.
        section.mistake(
            "hysteresis",
            f"{rule.hysteresis:g} is above maxDropPerHour, {rule.max_drop_per_hour:g}: the alert could never clear; "
            f"set hysteresis to at most {rule.max_drop_per_hour:g}",
        )
    section.finish()
    return rule


def _read_offline(section: sections.Section, base: rules.OfflineRule) -> rules.OfflineRule:
    rule = rules.OfflineRule(
        enabled=section.boolean("enabled", base.enabled),
        after_ms=section.duration_ms("after", base.after_ms, 10 * SECOND_MS, MONTH_MS),
        repeat_interval_ms=_read_repeat(section, base.repeat_interval_ms, "never again"),
        severity=_read_severity(section, base.severity),
        command=_read_command(section, base.command),
        resolved_notice=section.boolean("resolvedNotice", base.resolved_notice),
    )
    section.finish()
    return rule


def _read_repeat(section: sections.Section, default: int, zero: str) -> int:
    return section.duration_ms("repeatInterval", default, SECOND_MS, MONTH_MS, zero)


def _read_severity(section: sections.Section, default: str) -> str:
    return section.choice("severity", default, rules.SEVERITIES)


def _read_command(section: sections.Section, default: str | None) -> str | None:
    value = section.value("command")
    if not section.has("command"):
        return default
    return section.text("command", COMMAND) if value != "" else None
