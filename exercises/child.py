"""Computes one graded test with a student's code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from exercises import check


def main(task: dict, out: Path) -> None:
    try:
        check.block(task["blocked"])
        code = check.students_code(task["files"])
        found = {"result": check.compute(task["paper"], task["name"], code, task["draw"])}
    except Exception as error:
        found = {"error": check.last_words(error)}
    (out / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
