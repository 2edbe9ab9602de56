"""packaging/containers and packaging/kubernetes agree with each other and with what the programs do by default."""

import pathlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from cortex_gateway import config as gateway
from cortex_gateway.cli.app import app as cortex_cli
from neuron_jax import config as neuron
from neuron_jax.cli.app import app as neuron_cli
from neuron_jax.common.addresses import parse_address

ROOT = pathlib.Path(__file__).parents[1]
CONTAINERS, KUBERNETES = ROOT / "packaging/containers", ROOT / "packaging/kubernetes"
API, METRICS = (parse_address(getattr(gateway.GatewayConfig(), name)).port for name in ("listen", "metrics_listen"))
NEURON = neuron.ServerConfig().port
PORTS = {"cortex": {"api": API, "metrics": METRICS}, "neuron": {"neuron": NEURON}}
COMMANDS = {"cortex": cortex_cli, "neuron": neuron_cli}
PROGRAMS = sorted(PORTS)


def instructions(program: str) -> list[tuple[str, str]]:
    """Of the image itself: what follows the last FROM."""
    text = (CONTAINERS / f"Containerfile.{program}").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found = [(words[0], words[1].strip()) for line in lines if len(words := line.split(None, 1)) == 2]
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def said(program: str, word: str) -> list[str]:
    return [rest for what, rest in instructions(program) if what == word]


def image_environ(program: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in said(program, "ENV") for pair in shlex.split(line))


COMPOSE = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())


def resources() -> Iterator[dict[str, Any]]:
    """As `kubectl apply -k` would have them: those that are listed, in the namespace, with the images' real names."""
    images = {one["name"]: f"{one['newName']}:{one['newTag']}" for one in KUSTOMIZATION["images"]}
    for name in KUSTOMIZATION["resources"]:
        for one in yaml.safe_load_all((KUBERNETES / name).read_text()):
            one["metadata"]["namespace"] = KUSTOMIZATION["namespace"]
            for container in (
                one["spec"].get("template", {}).get("spec", {}).get("containers", []) if "spec" in one else ()
            ):
                container["image"] = images[container["image"]]
            yield one


RESOURCES = {(one["kind"], one["metadata"]["name"]): one for one in resources()}
PODS = {
    name: RESOURCES[kind, name]["spec"]["template"]
    for kind, name in (("Deployment", "cortex"), ("StatefulSet", "neuron"))
}


def container(program: str) -> dict[str, Any]:
    (only,) = PODS[program]["spec"]["containers"]
    return dict(only)


def writable(program: str) -> set[str]:
    """Where a pod of the program may write."""
    return {mount["mountPath"] for mount in container(program)["volumeMounts"] if not mount.get("readOnly")}


# -- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_image_runs_as_nobody_and_checks_its_health(program: str) -> None:
    """By a command that there is; every port that it listens on is told."""
    (check,) = said(program, "HEALTHCHECK")
    (ports,) = said(program, "EXPOSE")

    assert said(program, "FROM") == ["scratch"]
    assert said(program, "USER") == ["65532:65532"]
    assert said(program, "ENTRYPOINT") == [f'["/opt/cortex/bin/{program}"]']
    assert said(program, "CMD") == ['["serve"]']
    assert check.endswith(f'CMD ["/opt/cortex/bin/{program}", "health"]')
    assert {int(port) for port in ports.split()} == set(PORTS[program].values())
    assert {"serve", "health"} <= set(COMMANDS[program])


def test_what_an_image_sets_is_known(tmp_path: pathlib.Path) -> None:
    """Each variable sets something, and both programs start with theirs: open to the network, state where it may be written."""
    for_gateway, for_neuron = image_environ("cortex"), image_environ("neuron")
    config, host = gateway.load_config(None, for_gateway), neuron.load_config(None, for_neuron)

    assert not gateway.unused_variables(for_gateway)
    assert not neuron.unused_variables(for_neuron)
    assert (config.gateway.listen, config.gateway.metrics_listen) == (f"0.0.0.0:{API}", f"0.0.0.0:{METRICS}")
    assert (host.server.host, host.server.port) == ("0.0.0.0", NEURON)
    assert config.state is not None
    assert said("cortex", "VOLUME") == [str(config.state.parent)]
    assert said("neuron", "VOLUME") == [str(host.cache.models_dir.parent)]
    assert host.cache.compile_dir.is_relative_to(host.cache.models_dir.parent)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_build_gets_what_it_copies(program: str) -> None:
    """.dockerignore lets it through."""
    text = (CONTAINERS / f"Containerfile.{program}").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert copied
    assert [one for one in copied if not any(fnmatch(one.replace("*", "-1"), rule) for rule in let_through)] == []


def test_shell_scripts_are_posix() -> None:
    """As dash reads them, which runs them in a build."""
    subprocess.run(["/bin/sh", "-n", str(CONTAINERS / "rootfs.sh")], check=True)


# -- compose ------------------------------------------------------------------------------------------------------------


def test_compose_is_one_gateway_and_two_neurons() -> None:
    """Read-only, without privileges; the gateway knows them by the names of their services, and shares their secret."""
    services = COMPOSE["services"]
    told = {
        name: str(value).replace("${MODEL:-demo}", "demo") for name, value in services["cortex"]["environment"].items()
    }
    config = gateway.load_config(None, image_environ("cortex") | told)

    assert sorted(services) == ["cortex", "neuron-0", "neuron-1"]
    assert {(one.name, one.endpoint) for one in config.neurons} == {
        (name, f"http://{name}:{NEURON}") for name in services if name != "cortex"
    }
    assert services["cortex"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in (API, METRICS)]
    for name, one in services.items():
        program = name.split("-")[0]
        (volume,) = one["volumes"]
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert volume == f"{name}:{said(program, 'VOLUME')[0]}"
        assert volume.split(":")[0] in COMPOSE["volumes"]
        assert one["build"]["dockerfile"] == f"packaging/containers/Containerfile.{program}"
        assert (CONTAINERS / one["build"]["context"]).resolve() == ROOT
        assert one["image"].endswith(f"-localhost/{program}:latest}}")


