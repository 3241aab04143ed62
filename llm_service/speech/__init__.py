"""Speech: from the chunks of a response to audio, one TTS wire a file."""
