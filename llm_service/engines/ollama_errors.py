"""What Ollama's errors mean, and how much of them may be told: they have no codes, and may quote what was said."""

import re

import msgspec

from llm_service.engines.refusals import Refusal, cleaned, refused
from llm_service.engines.tool_calls import unreadable
from llm_service.errors import ContextOverflow, EngineRejected, FastTalkError, GenerationFailed, ModelNotFound

# runner/ollamarunner/runner.go and runner/llamarunner/runner.go, `errorInputTooLong`, answered with
# status 400. Ollama gives no code with it, so that its wording is all there is.
_OVERFLOW = "the input length exceeds the context length"
# types/model/capability.go and server/images.go, likewise with status 400 and no code.
_NO_TOOLS = "does not support tools"
# What Ollama quotes in these is a name, of a model or of what a model is made of.
_NAMING = re.compile(
    r"""model '([\w.:/@-]+)' not found(?:, try pulling it first)?|"?[\w.:/@-]+"? does not support \w+"""
    r"""|[\w :]*unknown model architecture: '[\w.-]+'"""
)
# What its parsers say of a call that the model wrote, with status 500 or in the stream: harmony/harmonyparser.go, and
# model/parsers/*.go, which hand on the words of Go's encoding/json and encoding/xml.
_BAD_CALLS = (
    "error parsing tool call", "failed to parse JSON", "empty function name", "XML syntax error",
    "expected element type", "invalid character", "unexpected end of JSON input", "json: cannot unmarshal",
)  # fmt: skip
# Otherwise text of the model or the user may begin here: harmony/harmonyparser.go says "error parsing tool call:
# raw='…', err=…", and model/parsers/qwen3coder.go what encoding/xml does: "XML syntax error on line 1: element <…".
_SAID = re.compile(r"raw=|(?<=syntax error)|(?<=tool call):|[\"'`<>{}\[\]&«»\u2018-\u201f]")


def refusal_error(refusal: Refusal, label: str, model: str = "") -> FastTalkError:
    """Return our error for what an Ollama, named by `label`, refused; `model` is the one it was asked for."""
    if refusal.status == 400 and refusal.text.startswith(_OVERFLOW):
        return ContextOverflow("The conversation is longer than the model's context window.")
    if refusal.status == 400 and refusal.text.endswith(_NO_TOOLS):
        return EngineRejected(f"{label}: {refusal.text}. Choose a model that can call tools, or send none.")
    if refusal.status == 500 and refusal.text.startswith(_BAD_CALLS):
        return unreadable(label, f" ({refusal.text})")
    if refusal.status == 404:
        named = _NAMING.fullmatch(refusal.text)
        wanted = model or (named and named[1]) or "NAME"
        return ModelNotFound(f"{label} has no model '{wanted}'. Fetch it: ollama pull {wanted}")
    # What was said is not in `text` any more, or was never sent: only a chat holds such.
    return refused(refusal, label, quote=True)


def stream_error(text: str, label: str) -> FastTalkError:
    """Return our error for one that stands in the stream of an answer."""
    told = without_said(cleaned(text))
    if told.startswith(_BAD_CALLS):
        return unreadable(label, f" ({told})")
    return GenerationFailed(f"{label} failed{told and ': ' + told}")


def unsaid(refusal: Refusal) -> Refusal:
    """Return the refusal without what it may quote of the model or the user."""
    return msgspec.structs.replace(refusal, text=without_said(refusal.text))


def without_said(text: str) -> str:
    """Return what Ollama says up to where it may quote the model or the user."""
    if _NAMING.fullmatch(text):
        return text
    return _SAID.split(text, maxsplit=1)[0].rstrip(" :,(")
