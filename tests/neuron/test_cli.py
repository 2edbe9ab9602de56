"""The command `neuron`: what it prints, what it refuses, and how it exits."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.cli import app, run
from tests.fakes.programs import program
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.vocabularies import byte_level_json


def model_folder(folder: Path, **changes: Any) -> Path:
    """A model that could be loaded: config, weights, tokenizer."""
    write_checkpoint(folder, **changes)
    (folder / "tokenizer.json").write_bytes(byte_level_json())
    return folder


def text(captured: Any) -> str:
    """Output as one line, however wide the terminal was."""
    return " ".join((captured.out + captured.err).split())


def test_discover_prints_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """Every device with its size and load, under the wire's names."""
    assert run(["discover", "--json"], {}) == 0
    found = json.loads(capsys.readouterr().out)

    assert {"hostname", "os", "kernel", "cuda_version", "driver_version", "cuda_unavailable_reason"} < set(found)
    assert {"index", "name", "kind", "vram_total_mb", "vram_used_mb", "vram_free_mb"} < set(found["devices"][0])


def test_discover_prints_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A CPU stands for as many devices as the configuration says, hidden GPUs included."""
    config = tmp_path / "neuron.toml"
    config.write_text("[engine]\ncpu_devices = 3\n")

    assert run(["discover", "--config", str(config)], {"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert {"0", "1", "2"} <= {line.strip("│ ").split(" ")[0] for line in capsys.readouterr().out.splitlines()}


def test_health_tells_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, for the log of a container's health check; a live one is asked in daemon/test_serve.py."""
    assert run(["health", "--endpoint", "http://127.0.0.1:9"], {}) == 1
    assert text(capsys.readouterr()).startswith("neuron: no neuron answers at http://127.0.0.1:9: ")


def test_a_variable_that_sets_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """And stops nothing."""
    assert run(["discover", "--json"], {"NEURON_PEER": "[]"}) == 0
    shown = capsys.readouterr()

    assert shown.err == "neuron: environment: NEURON_PEER is not used; did you mean NEURON_PEERS?\n"
    assert json.loads(shown.out)


