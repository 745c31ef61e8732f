@echo off
rem Prints the label of a picture: start a server first, with python scripts\serve.py.
set PICTURE=images\dog.jpg

cd /d "%~dp0"
if not defined DENSENET_URL set DENSENET_URL=http://127.0.0.1:5000
curl -sS --fail-with-body -H "Accept: text/plain" -F "file=@%PICTURE%" "%DENSENET_URL%/predictions/densenet"
