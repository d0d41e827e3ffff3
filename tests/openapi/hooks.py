"""What schemathesis is told beside the document: which namespace there is, not to wait for long, and
what of a token no pattern says."""

import re

import schemathesis

LONGEST_WAIT_MS = 3_600_000
TOKEN = re.compile(r"([0-9]{1,20}\.)?[0-9]{1,20}", re.ASCII)


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    key = (path_parameters or {}).get("key")
    if isinstance(key, str) and "/" in key:
        path_parameters["key"] = "objects/" + key.partition("/")[2]
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    wait = body.get("wait_ms")
    if isinstance(wait, (int, float)) and not isinstance(wait, bool) and 0 <= wait <= LONGEST_WAIT_MS:
        body["wait_ms"] = wait % 5 if wait == int(wait) else wait
    token = body.get("token")
    if isinstance(token, str) and TOKEN.fullmatch(token):
        parts = [int(part) for part in token.split(".")]
        if not any(parts) or max(parts) >= 2**64:
            body["token"] = "1"
    return body
