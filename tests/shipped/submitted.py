"""What a site's file would hand in to its batch system, as Parsl writes it."""

from __future__ import annotations

import stat
from pathlib import Path

from parsl_rasda.backends.parsl.htex import build_provider
from parsl_rasda.study.parsl_site import ParslSiteSpec
from tests.shipped.guards import unguarded

SITE_CONFIGS = Path(__file__).parents[2] / "site_configs"
ENVIRONMENT = {
    "RASDA_ACCOUNT": "project",
    "RASDA_VENV": "/venv",
    "RASDA_WORK": "/work",
    "RASDA_IMAGE": "/images/torch.toml",
}
ANSWERS = {"sbatch": "Submitted batch job 7", "qsub": "7.server"}


def put_batch_systems_on_path(folder: Path) -> str:
    """Write commands that accept every job, and return a PATH that has them."""
    for name, answer in ANSWERS.items():
        command = folder / name
        command.write_text(f'#!/bin/sh\necho "$@" > "$0.words"\necho {answer}\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:/usr/bin:/bin"


def script_of(site: ParslSiteSpec, folder: Path) -> str:
    """Return a site's job script, without empty lines and guards, and how it was handed in.

    Args:
        site: Whose.
        folder: For scripts; the commands are in the one above.
    """
    for old in (*folder.iterdir(), *folder.parent.glob("*.words")):
        old.unlink()
    provider = build_provider(site, "echo ours")
    provider.script_dir = str(folder)
    assert provider.submit("pool --flag", 1, "pilot")
    (path,) = [path for path in folder.iterdir() if not path.name.endswith(("stdout", "stderr"))]
    (asked,) = folder.parent.glob("*.words")
    text = f"{path.read_text()}\n# {asked.stem} {asked.read_text()}"
    text = text.replace(str(folder), "FOLDER").replace(path.name, "NAME")
    text = text.replace(path.name.removesuffix(".submit"), "NAME")
    return unguarded("".join(f"{line}\n" for line in text.splitlines() if line))
