"""Compression chains: a recipe's steps one after another, a bundle of the result, and a report on every step."""

from edgecv.chain.running import Compression, compress

__all__ = ["Compression", "compress"]
