"""What the library's binding to llama.cpp has."""


def llama_vocab_is_eog(_vocab: object, token: int) -> bool:
    """Return whether a token ends the text."""
    return token == 2
