from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import typer
from rich.console import ConsoleDimensions

from parsl_rasda.cli.export import export
from parsl_rasda.cli.init import Template, copy_template, draft, init
from parsl_rasda.cli.options import load_inputs
from parsl_rasda.cli.plan import plan
from parsl_rasda.cli.report import report
from parsl_rasda.cli.run_and_report import run_and_report
from parsl_rasda.cli.status import status
from parsl_rasda.cli.validate import validate
from parsl_rasda.cli.watch import fitting_view, watch
from parsl_rasda.errors import (
    InvalidFileError,
    InvalidSettingError,
    RunDirectoryError,
    StageFailedError,
)
from parsl_rasda.orchestration.stage_records import StageRecord, write_record
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.reporting.tables import as_text
from parsl_rasda.study import load_study
from parsl_rasda.types import StageState, StudyState

STUDY = """
name: small
tune:
  metric: val_loss
  num_samples: 8
  scheduler: {max_t: 8, max_workers: 4}
  search_space: {lr: {float: [0.001, 0.1]}}
  training: {python: workflows.emulated.train:train}
  estimates: {epoch_s: 10, restart_s: 1, efficiency: 0.9}
"""
SITE = "provider: {type: LocalProvider}\naccelerator: none\nmpi_launcher: process\ngpus_per_node: 4\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def site(tmp_path: Path) -> str:
    file = tmp_path / "quad.yaml"
    file.write_text(SITE)
    return str(file)


HOW_TO_FIX = "fix the training, then resume with --retry-failed, or run it with another --dir"
NO_ACCOUNT = StageRecord(StageState.NO_SITE, at=1.0, cause="Site 'quad' is not available: no account")


@dataclass
class Ended:
    state: StudyState


@pytest.fixture(params=[StudyState.DONE, StudyState.FAILED, StudyState.NO_SITE, StudyState.INTERRUPTED])
def ended(request, rehearsals, tmp_path) -> tuple[StudyState, Path]:
    """A run that ended in each way."""
    state, directory = request.param, tmp_path / "ended"
    never = rehearsals.costs_of(metric=lambda trial, epoch: float("nan"))
    failed = state is StudyState.FAILED
    torn_after = {StudyState.INTERRUPTED: 60.0, StudyState.NO_SITE: 0.0}.get(state)
    costs = never if failed else None
    rehearsals.into(directory, rehearsals.study_of(), costs=costs, torn_after=torn_after)
    if state is StudyState.NO_SITE:
        write_record(directory / "stages" / "tune", NO_ACCOUNT)
    return state, directory


# ------------------------------------------------------------------------------- run and resume


def test_a_run_exits_with_the_code_of_its_end_and_says_how_to_go_on(ended, capsys) -> None:
    state, directory = ended
    code = {StudyState.DONE: 0, StudyState.FAILED: 3, StudyState.NO_SITE: 4, StudyState.INTERRUPTED: 130}
    with pytest.raises(typer.Exit) as exit_:
        run_and_report(directory, lambda view: Ended(state), as_json=False)
    assert exit_.value.exit_code == code[state]
    out, err = capsys.readouterr()
    assert f"all of it is in {directory}; open {directory / 'report.html'}" in out
    assert f"rehearsed: {state.value.replace('_', ' ')}" in (directory / "report.html").read_text()
    assert ("no account" in out) == (state is StudyState.NO_SITE)
    can_go_on = state in {StudyState.NO_SITE, StudyState.INTERRUPTED}
    assert (f"Resume with: parsl-rasda resume {directory}" in err) == can_go_on
    assert (HOW_TO_FIX in err) == (state is StudyState.FAILED)


def test_run_and_status_print_one_and_the_same_document(ended, capsys) -> None:
    state, directory = ended
    with pytest.raises(typer.Exit):
        run_and_report(directory, lambda view: Ended(state), as_json=True)
    printed = capsys.readouterr().out
    status(directory, as_json=True)
    assert printed == capsys.readouterr().out
    document = json.loads(printed, parse_constant=pytest.fail)
    assert document["state"] == state.value
    assert set(document) >= {
        "study",
        "cause",
        "best",
        "trials",
        "makespan_s",
        "gpu_busy_fraction",
        "gpu_hours",
        "restarts",
        "faults",
        "searches",
        "stages",
        "directory",
    }


