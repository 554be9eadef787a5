"""`model:<target> model=…`: a Triton model repository for a model, as this target's image and device want it."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import InputError
from checks import facts, tables
from checks.facts import release
from stages import model_directory
from stages.made_files import Made, listing, rendered
from stages.model_directory import ModelDirectory

if TYPE_CHECKING:
    from cache.store import Store
    from stages.tasks import Session

TABLE = "triton/serving.yaml"
FAMILIES = "triton/backend/families.json"
TEMPLATE = "templates/config.pbtxt.j2"
#: Below this the directories of models are, in a container.
WEIGHTS = "/weights"
#: Ranks of LoRA adapters that vLLM has room for (vllm/config/lora.py of 0.32.0).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_GIB = 1 << 30


@dataclass(frozen=True)
class Setting:
    """One argument of the engine, or parameter of the backend, with the reason."""

    argument: str
    value: Any
    why: str

    @property
    def lines(self) -> list[str]:
        return textwrap.wrap(self.why, 110)


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; empty strings where nothing was said."""

    model: str
    name: str = ""
    context: str = ""
    memory: str = ""
    sequences: str = ""
    at: str = ""
    lora: str = ""
    attention: str = ""
    tool_parser: str = ""
    reasoning_parser: str = ""

    @classmethod
    def of(cls, said: Mapping[str, str], target: str) -> Wanted:
        if not said.get("model"):
            raise InputError("which model?", cure=f"./doit model:{target} model=Qwen/Qwen3-8B, or model=DIRECTORY")
        return cls(**{key: value for key, value in said.items() if key in cls.__dataclass_fields__})


def place_of(word: str) -> Path:
    """A path of the command line, relative to where the user stands."""
    return Path(os.path.normpath(Path(os.environ.get("STAGECRAFT_CWD", "")).absolute() / Path(word).expanduser()))


def run(session: Session, target: str, said: Mapping[str, str], out: Path, force: bool) -> tuple[Any, str]:
    """Write the repository; what was done, as data and as text.

    Raises:
        InputError: no such model, or a value that cannot be.
    """
    project = session.project
    data = project.target(target).data
    if "vllm" not in data or data.get("triton", {"backend": "none"}).get("backend") == "none":
        raise InputError(f"{target} has no vLLM to serve a model with", where=f"targets/{target}.yaml")
    wanted = Wanted.of(said, target)
    source, found = _model(wanted.model)
    name = wanted.name or re.sub(r"[^\w.-]", "-", source.rstrip("/").rpartition("/")[2])
    if not _NAME.fullmatch(name):
        raise InputError("no name for a model of Triton", found=name, expected="letters, digits, . _ -",
                         cure="name=NAME")
    made = Made(out)
    others = named(out, besides=name)
    made.mounts = {there: here for there, here in made.mounts.items() if there in others}
    inside = _at(wanted.at, found, name)
    settings = [Setting("model", inside or source, f"the directory {found.path}, mounted there" if found else
                        "downloaded by the engine when it starts")]
    if found is not None:
        _mount(made, inside, found.path)
    settings += _context(wanted, found)
    settings += _memory(_table(project.root), data["device"]["memory"], wanted, found, settings)
    chosen, notes = _attention(session, target, wanted)
    settings += chosen
    loras = _loras(wanted.lora, made, name)
    if loras:
        settings += [Setting("enable_lora", True, "adapters by name: " + ", ".join(loras.paths)),
                     Setting("max_lora_rank", loras.rank, "the least that vLLM has room for with these adapters")]
    settings.append(Setting("disable_log_stats", False, "vLLM's figures are among Triton's metrics"))
    names = [source.rpartition("/")[2], source, *(found.architectures if found else ())]
    parsers, missing = _parsers(project.root, wanted, names) if data["triton"].get("backend") != "upstream" else \
        ([], ["NVIDIA's backend has no chat: parsers are not set"])
    notes += missing
    if found is not None and found.stretched and not wanted.context:
        notes.append("the context is stretched by the RoPE scaling of config.json: how long it is then is left to vLLM "
                     "(context=N if that does not fit in the memory)")
    parameters = {"REPORT_CUSTOM_METRICS": "true", **{one.argument: one.value for one in parsers}}
    engine = {one.argument: one.value for one in settings}
    below = f"models/{name}"
    files = {
        f"{below}/config.pbtxt": rendered(project.root, TEMPLATE, {
            "target": target, "model": wanted.model, "version": "1", "settings": [*settings[1:], *parsers],
            "parameters": parameters}),
        f"{below}/1/model.json": (json.dumps(engine, indent=2, ensure_ascii=False) + "\n").encode()}
    adapters = f"{below}/1/multi_lora.json"
    if loras:
        files[adapters] = (json.dumps(loras.paths, indent=2, ensure_ascii=False) + "\n").encode()
    states = made.write(files, force=force, gone=() if loras else (adapters,))
    mounts = {inside: made.mounts[inside]} if inside else {}
    mounts |= {path: made.mounts[path] for path in (loras.paths.values() if loras else ()) if path in made.mounts}
    document = {"target": target, "model": wanted.model, "name": name, "repository": str(out / "models"),
                "files": [{"path": str(out / path), "state": state} for path, state in states.items()],
                "settings": [{"argument": one.argument, "value": one.value, "why": one.why}
                             for one in (*settings, *parsers)], "mounts": mounts, "notes": notes}
    return document, "\n".join(_text(target, name, out, states, [*settings, *parsers], mounts, notes))


