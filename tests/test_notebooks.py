"""The notebooks as a reader finds and runs them; knows their cells by id, must not know how their pictures are made."""

import ast
import asyncio
import base64
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
import zmq
import zmq.asyncio
from attrs import frozen
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.fakes import quick
from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, NeuronDouble
from tests.fakes.stack import free_ports

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
FUNCTION = FOLDER / "01_a_model_is_a_function.ipynb"
INSIDE = FOLDER / "02_inside_a_request.ipynb"
STEER = FOLDER / "03_steer_and_serve.ipynb"
TUNE = FOLDER / "04_fine_tune_and_hot_swap.ipynb"
CELL_SECS = 240
CELL_LINES = 25
HELPER_LINES = 15
PICTURES = ("likely", "attention", "heads", "lens", "gradient")
TOKYO = "The capital of Japan is Tokyo."

pytestmark = pytest.mark.timeout(600)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call] # nbformat


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@frozen(eq=False)
class Session:
    """A notebook and its live kernel."""

    runner: asyncio.Runner
    client: NotebookClient
    cells: dict[str, Any]

    def run(self, index: int) -> None:
        """Run one cell of the notebook. Raises CellExecutionError."""
        self.runner.run(self.client.async_execute_cell(self.client.nb.cells[index], index))

    def printed(self, name: str) -> str:
        """What the cell `name` printed."""
        return "".join(output.text for output in self.cells[name].outputs if output.output_type == "stream")

    def pictures(self, name: str) -> list[bytes]:
        """The PNG files that the cell `name` shows."""
        shown = [output.data for output in self.cells[name].outputs if output.output_type == "display_data"]
        return [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]

    def ask_again(self, url: str) -> str:
        """Run the last cell again with the gateway at `url`; what it printed. Raises CellExecutionError."""
        source = f"os.environ['CORTEX_URL'] = {url!r}\n{self.cells['compare'].source}"
        again: Any = nbformat.v4.new_code_cell(source)  # type: ignore[no-untyped-call] # nbformat
        self.client.nb.cells.append(again)
        self.run(len(self.client.nb.cells) - 1)
        return "".join(output.text for output in again.outputs)


