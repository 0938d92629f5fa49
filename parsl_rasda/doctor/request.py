"""Whether the batch system would take the pilot of a study, which is larger than `doctor`'s own."""

from __future__ import annotations

from parsl_rasda.backends.parsl.request_check import check_request
from parsl_rasda.doctor.findings import Finding, Rating
from parsl_rasda.study import SiteBase


def request_finding(site: SiteBase) -> Finding:
    """Return what the batch system says of the request of a site as its file has it; nothing is queued."""
    answer = check_request(site)
    if answer is None:
        return Finding("request of a study", "its batch system cannot be asked", Rating.NONE)
    if answer.is_taken:
        return Finding("request of a study", answer.words, Rating.GOOD)
    advice = "change what `provider` asks for: nodes, walltime, partition or queue, account, QOS"
    return Finding("request of a study", answer.words, Rating.BAD, advice)
