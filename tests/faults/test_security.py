"""What comes from outside is data: never unpickled, never part of a shell's words, never secret."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from blocklora.yamlfiles import read_yaml
from tests.data.http_server import Server
from tests.faults.pipeline import find, remove_outputs, stages

PACKAGE = Path(importlib.util.find_spec("blocklora").origin).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Calls that execute or unpickle what they are given, whatever object they are called on.
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "yaml.load_all",
    "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "torch.hub.load",
}  # fmt: skip


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node


def dangers(source):
    """Return the calls in a module that could execute what comes from outside."""
    found = []
    for name, keywords, node in calls(ast.parse(source)):
        short = name.removeprefix("builtins.").replace("np.", "numpy.").replace("pd.", "pandas.")
        if short in FORBIDDEN:
            found.append(name)
        if short == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{name} without weights_only=True")
        if short == "torch.jit.load":
            found.append(name)
        if short == "numpy.load" and keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name} with allow_pickle")
        if short == "yaml.load" and "StrictLoader" not in ast.unparse(node):
            found.append(f"{name} without a safe loader")
        if keywords.get("shell", "False") != "False":
            found.append(f"{name} with shell")
        if short.endswith(("extractall", "unpack_archive")):
            found.append(f"{name} trusts an archive")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_executes_nothing_from_outside(module):
    assert dangers(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(f'ls {path}', shell=True)",
        "os.system('ls')",
        "pickle.loads(data)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_a_dangerous_call_would_be_found(source):
    assert dangers(source)


def test_study_files_are_read_by_a_loader_that_makes_plain_values_only():
    import yaml

    from blocklora.yamlfiles import StrictLoader

    assert issubclass(StrictLoader, yaml.constructor.SafeConstructor)
    with pytest.raises(yaml.constructor.ConstructorError, match="python/object"):
        yaml.load("a: !!python/object/apply:os.getcwd []", StrictLoader)


SECRET = "hf_kept-to-myself"


def test_a_token_in_the_environment_is_in_no_file_and_no_message(runner, study, copied):
    environment = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TOKEN"), SECRET)
    for stage in (find(study, "test"), find(study, "fit"), find(study, "aggregate")):
        remove_outputs(copied, stage)
        outcome = runner(copied, stage.arguments, environment=environment)
        assert outcome.status == 0
        assert SECRET not in outcome.text
    written = [path.read_bytes() for path in copied.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [data for data in written if SECRET.encode() in data]


def test_a_failed_download_does_not_tell_the_token(runner, study, tmp_path):
    """The hub has nothing, whatever it is asked with."""
    document = read_yaml(study) | {"backbones": {"ViT-B-16-quickgelu": {"source": "openai"}}}
    del document["miniature"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    server = Server()
    environment = {
        "HF_TOKEN": SECRET, "HF_ENDPOINT": server.url("").replace("//", f"//me:{SECRET}@"),
        "http_proxy": "", "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    arguments = (
        "fetch-backbone", "--study", str(path), "--backbone", "ViT-B-16-quickgelu",
        "--weights-root", str(tmp_path / "weights"), "--output", str(tmp_path / "b.safetensors"),
    )  # fmt: skip
    outcome = runner(tmp_path, arguments, environment=environment)
    server.close()
    assert server.asked, outcome.text
    assert outcome.status == 1, outcome.text
    assert "blocklora fetch-backbone: error: " in outcome.text
    assert SECRET not in outcome.text


def test_every_rule_quotes_the_paths_that_a_user_chooses():
    """Names of images and class names reach no command line at all; folders of the user do."""
    rules = PACKAGE.parent / "workflow/rules"
    if not rules.exists():
        pytest.skip("the workflow is not beside the package")
    chosen = ("{params.study", "{params.data_root", "{params.weights_root", "{params.scratch",
              "{params.runs", "{params.checkpoints", "{input", "{output", "{log")  # fmt: skip
    for file in sorted(rules.glob("*.smk")):
        text = file.read_text(encoding="utf-8")
        for shell in text.split("    shell:\n")[1:]:
            command = shell.split("\n\n\n")[0]
            for word in command.split("{")[1:]:
                name = "{" + word.partition("}")[0]
                if name.startswith(chosen):
                    assert name.endswith(":q"), f"{file.name}: {name}}} is not quoted"


def test_the_stages_cover_every_kind_of_file(study):
    """So that the faults of this folder are injected where they can happen."""
    suffixes = {Path(output).suffix for stage in stages(study) for output in stage.outputs}
    assert suffixes >= {".json", ".csv", ".npy", ".npz", ".safetensors", ".tex", ".pdf"}
