"""Opens what run and verify share: the device, models with their weights, the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrace.errors import Inconclusive, LlmtraceError

if TYPE_CHECKING:
    from pathlib import Path

    from llmtrace.blocks.versions import Version
    from llmtrace.cli.frame import Session
    from llmtrace.device.device import Device
    from llmtrace.engine.trace import Model
    from llmtrace.model.architecture import Architecture
    from llmtrace.model.checkpoint import Checkpoint
    from llmtrace.store.carrier import Carrier
    from llmtrace.store.chain import Store


def open_device(session: Session, name: str | None, threads: int | None) -> Device:
    """Opens the device that the options or the settings name."""
    from llmtrace.device.compile import kernels_folder
    from llmtrace.device.device import open_device as open_

    settings = session.settings
    return open_(
        name or settings.device,
        kernels=kernels_folder(),
        cache=settings.cache / "kernels",
        threads=threads or settings.threads or 0,
        cxx=settings.compiler or "",
        cpu=settings.cpu or "native",
        announce=lambda text: session.out.note(f"llmtrace: {text}"),
    )


def open_store(session: Session, *, create: bool = False) -> Store:
    """Opens the store of this session."""
    from llmtrace.store.chain import Store

    settings = session.settings
    store = Store.open(settings.store, settings.config / "keys", create=create)
    store.lineage.keep_in(settings.cache / "places")
    return store


def open_carrier(session: Session) -> Carrier:
    """What starts git for this session; warns of one with known holes."""
    from llmtrace.store.carrier import Carrier

    carrier = Carrier(session.settings.network)
    if warning := carrier.warning():
        session.out.warn(warning)
    return carrier


@dataclass(frozen=True)
class Outline:
    """A model as its files describe it, its weights on no device."""

    checkpoint: Checkpoint
    architecture: Architecture
    id: str


class Models:
    """Models of this session, each opened and placed once for each version."""

    def __init__(
        self, session: Session, named: str | None, device: str | None, threads: int | None
    ) -> None:
        from llmtrace.device.device import parse_name

        parse_name(device or session.settings.device)  # before any work
        self._session, self._named = session, named
        self._device_options = (device, threads)
        self._device: Device | None = None
        self._placed: dict[tuple[str, Version], Model] = {}

    def outline(self, name: str) -> Outline:
        """Reads a model by name or folder. Raises Trouble for what is no model that we know."""
        from llmtrace.model.architecture import Architecture
        from llmtrace.model.checkpoint import Checkpoint

        checkpoint = Checkpoint.open(self._folder(name))
        architecture = Architecture.of(checkpoint)
        architecture.check(checkpoint)
        return Outline(checkpoint, architecture, self._identify(checkpoint.path))

    def place(self, outline: Outline, version: Version) -> Model:
        """Puts the weights of a model on the device, unless they are there."""
        from llmtrace.engine.trace import Model

        key = (outline.id, version)
        if key not in self._placed:
            self._device = self._device or open_device(self._session, *self._device_options)
            parts = (outline.checkpoint, outline.architecture, self._device)
            packed = self._session.settings.cache / "packed"
            self._placed[key] = Model.place(*parts, *key, packed)
        return self._placed[key]

    def open(self, name: str, version: Version) -> Model:
        """Opens a model by name or folder. Raises Trouble for what is no model that we know."""
        return self.place(self.outline(name), version)

    def find(self, model_id: str, name: str, version: Version) -> Model:
        """Gives the model with this id: the one named, else by the record's name, else the sample.

        Raises Inconclusive, before anything is computed, if none has this id.
        """
        if (model_id, version) in self._placed:
            return self._placed[model_id, version]
        seen = []
        for candidate in candidates(self._session, self._named, name):
            try:
                found = self._identify(self._folder(candidate))
            except LlmtraceError:
                if self._named:
                    raise
                continue
            if found == model_id:
                return self.open(candidate, version)
            seen.append(f"'{candidate}' is {found[:16]}…")
        raise Inconclusive(
            f"the record needs model {model_id[:16]}…"
            + (f", {seen[0]}" if seen else ", which is not here"),
            "name its folder with -m",
        )

    def _folder(self, name: str) -> Path:
        from llmtrace.model.registry import resolve, sample_folder

        return resolve(name, self._session.settings.models, sample_folder())

    def _identify(self, folder: Path) -> str:
        from llmtrace.model.checkpoint import Checkpoint
        from llmtrace.model.identity import identify

        return identify(Checkpoint.open(folder), self._session.settings.cache / "models")


def candidates(session: Session, named: str | None, recorded: str) -> list[str]:
    """Lists where to look for a record's model: what the user named, or what may be it.

    What a record calls its model is a name here or nothing, never a folder: a stranger chose it.
    """
    from llmtrace.model.registry import SAMPLE, listing, sample_folder

    if named:
        return [named]
    known = {name for name, _ in listing(session.settings.models, sample_folder())}
    own = [recorded] if recorded in known else []
    return list(dict.fromkeys([*own, session.settings.model or SAMPLE, SAMPLE]))


def points(architecture: Architecture, globs: tuple[str, ...]) -> tuple[str, ...]:
    """Gives the points that the globs name, aliases resolved; raises Misuse if one names none."""
    from llmtrace.blocks.llama import names

    return tuple(sorted(names(architecture).match(globs)))
