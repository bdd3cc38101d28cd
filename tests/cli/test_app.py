"""`scope app` refuses at the door."""

import socket

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
    settings = options(8501, browser=False)
    assert settings["server.address"] == "127.0.0.1"
    assert settings["browser.gatherUsageStats"] is False
    assert settings["server.enableAgentApi"] is False


def test_every_setting_is_one_that_streamlit_knows():
    from streamlit import config

    assert not set(options(8501, browser=True)) - set(config.get_config_options())


def test_a_browser_is_opened_unless_told_otherwise():
    assert Command().browser
    assert options(8501, browser=True)["server.headless"] is False
