"""What kind of numbers a weight file holds: read from its header on the host, judged here."""

from collections.abc import Mapping

READ = r"""
import json, struct, sys

def sizes(path):
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    except (OSError, ValueError, struct.error, MemoryError) as error:
        return "cannot be read: %s" % (getattr(error, "strerror", None) or "it has no header of a safetensors file")
    header.pop("__metadata__", None)
    found = {}
    for tensor in header.values():
        begin, end = tensor["data_offsets"]
        found[tensor["dtype"]] = found.get(tensor["dtype"], 0) + end - begin
    return found

print(json.dumps({path: sizes(path) for path in sys.argv[1:]}))
"""
"""Python for the host: prints, by path, how many bytes are numbers of which type, or why that cannot be said."""

FP8 = "F8_E4M3"


def not_fp8(files: Mapping[str, Mapping[str, int] | str]) -> list[str]:
    """The files of which less than half is FP8 numbers, with what they are instead; an embedding table may be larger
    numbers. files: what READ prints."""
    wrong = []
    for path, sizes in files.items():
        if isinstance(sizes, str):
            wrong.append(f"{path} {sizes}")
        elif sizes.get(FP8, 0) * 2 < max(1, sum(sizes.values())):
            most = max(sizes, key=lambda kind: sizes[kind], default="nothing")
            wrong.append(f"{path} holds {most}")
    return wrong