def test_a_failed_stage_says_why_and_how_to_go_on_and_is_in_the_document(pipeline, capsys) -> None:
    write_record(
        pipeline / "stages" / "evaluate", StageRecord(StageState.FAILED, cause="ValueError: no field")
    )

    def start(view):
        raise StageFailedError("evaluate", "ValueError: no field")

    with pytest.raises(typer.Exit) as exit_:
        run_and_report(pipeline, start, as_json=True)
    assert exit_.value.exit_code == 3
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["state"], document["cause"]) == ("failed", "stage evaluate: ValueError: no field")
    assert document["best"]["trial"], "what was found before stands"
    assert "Stage 'evaluate' failed: ValueError: no field" in err
    assert f"Resume with: parsl-rasda resume {pipeline}" in err


def test_a_ctrl_c_before_the_stages_says_how_to_go_on(ended, capsys) -> None:
    def start(view):
        raise KeyboardInterrupt

    state, directory = ended
    with pytest.raises(typer.Exit) as exit_:
        run_and_report(directory, start, as_json=True)
    assert exit_.value.exit_code == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["state"] == state.value
    assert ("Resume with:" in err) == (state in {StudyState.NO_SITE, StudyState.INTERRUPTED})


def test_what_the_sdk_warns_of_is_kept_in_a_file(finished, capsys) -> None:
    sdk = logging.getLogger("globus_compute_sdk.sdk.executor")

    def start(view):
        sdk.info("all is well")
        logging.getLogger("pika.adapters").error("the broker has gone")
        words, module = "\nEnvironment differences detected between ...", "globus_compute_sdk.sdk.client"
        warnings.warn_explicit(words, UserWarning, "client.py", 314, module)
        return Ended(StudyState.DONE)

    with pytest.raises(typer.Exit):
        run_and_report(finished, start, as_json=True)
    sdk.warning("nobody listens any more")
    text = (finished / "globus.log").read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == [
        "ERROR pika.adapters the broker has gone"
    ]
    assert "broker" not in capsys.readouterr().err


def test_a_run_that_was_refused_prints_nothing(finished, capsys) -> None:
    def start(view):
        raise RunDirectoryError(str(finished), "is being run by process 7", "Wait for it.")

    with pytest.raises(RunDirectoryError):
        run_and_report(finished, start, as_json=True)
    assert capsys.readouterr() == ("", "")


def test_advice_can_be_pasted_into_a_shell(finished, rehearsals, capsys) -> None:
    odd = finished.with_name("my runs; x")
    rehearsals.into(odd, rehearsals.study_of(), torn_after=60.0)
    with pytest.raises(typer.Exit):
        run_and_report(odd, lambda view: Ended(StudyState.INTERRUPTED), as_json=False)
    assert f"Resume with: parsl-rasda resume '{odd}'" in capsys.readouterr().err
    status(odd)
    assert f"go on with: parsl-rasda resume '{odd}'" in capsys.readouterr().out


def test_a_bug_is_not_dressed_up_as_the_users_mistake(tmp_path) -> None:
    def start(view):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_report(tmp_path, start, as_json=False)


def test_a_run_that_ended_before_it_began_prints_nothing(tmp_path, capsys) -> None:
    def start(view):
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit):
        run_and_report(tmp_path, start, as_json=False)
    assert capsys.readouterr() == ("", ""), "there is nothing to resume"


# ------------------------------------------------------------------------------- the others


def test_status_shows_each_trial_and_how_to_go_on(rehearsals, tmp_path, capsys) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(), torn_after=60.0)
    status(tmp_path)
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert f"go on with: parsl-rasda resume {tmp_path}" in out
    assert all(f"{i:04d}" in out for i in read_run(tmp_path).searches["tune"].machine.trials and range(4))


def test_status_of_a_failed_study_says_to_mend_it(rehearsals, tmp_path, capsys) -> None:
    never = rehearsals.costs_of(metric=lambda trial, epoch: float("nan"))
    rehearsals.into(tmp_path, rehearsals.study_of(), costs=never)
    status(tmp_path)
    out = capsys.readouterr().out
    assert HOW_TO_FIX in out
    assert "go on with" not in out
    shared = "failed    trial 0000, 0001, 0002, 0003 and 4 more: val_loss is nan after epoch 1"
    assert out.count("val_loss is nan after epoch 1") == 1 + 8, (
        "once above, and once in each row of the table"
    )
    assert shared in out
    assert "faults" not in out, "what a failed trial says already"


def test_status_as_json_is_valid_json(finished, capsys) -> None:
    status(finished, as_json=True)
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["trials"]["failed"] == 1
    assert document["controller"] is None


def test_watch_follows_until_nobody_runs_it_and_shows_the_end(finished, monkeypatch, capsys) -> None:
    run = read_run(finished)
    seen = [replace(run, controller="somebody"), replace(run, controller="somebody"), run]
    monkeypatch.setattr("parsl_rasda.reporting.runs.read_run", lambda directory: seen.pop(0))
    watch(finished, every=0.1)
    assert not seen
    out = capsys.readouterr().out
    assert "rehearsed: done" in out
    assert out.count("rehearsed: done") == 1, "what was redrawn leaves no trace where there is no terminal"


