"""Fixtures of this folder."""

from tests.quick_programs import quick_programs as quick_programs