@pytest.fixture(scope="module")
def session(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The first notebook, run from top to bottom by this Python where no gateway answers."""
    with running(FUNCTION, demo_gguf, tmp_path_factory.mktemp("ipython")) as session:
        yield session


@contextmanager
def running(path: Path, demo_gguf: Path, profile: Path) -> Iterator[Session]:
    """A notebook that was run from top to bottom by this Python; `profile` is an empty folder, for none of the user's."""
    assert demo_gguf.is_file()
    notebook = read(path)
    environ = os.environ | {
        "CORTEX_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "IPYTHONDIR": str(profile),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": str(ROOT),
        **quick.ENVIRON,
    }
    with kernel(notebook, environ) as session:
        for index in range(len(notebook.cells)):
            session.run(index)
        yield session


@contextmanager
def kernel(notebook: Any, environ: Mapping[str, str]) -> Iterator[Session]:
    """A kernel that has run nothing yet. Process, sockets, threads and event loop have ended when the block has."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        context = zmq.asyncio.Context()
        stack.callback(context.destroy, linger=0)
        # Without folders to search, `python3` is this very interpreter and not what somebody registered under the name.
        specs = KernelSpecManager(kernel_dirs=[])
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, context=context)
        resources = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(notebook, km=manager, timeout=CELL_SECS, resources=resources)
        runner.run(client.async_start_new_kernel(env=environ))
        stack.callback(lambda: runner.run(_shut_down(manager)))
        stack.callback(runner.run(client.async_start_new_kernel_client()).stop_channels)
        yield Session(runner, client, {cell.id: cell for cell in notebook.cells})


async def _shut_down(manager: AsyncKernelManager) -> None:
    await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    """What is committed is prose and code: no outputs, no counts, nothing of the machine it was run on."""
    notebook = read(path)

    assert [cell.id for cell in code_cells(path) if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_cells_are_short(path: Path) -> None:
    """A cell fits on a screen, and a helper in it is a few lines: what is longer belongs into the library."""
    cells = {cell.id: cell.source for cell in code_cells(path)}
    helpers = [
        node for source in cells.values() for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    ]

    assert [name for name, source in cells.items() if len(source.splitlines()) > CELL_LINES] == []
    assert [node.name for node in helpers if node.end_lineno and node.end_lineno - node.lineno >= HELPER_LINES] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*")), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link, in notebooks and README, names a file of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())

    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_runs_on_this_interpreter_without_a_warning(session: Session) -> None:
    """Every cell ran, in this very Python, and none of them warned."""
    spec = session.client.km.kernel_spec if session.client.km else None
    outputs = [output for cell in session.cells.values() for output in cell.get("outputs", [])]

    assert spec is not None
    assert spec.argv[0] == sys.executable
    assert [output.text for output in outputs if "Warning" in output.get("text", "")] == []


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_shown(session: Session, name: str) -> None:
    """The cell shows one picture, large enough to read and with something on it."""
    (picture,) = session.pictures(name)
    width, height = struct.unpack(">II", picture[16:24])

    assert picture.startswith(b"\x89PNG")
    assert (width, height) > (600, 250)
    assert len(picture) > 8_000


def test_the_likeliest_word_is_tokyo(session: Session) -> None:
    """The table of next tokens begins with the right one, and the bars have its row."""
    rows = [line.split() for line in session.printed("call").splitlines()[2:]]

    assert rows[0][2] == "·Tokyo"
    assert len(rows) == 8
    assert float(rows[0][1].rstrip("%")) > 80


def test_the_past_does_not_see_the_future(session: Session) -> None:
    """Changing the last token moves the last row only."""
    assert session.printed("past").strip() == "rows that did not move: 11 of 12"


def test_heads_are_found_for_every_job(session: Session) -> None:
    """Each of the three jobs has a head that gives it half of its attention or more."""
    shares = re.findall(r"layer +\d+, head \d: +(\d+)% of its attention", session.printed("maps"))

    assert len(shares) == 3
    assert min(map(int, shares)) >= 50


def test_the_gradient_keeps_its_promise(session: Session) -> None:
    """A step along the gradient adds to the odds what the gradient says."""
    found = re.search(r"should add ([\d.]+), and adds ([\d.]+)", session.printed("odds"))

    assert found is not None
    assert float(found[1]) == pytest.approx(float(found[2]), rel=0.05)


def test_the_engine_gives_the_same_tokens(session: Session) -> None:
    """Where no gateway answers, the serving engine runs in the notebook, gives the same tokens, and is named."""
    verdict = session.printed("compare")

    assert session.printed("answer").splitlines()[-1] == TOKYO
    assert verdict.startswith("Same 8 tokens: no gateway at ")
    assert "the serving engine ran in this process" in verdict


def test_a_running_gateway_is_asked(session: Session) -> None:
    """A gateway gets the notebook's own question, greedily, and is named in the verdict."""
    neuron = NeuronDouble(answers=[Answer(deltas=({"content": "The capital of Japan"}, {"content": " is Tokyo."}))])
    with live_gateway({"one": neuron}) as gateway:
        verdict = session.ask_again(gateway.url)
    (asked,) = [seen.body for seen in neuron.asked]

    assert verdict.strip() == f"Same text: the gateway at {gateway.url} says {TOKYO!r} too."
    assert asked["temperature"] == 0
    assert asked["messages"] == [{"role": "user", "content": "What is the capital of Japan?"}]


def test_a_gateway_that_says_something_else_is_noticed(session: Session) -> None:
    """Another answer than the function's is an error that shows both."""
    neuron = NeuronDouble(answers=[Answer(deltas=({"content": "Kyoto."},))])
    with (
        live_gateway({"one": neuron}) as gateway,
        pytest.raises(CellExecutionError, match=r"says 'Kyoto\.', the function 'The capital of Japan is Tokyo\.'"),
    ):
        session.ask_again(gateway.url)


@pytest.mark.slow
def test_a_fine_tune_is_served_beside_and_in_place(demo_gguf: Path, tmp_path: Path) -> None:
    """The adapter knows what the model does not; after the swap the model does; the stream between ran to its end."""
    with running(TUNE, demo_gguf, tmp_path) as session:
        before, after = session.printed("ask").splitlines(), session.printed("after").splitlines()
        found = re.search(r"(\d+) pieces of the answer came before, (\d+) after", session.printed("reload"))

        assert ["Synapse" in line for line in before[:2]] == [False, True]
        assert "Synapse" in after[0]
        assert "Dendrite" in after[1]
        assert found is not None
        assert min(map(int, found.groups())) > 10
        assert session.printed("reload").splitlines()[-1] == "it ended with length"
        assert after[2:] == ["programs compiled for it: 0.0", "the server ended with 0"]
        assert all(len(session.pictures(name)) == 1 for name in ("losses", "gaps"))


@pytest.mark.slow
def test_what_happens_inside_a_request(demo_gguf: Path, tmp_path: Path) -> None:
    """The third request finds its beginning, and computes the rest of its prompt; draws are those of the seed."""
    with running(INSIDE, demo_gguf, tmp_path) as session:
        known = [int(words) for words in re.findall(r"(\d+) of them known already", session.printed("answers"))]
        found = re.search(r"pages found again: (\d+)", session.printed("pages"))

        assert known[:2] == [0, 0]
        assert known[2] > 100
        assert found is not None
        assert int(found[1]) >= known[2] // 16
        assert "draw the same again: True" in session.printed("shares")
        assert all(len(session.pictures(name)) == 1 for name in ("steps", "pages", "shares"))


@pytest.mark.slow
def test_what_steers_the_function_steers_the_server(demo_gguf: Path, tmp_path: Path) -> None:
    """Pushed further, what follows is gladder; served, it is what the pushed function says, and not what the plain one does."""
    with running(STEER, demo_gguf, tmp_path) as session:
        plain, glad = re.findall(r"    (?:plain|glad):(.*)", session.printed("ask"))[:2]

        assert session.printed("same").splitlines()[-1] == "the same: True"
        assert plain.strip() != glad.strip()
        assert session.printed("speed").splitlines()[-1] == "the server ended with 0"
        assert len(session.pictures("map")) == 1
