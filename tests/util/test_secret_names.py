"""What looks like a secret is hidden; what does not, is shown as it is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.util.secret_names import hidden_args, hidden_locals, hides, is_secret_name, mask_args, mask_text


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "PASSWORD2", "userPassword", "passwd", "my-secret", "secret", "CLIENT_SECRET", "credentials",
        "api_key", "apiKey", "API-KEY", "x.api.key", "aws_secret_access_key", "private_key", "hf_token", "HF_TOKEN", "access_token",
        "githubToken", "Authorization", "passphrase", "--password", "opts['password']",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    value: object
    for value in ("abc", b"abc", 123, ["abc"], {"a": 1}):
        assert hides(name, value)
    for value in (None, True, False, "", b"", str, len):
        assert not hides(name, value)


@pytest.mark.parametrize(
    "name",
    [
        "num_tokens", "tokens", "tokenizer", "max_tokens", "key", "keys", "data_key", "data_keys", "seq_tag", "random_seed", "model",
        "batch_size", "author", "pass_num", "secretary", "compass", "keyboard", "", "_", "ö", "1",
    ],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)
    assert not hides(name, "abc") and not hides(name, 5)


def test_working_directory() -> None:
    assert hides("db_pwd", "abc") and not hides("PWD", "/home/me") and not hides("OLDPWD", "~")
    assert mask_text("PWD=/home/me") == "PWD=/home/me" and mask_text("pwd='x'") == "pwd=<hidden>"


def test_tokens_are_often_words() -> None:
    assert hides("token", "abc") and hides("my_token", b"abc")
    assert not hides("token", 5) and not hides("token", ["a"]) and not hides("tokens", "abc")
    assert not hides(5, "abc") and hides(b"password", "abc")


MASKED = """\
password = "x-x"
connect(user="a", password='x-x', n=1)
{'api_key': 'x-x', 'b': 2}
{"password": "a\\"x-x"}
opts["password"] = "x-x"
self.password = "x-x"
def f(password: str = "x-x"):
opts: dict = {"password": "x-x"}
HF_TOKEN=x-x
ftp://me:x-x@host/file
OSError: password=x-x failed
password: x-x
Authorization: Bearer x-xabcdefghijkl
https://host/?token=x-xabcdefgh123456&b=3
password='x-x is cut
'line\\npassword=x-x'
passphrase: "x-x"
b'{"secret": "x-x"}'
"""
SHOWN = """\
password = get_password()
password = opts.password
password = opts["password"]
if password == "abc":
if password: return None
for secret in secrets: use(secret)
unknown token: 'foo'
token = tokens[i]
num_tokens=500
File "/home/me/secret/b.py", line 3, in get_password
password: str
password=None
tokenizer="abc"
print(f"token = {x}")
https://host:80/a@b
"""


def test_mask_text() -> None:
    for line in MASKED.splitlines():
        masked = mask_text(line)
        assert "x-x" not in masked and "<hidden>" in masked, line
        assert mask_text(masked) == masked
    for line in SHOWN.splitlines():
        assert mask_text(line) == line
    assert mask_text(MASKED) == "".join(mask_text(line) + "\n" for line in MASKED.splitlines())
    assert mask_text(SHOWN) == SHOWN
    assert 'user="a", password=<hidden>, n=1' in mask_text(MASKED)


def test_mask_args() -> None:
    args = ["a.config", "++password", "x-x", "--api-key=x-x", "++batch_size", "5", "++url", "http://a:x-x@c", "++opts",
            "{'password': 'x-x'}", "--hf_token", "x-x", "++secret"]  # fmt: skip
    assert mask_args(args) == [
        "a.config", "++password", "<hidden>", "--api-key=<hidden>", "++batch_size", "5", "++url", "http://a:<hidden>@c", "++opts",
        "{'password': <hidden>}", "--hf_token", "<hidden>", "++secret",
    ]  # fmt: skip
    assert hidden_args(["a", 5, None, "++password", 5]) == [4]


def test_hidden_locals() -> None:
    assert hidden_locals({"password": "a", "key": "b", "value": "c"}) == {"password"}
    assert hidden_locals({"key": "db_password", "value": "c", "other": "d", "v": 5}) == {"value"}
    assert hidden_locals({}) == set()


@given(st.text(st.sampled_from("password=:'\"\\ \n{}[]tokenx-1,rb(@/")))
def test_mask_text_takes_anything(text: str) -> None:
    masked = mask_text(text)
    assert "password='secret1'" not in mask_text(f"{text}\npassword='secret1'")
    if "<hidden>" not in masked:
        assert masked == text


def test_mask_text_is_linear() -> None:
    secs = []
    for num in (3_000, 30_000):
        start = time.process_time()
        for piece in ("a", "a=", "'", "a='", "a: ", "x://", "x://y:", "bearer ", "password: a", "a: b "):
            mask_text(piece * (num // len(piece)))
        secs.append(time.process_time() - start)
    assert secs[1] < 40 * secs[0] + 1.0  # far from quadratic, on a busy machine too
