"""Keys: safe relative paths, unique in a job."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.state.keys import (
    KeyRegistry,
    path_keys,
    safe_key,
    url_keys,
    without_suffix,
)

# File names as Python represents them: any text, and surrogate escapes for bytes that are not UTF-8.
NAMES = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from([chr(0xDC80 + n) for n in range(128)]))


@given(NAMES)
def test_a_key_stays_inside_its_directory_and_within_name_limits(text: str) -> None:
    key = safe_key(text)
    parts = key.split("/")
    assert all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    assert all(len(part.encode("utf-8", "surrogatepass")) <= 240 for part in parts)
    assert safe_key(key) == key


def test_keys_of_paths_and_urls() -> None:
    assert safe_key("../../etc/passwd") == "__/__/etc/passwd"
    assert safe_key("x" * 300) != safe_key("x" * 301) and safe_key("x" * 300).startswith("xxx")
    assert path_keys("/data/cats/1.b.JPG", "/data") == ("cats/1.b", "cats/1.b.JPG")
    assert path_keys("/other/1.jpg", "/data") == ("other/1", "other/1.jpg")
    assert path_keys("/database/1.jpg", "/data") == ("database/1", "database/1.jpg")
    assert url_keys("https://example.org:80/a%20b/c.png?size=1") == ("example.org/a b/c", "example.org/a b/c.png")
    assert url_keys("http://[bad/c.png")[1] == "http_/[bad/c.png"
    assert without_suffix(".jpg") == ".jpg" and without_suffix("a.tar.gz") == "a.tar"


def test_keys_and_sidecar_names_are_unique() -> None:
    registry = KeyRegistry()
    assert registry.claim("1", "1.jpg") == "1"
    assert registry.claim("1", "1.png") == "1.png"
    assert registry.claim("1", "1.png") == "1.png~2"
    assert registry.claim("1", "1.PNG") == "1.PNG~3"  # the same name if case is ignored
    assert registry.claim("caf\u00e9", "caf\u00e9.jpg") == "caf\u00e9"
    assert (
        registry.claim("cafe\u0301", "cafe\u0301.jpg") == "cafe\u0301.jpg"
    )  # the same text in another Unicode normalization
    assert registry.claim("a/2", "a/2.jpg", "/data") == "a/2"
    assert registry.claim("b/2", "b/2.png", "/data") == "b/2.png"  # /data/2.txt is taken
    assert registry.claim("c/2", "c/2.png", "/other") == "c/2"
    assert registry.claim("\udcff", "\udcff.jpg") == "\udcff"
    assert registry.claim_name("/x") and not registry.claim_name("/x")
    registry.close()


def test_thousands_of_equal_names_are_claimed_quickly() -> None:
    registry = KeyRegistry()
    keys = [registry.claim("1", "1.jpg") for _ in range(3000)]
    assert len(set(keys)) == 3000 and keys[-1] == "1.jpg~2999"
    registry.close()
