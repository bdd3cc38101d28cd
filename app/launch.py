"""Starts the app's server: for this machine only, without telemetry, with its own theme.

Streamlit reads .streamlit/config.toml from the working directory only, so all settings are passed here.
"""

import sys
from pathlib import Path
from typing import Any


def options(port: int, browser: bool) -> dict[str, Any]:
    """Streamlit's settings by their command-line names."""
    from scope.app.kit.palette import DARK, LIGHT

    settings: dict[str, Any] = {
        "server.address": "127.0.0.1",
        "server.port": port,
        "server.headless": not browser,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": False,
        "server.enableAgentApi": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": "127.0.0.1",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "full",
        "client.showErrorLinks": False,
        "runner.magicEnabled": False,
    }
    settings |= {"theme.paddingTop": "2rem", "theme.paddingBottom": "4rem", "theme.metricValueFontSize": "1.5rem"}
    settings |= {"theme.headingFontSizes": ["1.75rem", "1.25rem", "1rem"], "theme.headingFontWeights": [600, 600, 600]}
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        settings |= {f"theme.{theme}.{name}": colour for name, colour in colours.items()}
    return settings


def main(port: int, browser: bool) -> None:
    """Serve until stopped. The environment variable `scope.app.serve.packs.PACKS` names the packs."""
    from streamlit.web import bootstrap

    script = str(Path(__file__).with_name("main.py"))
    settings = {name.replace(".", "_"): value for name, value in options(port, browser).items()}
    bootstrap.load_config_options(flag_options=settings)
    bootstrap.run(script, False, [], settings)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "browser")
