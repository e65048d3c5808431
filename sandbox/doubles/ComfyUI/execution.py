"""TEST DOUBLE, never deploy: validation, queue, cache and execution of a graph, with ComfyUI's messages and errors."""

from __future__ import annotations

import copy
import heapq
import json
import logging
import sys
import threading
import time
import traceback
from typing import Any

import nodes
from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted

Prompt = dict[str, dict[str, Any]]
Error = dict[str, Any]


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def input_error(kind: str, message: str, details: str, name: str, **extra: object) -> Error:
    return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name, **extra}}


def convert(value: Any, kind: object) -> Any:
    """Widgets' values as the node's type; anything that cannot be converted raises ValueError or TypeError."""
    converters: dict[object, Any] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    return converters[kind](value) if isinstance(kind, str) and kind in converters else value


def check_value(node: Any, name: str, value: Any, config: tuple[Any, ...]) -> Error | None:
    """Judges one widget value against limits and lists; None when it is good."""
    kind, options = config[0], config[1] if len(config) > 1 else {}
    details = {"input_config": config, "received_value": value}
    if hasattr(node, "VALIDATE_INPUTS"):
        verdict = node.VALIDATE_INPUTS(**{name: value})
        if verdict is True:
            return None
        text = f"{name} - {verdict}"
        return input_error("custom_validation_failed", "Custom validation failed for node", text, name)
    if isinstance(kind, list) and value not in kind:
        text = f"{name}: {value!r} not in {kind if len(kind) <= 20 else f'(list of length {len(kind)})'}"
        return input_error("value_not_in_list", "Value not in list", text, name, **details)
    if "min" in options and value < options["min"]:
        text = f"Value {value} smaller than min of {options['min']}"
        return input_error("value_smaller_than_min", text, name, name, **details)
    if "max" in options and value > options["max"]:
        text = f"Value {value} bigger than max of {options['max']}"
        return input_error("value_bigger_than_max", text, name, name, **details)
    return None


def validate_node(
    prompt: Prompt, node_id: str, validated: dict[str, tuple[bool, list[Error]]], path: list[str]
) -> bool:
    """Validates a node and all it depends on; what was found is left in `validated`. Converts values in place."""
    if node_id in path:
        cycle = " -> ".join([*path[path.index(node_id) :], node_id])
        validated[node_id] = (False, [input_error("dependency_cycle", "Dependency cycle detected", cycle, "")])
    if node_id in validated:
        return validated[node_id][0]
    given = prompt[node_id]["inputs"]
    node = nodes.NODE_CLASS_MAPPINGS[prompt[node_id]["class_type"]]
    declared = node.INPUT_TYPES()
    errors: list[Error] = []
    upstream_good = True
    for name, config in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        if name not in given:
            if name in declared.get("required", {}):
                errors.append(input_error("required_input_missing", "Required input is missing", name, name))
            continue
        value = given[name]
        if is_link(value):
            source, slot = value
            received = nodes.NODE_CLASS_MAPPINGS[prompt[source]["class_type"]].RETURN_TYPES[slot]
            if received != config[0]:
                text = f"{name}, received_type({received}) mismatch input_type({config[0]})"
                message = "Return type mismatch between linked nodes"
                errors.append(input_error("return_type_mismatch", message, text, name, linked_node=value))
            elif not validate_node(prompt, source, validated, [*path, node_id]):
                upstream_good = False
            continue
        if isinstance(value, list):
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            errors.append(input_error("bad_linked_input", message, name, name, received_value=value))
            continue
        try:
            given[name] = convert(value, config[0])
        except (TypeError, ValueError) as error:
            message = f"Failed to convert an input value to a {config[0]} value"
            errors.append(input_error("invalid_input_type", message, f"{name}, {value}, {error}", name))
            continue
        if error := check_value(node, name, given[name], config):
            errors.append(error)
    validated[node_id] = (upstream_good and not errors, errors)
    return validated[node_id][0]


