"""check: valid files give their plan, invalid ones a line and code 2."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "packaging" / "config"


@pytest.mark.parametrize("name", ["cortex.toml", "models.toml", "neuron.toml"])
def test_the_examples_are_valid(invoke, name):
    result = invoke("check", EXAMPLES / name)
    assert result.exit_code == 0
    assert "valid" in result.stdout
    assert "cortex/demo" in result.stdout
    assert result.stderr == ""


def test_an_error_is_one_line_and_code_2(invoke, tmp_path):
    path = tmp_path / "cortex.toml"
    path.write_text("[eviction]\nstratgy = 'lru'")
    result = invoke("check", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: {path}: eviction.stratgy: unknown key (did you mean 'strategy'?)\n"
    )


def test_one_wrong_file_of_several_gives_2_and_the_others_plans(invoke, tmp_path):
    result = invoke("check", EXAMPLES / "models.toml", tmp_path / "missing.toml")
    assert result.exit_code == 2
    assert "valid models configuration" in result.stdout
    assert "missing.toml: No such file" in result.stderr


def test_what_a_file_is_is_told_by_its_content_or_name_or_flag(invoke, tmp_path):
    odd = tmp_path / "odd.toml"
    odd.write_text("[[models]]\nid = 'a'")
    assert "valid models" in invoke("check", odd).stdout
    odd.write_text("drain_seconds = 5")
    result = invoke("check", odd)
    assert result.exit_code == 2
    assert "--kind" in result.stderr
    assert "drain_seconds = 5" in invoke("check", odd, "--kind", "neuron").stdout
    named = tmp_path / "neuron.toml"
    named.write_text("drain_seconds = 5")
    assert "valid neuron" in invoke("check", named).stdout


def test_warnings_are_shown_and_are_no_error(invoke, tmp_path):
    path = tmp_path / "any.toml"
    path.write_text("[[nodes]]\nname = 'a'\nendpoint = 'http://x'\ntoken = 's3cret'")
    result = invoke("check", path)
    assert result.exit_code == 0
    assert "[[neurons]]" in result.stderr
    assert "token set" in result.stdout
    assert "s3cret" not in result.output


def test_the_plan_includes_the_catalogue_beside_the_config(invoke, tmp_path):
    path = tmp_path / "any.toml"
    path.write_text("[gateway]\nqueue_depth = 3")
    (tmp_path / "models.toml").write_text("[[models]]\nid = 'a'\ncontext = 7")
    (report,) = json.loads(invoke("check", "--json", path).stdout)["files"]
    assert report["ok"]
    assert report["plan"]["gateway"]["queue_depth"] == 3
    assert report["plan"]["models"][0]["context"] == 7
    (tmp_path / "models.toml").write_text("[[models]]\nid = 7")
    result = invoke("check", "--json", path)
    assert result.exit_code == 2
    assert "models[0].id" in json.loads(result.stdout)["files"][0]["error"]


def test_the_shells_environment_is_not_part_of_a_file(invoke, monkeypatch):
    monkeypatch.setenv("CORTEX_GATEWAY__QUEUE_DEPTH", "9")
    assert "queue_depth = 256" in invoke("check", EXAMPLES / "cortex.toml").stdout


def test_of_a_server_of_another_make_no_secret_is_shown(invoke, tmp_path):
    path = tmp_path / "cortex.toml"
    path.write_text(
        '[[neurons]]\nname = "f"\nendpoint = "https://f/v1"\nkind = "openai"\ntoken = "sk-1"\n'
        'headers = { "api-key" = "sk-2" }\nmodels = { "m" = "org/m" }\npass_fields = ["top_k"]'
    )
    result = invoke("check", path)
    assert result.exit_code == 0
    assert "kind openai" in result.stdout
    assert "models {m org/m}" in result.stdout
    assert "headers [api-key]" in result.stdout
    assert "token set" in result.stdout
    assert "sk-" not in result.stdout
    assert "sk-" not in invoke("check", "--json", path).stdout


def test_it_is_explained_in_words_and_every_table_is_shown(invoke, tmp_path):
    path = tmp_path / "cortex.toml"
    path.write_text("[images]\nfetch = true")
    result = invoke("check", path)
    assert result.exit_code == 0
    assert "fetch = True" in result.stdout
    assert "what this comes to:" in result.stdout
    assert "fetched, over https alone" in result.stdout
    (report,) = json.loads(invoke("check", path, "--json").stdout)["files"]
    assert report["plan"]["images"]["fetch"] is True
    assert any("The API is http on 127.0.0.1:31313" in line for line in report["explanation"])
