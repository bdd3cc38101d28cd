"""`scope app` refuses at the door."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from scope.app.launch import options

from scope.cli.app import Command, refuse_taken
from scope.cli.main import run
from scope.errors import ConfigError


@pytest.fixture
def taken_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def test_a_port_in_use_is_a_message_and_exit_code_2(taken_port, capsys):
    assert run(["app", "--port", str(taken_port), "--no-browser"]) == 2
    assert f"Port {taken_port} is in use" in capsys.readouterr().err


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(ConfigError, match="does not exist"):
        refuse_taken(port)


def test_a_folder_that_is_no_pack_is_refused_with_the_way_to_make_one(tmp_path, capsys):
    assert run(["app", str(tmp_path), "--no-browser"]) == 2
    told = capsys.readouterr().err
    assert "no feature pack" in told
    assert "scope features" in told


def test_the_server_listens_on_this_machine_alone_and_sends_nothing():
    settings = options(8501)
    assert settings["server.address"] == "127.0.0.1"
    assert settings["browser.gatherUsageStats"] is False
    assert settings["server.enableAgentApi"] is False


def test_every_setting_is_one_that_streamlit_knows():
    from streamlit import config

    assert not set(options(8501)) - set(config.get_config_options())


def test_a_browser_is_opened_unless_it_is_switched_off(monkeypatch):
    started = []
    monkeypatch.setattr("scope.cli.app.become", lambda command, environment: started.append(command))
    monkeypatch.setattr("scope.cli.app.refuse_taken", lambda port: None)
    Command(allow_host=("https://Hub.example.org/",)).run()
    Command(browser=False).run()
    assert started[0][-2:] == ["browser", "hub.example.org"]
    assert started[1][-1] == "quiet"


def test_the_folder_around_a_pack_is_taken_for_the_pack(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("scope.cli.app.become", lambda command, environment: started.append(environment["SCOPE_PACKS"]))
    monkeypatch.setattr("scope.cli.app.refuse_taken", lambda port: None)
    shutil.copytree(Path(__file__).parents[1] / "data" / "version_0_1_0" / "pack", tmp_path / "demo" / "pack")
    assert run(["app", str(tmp_path / "demo")]) == 0
    assert json.loads(started[0]) == [str(tmp_path / "demo" / "pack")]


@pytest.mark.parametrize("host", ["", "a b", "http://x/y", "u@h"])
def test_a_host_that_is_none_is_refused(host, capsys):
    assert run(["app", "--allow-host", host]) == 2
    assert "is no name of a host" in capsys.readouterr().err


def test_tables_offer_no_download_of_their_own():
    assert options(8501)["client.disableDataExport"] is True
