"""Simple tool calls: a request, the tools on offer, the call, its result, the answer.

A task is drawn from a random generator; names and values are mostly made up on the spot, so that
the model must copy them from the request and from the schema rather than know them.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

with (Path(__file__).resolve().parent / "words.toml").open("rb") as _file:
    _LISTS: dict[str, str] = tomllib.load(_file)
CITIES = [*_LISTS["cities"].split(), *_LISTS["named_cities"].splitlines()]
ZONES = _LISTS["zones"].split()
WORDS = _LISTS["words"].split()
SKIES = _LISTS["skies"].split()
FOLDERS = _LISTS["folders"].split()
SUFFIXES = _LISTS["suffixes"].split()
COMMANDS = _LISTS["commands"].splitlines()
PROGRAMS = _LISTS["programs"].splitlines()
VERBS = _LISTS["verbs"].split()
NOUNS = _LISTS["nouns"].split()
FIELDS = _LISTS["fields"].split()
SYLLABLES = _LISTS["syllables"].split()


def made_up(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.6 else made_up(rng).capitalize()


def integer(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.randint(1, 4))


def phrase(rng: random.Random) -> str:
    rest = (
        rng.choice(WORDS) if rng.random() < 0.75 else made_up(rng) for _ in range(rng.randint(0, 3))
    )
    return " ".join([rng.choice(WORDS), *rest])


def path(rng: random.Random) -> str:
    parts = [rng.choice(FOLDERS) for _ in range(rng.randint(0, 2))]
    stem = rng.choice(WORDS) if rng.random() < 0.6 else made_up(rng)
    name = rng.choice(
        [f"{stem}.{rng.choice(SUFFIXES)}", "README.md", f"{stem}.{rng.choice(SUFFIXES)}"]
    )
    return rng.choice(["", "/", "./"]) + "/".join([*parts, name])


def command(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(COMMANDS)
    return f"{rng.choice(PROGRAMS)} {path(rng)}"


def result_text(rng: random.Random) -> str:
    """What some tool says: words, numbers, a line of JSON."""
    kind = rng.random()
    if kind < 0.6:
        return phrase(rng) + (f" {integer(rng)}" if rng.random() < 0.4 else "")
    if kind < 0.8:
        return str(integer(rng))
    return json.dumps({rng.choice(FIELDS): rng.choice([integer(rng), phrase(rng)])})


@attrs.frozen
class Call:
    """One call: the tool's schema, what is asked, and what the answer says about its result."""

    tool: dict[str, Any]
    arguments: dict[str, Any]
    requests: tuple[str, ...]
    result: str
    answer: str

    @property
    def name(self) -> str:
        name: str = self.tool["function"]["name"]
        return name

    def text(self) -> str:
        body = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


