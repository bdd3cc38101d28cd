"""Starts the app's server: for this machine only, without telemetry, with its own theme.

Streamlit reads .streamlit/config.toml from the working directory only, so all settings are passed here.
"""

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

BASE_PATH = "SCOPE_BASE_PATH"
"""Environment variable with what a proxy puts before the pages' names, such as /user/me/proxy/absolute/8501."""


def options(port: int) -> dict[str, Any]:
    """Streamlit's settings by their command-line names."""
    from scope.app.kit.palette import DARK, LIGHT

    settings: dict[str, Any] = {
        "server.address": "127.0.0.1",
        "server.port": port,
        "server.headless": True,
        "server.baseUrlPath": os.environ.get(BASE_PATH, ""),
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": False,
        "server.enableAgentApi": False,
        "browser.gatherUsageStats": False,
        "global.minCachedMessageSize": 1e12,  # else fast steps to and fro end in a message that is missing
        "browser.serverAddress": "127.0.0.1",
        "client.toolbarMode": "minimal",
        "client.disableDataExport": True,  # the tables' own CSV would hold formulas; ours holds none
        "client.showErrorDetails": "full",
        "client.showErrorLinks": False,
        "client.allowedOrigins": [],  # sites that may send messages into the page; each message would be matched against them
        "runner.magicEnabled": False,
    }
    settings |= {"theme.paddingTop": "2rem", "theme.paddingBottom": "4rem", "theme.metricValueFontSize": "1.5rem"}
    settings |= {"theme.headingFontSizes": ["1.75rem", "1.25rem", "1rem"], "theme.headingFontWeights": [600, 600, 600]}
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        settings |= {f"theme.{theme}.{name}": colour for name, colour in colours.items()}
    return settings


def main(port: int, browser: bool, names: Sequence[str] = ()) -> None:
    """Serve until stopped. The environment variable `scope.app.serve.packs.PACKS` names the packs, `names` further hosts."""
    import streamlit as st
    from scope.app.feature import ahead
    from scope.app.guard import Guard
    from scope.app.serve import demo
    from scope.app.serve.start_page import StartPage
    from scope.app.warm_up import warm_up
    from starlette.middleware import Middleware
    from streamlit.cli_util import open_browser

    @asynccontextmanager
    async def lifespan(app: st.App) -> AsyncIterator[None]:
        warm_up()
        if browser:
            open_browser(f"http://127.0.0.1:{port}/{os.environ.get('SCOPE_PAGE', '')}")
        yield
        demo.stop_all()

    middleware = [Middleware(Guard, names=names), Middleware(StartPage)]
    routes = [ahead.route(os.environ.get(BASE_PATH, ""))]
    app = st.App(Path(__file__).with_name("main.py"), middleware=middleware, routes=routes, lifespan=lifespan)
    try:
        app.run(config=options(port))
    except KeyboardInterrupt:  # the server closed its files before it passed the Ctrl-C on
        sys.exit(130)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "browser", sys.argv[3:])
