"""Run the notebooks of the docs anew and keep what they show: `make notebooks`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent / "notebooks"


def execute(file: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook as it was run in a folder, of which no path is left.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(file, 4)
    client = NotebookClient(
        notebook, timeout=250, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client.execute(env={**os.environ, "PATH": path})
    said = json.dumps(notebook).replace(f"{folder}/", "")
    return nbformat.from_dict(json.loads(said))


def main() -> None:
    """Run every notebook, and write it with its outputs."""
    for file in sorted(FOLDER.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            nbformat.write(execute(file, Path(folder)), file)


if __name__ == "__main__":
    main()
