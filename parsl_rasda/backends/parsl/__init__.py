"""Sites that a Parsl provider reaches, and executors of programs that have loaded Parsl.

On the controller: `backend` (the port; one thread owns all state), `jobs` (the jobs that were started),
`pilot_pool` (the pilots, and stages on them), `pilot_source` and `htex` (Parsl's objects), `own_addresses`
(where pilots reach this machine), `control_server` (the channel to the agents), `staging` (Parsl's Files).
Parsl is imported when the backend is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parsl_rasda.plugins import NoOptions, Plugin

if TYPE_CHECKING:
    from parsl_rasda.orchestration.backend import Backend, BackendContext
    from parsl_rasda.study.parsl_site import ParslSiteSpec


def _build(_: NoOptions, site: ParslSiteSpec, context: BackendContext) -> Backend:
    from parsl_rasda.backends.parsl.backend import build

    return build(site, context)


PLUGIN = Plugin(_build)
