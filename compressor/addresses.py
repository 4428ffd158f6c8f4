"""Addresses that may hold a secret: how to show them, and how to tell. Nothing is opened here."""

import re

# user:password@ in front of a host. An AWS secret may hold a slash; a host's port with a path behind it is none.
PASSWORD = r"://[^/@\s:]*:(?!\d+/)[^@\s]*@"
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_PASSWORDS = re.compile(r"(?<=://)([^/@\s:]*):(?!\d+/)[^@\s]*(?=@)|\?\S*=\S*?(?=\"?(?:\s|$))")

ADVICE = (
    "an address holds no password, since addresses are stored and shown: give it by the environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, FSSPEC_FTP_PASSWORD and the like for others)"
)


def is_s3(address: str) -> bool:
    """Whether an address is in an S3 bucket."""
    return address.startswith(("s3://", "s3a://"))


def shown(text: str) -> str:
    """``text`` with users, passwords and queries of the addresses in it left out."""
    return _USER.sub("", without_secrets(text))


def without_secrets(url: str) -> str:
    """``url`` without passwords and queries, but with its user, who may tell one place from another."""
    return _PASSWORDS.sub(r"\1", url)


def has_password(url: str) -> bool:
    """Whether an address holds a password."""
    return re.search(PASSWORD, url) is not None
