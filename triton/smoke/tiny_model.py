"""Writes a small Llama of random weights with its tokenizer, as a Hugging Face directory that vLLM loads.

    python tiny_model.py DIRECTORY [--hidden 128 --layers 2 …] [--repository DIRECTORY]

Standard library only, nothing is downloaded, and the same arguments give the same bytes everywhere. What the model says
is noise; it has all that serving needs: weights (safetensors), a byte-level BPE tokenizer, a chat template with tools,
tool results and reasoning. `--repository` writes a model repository of Triton's around it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes of weights that are made at once; a multiple of the size of a number.
_CHUNK = 1 << 20

#: Added tokens, behind the 256 bytes and the merges: text and whether it is left out of what a model says.
ADDED = (("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False), ("</think>", False),
         ("<tool_call>", False), ("</tool_call>", False))
END, TURN_END = ADDED[0][0], ADDED[2][0]
BYTES = 256

#: Turns as ChatML, tools and calls as Hermes writes them, reasoning as Qwen does.
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}A call is an object with name and arguments.<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>{{ message.tool_call_id }}
{{ message.content }}</tool_response><|im_end|>
{% elif message.role == 'assistant' %}<|im_start|>assistant
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments if call.function.arguments is string \
else call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True)
class Shape:
    """What decides the size of a model. `heads` x 64 is the width of attention.

    Attributes:
        vocabulary: tokens; beyond the bytes and the added ones they are merged pairs of bytes.
        context: tokens of a prompt and its answer together.
        seed: of the weights.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    intermediate: int = 256
    vocabulary: int = BYTES + len(ADDED)
    context: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or min(self.hidden, self.layers, self.heads, self.kv_heads) < 1:
            raise ValueError(f"a model of nothing: {self}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are no multiple of {self.kv_heads} key-value heads")
        if not BYTES + len(ADDED) <= self.vocabulary <= BYTES + len(ADDED) + BYTES**2:
            raise ValueError(f"a vocabulary has {BYTES + len(ADDED)} to {BYTES + len(ADDED) + BYTES**2} tokens")

    @property
    def merges(self) -> int:
        return self.vocabulary - BYTES - len(ADDED)

    @property
    def parameters(self) -> int:
        """Numbers in the weights."""
        return sum(size(shape) for shape in tensors(self).values())


#: Attention's width is a multiple of this; vLLM has a kernel for it on every platform.
HEAD = 64


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name to dimensions of each tensor, in the order of the file."""
    hidden, width, narrow = shape.hidden, shape.heads * HEAD, shape.kv_heads * HEAD
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for number in range(shape.layers):
        found |= {f"model.layers.{number}.{name}.weight": dimensions for name, dimensions in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (width, hidden)), ("self_attn.k_proj", (narrow, hidden)),
            ("self_attn.v_proj", (narrow, hidden)), ("self_attn.o_proj", (hidden, width)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (shape.intermediate, hidden)), ("mlp.up_proj", (shape.intermediate, hidden)),
            ("mlp.down_proj", (hidden, shape.intermediate)))}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (shape.vocabulary, hidden)}


def size(dimensions: tuple[int, ...]) -> int:
    product = 1
    for dimension in dimensions:
        product *= dimension
    return product


def numbers(count: int, seed: str) -> Iterator[bytes]:
    """`count` random bfloat16: either sign, of 2^-7 to 2^-3."""
    for start in range(0, 2 * count, _CHUNK):
        length = min(_CHUNK, 2 * count - start)
        random = int.from_bytes(hashlib.shake_256(f"{seed} {start}".encode()).digest(length), "little")
        # Little endian: of the second byte the sign and the exponent's lowest but one bit stay, of the first all.
        kept, given = (int.from_bytes(pair * (length // 2), "little") for pair in (b"\xff\x81", b"\x00\x3c"))
        yield (random & kept | given).to_bytes(length, "little")


def write_weights(file: BinaryIO, shape: Shape) -> None:
    """`model.safetensors`: https://huggingface.co/docs/safetensors: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dimensions in tensors(shape).items():
        end = at + 2 * size(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [at, end]}
        at = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    file.write(struct.pack("<Q", len(data)) + data)
    for name, dimensions in tensors(shape).items():
        if len(dimensions) == 1:  # a norm's scale: one
            file.write(b"\x80\x3f" * dimensions[0])
        else:
            file.writelines(numbers(size(dimensions), f"{shape.seed} {name}"))


