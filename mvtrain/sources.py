"""Where an autoregressive checkpoint comes from: a local folder, a GGUF file or the hub."""

from __future__ import annotations

import functools
import importlib.util
import json
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

MODEL_TYPES = ("qwen2", "qwen3", "llama")
"""`config.model_type` of the families whose attention and head this project knows."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_IGNORED = ["*/*", "*.bin*", "consolidated*"]


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk, its config already found fit for conversion."""

    name: str
    """As the user gave it."""
    kind: Literal["folder", "gguf", "hub"]
    folder: Path
    config: Any
    gguf_file: str | None = None
    """File name inside `folder`."""
    revision: str | None = None
    """The hub's commit."""

    def load_tokenizer(self) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(**self._reading())
        if self.gguf_file and isinstance(self.config.eos_token_id, int):
            # The file says it once; transformers 5.17 gives the tokenizer another.
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.config.eos_token_id)
        return tokenizer

    def load_model(self, dtype: torch.dtype | None) -> torch.nn.Module:
        """The model on the CPU, in `dtype` or in its own: that of the stored weights, bfloat16 for GGUF.

        Raises ValueError where the weights do not cover the model exactly.
        """
        settings: dict[str, Any] = {"use_safetensors": True}
        if self.gguf_file:
            # Without `dequantize` the weights stay in GGUF blocks, which cannot be saved as safetensors.
            config = transformers.GgufConfig(gguf_file=self.gguf_file, dequantize=True)
            settings = {"quantization_config": config}
        dtype = dtype or self._own_dtype()
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                **self._reading(), **settings, dtype=dtype, output_loading_info=True
            )
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{self.name}: the weights cannot be loaded: {error}") from error
        _check_loading(self.name, loading)
        head = model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise ValueError(f"{self.name}: expected an lm_head without bias; its rows for the tags would be undefined")
        return model.eval()

    def _reading(self) -> dict[str, Any]:
        """What every `from_pretrained` of this source needs."""
        where = {"pretrained_model_name_or_path": str(self.folder), "config": self.config}
        return where | ({"gguf_file": self.gguf_file} if self.gguf_file else {})

    def _own_dtype(self) -> torch.dtype | str:
        if self.gguf_file:
            return torch.bfloat16
        stored = {dtype for file in self.folder.glob("*.safetensors") for dtype in _dtypes_in(file)}
        return _STORED_DTYPES[stored.pop()] if len(stored) == 1 and stored <= _STORED_DTYPES.keys() else "auto"


