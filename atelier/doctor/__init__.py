"""Recognises known failures of a host by their signatures, and packs what is needed to understand unknown ones."""

from atelier.doctor.examination import run

__all__ = ["run"]
