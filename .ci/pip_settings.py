"""Prints pip's settings as those of uv, for a shell to eval: mirrors, folders of wheels, certificates, proxies."""

import ast
import os
import shlex
import subprocess
import sys

RANK = ("global", "install", ":env:")  # of the same setting the later one wins, as in pip
UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}

command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
found: dict[str, tuple[int, str]] = {}
for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
    name, _, value = line.partition("=")
    section, _, key = name.partition(".")
    if section in RANK:
        found[key] = max(found.get(key, (-1, "")), (RANK.index(section), ast.literal_eval(value)))

# pip takes the best version of all indexes together; uv, unless told so, the first index that has the package.
settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
for key, variable in UV.items():
    if key in found:
        separator = "," if variable == "UV_FIND_LINKS" else " "
        settings[variable] = separator.join(found[key][1].split())
for variable, value in settings.items():
    if variable not in os.environ:
        print(f"export {variable}={shlex.quote(value)}")