@pytest.mark.parametrize(("height", "trials"), [(16, 1), (24, 1), (30, 7), (60, 16)])
def test_watch_shows_as_many_trials_as_the_screen_has_lines_for(rehearsals, tmp_path, height, trials) -> None:
    rehearsals.into(tmp_path, rehearsals.study_of(num_samples=30), torn_after=150.0)
    run = replace(read_run(tmp_path), controller="process 7 on n1")
    lines = as_text(fitting_view(run, ConsoleDimensions(100, height)), 100).splitlines()
    assert lines[-1] == "being run by process 7 on n1"
    assert len(lines) < height or trials == 1
    assert sum(line.startswith("00") for line in lines) == trials


def test_ctrl_c_ends_the_watching_quietly(finished, monkeypatch) -> None:
    def interrupted(seconds):
        raise KeyboardInterrupt

    run = replace(read_run(finished), controller="somebody")
    monkeypatch.setattr("parsl_rasda.reporting.runs.read_run", lambda directory: run)
    monkeypatch.setattr("time.sleep", interrupted)
    watch(finished)


def test_export_says_what_it_wrote_and_how_to_open_it(finished, capsys) -> None:
    export(finished, "optuna")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"wrote {finished / 'optuna.db'}"
    assert second == f"open it with: optuna-dashboard sqlite:///{finished / 'optuna.db'}"


def test_report_prints_what_it_wrote(finished, capsys) -> None:
    report([finished])
    out = capsys.readouterr().out
    for name in ("results.csv", "best.json", "summary.txt"):
        assert f"wrote {finished / name}" in out
        assert (finished / name).exists()


def test_plan_prints_rungs_and_policies(study, site, capsys) -> None:
    plan(study, [site])
    out = capsys.readouterr().out
    assert "small, stage tune: 8 trials on 4 GPUs, 1 node: quad" in out
    for word in ("RASDA elastic *", "RASDA strict", "ASHA", "makespan", "GPU-hours", "assumed"):
        assert word in out, word


def test_plan_says_first_what_is_guessed_and_how_to_replace_it(study, site, finished, capsys) -> None:
    declared = study.read_text()
    study.write_text(re.sub(r"(?m)^  estimates:.*\n", "", declared))
    plan(study, [site], seeds=1)
    first, title, costs = capsys.readouterr().out.splitlines()[:3]
    assert first.startswith("Guessed, so believe no hour: an epoch of 60 s and a restart of 10 s; ")
    assert "`plan --from RUN`" in first
    assert title.startswith("small, stage tune")
    assert costs.endswith("guessed (tune.estimates)")
    study.write_text(declared)
    for options in ({}, {"run": finished}):
        plan(study, [site], seeds=1, **options)
        assert "uessed" not in capsys.readouterr().out


