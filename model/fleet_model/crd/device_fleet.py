"""The DeviceFleet's definition: every field with its words, and the parser's own forms, bounds and defaults.

Defaults stand under spec only, never under a profile: what a profile leaves out comes from spec.rules. What a schema can't say
(a template's depth) stays with the parser alone.
"""

from __future__ import annotations

from fleet_model import durations, parse, spec
from fleet_model.crd import fleet_rules, fleet_status, schema

TELEMETRY_RULES = (
    schema.Rule("has(self.name) != has(self.arn)", "give either name or arn", reason="FieldValueRequired"),
    schema.Rule(
        "(self.startPosition == 'AtTimestamp') == has(self.startTime)",
        "startTime is needed with startPosition AtTimestamp, and a mistake without it",
        ".startTime",
    ),
    schema.Rule(
        "has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)"
        " && has(self.arn) == has(oldSelf.arn) && (!has(self.arn) || self.arn == oldSelf.arn)",
        "the telemetry stream of a fleet can't change, since its twins' positions are of that stream; make a new fleet",
        reason="FieldValueForbidden",
    ),
)

STREAM_RULES = (
    schema.Rule(
        "(!has(self.telemetry.name) || self.telemetry.name != self.alerts.name)"
        " && (!has(self.telemetry.arn) || !self.telemetry.arn.endsWith('/' + self.alerts.name))",
        "alerts must not be the telemetry stream",
        ".alerts.name",
    ),
    schema.Rule(
        "(!has(self.telemetry.name) || self.telemetry.name != self.commands.name)"
        " && (!has(self.telemetry.arn) || !self.telemetry.arn.endsWith('/' + self.commands.name))"
        " && self.commands.name != self.alerts.name",
        "commands must be a stream of its own",
        ".commands.name",
    ),
    schema.Rule(
        "!has(self.control) || ((!has(self.telemetry.name) || self.telemetry.name != self.control.name)"
        " && (!has(self.telemetry.arn) || !self.telemetry.arn.endsWith('/' + self.control.name))"
        " && !(self.control.name in [self.alerts.name, self.commands.name]))",
        "control must be a stream of its own",
        ".control.name",
    ),
    schema.Rule(
        "!has(self.deadLetter) || ((!has(self.telemetry.name) || self.telemetry.name != self.deadLetter.name)"
        " && (!has(self.telemetry.arn) || !self.telemetry.arn.endsWith('/' + self.deadLetter.name))"
        " && !(self.deadLetter.name in [self.alerts.name, self.commands.name])"
        " && (!has(self.control) || self.deadLetter.name != self.control.name))",
        "deadLetter must be a stream of its own",
        ".deadLetter.name",
    ),
)

REGION_RULE = schema.Rule(
    "!has(oldSelf.aws) || !has(oldSelf.aws.region)"
    " || (has(self.aws) && has(self.aws.region) && self.aws.region == oldSelf.aws.region)",
    "the region can't change once it is given: a stream of that name elsewhere is another stream; make a new fleet",
    ".aws.region",
    "FieldValueForbidden",
)
GROWTH_RULE = schema.Rule(
    "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
    "volumes only grow; a smaller size needs a new fleet",
    ".size",
    "FieldValueForbidden",
)
BUCKET_RULE = schema.Rule(
    "!has(oldSelf.bucket) || (has(self.bucket) && self.bucket == oldSelf.bucket)",
    "the bucket can't change once it is given, since the fleet's checkpoints are in it; make a new fleet",
    ".bucket",
    "FieldValueForbidden",
)
PREFIX_RULE = schema.Rule(
    "!has(oldSelf.bucket) || self.prefix == oldSelf.prefix",
    "the prefix can't change once a bucket is given, since the fleet's checkpoints are under it; make a new fleet",
    ".prefix",
    "FieldValueForbidden",
)
NAME_RULE = schema.Rule(
    f"size(self.metadata.name) <= {parse.FLEET_NAME.longest} && !self.metadata.name.contains('.')"
    " && self.metadata.name.matches('^[a-z]')",
    f"metadata.name must be {parse.FLEET_NAME.remedy}",
)


