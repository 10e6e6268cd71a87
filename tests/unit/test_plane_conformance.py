"""Both Python planes do what the contract says: the rules alone, and the portable plane's batches."""

from __future__ import annotations

from support.batch_plane import BatchPlane, ChannelBatchPlane
from support.memory_plane import MemoryPlane
from support.plane_conformance import PlaneConformance


class TestTransport(PlaneConformance):
    def make_plane(self, public_key: bytes) -> MemoryPlane:
        return MemoryPlane(public_key)


class TestBatches(PlaneConformance):
    def make_plane(self, public_key: bytes) -> MemoryPlane:
        return BatchPlane(public_key)


class TestChannel(PlaneConformance):
    def make_plane(self, public_key: bytes) -> ChannelBatchPlane:
        return ChannelBatchPlane(public_key)
