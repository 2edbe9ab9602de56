"""The import table: dependencies flow one way, and a row may import only what its line says."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
JAX = {"jax", "flax", "orbax", "jaxlib"}
WEB = {"litestar", "httpx", "uvicorn", "uvloop"}
OURS = {"models", "neuron_jax", "cortex_gateway"}

# layer -> (project modules it may import, besides its own folder; third-party worlds it may import)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "models": (set(), JAX),
    "models.native.build": (set(), set()),
    "models.native.prebuilt": (set(), set()),
    "models.native.unpacking": (set(), set()),
    "neuron_jax.constraints": ({"neuron_jax.workers.frames"}, set()),
    "neuron_jax.constraints.errors": (set(), set()),
    "neuron_jax.engine": ({"models", "neuron_jax.workers.frames", "neuron_jax.constraints"}, JAX),
    "neuron_jax.deviceless": ({"models", "neuron_jax.engine", "neuron_jax.hardware.cards"}, JAX),
    **{f"neuron_jax.deviceless.{name}": (set(), set()) for name in ("census", "hlo")},
    "neuron_jax.deviceless.predict": ({"neuron_jax.hardware.cards"}, set()),
    "neuron_jax.text": (set(), set()),
    "neuron_jax.weights": (
        {"models.native.unpacking"}
        | {"models." + x for x in ("config", "errors", "gguf", "pooling", "registry", "spec", "storage", "wrapper")},
        {"httpx"},
    ),
    "neuron_jax.weights.place": ({"models"}, JAX),
    "neuron_jax.weights.orbax_params": ({"models"}, JAX),
    "neuron_jax.weights.trained": ({"models"}, JAX),
    "neuron_jax.hardware": (set(), set()),
    "neuron_jax.workers": ({"neuron_jax.errors", "neuron_jax.common.addresses", "neuron_jax.common.log_output"}, set()),
    "neuron_jax.workers.renderers": ({"neuron_jax.text", "neuron_jax.constraints.errors"}, set()),
    "neuron_jax.workers.render_process": ({"neuron_jax.text", "neuron_jax.constraints"}, set()),
    "neuron_jax.workers.handshake": ({"neuron_jax.errors"}, JAX),
    "neuron_jax.workers.follow": ({"neuron_jax.engine"}, set()),
    "neuron_jax.workers.compile_ahead": ({"models", "neuron_jax.engine"}, JAX),
    "neuron_jax.workers.compile_abroad": (
        {"models.storage", "neuron_jax.deviceless", "neuron_jax.engine", "neuron_jax.hardware.cards"},
        set(),
    ),
    "neuron_jax.workers.convert": ({"models", "neuron_jax.engine", "neuron_jax.weights"}, JAX),
    "neuron_jax.benchmark": ({"models"} | {"neuron_jax." + x for x in ("hardware", "workers", "errors")}, JAX),
    "neuron_jax.workers.start": (
        {"models"} | {"neuron_jax." + x for x in ("engine", "errors", "hardware", "weights")},
        JAX,
    ),
    "neuron_jax.workers.new_weights": ({"models"} | {"neuron_jax." + x for x in ("engine", "errors", "weights")}, JAX),
    "neuron_jax.workers.embed": ({"models"} | {"neuron_jax." + x for x in ("engine", "errors", "weights")}, JAX),
    "neuron_jax.quality": ({"neuron_jax." + x for x in ("errors", "text", "weights", "workers")}, set()),
    "neuron_jax.quality.measure": ({"models"}, JAX),
    "neuron_jax.quality.worker": ({"models", "neuron_jax.weights", "neuron_jax.workers"}, JAX),
    "neuron_jax.daemon": (
        {"neuron_jax." + x for x in ("common", "text", "weights", "hardware", "workers", "config", "errors")}
        | {"neuron_jax.constraints.errors", "neuron_jax.build_info", "models.spec"},
        WEB,
    ),
    "neuron_jax.common": (set(), set()),
    "neuron_jax.common.connection": (set(), {"uvicorn"}),
    "neuron_jax.daemon.status": (
        {"neuron_jax.errors", "neuron_jax.workers.frames", "neuron_jax.workers.supervisor"},
        set(),
    ),
    "neuron_jax.daemon.assign": ({"neuron_jax.config", "neuron_jax.errors", "neuron_jax.hardware.records"}, set()),
    "neuron_jax": ({"neuron_jax", "models.errors", "models.native.build", "models.spec", "models.storage"}, WEB),
    "cortex_gateway.dialects": ({"neuron_jax.common.names", "neuron_jax.common.nesting"}, set()),
    "cortex_gateway.openapi": (set(), set()),
    "cortex_gateway.placement": ({"neuron_jax.common.names"}, set()),
    "cortex_gateway.fleet": (
        {"cortex_gateway." + x for x in ("placement", "config", "context", "errors", "metrics")}
        | {"neuron_jax.common.tls"},
        {"httpx"},
    ),
    "cortex_gateway.fleet.dns": (set(), set()),
    "cortex_gateway.auth": ({"neuron_jax.common.errors"}, set()),
    **{f"cortex_gateway.auth.{name}": ({"cortex_gateway.errors"}, set()) for name in ("keys", "limits", "policy")},
    "cortex_gateway.auth.principal": (set(), set()),
    **{f"cortex_gateway.cli.launch.{name}": (set(), set()) for name in ("clients", "jsonc", "setup")},
    "cortex_gateway.cli.moving": (
        {"cortex_gateway.config", "neuron_jax.common.kinds", "neuron_jax.common.reader"},
        set(),
    ),
    "cortex_gateway": ({"cortex_gateway", "neuron_jax.common"}, WEB),
}
PURE = (
    "cortex_gateway.dialects",
    "cortex_gateway.openapi",
    "cortex_gateway.placement",
    "neuron_jax.text",
    "neuron_jax.daemon.status",
    "neuron_jax.daemon.assign",
    "neuron_jax.constraints",
    *(f"neuron_jax.deviceless.{name}" for name in ("census", "hlo", "predict")),
    *(f"cortex_gateway.auth.{name}" for name in ("keys", "limits", "policy", "principal")),
    *(f"cortex_gateway.cli.launch.{name}" for name in ("clients", "jsonc", "setup")),
    "cortex_gateway.cli.moving",
    "cortex_gateway.fleet.dns",
)
IMPURE = {"time", "asyncio", "logging", "socket", "sqlite3", "threading", "random", "secrets", "os", "subprocess"}


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in sorted(OURS):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def layer(module: str) -> str:
    return max((row for row in TABLE if module == row or module.startswith(row + ".")), key=len)


def imports(module: str) -> set[str]:
    """Every absolute module that `module` imports, function-level imports included."""
    path = MODULES[module]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute here"
            base = node.module or ""
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    row = layer(module)
    allowed, worlds = TABLE[row]
    folder = row if (ROOT / row.replace(".", "/")).is_dir() else row.rsplit(".", 1)[0]
    seen = imports(module)
    ours = {name for name in seen if name.split(".")[0] in OURS and not within(name, {folder})}
    alien = {name for name in seen if name.split(".")[0] in (JAX | WEB) - worlds}

    assert not {name for name in ours if not within(name, allowed)}
    assert not alien


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in PURE])
def test_pure_modules_have_no_clock_and_no_io(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & IMPURE


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_knows(module: str) -> None:
    source = MODULES[module].read_text()

    assert not source.strip() or ast.get_docstring(ast.parse(source))


def test_the_gateway_takes_no_more_than_what_is_common() -> None:
    """All of it, in a process of its own: nothing that computes, and nothing of a neuron."""
    gateway = [name for name in MODULES if within(name, {"cortex_gateway"}) and not name.endswith("__main__")]
    program = f"import sys, {', '.join(gateway)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seen = set(done.stdout.split())

    assert "neuron_jax.common.addresses" in seen
    assert not seen & (JAX | {"numpy", "models"})
    assert {name for name in seen if within(name, {"neuron_jax"})} <= {
        "neuron_jax",
        *(name for name in MODULES if within(name, {"neuron_jax.common"})),
    }


def within(name: str, rows: set[str]) -> bool:
    return any(name == row or name.startswith(row + ".") for row in rows)