def alphabet() -> list[str]:
    """The sign that stands for each byte in a byte-level vocabulary: its own where it can be printed (GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(free)) for byte in range(BYTES)]


def pairs(count: int) -> list[tuple[str, str]]:
    """The first `count` pairs of bytes, text before the rest."""
    signs = alphabet()
    likely = sorted(range(BYTES), key=lambda byte: (not chr(byte).islower() or byte > 0x7F, byte != 0x20, byte))
    found = [(signs[one], signs[other]) for one in likely for other in likely]
    return found[:count]


def tokenizer(shape: Shape) -> dict[str, Any]:
    """`tokenizer.json`: a byte is a token, and so is a merged pair; any text has tokens and any tokens have text."""
    merges = pairs(shape.merges)
    words = [*alphabet(), *(one + other for one, other in merges)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(words) + number, "content": text, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": special}
                         for number, (text, special) in enumerate(ADDED)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {word: number for number, word in enumerate(words)},
                  "merges": [list(pair) for pair in merges]},
    }


def token_id(shape: Shape, text: str) -> int:
    """The id of an added token."""
    return BYTES + shape.merges + [name for name, _ in ADDED].index(text)


def config(shape: Shape) -> dict[str, Any]:
    """`config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": HEAD,
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": None, "eos_token_id": token_id(shape, TURN_END), "pad_token_id": token_id(shape, END),
    }


def write_model(directory: Path, shape: Shape) -> None:
    """The model's files; `directory` is made."""
    directory.mkdir(parents=True, exist_ok=True)
    added = tokenizer(shape)["added_tokens"]
    texts: Mapping[str, Any] = {
        "config.json": config(shape),
        "generation_config.json": {"eos_token_id": token_id(shape, TURN_END), "pad_token_id": token_id(shape, END)},
        "tokenizer.json": tokenizer(shape),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.context, "eos_token": TURN_END,
            "pad_token": END, "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": {str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                                     for token in added}},
    }
    for name, content in texts.items():
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (directory / "model.safetensors").open("wb") as file:
        write_weights(file, shape)


# -- the model repository ---------------------------------------------------------------------------------------------

#: What the parsers of the configuration are; the chat template writes the same.
PARAMETERS = {"REPORT_CUSTOM_METRICS": "true", "ENABLE_VLLM_HEALTH_CHECK": "true", "TOOL_CALL_PARSER": "hermes",
              "REASONING_PARSER": "deepseek_r1"}


def config_pbtxt(parameters: Mapping[str, str]) -> str:
    """`config.pbtxt` of a model that the vLLM backend serves."""
    lines = ['backend: "vllm"', 'instance_group [ { count: 1 kind: KIND_MODEL } ]']
    lines += [f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
              for key, value in parameters.items()]
    return "\n".join(lines) + "\n"


def engine_arguments(model: str, shape: Shape, **more: Any) -> dict[str, Any]:
    """`model.json`: arguments of vLLM's engine, such that it starts soon and takes little memory."""
    return {"model": model, "max_model_len": shape.context, "enforce_eager": True, "dtype": "bfloat16",
            "max_num_seqs": 16, "gpu_memory_utilization": 0.1, "disable_log_stats": False, **more}


def write_repository(directory: Path, name: str, arguments: Mapping[str, Any], **parameters: str) -> None:
    """`directory`/`name`: `config.pbtxt` and version 1. `parameters` stand beside `PARAMETERS`."""
    version = directory / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (directory / name / "config.pbtxt").write_text(config_pbtxt({**PARAMETERS, **parameters}))
    (version / "model.json").write_text(json.dumps(arguments, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="a small Llama of random weights")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--repository", type=Path, help="write a model repository of Triton's too")
    parser.add_argument("--name", default="tiny", help="of the model in that repository")
    for field, value in vars(Shape()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=value, metavar="N", help=str(value))
    given = vars(parser.parse_args())
    directory, repository, name = (given.pop(key) for key in ("directory", "repository", "name"))
    try:
        shape = Shape(**given)
    except ValueError as error:
        parser.error(str(error))
    write_model(directory, shape)
    if repository is not None:
        write_repository(repository, name, engine_arguments(str(directory.absolute()), shape))
    print(f"{directory}: {shape.parameters} parameters")


if __name__ == "__main__":
    main()
