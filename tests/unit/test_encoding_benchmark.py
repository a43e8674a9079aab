from benchmarks.encoding import METADATA, by_protobuf_v1, by_protobuf_v2, measure, remembering, series_of
from benchmarks.load import Load
from worker.config import Message
from worker.remote_write import write_request
from worker.remote_write.decode import read_request
from worker.remote_write.encode import compress

TINY = Load(zones=2, series_per_zone=12, minutes=3, first_start=1_750_000_020)


def test_both_sides_make_the_same_requests() -> None:
    batch = TINY.batch(range(TINY.zones), range(TINY.minutes))
    series = series_of(batch)
    theirs_by_message = {Message.V1: by_protobuf_v1(series), Message.V2: by_protobuf_v2(series)}
    for message, theirs in theirs_by_message.items():
        ours = read_request(compress(write_request(batch, message, METADATA)), message)
        read = read_request(compress(theirs), message)
        assert read.broken_rules == []
        assert read.series == ours.series
        assert ours.sample_count == TINY.samples
        if message is Message.V2:
            assert read.metadata == ours.metadata


def test_every_way_has_its_line() -> None:
    assert len(list(measure(TINY))) == 5
    assert "100 remembered" in remembering(100)
