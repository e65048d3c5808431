"""docs/report.schema.json, made from the classes of the report; a test fails when it is stale."""

import json
from pathlib import Path

from atelier import paths
from atelier.report.model import Report

SCHEMA = paths.PROJECT / "docs" / "report.schema.json"


def schema() -> str:
    """The JSON Schema of report.json."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema(by_alias=True)}
    return json.dumps(document, indent=2) + "\n"


def main(path: Path = SCHEMA) -> None:
    """Write the file."""
    path.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
