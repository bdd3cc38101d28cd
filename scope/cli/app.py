"""`scope app`: checks what it was given, then starts the browser as a program of its own."""

import os
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Open the feature browser on packs that `scope features` or `scope demo` wrote.

    It serves this machine only and sends nothing anywhere. Browsing needs no model; the model is loaded when you first
    test text or steer. Ctrl-C stops it.
    """

    packs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Packs to open. Without any, those found in runs/ of this folder."""

    port: int = 8501
    """Port to serve on, at 127.0.0.1."""

    browser: bool = True
    """Open a browser window. With --no-browser the address is only printed."""

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            PackError: a folder that was given is no pack.
            ConfigError: the port is in use, or no port at all.
        """
        import json
        import subprocess
        import sys

        import scope.app
        from scope.features.pack.manifest import read_manifest

        for folder in self.packs:
            read_manifest(folder)
        refuse_taken(self.port)
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        given = json.dumps([str(folder.absolute()) for folder in self.packs])
        env = {**os.environ, "PYTHONPATH": path, "SCOPE_PACKS": given}
        launch = Path(scope.app.__file__).with_name("launch.py")
        server = [sys.executable, "-P", str(launch), str(self.port), "browser" if self.browser else "quiet"]
        with subprocess.Popen(server, env=env) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                process.wait()  # the server hears the same Ctrl-C and closes its files
                return
        if process.returncode:
            refuse_taken(self.port)  # another server may have been quicker
            raise SystemExit(process.returncode)  # it has said why


def refuse_taken(port: int) -> None:
    """Bind the port for a moment.

    Raises:
        ConfigError: something else holds it, or it is no port.
    """
    import errno
    import socket

    from scope.errors import ConfigError

    if not 0 < port < 65536:
        raise ConfigError(f"Port {port} does not exist; give one from 1024 to 65535, such as --port 8502.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ConfigError(f"Port {port} needs rights that you do not have. Give one above 1024: --port 8502") from None
            free = "Another program, perhaps another scope app, holds it: use that one, or give another --port."
            raise ConfigError(f"Port {port} is in use on 127.0.0.1. {free}") from None
