"""FastTalk LLM service: the language stage of a voice or chat stack."""

__version__ = "0.1.0"
