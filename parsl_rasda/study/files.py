"""Arguments that are files: ``{file: URL}``, of which a stage gets the path where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pydantic.json_schema import JsonSchemaValue

from parsl_rasda.diagnostics import Plain, mapping_at, shown
from parsl_rasda.errors import Diagnostic
from parsl_rasda.study.spec import matching

_KEY = "file"
_REMOTE = ("http", "https", "ftp")
_ALLOWED = "a URL with the name of a file: file:///folder/name, http://, https:// or ftp://host/name"
_IS_FILE: JsonSchemaValue = {
    "type": "object",
    "required": [_KEY],
    "maxProperties": 1,
    "properties": {_KEY: {"type": "string"}},
}
_URL = matching(r"file:///(.*/)?[^/?#]+([?#].*)?|(https?|ftp)://[^/?#]+/(.*/)?[^/?#]+([?#].*)?", _ALLOWED)
FILE_FORM: JsonSchemaValue = {"if": _IS_FILE, "then": {"properties": {_KEY: _URL}}}
NO_FILE_FORM: JsonSchemaValue = {"not": {**_IS_FILE, "properties": {_KEY: _URL}}}


def file_url(value: object) -> str | None:
    """Return the URL of an argument that is a file, else None."""
    url = value[_KEY] if isinstance(value, dict) and value.keys() == {_KEY} else None
    return url if isinstance(url, str) else None


def local_path(url: str) -> str | None:
    """Return the path behind a ``file://`` URL, else None."""
    return urlsplit(url).path if url.startswith("file:///") else None


def file_problems(stage: Plain) -> Iterator[Diagnostic]:
    """Yield files that Parsl cannot stage, and those of a search, which is no task of Parsl's."""
    for argument, value in mapping_at(stage, "with").items():
        url = file_url(value)
        if url is None:
            continue
        is_known = _is_known(url)
        if "tune" not in stage and not is_known:
            yield Diagnostic(("with", argument, _KEY), shown(url), _ALLOWED)
        elif "tune" in stage and is_known:
            allowed = "a path, or what a stage before it returns: a search stages no files"
            yield Diagnostic(("with", argument, _KEY), shown(url), allowed)


def _is_known(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    has_host = bool(parts.netloc) if parts.scheme in _REMOTE else url.startswith("file:///")
    return has_host and bool(PurePosixPath(parts.path).name) and not parts.path.endswith("/")