def definition() -> schema.Schema:
    names = {
        "kind": parse.KIND,
        "listKind": "DeviceFleetList",
        "plural": "devicefleets",
        "singular": "devicefleet",
        "shortNames": ["dfleet"],
    }
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    root = schema.root(
        "A fleet of devices: its streams, its rules, its workers. Each device has one digital twin.",
        _spec(),
        fleet_status.status(),
    )
    version = {
        "additionalPrinterColumns": fleet_status.columns(),
        "schema": {"openAPIV3Schema": schema.ruled(root, NAME_RULE)},
        "subresources": {"status": {}, "scale": scale},
    }
    return schema.definition(names, version)


def _spec() -> schema.Schema:
    stream = spec.EffectStream("")
    default = spec.FleetSpec("", "", spec.Streams(spec.TelemetryStream(), stream, stream))
    fields = {
        "streams": _streams(),
        "rules": fleet_rules.fleet_default(),
        "profiles": fleet_rules.profiles(),
        "aws": _aws(),
        "storage": _storage(),
        "checkpoint": _checkpoint(),
        "rebalance": _rebalance(),
        "replicas": schema.integer("How many workers.", 1, parse.REPLICAS_MAX, default.replicas),
        "standbyReplicas": schema.integer(
            "Workers per partition that keep a warm copy besides its owner.",
            0,
            parse.STANDBY_REPLICAS_MAX,
            default.standby_replicas,
        ),
        "suspend": schema.boolean("The fleet stops working and keeps its data.", default.suspend),
        "image": schema.text("The workers' image. Left out: the chart's.", parse.IMAGE),
        "serviceAccountName": schema.text(
            "The workers' service account. Left out: one of the fleet's own.", parse.OBJECT_NAME
        ),
        "template": {
            "description": "A pod template that is laid over the operator's own: resources, affinity, tolerations, "
            f"annotations. At most {parse.TEMPLATE_VALUES_MAX} values in {parse.TEMPLATE_DEPTH_MAX} levels.",
            "type": "object",
            "maxProperties": parse.TEMPLATE_VALUES_MAX - 1,
            "x-kubernetes-preserve-unknown-fields": True,
        },
    }
    whole = schema.mapping("What the fleet is to be.", fields, ["streams"])
    return schema.ruled(whole, fleet_rules.PROFILE_HYSTERESIS_RULE, REGION_RULE)


def _streams() -> schema.Schema:
    effects = (spec.Format.PROTOBUF, spec.Format.JSON)

    def effect_stream(what: str) -> schema.Schema:
        fields = {
            "name": schema.text("The Kinesis stream's name.", parse.STREAM_NAME),
            "format": schema.choice("How the records are written.", effects, spec.Format.PROTOBUF),
        }
        return schema.mapping(what, fields, ["name"])

    def plain_stream(what: str) -> schema.Schema:
        return schema.mapping(what, {"name": schema.text("The Kinesis stream's name.", parse.STREAM_NAME)}, ["name"])

    fields = {
        "telemetry": _telemetry(),
        "alerts": effect_stream("Where alerts are written to."),
        "commands": effect_stream("Where commands to devices are written to."),
        "control": plain_stream("Control records that are forwarded into the telemetry stream. Left out: none."),
        "deadLetter": plain_stream(
            "Records that can't be processed, with the reason. Left out: they are counted and kept by the worker."
        ),
    }
    whole = schema.mapping(
        "The fleet's Kinesis streams. They must all differ.", fields, ["telemetry", "alerts", "commands"]
    )
    return schema.ruled(whole, *STREAM_RULES)


