"""Parts of sentences."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, such as "1 face" or "2 faces"; the plural ends with "s" unless it is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
