"""An S3 server that enforces IAM policies, and writes down what it is asked: python -m tests.enforcing_s3 PORT LOG.

Each line of LOG is a JSON list: access key, action such as s3:GetObject, resource's ARN, whether it was permitted.
Enforcement begins after POST /moto-api/reset-auth with 0. Signatures are checked as well.
"""

import json
import re
import sys
import threading
from typing import Any

from moto.iam import access_control
from moto.server import main

_lock = threading.Lock()
_check = access_control.S3IAMRequest.check_action_permitted


def _recording(request: Any, resource: str) -> None:
    # A DeleteObjects request is asked of the bucket here, and of each key on AWS.
    keys = re.findall(r"<Key>(.*?)</Key>", request._body.decode()) if request._action == "s3:DeleteObject" else []
    for one in [f"{resource}/{key}" for key in keys] or [resource]:
        permitted = False
        try:
            _check(request, one)
            permitted = True
        finally:
            line = json.dumps([request._access_key._access_key_id, request._action, one, permitted])
            with _lock, open(sys.argv[2], "a") as log:
                log.write(line + "\n")


if __name__ == "__main__":
    access_control.S3IAMRequest.check_action_permitted = _recording
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