def named(out: Path, besides: str = "") -> set[str]:
    """Every path that a model below `out` takes its weights or adapters from, in the container.

    Raises:
        InputError: a file of a model cannot be read.
    """
    found: set[str] = set()
    for file in sorted((out / "models").glob("*/*/*.json")):
        if file.name not in ("model.json", "multi_lora.json") or file.parent.parent.name == besides:
            continue
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError("a file of a model cannot be read", where=str(file), found=error.strerror) from error
        except (ValueError, RecursionError) as error:
            raise InputError("a file of a model is malformed", where=str(file), expected="JSON", found=str(error),
                             cure="mend it, or remove the directory of that model") from error
        if isinstance(said, dict):
            found |= {str(said.get("model"))} if file.name == "model.json" else {str(one) for one in said.values()}
    return found


def _mount(made: Made, there: str, here: Path) -> None:
    """Remember that a directory belongs there in the container.

    Raises:
        InputError: another one does, or one does below or above it.
    """
    for path, place in made.mounts.items():
        if path == there and place != str(here):
            raise InputError("another directory has that place in the container", where=there, found=place,
                             expected=str(here), cure="name=NAME or at=PATH that no other model of this repository has")
        if path.startswith(f"{there}/") or there.startswith(f"{path}/"):
            raise InputError("a place in the container is inside another one", where=there, found=path,
                             cure="name=NAME or at=PATH beside it")
    made.mounts[there] = str(here)


def _text(target: str, name: str, out: Path, states: Mapping[str, str], settings: list[Setting],
          mounts: Mapping[str, str], notes: list[str]) -> list[str]:
    lines = [f"{target}: a model repository with {name}", *listing(str(out), states), ""]
    for one in settings:
        lines += textwrap.wrap(f"{one.argument} = {json.dumps(one.value, ensure_ascii=False)}", 79,
                               initial_indent="  ", subsequent_indent="    ", break_long_words=False)
        lines += textwrap.wrap(one.why, 79, initial_indent="      ", subsequent_indent="      ",
                               break_long_words=False, break_on_hyphens=False)
    lines += [f"  mount {here} at {there}" for there, here in mounts.items()]
    for note in notes:
        lines += textwrap.wrap(f"note: {note}", 79, initial_indent="  ", subsequent_indent="    ",
                               break_long_words=False, break_on_hyphens=False)
    return [*lines, "", f"  ./doit compose:{target} makes the compose.yaml that serves it"]


def _model(word: str) -> tuple[str, ModelDirectory | None]:
    """A directory, or else an id of the hub as it is."""
    place = place_of(word)
    if word.startswith(("/", ".", "~")) or place.exists():
        return str(_writable(place)), model_directory.read(place)
    if not _ID.fullmatch(word):
        raise InputError("neither a directory nor the id of a model", found=word, expected="an id like Qwen/Qwen3-8B")
    return word, None


def _writable(place: Path) -> Path:
    """Raises InputError for a path that a line of a file cannot hold: one with a line's end, say."""
    if not str(place).isprintable():
        raise InputError("the path of a directory has characters that cannot be written down", found=repr(str(place)),
                         cure="rename it")
    return place


def _at(said: str, found: ModelDirectory | None, name: str) -> str:
    """Where the container sees the directory; empty for a model of the hub."""
    if found is None:
        if said:
            raise InputError("at= is for a directory: it says where the container sees it", found=said)
        return ""
    if said and not re.fullmatch(r"(/[\w.@+-]+)+", said):
        raise InputError("at= is an absolute path in the container", found=said)
    return said or f"{WEIGHTS}/{name}"


def _whole_number(key: str, word: str, least: int = 1) -> int:
    if not re.fullmatch(r"\d{1,9}", word) or int(word) < least:
        raise InputError(f"{key}= is a whole number" + (f", at least {least}" if least > 1 else ""), found=word)
    return int(word)


