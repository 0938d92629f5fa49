"""What the docs site needs beside Markdown: notebooks as pages, and links to files that are no pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")
_NOTEBOOK = ".ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook."""
    for file in list(files):
        if file.src_uri.endswith(_NOTEBOOK) and file.abs_src_path:
            text = as_markdown(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")), file.name)
            files.append(File.generated(config, file.src_uri.removesuffix(_NOTEBOOK) + ".md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files of the repository that are no pages, instead of linking to them."""
    inside = "../" if "/" in page.file.src_uri else ""

    def named(link: re.Match[str]) -> str:
        target = link[0].rpartition("](")[2][:-1]
        if inside and not target.startswith("../../"):
            return link[0]
        return f"{link[1]} (`{link[2].partition('#')[0]}`)"

    return _OUTSIDE.sub(named, markdown)


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook with its outputs as a page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell["outputs"]]
    download = f"This page is [{name}.ipynb]({name}.ipynb), as it was run."
    return "\n\n".join([*parts, download]) + "\n"


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output["data"]
    if "image/png" in data:
        return f"![Output of the cell](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        lines = [line.strip() for line in "".join(data["text/html"]).splitlines()]
        return f'<div class="output">{" ".join(line for line in lines if line)}</div>'
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
