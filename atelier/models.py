"""The lock file of weights: what a host needs, where it comes from, and the sha256 that decides."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atelier.errors import AtelierError
from atelier.settings import Settings

HUB = "https://huggingface.co"
DIRECTORIES = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "vae_approx")


class Weight(BaseModel):
    """One file. `bytes` is its size; `revision` is a commit, or `main`, which the sha256 makes safe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|main)$")]
    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/+-]+$")]
    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    directory: Literal["checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "vae_approx"]
    sets: Annotated[list[str], Field(min_length=1)]
    used_by: list[str]
    profiles: Annotated[list[Literal["gpu", "cpu"]], Field(min_length=1)] = ["gpu", "cpu"]
    licence: str

    @property
    def name(self) -> str:
        """The file's name in the store."""
        return self.path.rpartition("/")[2]

    @property
    def store_path(self) -> str:
        """Where it lies below the store's root."""
        return f"{self.directory}/{self.name}"

    def urls(self, mirrors: list[str], hub: bool = True) -> list[str]:
        """Where to fetch it, mirrors first, the hub last."""
        last = [f"{HUB}/{self.repository}/resolve/{self.revision}/{self.path}"] if hub else []
        return [f"{mirror.rstrip('/')}/{self.store_path}" for mirror in mirrors] + last

    def probe_urls(self, mirrors: list[str], hub: bool = True) -> list[str]:
        """A small document at each source: its answer says that the source can be reached."""
        last = [f"{HUB}/{self.repository}/resolve/{self.revision}/.gitattributes"] if hub else []
        return [
            f"{mirror.rstrip('/')}/{self.store_path if mirror.startswith('file:') else ''}" for mirror in mirrors
        ] + last


class ModelsLock(BaseModel):
    """locks/models.yml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    files: list[Weight]

    @model_validator(mode="after")
    def _unambiguous(self) -> "ModelsLock":
        places = [weight.store_path for weight in self.files]
        twice = sorted({place for place in places if places.count(place) > 1})
        if twice:
            raise ValueError(f"two entries for {', '.join(twice)}")
        return self

    def wanted(self, sets: list[str]) -> tuple[Weight, ...]:
        """The files of the given sets. Raises AtelierError for a set that no file names."""
        known = {name for weight in self.files for name in weight.sets}
        unknown = [name for name in sets if name not in known]
        if unknown:
            raise AtelierError(
                f"models.sets: no such set: {', '.join(unknown)}", f"the lock has: {', '.join(sorted(known))}"
            )
        return tuple(weight for weight in self.files if set(weight.sets) & set(sets))


def read_lock(path: Path) -> ModelsLock:
    """Read a lock file. Raises AtelierError naming the entry and the key."""
    try:
        return parse_lock(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise AtelierError(f"models.lock: {path} does not exist", "name an existing lock file") from None


def parse_lock(text: str, name: str) -> ModelsLock:
    """A lock file's text; `name` is for messages. Raises AtelierError naming the entry and the key."""
    try:
        return ModelsLock.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise AtelierError(f"{name}: not readable as YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise AtelierError(f"{name}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def weights_for(settings: Settings, project: Path) -> tuple[Weight, ...]:
    """The weights that a host's settings ask for, those apart that its processor would take hours with."""
    computes = "gpu" if settings.profile == "gpu" else "cpu"
    wanted = read_lock(project / settings.models.lock).wanted(settings.models.sets)
    return tuple(weight for weight in wanted if computes in weight.profiles)
