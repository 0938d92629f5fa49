"""The controller's side of where things really run: the port of `orchestration.backend`, carried out.

`registry` builds the backend of a site, `multi_site` makes one of several. `actor` (a thread that owns
its books) and `allocation` (what a pilot turned out to be) know no backend; `parsl` and `globus` do not
know each other. What runs on pilots is in `agent`. Nothing here imports Parsl or Globus Compute before a
backend is opened, and nothing imports `runtime`: ranks are started as ``python -m parsl_rasda.runtime``.

    backend = build_backend(site, BackendContext(directory))
    with backend.hold():                          # pilots stay from one stage to the next
        fields = backend.submit_stage(task)       # beside the jobs, holds no slots
        driver.run(...)                           # opens, uses and closes the backend
"""
