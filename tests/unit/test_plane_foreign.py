"""The rate of enrollment datagrams: room for a crowd, none for a flood, and a budget per step."""

from rustguard_py.planes.foreign_pace import BURST, RATE, RUN, ForeignPace


def test_a_crowd_comes_in_at_once_and_a_flood_only_at_the_rate() -> None:
    pace = ForeignPace()

    def admitted(second: int) -> int:
        """Of 100,000 a second."""
        return sum(pace.admit(b"RGE2\x01", 100 + second + n / 100_000) for n in range(100_000))

    assert abs(admitted(0) - (BURST + RATE * (1 - RUN))) <= 2
    assert abs(admitted(1) - RATE) <= 2


def test_a_flood_comes_in_runs() -> None:
    pace = ForeignPace()

    def admitted(at: float) -> int:
        return sum(pace.admit(b"RGE2\x01", at) for _ in range(10_000))

    admitted(5.001)
    assert [admitted(at) for at in (5.005, 5.015, 5.021, 5.025, 5.05)] == [0, 0, 20, 0, 20]


def test_no_step_takes_anothers_place() -> None:
    pace = ForeignPace()

    def admitted(datagram: bytes) -> int:
        return sum(pace.admit(datagram, 7.0) for _ in range(10_000))

    assert [admitted(message) for message in (b"RGE2\x01", b"RGE2\x03", b"RGE2\x05")] == [BURST] * 3
    assert [admitted(strange) for strange in (b"RGE2", b"RGE2\x02", b"RGE\x01\x03", b"RGE3\x05")] == [0] * 4
