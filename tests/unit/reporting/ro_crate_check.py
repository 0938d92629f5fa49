"""Validates a run directory as an RO-Crate; for a Python that has `roc-validator`, and without a network.

Called with the directory and the terms that stand in for the context on the web. Prints what is amiss, a line
each, and exits with 1 if something is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rdflib.plugins.shared.jsonld.context as contexts
from rocrate_validator import models, services
from rocrate_validator.utils import document_loader

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def main(crate: str, terms: str) -> int:
    """Validate; return the exit code."""
    context = {"@context": json.loads(Path(terms).read_text(encoding="utf-8"))}
    document_loader.install_document_loader()  # it would take its place at the first validation
    read = contexts.source_to_json

    def source_to_json(source: str, *rest: object) -> object:
        return (context, None) if source == CONTEXT else read(source, *rest)

    contexts.source_to_json = source_to_json
    result = services.validate(
        services.ValidationSettings(
            rocrate_uri=models.URI(crate),
            profile_identifier="workflow-run-crate",
            requirement_severity=models.Severity.REQUIRED,
            no_cache=True,
            skip_checks=["ro-crate-1.1_3.1", "ro-crate-1.1_3.2"],  # that the context is on the web
        )
    )
    for issue in result.get_issues():
        sys.stdout.write(f"{issue.check.identifier}: {issue.message}\n")
    return int(result.has_issues())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
