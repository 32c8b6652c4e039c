"""Conversion that must not succeed: its checks fail when they should, and every failure leaves nothing behind."""

from __future__ import annotations

import resource
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvtrain import convert, sources
from mvtrain.conversion_checks import ConversionError, check_old_rows, warn_of_spaces
from mvtrain.convert import convert_checkpoint
from mvtrain.layout import TAGS
from tests.checkpoints import ENTRIES, edit_config, save_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_source(tmp_path / "source")


def assert_nothing_left(tmp_path: Path, *, before: tuple[str, ...] = ("source",)) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


class TestNegativeControls:
    """The checks fail when what they check is broken; and then nothing is left behind."""

    @staticmethod
    def break_rows(monkeypatch: pytest.MonkeyPatch, row: int, matrix: int) -> None:
        calls = []

        def fill(weight_VD, old_VD, tag_pieces, known, original=convert._fill_rows):
            original(weight_VD, old_VD, tag_pieces, known)
            if len(calls) == matrix:
                # One bit of one number.
                weight_VD.view(torch.int32)[row, 3] ^= 1
            calls.append(row)

        monkeypatch.setattr(convert, "_fill_rows", fill)

    @pytest.mark.parametrize(("matrix", "name"), [(0, "embedding"), (1, "lm_head")])
    @pytest.mark.parametrize(("vocab_size", "row"), [(259, 5), (300, 5), (300, 280), (300, 258)])
    def test_one_bit_of_an_old_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int, row: int, matrix: int, name: str
    ) -> None:
        folder = save_source(tmp_path / "source", vocab_size=vocab_size)
        self.break_rows(monkeypatch, row, matrix)
        with pytest.raises(ConversionError, match=f"{name} row {row} changed"):
            convert_checkpoint(folder, tmp_path / "out")
        assert_nothing_left(tmp_path)

    def test_rows_that_were_dropped(self) -> None:
        with pytest.raises(ConversionError, match="rows were dropped"):
            check_old_rows("embedding", torch.zeros(300, 4), torch.zeros(270, 4), {"<Think>": 259})

    def test_bits_not_numbers_are_compared(self) -> None:
        old = torch.tensor([[float("nan")], [0.0]])
        assert check_old_rows("embedding", old, old.clone(), {"<Think>": 5})["rows"] == 2
        with pytest.raises(ConversionError, match="row 1 changed"):
            check_old_rows("embedding", old, torch.tensor([[float("nan")], [-0.0]]), {"<Think>": 5})

    @pytest.mark.parametrize("vocab_size", [259, 300])
    def test_a_changed_body_shows_in_the_logits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int
    ) -> None:
        def settle(model, tokenizer, original=convert._settle_generation):
            model.model.norm.weight.data[0] *= 1.0001
            return original(model, tokenizer)

        monkeypatch.setattr(convert, "_settle_generation", settle)
        with pytest.raises(ConversionError, match="logits of old tokens changed"):
            convert_checkpoint(save_source(tmp_path / "source", vocab_size=vocab_size), tmp_path / "out")
        assert_nothing_left(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("weights", "tensor model.norm.weight differs"),
            ("tensor", "1 tensors were not written, model.norm.weight"),
            ("vocab_size", "config.json says vocab_size 259"),
            ("template", "another chat template"),
            ("entry", "other entries"),
        ],
    )
    def test_damage_on_disk(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, message: str
    ) -> None:
        def save(model, tokenizer, folder, original=convert._save):
            original(model, tokenizer, folder)
            tensors = load_file(folder / "model.safetensors")
            if damage == "weights":
                tensors["model.norm.weight"][0] += 1
                save_file(tensors, folder / "model.safetensors")
            elif damage == "tensor":
                del tensors["model.norm.weight"]
                save_file(tensors, folder / "model.safetensors")
            elif damage == "vocab_size":
                edit_config(folder, vocab_size=259)
            elif damage == "template":
                (folder / "chat_template.jinja").write_text("x")
            else:
                text = (folder / "tokenizer.json").read_text()
                (folder / "tokenizer.json").write_text(text.replace("</Conclusion>", "</Conclusio>"))

        monkeypatch.setattr(convert, "_save", save)
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(source, tmp_path / "out")
        assert_nothing_left(tmp_path)

    def test_special_tokens_that_were_replaced(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def add(tokenizer):
            tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)})  # replaces the list
            return {tag: tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}

        monkeypatch.setattr(convert, "_add_tags", add)
        with pytest.raises(ConversionError, match=r"no longer special.*<\|im_start\|>"):
            convert_checkpoint(source, tmp_path / "out")

    def test_tags_in_another_order(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def add(tokenizer):
            tokens = list(reversed(TAGS))
            tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
            return {tag: tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}

        monkeypatch.setattr(convert, "_add_tags", add)
        with pytest.raises(ConversionError, match="ascending in the tags' order"):
            convert_checkpoint(source, tmp_path / "out")

    def test_a_dtype_that_overflows(self, tmp_path: Path) -> None:
        def enlarge(model: torch.nn.Module) -> None:
            model.get_output_embeddings().weight.data *= 1e6

        folder = save_source(tmp_path / "source", edit=enlarge)
        with pytest.raises(ConversionError, match=r"overflows in torch.float16.*choose another --dtype"):
            convert_checkpoint(folder, tmp_path / "out", dtype="float16")
        assert_nothing_left(tmp_path)

    def test_spaces_around_tags(self) -> None:
        class Spaced:
            def __call__(self, text, **_):
                return SimpleNamespace(input_ids=text)

            def decode(self, ids, **_):
                return ids.replace("<Path>", "<Path> ")

        assert "does not keep text around tags" in warn_of_spaces(Spaced())[0]


class TestRefusals:
    """Each message says what is wrong, and the output folder is as it was."""

    def refuse(self, tmp_path: Path, source: Path | str, message: str, **settings) -> None:
        before = tuple(path.name for path in tmp_path.iterdir())
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, tmp_path / "out", **settings)
        assert_nothing_left(tmp_path, before=before)

    def test_converting_twice(self, source: Path, tmp_path: Path) -> None:
        convert_checkpoint(source, tmp_path / "once")
        self.refuse(tmp_path, tmp_path / "once", "already has <Think>, </Think>.*only once")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding-window"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
            ({"model_type": "gemma3"}, "model_type is 'gemma3'; supported are qwen2, qwen3, llama"),
            ({"model_type": None}, "model_type is None"),
            ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
            ({"num_hidden_layers": 3}, "(?s)config cannot be read.*layer_types"),
            ({"num_hidden_layers": 3, "layer_types": None}, "has no weights for model.layers.2"),
            ({"num_hidden_layers": 1, "layer_types": None}, "no place for: model.layers.1"),
        ],
    )
    def test_configs(self, source: Path, tmp_path: Path, changes: dict, message: str) -> None:
        edit_config(source, **changes)
        self.refuse(tmp_path, source, message)

    def test_weights_of_another_shape(self, source: Path, tmp_path: Path) -> None:
        edit_config(source, vocab_size=300)
        self.refuse(tmp_path, source, "another shape|size mismatch|mismatched")

    def test_lm_head_with_a_bias(self, source: Path, tmp_path: Path) -> None:
        tensors = load_file(source / "model.safetensors") | {"lm_head.bias": torch.zeros(ENTRIES)}
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        self.refuse(tmp_path, source, "no place for: lm_head.bias")

    def test_config_that_is_not_json(self, source: Path, tmp_path: Path) -> None:
        (source / "config.json").write_text("{")
        self.refuse(tmp_path, source, "config.json is not JSON")

    def test_pickled_weights(self, source: Path, tmp_path: Path) -> None:
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
        self.refuse(tmp_path, source, "pickles.*make safetensors first")

    def test_no_weights(self, source: Path, tmp_path: Path) -> None:
        (source / "model.safetensors").unlink()
        self.refuse(tmp_path, source, "no .safetensors file")

    @pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64])
    def test_damaged_weights(self, source: Path, tmp_path: Path, content: bytes) -> None:
        (source / "model.safetensors").write_bytes(content)
        self.refuse(tmp_path, source, "model.safetensors")

    def test_folder_without_config(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.refuse(tmp_path, tmp_path / "empty", "no config.json")
        (tmp_path / "empty" / "m.gguf").touch()
        self.refuse(tmp_path, tmp_path / "empty", "give the GGUF file itself.*m.gguf")

    def test_missing_paths(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, tmp_path / "missing", "no such file or folder")
        self.refuse(tmp_path, "models/missing.gguf", "no such file or folder")

    def test_file_that_is_not_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"PK..")
        self.refuse(tmp_path, tmp_path / "x.gguf", "not a GGUF file")

    def test_damaged_gguf(self, tmp_path: Path) -> None:
        pytest.importorskip("gguf", reason="reading GGUF needs the extra gguf")
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 40)
        self.refuse(tmp_path, tmp_path / "x.gguf", "cannot be read")

    def test_gguf_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"mvtrain\[gguf\]"):
            convert_checkpoint(tmp_path / "x.gguf", tmp_path / "out")

    def test_gguf_whose_rotary_scaling_would_be_lost(self, tmp_path: Path) -> None:
        file = tmp_path / "x.gguf"
        file.write_bytes(b"GGUF....rope_freqs.weight....")
        plain = SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        scaled = SimpleNamespace(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4})
        with pytest.raises(ValueError, match="rotary scaling"):
            sources._check_gguf_rope("x", file, plain)
        sources._check_gguf_rope("x", file, scaled)
        file.write_bytes(b"GGUF....")
        sources._check_gguf_rope("x", file, plain)

    def test_hub_that_cannot_be_reached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.refuse(tmp_path, "nobody/nothing", "neither a local path nor a reachable hub id")

    def test_output_folder_in_use(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")
        self.refuse(tmp_path, source, "not empty")
        assert (tmp_path / "out" / "mine.txt").read_text() == "keep"

    def test_output_that_is_a_file(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("keep")
        self.refuse(tmp_path, source, "is a file")
        assert (tmp_path / "out").read_text() == "keep"

    def test_output_that_is_the_source(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(source)
        for out in (source, tmp_path / "link", source / ".." / "source"):
            with pytest.raises(ValueError, match="source and output are the same"):
                convert_checkpoint(source, out)

    def test_settings(self, source: Path, tmp_path: Path) -> None:
        self.refuse(tmp_path, source, "unknown scheme 'x'; choose one of isolated, original", scheme="x")
        self.refuse(tmp_path, source, "unknown dtype 'int8'; choose one of float32", dtype="int8")
        self.refuse(tmp_path, source, "expected 1 or more", pad_to_multiple_of=0)
        self.refuse(tmp_path, source, "revision is for hub ids", revision="main")


class TestFailuresLeaveNothing:
    def test_an_empty_output_folder_is_fine(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        convert_checkpoint(source, tmp_path / "out", verify=False)
        assert (tmp_path / "out" / "mvtrain.json").exists()
        assert_nothing_left(tmp_path, before=("source", "out"))

    def test_a_write_that_the_system_stops(self, source: Path, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # the embedding alone is 40,960 bytes
        try:
            with pytest.raises(OSError, match=r"cannot write the checkpoint.*File too large"):
                convert_checkpoint(source, tmp_path / "new" / "deep" / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_nothing_left(tmp_path)

    def test_a_disk_without_room(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def disk_usage(path, usage=namedtuple("usage", "total used free")):  # noqa: B008
            asked.append(path)
            return usage(10**9, 10**9 - 1000, 1000)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        with pytest.raises(OSError, match=r"needs 0\.07 GB, and only 0\.00 GB are free"):
            convert_checkpoint(source, tmp_path / "new" / "out")
        assert asked == [tmp_path]
        assert_nothing_left(tmp_path)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
    @pytest.mark.parametrize("step", ["_save", "check_saved_weights", "write_manifest", "_open_up"])
    def test_any_interruption(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        def fail(*_):
            raise error

        monkeypatch.setattr(convert, step, fail)
        with pytest.raises(type(error)):
            convert_checkpoint(source, tmp_path / "new" / "out")
        assert_nothing_left(tmp_path)

    def test_a_full_disk_is_called_that(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_, **__):
            raise Exception("No space left on device (os error 28)")  # what tokenizers raises

        monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
        with pytest.raises(OSError, match="the disk is full"):
            convert_checkpoint(source, tmp_path / "out")
        assert_nothing_left(tmp_path)

    def test_an_output_that_appeared_meanwhile_is_not_overwritten(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def open_up(folder):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("keep")

        monkeypatch.setattr(convert, "_open_up", open_up)
        with pytest.raises(OSError, match="not empty"):
            convert_checkpoint(source, tmp_path / "out")
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
        assert_nothing_left(tmp_path, before=("source", "out"))
