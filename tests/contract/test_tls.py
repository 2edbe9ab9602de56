"""TLS between client, gateway, neuron and neuron, and what is told where a certificate is wrong."""

import asyncio
import contextlib
import pathlib
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvloop

from cortex_gateway import config as gateway_config
from cortex_gateway.cli import app as cli
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.serving import Running, bind, running
from cortex_gateway.transport import NeuronTransport
from neuron_jax.common.errors import ConfigError
from neuron_jax.common.tls import TlsFileError, client_context, server_context
from neuron_jax.config import ModelSpec, PeerConfig, RanksConfig, ServerConfig
from neuron_jax.config import load_config as neuron_config
from neuron_jax.daemon.peers import Peer, PeerError, peers_of
from neuron_jax.workers.frames import EngineSpec, GroupMember
from tests.fakes import live_neuron
from tests.fakes.certificates import Certificates, Pair
from tests.fakes.engine_double import ROOT, environment
from tests.fakes.gateway_rig import CHAT, HI
from tests.fakes.live_gateway import in_thread
from tests.fakes.live_neuron import MODEL, config_for
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

Files = Callable[[Certificates], Any]
NEEDS_ONE = "it (wants|may want) a client certificate.* tls_cert and tls_key"
"""What a peer says in its last word gets lost where the connection is reset at once."""


def listening(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"tls_cert": str(pair.cert), "tls_key": str(pair.key), **more}


@contextlib.asynccontextmanager
async def neuron(folder: pathlib.Path, tls: dict[str, Any], **more: Any) -> AsyncIterator[str]:
    """The URL of a neuron with the tiny model to load."""
    config = config_for(
        write_tiny_model(folder / "tiny"),
        folder / "cache",
        server=ServerConfig(port=0, **{key: pathlib.Path(path) for key, path in tls.items()}),
        **more,
    )
    async with live_neuron.running(config) as (url, _):
        yield url


@contextlib.asynccontextmanager
async def gateway(node: Neuron, **tls: Any) -> AsyncIterator[Running]:
    listens = GatewayConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", watch_secs=0.05, drain_secs=0, **tls)
    config = Config(gateway=listens, neurons=(node,))
    async with running(config, bind(config)) as it:
        yield it


def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.ca))