def _telemetry() -> schema.Schema:
    default = spec.TelemetryStream()
    fields = {
        "name": schema.text("The Kinesis stream's name; this or arn.", parse.STREAM_NAME),
        "arn": schema.text("The Kinesis stream's ARN, for one of another account; this or name.", parse.STREAM_ARN),
        "format": schema.choice(
            "How the records are written. Auto: told apart record by record.", spec.Format, default.format
        ),
        "startPosition": schema.choice(
            "Where the very first start begins. Settled once; later starts go on where they were.",
            spec.StartPosition,
            default.start_position,
        ),
        "startTime": schema.time(
            "With startPosition AtTimestamp: RFC 3339 with its zone, such as 2026-01-31T08:00:00Z.",
            parse.DATE_TIME.pattern,
            parse.DATE_TIME_LENGTH_MAX,
        ),
    }
    return schema.ruled(schema.mapping("What the devices write to.", fields), *TELEMETRY_RULES)


def _aws() -> schema.Schema:
    secret = schema.mapping(
        "A Secret with AWS credentials. Left out: the default chain (IRSA, Pod Identity, environment, profile).",
        {"name": schema.text("The Secret's name.", parse.OBJECT_NAME)},
        ["name"],
    )
    fields = {
        "region": schema.text("An AWS region such as eu-central-1. Left out: the environment's.", parse.REGION),
        "endpointURL": schema.text(
            "An http or https URL, for an emulator or a private endpoint. Left out: AWS' own.", parse.ENDPOINT_URL
        ),
        "credentialsSecretRef": secret,
    }
    return schema.mapping("Where AWS is.", fields)


def _storage() -> schema.Schema:
    default = spec.Storage()
    fields = {
        "size": schema.size(
            "Of each worker's volume. It only grows.", (parse.STORAGE_MIN, parse.STORAGE_MAX), default.size
        ),
        "storageClassName": schema.text(
            "Of each worker's volume. \"\": volumes made by hand. Left out: the cluster's default.", parse.STORAGE_CLASS
        ),
        "retentionPolicy": schema.choice(
            "What becomes of the volumes when the fleet is deleted.", parse.RETENTION_POLICIES, default.retention_policy
        ),
        "twinsInMemoryMax": schema.integer(
            "Twins that a worker's tables hold together; 0: no bound. Colder ones live on disk only.",
            0,
            parse.TWINS_IN_MEMORY_MAX,
            default.twins_in_memory_max,
        ),
        "mapSize": schema.size(
            "Of each partition's LMDB map: address space, not disk.",
            (parse.MAP_SIZE_MIN, parse.MAP_SIZE_MAX),
            durations.text_of_bytes(default.map_size_bytes),
        ),
        "sync": schema.choice(
            "Interval: an fsync every syncInterval. Commit: one per commit.", spec.Sync, default.sync
        ),
        "syncInterval": schema.duration(
            "How much a crash of the machine makes Kinesis replay.", parse.SYNC_INTERVAL_MS, default.sync_interval_ms
        ),
    }
    whole = schema.mapping("The volume, and how twins are kept on it.", fields, is_filled=True)
    return schema.ruled(whole, GROWTH_RULE)


def _checkpoint() -> schema.Schema:
    default = spec.Checkpoint()
    fields = {
        "bucket": schema.text(
            "An S3 bucket. Left out: no checkpoints, so partitions can't move and a lost volume is lost.", parse.BUCKET
        ),
        "prefix": schema.text("Of the checkpoints' keys.", parse.PREFIX, default.prefix),
        "interval": schema.duration(
            "Between a partition's checkpoints.", parse.CHECKPOINT_INTERVAL_MS, default.interval_ms
        ),
    }
    whole = schema.mapping("Where checkpoints go.", fields, is_filled=True)
    return schema.ruled(whole, BUCKET_RULE, PREFIX_RULE)


def _rebalance() -> schema.Schema:
    default = spec.Rebalance()
    fields = {
        "maxConcurrentMoves": schema.integer(
            "Partitions that move at the same time.", 1, parse.CONCURRENT_MOVES_MAX, default.max_concurrent_moves
        ),
        "drainTimeout": schema.duration(
            "How long an owner may take to hand over before the move is taken back.",
            parse.DRAIN_TIMEOUT_MS,
            default.drain_timeout_ms,
        ),
    }
    return schema.mapping("How partitions move.", fields, is_filled=True)