def test_plan_as_json_has_what_the_tables_show(study, site, capsys) -> None:
    plan(study, [site], overrides=["tune.num_samples=16"], as_json=True)
    (stage,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["stages"]
    assert stage["trials"] == 16
    names = ["RASDA elastic", "RASDA strict", "ASHA", "RASDA synchronous", "Hyperband"]
    assert [p["name"] for p in stage["policies"]] == names
    assert {"makespan_s", "gpu_hours", "node_hours", "gpu_busy_fraction", "restarts", "speedup"} <= set(
        stage["policies"][0]
    )


def test_plan_from_a_run_counts_gpus_as_the_run_found_them(study, finished, capsys, tmp_path) -> None:
    far = tmp_path / "virtual.yaml"
    far.write_text("provider: {type: SlurmProvider}\nnodes: 2\n")
    with pytest.raises(InvalidSettingError, match="gpus_per_node"):
        plan(study, [str(far)])
    plan(study, [str(far)], finished)
    out = capsys.readouterr().out
    assert "8 trials on 4 GPUs, 2 nodes" in out
    assert f"measured in {finished}" in out


def test_plan_compares_sizes_and_draws_them(study, site, capsys, tmp_path) -> None:
    plan(study, [site], nodes="1,2, 4", figure=tmp_path / "sizes.svg", queue_wait=600)
    out, err = capsys.readouterr()
    assert "8 trials on 4 GPUs" in out
    assert "first pilot after 10 min 0 s" in out
    rows = [line.split()[:2] for line in out.splitlines() if line.split()[:1] in (["1"], ["2"], ["4"])]
    assert rows[-3:] == [["1", "4"], ["2", "8"], ["4", "16"]]
    assert err == f"wrote {tmp_path / 'sizes.svg'}\n"
    drawn = ElementTree.fromstring((tmp_path / "sizes.svg").read_text())
    texts = [t.text for t in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("makespan", "node-hours", "nodes of a pilot", "RASDA elastic", "RASDA strict", "ASHA"):
        assert word in texts, word
    assert "var(" not in (tmp_path / "sizes.svg").read_text(), "programs for papers know no variables of CSS"


def test_plan_says_which_walltime_would_do(study, tmp_path, capsys) -> None:
    far = tmp_path / "far.yaml"
    far.write_text("provider: {type: SlurmProvider, walltime: '24:00:00'}\ngpus_per_node: 4\n")
    plan(study, [str(far)])
    out = capsys.readouterr().out
    assert "far: 1 pilot of 1 node would do, with a walltime of 00:05:00" in out
    assert "far: its walltime is 24:00:00; shorter jobs often start sooner" in out
    far.write_text("provider: {type: SlurmProvider, walltime: '00:00:30'}\ngpus_per_node: 4\n")
    plan(study, [str(far)], queue_wait=60)
    said = " ".join(capsys.readouterr().out.split())
    assert "far: its walltime of 00:00:30 ends before the study does: " in said
    assert "pilots in turn, after 1 min 0 s in the queue each" in said


def test_plan_of_a_run_alone_is_a_what_if(finished, capsys) -> None:
    plan(run=finished, as_json=True)
    (ran,) = json.loads(capsys.readouterr().out)["stages"]
    assert (ran["is_measured"], ran["sites"], ran["gpus"]) == (True, ["virtual"], 4)
    plan(run=finished, nodes="4", overrides=["tune.scheduler.grace_period=4"], as_json=True)
    (other,) = json.loads(capsys.readouterr().out)["stages"]
    assert other["gpus"] == 8
    assert [r["epochs"] for r in other["rungs"]] == [4, 8]
    assert other["policies"][0]["unknown_epochs"] > 0
    assert any("unknown" in sentence for sentence in other["advice"])


def test_plan_draws_a_png_where_there_is_a_library_for_it(
    study, site, capsys, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    picture = tmp_path / "sizes.png"
    plan(study, [site], nodes="1,2", figure=picture, seeds=1)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == f"wrote {picture}\n"
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(InvalidSettingError, match=r"--figure: .*pip install 'parsl_rasda\[figures\]'"):
        plan(study, [site], nodes="1,2", figure=picture)


def test_plan_learns_the_wait_from_earlier_pilots(study, finished, capsys, tmp_path) -> None:
    there = tmp_path / "virtual.yaml"
    there.write_text(SITE)
    plan(study, [str(there)], queue_from=[finished])
    assert "first pilot after 12.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nodes": "4,x"}, r"--nodes: found '4,x'"),
        ({"nodes": "0"}, r"--nodes: found '0'"),
        ({"queue_wait": float("nan")}, r"--queue-wait: found nan"),
        ({"figure": Path("a.svg")}, r"--figure: .*--nodes"),
        ({"figure": Path("a.pdf"), "nodes": "1,2"}, r"--figure: .*\.svg"),
    ],
)
def test_plan_refuses_options_in_words(study, site, options, match) -> None:
    with pytest.raises(InvalidSettingError, match=match):
        plan(study, [site], **options)


def test_plan_needs_a_study_or_a_run_and_pilots_of_its_sites(study, site, finished) -> None:
    with pytest.raises(InvalidSettingError, match="STUDY"):
        plan()
    with pytest.raises(InvalidSettingError, match=r"--queue-from: .*quad"):
        plan(study, [site], queue_from=[finished])
    with pytest.raises(InvalidSettingError, match="either it or --queue-from"):
        plan(study, [site], queue_from=[finished], queue_wait=3)


def test_plan_counts_this_machine_itself(study, capsys) -> None:
    plan(study, ["local"], as_json=True)
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["gpus"] >= 1


def test_validate_says_ok_of_each_file(study, site, capsys) -> None:
    validate(study, [site])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{study}: ok (1 stage, 8 trials, of up to 8 epochs)"
    assert second == f"{site}: ok (1 x 1 node, 4 slots each, process)"


def test_validate_says_when_the_batch_of_a_script_would_follow_idle_gpus(study, capsys) -> None:
    script = "tune.training={command: [train, '{report}', '{max_t}'%s]}"
    validate(study, [], [script % ""])
    assert "uses neither {replicas} nor {world_size}" in capsys.readouterr().out
    for settled in ([script % ", '{replicas}'"], [script % "", "tune.scheduler.growth=strict"]):
        validate(study, [], settled)
        assert "neither" not in capsys.readouterr().out