def test_a_request_goes_over_tls_all_the_way(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """From the client to the gateway, and from there, with a certificate on both sides, to the neuron."""
    files = certificates

    async def main() -> None:
        async with neuron(tmp_path, listening(files.server, tls_client_ca=str(files.ca))) as url:
            assert url.startswith("https://")
            node = Neuron(name="a", endpoint=url, tls_ca=str(files.ca), **listening(files.client))
            async with (
                gateway(node, **listening(files.server), metrics_tls=True) as it,
                httpx.AsyncClient(verify=trusting(files), timeout=20) as client,
            ):
                assert it.url.startswith("https://")
                loaded = await client.post(f"{it.url}/admin/load", json={"model": MODEL})
                answer = await client.post(f"{it.url}{CHAT}", json={"model": MODEL, "messages": HI})
                scraped = await client.get(f"{it.metrics_url}/metrics")
                endpoint = it.fleet._nodes._client.get(f"{url}/models/{MODEL}/endpoint")
                assert (await endpoint).json() == {"url": url}
            assert [one.status_code for one in (loaded, answer, scraped)] == [200] * 3
            assert it.metrics_url.startswith("https://")

    asyncio.run(main())


def test_metrics_stay_plain_unless_it_is_said(certificates: Certificates) -> None:
    """A Prometheus that scrapes them goes on."""

    async def main() -> None:
        async with (
            gateway(Neuron(name="a", endpoint="http://127.0.0.1:9"), **listening(certificates.server)) as it,
            httpx.AsyncClient() as client,
        ):
            assert (it.url.split(":")[0], it.metrics_url.split(":")[0]) == ("https", "http")
            assert (await client.get(f"{it.metrics_url}/metrics")).status_code == 200

    asyncio.run(main())


def test_peers_lend_over_tls(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """With a certificate on both sides."""
    files, secret = certificates, "of both"
    rank = EngineSpec(MODEL, "", devices=(1,), tensor_parallel=2, group=GroupMember(rank=1, world=2))
    model = ModelSpec(model_id=MODEL)

    def peer(url: str, **tls: Any) -> Peer:
        return peers_of((PeerConfig(name="friend", endpoint=url, **tls),), secret)["friend"]

    async def main() -> None:
        tls = listening(files.server, tls_client_ca=str(files.ca))
        async with neuron(tmp_path, tls, ranks=RanksConfig(secret=secret)) as url:
            friend = peer(url, tls_ca=files.ca, tls_cert=files.client.cert, tls_key=files.client.key)
            assert (await friend.offer(model, 1)).devices == (1,)
            started = await friend.start(rank, model, (1,))
            await until(lambda: started.phase == "ready")
            await started.close()
            with pytest.raises(PeerError, match=NEEDS_ONE):
                await peer(url, tls_ca=files.ca).offer(model, 1)
            with pytest.raises(
                PeerError, match="nobody who is known here signed its certificate: tls_ca names who did"
            ):
                await peer(url).offer(model, 1)

    asyncio.run(main())


def test_a_client_certificate_is_as_good_as_a_secret(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """Whoever comes through a proxy, which is another host, has one; pages still may not."""
    files = certificates
    headers = {"X-Forwarded-For": "10.0.0.9"}

    async def main() -> tuple[int, int]:
        context = trusting(files)
        context.load_cert_chain(files.client.cert, files.client.key)
        async with (
            neuron(tmp_path, listening(files.server, tls_client_ca=str(files.ca))) as url,
            httpx.AsyncClient(base_url=url, verify=context, headers=headers, timeout=20) as client,
        ):
            page = {"Origin": "https://evil.example"}
            loaded = await client.post("/models/load", json={"model_id": MODEL})
            asked = await client.post("/models/unload", json={"model_id": MODEL}, headers=page)
            return loaded.status_code, asked.status_code

    assert asyncio.run(main()) == (200, 403)


@contextlib.asynccontextmanager
async def serving(pair: Pair | None, client_ca: pathlib.Path | None = None) -> AsyncIterator[str]:
    """A server that answers nothing, over TLS where it has a certificate; it checks no date of its own."""
    context = None
    if pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\n")
            writer.write(b"hm\r\n\r\n")
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


BROKEN: dict[str, tuple[Files, Files, str]] = {
    "unknown signer": (
        lambda files: (files.stranger, None),
        lambda files: (files.ca, None, None),
        "nobody who is known here signed its certificate: tls_ca names who did",
    ),
    "no tls_ca": (
        lambda files: (files.server, None),
        lambda _: (None, None, None),
        "nobody who is known here signed its certificate: tls_ca names who did",
    ),
    "expired": (
        lambda files: (files.expired, None),
        lambda files: (files.ca, None, None),
        "its certificate has expired",
    ),
    "another name": (
        lambda files: (files.elsewhere, None),
        lambda files: (files.ca, None, None),
        "its certificate is for another name: .*127.0.0.1",
    ),
    "no client certificate": (
        lambda files: (files.server, files.ca),
        lambda files: (files.ca, None, None),
        NEEDS_ONE,
    ),
    "a stranger's client certificate": (
        lambda files: (files.server, files.ca),
        lambda files: (files.ca, files.stranger.cert, files.stranger.key),
        "it does not know who signed our certificate, tls_cert|it may want a client certificate that it knows",
    ),
    "plain HTTP": (
        lambda _: (None, None),
        lambda files: (files.ca, None, None),
        "it does not speak TLS there: http:// instead of https://",
    ),
}


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(("server", "client", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_the_other_side_is_one_line(
    certificates: Certificates, server: Files, client: Files, told: str, loop: Any
) -> None:
    """In the words of the keys that mend it."""

    async def main() -> None:
        async with serving(*server(certificates)) as url:
            place = httpx.URL(url)
            context = client_context(*client(certificates))
            transport = NeuronTransport({(place.scheme, place.netloc): context})
            async with asyncio.timeout(20), httpx.AsyncClient(transport=transport) as http:
                with pytest.raises(httpx.TransportError, match=told) as failed:
                    await http.post(url, json={})
                assert "\n" not in str(failed.value)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


TLS_FILES: dict[str, tuple[str, str, str]] = {
    "missing": ("none.pem", "server.key", r"tls_cert: .*none.pem cannot be read: No such file"),
    "missing key": ("server.pem", "none.key", r"tls_key: .*none.key cannot be read: No such file"),
    "a key for a certificate": ("server.key", "server.key", r"tls_cert: .*server.key has no certificate in PEM"),
    "a certificate for a key": ("server.pem", "server.pem", r"tls_key: .*server.pem has no private key in PEM"),
    "another key": (
        "server.pem",
        "client.key",
        r"tls_key: .*client.key is not the key of the certificate in .*server.pem",
    ),
    "expired": ("expired.pem", "expired.key", r"tls_cert: .*expired.pem has expired"),
    "encrypted": (
        "server.pem",
        "locked.key",
        r"tls_key: .*locked.key is encrypted: a key without a passphrase is needed",
    ),
    "no certificate inside": ("junk.pem", "server.key", r"tls_cert: .*junk.pem cannot be used: "),
}


@pytest.mark.parametrize(("cert", "key", "told"), TLS_FILES.values(), ids=TLS_FILES)
def test_a_wrong_file_stops_the_start_of_either_program(
    tmp_path: pathlib.Path, certificates: Certificates, cert: str, key: str, told: str
) -> None:
    """Told with the file and the key of the configuration, whether it is for listening or for connecting."""
    folder = certificates.ca.parent
    (folder / "locked.key").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    (folder / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    files = f'tls_cert = "{folder / cert}"\ntls_key = "{folder / key}"\n'
    node = 'name = "a"\nendpoint = "https://a"\n'
    cortex, toml = tmp_path / "cortex.toml", tmp_path / "neuron.toml"

    cortex.write_text(f"[gateway]\n{files}[[neurons]]\n{node}{files}")
    with pytest.raises(gateway_config.ConfigError) as raised:
        gateway_config.load_config(cortex, {})
    assert [problem.split(": ")[1].split(".tls")[0] for problem in raised.value.problems] == ["gateway", "neurons[0]"]
    assert_all_match(told, raised.value.problems)

    for section in ("[server]\n", f"[[peers]]\n{node}"):
        toml.write_text(section + files)
        with pytest.raises(ConfigError) as refused:
            neuron_config(toml, {"HOME": "/h"})
        assert str(refused.value).startswith(str(toml))
        assert_all_match(told, [str(refused.value)])


def assert_all_match(pattern: str, texts: Any) -> None:
    assert all(re.search(pattern, text) and "\n" not in text for text in texts), texts


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('[gateway]\ntls_key = "k"\n', "gateway.tls_key: needs tls_cert beside it"),
        ("[gateway]\nmetrics_tls = true\n", "gateway.metrics_tls: needs tls_cert beside it"),
        ('[[neurons]]\nname = "b"\nendpoint = "https://b"\ntls_key = "k"\n', r"neurons\[0\].tls_key: needs tls_cert"),
        ('[[neurons]]\nname = "b"\nendpoint = "http://b"\ntls_ca = "k"\n', r"tls_ca: is for an https:// endpoint"),
        ('[[neurons]]\nname = "b"\nendpoint = "https://b"\ntls_ca = "none"\n', r"tls_ca: .*none cannot be read"),
    ],
)
def test_files_of_the_gateway_that_do_not_go_together(tmp_path: pathlib.Path, keys: str, told: str) -> None:
    path = tmp_path / "cortex.toml"
    path.write_text(keys + '[[neurons]]\nname = "a"\nendpoint = "http://a"\n')

    with pytest.raises(gateway_config.ConfigError, match=told):
        gateway_config.load_config(path, {})


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"NEURON_SERVER__TLS_KEY": "k"}, "NEURON_SERVER__TLS_KEY: needs tls_cert"),
        ({"NEURON_SERVER__TLS_CLIENT_CA": "k"}, "NEURON_SERVER__TLS_CLIENT_CA: needs tls_cert"),
        ({"NEURON_SERVER__TLS_CERT": "none"}, "NEURON_SERVER__TLS_CERT: none cannot be read"),
        (
            {"NEURON_PEERS": '[{name="a", endpoint="http://a", tls_ca="k"}]'},
            r"peers\[0\].tls_ca: is for an https:// end",
        ),
        ({"NEURON_PEERS": '[{name="a", endpoint="https://a", tls_key="k"}]'}, r"peers\[0\].tls_key: needs tls_cert"),
    ],
)
def test_files_of_a_neuron_that_do_not_go_together(environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        neuron_config(None, {"HOME": "/h", **environ})


def test_files_stand_beside_the_configuration(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """Relative paths are of its folder, wherever the program runs."""
    folder = certificates.ca.parent
    cortex, toml = folder / "cortex.toml", folder / "neuron.toml"
    own = 'tls_cert = "server.pem"\ntls_key = "server.key"\n'
    cortex.write_text(f'[gateway]\n{own}[[neurons]]\nname = "a"\nendpoint = "https://a"\ntls_ca = "ca.pem"\n')
    toml.write_text(f'[server]\n{own}tls_client_ca = "ca.pem"\n')

    found, there = gateway_config.load_config(cortex, {}), neuron_config(toml, {"HOME": "/h"})

    assert (found.gateway.tls_cert, found.neurons[0].tls_ca) == (folder / "server.pem", certificates.ca)
    assert (there.server.tls_key, there.server.tls_client_ca) == (certificates.server.key, certificates.ca)


def test_a_key_may_stand_in_the_file_of_its_certificate(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.server.key.read_bytes() + certificates.server.cert.read_bytes())

    assert server_context(both)
    with pytest.raises(TlsFileError, match="no private key in PEM; tls_key names its file"):
        server_context(certificates.server.cert)


PROGRAM = """
import os
from neuron_jax.config import load_config
from neuron_jax.daemon.app import serve
serve(load_config(None, os.environ))
"""


def test_a_neuron_s_own_process_says_that_it_speaks_tls(certificates: Certificates) -> None:
    """With the address it prints, a client that has a certificate gets in."""
    files = certificates
    tls = {"CERT": files.server.cert, "KEY": files.server.key, "CLIENT_CA": files.ca}
    settings = {f"NEURON_SERVER__TLS_{key}": str(path) for key, path in tls.items()} | {"NEURON_SERVER__PORT": "0"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment() | settings, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("neuron ready ").strip()
            context = trusting(files)
            context.load_cert_chain(files.client.cert, files.client.key)
            assert httpx.get(f"{url}/health", verify=context, timeout=20).status_code == 200
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/health", verify=trusting(files), timeout=20)
        finally:
            process.terminate()
    assert url.startswith("https://127.0.0.1:")
    assert process.returncode == 0


def test_the_commands_reach_a_gateway_over_tls(
    certificates: Certificates, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They trust whom the system trusts, and SSL_CERT_FILE, as every program with OpenSSL."""
    node = Neuron(name="a", endpoint="http://127.0.0.1:9")
    with in_thread(gateway(node, **listening(certificates.server))) as it:
        assert cli.run(["status", "--endpoint", it.url]) == 1
        assert capsys.readouterr().err == (
            f"cortex: {it.url}: nobody who is known here signed its certificate: SSL_CERT_FILE names who did\n"
        )
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        assert cli.run(["status", "--endpoint", it.url]) == 0


def test_cortex_up_says_that_it_speaks_no_tls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of waiting for an answer that does not come."""
    monkeypatch.setenv("NEURON_SERVER__TLS_CERT", "x")

    assert cli.run(["up"]) == 1
    assert "`cortex up` speaks plain HTTP" in capsys.readouterr().err
