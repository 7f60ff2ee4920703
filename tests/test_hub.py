"""From a name to files, against a Hub in miniature on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hub_server import HubServer

from calotype import hub
from calotype.hub import Source, split_options

FILES = {
    "README.md": b"words",
    "model_index.json": b"{}",
    "unet/config.json": b'{"a": 1}',
    "unet/weights.safetensors": b"w" * 200_000,
    "unet/weights.bin": b"b" * 1000,
    "vae/config.json": b"{}",
    "odd/[1]*.json": b"{}",
    "odd/1x.json": b"{}",
}


def the_unet(names: list[str]) -> list[str]:
    return [name for name in names if name in ("unet/config.json", "unet/weights.safetensors")]


def its_weights(names: list[str]) -> list[str]:
    return [name for name in names if name in ("config.json", "weights.safetensors")]


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = HubServer()
    server.reach(monkeypatch, tmp_path / "home")
    server.add("owner/model", FILES)
    yield server
    server.close()


def message(call) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        call()
    assert caught.value is not caught.value.__cause__
    return str(caught.value)


# -- names that need no Hub -------------------------------------------------------------------------------------------


def test_import_is_light():
    code = "import sys, calotype.hub; print([n for n in ('torch', 'huggingface_hub', 'httpx') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_bundled_name(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(hub.BUNDLED, "calotype/test", tmp_path)
    assert Source("calotype/test").file("config.json") == tmp_path / "config.json"
    assert Source("calotype/test").folder(lambda names: []) == tmp_path


def test_bundled_name_is_never_asked_of_the_hub(server, monkeypatch, tmp_path):
    monkeypatch.setitem(hub.BUNDLED, "owner/model", tmp_path / "gone")
    message(lambda: Source("owner/model").file("model_index.json"))
    assert not server.requests


def test_local_folder_and_subfolder(tmp_path, monkeypatch):
    (tmp_path / "a" / "unet").mkdir(parents=True)
    (tmp_path / "a" / "unet" / "config.json").write_text("{}")
    for spelling in ("unet", "unet/", "/unet", "\\unet"):
        assert Source(tmp_path / "a", subfolder=spelling).file("config.json").parent == tmp_path / "a" / "unet"
    assert Source(str(tmp_path / "a"), subfolder="").folder(lambda names: []) == tmp_path / "a"
    monkeypatch.chdir(tmp_path)
    assert Source("a/unet").file("config.json") == Path("a/unet/config.json")
    assert Source("a", subfolder="../a/unet").file("config.json").is_file()  # users may go where they like
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Source("~/a", subfolder="unet").file("config.json").is_file()


def test_local_folder_without_the_file_or_subfolder_says_what_is_there(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model.json").write_text("{}")
    assert "no file 'config.json' (there is model.json, unet)" in message(lambda: Source(tmp_path).file("config.json"))
    assert "did you mean 'unet'?" in message(lambda: Source(tmp_path, subfolder="unett").folder(lambda names: []))
    assert "there is unet" in message(lambda: Source(tmp_path, subfolder="vae").folder(lambda names: []))
    with pytest.raises(NotADirectoryError, match="is a file; a checkpoint is a folder"):
        Source(tmp_path / "model.json").file("config.json")


@pytest.mark.parametrize("name", ["./missing", "../missing", "/missing/model", "~/missing", "a/b/c", "", ".", "-x/y",
                                  "https://huggingface.co/owner/model", "owner/model\n", "C:\\models"])
def test_a_path_is_not_asked_of_the_hub(server, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Source(name).file("config.json")
    assert not server.requests


def test_a_name_that_is_nothing_says_all_that_was_tried(server):
    said = message(lambda: Source("calotype/emojy").file("model_index.json"))
    for part in ("'calotype/emojy'", "not a bundled name ('calotype/emoji' or 'calotype/cats'; did you mean 'calotype/emoji'?)",
                 "not a folder on this machine", "the Hub has no such repository"):
        assert part in said


def test_split_options_keeps_the_rest_in_order():
    source, rest = split_options("a/b", {"zebra": 1, "revision": "r", "token": "t", "apple": 2, "subfolder": "s"})
    assert (source.revision, source.token, source.subfolder) == ("r", "t", "s")
    assert list(rest.items()) == [("zebra", 1), ("apple", 2)]
    assert split_options("a/b", {"name": "c"})[1] == {"name": "c"}


# -- fetching ---------------------------------------------------------------------------------------------------------


def test_only_the_chosen_files_are_fetched_and_only_once(server):
    folder = Source("owner/model", subfolder="unet").folder(its_weights)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]
    assert (folder / "weights.safetensors").read_bytes() == FILES["unet/weights.safetensors"]
    assert sorted(server.fetched) == ["owner/model/unet/config.json", "owner/model/unet/weights.safetensors"]
    server.forget()
    assert Source("owner/model", subfolder="unet/").folder(its_weights) == folder
    assert Source("owner/model", subfolder="unet").file("config.json") == folder / "config.json"
    assert server.fetched == [] and sum(server.requests.values()) == 2  # one question each


def test_one_file(server):
    assert Source("owner/model").file("model_index.json").read_bytes() == b"{}"
    assert Source("owner/model", subfolder="unet").file("config.json").read_bytes() == b'{"a": 1}'
    assert server.fetched == ["owner/model/model_index.json", "owner/model/unet/config.json"]


def test_a_name_with_wildcards_is_a_name(server):
    Source("owner/model").folder(lambda names: [name for name in names if "[" in name])
    assert server.fetched == ["owner/model/odd/[1]*.json"]


def test_force_download_fetches_anew(server):
    Source("owner/model").file("model_index.json")
    Source("owner/model", force_download=True).file("model_index.json")
    assert server.fetched == ["owner/model/model_index.json"] * 2
    server.down = True
    message(lambda: Source("owner/model", force_download=True).file("model_index.json"))


def test_revision(server):
    main = server.branches["owner/model", "main"]
    other = server.add("owner/model", {"model_index.json": b'{"other": 1}'}, branch="other")
    for revision in ("other", other):
        assert Source("owner/model", revision=revision).file("model_index.json").read_bytes() == b'{"other": 1}'
    for revision in (None, "main", main):
        assert Source("owner/model", revision=revision).file("model_index.json").read_bytes() == b"{}"
    server.forget()
    moved = server.add("owner/model", {"model_index.json": b'{"moved": 1}'})
    assert Source("owner/model").file("model_index.json").parent.name == moved
    assert Source("owner/model").file("model_index.json").read_bytes() == b'{"moved": 1}'
    assert server.fetched == ["owner/model/model_index.json"]


def test_a_branch_that_is_gone_is_not_taken_from_the_cache(server):
    server.add("owner/model", FILES, branch="draft")
    Source("owner/model", revision="draft").folder(the_unet)
    del server.branches["owner/model", "draft"]
    assert "no such revision" in message(lambda: Source("owner/model", revision="draft").folder(the_unet))


def test_token(server):
    server.add("owner/secret", {"config.json": b"{}"}, token="hf_key")
    for token in (None, False, "hf_wrong"):
        said = message(lambda token=token: Source("owner/secret", token=token).file("config.json"))
        assert "private one that needs a `token`" in said and "hf_wrong" not in said
    assert Source("owner/secret", token="hf_key").file("config.json").is_file()
    server.gated.add("owner/model")
    assert "conditions accepted" in message(lambda: Source("owner/model").file("model_index.json"))


def test_what_is_missing_is_named(server):
    said = message(lambda: Source("owner/model", revision="v9").file("config.json"))
    assert "'owner/model', revision 'v9'" in said and "no such revision" in said
    said = message(lambda: Source("owner/model", revision="main", subfolder="unet").file("confik.json"))
    assert "revision 'main'" in said and "without the file 'unet/confik.json'" in said and "unet/config.json" in said
    said = message(lambda: Source("owner/model", subfolder="unnet").folder(lambda names: []))
    assert "subfolder 'unnet'" in said and "unet/config.json" in said
    assert "'owner/nobody'" in message(lambda: Source("owner/nobody").folder(the_unet))
    assert server.fetched == []


def test_progress_is_shown_unless_disabled(server, capfd):
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    Source("owner/model", subfolder="unet").folder(its_weights)
    assert "%" in capfd.readouterr().err
    Source("owner/model", subfolder="unet").folder(its_weights)
    assert capfd.readouterr().err == ""  # nothing was fetched
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_progress_bars()
    try:
        Source("owner/model", subfolder="vae").file("config.json")
        assert "%" not in capfd.readouterr().err
    finally:
        enable_progress_bars()


# -- when the Hub is away ---------------------------------------------------------------------------------------------


def test_local_files_only(server):
    said = message(lambda: Source("owner/model", local_files_only=True).folder(the_unet))
    assert "not in the cache of Hub files, and asking the Hub is switched off" in said
    folder = Source("owner/model").folder(the_unet)
    server.forget()
    assert Source("owner/model", local_files_only=True).folder(the_unet) == folder
    assert Source("owner/model", local_files_only=True, revision=folder.name).folder(the_unet) == folder
    assert Source("owner/model", local_files_only=True, subfolder="unet").file("config.json").is_file()
    said = message(lambda: Source("owner/model", local_files_only=True, subfolder="vae").file("config.json"))
    assert "the cache of Hub files has it without the file 'vae/config.json'" in said
    message(lambda: Source("owner/model", local_files_only=True, revision="v9").folder(the_unet))
    assert not server.requests


@pytest.mark.parametrize("away", ["down", "gone"])
def test_without_an_answer_the_cache_is_used(server, away, monkeypatch, caplog):
    folder = Source("owner/model").folder(the_unet)
    server.down = True
    if away == "gone":
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    server.forget()
    assert Source("owner/model").folder(the_unet) == folder
    assert "comes from the cache" in caplog.text
    assert Source("owner/model", subfolder="unet").file("config.json").is_file()
    said = message(lambda: Source("owner/other").folder(the_unet))
    assert "not to be had from the Hub (" in said and "\n" not in said
    assert server.fetched == []


def test_environment_of_a_new_process(server, tmp_path):
    """`HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE`, as users set them."""
    code = "from calotype.hub import Source; print(Source('owner/model').file('model_index.json').read_text())"

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", **server.environment(tmp_path / "other home"), **more}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    before = run(HF_HUB_OFFLINE="1")
    assert "asking the Hub is switched off" in before.stderr and not server.requests
    assert run().stdout == "{}\n"
    assert server.fetched == ["owner/model/model_index.json"]
    server.forget()
    assert run(HF_HUB_OFFLINE="1").stdout == "{}\n"
    assert not server.requests


def test_a_cut_connection_leaves_no_half_file(server, monkeypatch):
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits before it tries again
    server.cut.add("unet/weights.safetensors")
    said = message(lambda: Source("owner/model").folder(the_unet))
    assert "not to be had from the Hub" in said
    said = message(lambda: Source("owner/model", subfolder="unet", local_files_only=True).file("weights.safetensors"))
    assert "without the file" in said
    server.down = False
    folder = Source("owner/model").folder(the_unet)
    assert (folder / "unet/weights.safetensors").read_bytes() == FILES["unet/weights.safetensors"]


def test_a_fault_of_this_machine_is_not_the_hubs(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        Source("owner/model", cache_dir=tmp_path / "file").file("model_index.json")
    assert caught.value.errno and not isinstance(caught.value, FileNotFoundError)