def validate_prompt(prompt: Prompt) -> tuple[Error | None, list[str], dict[str, Any]]:
    """What is wrong with the whole prompt (None: nothing), the outputs worth executing, and the errors node by node.

    One good output is enough: the others are ignored and only show in the third value.
    """

    def refused(kind: str, message: str, details: str = "", **extra: object) -> tuple[Error, list[str], dict[str, Any]]:
        return {"type": kind, "message": message, "details": details, "extra_info": extra}, [], {}

    for node_id, node in prompt.items():
        if node.get("class_type") not in nodes.NODE_CLASS_MAPPINGS:
            title = node.get("_meta", {}).get("title", node.get("class_type"))
            message = f"Node '{title}' not found. The custom node may not be installed."
            return refused("missing_node_type", message, f"Node ID '#{node_id}'", node_id=node_id)
    classes = {node_id: nodes.NODE_CLASS_MAPPINGS[node["class_type"]] for node_id, node in prompt.items()}
    outputs = [node_id for node_id, node in classes.items() if getattr(node, "OUTPUT_NODE", False)]
    if not outputs:
        return refused("prompt_no_outputs", "Prompt has no outputs")

    validated: dict[str, tuple[bool, list[Error]]] = {}
    good, reports, details = [], {}, []
    for output in outputs:
        try:
            valid = validate_node(prompt, output, validated, [])
        except Exception as error:
            text = {"exception_type": type(error).__name__, "traceback": traceback.format_tb(error.__traceback__)}
            message = "Exception when validating node"
            kind = "exception_during_validation"
            validated[output] = (False, [{"type": kind, "message": message, "details": str(error), "extra_info": text}])
            valid = False
        if valid:
            good.append(output)
            continue
        logging.error("Failed to validate prompt for output %s:", output)
        details += [f"{error['message']}: {error['details']}" for error in validated[output][1]]
        for node_id, (_, errors) in validated.items():
            if not errors:
                continue
            empty = {"errors": errors, "dependent_outputs": [], "class_type": prompt[node_id]["class_type"]}
            reports.setdefault(node_id, empty)["dependent_outputs"].append(output)
            for error in errors:
                logging.error("  - %s: %s", error["message"], error["details"])
        logging.error("Output will be ignored")
    if good:
        return None, good, reports
    message = "Prompt outputs failed validation"
    error = {"type": "prompt_outputs_failed_validation", "message": message, "details": "\n".join(details)}
    return {**error, "extra_info": {}}, [], reports


