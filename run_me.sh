#!/bin/sh
# Prints the label of a picture: start a server first, with python3 scripts/serve.py.
PICTURE=images/dog.jpg

cd "$(dirname "$0")" || exit 1
exec curl -sS --fail-with-body -H "Accept: text/plain" -F "file=@$PICTURE" "${DENSENET_URL:-http://127.0.0.1:5000}/predictions/densenet"
