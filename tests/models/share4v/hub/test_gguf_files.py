"""GGUF models and LoRA adapters of a repository: which files are meant, and that they come through the hub layer."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.adapters import write_adapter
from helpers.hub_server import COMMIT, HubServer, serving
from helpers.weights import read_weights

from mindone.models.share4v import AutoConfig, Share4V, Share4VProcessor, Tokenizer, export_gguf
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.hub import HubError, RepoOptions, resolve, resolve_adapter
from mindone.models.share4v.hub.gguf_files import choose_gguf, quantization_of
from mindone.models.share4v.hub.inventory import list_models, remove_model
from mindone.models.share4v.load_options import CheckpointOptions

TINY = "sharegpt4v-tiny"
REPO, LORA = "someone/tiny-GGUF", "someone/tiny-lora"
# Published repositories of LLaVA name their files so.
LLAVA, SECOND = "mys/ggml_llava-v1.5-7b", "second-state/Llava-v1.5-7B-GGUF"
PUBLISHED = {
    LLAVA: [f"ggml-model-{kind}.gguf" for kind in ("f16", "q4_k", "q5_k")] + ["mmproj-model-f16.gguf"],
    SECOND: [f"llava-v1.5-7b-{kind}.gguf" for kind in ("Q2_K", "Q4_K_M", "mmproj-model-f16")],
    "unsloth": [f"{name}.gguf" for name in ("m-UD-Q4_K_XL", "m-Q4_K_M", "m-Q4_0", "mmproj-BF16", "mmproj-F16")],
    "split": ["big.Q8_0-00001-of-00002.gguf", "big.Q8_0-00002-of-00002.gguf", "big.Q4_0.gguf"],
}


@pytest.mark.parametrize(
    ("repository", "wanted", "language", "vision"),
    [
        (LLAVA, "Q4_K", "ggml-model-q4_k.gguf", "mmproj-model-f16.gguf"),
        (LLAVA, "f16", "ggml-model-f16.gguf", "mmproj-model-f16.gguf"),
        (LLAVA, "ggml-model-q5_k.gguf", "ggml-model-q5_k.gguf", "mmproj-model-f16.gguf"),
        (SECOND, "", "llava-v1.5-7b-Q4_K_M.gguf", "llava-v1.5-7b-mmproj-model-f16.gguf"),
        ("unsloth", "q4_0", "m-Q4_0.gguf", "mmproj-F16.gguf"),
        ("unsloth", "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf", "mmproj-F16.gguf"),
        ("unsloth", "", "m-Q4_K_M.gguf", "mmproj-F16.gguf"),
        ("split", "Q8_0", "big.Q8_0-00001-of-00002.gguf", None),
    ],
)
def test_the_files_that_are_meant(repository: str, wanted: str, language: str, vision: str | None) -> None:
    choice = choose_gguf([*PUBLISHED[repository], "README.md", "config.json"], wanted)
    assert (choice.language[0], choice.vision) == (language, vision)
    assert choice.is_default == (not wanted) and language in choice.reason
    assert len(choice.language) == (2 if repository == "split" else 1)


@pytest.mark.parametrize(
    ("names", "wanted", "mmproj", "said"),
    [
        (PUBLISHED[LLAVA], "", None, "no GGUF file Q4_K_M: .*owner/name:TAG.*ggml-model-f16.gguf"),
        (PUBLISHED["unsloth"], "Q6_K", None, "no GGUF file Q6_K: .* m-Q4_0.gguf, m-Q4_K_M.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0", None, "several GGUF files Q4_0: .*a-Q4_0.gguf, b-Q4_0.gguf"),
        (["a.gguf", "mmproj-a-f16.gguf", "mmproj-b-f16.gguf"], "", None, "has 2 mmproj files: mmproj-a-f16"),
        (["a.gguf", "mmproj-a.gguf"], "", "mmproj-c.gguf", "no file mmproj-c.gguf: its mmproj files are mmproj-a.gguf"),
        (["mmproj-a.gguf"], "", None, "no GGUF file of a language model"),
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], "", None, "only 2 of the 3 parts"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_lists_what_there_is(
    names: list[str], wanted: str, mmproj: str | None, said: str
) -> None:
    with pytest.raises(HubError, match=said):
        choose_gguf(names, wanted, mmproj)


def test_the_quantization_in_a_name() -> None:
    names = [
        "x.IQ4_XS.gguf",
        "x-fp16.gguf",
        "x-bf16.gguf",
        "Q4_0.gguf",
        "q8-model.gguf",
        "llama-7b.gguf",
        "x-TQ1_0.gguf",
    ]
    assert [quantization_of(name) for name in names] == ["IQ4_XS", "F16", "BF16", "Q4_0", "Q8", "", "TQ1_0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository with two quantizations, two mmproj files and a config.json for other programs."""
    folder = tmp_path_factory.mktemp("published")
    for dtype, mmproj in (("q8_0", "mmproj-tiny-f16.gguf"), ("q4_0", "unused.gguf"), ("f32", "mmproj-tiny-f32.gguf")):
        export_gguf(TINY, folder / f"tiny-{dtype}.gguf", folder / mmproj, dtype=dtype)
    names = ("tiny-q8_0.gguf", "tiny-q4_0.gguf", "mmproj-tiny-f16.gguf", "mmproj-tiny-f32.gguf")
    return {"config.json": b'{"model_type": "llama"}', **{name: (folder / name).read_bytes() for name in names}}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as httpd:
        monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_ENDPOINT", httpd.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.chdir(tmp_path)
        yield httpd


