"""Chat messages: every accepted format of a message and of its image parts, and the errors for malformed ones."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindone.models.share4v.processing.image_loading import load_image
from mindone.models.share4v.processing.messages import Message, fill_images, is_conversation, read_messages

ARRAY = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
QUESTION = {"type": "text", "text": "What is this?"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_string_content() -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": "A cat."},
    ]
    assert read_messages(conversation) == [
        Message("system", "Be brief."),
        Message("user", "<image>\nWhat is this?"),
        Message("assistant", "A cat."),
    ]
    assert read_messages(()) == []


def test_text_parts_are_joined_unchanged() -> None:
    parts = [{"type": "text", "text": "What\r\n is "}, {"type": "text", "text": ""}, {"type": "text", "text": "this? "}]
    assert read_messages([user(*parts)]) == [Message("user", "What\r\n is this? ")]
    assert read_messages([{"role": "user", "content": tuple(parts)}]) == [Message("user", "What\r\n is this? ")]
    assert read_messages([{"role": "assistant", "content": parts[:1]}]) == [Message("assistant", "What\r\n is ")]
    assert read_messages([user()]) == [Message("user", "")]


@pytest.mark.parametrize(
    ("part", "image"),
    [
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "image": Path("a.png")}, Path("a.png")),
        ({"type": "image", "image": b"GIF"}, b"GIF"),
        ({"type": "image", "url": "https://example.org/a.png"}, "https://example.org/a.png"),
        ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "base64": "R0lG"}, "data:application/octet-stream;base64,R0lG"),
        ({"type": "image", "base64": "data:image/gif;base64,R0lG"}, "data:image/gif;base64,R0lG"),
        ({"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lG"}}, "data:image/gif;base64,R0lG"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}, "a.png"),
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "image"}, None),
        ({"type": "image", "image": None}, None),
        ({"type": "image", "url": None, "path": "a.png"}, "a.png"),
        ({"type": "image", "image": "first.png", "path": "second.png"}, "first.png"),
    ],
)
def test_every_format_of_an_image_part(part: dict[str, Any], image: object) -> None:
    assert read_messages([user(QUESTION, part)]) == [Message("user", "<image>\nWhat is this?", (image,))]  # type: ignore[arg-type]


def test_arrays_and_opened_images_are_passed_on() -> None:
    picture = Image.fromarray(ARRAY)
    (message,) = read_messages([user({"type": "image", "image": ARRAY}, {"type": "image", "image": picture})])
    assert message.text == "<image>\n<image>\n"
    assert message.images[0] is ARRAY and message.images[1] is picture


def test_base64_can_be_loaded(tmp_path: Path) -> None:
    Image.fromarray(ARRAY).save(tmp_path / "a.png")
    encoded = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    (message,) = read_messages([user({"type": "image", "base64": encoded})])
    assert message.images[0] is not None
    np.testing.assert_array_equal(np.asarray(load_image(message.images[0])), ARRAY)


def test_images_keep_their_order_within_and_across_messages() -> None:
    messages = read_messages(
        [
            user({"type": "image", "path": "a"}, QUESTION, {"type": "image_url", "image_url": {"url": "b"}}),
            {"role": "assistant", "content": "A cat."},
            user({"type": "image"}, {"type": "image", "url": "c"}),
        ]
    )
    assert [message.images for message in messages] == [("a", "b"), (), (None, "c")]
    assert [message.text.count("<image>") for message in messages] == [2, 0, 2]


def test_parsed_message_is_returned_unchanged() -> None:
    message = Message("user", "<image>\nWhy?", (ARRAY,))
    assert read_messages([message, {"role": "assistant", "content": "So."}])[0] is message


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("Hi", "must be a list of messages, got a str; put it in a list"),
        ({"role": "user", "content": "Hi"}, "must be a list of messages, got a dict; put it in a list"),
        (["Hi"], "message 0 is 'Hi', expected"),
        ([{"role": "user", "content": "Hi"}, {"role": "user"}], "message 1 is {'role': 'user'}, expected"),
        ([{"content": "Hi"}], "message 0 is {'content': 'Hi'}, expected"),
        ([{"role": "tool", "content": "x"}], "message 0 has the role 'tool', expected one of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], r"message 0 has the role \['user'\], expected one of"),
        ([{"role": "user", "content": None}], "message 0 has a content of type NoneType, expected a string or a list"),
        ([{"role": "user", "content": 3}], "message 0 has a content of type int, expected a string or a list"),
        ([user(QUESTION, "Hi")], "message 0, part 1 is 'Hi', expected"),
        ([user({"text": "Hi"})], "message 0, part 0 is {'text': 'Hi'}, expected"),
        ([user({"type": "text"})], "message 0, part 0 is {'type': 'text'}, expected"),
        ([user({"type": "text", "text": 3})], "message 0, part 0 is {'type': 'text', 'text': 3}, expected"),
        ([user({"type": "video", "path": "a.mp4"})], "message 0, part 0 is {'type': 'video', .*}, expected"),
        ([user({"type": "image_url"})], "message 0, part 0 is {'type': 'image_url'}, expected"),
        ([user({"type": "image_url", "image_url": {}})], "message 0, part 0 is .*, expected"),
        ([user({"type": "image_url", "image_url": {"uri": "a"}})], "message 0, part 0 is .*, expected"),
        ([user(QUESTION, {"type": "image", "base64": b"R0lG"})], 'message 0, part 1 has a bytes under "base64"'),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "the role 'assistant' and 1 image parts"),
        ([{"role": "system", "content": [{"type": "image"}]}], "only the user can send images"),
    ],
)  # fmt: skip
def test_malformed_messages(messages: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_messages(messages)


def test_the_error_for_a_part_lists_the_accepted_formats() -> None:
    with pytest.raises(ValueError, match=r'"type": "text".*"type": "image", "path".*"url", "base64".*"image_url"'):
        read_messages([user({"type": "sound"})])


def test_is_conversation() -> None:
    assert is_conversation([{"role": "user", "content": "Hi"}]) and is_conversation((Message("user", "Hi"),))
    assert is_conversation([{"role": "user"}]) and is_conversation([{"content": "Hi"}])  # malformed: reading it says so
    others: tuple[object, ...] = (
        "Hi", ["Hi"], [], (), None, {"role": "user", "content": "Hi"}, [["Hi"]], [{"images": "a.png", "text": "Hi"}],
    )  # fmt: skip
    assert not any(map(is_conversation, others))


def test_images_given_separately_fill_the_parts_that_have_none() -> None:
    chat = [
        user({"type": "image"}, QUESTION, {"type": "image", "path": "own.png"}),
        {"role": "assistant", "content": "A cat.", "name": "bot"},
        user({"type": "image_url", "image_url": {"url": "u.png"}}, {"type": "image", "detail": "low"}),
        Message("user", "<image>\nWhy?", (None,)),
    ]
    given = copy.deepcopy(chat)
    filled, rest = fill_images(chat, ["a.png", "b.png", "c.png"])
    assert filled == [
        user({"type": "image", "image": "a.png"}, QUESTION, {"type": "image", "path": "own.png"}),
        {"role": "assistant", "content": "A cat.", "name": "bot"},
        user({"type": "image", "image": "u.png"}, {"type": "image", "detail": "low", "image": "b.png"}),
        Message("user", "<image>\nWhy?", ("c.png",)),
    ]
    assert rest == [] and chat == given
    images = [image for message in read_messages(filled) for image in message.images]
    assert images == ["a.png", "own.png", "u.png", "b.png", "c.png"]


def test_unused_images_are_returned() -> None:
    chat = [{"role": "user", "content": "<image> or <image>?"}]
    assert fill_images(chat, ["a.png", "b.png"]) == (chat, ["a.png", "b.png"])
    own = [user({"type": "image", "base64": "R0lG"}, QUESTION)]
    assert fill_images(own, []) == (own, [])


@pytest.mark.parametrize("images", [[], ["a.png", "b.png"]])
def test_number_of_images_must_match_the_empty_parts(images: list[str]) -> None:
    with pytest.raises(ValueError, match=f"has 1 image parts without an image, but {len(images)} images were given"):
        fill_images([user({"type": "image"}, {"type": "image", "path": "own.png"})], images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="message 0, part 0 is"):
        fill_images([user({"type": "sound"})], images)  # type: ignore[arg-type]
