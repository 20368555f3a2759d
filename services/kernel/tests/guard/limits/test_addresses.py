"""Whose count an address belongs to."""

import pytest

from moorage.guard.limits.addresses import address_key


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("no address", "no address"),
    ],
)
def test_ipv6_counts_by_its_64_and_ipv4_in_ipv6_as_itself(address: str, key: str) -> None:
    assert address_key(address) == key


def test_what_is_no_address_is_bounded() -> None:
    assert len(address_key("x" * 10_000)) == 64
