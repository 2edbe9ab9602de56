"""Records what a real agent sends for one turn with one command: the agent as `cortex launch` sets it up, a scripted model.

    python -m tests.contract.record claude|codex|opencode|cline|continue

The program must be on the PATH (npm has them all). Writes `tests/contract/clients/<agent>-<version>/`: `first.json`, and
`second.json` with what the second request adds. Long texts are others' work, and stand there as a digest and a length only;
`tests.contract.sessions` makes texts of the same length of them, the same for the same digest.
"""

import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cortex_gateway.encodings import plain
from cortex_gateway.placement.snapshot import Limit, ModelConfig
from tests.fakes.live_gateway import live_gateway
from tests.fakes.scripted_model import ScriptedModel

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PATHS = ("/v1/messages", "/v1/responses", "/v1/chat/completions")
LONG = 80
"""Characters of a text that is kept as it is."""

COMMANDS = {
    "claude": ("-p", "make a file made.txt", "--allowedTools", "Bash"),
    "codex": ("exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "make a file made.txt"),
    "opencode": ("run", "make a file made.txt"),
    "cline": ("--json", "make a file made.txt"),
    "continue": ("-p", "make a file made.txt", "--auto"),
}
PROGRAMS = {"continue": "cn"}
"""Where one is called otherwise."""
_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32,64}")


def main() -> None:
    """Record, and write."""
    agent = sys.argv[1]
    shown = subprocess.run([PROGRAMS.get(agent, agent), "--version"], capture_output=True, text=True, check=True).stdout
    version = next(iter(re.findall(r"\d+\.\d+\.\d+", shown)))
    bodies = [body for body in _record(agent) if body.get("tools")]
    first, second = bodies[0], bodies[1]
    key = "input" if "input" in first else "messages"
    common = len(first[key])
    same = [name for name in first if name != key and first[name] == second.get(name)]
    changed = {name: value for name, value in second.items() if name not in same and name != key}
    more = {"keeps": _short(second[key][:common]) == _short(first[key]), key: second[key][common:], **changed}
    folder = HERE / "clients" / f"{agent}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not more["keeps"]:
        more[key] = second[key]
    for name, body in (("first", first), ("second", more)):
        (folder / f"{name}.json").write_text(json.dumps(_short(body), indent=1, ensure_ascii=False) + "\n")
    print(f"{folder}: {len(bodies)} requests with tools")


def _record(agent: str) -> list[Any]:
    """The bodies of an agent's requests, in order."""
    model = ScriptedModel(command="echo by the model > made.txt")
    models = (ModelConfig(id="demo", limit=Limit(context=131_072)),)
    with (
        tempfile.TemporaryDirectory() as folder,
        live_gateway({"double": model}, models=models) as gateway,
        _recorder(gateway.url) as (url, bodies),
    ):
        home, work = pathlib.Path(folder, "home"), pathlib.Path(folder, "work")
        home.mkdir()
        work.mkdir()
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "CORTEX_ENDPOINT": url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "cortex_gateway", "launch", agent, "--", *COMMANDS[agent]]
        subprocess.run(command, cwd=work, env=environment, stdin=subprocess.DEVNULL, timeout=250, check=True)
        told = json.dumps(bodies).replace(str(work), "/work").replace(str(home), "/home/user")
    ids: dict[str, str] = {}
    told = _IDS.sub(lambda found: ids.setdefault(found[0], f"{len(ids) + 1:0{len(found[0])}d}"), told)
    return list(json.loads(told))


@contextmanager
def _recorder(upstream: str) -> Iterator[tuple[str, list[Any]]]:
    """A server that passes everything on, and keeps the bodies of requests for an answer."""
    bodies: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._pass(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path.partition("?")[0] in PATHS:
                encoding = self.headers.get("content-encoding")
                bodies.append(json.loads(plain(encoding, body, 1 << 26) if encoding else body))
            self._pass(body)

        def _pass(self, body: bytes | None) -> None:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
            request = urllib.request.Request(upstream + self.path, body, kept, method=self.command)
            try:
                answer = urllib.request.urlopen(request, timeout=100)
            except urllib.error.HTTPError as refused:
                answer = refused
            with answer:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                while chunk := answer.read1(65536):
                    self.wfile.write(chunk)
                    self.wfile.flush()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()


def _short(value: Any) -> Any:
    """`value` with long texts as a digest and a length."""
    if isinstance(value, str) and len(value) > LONG:
        return {"digest": hashlib.sha256(value.encode()).hexdigest()[:12], "characters": len(value)}
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
