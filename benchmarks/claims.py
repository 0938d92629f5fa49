"""How every benchmark ends: its figures and claims as JSON, and exit code 1 if a claim is false."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

LOAD_BEFORE = os.getloadavg()[0]


def conclude(found: Mapping[str, Any], claims: Mapping[str, bool], out: Path | None) -> NoReturn:
    """Print the figures, the machine they are from, and which claims hold; write them to a file, if named."""
    machine = {
        "cores": os.cpu_count(),
        "load_before": round(LOAD_BEFORE, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    text = json.dumps({**found, "claims": dict(claims), "machine": machine}, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    sys.exit(not all(claims.values()))
