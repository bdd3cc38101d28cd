"""Files and folders that are there whole or not at all, and folders with one writer.

What is written goes into a file beside the target, is synced to the disk and then renamed: after a crash, kill -9 or on a full
disk the old content or the new content is there, never a part. Permissions follow the umask.
"""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from scope.errors import ConfigError, ScopeError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "files may not be that large here",
}
"""What an operating system says of a place without room, in words."""

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags for files that are opened to be written: a link that somebody put there is not followed."""


class FolderInUse(ScopeError):
    """Another process is writing in the folder."""


def beside(path: Path, ending: str) -> Path:
    """The path whose name has `ending` as well; of "." and "..", which have no name, that of the folder they stand for."""
    path = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return path.with_name(path.name + ending)


def refuse_unwritable(path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        ConfigError: it is a folder, or its folder cannot be made or written.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file, such as {path / 'result.json'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}. Give another path.") from None


def _name_aside(path: Path, ending: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{ending}")


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file whose content becomes `path` when the block ends without an error; else nothing is left of it.

    Raises:
        OSError: there is no room or no permission; what was at `path` is untouched.
    """
    path = Path(path)
    aside = _name_aside(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(aside, mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file whole."""
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file whole."""
    write_whole(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, for a library that writes by name; it becomes `path` as in `whole_file`."""
    path = Path(path)
    aside = _name_aside(path)
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
        yield aside
        settle_file(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_asides(path: Path) -> None:
    """Remove what writers of `path` left that were killed. The caller is its only writer."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        aside.unlink(missing_ok=True)


def settle_file(aside: Path, path: Path) -> None:
    """Sync a file that another library wrote beside `path`, give it the permissions of the umask, and rename it to `path`."""
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    os.chmod(aside, 0o666 & ~_umask())
    os.replace(aside, path)
    sync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends without an error; else nothing is left of it.

    A folder that was at `path` is replaced in two renames, so a crash between them leaves it as .NAME.(random).old beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = _name_aside(path), _name_aside(path, "old")
    aside.mkdir()
    try:
        yield aside
        for file in sorted(f for f in aside.rglob("*") if f.is_file()):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        replaced = path.exists()
        if replaced:
            os.rename(path, old)
        try:
            os.rename(aside, path)
        except OSError:
            if replaced:
                os.rename(old, path)
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut. Systems that cannot open folders sync them by themselves."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def only_writer(folder: Path, lock: str = ".lock", doing: str = "written", patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for writing, or the part of it that `lock` stands for. Readers need no lock.

    The system lets go of it when the process ends, however that happens. On file systems without locks (some NFS and Lustre)
    a file beside the lock stands for it; one whose process has ended is ignored on the same host.

    Raises:
        FolderInUse: another process has held it for `patience` seconds; the message names process and host.
    """
    path, until = folder / lock, time.monotonic() + patience
    while True:
        try:
            handle, soft = _hold(path, doing)
            break
        except FolderInUse:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.ftruncate(handle, 0)
        if soft is not None:
            soft.release()
        os.close(handle)


def _hold(path: Path, doing: str) -> tuple[int, Any]:
    """(descriptor of the locked file, the soft lock beside it if the file system has no locks)."""
    while True:
        handle, soft = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666), None
        try:
            locked = _try_lock(handle)
            if locked is None:
                soft = _soft_lock(path)
            if not (locked or soft):
                holder = os.read(handle, 200).decode(errors="replace").partition("\n")[0].strip() or "another process"
                marker = _marker(path)
                gone = f"\n  If it ended on another host, remove {marker}." if marker.exists() else ""
                way_out = f"Wait for it, stop it, or give another --out.{gone}"
                raise FolderInUse(f"{path.parent} is being {doing} by {holder}.\n  {way_out}")
            if _is_at(path, handle):  # else its last holder removed it between the opening and the locking
                return handle, soft
        except BaseException:
            os.close(handle)
            raise
        if soft is not None:
            soft.release()
        os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_held(folder: Path, lock: str = ".lock") -> bool:
    """Whether another process holds one of the locks that the glob `lock` names. Asking disturbs no holder."""
    return any(_is_held(path) for path in Path(folder).glob(lock) if not path.name.endswith(_SOFT))


def _is_held(path: Path) -> bool:
    try:
        handle = os.open(path, (os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY) | NO_LINK)
    except OSError:  # removed meanwhile, or a link
        return False
    try:
        if not os.read(handle, 1):  # whoever holds it has written its name there
            return False
        locked = _try_lock(handle)
    except PermissionError:  # Windows lets nobody read what another process has locked
        return True
    finally:
        os.close(handle)
    if locked is None and (soft := _soft_lock(path)):
        soft.release()
        return False
    return not locked


_SOFT = ".soft"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What a file system without locks answers; EBADF: NFS, of a file that is open for reading only."""


def _try_lock(handle: int) -> bool | None:
    """Whether the lock was free; None where the system or the file system has no locks."""
    from filelock import lock_descriptor

    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return None
        raise


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks. True where nothing can be written, and so nothing has to be locked."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return _try_lock(file.fileno()) is not None
    except OSError:
        return True


def _marker(path: Path) -> Path:
    return path.with_name(path.name + _SOFT)


def _soft_lock(path: Path) -> Any:
    """A held `SoftFileLock` beside the lock `path`; None if a living process, or one of another host, holds it."""
    from filelock import SoftFileLock, Timeout

    soft = SoftFileLock(_marker(path), timeout=0)
    try:
        soft.acquire()
    except Timeout:
        return None
    return soft
