"""A run is verified by what follows from its journal, and by what its ranks have written."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from google_crc32c import value as crc_of
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from parsl_rasda.cli.main import app
from parsl_rasda.errors import RunDirectoryError
from parsl_rasda.orchestration.assembly import build_machine
from parsl_rasda.orchestration.events import ContinueJob, EpochReported, StartJob, TrialProposed
from parsl_rasda.orchestration.journal import Journal, Record, read
from parsl_rasda.orchestration.replay import keep_first_method
from parsl_rasda.orchestration.run_directory import RunDirectory
from parsl_rasda.orchestration.stage_records import StageRecord, write_record
from parsl_rasda.protocol import JobSpec
from parsl_rasda.reporting.runs import read_run
from parsl_rasda.runtime.checkpoints.checkpoint import write_checkpoint
from parsl_rasda.study import dump_study
from parsl_rasda.types import JobId, SiteName, StageState, TrialId
from parsl_rasda.verification.retraining import retrain
from parsl_rasda.verification.stretches import (
    Reported,
    Stretch,
    other_width,
    parted,
    sample,
    stretches_of,
    with_origins,
)


def sealed(line):
    """Return a record of a journal as text, with the checksum that belongs to it."""
    body = json.dumps({key: value for key, value in line.items() if key != "crc"})[:-1].encode()
    return body + b', "crc": "%08x"}' % crc_of(body)


def forged(journal, change):
    """Change the first record that `change` changes, and seal it again; returns its line."""
    lines = journal.read_bytes().splitlines()
    for number, text in enumerate(lines[1:], 1):
        line = json.loads(text)
        if change(line):
            lines[number] = sealed(line)
            journal.write_bytes(b"\n".join(lines) + b"\n")
            return number + 1
    raise AssertionError("nothing to forge")


def write_reports(run):
    """Write the epochs of each attempt as its ranks would have."""
    for event in (r.event for r in read(run / "journal.jsonl") if isinstance(r.event, EpochReported)):
        folder = run / "trials" / event.job.trial / f"attempt-{event.job.attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        report = {"trial": event.job.trial, "attempt": event.job.attempt, "epoch": event.epoch}
        report |= {"metrics": dict(event.metrics), "seconds": event.seconds, "format": 1}
        with (folder / "epochs.jsonl").open("a") as file:
            file.write(json.dumps(report) + "\n")


def verify(run):
    result = CliRunner().invoke(app, ["verify", str(run), "--stretches", "0", "--json"])
    document = json.loads(result.stdout[result.stdout.index("{") :])
    return result.exit_code, document["searches"]["tune"]


@pytest.fixture
def run(rehearsals, tmp_path):
    """A run whose configurations are those that its searcher proposes, with the files of its ranks."""
    from parsl_rasda.orchestration.assembly import build_study_searcher

    study = rehearsals.study_of()
    searcher = build_study_searcher(study.tune_stages["tune"].tune, study.seed)
    configs = [searcher.propose(TrialId(f"{i:04d}")) for i in range(8)]
    rehearsals.into(tmp_path / "run", study, config_of=configs.__getitem__)
    name_checkpoints(tmp_path / "run")
    write_reports(tmp_path / "run")
    write_checkpoint(best_model(tmp_path / "run"), {}, {})
    return tmp_path / "run"


def name_checkpoints(run):
    """Let the checkpoints of a rehearsal be where those of its attempts would be."""

    def named(found):
        trial, attempt, epoch = found.groups()
        return f'"{run}/trials/{trial}/attempt-{attempt}/epoch-{int(epoch):06d}"'

    journal = run / "journal.jsonl"
    lines = re.sub(r'"(\d+)\.(\d+)/(\d+)"', named, journal.read_text()).splitlines()
    journal.write_bytes(b"\n".join(sealed(json.loads(line)) for line in lines) + b"\n")


def best_model(run):
    return Path(read_run(run).document()["best"]["checkpoint"])


def test_an_honest_run_is_verified_whole(run) -> None:
    code, found = verify(run)
    records = list(read(run / "journal.jsonl"))
    assert code == 0, found["differences"]
    assert found["decisions"]["total"] == sum(len(r.instructions) for r in records) > 20
    for name in ("decisions", "configurations", "reports", "checkpoints"):
        assert found[name]["same"] == found[name]["total"] > 0
    assert found["stretches"]["sampled"] == 0
    assert found["whole"]


def test_a_decision_that_was_changed_and_sealed_again_is_told_with_its_line(run) -> None:
    def stop_instead(line):
        ends = [i for i in line["instructions"] if i["type"] == "TrialFinished" and i["state"] == "stopped"]
        for one in ends:
            one["state"] = "completed"
        return ends

    number = forged(run / "journal.jsonl", stop_instead)
    code, found = verify(run)
    assert code == 5
    assert f"journal.jsonl:{number}: " in found["differences"][0]
    assert found["decisions"]["same"] < found["decisions"]["total"]


def test_a_metric_that_was_made_better_is_told_by_what_the_ranks_wrote(run) -> None:
    """The last epoch of the search decides nothing more, so the replay alone would not find it."""
    lines = (run / "journal.jsonl").read_bytes().splitlines()
    last = max(i for i, text in enumerate(lines) if b'"EpochReported"' in text)
    record = json.loads(lines[last])
    record["event"]["metrics"]["val_loss"] *= 0.999
    lines[last] = sealed(record)
    (run / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code, found = verify(run)
    assert code == 5
    assert any("the ranks wrote" in text for text in found["differences"])


def test_a_configuration_that_the_searcher_did_not_propose_is_told(run) -> None:
    def change(line):
        if line["event"]["type"] != "TrialProposed":
            return False
        line["event"]["config"]["lr"] = 0.05
        return True

    forged(run / "journal.jsonl", change)
    code, found = verify(run)
    assert code == 5
    assert found["configurations"]["same"] == 0
    assert "trial 0000 was proposed" in found["configurations"]["difference"]


def test_a_journal_that_was_changed_without_its_checksum_is_told(run) -> None:
    text = (run / "journal.jsonl").read_bytes()
    (run / "journal.jsonl").write_bytes(text.replace(b'"until": 2', b'"until": 3', 1))
    code, found = verify(run)
    assert code == 5
    assert "not a record of a journal" in found["differences"][0]


def test_stretches_without_an_order_are_counted_by_that_reason(run) -> None:
    _, found = verify(run)
    reasons = found["stretches"]["left_out"]
    assert sum(reasons.values()) == len(stretches_of(read(run / "journal.jsonl")))
    assert [reason.split()[0] for reason in reasons] == ["have"]


def test_a_folder_of_trials_that_is_gone_makes_a_difference(run) -> None:
    shutil.rmtree(run / "trials")
    code, found = verify(run)
    assert code == 5
    assert found["reports"]["same"] == found["checkpoints"]["same"] == 0
    assert any("the ranks wrote nothing that is here" in text for text in found["differences"])
    assert any("is gone, the model of trial" in text for text in found["differences"])


def test_what_lies_in_a_folder_of_its_site_is_told_and_not_whole(run) -> None:
    with (run / "sites" / "virtual.yaml").open("a") as file:
        file.write("work_dir: /elsewhere\n")
    shutil.rmtree(run / "trials")
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert "folder of their site" in found["reports"]["unknown"]
    assert "is not here" in found["checkpoints"]["unknown"]
    assert not found["whole"]


def cut(run, number):
    """Cut lines off the end of the journal."""
    journal = run / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-number]))


def test_a_journal_whose_end_was_cut_off_is_told_by_what_the_ranks_wrote(run) -> None:
    """So may one be whose controller died, if only epochs of attempts are missing that it knows."""
    cut(run, 2)
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert not found["whole"]
    assert found["reports"]["same"] < found["reports"]["total"]
    assert "not in the journal" in found["reports"]["unknown"]
    cut(run, 30)
    code, found = verify(run)
    assert code == 5
    assert any("ranks trained, the journal lacks it" in text for text in found["differences"])


def test_the_end_of_a_search_that_is_done_cannot_be_cut_off(run) -> None:
    write_record(run / "stages" / "tune", StageRecord(StageState.DONE))
    assert verify(run)[0] == 0
    cut(run, 1)
    code, found = verify(run)
    assert code == 5
    assert "its end is gone" in found["differences"][0]


def test_a_journal_without_records_is_refused(run) -> None:
    (run / "journal.jsonl").write_bytes((run / "journal.jsonl").read_bytes().splitlines(keepends=True)[0])
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert isinstance(result.exception, RunDirectoryError)
    assert "no records" in str(result.exception)


def test_a_model_that_is_gone_makes_a_difference_and_a_folder_without_a_header_is_told(run) -> None:
    model = best_model(run)
    (model.with_name("epoch-000001")).mkdir()
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert (found["checkpoints"]["same"], found["checkpoints"]["total"]) == (1, 2)
    assert "epoch-000001 has no header.json" in found["checkpoints"]["unknown"]
    assert not found["whole"]
    (model / "header.json").unlink()
    code, found = verify(run)
    assert code == 5
    assert f"{model} is gone" in found["differences"][0]
    assert (found["checkpoints"]["same"], found["checkpoints"]["total"]) == (0, 2)


def test_decisions_are_not_verified_whole_where_a_journal_says_nothing_of_its_version(run) -> None:
    """Whoever takes version and checksums away can forge what he wants; at least it is not called whole."""
    journal, lines = run / "journal.jsonl", []
    for text in journal.read_text().splitlines():
        line = json.loads(text)
        lines.append(json.dumps({k: v for k, v in line.items() if k not in {"crc", "version"}}))
    journal.write_text("\n".join(lines).replace('"state": "stopped"', '"state": "completed"', 1) + "\n")
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert "are not verified" in found["decisions"]["unknown"]
    assert not found["whole"]


def test_a_run_whose_method_was_changed_is_verified_by_the_one_that_it_began_with(run, rehearsals) -> None:
    keep_first_method(RunDirectory(run), rehearsals.study_of().tune_stages["tune"].tune)
    (run / "study.yaml").write_text(dump_study(rehearsals.study_of(scheduler={"max_t": 16})))
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert found["decisions"]["same"] == found["decisions"]["total"] > 20


def test_a_trial_that_the_user_has_added_need_not_be_proposed_again(run, rehearsals) -> None:
    """It was told in the middle of the search; all after it goes another way, and is cut off here."""
    records = list(read(run / "journal.jsonl"))
    middle = next(i for i, r in enumerate(records) if isinstance(r.event, EpochReported))
    machine, kept = build_machine(rehearsals.study_of().tune_stages["tune"].tune), records[:middle]
    for record in kept:
        machine.handle(record.event)
    number = TrialId(f"{len(machine.trials):04d}")
    added = TrialProposed(kept[-1].event.at, number, {"lr": 0.042, "optimizer": "sgd"}, told=1)
    (run / "journal.jsonl").unlink()
    shutil.rmtree(run / "trials")
    with Journal(run / "journal.jsonl", "rehearsed") as journal:
        journal.append([*kept, Record(added, machine.handle(added))])
    code, found = verify(run)
    assert code == 0, found["differences"]
    assert found["configurations"]["same"] == found["configurations"]["total"] == len(machine.trials) - 1


def test_a_directory_without_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert isinstance(result.exception, RunDirectoryError)
    assert result.exception.exit_code == 2


# ------------------------------------------------------------------------------------------- stretches


def test_every_reported_epoch_belongs_to_one_stretch_and_schedules_grow(run) -> None:
    records = list(read(run / "journal.jsonl"))
    stretches = stretches_of(records)
    reported = sorted((r.event.job, r.event.epoch) for r in records if isinstance(r.event, EpochReported))
    assert sorted((s.job, e.epoch) for s in stretches for e in s.epochs) == reported
    instructions = [i for r in records for i in r.instructions]
    starts = sum(isinstance(i, StartJob | ContinueJob) for i in instructions)
    assert len(stretches) == starts
    for stretch in stretches:
        assert stretch.schedule[-1][0] <= stretch.begin < stretch.until


def stretch_of(begin=0, until=4, width=2, replicas=4, kept=()):
    epochs = [Reported(e, {"m": 1.0 / e}, 1.0, f"e{e}") for e in range(begin + 1, until + 1)]
    job, origin = JobId(TrialId("0001"), 1), f"e{begin}" if begin else None
    made = Stretch(job, SiteName("s"), begin, origin, width, ((0, replicas),), {}, {}, tuple(epochs))
    return [*parted(made, lambda path: path in kept)]


def test_a_checkpoint_inside_parts_a_stretch() -> None:
    parts = stretch_of(kept={"e2", "e3"})
    assert [(p.begin, p.until, p.origin, p.end) for p in parts] == [
        (0, 2, None, "e2"),
        (2, 3, "e2", "e3"),
        (3, 4, "e3", "e4"),
    ]
    assert [p.is_from_scratch for p in parts] == [True, False, False]


@given(kept=st.sets(st.integers(1, 9)), begin=st.integers(0, 5), length=st.integers(1, 6))
def test_parts_are_the_whole(kept, begin, length) -> None:
    parts = stretch_of(begin, begin + length, kept={f"e{k}" for k in kept})
    assert [e.epoch for p in parts for e in p.epochs] == [*range(begin + 1, begin + length + 1)]
    assert all(a.until == b.begin for a, b in pairwise(parts))


@given(exponent=st.integers(0, 5), width=st.integers(0, 5), slots=st.integers(1, 64))
def test_the_other_width_divides_the_replicas_fits_and_is_another_where_there_is_one(
    exponent, width, slots
) -> None:
    replicas = 2**exponent
    (stretch,) = stretch_of(width=2 ** min(width, exponent), replicas=replicas)
    found = other_width(stretch, slots)
    assert replicas % found == 0
    assert found <= slots
    assert found != stretch.width or stretch.width == 1 == min(slots, replicas)


def test_the_best_model_is_always_trained_again_and_half_have_weights() -> None:
    (plain,) = stretch_of(until=1)
    many = [replace(plain, job=JobId(TrialId(f"{i:04d}"), 1)) for i in range(20)]
    bare = [replace(s, epochs=(replace(s.epochs[0], checkpoint=None),)) for s in many[:16]]
    best = replace(many[19], epochs=(replace(many[19].epochs[0], checkpoint="best"),))
    for seed in range(10):
        chosen = sample([*bare, *many[16:19], best], 5, seed, "best", lambda path: True)
        assert chosen[0] == best
        assert len({s.job for s in chosen}) == 5
        assert sum(s.end is not None for s in chosen) >= 3


@given(kept=st.sets(st.integers(1, 12)), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_what_comes_before_a_stretch_leads_to_it_without_a_gap(kept, lengths) -> None:
    """From the start, or from a checkpoint that is there; then each begins where the last one ended."""
    paths, parts, begin = {f"e{k}" for k in kept}, [], 0
    for length in lengths:
        parts += stretch_of(begin, begin + length, kept=paths)
        begin += length
    found = [*with_origins(parts, paths.__contains__)]
    assert None not in found
    for part in found:
        chain = (*part.before, part)
        assert chain[0].is_from_scratch or chain[0].origin in paths
        assert all(a.until == b.begin and a.end == b.origin for a, b in pairwise(chain))
        assert all(b.origin not in paths for b in chain[1:]), "no more than is needed"


def test_where_a_trial_went_on_in_mid_epoch_nothing_leads() -> None:
    (first,) = stretch_of(until=2)
    later = replace(first, begin=2, origin="e2-step-7", epochs=(Reported(3, {"m": 1.0}, 1.0, "e3"),))
    assert [*with_origins([first, later], lambda path: False)] == [first, None]


def test_a_stretch_that_cannot_be_trained_makes_a_difference_whatever_gpus_it_had(tmp_path) -> None:
    """Ranks that fail have told of no GPU; that is no reason to think that the run had others."""
    (stretch,) = stretch_of(until=1, width=1, replicas=1)
    stretch = replace(stretch, devices=frozenset({"NVIDIA H200"}), exact="")
    order = JobSpec(
        study="s",
        trial=stretch.job.trial,
        attempt=1,
        config={},
        directory=str(tmp_path / "attempt-1"),
        seed=0,
        metric="m",
        mode="min",
        epoch=0,
        until=1,
        max_epochs=1,
        schedule=((0, 1),),
        world_size=1,
        python="no_such_module:train",
        accelerator="none",
    )
    found = retrain(stretch, order, {}, None)
    assert "could not be trained" in found.difference
    assert "no_such_module" in found.difference
    assert found.doubt == ""
