"""A fleet in virtual time, from one seed, with whatever can go wrong."""

from planton.testing.simulation._simulate import SimulationError, SimulationReport, simulate

__all__ = ["SimulationError", "SimulationReport", "simulate"]