def schema(rng: random.Random, name: str, about: str, parameters: dict[str, str]) -> dict[str, Any]:
    """A tool as OpenAI clients send it; clients differ in what they leave out."""
    described = rng.random() < 0.3
    properties: dict[str, Any] = {}
    for key, kind in parameters.items():
        properties[key] = {"type": kind}
        if described:
            properties[key]["description"] = f"The {key.replace('_', ' ')}."
    body: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        body["required"] = list(parameters)
    if rng.random() < 0.15:
        body["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = about
    return {"type": "function", "function": {**function, "parameters": body}}


def weather(rng: random.Random) -> Call:
    where, degrees, sky = city(rng), rng.randint(-15, 40), rng.choice(SKIES)
    key = rng.choice(["city", "city", "location", "place"])
    arguments: dict[str, Any] = {key: where}
    parameters = {key: "string"}
    about = rng.choice(
        ["Get the current weather of a city.", "Get the weather.", "Current weather"]
    )
    requests = (
        f"What is the weather in {where}?",
        f"What's the weather in {where}?",
        f"What is the weather like in {where}?",
        f"How is the weather in {where}?",
        f"What's the weather like in {where} today?",
        f"Tell me the weather in {where}.",
        f"Weather in {where}",
        f"Is it raining in {where}?",
        f"Get the weather for {where}.",
        f"How warm is it in {where}?",
        f"weather {where}",
        f"What's the weather in {where} right now?",
    )
    if rng.random() < 0.5:
        first = rng.choice(["temperature", "temperature", "temp", "temperature_c"])
        second = rng.choice(["condition", "condition", "conditions", "description", "sky"])
        result = json.dumps({first: degrees, second: sky})
        answer = f"It is {degrees} degrees and {sky} in {where}."
    else:
        result = rng.choice(
            [
                f"{degrees} °C, {sky}",
                f"{degrees}°C and {sky}",
                f"{sky}, {degrees} degrees",
                f"{sky}",
            ]
        )
        answer = f"The weather in {where}: {result}."
    name = rng.choice(
        ["get_weather", "get_weather", "get_weather", "get_current_weather", "weather"]
    )
    return Call(schema(rng, name, about, parameters), arguments, requests, result, answer)


def clock(rng: random.Random) -> Call:
    by_zone = rng.random() < 0.6
    where = rng.choice(ZONES) if by_zone else city(rng)
    key = (
        rng.choice(["timezone", "timezone", "tz"])
        if by_zone
        else rng.choice(["city", "timezone", "location"])
    )
    requests = (
        f"What time is it in {where}?",
        f"Tell me the time in {where}.",
        f"What is the time in {where}?",
        f"Time in {where}",
        f"Get the time for {where}.",
        f"what's the time in {where} now?",
    )
    result = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    tool = schema(
        rng,
        rng.choice(["get_time", "get_time", "get_current_time"]),
        "Get the current time.",
        {key: "string"},
    )
    return Call(tool, {key: where}, requests, result, f"The time in {where} is {result}.")


def arithmetic(rng: random.Random) -> Call:
    a, b = integer(rng), integer(rng)
    if rng.random() < 0.4:
        sign, value = rng.choice([("+", a + b), ("-", a - b), ("*", a * b)])
        expression = f"{a} {sign} {b}" if rng.random() < 0.6 else f"{a}{sign}{b}"
        tool = schema(
            rng,
            rng.choice(["calculator", "calculate"]),
            "Evaluate an expression.",
            {"expression": "string"},
        )
        requests = (
            f"What is {expression}?",
            f"Calculate {expression}.",
            f"Compute {expression}",
            f"How much is {expression}?",
        )
        return Call(
            tool, {"expression": expression}, requests, str(value), f"The result is {value}."
        )
    name, verb, value = rng.choice(
        [("add", "Add", a + b), ("add", "Add", a + b), ("multiply", "Multiply", a * b)]
    )
    tool = schema(
        rng, name, f"{verb} two numbers.", {"a": rng.choice(["number", "integer"]), "b": "number"}
    )
    word, sign = ("plus", "+") if name == "add" else ("times", "*")
    requests = (
        f"What is {a} {word} {b}?",
        f"{verb} {a} and {b}.",
        f"What is {a} {sign} {b}?",
        f"{a} {sign} {b}",
        f"{verb} {a} and {b}, please.",
        f"How much is {a} {word} {b}?",
        f"What is {a}{sign}{b}?",
    )
    return Call(tool, {"a": a, "b": b}, requests, str(value), f"The result is {value}.")


def search(rng: random.Random) -> Call:
    query = phrase(rng)
    name = rng.choice(["search", "search", "web_search"])
    requests = (
        f"Search for {query}.",
        f"Search for {query}",
        f"Look up {query}.",
        f"Find something about {query}.",
        f"Search the web for {query}.",
        f"Please search for {query}.",
        f"Google {query}",
    )
    result = result_text(rng)
    tool = schema(rng, name, rng.choice(["Search the web.", "Search."]), {"query": "string"})
    return Call(tool, {"query": query}, requests, result, f"I found this:\n{result}")


def file(rng: random.Random) -> Call:
    where = path(rng)
    key = rng.choice(["path", "path", "file_path", "filename"])
    requests = (
        f"Read the file {where}.",
        f"Read {where}",
        f"Show me {where}",
        f"Open the file {where}",
        f"What is in {where}?",
        f"Please read {where}",
        f"What does {where} say?",
        f"Show me the file {where}.",
    )
    result = result_text(rng)
    tool = schema(
        rng, rng.choice(["read_file", "read_file", "Read"]), "Read a file.", {key: "string"}
    )
    return Call(tool, {key: where}, requests, result, f"The file says:\n{result}")


def shell(rng: random.Random) -> Call:
    line = command(rng)
    name = rng.choice(["run_command", "run_command", "bash", "Bash", "shell"])
    requests = (
        f"Run {line}",
        f"Run the command {line}",
        f"Execute {line}",
        f"Please run {line}",
        f"Run `{line}`.",
        f"What does {line} print?",
        f"Run the command `{line}`.",
    )
    result = result_text(rng)
    tool = schema(
        rng, name, rng.choice(["Run a shell command.", "Run a command."]), {"command": "string"}
    )
    return Call(tool, {"command": line}, requests, result, f"The output is:\n{result}")


def generic(rng: random.Random) -> Call:
    """A tool nobody has seen before, asked for by its name."""
    name = rng.choice(
        [
            f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}",
            f"{rng.choice(VERBS)}_{made_up(rng)}",
            made_up(rng),
        ]
    )
    keys = rng.sample(FIELDS, 1 if rng.random() < 0.7 else 2)
    keys = [f"{rng.choice(NOUNS)}_{key}" if rng.random() < 0.3 else key for key in keys]
    arguments: dict[str, Any] = {
        key: rng.choice([integer, integer, phrase, city])(rng) for key in keys
    }
    kinds = {k: "integer" if isinstance(v, int) else "string" for k, v in arguments.items()}
    listed = " and ".join(f"{key} {value}" for key, value in arguments.items())
    requests = (
        f"Call {name} with {listed}.",
        f"Use {name} with {listed}.",
        f"Please call {name} with {listed}",
        f"Use the tool {name} with {listed}.",
        f"Run {name} with {listed}",
    )
    result = result_text(rng)
    tool = schema(rng, name, f"{phrase(rng).capitalize()}.", kinds)
    return Call(tool, arguments, requests, result, f"The result is:\n{result}")


KINDS: tuple[Callable[[random.Random], Call], ...] = (
    weather,
    weather,
    weather,
    clock,
    arithmetic,
    arithmetic,
    search,
    file,
    shell,
    generic,
    generic,
)


def draw(rng: random.Random) -> Call:
    return rng.choice(KINDS)(rng)


def offered(rng: random.Random, *calls: Call) -> list[dict[str, Any]]:
    """The tools of *calls* among up to three others, in any order, each name once."""
    tools = {call.name: call.tool for call in calls}
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        other = draw(rng)
        tools.setdefault(other.name, other.tool)
    listed = list(tools.values())
    rng.shuffle(listed)
    return listed
