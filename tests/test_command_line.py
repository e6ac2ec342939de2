"""The command line: how it is called, what its help shows, and what it says of mistakes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from blocklora import __version__
from blocklora.cli import commands, main
from blocklora.commands import options
from blocklora.errors import Interrupted, UserError

ROOT = Path(__file__).parents[1]
NAMES = [*commands.commands]


def understood(arguments):
    """Return the parameters that a command is called with."""
    command = commands.commands[arguments[0]]
    return command.make_context(f"blocklora {arguments[0]}", list(arguments[1:])).params


def examples(text):
    """Return the commands that a text shows, each on one line."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    shown = [line.strip() for line in lines if re.match(r"\s*(python -m )?blocklora [a-z]", line)]
    return [line.removeprefix("python -m ") for line in shown]


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_that_are_understood_and_fits_a_terminal(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    found = examples(text.partition("Examples:\n")[2])
    assert found
    for line in found:
        words = shlex.split(line)
        assert words[:2] == ["blocklora", name]
        assert understood(words[1:])
    undescribed = [p.name for p in commands.commands[name].params if not p.help]
    assert undescribed == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_commands_in_the_documentation_are_understood(path):
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", path.read_text(), re.M | re.S)
    for line in examples("\n".join(blocks)):
        understood(shlex.split(line, comments=True)[1:])


def test_all_commands_are_listed_with_a_line_each(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"^  {name} +[A-Z].*[a-z]\.$", text, re.M), name
    sections = re.findall(r"^(\w.*):$", text, re.M)
    assert sections == [
        *("Options", "Studies", "Data", "Backbones", "Fits and tests", "Results"),
        *("Trained adapters", "This machine"),
    ]


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"blocklora {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        "--seeds 1 2 3 --study s --shots 4",
        "--seeds 1 --seeds 2 3 --shots 4 --study s",
        "--study s --seeds 1 --shots 4 --seeds 2 --seeds 3",
        "--study=s --seeds=1 --seeds=2 --shots=4 --seeds 3",
    ],
)
def test_an_option_takes_several_values_or_is_repeated(words):
    given = understood(["fit", *words.split(), "--backbone", "b", "--dataset", "d"])
    assert (given["seeds"], given["shots"], given["study"]) == ([1, 2, 3], [4], "s")


def test_values_of_an_option_end_before_the_next_one_and_leave_arguments_alone():
    given = understood(
        ["predict", "a.png", "b.png", "--adapter", "a", "--backbone-file", "w", "c.png"]
    )
    assert given["images"] == [Path("a.png"), Path("b.png"), Path("c.png")]
    given = understood(["table", "fewshot", "--output", "a.csv", "b.md", "--study", "s"])
    assert given["output"] == [Path("a.csv"), Path("b.md")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "blocklora: error: Missing command. (see blocklora --help)"),
        ("fitt", "blocklora: error: No such command 'fitt'. Did you mean 'fit'? (see"),
        ("status", "blocklora status: error: Missing option '--study'. (see blocklora status"),
        ("status --stduy s", "blocklora status: error: No such option: --stduy (Possible options:"),
        ("status --study", "blocklora status: error: Option '--study' requires an argument."),
        ("status --study s --offline", "No such option: --offline"),
        ("fit --seeds x --study s --backbone b --dataset d", "'--seeds': Input should be a valid"),
        ("schema studies", "'studies' is not one of 'study', 'config'"),
        ("cache --prune -1", "Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(words, message, capsys):
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no such file"), 1, "blocklora status: error: no such file"),
        (Interrupted("again"), 75, "blocklora status: error: again"),
        (KeyboardInterrupt(), 130, "blocklora status: interrupted"),
    ],
)
def test_an_error_is_one_line_and_decides_the_status(error, status, line, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(options, "open_study", fail)
    monkeypatch.setattr("blocklora.commands.study.open_study", fail)
    assert main(["status", "--study", "s"]) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("words", [["check-study", "--study", "ablation"], ["fit", "--help"]])
def test_a_command_ends_quietly_when_nobody_reads_its_output(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        command = [sys.executable, "-m", "blocklora", *words]
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_study_is_named_and_its_results_are_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    assert main(["check-study", "--study", "ablation-mini"]) == 0
    assert main(["measure", "bounds", "--study", "paper"]) == 0
    assert (tmp_path / "results/paper/theory/bounds.csv").exists()
    assert main(["status", "--study", "papr"]) == 1
    assert "papr is neither a file nor a study in studies; did you mean paper?" in (
        capsys.readouterr().err
    )


def test_an_unknown_measure_is_named_with_the_nearest_one(capsys):
    assert main(["measure", "bound", "--study", "mini"]) == 1
    assert (
        "no measure 'bound'; did you mean bounds? (there are: bounds, " in capsys.readouterr().err
    )
