"""The rules of a DeviceFleet, of the fleet's default with the model's defaults, and of profiles without any."""

from __future__ import annotations

from fleet_model import parse_rules, rules
from fleet_model.crd import schema

HYSTERESIS_RULE = schema.Rule(
    "self.battery.hysteresis <= self.battery.maxDropPerHour",
    "hysteresis must not be above maxDropPerHour: the alert could never clear",
    ".battery.hysteresis",
)
PROFILE_HYSTERESIS_RULE = schema.Rule(
    "!has(self.profiles) || self.profiles.all(p, !has(p.rules) || !has(p.rules.battery)"
    " || (has(p.rules.battery.hysteresis) ? p.rules.battery.hysteresis : self.rules.battery.hysteresis)"
    " <= (has(p.rules.battery.maxDropPerHour) ? p.rules.battery.maxDropPerHour : self.rules.battery.maxDropPerHour))",
    "a profile's battery hysteresis, its own or the fleet's, must not be above its maxDropPerHour:"
    " the alert could never clear",
    ".profiles",
)
UNIQUE_RULE = schema.Rule(
    "self.all(p, self.exists_one(q, q.name == p.name))",
    "each profile needs a name of its own",
)
MATCH_RULE = schema.Rule(
    "has(self.deviceIdPrefix) || has(self.deviceIdRegex) || has(self.firmware)",
    "matches no device; give at least one of deviceIdPrefix, deviceIdRegex, firmware",
    reason="FieldValueRequired",
)
REGEX_RULE = schema.Rule(
    # An evaluation that can't compile the expression is an error, and an error refuses the object.
    "[''.matches(self)].size() == 1",
    "must be a regular expression that RE2 takes (it has no look-around and no back-references)",
)


def fleet_default() -> schema.Schema:
    return schema.ruled(schema.filled(_rules("What holds for every device.")), HYSTERESIS_RULE)


def profiles() -> schema.Schema:
    match = schema.mapping(
        "Which devices the profile is for: every field that is given must match.",
        {
            "deviceIdPrefix": schema.text("How the device id begins.", parse_rules.DEVICE_ID_PREFIX),
            "deviceIdRegex": schema.ruled(
                schema.text(
                    "A regular expression (RE2) that matches the whole device id.", parse_rules.DEVICE_ID_REGEX
                ),
                REGEX_RULE,
            ),
            "firmware": schema.text("The firmware that the device's last telemetry gave.", parse_rules.FIRMWARE),
        },
    )
    fields = {
        "name": schema.text("The profile's name, unique in the fleet.", parse_rules.DNS_LABEL),
        "match": schema.ruled(match, MATCH_RULE),
        "rules": schema.without_defaults(_rules("Laid field by field over spec.rules.")),
    }
    profile = schema.mapping("A group of devices with rules of its own.", fields, ["name", "match"])
    what = "Groups of devices with rules of their own. Of several that match a device, the first counts."
    return schema.ruled(schema.array(what, profile, parse_rules.PROFILES_MAX), UNIQUE_RULE)


def _rules(description: str) -> schema.Schema:
    fields = {"temperature": _temperature(), "battery": _battery(), "offline": _offline()}
    return schema.mapping(description, fields)


def _temperature() -> schema.Schema:
    default = rules.TemperatureRule()
    reading = parse_rules.READING_MAX
    fields = {
        "threshold": schema.number("°C; fires above it.", -reading, reading, default.threshold),
        "consecutiveSamples": schema.integer("So many in a row.", 1, 255, default.consecutive_samples),
        "hysteresis": schema.number("°C; clears at threshold less this.", 0.0, reading, default.hysteresis),
    }
    return _rule(
        "Fires when the temperature is above the threshold for several samples in a row.",
        default,
        "0s: each time the run completes",
        fields,
    )


def _battery() -> schema.Schema:
    default = rules.BatteryRule()
    drop = parse_rules.DROP_PER_HOUR_MAX
    fields = {
        "maxDropPerHour": schema.number("% of charge an hour; fires above it.", 0.0, drop, default.max_drop_per_hour),
        "idleBelowCpuLoad": schema.number(
            "Time with less load than this counts as idle.", 0.0, 1.0, default.idle_below_cpu_load
        ),
        "minObservation": schema.duration(
            "So much idle time must have been seen.",
            (10 * parse_rules.SECOND_MS, parse_rules.HOUR_MS),
            default.min_observation_ms,
        ),
        "hysteresis": schema.number(
            "%/h; clears at maxDropPerHour less this, and is at most maxDropPerHour.", 0.0, drop, default.hysteresis
        ),
    }
    return _rule("Fires when charge drops too fast over idle time.", default, "0s: never again", fields)


def _offline() -> schema.Schema:
    default = rules.OfflineRule()
    fields = {
        "after": schema.duration(
            "Fires when no telemetry arrived for so long, by the partition clock.",
            (10 * parse_rules.SECOND_MS, parse_rules.MONTH_MS),
            default.after_ms,
        ),
    }
    return _rule("Fires when a device falls silent.", default, "0s: never again", fields)


def _rule(
    description: str,
    default: rules.TemperatureRule | rules.BatteryRule | rules.OfflineRule,
    zero: str,
    fields: dict[str, schema.Schema],
) -> schema.Schema:
    """A rule's own fields, and those that all three have."""
    common = {
        "enabled": schema.boolean("Whether the rule judges at all.", default.enabled),
        "repeatInterval": schema.duration(
            f"While the alert is open it fires again at most this often; {zero}.",
            (parse_rules.SECOND_MS, parse_rules.MONTH_MS),
            default.repeat_interval_ms,
            zero=True,
        ),
        "severity": schema.choice("The alert's severity.", rules.SEVERITIES, default.severity),
        "command": schema.nullable(
            schema.text('Sent with the alert; "" or null: none.', parse_rules.COMMAND, default.command)
            | {"pattern": f"^(?:{parse_rules.COMMAND.pattern.pattern})?$"}
        ),
        "resolvedNotice": schema.boolean(
            "Whether the end of the alert is told by a resolved one.", default.resolved_notice
        ),
    }
    return schema.mapping(description, fields | common, is_filled=True)
