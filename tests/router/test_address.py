"""Where the service listens."""

import pytest

from router.address import CannotListen, listening, url


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - not bound
        ("example.org", "http://example.org:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_a_url_reaches_what_listens(host, reached):
    assert url(host, 80) == reached


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 70}.y", "no such host"])
def test_a_host_that_is_no_address_is_explained(host):
    with pytest.raises(CannotListen) as caught, listening(host, 0):
        pass

    assert str(caught.value) == (
        f"server.host {host!r} is neither an address nor a name that is known here. Choose an "
        "address that this machine has, such as 127.0.0.1, with --host or server.host"
    )


def test_an_address_of_another_machine_is_explained():
    with pytest.raises(CannotListen) as caught, listening("8.8.8.8", 0):
        pass

    assert str(caught.value) == (
        "cannot listen on 8.8.8.8:0: Cannot assign requested address. Choose an address that this "
        "machine has, such as 127.0.0.1, with --host or server.host"
    )


def test_a_free_port_is_taken_and_given_back():
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(CannotListen, match="another port"), listening("127.0.0.1", port):
            pass

    with listening("127.0.0.1", port):
        pass
