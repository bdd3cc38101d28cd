"""`scope app`: checks its packs and its port, then becomes the server of the feature browser."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from scope.workflows.settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class Command(ModelSettings):
    """Open the feature browser on packs that `scope features` or `scope demo` wrote.

    It serves this machine only and sends nothing anywhere. Browsing needs no model; the model is loaded when you first
    test text or steer. Ctrl-C stops it.
    """

    packs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Packs to open, or folders that hold one in pack/. Without any, those found in runs/ of this folder. Or the name of a
    published SAE, as gemma-2-2b/12-gemmascope-res-16k: its pack is collected first where there is none. With the number of a
    latent behind the name, or its address on Neuronpedia, the app opens at that latent."""

    port: int = 8501
    """Port to serve on, at 127.0.0.1."""

    browser: bool = True
    """Open a browser window. With --no-browser the address is only printed."""

    monitor: tuple[Path, ...] = ()
    """Monitors to show, as `scope monitor fit` wrote them. Without any, those that lie beside each pack."""

    allow_host: tuple[str, ...] = ()
    """Further names under which a browser may reach the app, as through the proxy of a notebook server: hub.example.org. Other
    names than localhost are refused, so that no web site can read the app."""

    yes: bool = False
    """Do not ask before collecting a pack that takes more than an hour."""

    base_path: str = ""
    """What a proxy that hands on whole paths puts before the pages' names: /user/me/proxy/absolute/8501 in JupyterHub. A proxy
    that takes its path off, as /user/me/proxy/8501, needs none."""

    model: str | None = None
    """Model for reading texts and steering, if it lies elsewhere now than each pack says; it must be the same one."""

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            PackError: a folder that was given is no pack. MonitorError: or no monitor.
            ConfigError: the port is in use, or no port at all; a host that is none.
        """
        import json
        import sys

        import scope.app
        from scope.app.guard import host_name
        from scope.cli.packs import pack_folder
        from scope.errors import ConfigError
        from scope.features.pack.manifest import read_manifest
        from scope.workflows.monitor import open_monitor

        monitors = [str(folder.expanduser().absolute()) for folder in self.monitor]
        for folder in monitors:
            open_monitor(folder)
        names = {text: host_name(text) for text in self.allow_host}
        if strange := [text for text, name in names.items() if name is None]:
            raise ConfigError(f"{strange[0]!r} is no name of a host. Give it as in --allow-host hub.example.org")
        refuse_taken(self.port)
        folders = [self._collected(pack) or pack_folder(pack) for pack in self.packs]
        for folder in folders:
            read_manifest(folder)
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        given = json.dumps([str(folder.absolute()) for folder in folders])
        launch = Path(scope.app.__file__).with_name("launch.py")
        server = [sys.executable, "-P", str(launch), str(self.port), "browser" if self.browser else "quiet", *names.values()]
        model = json.dumps({f.name: getattr(self, f.name) for f in fields(ModelSettings)})
        page = self._page()
        if page and not self.browser:
            print(f"The latent that you named: http://127.0.0.1:{self.port}/{page}")
        place = {"SCOPE_PACKS": given, "SCOPE_MODEL": model, "SCOPE_PAGE": page, "SCOPE_MONITORS": json.dumps(monitors)}
        become(server, {**os.environ, "PYTHONPATH": path, **place})

    def _collected(self, pack: Path) -> Path | None:
        """The pack of a published SAE, collected where there is none; None for what is no name of one."""
        from scope.cli.progress import console, print_certificate, print_note, progress_bar
        from scope.sae.hub.names import name_where_no_folder_is
        from scope.workflows.published import published_pack

        if name_where_no_folder_is(str(pack)) is None:
            return None
        with progress_bar("Collecting", unit="tokens", yes=self.yes) as on_progress:
            ways = {"on_progress": on_progress, "on_note": print_note, "on_certificate": print_certificate}
            return published_pack(str(pack), self, **ways, on_plan=lambda text: console.print(text, style="dim"))

    def _page(self) -> str:
        """Where the app opens: at the latent that the first name says, else at its first page."""
        from scope.sae.hub.names import name_where_no_folder_is

        name = name_where_no_folder_is(str(self.packs[0])) if self.packs else None
        return "" if name is None or name.latent is None else f"feature?f={name.latent}"


def become(command: list[str], environment: dict[str, str]) -> None:
    """Replace this process by another program, so that whatever ends this one, `kill -9` too, leaves no server behind."""
    import subprocess
    import sys

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if os.name == "nt":  # there, exec starts a second process and lets the shell go on
        raise SystemExit(subprocess.call(command, env=environment))
    os.execve(command[0], command, environment)


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
            way_out = "Use that one if it is a scope app, end it, or give another --port."
            raise ConfigError(f"Port {port} is in use on 127.0.0.1 by {holder(port)}.\n  {way_out}") from None


def holder(port: int) -> str:
    """The process that listens on a port of this machine, in words, where the system tells (Linux, for one's own processes)."""
    from contextlib import suppress

    from scope.escape import visible

    sockets: set[str] = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
            listening = [row for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
            sockets |= {f"socket:[{row[9]}]" for row in listening}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with suppress(OSError):
            if any(os.readlink(file) in sockets for file in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                ours = any(part.endswith("app/launch.py") for part in command)
                name = "another scope app" if ours else visible(" ".join(command))[:100]
                return f"{name} (process {process.name}; `kill {process.name}` ends it)"
    return "another program, perhaps another scope app"