def find_source(name: str | Path, revision: str | None = None, progress: Callable[[str], None] = print) -> Source:
    """Find a checkpoint and refuse one that cannot be converted, before its weights are read.

    Args:
        name: a local folder, a `.gguf` file, or a hub id `owner/name` (downloaded into the hub's cache).
        revision: branch, tag or commit; hub ids only.

    Raises:
        ValueError: there is no such checkpoint, or its kind is not supported.
    """
    path = Path(name).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"--revision is for hub ids; {name} is a local path")
        return _local_source(str(name), path)
    if not _HUB_ID.fullmatch(str(name)) or path.suffix == ".gguf":
        raise ValueError(f"{name}: no such file or folder (a hub id would read owner/name)")
    return _hub_source(str(name), revision, progress)


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file anew for its config, tokenizer and weights, and builds the table of its tensor
    names anew for every module: most of a small model's conversion. Within this context each is done once."""
    if importlib.util.find_spec("gguf") is None:
        yield
        return
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, original in originals.items():
            setattr(gguf, name, functools.lru_cache(maxsize=1)(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _local_source(name: str, path: Path) -> Source:
    if path.is_file():
        _check_gguf(name, path)
        config = _load_config(name, path.parent, gguf_file=path.name)
        _check_config(name, config.to_dict())
        _check_gguf_rope(name, path, config)
        return Source(name, "gguf", path.parent, config, gguf_file=path.name)
    if not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; give the GGUF file itself, for example {path / files[0]}" if files else ""
        raise ValueError(f"{name}: the folder has no config.json, so it is no checkpoint{hint}")
    _check_config(name, _read_config(name, path / "config.json"))
    _check_weights(name, path)
    return Source(name, "folder", path, _load_config(name, path))


def _hub_source(name: str, revision: str | None, progress: Callable[[str], None]) -> Source:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    progress(f"{name} is no local path; asking the hub")
    try:
        # The config comes first: an unsupported model is refused before its weights are downloaded.
        config_file = Path(hf_hub_download(name, "config.json", revision=revision))
        _check_config(name, _read_config(name, config_file))
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
        )
    except (OSError, HfHubHTTPError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ValueError(f"{name}{at}: neither a local path nor a reachable hub id ({error})") from error
    _check_weights(name, folder)
    return Source(name, "hub", folder, _load_config(name, folder), revision=folder.name)


def _read_config(name: str, file: Path) -> dict[str, Any]:
    """`config.json` as it stands: transformers would not say plainly which family or feature is not supported."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: config.json is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{name}: config.json holds a {type(config).__name__}, expected an object")
    return config


def _check_config(name: str, config: dict[str, Any]) -> None:
    """Refuse configs whose attention, weights or family the project cannot handle."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{name}: model_type is {model_type!r}; supported are {', '.join(MODEL_TYPES)}")
    layers = config.get("layer_types") or []
    if config.get("use_sliding_window") or any("sliding" in layer for layer in layers):
        raise ValueError(
            f"{name}: the model has sliding-window attention, which cannot see whole paths; "
            "take a model with full attention in every layer"
        )
    if config.get("quantization_config"):
        raise ValueError(f"{name}: the weights are quantised; convert the unquantised checkpoint")


def _check_weights(name: str, folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise ValueError(
            f"{name}: the weights are pickles (.bin or .pth), which can run code when loaded, so they are not read. "
            "If you trust them, make safetensors first: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and save the tokenizer there too"
        )
    raise ValueError(f"{name}: there is a config.json but no .safetensors file beside it")


def _check_loading(name: str, loading: dict[str, Any]) -> None:
    """Weights that are missing would be random, and weights without a place would be dropped; both in silence."""
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in loading.get("mismatched_keys", ())]
    for what, keys in (
        ("has no weights for", loading.get("missing_keys", ())),
        ("has weights that the model class has no place for:", loading.get("unexpected_keys", ())),
        ("has weights of another shape than its config says:", mismatched),
    ):
        if keys:
            shown = ", ".join(sorted(keys)[:4])
            raise ValueError(f"{name}: the checkpoint {what} {shown}{' and others' if len(keys) > 4 else ''}")


def _check_gguf(name: str, file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{name}: not a GGUF file; give a checkpoint folder, a .gguf file or a hub id")
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"reading GGUF files needs {' and '.join(missing)}: pip install 'mvtrain[gguf]'")


def _load_config(name: str, folder: Path, **gguf: str) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder), **gguf)
    except Exception as error:  # the readers of damaged files raise whatever they stumble over
        raise ValueError(f"{name}: the config cannot be read: {error}") from error


def _check_gguf_rope(name: str, file: Path, config: Any) -> None:
    """GGUF keeps Llama 3's rotary scaling as a tensor, which is not read back into the config."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        scaled = content.find(b"rope_freqs.weight", 0, 64 * 2**20) >= 0
    if scaled and (config.rope_parameters or {}).get("rope_type", "default") == "default":
        raise ValueError(
            f"{name}: the rotary scaling of this GGUF file (rope_freqs.weight) would be lost; "
            "convert the safetensors checkpoint of the same model"
        )


def _dtypes_in(file: Path) -> set[str]:
    """The dtypes named in the header of a safetensors file, without reading its tensors."""
    try:
        with safe_open(file, framework="pt") as shard:
            return {shard.get_slice(name).get_dtype() for name in shard.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from error