def _context(wanted: Wanted, found: ModelDirectory | None) -> list[Setting]:
    longest = found.context if found else 0
    if wanted.context:
        length = _whole_number("context", wanted.context, 16)
        if found and longest and length > longest and not found.stretched:
            raise InputError("the model's context is shorter", where=str(found.path / "config.json"),
                             expected=f"at most {longest}", found=f"context={length}")
        return [Setting("max_model_len", length, "as asked for")]
    if not longest or (found and found.stretched):
        return []
    return [Setting("max_model_len", longest, "the model's own, by its config.json")]


def _memory(table: Mapping[str, Any], kind: str, wanted: Wanted, found: ModelDirectory | None,
            settings: list[Setting]) -> list[Setting]:
    """The shares of memory; on a CPU the context may have to fit in them, in `settings`."""
    rows = next(row for row in table["memory"] if row["kind"] == kind)["engine"]
    chosen = {row["argument"]: Setting(row["argument"], row["value"], row["why"]) for row in rows}
    if wanted.sequences:
        chosen["max_num_seqs"] = Setting("max_num_seqs", _whole_number("sequences", wanted.sequences), "as asked for")
    if kind != "none":
        if wanted.memory:
            share = _share(wanted.memory)
            chosen["gpu_memory_utilization"] = Setting("gpu_memory_utilization", share, "as asked for")
        return list(chosen.values())
    key = "kv_cache_memory_bytes"
    if wanted.memory:
        chosen[key] = Setting(key, _whole_number("memory", wanted.memory) * _GIB, "as asked for")
    length = next((one for one in settings if one.argument == "max_model_len"), None)
    room = chosen[key].value
    if found is None or length is None or not found.per_token or length.value * found.per_token <= room:
        return list(chosen.values())
    needed = math.ceil(length.value * found.per_token / _GIB)
    if wanted.context and not wanted.memory:
        chosen[key] = Setting(key, needed * _GIB, f"what {length.value} tokens take in this model's KV cache")
    elif wanted.context:
        raise InputError("a request of that length does not fit", found=f"context={wanted.context} "
                         f"memory={wanted.memory}", expected=f"memory={needed} (GiB)")
    else:
        fits = room // found.per_token // 16 * 16
        settings[settings.index(length)] = replace(
            length, value=fits, why=f"the model's own is {length.value}; its KV cache would take {needed} GiB: "
                                    f"memory={needed} gives it them")
    return list(chosen.values())


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 1:
        raise InputError("memory= is the engine's share of the device's memory", found=word, expected="0.01 to 1")
    return share


def _attention(session: Session, target: str, wanted: Wanted) -> tuple[list[Setting], list[str]]:
    """What takes the place of FlashAttention where the image has no machine code of it for the device (vllm#38411)."""
    project = session.project
    data = project.target(target).data
    if not facts.device(data)["capability"]:
        if wanted.attention:
            raise InputError(f"{target} has no GPU: attention= is for one", found=wanted.attention)
        return [], []
    if wanted.attention == "auto":
        return [], ["the attention backend is left to vLLM, as asked for"]
    given = facts.device_code(data, project.lock_data(target))
    row = next((row for row in _table(project.root)["attention"]
                if release(row["since"]) <= release(given["version"]) < release(row["before"])), None)
    if row is None:
        return [], [f"how the attention backend of vLLM {given['version']} is set is not known ({TABLE}): vLLM chooses"]
    if wanted.attention:
        if not re.fullmatch(r"[A-Z0-9_]+", wanted.attention):
            raise InputError("attention= is a backend of vLLM's, or auto", found=wanted.attention,
                             expected="a name like TRITON_ATTN")
        return [Setting("attention_config", {"backend": wanted.attention}, "as asked for")], []
    record = session.records.get((target, "vllm"))
    if record is None:
        return [], ["the layer of vLLM is not built, so its device code was not looked at: vLLM chooses the backend"]
    why = lacking(project.store, given, record.outputs["index"].digest, row["library"])
    if not why:
        return [], []
    return [Setting("attention_config", {"backend_per_kind": dict.fromkeys(row["kinds"], row["backend"])}, why),
            Setting("mm_encoder_attn_backend", row["encoder"], "the same, for encoders of images")], \
        ["layers of multi-head latent attention (DeepSeek) are left to vLLM; their prefill uses FlashAttention 2"]


