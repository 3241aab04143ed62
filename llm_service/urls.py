"""URLs in running text, and what is said for them."""

import re

LONGEST_URL = 2000  # characters that are looked at for one

_URL = re.compile(
    r"(?:https?://|www\.)[^\s<>\[\]|\"“”「」『』（）《》。，、；！？\u0e00-\u0e7f\u4e00-\u9fff\u3040-\u30ff]*"
)
_BARE = re.compile(r"(?:https?://|www\.)[.,;:!?)'*_`]*")
_HOST = re.compile(r"(?:https?://)?(?:[^/@]*@)?(?:www\.)?([^/:?#]+)")


def url_at(text: str) -> str:
    """Give what at the beginning of `text` may belong to a URL, which must begin there."""
    found = _URL.match(text, 0, LONGEST_URL)
    return found.group() if found is not None else ""


def trimmed(url: str) -> str:
    """Leave off the punctuation behind a URL, and a parenthesis that wasn't opened in it; empty if nothing is left."""
    if _BARE.fullmatch(url):
        return ""
    while url[-1] in ".,;:!?'*_`" or (url[-1] == ")" and url.count(")") > url.count("(")):
        url = url[:-1]
    return url


def host_of(url: str) -> str:
    """Give the host that a URL names, without `www.`, name, password and port."""
    host = _HOST.match(url)
    return host.group(1) if host is not None else url