@pytest.mark.parametrize(
    ("tokens", "environ", "words"),
    [
        (["discover", "-c", "/nowhere/neuron.toml"], {}, "neuron: /nowhere/neuron.toml: cannot be read: No such file"),
        (
            ["discover"],
            {"NEURON_ENGINE__CPU_DEVICES": "many"},
            'environment: NEURON_ENGINE__CPU_DEVICES: found "many"; allowed: a whole number from 1 to 64',
        ),
        (["serve"], {"NEURON_SERVER__PROT": "1"}, 'NEURON_SERVER__PROT: found "prot"; allowed: "host", "port"'),
        (["discover", "--jsn"], {}, "Unknown option: --jsn. Did you mean --json?"),
        (["serve", "--port", "99999"], {}, "--port. Must be <= 65535"),
        (["serve", "--port", "x"], {}, "unable to convert"),
        (["serve", "--host", "::1:13131"], {}, "must be a name or an IP address, without a port"),
        (["worker", "--rank", "0", "--world", "1", "--coordinator", "::1"], {}, 'stands in brackets, as "[::1]:31313"'),
        (["plan"], {}, "requires an argument"),
        (["plan", "demo", "--quant", "int3"], {}, 'the command line: quant: found "int3"; allowed: "auto", "none"'),
        (["plan", "demo", "--kv-dtype", "int3"], {}, 'kv_dtype: found "int3"; allowed: "auto", "float32", "bfloat16"'),
        (["bench", "demo", "--streams", "1,x"], {}, "--streams"),
        (["bench", "demo", "--streams", "0"], {}, "numbers from 1 on"),
        (["bench", "demo", "--generate", "1"], {}, "--generate. Must be >= 2"),
        (["sevre"], {}, 'Did you mean "serve"?'),
    ],
)
def test_wrong_flags_and_configuration_exit_with_2(
    tokens: list[str], environ: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message that names what is wrong, and no traceback."""
    assert run(tokens, environ) == 2
    shown = text(capsys.readouterr())

    assert words in shown.replace(" │ │ ", " ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "words", ["--streams 1 8", "--streams 1,8", "--streams=1,8", "--streams 1 --streams 8", "--streams 1 8 --rounds 2"]
)
def test_several_numbers_of_one_option(words: str) -> None:
    """In every way that people write them."""
    _, bound, *_ = app.parse_args(["bench", "demo", *words.split()], exit_on_error=False, print_error=False)

    assert bound.arguments["cases"].streams == (1, 8)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help is the answer."""
    assert run([], {}) == 0
    shown = capsys.readouterr().out

    assert all(name in shown for name in ("serve", "discover", "plan", "bench", "quality", "--version"))
    assert all(app[name].help for name in ("serve", "discover", "plan", "bench", "quality"))


def test_the_module_is_the_program() -> None:
    """`python -m neuron_jax` runs without JAX being touched, and says its version."""
    probe = (
        "import sys; sys.argv = ['neuron', '--version']; import neuron_jax.__main__ as program\n"
        "try: program.main()\n"
        "finally: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr
    shape = r"neuron \d\S+\n  commit: .+\n  prebuilt kernels: .+\n  jax: \d\S+\n  kernels: [^:]+\nFalse\n"
    assert re.fullmatch(shape, done.stdout)


def test_serve_listens_where_the_flags_say_and_ends_on_interrupt(tmp_path: Path) -> None:
    """Flags win over the configuration; Ctrl-C is a clean end."""
    config = tmp_path / "neuron.toml"
    config.write_text("[server]\nhost = '192.0.2.1'\nport = 1\n")
    command = [sys.executable, "-m", "neuron_jax", "serve", "-c", str(config), "--host", "127.0.0.1", "--port", "0"]
    environ = os.environ | {"CORTEX_CACHE": str(tmp_path / "cache")}
    with program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert ready.startswith("neuron ready http://127.0.0.1:"), errors
    assert process.returncode == 0


def test_a_plan_is_the_table_of_where_memory_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows in bytes that add up, how weights are kept, and the longest request."""
    folder = model_folder(tmp_path / "tiny")
    environ = {"HOME": str(tmp_path), "NEURON_ENGINE__MEMORY_MB": "1024"}

    assert run(["plan", str(folder), "--quant", "none", "--json"], environ) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row["bytes"] for row in report["plan"]}
    assert sum(size for what, size in rows.items() if what not in ("total", "may use")) == rows["total"]
    assert rows["may use"] == 1024 * 2**20
    assert (report["fits"], report["max_context"], report["quant"]["chosen"]) == (True, 512, "none")

    assert run(["plan", str(folder), "--kv-dtype", "int8"], environ) == 0
    shown = text(capsys.readouterr())
    assert "fits: requests of up to 512" in shown
    assert "keys and values: kv_dtype int8 (as asked)" in shown
    assert f"{len(report['programs'])} programs; ready with the first " in shown
    assert ", ".join(program["name"] for program in report["programs"]) in shown


def test_a_plan_lists_what_would_be_compiled_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is essential for being ready comes first."""
    folder = model_folder(tmp_path / "tiny")

    assert run(["plan", str(folder), "--json"], {"HOME": str(tmp_path)}) == 0
    programs = json.loads(capsys.readouterr().out)["programs"]
    essential = [program["essential"] for program in programs]
    assert essential == sorted(essential, reverse=True)
    assert 0 < sum(essential) < len(programs) == len({program["name"] for program in programs})
    assert all(set(program) == {"name", "essential"} for program in programs)


@pytest.mark.slow
def test_a_plan_can_fill_the_compile_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every program with its times and sizes; the second time all of them are there, and an engine's are the same."""
    folder = model_folder(tmp_path / "tiny")
    limits = {"NEURON_ENGINE__MAX_SLOTS": "2", "NEURON_ENGINE__CHUNK_TOKENS": "16"}
    environ = dict(os.environ) | {"CORTEX_CACHE": str(tmp_path / "cache")} | limits

    assert run(["plan", str(folder), "--compile", "--json"], environ) == 0
    captured = capsys.readouterr()
    cold = json.loads(captured.out)
    assert all(f"{program['name']}: lowered in" in captured.err for program in cold["programs"])
    assert not any(program["from_cache"] for program in cold["programs"])
    assert all(program["lower_seconds"] > 0 and program["compile_seconds"] > 0 for program in cold["programs"])
    assert all(program["memory"]["alias"] > 0 for program in cold["programs"] if program["essential"])
    (step,) = (row for row in cold["plan"] if row["what"].startswith("step peak (measured; "))
    assert step["bytes"] >= max(program["memory"]["temp"] for program in cold["programs"])

    assert run(["plan", str(folder), "--compile"], environ) == 0
    captured = capsys.readouterr()
    assert captured.err.count("read from the cache") == len(cold["programs"])
    assert all(any(program["name"] in line for line in captured.out.splitlines()) for program in cold["programs"])


def test_a_model_that_does_not_fit_exits_with_1_and_a_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is printed all the same."""
    folder = model_folder(tmp_path / "tiny")

    assert run(["plan", str(folder)], {"HOME": str(tmp_path), "NEURON_ENGINE__MEMORY_MB": "64"}) == 1
    shown = text(capsys.readouterr())
    assert "does not fit. " in shown
    assert "more on each device" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tensor-parallel", "2"], "engine.cpu_devices"),
        (["--source", "what is this?"], "what is this?"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices that are not here, or a source that is none."""
    folder = model_folder(tmp_path / "tiny")

    assert run(["plan", str(folder), *flags], {"HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}) == 1
    assert words in text(capsys.readouterr())


def test_a_plan_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the command that would."""
    assert run(["plan", "demo"], {"HOME": str(tmp_path)}) == 1

    assert "cortex load smollm2-135m-instruct" in text(capsys.readouterr())
    assert not (tmp_path / ".cache").exists()


def test_a_config_that_no_family_serves_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every reason, like a load would."""
    folder = model_folder(tmp_path / "odd", hidden_act="relu")

    assert run(["plan", str(folder)], {"HOME": str(tmp_path)}) == 1
    assert "relu" in text(capsys.readouterr())


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_a_bench_asks_for_its_files_before_it_measures(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture or a file that cannot be written is told at once."""
    folder = model_folder(tmp_path / "tiny")

    assert run(["bench", str(folder), flag, str(tmp_path / "nowhere/out")], {"HOME": str(tmp_path)}) == 1
    assert "there is no folder" in text(capsys.readouterr())
