"""config.json, and the adapter_config.json beside it, from a folder, a file or the hub; no weights are downloaded."""

from pathlib import Path
from typing import Any, NamedTuple

from minibeft.checkpoints.find import HUB, download, find, is_hub_id
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
        content = read_json(path.resolve())
        return with_base(content, path) if "peft_type" in content else Loaded(content, str(path))
    if not path.is_dir():
        name = str(name_or_path)
        of_hub = is_hub_id(name) and name != "minilm"
        path = download(HUB.get(name, name), "config.json", "adapter_config.json") if of_hub else find(name)
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
