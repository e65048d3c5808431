"""Text from elsewhere, before it is shown."""


def printable(text: str) -> str:
    """The same without control and format characters: XML cannot hold them, terminals obey them, readers are misled."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)
