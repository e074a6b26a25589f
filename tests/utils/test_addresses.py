"""Addresses as they may be shown: no user, no password, no token, whatever characters are in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iefvad.utils.addresses import check_address, file_stem, hint, origin, scrub, shown
from iefvad.utils.errors import UserError

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://user:p@ss@camera.lan:554/stream?token=secret", "rtsp://camera.lan:554/stream"),
        ("rtsp://admin@camera.lan/live", "rtsp://camera.lan/live"),
        ("RTSP://admin:s3cr3t@CAMERA/live", "RTSP://CAMERA/live"),
        ("rtsp://u:s3cr3t@[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
        ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
        ("rtsp://admin:p#s3cr3t@10.0.0.1:9/stream", "rtsp://10.0.0.1:9/stream"),
        ("rtsp://admin:se/s3cr3t@10.0.0.1:9/stream", "rtsp://10.0.0.1:9/stream"),
        ("rtsp://admin:p?s3cr3t@10.0.0.1:9/s", "rtsp://10.0.0.1:9/s"),
        ("rtsp://admin:[s3cr3t]@10.0.0.1:9/s", "rtsp://10.0.0.1:9/s"),
        ("rtsp://admin:12/s3cr3t@10.0.0.1:9/s", "rtsp://10.0.0.1:9/s"),
        ("rtsp://admin:my s3cr3t@10.0.0.1/s", "rtsp://10.0.0.1/s"),
        ("rtsp://admin:s3\ncr3t@10.0.0.1/s", "rtsp://10.0.0.1/s"),
        ("rtsp://admin%3As3cr3t%40cam/live", "rtsp://cam/live"),
        ("http://proxy/rtsp%3A%2F%2Fadmin%3As3cr3t%2540cam/live", "http://cam/live"),
        ("http://proxy/http://admin:s3cr3t@cam/live", "http://cam/live"),
        ("http://cam/?url=rtsp://admin:s3cr3t@inner/live", "http://inner/live"),
        (
            "rtsp://10.0.0.1:9/user=admin&password=s3cr3t&channel=1&stream=0.sdp",
            "rtsp://10.0.0.1:9/user=***&channel=1&stream=0.sdp",
        ),
        (
            "rtsp://10.0.0.1/user=admin_password=s3cr3t_channel=2_stream=0.sdp?real_stream",
            "rtsp://10.0.0.1/user=***&channel=2&stream=0.sdp",
        ),
        ("rtsp://10.0.0.1:9/user=admin&password=p@s3cr3t&channel=1", "rtsp://10.0.0.1:9/user=***&channel=1"),
        ("http://10.0.0.1/live?pwd=p@s3cr3t&channel=1", "http://10.0.0.1/live?channel=1"),
        ("rtsp://admin:12/password=s3cr3t@10.0.0.1/live", "rtsp://***"),
        ("rtsp://10.0.0.1/live/password=s3cr3t/x&s3cr3t", "rtsp://10.0.0.1/live/password=***"),
        ("http://cam/x%26password%3Ds3cr3t", "http://cam/x&password=***"),
        ("http://cam/live;TOKEN=s3cr3t", "http://cam/live;TOKEN=***"),
        ("http://cam/live?pwd=s3cr3t&channel=3&x=s3cr3t", "http://cam/live?channel=3"),
        (
            "http://cam/cam/realmonitor?channel=1&subtype=0&auth=s3cr3t",
            "http://cam/cam/realmonitor?channel=1&subtype=0",
        ),
        ("http://cam/live#s3cr3t", "http://cam/live"),
        ("http://cam/admin:s3cr3t/live", "http://cam/***/live"),
        ("srt://cam:9000?passphrase=s3cr3t", "srt://cam:9000"),
        ("rtmp://cam/app/key pubPasswd=s3cr3t", "rtmp://cam/app/key pubPasswd=***"),
        ("cache:http://admin:s3cr3t@cam/x", "cam/x"),
        ("rtsp:/admin:s3cr3t@cam/x", "rtsp:/cam/x"),
        ("admin:s3cr3t@cam/x", "cam/x"),
        (" rtsp://admin:s3cr3t@cam/x ", "rtsp://cam/x"),
        ("file:///a@b/c.mp4?token=s3cr3t", "file:///b/c.mp4"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("file:///home/a@b/c.mp4", "file:///home/a@b/c.mp4"),
        ("/data/a@b/token=1.mp4", "/data/a@b/token=1.mp4"),
        ("C:/a:b@c.mp4", "C:/a:b@c.mp4"),
        ("/dev/video0", "/dev/video0"),
        ("0", "camera 0"),
    ],
)
def test_an_address_is_shown_without_secrets(address, expected):
    assert shown(address) == expected
    assert SECRET not in file_stem(address) and SECRET not in scrub(f"I/O error: '{address}' failed", [address])


tricky = st.text("ab@#/?[]%:&=;! '\"\\\n$+,._-", min_size=1, max_size=12).map(lambda text: text + SECRET)


@given(user=tricky, password=tricky, place=st.sampled_from(["path", "user", "query", "pair"]))
def test_no_character_of_a_password_makes_it_visible(user, password, place):
    address = {
        "user": f"rtsp://{user}:{password}@10.0.0.1:554/live",
        "path": f"rtsp://10.0.0.1:554/user={user}&password={password}",
        "query": f"http://10.0.0.1:554/live?user={user}&pwd={password}&channel=1",
        "pair": f"http://10.0.0.1:554/token={password}",
    }[place]
    for text in (shown(address), file_stem(address), origin(address), scrub(f"cannot open {address}: bad", [address])):
        assert SECRET not in text


def test_the_origin_hides_the_path():
    assert origin("https://hooks.example.org/services/T0/B0/s3cr3t") == "https://hooks.example.org"
    assert origin("https://user:s3cr3t@[::1]:8443/x?token=s3cr3t") == "https://[::1]:8443"
    assert origin("s3cr3t") == "***"


def test_scrubbing_keeps_the_rest_of_a_text():
    text = "Connection to tcp://u:s3cr3t@10.0.0.1:9?timeout=3 failed: Authorization: Bearer s3cr3t, password=s3cr3t"
    assert scrub(text) == "Connection to tcp://10.0.0.1:9 failed: Authorization: Bearer *** password=***"
    assert scrub("a.mp4 (threshold=3, key=value)") == "a.mp4 (threshold=3, key=value)"
    spaced = "rtsp://u:my s3cr3t@cam/x"
    assert scrub(f"{spaced} and rtsp:/u:my s3cr3t@cam/x", [spaced]) == "rtsp://cam/x and rtsp://cam/x"


@pytest.mark.parametrize("password", ["p#ss", "se/cret", "p?ss", "[x]", "#1", "my pass", "a]b"])
def test_characters_that_must_be_escaped_are_refused_with_the_remedy(password):
    with pytest.raises(UserError, match="# as %23, / as %2F, \\? as %3F, \\[ as %5B") as caught:
        check_address(f"rtsp://admin:{password}@10.0.0.1:9/stream")
    assert password not in str(caught.value) and "admin" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:p%23ss@10.0.0.1:9/stream",
        "rtsp://admin:p@ss@10.0.0.1/stream",
        "rtsp://admin@10.0.0.1/stream",
        "rtsp://[fe80::1]:554/stream",
        "http://10.0.0.1:80/live@main",
        "http://cam/live@main?x=[1]",
        "udp://@239.0.0.1:1234",
        "file:///a:b/c@d.mp4",
        "0",
    ],
)
def test_good_addresses_pass(address):
    check_address(address)


def test_a_hint_where_an_address_may_be_meant_otherwise():
    assert "%2F" in hint("rtsp://admin:12/34@10.0.0.1/stream") and "%2F" in hint("http://cam/live@main")
    assert hint("rtsp://admin:12@10.0.0.1/stream") == "" and hint("0") == ""
