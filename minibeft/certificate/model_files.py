"""config.json, and the adapter_config.json beside it, from a folder, a file or the hub; no weights are downloaded."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from minibeft.checkpoints.find import find, why
from minibeft.checkpoints.tensors import read_json
from minibeft.errors import BadInput


class Loaded(NamedTuple):
    """A configuration, the file that it came from, and the configuration of a PEFT adapter on top of it, if any."""

    config: dict[str, Any]
    where: str
    adapter: dict[str, Any] | None = None


def load_config(name_or_path: str | Path) -> Loaded:
    """The configuration that a folder, a config.json, a hub id or "minilm" leads to; BadInput when there is none.

    Where only adapter_config.json is there, the configuration is that of the base model which it names.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        content = read_json(path)
        return with_base(content, path) if "peft_type" in content else Loaded(content, str(path))
    if not path.is_dir():
        return from_name(str(name_or_path))
    config, adapter = path / "config.json", path / "adapter_config.json"
    if config.is_file():
        return Loaded(read_json(config), str(config), read_json(adapter) if adapter.is_file() else None)
    return with_base(read_json(adapter), adapter) if adapter.is_file() else Loaded(read_json(config), str(config))


def with_base(adapter: dict[str, Any], file: Path) -> Loaded:
    """The adapter on the configuration of its base model."""
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadInput(f"{file}: base_model_name_or_path is missing; give the folder of the base model instead")
    return load_config(base)._replace(adapter=adapter)


def from_name(name: str) -> Loaded:
    """The configuration of the packaged demo model or of a hub repository."""
    if name == "minilm" or name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        folder = find(name)
        return Loaded(read_json(folder / "config.json"), str(folder / "config.json"))
    # Imported here: it costs a second, and a folder on disk does not need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Loaded(read_json(Path(hf_hub_download(name, "config.json"))), f"{name}/config.json")
    except LocalEntryNotFoundError as error:
        raise BadInput(
            f"{name}: no such folder, not in the cache, and the hub cannot be reached ({why(error)})"
        ) from error
    except EntryNotFoundError:
        return from_adapter(name)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BadInput(f"{name}: no such folder, and the hub refuses it as an id ({why(error)})") from error


def from_adapter(name: str) -> Loaded:
    """A hub repository that holds an adapter and no config.json."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        file = Path(hf_hub_download(name, "adapter_config.json"))
    except (HfHubHTTPError, OSError) as error:
        raise BadInput(f"{name}: has no config.json and no adapter_config.json; give a transformer's id") from error
    return with_base(read_json(file), file)
