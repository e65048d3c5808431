"""TEST DOUBLE, never deploy: tells kinds of checkpoints apart by the names of their tensors."""

from huggingface_guess.detection import guess

__all__ = ["guess"]
