"""Renders `.env.example`: every variable of `config` with its default, and those that libraries read themselves."""

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from llm_service.config import aliases, variables

# The first variable under each heading of `config`.
HEADINGS = {
    "LLM_PROVIDER": "What generates",
    "COMPUTE_DEVICE": "Where it runs",
    "SYSTEM_PROMPT": "Defaults of a session",
    "TTS_ENDPOINTS": "Speech",
    "LLM_HOST": "The server",
    "SESSION_TIMEOUT": "Sessions",
    "ALLOWED_ORIGINS": "Who may come in, and with what",
    "LOG_LEVEL": "Logs",
}
# Of these the presence alone says something, whatever the value.
UNSET = {
    "LLM_MODEL": "given, llama_cpp takes it for the .gguf file to use; left out, it takes the model it comes with",
    "DEFAULT_TEMPERATURE": "left out, the model that comes with the service takes 0",
    "CUDA_VISIBLE_DEVICES": "given and empty, CUDA hides every GPU",
}
# Read by libraries and never by this service.
FOREIGN = {
    "OMP_NUM_THREADS": ("4", "read by OpenMP, in PyTorch: CPU threads"),
    "MKL_NUM_THREADS": ("4", "read by Intel's MKL, in PyTorch: CPU threads"),
    "PYTORCH_ENABLE_MPS_FALLBACK": ("1", "read by PyTorch: what Apple's GPU cannot do runs on the CPU"),
    "HF_TOKEN": ("", "read by huggingface_hub: for downloads of models that ask for an account"),
}

_ABOUT = """\
# Every setting with its default: copy to .env and change what you need; an empty value counts as not given.
# Made by `python main.py config --write-docs`; the descriptions and bounds are those of llm_service/config.py.
"""


def env_example() -> str:
    """Return the text of `.env.example`."""
    lines = [_ABOUT]
    for variable, field in variables().items():
        if variable in HEADINGS:
            lines.append(f"# ---- {HEADINGS[variable]}\n")
        lines.append(_entry(variable, field))
    lines.append("# ---- Read by libraries, not by this service\n")
    lines.extend(f"# {purpose}\n#{variable}={value}\n" for variable, (value, purpose) in FOREIGN.items())
    return "\n".join(lines)


def _entry(variable: str, field: FieldInfo) -> str:
    about = [field.description or ""]
    if get_origin(field.annotation) is Literal:
        about.append(f"one of {', '.join(get_args(field.annotation))}")
    if variable in UNSET:
        about.append(UNSET[variable])
    others = aliases(variable)[1:]
    about.extend(f"also read as {other}, where this one is not given" for other in others)
    comments = "".join(f"# {line}\n" for line in about)
    return f"{comments}{'#' if others or variable in UNSET else ''}{variable}={_default(field)}\n"


def _default(field: FieldInfo) -> str:
    """Return the default as one writes it in an environment; secrets and lists are empty by default."""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return str(field.default) if isinstance(field.default, str | int | float) else ""
