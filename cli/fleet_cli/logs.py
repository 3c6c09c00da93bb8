"""How a command logs: one line an event to standard error, key=value for machines, shorter and in colour on a terminal."""

from __future__ import annotations

import datetime
import json
import logging
import sys

_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class KeyValue(logging.Formatter):
    """time=… level=… from=… message="…", and the traceback, if any, quoted into the same line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        parts = [
            f"time={moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
            f"level={record.levelname.lower()}",
            f"from={record.name}",
            f"message={json.dumps(record.getMessage(), ensure_ascii=False)}",
        ]
        if record.exc_info:
            parts.append(f"traceback={json.dumps(self.formatException(record.exc_info), ensure_ascii=False)}")
        return " ".join(parts)


class Terminal(logging.Formatter):
    """Time of day, level where it matters, message."""

    def format(self, record: logging.LogRecord) -> str:
        import click

        text = f"{datetime.datetime.fromtimestamp(record.created):%H:%M:%S} "
        if record.levelname in _COLOURS:
            text += click.style(record.levelname.lower(), fg=_COLOURS[record.levelname], bold=True) + " "
        text += record.getMessage()
        return text + "\n" + self.formatException(record.exc_info) if record.exc_info else text


class Json(logging.Formatter):
    """One object a line, with the fields of KeyValue."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(level: str, form: str = "auto") -> None:
    """level: debug, info, warning or error, for our own loggers; libraries tell warnings only. form: auto or json."""
    handler = logging.StreamHandler(sys.stderr)
    plain = Terminal() if sys.stderr.isatty() else KeyValue()
    handler.setFormatter(Json() if form == "json" else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("fleet_worker", "fleet_operator", "fleet_cli", "fleet_model"):
        logging.getLogger(name).setLevel(level.upper())