def test_compose_says_nothing_that_a_neuron_does_not_know() -> None:
    told = dict.fromkeys(COMPOSE["services"]["neuron-0"]["environment"], "demo")
    config = neuron.load_config(None, image_environ("neuron") | told)

    assert not neuron.unused_variables(told)
    assert [model.model_id for model in config.default_models] == ["demo"]
    assert config.access.secret


# -- kubernetes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_ports_and_probes_are_the_programs(program: str) -> None:
    """By name, everywhere."""
    one = container(program)

    assert {port["name"]: port["containerPort"] for port in one["ports"]} == PORTS[program]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert one[probe]["httpGet"]["path"] == "/health"
        assert one[probe]["httpGet"]["port"] in PORTS[program]
    for port in RESOURCES["Service", program]["spec"]["ports"]:
        assert port["port"] == PORTS[program][port["targetPort"]]
    for rule in RESOURCES["NetworkPolicy", program]["spec"]["ingress"]:
        assert {port["port"] for port in rule.get("ports", [])} <= set(PORTS[program])
    (endpoint,) = RESOURCES["ServiceMonitor", program]["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in RESOURCES["Service", program]["spec"]["ports"]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_belongs_together_is_found_by_its_labels(program: str) -> None:
    labels = PODS[program]["metadata"]["labels"]
    selectors = [
        RESOURCES["Service", program]["spec"]["selector"],
        RESOURCES["NetworkPolicy", program]["spec"]["podSelector"]["matchLabels"],
        RESOURCES["ServiceMonitor", program]["spec"]["selector"]["matchLabels"],
        *(
            one["spec"]["selector"]["matchLabels"]
            for (kind, _), one in RESOURCES.items()
            if kind == "PodDisruptionBudget" and one["metadata"]["name"] == program
        ),
    ]

    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []
    assert RESOURCES["Service", program]["metadata"]["labels"].items() >= selectors[2].items()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pod_may_do_no_more_than_it_must(program: str) -> None:
    """As the image's user, on a read-only root; what the program writes is on a volume."""
    pod, one = PODS[program]["spec"], container(program)
    user = int(said(program, "USER")[0].split(":")[0])

    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (user, True)
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {*said(program, "VOLUME"), "/tmp"} <= writable(program)
    mounted = {mount["name"] for mount in one["volumeMounts"]}
    claims = {
        one["metadata"]["name"]
        for one in RESOURCES.get(("StatefulSet", program), {"spec": {}})["spec"].get("volumeClaimTemplates", [])
    }
    assert mounted == {volume["name"] for volume in pod["volumes"]} | claims


def test_pods_have_time_to_end() -> None:
    """More than running requests are given."""
    grace = {name: pod["spec"]["terminationGracePeriodSeconds"] for name, pod in PODS.items()}

    assert grace["cortex"] > gateway.GatewayConfig().drain_secs
    assert grace["neuron"] > neuron.ServerConfig().drain_secs


def test_the_gateways_configuration_is_one(tmp_path: pathlib.Path) -> None:
    """With the secret that the pod is given; neurons are found by the name of their service in this namespace."""
    data, pod = RESOURCES["ConfigMap", "cortex"]["data"], PODS["cortex"]["spec"]
    (tmp_path / "neuron-secret").write_text("word\n")
    (tmp_path / "models.toml").write_text(data["models.toml"])
    path = tmp_path / "cortex.toml"
    place = next(mount["mountPath"] for mount in container("cortex")["volumeMounts"] if mount["name"] == "secret")
    assert f"{place}/neuron-secret" in data["cortex.toml"]
    path.write_text(data["cortex.toml"].replace(place, str(tmp_path)))
    config = gateway.load_config(path, image_environ("cortex"))

    service, (port,) = RESOURCES["Service", "neuron"], RESOURCES["Service", "neuron"]["spec"]["ports"]
    name = f"_{port['name']}._tcp.{service['metadata']['name']}.{KUSTOMIZATION['namespace']}.svc.cluster.local"
    assert [(one.srv, one.secret) for one in config.discovery] == [(name, "word")]
    assert service["spec"]["clusterIP"] == "None"
    assert RESOURCES["StatefulSet", "neuron"]["spec"]["serviceName"] == service["metadata"]["name"]
    assert str(config.state.parent if config.state else None) in writable("cortex")
    keys = {pod["volumes"][1]["secret"]["secretName"]} | {
        one["valueFrom"]["secretKeyRef"]["name"] for one in container("neuron")["env"]
    }
    assert keys == {"cortex"}
    assert not neuron.unused_variables({one["name"]: "x" for one in container("neuron")["env"]})
    (tokens,) = [container("cortex")["args"]]
    assert tokens == ["serve", "--config", "/etc/cortex/cortex.toml"]


def test_images_are_named_once() -> None:
    """kustomization.yaml says where they are, and of which version: that of this tree."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert container("cortex")["image"] == f"registry.example/cortex:{version}"
    assert container("neuron")["image"] == f"registry.example/neuron:{version}-cuda12"


def test_a_gpu_is_asked_for() -> None:
    """The same number as a limit, which extended resources must have."""
    resources = container("neuron")["resources"]

    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def test_nothing_here_holds_a_secret() -> None:
    assert not [one for one in RESOURCES.values() if one["kind"] == "Secret"]
