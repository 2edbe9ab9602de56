"""`cortex launch`: which model, what is written or printed, and the client's start. The disk and the process, no formats."""

import difflib
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from attrs import evolve, frozen

from cortex_gateway.cli.api import Api, CommandError
from cortex_gateway.cli.launch import disk
from cortex_gateway.cli.launch.clients import CLIENTS
from cortex_gateway.cli.launch.setup import SHOWN_KEY, Asked, OwnFile, ServedModel, Setup, SharedFile


@frozen
class Places:
    """Folders of the user, as `environ` has them. `state` is where backups are."""

    home: str
    config: str
    codex: str
    state: pathlib.Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Places":
        home = str(pathlib.Path.home())
        state = environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
        return cls(
            home=home,
            config=environ.get("XDG_CONFIG_HOME") or f"{home}/.config",
            codex=environ.get("CODEX_HOME") or f"{home}/.codex",
            state=pathlib.Path(state) / "cortex" / "launch",
        )


def asked(api: Api, model: str | None, places: Places) -> Asked:
    """The gateway's models and the one to begin with. Raises CommandError."""
    listing = api.get("/v1/models")["data"]
    chosen = pick(listing, model)
    loaded = [entry for entry in listing if entry["loaded"] and "alias_of" not in entry and entry["id"] != chosen["id"]]
    others = [served(entry) for entry in loaded if context(entry)]
    first = served(chosen)
    return Asked(
        url=api.endpoint.rstrip("/"),
        key=api.key,
        model=first,
        models=[first, *others],
        home=places.home,
        config=places.config,
        codex=places.codex,
    )


def pick(listing: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any]:
    """The entry of `name`, or of what that is an alias of; without a name the first that is loaded. Raises CommandError."""
    entries = {entry["id"]: entry for entry in listing}
    if name is None:
        loaded = [entry for entry in listing if entry["loaded"] and "alias_of" not in entry]
        if not loaded:
            raise CommandError("no model is loaded: name one with --model, or load one with `cortex load MODEL`")
        return loaded[0]
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        raise CommandError(f"there is no model {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    target = entries[name].get("alias_of", name)
    return entries.get(target, entries[name])


def context(entry: Mapping[str, Any]) -> int | None:
    """The window in tokens, None where nobody knows it yet."""
    known: int | None = entry.get("limit", {}).get("context")
    return known


def served(entry: Mapping[str, Any]) -> ServedModel:
    """A line of /v1/models as clients need it. Raises CommandError."""
    window = context(entry)
    if window is None:
        name = entry["id"]
        raise CommandError(f"the window of {name} is not known before it is loaded: `cortex load {name}` first")
    return ServedModel(
        id=entry["id"],
        context=window,
        output=entry["limit"].get("output"),
        tools=bool(entry.get("tool_call")),
        reasoning=bool(entry.get("reasoning")),
        images="image" in entry.get("capabilities", ()) or "vision" in entry.get("capabilities", ()),
    )


def shown(client: str, request: Asked) -> str:
    """What `--print` says: lines for a shell, which the rest is a comment to. The key is not in it."""
    setup = CLIENTS[client](evolve(request, key=SHOWN_KEY if request.key else None))
    lines = [f"export {name}={_quoted(value)}" for name, value in setup.environment.items()]
    for file in setup.files:
        lines += ["", *(f"# {line}".rstrip() for line in _described(file).splitlines())]
    lines += [f"# {note}" for note in setup.notes]
    return "\n".join([*lines, f"# then: {shlex.join(setup.command)}"]).lstrip("\n") + "\n"


def _quoted(value: str) -> str:
    return f'"{SHOWN_KEY}"' if value == SHOWN_KEY else shlex.quote(value)


def _described(file: OwnFile | SharedFile) -> str:
    if isinstance(file, OwnFile):
        return f"{file.path}:\n{file.text}"
    parts = [
        f"{'.'.join(member.path)}{' (where it is absent)' if member.yields else ''}: {json.dumps(member.value, indent=2)}"
        for member in file.members
    ]
    return "\n".join([f"{' or '.join(file.paths)}, beside what it says:", *parts])


def launch(
    client: str, request: Asked, state: pathlib.Path, arguments: Sequence[str], say: Callable[[str], None]
) -> int:
    """Write what the client reads, then become it. Returns only where it is not installed. Raises CommandError."""
    setup = CLIENTS[client](request)
    place = state / client
    for path in disk.apply(disk.planned(setup.files, place), place):
        say(f"{path} is written; `cortex launch {client} --undo` puts back what was there")
    for note in setup.notes:
        say(note)
    if program := shutil.which(setup.command[0]):
        become(program, setup, arguments)
    if not setup.files:
        raise CommandError(f"{setup.command[0]} is not on the PATH; --print shows what to start it with")
    say(f"{setup.command[0]} is not on the PATH: start it yourself; --print shows what it needs besides")
    return 0


def become(program: str, setup: Setup, arguments: Sequence[str]) -> NoReturn:
    """This process is the client from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, [*setup.command, *arguments], {**os.environ, **setup.environment})  # noqa: S606  # no shell is meant


def undo(client: str, state: pathlib.Path, say: Callable[[str], None]) -> int:
    """Put back what was there before the first launch. Raises CommandError."""
    for line in disk.undo(state / client):
        say(line)
    return 0