def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def downloaded(server: HubServer) -> list[str]:
    return [path.rpartition("/")[2] for path in server.asked if "/resolve/" in path]


def test_a_model_by_its_quantization_and_then_without_a_connection(
    server: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.add_repository(REPO, files)
    with caplog.at_level(logging.INFO):
        model, processor = (one.from_pretrained(f"{REPO}:Q8_0") for one in (Share4V, Share4VProcessor))
    assert "uses tiny-q8_0.gguf and the mmproj file mmproj-tiny-f16.gguf" in caplog.text
    assert downloaded(server) == ["mmproj-tiny-f16.gguf", "tiny-q8_0.gguf"]
    inputs = processor(text="Describe this image")
    expected = Share4V.from_pretrained(TINY, dtype="int8")
    assert model.config.text_config == expected.config.text_config
    no_sockets(monkeypatch)
    again = Share4V.from_pretrained(f"{REPO}:q8_0", local_files_only=True)
    ids = [one.generate(**inputs, max_new_tokens=5) for one in (model, again)]
    assert ids[0] == ids[1]
    assert Tokenizer.from_pretrained(f"{REPO}:Q8_0").encode("a red circle") == processor.tokenizer.encode(
        "a red circle"
    )
    assert AutoConfig.from_pretrained(f"{REPO}:Q8_0") == model.config
    with pytest.raises(HubError, match="missing or incomplete"):
        Checkpoint.open(f"{REPO}:Q4_0", CheckpointOptions(local_files_only=True))


def test_another_quantization_goes_beside_the_first(server: HubServer, files: dict[str, bytes]) -> None:
    server.add_repository(REPO, files)
    first, second = resolve(f"{REPO}:Q8_0"), resolve(f"{REPO}:Q4_0")
    assert first.parent == second.parent and second.read_bytes() == files["tiny-q4_0.gguf"]
    assert downloaded(server).count("mmproj-tiny-f16.gguf") == 1
    assert resolve(f"{REPO}:Q8_0", local_files_only=True) == first
    assert resolve(f"{REPO}:tiny-q8_0.gguf", local_files_only=True) == first
    opened = Checkpoint.open(f"{REPO}:Q4_0", CheckpointOptions(vision_tower="mmproj-tiny-f32.gguf"))
    assert opened.gguf is not None and opened.gguf.vision is not None
    assert opened.gguf.vision.path.name == "mmproj-tiny-f32.gguf"
    entry = next(one for one in list_models() if one.name == REPO)
    assert entry.status == "cached"
    assert remove_model(REPO).name == REPO and not first.exists()


def test_several_models_without_a_default_are_listed(server: HubServer, files: dict[str, bytes]) -> None:
    server.add_repository(REPO, files)
    with pytest.raises(HubError, match=r"no GGUF file Q4_K_M: choose one as owner/name:TAG.*tiny-q4_0.gguf, tiny-q8_0"):
        Checkpoint.open(REPO)
    assert not downloaded(server)


def test_the_default_is_said(
    server: HubServer, files: dict[str, bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {name.replace("q4_0", "Q4_K_M"): body for name, body in files.items()}
    server.add_repository(REPO, named)
    path = resolve(REPO)
    assert path.name == "tiny-Q4_K_M.gguf"
    assert "it has 2 GGUF language models, and Q4_K_M is the default; choose another as owner/name:TAG" in caplog.text
    no_sockets(monkeypatch)
    assert resolve(REPO) == path  # the record knows what else there is, so the same default is taken


def test_revision_token_and_damage(server: HubServer, files: dict[str, bytes]) -> None:
    server.add_repository(REPO, files, "v2")
    path = resolve(f"{REPO}:Q4_0", repo_options=RepoOptions("v2", "hf_secret"))
    assert path.parent.name == COMMIT
    with pytest.raises(HubError):
        resolve(f"{REPO}:Q4_0", local_files_only=True)  # the main revision is another one
    server.add_repository("someone/wrong", files, sha256="0" * 64)
    with pytest.raises(HubError, match=r"mmproj-tiny-f16.gguf gave a file with sha256"):
        resolve("someone/wrong:Q4_0")
    server.add_repository("someone/page", {**files, "tiny-q4_0.gguf": b"<html>sign in</html>"})
    with pytest.raises(HubError, match=r"tiny-q4_0.gguf gave a file that is not a GGUF file"):
        resolve("someone/page:Q4_0")


def test_files_in_folders_are_mentioned(server: HubServer, files: dict[str, bytes]) -> None:
    server.add_repository(REPO, {"README.md": b"", **{f"Q4/{name}": body for name, body in files.items()}})
    with pytest.raises(HubError, match=r"GGUF files in its folders Q4: give one as subfolder"):
        resolve(REPO)
    assert resolve(f"{REPO}:Q4_0", repo_options=RepoOptions(subfolder="Q4")).parent.name == "Q4"


def test_what_another_program_downloaded_is_used(
    server: HubServer,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    server.add_repository(REPO, files)
    snapshot_download(REPO, allow_patterns=["*q4_0*"], cache_dir=tmp_path / "hf", endpoint=server.address)
    pair = Checkpoint.open(f"{REPO}:Q4_0").gguf
    assert pair is not None and pair.vision is None
    hint = f"hf download {REPO} --include '*mmproj*'"  # somebody who wants to caption must learn what is missing
    assert "opened as a model for texts only" in caplog.text and hint in caplog.text
    named = resolve(f"{REPO}:Q4_0", repo_options=RepoOptions(mmproj="mmproj-tiny-f16.gguf"))
    assert not named.is_relative_to(tmp_path / "hf")  # as the warning says, it is fetched if it is named
    snapshot_download(REPO, allow_patterns=["mmproj*f16*"], cache_dir=tmp_path / "hf", endpoint=server.address)
    caplog.clear()
    no_sockets(monkeypatch)
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "empty"))
    assert resolve(f"{REPO}:Q4_0") == resolve(REPO)
    assert resolve(REPO).is_relative_to(tmp_path / "hf")
    assert not caplog.text


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora"), Checkpoint.open(TINY).config.text_config)


def test_adapters_of_a_hub(server: HubServer, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = {path.name: path.read_bytes() for path in lora.iterdir()}
    server.add_repository(
        LORA, {**published, "README.md": b"x", "training_args.bin": b"PK\3\4", "tokenizer.json": b"{}"}
    )
    server.add_repository("someone/folders", {f"epoch-1/{name}": body for name, body in published.items()})
    given = {LORA: 1.0, "someone/folders/epoch-1": 0.5}
    merged = read_weights(Checkpoint.open(TINY, CheckpointOptions(adapter=given)))
    assert sorted(downloaded(server)) == sorted([*published] * 2)
    no_sockets(monkeypatch)
    again = read_weights(Checkpoint.open(TINY, CheckpointOptions(adapter=given, local_files_only=True)))
    local = read_weights(Checkpoint.open(TINY, CheckpointOptions(adapter={str(lora): 1.5})))
    for name, weight in merged.items():
        assert weight.tobytes() == again[name].tobytes()
        assert abs(weight - local[name]).max() < 1e-6
    assert resolve_adapter(LORA) == resolve_adapter(LORA, local_files_only=True)
    assert {entry.name: entry.status for entry in list_models()}[LORA] == "cached"


def test_what_is_no_adapter(server: HubServer, lora: Path, files: dict[str, bytes]) -> None:
    published = {path.name: path.read_bytes() for path in lora.iterdir()}
    server.add_repository(REPO, files)
    server.add_repository("someone/half", {"adapter_config.json": published["adapter_config.json"]})
    server.add_repository("someone/tower", {**published, "vision_tower/config.json": b"{}"})
    cases = {
        REPO: "has no adapter_config.json, so it is not a LoRA adapter",
        "someone/half": "has no weights of an adapter: expected adapter_model.safetensors or adapter_model.bin",
        "someone/tower": "comes with a vision tower of its own",
        "someone/none": "Tried:\n- directory someone/none: does not exist\n(.*\n)*.*404",
    }
    for name, said in cases.items():
        with pytest.raises(HubError, match=said):
            Checkpoint.open(TINY, CheckpointOptions(adapter=name))
    with pytest.raises((CheckpointError, FileNotFoundError), match=r"is not a directory on this machine.*owner/name"):
        Checkpoint.open(TINY, CheckpointOptions(adapter="none"))
