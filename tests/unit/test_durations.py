import pytest

from fleet_model import durations


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("5m", 300_000),
        ("90s", 90_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("0.001s", 1),
        ("0.001h", 3_600),
        ("250ms", 250),
        ("1m0.123s", 60_123),
        ("720h", 2_592_000_000),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_a_go_duration_is_read_to_the_millisecond(text: str, expected_ms: int) -> None:
    assert durations.parse_ms(text) == expected_ms


@pytest.mark.parametrize(
    "text",
    # Unknown units, units finer than a millisecond, what a looser reader would skip over or round away.
    [
        "",
        "5",
        "5 m",
        "m",
        "5x",
        "1d",
        "1w",
        "5mm",
        "5us",
        "0.5ms",
        "0.0001s",
        "-5m",
        "5m, 3s",
        "1.2.3s",
        "٥m",
        "5M",
        "5m\n",
        "9" * 12 + "h",
        "1s" * 40,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|out of range"):
        durations.parse_ms(text)


@pytest.mark.parametrize("duration_ms", [0, 1, 999, 60_000, 90_061_001, 5_400_000, 2_592_000_000, 10**15 + 7])
def test_the_text_of_a_duration_reads_back(duration_ms: int) -> None:
    assert durations.parse_ms(durations.text_of_ms(duration_ms)) == duration_ms


def test_the_text_of_a_duration_is_what_one_would_write() -> None:
    assert [durations.text_of_ms(ms) for ms in (0, 5_400_000, 90_000, 250)] == ["0s", "1h30m", "1m30s", "250ms"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10Gi", 10 * 2**30),
        ("10G", 10**10),
        ("1.5Ki", 1536),
        ("512", 512),
        ("0.001", 1),
        ("1k", 1000),
        ("64Mi", 64 * 2**20),
        ("1Ei", 2**60),
    ],
)
def test_a_quantity_is_read_in_bytes_rounded_up(text: str, expected: int) -> None:
    assert durations.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "10gi", "10 Gi", "10GB", "-1Gi", "1e3", "10Kii", "1_000", "NaN", "10K"])
def test_any_other_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        durations.parse_bytes(text)


def test_the_text_of_a_size_reads_back() -> None:
    assert durations.text_of_bytes(64 * 2**30) == "64Gi"
    assert [durations.parse_bytes(durations.text_of_bytes(size)) for size in (0, 1, 1536, 10**12)] == [
        0,
        1,
        1536,
        10**12,
    ]
