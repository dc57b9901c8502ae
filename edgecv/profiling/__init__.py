"""Measuring latency: raw samples, the conditions they were taken under, and a page to look at."""

from edgecv.profiling.measure import Conditions, Profile, example_inputs, profile
from edgecv.profiling.trackers import profile_tracker

__all__ = ["Conditions", "Profile", "example_inputs", "profile", "profile_tracker"]
