"""What a rung costs behind a Globus Compute endpoint, against the plain round trip of its SDK.

    PYTHONPATH=. python benchmarks/globus_rung.py [--out benchmarks/results/globus_rung.json]

Everything is real but the hosted web service (tests/integration/globus). A rung is one task: from
`start_job` to its `JobEnded`, of a trial whose epoch takes no time. What the same launch costs without
Globus Compute (an interpreter start, mostly) is measured beside it. The claim: what a rung takes more than
that is at most twice a plain round trip.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from claims import conclude

from parsl_rasda.agent import endpoint_tasks
from parsl_rasda.backends.registry import build_backend
from parsl_rasda.orchestration.backend import BackendContext
from parsl_rasda.orchestration.events import JobEnded, PilotStarted, RequestPilot
from parsl_rasda.protocol import JobSpec
from parsl_rasda.study.sites import GlobusSiteSpec
from parsl_rasda.testing.backends import EventLog
from parsl_rasda.types import NodeSlots, PilotId, Placement, SiteName, TrialId
from tests.integration.globus.bed import GlobusBed

REPEATS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    with GlobusBed("alps") as bed, tempfile.TemporaryDirectory() as folder:
        os.environ.update(bed.environment)
        found = measure(bed, Path(folder))
    conclude(found, {"at most two round trips": found["overhead_s"] <= 2 * found["plain_round_trip_s"]}, out)


def measure(bed: GlobusBed, folder: Path) -> dict[str, Any]:
    """Return medians [s]."""
    site = GlobusSiteSpec.model_validate(yaml.safe_load(bed.site_file("alps", folder / "disk")))
    runner, log = build_backend(site, BackendContext(folder / "runner")), EventLog(120.0)
    runner.open(log.post)
    began = time.perf_counter()
    runner.request_pilot(RequestPilot(PilotId("alps-0"), SiteName("alps")))
    pilot = log.next(PilotStarted)
    cold_s = time.perf_counter() - began
    node = pilot.nodes[0]
    placement = Placement(SiteName("alps"), pilot.pilot, (NodeSlots(node.node, node.gpus[:1]),))
    plain, asked, rungs, launches = [], [], [], []
    bare = bare_executor(site)
    for number in range(REPEATS):
        began = time.perf_counter()
        bare.submit(nothing).result(60)
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        runner._tasks.submit("poll", {"jobs": [], "silence_s": 1.0}).result(60)
        asked.append(time.perf_counter() - began)
        order = order_of(number, folder)
        began = time.perf_counter()
        runner.start_job(order, placement)
        log.next(JobEnded)
        rungs.append(time.perf_counter() - began)
        alone = dataclasses.replace(order, directory=str(folder / f"alone-{number}"), trial=TrialId("alone"))
        began = time.perf_counter()
        launch = {"argv": words(alone), "environment": {}, "files": {}}
        sender = {"folder": str(folder / "alone"), "mark": "alone", "term": 1}
        endpoint_tasks.run(alone.to_json(), launch, f"m{number}", sender, [], grace_s=5.0)
        launches.append(time.perf_counter() - began)
        time.sleep(2.0)  # twenty requests in ten seconds are allowed
    bare.shutdown()
    runner.close()
    medians = {"plain_round_trip_s": plain, "look_s": asked, "rung_s": rungs, "launch_alone_s": launches}
    summary = {name: round(statistics.median(values), 3) for name, values in medians.items()}
    overhead_s = summary["rung_s"] - summary["launch_alone_s"]
    return {
        "what": "one rung as one task, median of " + str(REPEATS),
        **summary,
        "overhead_s": round(overhead_s, 3),
        "overhead_over_plain_s": round(overhead_s - summary["plain_round_trip_s"], 3),
        "cold_start_s": round(cold_s, 1),
    }


def bare_executor(site: GlobusSiteSpec) -> Any:
    """Return the SDK's own executor on the same pilot, as anybody would use it."""
    from globus_compute_sdk import Client, Executor
    from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect

    client = Client(do_version_check=False)
    client.fx_serializer = ComputeSerializer(strategy_code=PureSourceTextInspect(), strategy_data=JSONData())
    return Executor(site.endpoint_id, client=client, user_endpoint_config=dict(site.user_endpoint_config))


def nothing():  # type: ignore[no-untyped-def]  # travels as source
    return None


def order_of(number: int, folder: Path) -> JobSpec:
    return JobSpec(
        study="rung",
        trial=TrialId(f"{number:04d}"),
        attempt=1,
        config={"lr": 0.01},
        directory=str(folder / "unused"),
        seed=1,
        metric="val_loss",
        mode="min",
        epoch=0,
        until=1,
        max_epochs=1,
        schedule=((0, 1),),
        world_size=1,
        python="workflows.emulated.train:train",
        inputs={"epoch_s": 0.0},
        slots=("vm:0",),
        accelerator="none",
    )


def words(order: JobSpec) -> list[str]:
    import sys

    return [sys.executable, "-m", "parsl_rasda.runtime", f"{order.directory}/order.json"]


if __name__ == "__main__":
    main()