def lacking(store: Store, given: Mapping[str, Any], index: str, library: str) -> str:
    """Why the device should do without a library of vLLM's: no machine code for it. Empty if it has that.

    Args:
        given: what the check `device-code` reads of the target (`checks.facts.device_code`).
        index: digest of the index of vLLM's layer.
    """
    from cache.layer import LayerReader
    from checks.kernels import DamagedCodeError, device_codes
    from checks.loadability import Device, Way

    device, path = Device.of(given), f"{given['site']}/{library}"
    with LayerReader(store, index) as layer:
        entry = layer.resolve(path)
        code = device_codes(store, layer, [path])[path] if entry is not None else None
    name = library.rpartition("/")[2]
    if code is None:
        return f"{name} is not in this image"
    if isinstance(code, DamagedCodeError):
        return f"the device code of {name} cannot be read: {code}"
    ways = list(code.ways(device).values())
    counts = {way: ways.count(way) for way in Way if way in ways}
    if ways and all(way >= Way.SAME_MAJOR for way in counts):
        return ""
    if not any(counts):
        return f"{name} has no code that compute capability {device.capability} loads"
    isas = sorted({piece.target.partition("@")[2] for piece in code.pieces if "@" in piece.target})
    if Way.NEWER_PTX in counts:
        return (f"{name} has PTX {', '.join(isas)} only for compute capability {device.capability}, and the device's "
                f"driver compiles PTX up to {device.isa} (vllm issue 38411)")
    if Way.PTX in counts:
        return (f"{counts[Way.PTX]} of {len(ways)} kernels of {name} are PTX {', '.join(isas)} for compute capability "
                f"{device.capability}: the driver compiles them at first use, and one that is older refuses "
                "(vllm issue 38411)")
    return f"not all kernels of {name} load on compute capability {device.capability}"


@dataclass(frozen=True)
class _Adapters:
    paths: dict[str, str]
    rank: int


def _loras(word: str, made: Made, model: str) -> _Adapters | None:
    """`NAME=DIR,NAME=DIR`: adapters by name, with the rank that they need."""
    if not word:
        return None
    paths, rank = {}, RANKS[0]
    for part in word.split(","):
        name, equals, where = part.partition("=")
        if name in paths:
            raise InputError("lora= names an adapter twice", found=part)
        if not equals or not _NAME.fullmatch(name) or not where:
            raise InputError("lora= takes adapters by name", found=part, expected="lora=NAME=DIRECTORY,NAME=DIRECTORY")
        directory = _writable(place_of(where))
        if not directory.is_dir():
            raise InputError("no such directory", where=str(directory), found=f"lora={part}")
        said = model_directory.document(directory / "adapter_config.json", directory)
        needed = said.get("r", 0)
        if not isinstance(needed, int) or not 0 < needed <= RANKS[-1]:
            raise InputError("an adapter of a rank that vLLM has no room for", where=str(directory),
                             expected=f"r, at most {RANKS[-1]}", found=json.dumps(needed))
        for file in directory.glob("*.safetensors"):
            model_directory.whole(file)
        rank = max(rank, next(one for one in RANKS if one >= needed))
        paths[name] = f"{WEIGHTS}/lora/{model}/{name}"
        _mount(made, paths[name], directory)
    return _Adapters(paths, rank)


def _parsers(root: Path, wanted: Wanted, names: list[str]) -> tuple[list[Setting], list[str]]:
    """The parsers of tool calls and of reasoning: by the model's family, unless they were said."""
    row, name = _family(root, names)
    found, notes = [], []
    for key, said in (("tool_call_parser", wanted.tool_parser), ("reasoning_parser", wanted.reasoning_parser)):
        if said and not re.fullmatch(r"[\w.-]+", said):
            raise InputError(f"{key} is a name of vLLM's, or none", found=said)
        if said:
            found.append(Setting(key.upper(), said, "as asked for"))
        elif row:
            found.append(Setting(key.upper(), row.get(key) or "none", f"{name} is of the family {row['match']} "
                                                                      f"({row['source']})"))
        else:
            notes.append(f"{FAMILIES} has no family for {names[0]}: {key} is not set")
    return found, notes


def _family(root: Path, names: list[str]) -> tuple[Mapping[str, str], str]:
    """The family of a model, by the backend's own rule, and the name that told."""
    import importlib
    import types

    package = "stagecraft_backend"
    if not (root / "triton/backend/chat.py").exists():
        return {}, ""
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[name]  # of another root
    holder = types.ModuleType(package)
    holder.__path__ = [str(root / "triton/backend")]
    sys.modules[package] = holder
    importlib.invalidate_caches()
    chat = importlib.import_module(f"{package}.chat")
    for name in names:
        row: Mapping[str, str] = chat.family([name])
        if row:
            return row, name
    return {}, ""


def _table(root: Path) -> dict[str, Any]:
    import yaml

    try:
        found = tables.read(root / TABLE)
        if found["format"] != "stagecraft.serving.v1" or not found["memory"]:
            raise ValueError(f"format {found['format']!r}")
        return found
    except OSError as error:
        raise InputError("a file of the repository cannot be read", where=TABLE, found=error.strerror,
                         cure="restore it from version control") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError("the table of serving values is malformed", where=TABLE, found=str(error),
                         cure="restore it from version control; docs/formats/serving.schema.json says what it holds"
                         ) from error
