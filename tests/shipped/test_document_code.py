"""Every block of code in the documents does what it shows."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from parsl_rasda.cli.main import app
from parsl_rasda.study import load_site, load_study
from parsl_rasda.study.determined import draft_experiment
from tests.shipped.documents import AFTER, BEFORE, BETWEEN, PAGES, REPOSITORY, Block, blocks, blocks_of

PROGRAM = re.compile(r"^(?:\$ )?parsl-rasda ", re.MULTILINE)
RUN_ELSEWHERE = {
    "README.md": "test_readme.py and test_result.py",
    "docs/plugins.md": "tests/contract/test_foreign.py",
    "docs/start.md": "its function is that of workflows/minimal",
    "docs/embedding.md": "below, with docs/results.md",
    "docs/results.md": "below",
}
OF_OTHERS = {'title="experiment.yaml"'}  # Determined's
RUN_ELSEWHERE_YAML = {
    "docs/plugins.md"
}  # with the distribution that it needs, by tests/contract/test_foreign.py

SITE = {"provider": {"type": "LocalProvider"}, "accelerator": "cpu", "gpus_per_node": 2}
ENDPOINT = {"endpoint_id", "user_endpoint_config"}
TRAINING = {"python": "steps:train"}
TUNE: dict[str, Any] = {
    "metric": "val_loss",
    "num_samples": 2,
    "scheduler": {"max_t": 4},
    "search_space": {"lr": {"float": [0.01, 0.1]}},
    "training": TRAINING,
}


def ids(block: object) -> str:
    return str(block)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.page not in RUN_ELSEWHERE_YAML], ids=ids)
def test_a_block_of_yaml_is_a_study_or_a_site_or_a_part_of_one(block: Block, tmp_path: Path) -> None:
    data = yaml.safe_load(block.text)
    if block.title in OF_OTHERS:
        same = next(b for b in blocks("yaml") if b.page == block.page and b.line > block.line)
        drafted, documented = draft_experiment(block.text, "experiment.yaml").study, yaml.safe_load(same.text)
        assert yaml.safe_load(drafted) | {"name": documented["name"]} == documented
        return
    file = tmp_path / "file.yaml"
    study_keys = {"tune", "stages", "training", "track", "notify", "scheduler"}
    if data.keys() & study_keys:
        file.write_text(yaml.safe_dump(whole_study(data), sort_keys=False))
        load_study(file, environment={}, check_targets=False)
    else:
        file.write_text(yaml.safe_dump(whole_site(data)))
        load_site(file, environment={})


def whole_study(part: dict[str, Any]) -> dict[str, Any]:
    """Return a study that has what a block shows."""
    if "training" in part:
        searched = re.findall(r"\{(\w+)\}", str(part["training"]))
        part = {"tune": {"search_space": {name: 1 for name in searched if name in {"lr"}}, **part}}
    if "scheduler" in part:
        part = {"tune": part}
    if "stages" not in part:
        part = {**part, "tune": {**TUNE, **part.get("tune", {})}}
    return {"name": "shown", **part}


def whole_site(part: dict[str, Any]) -> dict[str, Any]:
    """Return a site that has what a block shows."""
    if ENDPOINT & part.keys():
        return part
    provider = {**SITE["provider"], **part.get("provider", {})}
    if part.keys() & {"controller", "walltimes"}:
        provider = {
            "type": "SlurmProvider",
            "nodes_per_block": 1,
            "walltime": "01:00:00",
            **part.get("provider", {}),
        }
    return {**SITE, **part, "provider": provider}


@pytest.mark.parametrize("block", blocks("toml", "json"), ids=ids)
def test_a_block_of_another_format_can_be_read(block: Block) -> None:
    assert (tomllib.loads if block.language == "toml" else json.loads)(block.text)


# ---------------------------------------------------------------------------- commands


def commands() -> list[tuple[str, str]]:
    lines = [(str(b), line) for b in blocks("sh", "bash", "") for line in joined(b.text)]
    return [(where, line) for where, line in lines if PROGRAM.match(line)]


def joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(("where", "line"), commands(), ids=lambda value: value[:60])
def test_a_command_has_the_options_and_arguments_that_it_shows(where: str, line: str) -> None:
    _, name, *words = shlex.split(line.removeprefix("$ "), comments=True)
    program = typer.main.get_command(app)
    assert isinstance(program, click.Group) or hasattr(program, "commands"), where
    command = program.commands[name]
    context = type(command).context_class(command, info_name=name, resilient_parsing=True)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert rest == [], where
    needed = [p.name for p in command.params if p.required and values.get(p.name) in (None, ())]
    assert needed == [], where


@pytest.mark.parametrize("block", blocks("sh", "bash"), ids=ids)
def test_a_block_of_a_shell_is_one_that_a_shell_reads(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------- Python


def pages(language: str) -> list[str]:
    return sorted({b.page for b in blocks(language)})


def program_of(page: str) -> str:
    first, *others = [b.text for b in blocks("python") if b.page == page]
    parts = [BEFORE.get(page, ""), first, BETWEEN.get(page, ""), *others, AFTER.get(page, "")]
    return "\n".join(parts)


@pytest.mark.parametrize("page", sorted({*pages("python")} - RUN_ELSEWHERE.keys()))
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(program_of(page), page, "exec"), {"__name__": "shown"})


def test_the_start_loads_the_model_that_its_study_trains() -> None:
    (block,) = [b for b in blocks("python") if b.page == "docs/start.md"]
    names = {
        a.name for n in ast.walk(ast.parse(block.text)) if isinstance(n, ast.ImportFrom) for a in n.names
    }
    module = ast.parse((REPOSITORY / "workflows/minimal/train.py").read_text(encoding="utf-8"))
    assert "network" in names & {n.name for n in module.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("block", blocks("diff"), ids=ids)
def test_both_sides_of_a_difference_are_python(block: Block) -> None:
    for side in "-+":
        kept = [line[1:] for line in block.text.splitlines() if line[:1] in {side, " ", ""}]
        ast.parse("\n".join(kept))


BUILD = """
import torch
from torch import nn

def build(config):
    return nn.Linear(3, 1)

def train(trial):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)
    model, _ = trial.prepare(build(trial.config), torch.optim.SGD, lr=trial.config["lr"])
    for epoch in trial.epochs():
        for a, b in trial.batches((x, y)):
            trial.step((model(a) - b).square().mean())
        trial.report(val_loss=trial.mean([(model(a) - b).square().mean(1) for a, b in trial.shard((x, y))]))
"""


@pytest.mark.slow
@pytest.mark.parsl
def test_the_program_that_embeds_a_search_runs_and_its_results_are_read(tmp_path: Path) -> None:
    """The pages on embedding and on results, one after the other as one program."""
    (tmp_path / "train.py").write_text(BUILD)
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"name": "shown", "tune": {**TUNE, "training": {"python": "train:train"}}})
    )
    program = "\n".join(["import torch", program_of("docs/embedding.md"), program_of("docs/results.md")])
    (tmp_path / "program.py").write_text(program + "\nparsl.dfk().cleanup()\n")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first/journal.jsonl").exists()


def test_every_kind_of_block_is_one_that_is_tested() -> None:
    known = {"yaml", "toml", "json", "sh", "bash", "python", "diff", "text", ""}
    assert {b.language for page in PAGES for b in blocks_of(page)} <= known