def test_validate_says_how_much_of_a_grid_is_tried(study, capsys) -> None:
    space = "tune.search_space={a: {choice: [1, 2, 3]}, b: {choice: [x, y, z]}}"
    validate(study, [], ["tune.searcher.kind=grid", space])
    assert "8 trials of the 9 points of its grid, of up to 8 epochs" in capsys.readouterr().out


def test_mistakes_of_all_files_come_at_once(study, tmp_path) -> None:
    study.write_text(STUDY.replace("max_t", "max_tt").replace("metric:", "metrik:"))
    bad = tmp_path / "bad.yaml"
    bad.write_text(SITE.replace("gpus_per_node: 4", "gpus_per_node: zero"))
    with pytest.raises(InvalidFileError) as error:
        load_inputs(study, [str(bad), "nowhere"])
    text = str(error.value)
    for part in ("max_tt", "metrik", "gpus_per_node", "no site of that name"):
        assert part in text, part


def test_one_site_twice_is_a_mistake(study, site) -> None:
    with pytest.raises(InvalidSettingError, match="different names"):
        load_inputs(study, [site, site])


SCRIPT_WITH_A_RATE = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
"""
ENDPOINT = """
endpoint_id: 4B116d3c-1703-4f8f-9f6f-39921e5864df
gpus_per_node: 4
work_dir: /scratch
user_endpoint_config: {nodes: 1, trials: 4}
"""


def test_two_sites_that_are_one_pilot_are_a_mistake_with_both_names_and_files(study, tmp_path) -> None:
    (tmp_path / "alps.yaml").write_text(ENDPOINT)
    same = ENDPOINT.replace("4B1", "4b1").replace("nodes: 1, trials: 4", "trials: 4, nodes: 1")
    (tmp_path / "fjord.yaml").write_text(f"name: other\n{same}")
    files = [str(tmp_path / name) for name in ("alps.yaml", "fjord.yaml")]
    with pytest.raises(InvalidSettingError) as error:
        load_inputs(study, files)
    assert f"alps ({files[0]}) and other ({files[1]}): the same endpoint_id" in str(error.value)
    assert error.value.exit_code == 2
    (tmp_path / "fjord.yaml").write_text(ENDPOINT.replace("{nodes", "{study: second, nodes"))
    assert len(load_inputs(study, files).sites) == 2


@pytest.mark.parametrize("template", Template)
def test_init_writes_files_that_validate(tmp_path, capsys, template) -> None:
    init(tmp_path / "new", template)
    named = f"{tmp_path / 'new' / 'study.yaml'} --site {tmp_path / 'new' / 'site.yaml'}"
    nexts = capsys.readouterr().out.splitlines()[-2:]
    assert nexts == [f"Next: parsl-rasda validate {named}", f"Next: parsl-rasda run {named}"]
    validate(tmp_path / "new" / "study.yaml", [str(tmp_path / "new" / "site.yaml")])
    assert capsys.readouterr().out.count(": ok (") == 2
    assert (tmp_path / "new" / "README.md").is_file()
    for name, schema in (("study", "study.schema.json"), ("site", "site.schema.json")):
        first, *rest = (tmp_path / "new" / f"{name}.yaml").read_text().splitlines()
        assert first.startswith("# yaml-language-server: $schema=file:///")
        assert Path(urlsplit(first.partition("=")[2]).path).name == schema
        assert Path(urlsplit(first.partition("=")[2]).path).is_file()
        assert name != "study" or "name: new" in rest


@pytest.mark.parametrize("name", ["2024", "2024-11-30", "1e3", "0x1F", "on", "null", "trial", "größe_2"])
def test_init_writes_the_name_of_a_folder_as_text_whatever_it_looks_like(tmp_path, name) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT_WITH_A_RATE)
    init(tmp_path / name, Template.MINIMAL)
    draft(script, tmp_path / "drafted" / name)
    for file in (tmp_path / name / "study.yaml", tmp_path / "drafted" / name / "study.yaml"):
        assert load_study(file).name == name


def test_init_overwrites_nothing(tmp_path) -> None:
    (tmp_path / "train.py").write_text("mine")
    with pytest.raises(InvalidSettingError, match=r"train\.py"):
        copy_template(Template.MINIMAL, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["train.py"]
    assert (tmp_path / "train.py").read_text() == "mine"


@pytest.mark.parametrize("command", [status, lambda folder: report([folder])], ids=["status", "report"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, command) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        command(tmp_path)
