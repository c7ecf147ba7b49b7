"""Seeded cases of untrusted input: a command line and the files that it reads, with one or several things wrong.

The number of a case decides everything in it. A case is built from a small valid model, adapter, data and run, each of
which a mutation may corrupt; the command that then reads them must obey the one rule of rule.py.
"""

import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import write_adapter, write_checkpoint
from small_run import make_data, make_model
from tiny import CONFIGS

NUMBERS = (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e400, -1e400, 5e-324)
WORDS = ("", " ", "x", "a[/x]", "\x1b[31m", "\u202e", "²", "nan", "../..", "/etc/passwd", "\0", "9" * 5000, "é" * 300)
ODD: tuple[Any, ...] = (*NUMBERS, *WORDS, None, True, False, [], {}, [1], ["a"], [[]], {"a": 1}, float("nan"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@dataclass
class Case:
    """One command line in a folder of its own; out is where it may write."""

    number: int
    words: list[str]
    root: Path
    out: Path
    what: str


class Builder:
    """Sound material, made once, and copies of it that a random generator spoils."""

    def __init__(self, home: Path):
        self.home = home
        self.models = [write_checkpoint(home / name, name) for name in ("bert", "opt", "llama")]
        self.adapters = [write_adapter(home / f"{m.name}-adapter", m) for m in self.models[:2]]
        make_model(home / "small")
        make_data(home / "data", train=30, dev=8)
        pickled = home / "pickled"
        shutil.copytree(home / "small", pickled)
        from safetensors.torch import load_file

        torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").unlink()

    def case(self, number: int, root: Path) -> Case:
        """The case of this number, its files in `root`, which is empty."""
        r = random.Random(number)
        out = root / "out"
        name, make = r.choice(KINDS)
        words, what = make(self, r, root, out)
        if r.random() < 0.1 and words[0] not in ("finetune", "unmerge"):
            place = r.choice((root / "x.json", root / "no" / "x.json", root, Path("/dev/null"), root / "victim.json"))
            (root / "victim.json").write_text('{"dear": "diary"}')
            words += ["--json", str(place)]
        return Case(number, words, root, out, f"{name}: {what}")

    def copy(self, source: Path, root: Path) -> Path:
        """A folder of its own for a case."""
        target = root / source.name
        shutil.copytree(source, target, symlinks=True)
        return target


def reads_model(r: random.Random, model: Path, out: Path) -> list[str]:
    """A command that reads this model."""
    ways = [["certify"], ["inspect"], ["simplify"], ["unmerge"], ["certify", "--prefix"], ["quantkeys"], ["verify"]]
    words = list(r.choices(ways, weights=(4, 4, 4, 1, 1, 1, 1))[0])
    words.insert(1, str(model))
    return [*words, str(out)] if words[0] in ("simplify", "unmerge") else words


def spoilt_json(r: random.Random, file: Path) -> str:
    """One to three values of a JSON file replaced, removed or added; or the text itself damaged."""
    if r.random() < 0.25:
        return spoilt_bytes(r, file)
    value = json.loads(file.read_text())
    said = []
    for _ in range(r.choice((1, 1, 2, 3))):
        inside, path = value, file.name
        while True:
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            if not keys:
                break
            key = r.choice(list(keys))
            path += f".{key}"
            if isinstance(inside[key], dict | list) and inside[key] and r.random() < 0.6:
                inside = inside[key]
                continue
            inside[key] = r.choice(ODD)
            said.append(f"{path[:60]} = {str(inside[key])[:40]!r}")
            break
    if r.random() < 0.1:
        value[r.choice(("rope_scaling", "auto_map", "num_labels", "id2label", "window_size"))] = r.choice(ODD)
    file.write_text(json.dumps(value))
    return "; ".join(said)


def spoilt_bytes(r: random.Random, file: Path) -> str:
    """The file cut, with bytes changed, empty, huge and sparse, a pointer, a pipe, a link or a folder."""
    content = bytearray(file.read_bytes())
    how = r.choice(
        ("cut", "flip", "flip", "empty", "pointer", "link", "fifo", "folder", "sparse", "bom", "gone", "zeros")
    )
    if how == "cut":
        file.write_bytes(content[: r.randrange(len(content) + 1)])
    elif how == "flip":
        for _ in range(r.choice((1, 3, 30))):
            if content:
                content[r.randrange(len(content))] = r.randrange(256)
        file.write_bytes(content)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "pointer":
        file.write_bytes(LFS)
    elif how == "bom":
        file.write_bytes(b"\xef\xbb\xbf" + content)
    elif how == "zeros":
        file.write_bytes(bytes(len(content)))
    elif how == "sparse":
        with file.open("r+b") as stream:
            stream.truncate(3 << 30)
    else:
        file.unlink()
        if how == "link":
            secret = file.parent.parent / f"elsewhere-{file.name}"
            secret.write_bytes(content)
            file.symlink_to(r.choice((secret, Path("/dev/zero"), Path("/nowhere"))))
        elif how == "fifo":
            os.mkfifo(file)
        elif how == "folder":
            file.mkdir()
    return f"{file.name} {how}"


def spoilt_header(r: random.Random, file: Path) -> str:
    """A safetensors file whose header says something else about one tensor; or a tensor of another type."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    name = r.choice(names)
    how = r.choice(("dtype", "shape", "offsets", "name", "gone", "length", "twice"))
    if how == "dtype":
        header[name]["dtype"] = r.choice(("F64", "F16", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "C64", "F4", "X"))
    elif how == "shape":
        header[name]["shape"] = r.choice(([], [0], [-1], [2**62, 4], [1, *header[name]["shape"]], "x", [1.5]))
    elif how == "offsets":
        header[name]["data_offsets"] = r.choice(([0, 0], [0, 2**63], [8, 4], [-1, 4], [0], None))
    elif how == "name":
        header[r.choice(("x", "a\x1b[31m|<b>", "../x", "y" * 5000, "bert.encoder.layer.9.x.bias"))] = header.pop(name)
    elif how == "gone":
        del header[name]
    elif how == "twice":
        header["copy.of.bias"] = header[name]
    text = json.dumps(header).encode()
    told = r.choice((2**63, 10**9, 0, 1)) if how == "length" else len(text)
    file.write_bytes(struct.pack("<Q", told) + text + content[8 + size :])
    return f"{file.name} {name} {how}"


def spoilt_pickle(r: random.Random, file: Path) -> str:
    """A pickle of other things than dense tensors, or a bomb."""
    state = torch.load(file, weights_only=True)
    name = r.choice(list(state))
    odd: dict[str, Callable[[], Any]] = {
        "expanded": lambda: torch.zeros(1).expand(10**9, 10**3),
        "sparse": lambda: torch.eye(4).to_sparse(),
        "meta": lambda: torch.empty(2**40, device="meta"),
        "complex": lambda: torch.zeros(4, dtype=torch.complex64),
        "float8": lambda: state[name].to(torch.float8_e4m3fn),
        "nan": lambda: torch.full_like(state[name], torch.nan),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "text": lambda: "weights",
        "shared": lambda: next(iter(state.values())),
    }
    how = r.choice((*odd, "bomb", "bytes", "list"))
    if how in odd:
        torch.save(state | {name: odd[how]()}, file)
    elif how == "bomb":
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(file.with_name("new"), "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.namelist():
                new.writestr(entry, old.read(entry) if "/data/" not in entry else bytes(20 << 20))
        file.with_name("new").replace(file)
    elif how == "list":
        torch.save([state], file)
    else:
        return spoilt_bytes(r, file)
    return f"{file.name} {name} {how}"


def a_config(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model = b.copy(r.choice(b.models), root)
    return reads_model(r, model, out), spoilt_json(r, model / "config.json")


def a_config_alone(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    """A configuration without weights, of any family that the suite has."""
    family = r.choice(list(CONFIGS))
    file = root / "config.json"
    file.write_text(json.dumps({"model_type": family, **CONFIGS[family]}, default=str))
    return ["certify", str(r.choice((file, root)))], f"{family}: {spoilt_json(r, file)}"


def a_weight_file(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model = b.copy(r.choice(b.models), root)
    file = r.choice(sorted(model.glob("*.safetensors")))
    return reads_model(r, model, out), r.choice((spoilt_header, spoilt_bytes))(r, file)


def an_index(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model = b.copy(r.choice(b.models), root)
    return reads_model(r, model, out), spoilt_json(r, model / "model.safetensors.index.json")


def a_pickle(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model = b.copy(b.home / "pickled", root)
    words = [r.choice(("inspect", "verify", "quantkeys", "simplify")), str(model)]
    return words + [str(out)] * (words[0] == "simplify"), spoilt_pickle(r, model / "pytorch_model.bin")


def a_tokenizer(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model = b.copy(r.choice(b.models), root)
    words = ["simplify", str(model), str(out)] if r.random() < 0.7 else ["verify", str(model)]
    if r.random() < 0.3:
        (model / "tokenizer.json").unlink()
        for name in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
            if r.random() < 0.7:
                (model / name).write_text(
                    r.choice(("", "[UNK]\n[CLS]\n[SEP]\n[PAD]\na\n", "{}", '{"a": 0}', "[]", "\x00\xff"))
                )
        return words, "older vocabulary"
    return words, spoilt_json(r, model / "tokenizer.json")


def an_adapter(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    number = r.randrange(len(b.adapters))
    adapter, model = b.copy(b.adapters[number], root), b.copy(b.models[number], root)
    what = r.choice(
        (
            lambda: spoilt_json(r, adapter / "adapter_config.json"),
            lambda: spoilt_header(r, adapter / "adapter_model.safetensors"),
            lambda: spoilt_bytes(r, adapter / "adapter_model.safetensors"),
        )
    )()
    if r.random() < 0.2:
        return ["certify", str(adapter)], what
    return ["merge", str(adapter), str(model), str(out), *r.sample(["--fold", "--residual"], r.randrange(3))], what


def some_text(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    model, file = b.copy(r.choice(b.models), root), root / "text.txt"
    file.write_bytes(
        r.choice(
            (
                b"",
                b"\n \n",
                b"the\n" * 4,
                b"the the the\n" * 3,
                b"\xff\xfe",
                "²\n\u2028x\n".encode(),
                b"a " * 20000,
                b"x",
            )
        )
    )
    what = f"text {file.read_bytes()[:20]!r}"
    if r.random() < 0.3:
        what = spoilt_bytes(r, file)
    words = ["quantkeys", str(model)] if r.random() < 0.5 else ["simplify", str(model), str(out)]
    return [*words, "--text", str(file)], what


def finetunes(root: Path, out: Path, *more: str) -> list[str]:
    words = ["finetune", str(root / "small"), "--data", str(root / "data"), "--examples", "8", "--batch", "8"]
    return [*words, "--epochs", "1", "--device", "cpu", "--max-length", "16", "--out", str(out), *more]


def some_data(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    b.copy(b.home / "small", root)
    file = b.copy(b.home / "data", root) / "sst2" / r.choice(("train.tsv", "dev.tsv"))
    if r.random() < 0.5:
        return finetunes(root, out), spoilt_bytes(r, file)
    lines = file.read_text().split("\n")
    for _ in range(3):
        lines[r.randrange(len(lines))] = r.choice(
            ("", "\t", "a\tb\tc", "w1\t2", "w1\tnan", "\x1b[31m\t0", "w1 " * 9999 + "\t1")
        )
    file.write_text("\n".join(lines))
    return finetunes(root, out), f"{file.name} lines"


def a_run(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    """A finished run whose files are spoilt, begun again with the same or other settings."""
    b.copy(b.home / "small", root)
    b.copy(b.home / "data", root)
    run = out / "seed-0"
    if not (b.home / "run").exists():
        keep = b.home / "run"
        from rule import ended

        assert ended(finetunes(root, keep))[0] == 0
    shutil.copytree(b.home / "run", out)
    for part, inside in (("run.json", run), ("seeds.json", out)):  # where the model and the data lie now
        text = (inside / part).read_text()
        old = json.loads(text)["settings"]
        for key, place in (("model", root / "small"), ("data", root / "data")):
            text = text.replace(json.dumps(old[key]), json.dumps(str(place)))
        (inside / part).write_text(text)
    more = r.choice(([], [], ["--seeds", "0-1"], ["--terms", "q"], ["--epochs", "2"]))
    file = r.choice((run / "run.json", run / "run.json", out / "seeds.json", run / "state.pt"))
    what = spoilt_bytes(r, file) if file.suffix == ".pt" else spoilt_json(r, file)
    if file.name == "state.pt":
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"complete": False}))
    return finetunes(root, out, *more), what


OPTIONS = (
    "--rank --scale --examples --held-out --evaluated --data-seed --seeds --learning-rate --epochs --batch --beta1 "
    "--beta2 --eps --weight-decay --clip --pad --max-length --dtype --device --task --terms --form"
).split()
VALUES = (
    "-1 0 x ² 0- 1e400 nan -inf 999999999999999999999999999999 4294967296 0-100000000 cuda a\x1b[31m w,v "
    "16 all full none dora bfloat16 triton rte stsb"
).split()


def a_command_line(b: Builder, r: random.Random, root: Path, out: Path) -> tuple[list[str], str]:
    """Values that an option cannot have, and words that no command knows."""
    b.copy(b.home / "small", root)
    b.copy(b.home / "data", root)
    if r.random() < 0.7:
        options = r.sample(OPTIONS, r.choice((1, 1, 2)))
        more = [word for option in options for word in (option, r.choice(VALUES))]
        return finetunes(root, out, *more), " ".join(more)
    commands = "verify certify prove inspect simplify merge unmerge quantkeys finetune rank reproduce bench".split()
    words = [
        r.choice((*commands, "", "verfy", "--", "-x", "--help")),
        *r.choices((*VALUES, "--x", "/nowhere", "--text"), k=r.randrange(3)),
    ]
    if words[0] == "prove" and not any(w.startswith("-") or w for w in words[1:]):
        words.append("nothing")
    return words, " ".join(words)


KINDS: tuple[tuple[str, Callable[[Builder, random.Random, Path, Path], tuple[list[str], str]]], ...] = (
    ("config", a_config), ("config", a_config), ("config alone", a_config_alone), ("weights", a_weight_file),
    ("weights", a_weight_file), ("index", an_index), ("pickle", a_pickle), ("tokenizer", a_tokenizer),
    ("adapter", an_adapter), ("text", some_text), ("data", some_data), ("run", a_run), ("command line", a_command_line),
)  # fmt: skip