class PromptExecutor:
    """Runs one prompt after the other and remembers each node's result for as long as its inputs stay the same."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.reset()

    def reset(self) -> None:
        self.cache: dict[str, tuple[tuple[Any, ...], dict[str, Any] | None]] = {}

    def signature(self, prompt: Prompt, node_id: str) -> str:
        """Equal for nodes that must give equal results, whatever their ids."""
        node = prompt[node_id]
        inputs = {
            name: [self.signature(prompt, value[0]), value[1]] if is_link(value) else value
            for name, value in node["inputs"].items()
        }
        node_class = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        changed = node_class.IS_CHANGED(**node["inputs"]) if hasattr(node_class, "IS_CHANGED") else None
        return json.dumps([node["class_type"], inputs, changed], sort_keys=True)

    def send(self, event: str, data: dict[str, Any]) -> None:
        if self.server.client_id is not None:
            self.server.send_sync(event, data, self.server.client_id)

    def status(self, event: str, broadcast: bool = False, **data: Any) -> None:
        data = {"prompt_id": self.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.status_messages.append((event, data))
        if broadcast or self.server.client_id is not None:
            self.server.send_sync(event, data, self.server.client_id)

    def node_state(self, node_id: str, value: float, maximum: float, state: str) -> None:
        """The combined message about all nodes begun so far."""
        own = {"value": value, "max": maximum, "state": state, "node_id": node_id, "prompt_id": self.prompt_id}
        names = {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}
        self.states[node_id] = {**own, **names}
        self.send("progress_state", {"prompt_id": self.prompt_id, "nodes": dict(self.states)})

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.node_state(node_id, value, maximum, "running")
        self.send("progress", {"value": value, "max": maximum, "prompt_id": self.prompt_id, "node": node_id})

    def run_node(self, prompt: Prompt, node_id: str, extra_data: dict[str, Any]) -> tuple[Any, ...]:
        """Runs what the node depends on, then the node, unless its result is known."""
        key = self.signature(prompt, node_id)
        if key in self.cache:
            result, ui = self.cache[key]
            if ui is not None and node_id not in self.outputs:
                self.report_output(node_id, ui)
            return result
        node = prompt[node_id]
        inputs = {
            name: self.run_node(prompt, value[0], extra_data)[value[1]] if is_link(value) else value
            for name, value in node["inputs"].items()
        }
        self.running_node, self.running_inputs = node_id, inputs
        self.node_state(node_id, 0.0, 1.0, "running")
        self.server.last_node_id = node_id
        self.send("executing", {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id})
        throw_exception_if_processing_interrupted()
        instance = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]()
        hidden = {
            "PROMPT": prompt,
            "EXTRA_PNGINFO": extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
            "PROGRESS": self.progress,
        }
        declared = instance.INPUT_TYPES()
        known = {*declared.get("required", {}), *declared.get("optional", {})}
        inputs = {name: value for name, value in inputs.items() if name in known}
        for name, kind in declared.get("hidden", {}).items():
            inputs[name] = hidden[kind]
        returned = getattr(instance, instance.FUNCTION)(**inputs)
        result, ui = (returned["result"], returned["ui"]) if isinstance(returned, dict) else (returned, None)
        if ui is not None:
            self.report_output(node_id, ui)
        self.node_state(node_id, 1.0, 1.0, "finished")
        self.executed.append(node_id)
        self.cache[key] = (result, ui)
        return result  # type: ignore[no-any-return]

    def report_output(self, node_id: str, ui: dict[str, Any]) -> None:
        self.outputs[node_id] = ui
        message = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": self.prompt_id}
        self.send("executed", message)

    def execute(self, prompt: Prompt, prompt_id: str, extra_data: dict[str, Any], outputs: list[str]) -> bool:
        """Runs the prompt; messages and outputs stay on the instance for the history. True when nothing failed."""
        nodes.interrupt_processing(False)
        self.server.client_id = extra_data.get("client_id")
        self.prompt_id = prompt_id
        self.status_messages: list[tuple[str, dict[str, Any]]] = []
        self.outputs: dict[str, dict[str, Any]] = {}
        self.executed: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.status("execution_start")
        known = [node_id for node_id in prompt if self.signature(prompt, node_id) in self.cache]
        self.status("execution_cached", nodes=known)
        try:
            for output in outputs:
                self.run_node(prompt, output, extra_data)
        except InterruptProcessingException:
            logging.info("Processing interrupted")
            self.status("execution_interrupted", broadcast=True, **self.where(prompt))
            return False
        except Exception as error:
            logging.error("!!! Exception during processing !!! %s", error)
            logging.error(traceback.format_exc())
            kind = type(error)
            module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
            self.status(
                "execution_error",
                **self.where(prompt),
                exception_message=f"{error}\n",
                exception_type=module + kind.__qualname__,
                traceback=traceback.format_tb(sys.exc_info()[2]),
                current_inputs={name: [str(value)] for name, value in self.running_inputs.items()},
                current_outputs=list(self.executed),
            )
            return False
        finally:
            self.server.last_node_id = None
        self.status("execution_success")
        return True

    def where(self, prompt: Prompt) -> dict[str, Any]:
        node_id = self.running_node
        return {"node_id": node_id, "node_type": prompt[node_id]["class_type"], "executed": list(self.executed)}

    def history(self) -> dict[str, Any]:
        names = {"display_node", "real_node_id"}
        meta = {
            node_id: {"node_id": node_id, "parent_node": None, **dict.fromkeys(names, node_id)}
            for node_id in self.outputs
        }
        return {"outputs": self.outputs, "meta": meta}


class PromptQueue:
    """Pending and running prompts, and what became of the finished ones."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.condition = threading.Condition(threading.RLock())
        self.pending: list[tuple[Any, ...]] = []
        self.running: list[tuple[Any, ...]] = []
        self.finished: dict[str, dict[str, Any]] = {}
        self.flags: dict[str, bool] = {}

    def put(self, item: tuple[Any, ...]) -> None:
        with self.condition:
            heapq.heappush(self.pending, item)
            self.condition.notify()
        self.server.queue_updated()

    def get(self) -> tuple[Any, ...] | None:
        """Waits for the next prompt; None when only a flag was set."""
        with self.condition:
            while not self.pending and not self.flags:
                self.condition.wait()
            if not self.pending:
                return None
            item = heapq.heappop(self.pending)
            # The history keeps what was asked for, not what nodes make of it.
            self.running.append(copy.deepcopy(item))
        self.server.queue_updated()
        return item

    def task_done(self, item: tuple[Any, ...], success: bool, executor: PromptExecutor) -> None:
        status = {
            "status_str": "success" if success else "error",
            "completed": success,
            "messages": executor.status_messages,
        }
        with self.condition:
            done = self.running.pop()
            self.finished[item[1]] = {"prompt": done, "status": status, **executor.history()}
        self.server.queue_updated()

    def remaining(self) -> int:
        with self.condition:
            return len(self.pending) + len(self.running)

    def delete(self, prompt_id: str) -> None:
        with self.condition:
            self.pending = [item for item in self.pending if item[1] != prompt_id]
            heapq.heapify(self.pending)
        self.server.queue_updated()

    def wipe(self) -> None:
        with self.condition:
            self.pending = []
        self.server.queue_updated()

    def set_flag(self, name: str, value: bool) -> None:
        with self.condition:
            self.flags[name] = value
            self.condition.notify()

    def take_flags(self) -> dict[str, bool]:
        with self.condition:
            flags, self.flags = self.flags, {}
            return flags

    def history(self, prompt_id: str | None = None, max_items: int | None = None) -> dict[str, Any]:
        with self.condition:
            ids = [prompt_id] if prompt_id is not None else list(self.finished)[-(max_items or 0) :]
            return {each: self.finished[each] for each in ids if each in self.finished}


def prompt_worker(queue: PromptQueue, server: Any) -> None:
    """The thread that executes what was queued, for as long as the process lives."""
    executor = PromptExecutor(server)
    while True:
        item = queue.get()
        if item is not None:
            _, prompt_id, prompt, extra_data, outputs = item
            started = time.perf_counter()
            success = executor.execute(prompt, prompt_id, extra_data, outputs)
            queue.task_done(item, success, executor)
            executor.send("executing", {"node": None, "prompt_id": prompt_id})
            logging.info("Prompt executed in %.2f seconds", time.perf_counter() - started)
        if queue.take_flags().get("free_memory"):
            executor.reset()
