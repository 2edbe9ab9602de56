"""A neuron whose model does one thing: it calls a tool that runs a command, and says that it is done once it has the result.

For agents that are programs of their own: `tools` says under which names they offer such a tool, and how it takes a command.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define

from tests.fakes.neuron_double import Answer, NeuronDouble

SHELLS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "exec_command": lambda command: {"cmd": command},
    "shell_command": lambda command: {"command": command},
    "run_commands": lambda command: {"commands": [command]},
    "shell": lambda command: {"command": ["bash", "-lc", command]},
    "Bash": lambda command: {"command": command, "description": "Runs it"},
    "bash": lambda command: {"command": command, "description": "Runs it"},
}
DONE = Answer(deltas=({"content": "The file "}, {"content": "is written."}))


@define
class ScriptedModel(NeuronDouble):
    """Its first answer has a thought, a word and a call; the one after the call's result ends the turn.

    `text` is what it says to who offers no tools and reads edits in what is said.
    """

    command: str = "true"
    text: str = "There is no tool for it."

    def next_answer(self) -> Answer:
        body = self.asked[-1].body
        if any(message["role"] == "tool" for message in body["messages"]):
            return DONE
        offered = [tool["function"]["name"] for tool in body.get("tools", ())]
        name = next((name for name in offered if name in SHELLS), None)
        if name is None:
            return Answer(deltas=({"content": self.text},))
        arguments = json.dumps(SHELLS[name](self.command))
        head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        call = {"index": 0, "function": {"arguments": arguments}}
        said: tuple[dict[str, Any], ...] = ({"reasoning_content": "A file is wanted."}, {"content": "I write it."})
        return Answer(deltas=(*said, {"tool_calls": [head]}, {"tool_calls": [call]}), finish="tool_calls")
